//! The control connection: one JSON value per line, in both directions.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::stop::{POLL, Stop, TIMEOUT};

/// Maximum length of a line from the peer.
const LONGEST_LINE: usize = 1 << 20;

/// The client's request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Request {
    Tcp { streams: usize, warm_up_ms: u64, interval_ms: u64 },
    Verify { streams: usize, bytes: u64 },
    Udp { size: usize, token: u64, warm_up_ms: u64, interval_ms: u64 },
    Echo,
}

/// The server's replies: ready first, then one of the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply {
    Ready { port: u16 },
    Counted { seconds: f64, counts: Vec<u64>, total: u64 },
    Digests { received: u64, sha256: Vec<String> },
    Failed { why: String },
}

/// One end of a control connection.
pub(crate) struct Control {
    stream: BufReader<TcpStream>,
    line: Vec<u8>,
}

impl Control {
    pub(crate) fn connect(server: SocketAddr) -> Result<Self, Error> {
        let tried = || format!("connect to the load server {server}");
        let stream = TcpStream::connect_timeout(&server, TIMEOUT).map_err(Error::system(tried()))?;
        Self::new(stream)
    }

    pub(crate) fn new(stream: TcpStream) -> Result<Self, Error> {
        stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_nodelay(true))
            .and_then(|()| stream.set_read_timeout(Some(POLL)))
            .and_then(|()| stream.set_write_timeout(Some(TIMEOUT)))
            .map_err(Error::system("prepare the control connection"))?;
        Ok(Control { stream: BufReader::new(stream), line: Vec::new() })
    }

    /// Returns the local address.
    pub(crate) fn local(&self) -> Result<SocketAddr, Error> {
        self.stream.get_ref().local_addr().map_err(Error::system("read the control address"))
    }

    pub(crate) fn send(&mut self, message: &impl Serialize) -> Result<(), Error> {
        let mut line = serde_json::to_vec(message).map_err(|error| Error::Protocol(error.to_string()))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(Error::system("write to the control connection"))
    }

    /// Receives the next message, waiting at most `limit`; `None` if the peer has closed the connection.
    pub(crate) fn receive<T: DeserializeOwned>(
        &mut self,
        limit: Duration,
        stop: &Stop,
    ) -> Result<Option<T>, Error> {
        let deadline = Instant::now() + limit;
        loop {
            if stop.requested() {
                return Err(Error::Stopped);
            }
            match self.stream.read_until(b'\n', &mut self.line) {
                Ok(_) if self.line.last() == Some(&b'\n') => {
                    let message = serde_json::from_slice(&self.line)
                        .map_err(|error| Error::Protocol(error.to_string()))?;
                    self.line.clear();
                    return Ok(Some(message));
                }
                Ok(_) => return Ok(None),
                // The bytes received before the timeout stay in `line`.
                Err(error) if timed_out(&error) => {}
                Err(error) => return Err(Error::system("read from the control connection")(error)),
            }
            if self.line.len() > LONGEST_LINE {
                return Err(Error::Protocol(format!("line longer than {LONGEST_LINE} bytes")));
            }
            if Instant::now() >= deadline {
                return Err(Error::Silent("control connection".to_owned()));
            }
        }
    }

    /// Receives the server's next reply; a failure that the server reports becomes an error.
    pub(crate) fn answer(&mut self, limit: Duration, stop: &Stop) -> Result<Reply, Error> {
        match self.receive(limit, stop)? {
            Some(Reply::Failed { why }) => Err(Error::Server(why)),
            Some(reply) => Ok(reply),
            None => Err(Error::Server("the control connection was closed".to_owned())),
        }
    }

    /// Sends a request and returns the data port that the server opened for it.
    pub(crate) fn ask(&mut self, request: &Request, stop: &Stop) -> Result<u16, Error> {
        self.send(request)?;
        match self.answer(TIMEOUT, stop)? {
            Reply::Ready { port } => Ok(port),
            other => Err(unexpected(&other)),
        }
    }
}

/// Returns the error for a valid reply at the wrong time.
pub(crate) fn unexpected(reply: &Reply) -> Error {
    let text = serde_json::to_string(reply).unwrap_or_else(|error| error.to_string());
    Error::Protocol(format!("unexpected reply {text}"))
}

/// Returns true if a blocking call timed out or was interrupted by a signal.
pub(crate) fn timed_out(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
