//! This node's subnet: the parts of `subnet.env` that a pod needs.

use std::io::ErrorKind;
use std::path::Path;

use model::subnet_env::{self, IPMASQ, IPV6_NETWORK, IPV6_SUBNET, MTU, NETWORK, Problem, Recorded, SUBNET};

use crate::files;
use crate::reply::{Code, Failure};

/// Maximum length of the file, which usually has six short lines.
const MAX_LENGTH: u64 = 1 << 20;

/// The settings for pods of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Cluster networks, IPv4 first.
    pub networks: Vec<String>,
    /// This node's subnets, IPv4 first.
    pub subnets: Vec<String>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether the daemon masquerades.
    pub masquerades: bool,
}

/// Reads the file. It appears when the daemon is ready, so a missing or incomplete file is worth a retry.
pub fn read(path: &Path) -> Result<Subnet, Failure> {
    let text = match files::read(path, MAX_LENGTH) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let message = format!("{} does not exist: this node's daemon is not ready", path.display());
            return Err(Failure::new(Code::TryAgain, message, "check the log of loden or flanneld"));
        }
        Err(error) => {
            return Err(Failure::new(Code::Io, format!("cannot read {}", path.display()), error));
        }
    };
    from_recorded(&subnet_env::parse(&text)).map_err(|problem| {
        let details = "the daemon writes the file whole; has another program changed it?";
        Failure::new(Code::TryAgain, format!("{} {problem}", path.display()), details)
    })
}

/// Converts the recorded values. A pod would have half a network if an invalid value were left out, so the
/// error lists all invalid values, or else all missing keys.
fn from_recorded(recorded: &Recorded) -> Result<Subnet, String> {
    let Recorded { networks, ipv6_networks, subnets, ipv6_subnets, mtu, ip_masq, .. } = recorded;
    let invalid = invalid(recorded);
    if !invalid.is_empty() {
        return Err(format!("is invalid: {}", invalid.join("; ")));
    }
    let mut missing = Vec::new();
    let keys = [[NETWORK, SUBNET], [IPV6_NETWORK, IPV6_SUBNET]];
    let there =
        [[!networks.is_empty(), !subnets.is_empty()], [!ipv6_networks.is_empty(), !ipv6_subnets.is_empty()]];
    for kind in 0..2 {
        // A family that the node does not have has neither.
        let neither = !there[0][kind] && !there[1][kind];
        let absent = |family: &usize| {
            let is_half = there[*family][1 - kind];
            !there[*family][kind] && (neither || is_half)
        };
        missing.extend((0..2).filter(absent).map(|family| keys[family][kind]));
    }
    missing.extend(mtu.is_none().then_some(MTU));
    missing.extend(ip_masq.is_none().then_some(IPMASQ));
    let (Some(mtu), Some(masquerades), true) = (*mtu, *ip_masq, missing.is_empty()) else {
        return Err(format!("lacks {}", missing.join(", ")));
    };
    let mut all: Vec<String> = networks.iter().map(ToString::to_string).collect();
    all.extend(ipv6_networks.iter().map(ToString::to_string));
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|network| seen.insert(network.clone()));
    let (v4, v6) = (subnets.iter().map(ToString::to_string), ipv6_subnets.iter().map(ToString::to_string));
    Ok(Subnet { networks: all, subnets: v4.chain(v6).collect(), mtu, masquerades })
}

/// Describes the values that cannot be used.
fn invalid(recorded: &Recorded) -> Vec<String> {
    // Every other value of this key means false.
    let matters = |problem: &&Problem| problem.key.is_some_and(|key| key != IPMASQ);
    let describe = |problem: &Problem| {
        let wanted = problem.wanted.strip_prefix("ignored, ").unwrap_or(problem.wanted);
        format!("line {}, {}: {:?}, {wanted}", problem.line, problem.key.unwrap_or_default(), problem.text)
    };
    let mut all: Vec<String> = recorded.problems.iter().filter(matters).map(describe).collect();
    for (key, count) in [(SUBNET, recorded.subnets.len()), (IPV6_SUBNET, recorded.ipv6_subnets.len())] {
        if count > 1 {
            all.push(format!("{key} has {count} subnets, expected one"));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_node() {
        let read = |text: &str| from_recorded(&subnet_env::parse(text)).expect(text);
        let v4 = read(
            "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n",
        );
        assert_eq!((v4.networks, v4.subnets), (vec!["10.1.0.0/16".into()], vec!["10.1.17.0/24".into()]));
        assert_eq!((v4.mtu, v4.masquerades), (1472, true));
        let other = read(
            "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=yes\n",
        );
        assert!(!other.masquerades, "only \"true\" counts");
        let v6 = read(
            "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false",
        );
        assert_eq!((v6.networks, v6.subnets), (vec!["fc00::/48".into()], vec!["fc00::/64".into()]));
        let two = read(
            "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16,10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true",
        );
        assert_eq!(two.networks, ["10.1.0.0/16", "192.168.0.0/16", "fc00::/48"], "once each");
        assert_eq!(two.subnets, ["10.1.17.0/24", "fc00::/64"]);
    }

    #[test]
    fn every_missing_key_is_named() {
        let missing = |text: &str| from_recorded(&subnet_env::parse(text)).expect_err(text);
        assert_eq!(
            missing(""),
            "lacks FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, \
             FLANNEL_IPMASQ"
        );
        // A truncated file.
        assert_eq!(
            missing("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MT"),
            "lacks FLANNEL_MTU, FLANNEL_IPMASQ"
        );
    }

    /// Each of these gave pods half a network.
    #[test]
    fn a_value_that_cannot_be_used_is_an_error() {
        for (line, words) in [
            (
                "FLANNEL_SUBNET=10.244.7.1/99",
                "line 7, FLANNEL_SUBNET: \"10.244.7.1/99\", expected an IPv4 CIDR",
            ),
            (
                "FLANNEL_IPV6_SUBNET=fd00::1",
                "line 7, FLANNEL_IPV6_SUBNET: \"fd00::1\", expected an IPv6 CIDR",
            ),
            ("FLANNEL_SUBNET=fd00::1/64", "FLANNEL_SUBNET: \"fd00::1/64\""),
            ("FLANNEL_SUBNET=", "FLANNEL_SUBNET: \"\""),
            ("FLANNEL_SUBNET", "line 7, FLANNEL_SUBNET: \"FLANNEL_SUBNET\", expected KEY=value"),
            ("FLANNEL_IPV6_SUBNET=\"fd00::1/64", "line 7, FLANNEL_IPV6_SUBNET"),
            ("FLANNEL_SUBNET=10.1.17.1/24,10.1.18.1/24", "FLANNEL_SUBNET has 2 subnets, expected one"),
            ("FLANNEL_IPV6_SUBNET=fc00::1/64,fc00::1/64", "FLANNEL_IPV6_SUBNET has 2 subnets"),
            ("FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0", "line 7, FLANNEL_NETWORK: \"10.2.0.0\""),
            ("FLANNEL_NETWORK=10.1.0.0/16,", "line 7, FLANNEL_NETWORK: \"\""),
            ("FLANNEL_IPV6_NETWORK=fc00::/48,10.0.0.0/8", "FLANNEL_IPV6_NETWORK: \"10.0.0.0/8\""),
            ("FLANNEL_MTU=big", "line 7, FLANNEL_MTU: \"big\", expected a number of bytes"),
        ] {
            let text = format!("{DUAL}{line}\n");
            let error = from_recorded(&subnet_env::parse(&text)).expect_err(line);
            assert!(error.starts_with("is invalid: ") && error.contains(words), "{line}: {error}");
        }
        for line in ["FLANNEL_IPMASQ=yes", "OTHER", "# FLANNEL_SUBNET=bad", "FLANNEL_SUBNETS=bad", "nonsense"]
        {
            from_recorded(&subnet_env::parse(&format!("{DUAL}{line}\n"))).expect(line);
        }
    }

    #[test]
    fn a_family_has_a_network_and_a_subnet_or_neither() {
        for key in ["FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"] {
            let is_kept = |line: &&str| line.split_once('=').is_some_and(|(name, _)| name != key);
            let text: Vec<&str> = DUAL.lines().filter(is_kept).collect();
            let error = from_recorded(&subnet_env::parse(&text.join("\n"))).expect_err(key);
            assert_eq!(error, format!("lacks {key}"));
        }
    }

    const DUAL: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n\
        FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\n\
        FLANNEL_IPMASQ=true\n";

    #[test]
    fn a_missing_file_is_worth_a_retry() {
        let directory = tempfile::tempdir().expect("directory");
        let failure = read(&directory.path().join("subnet.env")).expect_err("missing");
        assert_eq!(failure.code, Code::TryAgain as u64);
        assert!(failure.message.contains("not ready"), "{failure:?}");
        assert_eq!(read(directory.path()).expect_err("a directory").code, Code::Io as u64);
    }
}
