//! Other userspace implementations of WireGuard, each a program that creates a device and is configured by
//! `wg`.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::{Host, Lab, PodNetwork, Process};

use super::{Context, UNDERLAY_MTU, fixed_networks, loden};

/// flannel's port.
const PORT: u16 = 51820;
/// flannel's overhead for WireGuard.
const OVERHEAD: u32 = 80;
/// Time limit for a program to create its device.
const READY: Duration = Duration::from_secs(10);
/// Polling interval of a waiting harness.
const POLL: Duration = Duration::from_millis(20);

/// A userspace implementation of WireGuard.
#[derive(Clone, Copy, Debug)]
pub(super) enum Program {
    /// The reference implementation in Go.
    WireguardGo,
    /// Cloudflare's implementation.
    Boringtun,
    /// Mullvad's implementation.
    Gotatun,
}

impl Program {
    fn command(self, device: &str) -> Command {
        let (name, arguments): (_, &[&str]) = match self {
            Program::WireguardGo => ("wireguard-go", &["-f"]),
            Program::Boringtun => ("boringtun-cli", &["-f", "--disable-drop-privileges"]),
            Program::Gotatun => ("gotatun", &["-f", "--disable-drop-privileges"]),
        };
        let mut command = Command::new(name);
        command.args(arguments).arg(device).env("WG_PROCESS_FOREGROUND", "1").env("WG_SUDO", "1");
        command.stdout(Stdio::null());
        command
    }
}

/// Starts the program on both hosts and configures them as peers. Programs started before an error are in
/// `daemons` and stop when it is dropped.
pub(super) fn start(
    program: Program,
    lab: &Lab,
    daemons: &mut loden::Daemons,
    context: &Context,
) -> Result<Vec<PodNetwork>> {
    let networks = fixed_networks(lab, UNDERLAY_MTU - OVERHEAD)?;
    let directory = tempfile::Builder::new().prefix("loden-bench-").tempdir();
    let directory = directory.context("cannot create a temporary directory")?;
    let mut publics = Vec::new();
    for host in lab.hosts() {
        let device = device(program, host);
        let mut command = program.command(&device);
        let name = command.get_program().to_string_lossy().into_owned();
        let process = Process::spawn(host.namespace(), &mut command)
            .with_context(|| format!("cannot start {name}: install it, or leave it out of --subjects"))?;
        daemons.push(format!("h{}", host.number()), process);
        await_device(host, &device, daemons, context)?;
        let key = directory.path().join(&device);
        let line = format!("umask 077; wg genkey > {0}; wg pubkey < {0}", key.display());
        publics.push(shell(host, &line)?);
    }
    for (host, network) in lab.hosts().iter().zip(&networks) {
        let subnet = network.ipv4.context("an IPv4 subnet is needed")?;
        let device = device(program, host);
        let key = directory.path().join(&device);
        let others = lab
            .hosts()
            .iter()
            .zip(&networks)
            .zip(&publics)
            .filter(|((other, _), _)| other.number() != host.number());
        let mut line = format!("wg set {device} listen-port {PORT} private-key {}", key.display());
        for ((other, network), public) in others {
            let Some(allowed) = network.ipv4 else { continue };
            line.push_str(&format!(
                " peer {public} allowed-ips {allowed} endpoint {}:{PORT}",
                other.underlay()
            ));
        }
        shell(host, &line)?;
        let (base, mtu) = (subnet.network(), network.mtu);
        shell(
            host,
            &format!(
                "ip addr add {base}/32 dev {device}; ip link set {device} mtu {mtu} up; ip route add \
                 10.5.0.0/16 dev {device}"
            ),
        )?;
    }
    Ok(networks)
}

/// Returns a device name unique on the machine: the control sockets of all programs share one directory,
/// regardless of namespaces, and a program exits when another replaces its socket.
fn device(program: Program, host: &Host) -> String {
    let letter = match program {
        Program::WireguardGo => 'w',
        Program::Boringtun => 'b',
        Program::Gotatun => 'g',
    };
    format!("b{}{letter}{}", std::process::id() % 1_000_000, host.number())
}

fn await_device(host: &Host, device: &str, daemons: &mut loden::Daemons, context: &Context) -> Result<()> {
    let deadline = Instant::now() + READY;
    // The control socket appears last.
    while shell(host, &format!("wg show {device}")).is_err() {
        context.interrupt.check()?;
        daemons.check()?;
        if Instant::now() > deadline {
            bail!("no device {device} within {} s", READY.as_secs());
        }
        thread::sleep(POLL);
    }
    Ok(())
}

fn shell(host: &Host, line: &str) -> Result<String> {
    let output = host.namespace().output(Command::new("sh").args(["-ec", line]))?;
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
