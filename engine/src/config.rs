//! The engine's configuration.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use path::{Fib, Format};
use wire::addr::Mtu;

/// The configuration of the whole engine.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Number of worker threads; 0 means one per core that this process may use.
    pub workers: usize,
    /// Number of queues of each TUN device, which the workers share; 0 means several per worker on hosts with
    /// few workers. There are never more workers than queues.
    pub queues: usize,
    /// Bytes of kernel memory that packets may take while they wait for the workers, in the queues of all TUN
    /// devices and in the receive buffers of all sockets; 0 means 64 MiB, or more if there are more
    /// than four sockets.
    pub memory: usize,
    /// Whether worker *i* is pinned to the *i*-th allowed core.
    pub pin: bool,
    /// Whether workers ask for a realtime class. They always ask to be preferred.
    pub realtime: bool,
    /// How workers wait.
    pub wait: WaitPolicy,
    /// The kernel features that may be used.
    pub switches: Switches,
}

/// How a worker waits: it drains its ports, spins for a bounded time, then sleeps. It pauses after bulk
/// turns and during floods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitPolicy {
    /// How long an idle worker spins before it sleeps. Zero means that it sleeps immediately, which is right
    /// on hosts with few cores: a spinning worker takes the core that the pod needs.
    pub spin: Duration,
    /// How long a worker pauses after a turn that moved a super-packet or more, or that was part of a flood
    /// of small packets one way, so that the next turn finds several. Zero disables pauses.
    pub moderate: Duration,
}

impl Default for WaitPolicy {
    /// See docs/decisions/0010-moderation.md.
    fn default() -> Self {
        WaitPolicy { spin: Duration::ZERO, moderate: Duration::from_micros(100) }
    }
}

/// Features that an operator or a failed self-test can disable. All are on by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// TCP super-packets on the TUN, in both directions.
    pub tso: bool,
    /// UDP super-packets on the TUN, in both directions.
    pub uso: bool,
    /// `UDP_SEGMENT`: many datagrams in one send.
    pub gso: bool,
    /// `UDP_GRO`: many datagrams in one receive.
    pub gro: bool,
    /// `sendmmsg` and `recvmmsg`: many sends or receives in one call.
    pub mmsg: bool,
    /// More than one queue per TUN device, and therefore more than one worker.
    pub multiqueue: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Switches { tso: true, uso: true, gso: true, gro: true, mmsg: true, multiqueue: true }
    }
}

impl Switches {
    /// The names that [`Switches::switch_off`] accepts, besides `all`.
    pub const NAMES: [&str; 6] = ["tso", "uso", "gso", "gro", "mmsg", "multiqueue"];

    /// Disables a feature by name, or `all` of them. Fails for any other name.
    pub fn switch_off(&mut self, name: &str) -> Result<(), String> {
        let Switches { tso, uso, gso, gro, mmsg, multiqueue } = self;
        match name {
            "tso" => *tso = false,
            "uso" => *uso = false,
            "gso" => *gso = false,
            "gro" => *gro = false,
            "mmsg" => *mmsg = false,
            "multiqueue" => *multiqueue = false,
            "all" => {
                for name in Switches::NAMES {
                    self.switch_off(name)?;
                }
            }
            _ => {
                return Err(format!(
                    "unknown feature {name:?}: expected one of {} or all",
                    Switches::NAMES.join(", ")
                ));
            }
        }
        Ok(())
    }

    /// Returns each feature's name and whether it is on.
    pub fn named(&self) -> [(&'static str, bool); 6] {
        let Switches { tso, uso, gso, gro, mmsg, multiqueue } = *self;
        [("tso", tso), ("uso", uso), ("gso", gso), ("gro", gro), ("mmsg", mmsg), ("multiqueue", multiqueue)]
    }
}

/// One overlay device and its underlay sockets.
#[derive(Clone, Debug)]
pub struct TunnelConfig {
    /// Name of the TUN device.
    pub device: String,
    /// Whether the device persists after the process ends.
    pub persist: bool,
    /// The address to listen on; ignored by formats that do not use UDP.
    pub listen: SocketAddr,
    /// Further addresses to listen on, only allowed without `send_from`. The first address of each family
    /// sends.
    pub listen_besides: Vec<SocketAddr>,
    /// The address to send from, with a fan of source ports. `None` sends from the listening socket and its
    /// port.
    pub send_from: Option<IpAddr>,
    /// The first table, used from the first packet on. It also determines the tunnel format.
    pub table: Arc<Fib>,
    /// MTU of the TUN device.
    pub mtu: Mtu,
    /// Number of source ports, which all workers share.
    pub fan: u16,
    /// The settings of a WireGuard tunnel.
    pub wireguard: Option<crate::wireguard::Settings>,
}

impl TunnelConfig {
    /// Returns the tunnel format.
    pub fn format(&self) -> Format {
        *self.table.format()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_disables_its_feature() {
        for name in Switches::NAMES {
            let mut switches = Switches::default();
            switches.switch_off(name).unwrap();
            let off: Vec<_> = switches.named().into_iter().filter(|(_, on)| !on).map(|(n, _)| n).collect();
            assert_eq!(off, [name]);
        }
        let mut none = Switches::default();
        none.switch_off("all").unwrap();
        assert!(none.named().iter().all(|(_, on)| !on));
        assert!(none.switch_off("turbo").unwrap_err().contains("turbo"));
    }
}
