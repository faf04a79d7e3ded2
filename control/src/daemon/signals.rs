//! The signals that end the daemon.

use std::fs;
use std::io;
use std::process;
use std::thread;
use std::time::Duration;

use nix::libc::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals as Queue};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::DaemonError;

/// How long the loop has for acting on a second signal itself.
const GRACE: Duration = Duration::from_secs(1);

/// SIGTERM, SIGINT and, unless nohup(1) has turned it off, SIGHUP.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
    insisting: Handle,
}

impl Signals {
    /// Listens from now on.
    pub(super) fn new() -> Result<Signals, DaemonError> {
        let hangs_up = !is_ignored(SIGHUP);
        let insisting = insist(hangs_up).map_err(DaemonError::Signals)?;
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: hangs_up.then(|| listen(SignalKind::hangup())).transpose()?,
            insisting,
        })
    }

    /// Waits for any of the signals; returns its name.
    pub(super) async fn received(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = hangup => "SIGHUP",
        }
    }

    /// Waits for what a first signal has begun to end, unless a second one comes.
    pub(super) async fn or_second(&mut self, ending: impl Future<Output = ()>) {
        tokio::select! {
            () = ending => {}
            _ = self.received() => tracing::warn!("second signal: ending at once"),
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.insisting.close();
    }
}

/// Listens for one kind of signal.
pub(super) fn listen(kind: SignalKind) -> Result<Signal, DaemonError> {
    signal(kind).map_err(DaemonError::Signals)
}

/// Starts a thread that ends the process a moment after the second signal, if the loop does not: it may be
/// stuck in a system call, and nothing but SIGKILL would help.
fn insist(hangs_up: bool) -> io::Result<Handle> {
    let mut queue = Queue::new([SIGTERM, SIGINT].into_iter().chain(hangs_up.then_some(SIGHUP)))?;
    let handle = queue.handle();
    thread::Builder::new().name("loden-signals".into()).spawn(move || {
        if queue.forever().nth(1).is_some() {
            thread::sleep(GRACE);
            process::exit(0);
        }
    })?;
    Ok(handle)
}

/// Tells whether a signal is ignored, as it was by whoever started this process (proc_pid_status(5)).
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}
