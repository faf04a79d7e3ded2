//! The outcome of a demo, as JSON or as one table.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::net::{Ipv4Addr, Ipv6Addr};

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use ipnetwork::{Ipv4Network, Ipv6Network};
use lab::{Host, PodNetwork};
use serde::Serialize;

use super::kept::Kept;
use super::trial::{Figures, Pair, family};
use crate::options::{Backend, DemoOptions};

/// Up to this many hosts, every pair has its own line.
const FEW_HOSTS: usize = 5;

/// The outcome of a demo.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Whether every ping succeeded and every measurement gave figures.
    pub(crate) ok: bool,
    pub(crate) backend: Backend,
    pub(crate) hosts: Vec<HostLine>,
    pub(crate) pairs: Vec<Pair>,
    pub(crate) figures: Vec<Figures>,
    /// Failures of the measurements.
    pub(crate) problems: Vec<String>,
    /// Set if the demo was left running.
    pub(crate) kept: Option<Kept>,
}

/// One host.
#[derive(Debug, Serialize)]
pub(crate) struct HostLine {
    number: usize,
    underlay: Ipv4Addr,
    underlay6: Ipv6Addr,
    subnet: Option<Ipv4Network>,
    ipv6_subnet: Option<Ipv6Network>,
    mtu: u32,
}

impl HostLine {
    pub(crate) fn new(host: &Host, network: &PodNetwork) -> Self {
        HostLine {
            number: host.number(),
            underlay: host.underlay(),
            underlay6: host.underlay6(),
            subnet: network.ipv4,
            ipv6_subnet: network.ipv6,
            mtu: network.mtu,
        }
    }
}

impl Report {
    pub(crate) fn new(
        options: &DemoOptions,
        hosts: Vec<HostLine>,
        pairs: Vec<Pair>,
        figures: Vec<Figures>,
        problems: Vec<String>,
    ) -> Self {
        let ok =
            problems.is_empty() && !pairs.is_empty() && pairs.iter().all(|pair| pair.round_trip_us.is_some());
        Report { ok, backend: options.backend, hosts, pairs, figures, problems, kept: None }
    }

    /// Returns the numbers of the hosts at either end of a failed pair.
    pub(crate) fn failed_hosts(&self) -> BTreeSet<usize> {
        self.failures().flat_map(|pair| [pair.from, pair.to]).collect()
    }

    fn failures(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.iter().filter(|pair| pair.round_trip_us.is_none())
    }

    fn families(&self) -> BTreeSet<&'static str> {
        self.pairs.iter().map(|pair| family(&pair.address)).collect()
    }

    /// Groups the pairs into lines: one per pair, or one per source if there are many hosts.
    fn ping_rows(&self) -> Vec<(String, Vec<&Pair>)> {
        let mut rows: Vec<(String, Vec<&Pair>)> = Vec::new();
        for pair in &self.pairs {
            let label = if self.hosts.len() <= FEW_HOSTS {
                format!("ping pod {} → pod {}", pair.from, pair.to)
            } else {
                format!("ping pod {} → the {} others", pair.from, self.hosts.len() - 1)
            };
            match rows.last_mut() {
                Some((last, pairs)) if *last == label => pairs.push(pair),
                _ => rows.push((label, vec![pair])),
            }
        }
        rows
    }

    fn figure_rows(&self) -> Vec<[String; 2]> {
        let mut rows = Vec::new();
        for figures in &self.figures {
            let path = format!("pod 1 → pod 2, {}", figures.family);
            if let Some(tcp) = &figures.tcp {
                rows.push([format!("TCP 1 stream, {path}"), format!("{:.2} Gbit/s", tcp.gbit_per_s)]);
            }
            if let Some(udp) = &figures.udp {
                let rate = udp.packets_per_s / 1000.0;
                rows.push([format!("UDP {} bytes, {path}", udp.size), format!("{rate:.1} kpps delivered")]);
            }
            if let Some(rtt) = &figures.rtt {
                let times = format!("p50 {:.0} · p99 {:.0} µs", rtt.p50_us, rtt.p99_us);
                rows.push([format!("round trip {} bytes, {path}", rtt.size), times]);
            }
        }
        rows
    }
}

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        let backend = self.backend.name();
        table.set_header([format!("loden demo: {} hosts, {backend}", self.hosts.len()), "result".to_owned()]);
        for host in &self.hosts {
            let subnets =
                [host.subnet.map(|net| net.to_string()), host.ipv6_subnet.map(|net| net.to_string())];
            let subnets: Vec<String> = subnets.into_iter().flatten().collect();
            let text = format!("pods {} · MTU {}", subnets.join(" · "), host.mtu);
            table.add_row([format!("host {} at {}", host.number, host.underlay), text]);
        }
        for (label, pairs) in self.ping_rows() {
            let cells: Vec<String> =
                self.families().into_iter().map(|family| outcome(family, &pairs)).collect();
            table.add_row([label, cells.join(" · ")]);
        }
        for row in self.figure_rows() {
            table.add_row(row);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write!(out, "{table}")?;
        for pair in self.failures() {
            let problem = pair.problem.as_deref().unwrap_or("no reply");
            write!(out, "\npod {} cannot reach pod {}: {problem}", pair.from, pair.to)?;
        }
        for problem in &self.problems {
            write!(out, "\n{problem}")?;
        }
        if let Some(kept) = &self.kept {
            write!(out, "\nenter pod 1:  {}", kept.enter(1))?;
            write!(out, "\nremove all:   {}", kept.removal())?;
        }
        Ok(())
    }
}

/// Renders one cell: a time, a range of times, or the number of replies.
fn outcome(wanted: &str, pairs: &[&Pair]) -> String {
    let times: Vec<Option<f64>> =
        pairs.iter().filter(|pair| family(&pair.address) == wanted).map(|pair| pair.round_trip_us).collect();
    let right: Vec<f64> = times.iter().filter_map(|time| time.map(|us| us / 1000.0)).collect();
    match right.as_slice() {
        _ if right.len() < times.len() => format!("{wanted} FAILED ({} of {})", right.len(), times.len()),
        [one] => format!("{wanted} {one:.2} ms"),
        many => {
            let shortest = many.iter().copied().fold(f64::INFINITY, f64::min);
            let longest = many.iter().copied().fold(0.0, f64::max);
            format!("{wanted} all, {shortest:.2} to {longest:.2} ms")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(from: usize, to: usize, time: Option<f64>) -> Pair {
        let problem = time.is_none().then(|| "ping: no reply".to_owned());
        let address = std::net::IpAddr::from([10, 244, to as u8, 2]);
        Pair { from, to, address, round_trip_us: time, problem }
    }

    fn report(hosts: usize, pairs: Vec<Pair>) -> Report {
        let hosts = (1..=hosts)
            .map(|number| HostLine {
                number,
                underlay: Ipv4Addr::new(198, 18, 0, number as u8),
                underlay6: Ipv6Addr::LOCALHOST,
                subnet: Some("10.244.1.0/24".parse().unwrap()),
                ipv6_subnet: None,
                mtu: 1450,
            })
            .collect();
        let (figures, problems) = (Vec::new(), Vec::new());
        Report { ok: false, backend: Backend::Vxlan, hosts, pairs, figures, problems, kept: None }
    }

    #[test]
    fn a_failed_pair_is_reported_with_its_hosts() {
        let report = report(3, vec![pair(1, 2, Some(210.0)), pair(1, 3, None), pair(2, 1, Some(190.0))]);
        assert_eq!(report.failed_hosts(), BTreeSet::from([1, 3]));
        let text = report.to_string();
        assert!(text.contains("IPv4 0.21 ms"), "{text}");
        assert!(text.contains("IPv4 FAILED (0 of 1)"), "{text}");
        assert!(text.contains("pod 1 cannot reach pod 3: ping: no reply"), "{text}");
    }

    #[test]
    fn many_hosts_share_a_line() {
        let pairs = (1..=6)
            .flat_map(|from| {
                (1..=6).filter(move |to| *to != from).map(move |to| pair(from, to, Some(to as f64 * 100.0)))
            })
            .collect();
        let text = report(6, pairs).to_string();
        assert_eq!(text.matches("→ the 5 others").count(), 6, "{text}");
        assert!(text.contains("IPv4 all, 0.20 to 0.60 ms"), "{text}");
    }

    #[test]
    fn json_has_the_backend_in_lower_case() {
        let value = serde_json::to_value(report(2, vec![pair(1, 2, Some(1.0))])).unwrap();
        assert_eq!(value["backend"], "vxlan");
        assert_eq!(value["pairs"][0]["address"], "10.244.2.2");
    }
}
