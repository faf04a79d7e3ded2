//! A running node whose store or host misbehaves: what works continues, each fault is logged once, and the
//! node recovers on its own when the fault is gone.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::Wiring;
use store::testing::etcd::{Security, Server};

use crate::common::{Cluster, Daemon, VXLAN, await_until, ping, ready};

const SUBNETS: &str = "/coreos.com/network/subnets";

#[test]
fn rubbish_in_etcd_spoils_only_itself() {
    if !ready(&["etcd", "etcdctl", "setpriv", "nsenter", "bash"]) {
        return;
    }
    let (mut cluster, etcd) = cluster("bc-etcd", 2);
    let mut daemons = [1, 2].map(|number| start(&cluster, number, &etcd.endpoint()));
    daemons.iter_mut().for_each(Daemon::await_ready);
    for number in [1, 2] {
        cluster.connect_pod(number);
        cluster.await_routes(number, 1);
    }
    let value = |ip: &str| {
        format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}}}}"#
        )
    };
    let own = fs::read_to_string(cluster.file("host1.env")).expect("subnet.env");
    let own = model::subnet_env::parse(&own).subnet().expect("a subnet");
    let inside = format!("{}-25", own.network());
    let large = format!(r#"{{"PublicIP":"198.18.0.7","Junk":"{}"}}"#, "x".repeat(1 << 20));
    let entries: Vec<(&str, String, &str)> = vec![
        ("no key", "x".into(), "nonsense"),
        ("a key of bytes", "x".into(), "10.244.157.0-24\u{7}"),
        ("no JSON", "{\"PublicIP\":".into(), "10.244.160.0-24"),
        ("another JSON", "[1,2]".into(), "10.244.161.0-24"),
        ("no address", r#"{"PublicIP":"one"}"#.into(), "10.244.162.0-24"),
        ("a MiB", large, "10.244.163.0-24"),
        ("no MAC", value("198.18.0.7").replace("02:00:00:00:00:07", ""), "10.244.164.0-24"),
        ("a network that is too long", value("198.18.0.8"), "10.244.165.0-99"),
        ("inside of ours", value("198.18.0.9"), &inside),
        ("our address", value("198.18.0.1"), "10.244.166.0-24"),
        ("two with one address", value("198.18.0.10"), "10.244.167.0-24"),
        ("two with one address", value("198.18.0.10"), "10.244.168.0-24"),
        ("a good one", value("198.18.0.11"), "10.244.169.0-24"),
    ];
    // A good entry comes last: once its route exists, all entries before it have been handled.
    for (_, value, key) in &entries {
        put(&etcd, key, value);
    }
    let routes = || cluster.shell(1, "ip route show dev flannel.1");
    await_until("the good one", || routes().contains("10.244.169.0/24"));
    for (what, good) in [("10.244.167.0/24", true), ("10.244.168.0/24", true), ("10.244.16", true)] {
        assert_eq!(routes().contains(what), good, "{}", routes());
    }
    for bad in [
        "10.244.160",
        "10.244.161",
        "10.244.162",
        "10.244.163",
        "10.244.164",
        "10.244.165",
        "10.244.166",
        "/25",
    ] {
        assert!(!routes().contains(bad), "{bad}: {}", routes());
    }
    ping(&cluster, 1, 2, false);
    ping(&cluster, 2, 1, false);
    // Each is logged once, and not again with the next change.
    put(&etcd, "10.244.170.0-24", &value("198.18.0.12"));
    await_until("another", || routes().contains("10.244.170.0/24"));
    let words = daemons[0].log_text();
    for said in
        ["row 10.244.160.0-24", "row 10.244.163.0-24", "lease=10.244.166.0-24", "lease=10.244.164.0-24"]
    {
        let lines = words.lines().filter(|line| line.contains(&said.replace("row ", "")));
        assert_eq!(lines.count(), 1, "{said}:\n{words}");
    }
    assert!(words.lines().count() < 60 && words.lines().all(|line| line.len() < 2000), "{words}");
    // Repaired.
    put(&etcd, "10.244.160.0-24", &value("198.18.0.13"));
    await_until("the mended one", || routes().contains("10.244.160.0/24"));
    for (_, _, key) in &entries {
        etcd.etcdctl(&["del", &format!("{SUBNETS}/{key}")]);
    }
    etcd.etcdctl(&["del", &format!("{SUBNETS}/10.244.170.0-24")]);
    await_until("only the peer", || routes().lines().count() == 1);
    assert!(daemons.iter_mut().all(Daemon::is_running));
    ping(&cluster, 1, 2, false);
}

/// In etcd's place there is a server that talks nonsense, or one that is silent; then etcd.
#[test]
fn what_is_no_etcd_is_named_and_waited_for() {
    if !ready(&["etcd", "etcdctl", "setpriv", "nsenter", "bash"]) {
        return;
    }
    let cluster = Cluster::build("bc-none", 1, Wiring::Switch, VXLAN);
    let host = cluster.host(1);
    for talks in [true, false] {
        let ended = Arc::new(AtomicBool::new(false));
        let listener = host.namespace().run(|| TcpListener::bind((host.underlay(), 2379))).expect("the host");
        let listener = listener.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let server = {
            let ended = Arc::clone(&ended);
            thread::spawn(move || nonsense(&listener, talks, &ended))
        };
        let began = Instant::now();
        let mut daemon = start(&cluster, 1, &format!("http://{address}"));
        await_until("its complaint", || daemon.logged("waiting for the lease store: etcd"));
        // A silent server costs each try its time limit.
        await_until("its next try", || !talks || daemon.logged("tries=2"));
        assert!(daemon.is_running());
        // One for each new reason, at most one a second.
        let complaints = daemon.log_text().matches("waiting for the lease store").count() as u64;
        assert!(complaints <= began.elapsed().as_secs() + 2, "{}", daemon.log_text());
        ended.store(true, Ordering::Relaxed);
        // One more connection, so that the server checks the flag.
        let _ = host.namespace().run(|| std::net::TcpStream::connect(address));
        server.join().expect("the server");
        let etcd = Server::start_in(Security::None, host.namespace().path(), host.underlay());
        etcd.etcdctl(&["put", "/coreos.com/network/config", VXLAN]);
        daemon.await_ready();
    }
}

/// The uplink, its address and its MTU change and change back, and the subnet file cannot be written for a
/// while.
#[test]
fn a_host_that_changes_under_it_is_borne() {
    if !ready(&["ip", "setpriv"]) {
        return;
    }
    let mut cluster = Cluster::build("bc-host", 2, Wiring::Switch, VXLAN);
    let mut daemons = [cluster.start(1, &[]), cluster.start(2, &[])];
    for number in [1, 2] {
        cluster.connect_pod(number);
        cluster.await_routes(number, 1);
    }
    ping(&cluster, 1, 2, false);
    let steps = [
        ("the link", "ip link set eth0 down", "ip link set eth0 up"),
        ("the address", "ip addr del 198.18.0.1/24 dev eth0", "ip addr add 198.18.0.1/24 dev eth0"),
        ("a small MTU", "ip link set eth0 mtu 100", "ip link set eth0 mtu 1500"),
        ("the device down", "ip link set flannel.1 down", "true"),
        ("the device's address", "ip addr flush dev flannel.1", "true"),
    ];
    for (what, spoil, mend) in steps {
        cluster.shell(1, spoil);
        // The daemon reconciles every five seconds.
        thread::sleep(Duration::from_secs(6));
        assert!(daemons[0].is_running(), "{what}: {}", daemons[0].log_text());
        cluster.shell(1, mend);
        let reached = || {
            let [there, back] = [(1, 2), (2, 1)].map(|(from, to)| {
                let address = cluster.pod(to, false);
                cluster.host(from).pod().ping(address, 56, Duration::from_millis(300)).is_ok()
            });
            there && back
        };
        await_until(what, reached);
    }
    let words = daemons[0].log_text();
    assert!(words.lines().count() < 80, "{words}");

    // subnet.env cannot be written.
    let place = cluster.file("host1.env");
    let text = fs::read_to_string(&place).expect("subnet.env");
    fs::remove_file(&place).expect("remove");
    fs::create_dir(&place).expect("a directory in its place");
    await_until("the complaint", || {
        daemons[0].logged("host1.env") && daemons[0].log_text().contains("retrying")
    });
    ping(&cluster, 1, 2, false);
    fs::remove_dir(&place).expect("remove");
    await_until("the file", || fs::read_to_string(&place).is_ok_and(|now| now == text));
    assert!(daemons.iter_mut().all(Daemon::is_running));
}

fn cluster(name: &str, hosts: usize) -> (Cluster, Server) {
    let cluster = Cluster::build(name, hosts, Wiring::Switch, VXLAN);
    let host = cluster.host(1);
    let etcd = Server::start_in(Security::None, host.namespace().path(), host.underlay());
    etcd.etcdctl(&["put", "/coreos.com/network/config", VXLAN]);
    (cluster, etcd)
}

fn start(cluster: &Cluster, number: usize, endpoint: &str) -> Daemon {
    cluster.spawn(number, &mut cluster.etcd_command(number, endpoint))
}

/// Puts a value from a file, because large ones do not fit on a command line.
fn put(etcd: &Server, key: &str, value: &str) {
    let place = etcd.file("value");
    let mut file = File::create(&place).expect("a file");
    file.write_all(value.as_bytes()).expect("write");
    fs::set_permissions(&place, Permissions::from_mode(0o600)).expect("mode");
    etcd.put_file(&format!("{SUBNETS}/{key}"), &place);
}

/// Answers each connection with meaningless bytes, or not at all.
fn nonsense(listener: &TcpListener, talks: bool, ended: &AtomicBool) {
    let mut kept = Vec::new();
    while let Ok((mut stream, _)) = listener.accept() {
        if ended.load(Ordering::Relaxed) {
            return;
        }
        if talks {
            let mut some = [0; 64];
            let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
            let _ = stream.read(&mut some);
            let _ = stream.write_all(&[0x16, 0x00, 0xff, 0x2a].repeat(300));
        } else {
            kept.push(stream);
        }
    }
}
