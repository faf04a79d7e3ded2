//! Restarts the daemon of one host among many peers, while packets flow in both directions.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::flow::Flow;
use super::traffic::Cluster;
use super::{Part, routes};

/// The signals that end the daemon, by the name of the load.
const ENDS: [(&str, Signal); 2] =
    [("restart, SIGTERM", Signal::SIGTERM), ("restart, SIGKILL", Signal::SIGKILL)];
/// Duration of the flow before and after the restart; the daemon saves its state at most every ten seconds.
const AROUND: Duration = Duration::from_secs(2);
/// Time limit for the daemon to exit.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Measures one round with each signal.
pub(super) fn round(part: &mut Part<'_>, cluster: &mut Cluster, round: u32) -> Result<()> {
    let (context, peers) = (part.context, part.options.peers);
    for (load, signal) in ENDS {
        part.settle(round)?;
        part.sample(&cluster.name, load, round, |_| {
            let standing = &mut cluster.standing;
            let [here, there] = [standing.host(1)?, standing.host(2)?];
            let address =
                |host: &lab::Host| host.pod_addresses().first().copied().context("a pod has no address");
            let out = Flow::start(here.pod(), there.pod(), address(there)?)?;
            let back = Flow::start(there.pod(), here.pod(), address(here)?)?;
            thread::sleep(AROUND);
            let process = standing.daemon(1)?;
            process.signal(signal)?;
            process.wait(TIMEOUT)?.context("the daemon does not exit")?;
            let started = Instant::now();
            standing.restart(1, context)?;
            thread::sleep(AROUND);
            let (out, back) = (out.finish(), back.finish());
            standing.check()?;
            routes::wait(standing, 1, peers, context)?;
            let first =
                [&out, &back].map(|way| way.first_after(started).map(|first| first.as_secs_f64() * 1e3));
            let [first, second] =
                [first[0].context("no packet left the pod")?, first[1].context("no packet reached the pod")?];
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
