//! flannel's traffic rules: masquerading, forwarding, and the blackhole route for this node's own subnet.
//!
//! ```text
//! rules      computes the wanted rules: pure
//! program    runs one program to completion
//! iptables   observes, compares and changes rules with iptables-save and iptables-restore
//! nftables   observes, compares and changes rules with nft
//! blackhole  adds and removes the blackhole route over netlink
//! cleanup    removes everything
//! ```
//!
//! Level-triggered: the rules are compared at the start and every few seconds, and changed only where they
//! differ, in one transaction. As in flannel, stopping the daemon removes nothing, so that pods keep working
//! while it is down. Firewall rules of others are left alone, and no kernel setting is changed.

pub mod blackhole;
pub mod cleanup;
mod error;
pub mod iptables;
pub mod nftables;
pub mod program;
pub mod rules;

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use model::lease::Lease;
use model::net_config::NetConfig;
use model::subnet_env::Recorded;
use store::Kind;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use self::iptables::Iptables;
use self::nftables::{Nft, Nftables};
use self::program::Programs;
use self::rules::{Nets, Purpose};

pub use self::error::TrafficError;
pub use self::rules::Scope;
use crate::netlink::Netlink;
use crate::settings::TrafficSettings;
use crate::underlay::sysctls;

/// The networks that rules apply to, for each enabled family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// IPv4.
    pub ipv4: Option<Nets>,
    /// IPv6.
    pub ipv6: Option<Nets>,
}

impl Networks {
    /// Returns the networks of a node with this lease.
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

/// Maintains the rules of this node.
#[derive(Debug)]
pub struct Traffic {
    programs: Programs,
    settings: TrafficSettings,
    nftables: bool,
    networks: Networks,
    firewalls: Vec<Firewall>,
    netlink: Netlink,
    /// The kinds of failures that were logged.
    reported: BTreeSet<Kind>,
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
    /// Removes the rules of the mode that is not in use, and adds the wanted ones.
    ///
    /// Only masquerading is worth an error: without it pods look reachable and are not. Every other failure
    /// is logged and retried. `previous` is the `subnet.env` of the previous run.
    pub async fn start(
        programs: Programs,
        settings: TrafficSettings,
        nftables: bool,
        networks: Networks,
        previous: Option<&Recorded>,
        netlink: Netlink,
    ) -> Result<Traffic, TrafficError> {
        cleanup::clean_other(&programs, nftables).await;
        let (firewalls, reported) = (Vec::new(), BTreeSet::new());
        let mut traffic = Traffic { programs, settings, nftables, networks, firewalls, netlink, reported };
        let mut failures = Vec::new();
        match traffic.open().await {
            Err(error) if settings.masquerade => return Err(error),
            answer => failures.extend(answer.err()),
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
                failures.extend(answer.err());
            }
        }
        failures.extend(traffic.keep_blackholes(Scope::Start).await);
        traffic.report(failures);
        Ok(traffic)
    }

    /// Compares again and restores what is missing. Returns the number of families that were changed.
    pub async fn resync(&mut self) -> usize {
        let purposes = purposes(&self.settings);
        let (mut changed, mut failures) = (0, Vec::new());
        if self.firewalls.is_empty() {
            failures.extend(self.open().await.err());
        }
        for firewall in &mut self.firewalls {
            match firewall.apply(&purposes, Scope::Resync).await {
                Ok(true) => {
                    changed += 1;
                    tracing::info!("traffic rules were missing or out of order; restored");
                }
                Ok(false) => {}
                Err(error) => failures.push(error),
            }
        }
        failures.extend(self.keep_blackholes(Scope::Resync).await);
        self.report(failures);
        changed
    }

    /// Resyncs periodically on its own task, running one program at a time.
    pub fn keep(mut self) -> Keeper {
        Keeper(tokio::spawn(async move {
            loop {
                sleep(self.settings.resync).await;
                self.resync().await;
            }
        }))
    }

    /// Finds the firewall programs, if any rule is wanted.
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

    /// Removes the masquerade rules of the previous run, after masquerading was turned off.
    async fn stop_masquerading(&self) {
        for nets in self.networks.each() {
            let removed = match self.nftables {
                true => nftables::remove(&self.programs, nets.is_ipv6(), Purpose::Masquerade).await,
                false => iptables::remove(&self.programs, nets.is_ipv6(), Purpose::Masquerade).await,
            };
            match removed {
                Ok(true) => {
                    tracing::info!(cluster = %nets.cluster, "masquerading is off; removed its rules")
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!("cannot remove the masquerade rules of the previous run: {error}")
                }
            }
        }
    }

    async fn keep_blackholes(&self, scope: Scope) -> Vec<TrafficError> {
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
                tracing::warn!(
                    subnet = %nets.own,
                    "blackhole route not added: the subnet already has a route"
                );
            }
            failures.extend(answer.err().map(TrafficError::from));
        }
        failures
    }

    /// Reports one failure of each kind that was not there the last time.
    fn report(&mut self, failures: Vec<TrafficError>) {
        let before = std::mem::take(&mut self.reported);
        for failure in failures {
            let kind = failure.kind();
            if !before.contains(&kind) && !self.reported.contains(&kind) {
                tracing::error!("cannot apply the traffic rules, retrying: {failure}");
            }
            self.reported.insert(kind);
        }
    }
}

/// Which rules the settings ask for.
fn purposes(settings: &TrafficSettings) -> Vec<Purpose> {
    let wanted = [(settings.masquerade, Purpose::Masquerade), (settings.forward, Purpose::Forward)];
    wanted.into_iter().filter_map(|(wanted, purpose)| wanted.then_some(purpose)).collect()
}

/// The running task of [`Traffic::keep`]. Dropping the value ends the task; the rules stay.
#[derive(Debug)]
pub struct Keeper(JoinHandle<()>);

impl Keeper {
    /// Tells whether the task has ended on its own, which it never should.
    pub fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Checks for `br_netfilter`, which flannel requires before it uses iptables.
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
