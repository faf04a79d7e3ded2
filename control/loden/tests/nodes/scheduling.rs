//! What the workers ask of the scheduler, and what becomes of it.

use std::fs;
use std::process::Command;

use lab::Wiring;

use crate::common::{self, Cluster, Daemon, VXLAN};

/// SCHED_OTHER and SCHED_RR (linux/sched.h).
const OTHER: i64 = 0;
const ROUND_ROBIN: i64 = 2;

#[test]
fn workers_are_preferred_and_nothing_else_of_the_daemon_is() {
    if !common::ready(&["setpriv"]) {
        return;
    }
    let cluster = Cluster::build("sched", 1, Wiring::Switch, VXLAN);
    let mut first = None;
    for (options, bounds, expected) in [
        (&[][..], "", (OTHER, -5)),
        (&["--realtime"][..], "", (ROUND_ROBIN, 0)),
        (&[][..], "-sys_nice", (OTHER, 0)),
        (&["--realtime"][..], "-sys_nice", (OTHER, 0)),
    ] {
        let usual = cluster.command(1);
        let mut command = Command::new("setpriv");
        // An inherited limit could permit what the capability does not.
        command.args([&format!("--bounding-set={}", if bounds.is_empty() { "+all" } else { bounds }), "--"]);
        command.arg(usual.get_program()).args(usual.get_args()).args(["--workers", "2"]).args(options);
        let mut daemon = cluster.spawn(1, &mut command);
        daemon.await_ready();
        let threads = threads(&daemon);
        let workers: Vec<_> = threads.iter().filter(|(name, _)| name.starts_with("loden-w")).collect();
        assert_eq!(workers.len(), 2, "{threads:?}");
        assert!(workers.iter().all(|(_, got)| *got == expected), "{options:?} {bounds}: {threads:?}");
        let others = threads.iter().filter(|(name, _)| !name.starts_with("loden-w"));
        let usual = *first.get_or_insert_with(|| threads[0].1);
        assert!(others.clone().all(|(_, got)| *got == usual), "{threads:?}");

        let place = cluster.place.path().display();
        let status = cluster.shell(1, &format!("{} status --run-dir {place}", env!("CARGO_BIN_EXE_loden")));
        let line = status.lines().find(|line| line.starts_with("scheduling")).expect("a line");
        let granted = if expected.0 == ROUND_ROBIN { "realtime" } else { &format!("nice {}", expected.1) };
        assert!(line.contains(granted), "{status}");
        let log = daemon.log_text();
        let refusals = log.matches("nice -5 was refused").count();
        assert_eq!(refusals, usize::from(!bounds.is_empty()), "logged once: {log}");
        assert!(!daemon.logged("WARN"), "{log}");
        daemon.finish();
    }
}

/// Returns each thread's name, and its policy and nice value.
fn threads(daemon: &Daemon) -> Vec<(String, (i64, i64))> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.process.id())).expect("threads");
    let read = |task: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        // proc_pid_stat(5): the name is in parentheses; nice is field 19 and the policy field 41.
        let (begin, end) = text.rsplit_once(')')?;
        let fields: Vec<&str> = end.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse().ok();
        Some((begin.split_once('(')?.1.to_owned(), (number(41)?, number(19)?)))
    };
    tasks.filter_map(read).collect()
}
