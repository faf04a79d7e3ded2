//! A daemon that cannot work gives the reason in one line, exits with 1, and leaves the host as it found it.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use lab::{Wiring, mounts};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rusqlite::Connection;

use crate::common::{self, Cluster, DUAL, PORT, VXLAN, replace};

const PROBES: &str = "10256";

#[test]
fn broken_network_configurations_name_key_value_and_rule() {
    let Some(mut cluster) = alone("bs-conf") else { return };
    for (config, named) in [
        (r#"{"Network":"10.244.0.0"#, vec!["not a JSON object"]),
        (r#"[]"#, vec!["JSON object"]),
        (r#"{}"#, vec!["Network"]),
        (r#"{"Network":"10.244.0.0/33"}"#, vec!["Network", "10.244.0.0/33"]),
        (r#"{"Network":17}"#, vec!["Network", "17"]),
        (r#"{"Network":"10.244.0.0/16","SubnetLen":31}"#, vec!["SubnetLen", "31", "30"]),
        (r#"{"Network":"10.244.0.0/16","SubnetLen":17}"#, vec!["SubnetLen", "17", "18"]),
        (r#"{"Network":"10.244.0.0/16","SubnetMin":"10.9.0.0"}"#, vec!["SubnetMin", "10.9.0.0"]),
        (r#"{"Network":"10.244.0.0/16","SubnetMax":"10.244.9.7"}"#, vec!["SubnetMax", "10.244.9.7"]),
        (r#"{"Network":"10.244.0.0/29"}"#, vec!["Network", "10.244.0.0/29"]),
        (r#"{"Network":"10.244.0.0/16","EnableIPv6":true}"#, vec!["IPv6Network"]),
        (r#"{"Network":"10.244.0.0/16","EnableIPv4":false}"#, vec!["EnableIPv4", "EnableIPv6"]),
        (r#"{"Network":"10.244.0.0/16","Backend":{}}"#, vec!["Backend.Type"]),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlna"}}"#, vec!["Backend.Type", "vxlna", "vxlan"]),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#,
            vec!["Backend.VNI", "16777216", "16777215"],
        ),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":70000}}"#,
            vec!["Backend.Port", "70000", "65535"],
        ),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","MTU":60}}"#, vec!["MTU", "60"]),
    ] {
        cluster.config = config.to_owned();
        let line = refused(&cluster, &mut cluster.command(1));
        for word in named {
            assert!(line.contains(word), "{word} is not named for {config}: {line}");
        }
    }
    // None of them reached the store, where other nodes would read it.
    assert_eq!(cluster.in_store(async |store| store.net_config().await.expect("the store")), None);
}

/// Some versions of stock flannel end over such an address on every node that reads it.
#[test]
fn a_public_address_that_no_node_can_use_is_published_nowhere() {
    let Some(mut cluster) = alone("bs-public") else { return };
    cluster.config = DUAL.to_owned();
    for (option, value) in [
        ("--public-ip", "0.0.0.0"),
        ("--public-ip", "224.0.0.1"),
        ("--public-ip", "255.255.255.255"),
        ("--public-ipv6", "::"),
        ("--public-ipv6", "ff02::1"),
        ("--public-ipv6", "::ffff:192.0.2.1"),
    ] {
        let line = refused(&cluster, cluster.command(1).args([option, value]));
        assert!(line.contains("not published") && line.contains(&format!("= {value}:")), "{option}: {line}");
        assert!(line.contains("--public-ip") && cluster.leases().is_empty(), "{line}");
    }
}

#[test]
fn without_a_tun_device_it_says_so() {
    let Some(cluster) = alone("bs-tun") else { return };
    let line = mounts::private(|| {
        mounts::tmpfs(Path::new("/dev/net"), "64k").expect("a tmpfs");
        mounts::set_read_only(Path::new("/dev/net"), true).expect("nothing can be made there");
        refused(&cluster, &mut cluster.command(1))
    })
    .expect("private mounts");
    assert!(line.contains("/dev/net/tun is missing"), "{line}");
    let line = mounts::private(|| {
        mounts::tmpfs(Path::new("/dev/net"), "64k").expect("a tmpfs");
        fs::write("/dev/net/tun", "").expect("a file that is no device");
        refused(&cluster, &mut cluster.command(1))
    })
    .expect("private mounts");
    assert!(line.contains("/dev/net/tun"), "{line}");
    assert!(cluster.leases().is_empty(), "a node that cannot forward takes no lease");
}

#[test]
fn a_missing_tun_device_is_made_where_that_is_allowed() {
    let Some(cluster) = alone("bs-mknod") else { return };
    mounts::private(|| {
        let node = Path::new("/dev/net/tun");
        mounts::tmpfs(Path::new("/dev/net"), "64k").expect("a tmpfs");
        // The doctor changes nothing.
        let mut doctor = Command::new(env!("CARGO_BIN_EXE_loden"));
        let output = cluster.host(1).namespace().output(doctor.arg("doctor")).expect("the doctor");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("mknod") && !node.exists(), "{text}");
        cluster.start(1, &[]).end(Signal::SIGTERM);
        let made = fs::metadata(node).expect("a node");
        assert_eq!((made.rdev(), made.mode() & 0o7777), (10 << 8 | 200, 0o600));
        // In a directory of its own as well.
        mounts::tmpfs(Path::new("/dev"), "64k").expect("a tmpfs");
        for (device, minor) in [("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)] {
            let (path, kind) = (Path::new("/dev").join(device), SFlag::S_IFCHR);
            mknod(&path, kind, Mode::from_bits_truncate(0o666), makedev(1, minor)).expect("a device");
        }
        cluster.start(1, &[]).end(Signal::SIGTERM);
        assert!(node.exists());
    })
    .expect("private mounts");
}

#[test]
fn without_rights_it_names_them() {
    let Some(mut cluster) = alone("bs-rights") else { return };
    // A user without rights must be able to run the program and to write the store.
    let program = cluster.file("loden");
    fs::copy(env!("CARGO_BIN_EXE_loden"), &program).expect("a copy");
    fs::set_permissions(cluster.place.path(), fs::Permissions::from_mode(0o777)).expect("open to all");
    let given = cluster.command(1);
    let mut command = Command::new(&program);
    command.args(given.get_args()).uid(65_534).gid(65_534);
    let line = refused(&cluster, &mut command);
    assert!(line.contains("CAP_NET_ADMIN") || line.contains("root"), "{line}");
    cluster.config = VXLAN.to_owned();
    assert!(cluster.leases().is_empty(), "a node that cannot forward takes no lease");
}

#[test]
fn a_device_name_that_is_taken_is_named() {
    let Some(cluster) = alone("bs-name") else { return };
    let namespace = cluster.host(1).namespace();
    namespace.add_bridge("flannel.1").expect("a bridge");
    let line = refused_with(&cluster, &mut cluster.command(1), "flannel.1");
    assert!(line.contains("flannel.1"), "{line}");
    namespace.delete_link("flannel.1").expect("it is still there");

    let mut first = cluster.start(1, &[]);
    let files = ["second.env", "second.json"].map(|name| cluster.file(name));
    let mut second = cluster.command(1);
    second.arg("--public-ip").arg("198.18.0.77");
    replace(&mut second, "--subnet-file", files[0].to_str().expect("a path"));
    let line = refused_with(&cluster, &mut second, "flannel.1");
    // Device and port are both taken; the port is requested first.
    assert!(line.contains("8472"), "{line}");
    assert!(first.is_running());
    assert_eq!(cluster.leases().len(), 1, "the second has taken no lease");
}

#[test]
fn a_port_that_is_taken_is_named() {
    if !common::needs(&[]).and("the kernel's vxlan", common::has_vxlan()).are_met() {
        return;
    }
    let Some(mut cluster) = alone("bs-port") else { return };
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("a socket");
    let socket = cluster.host(1).namespace().run(bind).expect("the host");
    let line = refused(&cluster, &mut cluster.command(1));
    assert!(line.contains("8472"), "{line}");
    drop(socket);

    // A kernel vxlan device, as flannel of another cluster leaves it.
    cluster.shell(1, "ip link add v9 type vxlan id 9 dstport 8472 dev eth0 && ip link set v9 up");
    let line = refused(&cluster, &mut cluster.command(1));
    assert!(line.contains("8472"), "{line}");
    cluster.shell(1, "ip link del v9");

    // Another daemon with its own network: if both could bind the port, each would get half of the packets.
    let mut first = cluster.start(1, &[]);
    let env = first.subnet_file.clone();
    cluster.config = VXLAN.replace(r#""vxlan""#, r#""vxlan","VNI":2"#);
    let store = format!("sqlite:{}", cluster.file("second.db").display());
    let mut second = cluster.command(1);
    replace(&mut second, "--store", &store);
    replace(&mut second, "--subnet-file", cluster.file("second.env").to_str().expect("a path"));
    let line = refused_with(&cluster, &mut second, "flannel.1");
    assert!(line.contains("8472"), "{line}");
    assert!(first.is_running() && env.exists());
}

/// A second daemon of flannel's udp would get `flannel1`.
#[test]
fn a_second_daemon_of_udp_is_refused() {
    let Some(mut cluster) = alone("bs-udp") else { return };
    cluster.config = common::UDP.to_owned();
    let mut first = cluster.start(1, &[]);
    cluster.config = common::UDP.replace(r#""udp""#, r#""udp","Port":8286"#).replace("10.244", "10.245");
    let store = format!("sqlite:{}", cluster.file("second.db").display());
    let mut second = cluster.command(1);
    replace(&mut second, "--store", &store);
    replace(&mut second, "--subnet-file", cluster.file("second.env").to_str().expect("a path"));
    let line = refused_with(&cluster, &mut second, "flannel0");
    assert!(line.contains("flannel0"), "{line}");
    assert!(first.is_running());
}

#[test]
fn a_store_that_another_process_locks_is_waited_for_and_named() {
    let Some(cluster) = alone("bs-lock") else { return };
    cluster.in_store(async |_| ());
    let connection = Connection::open(cluster.store()).expect("the store");
    connection.execute_batch("BEGIN EXCLUSIVE").expect("the lock");
    let line = refused(&cluster, &mut cluster.command(1));
    assert!(line.contains("leases.db") && line.contains("lock"), "{line}");
    connection.execute_batch("ROLLBACK").expect("the lock's end");
    cluster.start(1, &[]).end(Signal::SIGTERM);
}

#[test]
fn a_store_that_is_no_store_is_named() {
    let Some(cluster) = alone("bs-store") else { return };
    fs::write(cluster.store(), [0x5a; 5000]).expect("a file");
    let line = refused(&cluster, &mut cluster.command(1));
    assert!(line.contains("leases.db") && line.contains("not a sqlite database"), "{line}");
    fs::remove_file(cluster.store()).expect("it is still there");

    // A valid store whose pages are overwritten.
    cluster.in_store(async |store| store.set_net_config(VXLAN).await.expect("the store"));
    let log = cluster.file("leases.db-wal");
    common::await_until("the last writer's end, which empties the log", || !log.exists());
    let mut bytes = fs::read(cluster.store()).expect("the store");
    bytes[4096..].fill(0x5a);
    fs::write(cluster.store(), bytes).expect("the store");
    let line = refused(&cluster, &mut cluster.command(1));
    assert!(line.contains("leases.db") && line.contains("damaged"), "{line}");

    let mut command = cluster.command(1);
    replace(&mut command, "--store", "sqlite:/no/such/directory/leases.db");
    let line = refused(&cluster, &mut command);
    assert!(line.contains("/no/such/directory") && line.contains("does not exist"), "{line}");
}

#[test]
fn a_full_disk_is_named() {
    let Some(cluster) = alone("bs-full") else { return };
    let full = cluster.file("full");
    fs::create_dir(&full).expect("a directory");
    let line = mounts::private(|| {
        mounts::tmpfs(&full, "12k").expect("a tmpfs");
        let mut command = cluster.command(1);
        replace(&mut command, "--store", &format!("sqlite:{}", full.join("leases.db").display()));
        refused(&cluster, &mut command)
    })
    .expect("private mounts");
    assert!(line.contains("leases.db") && line.to_lowercase().contains("no space"), "{line}");
}

/// As in flannel, existing pods have traffic; only what depends on the file waits.
#[test]
fn a_subnet_file_that_cannot_be_written_is_told_and_written_later() {
    let Some(cluster) = alone("bs-file") else { return };
    let full = cluster.file("full");
    fs::create_dir(&full).expect("a directory");
    let probe = || common::get(&cluster, 1, PROBES, "/readyz").map(|(code, _)| code);
    let socket = UnixDatagram::bind(cluster.file("notify")).expect("a socket");
    socket.set_read_timeout(Some(common::LIMIT)).expect("a time limit");
    mounts::private(|| {
        mounts::tmpfs(&full, "4k").expect("a tmpfs");
        fs::write(full.join("filler"), [0; 4096]).expect("a full filesystem");
        let mut command = cluster.command(1);
        let env = full.join("subnet.env");
        replace(&mut command, "--subnet-file", env.to_str().expect("a path"));
        command.args(["--healthz-port", PROBES]).env("NOTIFY_SOCKET", cluster.file("notify"));
        let mut daemon = cluster.spawn(1, &mut command);
        common::await_until("the warning", || daemon.logged("subnet.env"));
        // systemd is told that the start is complete.
        socket.recv(&mut [0; 100]).expect("a message");
        assert!(daemon.logged("No space left") && !daemon.logged("ready lease="), "{}", daemon.log_text());
        assert_eq!(probe().as_deref(), Some("503"));
        let left: Vec<_> = fs::read_dir(&full).expect("the directory").collect();
        assert_eq!(left.len(), 1, "only the filler: {left:?}");
        assert_eq!(cluster.leases().len(), 1);
        assert!(cluster.shell(1, "ip addr show flannel.1").contains("/32"), "the node is there");

        fs::remove_file(full.join("filler")).expect("room");
        common::await_until("readiness", || probe().as_deref() == Some("200"));
        assert!(fs::read_to_string(&env).expect("it is written").starts_with("FLANNEL_NETWORK="));
        assert_eq!(daemon.log_text().matches("ready lease=").count(), 1, "{}", daemon.log_text());
        assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0));
    })
    .expect("private mounts");
}

/// Builds one host with the plainest configuration; `None` if the test cannot run.
fn alone(name: &str) -> Option<Cluster> {
    common::ready(&["ip"]).then(|| Cluster::build(name, 1, Wiring::Switch, VXLAN))
}

/// Runs the command, which must fail, and returns its one line. Nothing of it may remain.
fn refused(cluster: &Cluster, command: &mut Command) -> String {
    let line = refused_with(cluster, command, "flannel");
    assert_eq!(common::leftovers(cluster, 1), "", "{line}");
    assert!(!cluster.file("host1.env").exists(), "{line}");
    line
}

/// Runs the command like [`refused`], where a device called `there` belongs to another program.
fn refused_with(cluster: &Cluster, command: &mut Command, there: &str) -> String {
    let log = cluster.file("host1.log");
    // A daemon that keeps running keeps its log.
    let aside = cluster.file("aside.log");
    let moved = fs::rename(&log, &aside).is_ok();
    let mut daemon = cluster.spawn(1, command);
    let status = daemon.await_end();
    let words = daemon.log_text();
    assert_eq!(status.code(), Some(1), "{words}");
    let lines: Vec<&str> = words.lines().filter(|line| line.starts_with("loden: ")).collect();
    assert_eq!(lines.len(), 1, "one line says why: {words}");
    assert_eq!(words.lines().last(), lines.first().copied(), "and it is the last: {words}");
    assert!(!words.contains("panicked") && !words.contains(" ERROR "), "{words}");
    let devices = cluster.shell(1, "ip -o link | grep flannel || true");
    assert!(devices.lines().all(|device| device.contains(there)), "{devices}");
    if moved {
        fs::rename(&aside, &log).expect("the log");
    }
    lines[0].to_owned()
}
