//! The control socket of WireGuard's userspace implementations (<https://www.wireguard.com/xplatform/>),
//! which makes `wg show` and `wg showconf` work on our devices. It is read-only, since the configuration
//! comes from the store.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::wireguard::PeerStatus;
use ipnetwork::IpNetwork;
use model::uapi::{self, Asked};
use path::wireguard::{PublicKey, SecretKey};
use store::aside;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::persist::disk;
use crate::plan::Tunnel;
use crate::serve::board::Board;
use crate::serve::connect;

/// The directory that the tools search, in every network namespace.
const DIRECTORY: &str = "/var/run/wireguard";
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client may take to read its answer. Ten thousand peers take some megabytes.
const READING: Duration = Duration::from_secs(10);
/// Pause after a failed accept, for example for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The answer to a request that would change something: EPERM, negative as the tools expect.
const NOT_PERMITTED: &str = "errno=-1\n\n";
/// The answer while the handshake thread is too busy: EAGAIN.
const BUSY: &str = "errno=-11\n\n";

/// The sockets of one daemon. Close them, so that their files are removed; dropping them ends the service.
#[derive(Debug)]
pub struct Sockets(Vec<Socket>);

#[derive(Debug)]
struct Socket {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Sockets {
    /// Tells whether serving has ended on its own, which it never should.
    pub fn has_ended(&self) -> bool {
        self.0.iter().any(|socket| socket.task.is_finished())
    }

    /// Removes the files. One that cannot be removed is replaced by the next run.
    pub async fn close(self) {
        let paths: Vec<PathBuf> = self.paths().map(Path::to_owned).collect();
        drop(self);
        let remove = move || paths.iter().for_each(|path| _ = std::fs::remove_file(path));
        let _ = disk::once(remove).await;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves each device on the running tokio runtime. A device whose socket cannot be opened works without; the
/// failure is logged.
pub async fn serve(devices: &[(usize, String, u16)], private: &SecretKey, board: &Arc<Board>) -> Sockets {
    let mut sockets = Vec::new();
    for (tunnel, device, port) in devices {
        let path = Path::new(DIRECTORY).join(format!("{device}.sock"));
        let place = path.clone();
        match disk::once(move || open(&place)).await.flatten().and_then(UnixListener::from_std) {
            Ok(listener) => {
                let shown = Shown {
                    tunnel: *tunnel,
                    port: *port,
                    private: private.clone(),
                    board: Arc::clone(board),
                };
                sockets.push(Socket { path, task: tokio::spawn(answer(listener, Arc::new(shown))) });
            }
            Err(error) => {
                let path = path.display();
                tracing::warn!(
                    %path, %error,
                    "cannot open the control socket; wg show will not list {device}"
                );
            }
        }
    }
    Sockets(sockets)
}

impl Sockets {
    /// Returns the paths of the sockets.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|socket| socket.path.as_path())
    }
}

/// What one socket shows.
struct Shown {
    tunnel: usize,
    port: u16,
    private: SecretKey,
    board: Arc<Board>,
}

/// Opens the socket. Replaces one left by an earlier run, but not one in use.
fn open(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match connect::at_once(path).map_err(|error| error.kind()) {
        Ok(_) | Err(ErrorKind::WouldBlock) => return Err(ErrorKind::AddrInUse.into()),
        Err(ErrorKind::ConnectionRefused) => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn answer(listener: UnixListener, shown: Arc<Shown>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let shown = Arc::clone(&shown);
        tokio::spawn(async move {
            // A client that disconnects early or sends no request needs no answer.
            let _ = converse(stream, &shown).await;
        });
    }
}

async fn converse(mut stream: UnixStream, shown: &Shown) -> io::Result<()> {
    let text = match timeout(PATIENCE, listen(&mut stream)).await?? {
        Asked::Get => shown.text().await,
        Asked::Other => NOT_PERMITTED.to_owned(),
        Asked::TooMuch | Asked::Unfinished => return Ok(()),
    };
    timeout(READING, stream.write_all(text.as_bytes())).await??;
    stream.shutdown().await
}

/// Reads until the request is recognised, or to the end of the stream.
async fn listen(stream: &mut UnixStream) -> io::Result<Asked> {
    let mut request = Vec::new();
    loop {
        let mut piece = [0; 512];
        let count = stream.read(&mut piece).await?;
        request.extend_from_slice(&piece[..count]);
        let asked = uapi::read(&request);
        if asked != Asked::Unfinished || count == 0 {
            return Ok(asked);
        }
    }
}

impl Shown {
    async fn text(&self) -> String {
        let (engine, plan) = self.board.datapath();
        let tunnel = self.tunnel;
        let (private, port) = (self.private.clone(), self.port);
        // The engine answers from another thread, and there may be thousands of peers.
        let text = aside::run("loden-wg-show", move || {
            let peers = match &engine {
                Some(engine) => engine.peers(tunnel)?,
                None => Vec::new(),
            };
            let planned = plan.as_ref().and_then(|plan| plan.tunnels.get(tunnel));
            Some(render(&private, port, &peers, planned, SystemTime::now()))
        });
        text.await.ok().flatten().unwrap_or_else(|| BUSY.to_owned())
    }
}

/// Renders the answer to `get`: one `key=value` per line, with WireGuard keys in hexadecimal.
fn render(
    private: &SecretKey,
    port: u16,
    peers: &[PeerStatus],
    planned: Option<&Tunnel>,
    now: SystemTime,
) -> String {
    let mut text = format!("private_key={}\nlisten_port={port}\n", hex(&private.0));
    let mut subnets: BTreeMap<PublicKey, Vec<IpNetwork>> = BTreeMap::new();
    for peer in planned.into_iter().flat_map(|tunnel| &tunnel.peers) {
        if let Some(key) = peer.key {
            subnets.entry(key).or_default().push(peer.subnet);
        }
    }
    for peer in peers {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "public_key={}", hex(&peer.key.0));
        let psk = planned.and_then(|tunnel| tunnel.secrets.as_ref()).filter(|_| peer.has_psk);
        if let Some(secrets) = psk {
            let _ = writeln!(text, "preshared_key={}", hex(&secrets.psk.0));
        }
        text.push_str("protocol_version=1\n");
        if let Some(endpoint) = peer.endpoint {
            let _ = writeln!(text, "endpoint={endpoint}");
        }
        if let Some(then) = peer.last_handshake.and_then(|since| now.checked_sub(since)) {
            let since = then.duration_since(UNIX_EPOCH).unwrap_or_default();
            let (seconds, nanos) = (since.as_secs(), since.subsec_nanos());
            let _ = writeln!(text, "last_handshake_time_sec={seconds}\nlast_handshake_time_nsec={nanos}");
        }
        let PeerStatus { sent_bytes, received_bytes, keepalive, .. } = peer;
        let _ = writeln!(text, "tx_bytes={sent_bytes}\nrx_bytes={received_bytes}");
        let _ = writeln!(text, "persistent_keepalive_interval={}", keepalive.as_secs());
        for subnet in subnets.get(&peer.key).into_iter().flatten() {
            let _ = writeln!(text, "allowed_ip={subnet}");
        }
    }
    text.push_str("errno=0\n\n");
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_the_format_of_the_tools() {
        let peer = PeerStatus {
            key: PublicKey([0xab; 32]),
            endpoint: Some("192.0.2.7:51820".parse().expect("an address")),
            last_handshake: Some(Duration::from_secs(5)),
            sent_bytes: 148,
            received_bytes: 92,
            keepalive: Duration::from_secs(25),
            has_psk: false,
        };
        let silent =
            PeerStatus { endpoint: None, last_handshake: None, key: PublicKey([1; 32]), ..peer.clone() };
        let now = UNIX_EPOCH + Duration::from_secs(1_000_005);
        let text = render(&SecretKey([2; 32]), 51820, &[peer, silent], None, now);
        let expected = format!(
            "private_key={}\nlisten_port=51820\npublic_key={}\nprotocol_version=1\nendpoint=192.0.2.7:51820\n\
             last_handshake_time_sec=1000000\nlast_handshake_time_nsec=0\ntx_bytes=148\nrx_bytes=92\n\
             persistent_keepalive_interval=25\npublic_key={}\nprotocol_version=1\ntx_bytes=148\nrx_bytes=92\n\
             persistent_keepalive_interval=25\nerrno=0\n\n",
            "02".repeat(32),
            "ab".repeat(32),
            "01".repeat(32)
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_socket_in_use_is_left_alone_even_where_nobody_accepts() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("below/one.sock");
        drop(open(&path).expect("a socket"));
        // What a run that was killed has left is replaced.
        let there = open(&path).expect("a socket");
        assert_eq!(open(&path).expect_err("in use").kind(), ErrorKind::AddrInUse);
        nix::sys::socket::listen(&there, nix::sys::socket::Backlog::new(0).expect("a number"))
            .expect("listen");
        let waiting: Vec<_> = (0..8).map_while(|_| connect::at_once(&path).ok()).collect();
        assert!(waiting.len() < 8, "the queue is full");
        assert_eq!(open(&path).expect_err("in use").kind(), ErrorKind::AddrInUse);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn invalid_requests_are_rejected() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("one.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let board = Arc::new(Board::new("one", "memory:"));
        let shown = Shown { tunnel: 0, port: 1, private: SecretKey([3; 32]), board };
        let task = tokio::spawn(answer(listener, Arc::new(shown)));
        for (request, answer) in [
            (&b"get=1\n\n"[..], "errno=0\n\n"),
            (b"set=1\nlisten_port=7\n\n", NOT_PERMITTED),
            (b"\n\n", NOT_PERMITTED),
            (b"\xff\xfe\n\n", NOT_PERMITTED),
            (&[b'x'; 2 * uapi::LONGEST], ""),
        ] {
            let mut stream = UnixStream::connect(&path).await.expect("connect");
            let _ = stream.write_all(request).await;
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text).await;
            let as_expected = if answer.is_empty() { text.is_empty() } else { text.ends_with(answer) };
            assert!(as_expected, "{text}");
        }
        task.abort();
    }
}
