//! The image: what flannel's has and its manifests use, with our programs.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;
use crate::debian::{self, ELF, Wanted};
use crate::layer::Layer;
use crate::oci::{self, Image, Labels, Part, Start};
use crate::output::Output;
use crate::source::Source;
use crate::toolchain::Toolchain;

const PACKAGES: &str = include_str!("../../image/packages");
const IPTABLES: &str = include_str!("../../image/iptables");
/// Our programs in the image.
const PROGRAMS: [&str; 2] = ["loden", "loden-cni"];
/// What init containers, the iptables script, and people in a shell use.
const APPLETS: [&str; 18] = [
    "cat", "chmod", "cp", "env", "false", "grep", "head", "id", "ls", "mkdir", "mv", "ping", "ping6", "ps",
    "rm", "sleep", "tail", "true",
];
const PATH: &str = "PATH=/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Takes our programs from a directory of the architecture's name. They may need libraries: the image has
/// them.
pub(crate) fn take(arch: Arch, from: &Path, output: &Output) -> Result<()> {
    for program in PROGRAMS {
        let name = format!("{}/{program}", arch.name());
        let from = from.join(&name);
        output.place(&name, |path| {
            fs::copy(&from, path).map(|_| ()).with_context(|| format!("cannot read {}", from.display()))
        })?;
    }
    Ok(())
}

/// Builds the images: an archive for each architecture, and an archive and a directory for all.
pub(crate) fn build(archs: &[Arch], source: &Source, toolchain: &Toolchain, output: &Output) -> Result<()> {
    let version = source.version;
    let name = format!("localhost/loden:{version}");
    let labels = labels(source);
    let mut images = Vec::new();
    for arch in archs {
        let (image, listed) = of(*arch, source, toolchain, output, &labels)?;
        let stem = format!("loden-{version}-image-{}", arch.debian());
        output.place(&format!("{stem}.packages"), |path| Ok(fs::write(path, &listed)?))?;
        let archive = oci::archive(&image, &name)?;
        output.place(&format!("{stem}.tar"), |path| Ok(fs::write(path, archive.archive(source.epoch)?)?))?;
        images.push(image);
    }
    let all = format!("loden-{version}-image");
    let layout = oci::layout(&images, &name, &labels)?;
    output.place(&format!("{all}.tar"), |path| Ok(fs::write(path, layout.archive(source.epoch)?)?))?;
    output.place(&all, |path| layout.unpack(path))
}

/// Builds the image of an architecture, and returns it with the list of its packages.
fn of(
    arch: Arch,
    source: &Source,
    toolchain: &Toolchain,
    output: &Output,
    labels: &Labels,
) -> Result<(Image, String)> {
    let programs = PROGRAMS.map(|program| output.path().join(arch.name()).join(program));
    programs.iter().try_for_each(|program| check(arch, program))?;
    let mut built = None;
    output.work(arch.debian(), |place| {
        built = Some(system(arch, toolchain, place, &programs)?);
        Ok(())
    })?;
    let (system, time, listed) = built.context("no image")?;
    let ours = ours(source, &programs)?;
    let created = source.time();
    let start = Start { entrypoint: &["/opt/bin/flanneld"], environment: &[PATH], created: &created };
    let parts = [
        Part { layer: &system, time, origin: "packages of Debian, by deploy/release" },
        Part { layer: &ours, time: source.epoch, origin: "loden, by deploy/release" },
    ];
    Ok((Image::build(arch, &parts, &start, labels)?, listed))
}

/// Refuses what does not run on the architecture.
fn check(arch: Arch, program: &Path) -> Result<()> {
    let data = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    // elf(5), e_machine.
    let machine = data.get(18..20).filter(|_| data.starts_with(ELF));
    let machine = machine.with_context(|| format!("{} is not a program", program.display()))?;
    let is = match machine {
        [62, 0] => "x86_64",
        [183, 0] => "aarch64",
        _ => "another architecture",
    };
    ensure!(is == arch.name(), "{} is for {is}, not for {}", program.display(), arch.name());
    Ok(())
}

/// Returns what changes with Debian's packages, its time, and the list of the packages.
fn system(
    arch: Arch,
    toolchain: &Toolchain,
    place: &Path,
    programs: &[PathBuf],
) -> Result<(Layer, u64, String)> {
    let wanted = Wanted::parse(PACKAGES);
    let mut unpacked = debian::unpack(toolchain.cache(), place, arch, &wanted, toolchain.offline())
        .with_context(|| format!("cannot get Debian's packages for {}", arch.debian()))?;
    let mut layer = Layer::default();
    for (link, target) in
        [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
    {
        layer.directory(target, 0o755)?;
        layer.link(link, target)?;
    }
    unpacked.authorities(&mut layer)?;
    unpacked.fill(&mut layer, arch, &wanted, programs)?;
    for applet in APPLETS {
        layer.link(&format!("usr/bin/{applet}"), "busybox")?;
    }
    // Debian's busybox as a shell would start its own `ip` and not iproute2's.
    layer.link("usr/bin/sh", "dash")?;
    for family in ["iptables", "ip6tables"] {
        for ending in ["", "-save", "-restore"] {
            for variant in ["nft", "legacy"] {
                let target = format!("xtables-{variant}-multi");
                layer.link(&format!("usr/sbin/{family}-{variant}{ending}"), &target)?;
            }
        }
    }
    let mut listed = String::new();
    for (name, version) in unpacked.versions() {
        writeln!(listed, "{name} {version}")?;
    }
    Ok((layer, unpacked.time, listed))
}

/// Returns what changes with each release.
fn ours(source: &Source, [loden, plugin]: &[PathBuf; 2]) -> Result<Layer> {
    let mut layer = Layer::default();
    layer.copy("opt/bin/loden", loden, 0o755)?;
    for name in ["flanneld", "install-conf", "mk-docker-opts.sh"] {
        layer.link(&format!("opt/bin/{name}"), "loden")?;
    }
    // `loden install-cni` takes the plugin from its own directory; flannel's manifests copy /flannel.
    layer.copy("opt/bin/loden-cni", plugin, 0o755)?;
    layer.link("flannel", "opt/bin/loden-cni")?;
    layer.copy("usr/share/doc/loden/LICENSE", &source.root.join("LICENSE"), 0o644)?;
    for family in ["iptables", "ip6tables"] {
        for ending in ["", "-save", "-restore"] {
            layer.file(&format!("usr/sbin/{family}{ending}"), IPTABLES, 0o755)?;
        }
    }
    layer.file(
        "etc/passwd",
        "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        0o644,
    )?;
    layer.file("etc/group", "root:x:0:\nnogroup:x:65534:\n", 0o644)?;
    for directory in ["dev", "proc", "run", "sys"] {
        layer.directory(directory, 0o755)?;
    }
    layer.directory("tmp", 0o1777)?;
    Ok(layer)
}

fn labels(source: &Source) -> Labels {
    let key = |name: &str| match name {
        "title" => "org.opencontainers.image.title",
        "description" => "org.opencontainers.image.description",
        "version" => "org.opencontainers.image.version",
        "revision" => "org.opencontainers.image.revision",
        "created" => "org.opencontainers.image.created",
        _ => "org.opencontainers.image.licenses",
    };
    [
        ("title", "loden".to_owned()),
        ("description", "An overlay network compatible with flannel, in userspace".to_owned()),
        ("version", source.version.to_owned()),
        ("revision", source.commit.clone()),
        ("created", source.time()),
        ("licenses", "Apache-2.0".to_owned()),
    ]
    .map(|(name, value)| (key(name), value))
    .into()
}
