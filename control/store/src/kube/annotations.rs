//! flannel's annotations of a node: their names, and their texts to the byte.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use model::lease::{LeaseAttrs, RawJson, SubnetKey};

const MANAGED: &str = "kube-subnet-manager";
const TYPE: &str = "backend-type";
const DATA: &str = "backend-data";
const DATA_V6: &str = "backend-v6-data";
const PUBLIC_IP: &str = "public-ip";
const PUBLIC_IPV6: &str = "public-ipv6";
const OVERWRITE: &str = "public-ip-overwrite";
const OVERWRITE_V6: &str = "public-ipv6-overwrite";
const NODE_IP: &str = "node-public-ip";
const NODE_IPV6: &str = "node-public-ipv6";

/// Longest text of an annotation that is read.
const LONGEST: usize = 64 << 10;

/// The annotations' names, which share a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    prefix: String,
}

/// The annotations of one node, by their whole names.
pub(super) type Annotations = BTreeMap<String, String>;

/// The addresses that an administrator asks this node to have or to publish.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// To be published in place of the detected one.
    pub(super) overwrite: Option<Ipv4Addr>,
    pub(super) overwrite_v6: Option<Ipv6Addr>,
    /// To be used as `--public-ip` is.
    pub(super) node_ip: Option<Ipv4Addr>,
    pub(super) node_ipv6: Option<Ipv6Addr>,
    /// What is wrong with the others.
    pub(super) complaints: Vec<String>,
}

impl Names {
    /// Completes flannel's `--kube-annotation-prefix` as flannel does. The error says what to write.
    pub(super) fn new(option: &str) -> Result<Names, String> {
        let mut prefix = option.to_owned();
        if !prefix.contains('/') {
            prefix.push('/');
        }
        if !prefix.ends_with(['/', '-']) {
            prefix.push('-');
        }
        let is_word = |text: &str| {
            let allowed =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
            !text.is_empty() && text.bytes().all(allowed)
        };
        let is_right = prefix.split_once('/').is_some_and(|(domain, rest)| {
            let rest_is_right = rest.is_empty() || rest.strip_suffix('-').is_some_and(is_word);
            domain.contains('.') && domain.split('.').all(is_word) && rest_is_right
        });
        if is_right {
            return Ok(Names { prefix });
        }
        Err("write a domain in lower case, such as flannel.alpha.coreos.com, perhaps with a slash and a \
             word behind it"
            .to_owned())
    }

    /// Returns the whole name.
    fn of(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn get<'a>(&self, annotations: &'a Annotations, name: &str) -> Option<&'a str> {
        annotations.get(&self.of(name)).map(String::as_str)
    }

    /// Returns what has our prefix, in order.
    pub(super) fn ours<'a>(&'a self, all: &'a Annotations) -> impl Iterator<Item = (&'a str, &'a str)> {
        let beginning = all.range(self.prefix.clone()..).map(|(name, text)| (name.as_str(), text.as_str()));
        beginning.take_while(|(name, _)| name.starts_with(&self.prefix))
    }

    /// Tells whether the node takes part in the network: others are invisible to flannel.
    pub(super) fn is_managed(&self, annotations: &Annotations) -> bool {
        self.get(annotations, MANAGED) == Some("true")
    }

    /// Returns another prefix under which the node takes part in a network.
    pub(super) fn other_prefix<'a>(&self, annotations: &'a Annotations) -> Option<&'a str> {
        let managed = |(name, text): (&'a String, &'a String)| {
            name.strip_suffix(MANAGED).filter(|prefix| *prefix != self.prefix && text == "true")
        };
        annotations.iter().find_map(managed)
    }

    /// Reads what a node publishes. An address of the wrong family counts as none, which makes the node no
    /// peer in that family; JSON that is none makes the node unreadable.
    pub(super) fn read(&self, annotations: &Annotations) -> Result<LeaseAttrs, String> {
        let text = |name| match self.get(annotations, name) {
            Some(text) if text.len() > LONGEST => {
                Err(format!("its {name} has {} bytes; flannel writes a few hundred", text.len()))
            }
            text => Ok(text.unwrap_or_default()),
        };
        let data = |name| match text(name)? {
            "" | "null" => Ok(None),
            text => match RawJson::parse(text) {
                Ok(data) => Ok(Some(data).filter(|data| data.as_str() != "null")),
                Err(_) => Err(format!("its {name} is not JSON")),
            },
        };
        let (public_ip, public_ipv6) = (text(PUBLIC_IP)?, text(PUBLIC_IPV6)?);
        let parse = |name, text: &str, family| {
            let problem = format!("its {name} {:?} is not an {family} address", shorten(text));
            if text.is_empty() { String::new() } else { problem }
        };
        let ipv4 = public_ip.parse().map_err(|_| parse(PUBLIC_IP, public_ip, "IPv4"));
        let ipv6 = ipv6(public_ipv6).ok_or_else(|| parse(PUBLIC_IPV6, public_ipv6, "IPv6"));
        if let (Err(problem), Err(other)) = (&ipv4, &ipv6) {
            let named = [problem, other].into_iter().find(|problem| !problem.is_empty());
            return Err(named.map_or_else(|| "it publishes no address".to_owned(), String::clone));
        }
        Ok(LeaseAttrs {
            public_ip: ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ipv6: ipv6.ok(),
            backend_type: text(TYPE)?.to_owned(),
            backend_data: data(DATA)?,
            backend_v6_data: data(DATA_V6)?,
        })
    }

    /// Reads what an administrator asks of this node. An address of the other family, of which stock nodes
    /// would crash, is ignored with a complaint.
    pub(super) fn asked(&self, annotations: &Annotations) -> Asked {
        let mut complaints = Vec::new();
        let mut asked = |name: &str, family: &str, is_valid: &dyn Fn(&str) -> bool| {
            let text = self.get(annotations, name).filter(|text| !text.is_empty())?;
            if is_valid(text) {
                return Some(text.to_owned());
            }
            complaints.push(format!(
                "the annotation {} = {:?} is not the {family} address of a host; ignored",
                self.of(name),
                shorten(text)
            ));
            None
        };
        let is_v4 = |text: &str| {
            let is_host = |ip: Ipv4Addr| !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast());
            text.parse().is_ok_and(is_host)
        };
        let is_v6 = |text: &str| {
            ipv6(text).is_some_and(|address| !address.is_unspecified() && !address.is_multicast())
        };
        let mut v4 = |name| asked(name, "IPv4", &is_v4).and_then(|text| text.parse().ok());
        let (overwrite, node_ip) = (v4(OVERWRITE), v4(NODE_IP));
        let mut v6 = |name| asked(name, "IPv6", &is_v6).and_then(|text| ipv6(&text));
        let (overwrite_v6, node_ipv6) = (v6(OVERWRITE_V6), v6(NODE_IPV6));
        Asked { overwrite, overwrite_v6, node_ip, node_ipv6, complaints }
    }

    /// Returns the annotations to write so that a node with these `present` ones publishes `wished`, none if
    /// there is nothing to do. The families are those of `key`.
    ///
    /// A stock node of a dual-stack cluster ignores a change of one family alone. So the text of the other
    /// family is then changed as well, by a blank that means nothing.
    pub(super) fn changes(
        &self,
        present: &Annotations,
        wished: &LeaseAttrs,
        asked: &Asked,
        key: &SubnetKey,
    ) -> Annotations {
        let mut wanted = texts(wished, asked, key);
        let is_new = |name: &str, text: &str| match self.get(present, name) {
            Some(there) => !means_the_same(name, there, text),
            None => true,
        };
        let changed =
            |names: &[&str]| names.iter().any(|name| wanted.get(name).is_some_and(|text| is_new(name, text)));
        let (v4, v6) = (changed(&[DATA, PUBLIC_IP]), changed(&[DATA_V6, PUBLIC_IPV6]));
        let is_dual = wanted.contains_key(DATA) && wanted.contains_key(DATA_V6);
        let other = match (v4, v6) {
            _ if !is_dual || changed(&[TYPE]) => None,
            (true, false) => Some(DATA_V6),
            (false, true) => Some(DATA),
            _ => None,
        };
        wanted.retain(|name, text| Some(*name) == other || is_new(name, text));
        if let Some(name) = other
            && let Some(text) = wanted.get_mut(name)
            && self.get(present, name) == Some(text)
        {
            *text = with_a_blank(text);
        }
        wanted.into_iter().map(|(name, text)| (self.of(name), text)).collect()
    }
}

/// Says what somebody else has written to the annotations that are to be changed: those that are there no
/// longer as they were `left`. By the whole names.
pub(super) fn foreign(present: &Annotations, left: &Annotations, changes: &Annotations) -> Annotations {
    let changed = changes.keys().filter(|name| present.get(*name) != left.get(*name));
    let said = |name: &String| match present.get(name) {
        Some(text) => format!("{name} = {:?}", shorten(text)),
        None => format!("{name} removed"),
    };
    changed.map(|name| (name.clone(), said(name))).collect()
}

/// Returns what to publish, by the annotations' short names, as flannel writes it for each backend.
fn texts(wished: &LeaseAttrs, asked: &Asked, key: &SubnetKey) -> BTreeMap<&'static str, String> {
    let LeaseAttrs { public_ip, public_ipv6, backend_type, backend_data, backend_v6_data } = wished;
    let mut texts = BTreeMap::from([(MANAGED, "true".to_owned()), (TYPE, backend_type.clone())]);
    let kind = backend_type.as_str();
    let null = || "null".to_owned();
    let data = match (kind, backend_data) {
        (_, Some(data)) => Some(data.to_string()),
        ("vxlan" | "wireguard", None) => None,
        // Its commands have printed nothing.
        ("extension", None) => Some(String::new()),
        _ => Some(null()),
    };
    if let Some(data) = data.filter(|_| key.ipv4().is_some() && !public_ip.is_unspecified()) {
        texts.insert(DATA, data);
        texts.insert(PUBLIC_IP, asked.overwrite.unwrap_or(*public_ip).to_string());
    }
    let data_v6 = match (kind, backend_v6_data) {
        (_, Some(data)) => Some(data.to_string()),
        ("host-gw" | "extension", None) => Some(null()),
        _ => None,
    };
    if let Some((data, address)) = data_v6.zip(*public_ipv6).filter(|_| key.ipv6().is_some()) {
        texts.insert(DATA_V6, data);
        texts.insert(PUBLIC_IPV6, asked.overwrite_v6.unwrap_or(address).to_string());
    }
    texts
}

/// Tells whether a text that is there needs no change. Data may have other blanks.
fn means_the_same(name: &str, there: &str, wanted: &str) -> bool {
    let is_data = [DATA, DATA_V6].contains(&name);
    there == wanted || (is_data && RawJson::parse(there).is_ok_and(|there| there.as_str() == wanted))
}

/// Adds a blank to JSON text: after the first colon, where it does not keep stock flannel from finding the
/// MAC address, which it does by cutting the text.
fn with_a_blank(text: &str) -> String {
    match text.split_once(':') {
        Some((key, value)) => format!("{key}: {value}"),
        None => format!("{text} "),
    }
}

/// Parses an IPv6 address. An IPv4-mapped one is none: Go takes it for IPv4.
fn ipv6(text: &str) -> Option<Ipv6Addr> {
    text.parse::<Ipv6Addr>().ok().filter(|address| address.to_ipv4_mapped().is_none())
}

/// Shortens a text for a line of the log.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PREFIX: &str = "flannel.alpha.coreos.com";
    const VXLAN: &str = concat!(
        r#"{"PublicIP":"192.0.2.3","PublicIPv6":"2001:db8::3","BackendType":"vxlan","#,
        r#""BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"#,
        r#""BackendV6Data":{"VNI":1,"VtepMAC":"0a:11:22:33:44:55"}}"#
    );

    fn names() -> Names {
        Names::new(PREFIX).expect("flannel's prefix")
    }

    fn attrs(text: &str) -> LeaseAttrs {
        LeaseAttrs::parse(text).expect("attributes")
    }

    fn of(pairs: &[(&str, &str)]) -> Annotations {
        let whole = |(name, text): &(&str, &str)| (format!("{PREFIX}/{name}"), (*text).to_owned());
        pairs.iter().map(whole).collect()
    }

    /// What a node without annotations writes.
    fn written(attributes: &str, key: &str) -> Annotations {
        let key = key.parse().expect("a key");
        names().changes(&Annotations::new(), &attrs(attributes), &Asked::default(), &key)
    }

    #[test]
    fn prefixes_are_completed_as_flannel_does() {
        for (option, name) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/backend-type"),
            ("org.com", "org.com/backend-type"),
            ("org.com/", "org.com/backend-type"),
            ("org.com/9", "org.com/9-backend-type"),
            ("org.com/9-", "org.com/9-backend-type"),
            ("a_b.c-d.e/x_y", "a_b.c-d.e/x_y-backend-type"),
        ] {
            assert_eq!(Names::new(option).expect(option).of(TYPE), name);
        }
        for option in [
            "",
            "org",
            "org/x",
            "Org.com",
            "org.com/X",
            "org.com/a/b",
            "org..com",
            ".com",
            "org.com/-",
            "org.com/ ",
            "org com.x",
        ] {
            assert!(Names::new(option).is_err(), "{option}");
        }
    }

    #[test]
    fn each_backend_is_written_to_the_byte() {
        let (v4, dual) = ("10.244.1.0-24", "10.244.1.0-24&fd00:1::-64");
        let host = r#"{"PublicIP":"192.0.2.3","PublicIPv6":"2001:db8::3""#;
        for (attributes, key, expected) in [
            (
                VXLAN.to_owned(),
                dual,
                &[
                    ("kube-subnet-manager", "true"),
                    ("backend-type", "vxlan"),
                    ("backend-data", r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#),
                    ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"0a:11:22:33:44:55"}"#),
                    ("public-ip", "192.0.2.3"),
                    ("public-ipv6", "2001:db8::3"),
                ][..],
            ),
            (
                VXLAN.to_owned(),
                v4,
                &[
                    ("kube-subnet-manager", "true"),
                    ("backend-type", "vxlan"),
                    ("backend-data", r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#),
                    ("public-ip", "192.0.2.3"),
                ],
            ),
            (
                VXLAN
                    .replace("192.0.2.3", "0.0.0.0")
                    .replace(r#""BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"#, ""),
                "fd00:1::-64",
                &[
                    ("kube-subnet-manager", "true"),
                    ("backend-type", "vxlan"),
                    ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"0a:11:22:33:44:55"}"#),
                    ("public-ipv6", "2001:db8::3"),
                ],
            ),
            (
                format!(
                    r#"{host},"BackendType":"wireguard","BackendData":{{"PublicKey":"k","Port":51820}},"BackendV6Data":{{"PublicKey":"k","Port":51821}}}}"#
                ),
                dual,
                &[
                    ("kube-subnet-manager", "true"),
                    ("backend-type", "wireguard"),
                    ("backend-data", r#"{"PublicKey":"k","Port":51820}"#),
                    ("backend-v6-data", r#"{"PublicKey":"k","Port":51821}"#),
                    ("public-ip", "192.0.2.3"),
                    ("public-ipv6", "2001:db8::3"),
                ],
            ),
            (
                format!(r#"{host},"BackendType":"host-gw"}}"#),
                dual,
                &[
                    ("kube-subnet-manager", "true"),
                    ("backend-type", "host-gw"),
                    ("backend-data", "null"),
                    ("backend-v6-data", "null"),
                    ("public-ip", "192.0.2.3"),
                    ("public-ipv6", "2001:db8::3"),
                ],
            ),
            (
                format!(r#"{host},"BackendType":"ipip"}}"#),
                dual,
                &[
                    ("kube-subnet-manager", "true"),
                    ("backend-type", "ipip"),
                    ("backend-data", "null"),
                    ("public-ip", "192.0.2.3"),
                ],
            ),
            (
                r#"{"PublicIP":"192.0.2.3","PublicIPv6":null}"#.to_owned(),
                v4,
                &[
                    ("kube-subnet-manager", "true"),
                    ("backend-type", ""),
                    ("backend-data", "null"),
                    ("public-ip", "192.0.2.3"),
                ],
            ),
            (
                format!(r#"{host},"BackendType":"extension","BackendData":"a \u003c b"}}"#),
                dual,
                &[
                    ("kube-subnet-manager", "true"),
                    ("backend-type", "extension"),
                    ("backend-data", r#""a \u003c b""#),
                    ("backend-v6-data", "null"),
                    ("public-ip", "192.0.2.3"),
                    ("public-ipv6", "2001:db8::3"),
                ],
            ),
            (
                r#"{"PublicIP":"192.0.2.3","PublicIPv6":null,"BackendType":"extension"}"#.to_owned(),
                v4,
                &[
                    ("kube-subnet-manager", "true"),
                    ("backend-type", "extension"),
                    ("backend-data", ""),
                    ("public-ip", "192.0.2.3"),
                ],
            ),
        ] {
            assert_eq!(written(&attributes, key), of(expected), "{attributes} {key}");
        }
    }

    #[test]
    fn what_is_there_is_not_written_again() {
        let (dual, wished) = ("10.244.1.0-24&fd00:1::-64".parse().expect("a key"), attrs(VXLAN));
        let mut present = written(VXLAN, "10.244.1.0-24&fd00:1::-64");
        let changes = |present: &Annotations| names().changes(present, &wished, &Asked::default(), &dual);
        assert_eq!(changes(&present), Annotations::new());
        // With blanks it means the same.
        present.extend(of(&[("backend-data", r#"{"VNI": 1, "VtepMAC":"c6:d2:32:6f:8f:44"}"#)]));
        assert_eq!(changes(&present), Annotations::new());
        present.extend(of(&[("kube-subnet-manager", "false")]));
        assert_eq!(changes(&present), of(&[("kube-subnet-manager", "true")]));
    }

    /// Stock nodes drop an update in which one of two families is the same as before.
    #[test]
    fn a_change_of_one_family_touches_the_other() {
        let key = "10.244.1.0-24&fd00:1::-64".parse().expect("a key");
        let mut present = written(VXLAN, "10.244.1.0-24&fd00:1::-64");
        let mut seen = vec![present.clone()];
        for attributes in [
            VXLAN.replace("192.0.2.3", "192.0.2.4"),
            VXLAN.replace("192.0.2.3", "192.0.2.5"),
            VXLAN.replace("192.0.2.3", "192.0.2.5").replace("2001:db8::3", "2001:db8::4"),
            VXLAN.replace("192.0.2.3", "192.0.2.5").replace("c6:d2", "c6:d3"),
        ] {
            let wished = attrs(&attributes);
            let changes = names().changes(&present, &wished, &Asked::default(), &key);
            let both = [["backend-data", "public-ip"], ["backend-v6-data", "public-ipv6"]];
            for family in both {
                let differs = |name: &&str| {
                    let name = format!("{PREFIX}/{name}");
                    changes.get(&name).is_some_and(|text| Some(text) != present.get(&name))
                };
                assert!(family.iter().any(differs), "{attributes}: {changes:?}");
            }
            present.extend(changes);
            assert_eq!(names().read(&present), Ok(wished.clone()), "the blanks mean nothing");
            assert!(names().changes(&present, &wished, &Asked::default(), &key).is_empty());
            // Stock flannel cuts the text at each of these, and expects two pieces.
            let data = present.get(&names().of(DATA)).expect("data");
            assert_eq!(data.matches(":\"").count(), 1, "{data}");
            seen.push(present.clone());
        }
        seen.dedup();
        assert_eq!(seen.len(), 5);
        // One family alone has nothing to touch.
        let v4 = "10.244.1.0-24".parse().expect("a key");
        let wished = attrs(&VXLAN.replace("192.0.2.3", "192.0.2.9"));
        let changes = names().changes(&written(VXLAN, "10.244.1.0-24"), &wished, &Asked::default(), &v4);
        assert_eq!(changes, of(&[("public-ip", "192.0.2.9")]));
        // A new type is seen by both.
        let host_gw = attrs(r#"{"PublicIP":"192.0.2.3","PublicIPv6":"2001:db8::3","BackendType":"host-gw"}"#);
        let changes =
            names().changes(&written(VXLAN, "10.244.1.0-24&fd00:1::-64"), &host_gw, &Asked::default(), &key);
        let expected =
            of(&[("backend-type", "host-gw"), ("backend-data", "null"), ("backend-v6-data", "null")]);
        assert_eq!(changes, expected);
    }

    #[test]
    fn an_overwrite_of_the_wrong_family_is_never_published() {
        let asked =
            |text: &str| names().asked(&of(&[("public-ip-overwrite", text), ("node-public-ip", text)]));
        let right = asked("198.51.100.1");
        assert_eq!(
            (right.overwrite, right.node_ip),
            (Some([198, 51, 100, 1].into()), Some([198, 51, 100, 1].into()))
        );
        for text in [
            "2001:db8::1",
            "::ffff:192.0.2.1",
            "192.0.2.1/32",
            " 192.0.2.1",
            "host",
            "192.0.2.01",
            "0.0.0.0",
            "224.0.0.1",
        ] {
            let asked = asked(text);
            assert_eq!((asked.overwrite, asked.node_ip, asked.complaints.len()), (None, None, 2), "{text}");
            let key = "10.244.1.0-24".parse().expect("a key");
            let written = names().changes(&Annotations::new(), &attrs(VXLAN), &asked, &key);
            assert_eq!(written.get(&names().of(PUBLIC_IP)).map(String::as_str), Some("192.0.2.3"));
        }
        for text in ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::/64", "host", "::", "ff02::1"] {
            let asked = names().asked(&of(&[("public-ipv6-overwrite", text), ("node-public-ipv6", text)]));
            assert_eq!(
                (asked.overwrite_v6, asked.node_ipv6, asked.complaints.len()),
                (None, None, 2),
                "{text}"
            );
        }
        assert_eq!(asked(""), Asked::default(), "empty is not set");
    }

    #[test]
    fn an_overwrite_is_published_in_place_of_the_wish() {
        let asked = names().asked(&of(&[
            ("public-ip-overwrite", "198.51.100.1"),
            ("public-ipv6-overwrite", "2001:db8:0:0:0:0:0:7"),
        ]));
        let key = "10.244.1.0-24&fd00:1::-64".parse().expect("a key");
        let written = names().changes(&Annotations::new(), &attrs(VXLAN), &asked, &key);
        let text = |name| written.get(&names().of(name)).map(String::as_str);
        assert_eq!((text(PUBLIC_IP), text(PUBLIC_IPV6)), (Some("198.51.100.1"), Some("2001:db8::7")));
    }

    #[test]
    fn rubbish_makes_one_node_unreadable_or_no_peer_in_one_family() {
        let read = |pairs: &[(&str, &str)]| {
            let mut all = written(VXLAN, "10.244.1.0-24&fd00:1::-64");
            all.extend(of(pairs));
            names().read(&all)
        };
        let wrong = read(&[("public-ip", "2001:db8::1")]).expect("the other family");
        assert!(wrong.public_ip.is_unspecified() && wrong.public_ipv6.is_some());
        let wrong = read(&[("public-ipv6", "192.0.2.1")]).expect("the other family");
        assert!(!wrong.public_ip.is_unspecified() && wrong.public_ipv6.is_none());
        for (pairs, problem) in [
            (&[("public-ip", "x"), ("public-ipv6", "")][..], "its public-ip \"x\" is not an IPv4 address"),
            (&[("public-ip", ""), ("public-ipv6", "")], "it publishes no address"),
            (&[("backend-data", "{")], "its backend-data is not JSON"),
            (&[("backend-v6-data", "VtepMAC")], "its backend-v6-data is not JSON"),
        ] {
            assert_eq!(read(pairs).expect_err(problem), problem);
        }
        let long = "9".repeat(LONGEST + 1);
        for name in ["public-ip", "backend-data", "backend-type"] {
            assert!(read(&[(name, &long)]).expect_err("long").contains("has 65537 bytes"), "{name}");
        }
        assert_eq!(names().other_prefix(&of(&[("kube-subnet-manager", "true")])), None);
        let other = Annotations::from([("org.com/kube-subnet-manager".to_owned(), "true".to_owned())]);
        assert_eq!((names().other_prefix(&other), names().is_managed(&other)), (Some("org.com/"), false));
    }

    proptest! {
        #[test]
        fn noise_never_panics_and_is_never_written(
            texts in proptest::collection::vec(("(public-ip(v6)?(-overwrite)?|backend-(v6-)?data|backend-type|node-public-ip)", ".{0,40}"), 0..8),
        ) {
            let pairs: Vec<_> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
            let present = of(&pairs);
            let _ = names().read(&present);
            let asked = names().asked(&present);
            let key = "10.244.1.0-24&fd00:1::-64".parse().expect("a key");
            let mut after = present.clone();
            after.extend(names().changes(&present, &attrs(VXLAN), &asked, &key));
            // What stock nodes read of us is right, whatever was there.
            let read = names().read(&after).expect("what we wrote");
            prop_assert_eq!(read.public_ip, asked.overwrite.unwrap_or([192, 0, 2, 3].into()));
            prop_assert_eq!(read.backend_data, attrs(VXLAN).backend_data);
            prop_assert!(names().changes(&after, &attrs(VXLAN), &asked, &key).is_empty());
        }
    }
}
