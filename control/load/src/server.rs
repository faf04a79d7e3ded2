//! The receiving side: a control port, and a thread for each client.

use std::net::{SocketAddr, TcpListener};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::Error;
use crate::message::{Control, Reply, Request};
use crate::stop::{Stop, TIMEOUT};
use crate::streams::MAX_STREAMS;
use crate::{echo, tcp, udp, verify};

/// Interval at which the listener checks for a new client.
const ACCEPT_POLL: Duration = Duration::from_millis(10);

/// A running server. Dropping it ends the runs of its clients, and its threads.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Stop,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server on `address`; port 0 lets the system choose. All sockets of the server belong to the
    /// network namespace of the calling thread.
    pub fn start(address: SocketAddr) -> Result<Self, Error> {
        let tried = || format!("listen on {address}");
        let listener = TcpListener::bind(address).map_err(Error::system(tried()))?;
        listener.set_nonblocking(true).map_err(Error::system(tried()))?;
        let address = listener.local_addr().map_err(Error::system(tried()))?;
        let stop = Stop::default();
        let stopped = stop.clone();
        let listener = thread::Builder::new()
            .name("load-server".to_owned())
            .spawn(move || accept(&listener, &stopped))
            .map_err(Error::system("start a thread"))?;
        Ok(Server { address, stop, listener: Some(listener) })
    }

    /// Returns the address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn accept(listener: &TcpListener, stop: &Stop) {
    thread::scope(|scope| {
        while !stop.requested() {
            match listener.accept() {
                Ok((stream, _)) => {
                    scope.spawn(move || {
                        // If the client has vanished, there is no one left to notify.
                        let _ = Control::new(stream).and_then(|mut control| serve(&mut control, stop));
                    });
                }
                Err(_) => thread::sleep(ACCEPT_POLL),
            }
        }
    });
}

/// Serves one run of one client. A failure is sent to the client, where the user sees it.
fn serve(control: &mut Control, stop: &Stop) -> Result<(), Error> {
    let outcome = run(control, stop);
    if let Err(error) = &outcome {
        control.send(&Reply::Failed { why: error.to_string() })?;
    }
    outcome
}

fn run(control: &mut Control, stop: &Stop) -> Result<(), Error> {
    let Some(request) = control.receive(TIMEOUT, stop)? else { return Ok(()) };
    match request {
        Request::Tcp { streams, warm_up_ms, interval_ms } => {
            let times = [warm_up_ms, interval_ms].map(Duration::from_millis);
            tcp::receive(control, check_streams(streams)?, times, stop)
        }
        Request::Verify { streams, bytes } => verify::receive(control, check_streams(streams)?, bytes, stop),
        Request::Udp { size, token, warm_up_ms, interval_ms } => {
            let times = [warm_up_ms, interval_ms].map(Duration::from_millis);
            udp::receive(control, size, token, times, stop)
        }
        Request::Echo => echo::reflect(control, stop),
    }
}

fn check_streams(streams: usize) -> Result<usize, Error> {
    if streams == 0 || streams > MAX_STREAMS {
        return Err(Error::Impossible(format!("streams {streams}: must be 1 to {MAX_STREAMS}")));
    }
    Ok(streams)
}
