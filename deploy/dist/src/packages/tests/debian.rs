//! The same life in Debian itself, in two stable releases, by debootstrap from the mirror that this machine's
//! apt uses.

use std::path::Path;

use super::life::{debian, needs, put};
use super::root::Root;
use super::*;

#[test]
fn bookworm_installs_upgrades_removes_and_purges() {
    lives_in("bookworm");
}

#[test]
fn trixie_installs_upgrades_removes_and_purges() {
    lives_in("trixie");
}

/// Fedora's own tool, which Debian has too, in a system whose rpm knows no other package.
#[test]
fn dnf_installs_upgrades_and_removes() {
    if !needs(&["debootstrap"]).are_met() {
        return;
    }
    let files = system("trixie");
    let packages =
        ["0.1.0", "0.1.1"].map(|version| Packages::build(version, &[host()], &[Format::Rpm], &source()));
    Root::over(&files, |root| {
        // A machine without this file finds the mirror by other means.
        let _ = fs::copy("/etc/resolv.conf", root.path("/etc/resolv.conf"));
        root.done("apt-get update && apt-get install --yes --no-install-recommends dnf rpm");
        put(&root, &packages.each_ref());
        let before = root.changed();
        let files = |version: &str| {
            let names = ["loden", "loden-cni"].map(|package| Format::Rpm.file(package, version, host()));
            names.map(|name| format!("/tmp/packages/{name}")).join(" ")
        };
        root.done(&format!("dnf install --assumeyes {}", files("0.1.0")));
        assert!(root.done("loden version").starts_with("loden "));
        root.write("/etc/default/loden", "LODEN_OPTIONS=--iface=eth1\n");
        root.done(&format!("dnf upgrade --assumeyes {}", files("0.1.1")));
        assert_eq!(root.read("/etc/default/loden"), "LODEN_OPTIONS=--iface=eth1\n");
        assert_eq!(root.done("rpm -q loden loden-cni").matches("-0.1.1-1.").count(), 2);
        root.done("dnf remove --assumeyes loden loden-cni");
        let mut left = root.changed();
        left.retain(|path| path.contains("loden") && !before.contains(path));
        assert_eq!(left, ["./etc/default/loden.rpmsave"]);
        assert!(root.asked().iter().all(|line| !line.contains("start") && !line.contains("stop")));
    });
}

fn lives_in(suite: &str) {
    if !needs(&["debootstrap", "apt-get"]).are_met() {
        return;
    }
    let files = system(suite);
    let [first, second] =
        ["0.1.0", "0.1.1"].map(|version| Packages::build(version, &[host()], &[Format::Deb], &source()));
    Root::over(&files, |root| debian(&root, &first, &second));
}

/// Returns the files of a suite, made once.
fn system(suite: &str) -> PathBuf {
    let toolchain = Toolchain::prepare(true).expect("a cache");
    let files = toolchain.cache().join(format!("debootstrap-{suite}"));
    if !files.is_dir() {
        let partial = files.with_extension("partial");
        remove(&partial);
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", suite]).arg(&partial).arg(mirror());
        read(&mut debootstrap).expect("debootstrap");
        fs::rename(&partial, &files).expect("a directory");
    }
    files
}

/// Returns the mirror of Debian's packages in apt's own configuration.
fn mirror() -> String {
    let format = "$(CREATED_BY) $(ORIGIN) $(CODENAME) $(REPO_URI)";
    let targets = read(Command::new("apt-get").args(["indextargets", "--format", format])).expect("apt-get");
    let main = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["Packages", "Debian", codename, mirror] if !codename.contains('-') => Some(mirror.to_owned()),
            _ => None,
        }
    };
    targets.lines().find_map(main).expect("Debian in apt's sources (apt-get update)")
}

fn remove(directory: &Path) {
    if directory.exists() {
        fs::remove_dir_all(directory).expect("it can be removed");
    }
}
