//! A host on which no more threads can be made: nothing panics, and nothing is gone for good.

use std::process::{Command, Stdio};

use lab::{Process, Wiring};
use nix::sys::signal::Signal;

use super::etcd::ETCD_PATIENCE;
use crate::common::pids::PidsGroup;
use crate::common::{self, Cluster, VXLAN, await_until, replace};

const LODEN: &str = env!("CARGO_BIN_EXE_loden");
const ENDPOINT: &str = "http://127.0.0.1:2379";
const NAMED: &str = "http://localhost:2379";

/// Resolving an endpoint's name takes a thread. The first endpoint has an address, so that no thread of an
/// earlier name is left.
#[test]
fn the_watch_outlives_a_resolver_without_threads() {
    let Some((cluster, group)) = host("thr-dns", &["etcd", "etcdctl"]) else { return };
    let etcd = start_etcd(&cluster);
    etcdctl(&cluster, &format!("put /coreos.com/network/config '{VXLAN}'"));
    let mut daemon = cluster.spawn(1, &mut cluster.etcd_command(1, &format!("{ENDPOINT},{NAMED}")));
    daemon.await_ready();
    group.admit(daemon.process.id());
    group.close();
    drop(etcd);
    await_until("the watch's complaint", || daemon.logged("watching leases: etcd"));
    await_until("the resolver's complaint", || daemon.logged("Resource temporarily unavailable"));
    let _etcd = start_etcd(&cluster);
    group.open();
    await_until("the watch", || daemon.logged("lease store: readable again"));
    assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0), "{}", daemon.log_text());
    assert!(!daemon.logged("panicked"), "{}", daemon.log_text());
}

#[test]
fn a_daemon_stops_in_order_without_another_thread() {
    let Some((cluster, group)) = host("thr-stop", &[]) else { return };
    let mut daemon = cluster.start(1, &[]);
    group.admit(daemon.process.id());
    group.close();
    assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0), "{}", daemon.log_text());
    assert!(!daemon.logged("panicked") && daemon.logged("stopped;"), "{}", daemon.log_text());
}

/// Whatever the number of threads at which it ends: the start fails with a sentence, or works.
#[test]
fn a_start_with_any_number_of_threads_works_or_says_why_not() {
    let Some((cluster, group)) = host("thr-start", &["sh"]) else { return };
    let mut refused = 0;
    for threads in 1..8 {
        group.limit(threads);
        let given = cluster.command(1);
        let mut command = confined(&group, LODEN);
        command.args(given.get_args());
        replace(&mut command, "--store", &format!("sqlite:{}", cluster.file("starts.db").display()));
        command.args(["--workers", "2"]);
        let mut daemon = cluster.spawn(1, &mut command);
        await_until("its start or end", || daemon.logged("ready lease=") || !daemon.is_running());
        let status = daemon.end(Signal::SIGTERM);
        let text = daemon.log_text();
        assert!(!text.contains("panicked"), "{threads} threads: {text}");
        match status.code() {
            Some(0) => assert!(text.contains("ready lease="), "{threads} threads: {text}"),
            Some(1) => {
                assert!(text.lines().last().is_some_and(|line| line.starts_with("loden: ")), "{text}");
                refused += 1;
            }
            other => panic!("{threads} threads: code {other:?}: {text}"),
        }
    }
    assert!(refused > 0, "the limit has worked");
}

#[test]
fn the_doctor_needs_no_thread() {
    let Some((cluster, group)) = host("thr-doc", &["sh"]) else { return };
    group.limit(1);
    let mut command = confined(&group, LODEN);
    let output = cluster.host(1).namespace().output(command.arg("doctor")).expect("the doctor");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panicked"), "{errors}");
    assert!(matches!(output.status.code(), Some(0 | 1)), "{:?} {errors}", output.status);
}

/// As the first process of a container, which inherits what others leave.
#[test]
fn inherited_processes_are_reaped_and_ours_are_still_waited_for() {
    if !common::needs(&["unshare", "nsenter", "iptables"]).are_met() {
        return;
    }
    let cluster = Cluster::build("thr-one", 1, Wiring::Switch, VXLAN);
    let given = cluster.command(1);
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", LODEN]).args(given.get_args());
    command.args(["--iptables-resync", "1"]);
    let mut daemon = cluster.spawn(1, &mut command);
    daemon.await_ready();
    let children = |parent: u32| -> Vec<u32> {
        let path = format!("/proc/{parent}/task/{parent}/children");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().filter_map(|id| id.parse().ok()).collect()
    };
    let first = children(daemon.process.id())[0];
    let name = |id: u32| std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
    let orphans = || children(first).iter().filter(|id| name(**id).trim() == "sleep").count();
    cluster.shell(1, &format!("nsenter --target {first} --pid sh -c 'for i in 1 2 3; do sleep 1 & done'"));
    await_until("the orphans", || orphans() == 3);
    await_until("their end", || orphans() == 0);
    // The daemon still learns how its own programs end.
    cluster.shell(1, "iptables -F FLANNEL-FWD");
    await_until("the rules", || cluster.shell(1, "iptables -S FLANNEL-FWD").contains("ACCEPT"));
    assert!(!daemon.logged("cannot apply the traffic rules"), "{}", daemon.log_text());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first as i32), Signal::SIGTERM).expect("a signal");
    assert_eq!(daemon.await_end().code(), Some(0), "{}", daemon.log_text());
}

fn host(name: &str, programs: &[&str]) -> Option<(Cluster, PidsGroup)> {
    let group = PidsGroup::create(name);
    let needs = common::needs(programs).and("a control group for pids", group.is_some());
    needs.are_met().then(|| (Cluster::build(name, 1, Wiring::Switch, VXLAN), group.expect("a group")))
}

/// Starts a program that enters the group first.
fn confined(group: &PidsGroup, program: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.door()).arg(program);
    command
}

fn start_etcd(cluster: &Cluster) -> Process {
    let mut command = Command::new("etcd");
    command.args(["--listen-client-urls", ENDPOINT, "--advertise-client-urls", ENDPOINT]);
    command.args(["--log-level", "error", "--data-dir"]).arg(cluster.file("etcd")).stdout(Stdio::null());
    let process = Process::spawn(cluster.host(1).namespace(), &mut command).expect("etcd");
    let health = format!(
        "etcdctl {ETCD_PATIENCE} --endpoints {ENDPOINT} endpoint health >/dev/null 2>&1 && echo up || true"
    );
    await_until("etcd", || cluster.shell(1, &health) == "up");
    process
}

fn etcdctl(cluster: &Cluster, line: &str) {
    cluster.shell(1, &format!("ETCDCTL_API=3 etcdctl {ETCD_PATIENCE} --endpoints {ENDPOINT} {line}"));
}
