//! Notifications that links, addresses, routes or rules of this network namespace have changed.
//!
//! The messages are not read, since the daemon reacts by comparing everything. A lost message (ENOBUFS,
//! netlink(7)) is therefore as good as one that arrived.

use std::future::poll_fn;
use std::io;

use rtnetlink::constants::{
    RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};

use super::error::NetlinkError;

/// RTNLGRP_IPV6_RULE (linux/rtnetlink.h) as a bit.
const RTMGRP_IPV6_RULE: u32 = 1 << (19 - 1);
/// Rules are included because they decide in which table the route to a peer is looked up.
const GROUPS: u32 = RTMGRP_LINK
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV6_ROUTE
    | RTMGRP_IPV4_RULE
    | RTMGRP_IPV6_RULE;
/// Maximum number of messages to drain, more than the kernel's buffer holds: a storm must not block the
/// reader forever.
const DRAIN_MOST: usize = 10_000;

/// A socket on which the kernel reports changes.
pub struct Changes {
    socket: TokioSocket,
}

impl Changes {
    /// Opens the socket in the calling thread's network namespace, on the running tokio runtime.
    pub fn listen() -> Result<Changes, NetlinkError> {
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
            Ok(Changes { socket })
        };
        open().map_err(NetlinkError::Connect)
    }

    /// Waits for the next message. Cancel safe.
    pub async fn happened(&self) {
        // A message is removed from the queue even if only a part of it is copied (netlink(7)).
        let _ = poll_fn(|context| self.socket.poll_recv(context, &mut [0_u8; 0].as_mut_slice())).await;
    }

    /// Discards the messages so far. To be called before the host is examined, not after.
    pub fn forget(&self) {
        for _ in 0..DRAIN_MOST {
            let read = self.socket.socket_ref().recv(&mut [0_u8; 0].as_mut_slice(), 0);
            // ENOBUFS is reported once; the messages queued behind it still have to be read.
            if read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use nix::sched::{CloneFlags, unshare};
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn each_kind_of_change_is_reported_once() {
        in_namespace(async |changes| {
            for change in [
                "link set lo up",
                "link add loden-a type veth peer name loden-b",
                "link set loden-a up mtu 1400",
                "address add 192.0.2.1/24 dev loden-a",
                "address add 2001:db8::1/64 dev loden-a nodad",
                "route add 198.51.100.0/24 dev lo",
                "route del 198.51.100.0/24 dev lo",
                "-6 route add 2001:db8:1::/64 dev lo",
                "-6 route del 2001:db8:1::/64 dev lo",
                "rule add to 203.0.113.0/24 lookup 100",
                "-6 rule add to 2001:db8:2::/64 lookup 100",
                "link del loden-a",
            ] {
                ip(change);
                timeout(Duration::from_secs(30), changes.happened()).await.expect(change);
                quiet(changes).await;
            }
        });
    }

    #[test]
    fn an_overflow_of_the_buffer_is_reported_once() {
        in_namespace(async |changes| {
            ip("link set lo up");
            let routes: String =
                (0..5000).map(|n| format!("route add 10.{}.{}.0/24 dev lo\n", n >> 8, n & 255)).collect();
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), routes).expect("written");
            ip(&format!("-batch {}", file.path().display()));
            changes.happened().await;
            quiet(changes).await;
            ip("route del 10.1.1.0/24 dev lo");
            timeout(Duration::from_secs(30), changes.happened()).await.expect("reported after the storm");
        });
    }

    /// Discards messages until no more arrive: the kernel may send several for one change, with a delay.
    async fn quiet(changes: &Changes) {
        loop {
            changes.forget();
            if timeout(Duration::from_millis(50), changes.happened()).await.is_err() {
                return;
            }
        }
    }

    fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split(' ')).status().expect("the ip tool");
        assert!(status.success(), "ip {arguments}");
    }

    fn in_namespace(test: impl AsyncFnOnce(&Changes) + Send) {
        let work = move || {
            if let Err(missing) = unshare(CloneFlags::CLONE_NEWNET) {
                assert!(std::env::var_os("CI").is_none(), "this test needs root rights: {missing}");
                eprintln!("skipped: this test needs root rights: {missing}");
                return;
            }
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let changes = Changes::listen().expect("a socket");
                test(&changes).await;
            });
        };
        std::thread::scope(|scope| {
            if let Err(panic) = scope.spawn(work).join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}
