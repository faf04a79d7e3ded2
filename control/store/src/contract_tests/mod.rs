//! One suite for every store.
//!
//! Each case runs against all stores and uses handles as separate daemons would. The fixture writes rows as
//! an administrator would, so that a case can start from any state.

mod allocation;
mod configuration;
mod overwrite;
mod ownership;
mod publishing;
mod rewind;
mod watch;

use model::lease::{Lease, LeaseAttrs, SubnetKey};
use model::net_config::{self, NetConfig};
use tempfile::TempDir;

use super::testing::etcd::{self as server, Security, Server};
use super::*;
use crate::memory::Backup;

const ONE: &str = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#;
const TWO: &str = r#"{"PublicIP":"192.0.2.2","PublicIPv6":null}"#;
const VXLAN: &str = concat!(
    r#"{"PublicIP":"192.0.2.3","PublicIPv6":"2001:db8::3","BackendType":"vxlan","#,
    r#""BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"#,
    r#""BackendV6Data":{"VNI":1,"VtepMAC":"0a:11:22:33:44:55"}}"#
);
/// Longest wait of a case, far beyond the time of a step.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store's data, with access beside its handles.
pub(crate) enum Bench {
    Sqlite(TempDir),
    Memory(Memory),
    Etcd(Box<Server>),
}

/// What a store held at one time.
enum Saved {
    Directory(TempDir),
    Memory(Backup),
}

impl Bench {
    fn all() -> Vec<Bench> {
        let mut all = vec![Bench::sqlite(), Bench::Memory(Memory::new())];
        if server::ready() {
            all.push(Bench::Etcd(Box::new(Server::start(Security::None))));
        }
        all
    }

    /// The stores where an administrator can publish another address than a node wishes.
    fn with_overwrites() -> Vec<Bench> {
        vec![Bench::Memory(Memory::new())]
    }

    pub(crate) fn sqlite() -> Bench {
        Bench::Sqlite(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self) -> std::path::PathBuf {
        match self {
            Bench::Sqlite(directory) => directory.path().join("leases.db"),
            Bench::Memory(_) | Bench::Etcd(_) => panic!("no file"),
        }
    }

    /// Opens a new handle, as another daemon would.
    pub(crate) async fn handle(&self) -> Store {
        match self {
            Bench::Sqlite(_) => Store::Sqlite(Sqlite::open(self.path()).await.unwrap()),
            Bench::Memory(store) => Store::Memory(store.clone()),
            Bench::Etcd(server) => Store::open(Spec::Etcd(etcd::tests::config(server))).await.unwrap(),
        }
    }

    async fn put_row(&self, key: &str, value: &str, expires: Option<u64>) {
        match self {
            Bench::Sqlite(_) => {
                let connection = rusqlite::Connection::open(self.path()).unwrap();
                connection.busy_timeout(PATIENCE).unwrap();
                let insert = "INSERT OR REPLACE INTO leases VALUES (?1, ?2, ?3)";
                connection
                    .execute(insert, rusqlite::params![key, value, expires.map(|at| at as i64)])
                    .unwrap();
            }
            Bench::Memory(store) => store.put_row(key, value, expires),
            Bench::Etcd(server) => etcd::tests::put_row(server, key, value, expires).await,
        }
    }

    /// Takes away all that is stored, as a lost disk does.
    fn wipe(&mut self) {
        match self {
            Bench::Sqlite(directory) => {
                for file in std::fs::read_dir(directory.path()).unwrap() {
                    std::fs::remove_file(file.unwrap().path()).unwrap();
                }
            }
            Bench::Memory(store) => store.restore(Backup::default()),
            Bench::Etcd(server) => server.wipe(),
        }
    }

    /// Copies all that is stored, for [`Bench::restore`].
    fn backup(&mut self) -> Saved {
        match self {
            Bench::Sqlite(_) => {
                let directory = TempDir::new().unwrap();
                let copy = directory.path().join("copy.db");
                let connection = rusqlite::Connection::open(self.path()).unwrap();
                connection.busy_timeout(PATIENCE).unwrap();
                connection.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
                Saved::Directory(directory)
            }
            Bench::Memory(store) => Saved::Memory(store.backup()),
            Bench::Etcd(server) => Saved::Directory(server.backup()),
        }
    }

    /// Puts an older state in the place of what is stored.
    fn restore(&mut self, saved: &Saved) {
        match (self, saved) {
            (bench @ Bench::Sqlite(_), Saved::Directory(from)) => {
                // Beside it first: the file is replaced in one step, as restores should.
                let aside = bench.path().with_file_name("restored.db");
                std::fs::copy(from.path().join("copy.db"), &aside).unwrap();
                // sqlite would play the log of the former file into this one.
                for end in ["-wal", "-shm"] {
                    let _ = std::fs::remove_file(format!("{}{end}", bench.path().display()));
                }
                std::fs::rename(&aside, bench.path()).unwrap();
            }
            (Bench::Memory(store), Saved::Memory(backup)) => store.restore(backup.clone()),
            (Bench::Etcd(server), Saved::Directory(from)) => server.restore(from.path()),
            _ => panic!("saved by another store"),
        }
    }

    fn overwrite_public_ip(&self, key: &SubnetKey, address: Option<&str>) {
        match self {
            Bench::Memory(store) => {
                store.overwrite_public_ip(key, address.map(|address| address.parse().unwrap()));
            }
            Bench::Sqlite(_) | Bench::Etcd(_) => panic!("no annotations"),
        }
    }
}

fn config(members: &str) -> NetConfig {
    net_config::parse(&format!(r#"{{{members},"Backend":{{"Type":"vxlan"}}}}"#)).unwrap().0
}

fn plain() -> NetConfig {
    config(r#""Network":"10.3.0.0/16""#)
}

/// Exactly one subnet to give away.
fn single() -> NetConfig {
    config(r#""Network":"10.3.0.0/16","SubnetMin":"10.3.7.0","SubnetMax":"10.3.7.0""#)
}

fn attrs(value: &str) -> LeaseAttrs {
    LeaseAttrs::parse(value).unwrap()
}

fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

fn wish<'a>(config: &'a NetConfig, value: &str) -> Wish<'a> {
    Wish { config, attrs: attrs(value), previous: None, former: None }
}

fn now() -> Now {
    Now { instant: std::time::Instant::now(), unix: unix_now() }
}

fn later() -> Option<u64> {
    Some(unix_now() + 1_000)
}

pub(crate) async fn next(watch: &mut Watch) -> Event {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("no event came")
}

/// Blurs a full life for comparisons between handles: etcd counts the rest of a life in whole seconds, and a
/// watch assumes a full life for another node's lease.
fn blurred(lease: &Lease) -> Lease {
    let full = unix_now() + LEASE_TTL.as_secs();
    let expires = lease.expires.map(|end| if end.abs_diff(full) < 60 { u64::MAX } else { end });
    Lease { expires, ..lease.clone() }
}

fn blurred_event(event: Event) -> Event {
    match event {
        Event::Snapshot(leases) => Event::Snapshot(leases.iter().map(blurred).collect()),
        Event::Rewind(leases) => Event::Rewind(leases.iter().map(blurred).collect()),
        Event::Put(lease) => Event::Put(blurred(&lease)),
        Event::Removed(key) => Event::Removed(key),
    }
}

/// Acquires a lease, which is published as it was wished.
async fn acquire(store: &Store, wish: &Wish<'_>) -> Result<Lease, StoreError> {
    let own = store.acquire(wish).await?;
    assert_eq!((&own.wished, &own.published.attrs), (&wish.attrs, &wish.attrs));
    Ok(own.published)
}

/// Renews a lease that is published as it was wished.
async fn renew(store: &Store, lease: &Lease) -> Result<Lease, StoreError> {
    let own = store.renew(&Owned::as_wished(lease.clone())).await?;
    assert_eq!(own.wished, own.published.attrs);
    Ok(own.published)
}

/// Updates a lease that is published as it was wished.
async fn update(store: &Store, lease: &Lease, wished: &LeaseAttrs) -> Result<Lease, StoreError> {
    let own = store.update(&Owned::as_wished(lease.clone()), wished).await?;
    assert_eq!((&own.wished, &own.published.attrs), (wished, wished));
    Ok(own.published)
}

async fn only_lease(store: &Store) -> Lease {
    let mut leases = store.leases().await.unwrap();
    assert_eq!(leases.len(), 1, "{leases:?}");
    leases.remove(0)
}
