//! The same life in Debian itself, in two stable releases, by debootstrap from the mirror that this machine's
//! apt uses.

use std::path::Path;

use super::life::{debian, needs};
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
