//! What is written to the API server, as JSON.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use super::annotations::Annotations;
use super::node::Node;

/// Who creates our events.
const COMPONENT: &str = "loden";

/// Returns the patch that writes annotations. It is sent to the subresource `status`, which flannel's role
/// allows.
pub(super) fn annotations(changes: &Annotations) -> String {
    json!({ "metadata": { "annotations": changes } }).to_string()
}

/// Returns the patch that says that the node's network is up, as flannel says it.
pub(super) fn network_available(unix: u64) -> String {
    let now = rfc3339(unix);
    json!({ "status": { "conditions": [{
        "type": "NetworkUnavailable",
        "status": "False",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
        "reason": "FlannelIsUp",
        "message": "Flannel is running on this node",
    }] } })
    .to_string()
}

/// Returns an event about a node.
pub(super) fn event(node: &Node, reason: &str, message: &str, unix: u64) -> String {
    let now = rfc3339(unix);
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "generateName": format!("{}.", node.name), "namespace": NAMESPACE },
        // As in a kubelet's events, by which `kubectl describe` finds them.
        "involvedObject": { "kind": "Node", "apiVersion": "v1", "name": node.name, "uid": node.name },
        "reason": reason,
        "message": message,
        "type": "Warning",
        "source": { "component": COMPONENT, "host": node.name },
        "reportingComponent": COMPONENT,
        "reportingInstance": node.name,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    })
    .to_string()
}

/// The namespace of events about what is in none.
pub(super) const NAMESPACE: &str = "default";

fn rfc3339(unix: u64) -> String {
    // The formatter has no year 10000.
    let latest = Duration::from_secs(unix.min(253_402_300_799));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + latest).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_those_that_flannel_sends() {
        let changes = Annotations::from([("a/b".to_owned(), r#"{"VNI":1}"#.to_owned())]);
        assert_eq!(annotations(&changes), r#"{"metadata":{"annotations":{"a/b":"{\"VNI\":1}"}}}"#);
        let body: serde_json::Value = serde_json::from_str(&network_available(1_767_225_600)).expect("JSON");
        let condition = &body["status"]["conditions"][0];
        assert_eq!(condition["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert_eq!(condition["message"], "Flannel is running on this node");
        network_available(u64::MAX);
    }
}
