//! The data connections of one run.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::message::{Control, Reply};
use crate::stop::{POLL, Stop, TIMEOUT};

/// Interval at which the listener checks for a new connection.
const ACCEPT_POLL: Duration = Duration::from_millis(10);

/// Maximum number of streams per client.
pub(crate) const MAX_STREAMS: usize = 1024;

/// Opens a listener for one run's data, reports its port to the client, and accepts `streams` connections.
pub(crate) fn data_streams(
    control: &mut Control,
    streams: usize,
    stop: &Stop,
) -> Result<Vec<TcpStream>, Error> {
    let tried = "accept the data connections";
    let here = SocketAddr::new(control.local()?.ip(), 0);
    let listener = TcpListener::bind(here).map_err(Error::system(tried))?;
    listener.set_nonblocking(true).map_err(Error::system(tried))?;
    let port = listener.local_addr().map_err(Error::system(tried))?.port();
    control.send(&Reply::Ready { port })?;
    let deadline = Instant::now() + TIMEOUT;
    let mut taken = Vec::with_capacity(streams);
    while taken.len() < streams {
        match listener.accept() {
            Ok((stream, _)) => {
                stream
                    .set_nonblocking(false)
                    .and_then(|()| stream.set_read_timeout(Some(POLL)))
                    .map_err(Error::system(tried))?;
                taken.push(stream);
            }
            Err(_) if stop.requested() => return Err(Error::Stopped),
            Err(_) if Instant::now() > deadline => {
                return Err(Error::Silent(format!("connection {} of {streams}", taken.len() + 1)));
            }
            Err(_) => thread::sleep(ACCEPT_POLL),
        }
    }
    Ok(taken)
}
