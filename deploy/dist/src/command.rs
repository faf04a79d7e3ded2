//! Programs that do a part of the work, with errors that name what is missing.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// The programs that may be missing, with their packages in Debian.
const PACKAGES: [(&str, &str); 10] = [
    ("aarch64-linux-gnu-objcopy", "binutils-aarch64-linux-gnu"),
    ("apt-cache", "apt; on other systems install Rust's standard library for the target: rustup target add"),
    ("apt-get", "apt"),
    ("cc", "gcc, with libc6-dev"),
    ("dpkg-deb", "dpkg"),
    ("git", "git"),
    ("objcopy", "binutils"),
    ("python3", "python3 and python3-pip"),
    ("readelf", "binutils"),
    ("x86_64-linux-gnu-objcopy", "binutils-x86-64-linux-gnu"),
];

/// Runs a program whose output the user sees.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().map_err(|error| cannot_start(command, &error))?;
    if !status.success() {
        bail!("{} failed: {status}; the reason is above", text(command));
    }
    Ok(())
}

/// Runs a program and returns what it prints.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().map_err(|error| cannot_start(command, &error))?;
    if !status.success() {
        bail!("{} failed: {status}: {}", text(command), String::from_utf8_lossy(&stderr).trim());
    }
    String::from_utf8(stdout).with_context(|| format!("{} printed no UTF-8", text(command)))
}

/// Finds a program in PATH and in the directories that Debian keeps out of a user's.
pub(crate) fn find(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories.map(|directory| directory.join(name)).find(|path| path.is_file()).ok_or_else(|| missing(name))
}

/// Looks for programs before the work begins, and names all that are missing.
pub(crate) fn check(names: &[&str]) -> Result<()> {
    let missing: Vec<String> =
        names.iter().filter_map(|name| find(name).err()).map(|error| error.to_string()).collect();
    if missing.is_empty() { Ok(()) } else { bail!("{}", missing.join("\n")) }
}

fn cannot_start(command: &Command, error: &std::io::Error) -> anyhow::Error {
    let name = command.get_program().to_string_lossy();
    match error.kind() {
        ErrorKind::NotFound => missing(&name),
        _ => anyhow!("cannot start {name}: {error}"),
    }
}

fn missing(name: &str) -> anyhow::Error {
    match PACKAGES.iter().find(|(program, _)| *program == name) {
        Some((_, package)) => anyhow!("{name} is missing; Debian has it in {package}"),
        None => anyhow!("{name} is missing"),
    }
}

fn text(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        assert_eq!(missing("readelf").to_string(), "readelf is missing; Debian has it in binutils");
        let error = run(&mut Command::new("loden-no-such-program")).expect_err("it is not there");
        assert_eq!(error.to_string(), "loden-no-such-program is missing");
        let error = find("loden-no-such-program").expect_err("it is not there");
        assert_eq!(error.to_string(), "loden-no-such-program is missing");
        let error = check(&["loden-none", "sh", "loden-neither"]).expect_err("two are not there");
        assert_eq!(error.to_string(), "loden-none is missing\nloden-neither is missing");
    }

    #[test]
    fn a_failure_tells_command_and_reason() {
        let error = read(Command::new("sh").args(["-c", "echo no >&2; exit 3"])).expect_err("it fails");
        assert_eq!(error.to_string(), "sh -c echo no >&2; exit 3 failed: exit status: 3: no");
    }
}
