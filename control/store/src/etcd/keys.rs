//! flannel's keys: `<prefix>/config` and `<prefix>/subnets/<key>`.

use model::lease::SubnetKey;

/// The keys of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    config: String,
    /// Without a trailing slash: stock nodes list and watch `…/subnets` as a bare prefix.
    subnets: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Keys {
        Keys { config: join(prefix, "config"), subnets: join(prefix, "subnets") }
    }

    pub(super) fn config(&self) -> &[u8] {
        self.config.as_bytes()
    }

    /// Returns the first key of the leases' range.
    pub(super) fn leases(&self) -> &[u8] {
        self.subnets.as_bytes()
    }

    /// Returns the first key after the leases' range.
    pub(super) fn leases_end(&self) -> Vec<u8> {
        let mut end = self.subnets.clone().into_bytes();
        // The name ends in `s`, so the last byte can be raised.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        end
    }

    pub(super) fn lease(&self, key: &SubnetKey) -> Vec<u8> {
        format!("{}/{key}", self.subnets).into_bytes()
    }

    /// Returns a stored key without the part that all leases' keys share. A key that merely begins like ours
    /// is returned whole, and then does not parse as a lease's.
    pub(super) fn tail(&self, key: &[u8]) -> String {
        let below = key.strip_prefix(self.leases()).and_then(|rest| rest.strip_prefix(b"/"));
        String::from_utf8_lossy(below.unwrap_or(key)).into_owned()
    }
}

/// Joins two parts as Go's `path.Join` does, by which flannel makes its keys.
fn join(prefix: &str, name: &str) -> String {
    let rooted = prefix.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in prefix.split('/').chain([name]) {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    format!("{}{}", if rooted { "/" } else { "" }, parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_cleaned_as_go_does() {
        // By the four rules of Go's path.Clean.
        for (prefix, config) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com/network/", "/coreos.com/network/config"),
            ("//coreos.com///network//", "/coreos.com/network/config"),
            ("coreos.com/network", "coreos.com/network/config"),
            ("", "config"),
            ("/", "/config"),
            (".", "config"),
            ("./a/../b", "b/config"),
            ("/..", "/config"),
            ("/../a/./b/..", "/a/config"),
            ("..", "../config"),
            ("a/../..", "../config"),
            ("../..", "../../config"),
        ] {
            assert_eq!(Keys::new(prefix).config(), config.as_bytes(), "{prefix:?}");
        }
    }

    #[test]
    fn leases_stand_below_subnets() {
        let keys = Keys::new("/n");
        let dual: SubnetKey = "10.5.52.0-24&fd00:12:13::-56".parse().unwrap();
        assert_eq!(keys.lease(&dual), b"/n/subnets/10.5.52.0-24&fd00:12:13::-56");
        assert_eq!((keys.leases(), keys.leases_end().as_slice()), (&b"/n/subnets"[..], &b"/n/subnett"[..]));
    }

    #[test]
    fn only_a_key_below_ours_loses_its_beginning() {
        let keys = Keys::new("/n");
        for (key, tail) in [
            (&b"/n/subnets/10.5.52.0-24"[..], "10.5.52.0-24"),
            (b"/n/subnets/a/b", "a/b"),
            (b"/n/subnets/", ""),
            (b"/n/subnets", "/n/subnets"),
            (b"/n/subnets-old/10.5.52.0-24", "/n/subnets-old/10.5.52.0-24"),
            (b"/n/subnets/\xff", "\u{fffd}"),
            (b"", ""),
        ] {
            assert_eq!(keys.tail(key), tail);
        }
    }
}
