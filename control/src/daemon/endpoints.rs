//! What the daemon offers from its first moment on: its name, probes and metrics, the status socket.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::DaemonError;
use crate::children;
use crate::persist::disk::{self, Disk};
use crate::persist::instance::{Instance, InstanceError, Lock};
use crate::persist::state_file::StateFile;
use crate::serve::board::Board;
use crate::serve::http::{self, Server};
use crate::serve::status_socket::{self, Bound, Socket};
use crate::settings::Settings;

/// How long to wait for a daemon that was killed to be gone: its lock goes with its last thread.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Time between two attempts to lock.
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// Time between two looks at the servers and at the run directory.
const LOOK: Duration = Duration::from_secs(1);

/// The servers of a running daemon.
pub(super) struct Endpoints {
    pub(super) board: Arc<Board>,
    pub(super) disks: Disks,
    instance: Instance,
    run_dir: PathBuf,
    health: Option<Server>,
    place: Mutex<Option<Place>>,
}

/// The threads for the daemon's files, one for each place.
#[derive(Clone, Debug)]
pub(super) struct Disks {
    pub(super) run_dir: Disk,
    pub(super) subnet_file: Disk,
    pub(super) counters: Disk,
}

/// The daemon's place in the run directory; there is none where the directory cannot be used.
struct Place {
    lock: Arc<Lock>,
    socket: Option<Socket>,
    /// Why the socket is not served, as logged.
    problem: Option<String>,
}

/// What is made in the run directory.
type Made = (Arc<Lock>, io::Result<Bound>);

impl Disks {
    fn start() -> io::Result<Disks> {
        Ok(Disks { run_dir: Disk::start()?, subnet_file: Disk::start()?, counters: Disk::start()? })
    }

    fn have_ended(&self) -> bool {
        [&self.run_dir, &self.subnet_file, &self.counters].into_iter().any(Disk::has_ended)
    }
}

impl Endpoints {
    /// Takes the instance's name and opens the servers. A run directory that cannot be used is a warning; a
    /// name or a port that is taken is an error.
    pub(super) async fn open(settings: &Settings) -> Result<Endpoints, DaemonError> {
        let known = settings.clone();
        // Looks at directories, which may be on a mount that hangs.
        let instance = match disk::once(move || Instance::of(&known)).await {
            Ok(instance) => instance?,
            Err(_) => Instance::named(settings)?,
        };
        let board = Arc::new(Board::new(instance.name(), &settings.store.to_string()));
        let disks = Disks::start().map_err(DaemonError::Disk)?;
        let mut endpoints = Endpoints {
            board,
            disks,
            instance,
            run_dir: settings.run_dir.clone(),
            health: None,
            place: Mutex::default(),
        };
        let made = first(&endpoints).await?;
        let made = made.inspect_err(|error| {
            let directory = settings.run_dir.display();
            let effect = "no loden status, and a restart waits for the store";
            tracing::warn!(%directory, %error, "cannot use the run directory: {effect}");
        });
        if let Some(address) = settings.health {
            endpoints.health = Some(http::serve(address, &endpoints.board).await?);
        }
        if let Ok(made) = made {
            endpoints.take(made);
        }
        Ok(endpoints)
    }

    /// Waits until a server or thread has ended on its own, which none should. Meanwhile, makes the run
    /// directory again if somebody removes it, and reaps what this process has inherited.
    pub(super) async fn keep(&self) -> DaemonError {
        loop {
            let socket_ended =
                || self.place().as_ref().and_then(|place| Some(place.socket.as_ref()?.has_ended()));
            let tasks = [
                ("the server for probes", self.health.as_ref().is_some_and(Server::has_ended)),
                ("the socket for loden status", socket_ended().unwrap_or_default()),
                ("a thread for files", self.disks.have_ended()),
            ];
            if let Some((what, _)) = tasks.into_iter().find(|(_, has_ended)| *has_ended) {
                return DaemonError::TaskEnded { what };
            }
            sleep(LOOK).await;
            children::reap_inherited();
            self.mend().await;
        }
    }

    /// Returns the alias of this daemon's devices.
    pub(super) fn label(&self) -> String {
        format!("loden {}", self.instance.name())
    }

    /// Makes the daemon's place in the run directory again if it is gone. Retries quietly if that fails.
    async fn mend(&self) {
        let Some(lock) = self.place().as_ref().map(|place| Arc::clone(&place.lock)) else { return };
        let (instance, ours) = (self.instance.clone(), Arc::clone(&lock));
        let look = move || (instance.is_locked_by(&ours), instance.socket().symlink_metadata().is_ok());
        let Ok((is_locked, is_served)) = self.disks.run_dir.run(look).await else { return };
        if is_locked && is_served {
            return;
        }
        // Removes the file by its name, so before there is another one.
        let former = self.place().as_mut().and_then(|place| place.socket.take());
        let _ = self.disks.run_dir.run(move || drop(former)).await;
        if let Ok(Ok(made)) = self.make(is_locked.then_some(lock)).await {
            if !is_locked || made.1.is_ok() {
                let directory = self.run_dir.display();
                tracing::warn!(%directory, "files of this daemon were gone; made them again");
            }
            self.take(made);
        }
    }

    /// Makes what belongs into the run directory, off the loop, with the `lock` that is held already. The
    /// outer error is a name that is taken.
    async fn make(&self, lock: Option<Arc<Lock>>) -> Result<io::Result<Made>, InstanceError> {
        let instance = self.instance.clone();
        let made = self.disks.run_dir.run(move || -> Result<io::Result<Made>, InstanceError> {
            if let Err(error) = instance.make_directory() {
                return Ok(Err(error));
            }
            let lock = match lock {
                Some(lock) => Ok(lock),
                None => instance.lock()?.map(Arc::new),
            };
            Ok(lock.map(|lock| (lock, status_socket::bind(&instance.socket()))))
        });
        made.await.unwrap_or_else(|error| Ok(Err(error)))
    }

    /// Takes its place, and serves the socket. A problem that is logged already is not logged again.
    fn take(&self, (lock, bound): Made) {
        let served = bound.and_then(|bound| bound.serve(&self.board)).map_err(|error| error.to_string());
        let mut place = self.place();
        let known = place.as_ref().and_then(|place| place.problem.as_ref());
        if let Err(error) = &served
            && known != Some(error)
        {
            tracing::warn!(path = %self.instance.socket().display(), %error, "cannot serve loden status");
        }
        *place = Some(Place { lock, problem: served.as_ref().err().cloned(), socket: served.ok() });
    }

    /// Returns the file for a restart.
    pub(super) fn state_file(&self) -> StateFile {
        let path = self.place().as_ref().map(|_| self.instance.state());
        StateFile::new(path, Some(self.disks.run_dir.clone()))
    }

    /// Lists the files that this daemon makes, for `loden status`.
    pub(super) fn files(&self, settings: &Settings) -> Vec<String> {
        let ours = [self.instance.state(), self.instance.socket(), self.instance.lock_file()];
        let has_place = self.place().is_some();
        let kept = ours.into_iter().filter(|_| has_place);
        let all = std::iter::once(settings.subnet_file.clone()).chain(kept);
        all.map(|path| path.display().to_string()).collect()
    }

    /// Closes the servers. Open requests get a moment to end.
    pub(super) async fn close(self) {
        let place = self.place().take();
        // What was given to the thread before is still written, with the lock held.
        if self.disks.run_dir.run(|| ()).await.is_ok() {
            let _ = self.disks.run_dir.run(move || drop(place)).await;
        } else {
            // Removing the socket would hang, and the process ends.
            std::mem::forget(place);
        }
        if let Some(health) = self.health {
            health.stop().await;
        }
    }

    fn place(&self) -> MutexGuard<'_, Option<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the daemon's place, after waiting for a daemon that is about to be gone.
async fn first(endpoints: &Endpoints) -> Result<io::Result<Made>, InstanceError> {
    let end = Instant::now() + LOCK_WAIT;
    loop {
        match endpoints.make(None).await {
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
        let instance = Some("one".to_owned());
        let settings = Settings { instance, run_dir: directory.path().into(), ..Settings::default() };
        let held = Instance::of(&settings).expect("a name").lock().expect("free").expect("a file");
        let (opened, ()) = tokio::join!(Endpoints::open(&settings), async {
            sleep(LOCK_RETRY * 3).await;
            drop(held);
        });
        let opened = opened.expect("free by then");
        let second = Endpoints::open(&settings).await;
        assert!(matches!(second, Err(DaemonError::Instance(InstanceError::Taken { .. }))), "held for good");
        opened.close().await;
    }
}
