//! Datagrams at full speed: both sides.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt};
use socket2::SockRef;

use crate::error::Error;
use crate::kinds::UdpLoad;
use crate::message::{Control, Reply, Request, unexpected};
use crate::meter::Meter;
use crate::report::{UdpReport, gbit_per_s};
use crate::stop::{POLL, Stop, TIMEOUT};

/// Number of datagrams received by one system call.
const RECEIVE_BATCH: usize = 64;

/// The receiver's socket buffer: large, because the run measures the path and a pause of the receiver must
/// not cause drops.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Largest UDP payload over IPv4 (RFC 768, RFC 791).
pub(crate) const LARGEST: usize = 65507;

/// Length of the token at the start of a datagram, truncated in shorter ones, which identifies the run's own
/// datagrams.
const TOKEN_LEN: usize = 8;

/// Runs the server's side.
pub(crate) fn receive(
    control: &mut Control,
    size: usize,
    token: u64,
    [warm_up, interval]: [Duration; 2],
    stop: &Stop,
) -> Result<(), Error> {
    let tried = "open the receiving socket";
    if size > LARGEST {
        return Err(Error::Impossible(format!("size {size}: must be 0 to {LARGEST}")));
    }
    let socket = UdpSocket::bind(SocketAddr::new(control.local()?.ip(), 0)).map_err(Error::system(tried))?;
    socket.set_read_timeout(Some(POLL)).map_err(Error::system(tried))?;
    // With CAP_NET_ADMIN beyond the system's limit, otherwise up to it.
    if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER);
    }
    let port = socket.local_addr().map_err(Error::system(tried))?.port();
    let meter = Meter::new(1);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| drain(&socket, size, token, &meter, &done));
        let counted = control
            .send(&Reply::Ready { port })
            .and_then(|()| meter.measure(warm_up, interval, stop))
            .and_then(|counted| control.send(&counted));
        done.store(true, Ordering::Relaxed);
        counted
    })
}

/// Runs the client's side.
pub(crate) fn send(server: SocketAddr, load: &UdpLoad, stop: &Stop) -> Result<UdpReport, Error> {
    let token = token();
    let mut control = Control::connect(server)?;
    let request = Request::Udp {
        size: load.size,
        token,
        warm_up_ms: load.warm_up.as_millis() as u64,
        interval_ms: load.interval.as_millis() as u64,
    };
    let port = control.ask(&request, stop)?;
    let here = SocketAddr::new(control.local()?.ip(), 0);
    let to = SocketAddr::new(server.ip(), port);
    let open = || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind(here)?;
        socket.connect(to)?;
        socket.set_write_timeout(Some(POLL))?;
        Ok(socket)
    };
    let sockets = (0..load.flows)
        .map(|_| open())
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(Error::system(format!("open {} flows to {to}", load.flows)))?;
    let done = AtomicBool::new(false);
    let (answer, sent) = thread::scope(|scope| {
        let sender = scope.spawn(|| flood(&sockets, load, token, &done));
        let answer = control.answer(load.warm_up + load.interval + TIMEOUT * 2, stop);
        done.store(true, Ordering::Relaxed);
        (answer, sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let answer = answer?;
    let Reply::Counted { seconds, counts, total } = answer else { return Err(unexpected(&answer)) };
    let delivered: u64 = counts.iter().sum();
    Ok(UdpReport {
        size: load.size,
        flows: load.flows,
        seconds,
        delivered,
        sent,
        received: total,
        packets_per_s: if seconds > 0.0 { delivered as f64 / seconds } else { 0.0 },
        gbit_per_s: gbit_per_s(delivered * load.size as u64, seconds),
    })
}

fn drain(socket: &UdpSocket, size: usize, token: u64, meter: &Meter, done: &AtomicBool) {
    let token = token.to_be_bytes();
    let token = &token[..size.min(TOKEN_LEN)];
    // One byte more than expected, so that a longer datagram is not mistaken for ours.
    let room = size + 1;
    let mut arena = vec![0u8; room * RECEIVE_BATCH];
    let mut lengths = [0; RECEIVE_BATCH];
    let mut headers = MultiHeaders::<()>::preallocate(RECEIVE_BATCH, None);
    while !done.load(Ordering::Relaxed) {
        let received = {
            let mut slices: Vec<[IoSliceMut<'_>; 1]> =
                arena.chunks_exact_mut(room).map(|slot| [IoSliceMut::new(slot)]).collect();
            match recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_WAITFORONE, None) {
                Ok(messages) => {
                    let mut count = 0;
                    for (message, length) in messages.zip(&mut lengths) {
                        *length = message.bytes;
                        count += 1;
                    }
                    count
                }
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => 0,
                Err(_) => return,
            }
        };
        let ours = arena
            .chunks_exact(room)
            .zip(&lengths[..received])
            .filter(|(slot, length)| **length == size && slot.starts_with(token))
            .count();
        meter.add(0, ours as u64);
    }
}

/// Sends from every flow in turn until `done`. Returns the number of datagrams that the system accepted.
fn flood(sockets: &[UdpSocket], load: &UdpLoad, token: u64, done: &AtomicBool) -> u64 {
    let mut payload: Vec<u8> = (0..load.size).map(|index| index as u8).collect();
    let token_len = load.size.min(TOKEN_LEN);
    payload[..token_len].copy_from_slice(&token.to_be_bytes()[..token_len]);
    let slices: Vec<[IoSlice<'_>; 1]> = (0..load.batch).map(|_| [IoSlice::new(&payload)]).collect();
    let nowhere: Vec<Option<()>> = vec![None; load.batch];
    let mut headers = MultiHeaders::<()>::preallocate(load.batch, None);
    let mut sent = 0;
    while !done.load(Ordering::Relaxed) {
        for socket in sockets {
            let outcome =
                sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &nowhere, [], MsgFlags::empty());
            match outcome {
                Ok(messages) => sent += messages.count() as u64,
                // A full queue, or an ICMP error for an earlier datagram; the receiver's count shows it.
                Err(_) => thread::yield_now(),
            }
        }
    }
    sent
}

/// Returns a number that no concurrent run on this path uses.
fn token() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u64) ^ (u64::from(std::process::id()) << 40)
}
