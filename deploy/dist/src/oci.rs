//! Images in the OCI layout: per architecture, and all of them behind one index.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use crate::arch::Arch;
use crate::layer::{Layer, digest};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Annotations and labels.
pub(crate) type Labels = BTreeMap<&'static str, String>;

/// A layer with the time of its entries and what its history says.
pub(crate) struct Part<'a> {
    /// The files.
    pub layer: &'a Layer,
    /// Seconds since 1970.
    pub time: u64,
    /// One line for the history.
    pub origin: &'a str,
}

/// How a container starts.
pub(crate) struct Start<'a> {
    /// The program with its arguments.
    pub entrypoint: &'a [&'a str],
    /// The environment.
    pub environment: &'a [&'a str],
    /// The time of the image, as RFC 3339 writes it.
    pub created: &'a str,
}

/// The image of one architecture.
#[derive(Debug)]
pub(crate) struct Image {
    descriptor: Value,
    blobs: Blobs,
    /// Where configuration and layers lie.
    config: String,
    layers: Vec<String>,
}

/// Contents by their digests.
#[derive(Clone, Debug, Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds a content, and returns its descriptor.
    fn add(&mut self, kind: &str, data: Vec<u8>) -> Value {
        let digest = digest(&data);
        let size = data.len();
        self.0.insert(digest.clone(), data);
        json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": size })
    }
}

impl Image {
    /// Builds the image.
    pub(crate) fn build(arch: Arch, parts: &[Part<'_>], start: &Start<'_>, labels: &Labels) -> Result<Image> {
        let mut blobs = Blobs::default();
        let (mut layers, mut diffs, mut history) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            let packed = part.layer.pack(part.time)?;
            layers.push(blobs.add(LAYER, packed.data));
            diffs.push(format!("sha256:{}", packed.diff));
            history.push(json!({ "created": start.created, "created_by": part.origin }));
        }
        let config = json!({
            "created": start.created,
            "architecture": arch.debian(),
            "os": "linux",
            "config": { "Entrypoint": start.entrypoint, "Env": start.environment, "Labels": labels },
            "rootfs": { "type": "layers", "diff_ids": diffs },
            "history": history,
        });
        let config = blobs.add(CONFIG, serde_json::to_vec(&config)?);
        let place = |descriptor: &Value| blob(descriptor["digest"].as_str().unwrap_or_default());
        let places = (place(&config), layers.iter().map(place).collect());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
            "annotations": labels,
        });
        let mut descriptor = blobs.add(MANIFEST, serde_json::to_vec(&manifest)?);
        descriptor["platform"] = json!({ "architecture": arch.debian(), "os": "linux" });
        Ok(Image { descriptor, blobs, config: places.0, layers: places.1 })
    }
}

/// Lays out one image under this name, for dockerd too.
pub(crate) fn archive(image: &Image, name: &str) -> Result<Layer> {
    let mut layer = lay_out(&image.blobs, image.descriptor.clone(), name)?;
    // Before version 25, dockerd reads this file alone.
    let docker = json!([{ "Config": image.config, "RepoTags": [name], "Layers": image.layers }]);
    layer.file("manifest.json", serde_json::to_vec(&docker)?, 0o644)?;
    Ok(layer)
}

/// Lays out images behind one index, under this name.
pub(crate) fn layout(images: &[Image], name: &str, labels: &Labels) -> Result<Layer> {
    let mut blobs = Blobs::default();
    images.iter().for_each(|image| blobs.0.extend(image.blobs.0.clone()));
    let manifests: Vec<&Value> = images.iter().map(|image| &image.descriptor).collect();
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests, "annotations": labels,
    });
    let top = blobs.add(INDEX, serde_json::to_vec(&index)?);
    lay_out(&blobs, top, name)
}

fn lay_out(blobs: &Blobs, mut top: Value, name: &str) -> Result<Layer> {
    // containerd reads the first, podman and skopeo the second.
    top["annotations"] =
        json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [top] });
    let mut layer = Layer::default();
    layer.file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    layer.file("index.json", serde_json::to_vec(&index)?, 0o644)?;
    for (digest, data) in &blobs.0 {
        layer.file(&blob(digest), data.as_slice(), 0o644)?;
    }
    Ok(layer)
}

/// Returns where a content lies.
fn blob(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn image(arch: Arch) -> Image {
        let mut layer = Layer::default();
        layer.file("opt/bin/x", arch.name(), 0o755).expect("a file");
        let part = Part { layer: &layer, time: 7, origin: "a test" };
        let start = Start {
            entrypoint: &["/opt/bin/x"],
            environment: &["PATH=/bin"],
            created: "1970-01-01T00:00:07Z",
        };
        Image::build(arch, &[part], &start, &Labels::from([("a.b", "c".to_owned())])).expect("an image")
    }

    fn files(layout: &Layer) -> BTreeMap<String, Vec<u8>> {
        let archive = layout.archive(7).expect("an archive");
        let mut archive = tar::Archive::new(archive.as_slice());
        let entries = archive.entries().expect("entries").map(|entry| {
            let mut entry = entry.expect("an entry");
            let mut data = Vec::new();
            entry.read_to_end(&mut data).expect("its data");
            (entry.path().expect("a path").display().to_string(), data)
        });
        entries.collect()
    }

    /// Reads what a descriptor points to, and checks its digest and size.
    fn follow(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Vec<u8> {
        let named =
            descriptor["digest"].as_str().expect("a digest").strip_prefix("sha256:").expect("SHA-256");
        let data = files[&format!("blobs/sha256/{named}")].clone();
        assert_eq!((digest(&data).as_str(), json!(data.len())), (named, descriptor["size"].clone()));
        data
    }

    fn parse(data: &[u8]) -> Value {
        serde_json::from_slice(data).expect("JSON")
    }

    #[test]
    fn every_digest_is_that_of_its_content() {
        let images = [image(Arch::X86_64), image(Arch::Aarch64)];
        let layout = layout(&images, "localhost/x:1", &Labels::new()).expect("a layout");
        let files = files(&layout);
        let top = parse(&files["index.json"])["manifests"][0].clone();
        assert_eq!(top["annotations"]["org.opencontainers.image.ref.name"], json!("localhost/x:1"));
        let index = parse(&follow(&files, &top));
        let manifests = index["manifests"].as_array().expect("manifests").clone();
        let platforms: Vec<&str> =
            manifests.iter().filter_map(|one| one["platform"]["architecture"].as_str()).collect();
        assert_eq!(platforms, ["amd64", "arm64"]);
        for descriptor in &manifests {
            let manifest = parse(&follow(&files, descriptor));
            let config = parse(&follow(&files, &manifest["config"]));
            assert_eq!(config["architecture"], descriptor["platform"]["architecture"]);
            assert_eq!(config["config"]["Labels"]["a.b"], json!("c"));
            let packed = follow(&files, &manifest["layers"][0]);
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut plain).expect("gzip");
            assert_eq!(config["rootfs"]["diff_ids"][0], json!(format!("sha256:{}", digest(&plain))));
        }
    }

    #[test]
    fn an_archive_of_one_image_has_no_index_of_its_own_and_serves_dockerd() {
        let files = files(&archive(&image(Arch::Aarch64), "localhost/x:1").expect("a layout"));
        let top = parse(&files["index.json"])["manifests"][0].clone();
        assert_eq!(
            (&top["mediaType"], &top["platform"]["architecture"]),
            (&json!(MANIFEST), &json!("arm64"))
        );
        let manifest = parse(&follow(&files, &top));
        let docker = parse(&files["manifest.json"])[0].clone();
        assert_eq!(docker["RepoTags"], json!(["localhost/x:1"]));
        for (place, descriptor) in
            [(&docker["Config"], &manifest["config"]), (&docker["Layers"][0], &manifest["layers"][0])]
        {
            assert_eq!(files[place.as_str().expect("a place")], follow(&files, descriptor));
        }
    }
}
