//! `loden cleanup`: takes from this host what daemons have made and left.

use std::process::ExitCode;

use anyhow::bail;
use control::persist::instance::{InstanceError, Places};
use control::{cleanup, netlink};

use crate::options::CleanupOptions;

/// Removes, or lists, what each instance has left. Needs the network namespace of the daemon.
pub(crate) async fn run(options: &CleanupOptions) -> anyhow::Result<ExitCode> {
    let all = match &options.instance {
        Some(name) => vec![Places::new(name, &options.run_dir)?],
        None => Places::all(&options.run_dir),
    };
    let netlink = netlink::connect()?;
    let mut found = 0;
    let mut failed = false;
    // Taking the lock of an instance that has left nothing would make a file.
    for places in all.iter().filter(|places| places.has_any()) {
        let lock = match places.lock() {
            Ok(lock) => lock.ok(),
            Err(error @ InstanceError::Taken { .. }) if !options.force && !options.dry_run => {
                bail!("{error}\nStop the daemon first; --force goes on while it runs")
            }
            Err(_) => None,
        };
        let report = cleanup::clean(&netlink, places, options.dry_run).await?;
        found += report.removed.len();
        report.removed.iter().for_each(|line| println!("{}: {line}", places.name()));
        report.failures.iter().for_each(|failure| eprintln!("{}: {failure}", places.name()));
        failed |= !report.failures.is_empty();
        drop(lock);
    }
    if found == 0 {
        println!("nothing to remove");
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
