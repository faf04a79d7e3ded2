use super::*;
use clap::Parser;
use proptest::prelude::*;

/// The configuration of flannel's manifest, since v0.28.10 with this version.
const MANIFEST: &str = r#"{"name":"cbr0","cniVersion":"1.0.0","plugins":[{"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;

#[test]
fn a_generated_list_is_flannels() {
    let text = conflist::generate(&parsed(&[]), "flannel").expect("a list");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json, serde_json::from_str::<serde_json::Value>(MANIFEST).expect("JSON"));
    conflist::check(text.as_bytes(), "10-flannel.conflist").expect("it passes our own check");
}

#[test]
fn its_values_can_be_chosen() {
    let options = parsed(&["--network", "pods", "--cni-version", "1.1.0", "--subnet-file", "/run/x.env"]);
    let text = conflist::generate(&options, "loden-cni").expect("a list");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&json["name"], &json["cniVersion"]), (&"pods".into(), &"1.1.0".into()));
    assert_eq!(json["plugins"][0]["type"], "loden-cni");
    assert_eq!(json["plugins"][0]["subnetFile"], "/run/x.env");
    for bad in ["", "a/b", "-a", "a b"] {
        assert!(conflist::generate(&parsed(&[&format!("--network={bad}")]), "x").is_err(), "{bad:?}");
    }
}

#[test]
fn configurations_that_no_runtime_can_read_are_rejected() {
    const SINGLE: &str = r#"{"name":"x","type":"flannel"}"#;
    const VERSIONS: &str = r#"{"name":"x","cniVersions":["1.0.0","1.1.0"],"plugins":[{"type":"flannel"}]}"#;
    for (good, name) in
        [(MANIFEST, "1.conflist"), (VERSIONS, "1.conflist"), (SINGLE, "1.conf"), (SINGLE, "a.b.json")]
    {
        conflist::check(good.as_bytes(), name).expect(good);
    }
    for (text, name, said) in [
        (
            MANIFEST,
            "10-flannel.conf",
            "a list of plugins, which runtimes read only from a file named *.conflist",
        ),
        (MANIFEST, "10-flannel.json", ".conflist"),
        (MANIFEST, "conflist", ".conflist"),
        (
            SINGLE,
            "10-flannel.conflist",
            "a single plugin, which runtimes read only from a file named *.conf or *.json",
        ),
        (SINGLE, "10-flannel.conf.bak", "10-flannel.conf.bak"),
        (SINGLE, "", "*.conf or *.json"),
    ] {
        let error = conflist::check(text.as_bytes(), name).expect_err(name).to_string();
        assert!(error.contains(said), "{error}");
    }
    for bad in [
        "",
        "{",
        "[]",
        r#"{"name":"x"}"#,
        r#"{"name":"x","plugins":[{"type":"a"}]}"#,
        r#"{"name":"x","cniVersion":"","plugins":[{"type":"a"}]}"#,
        r#"{"name":"x","cniVersion":1,"plugins":[{"type":"a"}]}"#,
        r#"{"name":"x","cniVersions":[],"plugins":[{"type":"a"}]}"#,
        r#"{"name":"x","plugins":[]}"#,
        r#"{"plugins":[{"type":"a"}]}"#,
    ] {
        assert!(conflist::check(bad.as_bytes(), "1.conflist").is_err(), "{bad}");
    }
}

#[test]
fn flannels_program_is_known_by_its_name() {
    for (name, is) in [("/opt/bin/install-conf", true), ("install-conf", true), ("loden", false)] {
        assert_eq!(install_conf::is_program_name(Some(name.as_ref())), is, "{name}");
    }
}

#[test]
fn configurations_that_runtimes_use_first_are_found() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["05-a.conf", "09-b.conflist", "07-c.txt", "99-d.conf", "10-flannel.conflist"] {
        fs::write(directory.path().join(name), "").expect("a file");
    }
    let found = conflist::earlier(directory.path(), "10-flannel.conflist");
    assert_eq!(found, ["05-a.conf", "09-b.conflist"]);
}

#[test]
fn two_networks_on_one_subnet_file_are_found() {
    let directory = tempfile::tempdir().expect("a directory");
    let ours = directory.path().join("10-flannel.conflist");
    let single = |name: &str, more: &str| format!(r#"{{"name":"{name}","type":"flannel"{more}}}"#);
    let list = |name: &str, more: &str| {
        format!(r#"{{"name":"{name}","cniVersion":"1.0.0","plugins":[{{"type":"loden-cni"{more}}}]}}"#)
    };
    let default = r#","subnetFile":"/run/flannel/subnet.env""#;
    for (name, text, clashes) in [
        ("05-a.conf", single("pods", ""), true),
        ("90-a.conflist", list("pods", ""), true),
        ("90-a.json", single("pods", default), true),
        ("90-a.conf", single("cbr0", r#","ipam":{"dataDir":"/x"}"#), true),
        ("90-a.conf", single("custom", "").replace("flannel", "mine"), true),
        ("90-a.conf", single("cbr0", ""), false),
        ("90-a.conf", single("cbr0", r#","ipam":{"dataDir":"/var/lib/cni/networks"}"#), false),
        ("90-a.conf", single("pods", r#","subnetFile":"/run/other.env""#), false),
        ("90-a.conf", single("pods", r#","ipam":{"type":"whereabouts"}"#), false),
        ("90-a.conf", single("pods", "").replace("flannel", "bridge"), false),
        ("90-a.conf.bak", single("pods", ""), false),
        ("10-flannel.conflist", list("pods", ""), false),
        ("90-a.conf", "rubbish".into(), false),
        ("90-a.conf", r#"{"plugins":7}"#.into(), false),
    ] {
        fs::write(directory.path().join(name), &text).expect("a file");
        let found = conflist::clash(MANIFEST.as_bytes(), &ours, &["mine".into()]);
        assert_eq!(found.is_some(), clashes, "{name} {text}: {found:?}");
        assert!(found.is_none_or(|said| said.contains(name) && said.contains("/run/flannel/subnet.env")));
        fs::remove_file(directory.path().join(name)).expect("removed");
    }
}

#[test]
fn plugins_that_a_configuration_needs_are_looked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = |text: &str| conflist::missing_plugins(text.as_bytes(), directory.path(), &["mine".into()]);
    assert_eq!(missing(MANIFEST), ["flannel", "bridge", "host-local", "portmap"]);
    let other = r#"{"name":"x","type":"mine","delegate":{"type":"ptp"},"ipam":{"type":"dhcp"}}"#;
    assert_eq!(missing(other), ["mine", "ptp", "dhcp"]);
    assert_eq!(
        missing(r#"{"plugins":[{"type":"macvlan","ipam":{"type":"dhcp"}},{"type":"dhcp"},{}]}"#),
        ["macvlan", "dhcp"]
    );
    for (name, mode) in [("flannel", 0o755), ("bridge", 0o755), ("host-local", 0o644)] {
        fs::write(directory.path().join(name), "").expect("a file");
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(directory.path().join(name), mode).expect("a mode");
    }
    fs::create_dir(directory.path().join("portmap")).expect("a directory");
    assert_eq!(missing(MANIFEST), ["host-local", "portmap"]);
    for text in ["", "[]", "7", r#"{"plugins":{}}"#] {
        assert_eq!(missing(text), [""; 0], "{text}");
    }
}

#[test]
fn advice_fits_the_systems_answer() {
    let options = parsed(&[]);
    let said = |path: &str, kind: io::ErrorKind| {
        let error = atomic_file::WriteError { what: "write", path: path.into(), source: kind.into() };
        advise(error, &options).to_string()
    };
    let text = said("/opt/cni/bin/flannel", io::ErrorKind::ReadOnlyFilesystem);
    assert!(text.contains("mount it writable") && text.contains("--bin-dir"), "{text}");
    assert!(said("/etc/cni/net.d/x", io::ErrorKind::Other).contains("--conf-dir"));
    assert!(said("/etc/cni/net.d/x", io::ErrorKind::PermissionDenied).contains("run as root"));
    assert!(said("/etc/cni/net.d/x", io::ErrorKind::StorageFull).contains("free some space"));
}

proptest! {
    #[test]
    fn noise_never_panics(bytes: Vec<u8>, text in "\\PC{0,60}") {
        let _ = (conflist::check(&bytes, &text), conflist::check(text.as_bytes(), &text), plain_name(&text, "--name"));
    }
}

fn parsed(flags: &[&str]) -> InstallCniOptions {
    let line = ["loden", "install-cni"].iter().chain(flags);
    match crate::options::CommandLine::try_parse_from(line).expect("a good line").command {
        crate::options::Command::InstallCni(options) => options,
        other => panic!("{other:?}"),
    }
}
