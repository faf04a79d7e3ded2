//! Many nodes join at once: the time until a host forwards to all of them, and the memory that they take.
//!
//! The kernel is configured as flannel does it: for each node a neighbour, an FDB entry and a route, each
//! with its own request that waits for the previous reply. A variant with many concurrent requests shows the
//! best case.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::VxlanPeer;
use nix::sys::signal::Signal;

use super::probe::Probe;
use super::{Part, others, process, routes};
use crate::scenario::{Subject, Testbed};
use crate::subject::{Context, Standing};

/// Number of peers before the join, including the other host.
pub(super) const FEW: usize = 10;
/// Number of concurrent requests in the kernel's best case: the same as loden uses for its routes.
const MANY_AT_ONCE: usize = 64;
/// Number of flows that have to get through.
const FLOWS: usize = 16;
/// Time limit for every step.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The names of the subjects; the kernel with one request at a time is the baseline.
pub(super) const KERNEL: &str = "kernel:vxlan";
const KERNEL_AT_ONCE: &str = "kernel:vxlan, 64 at once";
const LODEN: &str = "loden:vxlan";

/// Measures one round.
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
    // The other host would use half of the machine for its own ten thousand peers, and occupy the port.
    let other = standing.daemon(2)?;
    other.signal(Signal::SIGTERM)?;
    other.wait(TIMEOUT)?.context("the other daemon does not exit")?;
    let pid = standing.daemon(1)?.id();
    let (memory_before, table_before) = (process::resident(pid)?, table(&mut standing, context)?);

    let targets: Vec<usize> = (0..FLOWS).map(|flow| FEW + flow * (peers - FEW - 2) / (FLOWS - 1)).collect();
    let probe = Probe::new(standing.host(1)?, standing.host(2)?, targets.clone())?;
    let (forwarding, joined) =
        probe.watch(TIMEOUT, || others::join(&store, FEW - 1..peers - 1, &targets, far))?;
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

/// Returns the memory of the workers' table.
fn table(standing: &mut Standing, context: &Context) -> Result<f64> {
    let status = standing.status(1, context)?;
    status["tunnels"][0]["table_bytes"].as_f64().context("loden status shows no table_bytes")
}
