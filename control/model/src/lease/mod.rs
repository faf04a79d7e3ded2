//! A node's lease: its subnets, the text of its key and the JSON of its attributes.
//!
//! Both texts are as flannel keeps them in etcd; every store of loden uses the same ones.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde_json::value::RawValue;

use crate::cidr;
use crate::json::{Mismatch, Object, shorten};

/// The longest IPv4 prefix a key can carry: flannel reads the length into five bits.
const LONGEST_V4: u8 = 31;
/// The longest IPv6 prefix a key can carry: flannel reads the length into seven bits.
const LONGEST_V6: u8 = 127;

/// One node's subnets, their holder and their expiry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The subnets, which identify the lease.
    pub key: SubnetKey,
    /// The attributes that the node publishes.
    pub attrs: LeaseAttrs,
    /// Expiry in Unix seconds; `None` for a reservation, which never expires.
    pub expires: Option<u64>,
}

/// The subnets of one lease, without host bits. At least one family is present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetKey {
    ipv4: Option<Ipv4Network>,
    ipv6: Option<Ipv6Network>,
}

/// The attributes that a node publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// Address of the IPv4 tunnel end; 0.0.0.0 if the node has none.
    pub public_ip: Ipv4Addr,
    /// Address of the IPv6 tunnel end.
    pub public_ipv6: Option<Ipv6Addr>,
    /// `vxlan`, `host-gw`, ...; empty for `udp`, `alloc` and `tencent-vpc`, which publish no type.
    pub backend_type: String,
    /// The backend's data for IPv4.
    pub backend_data: Option<RawJson>,
    /// The backend's data for IPv6.
    pub backend_v6_data: Option<RawJson>,
}

/// A JSON value of unknown meaning, kept as compact text with its members in the order written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawJson(String);

/// An invalid subnet key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("subnet key {0:?}: must end in IPV4-LENGTH, IPV4-LENGTH&IPV6-LENGTH or IPV6-LENGTH")]
pub struct KeyError(String);

/// Invalid lease attributes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttrsError {
    /// The text is not a JSON object.
    #[error("lease attributes: not a JSON object: {0}")]
    Syntax(String),
    /// A field has an invalid value.
    #[error("lease attributes: {field} = {value}: must be {rule}")]
    Field {
        /// The field as flannel spells it.
        field: &'static str,
        /// The value as written, shortened.
        value: String,
        /// The values that the field accepts.
        rule: &'static str,
    },
}

impl Lease {
    /// Returns the IPv4 subnet, without host bits.
    pub fn subnet(&self) -> Option<Ipv4Network> {
        self.key.ipv4
    }

    /// Returns the IPv6 subnet, without host bits.
    pub fn ipv6_subnet(&self) -> Option<Ipv6Network> {
        self.key.ipv6
    }
}

impl SubnetKey {
    /// Builds the key of the given subnets, without host bits. Returns `None` if there is no subnet, and for
    /// a /32, a /128 or IPv4-mapped IPv6, which flannel's key text cannot express.
    pub fn new(ipv4: Option<Ipv4Network>, ipv6: Option<Ipv6Network>) -> Option<SubnetKey> {
        let not_expressible = ipv4.is_some_and(|subnet| subnet.prefix() > LONGEST_V4)
            || ipv6.is_some_and(|subnet| subnet.prefix() > LONGEST_V6)
            || ipv6.is_some_and(|subnet| subnet.network().to_ipv4_mapped().is_some());
        if not_expressible || (ipv4.is_none() && ipv6.is_none()) {
            return None;
        }
        Some(SubnetKey {
            ipv4: ipv4.and_then(|subnet| cidr::masked_v4(subnet.ip(), subnet.prefix())),
            ipv6: ipv6.and_then(|subnet| cidr::masked_v6(subnet.ip(), subnet.prefix())),
        })
    }

    /// Returns the IPv4 subnet.
    pub fn ipv4(&self) -> Option<Ipv4Network> {
        self.ipv4
    }

    /// Returns the IPv6 subnet.
    pub fn ipv6(&self) -> Option<Ipv6Network> {
        self.ipv6
    }

    /// Returns true if flannel can read this key. flannel has no IPv6-only form, and a single unreadable key
    /// below its etcd prefix makes it forget all peers.
    pub fn is_readable_by_flannel(&self) -> bool {
        self.ipv4.is_some()
    }

    /// Returns true if the two share any address.
    pub fn overlaps(&self, other: &SubnetKey) -> bool {
        let both_v4 = self.ipv4.zip(other.ipv4).is_some_and(|(a, b)| a.overlaps(b));
        both_v4 || self.ipv6.zip(other.ipv6).is_some_and(|(a, b)| a.overlaps(b))
    }
}

/// Prints `10.5.52.0-24`, `10.5.52.0-24&fd00:12:13::-56` or `fd00:12:13::-56`.
impl fmt::Display for SubnetKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(subnet) = self.ipv4 {
            write!(formatter, "{}-{}", subnet.ip(), subnet.prefix())?;
        }
        if let Some(subnet) = self.ipv6 {
            let joint = if self.ipv4.is_some() { "&" } else { "" };
            write!(formatter, "{joint}{}-{}", subnet.ip(), subnet.prefix())?;
        }
        Ok(())
    }
}

/// Parses the end of a key; like flannel, skips everything before the subnet.
impl FromStr for SubnetKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<SubnetKey, KeyError> {
        parse_key(text).ok_or_else(|| KeyError(shorten(text)))
    }
}

impl LeaseAttrs {
    /// Parses a stored value. As in flannel, keys match regardless of case and unknown keys are skipped; a
    /// missing public address is unspecified.
    pub fn parse(text: &str) -> Result<LeaseAttrs, AttrsError> {
        let syntax = |error: serde_json::Error| AttrsError::Syntax(error.to_string());
        let mut object = Object::parse(text).map_err(syntax)?;
        let public_ip = string(&mut object, "PublicIP")?;
        let public_ipv6 = string(&mut object, "PublicIPv6")?;
        Ok(LeaseAttrs {
            public_ip: address("PublicIP", public_ip, "an IPv4 address")?.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ipv6: address("PublicIPv6", public_ipv6, "an IPv6 address")?,
            backend_type: string(&mut object, "BackendType")?,
            backend_data: object.raw("BackendData").and_then(RawJson::unless_null),
            backend_v6_data: object.raw("BackendV6Data").and_then(RawJson::unless_null),
        })
    }

    /// Refuses addresses that no other node can use. Some of them end stock flannel on every node that reads
    /// them. `ipv4`: whether the lease has an IPv4 subnet, so that 0.0.0.0 does not stand for none.
    pub fn check(&self, ipv4: bool) -> Result<(), AttrsError> {
        let ip = self.public_ip;
        let no_host = ip.is_multicast() || ip.is_broadcast() || (ipv4 && ip.is_unspecified());
        if no_host {
            let rule = "the IPv4 address of a host";
            return Err(AttrsError::Field { field: "PublicIP", value: ip.to_string(), rule });
        }
        let no_host =
            |ip: &Ipv6Addr| ip.is_unspecified() || ip.is_multicast() || ip.to_ipv4_mapped().is_some();
        match self.public_ipv6.filter(no_host) {
            Some(ip) => {
                let rule = "the IPv6 address of a host";
                Err(AttrsError::Field { field: "PublicIPv6", value: ip.to_string(), rule })
            }
            None => Ok(()),
        }
    }

    /// Renders the value as flannel does: compact, in flannel's order, without absent fields.
    pub fn to_json(&self) -> String {
        let mut json = format!(r#"{{"PublicIP":"{}","PublicIPv6":"#, self.public_ip);
        match self.public_ipv6 {
            Some(address) => json.push_str(&format!(r#""{address}""#)),
            None => json.push_str("null"),
        }
        if !self.backend_type.is_empty() {
            // Quoted by serde_json, because the type may come from another node.
            let quoted = serde_json::Value::from(self.backend_type.as_str());
            json.push_str(&format!(r#","BackendType":{quoted}"#));
        }
        for (field, data) in [("BackendData", &self.backend_data), ("BackendV6Data", &self.backend_v6_data)] {
            if let Some(data) = data {
                json.push_str(&format!(r#","{field}":{data}"#));
            }
        }
        json.push('}');
        json
    }
}

impl RawJson {
    /// Checks that `text` is one JSON value, and removes the white space between its tokens.
    pub fn parse(text: &str) -> Result<RawJson, serde_json::Error> {
        serde_json::from_str::<&RawValue>(text).map(RawJson::compact)
    }

    /// Makes a JSON string, byte for byte as Go writes it: characters that could end a script in HTML are
    /// escaped too.
    pub fn string(text: &str) -> RawJson {
        let mut json = serde_json::Value::from(text).to_string();
        for (plain, escaped) in [
            ("<", "\\u003c"),
            (">", "\\u003e"),
            ("&", "\\u0026"),
            ("\u{2028}", "\\u2028"),
            ("\u{2029}", "\\u2029"),
        ] {
            json = json.replace(plain, escaped);
        }
        RawJson(json)
    }

    /// Returns the compact text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Wraps text that the caller built as compact JSON.
    pub(crate) fn trusted(compact: String) -> RawJson {
        RawJson(compact)
    }

    fn unless_null(value: &RawValue) -> Option<RawJson> {
        (value.get() != "null").then(|| RawJson::compact(value))
    }

    fn compact(value: &RawValue) -> RawJson {
        let (mut in_string, mut escaped) = (false, false);
        let keep = |letter: &char| {
            let space = !in_string && matches!(letter, ' ' | '\t' | '\n' | '\r');
            if *letter == '"' && !escaped {
                in_string = !in_string;
            }
            escaped = in_string && *letter == '\\' && !escaped;
            !space
        };
        RawJson(value.get().chars().filter(keep).collect())
    }
}

impl fmt::Display for RawJson {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Parses the end of a key as flannel's expression `(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$` does,
/// and also the IPv6-only form.
fn parse_key(text: &str) -> Option<SubnetKey> {
    let (head, length) = text.rsplit_once('-')?;
    let address = tail(head, |byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f' | b':'));
    if !address.contains(':') {
        return SubnetKey::new(Some(parse_v4(head, length)?), None);
    }
    let ipv6 = cidr::masked_v6(address.parse().ok()?, prefix_length(length, LONGEST_V6)?)?;
    match head[..head.len() - address.len()].strip_suffix('&') {
        Some(front) => {
            let (head, length) = front.rsplit_once('-')?;
            SubnetKey::new(Some(parse_v4(head, length)?), Some(ipv6))
        }
        // Only at the start or after a path, so that a broken dual-stack key does not pass for an IPv6-only
        // one.
        None if head.len() == address.len() || head[..head.len() - address.len()].ends_with('/') => {
            SubnetKey::new(None, Some(ipv6))
        }
        None => None,
    }
}

fn parse_v4(head: &str, length: &str) -> Option<Ipv4Network> {
    let digits = tail(head, |byte| byte.is_ascii_digit() || byte == b'.');
    // Of more than four groups, only the last four belong to the address.
    let start = digits.rmatch_indices('.').nth(3).map_or(0, |(dot, _)| dot + 1);
    cidr::masked_v4(digits[start..].parse().ok()?, prefix_length(length, LONGEST_V4)?)
}

fn prefix_length(text: &str, longest: u8) -> Option<u8> {
    let decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|length| decimal && *length <= longest)
}

/// Returns the longest suffix of `text` whose bytes, all ASCII, satisfy `wanted`.
fn tail(text: &str, wanted: impl Fn(u8) -> bool) -> &str {
    let start = text.bytes().rposition(|byte| !wanted(byte)).map_or(0, |last| last + 1);
    // Only ASCII is wanted, so the suffix starts at a character boundary.
    text.get(start..).unwrap_or("")
}

fn string(object: &mut Object, field: &'static str) -> Result<String, AttrsError> {
    let mismatch = |Mismatch { value, wanted }| AttrsError::Field { field, value, rule: wanted };
    Ok(object.string(field).map_err(mismatch)?.unwrap_or_default())
}

fn address<A: FromStr>(
    field: &'static str,
    text: String,
    rule: &'static str,
) -> Result<Option<A>, AttrsError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| AttrsError::Field { field, value: shorten(&text), rule })
}

#[cfg(test)]
mod tests;
