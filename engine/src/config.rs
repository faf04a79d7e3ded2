//! What an engine is started with.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use path::{Fib, Format};
use wire::addr::Mtu;

/// How the engine as a whole runs.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Worker threads; 0 takes one for each core this process may use.
    pub workers: usize,
    /// Queues of each TUN device, which the workers share; 0 gives each worker one. Fewer queues than workers leave
    /// as many workers as queues.
    pub queues: usize,
    /// Whether worker *i* stays on the *i*-th allowed core.
    pub pin: bool,
    /// How workers wait.
    pub wait: WaitPolicy,
    /// What may be used of the kernel's help.
    pub switches: Switches,
}

/// Drain, look again for a bounded time, then sleep; pause after a turn full of bulk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitPolicy {
    /// How long an idle worker keeps looking before it sleeps. Zero sleeps at once, which is right where
    /// cores are few: a worker that spins takes the core that the pod needs.
    pub spin: Duration,
    /// How long a worker pauses after a turn that moved a super-packet or more, so that the next turn finds
    /// several. Turns that move little are never followed by a pause. Zero never pauses.
    pub moderate: Duration,
}

impl Default for WaitPolicy {
    /// See docs/decisions/0010-moderation.md.
    fn default() -> Self {
        WaitPolicy { spin: Duration::ZERO, moderate: Duration::from_micros(100) }
    }
}

/// Features that an operator may switch off, or that a self-test has found wanting. All on by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// TCP super-packets between the TUN and us, both ways.
    pub tso: bool,
    /// UDP super-packets between the TUN and us, both ways.
    pub uso: bool,
    /// `UDP_SEGMENT`: many datagrams in one send.
    pub gso: bool,
    /// `UDP_GRO`: many datagrams in one receive.
    pub gro: bool,
    /// `sendmmsg` and `recvmmsg`: many sends or receives in one call.
    pub mmsg: bool,
    /// More than one queue per TUN device, and so more than one worker.
    pub multiqueue: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Switches { tso: true, uso: true, gso: true, gro: true, mmsg: true, multiqueue: true }
    }
}

impl Switches {
    /// The names that [`Switches::switch_off`] knows, besides `all`.
    pub const NAMES: [&str; 6] = ["tso", "uso", "gso", "gro", "mmsg", "multiqueue"];

    /// Switches a feature off by name, or `all` of them. Fails for any other name.
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
                    "no feature is called {name:?}: choose of {} and all",
                    Switches::NAMES.join(", ")
                ));
            }
        }
        Ok(())
    }

    /// Each feature with whether it is on.
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
    /// Whether the device stays when the process ends.
    pub persist: bool,
    /// Where datagrams arrive; without meaning for formats that do not travel in UDP.
    pub listen: SocketAddr,
    /// Where they arrive as well. Of each family the first address is the one that sends; only where `send_from` is
    /// `None`.
    pub listen_besides: Vec<SocketAddr>,
    /// The source address of what is sent, from a fan of ports; `None` sends from the listening socket, with
    /// its port as source.
    pub send_from: Option<IpAddr>,
    /// The first table, used from the first packet on. It also says how packets are framed.
    pub table: Arc<Fib>,
    /// MTU of the TUN device.
    pub mtu: Mtu,
    /// Source ports, which all workers share.
    pub fan: u16,
    /// What a WireGuard tunnel needs besides.
    pub wireguard: Option<crate::wireguard::Settings>,
}

impl TunnelConfig {
    /// How packets are framed.
    pub fn format(&self) -> Format {
        *self.table.format()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_switches_its_feature_off() {
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
