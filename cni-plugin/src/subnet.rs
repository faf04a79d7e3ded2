//! This node's subnet: the parts of `subnet.env` that a pod needs.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use model::subnet_env::{self, Recorded};

use crate::reply::{Code, Failure};

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
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let message = format!("{} does not exist: this node's daemon is not ready", path.display());
            return Err(Failure::new(Code::TryAgain, message, "check the log of loden or flanneld"));
        }
        Err(error) => {
            return Err(Failure::new(Code::Io, format!("cannot read {}", path.display()), error));
        }
    };
    from_recorded(&subnet_env::parse(&text)).map_err(|missing| {
        let message = format!("{} lacks {}", path.display(), missing.join(", "));
        let details = "the daemon always writes all keys; has another program changed the file?";
        Failure::new(Code::TryAgain, message, details)
    })
}

/// Converts the recorded values. The error lists all missing keys.
fn from_recorded(recorded: &Recorded) -> Result<Subnet, Vec<&'static str>> {
    let Recorded { networks, ipv6_networks, mtu, ip_masq, .. } = recorded;
    let (v4, v6) = (recorded.subnet(), recorded.ipv6_subnet());
    let mut missing = Vec::new();
    if networks.is_empty() && ipv6_networks.is_empty() {
        missing.extend(["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]);
    }
    if v4.is_none() && v6.is_none() {
        missing.extend(["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]);
    }
    missing.extend(mtu.is_none().then_some("FLANNEL_MTU"));
    missing.extend(ip_masq.is_none().then_some("FLANNEL_IPMASQ"));
    let (Some(mtu), Some(masquerades), true) = (*mtu, *ip_masq, missing.is_empty()) else {
        return Err(missing);
    };
    let mut all: Vec<String> = networks.iter().map(ToString::to_string).collect();
    all.extend(ipv6_networks.iter().map(ToString::to_string));
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|network| seen.insert(network.clone()));
    let subnets = v4.map(|subnet| subnet.to_string()).into_iter().chain(v6.map(|subnet| subnet.to_string()));
    Ok(Subnet { networks: all, subnets: subnets.collect(), mtu, masquerades })
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
            [
                "FLANNEL_NETWORK",
                "FLANNEL_IPV6_NETWORK",
                "FLANNEL_SUBNET",
                "FLANNEL_IPV6_SUBNET",
                "FLANNEL_MTU",
                "FLANNEL_IPMASQ"
            ]
        );
        // A truncated file, and a key without a value.
        assert_eq!(
            missing("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MT"),
            ["FLANNEL_MTU", "FLANNEL_IPMASQ"]
        );
        assert_eq!(
            missing("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET\nFLANNEL_MTU=1\nFLANNEL_IPMASQ=true").len(),
            2
        );
    }

    #[test]
    fn a_missing_file_is_worth_a_retry() {
        let directory = tempfile::tempdir().expect("directory");
        let failure = read(&directory.path().join("subnet.env")).expect_err("missing");
        assert_eq!(failure.code, Code::TryAgain as u64);
        assert!(failure.message.contains("not ready"), "{failure:?}");
        assert_eq!(read(directory.path()).expect_err("a directory").code, Code::Io as u64);
    }
}
