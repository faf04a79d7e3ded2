//! The image of `deploy/release`, used as flannel's manifests use theirs: init containers install the plugin
//! and its configuration, and the daemon runs in the host's network with the capabilities that the manifests
//! grant.
//!
//! The image has this build's programs, or is that of the release in the directory `LODEN_RELEASE`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::{Needs, Process, Wiring};

use crate::common::{self, Cluster, VXLAN, await_until};
use crate::containerd::{Containerd, Pod};
use crate::cri::{
    Capabilities, ContainerConfig, ContainerSecurity, Device, Int64, LinuxContainer, Mount, Named,
};
use crate::engines::{self, Podman};
use crate::image::{self, architecture};
use crate::setup::{self, Setup, fetch};
use crate::talk::{self, End, HOST_PORT};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const PROGRAMS: [&str; 14] = [
    "apt-get",
    "dpkg-deb",
    "etcd",
    "etcdctl",
    "ip6tables",
    "iptables-legacy",
    "iptables-nft",
    "nsenter",
    "readelf",
    "runc",
    "busybox",
    "strip",
    "tar",
    "unshare",
];
/// The ConfigMap's value in flannel's manifest.
const CNI_CONF: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;
/// What a kubelet and kube-proxy leave on a host, in the words of `iptables-restore`.
const RULES: &str = include_str!("kube_proxy.rules");
/// Users and groups of containers without root.
const NOBODY: i64 = 65534;
/// Sent in parts, because a command in a container has a time limit.
const PARTS: usize = 4;
const PART: usize = 25_000_000;

/// On one host the rules are in nftables, on the other in the older tables.
const VARIANTS: [&str; 2] = ["nft", "legacy"];

#[test]
fn the_image_serves_containerd_as_flannels_manifest_starts_it() {
    if !needs(&["containerd", "ctr"]).are_met() {
        return;
    }
    let cluster = Cluster::build("shipped", 2, Wiring::Direct, VXLAN);
    let _etcd = start_etcd(&cluster);
    let shipped = shipped(&cluster);
    // One by itself, the other out of the index.
    let ours = [archive(&shipped, architecture()), shipped.join(format!("loden-{VERSION}-image.tar"))];
    let busybox = busybox(&cluster);
    let setups = [1, 2].map(|number| Setup::new(&cluster, number));
    let mut runtimes = [1, 2].map(|number| {
        let setup = &setups[number - 1];
        let runtime = Containerd::start(&cluster, number, &setup.bin, &setup.conf, &busybox);
        runtime.import(&ours[number - 1]);
        runtime
    });
    let daemons = [1, 2].map(|number| {
        let (setup, runtime) = (&setups[number - 1], &mut runtimes[number - 1]);
        let variant = VARIANTS[number - 1];
        let rules = cluster.file("kube-proxy.rules");
        fs::write(&rules, RULES).expect("a file");
        cluster.shell(number, &format!("iptables-{variant}-restore < {}", rules.display()));
        DaemonSet { cluster: &cluster, number, setup }.start(runtime)
    });
    for (runtime, daemon) in runtimes.iter().zip(&daemons) {
        await_until("the peer", || runtime.log_text(&daemon.name).contains("peers=1"));
        await_until("the network", || runtime.network().is_ok());
    }
    for number in [1, 2] {
        let (runtime, daemon) = (&runtimes[number - 1], &daemons[number - 1]);
        let inside = |line: &str| runtime.exec_in(&daemon.container, line);
        let (status, body) = common::get(&cluster, number, "8081", "/readyz").expect("an answer");
        assert_eq!(status, "200", "{body}");
        for table in ["filter", "nat", "mangle"] {
            let words = format!("-t {table} -S");
            let variant = VARIANTS[number - 1];
            assert_eq!(
                inside(&format!("iptables {words}")),
                cluster.shell(number, &format!("iptables-{variant} {words}"))
            );
            let other = VARIANTS[2 - number];
            let unused = cluster.shell(number, &format!("iptables-{other}-save -t {table} 2>/dev/null"));
            assert!(!unused.to_lowercase().contains("flannel"), "{other}: {unused}");
        }
        assert!(inside("iptables -t nat -S; iptables -S").contains("FLANNEL"));
        assert!(inside("ip -br link show dev flannel.1").starts_with("flannel.1"));
        inside(&format!("ping -c 1 -W 10 {}", cluster.host(3 - number).underlay()));
        inside("nft list tables");
        let lines =
            inside("/opt/bin/mk-docker-opts.sh -c -d /run/flannel/docker.env; cat /run/flannel/docker.env");
        assert!(lines.contains("--bip=10.244."), "{lines}");
        inside("grep -q 'BEGIN CERTIFICATE' /etc/ssl/certs/ca-certificates.crt");
        let refused = inside("echo x 2>&1 > /opt/bin/x || true");
        assert!(refused.contains("Read-only file system"), "{refused}");
    }
    let one = runtimes[0].run("one", &image::server("one"), Some(HOST_PORT));
    let two = runtimes[1].run("two", &image::server("two"), None);
    for number in [1, 2] {
        keep_subnet_file(&cluster, number, &runtimes[number - 1].cage);
    }
    let ends = [end(1, "one", &runtimes[0], &one), end(2, "two", &runtimes[1], &two)];
    talk::check(&cluster, [&ends[0], &ends[1]], &[false]);
    send([&ends[0], &ends[1]]);
    for (runtime, daemon) in runtimes.iter().zip(&daemons) {
        let log = runtime.log_text(&daemon.name);
        assert!(!log.contains("ERROR"), "{log}");
    }
}

#[test]
fn the_image_serves_podman_as_root_and_as_nobody() {
    let podman = ["podman", "conmon", "qemu-aarch64-static"];
    if !needs(&podman).and("podman before 5, which has CNI", engines::podman_has_cni()).are_met() {
        return;
    }
    let cluster = Cluster::build("shipped-pod", 2, Wiring::Direct, VXLAN);
    let _etcd = start_etcd(&cluster);
    let shipped = shipped(&cluster);
    let busybox = busybox(&cluster);
    let tun = cluster.file("tun");
    // As udev makes it; the machine's own may be root's alone.
    cluster.shell(1, &format!("mknod -m 666 {} c 10 200", tun.display()));
    let engines = [1, 2].map(|number| {
        let setup = Setup::new(&cluster, number);
        let engine = Podman::start(&cluster, number, &setup);
        for archive in [&archive(&shipped, architecture()), &busybox] {
            engine.run(&["load", "-q", "-i", &text(archive)]);
        }
        let conf = cluster.file(&format!("conf{number}"));
        fs::create_dir(&conf).expect("a directory");
        fs::write(conf.join("cni-conf.json"), CNI_CONF).expect("a file");
        for (from, to, program) in [
            (&setup.bin, "/opt/cni/bin", &["cp", "-f", "/flannel", "/opt/cni/bin/flannel"]),
            (
                &setup.conf,
                "/etc/cni/net.d",
                &["cp", "-f", "/conf/cni-conf.json", "/etc/cni/net.d/10-flannel.conflist"],
            ),
        ] {
            let [mount, conf] =
                [(from, to), (&conf, "/conf")].map(|(from, to)| format!("{}:{to}", from.display()));
            let start = ["run", "--rm", "--network=none", "--read-only", "-v", &mount, "-v", &conf];
            engine.run(&[&start[..], &["--entrypoint", program[0], &ours()], &program[1..]].concat());
        }
        engine
    });
    for number in [1, 2] {
        let engine = &engines[number - 1];
        let user = if number == 1 { "0".to_owned() } else { format!("{NOBODY}:{NOBODY}") };
        engine.cage.output("chown", &[&user, "/run/flannel"]).expect("another owner");
        let lock = cluster.file(&format!("lock{number}"));
        fs::write(&lock, "").expect("a file");
        let (device, lock) =
            (format!("{}:/dev/net/tun", tun.display()), format!("{}:/run/xtables.lock", lock.display()));
        engine.run(&[
            "run",
            "-d",
            "--name",
            "loden",
            "--network=host",
            "--read-only",
            "--read-only-tmpfs=false",
            "--cap-drop=all",
            "--cap-add=NET_ADMIN,NET_RAW",
            "--device",
            &device,
            "--user",
            &user,
            "-v",
            "/run/flannel:/run/flannel",
            "-v",
            &lock,
            &ours(),
            "--ip-masq",
            "--iface",
            cluster.host(number).uplink(),
            "--etcd-endpoints",
            &endpoint(&cluster),
        ]);
    }
    // What a container prints to stderr, podman does too; the file has both.
    let logged = |number: usize| {
        let engine = &engines[number - 1];
        let file = engine.run(&["inspect", "--format", "{{.HostConfig.LogConfig.Path}}", "loden"]);
        engine.cage.output("cat", &[&file]).expect("a log")
    };
    for number in [1, 2] {
        await_until("the peer", || logged(number).contains("peers=1"));
        keep_subnet_file(&cluster, number, &engines[number - 1].cage);
    }
    let run = engines.each_ref().map(|engine| -> engines::Run<'_> { Box::new(|line| engine.run(line)) });
    engines::talk_across(&cluster, &run, &["rm", "-f", "-t", "0"], send);
    for number in [1, 2] {
        engines[number - 1].run(&["stop", "-t", "20", "loden"]);
        let log = logged(number);
        assert!(log.contains("stopped; ") && !log.contains("ERROR"), "{log}");
    }
    other_architecture(&engines[0], &shipped);
}

/// Runs the image of 64-bit ARM: not at all where the kernel starts no such programs, and by an emulator.
fn other_architecture(engine: &Podman, shipped: &Path) {
    if architecture() == "arm64" {
        return;
    }
    engine.run(&["load", "-q", "-i", &text(&archive(shipped, "arm64"))]);
    if !Path::new("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists() {
        let error =
            engine.try_run(&["run", "--rm", "--network=none", &ours()]).expect_err("another architecture");
        assert!(error.contains("exec format error"), "{error}");
    }
    let emulator = lab::find("qemu-aarch64-static").expect("asked for before");
    let mount = format!("{}:/qemu:ro", emulator.display());
    let run = |program: &[&str]| {
        let start = ["run", "--rm", "--network=none", "-v", &mount, "--entrypoint", "/qemu", &ours()];
        engine.run(&[&start[..], program].concat())
    };
    assert!(run(&["/usr/sbin/xtables-legacy-multi", "iptables", "--version"]).contains("(legacy)"));
    assert!(run(&["/bin/ip", "-V"]).starts_with("ip utility"));
    assert_eq!(run(&["/bin/sh", "-c", "echo $PATH"]).split(':').next(), Some("/opt/bin"));
    if release().is_some() {
        let version = run(&["/opt/bin/loden", "version"]);
        assert!(version.contains(VERSION) && version.contains("aarch64"), "{version}");
    }
}

/// The pod of flannel's DaemonSet on one host, with the TUN device and a read-only root.
struct DaemonSet<'a> {
    cluster: &'a Cluster,
    number: usize,
    setup: &'a Setup,
}

/// The daemon's container. Its log has its name.
struct Started {
    container: String,
    name: String,
}

impl DaemonSet<'_> {
    /// Runs the init containers, and starts the daemon.
    fn start(&self, runtime: &mut Containerd) -> Started {
        let conf = self.cluster.file(&format!("conf{}", self.number));
        fs::create_dir(&conf).expect("a directory");
        fs::write(conf.join("cni-conf.json"), CNI_CONF).expect("a file");
        let pod = runtime.run_on_host("loden");
        let bin = mount(&self.setup.bin, "/opt/cni/bin");
        let conf = [mount(&self.setup.conf, "/etc/cni/net.d"), mount(&conf, "/etc/kube-flannel/")];
        let list = ["/etc/kube-flannel/cni-conf.json", "/etc/cni/net.d/10-flannel.conflist"];
        // The manifest in flannel's tree, and the one beside its releases.
        let copy: &[&str] = if self.number == 1 { &["/opt/bin/install-conf"] } else { &["cp", "-f"] };
        for (name, command, arguments, mounts) in [
            ("install-cni-plugin", &["cp"][..], &["-f", "/flannel", "/opt/cni/bin/flannel"][..], vec![bin]),
            ("install-cni", &copy[..1], &[&copy[1..], &list].concat(), conf.into()),
        ] {
            let container = runtime.start_on_host(&pod, name, config(command, arguments, mounts));
            assert_eq!(runtime.await_end(&container), 0, "{}", runtime.log_text(name));
        }
        let plugin = fs::metadata(self.setup.bin.join("flannel")).expect("the plugin");
        assert_eq!(plugin.permissions().mode() & 0o777, 0o755);
        let copied =
            fs::read_to_string(self.setup.conf.join("10-flannel.conflist")).expect("a configuration");
        assert_eq!(copied, CNI_CONF);

        // Kubernetes gives capabilities to root alone.
        let mut nobody = self.daemon();
        security(&mut nobody).run_as_user = Some(Int64 { value: NOBODY });
        let container = runtime.start_on_host(&pod, "nobody", nobody);
        assert_eq!(runtime.await_end(&container), 1);
        let log = runtime.log_text("nobody");
        assert!(log.contains("CAP_NET_ADMIN"), "{log}");

        let name = "kube-flannel".to_owned();
        let container = runtime.start_on_host(&pod, &name, self.daemon());
        Started { container, name }
    }

    fn daemon(&self) -> ContainerConfig {
        let lock = self.cluster.file(&format!("xtables{}.lock", self.number));
        fs::write(&lock, "").expect("a file");
        let endpoint = endpoint(self.cluster);
        let uplink = self.cluster.host(self.number).uplink();
        let arguments =
            ["--ip-masq", "--healthz-port=8081", "--iface", uplink, "--etcd-endpoints", &endpoint];
        let mounts =
            vec![mount(Path::new("/run/flannel"), "/run/flannel"), mount(&lock, "/run/xtables.lock")];
        let mut config = config(&["/opt/bin/flanneld"], &arguments, mounts);
        let tun = "/dev/net/tun".to_owned();
        config.devices =
            vec![Device { container_path: tun.clone(), host_path: tun, permissions: "rwm".to_owned() }];
        let security = security(&mut config);
        let add = ["NET_ADMIN", "NET_RAW"].map(str::to_owned).into();
        security.capabilities = Some(Capabilities { add, remove: vec!["ALL".to_owned()] });
        security.readonly_rootfs = true;
        config
    }
}

fn security(config: &mut ContainerConfig) -> &mut ContainerSecurity {
    config.linux.get_or_insert_default().security.get_or_insert_default()
}

fn config(command: &[&str], arguments: &[&str], mounts: Vec<Mount>) -> ContainerConfig {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    ContainerConfig {
        image: Some(Named { name: ours() }),
        command: owned(command),
        arguments: owned(arguments),
        mounts,
        linux: Some(LinuxContainer::default()),
        ..ContainerConfig::default()
    }
}

fn mount(host: &Path, container: &str) -> Mount {
    Mount { container_path: container.to_owned(), host_path: text(host) }
}

/// Sends a hundred megabytes from the first container to the second.
fn send([one, two]: [&End<'_>; 2]) {
    let from = one.address(false);
    for _ in 0..PARTS {
        let sent = (one.shell)(&format!("head -c {PART} /dev/urandom > /www/big; sha256sum < /www/big"));
        let received = (two.shell)(&format!("{} | sha256sum", fetch(from, 80, "big")));
        assert_eq!(sent, received);
    }
}

fn end<'a>(number: usize, name: &'static str, runtime: &'a Containerd, pod: &'a Pod) -> End<'a> {
    let shell = |line: &str| runtime.exec(pod, line);
    End { number, name, addresses: pod.addresses.clone(), shell: Box::new(shell) }
}

/// Copies a host's subnet file to where the checks look for it.
fn keep_subnet_file(cluster: &Cluster, number: usize, cage: &crate::cage::Cage) {
    let written = cage.output("cat", &["/run/flannel/subnet.env"]).expect("a subnet file");
    fs::write(cluster.file(&format!("host{number}.env")), written).expect("a file");
}

fn needs(programs: &[&str]) -> Needs {
    let needs = setup::needs(&[programs, &PROGRAMS].concat());
    let legacy = Path::new("/proc/net/ip_tables_names").exists();
    needs
        .and("deploy/release's program (cargo build -p dist)", dist().is_file())
        .and("the kernel's older tables (modprobe iptable_filter)", legacy)
}

fn dist() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_loden")).with_file_name("dist")
}

fn ours() -> String {
    format!("localhost/loden:{VERSION}")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Returns the archive of an architecture's image.
fn archive(shipped: &Path, architecture: &str) -> PathBuf {
    shipped.join(format!("loden-{VERSION}-image-{architecture}.tar"))
}

/// Returns the directory `LODEN_RELEASE` if it has images.
fn release() -> Option<PathBuf> {
    let release = PathBuf::from(std::env::var_os("LODEN_RELEASE")?);
    archive(&release, "arm64").is_file().then_some(release)
}

/// Returns the directory of a release with images of both architectures.
fn shipped(cluster: &Cluster) -> PathBuf {
    if let Some(release) = release() {
        return release;
    }
    let (programs, output) = (cluster.file("programs"), cluster.file("release"));
    for arch in ["x86_64", "aarch64"] {
        let place = programs.join(arch);
        fs::create_dir_all(&place).expect("a directory");
        for (name, built) in
            [("loden", Path::new(env!("CARGO_BIN_EXE_loden"))), ("loden-cni", &setup::plugin())]
        {
            match arch == std::env::consts::ARCH {
                true => strip(built, &place.join(name)),
                false => fs::write(place.join(name), foreign(arch)).expect("a file"),
            }
        }
    }
    let mut command = Command::new(dist());
    command.arg(&output).args(["--only", "image", "--programs"]).arg(&programs);
    let made = command.output().expect("deploy/release");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    output
}

fn strip(from: &Path, to: &Path) {
    let mut command = Command::new("strip");
    assert!(command.arg("-o").args([to, from]).status().expect("strip").success(), "{}", from.display());
}

/// Returns the head of another architecture's program, which stands for one.
fn foreign(arch: &str) -> Vec<u8> {
    // elf(5): 64 bits, little-endian, version 1, ET_EXEC, e_machine.
    let machine = if arch == "x86_64" { 62 } else { 183 };
    let mut head = b"\x7fELF\x02\x01\x01".to_vec();
    head.resize(16, 0);
    head.extend([2, 0, machine, 0, 1, 0, 0, 0]);
    head.resize(52, 0);
    head.extend([64, 0, 56, 0, 0, 0, 64, 0, 0, 0, 0, 0]);
    head
}

fn busybox(cluster: &Cluster) -> PathBuf {
    let place = cluster.file("image");
    fs::create_dir(&place).expect("a directory");
    image::archive(&place)
}

fn endpoint(cluster: &Cluster) -> String {
    format!("http://{}:2379", cluster.host(1).underlay())
}

/// Starts etcd with a network configuration on the first host.
fn start_etcd(cluster: &Cluster) -> Process {
    let mut command = Command::new("etcd");
    let endpoint = endpoint(cluster);
    command.args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint]);
    command.args(["--log-level", "error", "--data-dir"]).arg(cluster.file("etcd")).stdout(Stdio::null());
    let process = Process::spawn(cluster.host(1).namespace(), &mut command).expect("etcd");
    let put = format!(
        "ETCDCTL_API=3 etcdctl --endpoints {endpoint} put /coreos.com/network/config '{VXLAN}' 2>&1 || true"
    );
    await_until("etcd", || cluster.shell(1, &put) == "OK");
    process
}
