//! The one stream of changes: a snapshot, then each change, over all that can happen to a store.
//!
//! A task of its own follows the store, so that whoever waits for the next event may stop waiting at any time.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::{Event, Health, StoreError};

/// First and longest wait after a failure, as in flannel.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Events that may wait for the daemon. When it is slower than this, the store keeps the rest.
const QUEUE: usize = 1024;

/// Follows the leases of a store. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<Event>,
    health: Health,
    task: JoinHandle<()>,
}

/// A store's side of a watch.
pub(crate) trait Follow: Send + 'static {
    /// Sends events until something goes wrong. Called again after a failure, it goes on where it was, with a snapshot
    /// if it cannot know what was in between.
    fn follow(&mut self, sink: &mut Sink) -> impl Future<Output = Halt> + Send;
}

/// Where a store's side puts what it has seen.
pub(crate) struct Sink {
    events: mpsc::Sender<Event>,
    health: Health,
    /// The failure since which the store was not read, as logged.
    failure: Option<String>,
}

/// Why following came to a halt.
#[derive(Debug)]
pub(crate) enum Halt {
    /// Nobody wants the events any more.
    Unwanted,
    /// The store cannot be read.
    Failed(StoreError),
}

impl Watch {
    pub(crate) fn start(source: impl Follow) -> Watch {
        let (sender, events) = mpsc::channel(QUEUE);
        // Until the first answer nothing is seen.
        let health = Health::default();
        health.lose();
        let sink = Sink { events: sender, health: health.clone(), failure: None };
        Watch { events, health, task: tokio::spawn(run(source, sink)) }
    }

    /// Whether the store can be read.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Waits for the next event, the first of all a snapshot. While the store cannot be read it warns and retries, and
    /// then goes on where it was, with a snapshot if it cannot know what was in between. Nothing is lost if the future
    /// is dropped half-way.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            // Only while the process ends: the task lives as long as the runtime does.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sink {
    /// Hands one event over.
    pub(crate) async fn send(&self, event: Event) -> Result<(), Halt> {
        self.events.send(event).await.map_err(|_| Halt::Unwanted)
    }

    /// Notes that the store was read.
    pub(crate) fn readable(&mut self) {
        self.health.regain();
        if self.failure.take().is_some() {
            tracing::info!("lease store: readable again");
        }
    }
}

async fn run(mut source: impl Follow, mut sink: Sink) {
    let mut wait = BACK_OFF.0;
    loop {
        let began = Instant::now();
        let error = match source.follow(&mut sink).await {
            Halt::Unwanted => return,
            Halt::Failed(error) => error,
        };
        sink.health.lose();
        if began.elapsed() > BACK_OFF.1 {
            wait = BACK_OFF.0;
        }
        let gist = gist(&error);
        if sink.failure.as_ref() != Some(&gist) {
            tracing::warn!("watching leases: {error}; retrying");
        }
        sink.failure = Some(gist);
        sleep(wait).await;
        wait = (wait * 2).min(BACK_OFF.1);
    }
}

/// An error without its numbers: some name the time, and are the same failure each time.
fn gist(error: &StoreError) -> String {
    error.to_string().chars().filter(|letter| !letter.is_ascii_digit()).collect()
}
