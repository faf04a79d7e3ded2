//! The programs: static, stripped, with the symbols of each in a file beside it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;
use crate::command;
use crate::output::Output;
use crate::source::Source;
use crate::toolchain::Toolchain;

/// The programs with their packages.
pub(crate) const PROGRAMS: [(&str, &str); 3] =
    [("loden", "loden"), ("loden-cni", "cni-plugin"), ("loden-bench", "bench")];

/// Builds the programs for one architecture into a directory of its name.
pub(crate) fn build(arch: Arch, source: &Source, toolchain: &Toolchain, output: &Output) -> Result<()> {
    let packages: Vec<&str> = PROGRAMS.iter().map(|(_, package)| *package).collect();
    let built = toolchain.build(arch, source, &packages)?;
    let objcopy = format!("{}-objcopy", arch.multiarch());
    for (program, _) in PROGRAMS {
        let (from, symbols) = (built.join(program), format!("{program}.debug"));
        let directory = arch.name();
        output.place(&format!("{directory}/{symbols}"), |path| {
            command::run(
                Command::new(&objcopy)
                    .args(["--only-keep-debug", "--compress-debug-sections"])
                    .args([&from, path]),
            )
        })?;
        output.place(&format!("{directory}/{program}"), |path| {
            let link =
                format!("--add-gnu-debuglink={}", output.path().join(directory).join(&symbols).display());
            command::run(Command::new(&objcopy).args(["--strip-all", &link]).args([&from, path]))?;
            check(path)
        })?;
    }
    Ok(())
}

/// Takes the programs from a directory of the architecture's name, for example from another job of a CI.
pub(crate) fn take(arch: Arch, from: &Path, output: &Output) -> Result<()> {
    for (program, _) in PROGRAMS {
        let name = format!("{}/{program}", arch.name());
        let from = from.join(&name);
        output.place(&name, |path| {
            fs::copy(&from, path).with_context(|| format!("cannot read {}", from.display()))?;
            check(path)
        })?;
    }
    Ok(())
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
