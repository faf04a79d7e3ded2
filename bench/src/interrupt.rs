//! Ctrl-C and SIGTERM as a flag, so that a run ends by returning and its guards clean up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

/// The flag, shared by all clones.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

/// The error of an interrupted run.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; everything was removed")]
pub struct Interrupted;

impl Interrupt {
    /// Starts to listen for SIGINT, SIGTERM and SIGHUP, which no longer end the process after that.
    pub fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .into_iter()
            .map(signal)
            .collect::<Result<Vec<_>, _>>()
            .context("cannot listen for signals")?;
        drop(entered);
        let interrupt = Self::default();
        let flag = interrupt.clone();
        let wait = move || {
            let [interrupted, terminated, hung_up] = &mut signals[..] else { return };
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupted.recv() => {}
                    _ = terminated.recv() => {}
                    _ = hung_up.recv() => {}
                }
            });
            flag.raise();
        };
        thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
        Ok(interrupt)
    }

    /// Sets the flag.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns an error once the flag is set.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.0.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_flag() {
        let interrupt = Interrupt::default();
        let clone = interrupt.clone();
        assert!(clone.check().is_ok());
        interrupt.raise();
        assert!(clone.check().is_err());
    }
}
