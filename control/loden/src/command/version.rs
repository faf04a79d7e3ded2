//! `loden version`: tells which build this is, from which commit, for which target, and what is in it.

use std::process::ExitCode;

use serde::Serialize;

use crate::options::VersionOptions;
use crate::output::print;

/// The commit, if whoever built the program set it, as `deploy/release` does.
const COMMIT: Option<&str> = option_env!("LODEN_COMMIT");
const STORES: &[&str] = &["etcd", "kubernetes", "sqlite", "memory"];
const BACKENDS: &[&str] = &["vxlan", "udp", "host-gw", "ipip", "wireguard", "alloc", "extension"];
const FIREWALLS: &[&str] = &["iptables", "nftables"];

/// A build of the program.
#[derive(Debug, Serialize)]
struct Build {
    version: &'static str,
    /// The commit, with `-dirty` after it if the tree had changes.
    commit: Option<&'static str>,
    target: &'static str,
    libc: &'static str,
    /// The C library is part of the program.
    is_static: bool,
    stores: &'static [&'static str],
    backends: &'static [&'static str],
    firewalls: &'static [&'static str],
}

/// Prints what is known of this build.
pub(crate) fn run(options: VersionOptions) -> anyhow::Result<ExitCode> {
    let build = Build {
        version: env!("CARGO_PKG_VERSION"),
        commit: COMMIT.filter(|commit| !commit.is_empty()),
        target: env!("LODEN_TARGET"),
        libc: libc(),
        is_static: cfg!(target_feature = "crt-static"),
        stores: STORES,
        backends: BACKENDS,
        firewalls: FIREWALLS,
    };
    let text = match options.json {
        true => serde_json::to_string_pretty(&build)? + "\n",
        false => build.text(),
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn libc() -> &'static str {
    match () {
        () if cfg!(target_env = "musl") => "musl",
        () if cfg!(target_env = "gnu") => "gnu",
        () => "unknown",
    }
}

impl Build {
    fn text(&self) -> String {
        let linking = if self.is_static { "static" } else { "dynamic" };
        format!(
            "loden {}\ncommit:    {}\ntarget:    {}\nlibc:      {}, {linking}\nstores:    {}\nbackends:  \
             {}\nfirewalls: {}\n",
            self.version,
            self.commit.unwrap_or("not recorded in this build"),
            self.target,
            self.libc,
            self.stores.join(", "),
            self.backends.join(", "),
            self.firewalls.join(", "),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backends_are_those_that_a_configuration_may_name() {
        for name in BACKENDS {
            let config = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{name}"}}}}"#);
            let (config, _) = model::net_config::parse(&config).expect("a configuration");
            assert_eq!(config.backend.name(), *name);
        }
    }
}
