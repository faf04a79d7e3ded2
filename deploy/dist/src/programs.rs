//! The programs: static, stripped, with the symbols of each in a file beside it, and records of their parts.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::arch::Arch;
use crate::command;
use crate::inventory::Inventory;
use crate::output::{self, Output};
use crate::source::Source;
use crate::toolchain::Toolchain;

/// The programs with their packages.
pub(crate) const PROGRAMS: [(&str, &str); 3] =
    [("loden", "loden"), ("loden-cni", "cni-plugin"), ("loden-bench", "bench")];
/// The section in which scanners look for the packages that a program was made of.
const AUDITED: &str = ".dep-v0";
/// How the files with records of the programs end.
const RECORDS: [&str; 3] = ["cdx.json", "licenses.txt", "provenance.json"];

/// The programs that a run makes.
pub(crate) type Chosen = [(&'static str, &'static str)];

/// Returns all programs, or the plugin alone.
pub(crate) fn chosen(only_plugin: bool) -> &'static Chosen {
    if only_plugin { &PROGRAMS[1..2] } else { &PROGRAMS }
}

/// Builds programs for one architecture into a directory of its name.
pub(crate) fn build(
    programs: &Chosen,
    arch: Arch,
    source: &Source,
    toolchain: &Toolchain,
    output: &Output,
) -> Result<()> {
    let packages: Vec<&str> = programs.iter().map(|(_, package)| *package).collect();
    let inventory = Inventory::read(arch, source, &packages, toolchain.offline())?;
    let built = toolchain.build(arch, source, &packages)?;
    let directory = arch.name();
    for (program, package) in programs {
        let (from, symbols) = (built.directory.join(program), format!("{program}.debug"));
        output.place(&format!("{directory}/{symbols}"), |path| {
            command::run(
                Command::new(arch.objcopy())
                    .args(["--only-keep-debug", "--compress-debug-sections"])
                    .args([&from, path]),
            )
        })?;
        let data = inventory.audit_data(package)?;
        output.work("audit", |place| {
            let audited = place.join("data");
            fs::write(&audited, data)?;
            output.place(&format!("{directory}/{program}"), |path| {
                let link = output.path().join(directory).join(&symbols);
                strip(arch, &from, path, &link, &audited)?;
                check(path)
            })
        })?;
    }
    let foreign = toolchain.foreign(arch)?;
    let [bill, licenses, provenance] = RECORDS.map(|ending| record(arch, source, ending));
    let text = inventory.bill(source, &foreign)?;
    output.place(&bill, |path| Ok(fs::write(path, text)?))?;
    let text = inventory.licenses(&foreign)?;
    output.place(&licenses, |path| Ok(fs::write(path, text)?))?;
    let text = self::provenance(programs, arch, source, toolchain, output)?;
    output.place(&provenance, |path| Ok(fs::write(path, text)?))
}

/// Takes the programs, and what there is of symbols and records, from where another run has put them, for
/// example another job of a CI.
pub(crate) fn take(
    programs: &Chosen,
    arch: Arch,
    source: &Source,
    from: &Path,
    output: &Output,
) -> Result<()> {
    let copy = |name: &str, path: &Path| {
        let from = from.join(name);
        fs::copy(&from, path).map(|_| ()).with_context(|| format!("cannot read {}", from.display()))
    };
    for (program, _) in programs {
        let name = format!("{}/{program}", arch.name());
        output.place(&name, |path| {
            copy(&name, path)?;
            check(path)
        })?;
    }
    let symbols = programs.iter().map(|(program, _)| format!("{}/{program}.debug", arch.name()));
    let records = RECORDS.iter().map(|ending| record(arch, source, ending));
    for name in symbols.chain(records).filter(|name| from.join(name).is_file()) {
        output.place(&name, |path| copy(&name, path))?;
    }
    Ok(())
}

/// Returns the name of a record of the programs.
pub(crate) fn record(arch: Arch, source: &Source, ending: &str) -> String {
    format!("loden-{}-linux-{}.{ending}", source.version, arch.name())
}

/// Writes a program without its symbols, with their file's name and the data for scanners.
fn strip(arch: Arch, from: &Path, to: &Path, symbols: &Path, audited: &Path) -> Result<()> {
    command::run(
        Command::new(arch.objcopy())
            .arg("--strip-all")
            .arg(format!("--add-section={AUDITED}={}", audited.display()))
            .arg(format!("--add-gnu-debuglink={}", symbols.display()))
            .args([from, to]),
    )
}

/// Returns what made the programs, as in-toto and SLSA define it. It is not signed.
fn provenance(
    programs: &Chosen,
    arch: Arch,
    source: &Source,
    toolchain: &Toolchain,
    output: &Output,
) -> Result<String> {
    let subject: Vec<Value> = programs
        .iter()
        .map(|(program, _)| {
            let name = format!("{}/{program}", arch.name());
            let digest = output::sum(&output.path().join(&name))?;
            Ok(json!({ "name": name, "digest": { "sha256": digest } }))
        })
        .collect::<Result<_>>()?;
    let lock = output::sum(&source.root.join("Cargo.lock"))?;
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:loden:deploy:release",
                "externalParameters": {
                    "version": source.version,
                    "commit": source.commit,
                    "target": arch.target(),
                    "SOURCE_DATE_EPOCH": source.epoch,
                },
                "internalParameters": toolchain.description(arch)?,
                "resolvedDependencies": [{ "name": "Cargo.lock", "digest": { "sha256": lock } }],
            },
            "runDetails": { "builder": { "id": "urn:loden:deploy:release" } },
        },
    });
    Ok(serde_json::to_string_pretty(&statement)? + "\n")
}

/// Refuses a program that needs a library or a loader, or that is not stripped.
fn check(program: &Path) -> Result<()> {
    let headers = command::read(Command::new("readelf").args(["--wide", "-l", "-d", "-S"]).arg(program))?;
    for (word, what) in
        [("(NEEDED)", "needs a library"), (" INTERP ", "needs a loader"), (" .symtab ", "is not stripped")]
    {
        ensure!(!headers.contains(word), "{} {what}", program.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use auditable_info::audit_info_from_file;

    use super::*;

    fn here() -> Option<(Arch, Source)> {
        let source = Source::read().expect("the checkout");
        Arch::host().map(|arch| (arch, source))
    }

    #[test]
    fn a_stripped_program_tells_scanners_its_packages() {
        let Some((arch, source)) = here() else { return };
        let inventory = Inventory::read(arch, &source, &["cni-plugin"], true).expect("an inventory");
        let place = tempfile::tempdir().expect("a directory");
        let [program, symbols, data] =
            ["program", "program.debug", "data"].map(|name| place.path().join(name));
        fs::write(&symbols, "symbols").expect("a file");
        fs::write(&data, inventory.audit_data("cni-plugin").expect("data")).expect("a file");
        let own = std::env::current_exe().expect("this program");
        strip(arch, &own, &program, &symbols, &data).expect("a stripped program");
        let told = audit_info_from_file(&program, Default::default()).expect("its packages");
        let root: Vec<&str> = told
            .packages
            .iter()
            .filter(|package| package.root)
            .map(|package| package.name.as_str())
            .collect();
        assert_eq!(root, ["cni-plugin"]);
        let names: Vec<&str> = told.packages.iter().map(|package| package.name.as_str()).collect();
        assert!(names.is_sorted() && names.contains(&"serde_json") && names.contains(&"wire"), "{names:?}");
        assert!(!names.contains(&"proptest") && !names.contains(&"tokio"), "{names:?}");
        let error = check(&program).expect_err("this program needs libraries").to_string();
        assert!(error.ends_with("needs a library"), "{error}");
        let error = inventory.audit_data("store").expect_err("no root").to_string();
        assert_eq!(error, "store is not a program of the release");
    }
}
