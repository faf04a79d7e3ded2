//! The stream of changes of all stores: a snapshot, then each change, across failures of the store.
//!
//! A separate task follows the store, so that a wait for the next event can be dropped at any time. It begins
//! with the first wait: a node that starts from memory does not look before its store has confirmed it.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::position::Progress;
use crate::{Event, Health, Kind, Position, StoreError};

/// First and longest wait before a retry, as in flannel.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Most events that wait for the daemon. The store keeps further ones.
const QUEUE: usize = 1024;

/// Follows the leases of a store. Dropping it ends the watch.
pub struct Watch {
    events: mpsc::Receiver<Event>,
    health: Health,
    progress: Progress,
    task: Task,
}

/// What follows the store.
enum Task {
    Waiting(Option<BoxFuture<'static, ()>>),
    Running(JoinHandle<()>),
}

/// The store's side of a watch.
pub(crate) trait Follow: Send + 'static {
    /// Sends events until a failure. The next call resumes where this one stopped, with a snapshot if changes
    /// may have been missed.
    fn follow(&mut self, sink: &mut Sink) -> impl Future<Output = Halt> + Send;
}

/// The sending end of a watch.
pub(crate) struct Sink {
    events: mpsc::Sender<Event>,
    health: Health,
    progress: Progress,
    /// The kind of the failure logged last, until the store is read again.
    failure: Option<Kind>,
}

/// Why following ended.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The watch was dropped.
    Unwanted,
    /// The store cannot be read: retry.
    Failed(StoreError),
}

impl Watch {
    pub(crate) fn new(source: impl Follow) -> Watch {
        let (sender, events) = mpsc::channel(QUEUE);
        // Blind until the first answer.
        let health = Health::default();
        health.lose();
        let progress = Progress::default();
        let sink = Sink { events: sender, health: health.clone(), progress: progress.clone(), failure: None };
        Watch { events, health, progress, task: Task::Waiting(Some(Box::pin(run(source, sink)))) }
    }

    /// Returns whether the store can be read.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Returns the position that the watch has read up to, if it has read anything.
    pub fn position(&self) -> Option<Position> {
        self.progress.get()
    }

    /// Tells whether following the store has ended on its own, which it never should. There are no more
    /// events then.
    pub fn has_ended(&self) -> bool {
        matches!(&self.task, Task::Running(task) if task.is_finished())
    }

    /// Waits for the next event, the first of all a snapshot. While the store cannot be read, the watch logs
    /// a warning and retries; it then resumes where it was, with a snapshot if changes may have been missed.
    /// Dropping the future loses nothing.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, whose task the watch is.
    pub async fn next(&mut self) -> Event {
        if let Task::Waiting(run) = &mut self.task
            && let Some(run) = run.take()
        {
            self.task = Task::Running(tokio::spawn(run));
        }
        match self.events.recv().await {
            Some(event) => event,
            // See `has_ended`.
            None => std::future::pending().await,
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Watch").field("health", &self.health).finish_non_exhaustive()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Task::Running(task) = &self.task {
            task.abort();
        }
    }
}

impl Sink {
    /// Sends one event.
    pub(crate) async fn send(&self, event: Event) -> Result<(), Halt> {
        self.events.send(event).await.map_err(|_| Halt::Unwanted)
    }

    /// Notes that all changes up to here have been sent.
    pub(crate) fn reached(&self, position: Position) {
        self.progress.set(position);
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
        let kind = error.kind();
        if sink.failure.as_ref() != Some(&kind) {
            tracing::warn!("watching leases: {error}; retrying");
        }
        sink.failure = Some(kind);
        sleep(wait).await;
        wait = (wait * 2).min(BACK_OFF.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Faulty;

    impl Follow for Faulty {
        async fn follow(&mut self, sink: &mut Sink) -> Halt {
            let _ = sink.send(Event::Snapshot(Vec::new())).await;
            panic!("on purpose");
        }
    }

    #[tokio::test]
    async fn a_watch_whose_task_has_died_says_so() {
        let mut watch = Watch::new(Faulty);
        assert!(matches!(watch.next().await, Event::Snapshot(leases) if leases.is_empty()));
        while !watch.has_ended() {
            tokio::task::yield_now().await;
        }
    }
}
