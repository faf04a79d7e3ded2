//! The HTTP server for probes and metrics.
//!
//! `/healthz` and `/readyz` answer any method, like flannel's. The server starts before anything that may
//! take long, so that a slow store is not mistaken for a hung daemon. Connections are bounded in number, size
//! and time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::serve::board::Board;

/// Maximum number of connections. Probes and a scraper need a handful.
const CONNECTIONS: usize = 64;
/// How long a client may take to send the head of a request.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum lifetime of a connection.
const LIFE: Duration = Duration::from_secs(60);
/// How long open requests may take when the daemon stops, as in flannel.
const GRACE: Duration = Duration::from_secs(3);
/// Maximum size of a request's head in bytes.
const HEAD: usize = 16 * 1024;
/// Pause after a failed accept: the system is out of descriptors, and an immediate retry would use a whole
/// CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const PLAIN: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Reasons why the server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The address cannot be bound.
    #[error(
        "cannot serve health and metrics on {address}: {source}; choose another address with --healthz-ip \
         and --healthz-port"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Starts the server on the running tokio runtime.
pub async fn serve(address: SocketAddr, board: &Arc<Board>) -> Result<Server, HealthError> {
    let failed = |source| HealthError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(accept(listener, Arc::clone(board), stopped));
    tracing::debug!(%address, "serving health and metrics");
    Ok(Server { address, stop, task })
}

impl Server {
    /// Returns the server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells whether serving has ended on its own, which it never should.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Stops accepting connections, and gives open requests three seconds to finish.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = timeout(GRACE, self.task).await;
    }
}

async fn accept(listener: TcpListener, board: Arc<Board>, mut stop: watch::Receiver<bool>) {
    let open = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let next = async {
            // The semaphore is never closed.
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            next = next => next,
            _ = stop.changed() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = open.watch(connection(stream, &board));
                tokio::spawn(async move {
                    // A client that does not speak HTTP or disconnects is not worth a message.
                    let _ = timeout(LIFE, connection).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection for probes");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let _ = timeout(GRACE, open.shutdown()).await;
}

fn connection(
    stream: TcpStream,
    board: &Arc<Board>,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> + Send + 'static {
    let board = Arc::clone(board);
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let answer = answer(request.uri().path(), &board);
        async move { Ok::<_, Infallible>(answer) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), service)
}

fn answer(path: &str, board: &Board) -> Response<Full<Bytes>> {
    let (status, kind, body) = match path {
        "/healthz" | "/readyz" if board.stalled(Instant::now()).is_some() => {
            let body = Bytes::from_static(b"flanneld hangs: its control loop does not turn");
            (StatusCode::SERVICE_UNAVAILABLE, PLAIN, body)
        }
        "/healthz" => (StatusCode::OK, PLAIN, Bytes::from_static(b"flanneld is running")),
        "/readyz" if board.was_ready() => (StatusCode::OK, PLAIN, Bytes::from_static(b"flanneld is ready")),
        "/readyz" => {
            let body = Bytes::from_static(b"flanneld is not ready yet");
            (StatusCode::SERVICE_UNAVAILABLE, PLAIN, body)
        }
        "/metrics" => (StatusCode::OK, PROMETHEUS, board.metrics().into()),
        _ => (StatusCode::NOT_FOUND, PLAIN, Bytes::from_static(b"404 page not found\n")),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::serve::board::Phase;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn answers_are_flannels() {
        let (server, board) = server().await;
        assert_eq!(get(&server, "GET", "/healthz").await, ("200".into(), "flanneld is running".into()));
        assert_eq!(get(&server, "GET", "/readyz").await, ("503".into(), "flanneld is not ready yet".into()));
        board.set_phase(Phase::Ready);
        assert_eq!(get(&server, "GET", "/readyz").await, ("200".into(), "flanneld is ready".into()));
        board.set_phase(Phase::Stopping);
        assert_eq!(get(&server, "GET", "/readyz?verbose").await.0, "200", "ready is final");
        board.turned(Instant::now());
        assert_eq!(get(&server, "GET", "/healthz").await.0, "200", "it turns");
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"] {
            assert_eq!(get(&server, method, "/healthz").await.1, "flanneld is running", "{method}");
        }
        assert_eq!(get(&server, "GET", "/").await.0, "404");
        let (code, text) = get(&server, "GET", "/metrics").await;
        assert!(code == "200" && text.contains("loden_ready 1"), "{text}");
        server.stop().await;
    }

    #[tokio::test]
    async fn a_control_loop_that_hangs_is_not_alive() {
        let (server, board) = server().await;
        board.set_phase(Phase::Ready);
        let minutes_ago = Instant::now().checked_sub(Duration::from_secs(120)).expect("a moment");
        board.turned(minutes_ago);
        for path in ["/healthz", "/readyz"] {
            let (code, text) = get(&server, "GET", path).await;
            assert!(code == "503" && text.contains("control loop"), "{path}: {code} {text}");
        }
        let (_, metrics) = get(&server, "GET", "/metrics").await;
        assert!(metrics.contains("loden_control_turn_age_seconds 12"), "{metrics}");
        assert!(board.document().stalled.is_some_and(|seconds| seconds >= 120));
        board.turned(Instant::now());
        assert_eq!(get(&server, "GET", "/healthz").await.0, "200", "it turns again");
        board.turned(minutes_ago);
        board.goes_on(Instant::now());
        assert_eq!(get(&server, "GET", "/healthz").await.0, "200", "a turn takes long and goes on");
        // A node that starts again waits for its store as long as that takes.
        board.pause();
        board.goes_on(minutes_ago);
        assert_eq!(get(&server, "GET", "/readyz").await.0, "200");
        assert!(!get(&server, "GET", "/metrics").await.1.contains("loden_control_turn_age_seconds"));
        server.stop().await;
    }

    #[tokio::test]
    async fn bad_and_silent_clients_do_not_block_others() {
        let (server, _) = server().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS - 1 {
            silent.push(TcpStream::connect(server.address()).await.expect("connect"));
        }
        for noise in [&b"\0\0\0\0\r\n\r\n"[..], &[0xff; 40_000], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET "]
        {
            let mut stream = TcpStream::connect(server.address()).await.expect("connect");
            let _ = stream.write_all(noise).await;
        }
        assert_eq!(get(&server, "GET", "/healthz").await.0, "200");
        server.stop().await;
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error_with_advice() {
        let (server, board) = server().await;
        let error = serve(server.address(), &board).await.expect_err("in use").to_string();
        assert!(error.contains("in use") && error.contains("--healthz-port"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
        #[test]
        fn the_server_survives_any_bytes(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let (server, _) = server().await;
                let mut stream = TcpStream::connect(server.address()).await.expect("connect");
                let _ = stream.write_all(&noise).await;
                drop(stream);
                assert_eq!(get(&server, "GET", "/healthz").await.0, "200");
            });
        }
    }

    async fn server() -> (Server, Arc<Board>) {
        let board = Arc::new(Board::new("test", "memory:"));
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        (serve(address, &board).await.expect("a server"), board)
    }

    /// Returns the status code and the body.
    async fn get(server: &Server, method: &str, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(server.address()).await.expect("connect");
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("read");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.to_ascii_lowercase().contains("content-type: text/plain"), "{head}");
        (head.split(' ').nth(1).unwrap_or_default().to_owned(), body.to_owned())
    }
}
