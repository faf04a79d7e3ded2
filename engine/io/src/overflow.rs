//! Packets that the kernel dropped before a worker could read them. Reading these counts is up to other
//! threads: the workers do nothing for them.

use std::fs;
use std::os::fd::AsFd;

use socket2::Socket;

use crate::sys;

/// Counts what the receive buffers of some sockets had no room for.
#[derive(Debug)]
pub struct Overflow {
    sockets: Vec<Socket>,
}

impl Overflow {
    /// Counts for these sockets, which must be the caller's own descriptors.
    pub(crate) fn new(sockets: Vec<Socket>) -> Overflow {
        Overflow { sockets }
    }

    /// Adds the sockets of `other`.
    pub fn join(&mut self, other: Overflow) {
        self.sockets.extend(other.sockets);
    }

    /// Returns the number of datagrams that the kernel dropped since the sockets were opened, because there
    /// was no room or their checksum was wrong. Returns `None` on a kernel before 4.12, which does not tell.
    pub fn dropped(&self) -> Option<u64> {
        self.sockets.iter().map(|socket| sys::socket_drops(socket.as_fd()).ok().map(u64::from)).sum()
    }
}

/// Returns the number of packets into a device of this network namespace that the kernel dropped since the
/// device exists, because its queue was full. Returns `None` if there is no such device.
pub fn dropped_by_device(name: &str) -> Option<u64> {
    // The namespace of the calling thread, without privileges or a mounted sysfs.
    transmit_drops(&fs::read_to_string("/proc/thread-self/net/dev").ok()?, name)
}

/// Finds a device's count in the text of `/proc/net/dev` (net/core/net-procfs.c): after the name and a colon
/// eight counts of received packets, then transmitted bytes, packets, errors and drops.
fn transmit_drops(text: &str, name: &str) -> Option<u64> {
    let counts = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    counts.split_whitespace().nth(11)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drops_of_one_device_are_found() {
        let text = "Inter-| Receive | Transmit\n \
                    face |bytes packets errs drop\n\
                    lo: 100 2 0 9 0 0 0 0 100 2 0 8 0 0 0 0\n\
                    flannel.10: 1 1 1 1 1 1 1 1 1 1 1 77 1 1 1 1\n\
                    flannel.1:1 1 1 1 1 1 1 1 1 1 1 5 1 1 1 1\n";
        assert_eq!(transmit_drops(text, "flannel.1"), Some(5));
        assert_eq!(transmit_drops(text, "lo"), Some(8));
        for missing in ["flannel", "flannel.100", "", "eth0"] {
            assert_eq!(transmit_drops(text, missing), None, "{missing}");
        }
        assert_eq!(transmit_drops("eth0: 1 2", "eth0"), None);
        assert_eq!(dropped_by_device("no-such-device"), None);
    }
}
