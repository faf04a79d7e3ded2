//! `subnet.env`: the file that tells CNI plugins, Docker and a restarted daemon about this node's subnet.
//!
//! Rendering and parsing stand side by side in this module, so that they cannot drift apart.

use std::fmt::{self, Display};

use ipnetwork::{Ipv4Network, Ipv6Network};

use crate::cidr;
use crate::json::shorten;

/// The path where flannel writes the file, and CNI plugins look for it.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// The key of [`Recorded::networks`].
pub const NETWORK: &str = "FLANNEL_NETWORK";
/// The key of [`Recorded::subnets`].
pub const SUBNET: &str = "FLANNEL_SUBNET";
/// The key of [`Recorded::ipv6_networks`].
pub const IPV6_NETWORK: &str = "FLANNEL_IPV6_NETWORK";
/// The key of [`Recorded::ipv6_subnets`].
pub const IPV6_SUBNET: &str = "FLANNEL_IPV6_SUBNET";
/// The key of [`SubnetEnv::mtu`].
pub const MTU: &str = "FLANNEL_MTU";
/// The key of [`SubnetEnv::ip_masq`], the only one of which every value has a meaning.
pub const IPMASQ: &str = "FLANNEL_IPMASQ";
const KEYS: [&str; 6] = [NETWORK, SUBNET, IPV6_NETWORK, IPV6_SUBNET, MTU, IPMASQ];

const EXPECTED_V4: &str = "ignored, expected an IPv4 CIDR";
const EXPECTED_V6: &str = "ignored, expected an IPv6 CIDR";

/// The content to write. A disabled family has neither network nor subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The IPv4 cluster network and this node's subnet.
    pub ipv4: Option<(Ipv4Network, Ipv4Network)>,
    /// The IPv6 cluster network and this node's subnet.
    pub ipv6: Option<(Ipv6Network, Ipv6Network)>,
    /// MTU of pods, in bytes.
    pub mtu: u32,
    /// Whether the daemon masquerades, so that Docker does not have to.
    pub ip_masq: bool,
}

/// The content of a file, as far as it is valid. Host bits are dropped, each value may be a comma-separated
/// list, and invalid members of a list are left out.
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
    /// `FLANNEL_IPMASQ`: whether the value is `true`.
    pub ip_masq: Option<bool>,
    /// The invalid parts.
    pub problems: Vec<Problem>,
}

/// An invalid line or list member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line number, from 1.
    pub line: usize,
    /// The key whose value the line was to set, if it is one of flannel's.
    pub key: Option<&'static str>,
    /// The invalid part, shortened.
    pub text: String,
    /// What became of the invalid part, and what was expected.
    pub wanted: &'static str,
}

impl Recorded {
    /// Returns the IPv4 cluster network, if there is exactly one.
    pub fn network(&self) -> Option<Ipv4Network> {
        single(&self.networks)
    }

    /// Returns this node's IPv4 subnet, if there is exactly one.
    pub fn subnet(&self) -> Option<Ipv4Network> {
        single(&self.subnets)
    }

    /// Returns the IPv6 cluster network, if there is exactly one.
    pub fn ipv6_network(&self) -> Option<Ipv6Network> {
        single(&self.ipv6_networks)
    }

    /// Returns this node's IPv6 subnet, if there is exactly one.
    pub fn ipv6_subnet(&self) -> Option<Ipv6Network> {
        single(&self.ipv6_subnets)
    }
}

impl Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: {:?}: {}", self.line, self.text, self.wanted)
    }
}

/// Renders the file, byte for byte as flannel writes it. The subnet lines hold the first usable address,
/// which becomes the bridge's address.
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

/// Parses a file in dotenv syntax: `export`, quotes and comments are accepted, unknown keys are skipped, and
/// the last of several lines with the same key wins.
pub fn parse(text: &str) -> Recorded {
    let mut recorded = Recorded::default();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        match assignment(line) {
            Line::Blank => {}
            Line::Broken => recorded.problems.push(Problem {
                line: line_number,
                key: key_at_start(line),
                text: shorten(line),
                wanted: "ignored, expected KEY=value",
            }),
            Line::Assignment(key, value) => recorded.assign(line_number, key, &value),
        }
    }
    recorded
}

/// Returns the value of one key as written, without quotes; the last one if there are several.
pub fn value(text: &str, wanted: &str) -> Option<String> {
    text.lines().rev().find_map(|line| match assignment(line) {
        Line::Assignment(key, value) if key == wanted => Some(value),
        _ => None,
    })
}

impl Recorded {
    fn assign(&mut self, line: usize, key: &str, value: &str) {
        let known = KEYS.into_iter().find(|known| *known == key);
        let mut problem = |text: &str, wanted| {
            self.problems.push(Problem { line, key: known, text: shorten(text), wanted })
        };
        match key {
            NETWORK => {
                self.networks = list(value, cidr::parse_v4, |text| problem(text, EXPECTED_V4));
            }
            SUBNET => self.subnets = list(value, cidr::parse_v4, |text| problem(text, EXPECTED_V4)),
            IPV6_NETWORK => {
                self.ipv6_networks = list(value, cidr::parse_v6, |text| problem(text, EXPECTED_V6));
            }
            IPV6_SUBNET => {
                self.ipv6_subnets = list(value, cidr::parse_v6, |text| problem(text, EXPECTED_V6));
            }
            MTU => {
                self.mtu = value.parse().ok();
                if self.mtu.is_none() {
                    problem(value, "ignored, expected a number of bytes");
                }
            }
            IPMASQ => {
                // As in flannel, every other word means false.
                self.ip_masq = Some(value == "true");
                if !matches!(value, "true" | "false") {
                    problem(value, "taken as false, expected true or false");
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
    // Dotenv readers also accept `KEY: value`; the first separator counts.
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

/// Returns flannel's key with which a broken line starts.
fn key_at_start(line: &str) -> Option<&'static str> {
    let line = line.trim();
    let line =
        line.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t'])).unwrap_or(line).trim();
    let end =
        line.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(line.len());
    KEYS.into_iter().find(|known| *known == &line[..end])
}

/// Removes the quotes and a trailing comment; `None` if a quote is not closed.
fn unquote(value: &str) -> Option<String> {
    let Some(quote) = value.chars().next().filter(|first| matches!(first, '"' | '\'')) else {
        // After an unquoted value, a comment needs a space before its `#`.
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
