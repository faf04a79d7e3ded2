//! Leaked reservations of `host-local`. If it is killed between creating a reservation and writing its owner,
//! an empty file named after the address remains. No DEL finds the file, so the address would stay reserved
//! forever.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

/// The plugin's name.
const NAME: &str = "host-local";
/// The plugin's default directory, with a folder for each network (containernetworking plugins, host-local's
/// README).
const DATA_DIRECTORY: &str = "/var/lib/cni/networks";
/// The file in such a folder that the plugin locks before it picks an address.
const LOCK: &str = "lock";

/// Removes empty reservations of this delegate's network, under the plugin's lock, so that no reservation is
/// just being filled in.
pub fn sweep(delegate: &Value) {
    let (ipam, network) = (&delegate["ipam"], delegate["name"].as_str().unwrap_or_default());
    if ipam["type"] != NAME || network.is_empty() {
        return;
    }
    let directory = ipam["dataDir"].as_str().filter(|place| !place.is_empty()).unwrap_or(DATA_DIRECTORY);
    let directory = Path::new(directory).join(network);
    // Without a lock file `host-local` has never used this folder.
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
    fn only_empty_reservations_of_the_own_network_are_removed() {
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
