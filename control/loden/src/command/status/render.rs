//! Renders a status document as aligned text.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use control::serve::board::{Document, TunnelDocument};

/// Maximum number of peers to list; the rest are counted.
const PEERS: usize = 50;
/// Width of the left column.
const WIDTH: usize = 12;

pub(super) fn text(document: &Document) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    at(document, now)
}

fn at(document: &Document, now: u64) -> String {
    let mut out = String::new();
    let Document { instance, version, pid, phase, .. } = document;
    let up = span(now.saturating_sub(document.started));
    row(&mut out, "instance", &format!("{instance}: {phase} for {up}, process {pid}, loden {version}"));
    if let Some(seconds) = document.stalled {
        row(&mut out, "", &format!("hangs: the control loop has not turned for {}", span(seconds)));
    }
    if let Some(lease) = &document.lease {
        let written = match lease.renewed {
            Some(renewed) => format!("written {} ago", span(now.saturating_sub(renewed))),
            None => "from memory, not yet confirmed by the store".to_owned(),
        };
        let end = match lease.expires {
            Some(expires) => format!("expires in {}", span(expires.saturating_sub(now))),
            None => "reserved".to_owned(),
        };
        row(&mut out, "lease", &format!("{}, {written}, {end}", lease.key));
    }
    if let Some(underlay) = &document.underlay {
        let public = underlay.public.join(", ");
        row(
            &mut out,
            "underlay",
            &format!("{}, MTU {}, published {public}", underlay.interface, underlay.mtu),
        );
    }
    let calls: Vec<String> = document
        .store
        .calls
        .iter()
        .map(|(name, [count, errors, time])| {
            format!("{name} {count} ({errors} failed, {} ms each)", time / (*count).max(1))
        })
        .collect();
    row(&mut out, "store", &format!("{} {}", document.store.name, calls.join(", ")));
    if let Some(since) = document.store.blind_since {
        let blind = span(now.saturating_sub(since));
        row(&mut out, "", &format!("leases unreadable for {blind}: peers may have changed"));
    }
    let reconcile = &document.reconcile;
    row(&mut out, "reconciled", &format!("{} times, {} changes", reconcile.runs, reconcile.changes));
    reconcile.failures.iter().for_each(|failure| row(&mut out, "failing", failure));
    if let Some(scheduling) = &document.scheduling {
        row(&mut out, "scheduling", &format!("{}, {}", scheduling.granted, scheduling.limits));
        scheduling.refused.iter().for_each(|refused| row(&mut out, "", refused));
    }
    document.tunnels.iter().for_each(|each| tunnel(&mut out, each));
    if !document.direct.is_empty() {
        row(&mut out, "direct", &format!("{} peers through kernel routes", document.direct.len()));
        for route in document.direct.iter().take(PEERS) {
            row(
                &mut out,
                "",
                &format!("{} via {} dev {}", route.to, route.via.as_deref().unwrap_or("-"), route.interface),
            );
        }
    }
    for ignored in &document.ignored {
        row(&mut out, "ignored", &format!("{}: {}", ignored.lease, ignored.reason));
    }
    on_this_host(&mut out, document);
    out
}

fn tunnel(out: &mut String, tunnel: &TunnelDocument) {
    let TunnelDocument { device, addresses, mtu, workers, .. } = tunnel;
    let addresses = addresses.join(", ");
    let of = |on| {
        let names: Vec<&str> =
            tunnel.features.iter().filter(|(_, used)| **used == on).map(|(name, _)| name.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(",") }
    };
    row(
        out,
        "tunnel",
        &format!(
            "{device} {addresses}, MTU {mtu}, {workers} workers, with {}, without {}",
            of(true),
            of(false)
        ),
    );
    tunnel.notes.iter().for_each(|note| row(out, "", note));
    let counter = |name: &str| tunnel.counters.get(name).copied().unwrap_or(0);
    for direction in ["egress", "ingress"] {
        let [packets, bytes] = ["packets", "bytes"].map(|name| counter(&format!("{direction}.{name}")));
        row(out, direction, &format!("{packets} packets, {bytes} bytes"));
        for drop in tunnel.drops.iter().filter(|drop| drop.direction == direction) {
            row(out, "  dropped", &format!("{} {}", drop.packets, drop.reason));
        }
        if let Some(packets @ 1..) = tunnel.unread.get(direction) {
            row(out, "  dropped", &format!("{packets} by the kernel, before a worker read them"));
        }
    }
    for (peer, limit) in tunnel.path_limits.iter().take(PEERS) {
        row(out, "path MTU", &format!("{peer} gets packets of at most {limit} bytes"));
    }
    if let Some(more @ 1..) = tunnel.path_limits.len().checked_sub(PEERS) {
        row(out, "", &format!("{more} more with a smaller path MTU than the tunnel's"));
    }
    row(out, "peers", &tunnel.peers.len().to_string());
    let width = tunnel.peers.iter().take(PEERS).map(|peer| peer.subnet.len()).max().unwrap_or(0);
    for peer in tunnel.peers.iter().take(PEERS) {
        let mac = peer.mac.as_deref().unwrap_or("");
        row(out, "", format!("{:width$}  {}  {mac}", peer.subnet, peer.remote).trim_end());
    }
    if let Some(more @ 1..) = tunnel.peers.len().checked_sub(PEERS) {
        row(out, "", &format!("and {more} more; --json has all"));
    }
}

fn on_this_host(out: &mut String, document: &Document) {
    let mut created: Vec<String> = Vec::new();
    for tunnel in &document.tunnels {
        created.push(format!("device {} with {} routes", tunnel.device, tunnel.routes));
    }
    if !document.direct.is_empty() {
        created.push(format!("{} routes through {}", document.direct.len(), document.direct[0].interface));
    }
    created.extend(document.files.iter().map(|file| format!("file {file}")));
    for (position, text) in created.iter().enumerate() {
        row(out, if position == 0 { "created" } else { "" }, text);
    }
}

fn row(out: &mut String, name: &str, text: &str) {
    // Writing to a string cannot fail.
    let line = format!("{name:WIDTH$} {text}");
    let _ = writeln!(out, "{}", line.trim_end());
}

fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::serve::board::{
        DroppedDocument, LeaseDocument, PeerDocument, SchedulingDocument, UnderlayDocument,
    };

    #[test]
    fn the_text_is_aligned_and_complete() {
        let peer = |subnet: &str| PeerDocument {
            subnet: subnet.into(),
            remote: "192.0.2.2:8472".into(),
            mac: Some("02:00:00:00:00:02".into()),
        };
        let document = Document {
            version: "0.1.0".into(),
            instance: "flannel".into(),
            pid: 7,
            started: 1000,
            phase: "ready".into(),
            underlay: Some(UnderlayDocument {
                interface: "eth0".into(),
                mtu: 1500,
                public: vec!["192.0.2.1".into()],
            }),
            lease: Some(LeaseDocument {
                key: "10.244.1.0-24".into(),
                expires: Some(91_000),
                renewed: Some(4600),
            }),
            scheduling: Some(SchedulingDocument {
                granted: "nice 0".into(),
                refused: vec!["nice -5 was refused: Permission denied".into()],
                limits: "CPU quota 1.50, used up 4 times".into(),
                ..SchedulingDocument::default()
            }),
            tunnels: vec![TunnelDocument {
                device: "flannel.1".into(),
                addresses: vec!["10.244.1.0/32".into()],
                mtu: 1450,
                routes: 2,
                workers: 2,
                features: [("tso".to_owned(), true), ("uso".to_owned(), false)].into(),
                peers: vec![peer("10.244.2.0/24"), peer("10.244.13.0/24")],
                counters: [("egress.packets".to_owned(), 5), ("egress.bytes".to_owned(), 420)].into(),
                drops: vec![DroppedDocument {
                    direction: "egress".into(),
                    reason: "no_route".into(),
                    packets: 3,
                }],
                path_limits: [("192.0.2.2".to_owned(), 1350)].into(),
                unread: [("egress".to_owned(), 0), ("ingress".to_owned(), 8)].into(),
                ..TunnelDocument::default()
            }],
            files: vec!["/run/flannel/subnet.env".into()],
            ..Document::default()
        };
        assert_eq!(
            at(&document, 8200),
            "instance     flannel: ready for 2 h, process 7, loden 0.1.0\n\
             lease        10.244.1.0-24, written 60 min ago, expires in 23 h\n\
             underlay     eth0, MTU 1500, published 192.0.2.1\n\
             store\n\
             reconciled   0 times, 0 changes\n\
             scheduling   nice 0, CPU quota 1.50, used up 4 times\n             \
                          nice -5 was refused: Permission denied\n\
             tunnel       flannel.1 10.244.1.0/32, MTU 1450, 2 workers, with tso, without uso\n\
             egress       5 packets, 420 bytes\n  \
               dropped    3 no_route\n\
             ingress      0 packets, 0 bytes\n  \
               dropped    8 by the kernel, before a worker read them\n\
             path MTU     192.0.2.2 gets packets of at most 1350 bytes\n\
             peers        2\n             \
                          10.244.2.0/24   192.0.2.2:8472  02:00:00:00:00:02\n             \
                          10.244.13.0/24  192.0.2.2:8472  02:00:00:00:00:02\n\
             created      device flannel.1 with 2 routes\n             \
                          file /run/flannel/subnet.env\n"
        );
    }
}
