//! The programs of a release, as `deploy/release` puts them into the directory that `LODEN_RELEASE` names.
//!
//! ```text
//! tools     tests: what the command says and leaves where it cannot work
//! plugin    tests: the plugin alone
//! programs  what a program is, and the records beside it
//! ```

// clippy.toml allows these in test functions only, not in their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod plugin;
mod programs;
mod tools;

use std::path::PathBuf;
use std::process::Command;

use lab::Needs;

/// The architectures of a release.
pub const ARCHS: [&str; 2] = ["x86_64", "aarch64"];

/// A directory that `deploy/release` has filled.
pub struct Release(PathBuf);

impl Release {
    /// Finds a release with the plugin; `None` if it or anything else that the test needs is missing.
    pub fn with_plugin(needs: Needs) -> Option<Release> {
        let path = std::env::var_os("LODEN_RELEASE").map(PathBuf::from).unwrap_or_default();
        let release = Release(path);
        let programs = ARCHS.iter().all(|arch| release.program(arch, "loden-cni").is_file());
        let what = "a release of both architectures (deploy/release DIR, then LODEN_RELEASE=DIR)";
        needs.and(what, programs).are_met().then_some(release)
    }

    /// Returns the path of a file of the release.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Returns the path of a program.
    pub fn program(&self, arch: &str, name: &str) -> PathBuf {
        self.0.join(arch).join(name)
    }

    /// Returns a command that runs a program, by QEMU if it is another machine's.
    pub fn command(&self, arch: &str, name: &str) -> Command {
        let program = self.program(arch, name);
        if arch == std::env::consts::ARCH {
            return Command::new(program);
        }
        let mut command = Command::new(emulator(arch));
        command.arg(program);
        command
    }
}

/// Returns the name of Debian's program that runs another machine's programs.
pub fn emulator(arch: &str) -> String {
    format!("qemu-{arch}-static")
}

/// Returns the names of the emulators that a test with both architectures needs.
pub fn emulators() -> Vec<String> {
    ARCHS.iter().filter(|arch| **arch != std::env::consts::ARCH).map(|arch| emulator(arch)).collect()
}

/// Adds the emulators to what a test needs.
pub fn and_emulators(needs: Needs) -> Needs {
    let names = emulators();
    needs.programs(&names.iter().map(String::as_str).collect::<Vec<_>>())
}
