//! flannel's traffic rules: masquerading, forwarding, and the blackhole route of the own subnet.
//!
//! ```text
//! rules      which lines there have to be: pure
//! program    runs one program to its end
//! iptables   observe, compare, change, by iptables-save and iptables-restore
//! nftables   the same by nft
//! blackhole  the route, over netlink
//! cleanup    everything away again
//! ```
//!
//! Level-triggered like everything that is applied: compared at the start, and again every few seconds, and
//! changed only where it differs, in one transaction. A stop removes nothing, as in flannel: pods go on
//! while the daemon is away. No firewall rule of others is touched, and no kernel switch set.

pub mod blackhole;
pub mod cleanup;
pub mod iptables;
pub mod nftables;
pub mod program;
pub mod rules;

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use model::lease::Lease;
use model::net_config::NetConfig;
use model::subnet_env::Recorded;
use rtnetlink::Handle;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use self::iptables::Iptables;
use self::nftables::{Nft, Nftables};
use self::program::{ProgramError, Programs};
use self::rules::{Nets, Purpose};
use crate::netlink::NetlinkError;
use crate::settings::TrafficSettings;
use crate::underlay::sysctls;

/// Why rules could not be put or removed.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// A firewall program is missing or refused.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The rules were put, but are not there.
    #[error("the rules in {what} were put and are not there; does something else remove them?")]
    NotKept {
        /// Which chain.
        what: String,
    },
    /// The kernel refused a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel does not show bridged packets to iptables.
    #[error(
        "br_netfilter is not there ({0} is missing), so service rules would not see packets between pods of \
         one bridge; `modprobe br_netfilter`, or set EnableNFTables, or --require-br-netfilter=false to go on without"
    )]
    BrNetfilter(&'static str),
}

/// How far a round goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The first one: what an earlier run has left in our chains goes.
    Start,
    /// A later one: what is missing comes back.
    Resync,
}

/// What rules are for: the networks of each family that is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// IPv4.
    pub ipv4: Option<Nets>,
    /// IPv6.
    pub ipv6: Option<Nets>,
}

impl Networks {
    /// Those of a node with this lease.
    pub fn of(config: &NetConfig, lease: &Lease) -> Networks {
        let nets =
            |cluster: Option<IpNetwork>, own: Option<IpNetwork>| Some(Nets { cluster: cluster?, own: own? });
        Networks {
            ipv4: nets(config.ipv4.map(|pool| pool.network.into()), lease.subnet().map(Into::into)),
            ipv6: nets(config.ipv6.map(|pool| pool.network.into()), lease.ipv6_subnet().map(Into::into)),
        }
    }

    fn each(&self) -> impl Iterator<Item = Nets> + use<> {
        self.ipv4.into_iter().chain(self.ipv6)
    }
}

/// Keeps the rules of this node.
#[derive(Debug)]
pub struct Traffic {
    programs: Programs,
    settings: TrafficSettings,
    nftables: bool,
    networks: Networks,
    firewalls: Vec<Firewall>,
    netlink: Handle,
    told: BTreeSet<String>,
}

#[derive(Debug)]
enum Firewall {
    Iptables(Iptables),
    Nftables(Nftables),
}

impl Firewall {
    async fn apply(&mut self, purposes: &[Purpose], scope: Scope) -> Result<bool, TrafficError> {
        match self {
            Firewall::Iptables(iptables) => iptables.apply(purposes, scope).await,
            Firewall::Nftables(nftables) => nftables.apply(purposes, scope).await,
        }
    }
}

impl Traffic {
    /// Removes the rules of the mode that is not in use, and puts those that are asked for.
    ///
    /// Only masquerading is worth an error: without it pods look reachable and are not. Everything else is
    /// told and tried again. `previous` is the `subnet.env` of the run before.
    pub async fn start(
        programs: Programs,
        settings: TrafficSettings,
        nftables: bool,
        networks: Networks,
        previous: Option<&Recorded>,
        netlink: Handle,
    ) -> Result<Traffic, TrafficError> {
        cleanup::clean_other(&programs, nftables).await;
        let (firewalls, told) = (Vec::new(), BTreeSet::new());
        let mut traffic = Traffic { programs, settings, nftables, networks, firewalls, netlink, told };
        let mut failures = BTreeSet::new();
        match traffic.open().await {
            Err(error) if settings.masquerade => return Err(error),
            answer => failures.extend(answer.err().map(|error| error.to_string())),
        }
        if settings.masquerade {
            for firewall in &mut traffic.firewalls {
                firewall.apply(&[Purpose::Masquerade], Scope::Start).await?;
            }
        } else if previous.is_some_and(|previous| previous.ip_masq == Some(true)) {
            traffic.stop_masquerading().await;
        }
        if settings.forward {
            for firewall in &mut traffic.firewalls {
                let answer = firewall.apply(&[Purpose::Forward], Scope::Start).await;
                failures.extend(answer.err().map(|error| error.to_string()));
            }
        }
        failures.extend(traffic.keep_blackholes(Scope::Start).await);
        traffic.tell(failures);
        Ok(traffic)
    }

    /// Compares once more, and puts back what is missing; how many families or routes were changed.
    pub async fn resync(&mut self) -> usize {
        let purposes = purposes(&self.settings);
        let (mut changed, mut failures) = (0, BTreeSet::new());
        if self.firewalls.is_empty() {
            failures.extend(self.open().await.err().map(|error| error.to_string()));
        }
        for firewall in &mut self.firewalls {
            match firewall.apply(&purposes, Scope::Resync).await {
                Ok(true) => {
                    changed += 1;
                    tracing::info!("traffic rules were missing or out of order; they are back");
                }
                Ok(false) => {}
                Err(error) => failures.extend([error.to_string()]),
            }
        }
        failures.extend(self.keep_blackholes(Scope::Resync).await);
        self.tell(failures);
        changed
    }

    /// Does that for ever, on a task of its own, one program at a time.
    pub fn keep(mut self) -> Keeper {
        Keeper(tokio::spawn(async move {
            loop {
                sleep(self.settings.resync).await;
                self.resync().await;
            }
        }))
    }

    /// Finds the programs, if any rule is asked for.
    async fn open(&mut self) -> Result<(), TrafficError> {
        if purposes(&self.settings).is_empty() {
            return Ok(());
        }
        let random_fully = self.settings.random_fully;
        let mut firewalls = Vec::new();
        if self.nftables {
            let nft = Nft::open(&self.programs, random_fully).await?;
            nft.make_tables(self.networks.ipv4.is_some(), self.networks.ipv6.is_some()).await?;
            firewalls.extend(self.networks.each().map(|nets| Firewall::Nftables(Nftables::new(&nft, nets))));
        } else {
            for nets in self.networks.each() {
                let iptables = Iptables::open(&self.programs, nets, random_fully).await?;
                firewalls.push(Firewall::Iptables(iptables));
            }
        }
        self.firewalls = firewalls;
        Ok(())
    }

    /// The run before masqueraded, and this one is told not to.
    async fn stop_masquerading(&self) {
        for nets in self.networks.each() {
            let removed = match self.nftables {
                true => nftables::remove(&self.programs, nets.is_ipv6(), Purpose::Masquerade).await,
                false => iptables::remove(&self.programs, nets.is_ipv6(), Purpose::Masquerade).await,
            };
            match removed {
                Ok(true) => {
                    tracing::info!(cluster = %nets.cluster, "masquerading is off; its rules are removed")
                }
                Ok(false) => {}
                Err(error) => tracing::warn!("the masquerade rules of the run before may be left: {error}"),
            }
        }
    }

    async fn keep_blackholes(&self, scope: Scope) -> Vec<String> {
        let mut failures = Vec::new();
        if !self.settings.blackhole {
            return failures;
        }
        for nets in self.networks.each() {
            let answer = blackhole::ensure(&self.netlink, nets.own).await;
            let hidden = scope == Scope::Start
                && matches!(answer, Ok(false))
                && matches!(blackhole::is_there(&self.netlink, nets.own).await, Ok(false));
            if hidden {
                tracing::warn!(subnet = %nets.own, "no blackhole route: another route to the subnet is there");
            }
            failures.extend(answer.err().map(|error| error.to_string()));
        }
        failures
    }

    fn tell(&mut self, failures: BTreeSet<String>) {
        for failure in failures.difference(&self.told) {
            tracing::error!("traffic rules: {failure}; it is tried again and again");
        }
        self.told = failures;
    }
}

/// Which rules the settings ask for.
fn purposes(settings: &TrafficSettings) -> Vec<Purpose> {
    let wanted = [(settings.masquerade, Purpose::Masquerade), (settings.forward, Purpose::Forward)];
    wanted.into_iter().filter_map(|(wanted, purpose)| wanted.then_some(purpose)).collect()
}

/// The running task of [`Traffic::keep`]. It ends with this value, and the rules stay.
#[derive(Debug)]
pub struct Keeper(JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What flannel asks of the kernel before it uses iptables.
pub fn check_br_netfilter(config: &NetConfig) -> Result<(), TrafficError> {
    if config.nftables {
        return Ok(());
    }
    for (on, ipv6) in [(config.ipv4.is_some(), false), (config.ipv6.is_some(), true)] {
        if on && !sysctls::has_br_netfilter(ipv6) {
            return Err(TrafficError::BrNetfilter(sysctls::br_netfilter_switch(ipv6)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
