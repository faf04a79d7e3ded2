//! An image without a registry: busybox and nothing else, as a directory and as an OCI archive.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest, Sha256};

/// The image's name. There is no such registry.
pub const IMAGE: &str = "loden.test/busybox:1";

/// The image's default command: wait for SIGTERM.
const REST: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// Returns the command line of a web server that serves its own name and the client's address.
pub fn server(name: &str) -> String {
    format!("echo {name} > /www/name; exec httpd -f -p 80 -h /www")
}

/// Returns whether busybox is static: the image has no libraries.
pub fn has_static_busybox() -> bool {
    let bytes = lab::find("busybox").and_then(|busybox| fs::read(busybox).ok()).unwrap_or_default();
    // A dynamic program names its loader (elf(5), PT_INTERP).
    !bytes.is_empty() && !bytes.windows(9).any(|window| window == b"/ld-linux")
}

/// Creates the files of a container in a new directory.
pub fn root(place: &Path) -> PathBuf {
    let root = place.join("rootfs");
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "run", "www/cgi-bin"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    let busybox = lab::find("busybox").expect("asked for before");
    fs::copy(&busybox, root.join("bin/busybox")).expect("busybox");
    let applets = Command::new(&busybox).arg("--list").output().expect("busybox");
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).expect("a link");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("a file");
    fs::write(root.join("etc/group"), "root:x:0:\n").expect("a file");
    let who = root.join("www/cgi-bin/who");
    fs::write(&who, "#!/bin/sh\necho\necho $REMOTE_ADDR\n").expect("a file");
    fs::set_permissions(&who, fs::Permissions::from_mode(0o755)).expect("a mode");
    root
}

/// Packs the image as an archive in OCI layout (image-spec, image-layout.md).
pub fn archive(place: &Path) -> PathBuf {
    let root = root(place);
    let layer_file = place.join("layer.tar");
    tar(&root, &layer_file);
    let layout = place.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a directory");
    let add = |bytes: &[u8]| {
        let digest = hex(&Sha256::digest(bytes));
        fs::write(layout.join("blobs/sha256").join(&digest), bytes).expect("a blob");
        (format!("sha256:{digest}"), bytes.len())
    };
    let (layer, layer_size) = add(&fs::read(&layer_file).expect("the layer"));
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Cmd": ["/bin/sh", "-c", REST], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
        "history": [{"created_by": "a test"}],
    });
    let (config, config_size) = add(config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size,
        }],
    });
    let (manifest, manifest_size) = add(manifest.to_string().as_bytes());
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest, "size": manifest_size,
            "annotations": {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": "1"},
        }],
    });
    fs::write(layout.join("index.json"), index.to_string()).expect("the index");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the layout");
    let archive = place.join("image.tar");
    tar(&layout, &archive);
    archive
}

/// Returns this machine's architecture by its name in Go, which OCI uses.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Packs a directory. Every file belongs to root.
pub fn tar(directory: &Path, archive: &Path) {
    let mut command = Command::new("tar");
    command
        .args(["--owner=0", "--group=0", "--numeric-owner", "-cf"])
        .arg(archive)
        .arg("-C")
        .arg(directory)
        .arg(".");
    assert!(command.status().expect("tar").success(), "{}", archive.display());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
