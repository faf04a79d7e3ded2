//! What was logged about broken entries, so that each complaint is logged once.

use std::collections::BTreeMap;

/// Most complaints to log one by one.
const MOST: usize = 1000;

/// Complaints by the entry's name.
#[derive(Debug, Default)]
pub(crate) struct Complaints(BTreeMap<String, String>);

impl Complaints {
    /// Takes over the complaints of a listing: logs the new ones, drops those that are gone.
    pub(crate) fn replace(&mut self, current: &BTreeMap<String, String>) {
        self.0.retain(|name, _| current.contains_key(name));
        for (name, complaint) in current {
            self.add(name, complaint);
        }
    }

    pub(crate) fn add(&mut self, name: &str, complaint: &str) {
        if self.0.get(name).is_some_and(|known| known == complaint) {
            return;
        }
        match self.0.len() {
            ..MOST => tracing::warn!("lease store: {complaint}"),
            MOST => {
                tracing::warn!("lease store: further unreadable entries; skipped, not logged one by one")
            }
            _ => return,
        }
        self.0.insert(name.to_owned(), complaint.to_owned());
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }
}
