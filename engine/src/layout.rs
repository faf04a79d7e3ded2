//! Assigns sockets and queues to workers. Worker *i* has socket *i* of every port and, of each device, the
//! queues whose number modulo the number of workers is *i*.

use io::{Error, Shape, raw, tun, udp};
use path::encap::ipip;
use path::{Format, WorkerIndex};

use crate::Chosen;
use crate::bounds::Bounds;
use crate::config::{EngineConfig, Switches, TunnelConfig};
use crate::port::Port;

/// Send buffer for a dozen super-packets per port. More would only queue in the uplink, ahead of other
/// traffic.
const SEND_BUFFER: usize = 1 << 20;
/// Slots of one receive call. A slot holds the largest datagram or run of joined datagrams.
const SHAPE: Shape = Shape { slots: 16, len: 1 << 16 };

/// Returns the cores that this process may use, at least one.
pub(crate) fn cores() -> Vec<usize> {
    io::thread::allowed_cores().ok().filter(|cores| !cores.is_empty()).unwrap_or_else(|| vec![0])
}

/// Returns the number of workers to start.
pub(crate) fn workers(config: &EngineConfig) -> usize {
    let wanted = if config.workers == 0 { cores().len() } else { config.workers };
    if config.switches.multiqueue { wanted.clamp(1, tun::MAX_QUEUES) } else { 1 }
}

/// Returns the worker that owns a queue of a device.
pub(crate) fn owner(queue: usize, workers: usize) -> WorkerIndex {
    WorkerIndex((queue % workers.max(1)) as u32)
}

/// The open device and sockets of one tunnel.
pub(crate) struct OpenTunnel {
    pub(crate) queues: Vec<tun::Queue>,
    /// One port per worker.
    pub(crate) ports: Vec<Port>,
    pub(crate) hold: tun::Hold,
    pub(crate) chosen: Chosen,
}

impl OpenTunnel {
    /// Opens the sockets, then the device. A port in use is the more likely failure, and leaves no trace on
    /// the host.
    pub(crate) fn open(
        config: &EngineConfig,
        tunnel: &TunnelConfig,
        bounds: &Bounds,
        workers: usize,
        own_path_mtu: bool,
    ) -> Result<OpenTunnel, Error> {
        let Switches { tso, uso, gso, gro, mmsg, multiqueue } = config.switches;
        let mut ports = match tunnel.format() {
            Format::Vxlan(_) | Format::Udp | Format::Wireguard => {
                udp_ports(config, tunnel, bounds, workers, own_path_mtu)?
            }
            Format::Ipip(_) => Vec::new(),
        };
        let tun = tun::open(&tun::TunConfig {
            name: tunnel.device.clone(),
            queues: bounds.queues,
            queue_bytes: bounds.queue_bytes,
            unlimited_queues: bounds.unlimited_queues,
            offloads: tun::Offloads { csum: tso || uso, tso, uso },
            persist: tunnel.persist,
        })?;
        let mut notes = tun.notes.clone();
        // A worker without a queue has nothing to do.
        let workers = workers.min(tun.queues.len());
        ports.truncate(workers);
        if let Format::Ipip(ipip) = tunnel.format() {
            // Each raw socket has a share of the flows that no other receives, so there must be one per
            // worker.
            ports = raw_ports(config, ipip, bounds, workers)?;
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
        let chosen = Chosen {
            device: tun.name,
            workers,
            queue_length: bounds.queue_length(tun.queues.len(), tun.limited),
            limited: tun.limited,
            source_ports,
            features,
            notes,
        };
        Ok(OpenTunnel { queues: tun.queues, ports, hold: tun.hold, chosen })
    }

    /// Closes surplus ports if another device has fewer queues and there are fewer workers than ports.
    pub(crate) fn shrink(&mut self, workers: usize) {
        self.chosen.workers = workers;
        self.ports.truncate(workers);
    }
}

fn udp_ports(
    config: &EngineConfig,
    tunnel: &TunnelConfig,
    bounds: &Bounds,
    workers: usize,
    own_path_mtu: bool,
) -> Result<Vec<Port>, Error> {
    let Switches { gso, gro, mmsg, .. } = config.switches;
    let config = udp::UdpConfig {
        listen: tunnel.listen,
        send_from: tunnel.send_from,
        fan: usize::from(tunnel.fan),
        shape: SHAPE,
        segment: gso,
        gro,
        mmsg,
        own_path_mtu,
        receive_buffer: bounds.receive_buffer,
        send_buffer: SEND_BUFFER,
    };
    if tunnel.listen_besides.is_empty() {
        return Ok(udp::open(&config, workers)?.into_iter().map(Port::Udp).collect());
    }
    let groups = udp::open_groups(&config, &tunnel.listen_besides, workers)?;
    Ok(groups.into_iter().map(|group| Port::UdpGroup(Box::new(group))).collect())
}

fn raw_ports(
    config: &EngineConfig,
    ipip: ipip::Ipip,
    bounds: &Bounds,
    workers: usize,
) -> Result<Vec<Port>, Error> {
    let ports = raw::open(
        &raw::RawConfig {
            protocol: ipip::PROTOCOL,
            local: ipip.local,
            shape: SHAPE,
            mmsg: config.switches.mmsg,
            receive_buffer: bounds.receive_buffer,
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
    fn queues_are_assigned_to_workers_in_turn() {
        let owners = |queues, workers| (0..queues).map(|queue| owner(queue, workers).0).collect::<Vec<_>>();
        assert_eq!(owners(4, 4), [0, 1, 2, 3]);
        assert_eq!(owners(5, 2), [0, 1, 0, 1, 0]);
        assert_eq!(owners(2, 1), [0, 0]);
    }
}
