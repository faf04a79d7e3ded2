//! File work on a thread of its own, so that a filesystem that hangs holds up nothing but files.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use store::aside;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long the loop waits for files. Work that takes longer is still done; until then all other work on
/// files fails at once.
const PATIENCE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// The thread for the files of one place, since another filesystem may answer. Clones share it; it ends with
/// the last of them, if it does not hang.
#[derive(Clone, Debug)]
pub struct Disk {
    jobs: mpsc::Sender<Job>,
    queue: Arc<Mutex<Queue>>,
    thread: Arc<JoinHandle<()>>,
    patience: Duration,
}

/// The jobs that are not done yet.
#[derive(Debug, Default)]
struct Queue {
    length: usize,
    /// When the first of them began.
    since: Option<Instant>,
}

impl Disk {
    /// Starts the thread.
    pub fn start() -> io::Result<Disk> {
        Disk::with(PATIENCE)
    }

    fn with(patience: Duration) -> io::Result<Disk> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let work = move || inbox.into_iter().for_each(|job| job());
        let thread = std::thread::Builder::new().name("loden-disk".into()).spawn(work)?;
        Ok(Disk { jobs, queue: Arc::default(), thread: Arc::new(thread), patience })
    }

    /// Does the work after all that was given before, and waits for it, but not longer than files usually
    /// take.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (sender, result) = oneshot::channel();
        self.post(move || {
            let _ = sender.send(work());
        })?;
        match timeout(self.patience, result).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(io::Error::other("the thread for files has ended")),
            Err(_) => Err(hangs()),
        }
    }

    /// Does the work after all that was given before, without waiting. Fails if the filesystem hangs.
    pub fn post(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.since.is_some_and(|since| since.elapsed() >= self.patience) {
            return Err(hangs());
        }
        let shared = Arc::clone(&self.queue);
        let job = move || {
            work();
            let mut queue = shared.lock().unwrap_or_else(PoisonError::into_inner);
            queue.length -= 1;
            queue.since = (queue.length > 0).then(Instant::now);
        };
        let sent = self.jobs.send(Box::new(job));
        sent.map_err(|_| io::Error::other("the thread for files has ended"))?;
        queue.length += 1;
        queue.since.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Tells whether the thread has ended on its own, which it never should.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Does work on files on a thread of its own, for what is done only once. Waits for it, but not longer than
/// files usually take.
pub async fn once<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    timeout(PATIENCE, aside::run("loden-file", work)).await.unwrap_or_else(|_| Err(hangs()))
}

fn hangs() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the filesystem does not answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_hangs_is_left_alone_and_the_rest_fails_at_once_until_it_ends() {
        let disk = Disk::with(Duration::from_secs(2)).expect("a thread");
        assert_eq!(disk.run(|| 1).await.expect("done"), 1);
        let (release, held) = mpsc::channel::<()>();
        let error = disk.run(move || held.recv()).await.expect_err("it hangs");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        for _ in 0..3 {
            assert!(disk.run(|| 2).await.is_err() && disk.post(|| ()).is_err());
        }
        release.send(()).expect("it waits");
        while disk.run(|| 3).await.is_err() {
            tokio::task::yield_now().await;
        }
        assert!(!disk.has_ended());
    }

    #[tokio::test]
    async fn a_panic_ends_the_thread_and_is_noticed() {
        let disk = Disk::start().expect("a thread");
        assert!(disk.run(|| -> u8 { panic!("on purpose") }).await.is_err());
        while !disk.has_ended() {
            tokio::task::yield_now().await;
        }
        assert!(disk.run(|| 1).await.is_err());
    }
}
