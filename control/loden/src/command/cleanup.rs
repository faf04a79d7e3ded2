//! `loden cleanup`: removes what daemons created on this host and left behind.

use std::process::ExitCode;

use anyhow::bail;
use control::cleanup;
use control::netlink::Netlink;
use control::persist::instance::{Instance, InstanceError};

use crate::options::CleanupOptions;
use crate::output::{print, say};

/// Removes, or lists, what each instance left behind. Must run in the daemon's network namespace.
pub(crate) async fn run(options: &CleanupOptions) -> anyhow::Result<ExitCode> {
    let all = match &options.instance {
        Some(name) => vec![Instance::new(name, &options.run_dir)?],
        None => Instance::all(&options.run_dir),
    };
    let netlink = Netlink::connect()?;
    let mut found = 0;
    let mut failed = false;
    let mut text = String::new();
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
        report.removed.iter().for_each(|line| text.push_str(&format!("{}: {line}\n", instance.name())));
        report.failures.iter().for_each(|failure| say(format_args!("{}: {failure}", instance.name())));
        failed |= !report.failures.is_empty();
        drop(lock);
    }
    if found == 0 {
        text.push_str("nothing to remove\n");
    }
    // At the end: what cannot be printed is removed all the same.
    print(&text)?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
