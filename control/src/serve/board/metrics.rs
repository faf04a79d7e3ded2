//! Renders the board in Prometheus' text format, version 0.0.4.
//!
//! The numbers already exist in the workers' counter pages and on the board; a client library would only keep
//! a second copy. Each line of the format is a name, labels and a number.

use std::fmt::{Display, Write as _};
use std::time::Instant;

use super::state::{Origin, State};

/// The metrics for the engine's flow counters, with their help texts; the direction becomes a label.
const FLOWS: [(&str, &str); 5] = [
    ("packets", "Packets or super-packets received."),
    ("bytes", "Bytes received."),
    ("delivered", "Packets forwarded."),
    ("replies", "ICMP errors sent back."),
    ("suppressed_replies", "ICMP errors not sent back, because there were too many."),
];

/// Returns the additional labels of an engine counter that belongs to a family; `None` for other counters.
type Members<'a> = &'a dyn Fn(&str) -> Option<Vec<(&'static str, String)>>;

/// Text under construction.
struct Page(String);

pub(super) fn render(origin: &Origin, state: &State, now: u64, instant: Instant) -> String {
    let mut page = Page(String::new());
    page.head("loden_info", "gauge", "The running version.");
    page.line("loden_info", &[("version", &env!("CARGO_PKG_VERSION")), ("instance", &origin.instance)], 1);
    page.single("loden_ready", "gauge", "Whether the daemon has been ready.", u64::from(state.was_ready));
    page.single("loden_start_time_seconds", "gauge", "Unix time of the start.", origin.started);
    if let Some(age) = state.turn_age(instant) {
        page.single(
            "loden_control_turn_age_seconds",
            "gauge",
            "Time since the control loop last turned; it turns every second.",
            age.as_secs(),
        );
    }
    lease(&mut page, state, now);
    store(&mut page, state, now);
    let reconcile = &state.reconcile;
    page.single(
        "loden_reconcile_runs_total",
        "counter",
        "Comparisons of the host with the plan.",
        reconcile.runs,
    );
    page.single(
        "loden_reconcile_changes_total",
        "counter",
        "Changes made by the comparisons.",
        reconcile.changes,
    );
    let failures = reconcile.failures.len();
    page.single(
        "loden_reconcile_failures",
        "gauge",
        "Changes that the kernel rejected in the last comparison.",
        failures,
    );
    peers(&mut page, state);
    tunnels(&mut page, state);
    page.0
}

fn lease(page: &mut Page, state: &State, now: u64) {
    let Some(own) = &state.own else { return };
    if let Some(renewed) = state.renewed {
        let age = now.saturating_sub(renewed);
        page.single(
            "loden_lease_age_seconds",
            "gauge",
            "Time since this node's lease was last written.",
            age,
        );
    }
    if let Some(expires) = own.expires {
        page.single(
            "loden_lease_expires_time_seconds",
            "gauge",
            "Unix time of this node's lease's expiry.",
            expires,
        );
    }
}

fn store(page: &mut Page, state: &State, now: u64) {
    if let Some(health) = &state.store_health {
        let blind = health.lost_since().map_or(0, |since| now.saturating_sub(since));
        page.single(
            "loden_watch_blind_seconds",
            "gauge",
            "Time for which the leases have been unreadable; 0 while they are readable.",
            blind,
        );
    }
    page.head("loden_store_request_duration_seconds", "summary", "Requests to the store.");
    for (operation, calls) in &state.calls {
        let labels: [(&str, &dyn Display); 1] = [("operation", operation)];
        page.line("loden_store_request_duration_seconds_sum", &labels, calls.time.as_secs_f64());
        page.line("loden_store_request_duration_seconds_count", &labels, calls.count);
    }
    page.head("loden_store_errors_total", "counter", "Requests that failed.");
    for (operation, calls) in &state.calls {
        page.line("loden_store_errors_total", &[("operation", operation)], calls.errors);
    }
}

fn peers(page: &mut Page, state: &State) {
    let Some(plan) = &state.plan else { return };
    page.head("loden_peers", "gauge", "Subnets of other nodes that packets are sent to.");
    for tunnel in &plan.tunnels {
        page.line("loden_peers", &[("tunnel", &tunnel.link.device)], tunnel.peers.len());
    }
    if let Some(direct) = &plan.direct {
        page.line("loden_peers", &[("tunnel", &"")], direct.routes.len());
    }
    let ignored = plan.ignored.len();
    page.single("loden_ignored_leases", "gauge", "Leases in the store that the plan leaves out.", ignored);
}

fn tunnels(page: &mut Page, state: &State) {
    let Some(engine) = &state.engine else { return };
    page.head("loden_feature_enabled", "gauge", "Whether an offload is in use.");
    for chosen in engine.chosen() {
        for (feature, on) in chosen.features.named() {
            let labels: [(&str, &dyn Display); 2] = [("tunnel", &chosen.device), ("feature", &feature)];
            page.line("loden_feature_enabled", &labels, u8::from(on));
        }
    }
    let status = engine.status();
    page.head(
        "loden_path_mtu_peers",
        "gauge",
        "Peers whose path carries only smaller packets than the tunnel.",
    );
    for tunnel in &status.tunnels {
        page.line("loden_path_mtu_peers", &[("tunnel", &tunnel.device)], tunnel.paths.limits.len());
    }
    page.head("loden_path_mtu_messages_total", "counter", "ICMP messages about path MTUs.");
    for tunnel in &status.tunnels {
        for (result, count) in [("believed", tunnel.paths.believed), ("ignored", tunnel.paths.ignored)] {
            let labels: [(&str, &dyn Display); 2] = [("tunnel", &tunnel.device), ("result", &result)];
            page.line("loden_path_mtu_messages_total", &labels, count);
        }
    }
    page.head(
        "loden_unread_drops_total",
        "counter",
        "Packets that the kernel dropped before a worker read them.",
    );
    for tunnel in &status.tunnels {
        for (direction, count) in [("egress", tunnel.unread.egress), ("ingress", tunnel.unread.ingress)] {
            let labels: [(&str, &dyn Display); 2] = [("tunnel", &tunnel.device), ("direction", &direction)];
            if let Some(count) = count {
                page.line("loden_unread_drops_total", &labels, count);
            }
        }
    }
    // The lines of one name must be adjacent, so all counters are visited for each name.
    let mut family = |name: &str, help: &str, of: Members<'_>| {
        page.head(name, "counter", help);
        for tunnel in &status.tunnels {
            for (worker, counters) in tunnel.workers.iter().enumerate() {
                for (counter, value) in counters {
                    let Some(more) = of(counter) else { continue };
                    let mut labels: Vec<(&str, &dyn Display)> =
                        vec![("tunnel", &tunnel.device), ("worker", &worker)];
                    labels.extend(more.iter().map(|(key, value)| (*key, value as &dyn Display)));
                    page.line(name, &labels, value);
                }
            }
        }
    };
    for (kind, help) in FLOWS {
        family(&format!("loden_{kind}_total"), help, &|counter| {
            let (direction, rest) = counter.split_once('.')?;
            let flow = matches!(direction, "egress" | "ingress") && rest == kind;
            flow.then(|| vec![("direction", direction.to_owned())])
        });
    }
    family("loden_drops_total", "Packets dropped, by reason.", &|counter| {
        let (direction, reason) = counter.split_once(".drop.")?;
        Some(vec![("direction", direction.to_owned()), ("reason", reason.to_owned())])
    });
    family("loden_port_total", "Events of the TUN queues and UDP sockets.", &|counter| {
        let (port, event) = counter.split_once('.')?;
        let is_port = matches!(port, "overlay" | "underlay");
        is_port.then(|| vec![("port", port.to_owned()), ("event", event.to_owned())])
    });
    family("loden_loop_total", "Events of the workers' loops.", &|counter| {
        Some(vec![("event", counter.strip_prefix("loop.")?.to_owned())])
    });
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.0.push_str(name);
        for (position, (key, text)) in labels.iter().enumerate() {
            let text = text.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{key}=\"{text}\"", if position == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, &[], value);
    }
}

#[cfg(test)]
mod tests {
    use crate::serve::board::{Board, Phase};

    #[test]
    fn lines_are_prometheus_text() {
        let board = Board::new("odd \"name\"\\", "memory:");
        board.set_phase(Phase::Ready);
        board.reconciled(3, vec!["refused".into()]);
        let text = board.metrics();
        assert!(
            text.contains("loden_ready 1\n") && text.contains("loden_reconcile_changes_total 3\n"),
            "{text}"
        );
        assert!(text.contains(r#"instance="odd \"name\"\\"} 1"#), "{text}");
        let mut named = std::collections::BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert!(named.insert(rest.split(' ').next().unwrap_or_default().to_owned()), "twice: {line}");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').expect("a value");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                let name = name.split('{').next().unwrap_or_default();
                assert!(named.iter().any(|family| name.starts_with(family.as_str())), "{line}");
            }
        }
    }

    #[tokio::test]
    async fn requests_are_timed_by_kind() {
        let board = Board::new("one", "memory:");
        let _: Result<(), ()> = board.timed("renew", async { Ok(()) }).await;
        let _: Result<(), ()> = board.timed("renew", async { Err(()) }).await;
        let text = board.metrics();
        assert!(
            text.contains("loden_store_request_duration_seconds_count{operation=\"renew\"} 2\n"),
            "{text}"
        );
        assert!(text.contains("loden_store_errors_total{operation=\"renew\"} 1\n"), "{text}");
    }
}
