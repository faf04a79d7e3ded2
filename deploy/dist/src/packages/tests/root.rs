//! A system to install packages into: this machine's or another system's files under an overlay, so that they
//! do not change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lab::{Namespace, Process, mounts};

/// Prepares a root. `systemctl` tells that systemd runs and writes down what it is asked.
const MOUNT: &str = r#"
set -e
mount -t proc proc "$1/proc"
mount --bind /dev "$1/dev"
for name in run tmp; do mount -t tmpfs tmpfs "$1/$name"; done
mkdir -p "$1/run/systemd/system" "$1/tmp/packages"
rm -f "$1/usr/bin/systemctl"
cat > "$1/usr/bin/systemctl" <<'END'
#!/bin/sh
echo "$*" >> /run/asked
case $* in *is-active*) [ -e /run/is-active ] ;; esac
END
chmod 755 "$1/usr/bin/systemctl"
"#;
const OVERLAY: &str = r#"
set -e
cd "$1"
mount -t tmpfs -o size=2g tmpfs .
cd "$1"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=$2,upperdir=upper,workdir=work" root
"#;
/// Lets dpkg know no package, so that neither its list of files nor others' triggers take time.
const FORGET: &str = r#"
set -e
mount -t tmpfs tmpfs "$1/var/lib/dpkg"
cd "$1/var/lib/dpkg"
mkdir alternatives info triggers updates
touch available status
"#;

/// A system.
pub(super) struct Root {
    path: PathBuf,
    /// Where files are that differ from the machine's.
    changes: PathBuf,
}

impl Root {
    /// Gives a system with this machine's files, but without its packages, to `work`.
    pub(super) fn of_this_machine(work: impl FnOnce(Root) + Send) {
        Root::over(Path::new("/"), |root| {
            sh(FORGET, &[&root.path]);
            work(root);
        });
    }

    /// Gives a system with a directory's files to `work`.
    pub(super) fn over(files: &Path, work: impl FnOnce(Root) + Send) {
        let place = tempfile::tempdir().expect("a directory");
        mounts::private(|| {
            sh(OVERLAY, &[place.path(), files]);
            let (path, changes) = (place.path().join("root"), place.path().join("upper"));
            sh(MOUNT, &[&path]);
            work(Root { path, changes });
        })
        .expect("private mounts");
    }

    pub(super) fn path(&self, absolute: &str) -> PathBuf {
        self.path.join(absolute.trim_start_matches('/'))
    }

    pub(super) fn read(&self, absolute: &str) -> String {
        fs::read_to_string(self.path(absolute)).expect(absolute)
    }

    pub(super) fn write(&self, absolute: &str, text: &str) {
        let path = self.path(absolute);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    /// Runs a line of sh in the system.
    pub(super) fn run(&self, line: &str) -> Output {
        Command::new("chroot")
            .arg(&self.path)
            .args(["sh", "-c", line])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .output()
            .expect("chroot")
    }

    /// Runs a line of sh that has to succeed, and returns what it prints.
    pub(super) fn done(&self, line: &str) -> String {
        let output = self.run(line);
        let said = text(&output);
        assert!(output.status.success(), "{line}: {said}");
        said
    }

    /// Runs rpm on the system, with a database of its own.
    pub(super) fn rpm(&self, arguments: &[&str]) -> Output {
        let mut rpm = Command::new("rpm");
        rpm.arg("--root").arg(&self.path).args(["--dbpath", "/var/lib/rpm-of-the-test"]);
        rpm.args(arguments).stdin(Stdio::null()).output().expect("rpm")
    }

    /// Returns what systemctl was asked since the last call.
    pub(super) fn asked(&self) -> Vec<String> {
        let path = self.path("/run/asked");
        let asked = fs::read_to_string(&path).unwrap_or_default();
        fs::write(path, "").expect("a file");
        asked.lines().map(str::to_owned).collect()
    }

    /// Lists the files of the system that are not the machine's, without the records of the tools.
    pub(super) fn changed(&self) -> Vec<String> {
        let line = "find . -mindepth 1 ! -type c ! -path './var/lib/dpkg*' ! -path './var/lib/apt*' \
                    ! -path './var/log*' ! -path './var/cache*' ! -path './var/lib/rpm-of-the-test*' | sort";
        let output = Command::new("sh").args(["-c", line]).current_dir(&self.changes).output().expect("find");
        String::from_utf8(output.stdout).expect("UTF-8").lines().map(str::to_owned).collect()
    }
}

/// A daemon that was started from the system's own program, with an uplink.
pub(super) struct Daemon {
    process: Process,
    namespace: Namespace,
}

impl Daemon {
    pub(super) fn start(root: &Root, name: &str) -> Daemon {
        let namespace = Namespace::create(&format!("{name}-{}", std::process::id())).expect("a namespace");
        for line in [
            "link add up0 type veth peer name up1",
            "address add 192.0.2.1/24 dev up0",
            "link set up1 up",
            "link set up0 up",
        ] {
            let status = namespace.status(Command::new("ip").args(line.split(' '))).expect("ip");
            assert!(status.success(), "ip {line}");
        }
        fs::create_dir_all(root.path("/var/lib/loden")).expect("a directory");
        let mut command = Command::new("chroot");
        command.arg(root.path("/")).args([
            "/usr/bin/loden",
            "run",
            "--store=sqlite:/var/lib/loden/loden.db",
            "--net-config-json={\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}",
            "--iface=up0",
            "--require-br-netfilter=false",
        ]);
        let process = Process::spawn(&namespace, &mut command).expect("loden");
        let mut daemon = Daemon { process, namespace };
        let limit = Instant::now() + Duration::from_secs(30);
        while !root.path("/run/flannel/subnet.env").exists() {
            assert!(daemon.runs() && Instant::now() < limit, "{}", daemon.process.stderr_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
        // The unit's state, as systemctl would tell.
        root.write("/run/is-active", "");
        daemon
    }

    pub(super) fn runs(&mut self) -> bool {
        self.process.try_wait().expect("wait").is_none()
    }

    /// Describes the network that the daemon has made.
    pub(super) fn network(&self, root: &Root) -> String {
        let mut all = root.read("/run/flannel/subnet.env");
        for line in
            ["-o link show dev flannel.1", "-4 -o address show", "-4 route show table all", "-4 rule show"]
        {
            let output = self.namespace.output(Command::new("ip").args(line.split(' '))).expect("ip");
            all += &String::from_utf8_lossy(&output.stdout);
        }
        assert!(all.contains("flannel.1"), "{all}");
        all
    }

    pub(super) fn stop(mut self, root: &Root) {
        self.process.stop().expect("an end");
        fs::remove_file(root.path("/run/is-active")).expect("a file");
    }
}

pub(super) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a script with arguments.
pub(super) fn sh(script: &str, arguments: &[&Path]) {
    let output = Command::new("sh").args(["-c", script, "sh"]).args(arguments).output().expect("sh");
    assert!(output.status.success(), "{}", text(&output));
}
