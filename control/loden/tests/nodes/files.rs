//! Files that are none, filesystems that hang, and a run directory that somebody removes: the control loop
//! goes on, and signals work.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use lab::{Wiring, mounts};
use nix::libc::O_NONBLOCK;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use crate::common::{self, Cluster, VXLAN, await_until, replace};

const LODEN: &str = env!("CARGO_BIN_EXE_loden");
const PROBES: &str = "10256";

#[test]
fn fifos_in_place_of_files_are_not_waited_for() {
    let Some(cluster) = alone("fil-fifo") else { return };
    // What an earlier run has left.
    let mut first = cluster.start(1, &[]);
    first.end(Signal::SIGTERM);
    let state = state(&cluster);
    let (counters, net_config) = (cluster.file("host1.json"), cluster.file("net-conf.json"));
    let env = cluster.file("host1.env");
    let fifos = [env.clone(), state, counters, cluster.file("host1.json.new"), net_config.clone()];
    for path in &fifos {
        let _ = fs::remove_file(path);
        nix::unistd::mkfifo(path, Mode::S_IRWXU).expect("a FIFO");
    }
    let mut daemon = cluster.spawn(1, &mut cluster.command(1));
    await_until("the complaint about the counters", || daemon.logged("cannot write the counters"));
    await_until("that about the subnet file", || {
        daemon.logged("cannot replace") && daemon.logged("host1.env")
    });
    let text = daemon.log_text();
    for complaint in ["cannot read the previous subnet file", "state file of the previous run ignored"] {
        assert!(text.lines().any(|line| line.contains(complaint) && line.contains("it is a FIFO")), "{text}");
    }
    // It forwards all the same, and is ready once it can be.
    assert!(cluster.shell(1, "ip -o link").contains("flannel.1") && !daemon.logged("ready lease="), "{text}");
    fs::remove_file(&env).expect("the FIFO");
    daemon.await_ready();
    assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0), "{}", daemon.log_text());

    let store = format!("sqlite:{}", cluster.store().display());
    let mut command = Command::new(LODEN);
    command.args(["run", "--iface", cluster.host(1).uplink(), "--store", &store, "--net-config"]);
    command.arg(&net_config).arg("--run-dir").arg(cluster.place.path());
    let mut daemon = cluster.spawn(1, &mut command);
    assert_eq!(daemon.await_end().code(), Some(1), "{}", daemon.log_text());
    assert!(daemon.logged("net-conf.json: it is a FIFO, not a regular file"), "{}", daemon.log_text());
}

#[test]
fn the_private_key_is_a_file() {
    let Some(mut cluster) = alone("fil-key") else { return };
    cluster.config = VXLAN.replace(r#""vxlan""#, r#""wireguard""#);
    let key = cluster.file("wgkey");
    nix::unistd::mkfifo(&key, Mode::S_IRWXU).expect("a FIFO");
    let mut daemon = cluster.spawn(1, cluster.command(1).env("WIREGUARD_KEY_FILE", &key));
    assert_eq!(daemon.await_end().code(), Some(1), "{}", daemon.log_text());
    assert!(daemon.logged("it is a FIFO, not a regular file"), "{}", daemon.log_text());
}

/// The pods that a node has keep their traffic, and the probes their answers.
#[test]
fn a_filesystem_that_hangs_holds_up_files_alone() {
    if !common::needs(&["ip"]).and("/dev/fuse", Path::new("/dev/fuse").exists()).are_met() {
        return;
    }
    let Some(cluster) = alone("fil-hang") else { return };
    let place = cluster.file("place");
    fs::create_dir(&place).expect("a directory");
    mounts::private(|| {
        let mut command = cluster.command(1);
        replace(&mut command, "--subnet-file", place.join("subnet.env").to_str().expect("a path"));
        replace(&mut command, "--counters-file", place.join("counters.json").to_str().expect("a path"));
        replace(&mut command, "--run-dir", place.join("run").to_str().expect("a path"));
        command.args(["--healthz-port", PROBES]);
        let mut daemon = cluster.spawn(1, &mut command);
        daemon.await_ready();
        // While it runs.
        let hanging = mounts::hanging(&place).expect("a mount");
        await_until("the complaint", || daemon.logged("the filesystem does not answer"));
        let probe = || common::get(&cluster, 1, PROBES, "/healthz").map(|(code, _)| code);
        assert_eq!(probe().as_deref(), Some("200"));
        cluster.shell(1, "ip link set flannel.1 mtu 1300");
        await_until("a repair", || cluster.shell(1, "ip link show flannel.1").contains("mtu 1450"));
        assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0), "{}", daemon.log_text());

        // When it starts.
        let mut daemon = cluster.spawn(1, &mut command);
        await_until("the complaint", || daemon.logged("cannot use the run directory"));
        await_until("the other", || daemon.logged("cannot write") && daemon.logged("does not answer"));
        assert_eq!(probe().as_deref(), Some("200"));
        assert!(!daemon.logged("ready lease="), "{}", daemon.log_text());
        assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0), "{}", daemon.log_text());
        drop(hanging);
    })
    .expect("private mounts");
}

/// etcd's credentials on a network filesystem whose server is gone.
#[test]
fn certificates_on_a_filesystem_that_hangs_hold_up_the_store_alone() {
    if !common::needs(&["ip"]).and("/dev/fuse", Path::new("/dev/fuse").exists()).are_met() {
        return;
    }
    let Some(cluster) = alone("fil-tls") else { return };
    let place = cluster.file("place");
    fs::create_dir(&place).expect("a directory");
    mounts::private(|| {
        let hanging = mounts::hanging(&place).expect("a mount");
        let mut command = cluster.etcd_command(1, "https://192.0.2.1:2379,https://192.0.2.2:2379");
        command.arg("--etcd-cafile").arg(place.join("ca.pem")).args(["--healthz-port", PROBES]);
        let mut daemon = cluster.spawn(1, &mut command);
        await_until("the complaint", || daemon.logged("the filesystem of the TLS files does not answer"));
        assert_eq!(
            common::get(&cluster, 1, PROBES, "/healthz").map(|(code, _)| code).as_deref(),
            Some("200")
        );
        let threads = fs::read_dir(format!("/proc/{}/task", daemon.process.id())).expect("threads").flatten();
        let names = threads.map(|thread| fs::read_to_string(thread.path().join("comm")).unwrap_or_default());
        assert_eq!(names.filter(|name| name.trim() == "etcd-files").count(), 1, "for both endpoints");
        assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0), "{}", daemon.log_text());
        drop(hanging);
    })
    .expect("private mounts");
}

/// A node that starts from memory forwards, whatever its store's filesystem does.
#[test]
fn a_store_on_a_filesystem_that_hangs_holds_up_the_store_alone() {
    if !common::needs(&["ip"]).and("/dev/fuse", Path::new("/dev/fuse").exists()).are_met() {
        return;
    }
    let Some(cluster) = alone("fil-store") else { return };
    let place = cluster.file("place");
    let below = place.join("below");
    fs::create_dir_all(&below).expect("directories");
    mounts::private(|| {
        let mut command = cluster.command(1);
        replace(&mut command, "--store", &format!("sqlite:{}", below.join("leases.db").display()));
        command.args(["--healthz-port", PROBES]);
        let mut daemon = cluster.spawn(1, &mut command);
        daemon.await_ready();
        assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0), "{}", daemon.log_text());
        let hanging = mounts::hanging(&place).expect("a mount");
        let mut daemon = cluster.spawn(1, &mut command);
        daemon.await_ready();
        assert!(daemon.logged("forwarding from memory"), "{}", daemon.log_text());
        assert_eq!(
            common::get(&cluster, 1, PROBES, "/healthz").map(|(code, _)| code).as_deref(),
            Some("200")
        );
        assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0), "{}", daemon.log_text());
        drop(hanging);
    })
    .expect("private mounts");
}

#[test]
fn a_removed_run_directory_is_made_again() {
    let Some(cluster) = alone("fil-run") else { return };
    let run = cluster.file("run");
    let mut command = cluster.command(1);
    replace(&mut command, "--run-dir", run.to_str().expect("a path"));
    let mut daemon = cluster.spawn(1, &mut command);
    daemon.await_ready();
    let files = || {
        let mut names: Vec<_> = fs::read_dir(&run).into_iter().flatten().flatten().collect();
        names.sort_by_key(std::fs::DirEntry::file_name);
        names.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let before = files();
    assert_eq!(before.len(), 3, "lock, socket and state: {before:?}");
    let status = format!("{LODEN} status --run-dir {}", run.display());
    for removed in [vec![], vec![before[0].clone()], vec![before[1].clone()], vec![before[2].clone()]] {
        if removed.is_empty() {
            fs::remove_dir_all(&run).expect("removed");
        }
        removed.iter().for_each(|name| fs::remove_file(run.join(name)).expect("removed"));
        await_until("the files", || files() == before);
        await_until("its answer", || cluster.shell(1, &format!("{status} || true")).contains("ready for"));
        // The name is still taken.
        let mut second = cluster.command(1);
        replace(&mut second, "--run-dir", run.to_str().expect("a path"));
        let output = cluster.host(1).namespace().output(&mut second).expect("a second daemon");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains("another loden"), "{removed:?}: {errors}");
    }
    assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0), "{}", daemon.log_text());
    let left = files();
    assert!(left.iter().any(|name| name.ends_with(".json")), "for the next start: {left:?}");
    assert!(!left.iter().any(|name| name.ends_with(".sock")), "{left:?}");
}

#[test]
fn a_hang_up_is_a_stop_with_a_word_and_nohup_counts() {
    let Some(cluster) = alone("fil-hup") else { return };
    let mut daemon = cluster.start(1, &[]);
    assert_eq!(daemon.end(Signal::SIGHUP).code(), Some(0), "{}", daemon.log_text());
    assert!(daemon.logged("SIGHUP") && daemon.logged("stopped;"), "{}", daemon.log_text());

    let given = cluster.command(1);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", LODEN]).args(given.get_args());
    let mut daemon = cluster.spawn(1, &mut command);
    daemon.await_ready();
    daemon.process.signal(Signal::SIGHUP).expect("a signal");
    // Handled in order: had it been heeded, this would be the second.
    assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0), "{}", daemon.log_text());
    assert!(!daemon.logged("SIGHUP") && !daemon.logged("second signal"), "{}", daemon.log_text());
}

/// Nobody reads the log any more, so the loop hangs in its next line.
#[test]
fn a_second_signal_ends_a_daemon_whose_loop_hangs() {
    let Some(cluster) = alone("fil-stuck") else { return };
    let fifo = cluster.file("log");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO");
    let mut log = OpenOptions::new();
    let mut log = log.read(true).write(true).custom_flags(O_NONBLOCK).open(&fifo).expect("both ends");
    let given = cluster.command(1);
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 2>\"$LOG\"", LODEN]).args(given.get_args()).env("LOG", &fifo);
    let mut daemon = cluster.spawn(1, &mut command);
    await_until("the subnet file", || daemon.subnet_file.exists());
    while log.write(&[b'x'; 512]).is_ok() {}
    daemon.process.signal(Signal::SIGTERM).expect("a signal");
    // One signal of a kind waits at most.
    await_until("that it was received", || caught(daemon.process.id(), Signal::SIGTERM));
    assert_eq!(daemon.end(Signal::SIGINT).code(), Some(0));
}

/// Tells whether a process has no signal of this kind waiting (proc_pid_status(5)).
fn caught(process: u32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let waiting = status.lines().filter_map(|line| line.strip_prefix("ShdPnd:")).next();
    let waiting = waiting.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    waiting >> (signal as i32 - 1) & 1 == 0
}

fn alone(name: &str) -> Option<Cluster> {
    common::ready(&["ip"]).then(|| Cluster::build(name, 1, Wiring::Switch, VXLAN))
}

/// Returns the path of the state file.
fn state(cluster: &Cluster) -> std::path::PathBuf {
    let files = fs::read_dir(cluster.place.path()).expect("the directory").flatten();
    let mut states = files.map(|file| file.path()).filter(|path| {
        path.extension().is_some_and(|end| end == "json") && path.file_name() != Some("host1.json".as_ref())
    });
    states.next().expect("a state file")
}
