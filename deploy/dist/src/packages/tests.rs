//! Packages, built from the workspace's own programs, and used where nothing of the machine changes.

#[cfg(feature = "release")]
mod debian;
mod life;
mod root;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::Needs;
use tempfile::TempDir;

use super::*;

/// What lintian says of programs with libraries; a release's programs have none.
const LINKED: [&str; 4] = [
    "hardening-no-bindnow",
    "hardening-no-fortify-functions",
    "undeclared-elf-prerequisites",
    "unused-override statically-linked-binary",
];

const BOTH: [Format; 2] = [Format::Deb, Format::Rpm];

#[test]
fn files_are_named_as_each_system_does() {
    let name = |format: Format, version| format.file("loden-cni", version, Arch::Aarch64);
    assert_eq!(name(Format::Deb, "0.1.0"), "loden-cni_0.1.0-1_arm64.deb");
    assert_eq!(name(Format::Rpm, "0.1.0"), "loden-cni-0.1.0-1.aarch64.rpm");
    assert_eq!(name(Format::Deb, "0.2.0-rc.1"), "loden-cni_0.2.0~rc.1-1_arm64.deb");
    assert_eq!(name(Format::Rpm, "0.2.0-rc.1"), "loden-cni-0.2.0~rc.1-1.aarch64.rpm");
}

#[test]
fn the_guide_names_files_as_they_are() {
    let guide = include_str!("../../../../docs/install.md");
    for package in ["loden", "loden-cni"] {
        for format in BOTH {
            let name = format.file(package, "VERSION", Arch::X86_64);
            assert!(guide.contains(&name), "{name}");
        }
    }
    let source = Source { version: "VERSION", ..source() };
    let archive = record(Arch::X86_64, &source, "tar.gz");
    assert!(guide.contains(&archive), "{archive}");
}

#[test]
fn a_description_has_a_line_for_each_page_and_for_licences_that_are_there() {
    let pages = ["a.1.gz".to_owned(), "b.1.gz".to_owned()];
    let stage = tempfile::tempdir().expect("a directory");
    let description = "x\n{src: \"m/*.gz\", dst: \"/m/*.gz\"}\nlicenses.gz\ny\n";
    let text = |stage: &Path| describe(description, &pages, stage);
    let expected = "x\n{src: \"m/a.1.gz\", dst: \"/m/a.1.gz\"}\n{src: \"m/b.1.gz\", dst: \"/m/b.1.gz\"}\n";
    assert_eq!(text(stage.path()), format!("{expected}y\n"));
    fs::write(stage.path().join(LICENSES), "").expect("a file");
    assert_eq!(text(stage.path()), format!("{expected}licenses.gz\ny\n"));
}

/// Both systems, both architectures, a version before a release, and nothing in the bytes that differs from
/// one build to the next.
#[test]
fn two_builds_are_equal_and_the_fields_are_right() {
    if !Packages::needs(&["dpkg-deb", "rpm"]).are_met() {
        return;
    }
    let built =
        [(); 2].map(|()| Packages::build("0.2.0-rc.1", &[Arch::X86_64, Arch::Aarch64], &BOTH, &source()));
    let names = built[0].names();
    assert_eq!(names.len(), 8, "{names:?}");
    assert_eq!(names, built[1].names());
    for name in &names {
        let [one, two] = built.each_ref().map(|packages| fs::read(packages.path(name)).expect("a package"));
        assert!(one == two, "{name} differs from one build to the next");
    }
    let version = read(Command::new("dpkg").args(["--compare-versions", "0.2.0~rc.1-1", "lt", "0.2.0-1"]));
    version.expect("a preview comes before the release");
    for arch in [Arch::X86_64, Arch::Aarch64] {
        for package in ["loden", "loden-cni"] {
            let deb = built[0].path(&Format::Deb.file(package, "0.2.0-rc.1", arch));
            let fields = read(Command::new("dpkg-deb").arg("--field").arg(deb)).expect("fields");
            let expected = format!("Package: {package}\nVersion: 0.2.0~rc.1-1\n");
            assert!(fields.starts_with(&expected), "{fields}");
            assert!(fields.contains(&format!("\nArchitecture: {}\n", arch.debian())), "{fields}");
            assert!(!fields.contains("\nDepends: "), "{fields}");
            let rpm = built[0].path(&Format::Rpm.file(package, "0.2.0-rc.1", arch));
            let format = "--queryformat=%{NAME} %{VERSION} %{RELEASE} %{ARCH} %{BUILDHOST}";
            let fields = read(Command::new("rpm").args(["-qp", format]).arg(rpm)).expect("fields");
            assert_eq!(fields, format!("{package} 0.2.0~rc.1 1 {} localhost", arch.name()));
        }
    }
}

#[test]
fn the_rpm_marks_documentation_and_configuration() {
    if !Packages::needs(&["rpm"]).are_met() {
        return;
    }
    let packages = Packages::build("0.1.0", &[host()], &[Format::Rpm], &source());
    let query = |package, what| {
        let rpm = packages.path(&Format::Rpm.file(package, "0.1.0", host()));
        read(Command::new("rpm").args(["-qp", what]).arg(rpm)).expect("rpm")
    };
    assert_eq!(query("loden", "--configfiles"), "/etc/default/loden\n");
    assert_eq!(query("loden-cni", "--configfiles"), "");
    for package in ["loden", "loden-cni"] {
        let files = query(package, "--list");
        let page = |line: &&str| line.starts_with("/usr/share/doc/") || line.starts_with("/usr/share/man/");
        let documents: Vec<&str> = files.lines().filter(page).filter(|line| line.contains('.')).collect();
        let marked = query(package, "--docfiles");
        let marked: Vec<&str> = marked.lines().filter(|line| !line.ends_with("/copyright")).collect();
        assert_eq!(documents.into_iter().filter(|line| !line.ends_with(".d")).collect::<Vec<_>>(), marked);
    }
    let listed = query("loden", "--list");
    for path in [
        "man/man1/loden-run.1.gz",
        "doc/loden/licenses.gz",
        "zsh/site-functions/_loden",
        "fish/vendor_completions.d/loden.fish",
    ] {
        assert!(listed.contains(path), "{path}: {listed}");
    }
}

#[test]
fn lintian_and_rpmlint_say_nothing_but_the_exceptions() {
    if !Packages::needs(&["lintian", "rpmlint"]).are_met() {
        return;
    }
    let packages = Packages::build("0.1.0", &[host()], &BOTH, &source());
    let mut lintian = Command::new("lintian");
    lintian.args(["--pedantic", "--display-info", "--tag-display-limit", "0", "--allow-root"]);
    let files = |format: Format| {
        ["loden", "loden-cni"].map(|package| packages.path(&format.file(package, "0.1.0", host())))
    };
    let output = lintian.args(files(Format::Deb)).output().expect("lintian");
    let said = String::from_utf8_lossy(&output.stdout);
    let expected = |line: &&str| !packages.released && LINKED.iter().any(|tag| line.contains(tag));
    let tags: Vec<&str> =
        said.lines().filter(|line| !line.starts_with("N: ")).filter(|line| !expected(line)).collect();
    assert!(tags.is_empty() && output.stderr.is_empty(), "{output:?}");
    let config = source().root.join("deploy/packages/rpmlint.toml");
    let output = Command::new("rpmlint")
        .arg("--config")
        .arg(config)
        .args(files(Format::Rpm))
        .output()
        .expect("rpmlint");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("2 packages and 0 specfiles checked; 0 errors, 0 warnings"), "{said}");
}

#[test]
fn each_exception_has_its_reason() {
    let directory = source().root.join("deploy/packages");
    for (file, begins) in
        [("loden.overrides", "loden: "), ("loden-cni.overrides", "loden-cni: "), ("rpmlint.toml", "    \"")]
    {
        let text = fs::read_to_string(directory.join(file)).expect("a file");
        let mut explained = false;
        let mut exceptions = 0;
        for line in text.lines() {
            if line.starts_with(begins) {
                assert!(explained, "{file}: no reason above {line}");
                exceptions += 1;
            } else {
                explained = line.trim_start().starts_with("# ") && line.len() > 20;
            }
        }
        assert!(exceptions >= 2, "{file}: {exceptions}");
    }
}

/// The programs of another architecture do not run here, and neither do they without an interpreter.
#[test]
fn without_a_program_that_runs_here_the_error_says_what_to_do() {
    let place = tempfile::tempdir().expect("a directory");
    let output = Output::open(place.path()).expect("an output");
    fs::create_dir(place.path().join("aarch64")).expect("a directory");
    for program in ["loden", "loden-cni"] {
        fs::write(place.path().join("aarch64").join(program), b"\x7fELF").expect("a file");
    }
    let stage = tempfile::tempdir().expect("a directory");
    let error = fill(stage.path(), Arch::Aarch64, &source(), &output).expect_err("nothing runs");
    assert!(format!("{error:#}").contains("qemu-user-static"), "{error:#}");
    let error = fill(stage.path(), Arch::X86_64, &source(), &output).expect_err("nothing is there");
    assert!(format!("{error:#}").starts_with("cannot read loden of x86_64"), "{error:#}");
}

#[test]
fn a_tool_that_is_missing_in_the_cache_is_named() {
    let cache = tempfile::tempdir().expect("a directory");
    let nfpm = cache.path().join("nfpm");
    let error = present(nfpm.clone(), cache.path()).expect_err("missing").to_string();
    let expected =
        format!("{} is missing; remove {} and start again", nfpm.display(), cache.path().display());
    assert_eq!(error, expected);
    fs::write(&nfpm, "").expect("a file");
    assert!(present(nfpm, cache.path()).is_ok());
}

/// Packages of one version in a directory of their own.
struct Packages {
    output: Output,
    /// They have the programs of a release, and not those that this test was built with.
    released: bool,
    _place: TempDir,
}

impl Packages {
    fn needs(programs: &[&str]) -> Needs {
        let here = programs_here();
        let are_there = ["loden", "loden-cni"].iter().all(|program| here.join(program).is_file());
        Needs::default()
            .programs(programs)
            .programs(&["objcopy", "python3"])
            .and("x86_64 or aarch64", Arch::host().is_some())
            .and("loden and loden-cni (cargo build -p loden -p cni-plugin)", are_there)
    }

    /// Builds packages. Those of another architecture have any program: nobody runs them here.
    fn build(version: &'static str, archs: &[Arch], formats: &[Format], source: &Source) -> Packages {
        let place = tempfile::tempdir().expect("a directory");
        let output = Output::open(place.path()).expect("an output");
        let release = std::env::var_os("LODEN_RELEASE").map(PathBuf::from);
        let release = release.filter(|path| path.join(host().name()).join("loden").is_file());
        let toolchain = Toolchain::prepare(false).expect("nfpm");
        for arch in archs {
            let directory = place.path().join(arch.name());
            fs::create_dir(&directory).expect("a directory");
            for program in ["loden", "loden-cni"] {
                let to = directory.join(program);
                match &release {
                    Some(release) => {
                        fs::copy(release.join(arch.name()).join(program), to).expect("a program");
                    }
                    None => {
                        let foreign = *arch != host();
                        let from = programs_here().join(if foreign { "loden-cni" } else { program });
                        run(Command::new("objcopy").arg("--strip-all").arg(from).arg(to)).expect("objcopy");
                    }
                }
            }
        }
        let source = Source { version, ..source.clone() };
        for arch in archs {
            fs::write(place.path().join(record(*arch, &source, "licenses.txt")), "MIT, and the text.\n")
                .expect("a file");
            build(*arch, formats, &source, &toolchain, &output).expect("packages");
        }
        Packages { output, released: release.is_some(), _place: place }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.output.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.output.path()).expect("a directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
        let mut names: Vec<String> =
            names.filter(|name| name.ends_with(".deb") || name.ends_with(".rpm")).collect();
        names.sort();
        names
    }
}

fn host() -> Arch {
    Arch::host().expect("x86_64 or aarch64")
}

/// This checkout, at a time that stands still.
fn source() -> Source {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the root").to_owned();
    Source { root, version: "0.1.0", commit: "unknown".into(), epoch: 1_700_000_000 }
}

/// The directory of the programs that were built with this test.
fn programs_here() -> PathBuf {
    let test = std::env::current_exe().expect("this program");
    test.ancestors().nth(2).expect("target/debug").to_owned()
}
