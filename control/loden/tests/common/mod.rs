//! What the suites share: hosts in namespaces, real daemons on them, and a host without a daemon whose kernel
//! has the entries that flannel would make.

// Each suite compiles this module for itself and uses a part of it.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod capture;
pub mod guest;
mod kernel;
pub mod packet;
pub mod pids;
pub mod steady;
pub mod stock;
mod traffic;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use io::mask::{self, Feature};
use lab::{Host, Lab, Needs, PodNetwork, Process, Topology, Wiring};
use model::lease::Lease;
use nix::sys::signal::Signal;
use store::{Spec, Store};

pub use kernel::{KernelNode, has_vxlan};
pub use traffic::{DAMAGED, damaged_flow, enlarge_buffer, every_size, ping, too_big, unfragmented, verified};

/// IPv4 only.
pub const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Both families.
pub const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}"#;

/// flannel's oldest backend.
pub const UDP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;

/// The datapath's UDP port.
pub const PORT: u16 = 8472;

/// Nothing takes longer unless it is broken, however busy the machine is.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Returns whether the test can run: see [`needs`].
pub fn ready(programs: &[&str]) -> bool {
    needs(programs).are_met()
}

/// The needs of a test that runs daemons on the hosts of a lab, and these programs.
pub fn needs(programs: &[&str]) -> Needs {
    // Required by `loden run`, and never loaded by the kernel on its own.
    let switch = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    let needs = Needs::hosts().and("br_netfilter (modprobe br_netfilter)", switch.exists());
    needs.programs(&["ip"]).programs(programs)
}

/// Returns the directory in which `./test` keeps what takes long to get, outside the checkout.
pub fn cache() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("loden"))
}

/// Polls until `done` returns true. Panics after [`LIMIT`].
pub fn await_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "waited too long for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Hosts, and a directory with their files and the store that they share.
pub struct Cluster {
    pub lab: Lab,
    pub place: tempfile::TempDir,
    pub config: String,
}

impl Cluster {
    /// Builds the hosts, on a switch or as two ends of a veth pair. `name` must be unique among all tests.
    pub fn build(name: &str, hosts: usize, wiring: Wiring, config: &str) -> Cluster {
        let topology = Topology { wiring, ..Topology::new(name, hosts) };
        let lab = Lab::build(&topology).expect("a lab");
        let place = tempfile::tempdir().expect("a directory");
        Cluster { lab, place, config: config.to_owned() }
    }

    pub fn host(&self, number: usize) -> &Host {
        &self.lab.hosts()[number - 1]
    }

    /// Returns a path in the cluster's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.file("leases.db")
    }

    /// Builds `loden run` for a host, with the cluster's store and network configuration.
    pub fn command(&self, number: usize) -> Command {
        let store = format!("sqlite:{}", self.store().display());
        let mut command = self.command_with(number, &["--net-config-json", &self.config, "--store", &store]);
        command.arg("--run-dir").arg(self.place.path());
        command
    }

    /// Builds `loden run` for a host with its leases in etcd. Its state files are in the directory `run`.
    pub fn etcd_command(&self, number: usize, endpoint: &str) -> Command {
        let mut command = self.command_with(number, &["--etcd-endpoints", endpoint]);
        command.arg("--run-dir").arg(self.file("run"));
        command
    }

    fn command_with(&self, number: usize, store: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
        command.args(["run", "--iface", self.host(number).uplink()]).args(store);
        command.arg("--subnet-file").arg(self.file(&format!("host{number}.env")));
        command.arg("--counters-file").arg(self.file(&format!("host{number}.json"))).stdout(Stdio::null());
        // By default all nodes of a machine would share one key.
        command.env("WIREGUARD_KEY_FILE", self.file(&format!("key{number}")));
        command
    }

    /// Starts `loden run` on a host and waits until it has written its subnet file.
    pub fn start(&self, number: usize, more: &[&str]) -> Daemon {
        let mut daemon = self.spawn(number, self.command(number).args(more));
        daemon.await_ready();
        daemon
    }

    /// Starts `loden run` like [`Cluster::start`], on a kernel that lacks the features in `hidden`.
    pub fn start_without(&self, number: usize, hidden: &[Feature]) -> Daemon {
        // A seccomp filter applies to the thread that installs it and to the processes that the thread
        // starts.
        let masked = || {
            mask::hide(hidden).expect("a seccomp filter");
            self.spawn(number, &mut self.command(number))
        };
        let mut daemon = thread::scope(|scope| scope.spawn(masked).join()).expect("a masked daemon");
        daemon.await_ready();
        daemon
    }

    /// Starts `command` as the daemon of a host, with a new log, and returns at once.
    pub fn spawn(&self, number: usize, command: &mut Command) -> Daemon {
        let log = self.file(&format!("host{number}.log"));
        let _ = fs::remove_file(&log);
        let process = Process::spawn_logged(self.host(number).namespace(), command, &log).expect("a process");
        Daemon {
            process,
            log,
            subnet_file: self.file(&format!("host{number}.env")),
            counters_file: self.file(&format!("host{number}.json")),
        }
    }

    /// Connects the pod of a host with the subnets and the MTU of the host's subnet file.
    pub fn connect_pod(&mut self, number: usize) {
        let text = fs::read_to_string(self.file(&format!("host{number}.env"))).expect("a subnet file");
        let recorded = model::subnet_env::parse(&text);
        let network = PodNetwork {
            ipv4: recorded.subnet(),
            ipv6: recorded.ipv6_subnet(),
            mtu: recorded.mtu.expect("an MTU"),
        };
        self.lab.hosts_mut()[number - 1].connect_pod(&network).expect("a pod");
    }

    /// Returns the address of a host's pod in one family.
    pub fn pod(&self, number: usize, ipv6: bool) -> IpAddr {
        let addresses = self.host(number).pod_addresses();
        *addresses.iter().find(|address| address.is_ipv6() == ipv6).expect("a pod address")
    }

    pub fn leases(&self) -> Vec<Lease> {
        self.in_store(async |store| store.leases().await.expect("leases"))
    }

    /// Returns how many packets the kernel has dropped on a host because no worker of its daemon read them in
    /// time, from pods and from the underlay.
    pub fn unread(&self, number: usize) -> u64 {
        let counters = fresh_counters(&self.file(&format!("host{number}.json")));
        counters.iter().flat_map(|tunnel| tunnel.unread).sum()
    }

    /// Returns the lease of a host.
    pub fn lease(&self, number: usize) -> Lease {
        let public = self.host(number).underlay();
        let mut leases = self.leases().into_iter();
        leases.find(|lease| lease.attrs.public_ip == public).expect("a lease")
    }

    pub fn in_store<R>(&self, work: impl AsyncFnOnce(Store) -> R) -> R {
        let spec = Spec::Sqlite(self.store());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { work(Store::open(spec).await.expect("the store")).await })
    }

    /// Runs a shell command in a host's namespace and returns its output, without blanks at the ends of
    /// lines.
    pub fn shell(&self, number: usize, line: &str) -> String {
        let mut command = Command::new("sh");
        let output = self.host(number).namespace().output(command.args(["-c", line])).expect("sh");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    /// Waits until a daemon's host has vxlan routes to this many peers, in each family that the network has.
    pub fn await_routes(&self, number: usize, peers: usize) {
        let routes = |line: &str| self.shell(number, line).lines().count();
        await_until("the peers' routes", || routes("ip route show dev flannel.1") == peers);
        if self.config.contains(r#""EnableIPv6":true"#) {
            let line = "ip -6 route show dev flannel-v6.1 | grep ' via ' || true";
            await_until("the peers' IPv6 routes", || routes(line) == peers);
        }
    }

    /// Waits until the workers of a host have read all that has arrived at their UDP sockets on `port`.
    pub fn await_read(&self, number: usize, port: u16) {
        // Local address and port, and the bytes that wait (net/ipv4/udp.c, udp4_format_sock).
        let line =
            format!("awk '$2 ~ /:{port:04X}$/ {{ print $5 }}' /proc/net/udp | grep -v ':00000000$' || true");
        await_until("the sockets to be read", || self.shell(number, &line).is_empty());
    }

    /// Disables the offloads of a host's uplink: like a wire, it then carries neither super-packets nor
    /// packets whose checksum is left to the hardware.
    pub fn make_wire_like(&self, number: usize) {
        let host = self.host(number);
        let features = "tso off gso off gro off tx off rx off tx-udp-segmentation off \
                        tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off";
        let ethtool = lab::find("ethtool").expect("asked for before");
        let mut command = Command::new(ethtool);
        command.args(["-K", host.uplink()]).args(features.split_whitespace());
        let output = host.namespace().output(&mut command).expect("ethtool");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A running `loden run`.
pub struct Daemon {
    pub process: Process,
    pub log: PathBuf,
    pub subnet_file: PathBuf,
    pub counters_file: PathBuf,
}

impl Daemon {
    /// Waits until the log reports that the daemon is ready.
    pub fn await_ready(&mut self) {
        let end = Instant::now() + LIMIT;
        while !self.logged("ready lease=") {
            let status = self.process.try_wait().expect("wait");
            assert!(status.is_none(), "loden run ended, {status:?}:\n{}", self.log_text());
            assert!(Instant::now() < end, "loden run is not ready:\n{}", self.log_text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the log so far.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn logged(&self, text: &str) -> bool {
        self.log_text().contains(text)
    }

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("wait").is_none()
    }

    /// Sends a signal and waits for the daemon to exit.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        self.process.signal(signal).expect("a signal");
        let status = self.process.wait(LIMIT).expect("wait");
        status.unwrap_or_else(|| panic!("loden run does not end at {signal}:\n{}", self.log_text()))
    }

    /// Waits for the daemon to exit without a signal.
    pub fn await_end(&mut self) -> ExitStatus {
        let status = self.process.wait(LIMIT).expect("wait");
        status.unwrap_or_else(|| panic!("loden run does not end:\n{}", self.log_text()))
    }

    /// Returns the counters as last written, one entry per tunnel.
    pub fn counters(&self) -> Vec<Counters> {
        counters(&self.counters_file)
    }

    /// Returns the current counters: waits until the daemon has collected them after this call.
    pub fn fresh_counters(&self) -> Vec<Counters> {
        fresh_counters(&self.counters_file)
    }

    /// Returns the counters that the daemon writes next, for those who wait for a change.
    pub fn next_counters(&self) -> Vec<Counters> {
        next_counters(&self.counters_file)
    }

    /// Stops all threads of the daemon, and returns when none runs any more.
    pub fn suspend(&mut self) {
        self.process.signal(Signal::SIGSTOP).expect("a signal");
        let tasks = format!("/proc/{}/task", self.process.id());
        // proc_pid_stat(5): the state follows the name, which is in parentheses.
        let is_stopped = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            text.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('T'))
        };
        await_until("the threads to stop", || {
            fs::read_dir(&tasks).expect("threads").flatten().all(is_stopped)
        });
    }

    /// Lets a suspended daemon run on.
    pub fn resume(&mut self) {
        self.process.signal(Signal::SIGCONT).expect("a signal");
    }

    /// Stops the daemon with SIGTERM and returns its final counters.
    pub fn finish(mut self) -> Vec<Counters> {
        let status = self.end(Signal::SIGTERM);
        assert_eq!(status.code(), Some(0), "{}", self.log_text());
        self.counters()
    }
}

fn counters(path: &Path) -> Vec<Counters> {
    let text = fs::read_to_string(path).expect("a counters file");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    json["tunnels"].as_array().expect("tunnels").iter().map(Counters::read).collect()
}

/// Waits until a daemon writes its counters again, twice: it may have collected them before this call when it
/// writes them the first time.
fn fresh_counters(path: &Path) -> Vec<Counters> {
    next_counters(path);
    next_counters(path)
}

fn next_counters(path: &Path) -> Vec<Counters> {
    let _ = fs::remove_file(path);
    await_until("the counters file", || path.exists());
    counters(path)
}

/// The kernel reports its multicast groups through every IPv6 device (RFC 3810). No node subscribes, and a
/// kernel vxlan without a default destination drops them too.
const GROUPS: &str = "egress.drop.multicast";
/// Peers that start a handshake at the same moment drop one of the two initiations.
const STRANGER: &str = "ingress.drop.wg_stranger";
const CROSSINGS: u64 = 8;

/// The counters of one tunnel.
#[derive(Clone, Debug)]
pub struct Counters {
    pub device: String,
    pub syscalls: u64,
    /// Packets that the kernel dropped before a worker read them, from pods and from the underlay.
    pub unread: [u64; 2],
    pub features: BTreeMap<String, bool>,
    totals: BTreeMap<String, u64>,
    workers: Vec<BTreeMap<String, u64>>,
}

impl Counters {
    fn read(tunnel: &serde_json::Value) -> Counters {
        Counters {
            device: tunnel["device"].as_str().expect("a device").to_owned(),
            syscalls: tunnel["syscalls"].as_u64().expect("syscalls"),
            unread: ["egress", "ingress"].map(|direction| tunnel["unread"][direction].as_u64().unwrap_or(0)),
            features: serde_json::from_value(tunnel["features"].clone()).expect("features"),
            totals: serde_json::from_value(tunnel["totals"].clone()).expect("totals"),
            workers: serde_json::from_value(tunnel["workers"].clone()).expect("workers"),
        }
    }

    pub fn get(&self, name: &str) -> u64 {
        *self.totals.get(name).unwrap_or_else(|| panic!("no counter is called {name}"))
    }

    /// Returns one counter for each worker.
    pub fn by_worker(&self, name: &str) -> Vec<u64> {
        self.workers.iter().map(|worker| worker.get(name).copied().unwrap_or(0)).collect()
    }

    /// Returns every drop counter that is not zero, by direction and reason.
    pub fn drops(&self) -> BTreeMap<&str, u64> {
        let drops = self.totals.iter().filter(|(name, count)| name.contains(".drop.") && **count > 0);
        drops.map(|(name, count)| (name.as_str(), *count)).collect()
    }

    /// Returns the drops that no test should see.
    pub fn unexplained_drops(&self) -> BTreeMap<&str, u64> {
        let mut drops = self.drops();
        drops.remove(GROUPS);
        if drops.get(STRANGER).is_some_and(|count| *count <= CROSSINGS) {
            drops.remove(STRANGER);
        }
        drops
    }

    /// Returns every counter that is not zero, for failure messages.
    pub fn nonzero(&self) -> BTreeMap<&str, u64> {
        self.totals
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| (name.as_str(), *count))
            .collect()
    }
}

/// Replaces the value of an option of the command.
pub fn replace(command: &mut Command, option: &str, value: &str) {
    let mut args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let at = args.iter().position(|arg| arg == option).expect("an option");
    args[at + 1] = value.into();
    let mut changed = Command::new(command.get_program());
    changed.args(args);
    *command = changed;
}

/// The route to a peer, as `ip route show dev` prints it.
pub fn route(lease: &Lease) -> String {
    let subnet = lease.subnet().expect("IPv4");
    format!("{subnet} via {} onlink", subnet.network())
}

/// The IPv6 route to a peer, as `ip -6 route show dev` prints it before `pref`.
pub fn route_v6(lease: &Lease) -> String {
    let subnet = lease.ipv6_subnet().expect("IPv6");
    format!("{subnet} via {} metric 1024 onlink", subnet.network())
}

/// Returns the address `count` after `base`.
pub fn nth(base: IpAddr, count: u32) -> IpAddr {
    match base {
        IpAddr::V4(base) => Ipv4Addr::from(u32::from(base) + count).into(),
        IpAddr::V6(base) => Ipv6Addr::from(u128::from(base) + u128::from(count)).into(),
    }
}

/// Lists the devices and routes of a daemon in the namespace of a host, one per line.
pub fn leftovers(cluster: &Cluster, number: usize) -> String {
    let lines = "ip -o link | grep flannel; ip route | grep '^10.244'; ip -6 route | grep '^fd00:244'; true";
    cluster.shell(number, lines)
}

/// Sends a probe from a host's namespace and returns the status code and the body of the answer.
pub fn get(cluster: &Cluster, number: usize, port: &str, path: &str) -> Option<(String, String)> {
    let ask = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse().ok()?)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.to_owned(), body.to_owned()))
    };
    cluster.host(number).namespace().run(ask).expect("a thread in the namespace")
}
