//! The subcommands, one module each.

pub(crate) mod cleanup;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod generate;
pub(crate) mod install_cni;
pub(crate) mod load;
pub(crate) mod mk_docker_opts;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod version;
