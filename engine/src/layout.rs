//! Which worker owns what: worker *i* has queue *i* of every device and socket *i* of every port.

use io::{Error, raw, tun, udp};
use path::Format;
use path::encap::ipip;

use crate::Chosen;
use crate::config::{Config, Switches, TunnelConfig};
use crate::port::Port;

/// Room for what arrives while a worker is busy: some hundred super-packets.
const RECEIVE_BUFFER: usize = 16 << 20;
/// A dozen super-packets a port. More would only queue up in the uplink, in front of everyone else's packets.
const SEND_BUFFER: usize = 1 << 20;

/// The cores this process may use; at least one.
pub(crate) fn cores() -> Vec<usize> {
    io::thread::allowed_cores().ok().filter(|cores| !cores.is_empty()).unwrap_or_else(|| vec![0])
}

/// How many workers to start.
pub(crate) fn workers(config: &Config) -> usize {
    let wanted = if config.workers == 0 { cores().len() } else { config.workers };
    if config.switches.multiqueue { wanted.clamp(1, tun::MAX_QUEUES) } else { 1 }
}

/// The open device and sockets of one tunnel.
pub(crate) struct Opened {
    pub(crate) queues: Vec<tun::Queue>,
    pub(crate) ports: Vec<Port>,
    pub(crate) keeper: tun::Keeper,
    pub(crate) chosen: Chosen,
}

impl Opened {
    /// Sockets first: a port that is taken is the likelier failure, and leaves no trace on the host.
    pub(crate) fn open(config: &Config, tunnel: &TunnelConfig, workers: usize) -> Result<Opened, Error> {
        let Switches { tso, uso, gso, gro, mmsg, multiqueue } = config.switches;
        let mut ports = match tunnel.format() {
            Format::Vxlan(_) | Format::Udp | Format::Wireguard => udp_ports(config, tunnel, workers)?,
            Format::Ipip(_) => Vec::new(),
        };
        let tun = tun::open(&tun::Config {
            name: tunnel.device.clone(),
            queues: workers,
            offloads: tun::Offloads { csum: tso || uso, tso, uso },
            persist: tunnel.persist,
        })?;
        let mut notes = tun.notes.clone();
        ports.truncate(tun.queues.len());
        if let Format::Ipip(ipip) = tunnel.format() {
            // Each of these has a share that nobody else takes, so there must be just as many as queues.
            ports = raw_ports(config, ipip, tun.queues.len())?;
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
        let chosen = Chosen { device: tun.name, workers: tun.queues.len(), source_ports, features, notes };
        Ok(Opened { queues: tun.queues, ports, keeper: tun.keeper, chosen })
    }
}

fn udp_ports(config: &Config, tunnel: &TunnelConfig, workers: usize) -> Result<Vec<Port>, Error> {
    let Switches { gso, gro, mmsg, .. } = config.switches;
    let config = udp::Config {
        listen: tunnel.listen,
        send_from: tunnel.send_from,
        fan: usize::from(tunnel.fan),
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

fn raw_ports(config: &Config, ipip: ipip::Ipip, workers: usize) -> Result<Vec<Port>, Error> {
    let ports = raw::open(
        &raw::Config {
            protocol: ipip::PROTOCOL,
            local: ipip.local,
            mmsg: config.switches.mmsg,
            receive_buffer: RECEIVE_BUFFER,
            send_buffer: SEND_BUFFER,
        },
        workers,
    )?;
    Ok(ports.into_iter().map(Port::Raw).collect())
}
