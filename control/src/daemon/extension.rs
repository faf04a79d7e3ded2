//! The commands that the `extension` backend runs at start.

use model::backend::Backend;
use model::lease::{Lease, RawJson};
use model::net_config::NetConfig;

use crate::apply::commands::{self, CommandError};
use crate::plan;

/// Runs PreStartupCommand and returns what it prints: our lease's data.
pub(super) async fn before(config: &NetConfig) -> Result<Option<RawJson>, CommandError> {
    match &config.backend {
        Backend::Extension(extension) if !extension.pre_startup.trim().is_empty() => {
            let output = commands::run(&extension.pre_startup, &[], "").await?;
            tracing::info!(command = extension.pre_startup, output, "ran PreStartupCommand");
            Ok(Some(RawJson::string(&output)))
        }
        _ => Ok(None),
    }
}

/// Runs PostStartupCommand, once the lease is there.
pub(super) async fn after(config: &NetConfig, own: &Lease) -> Result<(), CommandError> {
    if let Backend::Extension(extension) = &config.backend
        && !extension.post_startup.trim().is_empty()
    {
        let variables = plan::startup_variables(config, own);
        let output = commands::run(&extension.post_startup, &variables, "").await?;
        tracing::info!(command = extension.post_startup, output, "ran PostStartupCommand");
    }
    Ok(())
}
