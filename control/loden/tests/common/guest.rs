//! A host with another kernel: user-mode-linux on the lab's switch, whose root is this machine's, read-only.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::Process;

use super::Cluster;

/// A running guest. Dropping it lets it halt.
pub struct Guest {
    process: Process,
    log: PathBuf,
    stop: PathBuf,
}

impl Guest {
    /// Boots one whose device `vec0` is a port of the switch, and runs a shell script in it. `insmod` takes modules by
    /// `$M`, their directory; /run is writable.
    pub fn boot(cluster: &Cluster, script: &str) -> Guest {
        let switch = cluster.lab.switch().expect("a switch");
        let tap = "ip tuntap add uml0 mode tap && ip link set uml0 master br0 up";
        assert!(switch.status(Command::new("sh").args(["-c", tap])).expect("sh").success());
        let (init, stop, log) = (cluster.file("init"), cluster.file("stop"), cluster.file("guest.log"));
        let stop_file = stop.display();
        let script = format!(
            "#!/bin/sh
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc p /proc; mount -t tmpfs t /run
M=/usr/lib/uml/modules/$(uname -r)/kernel
{script}
n=0; until [ -e {stop_file} ] || [ $n = 600 ]; do sleep 0.2; n=$((n+1)); done
halt -f
"
        );
        fs::write(&init, script).expect("a script");
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).expect("its mode");
        let mut command = Command::new("linux.uml");
        command
            .args(["mem=128M", "rootfstype=hostfs", "rootflags=/", "ro", "con=null", "con0=null,fd:2"])
            .args(["con1=null", "ssl=null", "quiet", "vec0:transport=tap,ifname=uml0,depth=128,gro=1"])
            .arg(format!("init={}", init.display()))
            .env("TMPDIR", "/dev/shm")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let process = Process::spawn_logged(switch, &mut command, &log).expect("user-mode-linux");
        Guest { process, log, stop }
    }

    /// Its console.
    pub fn words(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether a line began so.
    pub fn said(&self, word: &str) -> bool {
        self.words().lines().any(|line| line.trim_end().starts_with(word))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Its helpers end with it only when it halts by itself.
        if fs::write(&self.stop, "").is_ok() {
            let _ = self.process.wait(Duration::from_secs(10));
        }
    }
}
