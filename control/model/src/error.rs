//! What can be wrong with a network configuration, and what is merely odd.

use std::fmt;

/// Something legal that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// Flannel's documents say vxlan, its code says udp.
    NoBackend,
    /// A key that no flannel reads.
    UnknownKey {
        /// The key as written, `Backend.` before one of the backend's.
        key: String,
    },
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a JSON object.
    #[error("network configuration: not a JSON object: {0}")]
    Syntax(String),
    /// A key whose value breaks a rule.
    #[error("network configuration: {key} = {value}: {rule}")]
    Key {
        /// The key as flannel spells it, `Backend.` before one of the backend's.
        key: String,
        /// The value as written, shortened; `(absent)` for a missing one.
        value: String,
        /// The rule.
        rule: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::NoBackend => formatter.write_str(
                "network configuration: no Backend, which means udp, not vxlan: \
                 every node of the cluster must use udp too; write a Backend with a Type to choose",
            ),
            Warning::UnknownKey { key } => {
                write!(formatter, "network configuration: {key}: unknown key, not used")
            }
        }
    }
}
