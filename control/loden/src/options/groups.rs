//! Groups of options, each for one part of the daemon.

use std::convert::Infallible;
use std::path::PathBuf;

use clap::{ArgAction, Args};
use model::backend::Secret;

use store::etcd;
use store::kube::{ANNOTATION_PREFIX, NET_CONFIG_PATH};

/// How to reach etcd.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "etcd")]
pub(crate) struct EtcdOptions {
    /// Addresses of etcd, separated by commas.
    #[arg(long = "etcd-endpoints", value_name = "URL,...", value_delimiter = ',',
          default_values_t = EtcdOptions::default().endpoints)]
    pub endpoints: Vec<String>,
    /// Key in etcd that holds the network's configuration and leases.
    #[arg(long = "etcd-prefix", value_name = "KEY", default_value_t = EtcdOptions::default().prefix)]
    pub prefix: String,
    /// Private key of the client certificate.
    #[arg(long = "etcd-keyfile", value_name = "FILE")]
    pub keyfile: Option<PathBuf>,
    /// Client certificate.
    #[arg(long = "etcd-certfile", value_name = "FILE")]
    pub certfile: Option<PathBuf>,
    /// Certificates to trust instead of the system's.
    #[arg(long = "etcd-cafile", value_name = "FILE")]
    pub cafile: Option<PathBuf>,
    /// User name.
    #[arg(
        long = "etcd-username",
        value_name = "NAME",
        default_value = "",
        hide_default_value = true,
        env = "FLANNELD_ETCD_USERNAME",
        hide_env_values = true
    )]
    pub username: String,
    /// Password; prefer the environment, as every user can see a command line.
    #[arg(
        long = "etcd-password",
        value_name = "PASSWORD",
        value_parser = secret,
        env = "FLANNELD_ETCD_PASSWORD",
        hide_env_values = true
    )]
    pub password: Option<Secret>,
}

impl EtcdOptions {
    /// Returns the daemon's settings for etcd.
    pub(crate) fn config(&self) -> etcd::Config {
        etcd::Config {
            endpoints: self.endpoints.clone(),
            prefix: self.prefix.clone(),
            ca_file: self.cafile.clone(),
            cert_file: self.certfile.clone(),
            key_file: self.keyfile.clone(),
            username: self.username.clone(),
            password: self.password.clone().filter(|password| !password.reveal().is_empty()),
        }
    }
}

impl Default for EtcdOptions {
    fn default() -> EtcdOptions {
        let etcd::Config { endpoints, prefix, ca_file, cert_file, key_file, username, password } =
            etcd::Config::default();
        EtcdOptions {
            endpoints,
            prefix,
            keyfile: key_file,
            certfile: cert_file,
            cafile: ca_file,
            username,
            password,
        }
    }
}

fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// How to use the Kubernetes API instead of a store.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Kubernetes (experimental)")]
pub(crate) struct KubeOptions {
    /// Take leases from the nodes of a Kubernetes cluster.
    #[arg(long = "kube-subnet-mgr", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          action = ArgAction::Set, default_value_t = false, default_missing_value = "true",
          hide_default_value = true, hide_possible_values = true)]
    pub subnet_mgr: bool,
    /// Address of the API server.
    #[arg(long = "kube-api-url", value_name = "URL", default_value = "", hide_default_value = true)]
    pub api_url: String,
    /// Prefix of the node annotations.
    #[arg(long = "kube-annotation-prefix", value_name = "PREFIX", default_value = ANNOTATION_PREFIX)]
    pub annotation_prefix: String,
    /// The kubeconfig for the API server.
    #[arg(long = "kubeconfig-file", value_name = "FILE")]
    pub kubeconfig_file: Option<PathBuf>,
    /// The network configuration.
    #[arg(long = "net-config-path", value_name = "FILE", default_value = NET_CONFIG_PATH)]
    pub net_config_path: PathBuf,
    /// Set the node's NetworkUnavailable condition once the network is up.
    #[arg(long = "set-node-network-unavailable", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          action = ArgAction::Set, default_value_t = true, default_missing_value = "true",
          hide_possible_values = true)]
    pub set_node_network_unavailable: bool,
}

impl Default for KubeOptions {
    fn default() -> KubeOptions {
        KubeOptions {
            subnet_mgr: false,
            api_url: String::new(),
            annotation_prefix: ANNOTATION_PREFIX.to_owned(),
            kubeconfig_file: None,
            net_config_path: NET_CONFIG_PATH.into(),
            set_node_network_unavailable: true,
        }
    }
}

/// Masquerading and firewall rules.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Firewall")]
pub(crate) struct TrafficOptions {
    /// Masquerade packets that leave the cluster network.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true", hide_default_value = true,
          hide_possible_values = true)]
    pub ip_masq: bool,
    /// Masquerade without random source ports.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true", hide_default_value = true,
          hide_possible_values = true)]
    pub ip_masq_fully_random_disable: bool,
    /// Seconds between two checks of the rules.
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub iptables_resync: u32,
    /// Accept forwarded packets from and to the cluster network.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = true, default_missing_value = "true", hide_possible_values = true)]
    pub iptables_forward_rules: bool,
    /// Keep a blackhole route for this node's subnet, for addresses that no pod has.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true", hide_default_value = true,
          hide_possible_values = true)]
    pub ip_blackhole_route: bool,
    /// Refuse to start with iptables on a kernel that does not pass it bridged packets.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = true, default_missing_value = "true", hide_possible_values = true)]
    pub require_br_netfilter: bool,
}

impl Default for TrafficOptions {
    fn default() -> TrafficOptions {
        TrafficOptions {
            ip_masq: false,
            ip_masq_fully_random_disable: false,
            iptables_resync: 5,
            iptables_forward_rules: true,
            ip_blackhole_route: false,
            require_br_netfilter: true,
        }
    }
}

/// The server for probes and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Health")]
pub(crate) struct HealthOptions {
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long = "healthz-ip", value_name = "IP", default_value = HEALTHZ_IP)]
    pub ip: String,
    /// TCP port of the server; 0 turns it off.
    #[arg(long = "healthz-port", value_name = "PORT", default_value_t = 0)]
    pub port: u16,
}

/// All IPv4 addresses, as in flannel.
const HEALTHZ_IP: &str = "0.0.0.0";

impl Default for HealthOptions {
    fn default() -> HealthOptions {
        HealthOptions { ip: HEALTHZ_IP.to_owned(), port: 0 }
    }
}
