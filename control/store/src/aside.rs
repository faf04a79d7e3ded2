//! Work that blocks, on a thread of its own.

use std::io;

use tokio::sync::oneshot;

/// Runs `work` on a new thread. Fails if no thread can be started, where tokio's `spawn_blocking` panics, and
/// if the work does. Dropping the future leaves the thread to end on its own.
pub async fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (sender, result) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ = sender.send(work());
    })?;
    result.await.map_err(|_| io::Error::other(format!("the thread {name} ended without a result")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error() {
        assert_eq!(run("sum", || 1 + 1).await.expect("a sum"), 2);
        let error = run("bad", || -> u8 { panic!("on purpose") }).await.expect_err("a panic");
        assert!(error.to_string().contains("the thread bad ended"), "{error}");
    }
}
