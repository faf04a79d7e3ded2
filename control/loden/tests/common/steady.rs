//! A steady flow of small datagrams that are echoed, each of which is accounted for.

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Cluster, enlarge_buffer};

/// The time between two datagrams.
const GAP: Duration = Duration::from_millis(2);
/// How much of a delay is made up for: 50 datagrams.
const BURST: Duration = Duration::from_millis(100);
/// Room for all that arrives while a busy machine does not run its reader.
const BUFFER: usize = 16 << 20;
/// A datagram that has not returned by then is lost. A machine that is busy may take seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a waiting thread checks whether it should stop.
const POLL: Duration = Duration::from_millis(100);

/// A flow that continues until [`Steady::finish`].
pub struct Steady {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    listener: JoinHandle<(HashSet<u64>, Vec<u64>)>,
    echo: JoinHandle<()>,
    ended: Arc<AtomicBool>,
    /// The number of datagrams that have returned.
    returned: Arc<AtomicU64>,
}

/// The outcome of a flow.
#[derive(Debug)]
pub struct Outcome {
    /// The number of datagrams sent.
    pub sent: u64,
    /// The sequence numbers that did not return.
    pub lost: Vec<u64>,
    /// The sequence numbers that returned twice, or after a later one.
    pub late: Vec<u64>,
}

impl Steady {
    /// Starts a flow from the pod of `from` to the pod of `to` and back.
    pub fn start(cluster: &Cluster, from: usize, to: usize) -> Steady {
        let open = |number: usize| {
            let address = SocketAddr::new(cluster.pod(number, false), 0);
            let socket = cluster.host(number).pod().run(|| UdpSocket::bind(address)).expect("the pod");
            let socket = socket.expect("a socket");
            socket.set_read_timeout(Some(POLL)).expect("a time limit");
            enlarge_buffer(&socket, BUFFER);
            socket
        };
        let (here, there) = (open(from), open(to));
        let target = there.local_addr().expect("an address");
        let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let returned = Arc::new(AtomicU64::new(0));
        let echo = {
            let ended = Arc::clone(&ended);
            thread::spawn(move || reflect(&there, &ended))
        };
        let listener = {
            let (ended, here) = (Arc::clone(&ended), here.try_clone().expect("a clone"));
            let returned = Arc::clone(&returned);
            thread::spawn(move || listen(&here, &ended, &returned))
        };
        let sender = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || send(&here, target, &stop))
        };
        Steady { stop, sender, listener, echo, ended, returned }
    }

    /// Stops the flow and waits for the datagrams still in flight.
    pub fn finish(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender");
        let end = Instant::now() + PATIENCE;
        while self.returned.load(Ordering::Relaxed) < sent && Instant::now() < end {
            thread::sleep(POLL);
        }
        self.ended.store(true, Ordering::Relaxed);
        let (back, late) = self.listener.join().expect("the listener");
        self.echo.join().expect("the echo");
        Outcome { sent, lost: (0..sent).filter(|number| !back.contains(number)).collect(), late }
    }
}

/// Pins the thread to one core. The network stack queues packets per core, so a sender that moves between
/// cores can reorder its own packets before loden sees them.
fn stay() {
    let cores = io::thread::allowed_cores().expect("cores");
    io::thread::pin_to_core(cores[0]).expect("a core of ours");
}

fn send(socket: &UdpSocket, target: SocketAddr, stop: &AtomicBool) -> u64 {
    stay();
    let (mut number, mut began) = (0u64, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        socket.send_to(&number.to_be_bytes(), target).expect("send");
        number += 1;
        // Paced by the clock, so that a thread that was delayed catches up, but not with a burst that
        // overflows a socket's buffer: the time beyond is skipped.
        let (due, now) = (began + GAP * number as u32, Instant::now());
        began += now.saturating_duration_since(due + BURST);
        thread::sleep(due.saturating_duration_since(now));
    }
    number
}

fn reflect(socket: &UdpSocket, ended: &AtomicBool) {
    stay();
    let mut buffer = [0; 64];
    while !ended.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from).expect("send back");
        }
    }
}

/// Returns the sequence numbers that returned, and which of them late.
fn listen(socket: &UdpSocket, ended: &AtomicBool, returned: &AtomicU64) -> (HashSet<u64>, Vec<u64>) {
    let (mut back, mut buffer) = (HashSet::new(), [0; 8]);
    let (mut next, mut late) = (0, Vec::new());
    while !ended.load(Ordering::Relaxed) {
        if let Ok(8) = socket.recv(&mut buffer) {
            let number = u64::from_be_bytes(buffer);
            if number < next {
                late.push(number);
            }
            next = next.max(number + 1);
            back.insert(number);
            returned.store(back.len() as u64, Ordering::Relaxed);
        }
    }
    (back, late)
}
