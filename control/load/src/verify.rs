//! Bulk TCP of known bytes, compared by SHA-256: both sides.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::kinds::VerifyLoad;
use crate::message::{Control, Reply, Request, timed_out, unexpected};
use crate::report::{VerifyReport, gbit_per_s};
use crate::stop::{Stop, TIMEOUT};
use crate::streams::data_streams;
use crate::tcp::{CHUNK, connect};

/// Time limit for a run of any size.
const LONGEST: Duration = Duration::from_secs(3600);

/// Runs the server's side: reads every stream to its end.
pub(crate) fn receive(control: &mut Control, streams: usize, bytes: u64, stop: &Stop) -> Result<(), Error> {
    let streams = data_streams(control, streams, stop)?;
    let digests = each(&streams, |_, stream| digest_stream(stream, bytes, stop))?;
    // The streams may be accepted in another order than they were opened in, so each carries its number.
    let mut ordered: Vec<(u64, u64, String)> = digests;
    ordered.sort_by_key(|(index, ..)| *index);
    let received = ordered.iter().map(|(_, count, _)| count).sum();
    control.send(&Reply::Digests { received, sha256: ordered.into_iter().map(|(.., hex)| hex).collect() })
}

/// Runs the client's side.
pub(crate) fn send(server: SocketAddr, load: &VerifyLoad, stop: &Stop) -> Result<VerifyReport, Error> {
    let mut control = Control::connect(server)?;
    let begin = Instant::now();
    let port = control.ask(&Request::Verify { streams: load.streams, bytes: load.bytes }, stop)?;
    let streams = connect(SocketAddr::new(server.ip(), port), load.streams)?;
    let sha256_sent = each(&streams, |index, stream| send_stream(stream, index as u64, load.bytes, stop))?;
    let answer = control.answer(TIMEOUT * 2, stop)?;
    let seconds = begin.elapsed().as_secs_f64();
    let Reply::Digests { received, sha256 } = answer else { return Err(unexpected(&answer)) };
    let equal = received == load.bytes * load.streams as u64 && sha256 == sha256_sent;
    Ok(VerifyReport {
        streams: load.streams,
        bytes_by_stream: load.bytes,
        received,
        seconds,
        gbit_per_s: gbit_per_s(received, seconds),
        sha256_sent,
        sha256_received: sha256,
        equal,
    })
}

/// Runs `work` for every stream on its own thread and returns the results in order.
fn each<R: Send>(
    streams: &[TcpStream],
    work: impl Fn(usize, &TcpStream) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    let work = &work;
    thread::scope(|scope| {
        let workers: Vec<_> = streams
            .iter()
            .enumerate()
            .map(|(index, stream)| scope.spawn(move || work(index, stream)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Sends the stream's number, then `bytes` bytes. Returns the digest of the latter.
fn send_stream(mut stream: &TcpStream, index: u64, bytes: u64, stop: &Stop) -> Result<String, Error> {
    let tried = "send";
    let mut source = Source(index + 1);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    write_all(stream, &index.to_be_bytes(), stop)?;
    let mut left = bytes;
    while left > 0 {
        let length = left.min(CHUNK as u64) as usize;
        source.fill(&mut buffer[..length]);
        hash.update(&buffer[..length]);
        write_all(stream, &buffer[..length], stop)?;
        left -= length as u64;
    }
    stream.flush().and_then(|()| stream.shutdown(Shutdown::Write)).map_err(Error::system(tried))?;
    Ok(hex(&hash.finalize()))
}

/// Reads the stream's number and everything after it. Returns number, length and digest.
fn digest_stream(mut stream: &TcpStream, bytes: u64, stop: &Stop) -> Result<(u64, u64, String), Error> {
    let begin = Instant::now();
    let mut buffer = vec![0; CHUNK];
    let (mut index, mut index_len) = ([0; 8], 0);
    let (mut received, mut hash, mut last) = (0, Sha256::new(), Instant::now());
    loop {
        if stop.requested() {
            return Err(Error::Stopped);
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((u64::from_be_bytes(index), received, hex(&hash.finalize()))),
            Ok(length) => {
                let head = length.min(8 - index_len);
                index[index_len..index_len + head].copy_from_slice(&buffer[..head]);
                index_len += head;
                received += (length - head) as u64;
                hash.update(&buffer[head..length]);
                last = Instant::now();
            }
            Err(error) if timed_out(&error) => {}
            Err(error) => return Err(Error::system("receive")(error)),
        }
        if last.elapsed() > TIMEOUT || begin.elapsed() > LONGEST {
            return Err(Error::Silent(format!("stalled after {received} of {bytes} bytes")));
        }
    }
}

/// Writes all bytes; unlike `write_all`, resumes after a timeout, and fails if the peer stalls.
fn write_all(mut stream: &TcpStream, mut bytes: &[u8], stop: &Stop) -> Result<(), Error> {
    let mut last = Instant::now();
    while !bytes.is_empty() {
        if stop.requested() {
            return Err(Error::Stopped);
        }
        match stream.write(bytes) {
            Ok(length) => {
                bytes = &bytes[length..];
                last = Instant::now();
            }
            Err(error) if timed_out(&error) && last.elapsed() < TIMEOUT => {}
            Err(error) if timed_out(&error) => return Err(Error::Silent("send".to_owned())),
            Err(error) => return Err(Error::system("send")(error)),
        }
    }
    Ok(())
}

/// A reproducible stream of bytes without short periods (xorshift64*, Vigna 2016), so that a misplaced
/// segment changes the digest.
struct Source(u64);

impl Source {
    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            word.copy_from_slice(&value[..word.len()]);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_depends_on_the_seed_and_has_no_short_period() {
        let fill = |seed| {
            let mut buffer = vec![0; 4099];
            Source(seed).fill(&mut buffer);
            buffer
        };
        assert_eq!(fill(1), fill(1));
        assert_ne!(fill(1), fill(2));
        assert_ne!(fill(1)[..8], fill(1)[8..16]);
    }
}
