//! `loden cleanup`: removes what daemons created on this host and left behind.

use std::process::ExitCode;

use anyhow::bail;
use control::cleanup;
use control::netlink::Netlink;
use control::persist::instance::{Instance, InstanceError};

use crate::options::CleanupOptions;

/// Removes, or lists, what each instance left behind. Must run in the daemon's network namespace.
pub(crate) async fn run(options: &CleanupOptions) -> anyhow::Result<ExitCode> {
    let all = match &options.instance {
        Some(name) => vec![Instance::new(name, &options.run_dir)?],
        None => Instance::all(&options.run_dir),
    };
    let netlink = Netlink::connect()?;
    let mut found = 0;
    let mut failed = false;
    // Locking an instance that left nothing would create its lock file.
    for instance in all.iter().filter(|instance| instance.has_files()) {
        let lock = match instance.lock() {
            Ok(lock) => lock.ok(),
            Err(error @ InstanceError::Taken { .. }) if !options.force && !options.dry_run => {
                bail!("{error}\nStop the daemon first, or use --force to continue while it runs")
            }
            Err(_) => None,
        };
        let report = cleanup::clean(&netlink, instance, options.dry_run).await?;
        found += report.removed.len();
        report.removed.iter().for_each(|line| println!("{}: {line}", instance.name()));
        report.failures.iter().for_each(|failure| eprintln!("{}: {failure}", instance.name()));
        failed |= !report.failures.is_empty();
        drop(lock);
    }
    if found == 0 {
        println!("nothing to remove");
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
