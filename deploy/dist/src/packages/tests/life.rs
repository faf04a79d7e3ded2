//! Installation, upgrade and removal, while a daemon runs and while none does.

use std::fs;
use std::os::unix::fs::symlink;

use super::root::{Daemon, Root, sh, text};
use super::*;

const CONFIG: &str = "/etc/default/loden";
const EDITED: &str = "LODEN_OPTIONS=--iface=eth1\n";
const LINK: &str = "/etc/systemd/system/multi-user.target.wants/loden.service";
const CONTINUES: &str = "loden continues with the version before until 'systemctl restart loden'.";
const REMOVED: &str = "loden continues until 'systemctl stop loden'";
const IS_ACTIVE: &str = "--quiet is-active loden.service";

/// Starts a program of the daemon's name that has another root.
const CONTAINER: &str = "
    set -e
    mkdir -p /srv/container/bin
    cp /bin/sleep /srv/container/bin/loden
    for library in $(ldd /bin/sleep | grep -o '/[^ ]*'); do
        mkdir -p \"/srv/container${library%/*}\"
        cp \"$library\" \"/srv/container$library\"
    done
    chroot /srv/container /bin/loden 600 >/dev/null 2>&1 &
    echo $! > /tmp/container
    until [ \"$(readlink /proc/$!/exe)\" = /srv/container/bin/loden ]; do sleep 0.05; done
";

#[test]
fn debian_installs_upgrades_removes_and_purges_beside_a_running_daemon() {
    if !needs(&["apt-get", "dpkg"]).are_met() {
        return;
    }
    let [first, second] =
        ["0.1.0", "0.1.1"].map(|version| Packages::build(version, &[host()], &[Format::Deb], &source()));
    Root::of_this_machine(|root| debian(&root, &first, &second));
}

#[test]
fn a_purge_removes_what_is_ours_and_nothing_else() {
    if !needs(&["dpkg"]).are_met() {
        return;
    }
    let packages = Packages::build("0.1.0", &[host()], &[Format::Deb], &source());
    Root::of_this_machine(|root| {
        put(&root, &[&packages]);
        let install = format!("dpkg --install {}", deb("0.1.0"));
        let purge = "dpkg --purge loden";
        // A database of ours, one of somebody's behind a link, and what the administrator has made.
        root.done(&install);
        let database = "SQLite format 3\0...";
        for name in ["/var/lib/loden/loden.db", "/var/lib/loden/loden.db-wal", "/srv/other.db"] {
            root.write(name, database);
        }
        symlink("/srv/other.db", root.path("/var/lib/loden/linked.db")).expect("a link");
        root.write("/var/lib/loden/notes", "mine");
        root.write("/etc/systemd/system/loden.service.d/mine.conf", "[Service]\n");
        root.write("/etc/systemd/system/loden.service", "[Service]\n");
        enable(&root, "/etc/systemd/system/loden.service");
        let said = root.done(purge);
        assert!(said.contains("/var/lib/loden stays: loden did not write all that is in it"), "{said}");
        assert_eq!(root.done("ls /var/lib/loden"), "linked.db\nnotes\n");
        assert_eq!(root.read("/srv/other.db"), database);
        assert!(is_enabled(&root) && root.path("/etc/systemd/system/loden.service.d/mine.conf").exists());

        // The link that `systemctl enable` makes, in both spellings of the directory.
        root.done(&format!("rm -r /var/lib/loden {LINK}"));
        for unit in ["/lib/systemd/system/loden.service", "/usr/lib/systemd/system/loden.service"] {
            root.done(&install);
            enable(&root, unit);
            root.done(&install);
            assert!(is_enabled(&root), "installed again");
            root.done("dpkg --remove loden");
            assert!(is_enabled(&root), "a removal keeps configuration");
            let said = root.done(purge);
            assert!(!is_enabled(&root) && !said.contains("stays"), "{said}");
        }

        // A container on this host has a daemon of its own.
        root.done(&install);
        root.write("/var/lib/loden/loden.db", database);
        root.done(CONTAINER);
        let said = root.done(purge);
        root.done("kill $(cat /tmp/container)");
        assert!(!root.path("/var/lib/loden").exists(), "{said}");

        // A state directory elsewhere: the databases go, the administrator's link stays.
        root.done(&install);
        root.write("/srv/state/loden.db", database);
        symlink("/srv/state", root.path("/var/lib/loden")).expect("a link");
        root.done(purge);
        assert_eq!(root.done("ls /srv/state; readlink /var/lib/loden"), "/srv/state\n");
        let asked = root.asked();
        assert!(asked.iter().all(|line| [IS_ACTIVE, "daemon-reload"].contains(&line.as_str())), "{asked:?}");
    });
}

#[test]
fn debian_keeps_an_edited_configuration_when_the_default_changes() {
    if !needs(&["dpkg"]).are_met() {
        return;
    }
    let (other, _place) = with_another_default();
    let first = Packages::build("0.1.0", &[host()], &[Format::Deb], &source());
    let second = Packages::build("0.1.1", &[host()], &[Format::Deb], &other);
    Root::of_this_machine(|root| {
        put(&root, &[&first, &second]);
        root.done(&format!("dpkg --install {}", deb("0.1.0")));
        root.write(CONFIG, EDITED);
        // Nobody is there to ask.
        let output = root.run(&format!("dpkg --install {}", deb("0.1.1")));
        assert!(!output.status.success() && text(&output).contains("conffile"), "{}", text(&output));
        assert_eq!(root.read(CONFIG), EDITED);
        root.done("dpkg --force-confold --configure loden");
        assert_eq!(root.read(CONFIG), EDITED);
        assert!(root.read("/etc/default/loden.dpkg-dist").contains("# Another default."));
        root.done("dpkg --purge loden loden-cni");
        assert_eq!(root.done("ls /etc/default | grep loden || true"), "");

        // Without an edit the new default is taken, and nobody is asked.
        root.done(&format!("dpkg --install {}", deb("0.1.0")));
        root.done(&format!("dpkg --install {}", deb("0.1.1")));
        assert!(root.read(CONFIG).contains("# Another default."));
    });
}

#[test]
fn what_cannot_be_installed_leaves_nothing_half() {
    if !needs(&["dpkg", "rpm"]).are_met() {
        return;
    }
    let foreign = [Arch::X86_64, Arch::Aarch64].into_iter().find(|arch| *arch != host()).expect("another");
    let packages = Packages::build("0.1.0", &[host(), foreign], &BOTH, &source());
    let rpm = |arch| packages.path(&Format::Rpm.file("loden", "0.1.0", arch)).display().to_string();
    Root::of_this_machine(|root| {
        put(&root, &[&packages]);
        let before = root.changed();
        let file = Format::Deb.file("loden", "0.1.0", foreign);
        for (output, reason) in [
            (root.run(&format!("dpkg --install /tmp/packages/{file}")), "does not match system"),
            (root.rpm(&["-i", &rpm(foreign)]), "different architecture"),
        ] {
            let said = text(&output);
            assert!(!output.status.success() && said.contains(reason), "{said}");
        }
        assert_eq!(left(&root, &before), Vec::<String>::new());

        let usr = root.path("/usr");
        sh("mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\"", &[&usr]);
        for output in [root.run(&format!("dpkg --install {}", deb("0.1.0"))), root.rpm(&["-i", &rpm(host())])]
        {
            let said = text(&output);
            assert!(!output.status.success() && said.contains("Read-only file system"), "{said}");
        }
        assert_eq!(left(&root, &before), Vec::<String>::new());
        sh("umount \"$1\"", &[&usr]);
        root.done(&format!("dpkg --install {}", deb("0.1.0")));
        assert_eq!(root.asked(), ["daemon-reload"], "scripts run once it is possible");
    });
}

#[test]
fn rpm_installs_upgrades_and_removes_beside_a_running_daemon() {
    if !needs(&["rpm"]).are_met() {
        return;
    }
    let (other, _place) = with_another_default();
    let first = Packages::build("0.1.0", &[host()], &[Format::Rpm], &source());
    let second = Packages::build("0.1.1", &[host()], &[Format::Rpm], &other);
    Root::of_this_machine(|root| {
        let rpm = |action: &str, packages: &Packages, version: &str| {
            let files = ["loden", "loden-cni"].map(|package| {
                packages.path(&Format::Rpm.file(package, version, host())).display().to_string()
            });
            done(&root.rpm(&[action, &files[0], &files[1]]))
        };
        let before = root.changed();
        rpm("-i", &first, "0.1.0");
        assert_eq!(root.asked(), ["daemon-reload"]);
        assert!(root.done("loden version").starts_with("loden "), "it runs");
        assert_eq!(done(&root.rpm(&["--verify", "loden", "loden-cni"])), "");
        assert!(!root.path("/run/flannel").exists() && !is_enabled(&root), "nothing was started or enabled");

        enable(&root, "/usr/lib/systemd/system/loden.service");
        root.write(CONFIG, EDITED);
        let mut daemon = Daemon::start(&root, "loden-rpm");
        let network = daemon.network(&root);
        let said = rpm("-U", &second, "0.1.1");
        assert!(said.contains(CONTINUES), "{said}");
        assert_eq!(root.read(CONFIG), EDITED);
        assert!(root.read("/etc/default/loden.rpmnew").contains("# Another default."));
        assert!(is_enabled(&root), "it stays enabled");
        let queried = done(&root.rpm(&["-q", "loden"]));
        assert_eq!(queried, format!("loden-0.1.1-1.{}\n", host().name()));
        assert_eq!(daemon.network(&root), network);

        let said = done(&root.rpm(&["-e", "loden", "loden-cni"]));
        assert!(said.contains(REMOVED), "{said}");
        assert!(!is_enabled(&root) && !root.path("/usr/bin/loden").exists());
        assert_eq!(root.read("/etc/default/loden.rpmsave"), EDITED);
        assert!(daemon.runs());
        assert_eq!(daemon.network(&root), network);
        daemon.stop(&root);
        let asked = root.asked();
        assert!(asked.iter().all(|line| [IS_ACTIVE, "daemon-reload"].contains(&line.as_str())), "{asked:?}");
        root.done("rm -r /var/lib/loden /etc/default/loden.rpmsave /etc/default/loden.rpmnew");
        assert_eq!(left(&root, &before), Vec::<String>::new(), "what a removal leaves");
    });
}

/// Installs the first packages, upgrades to the second ones, and removes and purges those, beside a daemon.
pub(super) fn debian(root: &Root, first: &Packages, second: &Packages) {
    put(root, &[first, second]);
    let before = root.changed();
    root.done(&apt("install", &deb("0.1.0")));
    assert_eq!(root.asked(), ["daemon-reload"]);
    assert!(root.done("loden version").starts_with("loden "), "it runs");
    assert!(root.done("loden-cni </dev/null").contains("loden-cni"), "it runs");
    assert_eq!(root.done("dpkg-query -W -f '${Conffiles}' loden").matches(CONFIG).count(), 1);
    assert_eq!(root.done("dpkg --verify loden loden-cni"), "");
    let unit = root.read("/usr/lib/systemd/system/loden.service");
    assert!(unit.contains("\nExecStart=/usr/bin/loden run $LODEN_OPTIONS\n"), "{unit}");
    assert!(root.read(CONFIG).ends_with("\nLODEN_OPTIONS=\n"));
    assert!(!root.path("/run/flannel").exists() && !is_enabled(root), "nothing was started or enabled");

    root.write(CONFIG, EDITED);
    let mut daemon = Daemon::start(root, "loden-deb");
    let network = daemon.network(root);
    let said = root.done(&format!("dpkg --install {}", deb("0.1.1")));
    assert!(said.contains(CONTINUES), "{said}");
    assert_eq!(root.asked(), ["daemon-reload", IS_ACTIVE]);
    assert_eq!((root.read(CONFIG).as_str(), daemon.network(root)), (EDITED, network.clone()));
    assert_eq!(root.done("dpkg-query -W -f '${Version}' loden"), "0.1.1-1");

    let said = root.done("dpkg --remove loden");
    assert!(said.contains(REMOVED) && said.contains("loden cleanup"), "{said}");
    assert_eq!(root.asked(), [IS_ACTIVE, "daemon-reload"]);
    assert_eq!(root.read(CONFIG), EDITED);
    assert!(!root.path("/usr/bin/loden").exists());
    let said = root.done(&apt("purge", "loden loden-cni"));
    assert!(said.contains("/var/lib/loden stays"), "{said}");
    assert!(root.path("/var/lib/loden/loden.db").exists() && !root.path(CONFIG).exists());
    assert!(daemon.runs());
    assert_eq!(daemon.network(root), network);
    daemon.stop(root);

    root.done(&format!("dpkg --install {}", deb("0.1.1")));
    let said = root.done("dpkg --purge loden loden-cni");
    assert!(!said.contains("stays") && !said.contains("continues"), "{said}");
    assert_eq!(left(root, &before), Vec::<String>::new(), "what a purge leaves");
}

pub(super) fn needs(programs: &[&str]) -> Needs {
    Packages::needs(programs)
        .programs(&["chroot", "ip", "mount"])
        .and("root", lab::userns::privileged())
        .and("/dev/net/tun (modprobe tun)", std::path::Path::new("/dev/net/tun").exists())
}

/// The tree with another text in /etc/default/loden.
fn with_another_default() -> (Source, TempDir) {
    let place = tempfile::tempdir().expect("a directory");
    let source = source();
    let copy = "mkdir -p \"$1/docs\" && cp -r deploy \"$1\" && cp docs/changelog.md \"$1/docs\" && \
                echo '# Another default.' >> \"$1/deploy/packages/default\"";
    let mut sh = Command::new("sh");
    run(sh.args(["-c", copy, "sh"]).arg(place.path()).current_dir(&source.root)).expect("a copy");
    (Source { root: place.path().to_owned(), ..source }, place)
}

/// Copies packages to where the system sees them.
pub(super) fn put(root: &Root, packages: &[&Packages]) {
    for packages in packages {
        for name in packages.names() {
            fs::copy(packages.path(&name), root.path("/tmp/packages").join(&name)).expect("a package");
        }
    }
}

fn deb(version: &str) -> String {
    let files = ["loden", "loden-cni"].map(|package| Format::Deb.file(package, version, host()));
    files.map(|file| format!("/tmp/packages/{file}")).join(" ")
}

fn apt(verb: &str, what: &str) -> String {
    format!("apt-get {verb} --yes --no-install-recommends -o APT::Sandbox::User=root {what}")
}

/// Does what `systemctl enable` does.
fn enable(root: &Root, unit: &str) {
    let path = root.path(LINK);
    fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    symlink(unit, path).expect("a link");
}

fn is_enabled(root: &Root) -> bool {
    fs::symlink_metadata(root.path(LINK)).is_ok_and(|file| file.is_symlink())
}

/// What there is that was not there before, without directories that an overlay copies for their content.
fn left(root: &Root, before: &[String]) -> Vec<String> {
    let mut paths = root.changed();
    paths.retain(|path| !before.contains(path) && !std::path::Path::new("/").join(path).is_dir());
    paths
}

fn done(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}
