//! A place for a container runtime on one host: the host's network, and mounts and processes of its own.
//!
//! What a runtime leaves behind, mounts, shims and containers, ends with the first process of the place, however the
//! test ends. The first process is a shell with a line to run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::Process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Cluster, await_until};

/// Directories that runtimes share with everything on the machine, unless they are covered.
const COVERED: [&str; 4] = ["/run/containerd", "/run/netns", "/run/docker", "/dev/shm"];

pub struct Cage {
    process: Process,
    log: PathBuf,
    /// The first process inside, by its number outside.
    init: String,
    /// What is /var/lib/cni inside.
    pub state: PathBuf,
}

impl Cage {
    /// Makes one on a host, whose files are in `place`, and runs a shell line in it. `root` in `place` is empty.
    pub fn start(cluster: &Cluster, number: usize, place: &Path, line: &str) -> Cage {
        let (state, log, ready) = (place.join("cni"), place.join("log"), place.join("caged"));
        fs::create_dir_all(&state).expect("a directory");
        // An overlay cannot lie on every filesystem that a machine has: the runtime's own files are in memory.
        let root = place.join("root").display().to_string();
        let covered = COVERED.iter().copied().chain([root.as_str()]);
        let covers: String =
            covered.map(|place| format!("mkdir -p {place}; mount -t tmpfs none {place}\n")).collect();
        let script = format!(
            "set -e\n{covers}mkdir -p /var/lib/cni; mount --bind {} /var/lib/cni\n> {}\nset +e\n{line}",
            state.display(),
            ready.display()
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", &script])
            .stdout(Stdio::null());
        let process = Process::spawn_logged(cluster.host(number).namespace(), &mut command, &log);
        let process = process.expect("unshare");
        await_until("the mounts", || ready.exists());
        let children = format!("/proc/{0}/task/{0}/children", process.id());
        let init = fs::read_to_string(children).expect("the first process").trim().to_owned();
        Cage { process, log, init, state }
    }

    /// A program to be run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init, "--mount", "--pid", "--net", "--", program])
            .stdin(Stdio::null());
        command
    }

    /// Runs a program inside to its end; what it printed, without the last line end.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(program).args(arguments).output().expect("nsenter");
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned());
        if output.status.success() { Ok(stdout) } else { Err(format!("{arguments:?}: {stdout}\n{stderr}")) }
    }

    /// Kills the child of the first process that runs a program of this name; whether there was one.
    pub fn kill_child(&self, program: &str) -> bool {
        let children =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.init)).unwrap_or_default();
        let is_it = |child: &&str| {
            fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim_end() == program)
        };
        let found = children.split_whitespace().find(is_it).and_then(|child| child.parse().ok());
        found.is_some_and(|child| kill(Pid::from_raw(child), Signal::SIGKILL).is_ok())
    }

    /// All that was said inside on stderr.
    pub fn words(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // unshare does not listen to SIGTERM.
        let _ = self.process.signal(Signal::SIGKILL);
    }
}
