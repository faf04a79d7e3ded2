//! `subnet.env`: the file that tells CNI plugins, Docker and our own next start what this node got.
//!
//! Writers and readers share this file of code, so the two forms cannot drift apart.

use std::fmt::{self, Display};

use ipnetwork::{Ipv4Network, Ipv6Network};

use crate::cidr;
use crate::json::shorten;

/// Where flannel writes a node's subnet, and CNI plugins look for it.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";

const NETWORK: &str = "FLANNEL_NETWORK";
const SUBNET: &str = "FLANNEL_SUBNET";
const IPV6_NETWORK: &str = "FLANNEL_IPV6_NETWORK";
const IPV6_SUBNET: &str = "FLANNEL_IPV6_SUBNET";
const MTU: &str = "FLANNEL_MTU";
const IPMASQ: &str = "FLANNEL_IPMASQ";

/// What the file is to say. A family that is off has neither network nor subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The cluster network and this node's part of it.
    pub ipv4: Option<(Ipv4Network, Ipv4Network)>,
    /// The same for IPv6.
    pub ipv6: Option<(Ipv6Network, Ipv6Network)>,
    /// What pods may send in one packet, in bytes.
    pub mtu: u32,
    /// Whether we masquerade, so that Docker need not.
    pub ip_masq: bool,
}

/// What a file says, as far as it can be understood. Host bits are dropped, each value may be a
/// comma list, and members that cannot be read are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// `FLANNEL_NETWORK`.
    pub networks: Vec<Ipv4Network>,
    /// `FLANNEL_SUBNET`.
    pub subnets: Vec<Ipv4Network>,
    /// `FLANNEL_IPV6_NETWORK`.
    pub ipv6_networks: Vec<Ipv6Network>,
    /// `FLANNEL_IPV6_SUBNET`.
    pub ipv6_subnets: Vec<Ipv6Network>,
    /// `FLANNEL_MTU`.
    pub mtu: Option<u32>,
    /// `FLANNEL_IPMASQ`: whether it is the word `true`.
    pub ip_masq: Option<bool>,
    /// What was passed over.
    pub problems: Vec<Problem>,
}

/// A line or a list member that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    /// The part that was passed over, shortened.
    pub text: String,
    /// What it should have been.
    pub wanted: &'static str,
}

impl Recorded {
    /// The cluster network, unless there is none or more than one.
    pub fn network(&self) -> Option<Ipv4Network> {
        single(&self.networks)
    }

    /// This node's subnet, unless there is none or more than one.
    pub fn subnet(&self) -> Option<Ipv4Network> {
        single(&self.subnets)
    }

    /// The IPv6 cluster network, unless there is none or more than one.
    pub fn ipv6_network(&self) -> Option<Ipv6Network> {
        single(&self.ipv6_networks)
    }

    /// This node's IPv6 subnet, unless there is none or more than one.
    pub fn ipv6_subnet(&self) -> Option<Ipv6Network> {
        single(&self.ipv6_subnets)
    }
}

impl Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: {:?} passed over: {}", self.line, self.text, self.wanted)
    }
}

/// The whole text of the file, byte for byte as flannel writes it. The subnet lines carry the
/// first usable address, which becomes the bridge's.
pub fn render(env: &SubnetEnv) -> String {
    let mut lines = Vec::with_capacity(6);
    if let Some((network, subnet)) = env.ipv4 {
        let gateway = subnet.network().to_bits().wrapping_add(1);
        lines.push(format!("{NETWORK}={network}"));
        lines.push(format!("{SUBNET}={}/{}", std::net::Ipv4Addr::from_bits(gateway), subnet.prefix()));
    }
    if let Some((network, subnet)) = env.ipv6 {
        let gateway = subnet.network().to_bits().wrapping_add(1);
        lines.push(format!("{IPV6_NETWORK}={network}"));
        lines.push(format!("{IPV6_SUBNET}={}/{}", std::net::Ipv6Addr::from_bits(gateway), subnet.prefix()));
    }
    lines.push(format!("{MTU}={}", env.mtu));
    lines.push(format!("{IPMASQ}={}\n", env.ip_masq));
    lines.join("\n")
}

/// Reads a file in dotenv syntax: `export`, quotes and comments are tolerated, foreign keys skipped,
/// the last line of one key counts.
pub fn parse(text: &str) -> Recorded {
    let mut recorded = Recorded::default();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        match assignment(line) {
            Line::Blank => {}
            Line::Broken => recorded.problems.push(Problem {
                line: line_number,
                text: shorten(line),
                wanted: "a line is KEY=value",
            }),
            Line::Assignment(key, value) => recorded.assign(line_number, key, &value),
        }
    }
    recorded
}

/// The value of one key as the file has it, without its quotes; of several the last.
pub fn value(text: &str, wanted: &str) -> Option<String> {
    text.lines().rev().find_map(|line| match assignment(line) {
        Line::Assignment(key, value) if key == wanted => Some(value),
        _ => None,
    })
}

impl Recorded {
    fn assign(&mut self, line: usize, key: &str, value: &str) {
        let mut problem =
            |text: &str, wanted| self.problems.push(Problem { line, text: shorten(text), wanted });
        match key {
            NETWORK => {
                self.networks = list(value, cidr::parse_v4, |text| problem(text, "wants an IPv4 CIDR"))
            }
            SUBNET => self.subnets = list(value, cidr::parse_v4, |text| problem(text, "wants an IPv4 CIDR")),
            IPV6_NETWORK => {
                self.ipv6_networks = list(value, cidr::parse_v6, |text| problem(text, "wants an IPv6 CIDR"));
            }
            IPV6_SUBNET => {
                self.ipv6_subnets = list(value, cidr::parse_v6, |text| problem(text, "wants an IPv6 CIDR"));
            }
            MTU => {
                self.mtu = value.parse().ok();
                if self.mtu.is_none() {
                    problem(value, "wants a number of bytes");
                }
            }
            IPMASQ => {
                // As flannel reads it: what is not this word is the opposite.
                self.ip_masq = Some(value == "true");
                if !matches!(value, "true" | "false") {
                    problem(value, "is taken as false: wants true or false");
                }
            }
            _ => {}
        }
    }
}

enum Line<'a> {
    Blank,
    Broken,
    Assignment(&'a str, String),
}

fn assignment(line: &str) -> Line<'_> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Line::Blank;
    }
    let line = line.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t'])).unwrap_or(line);
    // Dotenv readers also take `KEY: value`; what comes first separates.
    let Some((key, value)) = line.split_once(['=', ':']) else { return Line::Broken };
    let key = key.trim();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte)) {
        return Line::Broken;
    }
    match unquote(value.trim()) {
        Some(value) => Line::Assignment(key, value),
        None => Line::Broken,
    }
}

/// The value without quotes and without a trailing comment; `None` if a quote is not closed.
fn unquote(value: &str) -> Option<String> {
    let Some(quote) = value.chars().next().filter(|first| matches!(first, '"' | '\'')) else {
        // Unquoted, a comment needs a space before its sign.
        let end = value.find(" #").or_else(|| value.find("\t#")).unwrap_or(value.len());
        let value = if value.starts_with('#') { "" } else { &value[..end] };
        return Some(value.trim_end().to_owned());
    };
    let mut letters = value[1..].chars();
    let mut plain = String::new();
    loop {
        match letters.next()? {
            letter if letter == quote => break,
            '\\' if quote == '"' => plain.push(letters.next()?),
            letter => plain.push(letter),
        }
    }
    let rest = letters.as_str().trim_start();
    (rest.is_empty() || rest.starts_with('#')).then_some(plain)
}

fn list<N>(value: &str, parse: impl Fn(&str) -> Option<N>, mut reject: impl FnMut(&str)) -> Vec<N> {
    let mut networks = Vec::new();
    for member in value.split(',').map(str::trim) {
        match parse(member) {
            Some(network) => networks.push(network),
            None => reject(member),
        }
    }
    networks
}

fn single<N: Copy>(networks: &[N]) -> Option<N> {
    match networks {
        [network] => Some(*network),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
