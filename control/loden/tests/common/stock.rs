//! Stock flanneld, which `./test` builds from its Go module.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use lab::Needs;

use super::Cluster;

const RECIPE: &str = include_str!("../stock-flanneld/go.mod");

/// Returns the version that the recipe builds.
pub fn version() -> &'static str {
    let require = RECIPE.lines().find_map(|line| line.strip_prefix("require github.com/flannel-io/flannel "));
    require.expect("flannel in go.mod").trim()
}

fn program() -> Option<PathBuf> {
    Some(super::cache()?.join("stock-flanneld").join(version()).join("flanneld"))
}

/// Adds the needs of a test with stock flanneld.
pub fn needs(needs: Needs) -> Needs {
    let is_there = program().is_some_and(|program| program.is_file());
    needs.and(
        format!("stock flanneld {}, which ./test builds with Go 1.26 (see https://go.dev/dl)", version()),
        is_there,
    )
}

/// Builds stock flanneld's command for a host of the cluster, with its leases in etcd and with loden's subnet
/// file.
pub fn command(cluster: &Cluster, number: usize, endpoint: &str) -> Command {
    let mut command = Command::new(program().expect("asked for before"));
    command.args(["-etcd-endpoints", endpoint, "-iface", cluster.host(number).uplink(), "-subnet-file"]);
    command.arg(cluster.file(&format!("host{number}.env"))).stdout(Stdio::null());
    command
}
