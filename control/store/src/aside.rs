//! Work that blocks, on a thread of its own.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::sync::{Mutex, oneshot};

/// Work under way on a thread of its own. Dropping it leaves the thread to end on its own.
#[derive(Debug)]
struct Running<T> {
    name: String,
    result: oneshot::Receiver<T>,
}

/// Work of which one thread at most is under way, however often it is asked for: on a filesystem that does
/// not answer, each retry would leave another one behind. Clones share it.
pub(crate) struct Single<T>(Arc<Mutex<Option<Running<T>>>>);

/// Starts `work` on a new thread. Fails if no thread can be started, where tokio's `spawn_blocking` panics.
fn start<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Running<T>> {
    let (sender, result) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ = sender.send(work());
    })?;
    Ok(Running { name: name.to_owned(), result })
}

/// Runs `work` on a new thread. Fails if no thread can be started, and if the work panics. Dropping the
/// future leaves the thread to end on its own.
pub async fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    start(name, work)?.result().await
}

impl<T> Running<T> {
    /// Waits for the result, which is given once. Nothing is lost if the wait is dropped half-way.
    async fn result(&mut self) -> io::Result<T> {
        let name = &self.name;
        let result = (&mut self.result).await;
        result.map_err(|_| io::Error::other(format!("the thread {name} ended without a result")))
    }
}

impl<T: Send + 'static> Single<T> {
    /// Waits for the work under way, which an earlier caller has given up on, or else does `work`. Dropping
    /// the future leaves the thread to the next caller.
    pub(crate) async fn run(&self, name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let mut under_way = self.0.lock().await;
        let running = match &mut *under_way {
            Some(running) => running,
            None => under_way.insert(start(name, work)?),
        };
        let result = running.result().await;
        *under_way = None;
        result
    }

    /// Tells whether there is work that nobody has got the result of.
    pub(crate) fn is_under_way(&self) -> bool {
        self.0.try_lock().map_or(true, |under_way| under_way.is_some())
    }
}

impl<T> Clone for Single<T> {
    fn clone(&self) -> Single<T> {
        Single(Arc::clone(&self.0))
    }
}

impl<T> Default for Single<T> {
    fn default() -> Single<T> {
        Single(Arc::default())
    }
}

/// Without the result, which may be secret.
impl<T> fmt::Debug for Single<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Single")
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error() {
        assert_eq!(run("sum", || 1 + 1).await.expect("a sum"), 2);
        let error = run("bad", || -> u8 { panic!("on purpose") }).await.expect_err("a panic");
        assert!(error.to_string().contains("the thread bad ended"), "{error}");
    }

    #[tokio::test]
    async fn a_result_may_be_waited_for_in_pieces() {
        let (release, held) = std::sync::mpsc::channel();
        let mut work = start("slow", move || held.recv()).expect("a thread");
        for _ in 0..3 {
            assert!(work.result().now_or_never().is_none(), "not yet");
        }
        release.send(7).expect("it waits");
        assert_eq!(work.result().await.expect("a result"), Ok(7));
    }

    #[tokio::test]
    async fn work_that_hangs_has_one_thread_however_often_it_is_asked_for() {
        let work: Single<u32> = Single::default();
        let (release, held) = std::sync::mpsc::channel();
        assert!(work.run("slow", move || held.recv().unwrap_or_default()).now_or_never().is_none());
        for _ in 0..3 {
            let again = work.clone();
            assert!(again.run("slow", || unreachable!("a second thread")).now_or_never().is_none());
        }
        release.send(7).expect("it waits");
        assert_eq!(work.run("slow", || 8).await.expect("a result"), 7);
        assert_eq!(work.run("slow", || 8).await.expect("a result"), 8);
        work.run("bad", || panic!("on purpose")).await.expect_err("a panic");
        assert_eq!(work.run("slow", || 9).await.expect("a result"), 9);
    }
}
