//! `loden run` and `flanneld`: turns the options into settings and runs the daemon.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use control::daemon;
use control::settings::{NetConfigSource, Settings, TrafficSettings, UplinkSettings, WorkerSettings};

use store::kube::{self, KubeError};
use store::{Spec, SpecError};

use crate::options::{BadMargin, HealthOptions, RunOptions, TrafficOptions};

/// Options that are parsed but cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum UnusableOptions {
    /// `--store` names no store.
    #[error(transparent)]
    Store(#[from] SpecError),
    /// The renewal margin is longer than a lease.
    #[error(transparent)]
    Margin(#[from] BadMargin),
    /// The address of the server for probes is invalid.
    #[error("--healthz-ip {0}: not an IP address")]
    HealthAddress(String),
    /// A flag that Kubernetes leaves no place for. Ignoring it would be worse than an error.
    #[error("{flag} and --kube-subnet-mgr: {advice}")]
    BesideKubernetes { flag: &'static str, advice: &'static str },
    /// The flags or variables for Kubernetes are not enough.
    #[error(transparent)]
    Kubernetes(#[from] KubeError),
}

/// Runs the daemon until a signal stops it.
pub(crate) async fn run(options: &RunOptions) -> anyhow::Result<ExitCode> {
    // The text of a DaemonError contains its cause.
    daemon::run(&settings(options)?).await.map_err(|error| anyhow::Error::msg(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

fn settings(options: &RunOptions) -> Result<Settings, UnusableOptions> {
    settings_in(options, |name| std::env::var(name).ok())
}

fn settings_in(
    options: &RunOptions,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Settings, UnusableOptions> {
    let net_config = match (&options.net_config, &options.net_config_json) {
        (Some(path), _) => Some(NetConfigSource::File(path.clone())),
        (None, Some(text)) => Some(NetConfigSource::Text(text.clone())),
        (None, None) => None,
    };
    Ok(Settings {
        store: store(options, environment)?,
        store_given: options.store.is_some() || options.kube.subnet_mgr,
        net_config,
        uplink: UplinkSettings {
            ifaces: options.iface.clone(),
            patterns: options.iface_regex.clone(),
            can_reach: options.iface_can_reach,
            public_ip: options.public_ip,
            public_ipv6: options.public_ipv6,
        },
        subnet_file: options.subnet_file.clone(),
        renew_margin: options.renew_margin()?,
        traffic: traffic(&options.traffic),
        health: health(&options.health)?,
        instance: options.instance.clone(),
        run_dir: options.run_dir.clone(),
        workers: WorkerSettings {
            count: options.workers,
            pin: options.pin,
            realtime: options.realtime,
            spin: options.spin_us.map(|micros| Duration::from_micros(micros.into())),
            queue_memory: options.queue_memory.map(|mib| usize::from(mib) << 20),
            without: options.without.clone(),
        },
        counters_file: options.counters_file.clone(),
    })
}

fn store(
    options: &RunOptions,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Spec, UnusableOptions> {
    if options.kube.subnet_mgr {
        return kubernetes(options, environment);
    }
    let spec = options.store.as_deref().map(str::parse).transpose()?.unwrap_or_default();
    Ok(match spec {
        Spec::Etcd(_) => Spec::Etcd(options.etcd.config()),
        other => other,
    })
}

fn kubernetes(
    options: &RunOptions,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Spec, UnusableOptions> {
    let there = "the leases are Kubernetes' nodes; leave one of the two out";
    let file = "the network configuration is the file of --net-config-path; leave the other out";
    for (is_given, flag, advice) in [
        (options.store.is_some(), "--store", there),
        (options.net_config.is_some(), "--net-config", file),
        (options.net_config_json.is_some(), "--net-config-json", file),
    ] {
        if is_given {
            return Err(UnusableOptions::BesideKubernetes { flag, advice });
        }
    }
    let config = kube::Config {
        api_url: options.kube.api_url.clone(),
        kubeconfig: options.kube.kubeconfig_file.clone(),
        annotation_prefix: options.kube.annotation_prefix.clone(),
        net_config_path: options.kube.net_config_path.clone(),
        set_network_unavailable: options.kube.set_node_network_unavailable,
        ..kube::Config::default()
    };
    Ok(Spec::Kube(config.with_environment(environment)?))
}

fn traffic(options: &TrafficOptions) -> TrafficSettings {
    TrafficSettings {
        masquerade: options.ip_masq,
        forward: options.iptables_forward_rules,
        random_fully: !options.ip_masq_fully_random_disable,
        blackhole: options.ip_blackhole_route,
        resync: Duration::from_secs(options.iptables_resync.into()),
        require_br_netfilter: options.require_br_netfilter,
    }
}

/// Returns the address to serve probes on; `None` if port 0 turns the server off.
fn health(options: &HealthOptions) -> Result<Option<SocketAddr>, UnusableOptions> {
    if options.port == 0 {
        return Ok(None);
    }
    let bare = options.ip.trim_start_matches('[').trim_end_matches(']');
    let ip: IpAddr = match bare {
        // flannel's manifests may leave the variable unset.
        "" => Ipv4Addr::UNSPECIFIED.into(),
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        _ => bare.parse().map_err(|_| UnusableOptions::HealthAddress(options.ip.clone()))?,
    };
    Ok(Some(SocketAddr::new(ip, options.port)))
}

#[cfg(test)]
mod tests {
    use store::etcd::Config;

    use super::*;

    #[test]
    fn options_without_flags_are_the_default_settings() {
        assert_eq!(settings(&RunOptions::default()), Ok(Settings::default()));
    }

    #[test]
    fn the_probe_address_is_checked_only_with_a_port() {
        let health = |ip: &str, port| health(&HealthOptions { ip: ip.to_owned(), port });
        assert_eq!(health("example.org", 0), Ok(None));
        assert_eq!(health("example.org", 1), Err(UnusableOptions::HealthAddress("example.org".into())));
        for (ip, address) in
            [("", "0.0.0.0:9"), ("localhost", "127.0.0.1:9"), ("[::1]", "[::1]:9"), ("::", "[::]:9")]
        {
            assert_eq!(health(ip, 9), Ok(address.parse().ok()), "{ip}");
        }
    }

    #[test]
    fn unsupported_options_are_rejected() {
        let options = RunOptions { subnet_lease_renew_margin: 1440, ..RunOptions::default() };
        assert!(matches!(settings(&options), Err(UnusableOptions::Margin(_))));
        let options = RunOptions { store: Some("zookeeper".into()), ..RunOptions::default() };
        assert!(matches!(settings(&options), Err(UnusableOptions::Store(_))));
    }

    #[test]
    fn kubernetes_needs_its_node_and_is_the_only_store() {
        let mut options = RunOptions::default();
        options.kube.subnet_mgr = true;
        options.kube.api_url = "https://10.0.0.1:6443".into();
        options.kube.annotation_prefix = "org.com/9".into();
        let error = settings_in(&options, |_| None).expect_err("no node").to_string();
        assert!(error.contains("NODE_NAME"), "{error}");
        let node = |name: &str| (name == "NODE_NAME").then(|| "n1".to_owned());
        let expected = kube::Config {
            api_url: "https://10.0.0.1:6443".into(),
            annotation_prefix: "org.com/9".into(),
            node: kube::Identity::Node("n1".into()),
            ..kube::Config::default()
        };
        let made = settings_in(&options, node).expect("a node");
        assert_eq!((made.store, made.store_given), (Spec::Kube(expected), true));
        for (change, flag) in [
            ((|o| o.store = Some("etcd".into())) as fn(&mut RunOptions), "--store"),
            (|o| o.net_config = Some("/n".into()), "--net-config"),
            (|o| o.net_config_json = Some("{}".into()), "--net-config-json"),
        ] {
            let mut options = options.clone();
            change(&mut options);
            let error = settings_in(&options, node).expect_err(flag).to_string();
            assert!(error.starts_with(&format!("{flag} and --kube-subnet-mgr")), "{error}");
        }
    }

    #[test]
    fn the_options_of_etcd_are_for_etcd() {
        let mut options = RunOptions::default();
        options.etcd.prefix = "/other".into();
        let config = Config { prefix: "/other".into(), ..Config::default() };
        for store in [None, Some("etcd".to_owned())] {
            options.store = store;
            assert_eq!(settings(&options).expect("etcd").store, Spec::Etcd(config.clone()));
        }
        options.store = Some("sqlite:/l.db".into());
        assert_eq!(settings(&options).expect("a file").store, Spec::Sqlite("/l.db".into()));
    }
}
