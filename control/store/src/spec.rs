//! The kind of a store and its place, as `--store` gives them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use model::error::{ConfigError, Warning};
use model::net_config::{self, NetConfig};

use crate::{Memory, etcd, kube};

/// Names a store. The default is flannel's: etcd with its default options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// An etcd cluster. The text `etcd` stands for the default options.
    Etcd(etcd::Config),
    /// A Kubernetes cluster. flannel's flag chooses it, so no text stands for it.
    Kube(kube::Config),
    /// The sqlite file at this path.
    Sqlite(PathBuf),
    /// This store in memory. The text `memory:` creates a new one.
    Memory(Memory),
}

/// Tells one store from another, without options that may change while the store stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreId {
    /// Kind and path, or kind and prefix.
    pub name: String,
    /// The addresses of a cluster, sorted.
    pub endpoints: Vec<String>,
}

impl StoreId {
    /// Returns true if both may be the same store. A cluster whose endpoints are all others is another one:
    /// its identity shows only once it answers.
    pub fn may_be(&self, other: &StoreId) -> bool {
        let shared = self.endpoints.iter().any(|endpoint| other.endpoints.contains(endpoint));
        self.name == other.name && (shared || (self.endpoints.is_empty() && other.endpoints.is_empty()))
    }
}

impl Spec {
    /// Parses a network configuration by the rules that bind it in this kind of store.
    pub fn parse(&self, text: &str) -> Result<(NetConfig, Vec<Warning>), ConfigError> {
        match self {
            Spec::Kube(_) => net_config::parse_assigned(text),
            Spec::Etcd(_) | Spec::Sqlite(_) | Spec::Memory(_) => net_config::parse(text),
        }
    }

    /// Returns what identifies the store.
    pub fn id(&self) -> StoreId {
        match self {
            Spec::Etcd(config) => config.id(),
            Spec::Kube(config) => config.id(),
            Spec::Sqlite(path) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                StoreId { name: format!("sqlite:{}", path.display()), endpoints: Vec::new() }
            }
            Spec::Memory(_) => StoreId { name: "memory:".to_owned(), endpoints: Vec::new() },
        }
    }
}

/// A text that does not name a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("store {spec:?}: unknown kind; write etcd, sqlite:PATH or memory:")]
pub struct SpecError {
    spec: String,
}

/// Reads `etcd`, `sqlite:PATH` or `memory:`.
impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Spec, SpecError> {
        match text.split_once(':') {
            None if text == "etcd" => Ok(Spec::Etcd(etcd::Config::default())),
            Some(("sqlite", path)) if !path.is_empty() => Ok(Spec::Sqlite(path.into())),
            Some(("memory", "")) => Ok(Spec::Memory(Memory::new())),
            _ => Err(SpecError { spec: text.to_owned() }),
        }
    }
}

/// Writes the text that names this kind and place, without etcd's options, among them the password.
impl fmt::Display for Spec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spec::Etcd(_) => formatter.write_str("etcd"),
            Spec::Kube(_) => formatter.write_str("kubernetes"),
            Spec::Sqlite(path) => write!(formatter, "sqlite:{}", path.display()),
            Spec::Memory(_) => formatter.write_str("memory:"),
        }
    }
}

impl Default for Spec {
    fn default() -> Spec {
        Spec::Etcd(etcd::Config::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[test]
    fn each_kind_is_written_as_it_is_read() {
        for text in ["etcd", "sqlite:/var/lib/leases.db", "sqlite:leases.db", "sqlite:a:b", "memory:"] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
        assert_eq!("etcd".parse(), Ok(Spec::default()));
        assert_eq!("sqlite:a:b".parse(), Ok(Spec::Sqlite("a:b".into())));
    }

    #[tokio::test]
    async fn stores_that_do_not_exist() {
        for spec in ["", "sqlite", "sqlite:", "memory", "memory:x", "etcd:", "/var/lib/leases.db"] {
            assert_eq!(
                spec.parse::<Spec>().unwrap_err().to_string(),
                format!("store {spec:?}: unknown kind; write etcd, sqlite:PATH or memory:")
            );
        }
        assert!(matches!(Store::open("memory:".parse().unwrap()).await, Ok(Store::Memory(_))));
    }

    #[test]
    fn a_store_in_memory_is_named_by_its_handle() {
        let store = Memory::new();
        assert_eq!(Spec::Memory(store.clone()), Spec::Memory(store.clone()));
        assert_ne!(Spec::Memory(store), Spec::Memory(Memory::new()));
    }

    #[test]
    fn an_id_is_that_of_one_store() {
        let etcd = |prefix: &str, endpoints: &[&str]| {
            let endpoints = endpoints.iter().map(|&text| text.to_owned()).collect();
            Spec::Etcd(etcd::Config { prefix: prefix.to_owned(), endpoints, ..etcd::Config::default() })
        };
        let sqlite = |path: &str| Spec::Sqlite(path.into());
        for (one, other, same) in [
            (sqlite("/a/leases.db"), sqlite("/a/leases.db"), true),
            (sqlite("/a/leases.db"), sqlite("/b/leases.db"), false),
            (sqlite("leases.db"), sqlite("./leases.db"), true),
            (sqlite("/a/leases.db"), Spec::default(), false),
            (Spec::default(), Spec::Memory(Memory::new()), false),
            (Spec::default(), Spec::default(), true),
            // A member was added, another removed, and slashes are cleaned.
            (etcd("/n", &["http://a:1", "http://b:1"]), etcd("/n//", &["b:1", "c:1"]), true),
            (etcd("/n", &["http://a:1"]), etcd("/m", &["http://a:1"]), false),
            (etcd("/n", &["http://a:1"]), etcd("/n", &["http://b:1"]), false),
            (etcd("/n", &["x y"]), etcd("/n", &["x y"]), true),
        ] {
            assert_eq!(one.id().may_be(&other.id()), same, "{one:?} {other:?}");
        }
    }
}
