//! Kernel settings that pods need and that others have to set. As in flannel, they are checked and reported,
//! but never changed.

use std::fs;
use std::path::Path;

/// A kernel setting that does not meet the needs of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The problem.
    pub what: &'static str,
    /// The consequence.
    pub cost: &'static str,
    /// The remedy.
    pub fix: &'static str,
}

const FORWARD_V4: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARD_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const BRIDGE_V4: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
const BRIDGE_V6: &str = "/proc/sys/net/bridge/bridge-nf-call-ip6tables";

/// Returns true if the kernel forwards packets of this family between interfaces; `None` if the setting is
/// unreadable.
pub fn forwards(ipv6: bool) -> Option<bool> {
    let text = fs::read_to_string(if ipv6 { FORWARD_V6 } else { FORWARD_V4 }).ok()?;
    Some(text.trim() != "0")
}

/// Returns true if the kernel can pass bridged packets to the firewall. As in flannel, the setting only has
/// to exist; its value does not matter.
pub fn has_br_netfilter(ipv6: bool) -> bool {
    Path::new(br_netfilter_switch(ipv6)).exists()
}

/// Returns the path of the br_netfilter setting.
pub fn br_netfilter_switch(ipv6: bool) -> &'static str {
    if ipv6 { BRIDGE_V6 } else { BRIDGE_V4 }
}

/// Lists the settings that do not meet the needs of these families.
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
            cost: "pods on this host cannot reach other hosts over IPv6 unless the CNI plugin turns it on",
            fix: "sysctl -w net.ipv6.conf.all.forwarding=1",
        });
    }
    if !nftables && ((ipv4 && !has_br_netfilter(false)) || (ipv6 && !has_br_netfilter(true))) {
        gaps.push(Gap {
            what: "br_netfilter is not loaded",
            cost: "firewall and service rules do not see packets between pods on one bridge",
            fix: "modprobe br_netfilter, or --require-br-netfilter=false, or EnableNFTables",
        });
    }
    gaps
}
