//! The file behind a handle: opening or rejecting it, transactions on it, and the meaning of its errors.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_UNLCK, F_WRLCK, O_DIRECTORY, O_NONBLOCK, O_PATH, SEEK_SET, flock, off_t};
use nix::sys::statvfs::statvfs;
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, params};

use super::error::SqliteError;
use crate::rows::{Row, Table};

/// The first bytes of every sqlite 3 database, and the length of its header (sqlite.org/fileformat2.html,
/// 1.3).
const MAGIC: &[u8] = b"SQLite format 3\0";
const HEADER_LEN: u64 = 100;
/// The index of a write-ahead log grows in steps of this many bytes (sqlite.org/walformat.html, 2.3).
const LOG_INDEX_LEN: u64 = 32_768;
/// The bytes that each connection to a database with a write-ahead log keeps locked (sqlite's `SHARED_FIRST`
/// and `SHARED_SIZE`, <https://github.com/sqlite/sqlite/blob/version-3.50.4/src/os.h>).
const SHARED: (off_t, off_t) = (0x4000_0002, 510);
/// "lode", which marks the file as ours (the sqlite header's application id).
const APPLICATION_ID: i64 = 0x6c6f_6465;
/// The newest schema known here (the sqlite header's user version).
pub(super) const SCHEMA_VERSION: i64 = 1;
/// `value` is the text etcd would hold; `expires` is unix seconds, or NULL for a reservation.
const SCHEMA: &str = "
    CREATE TABLE config (id INTEGER PRIMARY KEY CHECK (id = 1), value TEXT NOT NULL);
    CREATE TABLE leases (key TEXT PRIMARY KEY, value TEXT NOT NULL, expires INTEGER);
    CREATE TABLE revision (value INTEGER NOT NULL);
    INSERT INTO revision VALUES (0);
    CREATE TRIGGER leases_insert AFTER INSERT ON leases BEGIN UPDATE revision SET value = value + 1; END;
    CREATE TRIGGER leases_update AFTER UPDATE ON leases BEGIN UPDATE revision SET value = value + 1; END;
    CREATE TRIGGER leases_delete AFTER DELETE ON leases BEGIN UPDATE revision SET value = value + 1; END;
";

/// Time between two attempts to lock.
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// How long a file that was removed in use is waited for. It may be on its way: a copy into its place must
/// not meet a new database of ours.
const ABSENCE: Duration = Duration::from_secs(5);

/// The file of a handle, opened when it is needed, and again where another one has taken its place.
pub(super) struct Slot {
    path: PathBuf,
    lock_wait: Duration,
    database: Option<Database>,
    former: Option<Former>,
    /// How many files have been opened.
    opened: u64,
}

/// The connection and the file behind it.
pub(super) struct Database {
    path: PathBuf,
    lock_wait: Duration,
    connection: Connection,
    file: Arc<Pinned>,
    /// The file's log, which stays the same as long as a connection is open.
    log: Option<Arc<Pinned>>,
    /// Declared after the connection, so that it is released only when the connection is closed.
    _claim: Claim,
}

/// A file that was open and has lost its name.
#[derive(Debug)]
struct Former {
    file: Arc<Pinned>,
    log: Option<Arc<Pinned>>,
    /// Since when there has been no file of this name.
    missing: Option<Instant>,
}

/// Device and inode; another file under the same name is another store.
type Identity = (u64, u64);

/// A file whose identity no other one can get: the number of an inode is used again once nobody has it open.
#[derive(Debug)]
struct Pinned {
    identity: Identity,
    _file: File,
}

/// The right to open the file. Whoever has it is alone with what lies beside the file, in this process and in
/// others: two daemons that find it replaced would take each other's new log for the former one's.
struct Turn {
    _directory: File,
}

/// The number of this process's connections to each file. Closing any descriptor of such a file drops the
/// locks of all of them (fcntl_locking(2)), and sqlite knows only its own descriptors.
static OPEN: Mutex<BTreeMap<Identity, usize>> = Mutex::new(BTreeMap::new());

/// One connection's entry in [`OPEN`].
struct Claim(Identity);

impl Slot {
    pub(super) fn new(path: PathBuf, lock_wait: Duration) -> Slot {
        Slot { path, lock_wait, database: None, former: None, opened: 0 }
    }

    /// Opens the file, unless it is open and still has its name. Without a name nobody would see a write to
    /// it.
    pub(super) fn open(&mut self) -> Result<&mut Database, SqliteError> {
        if let Some(database) = self.database.take_if(|database| !database.is_named()) {
            let (file, log) = (Arc::clone(&database.file), database.log.clone());
            self.former = Some(Former { file, log, missing: None });
        }
        if self.database.is_none() {
            let _turn = Turn::take(&self.path, self.lock_wait)?;
            self.make_room()?;
            self.database = Some(Database::open(self.path.clone(), self.lock_wait)?);
            (self.former, self.opened) = (None, self.opened + 1);
        }
        self.database.as_mut().ok_or_else(|| SqliteError::Removed { path: self.path.clone() })
    }

    /// Runs one transaction. The step also gets the number of the file among those opened.
    pub(super) fn step<T, E: From<SqliteError>>(
        &mut self,
        tried: &'static str,
        step: impl FnOnce(&mut Step<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.open()?;
        let (number, Some(database)) = (self.opened, &mut self.database) else {
            return Err(SqliteError::Removed { path: self.path.clone() }.into());
        };
        database.transact(tried, |running| {
            running.number = number;
            step(running)
        })
    }

    /// Makes sure that a removed file is not just on its way back, and that the log of the former file is not
    /// taken for the next one's: sqlite knows a log by its name alone.
    fn make_room(&mut self) -> Result<(), SqliteError> {
        let Some(Former { file, log, missing }) = &mut self.former else { return Ok(()) };
        let there = identity(&self.path);
        if there.is_none() && missing.get_or_insert_with(Instant::now).elapsed() < ABSENCE {
            return Err(SqliteError::Removed { path: self.path.clone() });
        }
        let is_left = log.as_ref().is_some_and(|log| log.has_name(&beside(&self.path, "-wal")));
        if there != Some(file.identity) && is_left && !is_in_use(&self.path) {
            // What is no database may be gone again in a moment, and the former file back.
            Claim::on(&self.path)?;
            for end in ["-wal", "-shm"] {
                let _ = std::fs::remove_file(beside(&self.path, end));
            }
        }
        Ok(())
    }
}

impl Database {
    pub(super) fn open(path: PathBuf, lock_wait: Duration) -> Result<Database, SqliteError> {
        const TRIED: &str = "open it";
        let claim = Claim::on(&path)?;
        let file = Pinned::new(&path).filter(|file| file.identity == claim.0);
        let file = Arc::new(file.ok_or_else(|| SqliteError::Removed { path: path.clone() })?);
        let failed = |error| explain(&path, lock_wait, TRIED, error);
        let connection = Connection::open(&path).map_err(failed)?;
        connection.busy_timeout(lock_wait).map_err(failed)?;
        write_ahead(&connection, lock_wait).map_err(failed)?;
        // A commit then needs no flush. A power cut may lose the last renewals, of all daemons alike.
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(failed)?;
        let mut database = Database { path, lock_wait, connection, file, log: None, _claim: claim };
        database.transact(TRIED, |step| step.settle_schema())?;
        database.log = Pinned::new(&beside(&database.path, "-wal")).map(Arc::new);
        Ok(database)
    }

    /// Tells whether the file still has its name.
    fn is_named(&self) -> bool {
        self.file.has_name(&self.path)
    }

    fn transact<T, E: From<SqliteError>>(
        &mut self,
        tried: &'static str,
        step: impl FnOnce(&mut Step<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let (path, lock_wait) = (&self.path, self.lock_wait);
        let failed = |error| explain(path, lock_wait, tried, error);
        let begun = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        // Dropped without a commit, it rolls back.
        let mut running = Step { transaction: begun.map_err(failed)?, path, lock_wait, tried, number: 0 };
        let outcome = step(&mut running)?;
        running.transaction.commit().map_err(failed)?;
        Ok(outcome)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !self.is_named() {
            // The last connection to close removes the log by its name, which by now may be another file's.
            let _ = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        }
    }
}

impl Pinned {
    fn new(path: &Path) -> Option<Pinned> {
        // By such a descriptor nothing can be read, and closing it drops no lock.
        let file = File::options().read(true).custom_flags(O_PATH).open(path).ok()?;
        let metadata = file.metadata().ok()?;
        Some(Pinned { identity: (metadata.dev(), metadata.ino()), _file: file })
    }

    fn has_name(&self, path: &Path) -> bool {
        identity(path) == Some(self.identity)
    }
}

impl Turn {
    /// Waits for the turn. There is none where a directory cannot be locked.
    fn take(path: &Path, lock_wait: Duration) -> Result<Option<Turn>, SqliteError> {
        let opened = File::options().read(true).custom_flags(O_DIRECTORY).open(directory(path));
        // The next step reports a directory that cannot be used.
        let Ok(directory) = opened else { return Ok(None) };
        let started = Instant::now();
        loop {
            match directory.try_lock() {
                Ok(()) => return Ok(Some(Turn { _directory: directory })),
                Err(TryLockError::Error(_)) => return Ok(None),
                Err(TryLockError::WouldBlock) if started.elapsed() < lock_wait => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(TryLockError::WouldBlock) => {
                    let (path, waited) = (path.to_owned(), lock_wait.as_secs());
                    return Err(SqliteError::Locked { path, tried: "open it", waited });
                }
            }
        }
    }
}

impl Claim {
    /// Creates and inspects the file, unless it is open already.
    fn on(path: &Path) -> Result<Claim, SqliteError> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = match identity(path).filter(|identity| open.contains_key(identity)) {
            Some(identity) => identity,
            None => prepare_file(path)?,
        };
        *open.entry(identity).or_default() += 1;
        Ok(Claim(identity))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.0);
            }
        }
    }
}

/// A running transaction.
pub(super) struct Step<'a> {
    transaction: Transaction<'a>,
    path: &'a Path,
    lock_wait: Duration,
    tried: &'static str,
    number: u64,
}

impl Step<'_> {
    pub(super) fn run<T>(
        &self,
        sql: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SqliteError> {
        sql(&self.transaction).map_err(|error| explain(self.path, self.lock_wait, self.tried, error))
    }

    /// Creates the tables in an empty file; rejects a file that is not ours or is damaged.
    fn settle_schema(&mut self) -> Result<(), SqliteError> {
        let number = |query| self.run(|sql| sql.query_row(query, [], |row| row.get::<_, i64>(0)));
        let application = number("PRAGMA application_id")?;
        let version = number("PRAGMA user_version")?;
        let tables = number("SELECT count(*) FROM sqlite_schema")?;
        if application != APPLICATION_ID && (application, version, tables) != (0, 0, 0) {
            return Err(SqliteError::Foreign { path: self.path.to_owned(), found: application });
        }
        if version > SCHEMA_VERSION {
            let path = self.path.to_owned();
            return Err(SqliteError::Newer { path, found: version, known: SCHEMA_VERSION });
        }
        if tables == 0 {
            return self.run(|sql| {
                sql.execute_batch(SCHEMA)?;
                sql.pragma_update(None, "application_id", APPLICATION_ID)?;
                sql.pragma_update(None, "user_version", SCHEMA_VERSION)
            });
        }
        // Version 1 is the first; a second one has to migrate here, step by step, before the check.
        if version < SCHEMA_VERSION {
            return Err(SqliteError::Foreign { path: self.path.to_owned(), found: application });
        }
        let verdict: String = self.run(|sql| sql.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)))?;
        if verdict != "ok" {
            let path = self.path.to_owned();
            return Err(SqliteError::Corrupt { path, tried: self.tried, answer: one_line(&verdict) });
        }
        Ok(())
    }

    /// Returns the number of the file among those that the handle has opened.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn revision(&self) -> Result<u64, SqliteError> {
        let query = "SELECT value FROM revision";
        self.run(|sql| sql.query_row(query, [], |row| row.get::<_, i64>(0))).map(|value| value as u64)
    }

    pub(super) fn has_void(&self, now: u64) -> Result<bool, SqliteError> {
        let query = "SELECT EXISTS (SELECT 1 FROM leases WHERE expires <= ?1)";
        self.run(|sql| sql.query_row(query, [seconds(now)], |row| row.get(0)))
    }
}

impl Table for Step<'_> {
    type Error = SqliteError;

    fn live(&mut self, now: u64) -> Result<Vec<Row>, SqliteError> {
        self.run(|sql| {
            if sql.execute("DELETE FROM leases WHERE expires <= ?1", [seconds(now)])? > 0 {
                tracing::debug!("lease store: removed expired leases");
            }
            let mut query = sql.prepare("SELECT key, value, expires FROM leases ORDER BY key")?;
            let rows = query.query_map([], |row| {
                let expires = match row.get_ref(2)? {
                    ValueRef::Integer(seconds) => u64::try_from(seconds).ok(),
                    // Text or a fraction is not a time: the row counts as a reservation.
                    _ => None,
                };
                Ok(Row { key: text(row.get_ref(0)?)?, value: text(row.get_ref(1)?)?, expires })
            })?;
            rows.collect()
        })
    }

    fn put(&mut self, row: Row) -> Result<(), SqliteError> {
        let upsert = "INSERT INTO leases VALUES (?1, ?2, ?3)
                      ON CONFLICT (key) DO UPDATE SET value = ?2, expires = ?3";
        let expires = row.expires.map(seconds);
        self.run(|sql| sql.execute(upsert, params![row.key, row.value, expires])).map(drop)
    }

    fn remove(&mut self, key: &str) -> Result<(), SqliteError> {
        self.run(|sql| sql.execute("DELETE FROM leases WHERE key = ?1", [key])).map(drop)
    }
}

/// Creates the file if necessary, for its owner alone, because the configuration in it may hold a shared key.
/// Rejects a file that does not begin like a database, because sqlite overwrites a short file of another
/// kind. Returns device and inode.
fn prepare_file(path: &Path) -> Result<Identity, SqliteError> {
    const TRIED: &str = "open it";
    let directory = directory(path);
    if !directory.exists() {
        return Err(SqliteError::NoDirectory { path: path.to_owned(), directory: directory.to_owned() });
    }
    let failed = |error| explain_io(path, TRIED, &error);
    let refused = |answer: &str| {
        Err(SqliteError::NotADatabase { path: path.to_owned(), tried: TRIED, answer: answer.to_owned() })
    };
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).create(true).mode(0o600).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return refused("it is not a regular file");
    }
    let mut head = Vec::new();
    file.take(HEADER_LEN).read_to_end(&mut head).map_err(failed)?;
    if !head.is_empty() && (head.len() < HEADER_LEN as usize || !head.starts_with(MAGIC)) {
        return refused("it does not begin with a database header");
    }
    Ok((metadata.dev(), metadata.ino()))
}

/// Tells whether somebody has the file open, with whatever log lies beside it.
fn is_in_use(path: &Path) -> bool {
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if identity(path).is_some_and(|identity| open.contains_key(&identity)) {
        return true;
    }
    let opened = File::options().read(true).custom_flags(O_NONBLOCK).open(path);
    let Ok(file) = opened else { return false };
    let (start, length) = SHARED;
    let mut lock =
        flock { l_type: F_WRLCK as i16, l_whence: SEEK_SET as i16, l_start: start, l_len: length, l_pid: 0 };
    // Closing the descriptor drops no lock of ours, since we have none on this file.
    fcntl(&file, FcntlArg::F_GETLK(&mut lock)).is_ok() && i32::from(lock.l_type) != F_UNLCK
}

/// Returns the directory that contains the file.
pub(super) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Sets the journal mode. Sqlite does not wait for this lock itself, and daemons start together. On a
/// filesystem without write-ahead logging sqlite keeps a rollback journal, which is enough.
fn write_ahead(connection: &Connection, lock_wait: Duration) -> rusqlite::Result<()> {
    let started = Instant::now();
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())) {
            Err(error) if is_lock(&error) && started.elapsed() < lock_wait => {
                std::thread::sleep(LOCK_RETRY);
            }
            outcome => return outcome,
        }
    }
}

pub(super) fn text(value: ValueRef<'_>) -> rusqlite::Result<String> {
    Ok(match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Null => String::new(),
    })
}

/// Returns device and inode of what has this name.
fn identity(path: &Path) -> Option<Identity> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Returns the path of a file that sqlite keeps beside the database.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn seconds(unix: u64) -> i64 {
    i64::try_from(unix).unwrap_or(i64::MAX)
}

fn is_lock(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn explain(path: &Path, lock_wait: Duration, tried: &'static str, error: rusqlite::Error) -> SqliteError {
    let path = path.to_owned();
    let answer = one_line(&error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            SqliteError::Locked { path, tried, waited: lock_wait.as_secs() }
        }
        Some(ErrorCode::DatabaseCorrupt) => SqliteError::Corrupt { path, tried, answer },
        Some(ErrorCode::NotADatabase) => SqliteError::NotADatabase { path, tried, answer },
        Some(ErrorCode::DiskFull) => SqliteError::DiskFull { path, tried, answer },
        // Sqlite reports a lack of room for the log's index as an I/O error.
        Some(ErrorCode::SystemIoFailure) if is_on_a_full_disk(&path) => {
            SqliteError::DiskFull { path, tried, answer }
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            SqliteError::NoPermission { path, tried, answer }
        }
        // A schema without one of its tables, or a row of a kind that no insert of ours leaves.
        Some(ErrorCode::Unknown) | None => SqliteError::Corrupt { path, tried, answer },
        Some(_) => SqliteError::System { path, tried, answer },
    }
}

fn is_on_a_full_disk(path: &Path) -> bool {
    statvfs(path).is_ok_and(|disk| disk.blocks_available() * disk.fragment_size() < LOG_INDEX_LEN)
}

/// Joins the lines of an answer: sqlite describes damage in several.
fn one_line(answer: &str) -> String {
    answer.replace('\n', " ")
}

pub(super) fn explain_io(path: &Path, tried: &'static str, error: &std::io::Error) -> SqliteError {
    use std::io::ErrorKind;
    let (path, answer) = (path.to_owned(), error.to_string());
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            SqliteError::NoPermission { path, tried, answer }
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => SqliteError::DiskFull { path, tried, answer },
        ErrorKind::IsADirectory => SqliteError::NotADatabase { path, tried, answer },
        _ => SqliteError::System { path, tried, answer },
    }
}
