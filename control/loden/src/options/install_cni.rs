//! The options of `loden install-cni` and `loden install-conf`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;
use model::subnet_env::SUBNET_FILE;

/// The plugin's own name, and its file beside this program.
pub(crate) const PLUGIN: &str = "loden-cni";
/// Versions of CNI that know lists of plugins, and that the plugin speaks.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// `loden install-cni`.
#[derive(Clone, Debug, Args)]
pub(crate) struct InstallCniOptions {
    /// The plugin [default: loden-cni beside this program].
    #[arg(long, value_name = "PATH")]
    pub plugin: Option<PathBuf>,
    /// Where runtimes look for plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Names to install the plugin by; the first one is the type in a generated configuration.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values = ["flannel", PLUGIN])]
    pub name: Vec<String>,
    /// Where runtimes look for configurations; they take the first by name.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// The configuration's file name.
    #[arg(long, value_name = "NAME", default_value = "10-flannel.conflist")]
    pub conf_name: String,
    /// Install this configuration, byte for byte, in place of a generated one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["network", "cni_version", "subnet_file"])]
    pub conf: Option<PathBuf>,
    /// Install no configuration.
    #[arg(long, conflicts_with = "conf")]
    pub skip_conf: bool,
    /// Name of the network in a generated configuration.
    #[arg(long, value_name = "NAME", default_value = "cbr0")]
    pub network: String,
    /// Version of CNI in a generated configuration.
    #[arg(long, value_name = "VERSION", default_value = "0.3.1", value_parser = PossibleValuesParser::new(VERSIONS))]
    pub cni_version: String,
    /// The daemon's --subnet-file, for a generated configuration.
    #[arg(long, value_name = "PATH", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
}

/// `loden install-conf`.
#[derive(Clone, Debug, Args)]
pub(crate) struct InstallConfOptions {
    /// The configuration, like a ConfigMap's.
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// The file it is to be, like `/etc/cni/net.d/10-flannel.conflist`.
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
}
