use super::*;
use clap::Parser;
use proptest::prelude::*;

/// The configuration of flannel's manifest.
const MANIFEST: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;

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
    for (good, name) in [(MANIFEST, "1.conflist"), (SINGLE, "1.conf"), (SINGLE, "a.b.json")] {
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
    for bad in
        ["", "{", "[]", r#"{"name":"x"}"#, r#"{"name":"x","plugins":[]}"#, r#"{"plugins":[{"type":"a"}]}"#]
    {
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
