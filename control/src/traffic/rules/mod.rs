//! The wanted rules as lines of text, computed from configuration and lease. Pure.
//!
//! A line is spelled as `iptables-save` or `nft list` prints it, and both programs accept that form as input,
//! so the same text adds a rule, finds it later and can be compared with flannel's.

use ipnetwork::IpNetwork;

/// kube-proxy's mark on packets that it masquerades itself; masquerading them twice confuses some kernels.
const KUBE_PROXY_MARK: &str = "0x4000/0x4000";
const MASQUERADE_COMMENT: &str = "flanneld masq";
const FORWARD_COMMENT: &str = "flanneld forward";

/// flannel's iptables chain for masquerading.
pub const POSTROUTING_CHAIN: &str = "FLANNEL-POSTRTG";
/// flannel's iptables chain for forwarding.
pub const FORWARD_CHAIN: &str = "FLANNEL-FWD";

/// The networks of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nets {
    /// The cluster network.
    pub cluster: IpNetwork,
    /// This node's subnet.
    pub own: IpNetwork,
}

/// The purpose of a set of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Hide pods behind the node's address where hosts outside the cluster could not reply to them.
    Masquerade,
    /// Accept packets of pods that a filter would otherwise drop.
    Forward,
}

/// How thorough a round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The first round: removes what an earlier run left in our chains.
    Start,
    /// A later round: restores what is missing.
    Resync,
}

/// One of our iptables chains, and the rule that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The chain's purpose.
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

/// One of our nftables chains, which has its own hook in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftChain {
    /// The chain's purpose.
    pub purpose: Purpose,
    /// The chain's name.
    pub name: &'static str,
    /// The chain's comment.
    pub comment: &'static str,
    /// Type and hook, up to the priority.
    pub hook: &'static str,
    /// The priority as a number, which every nft accepts.
    pub priority: i32,
    /// The priority's name, as nft prints it.
    pub priority_name: &'static str,
    /// The rules, in order.
    pub rules: Vec<String>,
}

/// The repair that a chain needs to hold the wanted rules in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// No repair.
    Nothing,
    /// Append all wanted rules from this index on; only those before it are in the chain.
    Append(usize),
    /// Create or empty the chain, and add all rules.
    Refill,
}

impl Nets {
    /// Returns true for the IPv6 networks.
    pub fn is_ipv6(&self) -> bool {
        self.cluster.is_ipv6()
    }

    fn multicast(&self) -> &'static str {
        if self.is_ipv6() { "ff00::/8" } else { "224.0.0.0/4" }
    }
}

/// Returns the iptables chain of `purpose`.
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

/// Returns the nftables chain of `purpose`.
///
/// The fourth masquerade rule matches more than its iptables counterpart: traffic from outside the cluster to
/// a pod on another node is not masqueraded. flannel does the same, and the nodes of a cluster have to agree.
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

/// Returns the repair that turns `found`, the rules of one of our chains, into `wanted`.
///
/// `exact` is for the start: it removes everything else that an earlier run left. Later, rules between ours
/// stay. They are an administrator's, or those of a second daemon on this host; that daemon spares ours in
/// turn, so that the two settle.
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
        // A rule that comes too early can only be moved by emptying the chain.
        missing if missing.iter().any(|line| found.contains(line)) => Repair::Refill,
        _ => Repair::Append(present),
    }
}

/// Quotes `text` as one argument of `iptables-restore`, which understands double quotes and backslashes.
///
/// A newline would start another command, so it becomes a blank.
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
mod tests;
