//! Takes the samples: testbed by testbed, round by round, the subjects in turn for every load.
//!
//! In a round all subjects run side by side, each on its own hosts and pods, and each load measures them in
//! order: A B C, A B C. So the two values of a ratio are close in time, and every round has newly started
//! subjects, whose luck with hashes and queues differs.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use crate::interrupt::Interrupted;
use crate::load::Server;
use crate::probe::{counters, cpu};
use crate::raw::{Failure, Raw, Sample};
use crate::scenario::{Load, Subject, Testbed, name_of};
use crate::subject::{Context, Standing};

/// Interval over which the machine's load is measured before a round, and the busy share that still counts as
/// idle.
const IDLE_WATCH: Duration = Duration::from_millis(500);
const IDLE_LIMIT: f64 = 0.05;

/// Time limit for a daemon's next write of its counters, which happens every second.
const COUNTERS_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes of a GB (for CPU seconds) and of a GiB (for syscalls).
const GB: f64 = 1e9;
const GIB: f64 = (1_u64 << 30) as f64;

/// The measurements to take.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Testbeds, one after another.
    pub testbeds: Vec<Testbed>,
    /// Subjects, interleaved.
    pub subjects: Vec<Subject>,
    /// Loads in this order, each against every subject.
    pub loads: Vec<Load>,
    /// Rounds per testbed.
    pub rounds: u32,
    /// Seconds per load.
    pub seconds: f64,
    /// Time to wait for an idle machine before each round.
    pub settle: Duration,
}

/// An observer of every step, for a progress display.
pub trait Watcher {
    /// Reports the start of a step.
    fn begins(&mut self, what: &str);
    /// Reports a sample, or its failure.
    fn ends(&mut self, outcome: Result<&Sample, &Failure>);
    /// Reports the end of a round; `raw` holds everything so far.
    fn round_over(&mut self, raw: &Raw) -> Result<()>;
}

impl Plan {
    /// Returns the number of samples of a complete run.
    pub fn samples(&self) -> usize {
        self.testbeds.len() * self.rounds as usize * self.subjects.len() * self.loads.len()
    }
}

/// Runs the whole plan into `raw`. Failures are recorded and the rest continues; only an interruption or a
/// failing watcher ends the run early. Nothing is left running in either case.
pub fn run(plan: &Plan, context: &Context, raw: &mut Raw, watcher: &mut dyn Watcher) -> Result<()> {
    for testbed in &plan.testbeds {
        for round in 1..=plan.rounds {
            let turn = Turn { plan, context, testbed: *testbed, round };
            turn.run(raw, watcher)?;
            watcher.round_over(raw)?;
        }
    }
    Ok(())
}

struct Turn<'a> {
    plan: &'a Plan,
    context: &'a Context,
    testbed: Testbed,
    round: u32,
}

struct Contender {
    // Dropped first: the server before the namespaces.
    server: Server,
    standing: Standing,
    subject: Subject,
}

impl Turn<'_> {
    fn run(&self, raw: &mut Raw, watcher: &mut dyn Watcher) -> Result<()> {
        let mut contenders = self.start(raw, watcher)?;
        watcher.begins(&format!("{} round {}: idle machine", name_of(self.testbed), self.round));
        if let Some(percent) = settle(self.plan.settle, self.context)? {
            let (testbed, round) = (name_of(self.testbed), self.round);
            raw.notes.push(format!(
                "{testbed} round {round}: {percent:.0} % of the machine was busy before the loads"
            ));
        }
        for load in &self.plan.loads {
            for contender in &mut contenders {
                self.context.interrupt.check()?;
                watcher.begins(&self.title(contender.subject, Some(*load)));
                match self.sample(contender, *load) {
                    Ok(sample) => {
                        watcher.ends(Ok(&sample));
                        raw.samples.push(sample);
                    }
                    Err(error) => self.record(error, contender.subject, Some(*load), raw, watcher)?,
                }
            }
        }
        Ok(())
    }

    fn start(&self, raw: &mut Raw, watcher: &mut dyn Watcher) -> Result<Vec<Contender>> {
        let mut contenders = Vec::new();
        for (slot, subject) in self.plan.subjects.iter().enumerate() {
            self.context.interrupt.check()?;
            watcher.begins(&self.title(*subject, None));
            let start = || -> Result<Contender> {
                let standing = Standing::start(*subject, self.testbed, slot, self.context)?;
                let server = Server::start(&standing, self.context)?;
                Ok(Contender { server, standing, subject: *subject })
            };
            match start() {
                Ok(contender) => contenders.push(contender),
                Err(error) => self.record(error, *subject, None, raw, watcher)?,
            }
        }
        Ok(contenders)
    }

    fn sample(&self, contender: &mut Contender, load: Load) -> Result<Sample> {
        contender.standing.check()?;
        let counted_before = read_counters(&contender.standing, SystemTime::UNIX_EPOCH);
        let busy_before = cpu::observe()?;
        let measured =
            contender.server.measure(load, self.plan.seconds, &contender.standing, self.context)?;
        let cpu_seconds = cpu::observe()?.seconds_since(&busy_before, cpu::ticks_per_second());
        let counted_after = read_counters(&contender.standing, SystemTime::now());
        contender.standing.check()?;

        let moved: BTreeMap<_, _> = counted_after
            .iter()
            .filter_map(|(host, after)| {
                Some((host.clone(), counters::difference(counted_before.get(host)?, after)))
            })
            .collect();
        let mut metrics = measured.metrics;
        if let Some(bytes) = measured.bulk_bytes.filter(|bytes| *bytes > 0.0) {
            // Busy loops would count as the subject's work.
            if !load.is_beside_busy_loops() {
                let busy = cpu_seconds.get("busy").copied().unwrap_or(0.0);
                metrics.insert("cpu_s_per_gb".to_owned(), busy / (bytes / GB));
            }
            if let Some(most) = moved.values().filter_map(counters::syscalls).reduce(f64::max) {
                metrics.insert("syscalls_per_gib_host".to_owned(), most / (bytes / GIB));
            }
        }
        Ok(Sample {
            testbed: name_of(self.testbed),
            subject: name_of(contender.subject),
            load: name_of(load),
            round: self.round,
            metrics,
            cpu_seconds,
            counters: moved,
            reply: measured.reply,
        })
    }

    fn record(
        &self,
        error: anyhow::Error,
        subject: Subject,
        load: Option<Load>,
        raw: &mut Raw,
        watcher: &mut dyn Watcher,
    ) -> Result<()> {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        let failure = Failure {
            testbed: name_of(self.testbed),
            subject: name_of(subject),
            load: load.map(name_of),
            round: self.round,
            error: format!("{error:#}"),
        };
        watcher.ends(Err(&failure));
        raw.failures.push(failure);
        Ok(())
    }

    fn title(&self, subject: Subject, load: Option<Load>) -> String {
        let load = load.map_or("start".to_owned(), name_of);
        format!("{} round {}: {} {load}", name_of(self.testbed), self.round, name_of(subject))
    }
}

/// Waits for an idle machine. Returns the busy share in percent if the machine stays busy without a load:
/// noise from outside, or a subject that spins and takes CPU from the others.
pub(crate) fn settle(limit: Duration, context: &Context) -> Result<Option<f64>> {
    let deadline = Instant::now() + limit;
    loop {
        context.interrupt.check()?;
        let busy = watch_busy()?;
        if busy <= IDLE_LIMIT {
            return Ok(None);
        }
        if Instant::now() >= deadline {
            return Ok(Some(busy * 100.0));
        }
    }
}

/// Measures the busy share of the machine over a short interval.
fn watch_busy() -> Result<f64> {
    let before = cpu::observe()?;
    thread::sleep(IDLE_WATCH);
    let seconds = cpu::observe()?.seconds_since(&before, cpu::ticks_per_second());
    let get = |kind: &str| seconds.get(kind).copied().unwrap_or(0.0);
    Ok(get("busy") / (get("busy") + get("idle") + get("iowait")).max(f64::MIN_POSITIVE))
}

/// Reads the counters that each host wrote after `moment`. Before a load the latest write suffices, because
/// the subject has been idle for longer than the daemon's write interval.
fn read_counters(standing: &Standing, moment: SystemTime) -> BTreeMap<String, counters::Counters> {
    let read = |file: &Path| counters::read_after(file, moment, COUNTERS_TIMEOUT);
    standing.counters_files().filter_map(|(host, file)| Some((host.to_owned(), read(file)?))).collect()
}
