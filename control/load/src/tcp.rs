//! Bulk TCP for a given time: both sides.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::error::Error;
use crate::kinds::TcpLoad;
use crate::message::{Control, Reply, Request, timed_out, unexpected};
use crate::meter::Meter;
use crate::report::{TcpReport, gbit_per_s};
use crate::stop::{POLL, Stop, TIMEOUT};
use crate::streams::data_streams;

/// Size of one write or read: large, so that the generator's own system calls do not limit the rate.
pub(crate) const CHUNK: usize = 256 << 10;

/// Runs the server's side.
pub(crate) fn receive(
    control: &mut Control,
    streams: usize,
    [warm_up, interval]: [Duration; 2],
    stop: &Stop,
) -> Result<(), Error> {
    let streams = data_streams(control, streams, stop)?;
    let meter = Meter::new(streams.len());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for (index, stream) in streams.iter().enumerate() {
            let (meter, done) = (&meter, &done);
            scope.spawn(move || drain(stream, |count| meter.add(index, count), done));
        }
        let counted = meter.measure(warm_up, interval, stop);
        // Sent before the streams end, so that the client knows why they end.
        let sent = counted.and_then(|counted| control.send(&counted));
        done.store(true, Ordering::Relaxed);
        for stream in &streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
        sent
    })
}

/// Runs the client's side.
pub(crate) fn send(server: SocketAddr, load: &TcpLoad, stop: &Stop) -> Result<TcpReport, Error> {
    let mut control = Control::connect(server)?;
    let request = Request::Tcp {
        streams: load.streams,
        warm_up_ms: load.warm_up.as_millis() as u64,
        interval_ms: load.interval.as_millis() as u64,
    };
    let port = control.ask(&request, stop)?;
    let streams = connect(SocketAddr::new(server.ip(), port), load.streams)?;
    let done = AtomicBool::new(false);
    let answer = thread::scope(|scope| {
        for stream in &streams {
            let done = &done;
            scope.spawn(move || flood(stream, done));
        }
        let answer = control.answer(load.warm_up + load.interval + TIMEOUT * 2, stop);
        done.store(true, Ordering::Relaxed);
        for stream in &streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
        answer
    })?;
    let Reply::Counted { seconds, counts, .. } = answer else { return Err(unexpected(&answer)) };
    let bytes = counts.iter().sum();
    let gbit_per_s = gbit_per_s(bytes, seconds);
    Ok(TcpReport { streams: load.streams, seconds, bytes, bytes_by_stream: counts, gbit_per_s })
}

/// Opens the data connections of a run.
pub(crate) fn connect(to: SocketAddr, streams: usize) -> Result<Vec<TcpStream>, Error> {
    (0..streams)
        .map(|_| {
            let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
            stream.set_write_timeout(Some(POLL))?;
            Ok(stream)
        })
        .collect::<std::io::Result<_>>()
        .map_err(Error::system(format!("connect to {to}")))
}

/// Reads until the end of the stream or of the run. Errors are ignored, because the count shows them.
fn drain(mut stream: &TcpStream, count: impl Fn(u64), done: &AtomicBool) {
    let mut buffer = vec![0; CHUNK];
    while !done.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => count(length as u64),
            Err(error) if timed_out(&error) => {}
            Err(_) => return,
        }
    }
}

fn flood(mut stream: &TcpStream, done: &AtomicBool) {
    let buffer: Vec<u8> = (0..CHUNK).map(|index| (index * 7 + 3) as u8).collect();
    while !done.load(Ordering::Relaxed) {
        match stream.write(&buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if timed_out(&error) => {}
            Err(_) => return,
        }
    }
}
