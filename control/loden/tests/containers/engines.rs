//! Container engines without Kubernetes: podman calls the plugin, dockerd gets its options from `subnet.env`.

use std::fs;
use std::path::Path;
use std::process::Command;

use lab::Wiring;

use crate::cage::Cage;
use crate::common::{Cluster, VXLAN, await_until};
use crate::image;
use crate::setup::{self, Setup};
use crate::talk::{self, End, HOST_PORT};

const IMAGE: &str = "loden.test/busybox:1";
/// The command line of a cage that only waits.
const REST: &str = "sleep infinity";

#[test]
fn containers_of_podman_talk_across_hosts() {
    let programs = ["podman", "conmon", "runc", "busybox", "unshare", "nsenter", "tar", "iptables"];
    if !setup::needs(&programs).and("podman before 5, which has CNI", podman_has_cni()).are_met() {
        return;
    }
    let cluster = Cluster::build("podman", 2, Wiring::Direct, VXLAN);
    let place = cluster.file("image");
    fs::create_dir(&place).expect("a directory");
    let archive = image::archive(&place);
    let daemons = talk::daemons(&cluster);
    let engines = [1, 2].map(|number| {
        let setup = Setup::new(&cluster, number);
        setup.install(&[]);
        let engine = Podman::start(&cluster, number, &setup);
        engine.run(&["load", "-i", &archive.display().to_string()]);
        engine
    });
    let run = engines.each_ref().map(|engine| -> Run<'_> { Box::new(|line| engine.run(line)) });
    talk_across(&cluster, &run, &["rm", "-f", "-t", "0"], |_| ());
    talk::finish(&cluster, daemons);
}

#[test]
fn containers_of_docker_talk_across_hosts() {
    if !setup::ready(&[
        "dockerd",
        "docker",
        "containerd",
        "runc",
        "busybox",
        "unshare",
        "nsenter",
        "tar",
        "iptables",
    ]) {
        return;
    }
    let cluster = Cluster::build("docker", 2, Wiring::Direct, VXLAN);
    let place = cluster.file("image");
    fs::create_dir(&place).expect("a directory");
    let files = place.join("rootfs.tar");
    image::tar(&image::root(&place), &files);
    let daemons = talk::daemons(&cluster);
    let engines = [1, 2].map(|number| {
        let engine = Docker::start(&cluster, number);
        engine.run(&["import", &files.display().to_string(), IMAGE]);
        engine
    });
    let run = engines.each_ref().map(|engine| -> Run<'_> { Box::new(|line| engine.run(line)) });
    talk_across(&cluster, &run, &["rm", "-f"], |_| ());
    talk::finish(&cluster, daemons);
}

/// Runs a command line of an engine and returns its output.
pub type Run<'a> = Box<dyn Fn(&[&str]) -> String + 'a>;

/// Starts a container on each host, checks that they reach each other, and removes them.
pub fn talk_across(
    cluster: &Cluster,
    engines: &[Run<'_>; 2],
    remove: &[&str],
    also: impl FnOnce([&End<'_>; 2]),
) {
    let port = format!("{HOST_PORT}:80");
    for (run, name, more) in [(&engines[0], "one", &["-p", &port][..]), (&engines[1], "two", &[])] {
        let server = image::server(name);
        run(&[&["run", "-d", "--name", name], more, &[IMAGE, "/bin/sh", "-c", &server]].concat());
    }
    let end = |number: usize, name: &'static str| {
        let run = &engines[number - 1];
        End::asked(number, name, move |line| run(&["exec", name, "/bin/sh", "-c", line]))
    };
    let (one, two) = (end(1, "one"), end(2, "two"));
    talk::check(cluster, [&one, &two], &[false]);
    also([&one, &two]);
    for (run, name) in engines.iter().zip(["one", "two"]) {
        run(&[remove, &[name]].concat());
    }
}

/// podman has no daemon.
pub struct Podman {
    pub cage: Cage,
    flags: Vec<String>,
}

impl Podman {
    pub fn start(cluster: &Cluster, number: usize, setup: &Setup) -> Podman {
        let place = cluster.file(&format!("podman{number}"));
        fs::create_dir_all(&place).expect("a directory");
        let config = place.join("containers.conf");
        fs::write(&config, podman_config(setup)).expect("a file");
        let cage = Cage::start(cluster, number, &place, REST);
        let place = place.display();
        let flags = ["root", "runroot", "tmpdir"].map(|name| format!("--{name}={place}/{name}"));
        let mut flags: Vec<String> = flags.into();
        flags.extend(
            ["--cgroup-manager=cgroupfs", "--events-backend=none", "--log-level=error"].map(str::to_owned),
        );
        flags.insert(0, "podman".to_owned());
        flags.insert(0, format!("CONTAINERS_CONF={}", config.display()));
        Podman { cage, flags }
    }

    pub fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let flags = self.flags.iter().map(String::as_str);
        let line: Vec<&str> = flags.chain(arguments.iter().copied()).collect();
        self.cage.output("env", &line)
    }
}

/// Returns whether podman supports CNI, which later versions are built without.
pub fn podman_has_cni() -> bool {
    let output = Command::new("podman").arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let version = text.split_whitespace().last().unwrap_or_default();
    version.split('.').next().and_then(|major| major.parse().ok()).is_some_and(|major: u32| major < 5)
}

/// The ulimits are explicit, because podman's defaults fail where root may not raise limits.
fn podman_config(setup: &Setup) -> String {
    format!(
        r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
[network]
network_backend = "cni"
default_network = "cbr0"
network_config_dir = "{}"
cni_plugin_dirs = ["{}"]
"#,
        setup.conf.display(),
        setup.bin.display()
    )
}

/// dockerd, with the options that `mk-docker-opts` wrote.
struct Docker {
    cage: Cage,
    socket: String,
}

impl Docker {
    fn start(cluster: &Cluster, number: usize) -> Docker {
        let place = cluster.file(&format!("docker{number}"));
        fs::create_dir_all(&place).expect("a directory");
        let options = place.join("options.env");
        mk_docker_opts(&cluster.file(&format!("host{number}.env")), &options);
        let (options, place_text) = (options.display(), place.display());
        let line = format!(
            ". {options}; exec dockerd -H unix://{0}/d.sock --data-root {0}/root --exec-root {0}/exec \
             --pidfile {0}/pid --default-ulimit nofile=1024:1024 $DOCKER_OPTS",
            place_text
        );
        let docker = Docker {
            cage: Cage::start(cluster, number, &place, &line),
            socket: format!("unix://{place_text}/d.sock"),
        };
        await_until("dockerd", || docker.try_run(&["version"]).is_ok());
        docker
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|error| panic!("{error}\n{}", self.cage.log_text()))
    }

    fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        self.cage.output("docker", &[&["-H", &self.socket], arguments].concat())
    }
}

fn mk_docker_opts(subnet_file: &Path, options: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
    command.args(["mk-docker-opts", "-c", "-f"]).arg(subnet_file).arg("-d").arg(options);
    let output = command.env_remove("DOCKER_OPTS").output().expect("loden");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
