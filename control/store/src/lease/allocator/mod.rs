//! The choice of a node's subnet: the one it has, the one it had, or a random free one.

use ipnetwork::{Ipv4Network, Ipv6Network};
use model::cidr;
use model::lease::{Lease, SubnetKey};
use model::net_config::NetConfig;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::{Wish, is_untouched, same_node};

/// Free subnets to choose from, as in flannel: enough that two nodes that start together seldom choose the
/// same one, few enough that subnets stay close to the first.
const CANDIDATES: usize = 100;

/// Changes to the stored leases, to be made in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Leases of this node to remove, which the configuration no longer allows.
    pub remove: Vec<SubnetKey>,
    /// The subnets to hold.
    pub key: SubnetKey,
    /// Whether the key is already stored for this node, perhaps as a reservation.
    pub reuse: bool,
}

/// Every subnet of a family is held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "out of subnets: none of the {family} subnets of length {length} from {first} to {last} is free \
     ({held} leases held); enlarge the network or remove leases of nodes that are gone"
)]
pub struct OutOfSubnets {
    family: &'static str,
    length: u8,
    first: String,
    last: String,
    held: usize,
}

/// Decides which subnet fulfils `wish`. `leases` are those that have not expired; `unreadable` are keys whose
/// value cannot be read but which are held all the same.
///
/// The order is flannel's: a lease with our public address, the previous subnets, a random choice. A lease of
/// an earlier run at another address counts like one with our address.
pub fn decide(
    wish: &Wish<'_>,
    leases: &[Lease],
    unreadable: &[SubnetKey],
    random: &mut impl Rng,
) -> Result<Decision, OutOfSubnets> {
    let is_ours = |lease: &&Lease| {
        same_node(&wish.attrs, &lease.attrs) || wish.former.is_some_and(|former| is_untouched(former, lease))
    };
    let ours = leases.iter().filter(is_ours).map(|lease| lease.key);
    let (compatible, remove): (Vec<_>, Vec<_>) = ours.partition(|key| allows(wish.config, key));
    let kept = wish.previous.filter(|key| compatible.contains(key)).or(compatible.first().copied());
    if let Some(key) = kept {
        return Ok(Decision { remove, key, reuse: true });
    }
    let stored = leases.iter().map(|lease| lease.key).chain(unreadable.iter().copied());
    let held: Vec<SubnetKey> = stored.filter(|key| !remove.contains(key)).collect();
    let previous =
        wish.previous.filter(|key| allows(wish.config, key) && !held.iter().any(|other| other.overlaps(key)));
    let key = match previous {
        Some(key) => key,
        None => choose(wish.config, &held, random)?,
    };
    Ok(Decision { remove, key, reuse: false })
}

/// Chooses a free subnet of each family that is on, the families independently of each other.
pub fn choose(
    config: &NetConfig,
    held: &[SubnetKey],
    random: &mut impl Rng,
) -> Result<SubnetKey, OutOfSubnets> {
    let mut out_of = None;
    let ipv4 = config.ipv4.and_then(|pool| {
        let (first, last) = (pool.subnet_min.to_bits().into(), pool.subnet_max.to_bits().into());
        let taken = held.iter().filter_map(SubnetKey::ipv4).map(range_v4).collect();
        let base = pick(Walk::new(first, last, 32, pool.subnet_len, taken), random);
        let subnet = base.and_then(|base| cidr::masked_v4(u32::try_from(base).ok()?.into(), pool.subnet_len));
        if subnet.is_none() {
            out_of =
                Some(("IPv4", pool.subnet_len, pool.subnet_min.to_string(), pool.subnet_max.to_string()));
        }
        subnet
    });
    let ipv6 = config.ipv6.and_then(|pool| {
        let (first, last) = (pool.subnet_min.to_bits(), pool.subnet_max.to_bits());
        let taken = held.iter().filter_map(SubnetKey::ipv6).map(range_v6).collect();
        let base = pick(Walk::new(first, last, 128, pool.subnet_len, taken), random);
        let subnet = base.and_then(|base| cidr::masked_v6(base.into(), pool.subnet_len));
        if subnet.is_none() {
            out_of =
                Some(("IPv6", pool.subnet_len, pool.subnet_min.to_string(), pool.subnet_max.to_string()));
        }
        subnet
    });
    let nothing = || ("configured", 0, "none".to_owned(), "none".to_owned());
    match (out_of, SubnetKey::new(ipv4, ipv6)) {
        (None, Some(key)) => Ok(key),
        (out_of, _) => {
            let (family, length, first, last) = out_of.unwrap_or_else(nothing);
            Err(OutOfSubnets { family, length, first, last, held: held.len() })
        }
    }
}

/// Returns true if the configuration lets a node hold exactly these subnets.
pub fn allows(config: &NetConfig, key: &SubnetKey) -> bool {
    let ipv4 = match (config.ipv4, key.ipv4()) {
        (Some(pool), Some(subnet)) => pool.allows(subnet),
        (pool, subnet) => pool.is_none() && subnet.is_none(),
    };
    let ipv6 = match (config.ipv6, key.ipv6()) {
        (Some(pool), Some(subnet)) => pool.allows(subnet),
        (pool, subnet) => pool.is_none() && subnet.is_none(),
    };
    ipv4 && ipv6
}

fn pick(free: Option<Walk>, random: &mut impl Rng) -> Option<u128> {
    let candidates: Vec<u128> = free?.take(CANDIDATES).collect();
    candidates.choose(random).copied()
}

/// The base addresses of free subnets in ascending order. Each step passes a subnet or a taken range, so a
/// walk over a hundred free subnets takes at most a hundred steps more than there are leases, whatever the
/// sizes.
struct Walk {
    next: Option<u128>,
    last: u128,
    step: u128,
    /// First and last address, ascending by first.
    taken: std::iter::Peekable<std::vec::IntoIter<(u128, u128)>>,
}

impl Walk {
    /// Starts a walk; `None` for a length that no subnet can have.
    fn new(first: u128, last: u128, width: u32, length: u8, mut taken: Vec<(u128, u128)>) -> Option<Walk> {
        let step = 1u128.checked_shl(width.checked_sub(length.into())?)?;
        taken.sort_unstable();
        Some(Walk {
            next: first.checked_next_multiple_of(step),
            last,
            step,
            taken: taken.into_iter().peekable(),
        })
    }
}

impl Iterator for Walk {
    type Item = u128;

    fn next(&mut self) -> Option<u128> {
        loop {
            let base = self.next.filter(|base| *base <= self.last)?;
            let end = base + (self.step - 1);
            match self.taken.next_if(|(start, _)| *start <= end) {
                // Sorted by start, so a range that ends before this subnet does not matter any more.
                Some((_, taken_end)) if taken_end < base => {}
                Some((_, taken_end)) => {
                    self.next =
                        taken_end.checked_add(1).and_then(|next| next.checked_next_multiple_of(self.step));
                }
                None => {
                    self.next = base.checked_add(self.step);
                    return Some(base);
                }
            }
        }
    }
}

fn range_v4(subnet: Ipv4Network) -> (u128, u128) {
    (subnet.network().to_bits().into(), subnet.broadcast().to_bits().into())
}

fn range_v6(subnet: Ipv6Network) -> (u128, u128) {
    (subnet.network().to_bits(), subnet.broadcast().to_bits())
}

#[cfg(test)]
mod tests;
