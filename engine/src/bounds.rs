//! How much kernel memory packets may take that wait for the workers: in the queues of the TUN devices and in
//! the receive buffers of the sockets.
//!
//! Where the kernel can count bytes ([`io::tun`]), a queue of a TUN device may hold many small packets or few
//! large ones. Elsewhere its length in packets is all that limits it, and follows from the largest packet.
//! There, each worker has one queue, at least as long as the driver's own unless an operator sets the
//! memory.

use io::tun;

use crate::config::{EngineConfig, TunnelConfig};

/// Memory for all waiting packets of a host with few sockets.
const MEMORY: usize = 64 << 20;
/// Memory for the queues of all devices of a host with more sockets and up to [`FEW_WORKERS`] workers.
const QUEUE_MEMORY: usize = 48 << 20;
const FEW_WORKERS: usize = 16;
/// Memory of the largest packet: 64 KiB of data, and what describes them.
const PACKET: usize = 68 << 10;
/// One of this many parts of an operator's memory is for the receive buffers. Whatever waits there waits
/// behind all that came before, from whichever pod.
const RECEIVE_PART: usize = 4;
/// Up to one of this many parts, if the buffers would otherwise be smaller than [`LEAST_RECEIVE_BUFFER`].
const LARGEST_RECEIVE_PART: usize = 2;
const LEAST_RECEIVE_BUFFER: usize = 1 << 20;
/// Receive buffer of a socket, unless an operator's memory is too small. It holds what arrives while the
/// worker does something else; more would only delay.
const RECEIVE_BUFFER: usize = 2 << 20;
/// Number of queues of a device whose workers are fewer. The kernel assigns a flow to a queue by its hash,
/// and workers read their queues in turn, so that more queues isolate more flows from one another.
const QUEUES: usize = 16;
/// Least packets in a queue whose bytes the kernel does not limit: the driver's own length
/// (drivers/net/tun.c). Shorter ones lose bursts of small packets whenever a worker is off its core for a
/// moment.
const LEAST_LENGTH: u32 = 500;

/// The limits of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Queues to request for each device.
    pub(crate) queues: usize,
    /// Queues to request where the kernel does not limit their bytes.
    pub(crate) unlimited_queues: usize,
    /// Least packets in each of those.
    least_length: u32,
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
        // The kernel doubles a receive buffer's size (socket(7)).
        let (memory, receive_buffer) = match config.memory {
            0 => {
                let queues = QUEUE_MEMORY.max(QUEUE_MEMORY / FEW_WORKERS * workers);
                (MEMORY.max(queues + 2 * sockets * RECEIVE_BUFFER), RECEIVE_BUFFER)
            }
            wanted => {
                let part = |part| wanted / part / sockets / 2;
                let least = part(LARGEST_RECEIVE_PART).min(LEAST_RECEIVE_BUFFER);
                (wanted, part(RECEIVE_PART).clamp(least, RECEIVE_BUFFER))
            }
        };
        let (queues, unlimited_queues) = match config.queues {
            _ if !config.switches.multiqueue => (1, 1),
            0 => (workers * QUEUES.div_ceil(workers), workers),
            wanted => (wanted, wanted),
        };
        Bounds {
            queues: queues.min(tun::MAX_QUEUES),
            unlimited_queues: unlimited_queues.min(tun::MAX_QUEUES),
            least_length: if config.memory == 0 { LEAST_LENGTH } else { 1 },
            receive_buffer,
            queue_bytes: (memory - 2 * sockets * receive_buffer) / devices,
        }
    }

    /// Returns the number of packets that may wait in each of a device's `queues`. `limited` says whether the
    /// kernel limits their bytes.
    pub(crate) fn queue_length(&self, queues: usize, limited: bool) -> u32 {
        let (packet, least) = if limited { (tun::OVERHEAD, 1) } else { (PACKET, self.least_length) };
        u32::try_from(self.queue_bytes / queues.max(1) / packet).unwrap_or(u32::MAX).max(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_devices_and_sockets_together_stay_within_the_memory() {
        let small = EngineConfig { memory: 8 << 20, ..EngineConfig::default() };
        for workers in 1..=64 {
            for devices in 1..=2 {
                let sockets = devices * workers;
                let by_default = match sockets {
                    ..=4 => 64 << 20,
                    _ => (48 << 20).max((3 << 20) * workers) + (4 << 20) * sockets,
                };
                for (config, bound) in [(EngineConfig::default(), by_default), (small.clone(), 8 << 20)] {
                    let bounds = Bounds::divide(&config, devices, sockets, workers);
                    let waiting = devices * bounds.queue_bytes + 2 * bounds.receive_buffer * sockets;
                    assert!(waiting <= bound, "{workers} workers, {devices} devices: {bounds:?}");
                }
            }
        }
    }

    /// A device and a socket per worker; two of each (dual-stack vxlan, or wireguard in mode `separate`); a
    /// device and two sockets (wireguard in mode `auto`); two devices with two sockets each.
    #[test]
    fn receive_buffers_hold_what_arrives_during_a_pause_however_many_there_are() {
        for workers in 1..=64 {
            for (devices, each) in [(1, 1), (2, 2), (1, 2), (2, 4)] {
                let bounds = |memory| {
                    let config = EngineConfig { memory, ..EngineConfig::default() };
                    Bounds::divide(&config, devices, each * workers, workers)
                };
                let by_default = bounds(0);
                assert_eq!(by_default.receive_buffer, 2 << 20, "{workers} workers, {each} sockets each");
                let queues = devices * by_default.queue_bytes;
                assert!(queues >= 48 << 20 && queues >= (3 << 20) * workers, "{workers}: {by_default:?}");
                // An operator's memory is kept, but the queues leave half of it where the buffers need it.
                let given = bounds(64 << 20);
                let half = (64 << 20) / 2 / 2 / (each * workers);
                assert!(given.receive_buffer >= half.min(1 << 20), "{workers} workers: {given:?}");
                let queues = devices * given.queue_bytes;
                assert!((32 << 20..=64 << 20).contains(&queues), "{workers} workers: {given:?}");
            }
        }
        // Odd and tiny limits do not overflow or divide by zero.
        for memory in [1, 2, 1023, 1 << 20, usize::MAX / 4] {
            let config = EngineConfig { memory, ..EngineConfig::default() };
            let bounds = Bounds::divide(&config, 2, 512, 256);
            assert!(bounds.receive_buffer <= 2 << 20 && bounds.queue_bytes <= memory, "{bounds:?}");
        }
    }

    #[test]
    fn queues_limited_in_packets_are_long_enough_for_bursts_of_small_ones() {
        for workers in 1..=64 {
            for devices in 1..=2 {
                let bounds = Bounds::divide(&EngineConfig::default(), devices, devices * workers, workers);
                assert_eq!(bounds.unlimited_queues, workers);
                let length = bounds.queue_length(workers, false);
                let by_memory = bounds.queue_bytes / workers / PACKET;
                assert_eq!(length as usize, by_memory.max(500), "{workers} workers, {devices} devices");
            }
        }
        // An operator's limit holds, whatever it costs.
        let config = EngineConfig { memory: 8 << 20, ..EngineConfig::default() };
        let bounds = Bounds::divide(&config, 2, 4, 2);
        let waiting = 4 * bounds.queue_length(2, false) as usize * PACKET;
        assert!(waiting + 2 * 4 * bounds.receive_buffer <= 8 << 20, "{bounds:?}");
        // So does a number of queues, and a single one.
        let config = |queues| EngineConfig { queues, ..EngineConfig::default() };
        assert_eq!(Bounds::divide(&config(8), 1, 2, 2).unlimited_queues, 8);
        let mut single = config(8);
        single.switches.multiqueue = false;
        assert_eq!(Bounds::divide(&single, 1, 1, 1).unlimited_queues, 1);
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
