//! The cluster's network configuration (`net-conf.json`, etcd's `config`), with flannel's defaults and
//! checks.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};

pub use crate::backend::Backend;
use crate::backend::UDP_PORT;
use crate::cidr;
use crate::error::{ConfigError, Warning};
use crate::json::{Mismatch, Object, shorten};

/// Longest node subnets: with room for a tunnel device, a bridge and a pod besides the base address.
const LONGEST_SUBNET_V4: u8 = 30;
const LONGEST_SUBNET_V6: u8 = 126;
/// Default node subnets, if the network has room for four of them; otherwise a node gets a quarter of the
/// network.
const USUAL_SUBNET_V4: u8 = 24;
const USUAL_SUBNET_V6: u8 = 64;
/// Minimum number of bits between network and subnet: the first subnet is never used, so one bit would serve
/// a single node.
const MIN_SPREAD: u8 = 2;

/// The value of a key that is not there.
const ABSENT: &str = "(absent)";

/// A valid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// The IPv4 pool; `None` if the family is disabled. At least one pool is present.
    pub ipv4: Option<Ipv4Pool>,
    /// The IPv6 pool; `None` if the family is disabled.
    pub ipv6: Option<Ipv6Pool>,
    /// nftables instead of iptables.
    pub nftables: bool,
    /// The way in which packets travel between nodes.
    pub backend: Backend,
}

/// The IPv4 cluster network, and its subnets that nodes may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Pool {
    /// The cluster network, without host bits.
    pub network: Ipv4Network,
    /// Prefix length of a node subnet.
    pub subnet_len: u8,
    /// Base address of the first subnet to hand out.
    pub subnet_min: Ipv4Addr,
    /// Base address of the last subnet to hand out; if it is below the first, there are none.
    pub subnet_max: Ipv4Addr,
}

/// The IPv6 cluster network, and its subnets that nodes may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Pool {
    /// The cluster network, without host bits.
    pub network: Ipv6Network,
    /// Prefix length of a node subnet.
    pub subnet_len: u8,
    /// Base address of the first subnet to hand out.
    pub subnet_min: Ipv6Addr,
    /// Base address of the last subnet to hand out; if it is below the first, there are none.
    pub subnet_max: Ipv6Addr,
}

/// Parses a configuration by the rules of Go's JSON decoder, and validates it as flannel does with etcd.
pub fn parse(text: &str) -> Result<(NetConfig, Vec<Warning>), ConfigError> {
    read(text, Subnets::Ours)
}

/// Parses the configuration of a cluster where others hand out the subnets, as Kubernetes does: sizes and
/// ranges of subnets mean nothing then, and like flannel this does not check them. A pool's only subnet is
/// the network.
pub fn parse_assigned(text: &str) -> Result<(NetConfig, Vec<Warning>), ConfigError> {
    read(text, Subnets::Assigned)
}

/// Who hands out the nodes' subnets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subnets {
    /// flannel, from its pools.
    Ours,
    /// Somebody else.
    Assigned,
}

fn read(text: &str, subnets: Subnets) -> Result<(NetConfig, Vec<Warning>), ConfigError> {
    let mut warnings = Vec::new();
    let mut object = Object::parse(text).map_err(|error| ConfigError::Syntax(without_values(&error)))?;
    // All keys are parsed first, so that an invalid value is an error even if its family is disabled.
    let enable_ipv4 = boolean(&mut object, "EnableIPv4")?.unwrap_or(true);
    let enable_ipv6 = boolean(&mut object, "EnableIPv6")?.unwrap_or(false);
    let nftables = boolean(&mut object, "EnableNFTables")?.unwrap_or(false);
    let ipv4 = Wanted {
        network: address(
            &mut object,
            "Network",
            cidr::parse_v4,
            "must be an IPv4 CIDR such as 10.244.0.0/16",
        )?,
        subnet_len: length(&mut object, "SubnetLen", LONGEST_SUBNET_V4)?,
        subnet_min: address(&mut object, "SubnetMin", parse_v4, "must be an IPv4 address")?,
        subnet_max: address(&mut object, "SubnetMax", parse_v4, "must be an IPv4 address")?,
    };
    let ipv6 = Wanted {
        network: address(
            &mut object,
            "IPv6Network",
            cidr::parse_v6,
            "must be an IPv6 CIDR such as fd00::/48",
        )?,
        subnet_len: length(&mut object, "IPv6SubnetLen", LONGEST_SUBNET_V6)?,
        subnet_min: address(&mut object, "IPv6SubnetMin", parse_v6, "must be an IPv6 address")?,
        subnet_max: address(&mut object, "IPv6SubnetMax", parse_v6, "must be an IPv6 address")?,
    };
    let backend = match object.raw("Backend") {
        // A null counts as a Backend without Type: flannel keeps the text "null" and finds no type in it.
        Some(value) if value.get() == "null" => Backend::parse("{}", &mut warnings)?,
        Some(value) => Backend::parse(value.get(), &mut warnings)?,
        None => {
            warnings.push(Warning::NoBackend);
            Backend::Udp { port: UDP_PORT }
        }
    };
    let unknown = object.unknown();
    warnings.extend(
        unknown.into_iter().map(|key| Warning::UnknownKey { key: shorten(key), meant: object.meant(key) }),
    );
    if !enable_ipv4 && !enable_ipv6 {
        let rule = "must not be false while EnableIPv6 is false: no address family would be left";
        return Err(ConfigError::Key { key: "EnableIPv4".into(), value: "false".into(), rule: rule.into() });
    }
    let (ipv4, ipv6) = match subnets {
        Subnets::Ours => (ipv4, ipv6),
        Subnets::Assigned => (Wanted::only(ipv4.network), Wanted::only(ipv6.network)),
    };
    let config = NetConfig {
        ipv4: if enable_ipv4 {
            Some(ipv4.pool(subnets).map_err(|error| hint(error, &object))?)
        } else {
            None
        },
        ipv6: if enable_ipv6 {
            Some(ipv6.pool(subnets).map_err(|error| hint(error, &object))?)
        } else {
            None
        },
        nftables,
        backend,
    };
    Ok((config, warnings))
}

impl Ipv4Pool {
    /// Returns true if a node may hold `subnet` under this configuration.
    pub fn allows(&self, subnet: Ipv4Network) -> bool {
        let range = self.subnet_min..=self.subnet_max;
        subnet.prefix() == self.subnet_len && range.contains(&subnet.network())
    }
}

impl Ipv6Pool {
    /// Returns true if a node may hold `subnet` under this configuration.
    pub fn allows(&self, subnet: Ipv6Network) -> bool {
        let range = self.subnet_min..=self.subnet_max;
        subnet.prefix() == self.subnet_len && range.contains(&subnet.network())
    }
}

/// The four keys of one family as written.
struct Wanted<N, A> {
    network: Option<N>,
    subnet_len: Option<u8>,
    subnet_min: Option<A>,
    subnet_max: Option<A>,
}

/// The rules for both families, with addresses as numbers.
struct Rules {
    names: [&'static str; 4],
    /// Bits in an address.
    width: u8,
    usual: u8,
    longest: u8,
    show: fn(u128) -> String,
}

struct Pool {
    subnet_len: u8,
    subnet_min: u128,
    subnet_max: u128,
}

impl<N, A> Wanted<N, A> {
    /// Asks for a network without a word about its subnets.
    fn only(network: Option<N>) -> Wanted<N, A> {
        Wanted { network, subnet_len: None, subnet_min: None, subnet_max: None }
    }
}

impl Wanted<Ipv4Network, Ipv4Addr> {
    fn pool(self, subnets: Subnets) -> Result<Ipv4Pool, ConfigError> {
        let rules = Rules {
            names: ["Network", "SubnetLen", "SubnetMin", "SubnetMax"],
            width: 32,
            usual: USUAL_SUBNET_V4,
            longest: LONGEST_SUBNET_V4,
            show: |bits| Ipv4Addr::from_bits(bits as u32).to_string(),
        };
        let number = |address: Ipv4Addr| u128::from(address.to_bits());
        let network = rules.present(self.network.filter(|network| network.prefix() > 0))?;
        if subnets == Subnets::Assigned {
            let (subnet_len, only) = (network.prefix(), network.network());
            return Ok(Ipv4Pool { network, subnet_len, subnet_min: only, subnet_max: only });
        }
        let base = number(network.network());
        let pool = rules.pool(
            base,
            network.prefix(),
            self.subnet_len,
            self.subnet_min.map(number),
            self.subnet_max.map(number),
        )?;
        Ok(Ipv4Pool {
            network,
            subnet_len: pool.subnet_len,
            subnet_min: Ipv4Addr::from_bits(pool.subnet_min as u32),
            subnet_max: Ipv4Addr::from_bits(pool.subnet_max as u32),
        })
    }
}

impl Wanted<Ipv6Network, Ipv6Addr> {
    fn pool(self, subnets: Subnets) -> Result<Ipv6Pool, ConfigError> {
        let rules = Rules {
            names: ["IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"],
            width: 128,
            usual: USUAL_SUBNET_V6,
            longest: LONGEST_SUBNET_V6,
            show: |bits| Ipv6Addr::from_bits(bits).to_string(),
        };
        let network = rules.present(self.network.filter(|network| network.prefix() > 0))?;
        if subnets == Subnets::Assigned {
            let (subnet_len, only) = (network.prefix(), network.network());
            return Ok(Ipv6Pool { network, subnet_len, subnet_min: only, subnet_max: only });
        }
        let pool = rules.pool(
            network.network().to_bits(),
            network.prefix(),
            self.subnet_len,
            self.subnet_min.map(Ipv6Addr::to_bits),
            self.subnet_max.map(Ipv6Addr::to_bits),
        )?;
        Ok(Ipv6Pool {
            network,
            subnet_len: pool.subnet_len,
            subnet_min: Ipv6Addr::from_bits(pool.subnet_min),
            subnet_max: Ipv6Addr::from_bits(pool.subnet_max),
        })
    }
}

impl Rules {
    fn present<N>(&self, network: Option<N>) -> Result<N, ConfigError> {
        let rule =
            "must be set to a network smaller than the whole address space while its family is enabled";
        network.ok_or_else(|| self.error(0, ABSENT.into(), rule))
    }

    fn pool(
        &self,
        base: u128,
        prefix: u8,
        subnet_len: Option<u8>,
        min: Option<u128>,
        max: Option<u128>,
    ) -> Result<Pool, ConfigError> {
        let subnet_len = self.subnet_len(base, prefix, subnet_len)?;
        // The prefix is in 1..=128 and the length in 3..=126, so no shift reaches the width.
        let step = 1u128 << (self.width - subnet_len);
        let last = base | ((1u128 << (self.width - prefix)) - step);
        Ok(Pool {
            subnet_len,
            subnet_min: self.edge(2, min, base + step, base..=last + (step - 1), step)?,
            subnet_max: self.edge(3, max, last, base..=last + (step - 1), step)?,
        })
    }

    fn subnet_len(&self, base: u128, prefix: u8, wanted: Option<u8>) -> Result<u8, ConfigError> {
        let least = prefix + MIN_SPREAD;
        let Some(wanted) = wanted.filter(|length| *length > 0) else {
            if least > self.longest {
                let value = format!("{}/{prefix}", (self.show)(base));
                let rule = format!("must be /{} or larger", self.longest - MIN_SPREAD);
                return Err(self.error(0, value, rule));
            }
            return Ok(least.max(self.usual));
        };
        if wanted > self.longest {
            return Err(self.error(1, wanted.to_string(), format!("must be at most {}", self.longest)));
        }
        if wanted < least {
            let rule = format!("must be at least {least}: the /{prefix} network must hold four subnets");
            return Err(self.error(1, wanted.to_string(), rule));
        }
        Ok(wanted)
    }

    /// Checks the first or last subnet: inside the network and on a subnet boundary. Zero counts as unset.
    fn edge(
        &self,
        name: usize,
        wanted: Option<u128>,
        default: u128,
        network: std::ops::RangeInclusive<u128>,
        step: u128,
    ) -> Result<u128, ConfigError> {
        let Some(wanted) = wanted.filter(|address| *address != 0) else { return Ok(default) };
        if !network.contains(&wanted) {
            return Err(self.error(name, (self.show)(wanted), "must lie inside the network"));
        }
        if wanted % step != 0 {
            let length = self.width - step.trailing_zeros() as u8;
            let rule = format!("must be the base address of a /{length} subnet");
            return Err(self.error(name, (self.show)(wanted), rule));
        }
        Ok(wanted)
    }

    fn error(&self, name: usize, value: String, rule: impl Into<String>) -> ConfigError {
        ConfigError::Key { key: self.names[name].into(), value, rule: rule.into() }
    }
}

/// Names the unknown key that may be meant for an absent one.
fn hint(error: ConfigError, object: &Object) -> ConfigError {
    match error {
        ConfigError::Key { key, value, rule } if value == ABSENT => {
            let misspelt = object.misspelt(&key).map(shorten);
            let hint = misspelt.map(|name| format!("; is the unknown key {name:?} meant?"));
            ConfigError::Key { rule: rule + &hint.unwrap_or_default(), key, value }
        }
        other => other,
    }
}

fn boolean(object: &mut Object, key: &'static str) -> Result<Option<bool>, ConfigError> {
    object.boolean(key).map_err(|found| wrong_type(key, found))
}

fn length(object: &mut Object, key: &'static str, longest: u8) -> Result<Option<u8>, ConfigError> {
    let Some(number) = object.integer(key).map_err(|found| wrong_type(key, found))? else { return Ok(None) };
    u8::try_from(number).map(Some).map_err(|_| ConfigError::Key {
        key: key.into(),
        value: number.to_string(),
        rule: format!("must be between 0 (for the default) and {longest}"),
    })
}

fn address<T>(
    object: &mut Object,
    key: &'static str,
    parse: fn(&str) -> Option<T>,
    rule: &str,
) -> Result<Option<T>, ConfigError> {
    let Some(text) = object.string(key).map_err(|found| wrong_type(key, found))? else { return Ok(None) };
    parse(&text).map(Some).ok_or_else(|| ConfigError::Key {
        key: key.into(),
        value: format!("{:?}", shorten(&text)),
        rule: rule.into(),
    })
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    text.parse().ok()
}

fn parse_v6(text: &str) -> Option<Ipv6Addr> {
    text.parse().ok()
}

/// Returns the error without values: serde_json quotes a string found in place of an object, and it may be a
/// secret.
fn without_values(error: &serde_json::Error) -> String {
    if error.is_data() { "found another type of value".to_owned() } else { error.to_string() }
}

fn wrong_type(key: &'static str, found: Mismatch) -> ConfigError {
    ConfigError::Key { key: key.into(), value: found.value, rule: format!("must be {}", found.wanted) }
}

#[cfg(test)]
mod tests;
