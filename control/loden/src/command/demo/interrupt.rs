//! Ctrl-C and SIGTERM as a flag that every wait checks, so that guards clean up in order.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use load::Stop;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often a wait checks the flag.
const STEP: Duration = Duration::from_millis(20);

/// The error of a demo that was asked to end, by the user or by the system.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// A flag that a signal sets.
pub(crate) struct Interrupt(Stop);

impl Interrupt {
    /// Catches SIGINT, SIGTERM and SIGHUP, which no longer end the process: see [`Interrupt::check`].
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let stop = Stop::default();
        let seen = stop.clone();
        let (ready, is_ready) = mpsc::channel();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || listen(&seen, &ready))
            .context("cannot start a thread")?;
        is_ready.recv().context("the signal thread ended")?.context("cannot listen for signals")?;
        Ok(Interrupt(stop))
    }

    /// Returns an error once a signal has arrived.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        if self.0.requested() { Err(Interrupted) } else { Ok(()) }
    }

    /// Tells whether a signal has arrived.
    pub(crate) fn requested(&self) -> bool {
        self.0.requested()
    }

    /// Returns the flag for the load generator, which ends its runs on the same signal.
    pub(crate) fn stop(&self) -> &Stop {
        &self.0
    }

    /// Sleeps, unless a signal arrives.
    pub(crate) fn sleep(&self, time: Duration) -> Result<(), Interrupted> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(STEP));
        }
    }
}

fn listen(seen: &Stop, ready: &mpsc::Sender<std::io::Result<()>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.and_then(|runtime| {
        let _inside = runtime.enter();
        let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let signals = signals.into_iter().map(signal).collect::<std::io::Result<Vec<Signal>>>()?;
        Ok((runtime, signals))
    });
    match outcome {
        Err(error) => {
            let _ = ready.send(Err(error));
        }
        Ok((runtime, mut signals)) => {
            let _ = ready.send(Ok(()));
            runtime.block_on(async {
                let any = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
                futures::future::select_all(any).await;
            });
            seen.request();
        }
    }
}
