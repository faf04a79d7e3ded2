//! Which worker owns what: worker *i* has socket *i* of every port, and of each device every queue whose number leaves
//! the remainder *i* when it is divided by the number of workers: queue *i* alone, unless more are asked for.

use io::{Error, Shape, raw, tun, udp};
use path::encap::ipip;
use path::{Format, WorkerIndex};

use crate::Chosen;
use crate::config::{EngineConfig, Switches, TunnelConfig};
use crate::port::Port;

/// Room for what arrives while a worker is busy: some hundred super-packets.
const RECEIVE_BUFFER: usize = 16 << 20;
/// A dozen super-packets a port. More would only queue up in the uplink, in front of everyone else's packets.
const SEND_BUFFER: usize = 1 << 20;
/// What one receive call may bring. A slot holds the largest datagram, or train of them.
const SHAPE: Shape = Shape { slots: 16, len: 1 << 16 };

/// The cores this process may use; at least one.
pub(crate) fn cores() -> Vec<usize> {
    io::thread::allowed_cores().ok().filter(|cores| !cores.is_empty()).unwrap_or_else(|| vec![0])
}

/// How many workers to start.
pub(crate) fn workers(config: &EngineConfig) -> usize {
    let wanted = if config.workers == 0 { cores().len() } else { config.workers };
    if config.switches.multiqueue { wanted.clamp(1, tun::MAX_QUEUES) } else { 1 }
}

/// How many queues a device is to have.
fn queues(config: &EngineConfig, workers: usize) -> usize {
    match config.queues {
        _ if !config.switches.multiqueue => 1,
        0 => workers,
        wanted => wanted.min(tun::MAX_QUEUES),
    }
}

/// The worker that owns a queue of a device.
pub(crate) fn owner(queue: usize, workers: usize) -> WorkerIndex {
    WorkerIndex((queue % workers.max(1)) as u32)
}

/// The open device and sockets of one tunnel.
pub(crate) struct OpenTunnel {
    pub(crate) queues: Vec<tun::Queue>,
    /// One for each worker.
    pub(crate) ports: Vec<Port>,
    pub(crate) hold: tun::Hold,
    pub(crate) chosen: Chosen,
}

impl OpenTunnel {
    /// Opens the sockets, then the device: a port that is taken is the likelier failure, and leaves no trace on the host.
    pub(crate) fn open(
        config: &EngineConfig,
        tunnel: &TunnelConfig,
        workers: usize,
    ) -> Result<OpenTunnel, Error> {
        let Switches { tso, uso, gso, gro, mmsg, multiqueue } = config.switches;
        let mut ports = match tunnel.format() {
            Format::Vxlan(_) | Format::Udp | Format::Wireguard => udp_ports(config, tunnel, workers)?,
            Format::Ipip(_) => Vec::new(),
        };
        let tun = tun::open(&tun::TunConfig {
            name: tunnel.device.clone(),
            queues: queues(config, workers),
            offloads: tun::Offloads { csum: tso || uso, tso, uso },
            persist: tunnel.persist,
        })?;
        let mut notes = tun.notes.clone();
        // A worker without a queue has nothing to do.
        let workers = workers.min(tun.queues.len());
        ports.truncate(workers);
        if let Format::Ipip(ipip) = tunnel.format() {
            // Each of these has a share that nobody else takes, so there must be just as many as workers.
            ports = raw_ports(config, ipip, workers)?;
        }
        let mut features =
            Switches { tso: tun.granted.tso, uso: tun.granted.uso, gso, gro, mmsg, multiqueue };
        if let Some(port) = ports.first() {
            let granted = port.features();
            (features.gso, features.gro, features.mmsg) = (granted.segment, granted.gro, granted.mmsg);
            notes.extend(port.notes().iter().cloned());
        }
        features.multiqueue = tun.queues.len() > 1;
        let source_ports = ports.first().map(Port::source_ports).unwrap_or_default();
        let chosen = Chosen { device: tun.name, workers, source_ports, features, notes };
        Ok(OpenTunnel { queues: tun.queues, ports, hold: tun.hold, chosen })
    }

    /// Closes what is left over where another device has fewer queues, and so there are fewer workers than there are ports.
    pub(crate) fn shrink(&mut self, config: &EngineConfig, workers: usize) {
        self.chosen.workers = workers;
        self.ports.truncate(workers);
        if config.queues == 0 {
            self.queues.truncate(workers);
        }
    }
}

fn udp_ports(config: &EngineConfig, tunnel: &TunnelConfig, workers: usize) -> Result<Vec<Port>, Error> {
    let Switches { gso, gro, mmsg, .. } = config.switches;
    let config = udp::UdpConfig {
        listen: tunnel.listen,
        send_from: tunnel.send_from,
        fan: usize::from(tunnel.fan),
        shape: SHAPE,
        segment: gso,
        gro,
        mmsg,
        receive_buffer: RECEIVE_BUFFER,
        send_buffer: SEND_BUFFER,
    };
    if tunnel.listen_besides.is_empty() {
        return Ok(udp::open(&config, workers)?.into_iter().map(Port::Udp).collect());
    }
    let groups = udp::open_groups(&config, &tunnel.listen_besides, workers)?;
    Ok(groups.into_iter().map(|group| Port::UdpGroup(Box::new(group))).collect())
}

fn raw_ports(config: &EngineConfig, ipip: ipip::Ipip, workers: usize) -> Result<Vec<Port>, Error> {
    let ports = raw::open(
        &raw::RawConfig {
            protocol: ipip::PROTOCOL,
            local: ipip.local,
            shape: SHAPE,
            mmsg: config.switches.mmsg,
            receive_buffer: RECEIVE_BUFFER,
            send_buffer: SEND_BUFFER,
        },
        workers,
    )?;
    Ok(ports.into_iter().map(Port::Raw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_dealt_out_to_the_workers_in_turn() {
        let owners = |queues, workers| (0..queues).map(|queue| owner(queue, workers).0).collect::<Vec<_>>();
        assert_eq!(owners(4, 4), [0, 1, 2, 3]);
        assert_eq!(owners(5, 2), [0, 1, 0, 1, 0]);
        assert_eq!(owners(2, 1), [0, 0]);
    }

    #[test]
    fn a_device_has_a_queue_for_each_worker_unless_it_is_to_have_another_number() {
        let config = |queues| EngineConfig { queues, ..EngineConfig::default() };
        assert_eq!((queues(&config(0), 3), queues(&config(8), 3), queues(&config(999), 3)), (3, 8, 256));
        let mut single = config(8);
        single.switches.multiqueue = false;
        assert_eq!((workers(&single), queues(&single, 1)), (1, 1));
    }
}
