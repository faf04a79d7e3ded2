//! Facts about this host that loden needs somebody else to set: it looks, says what is wrong, and leaves
//! them alone, as flannel does.

use std::fs;
use std::path::Path;

/// A kernel switch that is not as pods need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// What is wrong.
    pub what: &'static str,
    /// What it costs.
    pub cost: &'static str,
    /// How to close it.
    pub fix: &'static str,
}

const FORWARD_V4: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARD_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const BRIDGE_V4: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
const BRIDGE_V6: &str = "/proc/sys/net/bridge/bridge-nf-call-ip6tables";

/// Whether packets of this family are forwarded between interfaces; `None` when the kernel does not say.
pub fn forwards(ipv6: bool) -> Option<bool> {
    let text = fs::read_to_string(if ipv6 { FORWARD_V6 } else { FORWARD_V4 }).ok()?;
    Some(text.trim() != "0")
}

/// Whether bridged packets can be shown to the firewall. Like flannel, this asks only whether the switch
/// exists, not how it is set.
pub fn has_br_netfilter(ipv6: bool) -> bool {
    Path::new(br_netfilter_switch(ipv6)).exists()
}

/// Where that switch is.
pub fn br_netfilter_switch(ipv6: bool) -> &'static str {
    if ipv6 { BRIDGE_V6 } else { BRIDGE_V4 }
}

/// What is not as it should be for these families.
pub fn gaps(ipv4: bool, ipv6: bool, nftables: bool) -> Vec<Gap> {
    let mut gaps = Vec::new();
    if ipv4 && forwards(false) == Some(false) {
        gaps.push(Gap {
            what: "IPv4 forwarding is off",
            cost: "pods on this host cannot reach other hosts unless the CNI plugin turns it on",
            fix: "sysctl -w net.ipv4.ip_forward=1",
        });
    }
    if ipv6 && forwards(true) == Some(false) {
        gaps.push(Gap {
            what: "IPv6 forwarding is off",
            cost: "pods on this host cannot reach other hosts by IPv6 unless the CNI plugin turns it on",
            fix: "sysctl -w net.ipv6.conf.all.forwarding=1",
        });
    }
    if !nftables && ((ipv4 && !has_br_netfilter(false)) || (ipv6 && !has_br_netfilter(true))) {
        gaps.push(Gap {
            what: "br_netfilter is not there",
            cost: "firewall and service rules do not see packets between pods of one bridge",
            fix: "modprobe br_netfilter, or --require-br-netfilter=false, or EnableNFTables",
        });
    }
    gaps
}
