//! Which rules there have to be: configuration and lease in, lines of text out. Pure.
//!
//! A line is spelled as `iptables-save` or `nft list` prints it, which both take as input too, so one text
//! serves to put a rule, to find it again, and to be compared with flannel's.

use ipnetwork::IpNetwork;

/// kube-proxy marks what it masquerades itself; twice confuses some kernels.
const KUBE_PROXY_MARK: &str = "0x4000/0x4000";
const MASQUERADE_COMMENT: &str = "flanneld masq";
const FORWARD_COMMENT: &str = "flanneld forward";

/// flannel's chain for masquerading, in iptables.
pub const POSTROUTING_CHAIN: &str = "FLANNEL-POSTRTG";
/// flannel's chain for forwarding, in iptables.
pub const FORWARD_CHAIN: &str = "FLANNEL-FWD";

/// The networks of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nets {
    /// The whole cluster's.
    pub cluster: IpNetwork,
    /// This node's part of it.
    pub own: IpNetwork,
}

/// What a set of rules is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Hide pods behind the node where the outside could not answer them.
    Masquerade,
    /// Let pods' packets through a filter that would drop them.
    Forward,
}

/// A chain of ours in iptables, and the rule that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// What it is for.
    pub purpose: Purpose,
    /// `nat` or `filter`.
    pub table: &'static str,
    /// The kernel's chain that leads to ours.
    pub parent: &'static str,
    /// Our chain.
    pub name: &'static str,
    /// The rule in `parent`.
    pub jump: String,
    /// The rules in our chain, in order.
    pub rules: Vec<String>,
}

/// A chain of ours in nftables, hooked into the kernel by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftChain {
    /// What it is for.
    pub purpose: Purpose,
    /// Its name.
    pub name: &'static str,
    /// What it says about itself.
    pub comment: &'static str,
    /// Type and hook, up to the priority.
    pub hook: &'static str,
    /// The priority as a number, which every nft reads.
    pub priority: i32,
    /// The priority's name, which nft prints.
    pub priority_name: &'static str,
    /// The rules, in order.
    pub rules: Vec<String>,
}

/// What a chain needs to hold the wanted rules in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    Nothing,
    /// The first so many are there, the others are nowhere: put them at the end.
    Append(usize),
    /// Empty it, or make it, and put all.
    Refill,
}

impl Nets {
    /// Whether this is IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.cluster.is_ipv6()
    }

    fn multicast(&self) -> &'static str {
        if self.is_ipv6() { "ff00::/8" } else { "224.0.0.0/4" }
    }
}

/// The chains of `purpose` in iptables.
pub fn iptables(purpose: Purpose, nets: &Nets, random_fully: bool) -> Chain {
    let Nets { cluster, own } = nets;
    let (table, parent, name, comment) = match purpose {
        Purpose::Masquerade => ("nat", "POSTROUTING", POSTROUTING_CHAIN, MASQUERADE_COMMENT),
        Purpose::Forward => ("filter", "FORWARD", FORWARD_CHAIN, FORWARD_COMMENT),
    };
    let rule = |chain: &str, matches: &str, target: &str| {
        format!("-A {chain} {matches}-m comment --comment {} -j {target}", quoted(comment))
    };
    let rules = match purpose {
        Purpose::Masquerade => {
            let masquerade = if random_fully { "MASQUERADE --random-fully" } else { "MASQUERADE" };
            let multicast = nets.multicast();
            vec![
                rule(name, &format!("-m mark --mark {KUBE_PROXY_MARK} "), "RETURN"),
                rule(name, &format!("-s {own} -d {cluster} "), "RETURN"),
                rule(name, &format!("-s {cluster} -d {own} "), "RETURN"),
                rule(name, &format!("! -s {cluster} -d {own} "), "RETURN"),
                rule(name, &format!("-s {cluster} ! -d {multicast} "), masquerade),
                rule(name, &format!("! -s {cluster} -d {cluster} "), masquerade),
            ]
        }
        Purpose::Forward => vec![
            rule(name, &format!("-s {cluster} "), "ACCEPT"),
            rule(name, &format!("-d {cluster} "), "ACCEPT"),
        ],
    };
    Chain { purpose, table, parent, name, jump: rule(parent, "", name), rules }
}

/// The chain of `purpose` in nftables.
///
/// Its fourth rule takes more than iptables' does, so what comes from outside to a pod of another node is
/// not masqueraded here. That is flannel's, and nodes of one cluster have to agree.
pub fn nftables(purpose: Purpose, nets: &Nets, random_fully: bool) -> NftChain {
    let Nets { cluster, own } = nets;
    let family = if nets.is_ipv6() { "ip6" } else { "ip" };
    match purpose {
        Purpose::Masquerade => {
            let masquerade = if random_fully { "masquerade fully-random" } else { "masquerade" };
            let multicast = nets.multicast();
            NftChain {
                purpose,
                name: "postrtg",
                comment: "chain to manage traffic masquerading by flannel",
                hook: "type nat hook postrouting",
                priority: 100,
                priority_name: "srcnat",
                rules: vec![
                    "meta mark 0x00004000 return".to_owned(),
                    format!("{family} saddr {own} {family} daddr {cluster} return"),
                    format!("{family} saddr {cluster} {family} daddr {own} return"),
                    format!("{family} saddr != {own} {family} daddr {cluster} return"),
                    format!("{family} saddr {cluster} {family} daddr != {multicast} {masquerade}"),
                    format!("{family} saddr != {cluster} {family} daddr {cluster} {masquerade}"),
                ],
            }
        }
        Purpose::Forward => NftChain {
            purpose,
            name: "forward",
            comment: "chain to accept flannel traffic",
            hook: "type filter hook forward",
            priority: 0,
            priority_name: "filter",
            rules: vec![
                format!("{family} saddr {cluster} accept"),
                format!("{family} daddr {cluster} accept"),
            ],
        },
    }
}

/// What brings `found`, the rules of a chain of ours, to `wanted`.
///
/// `exact` is for a start: whatever else an earlier run has left goes. Later, rules between ours are let
/// be: an administrator's, or those of a second daemon on this host, which does the same, so that the two
/// come to rest.
pub fn compare(found: &[String], wanted: &[String], exact: bool) -> Repair {
    if found == wanted {
        return Repair::Nothing;
    }
    if exact {
        return Repair::Refill;
    }
    let mut present = 0;
    for line in found {
        present += usize::from(wanted.get(present) == Some(line));
    }
    match &wanted[present..] {
        [] => Repair::Nothing,
        // A rule that stands before its turn can only be moved by emptying the chain.
        missing if missing.iter().any(|line| found.contains(line)) => Repair::Refill,
        _ => Repair::Append(present),
    }
}

/// `text` as one argument of `iptables-restore`, which knows double quotes and the backslash.
///
/// A line end would begin another command, so it becomes a blank.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter.is_control() => quoted.push(' '),
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
