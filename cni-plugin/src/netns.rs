//! A pod's network namespace, with an identity to recognise it by, because its path may later name another
//! one.

use std::fmt::{self, Display};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The plugin's own namespace.
const OWN: &str = "/proc/self/ns/net";

/// A namespace and the path by which the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    path: String,
    /// Device and inode, which identify a namespace (namespaces(7)).
    identity: (u64, u64),
}

impl Netns {
    /// Returns the namespace that the path names now, if any.
    pub fn at(path: &str) -> Option<Netns> {
        Some(Netns { path: path.to_owned(), identity: identity(path)? })
    }

    /// Returns the path, if it still names this namespace.
    pub fn path(&self) -> Option<&str> {
        (identity(&self.path) == Some(self.identity)).then_some(&self.path)
    }

    /// Returns true if the plugin itself is in this namespace.
    pub fn is_own(&self) -> bool {
        identity(OWN) == Some(self.identity)
    }

    /// Parses the complete output of `Display`.
    pub fn parse(text: &str) -> Option<Netns> {
        let (identity, path) = text.strip_suffix('\n')?.split_once(' ')?;
        let (device, inode) = identity.split_once(':')?;
        Some(Netns { path: path.to_owned(), identity: (device.parse().ok()?, inode.parse().ok()?) })
    }
}

impl Display for Netns {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, inode) = self.identity;
        writeln!(formatter, "{device}:{inode} {}", self.path)
    }
}

fn identity(path: &str) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_names_another_namespace_is_not_returned() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, next) = (directory.path().join("a b"), directory.path().join("next"));
        let text = path.display().to_string();
        assert_eq!(Netns::at(&text), None);
        fs::write(&path, "").expect("a file");
        let netns = Netns::parse(&Netns::at(&text).expect("there").to_string()).expect("as written");
        assert_eq!((netns.path(), netns.is_own()), (Some(text.as_str()), false));
        fs::write(&next, "").expect("another file, while the first holds its inode");
        fs::rename(&next, &path).expect("the replacement");
        assert_eq!(netns.path(), None);
        assert!(Netns::at(OWN).expect("there").is_own());
    }

    #[test]
    fn truncated_text_does_not_parse() {
        let whole = Netns::at(OWN).expect("there").to_string();
        for end in 0..whole.len() {
            assert_eq!(Netns::parse(&whole[..end]), None, "{end}");
        }
        assert_eq!(Netns::parse("x:y /a\n"), None);
    }
}
