//! A host on the lab's switch that runs another kernel: Debian's, emulated by QEMU without KVM, so that
//! neither the machine's kernel nor its processor matters. The guest has only the kernel modules that a test
//! names. Its `/usr` is this machine's, read-only. Commands and their output pass through a shared directory.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Needs, Process};

use super::Cluster;

/// An emulated machine takes ten times as long as a real one.
const PATIENCE: Duration = Duration::from_secs(120);

/// Modules for the guest's network device and for the directories that it shares with this machine.
const BASE: [&str; 4] = ["virtio_pci", "virtio_net", "9pnet_virtio", "9p"];

/// Loads the modules from the archive, mounts the directories, then runs one command after another. The
/// kernel must not load modules on its own, because this machine's `/usr` may have some for it. Commands run
/// in this machine's shell: busybox's would prefer its own tools to this machine's.
const INIT: &str = r#"#!/busybox sh
/busybox mkdir -p /bb && /busybox --install -s /bb
export PATH=/bb
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
echo > /proc/sys/kernel/modprobe
while read module; do insmod $module || echo "no $module"; done < /base
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose usr /usr
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose programs /programs
mount -t 9p -o trans=virtio,version=9p2000.L,msize=65536,cache=none shared /shared
export PATH=/usr/sbin:/usr/bin
/usr/bin/ip link set lo up
number=0
while :; do
    until [ -e /shared/$number.ready ]; do
        /busybox sleep 0.05
        [ -e /shared/stop ] && /busybox poweroff -f
    done
    /usr/bin/sh /shared/$number.sh > /shared/$number.out 2>&1 </dev/null; echo $? > /shared/$number.code
    : > /shared/$number.done
    number=$((number + 1))
done
"#;

/// Finds the kernel image and the root of its modules, as `./test` unpacks them from Debian's package.
fn kernel() -> Option<(PathBuf, PathBuf)> {
    let root = super::cache()?.join("kernel");
    let image = fs::read_dir(root.join("boot")).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let image = image.filter(|path| path.to_string_lossy().contains("/vmlinuz-")).max()?;
    Some((image, root))
}

/// Adds the needs of a guest.
pub fn needs(needs: Needs) -> Needs {
    needs
        .programs(&["qemu-system-x86_64", "busybox", "cpio", "gzip", "modprobe", "depmod", "ip"])
        // The guest runs this machine's programs.
        .and("an x86-64 machine", cfg!(target_arch = "x86_64"))
        .and("the guest's kernel, which ./test unpacks", kernel().is_some())
}

/// A running guest. Dropping it powers it off.
pub struct Guest {
    process: Process,
    /// The directory that the guest sees as `/shared`.
    pub shared: PathBuf,
    log: PathBuf,
    next: usize,
}

impl Guest {
    /// Boots a guest whose `eth0` is a port of the cluster's switch. It loads `modules` at boot and `spare`
    /// in [`Guest::load_spare`], with their dependencies. It sees the directory of `loden` as `/programs`.
    pub fn boot(cluster: &Cluster, modules: &[&str], spare: &[&str]) -> Guest {
        let switch = cluster.lab.switch().expect("a switch");
        let tap = "ip tuntap add vm0 mode tap && ip link set vm0 master br0 up";
        assert!(switch.status(Command::new("sh").args(["-c", tap])).expect("sh").success());
        let (image, root) = kernel().expect("a kernel");
        let place = cluster.file("guest");
        let (shared, log, initrd) = (place.join("shared"), place.join("console"), place.join("initrd"));
        fs::create_dir_all(&shared).expect("a directory");
        archive(&image, &root, &place, &initrd, [modules, spare]);
        let programs = Path::new(env!("CARGO_BIN_EXE_loden")).parent().expect("its directory");
        let export = |tag: &str, path: &Path, access: &str| {
            format!("local,path={},mount_tag={tag},security_model=none{access}", path.display())
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-no-reboot"])
            .args(["-display", "none"])
            .arg("-kernel")
            .arg(&image)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .arg("-serial")
            .arg(format!("file:{}", log.display()))
            .args(["-netdev", "tap,id=net,ifname=vm0,script=no,downscript=no"])
            .args(["-device", "virtio-net-pci,netdev=net"])
            .args(["-virtfs", &export("usr", Path::new("/usr"), ",readonly=on")])
            .args(["-virtfs", &export("programs", programs, ",readonly=on")])
            .args(["-virtfs", &export("shared", &shared, "")])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let process = Process::spawn(switch, &mut qemu).expect("QEMU");
        Guest { process, shared, log, next: 0 }
    }

    /// Loads the spare modules.
    pub fn load_spare(&mut self) {
        self.shell("while read module; do insmod $module || exit 1; done < /spare");
    }

    /// Waits until a process in the guest listens on a TCP address.
    pub fn await_listener(&mut self, address: SocketAddr) {
        let line = proc_address(address);
        // State 0A is TCP_LISTEN (include/net/tcp_states.h).
        let pattern = format!(": {line} [0-9A-F]*:0000 0A ");
        self.shell(&format!("until grep -q '{pattern}' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done"));
    }

    /// Runs a command in the guest and returns its output. Panics if the command fails.
    pub fn shell(&mut self, line: &str) -> String {
        let (code, output) = self.run(line);
        assert_eq!(code, "0", "{line}: {output}");
        output
    }

    /// Runs a command in the guest and returns its exit code and its output.
    pub fn run(&mut self, line: &str) -> (String, String) {
        let file = |end: &str| self.shared.join(format!("{}.{end}", self.next));
        let (done, code, output) = (file("done"), file("code"), file("out"));
        fs::write(file("sh"), format!("{line}\n")).expect("a command");
        fs::write(file("ready"), "").expect("a command");
        let began = Instant::now();
        while !done.exists() {
            assert!(began.elapsed() < PATIENCE, "no answer to {line}:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.next += 1;
        let read = |path| fs::read_to_string(path).expect("an answer").trim().to_owned();
        (read(code), read(output))
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if fs::write(self.shared.join("stop"), "").is_ok() {
            let _ = self.process.wait(Duration::from_secs(5));
        }
    }
}

/// Renders an address as the kernel does in `/proc/net/tcp` and `/proc/net/tcp6`: 32-bit words in host order,
/// then the port (`get_tcp4_sock` in net/ipv4/tcp_ipv4.c).
fn proc_address(address: SocketAddr) -> String {
    let octets = match address {
        SocketAddr::V4(v4) => v4.ip().octets().to_vec(),
        SocketAddr::V6(v6) => v6.ip().octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().expect("4 bytes")));
    let words: String = words.map(|word| format!("{word:08X}")).collect();
    format!("{words}:{:04X}", address.port())
}

/// Packs the archive that the kernel unpacks as its root: a shell, and the modules in the order in which they
/// load.
fn archive(image: &Path, root: &Path, place: &Path, initrd: &Path, [modules, spare]: [&[&str]; 2]) {
    let name = image.file_name().expect("a name").to_string_lossy().into_owned();
    let version = name.trim_start_matches("vmlinuz-");
    let tree = place.join("tree");
    let script = format!(
        r#"set -e
for name in proc sys dev run tmp usr programs shared modules etc var/lib; do mkdir -p {tree}/$name; done
for name in bin sbin lib lib64; do ln -s usr/$name {tree}/$name; done
cp "$(command -v busybox)" {tree}/busybox
[ -e {root}/lib/modules/{version}/modules.dep ] || depmod -b {root} {version}
# Unpacks modules and all that they need, once each, and prints their places in the guest.
take() {{
    for module; do modprobe -d {root} -S {version} --show-depends $module; done |
        awk '/^insmod/ {{ print $2 }}' | while read file; do
            to=modules/$(basename $file .xz)
            [ -e {tree}/$to ] && continue
            case $file in *.xz) busybox xzcat $file ;; *) cat $file ;; esac > {tree}/$to
            echo /$to
        done
}}
take {base} {modules} > {tree}/base
take {spare} > {tree}/spare
cp /etc/ld.so.cache {tree}/etc/
cd {tree} && find . | cpio -o -H newc --quiet | gzip -1 > {initrd}
"#,
        tree = tree.display(),
        root = root.display(),
        initrd = initrd.display(),
        base = BASE.join(" "),
        modules = modules.join(" "),
        spare = spare.join(" "),
    );
    fs::create_dir_all(&tree).expect("a directory");
    fs::write(tree.join("init"), INIT).expect("a script");
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755)).expect("its mode");
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
