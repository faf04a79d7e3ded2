//! The embedded store: one sqlite file, shared by the daemons of one machine across network namespaces.
//!
//! Each handle has a thread that owns a connection, so the control thread never waits for a lock. Every look
//! and every change is one `BEGIN IMMEDIATE` transaction. A look needs the lock because inotify reports a
//! commit's bytes before sqlite makes them visible: a plain read in between would miss the change, and no
//! second hint would follow. Waiting for the writer's lock closes that gap.
//!
//! Triggers count a revision, so a change made by hand with the `sqlite3` program is seen like any other.

mod database;
mod error;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use inotify::{EventStream, Inotify, WatchMask};
use model::lease::{Lease, LeaseAttrs, SubnetKey};
use rusqlite::OptionalExtension;
use tokio::sync::oneshot;

use crate::lease::Wish;
use crate::poll::{Look, Poller, Source};
use crate::rows::{self, Table};
use crate::{LEASE_TTL, Position, StoreError, Watch, unix_now};
use database::{Slot, Step, directory, text};

pub use error::SqliteError;

/// Longest wait for another process's lock. A step holds it for milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Time between two looks where inotify cannot be had.
const WITHOUT_INOTIFY: Duration = Duration::from_secs(1);

/// A handle to the file. Clones share its thread, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Sqlite {
    jobs: mpsc::Sender<Job>,
    options: Options,
    path: PathBuf,
}

/// The options of a handle.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The life of a lease.
    pub ttl: Duration,
    /// Longest wait for another process's lock.
    pub lock_wait: Duration,
}

/// A poller's source.
struct Changes {
    store: Sqlite,
    directory: Hints,
    /// The number of the file that was looked at last, among those that the handle has opened.
    file: Option<u64>,
}

/// Where a poller learns of changes.
enum Hints {
    /// Before the first look.
    Unopened,
    Inotify(EventStream<Vec<u8>>),
    /// Inotify cannot be had.
    Clock,
}

type Job = Box<dyn FnOnce(&mut Slot) + Send>;

impl Default for Options {
    fn default() -> Options {
        Options { ttl: LEASE_TTL, lock_wait: LOCK_WAIT }
    }
}

impl Sqlite {
    /// Opens the file at `path`. Creates the file if it does not exist, but not its directory.
    pub async fn open(path: impl AsRef<Path>) -> Result<Sqlite, SqliteError> {
        Sqlite::open_with(path, Options::default()).await
    }

    /// Opens the file at `path` with other options than the default.
    pub async fn open_with(path: impl AsRef<Path>, options: Options) -> Result<Sqlite, SqliteError> {
        let store = Sqlite::lazy_with(path, options)?;
        store.on_thread(|slot| slot.open().map(drop)).await?;
        Ok(store)
    }

    /// Makes a handle to the file at `path`, which each request opens if it is not open yet.
    pub fn lazy(path: impl AsRef<Path>) -> Result<Sqlite, SqliteError> {
        Sqlite::lazy_with(path, Options::default())
    }

    fn lazy_with(path: impl AsRef<Path>, options: Options) -> Result<Sqlite, SqliteError> {
        let path = path.as_ref().to_owned();
        let (jobs, inbox) = mpsc::channel::<Job>();
        let mut slot = Slot::new(path.clone(), options.lock_wait);
        let thread = std::thread::Builder::new()
            .name("lease-store".into())
            .spawn(move || inbox.into_iter().for_each(|job| job(&mut slot)));
        let store = Sqlite { jobs, options, path };
        thread.map_err(|error| store.failed("start a thread", error))?;
        Ok(store)
    }

    pub(crate) async fn net_config(&self) -> Result<Option<String>, SqliteError> {
        const TRIED: &str = "read the network configuration";
        self.step(TRIED, |step| {
            let query = "SELECT CAST(value AS TEXT) FROM config WHERE id = 1";
            step.run(|sql| sql.query_row(query, [], |row| text(row.get_ref(0)?)).optional())
        })
        .await
    }

    pub(crate) async fn set_net_config(&self, config: &str) -> Result<(), SqliteError> {
        let config = config.to_owned();
        self.step("store the network configuration", move |step| {
            let upsert = "INSERT INTO config VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET value = ?1";
            step.run(|sql| sql.execute(upsert, [&config])).map(drop)
        })
        .await
    }

    pub(crate) async fn acquire(&self, wish: &Wish<'_>) -> Result<Lease, StoreError> {
        let (config, attrs, previous) = (wish.config.clone(), wish.attrs.clone(), wish.previous);
        let former = wish.former.cloned();
        let ttl = self.options.ttl.as_secs();
        self.step("acquire a lease", move |step| {
            let wish = Wish { config: &config, attrs, previous, former: former.as_ref() };
            let now = unix_now();
            rows::acquire(step, &wish, now, now.saturating_add(ttl), &mut rand::rng())
        })
        .await
    }

    pub(crate) async fn update(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, StoreError> {
        let (lease, attrs) = (lease.clone(), attrs.clone());
        let ttl = self.options.ttl.as_secs();
        self.step("renew the lease", move |step| {
            let now = unix_now();
            rows::update(step, &lease, &attrs, now, now.saturating_add(ttl))
        })
        .await
    }

    pub(crate) async fn leases(&self) -> Result<Vec<Lease>, SqliteError> {
        self.step("list leases", |step| Ok(rows::understand(step.live(unix_now())?).leases)).await
    }

    pub(crate) async fn remove(&self, key: &SubnetKey) -> Result<bool, SqliteError> {
        let key = *key;
        self.step("remove a lease", move |step| rows::remove(step, &key, unix_now())).await
    }

    pub(crate) fn watch(&self, since: Option<Position>) -> Watch {
        let directory = Hints::Unopened;
        Watch::new(Poller::new(Changes { store: self.clone(), directory, file: None }, since))
    }

    /// Runs one transaction on the handle's thread.
    async fn step<T: Send + 'static, E: From<SqliteError> + Send + 'static>(
        &self,
        tried: &'static str,
        step: impl FnOnce(&mut Step<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        self.on_thread(move |slot| slot.step(tried, step)).await
    }

    async fn on_thread<T: Send + 'static, E: From<SqliteError> + Send + 'static>(
        &self,
        work: impl FnOnce(&mut Slot) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let (reply, outcome) = oneshot::channel();
        let job: Job = Box::new(move |slot| {
            let _ = reply.send(work(slot));
        });
        self.jobs.send(job).map_err(|_| self.stopped())?;
        outcome.await.map_err(|_| self.stopped())?
    }

    fn stopped(&self) -> SqliteError {
        self.failed("go on", "its thread has ended")
    }

    fn failed(&self, tried: &'static str, answer: impl ToString) -> SqliteError {
        SqliteError::System { path: self.path.clone(), tried, answer: answer.to_string() }
    }
}

impl Changes {
    /// Begins to watch the directory. Off the loop, since the filesystem may hang.
    async fn open(&mut self) {
        let path = self.store.path.clone();
        let watch = move |_: &mut Slot| Ok::<_, SqliteError>(watch_directory(&path));
        let inotify = self.store.on_thread(watch).await.map_err(io::Error::other).flatten();
        self.directory = match inotify.and_then(|inotify| inotify.into_event_stream(vec![0; 4096])) {
            Ok(events) => Hints::Inotify(events),
            Err(error) => {
                tracing::warn!(
                    "store {}: cannot watch its directory: {error}; polling the file every second instead \
                     (raise fs.inotify.max_user_instances or max_user_watches)",
                    self.store.path.display()
                );
                Hints::Clock
            }
        };
    }
}

impl Source for Changes {
    /// Returns after the file, its log or its journal was written, or replaced.
    async fn hint(&mut self) {
        let Hints::Inotify(events) = &mut self.directory else {
            return tokio::time::sleep(WITHOUT_INOTIFY).await;
        };
        let name = self.store.path.file_name().unwrap_or_default().as_encoded_bytes();
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    let about = event.name.unwrap_or_default();
                    // An event without a name is about the directory itself, or an overflow of the queue.
                    if about.is_empty() || about.as_encoded_bytes().starts_with(name) {
                        break;
                    }
                }
                // The queue is broken; the sleep keeps this loop from spinning.
                Some(Err(_)) | None => return tokio::time::sleep(WITHOUT_INOTIFY).await,
            }
        }
        // One commit is several writes, and one look is enough for all of them.
        while let Some(Some(Ok(_))) = events.next().now_or_never() {}
    }

    async fn look(&mut self, seen: Option<u64>) -> Result<Option<Look>, StoreError> {
        if matches!(self.directory, Hints::Unopened) {
            // Before the look, so that no change after it is missed.
            self.open().await;
        }
        let file = self.file;
        let look = move |step: &mut Step<'_>| {
            let (now, number) = (unix_now(), step.number());
            let replaced = file.is_some_and(|file| file != number);
            let revision = step.revision()?;
            if seen == Some(revision) && !replaced && !step.has_void(now)? {
                return Ok((number, None));
            }
            let rows = step.live(now)?;
            Ok((number, Some(Look { revision: step.revision()?, rows, replaced })))
        };
        let (number, look) = self.store.step::<_, StoreError>("look at the leases", look).await?;
        self.file = Some(number);
        Ok(look)
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Changes").field("path", &self.store.path).finish_non_exhaustive()
    }
}

fn watch_directory(path: &Path) -> io::Result<Inotify> {
    let inotify = Inotify::init()?;
    let writes = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::DELETE;
    inotify.watches().add(directory(path), writes | WatchMask::MOVED_TO | WatchMask::MOVED_FROM)?;
    Ok(inotify)
}

#[cfg(test)]
mod tests;
