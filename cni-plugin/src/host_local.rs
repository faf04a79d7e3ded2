//! Leaked reservations of `host-local`, a file for each address. If the plugin is killed between creating a
//! reservation and writing its owner, an empty file remains, which no DEL finds. A reservation whose owner
//! has no state, because the states were lost, is found by no DEL either. Such addresses would stay reserved
//! forever.

use std::fs::{self, OpenOptions};
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::delegate;
use crate::files;
use crate::request::{Config, is_container};
use crate::state::Attachment;

/// The plugin's default directory, with a folder for each network (containernetworking plugins, host-local's
/// README).
const DATA_DIRECTORY: &str = "/var/lib/cni/networks";
/// The file in such a folder that the plugin locks before it picks an address.
const LOCK: &str = "lock";
/// Maximum length of a reservation.
const MAX_TEXT: u64 = 4096;
/// Polling interval for the lock.
const POLL: Duration = Duration::from_millis(20);

/// Removes reservations of this network that are empty or whose owner is not in use, under the plugin's lock,
/// so that no reservation is just being filled in. Does nothing if the lock is not free within `limit`.
///
/// `is_used` is made under the lock.
pub fn sweep<F: Fn(&Attachment) -> bool>(config: &Config, limit: Duration, is_used: impl FnOnce() -> F) {
    if delegate::ipam_type_of(config) != delegate::HOST_LOCAL || config.name.is_empty() {
        return;
    }
    let directory = config.ipam.get("dataDir").and_then(|place| place.as_str());
    let directory = directory.filter(|place| !place.is_empty()).unwrap_or(DATA_DIRECTORY);
    let directory = Path::new(directory).join(&config.name);
    // Without a lock file `host-local` has never used this folder.
    let Ok(lock) = files::open(OpenOptions::new().read(true), &directory.join(LOCK)) else { return };
    let deadline = Instant::now() + limit;
    while lock.try_lock().is_err() {
        if Instant::now() >= deadline {
            return;
        }
        thread::sleep(POLL);
    }
    let is_used = is_used();
    for entry in fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok) {
        let is_address = entry.file_name().to_str().is_some_and(|name| name.parse::<IpAddr>().is_ok());
        if !is_address {
            continue;
        }
        let Ok(bytes) = files::read(&entry.path(), MAX_TEXT) else { continue };
        let is_leaked = bytes.is_empty() || owner(&bytes).is_some_and(|owner| !is_used(&owner));
        if is_leaked {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Parses a reservation: the container and, in a second line, the interface. Whatever else an address file
/// contains was not written by `host-local` for a pod, but perhaps by an operator who keeps an address free.
fn owner(bytes: &[u8]) -> Option<Attachment> {
    let (container, interface) = std::str::from_utf8(bytes).ok()?.trim_end().split_once("\r\n")?;
    let is_interface = !interface.is_empty() && !interface.contains(['/', '\r', '\n']);
    let owner = Attachment { container: container.to_owned(), interface: interface.to_owned() };
    (is_container(container) && is_interface).then_some(owner)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    const NOTHING: fn() -> fn(&Attachment) -> bool = || |_| false;
    const LIMIT: Duration = Duration::from_millis(50);

    #[test]
    fn only_leaked_reservations_of_the_own_network_are_removed() {
        let place = tempfile::tempdir().expect("a directory");
        let files = [
            ("mine/10.244.1.7", "", false),
            ("mine/fd00::7", "", false),
            ("mine/10.244.1.8", "living\r\neth0", true),
            ("mine/10.244.1.9", "living\r\nnet1", false),
            ("mine/fd00::9", "dead\r\neth0\r\n", false),
            ("mine/10.244.1.10", "kept free by the operator", true),
            ("mine/10.244.1.11", "reserved", true),
            ("mine/10.244.1.12", "not/an/id\r\neth0", true),
            ("mine/10.244.1.13", "dead\r\n", true),
            ("mine/last_reserved_ip.0", "", true),
            ("mine/lock", "", true),
            ("mine/README", "dead\r\neth0", true),
            ("another/10.244.1.7", "", true),
            ("another/lock", "", true),
            ("unlocked/10.244.1.7", "", true),
        ];
        for (name, text, _) in files {
            let path = place.path().join(name);
            fs::create_dir_all(path.parent().expect("one")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        let is_used = || |one: &Attachment| one.container == "living" && one.interface == "eth0";
        let of = |name: &str, ipam: &str| {
            let ipam = json!({"type": ipam, "dataDir": place.path()});
            config(name, ipam.as_object().expect("an object"))
        };
        for other in [of("mine", "dhcp"), of("", "host-local"), of("unlocked", "host-local")] {
            sweep(&other, LIMIT, NOTHING);
        }
        assert!(files.iter().all(|(name, ..)| place.path().join(name).exists()));
        // Somebody is just filling one in.
        let lock = fs::File::open(place.path().join("mine/lock")).expect("a lock");
        lock.lock().expect("locked");
        sweep(&of("mine", "host-local"), LIMIT, NOTHING);
        assert!(files.iter().all(|(name, ..)| place.path().join(name).exists()));
        drop(lock);
        sweep(&of("mine", "host-local"), LIMIT, is_used);
        for (name, _, stays) in files {
            assert_eq!(place.path().join(name).exists(), stays, "{name}");
        }
    }

    #[test]
    fn what_is_no_file_blocks_nobody() {
        let place = tempfile::tempdir().expect("a directory");
        fs::create_dir(place.path().join("mine")).expect("a folder");
        let at = |name: &str| place.path().join("mine").join(name);
        let ipam = json!({"dataDir": place.path()});
        let config = config("mine", ipam.as_object().expect("an object"));
        nix::unistd::mkfifo(&at("lock"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        sweep(&config, LIMIT, NOTHING);
        fs::remove_file(at("lock")).expect("removed");
        fs::write(at("lock"), "").expect("a lock");
        nix::unistd::mkfifo(&at("10.244.1.7"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        sweep(&config, LIMIT, NOTHING);
        assert!(at("10.244.1.7").exists(), "nobody's reservation");
    }

    fn config(name: &str, ipam: &Map<String, serde_json::Value>) -> Config {
        Config { name: name.to_owned(), ipam: ipam.clone(), ..Config::default() }
    }
}
