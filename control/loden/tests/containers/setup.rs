//! Prepares a host so that its runtime can use loden.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::Needs;

use crate::common::Cluster;
use crate::image;

/// Debian's directory for the plugins of the CNI project.
const PLUGINS: &str = "/usr/lib/cni";

/// Returns whether the test can run.
pub fn ready(programs: &[&str]) -> bool {
    needs(programs).are_met()
}

/// The needs of a test with a runtime, and these programs. The plugin is in another crate, so cargo does not
/// build it with the tests.
pub fn needs(programs: &[&str]) -> Needs {
    let are_plugins = ["bridge", "portmap"].iter().all(|name| Path::new(PLUGINS).join(name).is_file());
    let controllers = ["/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/devices"];
    let id = std::process::id();
    Needs::hosts()
        .programs(programs)
        .and("loden-cni (cargo build -p cni-plugin)", plugin().is_file())
        .and(format!("{PLUGINS} (Debian's containernetworking-plugins)"), are_plugins)
        .and("a static busybox (Debian's busybox-static)", image::has_static_busybox())
        .and("control groups in /sys/fs/cgroup", controllers.iter().any(|path| Path::new(path).exists()))
        .and("CONFIG_PROC_CHILDREN", Path::new(&format!("/proc/{id}/task/{id}/children")).exists())
}

/// Returns the path of loden's own plugin, beside the daemon.
pub fn plugin() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_loden")).with_file_name("loden-cni")
}

/// A host's directories for plugins and configurations.
pub struct Setup {
    pub bin: PathBuf,
    pub conf: PathBuf,
    subnet_file: PathBuf,
}

impl Setup {
    /// Creates the directories for a host of the cluster, with the plugins of the CNI project and no
    /// configuration.
    pub fn new(cluster: &Cluster, number: usize) -> Setup {
        Setup::at(&cluster.file(&format!("cni{number}")), cluster.file(&format!("host{number}.env")))
    }

    /// Creates the directories in `place`, for a daemon that writes this subnet file.
    pub fn at(place: &Path, subnet_file: PathBuf) -> Setup {
        let [bin, conf] = ["bin", "net.d"].map(|name| place.join(name));
        fs::create_dir_all(&bin).expect("a directory");
        fs::create_dir_all(&conf).expect("a directory");
        for plugin in fs::read_dir(PLUGINS).expect("plugins") {
            let plugin = plugin.expect("a plugin");
            symlink(plugin.path(), bin.join(plugin.file_name())).expect("a link");
        }
        Setup { bin, conf, subnet_file }
    }

    /// Runs `loden install-cni`.
    pub fn install(&self, more: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
        command.args(["install-cni", "--plugin"]).arg(plugin()).arg("--bin-dir").arg(&self.bin);
        command.arg("--conf-dir").arg(&self.conf).arg("--subnet-file").arg(&self.subnet_file).args(more);
        let output = command.output().expect("loden");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Returns a shell command that fetches a file by HTTP, on the host or in a container.
pub fn fetch(address: IpAddr, port: u16, file: &str) -> String {
    let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    format!("timeout 15 busybox wget -q -O - http://{host}:{port}/{file}")
}
