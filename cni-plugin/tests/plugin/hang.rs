//! Delegates that hang.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cni_plugin::reply::Failure;
use cni_plugin::request::{Environment, Request};
use cni_plugin::verbs::{self, Timeouts};
use serde_json::{Value, json};

use crate::{GOOD, Node, V4};

/// A delegate hangs: itself, through a child that keeps its output open, or through one that left its process
/// group.
#[test]
fn a_delegate_that_hangs_is_killed_with_its_children_and_its_work_undone() {
    for (body, survivors) in [
        ("sleep 1000 & wait", 0),
        (format!("sleep 1000 &\n{GOOD}").as_str(), 0),
        ("exec >&-; sleep 1000 & wait", 0),
        ("trap '' TERM INT HUP; while true; do sleep 1000; done", 0),
        ("setsid sleep 1000 & wait", 1),
    ] {
        let node = Node::new(V4);
        // The working directory identifies the delegate's processes.
        let place = node.file("here");
        fs::create_dir(&place).unwrap();
        node.delegate(&format!("[ $CNI_COMMAND = ADD ] || exit 0\ncd {}\n{body}", place.display()));
        let timeouts = Timeouts { request: Duration::from_secs(2), ..Timeouts::default() };
        let failure = in_library(&node, "ADD", &node.config(), timeouts).unwrap_err();
        assert_eq!(failure.code, 11, "{body}: {failure:?}");
        assert!(
            failure.message.starts_with("the plugin fake timed out: ADD did not finish within"),
            "{failure:?}"
        );
        assert!(failure.details.contains("killed along with its children"), "{body}: {failure:?}");
        let calls: Vec<String> = node.calls().iter().map(|(call, _)| call[..3].to_owned()).collect();
        assert_eq!((calls, node.states()), (vec!["ADD".into(), "DEL".into()], vec![]), "{body}");
        // Killed processes may take a moment to exit.
        let end = Instant::now() + Duration::from_secs(20);
        while processes_in(&place).len() > survivors && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = processes_in(&place);
        assert_eq!(left.len(), survivors, "{body}");
        left.iter().for_each(|id| assert!(Command::new("kill").arg(id).status().unwrap().success()));
    }
}

/// Otherwise the next request would undo work that is not finished.
#[test]
fn children_of_a_killed_delegate_finish_before_the_lock_is_released() {
    let node = Node::new(V4);
    let done = node.file("done");
    node.delegate(&format!("(exec >&-; sleep 0.5; : > {}) &\nkill -9 $$", done.display()));
    let failure = in_library(&node, "ADD", &node.config(), Timeouts::default()).unwrap_err();
    assert!(failure.details.contains("signal: 9"), "{failure:?}");
    assert!(done.exists(), "the child has not finished");
    assert_eq!(node.states().len(), 1, "for the DEL that follows");
}

/// Otherwise a pod could not be deleted for as long as the daemon runs.
#[test]
fn a_daemon_that_a_delegate_started_does_not_keep_the_lock() {
    for daemon in ["setsid sleep 1000", "sleep 1000"] {
        for victim in ["plugin", "both"] {
            let node = Node::new(V4);
            let (here, go) = (node.file("here"), node.file("go"));
            fs::create_dir(&here).unwrap();
            node.delegate(&format!(
                "[ $CNI_COMMAND = ADD ] || exit 0\ncd {}\n{daemon} </dev/null >/dev/null 2>&1 &\n\
                 echo $$ > {here}.new; mv {here}.new {here}\nuntil [ -e {go} ]; do sleep 0.01; done\n{GOOD}",
                here.display(),
                here = node.file("delegate").display(),
                go = go.display(),
            ));
            let mut command = node.command("ADD", "pod-1");
            let mut add = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            add.stdin.take().unwrap().write_all(node.config().to_string().as_bytes()).unwrap();
            while !node.file("delegate").exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            add.kill().unwrap();
            add.wait().unwrap();
            if victim == "both" {
                let delegate = fs::read_to_string(node.file("delegate")).unwrap();
                assert!(Command::new("kill").args(["-9", delegate.trim()]).status().unwrap().success());
            }
            fs::write(&go, "").unwrap();
            assert_eq!(node.run("DEL", &node.config()), Ok(String::new()), "{daemon} {victim}");
            assert_eq!(node.states(), [""; 0], "{daemon} {victim}");
            let left = processes_in(&here);
            assert_eq!(left.len(), 1, "the daemon is nobody's business: {daemon} {victim}");
            left.iter().for_each(|id| assert!(Command::new("kill").arg(id).status().unwrap().success()));
        }
    }
}

#[test]
fn a_delegate_that_hangs_in_another_verb_is_an_error_and_the_state_stays() {
    let node = Node::new(V4);
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    node.delegate(GOOD).run("ADD", &config).unwrap();
    node.delegate("sleep 1000");
    for verb in ["DEL", "CHECK", "STATUS", "GC"] {
        config["cni.dev/valid-attachments"] = json!([{"containerID": "pod-1", "ifname": "eth0"}]);
        let failure = in_library(&node, verb, &config, SHORT).unwrap_err();
        assert_eq!((failure.code, failure.message.contains(verb)), (11, true), "{failure:?}");
    }
    config["cni.dev/valid-attachments"] = json!([]);
    let failure = in_library(&node, "GC", &config, SHORT).unwrap_err();
    assert!(failure.message.contains("DEL") && failure.details.contains("1 more"), "{failure:?}");
    // An ADD hangs, and then the DEL that undoes it.
    let failure = in_library(&node, "ADD", &config, SHORT).unwrap_err();
    assert!(
        failure.details.contains("undoing it failed as well: the plugin fake timed out: DEL"),
        "{failure:?}"
    );
    assert_eq!(node.states(), ["pod-1"]);
    node.delegate("").run("DEL", &config).unwrap();
    assert_eq!(node.states(), [""; 0]);
}

/// The request itself then shows that the delegate hangs, and is undone.
#[test]
fn a_delegate_that_hangs_at_version_is_asked_the_rest() {
    let node = Node::new(V4);
    let mut config = node.config();
    config["cniVersion"] = "1.1.0".into();
    node.program("[ $CNI_COMMAND = VERSION ] && sleep 1000", "", "[ $CNI_COMMAND = DEL ] || sleep 1000");
    for verb in ["STATUS", "ADD"] {
        let failure = in_library(&node, verb, &config, SHORT).unwrap_err();
        assert_eq!((failure.code, failure.message.contains(verb)), (11, true), "{failure:?}");
    }
    let calls: Vec<String> = node.calls().into_iter().map(|(call, _)| call).collect();
    assert_eq!(calls.last().map(String::as_str), Some("DEL pod-1 eth0"), "{calls:?}");
    assert_eq!(node.states(), [""; 0]);
}

/// Short for what hangs, and long enough for a delegate to start on a busy machine.
const SHORT: Timeouts = Timeouts { request: Duration::from_secs(1), cleanup: Duration::from_secs(2) };

/// Runs a request in this process, with other timeouts.
pub(crate) fn in_library(
    node: &Node,
    verb: &str,
    config: &Value,
    timeouts: Timeouts,
) -> Result<String, Failure> {
    let bin = node.file("bin").display().to_string();
    let environment = Environment::read(|name| {
        let value = match name {
            "CNI_CONTAINERID" => "pod-1",
            "CNI_NETNS" => "/run/netns/of-nobody",
            "CNI_IFNAME" => "eth0",
            "CNI_PATH" => &bin,
            _ => return None,
        };
        Some(value.to_owned())
    });
    verbs::run(&Request::check(verb, environment, &config.to_string()).unwrap(), timeouts)
}

/// Lists the processes whose working directory this is.
fn processes_in(place: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap());
    let here = entries.filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == place));
    here.map(|entry| entry.file_name().into_string().unwrap()).collect()
}
