//! A cage for a container runtime: the network namespace of a host, and its own mount and PID namespaces.
//!
//! Mounts, shims and containers that a runtime leaves behind end with the cage's first process, however the
//! test ends. The first process is a shell that runs one command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::Process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Cluster, await_until};

/// Directories that a runtime would share with the machine. In a cage each is an empty tmpfs.
const COVERED: [&str; 5] = ["/run/containerd", "/run/netns", "/run/docker", "/run/flannel", "/dev/shm"];

pub struct Cage {
    process: Process,
    log: PathBuf,
    /// The first process inside, by its process id outside.
    init: String,
    /// The directory that is /var/lib/cni inside.
    pub state: PathBuf,
}

impl Cage {
    /// Creates a cage on a host, with its files in `place`, and runs a shell command in it. Inside, `root` in
    /// `place` is an empty tmpfs.
    pub fn start(cluster: &Cluster, number: usize, place: &Path, line: &str) -> Cage {
        let (state, log, ready) = (place.join("cni"), place.join("log"), place.join("caged"));
        fs::create_dir_all(&state).expect("a directory");
        // Overlays do not work on every file system, so the runtime's data are on a tmpfs.
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

    /// Builds a command that runs inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init, "--mount", "--pid", "--net", "--", program])
            .stdin(Stdio::null());
        command
    }

    /// Runs a program inside and returns its output, without the final newline.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(program).args(arguments).output().expect("nsenter");
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned());
        if output.status.success() { Ok(stdout) } else { Err(format!("{arguments:?}: {stdout}\n{stderr}")) }
    }

    /// Kills the child of the first process that runs this program. Returns whether there was one.
    pub fn kill_child(&self, program: &str) -> bool {
        let children =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.init)).unwrap_or_default();
        let is_it = |child: &&str| {
            fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim_end() == program)
        };
        let found = children.split_whitespace().find(is_it).and_then(|child| child.parse().ok());
        found.is_some_and(|child| kill(Pid::from_raw(child), Signal::SIGKILL).is_ok())
    }

    /// Returns the stderr of everything inside.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // unshare ignores SIGTERM.
        let _ = self.process.signal(Signal::SIGKILL);
    }
}
