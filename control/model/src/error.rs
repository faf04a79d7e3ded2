//! Errors in a network configuration, and warnings.

use std::fmt;

/// A legal setting that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// There is no Backend: flannel's documentation says that this means vxlan, its code says udp.
    NoBackend,
    /// A key that no version of flannel reads.
    UnknownKey {
        /// The key as written, with the prefix `Backend.` for keys of the backend.
        key: String,
        /// The key that may be meant.
        meant: Option<&'static str>,
    },
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is not a JSON object.
    #[error("network configuration: not a JSON object: {0}")]
    Syntax(String),
    /// A key whose value breaks a rule.
    #[error("network configuration: {key} = {value}: {rule}")]
    Key {
        /// The key as flannel spells it, with the prefix `Backend.` for keys of the backend.
        key: String,
        /// The value as written, shortened; `(absent)` if there is none.
        value: String,
        /// The rule.
        rule: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::NoBackend => formatter.write_str(
                "network configuration: no Backend, so the backend is udp, not vxlan, \
                 and every node of the cluster must use udp; set Backend.Type to choose another",
            ),
            Warning::UnknownKey { key, meant } => {
                write!(formatter, "network configuration: {key}: unknown key, ignored")?;
                meant.map_or(Ok(()), |meant| write!(formatter, "; is {meant} meant?"))
            }
        }
    }
}
