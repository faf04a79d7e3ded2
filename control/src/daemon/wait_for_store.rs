//! What a start waits for: a store that answers, with a configuration and a lease. Giving up would only make
//! the service manager start the daemon again.

use std::collections::BTreeSet;
use std::time::Duration;

use model::lease::{Lease, LeaseAttrs, SubnetKey};
use model::net_config::NetConfig;
use tokio::time::sleep;

use super::error::DaemonError;
use crate::persist::disk;
use crate::settings::{NetConfigFileError, Settings};
use store::etcd::Config;
use store::lease::same_node;
use store::{Event, Kind, Owned, Spec, Store, StoreError, Wish};

/// The time between two attempts, as in flannel.
const RETRY: Duration = Duration::from_secs(1);

/// What to go by while the store fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// The store alone: an error that only a person can mend ends the start.
    Store,
    /// The memory, from which the node forwards: every error of the store may pass.
    Memory,
}

impl Trust {
    fn waits_for(self, error: &StoreError) -> bool {
        // Where no subnet is left, another node has ours.
        error.is_passing() || (self == Trust::Memory && !matches!(error, StoreError::OutOfSubnets(_)))
    }
}

/// Waits for the network configuration, after putting the one from the command line into the store. Returns
/// its text as well.
pub(super) async fn network_config(
    store: &Store,
    settings: &Settings,
    trust: Trust,
) -> Result<(String, NetConfig), DaemonError> {
    let known = settings.clone();
    let given = disk::once(move || known.net_config_text())
        .await
        .unwrap_or_else(|error| Err(NetConfigFileError::unanswered(settings, error)))?;
    let attempt = async || store.network(given.as_deref()).await;
    let network = Patience::new(settings).outlast(|error| trust.waits_for(error), attempt).await?;
    for warning in network.warnings {
        tracing::warn!("{warning}");
    }
    Ok((network.text, network.config))
}

/// Waits for what this node has published before, if anything.
pub(super) async fn published(
    store: &Store,
    attrs: &LeaseAttrs,
    previous: Option<SubnetKey>,
) -> Result<Option<LeaseAttrs>, StoreError> {
    let attempt = async || store.published(attrs, previous).await;
    Patience::default().outlast(StoreError::is_passing, attempt).await
}

/// Waits for what the store says of the node itself.
pub(super) async fn look_at_node(store: &Store) -> Result<(), StoreError> {
    Patience::default().outlast(StoreError::is_passing, async || store.look_at_node().await).await
}

/// Waits until no stored lease has the address of `ours`, or until the time is `over`. Returns true if there
/// is none.
pub(super) async fn end_of_twin(store: &Store, ours: &LeaseAttrs, over: impl Future<Output = ()>) -> bool {
    let mut watch = store.watch();
    let end = async {
        let mut twin = Twin::default();
        while !twin.has_gone(watch.next().await, ours) {}
    };
    tokio::select! {
        () = end => true,
        () = over => false,
    }
}

/// The leases of other daemons with our address.
#[derive(Debug, Default)]
struct Twin(BTreeSet<SubnetKey>);

impl Twin {
    /// Takes in an event; returns true if no lease has the address of `ours`. A store that has lost leases
    /// says nothing of them: their nodes put them back.
    fn has_gone(&mut self, event: Event, ours: &LeaseAttrs) -> bool {
        let is_theirs = |lease: &&Lease| same_node(ours, &lease.attrs);
        match event {
            Event::Snapshot(leases) => {
                self.0 = leases.iter().filter(is_theirs).map(|lease| lease.key).collect()
            }
            Event::Rewind(leases) => self.0.extend(leases.iter().filter(is_theirs).map(|lease| lease.key)),
            Event::Put(lease) if is_theirs(&&lease) => _ = self.0.insert(lease.key),
            Event::Put(Lease { key, .. }) | Event::Removed(key) => _ = self.0.remove(&key),
        }
        self.0.is_empty()
    }
}

/// Waits for our lease.
pub(super) async fn first_lease(store: &Store, wish: &Wish<'_>, trust: Trust) -> Result<Owned, StoreError> {
    let attempt = async || store.acquire(wish).await;
    Patience::default().outlast(|error| trust.waits_for(error), attempt).await
}

/// Reports to the store that this node is ready. A failure is logged and ends nothing.
pub(super) async fn announce_ready(store: &Store) {
    let attempt = async || store.announce_ready().await;
    if let Err(error) = Patience::default().outlast(StoreError::is_passing, attempt).await {
        tracing::error!("cannot report this node as ready to the lease store: {error}");
    }
}

/// Attempts between two log lines at most: once an hour.
const LOG_EVERY: u32 = 3600;

/// Waits between attempts and logs why: at once for each kind of failure, then less and less often.
#[derive(Debug, Default)]
struct Patience {
    tries: u32,
    kind: Option<Kind>,
    why: String,
    /// What is said of etcd's default endpoints, where nobody has asked for them.
    default: Option<String>,
}

impl Patience {
    fn new(settings: &Settings) -> Patience {
        Patience { default: default_store(settings), ..Patience::default() }
    }

    /// Repeats `attempt` until it succeeds, or fails by an error that is not waited for.
    async fn outlast<T>(
        mut self,
        waits_for: impl Fn(&StoreError) -> bool,
        attempt: impl AsyncFn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        loop {
            match attempt().await {
                Err(error) if waits_for(&error) => self.wait(&error).await,
                outcome => return self.end(outcome),
            }
        }
    }

    async fn wait(&mut self, error: &StoreError) {
        if self.handle(error) {
            tracing::error!(tries = self.tries, "waiting for the lease store: {}; retrying", self.why);
        }
        sleep(RETRY).await;
    }

    /// Ends the wait with the last answer, and logs that the failure has passed if that is so.
    fn end<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        if answer.is_ok() && self.tries > 0 {
            tracing::info!("resolved: {}", self.why);
        }
        answer
    }

    /// Takes in a failure; returns true if it is to be logged.
    fn handle(&mut self, error: &StoreError) -> bool {
        let kind = Some(error.kind());
        if kind != self.kind {
            (self.tries, self.kind) = (0, kind);
        }
        self.why = match &self.default {
            Some(advice) if error.is_unreachable() => advice.clone(),
            _ => error.to_string(),
        };
        self.tries = self.tries.saturating_add(1);
        self.tries.is_power_of_two() || self.tries.is_multiple_of(LOG_EVERY)
    }
}

/// Returns what to say if there is no etcd at the default endpoints and no store was given.
fn default_store(settings: &Settings) -> Option<String> {
    let Spec::Etcd(config) = &settings.store else { return None };
    if settings.store_given || config.endpoints != Config::default().endpoints {
        return None;
    }
    let places: Vec<&str> =
        config.endpoints.iter().map(|endpoint| endpoint.trim_start_matches("http://")).collect();
    Some(format!(
        "no etcd at {} (the default, since no --store was given); on one machine try --store sqlite:PATH",
        places.join(" or ")
    ))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use store::etcd::EtcdError;
    use store::{Memory, StoreError};
    use tokio::sync::oneshot;

    use super::*;

    fn unreachable(endpoint: &str) -> StoreError {
        let (endpoint, answer) = (endpoint.to_owned(), format!("connection refused by {endpoint}"));
        EtcdError::Unreachable { tried: "read the network configuration", endpoint, answer }.into()
    }

    #[test]
    fn endpoints_that_take_turns_are_one_failure_ever_more_seldom() {
        let mut patience = Patience::new(&Settings { store_given: true, ..Settings::default() });
        let ports = ["4001", "2379"].into_iter().cycle();
        let logged: Vec<u32> = ports
            .take(10_000)
            .filter_map(|port| {
                let logged = patience.handle(&unreachable(&format!("http://127.0.0.1:{port}")));
                logged.then_some(patience.tries)
            })
            .collect();
        let expected = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 4096, 7200, 8192];
        assert_eq!(logged, expected);
        assert!(patience.why.contains("http://127.0.0.1:2379"), "{}", patience.why);
        assert!(patience.handle(&EtcdError::Contended { rounds: 9 }.into()), "another kind");
        assert_eq!(patience.tries, 1);
    }

    fn attrs(host: u8) -> LeaseAttrs {
        LeaseAttrs::parse(&format!(r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":null}}"#))
            .expect("attributes")
    }

    #[test]
    fn a_twin_has_gone_with_its_last_lease_and_not_with_a_store_that_was_wiped() {
        let key = |third: u8| format!("10.3.{third}.0-24").parse().expect("a key");
        let lease = |third, host| Lease { key: key(third), attrs: attrs(host), expires: None };
        let ours = attrs(1);
        let mut twin = Twin::default();
        for (event, gone) in [
            (Event::Snapshot(vec![lease(1, 1), lease(2, 2)]), false),
            (Event::Removed(key(2)), false),
            (Event::Put(lease(3, 3)), false),
            (Event::Put(lease(1, 1)), false),
            (Event::Rewind(Vec::new()), false),
            (Event::Put(lease(4, 1)), false),
            (Event::Removed(key(1)), false),
            // Its operator has given it an address of its own.
            (Event::Put(lease(4, 7)), true),
            (Event::Rewind(vec![lease(5, 1)]), false),
            (Event::Snapshot(vec![lease(3, 3)]), true),
            (Event::Put(lease(6, 1)), false),
            (Event::Removed(key(6)), true),
        ] {
            assert_eq!(twin.has_gone(event.clone(), &ours), gone, "{event:?}");
        }
    }

    /// The clock is the test's: without an end of its time, only the end of the lease ends the wait.
    #[tokio::test]
    async fn a_twin_is_waited_for_until_its_lease_is_gone_and_not_longer() {
        let memory = Memory::new();
        let (key, ours) = ("10.3.1.0-24", attrs(1));
        memory.put_row(key, &ours.to_json(), None);
        let store = Store::Memory(memory);
        let (over, end) = oneshot::channel();
        let over_soon = async {
            sleep(Duration::ZERO).await;
            over.send(()).expect("it waits");
        };
        let end = async { end.await.expect("the end") };
        assert_eq!(tokio::join!(end_of_twin(&store, &ours, end), over_soon), (false, ()));
        let removed = async {
            sleep(Duration::ZERO).await;
            store.remove(&key.parse().expect("a key")).await
        };
        let (gone, removed) = tokio::join!(end_of_twin(&store, &ours, pending()), removed);
        assert_eq!((gone, removed), (true, Ok(true)));
        assert!(end_of_twin(&store, &ours, pending()).await, "none at all");
    }

    #[test]
    fn a_store_that_nobody_asked_for_is_explained() {
        let mut patience = Patience::new(&Settings::default());
        assert!(patience.handle(&unreachable("http://127.0.0.1:4001")));
        assert_eq!(
            patience.why,
            "no etcd at 127.0.0.1:4001 or 127.0.0.1:2379 (the default, since no --store was given); on one \
             machine try --store sqlite:PATH"
        );
        let config = Config { endpoints: vec!["http://10.0.0.1:2379".into()], ..Config::default() };
        let given = Settings { store: Spec::Etcd(config), ..Settings::default() };
        assert_eq!(default_store(&given), None);
    }
}
