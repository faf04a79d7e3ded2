//! The options of `loden mk-docker-opts`.

use std::path::PathBuf;

use clap::Args;
use model::subnet_env::SUBNET_FILE;

/// `loden mk-docker-opts`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DockerOptsOptions {
    /// The subnet file to read.
    #[arg(short = 'f', value_name = "FILE", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// The file to write.
    #[arg(short = 'd', value_name = "FILE", default_value = "/run/docker_opts.env")]
    pub docker_file: PathBuf,
    /// Write each option as a variable of its own; without -i and -c both forms are written.
    #[arg(short = 'i')]
    pub individual: bool,
    /// Write all options as one variable.
    #[arg(short = 'c')]
    pub combined: bool,
    /// Leave --ip-masq out.
    #[arg(short = 'm')]
    pub no_ip_masq: bool,
    /// The name of the variable with all options.
    #[arg(short = 'k', value_name = "KEY", default_value = "DOCKER_OPTS")]
    pub key: String,
}
