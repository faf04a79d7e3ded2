//! The image: what flannel's has and its manifests use, with our programs.

use std::fmt::Write;

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::debian::{self, Wanted};
use crate::layer::Layer;
use crate::oci::{self, Image, Labels, Part, Start};
use crate::output::Output;
use crate::source::Source;
use crate::toolchain::Toolchain;

const PACKAGES: &str = include_str!("../../image/packages");
const IPTABLES: &str = include_str!("../../image/iptables");
/// What the shell and init containers use.
const APPLETS: [&str; 29] = [
    "awk", "basename", "cat", "chmod", "cp", "cut", "date", "dirname", "echo", "env", "false", "grep",
    "head", "hostname", "id", "ls", "mkdir", "mv", "nc", "ping", "ping6", "printf", "ps", "rm", "sed",
    "sleep", "tail", "test", "true",
];
const PATH: &str = "PATH=/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Builds the images, one archive for each architecture, and one archive and directory for all.
pub(crate) fn build(archs: &[Arch], source: &Source, toolchain: &Toolchain, output: &Output) -> Result<()> {
    let version = source.version;
    let name = format!("localhost/loden:{version}");
    let labels = labels(source);
    let mut images = Vec::new();
    for arch in archs {
        let (image, listed) = of(*arch, source, toolchain, output, &labels)?;
        let stem = format!("loden-{version}-image-{}", arch.debian());
        output.place(&format!("{stem}.packages"), |path| Ok(std::fs::write(path, &listed)?))?;
        let image = [image];
        let layout = oci::layout(&image, &name, &labels)?;
        output.place(&format!("{stem}.tar"), |path| oci::write(&layout, source.epoch, path))?;
        images.extend(image);
    }
    if images.len() > 1 {
        let layout = oci::layout(&images, &name, &labels)?;
        output
            .place(&format!("loden-{version}-image.tar"), |path| oci::write(&layout, source.epoch, path))?;
    }
    Ok(())
}

fn of(
    arch: Arch,
    source: &Source,
    toolchain: &Toolchain,
    output: &Output,
    labels: &Labels,
) -> Result<(Image, String)> {
    let wanted = Wanted::parse(PACKAGES);
    let mut unpacked = debian::unpack(toolchain.cache(), arch, &wanted, toolchain.offline())
        .with_context(|| format!("cannot get Debian's packages for {}", arch.debian()))?;
    let mut system = Layer::default();
    for (link, target) in
        [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
    {
        system.directory(target, 0o755)?;
        system.link(link, target)?;
    }
    unpacked.fill(&mut system, arch, &wanted)?;
    for applet in APPLETS {
        system.link(&format!("usr/bin/{applet}"), "busybox")?;
    }
    // Debian's busybox as a shell would start its own `ip` and not iproute2's.
    system.link("usr/bin/sh", "dash")?;
    for family in ["iptables", "ip6tables"] {
        for ending in ["", "-save", "-restore"] {
            system.file(&format!("usr/sbin/{family}{ending}"), IPTABLES, 0o755)?;
            for mode in ["nft", "legacy"] {
                let target = format!("xtables-{mode}-multi");
                system.link(&format!("usr/sbin/{family}-{mode}{ending}"), &target)?;
            }
        }
    }
    system.file("etc/ssl/certs/ca-certificates.crt", unpacked.authorities()?, 0o644)?;
    system.file(
        "etc/passwd",
        "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        0o644,
    )?;
    system.file("etc/group", "root:x:0:\nnogroup:x:65534:\n", 0o644)?;
    system.directory("run", 0o755)?;
    system.directory("tmp", 0o1777)?;

    let mut ours = Layer::default();
    let programs = output.path().join(arch.name());
    ours.copy("opt/bin/loden", &programs.join("loden"), 0o755)?;
    for name in ["flanneld", "install-conf", "mk-docker-opts.sh"] {
        ours.link(&format!("opt/bin/{name}"), "loden")?;
    }
    // `loden install-cni` takes the plugin from its own directory; flannel's manifest copies /flannel.
    ours.copy("opt/bin/loden-cni", &programs.join("loden-cni"), 0o755)?;
    ours.link("flannel", "opt/bin/loden-cni")?;
    ours.copy("usr/share/doc/loden/LICENSE", &source.root.join("LICENSE"), 0o644)?;

    let mut listed = String::new();
    for (name, version) in &unpacked.versions {
        writeln!(listed, "{name} {version}")?;
    }
    let created = source.time();
    let start = Start { entrypoint: &["/opt/bin/flanneld"], environment: &[PATH], created: &created };
    let parts = [
        Part { layer: &system, time: unpacked.time, origin: "packages of Debian, by deploy/release" },
        Part { layer: &ours, time: source.epoch, origin: "loden, by deploy/release" },
    ];
    Ok((Image::build(arch, &parts, &start, labels)?, listed))
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
