//! A connection to the kernel that cannot die in silence.
//!
//! The kernel drops an answer that does not fit the socket's buffer, and a request whose connection has ended
//! looks like one that succeeded. So every request has a time limit, an answer counts only while its
//! connection is whole, and after a failure the next request opens another connection.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStream, TryStreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::SocketAddr;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::error::NetlinkError;

/// How long a request waits for the next message of its answer. The kernel answers before the request
/// returns, so even a busy one needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection in the network namespace of the thread that opens it. Clones share it.
#[derive(Clone)]
pub struct Netlink {
    shared: Arc<Shared>,
    /// Called at each answer of the kernel.
    answered: Option<Arc<dyn Fn() + Send + Sync>>,
}

struct Shared {
    patience: Duration,
    open: Box<dyn Fn() -> io::Result<Opened> + Send + Sync>,
    /// The line of the next request; `None` after a failure.
    line: Mutex<Option<Arc<Line>>>,
}

/// A socket with what drives it.
pub(super) struct Opened {
    pub(super) driver: Pin<Box<dyn Future<Output = ()> + Send>>,
    pub(super) handle: Handle,
    /// What the socket received besides answers.
    pub(super) others: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

/// One socket, driven by a task of its own.
struct Line {
    handle: Handle,
    /// The task has ended, or answers were lost.
    broken: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace, on the running tokio runtime.
    pub fn connect() -> Result<Netlink, NetlinkError> {
        Netlink::with(PATIENCE, || {
            let (driver, handle, others) = rtnetlink::new_connection()?;
            Ok(Opened { driver: Box::pin(driver), handle, others })
        })
    }

    pub(super) fn with(
        patience: Duration,
        open: impl Fn() -> io::Result<Opened> + Send + Sync + 'static,
    ) -> Result<Netlink, NetlinkError> {
        let shared = Arc::new(Shared { patience, open: Box::new(open), line: Mutex::default() });
        let netlink = Netlink { shared, answered: None };
        netlink.line()?;
        Ok(netlink)
    }

    /// Returns a handle that calls `answered` at each answer to its requests: work that takes thousands of
    /// them shows that it goes on.
    pub fn reporting(&self, answered: impl Fn() + Send + Sync + 'static) -> Netlink {
        Netlink { shared: Arc::clone(&self.shared), answered: Some(Arc::new(answered)) }
    }

    /// Makes one request; `what` describes it as an imperative, for the error.
    pub async fn ask<T>(
        &self,
        what: impl Fn() -> String,
        request: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error>,
    ) -> Result<T, NetlinkError> {
        let line = self.line()?;
        let answer = timeout(self.shared.patience, request(line.handle.clone())).await;
        self.judge(&line, &what, answer.ok())
    }

    /// Makes one request that is answered by any number of messages, and hands each of them to `take`.
    pub async fn list<S: TryStream<Error = rtnetlink::Error>>(
        &self,
        what: impl Fn() -> String,
        request: impl FnOnce(&Handle) -> S,
        mut take: impl FnMut(S::Ok),
    ) -> Result<(), NetlinkError> {
        let line = self.line()?;
        let mut answer = std::pin::pin!(request(&line.handle).into_stream());
        loop {
            let next = timeout(self.shared.patience, answer.try_next()).await;
            match self.judge(&line, &what, next.ok())? {
                Some(message) => take(message),
                None => return Ok(()),
            }
        }
    }

    /// Returns what the kernel answered, unless the answer is missing or may be incomplete.
    fn judge<T>(
        &self,
        line: &Arc<Line>,
        what: &impl Fn() -> String,
        answer: Option<Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetlinkError> {
        if let Some(answered) = self.answered.as_ref().filter(|_| answer.is_some()) {
            answered();
        }
        let failure = match answer {
            None => NetlinkError::Silent { what: what(), patience: self.shared.patience },
            Some(Err(error @ rtnetlink::Error::NetlinkError(_))) => {
                return Err(NetlinkError::from_rtnetlink(what(), error));
            }
            Some(Err(rtnetlink::Error::RequestFailed)) => NetlinkError::Ended { what: what() },
            Some(Ok(_)) if line.is_broken() => NetlinkError::Ended { what: what() },
            Some(Ok(answer)) => return Ok(answer),
            Some(Err(error)) => NetlinkError::from_rtnetlink(what(), error),
        };
        self.leave(line);
        Err(failure)
    }

    /// Returns the line in use, or opens another.
    fn line(&self) -> Result<Arc<Line>, NetlinkError> {
        let mut line = self.shared.line.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(whole) = line.as_ref().filter(|line| !line.is_broken()) {
            return Ok(Arc::clone(whole));
        }
        let opened = (self.shared.open)().map_err(NetlinkError::Connect)?;
        Ok(Arc::clone(line.insert(Arc::new(Line::start(opened)))))
    }

    /// Makes the next request open another line.
    fn leave(&self, failed: &Arc<Line>) {
        let mut line = self.shared.line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.as_ref().is_some_and(|line| Arc::ptr_eq(line, failed)) {
            *line = None;
        }
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Line {
    fn start(Opened { mut driver, handle, mut others }: Opened) -> Line {
        let broken = Arc::new(AtomicBool::new(false));
        let end = End(Arc::clone(&broken));
        let task = tokio::spawn(async move {
            // Dropped before the driver, with which the answers of waiting requests end.
            let _end = end;
            let lost = async {
                loop {
                    match others.next().await {
                        Some((message, _)) if matches!(message.payload, NetlinkPayload::Overrun(_)) => break,
                        Some(_) => {}
                        None => std::future::pending().await,
                    }
                }
            };
            tokio::select! {
                () = &mut driver => {}
                () = lost => {}
            }
        });
        Line { handle, broken, task }
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Marks a line as broken when its task ends, in whatever way.
struct End(Arc<AtomicBool>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
