//! What the daemon offers from its first moment on: its name, probes and metrics, the status socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::DaemonError;
use crate::persist::instance::{Instance, InstanceError, Lock};
use crate::persist::state_file::StateFile;
use crate::serve::board::Board;
use crate::serve::http::{self, Server};
use crate::serve::status_socket::{self, Socket};
use crate::settings::Settings;

/// How long to wait for a daemon that was killed to be gone: its lock goes with its last thread.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Time between two attempts to lock.
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// Time between two looks at the servers.
const LOOK: Duration = Duration::from_secs(1);

/// The servers of a running daemon.
pub(super) struct Endpoints {
    pub(super) board: Arc<Board>,
    instance: Instance,
    health: Option<Server>,
    socket: Option<Socket>,
    lock: Option<Lock>,
}

impl Endpoints {
    /// Takes the instance's name and opens the servers. A run directory that cannot be used is a warning; a
    /// name or a port that is taken is an error.
    pub(super) async fn open(settings: &Settings) -> Result<Endpoints, DaemonError> {
        let instance = Instance::of(settings)?;
        let board = Arc::new(Board::new(instance.name(), &settings.store.to_string()));
        let lock = match instance.make_directory() {
            Ok(()) => lock(&instance).await?,
            Err(error) => Err(error),
        };
        let lock = lock.inspect_err(|error| {
            let directory = settings.run_dir.display();
            let effect = "no loden status, and a restart waits for the store";
            tracing::warn!(%directory, %error, "cannot use the run directory: {effect}");
        });
        let health = match settings.health {
            Some(address) => Some(http::serve(address, &board).await?),
            None => None,
        };
        let socket = lock.as_ref().ok().and_then(|_| {
            let path = instance.socket();
            let socket = status_socket::serve(&path, &board);
            let served = socket.inspect_err(|error| {
                tracing::warn!(path = %path.display(), %error, "cannot serve loden status");
            });
            served.ok()
        });
        Ok(Endpoints { board, instance, health, socket, lock: lock.ok() })
    }

    /// Waits until a server has ended on its own, which none should.
    pub(super) async fn failed(&self) -> DaemonError {
        loop {
            if self.health.as_ref().is_some_and(Server::has_ended) {
                return DaemonError::TaskEnded { what: "the server for probes" };
            }
            if self.socket.as_ref().is_some_and(Socket::has_ended) {
                return DaemonError::TaskEnded { what: "the socket for loden status" };
            }
            sleep(LOOK).await;
        }
    }

    /// Returns the alias of this daemon's devices.
    pub(super) fn label(&self) -> String {
        format!("loden {}", self.instance.name())
    }

    /// Returns the file for a restart.
    pub(super) fn state_file(&self) -> StateFile {
        StateFile::new(self.lock.as_ref().map(|_| self.instance.state()))
    }

    /// Lists the files that this daemon makes, for `loden status`.
    pub(super) fn files(&self, settings: &Settings) -> Vec<String> {
        let ours = [self.instance.state(), self.instance.socket(), self.instance.lock_file()];
        let kept = ours.into_iter().filter(|_| self.lock.is_some());
        let all = std::iter::once(settings.subnet_file.clone()).chain(kept);
        all.map(|path| path.display().to_string()).collect()
    }

    /// Closes the servers. Open requests get a moment to end.
    pub(super) async fn close(self) {
        drop(self.socket);
        if let Some(health) = self.health {
            health.stop().await;
        }
    }
}

/// Locks the instance's name, after waiting for a daemon that is about to be gone.
async fn lock(instance: &Instance) -> Result<io::Result<Lock>, InstanceError> {
    let end = Instant::now() + LOCK_WAIT;
    loop {
        match instance.lock() {
            Err(InstanceError::Taken { .. }) if Instant::now() < end => sleep(LOCK_RETRY).await,
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_that_is_about_to_be_released_is_waited_for() {
        let directory = tempfile::tempdir().expect("directory");
        let instance = Instance::new("one", directory.path()).expect("a name");
        let held = instance.lock().expect("free").expect("a file");
        let (waited, ()) = tokio::join!(lock(&instance), async {
            sleep(LOCK_RETRY * 3).await;
            drop(held);
        });
        let _held = waited.expect("free by then").expect("a file");
        assert!(matches!(lock(&instance).await, Err(InstanceError::Taken { .. })), "held for good");
    }
}
