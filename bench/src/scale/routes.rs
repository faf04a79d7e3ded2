//! Counts the peers that the kernel of a host has routes to.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::DEVICE;
use crate::subject::{Context, Standing};

/// Time limit for the routes.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Polling interval of a waiting harness.
const POLL: Duration = Duration::from_millis(20);

/// Waits until a host has routes to exactly `peers` peers.
pub(super) fn wait(standing: &Standing, number: usize, peers: usize, context: &Context) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let namespace = standing.host(number)?.namespace();
    loop {
        context.interrupt.check()?;
        let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/route"))?;
        let routes = count(&text.context("cannot read the kernel's routes")?);
        if routes == peers {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "host {number} has routes to {routes} peers instead of {peers}");
        thread::sleep(POLL);
    }
}

/// Counts the lines that start with the tunnel's device (proc_net(5)).
fn count(text: &str) -> usize {
    text.lines().filter(|line| line.split_whitespace().next() == Some(DEVICE)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tunnels_routes_count() {
        let text =
            "Iface\tDestination\neth0\t0000120A\nflannel.1\t00000A0A\nflannel.11\t0\nflannel.1 \t00010A0A\n";
        assert_eq!(count(text), 2);
    }
}
