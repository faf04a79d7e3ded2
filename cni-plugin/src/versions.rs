//! Versions of the specification that the delegate and its IPAM plugin support.

use std::time::Instant;

use serde_json::Value;

use crate::invoke::{InvokeError, Plugin};
use crate::reply::{Code, Failure, VERSIONS};
use crate::request::Request;

/// The part of a request's time that a plugin has to say what it supports.
const SHARE: u32 = 4;

/// Rejects a configuration whose version the delegate, or the IPAM plugin that it calls, does not support:
/// what such a plugin created, it could not delete either. A plugin that does not tell is trusted.
pub fn check(request: &Request, config: &Value, deadline: Instant) -> Result<(), InvokeError> {
    let version = version_of(config);
    let name = |config: &Value| config["type"].as_str().unwrap_or_default().to_owned();
    let (delegate, ipam) = (name(config), name(&config["ipam"]));
    for (name, is_ipam) in [(&delegate, false), (&ipam, true)] {
        let timeout = deadline.saturating_duration_since(Instant::now()) / SHARE;
        let plugin = Plugin { name, path: &request.path, timeout, lock: None };
        let supported = match plugin.versions(version) {
            Ok(Some(supported)) => supported,
            Ok(None) => continue,
            // Not every delegate calls the IPAM plugin, so a missing one is no reason to fail.
            Err(InvokeError::NotStarted(failure)) if is_ipam && failure.code != Code::BadConfig as u64 => {
                continue;
            }
            Err(error) => return Err(error),
        };
        if !supported.iter().any(|one| one == version) {
            let message = format!("the plugin {name} does not support CNI {version}");
            let details = format!(
                "it supports {}: set cniVersion to a version that the delegate and its IPAM plugin support, \
                 or install newer CNI plugins",
                supported.join(", ")
            );
            return Err(InvokeError::Failed(Failure::new(Code::IncompatibleVersion, message, details)));
        }
    }
    Ok(())
}

/// Returns the configuration in its own version, then in each earlier one, newest first, and then in each
/// later one.
pub fn in_turn(config: &Value) -> impl Iterator<Item = Value> {
    let own = version_of(config);
    let at = VERSIONS.iter().position(|version| *version == own);
    let (earlier, later) = VERSIONS.split_at(at.unwrap_or(VERSIONS.len()));
    let later = later.iter().skip(usize::from(at.is_some()));
    let others = earlier.iter().rev().chain(later).map(|version| {
        let mut config = config.clone();
        config["cniVersion"] = (*version).into();
        config
    });
    std::iter::once(config.clone()).chain(others)
}

/// Returns the version of a configuration, the first one if it names none.
fn version_of(config: &Value) -> &str {
    config["cniVersion"].as_str().filter(|version| !version.is_empty()).unwrap_or(VERSIONS[0])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_go_down_first_and_each_comes_once() {
        for (own, expected) in [
            (json!("1.0.0"), "1.0.0 0.4.0 0.3.1 0.3.0 0.2.0 0.1.0 1.1.0"),
            (json!("0.1.0"), "0.1.0 0.2.0 0.3.0 0.3.1 0.4.0 1.0.0 1.1.0"),
            (json!("1.1.0"), "1.1.0 1.0.0 0.4.0 0.3.1 0.3.0 0.2.0 0.1.0"),
            (json!("1.2.0"), "1.2.0 1.1.0 1.0.0 0.4.0 0.3.1 0.3.0 0.2.0 0.1.0"),
            (json!(null), "null 0.2.0 0.3.0 0.3.1 0.4.0 1.0.0 1.1.0"),
        ] {
            let config = json!({"name": "n", "cniVersion": own});
            let all: Vec<Value> = in_turn(&config).collect();
            let versions: Vec<&str> =
                all.iter().map(|one| one["cniVersion"].as_str().unwrap_or("null")).collect();
            assert_eq!(versions.join(" "), expected);
            assert!(all.iter().all(|one| one["name"] == "n"));
        }
    }
}
