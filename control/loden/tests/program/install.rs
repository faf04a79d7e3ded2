//! `loden install-cni`, `loden install-conf` and `loden mk-docker-opts` as processes, on real directories.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use lab::{Needs, mounts};
use tempfile::TempDir;

const CONF: &str = r#"{"name":"cbr0","plugins":[{"type":"flannel"}],  "cniVersion":"0.3.1"}"#;

#[test]
fn the_plugin_and_a_list_are_put_once_and_a_second_run_says_so() {
    let host = Host::new();
    let first = host.install(&[]);
    let said = text(&first.stdout);
    let places = [host.bin("flannel"), host.bin("loden-cni"), host.conf()];
    let lines = |word: &str| places.each_ref().map(|place| format!("{word} {}", place.display())).join("\n");
    assert_eq!((first.status.code(), said.as_str()), (Some(0), lines("installed").as_str()), "{first:?}");
    for place in &places[..2] {
        assert_eq!(fs::read(place).expect("a plugin"), fs::read(&host.plugin).expect("the plugin"));
        assert_eq!(mode(place), 0o755);
    }
    assert_eq!(mode(&places[2]), 0o644);
    let list: serde_json::Value =
        serde_json::from_slice(&fs::read(&places[2]).expect("a list")).expect("JSON");
    assert_eq!(
        (&list["plugins"][0]["type"], &list["plugins"][1]["type"]),
        (&"flannel".into(), &"portmap".into())
    );
    let before =
        places.each_ref().map(|place| fs::metadata(place).expect("a file").modified().expect("a time"));
    let again = host.install(&[]);
    assert_eq!((again.status.code(), text(&again.stdout)), (Some(0), lines("unchanged")));
    let after =
        places.each_ref().map(|place| fs::metadata(place).expect("a file").modified().expect("a time"));
    assert_eq!(before, after);
    assert_eq!(
        (host.names("bin"), host.names("net.d")),
        (vec!["flannel".into(), "loden-cni".into()], vec!["10-flannel.conflist".into()])
    );
}

#[test]
fn a_given_configuration_is_copied_to_the_byte_with_its_mode() {
    let host = Host::new();
    let source = host.path("cni-conf.json");
    // Laid out like a mounted ConfigMap.
    fs::write(host.path("data"), CONF).expect("a file");
    fs::set_permissions(host.path("data"), fs::Permissions::from_mode(0o600)).expect("a mode");
    symlink(host.path("data"), &source).expect("a link");
    fs::write(host.path("net.d/05-old.conf"), "{}").expect("another one");
    let output = host.install(&["--conf", &source.display().to_string(), "--name", "flannel"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        (fs::read_to_string(host.conf()).expect("a list").as_str(), mode(&host.conf())),
        (CONF, 0o600)
    );
    assert_eq!(host.names("bin"), ["flannel"]);
    let warned = text(&output.stderr);
    assert!(warned.contains("05-old.conf") && warned.contains("use the first"), "{warned}");
}

#[test]
fn a_plugin_that_runs_is_not_disturbed() {
    let host = Host::new();
    fs::copy("/bin/sleep", host.bin("flannel")).expect("an old plugin");
    let mut old = Command::new(host.bin("flannel")).arg("600").stdin(Stdio::null()).spawn().expect("it runs");
    let output = host.install(&[]);
    let runs_on = old.try_wait().expect("wait").is_none();
    old.kill().expect("a signal");
    old.wait().expect("an end");
    assert!(output.status.success() && runs_on, "{output:?}");
    assert_eq!(fs::read(host.bin("flannel")).expect("a plugin"), fs::read(&host.plugin).expect("the plugin"));
}

#[test]
fn what_is_wrong_is_found_before_anything_is_put() {
    let host = Host::new();
    let conf = host.path("bad.json").display().to_string();
    fs::write(&conf, "{\"name\":").expect("a file");
    let versionless = host.path("versionless.json").display().to_string();
    fs::write(&versionless, CONF.replace("cniVersion", "version")).expect("a file");
    let single = host.path("single.json").display().to_string();
    fs::write(&single, r#"{"name":"x","type":"flannel"}"#).expect("a file");
    let nowhere = host.path("nowhere").display().to_string();
    for (flags, said) in [
        (&["--conf", &conf][..], vec!["bad.json", "not JSON", "not installed"]),
        (&["--conf", &nowhere], vec!["cannot read the configuration", "nowhere"]),
        (&["--conf-dir", &nowhere], vec!["--conf-dir", "mkdir -p", "nowhere"]),
        (&["--bin-dir", &nowhere], vec!["--bin-dir", "mkdir -p", "nowhere"]),
        (&["--plugin", &nowhere], vec!["cannot read the plugin", "--plugin"]),
        (&["--plugin", &conf], vec!["is not a program", "--plugin"]),
        (&["--name", "a/b"], vec!["--name", "not a file name"]),
        (&["--conf-name", "10-flannel.conf"], vec!["--conf-name", "*.conflist", "rename the file"]),
        (&["--conf", &single], vec!["single.json", "*.conf or *.json", "10-flannel.conflist"]),
        (&["--conf", &versionless], vec!["versionless.json", "no \"cniVersion\"", "not installed"]),
        (&["--network", "../x"], vec!["--network", "not a valid CNI name"]),
    ] {
        let output = host.install(flags);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {error}");
        assert!(said.iter().all(|word| error.contains(word)), "{flags:?}: {error}");
        assert_eq!((host.names("bin").len(), host.names("net.d").len()), (0, 0), "{flags:?}");
    }
}

#[test]
fn plugins_that_are_missing_are_named() {
    let host = Host::new();
    let output = host.install(&[]);
    let warned = text(&output.stderr);
    assert!(output.status.success(), "{output:?}");
    assert!(
        warned.contains("bridge, host-local, portmap not found in ") && warned.contains("/bin"),
        "{warned}"
    );
    for name in ["bridge", "host-local", "portmap"] {
        fs::copy(&host.plugin, host.bin(name)).expect("a plugin");
        fs::set_permissions(host.bin(name), fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    assert_eq!(text(&host.install(&[]).stderr), "");
}

#[test]
fn a_second_network_on_the_same_subnet_file_is_not_installed() {
    let host = Host::new();
    assert!(host.install(&[]).status.success());
    let second = ["--network", "pods", "--conf-name", "20-pods.conflist"];
    let output = host.install(&second);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    for word in ["20-pods.conflist not installed", "cbr0", "10-flannel.conflist", "/run/flannel/subnet.env"] {
        assert!(error.contains(word), "{error}");
    }
    let source = host.path("conf.json");
    fs::write(&source, CONF.replace("cbr0", "pods")).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
    let output = command.arg("install-conf").arg(&source).arg(host.path("net.d/20-pods.conflist")).output();
    assert_eq!(output.expect("it runs").status.code(), Some(1));
    assert_eq!(host.names("net.d"), ["10-flannel.conflist"]);
    // On a subnet file of its own, or in the place of the first.
    let other = [&second[..], &["--subnet-file", "/run/second/subnet.env"]].concat();
    assert!(host.install(&other).status.success());
    fs::remove_file(host.path("net.d/20-pods.conflist")).expect("removed");
    assert!(host.install(&["--network", "pods"]).status.success());
    assert_eq!(host.names("net.d"), ["10-flannel.conflist"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_named_with_what_to_do() {
    if !Needs::root().are_met() {
        return;
    }
    let host = Host::new();
    mounts::private(|| {
        mounts::tmpfs(&host.path("net.d"), "1m").expect("a tmpfs");
        mounts::set_read_only(&host.path("net.d"), true).expect("read-only");
        let output = host.install(&[]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        for word in ["10-flannel.conflist", "Read-only file system", "mount it writable", "--conf-dir"] {
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(host.names("bin"), ["flannel", "loden-cni"], "the binary comes first");
        mounts::set_read_only(&host.path("net.d"), false).expect("writable");
        let output = host.install(&[]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text(&output.stdout).matches("unchanged").count(), 2, "only what was missing is done");
        assert_eq!(host.names("net.d"), ["10-flannel.conflist"]);
    })
    .expect("private mounts");
}

#[test]
fn called_as_flannels_install_conf_it_copies_the_configuration_to_the_byte_with_its_mode() {
    let host = Host::new();
    let program = host.path("install-conf");
    symlink(env!("CARGO_BIN_EXE_loden"), &program).expect("a link");
    let source = host.path("cni-conf.json");
    fs::write(&source, CONF).expect("a file");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o640)).expect("a mode");
    let run = |target: &Path| Command::new(&program).arg(&source).arg(target).output().expect("it runs");
    for word in ["installed", "unchanged"] {
        let output = run(&host.conf());
        let said = format!("{word} {}", host.conf().display());
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), said), "{output:?}");
        let there = fs::read_to_string(host.conf()).expect("a list");
        assert_eq!((there.as_str(), mode(&host.conf())), (CONF, 0o640));
    }
    for (target, words) in [
        ("net.d/10-flannel.conf", ["cni-conf.json not installed", "*.conflist"]),
        ("nowhere/10-flannel.conflist", ["nowhere", "mount the host's"]),
        ("net.d/..", ["cni-conf.json not installed", "*.conflist"]),
    ] {
        let output = run(&host.path(target));
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    fs::write(&source, "{").expect("a file");
    assert_eq!(run(&host.conf()).status.code(), Some(1));
    assert_eq!(fs::read_to_string(host.conf()).expect("a list"), CONF, "as it was");
    assert_eq!(Command::new(&program).output().expect("it runs").status.code(), Some(2), "two arguments");
    assert_eq!(host.names("net.d"), ["10-flannel.conflist"]);
}

#[test]
fn called_by_the_scripts_name_it_does_what_the_script_does() {
    let host = Host::new();
    fs::write(
        host.path("subnet.env"),
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n",
    )
    .expect("a file");
    let script = host.path("mk-docker-opts.sh");
    symlink(env!("CARGO_BIN_EXE_loden"), &script).expect("a link");
    let run = |from: &str, flags: &[&str]| {
        let mut command = Command::new(&script);
        command.arg("-f").arg(host.path(from)).arg("-d").arg(host.path("docker.env")).args(flags);
        command.env_remove("DOCKER_OPTS").env_remove("FLANNEL_SUBNET").output().expect("it runs")
    };
    let output = run("subnet.env", &["-k", "DOCKER_NETWORK_OPTIONS"]);
    assert!(output.status.success(), "{output:?}");
    let made = fs::read_to_string(host.path("docker.env")).expect("a file");
    assert_eq!(
        made,
        "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n\
         DOCKER_NETWORK_OPTIONS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
    );
    // A shell can read it too.
    let line = format!(". {}; echo $DOCKER_NETWORK_OPTIONS", host.path("docker.env").display());
    let shell = Command::new("sh").args(["-c", &line]).output().expect("sh");
    assert_eq!(text(&shell.stdout), "--bip=10.1.74.1/24 --ip-masq=true --mtu=1472");

    let output = run("missing.env", &[]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("missing.env") && error.contains("-f"), "{error}");
    assert_eq!(fs::read_to_string(host.path("docker.env")).expect("a file"), made, "left as it was");
}

#[test]
fn dockers_options_go_into_a_device_or_the_output_and_replace_neither() {
    let host = Host::new();
    fs::write(
        host.path("subnet.env"),
        "FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n",
    )
    .expect("a file");
    let expected = "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"";
    let run = |line: &str| {
        let program = env!("CARGO_BIN_EXE_loden");
        let line = format!("cd {}; {line}", host.place.path().display()).replace("LODEN", program);
        let output = Command::new("sh").args(["-c", &line]).env_remove("DOCKER_OPTS").output().expect("sh");
        assert!(output.status.success(), "{line}: {output:?}");
        text(&output.stdout)
    };
    let line = "LODEN mk-docker-opts -c -f subnet.env -d";
    assert_eq!(run(&format!("{line} /dev/stdout")), expected);
    assert_eq!(run(&format!("{line} /dev/fd/1 | cat")), expected);
    assert_eq!(
        run(&format!("echo first > out; {line} /dev/stdout >> out; echo last >> out; cat out")),
        format!("first\n{expected}\nlast")
    );
    assert_eq!(run(&format!("{line} /dev/null")), "");
    let lines = expected.lines().count();
    // Opened for both, so that there is a reader whenever it is written.
    assert_eq!(run(&format!("mkfifo fifo; exec 3<>fifo; {line} fifo; head -n {lines} <&3")), expected);
    symlink(host.path("target"), host.path("link")).expect("a link");
    fs::write(host.path("target"), "old").expect("a file");
    run(&format!("{line} link"));
    assert_eq!(fs::read_to_string(host.path("target")).expect("a file").trim_end(), expected);
    let is_device = |path: &str| fs::metadata(path).expect("there").file_type().is_char_device();
    let is_link = |path: &Path| fs::symlink_metadata(path).expect("there").is_symlink();
    assert!(is_device("/dev/null") && is_link(Path::new("/dev/stdout")) && is_link(&host.path("link")));
}

#[test]
fn a_configuration_does_not_replace_what_is_no_file() {
    let host = Host::new();
    let source = host.path("conf.json");
    fs::write(&source, CONF).expect("a file");
    let target = host.path("net.d/10-flannel.conflist");
    for device in ["/dev/null", "/dev/stdout"] {
        symlink(device, &target).expect("a link");
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
        let output = command.arg("install-conf").arg(&source).arg(&target).output().expect("it runs");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(error.contains("cannot replace") && error.contains("10-flannel.conflist"), "{error}");
        let output = host.install(&[]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(fs::symlink_metadata(&target).expect("there").is_symlink());
        fs::remove_file(&target).expect("removed");
    }
    assert!(fs::metadata("/dev/null").expect("there").file_type().is_char_device());
}

#[test]
fn what_a_killed_installation_has_left_is_removed_by_the_next() {
    let host = Host::new();
    for unchanged in [false, true] {
        for name in ["bin/.flannel.aB3dE9", "bin/.loden-cni.XXXXXX", "net.d/.10-flannel.conflist.123456"] {
            fs::write(host.path(name), "partial").expect("a file");
        }
        let output = host.install(&[]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text(&output.stdout).contains("unchanged"), unchanged);
        assert_eq!(host.names("bin"), ["flannel", "loden-cni"]);
        assert_eq!(host.names("net.d"), ["10-flannel.conflist"]);
    }
}

/// The directories of a host, and a program that stands for the plugin.
struct Host {
    place: TempDir,
    plugin: PathBuf,
}

impl Host {
    fn new() -> Host {
        let place = tempfile::tempdir().expect("a directory");
        for name in ["bin", "net.d"] {
            fs::create_dir(place.path().join(name)).expect("a directory");
        }
        let plugin = place.path().join("plugin");
        fs::write(&plugin, "#!/bin/sh\nexit 0\n").expect("a plugin");
        Host { place, plugin }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.path("bin").join(name)
    }

    fn conf(&self) -> PathBuf {
        self.path("net.d/10-flannel.conflist")
    }

    fn install(&self, flags: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
        command.arg("install-cni");
        for (flag, value) in [
            ("--plugin", self.plugin.clone()),
            ("--bin-dir", self.path("bin")),
            ("--conf-dir", self.path("net.d")),
        ] {
            if !flags.contains(&flag) {
                command.arg(flag).arg(value);
            }
        }
        command.args(flags).output().expect("it runs")
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(directory)).expect("a directory");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").permissions().mode() & 0o7777
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}
