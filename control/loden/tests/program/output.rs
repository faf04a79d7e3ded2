//! What is printed to a reader that has gone, and to a full disk: never a panic.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use lab::Wiring;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::{self, Cluster, VXLAN, await_until};

const LODEN: &str = env!("CARGO_BIN_EXE_loden");
const PANIC: i32 = 101;

/// Runs with a standard output that nobody reads.
fn unread(command: &mut Command) -> Output {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    command.stdout(writer).stderr(Stdio::piped()).output().expect("loden")
}

/// Runs with a standard output on a disk without space.
fn full(command: &mut Command) -> Output {
    let disk = File::options().write(true).open("/dev/full").expect("/dev/full");
    command.stdout(disk).stderr(Stdio::piped()).output().expect("loden")
}

/// Runs with a full disk for errors.
fn full_errors(command: &mut Command) -> Output {
    let disk = File::options().write(true).open("/dev/full").expect("/dev/full");
    command.stdout(Stdio::null()).stderr(disk).output().expect("loden")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks what a command does that would otherwise end with `code`.
fn check(line: &[&str], environment: &[(&str, &Path)], code: i32) {
    let command = || {
        let mut command = Command::new(LODEN);
        command.args(line).envs(environment.iter().copied());
        command
    };
    let plain = command().output().expect("loden");
    assert_eq!(plain.status.code(), Some(code), "{line:?}: {}", errors(&plain));
    let (gone, full) = (unread(&mut command()), full(&mut command()));
    assert_eq!(gone.status.code(), Some(code), "{line:?}: {}", errors(&gone));
    assert_eq!(errors(&gone), errors(&plain), "{line:?}: quiet");
    assert_eq!(full.status.code(), Some(1), "{line:?}: {}", errors(&full));
    assert!(errors(&full).contains("No space left on device"), "{line:?}: {}", errors(&full));
    assert_ne!(full_errors(&mut command()).status.code(), Some(PANIC), "{line:?}");
}

#[test]
fn every_command_that_prints_survives_its_reader_and_its_disk() {
    let place = tempfile::tempdir().expect("a directory");
    let file = |name: &str| place.path().join(name);
    let text = |path: &Path| path.to_str().expect("a path").to_owned();
    std::fs::create_dir_all(file("run")).expect("a directory");
    // As a daemon leaves it that was killed.
    let state =
        json!({ "version": 1, "devices": ["loden-none"], "subnet_file": { "path": "/none", "text": "" } });
    std::fs::write(file("run/a.json"), state.to_string()).expect("a state file");
    let run = text(&file("run"));
    check(&["cleanup", "--dry-run", "--run-dir", &run], &[], 0);
    check(&["cleanup", "--dry-run", "--run-dir", "/none"], &[], 0);
    check(&["version"], &[], 0);
    check(&["version", "--json"], &[], 0);
    check(&["completions", "bash"], &[], 0);
    check(&["--help"], &[], 0);
    check(&["--version"], &[], 0);
    check(&["run", "--help"], &[], 0);
    check(&["flanneld", "-h"], &[], 0);
    std::fs::write(file("plugin"), "#!/bin/sh\n").expect("a plugin");
    let [plugin, bin] = [text(&file("plugin")), text(place.path())];
    check(&["install-cni", "--plugin", &plugin, "--bin-dir", &bin, "--skip-conf"], &[], 0);

    let answer = json!({ "instance": "a", "phase": "ready" }).to_string();
    let socket = UnixListener::bind(file("run/a.sock")).expect("a socket");
    std::thread::spawn(move || {
        for mut stream in socket.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
        }
    });
    check(&["status", "--run-dir", &run], &[], 0);
    check(&["status", "--json", "--run-dir", &run], &[], 0);
}

/// Its code depends on the host.
#[test]
fn the_doctor_survives_its_reader_and_its_disk() {
    for line in [&["doctor"][..], &["doctor", "--json"]] {
        let gone = unread(Command::new(LODEN).args(line));
        assert!(matches!(gone.status.code(), Some(0 | 1)) && errors(&gone).is_empty(), "{}", errors(&gone));
        let full = full(Command::new(LODEN).args(line));
        assert_eq!(full.status.code(), Some(1), "{}", errors(&full));
        assert!(errors(&full).contains("No space left on device"), "{}", errors(&full));
    }
}

/// A log on a full disk, or a journal that was restarted.
#[test]
fn a_daemon_outlives_its_log() {
    if !common::ready(&["ip"]) {
        return;
    }
    let cluster = Cluster::build("out-log", 1, Wiring::Switch, VXLAN);
    let given = cluster.command(1);
    for log in ["exec 2>/dev/full", "exec 2>\"$FIFO\"", "exec 2>&-"] {
        let fifo = cluster.file("log");
        let _ = std::fs::remove_file(&fifo);
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let reader = File::options().read(true).write(true).open(&fifo).expect("both ends");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{log}; exec \"$0\" \"$@\""), LODEN]).args(given.get_args());
        let _ = std::fs::remove_file(cluster.file("host1.env"));
        let mut daemon = cluster.spawn(1, command.env("FIFO", &fifo));
        await_until("the subnet file", || daemon.subnet_file.exists());
        // The pipe's other end is gone.
        drop(reader);
        daemon.process.signal(Signal::SIGUSR1).expect("a signal");
        daemon.fresh_counters();
        assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0), "{log}");
    }
}
