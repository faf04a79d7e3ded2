//! Sleeping until a port may be readable or another thread wakes the worker.
//!
//! Reports are edge-triggered (mio, epoll): each says that something arrived since the previous one. The next
//! wait does not repeat a report, so its receiver must remember it until the port returns `WouldBlock`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

/// The number of tokens, 0 to 63: a [`Ready`] holds them in one word.
pub const MAX_TOKENS: usize = 64;

const WAKE: Token = Token(usize::MAX);

/// Sleeps on behalf of one worker. Created once per thread.
pub struct Waiter {
    poll: Poll,
    events: Events,
    shared: Arc<Shared>,
    calls: u64,
}

/// Ends another thread's wait. Cheap to clone. A call before the wait begins is not lost.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

/// The result of a wait: the tokens that may be readable, and whether a [`Waker`] was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    bits: u64,
    woken: bool,
}

struct Shared {
    waker: mio::Waker,
    /// Tokens reported by ports that have no descriptor.
    pending: AtomicU64,
}

impl Waiter {
    /// Creates a waiter with nothing registered.
    pub fn new() -> io::Result<Waiter> {
        let poll = Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKE)?;
        let shared = Arc::new(Shared { waker, pending: AtomicU64::new(0) });
        Ok(Waiter { poll, events: Events::with_capacity(MAX_TOKENS + 1), shared, calls: 0 })
    }

    /// Reports `token` whenever `fd` becomes readable. Fails with `InvalidInput` if `token` is 64 or more.
    /// Closing the descriptor unregisters it.
    pub fn register(&mut self, fd: BorrowedFd<'_>, token: usize) -> io::Result<()> {
        check(token)?;
        self.poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), Token(token), Interest::READABLE)
    }

    /// Returns a handle that wakes this waiter from any thread.
    pub fn waker(&self) -> Waker {
        Waker { shared: Arc::clone(&self.shared) }
    }

    /// Sleeps until something is reported, a waker is used, or `timeout` expires (`None`: never; zero: do not
    /// sleep). A signal ends the wait early with an empty result.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Ready> {
        self.calls += 1;
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Ready::default()),
            other => other?,
        }
        let mut ready = Ready::default();
        for event in &self.events {
            match event.token() {
                WAKE => {
                    let pending = self.shared.pending.swap(0, Ordering::AcqRel);
                    ready.bits |= pending;
                    ready.woken = true;
                }
                // Errors also count as readable: the read that follows returns and clears them.
                Token(token) => ready.bits |= 1 << token,
            }
        }
        Ok(ready)
    }

    /// Returns how often [`Waiter::wait`] was called; each call is one system call.
    pub fn calls(&self) -> u64 {
        self.calls
    }
}

impl Waker {
    /// Ends the current wait, or the next one as soon as it begins.
    pub fn wake(&self) -> io::Result<()> {
        self.shared.waker.wake()
    }

    /// Reports `token` as readable on behalf of a port without a descriptor. Tokens of 64 or more only wake.
    pub fn report(&self, token: usize) -> io::Result<()> {
        if token < MAX_TOKENS {
            self.shared.pending.fetch_or(1 << token, Ordering::AcqRel);
        }
        self.wake()
    }
}

impl Ready {
    /// Whether `token` was reported.
    pub fn contains(self, token: usize) -> bool {
        token < MAX_TOKENS && self.bits & (1 << token) != 0
    }

    /// Whether a [`Waker`] was used.
    pub fn woken(self) -> bool {
        self.woken
    }

    /// Returns the reported tokens, token *n* as bit *n*.
    pub fn bits(self) -> u64 {
        self.bits
    }

    /// Whether the wait ended without a report or a wake.
    pub fn is_empty(self) -> bool {
        self.bits == 0 && !self.woken
    }
}

/// Rejects tokens of 64 or more with `InvalidInput`.
pub(crate) fn check(token: usize) -> io::Result<()> {
    if token < MAX_TOKENS { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const LONG: Option<Duration> = Some(Duration::from_secs(20));

    #[test]
    fn a_readable_descriptor_is_reported_once() {
        let mut waiter = Waiter::new().unwrap();
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let (quiet, _other) = UnixStream::pair().unwrap();
        waiter.register(here.as_fd(), 5).unwrap();
        waiter.register(quiet.as_fd(), 63).unwrap();
        there.write_all(b"x").unwrap();
        let ready = waiter.wait(LONG).unwrap();
        assert_eq!(ready, Ready { bits: 1 << 5, woken: false });
        assert!(ready.contains(5) && !ready.contains(63) && !ready.contains(64));
        // Edge-triggered: not repeated although the byte is still unread.
        assert!(waiter.wait(Some(Duration::ZERO)).unwrap().is_empty());
        here.read_exact(&mut [0]).unwrap();
        assert_eq!(waiter.calls(), 2);
    }

    #[test]
    fn a_wake_before_the_wait_is_not_lost_and_reports_accumulate() {
        let mut waiter = Waiter::new().unwrap();
        let waker = waiter.waker();
        waker.report(0).unwrap();
        waker.report(9).unwrap();
        waker.report(64).unwrap();
        let ready = waiter.wait(LONG).unwrap();
        assert_eq!(ready, Ready { bits: 1 | 1 << 9, woken: true });
        assert!(waiter.wait(Some(Duration::ZERO)).unwrap().is_empty());
    }

    #[test]
    fn another_thread_can_wake_the_waiter() {
        let mut waiter = Waiter::new().unwrap();
        let waker = waiter.waker();
        let thread = std::thread::spawn(move || waker.wake().unwrap());
        assert!(waiter.wait(LONG).unwrap().woken());
        thread.join().unwrap();
    }

    #[test]
    fn tokens_beyond_63_are_rejected() {
        let mut waiter = Waiter::new().unwrap();
        let (here, _there) = UnixStream::pair().unwrap();
        let error = waiter.register(here.as_fd(), 64).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
