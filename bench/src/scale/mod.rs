//! The cost of many peers: `loden-bench scale` and `loden-bench restart`.
//!
//! ```text
//! others     nodes that are only a lease in the store
//! traffic    throughput with few and with many peers; CPU time when idle
//! join       all nodes join: time until forwarding (probe), until all routes, memory; against kernel vxlan
//! restart    a daemon restarts during a steady flow
//! ```
//!
//! Each part has its own baseline, and therefore its own raw file and page.

mod flow;
mod join;
mod others;
mod probe;
mod process;
mod restart;
mod routes;
mod traffic;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::interrupt::Interrupted;
use crate::output;
use crate::progress::Progress;
use crate::raw::{self, Environment, Failure, Raw, SCHEMA, Sample, Settings};
use crate::report::{self, Style};
use crate::run::{self, Watcher as _};
use crate::scenario::{Testbed, name_of};
use crate::subject::Context;

/// The tunnel's device on every host.
const DEVICE: &str = "flannel.1";

/// The parameters of the measurement.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of peers of the large cluster.
    pub peers: usize,
    /// Rounds of each part.
    pub rounds: u32,
    /// Seconds per load.
    pub seconds: f64,
    /// Seconds without a load.
    pub idle: f64,
    /// Time to wait for an idle machine before each round.
    pub settle: Duration,
    /// Directory for the raw results.
    pub output: Option<PathBuf>,
}

/// Measures traffic with few and many peers, idle CPU, then joins.
pub fn scale(options: &Options, context: &Context, environment: &Environment) -> Result<()> {
    let baseline = traffic::name(join::FEW);
    let mut part = Part::new("traffic", &baseline, options, context, environment);
    let ended = traffic_part(&mut part);
    part.close(ended)?;
    let mut part = Part::new("join", join::KERNEL, options, context, environment);
    let ended = part.rounds(|part, round| {
        part.settle(round)?;
        join::round(part, round)
    });
    part.close(ended)
}

/// Measures restarts during a steady flow.
pub fn restart(options: &Options, context: &Context, environment: &Environment) -> Result<()> {
    let baseline = traffic::name(options.peers);
    let mut part = Part::new("restart", &baseline, options, context, environment);
    let ended = restart_part(&mut part);
    part.close(ended)
}

fn traffic_part(part: &mut Part<'_>) -> Result<()> {
    let mut clusters = traffic::start(part)?;
    part.rounds(|part, round| traffic::round(part, &mut clusters, round))?;
    part.settle(part.options.rounds)?;
    traffic::idle(part, &mut clusters)
}

fn restart_part(part: &mut Part<'_>) -> Result<()> {
    let mut cluster = traffic::Cluster::start(part.options.peers, 0, part.context)?;
    part.rounds(|part, round| restart::round(part, &mut cluster, round))
}

/// One page and one raw file.
struct Part<'a> {
    name: &'static str,
    options: &'a Options,
    context: &'a Context,
    raw: Raw,
    progress: Progress,
}

impl<'a> Part<'a> {
    fn new(
        name: &'static str,
        baseline: &str,
        options: &'a Options,
        context: &'a Context,
        environment: &Environment,
    ) -> Self {
        let settings = Settings {
            rounds: options.rounds,
            seconds: options.seconds,
            baseline: baseline.to_owned(),
            loden_args: context.loden_args.clone(),
        };
        let raw = Raw {
            schema: SCHEMA,
            environment: environment.clone(),
            settings,
            samples: Vec::new(),
            failures: Vec::new(),
            notes: Vec::new(),
        };
        Part { name, options, context, raw, progress: Progress::lines() }
    }

    fn rounds(&mut self, mut round: impl FnMut(&mut Self, u32) -> Result<()>) -> Result<()> {
        (1..=self.options.rounds).try_for_each(|number| round(self, number))
    }

    /// Takes one sample. A failure is recorded and the rest continues; only an interruption is an error.
    fn sample(
        &mut self,
        subject: &str,
        load: &str,
        round: u32,
        measure: impl FnOnce(&Context) -> Result<BTreeMap<String, f64>>,
    ) -> Result<()> {
        self.context.interrupt.check()?;
        let (testbed, subject) = (name_of(Testbed::Ideal), subject.to_owned());
        match measure(self.context) {
            Ok(metrics) => {
                let load = load.to_owned();
                let sample = Sample { testbed, subject, load, round, metrics, ..Sample::default() };
                self.progress.ends(Ok(&sample));
                self.raw.samples.push(sample);
            }
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                let (load, error) = (Some(load.to_owned()), format!("{error:#}"));
                let failure = Failure { testbed, subject, load, round, error };
                self.progress.ends(Err(&failure));
                self.raw.failures.push(failure);
            }
        }
        Ok(())
    }

    fn settle(&mut self, round: u32) -> Result<()> {
        if let Some(percent) = run::settle(self.options.settle, self.context)? {
            let note = format!("round {round}: {percent:.0} % of the machine was busy before the loads");
            self.raw.notes.push(note);
        }
        Ok(())
    }

    /// Writes and prints the results so far, whether or not the part succeeded.
    fn close(mut self, ended: Result<()>) -> Result<()> {
        if let Err(error) = &ended {
            self.raw.notes.push(format!("the run ended early: {error:#}"));
        }
        if let Some(directory) = &self.options.output {
            write(directory, self.name, &self.raw)?;
        }
        if !self.raw.samples.is_empty() {
            output::print(&format!("{}\n", report::page(&self.raw, Style::Text)))?;
        }
        ended?;
        if !self.raw.failures.is_empty() {
            bail!("{} samples failed", self.raw.failures.len());
        }
        Ok(())
    }
}

fn write(directory: &Path, name: &str, raw: &Raw) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    raw::write(&directory.join(format!("{name}.json")), raw)
}
