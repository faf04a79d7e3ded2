//! Echoed datagrams: round-trip times, and every size once. Both sides.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::kinds::{RttLoad, SizesLoad};
use crate::message::{Control, Reply, Request, timed_out};
use crate::report::{RttReport, SizesReport};
use crate::stop::{POLL, Stop};
use crate::udp::LARGEST;

/// Time after which a datagram counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(1);

/// Time limit for serving one client.
const LONGEST: Duration = Duration::from_secs(3600);

/// Number of consecutive losses after which the path counts as dead.
const MAX_LOST_IN_A_ROW: u64 = 5;

/// Runs the server's side: sends every datagram back until the client closes the control connection.
pub(crate) fn reflect(control: &mut Control, stop: &Stop) -> Result<(), Error> {
    let tried = "open the echo socket";
    let socket = UdpSocket::bind(SocketAddr::new(control.local()?.ip(), 0)).map_err(Error::system(tried))?;
    socket.set_read_timeout(Some(POLL)).map_err(Error::system(tried))?;
    let port = socket.local_addr().map_err(Error::system(tried))?.port();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; LARGEST];
            while !done.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    // A datagram that cannot be sent back is lost, and the client counts the loss.
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        let ended =
            control.send(&Reply::Ready { port }).and_then(|()| control.receive::<Request>(LONGEST, stop));
        done.store(true, Ordering::Relaxed);
        ended.map(|_| ())
    })
}

/// Runs the client's side of round-trip times: one datagram in flight at a time.
pub(crate) fn rtt(server: SocketAddr, load: &RttLoad, stop: &Stop) -> Result<RttReport, Error> {
    let mut echo = Echo::open(server, stop)?;
    let mut payload = vec![0x5a; load.size];
    let mut times = Vec::with_capacity(1 << 16);
    let (mut lost, mut lost_in_a_row, mut number) = (0, 0, 0u64);
    let begin = Instant::now();
    while begin.elapsed() < load.warm_up + load.interval && lost_in_a_row < MAX_LOST_IN_A_ROW {
        number += 1;
        let room = payload.len().min(8);
        payload[..room].copy_from_slice(&number.to_le_bytes()[..room]);
        let counted = begin.elapsed() >= load.warm_up;
        match echo.round_trip(&payload, stop)? {
            Answer::Equal(time) => {
                lost_in_a_row = 0;
                if counted {
                    times.push(time);
                }
            }
            Answer::Other | Answer::Lost => {
                lost_in_a_row += 1;
                lost += u64::from(counted);
            }
        }
    }
    if times.is_empty() {
        return Err(Error::Silent(format!("round trip to {server}")));
    }
    times.sort_unstable();
    let at = |share: f64| {
        let index = ((times.len() - 1) as f64 * share).round() as usize;
        times[index].as_nanos() as f64 / 1000.0
    };
    Ok(RttReport {
        size: load.size,
        round_trips: times.len() as u64,
        lost,
        min_us: at(0.0),
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        max_us: at(1.0),
    })
}

/// Runs the client's side of sizes: sends each size once without retrying, so that losses and duplicates
/// show.
pub(crate) fn sizes(server: SocketAddr, load: &SizesLoad, stop: &Stop) -> Result<SizesReport, Error> {
    let mut echo = Echo::open(server, stop)?;
    let mut report = SizesReport {
        from: load.from,
        to: load.to,
        right: 0,
        missing: Vec::new(),
        wrong: Vec::new(),
        duplicates: 0,
    };
    let mut missing_in_a_row = 0;
    for size in load.from..=load.to {
        let payload: Vec<u8> = (0..size).map(|index| (index * 31 + size) as u8).collect();
        missing_in_a_row += 1;
        match echo.round_trip(&payload, stop)? {
            Answer::Equal(_) => {
                report.right += 1;
                missing_in_a_row = 0;
            }
            Answer::Other => report.wrong.push(size),
            Answer::Lost => report.missing.push(size),
        }
        if missing_in_a_row >= MAX_LOST_IN_A_ROW {
            // Reports the rest as missing; waiting a second for each would take hours.
            report.missing.extend(size + 1..=load.to);
            break;
        }
    }
    echo.collect_strays();
    report.duplicates = echo.strays;
    Ok(report)
}

/// The fate of one datagram.
enum Answer {
    Equal(Duration),
    Other,
    Lost,
}

/// A client's socket, connected to a server's echo socket.
struct Echo {
    // The server reflects as long as the control connection is open.
    _control: Control,
    socket: UdpSocket,
    buffer: Vec<u8>,
    /// Number of datagrams that arrived unexpectedly or too late.
    strays: u64,
}

impl Echo {
    fn open(server: SocketAddr, stop: &Stop) -> Result<Self, Error> {
        let mut control = Control::connect(server)?;
        let port = control.ask(&Request::Echo, stop)?;
        let to = SocketAddr::new(server.ip(), port);
        let here = SocketAddr::new(control.local()?.ip(), 0);
        let socket = UdpSocket::bind(here)
            .and_then(|socket| socket.connect(to).map(|()| socket))
            .and_then(|socket| socket.set_read_timeout(Some(POLL)).map(|()| socket))
            .map_err(Error::system(format!("open a socket to {to}")))?;
        Ok(Echo { _control: control, socket, buffer: vec![0; LARGEST], strays: 0 })
    }

    /// Sends `payload` and waits for a datagram of its length.
    fn round_trip(&mut self, payload: &[u8], stop: &Stop) -> Result<Answer, Error> {
        let begin = Instant::now();
        // A failed send (for example an ICMP error for the previous datagram) counts as a loss, but must not
        // make the caller spin.
        let sent = self.socket.send(payload).is_ok();
        while begin.elapsed() < LOST_AFTER {
            if stop.requested() {
                return Err(Error::Stopped);
            }
            match self.socket.recv(&mut self.buffer) {
                Ok(length) if sent && self.buffer[..length] == *payload => {
                    return Ok(Answer::Equal(begin.elapsed()));
                }
                Ok(length) if sent && length == payload.len() && length > 8 => return Ok(Answer::Other),
                Ok(_) => self.strays += 1,
                Err(error) if timed_out(&error) => {}
                Err(_) => thread::sleep(POLL),
            }
        }
        Ok(Answer::Lost)
    }

    /// Receives the datagrams still in flight.
    fn collect_strays(&mut self) {
        while self.socket.recv(&mut self.buffer).is_ok() {
            self.strays += 1;
        }
    }
}
