//! Cases of a file alone: damage, locks, other programs, changes by hand.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Barrier;

use model::lease::LeaseAttrs;
use model::net_config;
use proptest::prelude::*;
use tempfile::TempDir;

use rusqlite::Connection;

use super::database::{SCHEMA_VERSION, explain_io};
use super::*;
use crate::contract_tests::{Bench, next};
use crate::rows::Row;
use crate::{Cause, Event, Store};

const ONE: &str = r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#;

async fn open_error(path: &Path) -> SqliteError {
    Sqlite::open(path).await.unwrap_err()
}

/// One line that names the path and says what to do.
fn assert_clear(error: &impl std::fmt::Display, path: &Path) {
    let line = error.to_string();
    assert!(!line.contains('\n') && line.contains(&*path.to_string_lossy()) && line.contains(';'), "{line}");
}

fn raw(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(LOCK_WAIT).unwrap();
    connection
}

async fn acquire(store: &Sqlite, value: &str) -> Result<Lease, StoreError> {
    let config = net_config::parse(r#"{"Network":"10.3.0.0/16"}"#).unwrap().0;
    let attrs = LeaseAttrs::parse(value).unwrap();
    store.acquire(&Wish { config: &config, attrs, previous: None, former: None }).await
}

/// A file with `count` leases, closed again.
async fn filled(path: &Path, count: u8) {
    let store = Sqlite::open(path).await.unwrap();
    for node in 0..count {
        acquire(&store, &format!(r#"{{"PublicIP":"192.0.2.{node}","PublicIPv6":null}}"#)).await.unwrap();
    }
    drop(store);
    // The log is folded into the file when the last connection closes, in this case on its own thread.
    while path.with_file_name("leases.db-wal").exists() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_row_is_what_etcd_would_hold() {
    let bench = Bench::sqlite();
    let store = Sqlite::open(bench.path()).await.unwrap();
    let lease = acquire(&store, ONE).await.unwrap();
    let row: (String, String, i64) = raw(&bench.path())
        .query_row("SELECT key, value, expires FROM leases", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .unwrap();
    assert_eq!(row, (lease.key.to_string(), ONE.to_owned(), lease.expires.unwrap() as i64));
}

#[tokio::test]
async fn only_the_owner_may_read_the_file() {
    let bench = Bench::sqlite();
    let _store = Sqlite::open(bench.path()).await.unwrap();
    for name in ["leases.db", "leases.db-wal", "leases.db-shm"] {
        let mode = fs::metadata(bench.path().with_file_name(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_relative_path_without_directory() {
    // Only its preparation: a test must not change the process's directory.
    assert!(watch_directory(Path::new("leases.db")).is_ok());
    let missing = open_error(Path::new("no such directory/leases.db")).await;
    assert_eq!(
        missing.to_string(),
        "store no such directory/leases.db: directory no such directory does not exist; \
         create it, or name another path"
    );
}

#[tokio::test]
async fn files_that_are_no_database() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("leases.db");
    for content in
        ["FLANNEL_MTU=1450\n".repeat(100).into_bytes(), vec![0xff; 4096], b"x".to_vec(), vec![0; 8192]]
    {
        fs::write(&path, &content).unwrap();
        let error = open_error(&path).await;
        assert!(matches!(error, SqliteError::NotADatabase { .. }), "{error}");
        assert_clear(&error, &path);
        assert_eq!(fs::read(&path).unwrap(), content, "not ours to change");
    }
    let error = open_error(directory.path()).await;
    assert!(matches!(error, SqliteError::NotADatabase { .. }), "{error}");
}

#[tokio::test]
async fn databases_of_others_and_of_the_future() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("other.db");
    raw(&path).execute_batch("CREATE TABLE notes (text TEXT)").unwrap();
    let error = open_error(&path).await;
    assert_eq!(error, SqliteError::Foreign { path: path.clone(), found: 0 });
    assert_clear(&error, &path);

    let path = directory.path().join("leases.db");
    filled(&path, 1).await;
    raw(&path).pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    let error = open_error(&path).await;
    assert_eq!(error, SqliteError::Newer { path: path.clone(), found: 2, known: 1 });
    assert_clear(&error, &path);
}

#[tokio::test]
async fn a_truncated_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("leases.db");
    filled(&path, 200).await;
    let whole = fs::read(&path).unwrap();
    assert!(whole.len() > 4 * 4096, "enough pages to lose some: {}", whole.len());
    for length in [whole.len() - 4096, whole.len() / 2, 4096, 2048, 100, 50, 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = open_error(&path).await;
        assert!(
            matches!(error, SqliteError::Corrupt { .. } | SqliteError::NotADatabase { .. }),
            "{length}: {error}"
        );
        assert_clear(&error, &path);
    }
}

#[tokio::test]
async fn a_table_that_is_missing() {
    let bench = Bench::sqlite();
    let store = Sqlite::open(bench.path()).await.unwrap();
    raw(&bench.path()).execute_batch("DROP TABLE leases").unwrap();
    let error = acquire(&store, ONE).await.unwrap_err();
    assert!(matches!(error, StoreError::Fatal(Cause::Sqlite(SqliteError::Corrupt { .. }))), "{error}");
    assert_clear(&error, &bench.path());
}

#[tokio::test]
async fn a_lock_that_is_never_released() {
    let bench = Bench::sqlite();
    let options = Options { lock_wait: Duration::from_millis(50), ..Options::default() };
    let store = Sqlite::open_with(bench.path(), options).await.unwrap();
    let holder = raw(&bench.path());
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let Err(StoreError::Fatal(Cause::Sqlite(error))) = acquire(&store, ONE).await else {
        panic!("the lock was held")
    };
    assert!(matches!(error, SqliteError::Locked { tried: "acquire a lease", .. }), "{error}");
    assert_clear(&error, &bench.path());
    let error = Sqlite::open_with(bench.path(), options).await.unwrap_err();
    assert!(matches!(error, SqliteError::Locked { .. }), "{error}");
    holder.execute_batch("ROLLBACK").unwrap();
    acquire(&store, ONE).await.unwrap();
}

#[tokio::test]
async fn a_watch_waits_for_a_lock_and_goes_on() {
    let bench = Bench::sqlite();
    let options = Options { lock_wait: Duration::from_millis(20), ..Options::default() };
    let store = Sqlite::open_with(bench.path(), options).await.unwrap();
    let mut watch = store.watch(None);
    assert_eq!(next(&mut watch).await, Event::Snapshot(vec![]));
    let holder = raw(&bench.path());
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    holder.execute("INSERT INTO leases VALUES ('10.3.1.0-24', ?1, NULL)", [ONE]).unwrap();
    let look = watch.next();
    tokio::pin!(look);
    // Long enough for some looks to fail on the lock; the case holds whether they do or not.
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut look).await.is_err());
    holder.execute_batch("COMMIT").unwrap();
    assert!(matches!(look.await, Event::Put(lease) if lease.expires.is_none()));
}

#[tokio::test]
async fn no_space_left() {
    let bench = Bench::sqlite();
    let store = Sqlite::open(bench.path()).await.unwrap();
    let lease = acquire(&store, ONE).await.unwrap();
    // The same answer as from a full filesystem, without one.
    let bound = |step: &mut Step<'_>| {
        step.run(|sql| sql.pragma_update_and_check(None, "max_page_count", 1, |_| Ok(())))
    };
    store.step::<_, SqliteError>("bound the file", bound).await.unwrap();
    let long = "x".repeat(100_000);
    let error = store.set_net_config(&long).await.unwrap_err();
    assert!(
        matches!(error, SqliteError::DiskFull { tried: "store the network configuration", .. }),
        "{error}"
    );
    assert_clear(&error, &bench.path());
    // Nothing half-made stays behind.
    assert_eq!(store.net_config().await.unwrap(), None);
    assert_eq!(store.update(&lease, &lease.attrs).await.unwrap().key, lease.key);
}

#[tokio::test]
async fn a_file_that_takes_the_place_of_another_is_the_store_from_then_on() {
    let bench = Bench::sqlite();
    let store = Sqlite::open(bench.path()).await.unwrap();
    acquire(&store, ONE).await.unwrap();
    let gone = SqliteError::Removed { path: bench.path() };
    let aside = bench.path().with_file_name("aside.db");
    raw(&bench.path()).execute("VACUUM INTO ?1", [aside.to_str().unwrap()]).unwrap();
    acquire(&store, &ONE.replace("1.2.3.4", "1.2.3.5")).await.unwrap();
    assert_eq!(store.leases().await.unwrap().len(), 2);
    fs::remove_file(bench.path()).unwrap();
    assert_eq!(store.leases().await.unwrap_err(), gone);
    assert_clear(&gone, &bench.path());
    assert!(gone.is_passing() && !bench.path().exists(), "it may be on its way back");
    // The log of the former file is still there, and must not be played into this one.
    assert!(bench.path().with_file_name("leases.db-wal").exists());
    fs::rename(&aside, bench.path()).unwrap();
    assert_eq!(store.leases().await.unwrap().len(), 1);
    acquire(&store, &ONE.replace("1.2.3.4", "1.2.3.6")).await.unwrap();
    assert_eq!(Sqlite::open(bench.path()).await.unwrap().leases().await.unwrap().len(), 2);
    // One that does not come back is created again.
    fs::remove_file(bench.path()).unwrap();
    while let Err(error) = store.leases().await {
        assert_eq!(error, gone);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(store.leases().await.unwrap(), []);
    acquire(&store, ONE).await.unwrap();
}

/// Its log, in which the last changes may be, is not a stranger's.
#[tokio::test]
async fn a_file_that_comes_back_has_lost_nothing() {
    let bench = Bench::sqlite();
    let store = Sqlite::open(bench.path()).await.unwrap();
    acquire(&store, ONE).await.unwrap();
    let aside = bench.path().with_file_name("aside.db");
    fs::rename(bench.path(), &aside).unwrap();
    assert!(matches!(store.leases().await, Err(SqliteError::Removed { .. })));
    fs::write(bench.path(), "no database").unwrap();
    assert!(matches!(store.leases().await, Err(SqliteError::NotADatabase { .. })));
    fs::rename(&aside, bench.path()).unwrap();
    assert_eq!(store.leases().await.unwrap().len(), 1);
}

#[tokio::test]
async fn two_handles_to_a_replaced_file_meet_in_the_new_one() {
    let bench = Bench::sqlite();
    let stores = [Sqlite::open(bench.path()).await.unwrap(), Sqlite::open(bench.path()).await.unwrap()];
    let aside = bench.path().with_file_name("aside.db");
    acquire(&stores[0], ONE).await.unwrap();
    raw(&bench.path()).execute("VACUUM INTO ?1", [aside.to_str().unwrap()]).unwrap();
    fs::rename(&aside, bench.path()).unwrap();
    for (number, store) in stores.iter().enumerate() {
        acquire(store, &ONE.replace("1.2.3.4", &format!("1.2.3.{number}"))).await.unwrap();
    }
    for store in &stores {
        assert_eq!(store.leases().await.unwrap().len(), 3);
    }
}

/// What keeps it from being opened may pass while its user waits.
#[tokio::test]
async fn a_file_is_opened_when_it_can_be() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("later/leases.db");
    let store = Sqlite::lazy(&path).unwrap();
    assert!(matches!(store.leases().await, Err(SqliteError::NoDirectory { .. })));
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::write(&path, "not a database").unwrap();
    assert!(matches!(store.leases().await, Err(SqliteError::NotADatabase { .. })));
    fs::remove_file(&path).unwrap();
    acquire(&store, ONE).await.unwrap();
    assert_eq!(store.leases().await.unwrap().len(), 1);
}

#[tokio::test]
async fn rows_of_any_kind_of_value() {
    let bench = Bench::sqlite();
    let store = Sqlite::open(bench.path()).await.unwrap();
    raw(&bench.path())
        .execute_batch(
            "INSERT INTO leases VALUES (x'00ff', x'00ff', 9e9);
             INSERT INTO leases VALUES (7, 8, NULL);
             INSERT INTO leases VALUES (1.5, 2.5, 'never');
             INSERT INTO leases VALUES (NULL, '', 99999999999);
             INSERT INTO leases VALUES ('10.3.1.0-24', '{\"PublicIP\":\"1.2.3.4\"}', 'never');
             INSERT INTO leases VALUES ('10.3.2.0-24', '{\"PublicIP\":\"1.2.3.5\"}', -5);
             INSERT INTO leases VALUES ('10.3.3.0-24', '{\"PublicIP\":\"1.2.3.6\"}', 9223372036854775807);",
        )
        .unwrap();
    let leases = store.leases().await.unwrap();
    let seen: Vec<_> = leases.iter().map(|lease| (lease.key.to_string(), lease.expires)).collect();
    let forever = Some(i64::MAX as u64);
    assert_eq!(seen, [("10.3.1.0-24".to_owned(), None), ("10.3.3.0-24".to_owned(), forever)]);
    let mut watch = store.watch(None);
    assert_eq!(next(&mut watch).await, Event::Snapshot(leases));
}

/// Each finds it replaced, by an empty one whose log may get the number of the former log.
#[test]
fn daemons_that_find_the_file_replaced_at_the_same_time_lose_nothing() {
    const DAEMONS: usize = 4;
    const ROUNDS: usize = 50;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("leases.db");
    let together = Barrier::new(DAEMONS + 1);
    let daemon = |number: usize| {
        let mut slot = Slot::new(path.clone(), LOCK_WAIT);
        let opened = slot.open().is_ok();
        let mut seen = Vec::new();
        for round in 0..ROUNDS {
            together.wait();
            together.wait();
            let key = format!("10.{round}.{number}.0-24");
            let row = Row { key, value: ONE.to_owned(), expires: None };
            let put = slot.step("put", |step| step.put(row));
            together.wait();
            let rows = slot.step("list", |step| step.live(0));
            seen.push((opened, put, rows.map(|rows| rows.len())));
        }
        seen
    };
    let seen: Vec<_> = std::thread::scope(|scope| {
        let daemons: Vec<_> = (0..DAEMONS).map(|number| scope.spawn(move || daemon(number))).collect();
        for _ in 0..ROUNDS {
            together.wait();
            fs::write(path.with_extension("new"), "").unwrap();
            fs::rename(path.with_extension("new"), &path).unwrap();
            together.wait();
            together.wait();
        }
        daemons.into_iter().flat_map(|daemon| daemon.join().unwrap()).collect()
    });
    assert_eq!(seen, vec![(true, Ok(()), Ok(DAEMONS)); DAEMONS * ROUNDS]);
}

#[test]
fn a_log_that_another_handle_has_begun_to_use_stays() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("leases.db");
    let log = path.with_file_name("leases.db-wal");
    let [mut first, mut second] = [(); 2].map(|()| Slot::new(path.clone(), LOCK_WAIT));
    first.open().unwrap();
    fs::copy(&path, path.with_extension("new")).unwrap();
    fs::rename(path.with_extension("new"), &path).unwrap();
    second.open().unwrap();
    let before = fs::metadata(&log).unwrap().ino();
    first.open().unwrap();
    assert_eq!(fs::metadata(&log).unwrap().ino(), before);
    let row = Row { key: "10.3.1.0-24".to_owned(), value: ONE.to_owned(), expires: None };
    second.step("put", |step| step.put(row.clone())).unwrap();
    assert_eq!(first.step("list", |step| step.live(0)).unwrap(), [row]);
}

#[tokio::test]
async fn a_look_wakes_no_watch() {
    let bench = Bench::sqlite();
    let store = Sqlite::open(bench.path()).await.unwrap();
    acquire(&store, ONE).await.unwrap();
    let mut inotify = Inotify::init().unwrap();
    let writes = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::DELETE;
    inotify.watches().add(bench.path().parent().unwrap(), writes).unwrap();
    let mut changes = Changes { store: store.clone(), directory: Hints::Clock, file: None };
    let look = changes.look(None).await.unwrap().unwrap();
    assert!(changes.look(Some(look.revision)).await.unwrap().is_none());
    store.leases().await.unwrap();
    let mut buffer = [0; 4096];
    let nothing = inotify.read_events(&mut buffer).map(|events| events.count());
    assert_eq!(nothing.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    acquire(&store, ONE).await.unwrap();
    assert!(inotify.read_events(&mut buffer).unwrap().count() > 0);
}

#[tokio::test]
async fn without_inotify_the_watch_still_sees() {
    let bench = Bench::sqlite();
    let store = Sqlite::open(bench.path()).await.unwrap();
    let changes = Changes { store: store.clone(), directory: Hints::Clock, file: None };
    let mut watch = Watch::new(Poller::new(changes, None));
    assert_eq!(next(&mut watch).await, Event::Snapshot(vec![]));
    let lease = acquire(&store, ONE).await.unwrap();
    assert_eq!(next(&mut watch).await, Event::Put(lease));
}

#[tokio::test]
async fn leases_outlive_their_daemons() {
    let bench = Bench::sqlite();
    filled(&bench.path(), 3).await;
    let Store::Sqlite(store) = bench.handle().await else { panic!("another store") };
    let leases = store.leases().await.unwrap();
    assert_eq!(leases.len(), 3);
    let value = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#;
    let again = acquire(&store, value).await.unwrap();
    assert!(leases.iter().any(|lease| lease.key == again.key && lease.attrs == again.attrs));
}

#[test]
fn answers_of_the_system() {
    let path = Path::new("/x/leases.db");
    let answer = |number| explain_io(path, "open it", &std::io::Error::from_raw_os_error(number));
    assert!(matches!(answer(libc_errno::EACCES), SqliteError::NoPermission { .. }));
    assert!(matches!(answer(libc_errno::EROFS), SqliteError::NoPermission { .. }));
    assert!(matches!(answer(libc_errno::ENOSPC), SqliteError::DiskFull { .. }));
    assert!(matches!(answer(libc_errno::EMFILE), SqliteError::System { .. }));
    assert_eq!(
        answer(libc_errno::EACCES).to_string(),
        "store /x/leases.db: cannot open it: Permission denied (os error 13); every daemon needs to read and \
         write the file and to create files beside it: run as its owner, or name another path"
    );
}

/// asm-generic/errno-base.h
mod libc_errno {
    pub(super) const EACCES: i32 = 13;
    pub(super) const EMFILE: i32 = 24;
    pub(super) const ENOSPC: i32 = 28;
    pub(super) const EROFS: i32 = 30;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// A damaged file gives leases or an error, never a panic.
    #[test]
    fn flipped_bytes(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40), head: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = TempDir::new().unwrap();
            let path = directory.path().join("leases.db");
            filled(&path, 8).await;
            let mut bytes = fs::read(&path).unwrap();
            let reach = if head { 100 } else { bytes.len() };
            for (place, value) in flips {
                bytes[place.index(reach)] = value;
            }
            fs::write(&path, &bytes).unwrap();
            let outcome = match Sqlite::open(&path).await {
                Ok(store) => acquire(&store, ONE).await.map(drop),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = outcome {
                assert!(!error.to_string().contains("its thread has ended"), "{error}");
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        });
    }
}
