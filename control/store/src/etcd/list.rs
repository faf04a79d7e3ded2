//! All leases, page by page. Each entry is understood on its own: a broken one spoils no other.

use std::collections::BTreeMap;

use model::lease::{Lease, SubnetKey};

use super::RANGE;
use super::client::Client;
use super::error::EtcdError;
use super::keys::Keys;
use super::messages::{KeyValue, RangeRequest, RangeResponse};
use crate::rows::{self, Row};

/// Entries a page: with the largest values that etcd takes by default, 1.5 MiB, a page is 192 MiB.
const PAGE: i64 = 128;
/// How often to begin again when what we list is compacted meanwhile.
const RESTARTS: u32 = 3;
/// No lease is larger; what is, is not kept in memory.
const LONGEST_VALUE: usize = 64 << 10;
/// The longest key of a lease is shorter by far.
const LONGEST_KEY: usize = 256;
/// More complaints than these are not told one by one.
const MOST_COMPLAINTS: usize = 1000;

/// The leases as of one revision.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) leases: Vec<Lease>,
    /// How each of them is stored.
    pub(super) stored: BTreeMap<SubnetKey, Stored>,
    /// Subnets that are named by an entry of no other use.
    pub(super) unreadable: Vec<SubnetKey>,
    /// What is wrong with an entry, by the entry's key.
    pub(super) complaints: BTreeMap<String, String>,
    pub(super) revision: i64,
}

/// How a key is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// Id of its etcd lease; 0 for a reservation.
    pub(super) lease: i64,
    /// Revision of its last change.
    pub(super) modified: i64,
}

/// One entry, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Lease(Lease),
    /// No lease, and why; but it may name a subnet, which is held then.
    Broken {
        held: Option<SubnetKey>,
        complaint: String,
    },
}

/// What was said about broken entries, so that it is said once.
#[derive(Debug, Default)]
pub(super) struct Complaints(BTreeMap<String, String>);

impl Stored {
    pub(super) fn of(kv: &KeyValue) -> Stored {
        Stored { lease: kv.lease, modified: kv.mod_revision }
    }
}

/// Reads the leases, all of one revision.
pub(super) async fn all(
    client: &Client,
    tried: &'static str,
    end: impl Fn(i64) -> Option<u64>,
) -> Result<Listing, EtcdError> {
    let mut restarts = 0;
    'anew: loop {
        let mut listing = Listing::default();
        let mut page = Page::first(client.keys());
        loop {
            let answer = match page.read(client, tried, false).await {
                Err(EtcdError::Compacted { .. }) if restarts < RESTARTS => {
                    restarts += 1;
                    continue 'anew;
                }
                answer => answer?,
            };
            for kv in &answer.kvs {
                listing.take(client.keys(), kv, &end);
            }
            if !answer.more {
                listing.revision = page.0.revision;
                return Ok(listing);
            }
        }
    }
}

/// Every subnet that a key names, and the revision that created the key.
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

/// Reads one entry. `end` knows when an etcd lease runs out.
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
        let complaint =
            format!("row {key}: a value of {} bytes, and a lease has some hundred", kv.value.len());
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

/// A key as complaints call it.
pub(super) fn name(keys: &Keys, kv: &KeyValue) -> String {
    if kv.key.len() <= LONGEST_KEY {
        return keys.tail(&kv.key);
    }
    let beginning = kv.key.get(..LONGEST_KEY / 4).unwrap_or_default();
    format!("{}…", keys.tail(beginning).escape_debug())
}

impl Listing {
    fn take(&mut self, keys: &Keys, kv: &KeyValue, end: impl Fn(i64) -> Option<u64>) {
        match understand(keys, kv, end) {
            Entry::Lease(lease) => {
                self.stored.insert(lease.key, Stored::of(kv));
                self.leases.push(lease);
            }
            Entry::Broken { held, complaint } => {
                self.unreadable.extend(held);
                self.complaints.insert(name(keys, kv), complaint);
            }
        }
    }
}

impl Complaints {
    /// After a listing: warns of what is new, forgets what is gone.
    pub(super) fn replace(&mut self, current: &BTreeMap<String, String>) {
        self.0.retain(|name, _| current.contains_key(name));
        for (name, complaint) in current {
            self.add(name, complaint);
        }
    }

    pub(super) fn add(&mut self, name: &str, complaint: &str) {
        if self.0.get(name).is_some_and(|known| known == complaint) {
            return;
        }
        match self.0.len() {
            ..MOST_COMPLAINTS => tracing::warn!("lease store: {complaint}; skipped"),
            MOST_COMPLAINTS => tracing::warn!("lease store: and more entries that make no sense; skipped"),
            _ => return,
        }
        self.0.insert(name.to_owned(), complaint.to_owned());
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }
}

/// The request for the next page.
struct Page(RangeRequest);

impl Page {
    fn first(keys: &Keys) -> Page {
        let (key, range_end) = (keys.leases().to_vec(), keys.leases_end());
        Page(RangeRequest { key, range_end, limit: PAGE, ..RangeRequest::default() })
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
            self.0.revision = answer.header.take().unwrap_or_default().revision;
        }
        match answer.kvs.last() {
            Some(last) => {
                // The next key there can be.
                self.0.key = last.key.clone();
                self.0.key.push(0);
            }
            // A page without entries is the last one, whatever it says.
            None => answer.more = false,
        }
        Ok(answer)
    }
}
