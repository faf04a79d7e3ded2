//! The CPU limits of this process's control groups, of either version.

use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// What the control groups of a process leave it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuLimits {
    /// The smallest quota of the group and its ancestors, in CPUs; `None` without one.
    pub quota: Option<f64>,
    /// How often the group has had to wait for its next period because its quota was used up.
    pub throttled: Option<u64>,
    /// The group's share of a busy CPU compared with its siblings, on version 2's scale: 100 is ordinary.
    pub weight: Option<u64>,
}

impl CpuLimits {
    /// Reads the limits of this process.
    pub fn read() -> CpuLimits {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        CpuLimits::of(&groups, Path::new(MOUNT))
    }

    /// Returns whether the limits slow the workers down.
    pub fn are_tight(&self) -> bool {
        self.quota.is_some()
    }

    /// Reads the limits of the groups in `groups`, the text of `/proc/PID/cgroup` (cgroups(7)).
    fn of(groups: &str, mount: &Path) -> CpuLimits {
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let relative = Path::new(path.trim_start_matches('/'));
            if controllers.split(',').any(|controller| controller == "cpu") {
                let mounts = [controllers, "cpu", "cpu,cpuacct"].map(|name| mount.join(name));
                if let Some(mount) = mounts.iter().find(|mount| mount.is_dir()) {
                    return version_1(mount, relative);
                }
            }
        }
        let unified = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        unified.map(|path| version_2(mount, Path::new(path))).unwrap_or_default()
    }
}

impl std::fmt::Display for CpuLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.quota {
            Some(quota) => write!(f, "CPU quota {quota:.2}")?,
            None => write!(f, "no CPU quota")?,
        }
        if let Some(throttled) = self.throttled.filter(|_| self.quota.is_some()) {
            write!(f, ", used up {throttled} times")?;
        }
        match self.weight {
            Some(weight) => write!(f, ", CPU weight {weight}"),
            None => Ok(()),
        }
    }
}

/// Documentation/admin-guide/cgroup-v2.rst, "CPU Interface Files".
fn version_2(mount: &Path, group: &Path) -> CpuLimits {
    let quota = |directory: &Path| {
        let text = fs::read_to_string(directory.join("cpu.max")).ok()?;
        let (quota, period) = text.trim().split_once(' ')?;
        cpus(quota.parse().ok()?, period.parse().ok()?)
    };
    let all = ancestors(mount, group);
    let here = all.first().map(PathBuf::as_path).unwrap_or(mount);
    CpuLimits {
        quota: all.iter().filter_map(|directory| quota(directory)).reduce(f64::min),
        throttled: throttled(here),
        weight: number(&here.join("cpu.weight")),
    }
}

/// Documentation/scheduler/sched-bwc.rst; the weight is converted as the kernel does (2 to 262,144 shares).
fn version_1(mount: &Path, group: &Path) -> CpuLimits {
    let quota = |directory: &Path| {
        // -1 stands for no quota, and is not a number here.
        let quota = number(&directory.join("cpu.cfs_quota_us"))?;
        cpus(quota, number(&directory.join("cpu.cfs_period_us"))?)
    };
    let all = ancestors(mount, group);
    let here = all.first().map(PathBuf::as_path).unwrap_or(mount);
    CpuLimits {
        quota: all.iter().filter_map(|directory| quota(directory)).reduce(f64::min),
        throttled: throttled(here),
        weight: number(&here.join("cpu.shares")).map(|shares| (shares * 100).div_ceil(1024)),
    }
}

/// Returns the directories of a group and its ancestors, from the group up to the mount. In a container the
/// group's path may be that of the host, and the mount shows the group itself.
fn ancestors(mount: &Path, group: &Path) -> Vec<PathBuf> {
    let inside = !group.components().any(|part| part == std::path::Component::ParentDir);
    let all = group.ancestors().filter(|_| inside).map(|group| mount.join(group));
    let mut all: Vec<PathBuf> = all.filter(|directory| directory.is_dir()).collect();
    if all.is_empty() {
        all.push(mount.to_owned());
    }
    all
}

fn throttled(directory: &Path) -> Option<u64> {
    let text = fs::read_to_string(directory.join("cpu.stat")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("nr_throttled ")?.trim().parse().ok())
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn cpus(quota: u64, period: u64) -> Option<f64> {
    (period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let file = root.join(name);
            fs::create_dir_all(file.parent().expect("a directory")).expect("created");
            fs::write(file, text).expect("written");
        }
    }

    #[test]
    fn version_2_has_the_smallest_quota_on_the_way_up() {
        let root = tempfile::tempdir().expect("a directory");
        let files = [
            ("kube/cpu.max", "150000 100000\n"),
            ("kube/pod/cpu.max", "max 100000\n"),
            ("kube/pod/cpu.weight", "79\n"),
            ("kube/pod/cpu.stat", "usage_usec 5\nnr_periods 9\nnr_throttled 4\nthrottled_usec 7\n"),
        ];
        write(root.path(), &files);
        let limits = CpuLimits::of("0::/kube/pod\n", root.path());
        assert_eq!(limits, CpuLimits { quota: Some(1.5), throttled: Some(4), weight: Some(79) });
        assert_eq!(limits.to_string(), "CPU quota 1.50, used up 4 times, CPU weight 79");
        assert!(limits.are_tight());
        // The path is the host's, but only the own group is mounted.
        write(root.path(), &[("cpu.max", "20000 100000\n")]);
        assert_eq!(CpuLimits::of("0::/../elsewhere\n", root.path()).quota, Some(0.2));
        assert_eq!(CpuLimits::of("0::/\n", root.path()).quota, Some(0.2));
    }

    #[test]
    fn version_1_knows_no_quota_by_minus_one() {
        let root = tempfile::tempdir().expect("a directory");
        let files = [
            ("cpu,cpuacct/docker/x/cpu.cfs_quota_us", "50000\n"),
            ("cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000\n"),
            ("cpu,cpuacct/docker/x/cpu.shares", "1024\n"),
            ("cpu,cpuacct/docker/cpu.cfs_quota_us", "-1\n"),
            ("cpu,cpuacct/docker/cpu.cfs_period_us", "100000\n"),
        ];
        write(root.path(), &files);
        let groups = "12:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/docker/x\n";
        let limits = CpuLimits::of(groups, root.path());
        assert_eq!(limits, CpuLimits { quota: Some(0.5), throttled: None, weight: Some(100) });
        let parent = CpuLimits::of("4:cpu,cpuacct:/docker\n", root.path());
        assert_eq!((parent.quota, parent.to_string()), (None, "no CPU quota".to_owned()));
    }

    #[test]
    fn what_cannot_be_read_is_no_limit() {
        let root = tempfile::tempdir().expect("a directory");
        for groups in ["", "0::", "nonsense", "1:cpu", "4:cpu:/x\n", "0::/../../etc\n"] {
            assert_eq!(CpuLimits::of(groups, root.path()), CpuLimits::default(), "{groups:?}");
        }
        write(root.path(), &[("cpu.max", "5 0\n"), ("cpu.weight", "heavy\n")]);
        assert_eq!(CpuLimits::of("0::/\n", root.path()), CpuLimits::default());
        let _ = CpuLimits::read().to_string();
    }
}
