//! The plugin alone: what the file is, and each verb with Debian's `bridge` and `host-local`, on 64-bit ARM
//! by QEMU.

use std::fs;
use std::path::Path;
use std::process::Command;

use lab::{Namespace, Needs};
use serde_json::{Value, json};

use crate::programs::{self, record};
use crate::{ARCHS, Release, and_emulators};

const PLUGINS: &str = "/usr/lib/cni";

#[test]
fn it_needs_nothing_and_is_small() {
    let Some(release) = Release::with_plugin(Needs::default().programs(&["readelf"])) else { return };
    for arch in ARCHS {
        programs::check(&release, arch, "loden-cni");
    }
}

#[test]
fn its_records_tell_what_it_is_made_of() {
    let Some(release) = Release::with_plugin(Needs::default()) else { return };
    for arch in ARCHS {
        programs::check_provenance(&release, arch);
        let bill: Value = serde_json::from_str(&record(&release, arch, "cdx.json")).expect("JSON");
        let names: Vec<&str> = bill["components"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|part| part["name"].as_str())
            .collect();
        for name in ["cni-plugin", "serde_json", "rust-std", "musl"] {
            assert!(names.contains(&name), "{arch}: {names:?}");
        }
        let licenses = record(&release, arch, "licenses.txt");
        // A word of musl's own, and of the standard library's.
        assert!(licenses.contains("Rich Felker") && licenses.contains("Rust Project"), "{arch}");
    }
}

#[test]
fn each_verb_works_on_each_architecture() {
    let are_there = ["bridge", "host-local"].iter().all(|name| Path::new(PLUGINS).join(name).is_file());
    let plugins = format!("bridge and host-local in {PLUGINS} (Debian's containernetworking-plugins)");
    let needs = and_emulators(Needs::root().and(plugins, are_there));
    let Some(release) = Release::with_plugin(needs) else { return };
    for arch in ARCHS {
        verbs(&release, arch);
    }
}

fn verbs(release: &Release, arch: &str) {
    let name = |end: &str| format!("armcni-{}-{end}", std::process::id());
    let [host, pod] = ["h", "p"].map(|end| Namespace::create(&name(end)).expect("a namespace"));
    let place = tempfile::tempdir().expect("a directory");
    let subnet_file = place.path().join("subnet.env");
    let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\n\
               FLANNEL_IPMASQ=true\n";
    fs::write(&subnet_file, env).expect("a file");
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
        "subnetFile": subnet_file, "dataDir": place.path().join("state"),
        "ipam": { "dataDir": place.path().join("addresses") },
        "delegate": { "isDefaultGateway": true, "bridge": "cni0" },
    });
    let call = |verb: &str, config: &Value| -> Value {
        let text = place.path().join("config");
        fs::write(&text, config.to_string()).expect("a file");
        let mut command = release.command(arch, "loden-cni");
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", PLUGINS)
            .stdin(fs::File::open(text).expect("a file"));
        if !matches!(verb, "STATUS" | "GC" | "VERSION") {
            command.env("CNI_CONTAINERID", "pod-1").env("CNI_NETNS", pod.path()).env("CNI_IFNAME", "eth0");
        }
        let output = host.output(&mut command).expect("loden-cni");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{verb}: {text}{}", String::from_utf8_lossy(&output.stderr));
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("JSON") }
    };
    let shown = || {
        let output = pod.output(Command::new("ip").args(["-4", "-o", "addr", "show", "dev", "eth0"]));
        String::from_utf8_lossy(&output.expect("ip").stdout).into_owned()
    };
    let versions = call("VERSION", &config);
    assert!(versions["supportedVersions"].as_array().is_some_and(|list| list.contains(&json!("1.1.0"))));
    let result = call("ADD", &config);
    assert_eq!(result["ips"][0]["address"], "10.244.7.2/24", "{result:#}");
    assert!(shown().contains("10.244.7.2/24"), "{}", shown());
    config["prevResult"] = result;
    call("CHECK", &config);
    config.as_object_mut().expect("an object").remove("prevResult");
    call("DEL", &config);
    assert_eq!(shown(), "");
    call("ADD", &config);
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([]);
    call("GC", &config);
    assert_eq!(shown(), "");
    let states = fs::read_dir(place.path().join("state")).expect("a directory").count();
    assert_eq!(states, 0);
}
