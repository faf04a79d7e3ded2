//! What the programs are made of, as cargo resolves it: data for scanners inside each program, a list in
//! CycloneDX's format, and the licences.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use auditable_serde::{DependencyKind, Source as Origin, VersionInfo};
use cargo_metadata::{Metadata, MetadataCommand, Package, PackageId, TargetKind};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde_json::{Value, json};

use crate::arch::Arch;
use crate::command::read;
use crate::source::Source;

/// How files with licences are named, in capitals.
const LICENSES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// The texts of packages that contain none, as their repositories have them.
const MISSING: [(&str, &str); 1] = [("boringtun", include_str!("../licenses/boringtun"))];

/// What the programs of one architecture are made of.
#[derive(Debug)]
pub(crate) struct Inventory {
    metadata: Metadata,
    /// The packages that are built for this architecture with these features.
    built: BTreeSet<PackageId>,
    roots: Vec<PackageId>,
    target: String,
}

/// A part that cargo knows nothing about: it comes with the compiler or the linker.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub name: &'static str,
    pub version: String,
    pub license: &'static str,
    /// Files with its licence.
    pub texts: Vec<PathBuf>,
}

impl Inventory {
    /// Asks cargo what these packages of the checkout need.
    pub(crate) fn read(arch: Arch, source: &Source, packages: &[&str], offline: bool) -> Result<Inventory> {
        let target = arch.target();
        let offline = offline.then_some("--offline");
        let cargo = |arguments: &[&str]| {
            read(
                Command::new("cargo").current_dir(&source.root).args(arguments).arg("--locked").args(offline),
            )
        };
        let text = cargo(&["metadata", "--format-version=1", "--filter-platform", &target])?;
        let metadata = MetadataCommand::parse(text).context("cannot read what cargo metadata printed")?;
        // The metadata have the features of all packages of the workspace and of the tests.
        let mut arguments = vec!["tree", "--edges=normal,build", "--prefix=none", "--format={p}", "--target"];
        arguments.push(&target);
        arguments.extend(packages.iter().flat_map(|package| ["-p", package]));
        let tree = cargo(&arguments)?;
        let named: BTreeSet<(&str, &str)> = tree.lines().filter_map(of_tree).collect();
        let is_built = |package: &&Package| {
            named.contains(&(package.name.as_str(), package.version.to_string().as_str()))
        };
        let built = metadata.packages.iter().filter(is_built).map(|package| package.id.clone()).collect();
        let root = |name: &&str| {
            let found =
                metadata.workspace_packages().into_iter().find(|package| package.name.as_str() == *name);
            found.map(|package| package.id.clone()).with_context(|| format!("{name} is not in the workspace"))
        };
        let roots = packages.iter().map(root).collect::<Result<_>>()?;
        Ok(Inventory { metadata, built, roots, target })
    }

    /// Returns what scanners look for in the section `.dep-v0` of a program: compressed JSON.
    pub(crate) fn audit_data(&self, package: &str) -> Result<Vec<u8>> {
        let root = self.roots.iter().find(|root| self.metadata[*root].name.as_str() == package);
        let root = root.with_context(|| format!("{package} is not a program of the release"))?;
        let mut ordered: Vec<(&Package, DependencyKind)> =
            self.reachable(&[root]).into_iter().map(|(id, kind)| (&self.metadata[id], kind)).collect();
        ordered.sort_by_key(|(package, _)| (&package.name, &package.version));
        let place: BTreeMap<&PackageId, usize> =
            ordered.iter().enumerate().map(|(place, (package, _))| (&package.id, place)).collect();
        let packages = ordered.iter().map(|(package, kind)| auditable_serde::Package {
            name: package.name.to_string(),
            version: package.version.clone(),
            source: origin(package),
            kind: *kind,
            dependencies: {
                let needed = self.needed(&package.id).into_iter();
                let places: BTreeSet<usize> = needed.filter_map(|(id, _)| place.get(id).copied()).collect();
                places.into_iter().collect()
            },
            root: package.id == *root,
        });
        let data = VersionInfo { packages: packages.collect(), format: 1 };
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&serde_json::to_vec(&data)?)?;
        Ok(encoder.finish()?)
    }

    /// Returns the list of all parts as CycloneDX 1.6 defines it.
    pub(crate) fn bill(&self, source: &Source, foreign: &[Foreign]) -> Result<String> {
        let parts = self.parts();
        let component = |package: &Package, kind: DependencyKind| {
            json!({
                "type": if self.roots.contains(&package.id) { "application" } else { "library" },
                "bom-ref": reference(package),
                "name": package.name,
                "version": package.version,
                "scope": if kind == DependencyKind::Build { "excluded" } else { "required" },
                "licenses": [{ "expression": expression(package) }],
                "purl": reference(package),
            })
        };
        let mut components: Vec<Value> =
            parts.iter().map(|(package, kind)| component(package, *kind)).collect();
        for part in foreign {
            components.push(json!({
                "type": "library",
                "bom-ref": part.reference(),
                "name": part.name,
                "version": part.version,
                "scope": "required",
                "licenses": [{ "expression": part.license }],
                "purl": part.reference(),
            }));
        }
        let release = format!("pkg:generic/loden@{}", source.version);
        let mut dependencies = vec![json!({
            "ref": release,
            "dependsOn": self.roots.iter().map(|root| reference(&self.metadata[root]))
                .chain(foreign.iter().map(Foreign::reference)).collect::<BTreeSet<_>>(),
        })];
        for (package, _) in &parts {
            let needed = self.needed(&package.id).into_iter();
            let references: BTreeSet<_> = needed.map(|(id, _)| reference(&self.metadata[id])).collect();
            dependencies.push(json!({ "ref": reference(package), "dependsOn": references }));
        }
        let bill = json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "timestamp": source.time(),
                "component": {
                    "type": "application",
                    "bom-ref": release,
                    "name": "loden",
                    "version": source.version,
                    "licenses": [{ "expression": "Apache-2.0" }],
                    "purl": release,
                    "properties": [
                        { "name": "loden:commit", "value": source.commit },
                        { "name": "loden:target", "value": self.target },
                    ],
                },
            },
            "components": components,
            "dependencies": dependencies,
        });
        Ok(serde_json::to_string_pretty(&bill)? + "\n")
    }

    /// Returns the licence of each part that is in a program, and then each text once.
    pub(crate) fn licenses(&self, foreign: &[Foreign]) -> Result<String> {
        let mut listed = "What the programs of loden are made of, each with its licence.\n\n".to_owned();
        let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let parts = self.parts();
        for (package, _) in parts.iter().filter(|(_, kind)| *kind == DependencyKind::Runtime) {
            let name = format!("{} {}", package.name, package.version);
            writeln!(listed, "{name}: {}", expression(package))?;
            // Our own are under the licence in LICENSE.
            if package.source.is_some() {
                for text in texts_for(package, &parts)? {
                    texts.entry(text).or_default().push(name.clone());
                }
            }
        }
        for part in foreign {
            let name = format!("{} {}", part.name, part.version);
            writeln!(listed, "{name}: {}", part.license)?;
            for path in &part.texts {
                texts.entry(text_of(path)?).or_default().push(name.clone());
            }
        }
        let mut texts: Vec<(Vec<String>, String)> =
            texts.into_iter().map(|(text, names)| (names, text)).collect();
        texts.sort();
        for (mut names, text) in texts {
            names.dedup();
            write!(listed, "\n{}\n{}\n\n{}\n", "-".repeat(72), names.join(", "), text.trim_end())?;
        }
        Ok(listed)
    }

    /// Returns all parts in order of their names.
    fn parts(&self) -> Vec<(&Package, DependencyKind)> {
        let reachable = self.reachable(&self.roots.iter().collect::<Vec<_>>());
        let mut parts: Vec<_> = reachable.into_iter().map(|(id, kind)| (&self.metadata[id], kind)).collect();
        parts.sort_by_key(|(package, _)| (&package.name, &package.version));
        parts
    }

    /// Finds what these packages need. A part of the program is of the kind `Runtime`, even if it is also
    /// needed for building.
    fn reachable<'a>(&'a self, roots: &[&'a PackageId]) -> BTreeMap<&'a PackageId, DependencyKind> {
        let mut found = BTreeMap::new();
        let mut open: Vec<_> = roots.iter().map(|root| (*root, DependencyKind::Runtime)).collect();
        while let Some((id, kind)) = open.pop() {
            let known = found.get(id);
            if known == Some(&DependencyKind::Runtime) || known == Some(&kind) {
                continue;
            }
            found.insert(id, kind);
            for (next, edge) in self.needed(id) {
                let is_build = kind == DependencyKind::Build || edge == DependencyKind::Build;
                open.push((next, if is_build { DependencyKind::Build } else { DependencyKind::Runtime }));
            }
        }
        found
    }

    /// Returns what a package needs itself.
    fn needed<'a>(&'a self, id: &PackageId) -> Vec<(&'a PackageId, DependencyKind)> {
        let nodes = self.metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
        let dependencies = nodes.filter(|node| node.id == *id).flat_map(|node| &node.deps);
        let kind = |dependency: &'a cargo_metadata::NodeDep| {
            let kinds = || dependency.dep_kinds.iter().map(|info| info.kind);
            let is_macro = self.metadata[&dependency.pkg]
                .targets
                .iter()
                .any(|target| target.kind.contains(&TargetKind::ProcMacro));
            match () {
                () if kinds().any(|kind| kind == cargo_metadata::DependencyKind::Normal) && !is_macro => {
                    Some((&dependency.pkg, DependencyKind::Runtime))
                }
                () if kinds().all(|kind| kind == cargo_metadata::DependencyKind::Development) => None,
                () => Some((&dependency.pkg, DependencyKind::Build)),
            }
        };
        dependencies.filter(|dependency| self.built.contains(&dependency.pkg)).filter_map(kind).collect()
    }
}

impl Foreign {
    fn reference(&self) -> String {
        format!("pkg:generic/{}@{}", self.name, self.version)
    }
}

/// Reads name and version of a line such as `serde v1.0.200 (proc-macro) (*)`.
fn of_tree(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    Some((words.next()?, words.next()?.strip_prefix('v')?))
}

fn origin(package: &Package) -> Origin {
    match &package.source {
        None => Origin::Local,
        Some(source) if source.is_crates_io() => Origin::CratesIo,
        Some(source) if source.repr.starts_with("git+") => Origin::Git,
        Some(_) => Origin::Registry,
    }
}

fn reference(package: &Package) -> String {
    match package.source {
        Some(_) => format!("pkg:cargo/{}@{}", package.name, package.version),
        None => format!("pkg:generic/loden/{}@{}", package.name, package.version),
    }
}

/// Returns the licence as SPDX writes it; older packages have a slash for "or".
fn expression(package: &Package) -> String {
    match &package.license {
        Some(license) => license.replace(" / ", " OR ").replace('/', " OR "),
        None => "NOASSERTION".to_owned(),
    }
}

/// Returns the licences of a package: its own files, or those of a package from the same repository.
fn texts_for(package: &Package, parts: &[(&Package, DependencyKind)]) -> Result<BTreeSet<String>> {
    let of = |package: &Package| {
        texts_of(package.manifest_path.parent().context("a manifest's directory")?.as_std_path())
    };
    let mut texts = of(package)?;
    if let Some((_, text)) = MISSING.iter().find(|(name, _)| *name == package.name.as_str()) {
        texts.insert((*text).to_owned());
    }
    for (other, _) in parts {
        let is_beside = other.repository.is_some() && other.repository == package.repository;
        if texts.is_empty() && is_beside && other.license == package.license {
            texts = of(other)?;
        }
    }
    ensure!(!texts.is_empty(), "the package {} contains no licence; add it in deploy/dist", package.name);
    Ok(texts)
}

fn texts_of(directory: &Path) -> Result<BTreeSet<String>> {
    let told = || format!("cannot read {}", directory.display());
    let mut texts = BTreeSet::new();
    for entry in fs::read_dir(directory).with_context(told)? {
        let entry = entry.with_context(told)?;
        let name = entry.file_name().to_string_lossy().to_ascii_uppercase();
        if LICENSES.iter().any(|start| name.starts_with(start)) && entry.path().is_file() {
            texts.insert(text_of(&entry.path())?);
        }
    }
    Ok(texts)
}

fn text_of(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).replace("\r\n", "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(packages: &[&str]) -> (Inventory, Source) {
        let source = Source::read().expect("the checkout");
        (Inventory::read(Arch::Aarch64, &source, packages, true).expect("an inventory"), source)
    }

    fn musl() -> Foreign {
        let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../../LICENSE").into();
        Foreign { name: "musl", version: "1.2.5".into(), license: "MIT", texts: vec![text] }
    }

    #[test]
    fn the_bill_names_each_part_once_and_every_reference() {
        let (inventory, source) = inventory(&["cni-plugin", "loden"]);
        let bill: Value =
            serde_json::from_str(&inventory.bill(&source, &[musl()]).expect("a bill")).expect("JSON");
        let list = |name: &str| bill[name].as_array().expect("a list").clone();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let components = list("components");
        let references: BTreeSet<String> = components.iter().map(|part| text(&part["bom-ref"])).collect();
        assert_eq!(references.len(), components.len());
        for entry in list("dependencies") {
            for needed in entry["dependsOn"].as_array().expect("a list") {
                assert!(references.contains(&text(needed)), "{needed}");
            }
        }
        let part = |name: &str| {
            let found = components.iter().find(|part| part["name"] == name);
            found.unwrap_or_else(|| panic!("{name} is not listed")).clone()
        };
        assert_eq!(
            (&part("loden")["type"], &part("tokio")["type"]),
            (&json!("application"), &json!("library"))
        );
        assert_eq!(part("tokio")["scope"], "required");
        assert_eq!(part("musl")["licenses"][0]["expression"], "MIT");
        // A macro and what builds C sources are in no program, and neither is what tests need.
        assert_eq!(part("serde_derive")["scope"], "excluded");
        assert_eq!(part("cc")["scope"], "excluded");
        for name in ["proptest", "windows-sys", "cni"] {
            assert!(!components.iter().any(|part| part["name"] == name), "{name}");
        }
        assert_eq!(bill["metadata"]["timestamp"], source.time());
    }

    #[test]
    fn the_licences_have_the_text_of_each_part_that_is_linked() {
        let (inventory, _) = inventory(&["cni-plugin", "loden", "bench"]);
        let text = inventory.licenses(&[musl()]).expect("licences");
        assert!(text.contains("\nmusl 1.2.5: MIT\n"), "{text}");
        assert!(text.contains("\nring 0.17"), "{text}");
        assert!(
            text.contains("Cloudflare, Inc. All rights reserved") && text.contains("tonic-prost "),
            "{text}"
        );
        assert!(!text.contains("\nsyn "), "a macro's part is linked");
        assert!(!text.contains("NOASSERTION"), "a part has no licence");
    }

    #[test]
    fn licences_are_written_as_spdx_does_and_lines_of_the_tree_are_read() {
        assert_eq!(of_tree("serde v1.0.200 (proc-macro) (*)"), Some(("serde", "1.0.200")));
        assert_eq!(of_tree("loden v0.1.0 (/src/control/loden)"), Some(("loden", "0.1.0")));
        assert_eq!((of_tree(""), of_tree("[build-dependencies]")), (None, None));
    }
}
