//! The daemon of one host ends and starts again among many peers, while packets go both ways.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::flow::Flow;
use super::traffic::Cluster;
use super::{Part, routes};

/// How it ends, by the name of the load.
const ENDS: [(&str, Signal); 2] =
    [("restart, SIGTERM", Signal::SIGTERM), ("restart, SIGKILL", Signal::SIGKILL)];
/// How long packets go before and after: the daemon writes down what it knows every ten seconds at most.
const AROUND: Duration = Duration::from_secs(2);
/// How long it may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// One round of each end.
pub(super) fn round(part: &mut Part<'_>, cluster: &mut Cluster, round: u32) -> Result<()> {
    let (context, peers) = (part.context, part.options.peers);
    for (load, signal) in ENDS {
        part.settle(round)?;
        part.sample(&cluster.name, load, round, |_| {
            let standing = &mut cluster.standing;
            let [here, there] = [standing.host(1)?, standing.host(2)?];
            let address =
                |host: &lab::Host| host.pod_addresses().first().copied().context("a pod without an address");
            let out = Flow::start(here.pod(), there.pod(), address(there)?)?;
            let back = Flow::start(there.pod(), here.pod(), address(here)?)?;
            thread::sleep(AROUND);
            let process = standing.daemon(1)?;
            process.signal(signal)?;
            process.wait(PATIENCE)?.context("the daemon does not end")?;
            let started = Instant::now();
            standing.start_again(1, context)?;
            thread::sleep(AROUND);
            let (out, back) = (out.finish(), back.finish());
            standing.check()?;
            routes::wait(standing, 1, peers, context)?;
            let first =
                [&out, &back].map(|way| way.first_after(started).map(|first| first.as_secs_f64() * 1e3));
            let [first, second] =
                [first[0].context("no packet went out")?, first[1].context("no packet came in")?];
            Ok(BTreeMap::from([
                ("gap_ms".to_owned(), out.longest_gap().max(back.longest_gap()).as_secs_f64() * 1e3),
                ("lost_out".to_owned(), out.lost() as f64),
                ("lost_in".to_owned(), back.lost() as f64),
                ("first_ms".to_owned(), first.max(second)),
            ]))
        })?;
    }
    Ok(())
}
