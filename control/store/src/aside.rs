//! Work that blocks, on a thread of its own.

use std::io;

use tokio::sync::oneshot;

/// Work under way on a thread of its own. Dropping it leaves the thread to end on its own.
#[derive(Debug)]
pub struct Running<T> {
    name: String,
    result: oneshot::Receiver<T>,
}

/// Starts `work` on a new thread. Fails if no thread can be started, where tokio's `spawn_blocking` panics.
pub fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Running<T>> {
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
    pub async fn result(&mut self) -> io::Result<T> {
        let name = &self.name;
        let result = (&mut self.result).await;
        result.map_err(|_| io::Error::other(format!("the thread {name} ended without a result")))
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
}
