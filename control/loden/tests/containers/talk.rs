//! The traffic that must work between two containers on two hosts, whichever runtime started them.

use std::fs;
use std::net::IpAddr;

use crate::common::{Cluster, Daemon, await_until};
use crate::setup::fetch;

/// The port of the first host that maps to its container's port 80.
pub const HOST_PORT: u16 = 30080;

/// A container on host `number`, with a web server ([`crate::image::server`]) that calls itself `name`.
pub struct End<'a> {
    pub number: usize,
    pub name: &'static str,
    pub addresses: Vec<IpAddr>,
    /// Runs a shell command inside and returns its output. Panics if the command fails.
    pub shell: Box<dyn Fn(&str) -> String + 'a>,
}

impl<'a> End<'a> {
    /// Reads the addresses inside the container.
    pub fn asked(number: usize, name: &'static str, shell: impl Fn(&str) -> String + 'a) -> End<'a> {
        let text = shell("ip -o addr show dev eth0 scope global");
        let words =
            text.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok());
        End { number, name, addresses: words.collect(), shell: Box::new(shell) }
    }

    /// Returns the address in one family.
    pub fn address(&self, ipv6: bool) -> IpAddr {
        *self.addresses.iter().find(|address| address.is_ipv6() == ipv6).expect("an address")
    }

    fn shell(&self, line: &str) -> String {
        (self.shell)(line)
    }
}

/// Checks addresses and traffic in these families. The first end's web server has a host port.
pub fn check(cluster: &Cluster, ends: [&End<'_>; 2], families: &[bool]) {
    for end in ends {
        assert_eq!(end.addresses.len(), families.len(), "{}: {:?}", cluster.config, end.addresses);
    }
    for &ipv6 in families {
        ends.iter().for_each(|end| check_address(cluster, end, ipv6));
        check_traffic(cluster, ends, ipv6);
    }
}

/// Starts daemons on two hosts, masquerading as in flannel's manifest, and waits until they know each other.
pub fn daemons(cluster: &Cluster) -> [Daemon; 2] {
    let daemons = [1, 2].map(|number| cluster.start(number, &["--ip-masq", "--instance", &instance(number)]));
    for daemon in &daemons {
        await_until("the peer", || daemon.logged("peers=1"));
    }
    daemons
}

/// Stops the daemons. None of them may have dropped a packet.
pub fn finish(cluster: &Cluster, daemons: [Daemon; 2]) {
    for daemon in daemons {
        for counters in daemon.finish() {
            let drops = counters.unexplained_drops();
            assert!(drops.is_empty(), "{}, {}: {drops:?}", cluster.config, counters.device);
        }
    }
}

/// Returns the instance name of the daemon on a host.
pub fn instance(number: usize) -> String {
    format!("runtime{number}")
}

/// Checks that the address is in the node's subnet and that the MTU is that of `subnet.env`.
fn check_address(cluster: &Cluster, end: &End<'_>, ipv6: bool) {
    let env = fs::read_to_string(cluster.file(&format!("host{}.env", end.number))).expect("subnet.env");
    let recorded = model::subnet_env::parse(&env);
    let contains = match end.address(ipv6) {
        IpAddr::V4(address) => recorded.subnet().is_some_and(|subnet| subnet.contains(address)),
        IpAddr::V6(address) => recorded.ipv6_subnet().is_some_and(|subnet| subnet.contains(address)),
    };
    assert!(contains, "{}: {:?} is not in\n{env}", cluster.config, end.addresses);
    let mtu = end.shell("cat /sys/class/net/eth0/mtu");
    assert_eq!(mtu.parse().ok(), recorded.mtu, "{}", cluster.config);
}

fn check_traffic(cluster: &Cluster, [one, two]: [&End<'_>; 2], ipv6: bool) {
    let (at_one, at_two) = (one.address(ipv6), two.address(ipv6));
    // A container runs before its server listens.
    for (end, address) in [(one, at_one), (two, at_two)] {
        end.shell(&format!("until {} > /dev/null; do sleep 0.1; done", fetch(address, 80, "name")));
    }
    let host: IpAddr = match ipv6 {
        false => cluster.host(one.number).underlay().into(),
        true => cluster.host(one.number).underlay6().into(),
    };
    let what = |words: &str| format!("{}: {words}", cluster.config);
    for size in [0, 56, 1200, 4000] {
        one.shell(&format!("ping -c 1 -W 10 -s {size} {at_two}"));
        two.shell(&format!("ping -c 1 -W 10 -s {size} {at_one}"));
    }
    assert_eq!(one.shell(&fetch(at_two, 80, "name")), two.name, "{}", what("container to container"));
    assert_eq!(two.shell(&fetch(at_one, 80, "name")), one.name, "{}", what("container to container"));
    let seen = two.shell(&fetch(at_one, 80, "cgi-bin/who"));
    let seen: IpAddr = seen.trim_matches(['[', ']']).parse().expect("an address");
    assert_eq!(seen.to_canonical(), at_two, "{}", what("a container sees the other container's own address"));
    let digest = one.shell("head -c 8000000 /dev/urandom > /www/big; sha256sum < /www/big");
    let fetched = two.shell(&format!("{} | sha256sum", fetch(at_one, 80, "big")));
    assert_eq!(digest, fetched, "{}", what("eight megabytes"));

    let outside = |address, port| cluster.shell(two.number, &fetch(address, port, "name"));
    assert_eq!(outside(at_one, 80), one.name, "{}", what("host to another host's container"));
    assert_eq!(outside(host, HOST_PORT), one.name, "{}", what("a host port from another host"));
    let port = fetch(host, HOST_PORT, "name");
    assert_eq!(two.shell(&port), one.name, "{}", what("a host port from a container there"));
    assert_eq!(one.shell(&port), one.name, "{}", what("its own host port"));
}
