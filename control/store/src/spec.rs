//! The kind of a store and its place, as `--store` gives them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{Memory, etcd};

/// Names a store. The default is flannel's: etcd with its default options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// An etcd cluster. The text `etcd` stands for the default options.
    Etcd(etcd::Config),
    /// The sqlite file at this path.
    Sqlite(PathBuf),
    /// This store in memory. The text `memory:` creates a new one.
    Memory(Memory),
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
}
