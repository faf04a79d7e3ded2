//! The options of `loden install-cni` and `loden install-conf`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;
use model::subnet_env::SUBNET_FILE;

/// The plugin's own name, and the name of its file beside this program.
pub(crate) const PLUGIN: &str = "loden-cni";
/// The CNI versions that have plugin lists and that the plugin implements.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The options of `loden install-cni`.
#[derive(Clone, Debug, Args)]
pub(crate) struct InstallCniOptions {
    /// File of the plugin [default: loden-cni beside this program].
    #[arg(long, value_name = "PATH")]
    pub plugin: Option<PathBuf>,
    /// Directory where runtimes look for plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Names to install the plugin under; the first is the type in a generated configuration.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values = ["flannel", PLUGIN])]
    pub name: Vec<String>,
    /// Directory where runtimes look for configurations; they use the first by name.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// File name of the configuration.
    #[arg(long, value_name = "NAME", default_value = "10-flannel.conflist")]
    pub conf_name: String,
    /// Install this configuration, byte for byte, instead of a generated one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["network", "cni_version", "subnet_file"])]
    pub conf: Option<PathBuf>,
    /// Do not install a configuration.
    #[arg(long, conflicts_with = "conf")]
    pub skip_conf: bool,
    /// Name of the network in a generated configuration.
    #[arg(long, value_name = "NAME", default_value = "cbr0")]
    pub network: String,
    /// CNI version in a generated configuration. CNI plugins and runtimes from before 2022 need an older one.
    #[arg(
        long, value_name = "VERSION", default_value = "1.0.0",
        value_parser = PossibleValuesParser::new(VERSIONS),
    )]
    pub cni_version: String,
    /// The daemon's --subnet-file, for a generated configuration.
    #[arg(long, value_name = "PATH", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
}

/// The options of `loden install-conf`.
#[derive(Clone, Debug, Args)]
pub(crate) struct InstallConfOptions {
    /// The configuration to copy, for example from a ConfigMap.
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// The file to write, for example `/etc/cni/net.d/10-flannel.conflist`.
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
}
