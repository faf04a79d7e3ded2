//! Counts over an interval, for work on other threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::message::Reply;
use crate::stop::{Stop, TIMEOUT};

/// Interval at which the measuring thread checks the clock and for a stop.
const STEP: Duration = Duration::from_millis(20);

/// One counter for each worker.
pub(crate) struct Meter(Vec<AtomicU64>);

impl Meter {
    pub(crate) fn new(workers: usize) -> Self {
        Meter((0..workers).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn add(&self, worker: usize, count: u64) {
        if let Some(counter) = self.0.get(worker) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Waits until every worker has counted something, lets the warm-up pass, and counts one interval. A
    /// worker that never starts holds up the others no longer than the usual timeout.
    pub(crate) fn measure(&self, warm_up: Duration, interval: Duration, stop: &Stop) -> Result<Reply, Error> {
        let give_up = Instant::now() + TIMEOUT;
        while self.counts().contains(&0) && Instant::now() < give_up {
            sleep(STEP, stop)?;
        }
        sleep(warm_up, stop)?;
        let (begin, before) = (Instant::now(), self.counts());
        sleep(interval, stop)?;
        let (seconds, after) = (begin.elapsed().as_secs_f64(), self.counts());
        let counts = after.iter().zip(&before).map(|(after, before)| after - before).collect();
        Ok(Reply::Counted { seconds, counts, total: after.iter().sum() })
    }

    fn counts(&self) -> Vec<u64> {
        self.0.iter().map(|counter| counter.load(Ordering::Relaxed)).collect()
    }
}

fn sleep(time: Duration, stop: &Stop) -> Result<(), Error> {
    let end = Instant::now() + time;
    loop {
        if stop.requested() {
            return Err(Error::Stopped);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(STEP));
    }
}
