//! The data connections of one run.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::message::{Control, Reply};
use crate::stop::{PATIENCE, POLL, Stop};

/// How often the listener looks for a new connection.
const ACCEPT_POLL: Duration = Duration::from_millis(10);

/// The most streams that one client may ask for.
pub(crate) const MOST_STREAMS: usize = 1024;

/// Makes a listener for one run's data beside the control port, tells the client, and takes `streams`
/// connections from it.
pub(crate) fn data_streams(
    control: &mut Control,
    streams: usize,
    stop: &Stop,
) -> Result<Vec<TcpStream>, Error> {
    let tried = "take the data connections";
    let here = SocketAddr::new(control.local()?.ip(), 0);
    let listener = TcpListener::bind(here).map_err(Error::system(tried))?;
    listener.set_nonblocking(true).map_err(Error::system(tried))?;
    let port = listener.local_addr().map_err(Error::system(tried))?.port();
    control.send(&Reply::Ready { port })?;
    let deadline = Instant::now() + PATIENCE;
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
