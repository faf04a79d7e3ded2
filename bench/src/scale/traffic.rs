//! Traffic between two nodes among few and among many, side by side, and what the daemon takes when idle.

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
/// How often a long pause looks for an interruption.
const POLL: Duration = Duration::from_millis(200);

/// Two hosts that know so many peers, each other among them.
pub(super) struct Cluster {
    pub(super) standing: Standing,
    pub(super) name: String,
}

impl Cluster {
    /// Starts it and waits until it is complete.
    pub(super) fn start(peers: usize, slot: usize, context: &Context) -> Result<Cluster> {
        let standing = Standing::start_large(Testbed::Ideal, slot, context)?;
        others::join(&standing.store()?, 0..peers - 1, &[], standing.host(2)?.underlay())?;
        for number in [1, 2] {
            routes::wait(&standing, number, peers, context)?;
        }
        Ok(Cluster { standing, name: name(peers) })
    }
}

/// The subject's name.
pub(super) fn name(peers: usize) -> String {
    format!("loden:vxlan, {peers} peers")
}

/// Few, which is the baseline, and many.
pub(super) fn start(part: &Part<'_>) -> Result<[Cluster; 2]> {
    let few = Cluster::start(join::FEW, 0, part.context)?;
    Ok([few, Cluster::start(part.options.peers, 1, part.context)?])
}

/// One round of all loads.
pub(super) fn round(part: &mut Part<'_>, clusters: &mut [Cluster; 2], round: u32) -> Result<()> {
    let context = part.context;
    part.settle(round)?;
    for load in LOADS {
        // Who goes first takes turns: a machine that is getting busier, or calmer, favours nobody.
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

/// The daemon of the first host while nothing happens.
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
