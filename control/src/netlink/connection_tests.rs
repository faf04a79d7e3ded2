use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::libc::{EBADF, ENOBUFS};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, Socket, TokioSocket};

use super::*;
use crate::netlink::find_link;

/// What befalls the next messages of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The answer is lost without a trace.
    Lost,
    /// The answer is lost and reading fails, as it does when the socket's buffer is full.
    Overrun,
    /// Reading fails.
    Dead,
    /// The answer makes no sense.
    Garbled,
}

/// The faults to come, one for each message that is read, and how many sockets were opened.
#[derive(Debug, Default)]
struct Plan {
    faults: Vec<Fault>,
    opened: usize,
    refused: bool,
}

type Shared = Arc<Mutex<Plan>>;

struct Faulty {
    inner: TokioSocket,
    plan: Shared,
}

#[tokio::test]
async fn a_request_without_an_answer_fails_and_the_next_one_has_another_socket() {
    for fault in [Fault::Lost, Fault::Overrun, Fault::Dead, Fault::Garbled] {
        let (netlink, plan) = faulty();
        assert!(lo(&netlink).await.expect("an answer"), "{fault:?}");
        plan.lock().unwrap().faults = vec![fault];
        let error = lo(&netlink).await.expect_err("no answer");
        assert!(!error.is_answer() && error.errno().is_none(), "{fault:?}: {error}");
        assert!(error.to_string().contains("look at lo"), "{fault:?}: {error}");
        assert!(lo(&netlink).await.expect("an answer"), "{fault:?}");
        assert_eq!(plan.lock().unwrap().opened, 2, "{fault:?}");
    }
}

/// To rtnetlink, a change whose connection has ended looks like one that was made.
#[tokio::test]
async fn a_change_without_an_answer_is_not_taken_for_made() {
    for fault in [Fault::Lost, Fault::Overrun, Fault::Dead] {
        let (netlink, plan) = faulty();
        plan.lock().unwrap().faults = vec![fault];
        let what = || "remove a device".to_owned();
        // There is no such device: with an answer, it is an error of the kernel's.
        let remove = async |handle: Handle| handle.link().del(i32::MAX as u32).execute().await;
        let error = netlink.ask(what, remove).await.expect_err("no answer");
        assert!(!error.is_answer(), "{fault:?}: {error}");
        let error = netlink.ask(what, remove).await.expect_err("no such device");
        assert!(error.is_answer(), "{fault:?}: {error}");
    }
}

#[tokio::test]
async fn requests_that_fail_together_share_the_next_socket() {
    let (netlink, plan) = faulty();
    plan.lock().unwrap().faults = vec![Fault::Lost, Fault::Lost, Fault::Lost];
    let answers = futures::future::join_all((0..3).map(|_| lo(&netlink))).await;
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    for answer in futures::future::join_all((0..3).map(|_| lo(&netlink))).await {
        assert!(answer.expect("an answer"));
    }
    assert_eq!(plan.lock().unwrap().opened, 2);
}

#[tokio::test]
async fn a_list_that_is_cut_short_is_not_taken_for_whole() {
    let (netlink, plan) = faulty();
    let list = async || {
        let mut routes = 0;
        let what = || "list the rules".to_owned();
        let request = |handle: &Handle| handle.rule().get(rtnetlink::IpVersion::V4).execute();
        netlink.list(what, request, |_| routes += 1).await.map(|()| routes)
    };
    let whole = list().await.expect("an answer");
    assert!(whole > 0);
    for fault in [Fault::Lost, Fault::Overrun, Fault::Dead] {
        plan.lock().unwrap().faults = vec![fault];
        let error = list().await.expect_err("not whole");
        assert!(!error.is_answer(), "{fault:?}: {error}");
        assert_eq!(list().await.expect("an answer"), whole, "{fault:?}");
    }
}

#[tokio::test]
async fn each_answer_is_reported_and_a_missing_one_is_not() {
    let (netlink, plan) = faulty();
    let count = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&count);
    let reporting = netlink.reporting(move || *counted.lock().unwrap() += 1);
    assert!(lo(&netlink).await.expect("an answer"));
    assert_eq!(*count.lock().unwrap(), 0, "another handle");
    let what = || "remove a device".to_owned();
    let remove = async |handle: Handle| handle.link().del(i32::MAX as u32).execute().await;
    for requests in 1..=3 {
        assert!(reporting.ask(what, remove).await.expect_err("no such device").is_answer());
        assert_eq!(*count.lock().unwrap(), requests);
    }
    plan.lock().unwrap().faults = vec![Fault::Lost];
    assert!(!reporting.ask(what, remove).await.expect_err("no answer").is_answer());
    assert_eq!(*count.lock().unwrap(), 3);
}

#[tokio::test]
async fn a_socket_that_cannot_be_opened_is_tried_again() {
    let (netlink, plan) = faulty();
    *plan.lock().unwrap() = Plan { faults: vec![Fault::Dead], opened: 1, refused: true };
    for _ in 0..2 {
        let error = lo(&netlink).await.expect_err("no socket");
        assert!(!error.is_answer(), "{error}");
    }
    plan.lock().unwrap().refused = false;
    assert!(lo(&netlink).await.expect("an answer"));
}

async fn lo(netlink: &Netlink) -> Result<bool, NetlinkError> {
    Ok(find_link(netlink, "lo").await?.is_some())
}

fn faulty() -> (Netlink, Shared) {
    let plan = Shared::default();
    let shared = Arc::clone(&plan);
    let netlink = Netlink::with(Duration::from_secs(2), move || {
        let mut plan = shared.lock().unwrap();
        if plan.refused {
            return Err(io::Error::from_raw_os_error(nix::libc::EMFILE));
        }
        plan.opened += 1;
        let socket = Faulty { inner: TokioSocket::new(NETLINK_ROUTE)?, plan: Arc::clone(&shared) };
        let (driver, handle, others) = rtnetlink::from_socket(socket);
        Ok(Opened { driver: Box::pin(driver), handle, others })
    });
    (netlink.expect("a socket"), plan)
}

impl AsyncSocket for Faulty {
    fn socket_ref(&self) -> &Socket {
        self.inner.socket_ref()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.inner.socket_mut()
    }

    fn new(protocol: isize) -> io::Result<Faulty> {
        Ok(Faulty { inner: TokioSocket::new(protocol)?, plan: Shared::default() })
    }

    fn poll_send(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner.poll_send(context, bytes)
    }

    fn poll_send_to(
        &self,
        context: &mut Context<'_>,
        bytes: &[u8],
        address: &SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_send_to(context, bytes, address)
    }

    fn poll_recv<B: bytes::BufMut>(&self, context: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<()>> {
        self.inner.poll_recv(context, buffer)
    }

    fn poll_recv_from<B: bytes::BufMut>(
        &self,
        context: &mut Context<'_>,
        buffer: &mut B,
    ) -> Poll<io::Result<SocketAddr>> {
        let mut read = Vec::with_capacity(1 << 16);
        loop {
            read.clear();
            let Poll::Ready(outcome) = self.inner.poll_recv_from(context, &mut read) else {
                return Poll::Pending;
            };
            let from = match outcome {
                Ok(from) => from,
                error => return Poll::Ready(error),
            };
            match self.plan.lock().unwrap().faults.pop() {
                None => {
                    buffer.put_slice(&read);
                    return Poll::Ready(Ok(from));
                }
                Some(Fault::Lost) => {}
                Some(Fault::Overrun) => return Poll::Ready(Err(io::Error::from_raw_os_error(ENOBUFS))),
                Some(Fault::Dead) => return Poll::Ready(Err(io::Error::from_raw_os_error(EBADF))),
                Some(Fault::Garbled) => {
                    buffer.put_slice(&vec![0xff; read.len()]);
                    return Poll::Ready(Ok(from));
                }
            }
        }
    }

    fn poll_recv_from_full(&self, context: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        self.inner.poll_recv_from_full(context)
    }
}
