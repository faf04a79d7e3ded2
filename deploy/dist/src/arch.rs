//! The architectures, and how each tool spells them.

use clap::ValueEnum;

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// 64-bit x86.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl Arch {
    /// Returns the name as the kernel and rpm spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// Returns the name as Debian, Go and OCI spell it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }

    /// Returns Rust's target.
    pub(crate) fn target(self) -> String {
        format!("{}-unknown-linux-musl", self.name())
    }

    /// Returns Debian's name for its tools and directories.
    pub(crate) fn multiarch(self) -> String {
        format!("{}-linux-gnu", self.name())
    }

    /// Returns the name of GNU's program that takes symbols out of programs.
    pub(crate) fn objcopy(self) -> String {
        match Arch::host() == Some(self) {
            true => "objcopy".to_owned(),
            false => format!("{}-objcopy", self.multiarch()),
        }
    }

    /// Returns the architecture of this machine.
    pub(crate) fn host() -> Option<Arch> {
        [Arch::X86_64, Arch::Aarch64].into_iter().find(|arch| arch.name() == std::env::consts::ARCH)
    }
}
