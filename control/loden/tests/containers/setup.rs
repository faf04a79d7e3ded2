//! What a host needs before its runtime can use loden.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{self, Cluster};
use crate::image;

/// Where Debian keeps the plugins of the CNI project.
const PLUGINS: &str = "/usr/lib/cni";

/// Whether the test can run: see [`common::ready`]. The plugin is another crate's, so cargo does not build it for us.
pub fn ready(programs: &[&str]) -> bool {
    let files = [plugin(), Path::new(PLUGINS).join("bridge"), Path::new(PLUGINS).join("portmap")];
    let mut missing: Vec<String> =
        files.iter().filter(|file| !file.is_file()).map(|file| file.display().to_string()).collect();
    if !image::has_static_busybox() {
        missing.push("a static busybox".to_owned());
    }
    if missing.is_empty() {
        return common::ready(programs);
    }
    let next = "`cargo build -p cni-plugin`, and Debian's containernetworking-plugins and busybox-static";
    assert!(std::env::var_os("CI").is_none(), "this test needs {missing:?}: {next}");
    eprintln!("skipped: this test needs {missing:?}: {next}");
    false
}

/// loden's own plugin, beside the daemon.
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
    /// Makes them, with the plugins of the CNI project and no configuration.
    pub fn new(cluster: &Cluster, number: usize) -> Setup {
        let [bin, conf] = ["bin", "net.d"].map(|name| cluster.file(&format!("cni{number}/{name}")));
        fs::create_dir_all(&bin).expect("a directory");
        fs::create_dir_all(&conf).expect("a directory");
        for plugin in fs::read_dir(PLUGINS).expect("plugins") {
            let plugin = plugin.expect("a plugin");
            symlink(plugin.path(), bin.join(plugin.file_name())).expect("a link");
        }
        Setup { bin, conf, subnet_file: cluster.file(&format!("host{number}.env")) }
    }

    /// `loden install-cni`.
    pub fn install(&self, more: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
        command.args(["install-cni", "--plugin"]).arg(plugin()).arg("--bin-dir").arg(&self.bin);
        command.arg("--conf-dir").arg(&self.conf).args(more);
        if !more.contains(&"--subnet-file") {
            command.arg("--subnet-file").arg(&self.subnet_file);
        }
        let output = command.output().expect("loden");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A shell line that fetches by HTTP, here or in a container.
pub fn fetch(address: IpAddr, port: u16, file: &str) -> String {
    let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    format!("timeout 15 busybox wget -q -O - http://{host}:{port}/{file}")
}
