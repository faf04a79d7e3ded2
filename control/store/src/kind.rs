//! Kinds of failures: what is one kind is one line of the log, however its texts vary.

/// What all failures of one kind have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    class: &'static str,
    of: Vec<String>,
}

impl Kind {
    /// Names a class of failures.
    pub fn new(class: &'static str) -> Kind {
        Kind { class, of: Vec::new() }
    }

    /// Narrows the class by something that does not vary within a kind.
    pub fn of(mut self, part: impl ToString) -> Kind {
        self.of.push(part.to_string());
        self
    }

    /// Narrows the class by a text that varies: by its [`gist`].
    pub fn of_text(self, text: &str) -> Kind {
        self.of(gist(text))
    }
}

/// Returns a text without the words that vary between failures of one kind: numbers, times, addresses, ids,
/// and the components of paths that are ids or temporary names.
pub fn gist(text: &str) -> String {
    let words = text.split_whitespace().map(|word| {
        let parts = word.split(['/', '=']).enumerate().filter(|(place, part)| {
            // In a path, which has a slash before the part, a temporary file begins with a dot.
            let is_temporary = *place > 0 && part.starts_with('.');
            !is_temporary && !varies(part)
        });
        parts.map(|(_, part)| part).collect::<Vec<_>>().join("/")
    });
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Tells whether this part of a word is a number, an address or an id.
fn varies(part: &str) -> bool {
    let bare = part.trim_matches(|letter: char| !letter.is_alphanumeric());
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let has_digit = part.bytes().any(|byte| byte.is_ascii_digit());
    let is_address = part.contains("::") || (bare.contains(':') && bare.split(':').all(is_hex));
    has_digit || is_address || (bare.len() >= 4 && is_hex(bare))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// What varies, as errors of stores, of the kernel and of programs write it.
    fn varying() -> impl Strategy<Value = String> {
        let ipv6 = prop_oneof![
            any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).to_string()),
            Just("::".to_owned()),
            // Without a digit.
            "[a-f]{1,4}(:[a-f]{1,4}){1,6}::",
            "[a-f]{1,4}::([a-f]{1,4}:){0,4}[a-f]{1,4}",
            "([a-f]{1,4}:){7}[a-f]{1,4}",
        ];
        let ipv4 = any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).to_string());
        let address = prop_oneof![ipv4, ipv6].boxed();
        let uuid = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}";
        prop_oneof![
            address.clone(),
            (address.clone(), 0..=128u8).prop_map(|(address, prefix)| format!("{address}/{prefix}")),
            (address, any::<u16>()).prop_map(|(address, port)| format!("[{address}]:{port},")),
            any::<i64>().prop_map(|number| number.to_string()),
            (0..10_000u32).prop_map(|millis| format!("{}.{:03}s", millis / 1000, millis % 1000)),
            "[0-9a-f]{8,32}",
            "0x[0-9a-f]{1,16}",
            uuid,
        ]
    }

    /// A name as the tempfile crate and mktemp(1) choose it, in a directory that stays.
    fn temporary() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-zA-Z0-9]{6}".prop_map(|random| format!("/run/flannel/.subnet.env.{random}")),
            "[a-zA-Z0-9]{6}".prop_map(|random| format!("/run/flannel/.tmp{random}:")),
        ]
    }

    proptest! {
        #[test]
        fn failures_of_one_kind_have_one_gist(
            one in varying(), other in varying(), name in temporary(), other_name in temporary(),
        ) {
            let texts = |varying: &str, name: &str| [
                format!("cannot add the route {varying} dev flannel.1: File exists"),
                format!("etcd: cannot renew the lease: {varying}: etcdserver: requested lease not found"),
                format!("cannot write {name} No space left on device"),
                format!("request {varying} of client \"{varying}\" took too long (id={varying})"),
            ];
            let (first, second) = (texts(&one, &name), texts(&other, &other_name));
            let kinds: Vec<String> = first.iter().map(|text| gist(text)).collect();
            prop_assert_eq!(&kinds, &second.iter().map(|text| gist(text)).collect::<Vec<_>>());
            // And different ones have different ones.
            let distinct: std::collections::BTreeSet<&String> = kinds.iter().collect();
            prop_assert_eq!(distinct.len(), kinds.len(), "{:?}", kinds);
        }
    }

    #[test]
    fn words_stay() {
        for (text, expected) in [
            ("cannot set MTU 1450 on eth0: not permitted", "cannot set MTU on not permitted"),
            ("watching leases: etcd: be off, a bad day", "watching leases: etcd: be off, a bad day"),
            ("store /var/lib/loden/leases.db: removed", "store /var/lib/loden/leases.db: removed"),
            ("../up is :: not", "../up is not"),
            ("", ""),
        ] {
            assert_eq!(gist(text), expected);
        }
    }
}
