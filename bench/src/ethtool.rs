//! The `ethtool` calls that make a veth pair behave like a wire.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The features that turn testbed I into W, on both ends of the underlay pair. GRO stays on, because the
/// drivers of real NICs use it. Checksums are completed before the wire; otherwise the receiver would see
/// packets that no wire delivers, and UDP_GRO would merge nothing.
pub const WIRE_LIKE: [(&str, bool); 7] = [
    ("tso", false),
    ("gso", false),
    ("gro", true),
    ("tx-checksum-ip-generic", false),
    ("tx-udp-segmentation", false),
    ("tx-udp_tnl-segmentation", false),
    ("tx-udp_tnl-csum-segmentation", false),
];

/// Directories to search after `PATH`: Debian installs ethtool in one that an ordinary user's PATH lacks.
const SBIN: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Returns the arguments of ethtool that set `features` on `device`.
pub fn set_features(device: &str, features: &[(&str, bool)]) -> Vec<String> {
    let mut arguments = vec!["-K".to_owned(), device.to_owned()];
    for (feature, on) in features {
        arguments.push((*feature).to_owned());
        arguments.push(if *on { "on" } else { "off" }.to_owned());
    }
    arguments
}

/// Finds ethtool; the error says how to install it.
pub fn find() -> Result<PathBuf, String> {
    find_in(std::env::var_os("PATH"))
        .ok_or_else(|| "testbed W needs the ethtool program: apt-get install ethtool".to_owned())
}

fn find_in(path: Option<OsString>) -> Option<PathBuf> {
    let from_path = path.iter().flat_map(std::env::split_paths).collect::<Vec<_>>();
    let directories = from_path.into_iter().chain(SBIN.iter().map(PathBuf::from));
    directories.map(|directory| directory.join("ethtool")).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_like_command_line() {
        assert_eq!(
            set_features("under0", &WIRE_LIKE).join(" "),
            "-K under0 tso off gso off gro on tx-checksum-ip-generic off tx-udp-segmentation off \
             tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off"
        );
        assert_eq!(set_features("x", &[]), ["-K", "x"]);
    }

    #[test]
    fn a_program_in_path_is_found_and_a_plain_file_is_not() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ethtool");
        std::fs::write(&file, "").unwrap();
        assert_ne!(find_in(Some(dir.path().into())), Some(file.clone()));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_in(Some(dir.path().into())), Some(file));
    }
}
