//! Kills plugins, delegates and the runtime at random moments while pods come and go. After the runtime's own
//! cleanup and a garbage collection nothing remains: no address, device, rule or state. Collections in
//! between take nothing from pods that live, although their namespaces have paths and inodes that forgotten
//! pods had before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::Duration;

use lab::{Namespace, Wiring};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::common::{Cluster, VXLAN, await_until};
use crate::containerd::Containerd;
use crate::image;
use crate::setup::{self, Setup};

const SEED: u64 = 0x10de;
/// Runtimes call plugins for several pods at once.
const WORKERS: usize = 8;
const PODS: usize = 200;
/// In microseconds: a verb takes some tens of milliseconds.
const LATEST_KILL: u64 = 40_000;
const BETWEEN_COLLECTIONS: Duration = Duration::from_millis(400);
/// The most namespaces to create for one pod until the kernel uses an inode again.
const MOST_NAMESPACES: usize = 100;
/// A runtime repeats a DEL until it succeeds. The last attempts are not killed.
const KILLED_TRIES: usize = 3;
const SANDBOXES: usize = 24;
/// The most attempts to create one pod, 50 ms apart.
const MOST_TRIES: usize = 400;
/// Bounds the test on a slow machine.
const MOST_KILLS: usize = 6;

#[test]
fn plugins_killed_at_random_leave_nothing_after_a_collection() {
    if !setup::ready(&["iptables", "iptables-save", "ip"]) {
        return;
    }
    let cluster = Cluster::build("kills", 1, Wiring::Switch, VXLAN);
    let host = PluginHost::new(&cluster);
    let next = AtomicUsize::new(0);
    let killed = AtomicUsize::new(0);
    let is_over = AtomicBool::new(false);
    let mut checked = 0;
    thread::scope(|scope| {
        let (host, next, killed, is_over) = (&host, &next, &killed, &is_over);
        let collector = scope.spawn(move || {
            let mut random = StdRng::seed_from_u64(SEED);
            let mut checked = 0;
            while !is_over.load(Ordering::Relaxed) {
                checked += host.collect_among_the_living(&mut random);
                thread::sleep(BETWEEN_COLLECTIONS);
            }
            checked
        });
        let work = |worker: usize| {
            let mut random = StdRng::seed_from_u64(SEED + worker as u64);
            while next.fetch_add(1, Ordering::Relaxed) < PODS {
                let count = host.one_pod(worker, &mut random);
                killed.fetch_add(count, Ordering::Relaxed);
            }
        };
        let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || work(worker))).collect();
        let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        ends.into_iter().for_each(|end| end.expect("a worker"));
        checked = collector.join().expect("the collector");
    });
    assert!(killed.into_inner() > PODS / 4, "hardly any kill has met its process");
    assert!(checked > 0, "no collection has met a living pod");
    let again = host.used_again.load(Ordering::Relaxed);
    println!(
        "{again} namespaces had path and inode of a forgotten pod's, {checked} living pods were checked"
    );
    assert!(again > 0, "no inode was used again");
    host.collect();
    host.assert_clean();
    // All addresses are available again.
    let pod = host.pod("last".to_owned(), "last");
    let mut peaceful = StdRng::seed_from_u64(SEED);
    assert!(host.verb("ADD", &pod, &mut peaceful, false).0, "a pod after all");
    assert!(host.verb("DEL", &pod, &mut peaceful, false).0, "and its end");
    host.assert_clean();
}

#[test]
fn a_runtime_killed_at_random_leaves_nothing_after_a_collection() {
    let programs =
        ["containerd", "ctr", "runc", "busybox", "unshare", "nsenter", "iptables", "iptables-save", "ip"];
    if !setup::ready(&programs) {
        return;
    }
    let cluster = Cluster::build("kill-ctr", 1, Wiring::Switch, VXLAN);
    let place = cluster.file("image");
    fs::create_dir(&place).expect("a directory");
    let image = image::archive(&place);
    fs::write(cluster.file("host1.env"), subnet_env()).expect("a file");
    let setup = Setup::new(&cluster, 1);
    setup.install(&[]);
    let runtime = Containerd::start(&cluster, 1, &setup.bin, &setup.conf, &image);
    await_until("the network", || runtime.network().is_ok());
    let next = AtomicUsize::new(0);
    let killed = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let client = runtime.client();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= SANDBOXES {
                        break;
                    }
                    // Retries, as a kubelet does, when containerd is down or is killed during the request.
                    let made = (0..MOST_TRIES).find_map(|attempt| {
                        let made = runtime.sandbox(&client, &format!("pod{number}-{attempt}"));
                        made.inspect_err(|_| thread::sleep(Duration::from_millis(50))).ok()
                    });
                    let made = made.expect("a pod at last");
                    if number.is_multiple_of(2) {
                        let _ = runtime.remove_by(&client, &made);
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut random = StdRng::seed_from_u64(SEED);
            while next.load(Ordering::Relaxed) < SANDBOXES && killed.load(Ordering::Relaxed) < MOST_KILLS {
                thread::sleep(Duration::from_millis(random.random_range(100..700)));
                killed.fetch_add(usize::from(runtime.kill()), Ordering::Relaxed);
            }
        });
    });
    println!("killed {} times", killed.load(Ordering::Relaxed));
    assert!(killed.into_inner() >= 2, "it was hardly killed");
    await_until("its answer", || runtime.list().is_ok());
    let client = runtime.client();
    for sandbox in runtime.list().expect("a list") {
        await_until("the end of a pod", || runtime.remove_by(&client, &sandbox).is_ok());
    }
    assert_eq!(runtime.list().expect("a list").len(), 0);
    let flannel = collection(&json!({"subnetFile": cluster.file("host1.env")})).to_string();
    let conf = cluster.file("gc.json");
    fs::write(&conf, flannel).expect("a file");
    let bin = setup.bin.display();
    let line = format!("CNI_COMMAND=GC CNI_PATH={bin} {bin}/flannel < {}", conf.display());
    runtime.cage.output("sh", &["-c", &line]).expect("a collection");
    let state = &runtime.cage.state;
    assert_eq!(addresses(&state.join("networks/cbr0")), BTreeSet::new());
    assert_eq!(names(&state.join("flannel")), BTreeSet::new());
    await_no_devices(&cluster);
}

/// A host on which the test acts as the runtime.
struct PluginHost<'a> {
    cluster: &'a Cluster,
    setup: Setup,
    conf: Value,
    /// A runtime adds and deletes several pods at once, but does not collect meanwhile (CNI specification,
    /// "Lifecycle & Ordering").
    gate: RwLock<()>,
    /// The pods that live: each one's address, and its name with that of its namespace.
    live: Mutex<BTreeMap<String, (String, String)>>,
    /// The inodes of the namespaces of pods that were forgotten since the last collection, by their names.
    forgotten: Mutex<BTreeMap<String, BTreeSet<u64>>>,
    /// How many namespaces had the name and the inode of a forgotten pod's.
    used_again: AtomicUsize,
}

impl<'a> PluginHost<'a> {
    fn new(cluster: &'a Cluster) -> PluginHost<'a> {
        let setup = Setup::new(cluster, 1);
        setup.install(&[]);
        fs::write(cluster.file("host1.env"), subnet_env()).expect("a file");
        let conf = json!({
            "subnetFile": cluster.file("host1.env"), "dataDir": cluster.file("flannel"),
            "ipam": {"dataDir": cluster.file("networks")},
            "delegate": {"hairpinMode": true, "isDefaultGateway": true, "ipMasq": false},
        });
        let (live, forgotten) = (Mutex::default(), Mutex::default());
        let (gate, used_again) = (RwLock::default(), AtomicUsize::new(0));
        PluginHost { cluster, setup, conf, gate, live, forgotten, used_again }
    }

    /// Creates a pod in a new namespace of this name, with the inode of a forgotten pod's if the kernel gives
    /// it soon.
    fn pod(&self, id: String, name: &str) -> Pod {
        let name = format!("{}-{name}", self.cluster.host(1).namespace().name());
        let create = || Namespace::create(&name).expect("a namespace");
        let former = self.forgotten.lock().expect("no panic").get(&name).cloned().unwrap_or_default();
        let mut namespace = create();
        for _ in 0..MOST_NAMESPACES {
            if former.is_empty() || former.contains(&inode(&namespace)) {
                break;
            }
            drop(namespace);
            namespace = create();
        }
        if former.contains(&inode(&namespace)) {
            self.used_again.fetch_add(1, Ordering::Relaxed);
        }
        Pod { id, namespace }
    }

    /// Adds and deletes a pod under kills and returns their number. One pod in eight is never deleted, as if
    /// its runtime had lost it. One in four of the others has a host port, by a plugin that runs after
    /// loden's. All pods of a worker have namespaces of the same name, one after the other.
    fn one_pod(&self, worker: usize, random: &mut StdRng) -> usize {
        let pod = self.pod(format!("{:016x}", random.random::<u64>()), &format!("worker{worker}"));
        let forgotten = random.random_ratio(1, 8);
        let port =
            random.random_ratio(1, 4).then(|| random.random_range(10_000..30_000)).filter(|_| !forgotten);
        let during = self.gate.read().expect("no panic");
        let (good, result, mut killed) = self.verb("ADD", &pod, random, true);
        if good {
            let address = address(&result);
            let names = (pod.id.clone(), pod.namespace.name().to_owned());
            let other = self.live.lock().expect("no panic").insert(address.clone(), names);
            assert!(other.is_none(), "{address} is two pods'");
            if let Some(port) = port {
                killed += self.port("ADD", &pod, port, &result, random, true).2;
            }
        }
        drop(during);
        // The moment for a collection.
        thread::sleep(Duration::from_micros(random.random_range(0..LATEST_KILL)));
        let _during = self.gate.read().expect("no panic");
        if good && forgotten {
            self.live.lock().expect("no panic").remove(&address(&result));
        }
        if forgotten {
            let name = pod.namespace.name().to_owned();
            self.forgotten.lock().expect("no panic").entry(name).or_default().insert(inode(&pod.namespace));
            return killed;
        }
        if let Some(port) = port {
            killed += until_good(|violent| self.port("DEL", &pod, port, "null", random, violent));
        }
        if good {
            self.live.lock().expect("no panic").remove(&address(&result));
        }
        killed + until_good(|violent| self.verb("DEL", &pod, random, violent))
    }

    /// Collects with the list of all living pods, perhaps under a kill, and returns how many of them were
    /// checked to have their interface still.
    fn collect_among_the_living(&self, random: &mut StdRng) -> usize {
        let _alone = self.gate.write().expect("no panic");
        let live: Vec<_> = self.live.lock().expect("no panic").values().cloned().collect();
        let valid = live.iter().map(|(id, _)| json!({"containerID": id, "ifname": "eth0"})).collect();
        let mut conf = collection(&self.conf);
        conf["cni.dev/valid-attachments"] = valid;
        let (group, is_complete) = self.spawn_collection(conf, random);
        await_until("the delegates", || killpg(group, None).is_err());
        if is_complete {
            self.forgotten.lock().expect("no panic").clear();
        }
        for (id, name) in &live {
            let namespace = Namespace::open(name).expect("a living pod's namespace");
            let links = namespace.output(Command::new("ip").args(["-o", "link"])).expect("ip");
            let links = String::from_utf8_lossy(&links.stdout).into_owned();
            assert!(links.contains("eth0"), "a collection took {id}'s interface from {name}: {links}");
        }
        live.len()
    }

    /// Runs a collection and kills it in half of the cases. Returns its process group, and whether it
    /// succeeded.
    fn spawn_collection(&self, mut conf: Value, random: &mut StdRng) -> (Pid, bool) {
        conf["name"] = "kills".into();
        let input = self.cluster.file("living.json");
        fs::write(&input, conf.to_string()).expect("a file");
        let mut command = Command::new(self.setup.bin.join("flannel"));
        command.env("CNI_COMMAND", "GC").env("CNI_PATH", &self.setup.bin).process_group(0);
        command.stdin(fs::File::open(&input).expect("a file")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.cluster.host(1).namespace().spawn(&mut command).expect("the plugin");
        let violent = random.random_bool(0.5);
        if violent {
            kill_one(&child, &conf, random);
        }
        let group = Pid::from_raw(child.id() as i32);
        let output = child.wait_with_output().expect("an end");
        assert!(output.status.success() || violent, "{}", String::from_utf8_lossy(&output.stdout));
        (group, output.status.success())
    }

    /// Calls loden's plugin: see [`PluginHost::call`].
    fn verb(&self, verb: &str, pod: &Pod, random: &mut StdRng, violent: bool) -> (bool, String, usize) {
        self.call(verb, pod, named(&self.conf, "flannel"), random, violent)
    }

    /// Calls `portmap` with the result of loden's plugin, as a runtime does.
    fn port(
        &self,
        verb: &str,
        pod: &Pod,
        port: u16,
        previous: &str,
        random: &mut StdRng,
        violent: bool,
    ) -> (bool, String, usize) {
        let mapping = json!({"hostPort": port, "containerPort": 80, "protocol": "tcp"});
        let mut conf = json!({"runtimeConfig": {"portMappings": [mapping]}});
        if let Ok(previous @ Value::Object(_)) = serde_json::from_str(previous) {
            conf["prevResult"] = previous;
        }
        self.call(verb, pod, named(&conf, "portmap"), random, violent)
    }

    /// Calls a plugin. Returns whether it succeeded, its output, and the number of kills.
    fn call(
        &self,
        verb: &str,
        pod: &Pod,
        conf: Value,
        random: &mut StdRng,
        violent: bool,
    ) -> (bool, String, usize) {
        let input = self.cluster.file(&format!("{}.json", pod.id));
        fs::write(&input, conf.to_string()).expect("a file");
        let mut command = Command::new(self.setup.bin.join(conf["type"].as_str().expect("a type")));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.id)
            .env("CNI_NETNS", pod.namespace.path());
        command.env("CNI_IFNAME", "eth0").env("CNI_PATH", &self.setup.bin).process_group(0);
        command.stdin(fs::File::open(&input).expect("a file")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.cluster.host(1).namespace().spawn(&mut command).expect("the plugin");
        let killed = if violent && random.random_bool(0.5) { kill_one(&child, &conf, random) } else { 0 };
        let group = Pid::from_raw(child.id() as i32);
        let output = child.wait_with_output().expect("an end");
        // A delegate whose plugin was killed continues. After the runtime's next call its work could not be
        // undone.
        await_until("the delegates", || killpg(group, None).is_err());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words = text + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || violent, "{verb}: {words}");
        (output.status.success(), words, killed)
    }

    fn collect(&self) {
        let mut command = Command::new("sh");
        let conf = self.cluster.file("gc.json");
        let mut collection = collection(&self.conf);
        collection["name"] = "kills".into();
        fs::write(&conf, collection.to_string()).expect("a file");
        let bin = self.setup.bin.display();
        let line = format!("CNI_COMMAND=GC CNI_PATH={bin} {bin}/flannel < {}", conf.display());
        let output = self.cluster.host(1).namespace().output(command.args(["-c", &line])).expect("sh");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn assert_clean(&self) {
        assert_eq!(addresses(&self.cluster.file("networks/kills")), BTreeSet::new());
        assert_eq!(names(&self.cluster.file("flannel")), BTreeSet::new());
        await_no_devices(self.cluster);
        let rules = self.cluster.shell(1, "iptables-save | grep CNI- || true");
        let of_ports: Vec<&str> = rules.lines().filter(|rule| rule.contains("CNI-DN-")).collect();
        assert!(of_ports.is_empty(), "{of_ports:#?}");
    }
}

/// Repeats a DEL until it succeeds, as a runtime does, and returns the number of kills.
fn until_good(mut del: impl FnMut(bool) -> (bool, String, usize)) -> usize {
    let mut killed = 0;
    for attempt in 0.. {
        let (good, words, count) = del(attempt < KILLED_TRIES);
        killed += count;
        if good {
            break;
        }
        assert!(attempt < KILLED_TRIES + 3, "DEL does not succeed: {words}");
    }
    killed
}

/// Builds a plugin's configuration in the network of this test.
fn named(conf: &Value, plugin: &str) -> Value {
    let mut conf = conf.clone();
    conf["name"] = "kills".into();
    conf["type"] = plugin.into();
    conf["cniVersion"] = "1.0.0".into();
    conf
}

/// Returns the address in a result.
fn address(result: &str) -> String {
    let json: Value = serde_json::from_str(result).unwrap_or_else(|error| panic!("{error}: {result}"));
    json["ips"][0]["address"].as_str().expect("an address").to_owned()
}

fn inode(namespace: &Namespace) -> u64 {
    fs::metadata(namespace.path()).expect("a namespace").ino()
}

/// A pod as a runtime has it: a name and a network namespace.
struct Pod {
    id: String,
    namespace: Namespace,
}

/// Kills the plugin or a descendant of it at a random moment. Returns 1 if the process was still there.
/// Children of `portmap` are not killed: it reports success even when its `iptables` fails.
fn kill_one(plugin: &Child, conf: &Value, random: &mut StdRng) -> usize {
    thread::sleep(Duration::from_micros(random.random_range(0..LATEST_KILL)));
    let plugin = plugin.id().to_string();
    let mut family = vec![plugin];
    let generations = if conf["type"] == "portmap" { 0 } else { 2 };
    for _ in 0..generations {
        let last = family.last().expect("one at least");
        let children = fs::read_to_string(format!("/proc/{last}/task/{last}/children")).unwrap_or_default();
        family.extend(children.split_whitespace().next().map(str::to_owned));
    }
    let victim = &family[random.random_range(0..family.len())];
    // The plugin has not been waited for, so its process id cannot have been reused.
    let met = victim.parse().is_ok_and(|number| kill(Pid::from_raw(number), Signal::SIGKILL).is_ok());
    usize::from(met)
}

/// Builds the configuration that a runtime passes to GC when there is no pod.
fn collection(conf: &Value) -> Value {
    let mut conf = conf.clone();
    conf["name"] = "cbr0".into();
    conf["type"] = "flannel".into();
    conf["cniVersion"] = "1.1.0".into();
    conf["cni.dev/valid-attachments"] = json!([]);
    conf
}

fn subnet_env() -> &'static str {
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
}

/// Returns the addresses that host-local has reserved.
fn addresses(directory: &Path) -> BTreeSet<String> {
    names(directory).into_iter().filter(|name| name.starts_with("10.244.")).collect()
}

/// Returns the files of pods. Those that begin with a dot or end in `.lock` belong to none.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| !name.starts_with('.') && !name.ends_with("lock")).collect()
}

/// Waits until the host has none of the pods' veth pairs: the kernel removes those of a namespace some time
/// after the namespace.
fn await_no_devices(cluster: &Cluster) {
    let devices = || cluster.shell(1, "ip -o link show type veth | grep -v ' eth0@' | cut -d: -f2 || true");
    await_until("the end of the pods' devices", || devices().is_empty());
}
