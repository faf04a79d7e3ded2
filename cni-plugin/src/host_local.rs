//! What `host-local` leaves when it is killed between making a reservation and writing whose it is: an empty file by the
//! address, which no DEL finds, so that nobody ever gets that address again.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

/// Its own name, and where it keeps a folder for each network (containernetworking plugins, host-local's README).
const NAME: &str = "host-local";
const DATA_DIRECTORY: &str = "/var/lib/cni/networks";
/// The file that it locks in such a folder before it looks for an address.
const LOCK: &str = "lock";

/// Removes empty reservations of this delegate's network. While its lock is held, nobody is about to fill one.
pub fn sweep(delegate: &Value) {
    let (ipam, network) = (&delegate["ipam"], delegate["name"].as_str().unwrap_or_default());
    if ipam["type"] != NAME || network.is_empty() {
        return;
    }
    let directory = ipam["dataDir"].as_str().filter(|place| !place.is_empty()).unwrap_or(DATA_DIRECTORY);
    let directory = Path::new(directory).join(network);
    // Without a lock file it has never been here.
    let Ok(lock) = File::open(directory.join(LOCK)) else { return };
    if lock.lock().is_err() {
        return;
    }
    for entry in fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok) {
        let is_address = entry.file_name().to_str().is_some_and(|name| name.parse::<IpAddr>().is_ok());
        let is_empty = entry.metadata().is_ok_and(|file| file.is_file() && file.len() == 0);
        if is_address && is_empty {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn empty_reservations_of_ones_own_network_go_and_nothing_else() {
        let place = tempfile::tempdir().expect("a directory");
        let files = [
            ("mine/10.244.1.7", "", false),
            ("mine/fd00::7", "", false),
            ("mine/10.244.1.8", "pod\r\neth0", true),
            ("mine/last_reserved_ip.0", "", true),
            ("mine/lock", "", true),
            ("mine/README", "", true),
            ("another/10.244.1.7", "", true),
            ("another/lock", "", true),
            ("unlocked/10.244.1.7", "", true),
        ];
        for (name, text, _) in files {
            let path = place.path().join(name);
            fs::create_dir_all(path.parent().expect("one")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        let delegate =
            |name: &str, ipam: &str| json!({"name": name, "ipam": {"type": ipam, "dataDir": place.path()}});
        for other in [delegate("mine", "dhcp"), delegate("", NAME), delegate("unlocked", NAME), json!({})] {
            sweep(&other);
        }
        assert!(files.iter().all(|(name, ..)| place.path().join(name).exists()));
        sweep(&delegate("mine", NAME));
        for (name, _, stays) in files {
            assert_eq!(place.path().join(name).exists(), stays, "{name}");
        }
    }
}
