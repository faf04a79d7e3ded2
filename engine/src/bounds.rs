//! How much kernel memory packets may take that wait for the workers: in the queues of the TUN devices and in
//! the receive buffers of the sockets.
//!
//! Where the kernel can count bytes ([`io::tun`]), a queue of a TUN device may hold many small packets or few
//! large ones. Elsewhere its length in packets is all that limits it, and follows from the largest packet.

use io::tun;

use crate::config::{EngineConfig, TunnelConfig};

/// Memory for all waiting packets, if a host has up to [`FEW_WORKERS`] workers.
const MEMORY: usize = 64 << 20;
const FEW_WORKERS: usize = 16;
/// Memory of the largest packet: 64 KiB of data, and what describes them.
const PACKET: usize = 68 << 10;
/// One of this many parts of the memory is for the receive buffers. Whatever waits there waits behind all
/// that came before, from whichever pod.
const RECEIVE_PART: usize = 4;
/// Largest receive buffer of a socket. It holds what arrives while the worker does something else; more would
/// only delay.
const RECEIVE_BUFFER: usize = 2 << 20;
/// Number of queues of a device whose workers are fewer. The kernel assigns a flow to a queue by its hash,
/// and workers read their queues in turn, so that more queues isolate more flows from one another.
const QUEUES: usize = 16;

/// The limits of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Queues to request for each device.
    pub(crate) queues: usize,
    /// Bytes of each socket's receive buffer, as [`io::udp::UdpConfig`] wants them.
    pub(crate) receive_buffer: usize,
    /// Bytes of packets that may wait in all queues of one device.
    pub(crate) queue_bytes: usize,
}

impl Bounds {
    /// Divides the memory among the devices and sockets of `tunnels`.
    pub(crate) fn new(config: &EngineConfig, tunnels: &[TunnelConfig], workers: usize) -> Bounds {
        let sockets = tunnels.iter().map(|tunnel| 1 + tunnel.listen_besides.len()).sum::<usize>() * workers;
        Bounds::divide(config, tunnels.len().max(1), sockets.max(1), workers.max(1))
    }

    fn divide(config: &EngineConfig, devices: usize, sockets: usize, workers: usize) -> Bounds {
        let memory = match config.memory {
            0 => MEMORY.max(MEMORY / FEW_WORKERS * workers),
            wanted => wanted,
        };
        // The kernel doubles a receive buffer's size (socket(7)).
        let receive_buffer = (memory / RECEIVE_PART / sockets / 2).min(RECEIVE_BUFFER);
        let queues = match config.queues {
            _ if !config.switches.multiqueue => 1,
            0 => workers * QUEUES.div_ceil(workers),
            wanted => wanted,
        };
        let queue_bytes = (memory - 2 * sockets * receive_buffer) / devices;
        Bounds { queues: queues.min(tun::MAX_QUEUES), receive_buffer, queue_bytes }
    }

    /// Returns the number of packets that may wait in each of a device's `queues`. `limited` says whether the
    /// kernel limits their bytes.
    pub(crate) fn queue_length(&self, queues: usize, limited: bool) -> u32 {
        let least = if limited { tun::OVERHEAD } else { PACKET };
        u32::try_from(self.queue_bytes / queues.max(1) / least).unwrap_or(u32::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the most that waiting packets take, and the length of a queue.
    fn most(config: &EngineConfig, devices: usize, workers: usize) -> (usize, u32) {
        let bounds = Bounds::divide(config, devices, devices * workers, workers);
        let length = bounds.queue_length(bounds.queues, false);
        let waiting = devices * bounds.queues * length as usize * PACKET;
        (waiting + 2 * bounds.receive_buffer * devices * workers, length)
    }

    #[test]
    fn all_devices_and_sockets_together_stay_within_the_memory() {
        let config = EngineConfig::default();
        for workers in 1..=FEW_WORKERS {
            for devices in 1..=2 {
                let (bytes, length) = most(&config, devices, workers);
                assert!(bytes <= MEMORY, "{devices} devices, {workers} workers: {bytes}");
                assert!(length >= 12, "{devices} devices, {workers} workers: {length}");
            }
        }
        let small = EngineConfig { memory: 8 << 20, ..EngineConfig::default() };
        assert!(most(&small, 2, 2).0 <= 8 << 20);
    }

    #[test]
    fn queues_stay_long_enough_on_hosts_with_many_workers() {
        let config = EngineConfig::default();
        for workers in [17, 64, 256] {
            let (bytes, length) = most(&config, 1, workers);
            assert!(bytes <= MEMORY / FEW_WORKERS * workers && length >= 40, "{workers}: {bytes}, {length}");
        }
    }

    #[test]
    fn each_worker_has_as_many_queues_as_any_other() {
        let queues = |workers| Bounds::divide(&EngineConfig::default(), 1, workers, workers).queues;
        assert_eq!([1, 2, 3, 4, 16, 17, 256].map(queues), [16, 16, 18, 16, 16, 17, 256]);
        let config = |queues| EngineConfig { queues, ..EngineConfig::default() };
        let wanted = |config| Bounds::divide(&config, 1, 3, 3).queues;
        assert_eq!((wanted(config(8)), wanted(config(999))), (8, 256));
        let mut single = config(8);
        single.switches.multiqueue = false;
        assert_eq!(Bounds::divide(&single, 1, 1, 1).queues, 1);
    }
}
