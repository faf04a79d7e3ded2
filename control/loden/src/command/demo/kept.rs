//! A demo that was left running: its parts, how to enter a pod, and how to remove it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use lab::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The prefix of every demo's name; the process id follows.
pub(crate) const PREFIX: &str = "loden-demo-";

/// The file in the demo's directory that lists what to remove.
const FILE: &str = "demo.json";

/// How long the daemons may take to exit before they are killed.
const GRACE: Duration = Duration::from_secs(5);

/// The parts of a demo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The demo's name, which its namespaces and its directory share.
    pub(crate) name: String,
    /// Whether the namespaces are visible only inside a user namespace that the processes keep alive.
    pub(crate) own_user_namespace: bool,
    /// Names of the network namespaces under /run/netns.
    pub(crate) namespaces: Vec<String>,
    /// The daemons, in the order of the hosts.
    pub(crate) processes: Vec<Member>,
}

/// A process, identified by its id and start time, since ids are reused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    id: u32,
    /// Start time in clock ticks since boot, proc_pid_stat(5) field 22.
    started: u64,
}

impl Member {
    /// Returns the running process `id`; `None` if there is none.
    pub(crate) fn of(id: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // Field 2 is the program's name in parentheses, which may contain anything, including blanks.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (state != "Z").then_some(Member { id, started })
    }

    fn alive(&self) -> bool {
        Member::of(self.id).as_ref() == Some(self)
    }

    fn signal(&self, signal: Signal) {
        if self.alive() {
            let _ = kill(Pid::from_raw(self.id as i32), signal);
        }
    }
}

impl Kept {
    /// Writes the description to the demo's directory.
    pub(crate) fn write(&self, place: &Path) -> anyhow::Result<()> {
        let file = place.join(FILE);
        fs::write(&file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Returns the command that opens a shell in the pod of host `number`.
    pub(crate) fn enter(&self, number: usize) -> String {
        let net = format!("nsenter --net=/run/netns/{}-p{number}", self.name);
        match self.processes.first() {
            Some(Member { id, .. }) if self.own_user_namespace => {
                format!("nsenter --target {id} --user --preserve-credentials --mount {net}")
            }
            _ => net,
        }
    }

    /// Returns the command that removes the demo.
    pub(crate) fn removal(&self) -> String {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("loden"));
        format!("{} demo --remove {}", program.display(), self.name)
    }
}

/// Removes the processes, namespaces and files of the demo `name`, whether it was kept or crashed.
pub(crate) fn remove(name: &str) -> anyhow::Result<()> {
    if !name.starts_with(PREFIX) || name.contains('/') {
        bail!("{name} is not a demo: the names of demos begin with {PREFIX}");
    }
    let place = std::env::temp_dir().join(name);
    let file = place.join(FILE);
    let text = fs::read(&file).with_context(|| format!("cannot read {}{}", file.display(), candidates()))?;
    let kept: Kept =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", file.display()))?;
    stop(&kept.processes)?;
    // Those in a user namespace end with its last process.
    if !kept.own_user_namespace {
        for namespace in kept.namespaces.iter().filter(|namespace| namespace.starts_with(name)) {
            Namespace::remove(namespace)?;
        }
    }
    fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))
}

fn stop(processes: &[Member]) -> anyhow::Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        processes.iter().for_each(|process| process.signal(signal));
        let deadline = Instant::now() + GRACE;
        while processes.iter().any(Member::alive) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
    match processes.iter().find(|process| process.alive()) {
        Some(process) => bail!("process {} does not exit, not even after SIGKILL", process.id),
        None => Ok(()),
    }
}

/// Lists the existing demos, as a hint for a mistyped name.
fn candidates() -> String {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect();
    names.sort();
    if names.is_empty() { "; no demo exists".to_owned() } else { format!("; existing: {}", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_identified_by_its_start() {
        let own = Member::of(std::process::id()).unwrap();
        assert!(own.alive());
        assert!(!Member { started: own.started + 1, ..own }.alive());
        assert_eq!(Member::of(u32::MAX), None);
    }

    #[test]
    fn invalid_names_are_rejected() {
        for name in ["", "x", "loden-demo-../x", "loden-demo-0-none"] {
            assert!(remove(name).is_err());
        }
    }

    #[test]
    fn the_command_to_enter_depends_on_the_user_namespace() {
        let mut kept = Kept {
            name: "loden-demo-7".to_owned(),
            own_user_namespace: false,
            namespaces: Vec::new(),
            processes: vec![Member { id: 42, started: 1 }],
        };
        assert_eq!(kept.enter(2), "nsenter --net=/run/netns/loden-demo-7-p2");
        kept.own_user_namespace = true;
        assert!(
            kept.enter(1).starts_with("nsenter --target 42 --user --preserve-credentials --mount nsenter")
        );
    }
}
