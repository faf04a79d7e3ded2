//! `loden install-cni`: installs the plugin and its configuration where container runtimes look for them.
//!
//! Does the work of flannel's init containers. The configuration is written last, because its presence tells
//! a runtime that the node is ready for pods. Each file is replaced atomically, so that a running plugin
//! continues.

mod conflist;
pub(crate) mod install_conf;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail, ensure};
use control::persist::atomic_file;

use crate::options::{InstallCniOptions, PLUGIN};
use crate::output::{print, say};

/// A file to install.
struct Wanted {
    path: PathBuf,
    bytes: Vec<u8>,
    mode: u32,
}

/// Installs the files and prints one line for each.
pub(crate) fn run(options: &InstallCniOptions) -> anyhow::Result<ExitCode> {
    // Everything is read and checked first: a fault in the second file must not leave the first one
    // installed.
    let mut wanted = plugin_files(options)?;
    let conf = conf_file(options)?;
    let needed = conf.as_ref().map(|conf| conf.bytes.clone()).unwrap_or_default();
    wanted.extend(conf);
    let mut text = String::new();
    let installed = wanted.iter().try_for_each(|file| {
        let written = atomic_file::write(&file.path, &file.bytes, file.mode)?;
        let what = if written { "installed" } else { "unchanged" };
        text.push_str(&format!("{what} {}\n", file.path.display()));
        Ok(())
    });
    // At the end: what cannot be printed is installed all the same.
    let printed = print(&text);
    installed.map_err(|error| advise(error, options))?;
    printed?;
    if !options.skip_conf {
        for earlier in conflist::earlier(&options.conf_dir, &options.conf_name) {
            say(format_args!(
                "loden: {} sorts before {}, and runtimes use the first: remove it if pods should use this \
                 network",
                options.conf_dir.join(earlier).display(),
                options.conf_name
            ));
        }
        let missing = conflist::missing_plugins(&needed, &options.bin_dir, &options.name);
        if !missing.is_empty() {
            say(format_args!(
                "loden: {} not found in {}: pods get no network until the CNI project's plugins are \
                 installed there (Debian: containernetworking-plugins, in /usr/lib/cni)",
                missing.join(", "),
                options.bin_dir.display()
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn plugin_files(options: &InstallCniOptions) -> anyhow::Result<Vec<Wanted>> {
    let source = match &options.plugin {
        Some(path) => path.clone(),
        None => {
            let program =
                std::env::current_exe().context("cannot find this program's own path; use --plugin")?;
            atomic_file::parent(&program).join(PLUGIN)
        }
    };
    let bytes = fs::read(&source).with_context(|| {
        format!("cannot read the plugin {}; set its path with --plugin", source.display())
    })?;
    ensure!(
        bytes.starts_with(b"\x7fELF") || bytes.starts_with(b"#!"),
        "{} is not a program; set the plugin's path with --plugin",
        source.display()
    );
    ensure!(!options.name.is_empty(), "--name is empty: the plugin needs at least one name");
    directory(&options.bin_dir, "--bin-dir")?;
    let file = |name: &String| {
        plain_name(name, "--name")?;
        Ok(Wanted { path: options.bin_dir.join(name), bytes: bytes.clone(), mode: 0o755 })
    };
    options.name.iter().map(file).collect()
}

fn conf_file(options: &InstallCniOptions) -> anyhow::Result<Option<Wanted>> {
    if options.skip_conf {
        return Ok(None);
    }
    plain_name(&options.conf_name, "--conf-name")?;
    directory(&options.conf_dir, "--conf-dir")?;
    let path = options.conf_dir.join(&options.conf_name);
    let Some(source) = &options.conf else {
        let plugin = options.name.first().map_or(PLUGIN, String::as_str);
        let bytes = conflist::generate(options, plugin)?.into_bytes();
        conflist::check(&bytes, &options.conf_name).with_context(|| {
            format!("--conf-name {:?} does not suit a generated configuration", options.conf_name)
        })?;
        ensure_alone(&bytes, &path, &options.name)?;
        return Ok(Some(Wanted { path, bytes, mode: 0o644 }));
    };
    given(source, path, &options.name).map(Some)
}

/// Reads and checks a configuration to install at `path`, with the mode of its source.
fn given(source: &Path, path: PathBuf, names: &[String]) -> anyhow::Result<Wanted> {
    let read = || -> io::Result<(Vec<u8>, u32)> {
        Ok((fs::read(source)?, fs::metadata(source)?.permissions().mode()))
    };
    let (bytes, mode) =
        read().with_context(|| format!("cannot read the configuration {}", source.display()))?;
    conflist::check(&bytes, &path.file_name().unwrap_or_default().to_string_lossy())
        .with_context(|| format!("{} not installed: it would break the node's network", source.display()))?;
    ensure_alone(&bytes, &path, names)?;
    Ok(Wanted { path, bytes, mode })
}

/// Checks that no other configuration gives pods the same addresses.
fn ensure_alone(bytes: &[u8], path: &Path, names: &[String]) -> anyhow::Result<()> {
    match conflist::clash(bytes, path, names) {
        None => Ok(()),
        Some(why) => bail!("{} not installed: {why}", path.display()),
    }
}

/// Rejects a name that is a path: the file could land anywhere.
fn plain_name(name: &str, flag: &str) -> anyhow::Result<()> {
    let plain = !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
    ensure!(plain, "{flag} {name:?} is not a file name");
    Ok(())
}

/// Checks that a directory exists. A missing one is often a forgotten mount, so it is not created.
fn directory(path: &Path, flag: &str) -> anyhow::Result<()> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => Ok(()),
        Ok(_) => bail!("{flag} {} is not a directory", path.display()),
        Err(error) => Err(error).with_context(|| {
            format!(
                "cannot use {flag} {0}; in a container, mount the host's directory, elsewhere create it with \
                 `mkdir -p {0}`, or choose another with {flag}",
                path.display()
            )
        }),
    }
}

fn advise(error: atomic_file::WriteError, options: &InstallCniOptions) -> anyhow::Error {
    let flag = if error.path.starts_with(&options.bin_dir) { "--bin-dir" } else { "--conf-dir" };
    let next = match error.source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("mount it writable, or configure a writable directory in the runtime and with {flag}")
        }
        io::ErrorKind::PermissionDenied => "run as root".to_owned(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space".to_owned(),
        io::ErrorKind::IsADirectory => "remove the directory of that name".to_owned(),
        _ => format!("check the directory, or choose another with {flag}"),
    };
    anyhow!("{error}; {next}, then run the command again: files already installed stay")
}

#[cfg(test)]
mod tests;
