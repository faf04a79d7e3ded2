//! What the daemon offers from its first moment on: its name, probes and metrics, the status socket.

use std::sync::Arc;

use super::error::DaemonError;
use crate::persist::instance::{Instance, Lock};
use crate::persist::state_file::StateFile;
use crate::serve::board::Board;
use crate::serve::http::{self, Server};
use crate::serve::status_socket::{self, Socket};
use crate::settings::Settings;

/// The outside of a running daemon.
pub(super) struct Endpoints {
    pub(super) board: Arc<Board>,
    places: Instance,
    health: Option<Server>,
    socket: Option<Socket>,
    lock: Option<Lock>,
}

impl Endpoints {
    /// Takes the instance's name and opens the servers. A host without a place for our files gets a daemon
    /// all the same, after a warning; a name or a port that is taken is an error.
    pub(super) async fn open(settings: &Settings) -> Result<Endpoints, DaemonError> {
        let places = Instance::of(settings)?;
        let board = Arc::new(Board::new(places.name(), &settings.store.to_string()));
        let lock = match places.make_directory() {
            Ok(()) => places.lock()?,
            Err(error) => Err(error),
        };
        let lock = lock.inspect_err(|error| {
            let directory = settings.run_dir.display();
            tracing::warn!(
                %directory, %error,
                "no place for our files: no loden status, and a restart starts anew"
            );
        });
        let health = match settings.health {
            Some(address) => Some(http::serve(address, &board).await?),
            None => None,
        };
        let socket = lock.as_ref().ok().and_then(|_| {
            let path = places.socket();
            let socket = status_socket::serve(&path, &board);
            let served = socket.inspect_err(|error| {
                tracing::warn!(path = %path.display(), %error, "cannot serve loden status");
            });
            served.ok()
        });
        Ok(Endpoints { board, places, health, socket, lock: lock.ok() })
    }

    /// The file for a restart.
    pub(super) fn state_file(&self) -> StateFile {
        StateFile::new(self.lock.as_ref().map(|_| self.places.state()))
    }

    /// What `loden status` calls the files made by this daemon.
    pub(super) fn files(&self, settings: &Settings) -> Vec<String> {
        let ours = [self.places.state(), self.places.socket(), self.places.lock_file()];
        let kept = ours.into_iter().filter(|_| self.lock.is_some());
        let all = std::iter::once(settings.subnet_file.clone()).chain(kept);
        all.map(|path| path.display().to_string()).collect()
    }

    /// Closes the servers; open requests get a moment to end.
    pub(super) async fn close(self) {
        drop(self.socket);
        if let Some(health) = self.health {
            health.stop().await;
        }
    }
}
