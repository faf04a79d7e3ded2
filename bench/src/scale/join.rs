//! Many nodes join at once: how long until a host forwards to them all, and what they take of its memory.
//!
//! The kernel's side of it is what flannel does: for each node a neighbour, a forwarding entry and a route, each
//! by a request of its own, and the next only after the answer. The same with many requests under way is the best
//! that could be made of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::VxlanPeer;
use nix::sys::signal::Signal;

use super::probe::Probe;
use super::{Part, others, process, routes};
use crate::scenario::{Subject, Testbed};
use crate::subject::{Context, Standing};

/// Those present before, the other host among them.
pub(super) const FEW: usize = 10;
/// Requests under way in the kernel's better case: as many as loden has for its routes.
const MANY_AT_ONCE: usize = 64;
/// Flows that have to get through.
const FLOWS: usize = 16;
/// Nothing takes longer unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// The subjects: the kernel, one by one, is the baseline.
pub(super) const KERNEL: &str = "kernel:vxlan";
const KERNEL_AT_ONCE: &str = "kernel:vxlan, 64 at once";
const LODEN: &str = "loden:vxlan";

/// One round.
pub(super) fn round(part: &mut Part<'_>, round: u32) -> Result<()> {
    let peers = part.options.peers;
    for (subject, at_once) in [(KERNEL, 1), (KERNEL_AT_ONCE, MANY_AT_ONCE)] {
        part.sample(subject, "join", round, |context| kernel(peers, at_once, context))?;
    }
    part.sample(LODEN, "join", round, |context| loden(peers, context))
}

fn kernel(peers: usize, at_once: usize, context: &Context) -> Result<BTreeMap<String, f64>> {
    let standing = Standing::start(Subject::KernelVxlan, Testbed::Ideal, 0, context)?;
    let host = standing.host(1)?;
    let remote = standing.host(2)?.underlay();
    let peer = |node| -> Result<VxlanPeer> {
        let subnet = ipnetwork::IpNetwork::new(others::subnet(node).into(), 24)?;
        Ok(VxlanPeer { subnet, mac: others::mac(node), remote: remote.into() })
    };
    let entries = (0..peers).map(peer).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    host.namespace().add_vxlan_peers(super::DEVICE, &entries, at_once)?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    Ok(BTreeMap::from([("forwarding_ms".to_owned(), took), ("routes_ms".to_owned(), took)]))
}

fn loden(peers: usize, context: &Context) -> Result<BTreeMap<String, f64>> {
    let mut standing = Standing::start_large(Testbed::Ideal, 0, context)?;
    let (store, far) = (standing.store()?, standing.host(2)?.underlay());
    others::join(&store, 0..FEW - 1, &[], far)?;
    routes::wait(&standing, 1, FEW, context)?;
    // The other host would take half of the machine for its own ten thousand, and hold the port.
    let other = standing.daemon(2)?;
    other.signal(Signal::SIGTERM)?;
    other.wait(PATIENCE)?.context("the other daemon does not end")?;
    let pid = standing.daemon(1)?.id();
    let (memory_before, table_before) = (process::resident(pid)?, table(&mut standing, context)?);

    let targets: Vec<usize> = (0..FLOWS).map(|flow| FEW + flow * (peers - FEW - 2) / (FLOWS - 1)).collect();
    let probe = Probe::new(standing.host(1)?, standing.host(2)?, targets.clone())?;
    let (forwarding, joined) =
        probe.watch(PATIENCE, || others::join(&store, FEW - 1..peers - 1, &targets, far))?;
    routes::wait(&standing, 1, peers, context)?;
    let all = Instant::now();
    let more = (peers - FEW) as f64;
    let (memory, table) = (process::resident(pid)?, table(&mut standing, context)?);
    Ok(BTreeMap::from([
        ("forwarding_ms".to_owned(), forwarding.saturating_duration_since(joined).as_secs_f64() * 1e3),
        ("routes_ms".to_owned(), (all - joined).as_secs_f64() * 1e3),
        ("rss_kib".to_owned(), memory as f64),
        ("rss_bytes_per_peer".to_owned(), (memory as f64 - memory_before as f64) * 1024.0 / more),
        ("table_bytes_per_peer".to_owned(), (table - table_before) / more),
    ]))
}

/// Memory of the workers' table.
fn table(standing: &mut Standing, context: &Context) -> Result<f64> {
    let status = standing.status(1, context)?;
    status["tunnels"][0]["table_bytes"].as_f64().context("loden status shows no table_bytes")
}
