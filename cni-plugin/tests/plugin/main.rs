//! The plugin as a process: with misbehaving delegates, and with Debian's `bridge` and `host-local` in a
//! network namespace.

#![allow(clippy::unwrap_used, clippy::panic)]

mod debian;
mod disk;
mod gc;
mod hang;
mod input;
mod namespaces;
mod odd_files;
mod old_delegates;
mod refused;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const V4: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
const V6: &str = "FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

/// The body of a delegate that prints a result.
const GOOD: &str = r#"echo '{"cniVersion":"1.0.0","interfaces":[],"ips":[{"address":"10.244.7.2/24"}]}'"#;

/// A node's files and a delegate.
struct Node {
    place: tempfile::TempDir,
}

impl Node {
    fn new(env: &str) -> Node {
        let node = Node { place: tempfile::tempdir().unwrap() };
        fs::write(node.file("subnet.env"), env).unwrap();
        fs::create_dir(node.file("bin")).unwrap();
        node
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Installs a delegate named `fake` that supports all versions and records each call, then runs `body`.
    fn delegate(&self, body: &str) -> &Node {
        self.delegate_of("0.1.0 0.2.0 0.3.0 0.3.1 0.4.0 1.0.0 1.1.0", body)
    }

    /// Installs a delegate as [`Node::delegate`] does, that supports these versions and refuses others.
    fn delegate_of(&self, versions: &str, body: &str) -> &Node {
        let list = versions.replace(' ', r#"",""#);
        let answer = format!(r#"{{"cniVersion":"1.0.0","supportedVersions":["{list}"]}}"#);
        let refuse = format!(
            r#"version=$(sed -n 's/.*"cniVersion":"\([^"]*\)".*/\1/p' {}.stdin)
case " {versions} " in *" ${{version:-0.1.0}} "*) ;; *)
    echo '{{"code": 1, "msg": "incompatible CNI versions"}}'; exit 1 ;;
esac"#,
            self.file("calls").display()
        );
        self.program(&format!("[ $CNI_COMMAND = VERSION ] && {{ echo '{answer}'; exit 0; }}"), &refuse, body)
    }

    /// Installs a delegate that runs `first`, records the call, and runs `check` and `body`.
    fn program(&self, first: &str, check: &str, body: &str) -> &Node {
        let (calls, path) = (self.file("calls"), self.file("bin/fake"));
        let note = format!(
            "cat > {0}.stdin; echo \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $(cat {0}.stdin)\" >> {0}",
            calls.display()
        );
        fs::write(&path, format!("#!/bin/sh\n{first}\n{note}\n{check}\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// Returns the delegate's calls so far: verb, container, interface and configuration.
    fn calls(&self) -> Vec<(String, Value)> {
        let text = fs::read_to_string(self.file("calls")).unwrap_or_default();
        let call = |line: &str| {
            let at = line.find('{').unwrap();
            (line[..at].trim().to_owned(), serde_json::from_str(&line[at..]).unwrap())
        };
        text.lines().map(call).collect()
    }

    fn config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
            "subnetFile": self.file("subnet.env"), "dataDir": self.file("state"), "delegate": {"type": "fake"}
        })
    }

    fn command(&self, verb: &str, container: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden-cni"));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", "/run/netns/of-nobody")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.file("bin"));
        command
    }

    fn run(&self, verb: &str, config: &Value) -> Result<String, Value> {
        answer(&mut self.command(verb, "pod-1"), config.to_string().as_bytes())
    }

    /// Lists the names in the state directory.
    fn states(&self) -> Vec<String> {
        names_in(&self.file("state"))
    }
}

/// Runs the plugin. Returns what it printed, or its error object.
fn answer(command: &mut Command, stdin: &[u8]) -> Result<String, Value> {
    let output = run(command, stdin);
    let printed = String::from_utf8(output.stdout).unwrap();
    match output.status.code() {
        Some(0) => Ok(printed),
        Some(1) => {
            let error: Value = serde_json::from_str(&printed).unwrap();
            assert!(error["code"].is_u64() && !error["msg"].as_str().unwrap().is_empty(), "{error}");
            Err(error)
        }
        code => panic!("{code:?}: {printed} {}", String::from_utf8_lossy(&output.stderr)),
    }
}

fn run(command: &mut Command, stdin: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The plugin may exit before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

#[test]
fn add_and_del_hand_on_the_same_configuration_and_leave_nothing() {
    for (env, ranges) in [(V4, 1), (V6, 1), (DUAL, 2)] {
        let node = Node::new(env);
        node.delegate(GOOD);
        let result = node.run("ADD", &node.config()).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&result).unwrap()["ips"][0]["address"], "10.244.7.2/24");
        assert_eq!(node.states(), ["pod-1"]);
        let state: Value = serde_json::from_slice(&fs::read(node.file("state/pod-1")).unwrap()).unwrap();
        assert_eq!(state["ipam"]["ranges"].as_array().unwrap().len(), ranges);
        // DEL must work even if the daemon is gone.
        fs::remove_file(node.file("subnet.env")).unwrap();
        assert_eq!(node.run("DEL", &node.config()), Ok(String::new()));
        assert_eq!(node.run("DEL", &node.config()), Ok(String::new()), "again");
        let calls = node.calls();
        let expected = [("ADD pod-1 eth0".to_owned(), state.clone()), ("DEL pod-1 eth0".to_owned(), state)];
        assert_eq!(calls, expected);
        assert_eq!(node.states(), [""; 0]);
    }
}

#[test]
fn del_keeps_its_state_until_the_delegate_has_done_it() {
    let node = Node::new(V4);
    node.delegate(GOOD).run("ADD", &node.config()).unwrap();
    node.delegate(r#"echo '{"code": 11, "msg": "busy", "details": "later"}'; exit 1"#);
    let error = node.run("DEL", &node.config()).unwrap_err();
    assert_eq!(
        (&error["code"], &error["msg"], &error["cniVersion"]),
        (&json!(11), &json!("busy"), &json!("1.0.0"))
    );
    assert_eq!(node.states(), ["pod-1"]);
    node.delegate("").run("DEL", &node.config()).unwrap();
    assert_eq!(node.states(), [""; 0]);
}

#[test]
fn bad_delegates_are_errors_that_leave_nothing_behind() {
    // (body of the delegate, error code, part of the error, verbs that it is called with, states left)
    let noise = "head -c 3000000 /dev/zero; exit 1";
    for (body, code, words, verbs, left) in [
        (r#"echo '{"code": 111, "msg": "mine"}'; exit 1"#, 111, "mine", vec!["ADD"], 1),
        ("echo no json; exit 3", 5, "no json", vec!["ADD"], 1),
        ("exit 3", 5, "exit status: 3", vec!["ADD"], 1),
        ("kill -9 $$", 5, "signal: 9", vec!["ADD"], 1),
        (noise, 5, "without a CNI error", vec!["ADD"], 1),
        ("echo rubbish", 6, "rubbish", vec!["ADD", "DEL"], 0),
        ("echo '[1]'", 6, "printed no result", vec!["ADD", "DEL"], 0),
        ("exit 0", 6, "printed no result", vec!["ADD", "DEL"], 0),
    ] {
        let node = Node::new(V4);
        let error = node.delegate(body).run("ADD", &node.config()).unwrap_err();
        assert_eq!(error["code"], code, "{body}: {error}");
        assert!(error.to_string().contains(words), "{body}: {error}");
        let called: Vec<String> = node.calls().iter().map(|(call, _)| call[..3].to_owned()).collect();
        assert_eq!(
            (called, node.states().len()),
            (verbs.iter().map(|v| (*v).to_owned()).collect(), left),
            "{body}"
        );
        // A state that is left is for the DEL that follows a failed ADD.
        node.delegate("").run("DEL", &node.config()).unwrap();
        assert_eq!(node.states(), [""; 0], "{body}");
    }
}

#[test]
fn a_missing_delegate_changes_nothing() {
    let node = Node::new(V4);
    let error = node.run("ADD", &node.config()).unwrap_err();
    assert_eq!(error["code"], 4);
    assert!(
        error.to_string().contains("failed to find plugin") && error.to_string().contains("/bin"),
        "{error}"
    );
    for kind in ["../fake", "", ".", "/bin/sh"] {
        let mut config = node.config();
        config["delegate"]["type"] = kind.into();
        assert_eq!(node.run("ADD", &config).unwrap_err()["code"], 7, "{kind:?}");
    }
    assert_eq!(node.states(), [""; 0]);
}

#[test]
fn a_daemon_that_is_not_ready_is_worth_another_try() {
    let mut config = Node::new(V4).config();
    config["cniVersion"] = "1.1.0".into();
    for (env, words) in [
        ("", "FLANNEL_SUBNET"),
        (
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_M",
            "FLANNEL_MTU, FLANNEL_IPMASQ",
        ),
        ("FLANNEL_MTU\n=\n\u{0}\u{1}", "line 1, FLANNEL_MTU"),
        (&V4.replace("7.1/24", "7.1/99"), "FLANNEL_SUBNET: \"10.244.7.1/99\", expected an IPv4 CIDR"),
        (&DUAL.replace("7.1/24", "7.1/99"), "FLANNEL_SUBNET: \"10.244.7.1/99\", expected an IPv4 CIDR"),
        (&DUAL.replace("7.1/24", "7.1/24,10.244.8.1/24"), "FLANNEL_SUBNET has 2 subnets, expected one"),
        (&V4.replace("0.0/16", "0.0/16,10.245.0.0/33"), "FLANNEL_NETWORK: \"10.245.0.0/33\""),
    ] {
        let node = Node::new(env);
        config["subnetFile"] = node.file("subnet.env").to_str().unwrap().into();
        for (verb, code) in [("ADD", 11), ("STATUS", 50)] {
            let error = node.delegate(GOOD).run(verb, &config).unwrap_err();
            assert_eq!(error["code"], code, "{error}");
            assert!(error["msg"].as_str().unwrap().contains(words), "{error}");
        }
        assert_eq!((node.calls().len(), node.states().len()), (0, 0));
    }
}

#[test]
fn routes_that_cannot_be_read_are_an_error_before_anything_is_done() {
    let node = Node::new(V4);
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    node.delegate(GOOD).run("ADD", &config).unwrap();
    for routes in
        [json!(["10.9.0.0/16"]), json!({"dst": "10.9.0.0/16"}), json!([{"dst": "10.9.0.0/16", "mtu": "x"}])]
    {
        config["ipam"] = json!({"routes": routes});
        for (verb, code) in [("ADD", 7), ("STATUS", 50)] {
            let error = node.run(verb, &config).unwrap_err();
            assert_eq!(error["code"], code, "{error}");
            assert!(error.to_string().contains("failed to read IPAM routes"), "{error}");
        }
    }
    assert_eq!((node.calls().len(), node.states()), (1, vec!["pod-1".to_owned()]));
    // A deletion needs none.
    node.run("DEL", &config).unwrap();
    assert_eq!(node.states(), [""; 0]);
}

#[test]
fn check_hands_on_the_state_with_the_result_before() {
    let node = Node::new(V4);
    let mut config = node.config();
    assert_eq!(node.delegate(GOOD).run("CHECK", &config).unwrap_err()["code"], 3, "never added");
    node.run("ADD", &config).unwrap();
    config["prevResult"] = json!({
        "ips": [{"address": "10.244.7.2/24", "gateway": "10.244.7.1"}, {"address": "fd00::2/64", "gateway": "fd00::1"}],
        "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00::/48"}, {"dst": "0.0.0.0/0", "gw": "10.244.7.9"}]
    });
    node.run("CHECK", &config).unwrap();
    let (call, handed) = node.calls().pop().unwrap();
    assert_eq!(call, "CHECK pod-1 eth0");
    assert_eq!(handed["prevResult"]["ips"], config["prevResult"]["ips"]);
    assert_eq!(
        handed["prevResult"]["routes"],
        json!([{"dst": "10.244.0.0/16", "gw": "10.244.7.1"}, {"dst": "fd00::/48", "gw": "fd00::1"}, {"dst": "0.0.0.0/0", "gw": "10.244.7.9"}])
    );
    for odd in
        [json!(7), json!([]), json!({"ips": 7, "routes": {}}), json!({"ips": [7], "routes": [7, {"dst": 7}]})]
    {
        config["prevResult"] = odd;
        node.run("CHECK", &config).unwrap();
    }
    assert_eq!(handed["ipam"]["ranges"][0][0]["subnet"], "10.244.7.0/24");
    node.delegate(r#"echo '{"code": 999, "msg": "moved"}'; exit 1"#);
    assert_eq!(node.run("CHECK", &config).unwrap_err()["msg"], "moved");
}

#[test]
fn status_asks_the_delegate_and_forgives_one_that_is_too_old() {
    let node = Node::new(V4);
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    assert_eq!(node.run("STATUS", &config).unwrap_err()["code"], 50, "no delegate");
    node.delegate("").run("STATUS", &config).unwrap();
    node.delegate(r#"echo '{"code": 4, "msg": "unknown CNI_COMMAND: STATUS"}'; exit 1"#);
    node.run("STATUS", &config).unwrap();
    node.delegate(r#"echo '{"code": 51, "msg": "limited"}'; exit 1"#);
    assert_eq!(node.run("STATUS", &config).unwrap_err()["code"], 51);
}

#[test]
fn gc_takes_what_belongs_to_no_pod_and_nothing_else() {
    let node = Node::new(V4);
    node.delegate(GOOD);
    let add = |container: &str, interface: &str, name: &str| {
        let mut config = node.config();
        config["name"] = name.into();
        answer(node.command("ADD", container).env("CNI_IFNAME", interface), config.to_string().as_bytes())
            .unwrap();
    };
    for (container, interface, name) in [
        ("keep", "eth0", "cbr0"),
        ("keep", "net1", "cbr0"),
        ("gone", "eth0", "cbr0"),
        ("gone", "net1", "cbr0"),
        ("other", "eth0", "another-network"),
    ] {
        add(container, interface, name);
    }
    fs::write(node.file("state/broken"), "{").unwrap();
    fs::write(node.file("state/README"), "not a state").unwrap();
    fs::write(node.file("state/.dead.lock"), "").unwrap();
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    assert_eq!(node.run("GC", &config).unwrap_err()["code"], 7, "without a list nothing is deleted");
    assert_eq!(node.states().len(), 8);
    let valid = json!([{"containerID": "keep", "ifname": "eth0"}, {"containerID": "keep", "ifname": "net1"}]);
    config["cni.dev/valid-attachments"] = valid.clone();
    fs::remove_file(node.file("calls")).unwrap();

    // A failure for one interface does not stop the others.
    node.delegate(
        r#"[ $CNI_IFNAME = net1 ] && { echo '{"code": 5, "msg": "not this one"}'; exit 1; }; exit 0"#,
    );
    assert_eq!(node.run("GC", &config).unwrap_err()["msg"], "not this one");
    assert_eq!(node.states(), ["README", "broken", "gone@net1", "keep", "keep@net1", "other"]);
    node.delegate("").run("GC", &config).unwrap();
    assert_eq!(
        node.states(),
        ["README", "broken", "keep", "keep@net1", "other"],
        "only a DEL knows the network of the broken state"
    );
    let calls = node.calls();
    let verbs: Vec<&str> = calls.iter().map(|(call, _)| call.as_str()).collect();
    assert_eq!(verbs, ["DEL gone eth0", "DEL gone net1", "GC pod-1 eth0", "DEL gone net1", "GC pod-1 eth0"]);
    assert_eq!(calls[2].1["cni.dev/valid-attachments"], valid);
    // A delegate that is older than the verb is no reason to fail.
    node.delegate(r#"echo '{"code": 4, "msg": "unknown CNI_COMMAND: GC"}'; exit 1"#);
    node.run("GC", &config).unwrap();
    // Debian 12's plugins complain about the missing container first.
    for answer in
        [r#"{"code": 3, "msg": "missing containerID"}"#, r#"{"code": 4, "msg": "interface name is empty"}"#]
    {
        node.delegate(&format!("echo '{answer}'; exit 1"));
        node.run("GC", &config).unwrap();
        node.run("STATUS", &config).unwrap();
    }
}

#[test]
fn a_state_of_flannels_plugin_or_a_broken_one_is_taken_away_as_well() {
    let node = Node::new(V4);
    fs::create_dir(node.file("state")).unwrap();
    fs::write(node.file("state/pod-1"), r#"{"name":"cbr0","type":"fake","theirs":true}"#).unwrap();
    node.delegate("").run("DEL", &node.config()).unwrap();
    assert_eq!(node.calls()[0].1["theirs"], true);
    assert_eq!(node.states(), [""; 0]);

    fs::write(node.file("state/pod-1"), "{\"name\":\"cb").unwrap();
    node.run("DEL", &node.config()).unwrap();
    assert_eq!(node.calls()[1].1["ipam"]["ranges"][0][0]["subnet"], "10.244.7.0/24", "as for an ADD");
    // The remains of a file that was not synced before a crash.
    fs::write(node.file("state/pod-1"), [0; 300]).unwrap();
    node.run("DEL", &node.config()).unwrap();
    assert_eq!((node.calls().len(), node.states().len()), (3, 0));
    fs::write(node.file("state/pod-1"), "").unwrap();
    fs::remove_file(node.file("subnet.env")).unwrap();
    assert_eq!(node.run("DEL", &node.config()).unwrap_err()["code"], 11);
    assert_eq!(node.states(), ["pod-1"], "the interface may still exist");
}

/// A pod is in two networks: `net1` has no state, and `eth0`'s state is another network's.
#[test]
fn the_state_of_another_network_is_not_used() {
    let node = Node::new(V4);
    node.delegate(GOOD).run("ADD", &node.config()).unwrap();
    let mut other = node.config();
    other["name"] = "another".into();
    let second = |verb: &str, path: &str| {
        let mut command = node.command(verb, "pod-1");
        answer(command.env("CNI_IFNAME", "net1").env("CNI_PATH", path), other.to_string().as_bytes())
    };
    let bin = node.file("bin").display().to_string();
    assert_eq!(second("DEL", &bin), Ok(String::new()));
    assert_eq!(second("CHECK", &bin).unwrap_err()["code"], 3);
    // An ADD that cannot start leaves nothing, not even a copy of the first interface's state.
    other["name"] = "cbr0".into();
    let mut command = node.command("ADD", "pod-1");
    command.env("CNI_IFNAME", "net1").env("CNI_PATH", "/nowhere");
    assert_eq!(answer(&mut command, other.to_string().as_bytes()).unwrap_err()["code"], 4);
    assert_eq!((node.calls().len(), node.states()), (1, vec!["pod-1".to_owned()]));
}

#[test]
fn adds_of_the_same_interface_are_serialised() {
    let node = Node::new(V4);
    let body = format!(
        "mkdir {0}/inside || exit 9\nsleep 0.1\nrmdir {0}/inside\n{GOOD}",
        node.place.path().display()
    );
    node.delegate(&body);
    std::thread::scope(|scope| {
        let adds: Vec<_> = (0..8).map(|_| scope.spawn(|| node.run("ADD", &node.config()))).collect();
        for add in adds {
            add.join().unwrap().unwrap();
        }
    });
    assert_eq!((node.calls().len(), node.states()), (8, vec!["pod-1".to_owned()]));
}

/// The runtime names no namespace in a GC, so the plugin uses the recorded one if the path still names it.
#[test]
fn gc_names_the_namespace_if_it_still_exists() {
    let node = Node::new(V4);
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([]);
    let add = |container: &str| {
        let netns = node.file(container);
        fs::write(&netns, "").unwrap();
        answer(node.command("ADD", container).env("CNI_NETNS", &netns), config.to_string().as_bytes())
            .unwrap();
        netns
    };
    node.delegate(GOOD);
    let (living, replaced, gone) = (add("living"), add("replaced"), add("ran"));
    assert_eq!(
        node.states(),
        [".living.netns", ".ran.netns", ".replaced.netns", "living", "ran", "replaced"]
    );
    fs::write(node.file("new"), "").unwrap();
    fs::rename(node.file("new"), &replaced).unwrap();
    fs::remove_file(&gone).unwrap();
    let log = node.file("log");
    node.delegate(&format!("echo \"$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS\" >> {}", log.display()));
    node.run("GC", &config).unwrap();
    let log = fs::read_to_string(log).unwrap();
    let deletions: Vec<&str> = log.lines().filter(|line| line.starts_with("DEL")).collect();
    assert_eq!(deletions, [format!("DEL living {}", living.display()).as_str(), "DEL ran ", "DEL replaced "]);
    assert_eq!(node.states(), [""; 0]);
}

/// Without pods CRI-O passes null, as Go writes an empty list.
#[test]
fn a_list_of_valid_attachments_that_is_null_is_empty() {
    let node = Node::new(V4);
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    node.delegate(GOOD).run("ADD", &config).unwrap();
    config["cni.dev/valid-attachments"] = Value::Null;
    node.run("GC", &config).unwrap();
    let calls = node.calls();
    let verbs: Vec<&str> = calls.iter().map(|(call, _)| call.as_str()).collect();
    assert_eq!((verbs, node.states().len()), (vec!["ADD pod-1 eth0", "DEL pod-1 eth0", "GC pod-1 eth0"], 0));
    assert_eq!(calls[2].1["cni.dev/valid-attachments"], json!([]));
}

/// The delegate of a killed ADD is still working when the runtime cleans up.
#[test]
fn del_waits_for_the_delegate_of_a_plugin_that_was_killed() {
    let node = Node::new(V4);
    let (inside, go) = (node.file("inside"), node.file("go"));
    // The output comes last, because nobody reads it after the plugin was killed.
    node.delegate(&format!(
        "[ $CNI_COMMAND = DEL ] || {{ touch {}; until [ -e {} ]; do sleep 0.01; done; }}\n\
         echo end-$CNI_COMMAND >> {}\n{GOOD}",
        inside.display(),
        go.display(),
        node.file("ends").display()
    ));
    let mut command = node.command("ADD", "pod-1");
    let mut add = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    add.stdin.take().unwrap().write_all(node.config().to_string().as_bytes()).unwrap();
    while !inside.exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    add.kill().unwrap();
    add.wait().unwrap();
    std::thread::scope(|scope| {
        let del = scope.spawn(|| node.run("DEL", &node.config()));
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!del.is_finished(), "the ADD has not finished");
        fs::write(&go, "").unwrap();
        del.join().unwrap().unwrap();
    });
    assert_eq!(fs::read_to_string(node.file("ends")).unwrap(), "end-ADD\nend-DEL\n");
    assert_eq!(node.states(), [""; 0]);
}

#[test]
fn the_state_of_a_living_pod_is_kept() {
    let node = Node::new(V4);
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    node.delegate(GOOD).run("ADD", &config).unwrap();
    // A second ADD that cannot even start.
    let nowhere =
        answer(node.command("ADD", "pod-1").env("CNI_PATH", "/nowhere"), config.to_string().as_bytes());
    assert_eq!(nowhere.unwrap_err()["code"], 4);
    assert_eq!(node.states(), ["pod-1"]);
    // flannel's plugin would have used the same file name for net1.
    config["cni.dev/valid-attachments"] = json!([{"containerID": "pod-1", "ifname": "net1"}]);
    node.run("GC", &config).unwrap();
    assert_eq!(node.states(), ["pod-1"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let node = Node::new(V4);
    let mut config = node.config();
    config["dataDir"] = "/proc/nowhere".into();
    let error = node.delegate(GOOD).run("ADD", &config).unwrap_err();
    assert_eq!(error["code"], 5);
    assert!(error["msg"].as_str().unwrap().contains("/proc/nowhere"), "{error}");
    // Not a directory.
    config["dataDir"] = "/dev/full".into();
    assert_eq!(node.run("ADD", &config).unwrap_err()["code"], 5);
    assert_eq!(node.calls().len(), 0, "an interface needs a state");
}

#[test]
fn invalid_requests_have_their_error_codes() {
    let node = Node::new(V4);
    let config = node.config().to_string();
    for (stdin, code) in
        [("", 6), ("{", 6), ("null", 6), ("\u{feff}{}", 6), (r#"{"name":"x","cniVersion":"9"}"#, 1)]
    {
        assert_eq!(
            answer(&mut node.command("ADD", "pod-1"), stdin.as_bytes()).unwrap_err()["code"],
            code,
            "{stdin}"
        );
    }
    assert_eq!(answer(&mut node.command("ADD", "pod-1"), &[0xff, 0xfe]).unwrap_err()["code"], 6);
    assert_eq!(answer(&mut node.command("ADD", "pod-1"), &vec![b' '; 2 << 20]).unwrap_err()["code"], 6);
    for id in ["../../etc/passwd", "a/b", "..", ""] {
        for verb in ["ADD", "DEL", "CHECK"] {
            assert_eq!(
                answer(&mut node.command(verb, id), config.as_bytes()).unwrap_err()["code"],
                4,
                "{verb} {id}"
            );
        }
    }
    assert_eq!(node.run("EXPLODE", &node.config()).unwrap_err()["code"], 4);
}

#[test]
fn version_lists_the_versions_and_without_a_verb_the_plugin_describes_itself() {
    let node = Node::new(V4);
    let versions: Value =
        serde_json::from_str(&node.run("VERSION", &json!({"cniVersion": "0.4.0"})).unwrap()).unwrap();
    assert_eq!(
        versions["supportedVersions"],
        json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    );
    let output = run(node.command("", "").env_remove("CNI_COMMAND"), b"");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("CNI protocol versions supported"));
}

fn names_in(place: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(place) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
