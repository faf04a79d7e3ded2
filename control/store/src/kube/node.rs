//! A node of Kubernetes as a node of the network.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

use ipnetwork::{Ipv4Network, Ipv6Network};
use model::cidr;
use model::lease::{Lease, LeaseAttrs, SubnetKey};
use model::net_config::NetConfig;

use super::KubeError;
use super::annotations::{Annotations, Names};
use super::client::one_line;
use super::messages;

/// Longest name and identity of a node.
const LONGEST_NAME: usize = 253;
/// Most pod CIDRs of a node: one for each family.
const MOST_CIDRS: usize = 2;

/// A node, without what is not the network's business.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) uid: String,
    /// The version of the whole cluster's state at which the node was last written.
    pub(super) version: String,
    pub(super) annotations: Annotations,
    pod_cidrs: Vec<String>,
}

/// The address families of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Families {
    pub(super) ipv4: bool,
    pub(super) ipv6: bool,
}

/// What a node is to the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reading {
    /// Nothing: no flannel has written to it.
    Stranger,
    Lease(Lease),
    /// It takes part, and cannot be understood.
    Broken(String),
}

impl Families {
    pub(super) const BOTH: Families = Families { ipv4: true, ipv6: true };

    pub(super) fn of(config: &NetConfig) -> Families {
        Families { ipv4: config.ipv4.is_some(), ipv6: config.ipv6.is_some() }
    }
}

impl From<messages::Node> for Node {
    fn from(message: messages::Node) -> Node {
        let messages::ObjectMeta { name, uid, version, annotations } = message.meta.unwrap_or_default();
        let messages::NodeSpec { pod_cidr, pod_cidrs } = message.spec.unwrap_or_default();
        let old = || Some(pod_cidr).filter(|text| !text.is_empty()).into_iter().collect();
        let pod_cidrs = if pod_cidrs.is_empty() { old() } else { pod_cidrs };
        Node { name, uid, version, annotations, pod_cidrs }
    }
}

impl Node {
    /// Tells why the node's name or its identity is not one that Kubernetes gives. Such a node is skipped.
    pub(super) fn misnamed(&self) -> Option<String> {
        let is_right = is_name(&self.name) && self.uid.len() <= LONGEST_NAME;
        (!is_right)
            .then(|| format!("a node has a name or uid that is none: {:?}; skipped", one_line(&self.name)))
    }

    /// Returns a number that another state of what matters to us has not.
    pub(super) fn fingerprint(&self, names: &Names) -> u64 {
        // Keyed at random: annotations are written by many.
        static KEYS: LazyLock<u64> = LazyLock::new(rand::random);
        let mut hasher = DefaultHasher::new();
        (*KEYS, &self.uid, &self.pod_cidrs).hash(&mut hasher);
        names.ours(&self.annotations).for_each(|pair| pair.hash(&mut hasher));
        hasher.finish()
    }

    /// Returns what this node is to a network of these families.
    pub(super) fn read(&self, names: &Names, families: Families) -> Reading {
        if !names.is_managed(&self.annotations) || self.misnamed().is_some() {
            return Reading::Stranger;
        }
        let lease = self.key(families).and_then(|key| {
            let attrs = names.read(&self.annotations)?;
            Ok(Lease { key, attrs, expires: None })
        });
        match lease {
            Ok(lease) => Reading::Lease(lease),
            Err(problem) => Reading::Broken(format!("node {}: {problem}", self.name)),
        }
    }

    /// Reads what is published, whether or not all of it is there.
    pub(super) fn published(&self, names: &Names) -> Option<LeaseAttrs> {
        names.read(&self.annotations).ok()
    }

    /// Returns our own subnets.
    pub(super) fn own_key(&self, config: &NetConfig) -> Result<SubnetKey, KubeError> {
        if self.pod_cidrs.is_empty() {
            return Err(KubeError::Unassigned { node: self.name.clone() });
        }
        let bad = |problem| KubeError::BadCidrs { node: self.name.clone(), problem };
        let families = Families::of(config);
        let key = self.key(families).map_err(bad)?;
        let texts = one_line(&self.pod_cidrs.join(", "));
        for (wanted, found, family) in
            [(families.ipv4, key.ipv4().is_some(), "IPv4"), (families.ipv6, key.ipv6().is_some(), "IPv6")]
        {
            if wanted && !found {
                return Err(bad(format!(
                    "its podCIDRs ({texts}) have no {family} subnet, which the network configuration asks for"
                )));
            }
        }
        let v4 = key.ipv4().zip(config.ipv4.as_ref());
        let v6 = key.ipv6().zip(config.ipv6.as_ref());
        let outside = |subnet: String, name: &str, network: String| {
            bad(format!(
                "its podCIDR {subnet} is not within {name} {network} of the network configuration; set \
                 {name} to the cluster's pod network"
            ))
        };
        if let Some((subnet, pool)) = v4
            && (subnet.prefix() < pool.network.prefix() || !pool.network.contains(subnet.network()))
        {
            return Err(outside(subnet.to_string(), "Network", pool.network.to_string()));
        }
        if let Some((subnet, pool)) = v6
            && (subnet.prefix() < pool.network.prefix() || !pool.network.contains(subnet.network()))
        {
            return Err(outside(subnet.to_string(), "IPv6Network", pool.network.to_string()));
        }
        Ok(key)
    }

    /// Returns the node's subnets of the families of `other`.
    pub(super) fn key_of(&self, other: SubnetKey) -> Option<SubnetKey> {
        let families = Families { ipv4: other.ipv4().is_some(), ipv6: other.ipv6().is_some() };
        self.key(families).ok()
    }

    /// Returns the node's subnets of the network's families. A node may have joined before the second family.
    fn key(&self, families: Families) -> Result<SubnetKey, String> {
        let texts = one_line(&self.pod_cidrs.join(", "));
        if self.pod_cidrs.len() > MOST_CIDRS {
            return Err(format!("its podCIDRs {texts} are more than one for each family"));
        }
        let (mut ipv4, mut ipv6): (Option<Ipv4Network>, Option<Ipv6Network>) = (None, None);
        for text in &self.pod_cidrs {
            match (cidr::parse_v4(text), cidr::parse_v6(text)) {
                (Some(subnet), _) => ipv4 = ipv4.or(Some(subnet)),
                (_, Some(subnet)) => ipv6 = ipv6.or(Some(subnet)),
                _ => return Err(format!("its podCIDR {:?} is no subnet", one_line(text))),
            }
        }
        let key = SubnetKey::new(ipv4.filter(|_| families.ipv4), ipv6.filter(|_| families.ipv6));
        key.ok_or_else(|| format!("its podCIDRs ({texts}) hold no subnet that flannel can use"))
    }
}

/// Tells whether a text may be a node's name: that of a DNS subdomain.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use model::net_config;

    use super::*;

    const PREFIX: &str = "flannel.alpha.coreos.com";

    fn names() -> Names {
        Names::new(PREFIX).expect("flannel's prefix")
    }

    fn node(cidrs: &[&str]) -> Node {
        let text = |(name, text): (&str, &str)| (format!("{PREFIX}/{name}"), text.to_owned());
        let annotations = [
            ("kube-subnet-manager", "true"),
            ("backend-type", "host-gw"),
            ("backend-data", "null"),
            ("public-ip", "192.0.2.1"),
        ];
        Node {
            name: "n1".into(),
            annotations: annotations.map(text).into(),
            pod_cidrs: cidrs.iter().map(|&text| text.to_owned()).collect(),
            ..Node::default()
        }
    }

    fn own(config: &str, cidrs: &[&str]) -> Result<String, String> {
        let (config, _) = net_config::parse_assigned(config).expect(config);
        node(cidrs).own_key(&config).map(|key| key.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn our_subnets_are_those_that_kubernetes_has_given() {
        const V4: &str = r#"{"Network":"10.244.0.0/16"}"#;
        const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/56"}"#;
        for (config, cidrs, key) in [
            (V4, &["10.244.1.0/24"][..], "10.244.1.0-24"),
            (V4, &["10.244.0.0/16"], "10.244.0.0-16"),
            (V4, &["fd00:1::/64", "10.244.1.0/24"], "10.244.1.0-24"),
            (DUAL, &["fd00:1::/64", "10.244.1.7/24"], "10.244.1.0-24&fd00:1::-64"),
        ] {
            assert_eq!(own(config, cidrs), Ok(key.to_owned()), "{cidrs:?}");
        }
        for (config, cidrs, problem) in [
            (V4, &[][..], "no podCIDR yet"),
            (V4, &["10.245.1.0/24"], "10.245.1.0/24 is not within Network 10.244.0.0/16"),
            (V4, &["10.244.0.0/15"], "10.244.0.0/15 is not within"),
            (V4, &["10.244.1.0/24", "fd00::/64", "10.244.2.0/24"], "more than one for each family"),
            (V4, &["rubbish"], "\"rubbish\" is no subnet"),
            (V4, &["10.244.1.0"], "is no subnet"),
            (V4, &["10.244.1.1/32"], "no subnet that flannel can use"),
            (V4, &["fd00:1::/64"], "no subnet that flannel can use"),
            (DUAL, &["10.244.1.0/24"], "no IPv6 subnet"),
            (DUAL, &["fd00:1::/64"], "no IPv4 subnet"),
            (DUAL, &["10.244.1.0/24", "fd00:2::/64"], "fd00:2::/64 is not within IPv6Network fd00:1::/56"),
        ] {
            let error = own(config, cidrs).expect_err(problem);
            assert!(error.contains(problem) && error.contains("n1"), "{cidrs:?}: {error}");
        }
    }

    #[test]
    fn a_peer_is_what_flannel_has_written_to_it() {
        let read = |node: &Node, families| node.read(&names(), families);
        let v4 = Families { ipv4: true, ipv6: false };
        let Reading::Lease(lease) = read(&node(&["10.244.1.0/24"]), Families::BOTH) else {
            panic!("a peer that joined before IPv6 did")
        };
        assert_eq!((lease.key.to_string().as_str(), lease.expires), ("10.244.1.0-24", None));
        let Reading::Lease(lease) = read(&node(&["10.244.1.0/24", "fd00::/64"]), v4) else {
            panic!("a peer")
        };
        assert_eq!(lease.key.to_string(), "10.244.1.0-24");
        for cidrs in [&[][..], &["x"], &["fd00::/64"], &["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"]] {
            let Reading::Broken(problem) = read(&node(cidrs), v4) else { panic!("{cidrs:?}") };
            assert!(problem.starts_with("node n1: "), "{problem}");
        }
        let mut stranger = node(&["10.244.1.0/24"]);
        stranger.annotations.insert(format!("{PREFIX}/kube-subnet-manager"), "True".into());
        assert_eq!(read(&stranger, v4), Reading::Stranger);
    }

    #[test]
    fn names_are_those_of_dns_and_texts_are_bounded() {
        for name in ["n1", "ip-10-0-0-1.eu-west-1.compute.internal", &"n".repeat(253)] {
            let node = Node { name: name.into(), ..node(&["10.244.1.0/24"]) };
            assert_eq!(node.misnamed(), None);
            assert!(matches!(node.read(&names(), Families::BOTH), Reading::Lease(_)), "{name}");
        }
        let long = "n".repeat(254);
        for name in ["", "n1\nWARN lease store: forged", "N1", "n/1", "n 1", "ü", long.as_str()] {
            let node = Node { name: name.into(), ..node(&["10.244.1.0/24"]) };
            let problem = node.misnamed().expect(name);
            assert!(problem.len() < 400 && !problem.contains('\n'), "{problem}");
            assert_eq!(node.read(&names(), Families::BOTH), Reading::Stranger);
        }
        assert!(Node { uid: long.clone(), ..node(&[]) }.misnamed().is_some());
        let text = "10.244.1.0/24\n".repeat(9999);
        for cidrs in [&[text.as_str()][..], &[&text, &text, &text]] {
            let Reading::Broken(problem) = node(cidrs).read(&names(), Families::BOTH) else {
                panic!("{cidrs:?}")
            };
            assert!(problem.len() < 400 && !problem.contains('\n'), "{problem}");
            let error = own(r#"{"Network":"10.244.0.0/16"}"#, cidrs).expect_err("rubbish");
            assert!(error.len() < 400 && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn only_what_matters_changes_the_fingerprint() {
        let before = node(&["10.244.1.0/24"]);
        let mut after = Node { version: "9".into(), ..before.clone() };
        after.annotations.insert("node.alpha.kubernetes.io/ttl".into(), "0".into());
        assert_eq!(after.fingerprint(&names()), before.fingerprint(&names()));
        after.annotations.insert(format!("{PREFIX}/public-ip-overwrite"), "192.0.2.9".into());
        let others = [after, node(&["10.244.2.0/24"]), Node { uid: "u".into(), ..before.clone() }];
        for other in others {
            assert_ne!(other.fingerprint(&names()), before.fingerprint(&names()), "{other:?}");
        }
    }
}
