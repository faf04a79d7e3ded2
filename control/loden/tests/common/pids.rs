//! A control group that limits how many threads its processes may have.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the pids controller is mounted, alone or with the others.
const MOUNTS: [&str; 3] = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// A group. Dropping it removes it, once its processes have ended.
pub struct PidsGroup(PathBuf);

impl PidsGroup {
    /// Creates a group without a limit; `None` if this machine has no pids controller for us.
    pub fn create(name: &str) -> Option<PidsGroup> {
        MOUNTS.iter().find_map(|mount| {
            let path = Path::new(mount).join(format!("loden-{name}-{}", std::process::id()));
            fs::create_dir(&path).ok()?;
            let group = PidsGroup(path);
            group.0.join("pids.max").exists().then_some(group)
        })
    }

    /// Moves a process into the group, with all its threads.
    pub fn admit(&self, process: u32) {
        self.write("cgroup.procs", &process.to_string());
    }

    /// Lets no more threads be made than there are.
    pub fn close(&self) {
        let now = fs::read_to_string(self.0.join("pids.current")).expect("the number of threads");
        self.write("pids.max", now.trim());
    }

    /// Lets this many threads be made.
    pub fn limit(&self, most: usize) {
        self.write("pids.max", &most.to_string());
    }

    /// Lets threads be made again.
    pub fn open(&self) {
        self.write("pids.max", "max");
    }

    /// Returns the file to which a process writes its id in order to enter.
    pub fn door(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).expect(file);
    }
}

impl Drop for PidsGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
