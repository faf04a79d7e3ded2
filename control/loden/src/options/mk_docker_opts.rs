//! The options of `loden mk-docker-opts`.

use std::path::PathBuf;

use clap::Args;
use model::subnet_env::SUBNET_FILE;

/// The options of `loden mk-docker-opts`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DockerOptsOptions {
    /// The subnet file to read.
    #[arg(short = 'f', value_name = "FILE", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// The file to write.
    #[arg(short = 'd', value_name = "FILE", default_value = "/run/docker_opts.env")]
    pub docker_file: PathBuf,
    /// Write each option to its own variable; without -i and -c, both forms are written.
    #[arg(short = 'i')]
    pub individual: bool,
    /// Write all options to one variable.
    #[arg(short = 'c')]
    pub combined: bool,
    /// Omit --ip-masq.
    #[arg(short = 'm')]
    pub no_ip_masq: bool,
    /// Name of the variable that holds all options.
    #[arg(short = 'k', value_name = "KEY", default_value = "DOCKER_OPTS")]
    pub key: String,
}
