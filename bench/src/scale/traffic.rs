//! Traffic between two nodes with few and with many peers, side by side, and the cost of the idle daemon.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Part, join, others, process, routes};
use crate::load::Server;
use crate::scenario::{Load, Testbed, name_of};
use crate::subject::{Context, Standing};

/// The loads.
const LOADS: [Load; 2] = [Load::Tcp1, Load::Udp64Flows1];
/// Interval at which a long pause checks for an interruption.
const POLL: Duration = Duration::from_millis(200);

/// Two hosts with a given number of peers, including each other.
pub(super) struct Cluster {
    pub(super) standing: Standing,
    pub(super) name: String,
}

impl Cluster {
    /// Starts the cluster and waits until it is complete.
    pub(super) fn start(peers: usize, slot: usize, context: &Context) -> Result<Cluster> {
        let standing = Standing::start_large(Testbed::Ideal, slot, context)?;
        others::join(&standing.store()?, 0..peers - 1, &[], standing.host(2)?.underlay())?;
        for number in [1, 2] {
            routes::wait(&standing, number, peers, context)?;
        }
        Ok(Cluster { standing, name: name(peers) })
    }
}

/// Returns the name of the subject.
pub(super) fn name(peers: usize) -> String {
    format!("loden:vxlan, {peers} peers")
}

/// Starts the small cluster, which is the baseline, and the large one.
pub(super) fn start(part: &Part<'_>) -> Result<[Cluster; 2]> {
    let few = Cluster::start(join::FEW, 0, part.context)?;
    Ok([few, Cluster::start(part.options.peers, 1, part.context)?])
}

/// Measures one round of all loads.
pub(super) fn round(part: &mut Part<'_>, clusters: &mut [Cluster; 2], round: u32) -> Result<()> {
    let context = part.context;
    part.settle(round)?;
    for load in LOADS {
        // The order alternates, so that a trend in the machine's load favours neither.
        let mut order: Vec<&mut Cluster> = clusters.iter_mut().collect();
        if round.is_multiple_of(2) {
            order.reverse();
        }
        for cluster in order {
            let seconds = part.options.seconds;
            part.sample(&cluster.name, &name_of(load), round, |_| {
                cluster.standing.check()?;
                let mut server = Server::start(&cluster.standing, context)?;
                Ok(server.measure(load, seconds, &cluster.standing, context)?.metrics)
            })?;
        }
    }
    Ok(())
}

/// Measures the idle daemon of the first host.
pub(super) fn idle(part: &mut Part<'_>, clusters: &mut [Cluster; 2]) -> Result<()> {
    let time = Duration::from_secs_f64(part.options.idle);
    let pids = [clusters[0].standing.daemon(1)?.id(), clusters[1].standing.daemon(1)?.id()];
    let before = [process::cpu(pids[0])?, process::cpu(pids[1])?];
    let began = Instant::now();
    while began.elapsed() < time {
        part.context.interrupt.check()?;
        thread::sleep(POLL.min(time));
    }
    let elapsed = began.elapsed().as_secs_f64();
    for ((cluster, pid), before) in clusters.iter().zip(pids).zip(before) {
        part.sample(&cluster.name, "idle", 1, |_| {
            let share = (process::cpu(pid)?.saturating_sub(before)).as_secs_f64() / elapsed;
            let memory = process::resident(pid)? as f64;
            Ok(BTreeMap::from([("idle_percent".to_owned(), share * 100.0), ("rss_kib".to_owned(), memory)]))
        })?;
    }
    Ok(())
}
