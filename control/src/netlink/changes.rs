//! Hears that links, addresses, routes or rules of this network namespace have changed.
//!
//! What has changed is not read: whoever hears of it compares everything. So a lost message (ENOBUFS, netlink(7))
//! says as much as one that came.

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
/// Rules say which table a route is looked up in, which decides the way to a peer.
const GROUPS: u32 = RTMGRP_LINK
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV6_ROUTE
    | RTMGRP_IPV4_RULE
    | RTMGRP_IPV6_RULE;
/// More than the kernel's receive buffer holds; a storm must not keep the reader for ever.
const DRAIN_MOST: usize = 10_000;

/// A socket on which the kernel tells of changes.
pub struct Changes {
    socket: TokioSocket,
}

impl Changes {
    /// Listens in the calling thread's network namespace, on the running tokio runtime.
    pub fn listen() -> Result<Changes, NetlinkError> {
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
            Ok(Changes { socket })
        };
        open().map_err(NetlinkError::Connect)
    }

    /// Waits for the next message. Nothing is lost if the wait is dropped half-way.
    pub async fn happened(&self) {
        // A message leaves the queue whole, however little of it is copied (netlink(7)).
        let _ = poll_fn(|context| self.socket.poll_recv(context, &mut [0_u8; 0].as_mut_slice())).await;
    }

    /// Takes what was heard so far as dealt with: to be called before looking at the host, not after it.
    pub fn forget(&self) {
        for _ in 0..DRAIN_MOST {
            let read = self.socket.socket_ref().recv(&mut [0_u8; 0].as_mut_slice(), 0);
            // ENOBUFS is told once; what is queued behind it is still to be read.
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
    fn each_kind_of_change_is_heard_and_forgotten() {
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
    fn more_than_the_buffer_holds_is_heard_and_forgotten_as_well() {
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
            timeout(Duration::from_secs(30), changes.happened()).await.expect("heard after the storm");
        });
    }

    /// Forgets until nothing comes any more: the kernel may have more to say of one change, a little later.
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
