//! `loden demo` as its user sees it: exit codes, JSON, and nothing left behind whatever happens.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lab::{Namespace, Needs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Far more than a busy machine needs: only a hang reaches it.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn every_pair_is_reached_over_udp() {
    if !Needs::hosts().are_met() {
        return;
    }
    reach_all(&["--backend", "udp"], "udp", &["IPv4"]);
}

#[test]
fn every_pair_is_reached_over_vxlan_in_both_families() {
    if !Needs::hosts().are_met() {
        return;
    }
    reach_all(&["--ipv6"], "vxlan", &["IPv4", "IPv6"]);
}

#[test]
fn every_pair_is_reached_over_ipip() {
    if !Needs::hosts().are_met() {
        return;
    }
    let report = reach_all(&["--backend", "ipip"], "ipip", &["IPv4"]);
    assert_eq!(report["hosts"][0]["mtu"], 1480);
}

#[test]
fn every_pair_is_reached_over_wireguard_in_both_families() {
    if !Needs::hosts().are_met() {
        return;
    }
    let report = reach_all(&["--backend", "wireguard", "--ipv6"], "wireguard", &["IPv4", "IPv6"]);
    assert_eq!(report["hosts"][0]["mtu"], 1420);
}

#[test]
fn every_pair_is_reached_over_plain_routes() {
    if !Needs::hosts().are_met() {
        return;
    }
    let report = reach_all(&["--backend", "host-gw", "--ipv6"], "host-gw", &["IPv4", "IPv6"]);
    assert_eq!(report["hosts"][0]["mtu"], 1500);
}

#[test]
fn the_table_is_on_stdout_and_the_progress_is_not() {
    if !Needs::hosts().are_met() {
        return;
    }
    let demo = Demo::start(&["--seconds", "1"]);
    let (output, name) = demo.ends();
    let [stdout, stderr] = texts(&output);
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.starts_with('┌') && stdout.contains("ping pod 2 → pod 1"), "{stdout}");
    assert!(stderr.contains("starting loden run on 2 hosts"), "{stderr}");
    assert_nothing_left(&name);
}

#[test]
fn signals_leave_nothing_behind() {
    if !Needs::hosts().are_met() {
        return;
    }
    for (signal, sign) in [(Signal::SIGINT, "pinging"), (Signal::SIGTERM, "starting loden run")] {
        let mut demo = Demo::start(&["--seconds", "600"]);
        demo.says(sign);
        demo.signal(signal);
        let (output, name) = demo.ends();
        assert_eq!(output.status.code(), Some(130));
        assert!(texts(&output)[1].contains("interrupted; everything removed"));
        assert_nothing_left(&name);
    }
}

#[test]
fn a_daemon_that_ends_is_quoted() {
    if !Needs::hosts().are_met() {
        return;
    }
    let program = script("echo 'cannot open the tunnel: no' >&2; exit 1");
    let demo = Demo::start(&["--program", program.to_str().unwrap()]);
    let (output, name) = demo.ends();
    fs::remove_file(program).unwrap();
    let [stdout, stderr] = texts(&output);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("host 1: loden run ended, exit status: 1"), "{stderr}");
    assert!(stderr.contains("cannot open the tunnel: no"), "{stderr}");
    assert_nothing_left(&name);
}

#[test]
fn pods_without_a_tunnel_fail_and_are_named() {
    if !Needs::hosts().are_met() {
        return;
    }
    // Reports success and moves nothing.
    let program = script(
        "echo 'a daemon that does nothing' >&2; last=\n\
         for word in \"$@\"; do [ \"$last\" = --subnet-file ] && file=$word; last=$word; done\n\
         number=${file%.subnet.env}; number=${number##*host}\n\
         echo FLANNEL_NETWORK=10.244.0.0/16 > $file.new\n\
         echo FLANNEL_SUBNET=10.244.$number.1/24 >> $file.new\n\
         echo FLANNEL_MTU=1450 >> $file.new\n\
         mv $file.new $file; exec sleep 1000",
    );
    let demo = Demo::start(&["--json", "--program", program.to_str().unwrap()]);
    let (output, name) = demo.ends();
    fs::remove_file(program).unwrap();
    let [stdout, stderr] = texts(&output);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["ok"], &report["figures"]), (&Value::Bool(false), &Value::Array(Vec::new())));
    let problem = report["pairs"][0]["problem"].as_str().unwrap();
    assert!(problem.contains("ping 10.244.2.2"), "{problem}");
    assert!(stderr.contains("host 1: loden run is running") && stderr.contains("does nothing"), "{stderr}");
    assert_nothing_left(&name);
}

#[test]
fn a_kept_demo_works_until_it_is_removed() {
    if !Needs::hosts().are_met() {
        return;
    }
    let demo = Demo::start(&["--keep", "--json", "--seconds", "1"]);
    let (output, name) = demo.ends();
    let [stdout, stderr] = texts(&output);
    let removed = scopeguard(&name);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["kept"]["name"], name.as_str());
    let pod = Namespace::open(&format!("{name}-p1")).unwrap();
    let address = report["pairs"][0]["address"].as_str().unwrap().parse().unwrap();
    pod.ping(address, 64, Duration::from_secs(5)).unwrap();
    drop((pod, removed));
    assert_nothing_left(&name);
    let again = remove(&name);
    assert_eq!(again.status.code(), Some(1));
    assert!(texts(&again)[1].contains("cannot read"));
}

#[test]
fn a_demo_that_was_killed_can_be_removed() {
    if !Needs::hosts().are_met() {
        return;
    }
    let mut demo = Demo::start(&["--seconds", "600"]);
    demo.says("pinging");
    demo.signal(Signal::SIGKILL);
    let (_, name) = demo.ends();
    assert_eq!(Namespace::names(&format!("{name}-")).len(), 5);
    let removal = remove(&name);
    assert!(removal.status.success(), "{}", texts(&removal)[1]);
    assert_nothing_left(&name);
}

#[test]
fn udp_with_ipv6_is_refused() {
    let demo = Demo::start(&["--backend", "udp", "--ipv6"]);
    let (output, _) = demo.ends();
    assert_eq!(output.status.code(), Some(1));
    let stderr = &texts(&output)[1];
    assert!(stderr.contains("--ipv6 needs --backend vxlan") && stderr.lines().count() == 1, "{stderr}");
}

/// A running demo, stopped when dropped. Its stderr goes to a file, so that it never waits for a reader.
struct Demo {
    child: Option<Child>,
    stderr: PathBuf,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let (file, stderr) = tempfile::NamedTempFile::new().unwrap().keep().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_loden"))
            .arg("demo")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap();
        Demo { child: Some(child), stderr }
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(id as i32), signal).unwrap();
    }

    /// Waits until stderr has `text`.
    fn says(&mut self, text: &str) {
        let begin = Instant::now();
        while !fs::read_to_string(&self.stderr).unwrap().contains(text) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && begin.elapsed() < LIMIT, "{ended:?}, never said {text}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the demo to exit and returns its output and its name.
    fn ends(mut self) -> (Output, String) {
        let begin = Instant::now();
        while self.child.as_mut().unwrap().try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < LIMIT, "{}", fs::read_to_string(&self.stderr).unwrap());
            thread::sleep(Duration::from_millis(5));
        }
        let child = self.child.take().unwrap();
        let name = format!("loden-demo-{}", child.id());
        let mut output = child.wait_with_output().unwrap();
        output.stderr = fs::read(&self.stderr).unwrap();
        (output, name)
    }

    /// Waits for a successful exit that leaves nothing behind and returns the report.
    fn succeeds(self) -> Value {
        let (output, name) = self.ends();
        let [stdout, stderr] = texts(&output);
        assert!(output.status.success(), "{stdout}\n{stderr}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(report["ok"], true);
        assert_nothing_left(&name);
        report
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            let _ = child.wait();
        }
        let _ = fs::remove_file(&self.stderr);
    }
}

/// Removes the demo when dropped.
fn scopeguard(name: &str) -> impl Drop {
    struct Removal(String);
    impl Drop for Removal {
        fn drop(&mut self) {
            let _ = remove(&self.0);
        }
    }
    Removal(name.to_owned())
}

fn remove(name: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loden")).args(["demo", "--remove", name]).output().unwrap()
}

/// Checks that no namespace, file or process has the demo's name.
fn assert_nothing_left(name: &str) {
    assert_eq!(Namespace::names(&format!("{name}-")), Vec::<String>::new());
    assert!(!std::env::temp_dir().join(name).exists());
    // Every daemon's command line names a file in the demo's directory.
    let mark = format!("/{name}/");
    let left: Vec<String> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&mark))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

/// Runs a demo of three hosts, checks that all reach each other in these families, and returns its report.
fn reach_all(arguments: &[&str], backend: &str, families: &[&str]) -> Value {
    let all = [arguments, &["--hosts", "3", "--seconds", "1", "--json"]].concat();
    let report = Demo::start(&all).succeeds();
    assert_eq!(report["backend"], backend);
    assert_eq!(report["pairs"].as_array().unwrap().len(), 6 * families.len());
    assert_eq!(figures(&report), families);
    report
}

fn figures(report: &Value) -> Vec<&str> {
    let figures = report["figures"].as_array().unwrap();
    for figure in figures {
        assert!(figure["tcp"]["bytes"].as_u64().unwrap() > 0);
        assert!(figure["udp"]["delivered"].as_u64().unwrap() > 0);
        assert!(figure["rtt"]["round_trips"].as_u64().unwrap() > 0);
    }
    figures.iter().map(|figure| figure["family"].as_str().unwrap()).collect()
}

fn texts(output: &Output) -> [String; 2] {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// Writes a shell script to a new file, through another process: a child of a parallel test could inherit a
/// file that this process has open for writing, and the script could then not be executed (ETXTBSY).
fn script(text: &str) -> PathBuf {
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path().keep().unwrap();
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\"; chmod 755 \"$2\"";
    let status = Command::new("sh").args(["-c", write, "sh", text]).arg(&path).status().unwrap();
    assert!(status.success());
    path
}
