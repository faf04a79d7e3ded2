//! Both ends of the status socket, which `loden status` queries.
//!
//! The server sends one JSON document and closes the stream. Anything that a client sends is ignored.

use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::serve::board::{Board, Document};
use crate::serve::connect;

/// How long each side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum size of a document in bytes: 10,000 peers take two megabytes.
const LARGEST: u64 = 64 << 20;
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A status socket that nobody serves yet.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
    listener: std::os::unix::net::UnixListener,
}

/// The server's end of a status socket. Dropping it removes the file.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    task: JoinHandle<()>,
}

/// Makes the socket at `path`. The caller must hold the instance's lock, because a socket left by an earlier
/// run is replaced.
pub fn bind(path: &Path) -> io::Result<Bound> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(Bound { path: path.to_owned(), listener })
}

impl Bound {
    /// Serves the board on the running tokio runtime.
    pub fn serve(self, board: &Arc<Board>) -> io::Result<Socket> {
        let listener = UnixListener::from_std(self.listener)?;
        Ok(Socket { path: self.path, task: tokio::spawn(answer(listener, Arc::clone(board))) })
    }
}

impl Socket {
    /// Tells whether serving has ended on its own, which it never should.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
        // A socket that cannot be removed is replaced by the next run.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Queries the daemon at `path` for its status.
pub fn query(path: &Path) -> io::Result<Document> {
    let stream = connect::at_once(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.take(LARGEST).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

/// Tells whether an error of [`query`] means that no daemon runs.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

async fn answer(listener: UnixListener, board: Arc<Board>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // A document can always be rendered as JSON, and a client may disconnect early.
        let text = serde_json::to_string(&board.document()).unwrap_or_default();
        tokio::spawn(async move {
            let _ = timeout(PATIENCE, async {
                stream.write_all(text.as_bytes()).await?;
                stream.shutdown().await
            })
            .await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_board_is_sent_and_the_file_removed() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("one.sock");
        std::fs::write(&path, "left by a crash").expect("write");
        let board = Arc::new(Board::new("one", "memory:"));
        board.reconciled(2, vec!["refused".into()]);
        let socket = bind(&path).and_then(|bound| bound.serve(&board)).expect("a socket");
        assert_eq!(std::fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
        let asked = path.clone();
        let document =
            tokio::task::spawn_blocking(move || query(&asked)).await.expect("no panic").expect("an answer");
        assert_eq!(document, board.document());
        drop(socket);
        assert!(!path.exists() && is_absent(&query(&path).expect_err("gone")));
    }

    /// As of a process that was stopped.
    #[test]
    fn a_daemon_that_accepts_nothing_is_not_waited_for() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("one.sock");
        let bound = bind(&path).expect("a socket");
        let backlog = nix::sys::socket::Backlog::new(0).expect("a number");
        nix::sys::socket::listen(&bound.listener, backlog).expect("listen");
        let waiting: Vec<_> = (0..8).map_while(|_| connect::at_once(&path).ok()).collect();
        assert!(waiting.len() < 8, "the queue is full");
        let error = query(&path).expect_err("busy");
        assert!(error.kind() == ErrorKind::WouldBlock && !is_absent(&error), "{error}");
    }

    #[tokio::test]
    async fn clients_that_leave_or_send_are_harmless() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("one.sock");
        let board = Arc::new(Board::new("one", "memory:"));
        let _socket = bind(&path).and_then(|bound| bound.serve(&board)).expect("a socket");
        for _ in 0..50 {
            let mut stream = tokio::net::UnixStream::connect(&path).await.expect("connect");
            let _ = stream.write_all(&[0xff; 100]).await;
        }
        let document =
            tokio::task::spawn_blocking(move || query(&path)).await.expect("no panic").expect("an answer");
        assert_eq!(document.instance, "one");
    }
}
