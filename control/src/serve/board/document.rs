//! Renders the board as one JSON document, for the status socket and `loden status`.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::state::{Origin, State};
use crate::cgroup::CpuLimits;
use store::Health;

/// A daemon's state at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Document {
    /// loden's version.
    pub version: String,
    /// Name of the daemon among those of this host.
    pub instance: String,
    /// Process id.
    pub pid: u32,
    /// Time of the start in Unix seconds.
    pub started: u64,
    /// `starting`, `ready` or `stopping`.
    pub phase: String,
    /// Seconds for which the control loop has hung; `None` while it works.
    pub stalled: Option<u64>,
    /// The interface that carries the tunnels.
    pub underlay: Option<UnderlayDocument>,
    /// This node's lease.
    pub lease: Option<LeaseDocument>,
    /// What the scheduler grants the workers.
    pub scheduling: Option<SchedulingDocument>,
    /// The tunnels.
    pub tunnels: Vec<TunnelDocument>,
    /// Kernel routes through the underlay, directly to peers.
    pub direct: Vec<RouteDocument>,
    /// Leases that the plan leaves out.
    pub ignored: Vec<IgnoredDocument>,
    /// Files that this daemon created.
    pub files: Vec<String>,
    /// Comparisons of the host with the plan.
    pub reconcile: ReconcileDocument,
    /// The store.
    pub store: StoreDocument,
}

/// The chosen interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnderlayDocument {
    /// Name.
    pub interface: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// The addresses that other nodes send to.
    pub public: Vec<String>,
}

/// A lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseDocument {
    /// Key of the lease, `10.244.3.0-24`.
    pub key: String,
    /// Expiry in Unix seconds; `None` for a reservation.
    pub expires: Option<u64>,
    /// Time of the last write in Unix seconds.
    pub renewed: Option<u64>,
}

/// What the scheduler grants the workers, and what their control group takes away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulingDocument {
    /// Class or nice value of a worker.
    pub granted: String,
    /// What was refused.
    pub refused: Vec<String>,
    /// The control group's quota in CPUs.
    pub cpu_quota: Option<f64>,
    /// How often the quota was used up.
    pub throttled: Option<u64>,
    /// The control group's weight; 100 is ordinary.
    pub cpu_weight: Option<u64>,
    /// The limits of the control group in words.
    pub limits: String,
}

/// One tunnel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TunnelDocument {
    /// Name of the TUN device.
    pub device: String,
    /// Addresses of the device, one for each family that it carries.
    pub addresses: Vec<String>,
    /// MTU in bytes.
    pub mtu: u16,
    /// Number of kernel routes into the device.
    pub routes: usize,
    /// Size of the forwarding table, which the workers share, in bytes.
    pub table_bytes: usize,
    /// Number of workers.
    pub workers: usize,
    /// The offloads, and whether each is in use.
    pub features: BTreeMap<String, bool>,
    /// Reasons for unused offloads.
    pub notes: Vec<String>,
    /// The peers.
    pub peers: Vec<PeerDocument>,
    /// The largest packets to peers whose paths carry less than the tunnel, by the peer's address.
    pub path_limits: BTreeMap<String, u16>,
    /// Non-zero counters, summed over the workers, without drops.
    pub counters: BTreeMap<String, u64>,
    /// Dropped packets.
    pub drops: Vec<DroppedDocument>,
    /// Packets that the kernel dropped before a worker read them, by direction.
    pub unread: BTreeMap<String, u64>,
}

/// One peer's subnet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerDocument {
    /// The subnet.
    pub subnet: String,
    /// Destination of its packets.
    pub remote: String,
    /// MAC address on the overlay.
    pub mac: Option<String>,
}

/// A non-zero drop counter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DroppedDocument {
    /// `egress`: from a pod; `ingress`: to a pod.
    pub direction: String,
    /// Reason for the drops.
    pub reason: String,
    /// Number of packets.
    pub packets: u64,
}

/// A kernel route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteDocument {
    /// Destination.
    pub to: String,
    /// Gateway.
    pub via: Option<String>,
    /// Interface.
    pub interface: String,
}

/// A lease that the plan leaves out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IgnoredDocument {
    /// Key of the lease.
    pub lease: String,
    /// Reason for leaving it out.
    pub reason: String,
}

/// Comparisons of the host with the plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReconcileDocument {
    /// Number of comparisons.
    pub runs: u64,
    /// Changes made.
    pub changes: u64,
    /// Failures of the last comparison.
    pub failures: Vec<String>,
}

/// The store and its requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreDocument {
    /// The store, as given on the command line.
    pub name: String,
    /// Requests by kind: count, errors, total milliseconds.
    pub calls: BTreeMap<String, [u64; 3]>,
    /// Unix seconds since which the leases have been unreadable; `None` while they are readable.
    pub blind_since: Option<u64>,
}

pub(super) fn of(origin: &Origin, state: &State, now: Instant) -> Document {
    let plan = state.plan.as_deref();
    let direct = plan.and_then(|plan| plan.direct.as_ref());
    Document {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: origin.instance.clone(),
        pid: std::process::id(),
        started: origin.started,
        phase: state.phase.name().to_owned(),
        stalled: state.stalled(now).map(|age| age.as_secs()),
        underlay: state.underlay.as_ref().map(|underlay| UnderlayDocument {
            interface: underlay.interface.clone(),
            mtu: underlay.mtu,
            public: underlay
                .ipv4
                .iter()
                .map(|ends| ends.public.to_string())
                .chain(underlay.ipv6.iter().map(|ends| ends.public.to_string()))
                .collect(),
        }),
        lease: state.own.as_ref().map(|own| LeaseDocument {
            key: own.key.to_string(),
            expires: own.expires,
            renewed: state.renewed,
        }),
        scheduling: scheduling(state),
        tunnels: tunnels(state),
        direct: direct
            .into_iter()
            .flat_map(|direct| {
                direct.routes.iter().map(|route| RouteDocument {
                    to: route.to.to_string(),
                    via: route.via.map(|via| via.to_string()),
                    interface: direct.interface.clone(),
                })
            })
            .collect(),
        ignored: plan
            .into_iter()
            .flat_map(|plan| &plan.ignored)
            .map(|ignored| IgnoredDocument { lease: ignored.subnet.clone(), reason: ignored.reason.clone() })
            .collect(),
        files: state.files.clone(),
        reconcile: ReconcileDocument {
            runs: state.reconcile.runs,
            changes: state.reconcile.changes,
            failures: state.reconcile.failures.clone(),
        },
        store: StoreDocument {
            name: origin.store.clone(),
            calls: state
                .calls
                .iter()
                .map(|(name, calls)| {
                    ((*name).to_owned(), [calls.count, calls.errors, calls.time.as_millis() as u64])
                })
                .collect(),
            blind_since: state.store_health.as_ref().and_then(Health::lost_since),
        },
    }
}

fn scheduling(state: &State) -> Option<SchedulingDocument> {
    let granted = state.engine.as_ref()?.attention().next()?;
    let limits = CpuLimits::read();
    Some(SchedulingDocument {
        granted: granted.to_string(),
        refused: granted.refused.clone(),
        cpu_quota: limits.quota,
        throttled: limits.throttled,
        cpu_weight: limits.weight,
        limits: limits.to_string(),
    })
}

fn tunnels(state: &State) -> Vec<TunnelDocument> {
    let mut tunnels: Vec<TunnelDocument> = Vec::new();
    if let Some(engine) = &state.engine {
        for ((chosen, table_bytes), status) in
            engine.chosen().zip(engine.table_bytes()).zip(engine.status().tunnels)
        {
            let mut tunnel = TunnelDocument {
                device: chosen.device.clone(),
                table_bytes,
                workers: chosen.workers,
                features: chosen
                    .features
                    .named()
                    .into_iter()
                    .map(|(name, on)| (name.to_owned(), on))
                    .collect(),
                notes: chosen.notes.clone(),
                path_limits: status.paths.limits.iter().cloned().collect(),
                unread: [("egress", status.unread.egress), ("ingress", status.unread.ingress)]
                    .into_iter()
                    .filter_map(|(direction, packets)| Some((direction.to_owned(), packets?)))
                    .collect(),
                ..TunnelDocument::default()
            };
            for (name, packets) in status.totals().into_iter().filter(|(_, value)| *value > 0) {
                match name.split_once(".drop.") {
                    Some((direction, reason)) => tunnel.drops.push(DroppedDocument {
                        direction: direction.to_owned(),
                        reason: reason.to_owned(),
                        packets,
                    }),
                    None => {
                        tunnel.counters.insert(name, packets);
                    }
                }
            }
            tunnels.push(tunnel);
        }
    }
    for planned in state.plan.iter().flat_map(|plan| &plan.tunnels) {
        let Some(tunnel) = tunnels.iter_mut().find(|tunnel| tunnel.device == planned.link.device) else {
            continue;
        };
        tunnel.addresses = planned.link.addresses().map(|address| address.to_string()).collect();
        tunnel.mtu = planned.link.mtu.get();
        tunnel.routes = planned.routes.len();
        tunnel.peers = planned
            .peers
            .iter()
            .map(|peer| PeerDocument {
                subnet: peer.subnet.to_string(),
                remote: peer.remote.to_string(),
                mac: peer.mac.map(|mac| mac.to_string()),
            })
            .collect();
    }
    tunnels
}
