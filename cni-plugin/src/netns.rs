//! A pod's network namespace, with an identity to recognise it by, because its path may later name another
//! one, which the kernel may give the same inode: docs/decisions/0028-namespace-identity.md.

use std::fmt::{self, Display};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::thread;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};

/// The plugin's own namespace.
const OWN: &str = "/proc/self/ns/net";
/// Differs between any two boots (random(4)).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// The first word of a record. Records of earlier versions start with the device.
const FORMAT: &str = "2";

/// A namespace and the path by which the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    path: String,
    /// Device and inode, which identify a namespace while it exists (namespaces(7)).
    file: (u64, u64),
    /// What else identifies it; `None` in a record of an earlier version.
    unique: Option<Unique>,
}

/// What no two namespaces share, even if one comes after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unique {
    boot: String,
    mark: Mark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// The kernel's number for the namespace (SO_NETNS_COOKIE).
    Cookie(u64),
    /// Before Linux 5.14: when the inode was made, in seconds and nanoseconds.
    Made(i64, i64),
}

impl Netns {
    /// Returns the namespace that the path names now, if any.
    pub fn at(path: &str) -> Option<Netns> {
        // A path that names no namespace must not block or have any other effect.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).ok()?;
        let there = file.metadata().ok()?;
        let mark = cookie(file).map_or(Mark::Made(there.ctime(), there.ctime_nsec()), Mark::Cookie);
        let boot = fs::read_to_string(BOOT).map_or_else(|_| "-".to_owned(), |text| text.trim().to_owned());
        Some(Netns {
            path: path.to_owned(),
            file: (there.dev(), there.ino()),
            unique: Some(Unique { boot, mark }),
        })
    }

    /// Returns the path, if it certainly still names this namespace.
    pub fn path(&self) -> Option<&str> {
        let now = Netns::at(&self.path)?;
        (self.unique.is_some() && !self.differs(&now)).then_some(&self.path)
    }

    /// Returns true if the other is certainly another namespace.
    pub fn differs(&self, other: &Netns) -> bool {
        self.file != other.file || self.unique.is_some() && self.unique != other.unique
    }

    /// Returns true if the plugin itself is in this namespace.
    pub fn is_own(&self) -> bool {
        fs::metadata(OWN).is_ok_and(|own| (own.dev(), own.ino()) == self.file)
    }

    /// Parses the complete output of `Display`, or a record of an earlier version, `DEVICE:INODE PATH`.
    pub fn parse(text: &str) -> Option<Netns> {
        let text = text.strip_suffix('\n')?;
        let (unique, rest) = match text.strip_prefix(FORMAT).and_then(|rest| rest.strip_prefix(' ')) {
            Some(rest) => {
                let (boot, rest) = rest.split_once(' ')?;
                let (mark, rest) = rest.split_once(' ')?;
                (Some(Unique { boot: boot.to_owned(), mark: Mark::parse(mark)? }), rest)
            }
            None => (None, text),
        };
        let (file, path) = rest.split_once(' ')?;
        let (device, inode) = file.split_once(':')?;
        Some(Netns { path: path.to_owned(), file: (device.parse().ok()?, inode.parse().ok()?), unique })
    }
}

impl Display for Netns {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Unique { boot, mark }) = &self.unique {
            write!(formatter, "{FORMAT} {boot} {mark} ")?;
        }
        let (device, inode) = self.file;
        writeln!(formatter, "{device}:{inode} {}", self.path)
    }
}

impl Mark {
    fn parse(text: &str) -> Option<Mark> {
        let (kind, value) = text.split_once('=')?;
        match kind {
            "cookie" => Some(Mark::Cookie(value.parse().ok()?)),
            "made" => {
                let (seconds, nanoseconds) = value.split_once('.')?;
                Some(Mark::Made(seconds.parse().ok()?, nanoseconds.parse().ok()?))
            }
            _ => None,
        }
    }
}

impl Display for Mark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mark::Cookie(number) => write!(formatter, "cookie={number}"),
            Mark::Made(seconds, nanoseconds) => write!(formatter, "made={seconds}.{nanoseconds}"),
        }
    }
}

/// Returns the kernel's number for the namespace, if the file is one and the kernel tells the number.
fn cookie(file: File) -> Option<u64> {
    // Only a thread can enter a namespace and leave it by ending.
    let inside = move || {
        setns(file, CloneFlags::CLONE_NEWNET).ok()?;
        io::netns::cookie(UnixDatagram::unbound().ok()?).ok()
    };
    thread::Builder::new().spawn(inside).ok()?.join().ok().flatten()
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
    fn the_same_inode_is_not_the_same_namespace() {
        let now = Netns::at(OWN).expect("there");
        let unique = now.unique.clone().expect("of this version");
        let with =
            |boot: &str, mark| Netns { unique: Some(Unique { boot: boot.to_owned(), mark }), ..now.clone() };
        for former in [
            with(&unique.boot, Mark::Cookie(u64::MAX)),
            with(&unique.boot, Mark::Made(1, 2)),
            with("another-boot", unique.mark),
        ] {
            let former = Netns::parse(&former.to_string()).expect("as written");
            assert_eq!((former.file, former.path()), (now.file, None), "{former}");
            assert!(former.differs(&now), "{former}");
        }
        assert_eq!(now.path(), Some(OWN));
    }

    #[test]
    fn a_record_of_an_earlier_version_proves_nothing_but_a_difference() {
        let now = Netns::at(OWN).expect("there");
        let record = |inode| format!("{}:{} {OWN}\n", now.file.0, inode);
        let same = Netns::parse(&record(now.file.1)).expect("an earlier record");
        assert_eq!((same.path(), same.differs(&now)), (None, false));
        let other = Netns::parse(&record(now.file.1 + 1)).expect("an earlier record");
        assert!(other.differs(&now));
    }

    #[test]
    fn truncated_text_does_not_parse() {
        let made = Unique { boot: "b".into(), mark: Mark::Made(-1, 999_999_999) };
        let now = Netns::at(OWN).expect("there");
        for netns in [Netns { unique: Some(made), ..now.clone() }, now] {
            let whole = netns.to_string();
            assert_eq!(Netns::parse(&whole), Some(netns));
            for end in 0..whole.len() {
                assert_eq!(Netns::parse(&whole[..end]), None, "{end}");
            }
        }
        for text in
            ["x:y /a\n", "2 boot cookie=x 1:2 /a\n", "2 boot made=1 1:2 /a\n", "2 boot new=1 1:2 /a\n"]
        {
            assert_eq!(Netns::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_namespace_blocks_nobody() {
        let directory = tempfile::tempdir().expect("a directory");
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
        assert!(Netns::at(&fifo.display().to_string()).is_some_and(|netns| !netns.is_own()));
    }
}
