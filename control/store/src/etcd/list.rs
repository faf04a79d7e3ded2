//! Lists all leases, page by page. Each entry is read on its own: a broken one affects no other.

use std::collections::BTreeMap;

use model::lease::{Lease, SubnetKey};

use super::RANGE;
use super::client::Client;
use super::error::EtcdError;
use super::keys::Keys;
use super::messages::{KeyValue, RangeRequest, RangeResponse, ResponseHeader};
use crate::rows::{self, Row};

/// Entries per page: with the largest values that etcd takes by default, 1.5 MiB, a page is 192 MiB.
const PAGE: i64 = 128;
/// How often to start over when the revision is compacted meanwhile.
const RESTARTS: u32 = 3;
/// Longest value of a lease; a longer one is not kept in memory.
const LONGEST_VALUE: usize = 64 << 10;
/// Longest key to print whole; a lease's is shorter by far.
const LONGEST_KEY: usize = 256;

/// The leases as of one revision.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) leases: Vec<Lease>,
    /// How each lease is stored.
    pub(super) stored: BTreeMap<SubnetKey, Stored>,
    /// Subnets of unreadable entries.
    pub(super) unreadable: Vec<SubnetKey>,
    /// The problem of each unreadable entry, by the entry's key.
    pub(super) complaints: BTreeMap<String, String>,
    pub(super) header: ResponseHeader,
    /// The entry that was changed last.
    pub(super) newest: Option<Witness>,
}

/// An entry of which a change was seen. A store that no longer knows it was wiped or restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Witness {
    pub(super) key: Vec<u8>,
    /// Revision of the change.
    pub(super) modified: i64,
    /// Revision that created the key.
    created: i64,
    /// Id of the key's etcd lease, a random number: two histories have the same one only where they are one.
    lease: i64,
}

/// How a key is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// Id of the key's etcd lease; 0 for a reservation.
    pub(super) lease: i64,
    /// Revision of the key's last change.
    pub(super) modified: i64,
}

/// One entry, as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Lease(Lease),
    /// Not a lease. If its key names a subnet, that subnet is held.
    Broken {
        held: Option<SubnetKey>,
        complaint: String,
    },
}

impl Stored {
    pub(super) fn of(kv: &KeyValue) -> Stored {
        Stored { lease: kv.lease, modified: kv.mod_revision }
    }
}

impl Witness {
    pub(super) fn of(kv: &KeyValue) -> Witness {
        let (modified, created) = (kv.mod_revision, kv.create_revision);
        Witness { key: kv.key.clone(), modified, created, lease: kv.lease }
    }
}

/// Lists the leases, all of one revision.
pub(super) async fn all(
    client: &Client,
    tried: &'static str,
    end: impl Fn(i64) -> Option<u64>,
) -> Result<Listing, EtcdError> {
    let mut restarts = 0;
    'restart: loop {
        let mut listing = Listing::default();
        let mut page = Page::first(client.keys());
        loop {
            let answer = match page.read(client, tried, false).await {
                Err(EtcdError::Compacted { .. }) if restarts < RESTARTS => {
                    restarts += 1;
                    continue 'restart;
                }
                answer => answer?,
            };
            for kv in &answer.kvs {
                listing.take(client.keys(), kv, &end);
            }
            if !answer.more {
                listing.header = page.1;
                return Ok(listing);
            }
        }
    }
}

/// Lists every subnet that a key names, with the revision that created the key.
pub(super) async fn keys(client: &Client, tried: &'static str) -> Result<Vec<(SubnetKey, i64)>, EtcdError> {
    let mut found = Vec::new();
    let mut page = Page::first(client.keys());
    loop {
        let answer = page.read(client, tried, true).await?;
        let named = |kv: &KeyValue| Some((client.keys().tail(&kv.key).parse().ok()?, kv.create_revision));
        found.extend(answer.kvs.iter().filter_map(named));
        if !answer.more {
            return Ok(found);
        }
    }
}

/// Reads one entry. `end` returns the expiry of an etcd lease.
pub(super) fn understand(keys: &Keys, kv: &KeyValue, end: impl Fn(i64) -> Option<u64>) -> Entry {
    let key = name(keys, kv);
    let held = key.parse::<SubnetKey>().ok();
    if kv.key.len() > LONGEST_KEY {
        return Entry::Broken {
            held: None,
            complaint: format!("row {key}: a key of {} bytes", kv.key.len()),
        };
    }
    if kv.value.len() > LONGEST_VALUE {
        let complaint = format!("row {key}: a value of {} bytes; a lease has a few hundred", kv.value.len());
        return Entry::Broken { held, complaint };
    }
    if held.is_some_and(|held| !held.is_readable_by_flannel()) {
        let complaint = format!("row {key}: an IPv6-only lease, which stock flannel nodes cannot read");
        return Entry::Broken { held, complaint };
    }
    let value = String::from_utf8_lossy(&kv.value).into_owned();
    let mut contents = rows::understand(vec![Row { key, value, expires: end(kv.lease) }]);
    match contents.leases.pop() {
        Some(lease) => Entry::Lease(lease),
        None => {
            let complaint = contents.complaints.pop_first().unwrap_or_default();
            Entry::Broken { held: contents.unreadable.pop(), complaint }
        }
    }
}

/// Returns a key as complaints print it.
pub(super) fn name(keys: &Keys, kv: &KeyValue) -> String {
    if kv.key.len() <= LONGEST_KEY {
        return keys.tail(&kv.key);
    }
    let beginning = kv.key.get(..LONGEST_KEY / 4).unwrap_or_default();
    format!("{}…", keys.tail(beginning).escape_debug())
}

impl Listing {
    fn take(&mut self, keys: &Keys, kv: &KeyValue, end: impl Fn(i64) -> Option<u64>) {
        if self.newest.as_ref().is_none_or(|newest| newest.modified < kv.mod_revision) {
            self.newest = Some(Witness::of(kv));
        }
        match understand(keys, kv, end) {
            Entry::Lease(lease) => {
                self.stored.insert(lease.key, Stored::of(kv));
                self.leases.push(lease);
            }
            Entry::Broken { held, complaint } => {
                self.unreadable.extend(held);
                self.complaints.insert(name(keys, kv), format!("{complaint}; skipped"));
            }
        }
    }
}

/// The request for the next page, and the header of the first answer.
struct Page(RangeRequest, ResponseHeader);

impl Page {
    fn first(keys: &Keys) -> Page {
        let (key, range_end) = (keys.leases().to_vec(), keys.leases_end());
        let request = RangeRequest { key, range_end, limit: PAGE, ..RangeRequest::default() };
        Page(request, ResponseHeader::default())
    }

    async fn read(
        &mut self,
        client: &Client,
        tried: &'static str,
        keys_only: bool,
    ) -> Result<RangeResponse, EtcdError> {
        self.0.keys_only = keys_only;
        let mut answer: RangeResponse = client.call(tried, RANGE, &self.0).await?;
        if self.0.revision == 0 {
            self.1 = answer.header.take().unwrap_or_default();
            self.0.revision = self.1.revision;
        }
        match answer.kvs.last() {
            Some(last) => {
                // The next possible key.
                self.0.key = last.key.clone();
                self.0.key.push(0);
            }
            // A page without entries is the last one, even if etcd announces more.
            None => answer.more = false,
        }
        Ok(answer)
    }
}
