//! `loden mk-docker-opts`: turns `subnet.env` into dockerd's network options, for dockerd's unit to read.
//!
//! Output and flags are those of flannel's `mk-docker-opts.sh`; the binary does the same under that name.
//! Unlike the script, it does not execute the file, and a missing file is an error: dockerd would otherwise
//! choose a subnet of its own.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use control::persist::atomic_file;
use ipnetwork::Ipv4Network;
use model::subnet_env;

use crate::options::{DockerOptsOptions, is_called};

/// The name of the subcommand.
pub(crate) const NAME: &str = "mk-docker-opts";

/// The prefix of a variable that holds one option of dockerd's.
const PREFIX: &str = "DOCKER_OPT_";
const SUBNET: &str = "FLANNEL_SUBNET";
const MTU: &str = "FLANNEL_MTU";
const IPMASQ: &str = "FLANNEL_IPMASQ";

/// Tells whether the program was called by the script's name.
pub(crate) fn is_program_name(program: Option<&OsStr>) -> bool {
    is_called(program, &[NAME, "mk-docker-opts.sh"])
}

/// Reads the subnet file and writes dockerd's options.
pub(crate) fn run(options: &DockerOptsOptions) -> anyhow::Result<ExitCode> {
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect();
    let subnet_file = match fs::read_to_string(&options.subnet_file) {
        Ok(text) => text,
        Err(error) if environment_has_a_subnet(&environment) => {
            tracing::debug!(
                path = %options.subnet_file.display(), %error,
                "no subnet file; using the environment"
            );
            String::new()
        }
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "cannot read {}; the daemon writes it once this node has a subnet: start the daemon \
                     first, or give its --subnet-file with -f",
                    options.subnet_file.display()
                )
            });
        }
    };
    let output = render(options, &subnet_file, environment)
        .with_context(|| format!("cannot use {}", options.subnet_file.display()))?;
    atomic_file::write_through(&options.docker_file, output.as_bytes(), 0o644)
        .context("cannot write dockerd's options; choose another file with -d")?;
    Ok(ExitCode::SUCCESS)
}

/// Renders the options. Variables of the environment count as in a shell that sources the file, which takes
/// precedence.
pub(crate) fn render(
    options: &DockerOptsOptions,
    subnet_file: &str,
    environment: BTreeMap<String, String>,
) -> anyhow::Result<String> {
    ensure!(
        is_identifier(&options.key),
        "-k {:?} is not a variable name: letters, digits and _ only",
        options.key
    );
    let lookup = |key: &str| {
        let value = subnet_env::value(subnet_file, key).or_else(|| environment.get(key).cloned());
        value.filter(|value| !value.is_empty())
    };
    let Some(subnet) = lookup(SUBNET) else {
        bail!(
            "{SUBNET} is missing: the node has no IPv4 subnet, which dockerd's --bip needs; check `loden \
             status`"
        );
    };
    // The prefix length is required: without it dockerd would use a single address.
    let parsed = subnet.contains('/').then(|| subnet.parse::<Ipv4Network>().ok()).flatten();
    ensure!(
        parsed.is_some(),
        "{SUBNET}={subnet:?} is not an IPv4 address with prefix length, such as 10.244.1.1/24"
    );
    let all = environment.iter().filter(|(name, _)| name.starts_with(PREFIX) && is_identifier(name));
    let mut all: BTreeMap<String, String> = all.map(|(name, value)| (name.clone(), value.clone())).collect();
    all.insert(format!("{PREFIX}BIP"), format!("--bip={subnet}"));
    if let Some(mtu) = lookup(MTU) {
        ensure!(mtu.parse::<u32>().is_ok(), "{MTU}={mtu:?} is not a number of bytes");
        all.insert(format!("{PREFIX}MTU"), format!("--mtu={mtu}"));
    }
    if let Some(masquerade) = lookup(IPMASQ).filter(|_| !options.no_ip_masq) {
        // Masquerading twice would hide the pods' addresses from each other.
        let dockers = match masquerade.as_str() {
            "true" => false,
            "false" => true,
            other => bail!("{IPMASQ}={other:?} is neither true nor false"),
        };
        all.insert(format!("{PREFIX}IPMASQ"), format!("--ip-masq={dockers}"));
    }
    let both = !options.individual && !options.combined;
    let mut text = String::new();
    if options.individual || both {
        all.iter().for_each(|(name, value)| text.push_str(&line(name, value)));
    }
    if options.combined || both {
        let before = environment.get(&options.key).filter(|before| !before.is_empty());
        let mut value = before.map(|before| format!("{before} ")).unwrap_or_default();
        all.values().for_each(|option| value.extend([" ", option]));
        text.push_str(&line(&options.key, &value));
    }
    Ok(text)
}

/// Renders an assignment that a shell and systemd read alike (systemd.exec(5), EnvironmentFile=).
fn line(name: &str, value: &str) -> String {
    let mut text = format!("{name}=\"");
    for letter in value.chars() {
        if matches!(letter, '"' | '\\' | '$' | '`') {
            text.push('\\');
        }
        text.push(letter);
    }
    text + "\"\n"
}

fn is_identifier(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn environment_has_a_subnet(environment: &BTreeMap<String, String>) -> bool {
    environment.get(SUBNET).is_some_and(|subnet| !subnet.is_empty())
}

fn text(value: OsString) -> Option<String> {
    value.into_string().ok()
}

#[cfg(test)]
mod tests;
