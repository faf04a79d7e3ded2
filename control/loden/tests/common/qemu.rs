//! A guest with Debian's kernel under QEMU, without KVM: for what this machine's kernel lacks. Its `/usr` is this
//! machine's, read-only; commands go in and answers come out by a directory that both see.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Namespace, Process};

use super::await_until;

/// An emulated machine takes ten times as long as a real one.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the guest starts with: modules from the archive, the directories, then one command after the other. The archive's
/// shell takes its own tools for all names without a path, so the commands get this machine's shell.
const INIT: &str = r#"#!/busybox sh
/busybox mkdir -p /bb && /busybox --install -s /bb
export PATH=/bb
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
while read module; do insmod $module || echo "no $module"; done < /order
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose usr /usr
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose programs /programs
mount -t 9p -o trans=virtio,version=9p2000.L,msize=65536,cache=none shared /shared
export PATH=/usr/sbin:/usr/bin
/usr/bin/ip link set lo up
number=0
while :; do
    until [ -e /shared/$number.ready ]; do /busybox sleep 0.05; [ -e /shared/stop ] && /busybox poweroff -f; done
    /usr/bin/sh /shared/$number.sh > /shared/$number.out 2>&1 </dev/null; echo $? > /shared/$number.code
    : > /shared/$number.done
    number=$((number + 1))
done
"#;

/// The kernel and its modules, as `./test` unpacks them from Debian's package.
fn kernel() -> Option<(PathBuf, PathBuf)> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let root = cache.join("loden/kernel");
    let image = fs::read_dir(root.join("boot")).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let image = image.filter(|path| path.to_string_lossy().contains("/vmlinuz-")).max()?;
    Some((image, root))
}

/// Whether such a guest can run. Says what is missing; in CI that is a failure.
pub fn ready() -> bool {
    if !super::ready(&["qemu-system-x86_64", "busybox", "cpio", "gzip", "modprobe", "depmod"]) {
        return false;
    }
    if kernel().is_none() {
        assert!(std::env::var_os("CI").is_none(), "the guest's kernel is missing: ./test unpacks it");
        eprintln!("skipped: the guest's kernel is missing; ./test unpacks it");
        return false;
    }
    true
}

/// A guest that runs.
pub struct Guest {
    process: Process,
    shared: PathBuf,
    log: PathBuf,
    next: usize,
}

impl Guest {
    /// Boots one with these kernel modules, in a directory of its own. `tap` is a device of `namespace` that becomes its
    /// `eth0`; `programs` is mounted at `/programs`.
    pub fn boot(namespace: &Namespace, tap: &str, place: &Path, programs: &Path, modules: &[&str]) -> Guest {
        let (image, root) = kernel().expect("a kernel");
        let (shared, log, initrd) = (place.join("shared"), place.join("console"), place.join("initrd"));
        fs::create_dir_all(&shared).expect("a directory");
        archive(&image, &root, place, &initrd, modules);
        let export = |tag: &str, path: &Path, access: &str| {
            format!("local,path={},mount_tag={tag},security_model=none{access}", path.display())
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "512",
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
        ])
        .arg("-kernel")
        .arg(&image)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .arg("-serial")
        .arg(format!("file:{}", log.display()))
        .args(["-netdev", &format!("tap,id=net,ifname={tap},script=no,downscript=no")])
        .args(["-device", "virtio-net-pci,netdev=net"])
        .args(["-virtfs", &export("usr", Path::new("/usr"), ",readonly=on")])
        .args(["-virtfs", &export("programs", programs, ",readonly=on")])
        .args(["-virtfs", &export("shared", &shared, "")])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
        let process = Process::spawn(namespace, &mut qemu).expect("QEMU");
        Guest { process, shared, log, next: 0 }
    }

    /// Runs a command in the guest; what it printed, and it has to succeed.
    pub fn shell(&mut self, line: &str) -> String {
        let (code, output) = self.run(line);
        assert_eq!(code, "0", "{line}: {output}");
        output
    }

    /// Its exit code and what it printed.
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

/// The archive that the kernel unpacks as its root: a shell, and the modules in the order in which they load.
fn archive(image: &Path, root: &Path, place: &Path, initrd: &Path, modules: &[&str]) {
    let name = image.file_name().expect("a name").to_string_lossy().into_owned();
    let version = name.trim_start_matches("vmlinuz-");
    let tree = place.join("tree");
    let script = format!(
        r#"set -e
mkdir -p {tree}/proc {tree}/sys {tree}/dev {tree}/run {tree}/tmp {tree}/usr {tree}/programs {tree}/shared {tree}/modules {tree}/etc
for name in bin sbin lib lib64; do ln -s usr/$name {tree}/$name; done
cp "$(command -v busybox)" {tree}/busybox
[ -e {root}/lib/modules/{version}/modules.dep ] || depmod -b {root} {version}
for module in {modules}; do modprobe -d {root} -S {version} --show-depends $module; done |
    awk '/^insmod/ && !seen[$2]++ {{ print $2 }}' > {tree}/files
while read file; do cp $file {tree}/modules/; echo /modules/$(basename $file); done < {tree}/files > {tree}/order
cp /etc/ld.so.cache {tree}/etc/
cd {tree} && find . | cpio -o -H newc --quiet | gzip -1 > {initrd}
"#,
        tree = tree.display(),
        root = root.display(),
        initrd = initrd.display(),
        modules = modules.join(" "),
    );
    fs::create_dir_all(&tree).expect("a directory");
    fs::write(tree.join("init"), INIT).expect("a script");
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755)).expect("its mode");
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    await_until("the archive", || initrd.exists());
}
