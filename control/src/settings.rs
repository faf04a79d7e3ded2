//! The daemon's settings as plain data. The program builds them from a command line.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use model::subnet_env::SUBNET_FILE;

use store::kube::NodeAddresses;
use store::{Spec, regular};

/// The directory of the status sockets and state files of a host's daemons.
pub const RUN_DIRECTORY: &str = "/run/loden";

/// The settings of one daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The store of leases.
    pub store: Spec,
    /// Whether somebody asked for this store; otherwise it is the default.
    pub store_given: bool,
    /// The network configuration to put into the store first.
    pub net_config: Option<NetConfigSource>,
    /// The interface that carries the tunnels.
    pub uplink: UplinkSettings,
    /// The file that announces this node's subnet to CNI plugins.
    pub subnet_file: PathBuf,
    /// How long before its expiry a lease is renewed.
    pub renew_margin: Duration,
    /// Masquerading and firewall rules.
    pub traffic: TrafficSettings,
    /// The address that probes and metrics are served on; `None` for no server.
    pub health: Option<SocketAddr>,
    /// The daemon's name; `None` derives one from `subnet_file`.
    pub instance: Option<String>,
    /// The directory of the status socket and the state file.
    pub run_dir: PathBuf,
    /// The workers.
    pub workers: WorkerSettings,
    /// The file that the engine's counters are written to.
    pub counters_file: Option<PathBuf>,
}

/// A network configuration given to the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetConfigSource {
    /// A file that holds the JSON text.
    File(PathBuf),
    /// The JSON text itself.
    Text(String),
}

/// How to choose the interface that carries the tunnels, and which addresses to publish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkSettings {
    /// Interfaces by name or address, tried in order.
    pub ifaces: Vec<String>,
    /// Patterns of addresses, then of names, tried after every interface.
    pub patterns: Vec<String>,
    /// Selects the interface that leads to this address, tried last.
    pub can_reach: Option<IpAddr>,
    /// The IPv4 address to publish.
    pub public_ip: Option<Ipv4Addr>,
    /// The IPv6 address to publish.
    pub public_ipv6: Option<Ipv6Addr>,
}

impl UplinkSettings {
    /// Returns these settings with the addresses that an administrator asks of this node in place of the
    /// options', as in flannel.
    pub fn with(&self, asked: NodeAddresses) -> UplinkSettings {
        UplinkSettings {
            public_ip: asked.ipv4.or(self.public_ip),
            public_ipv6: asked.ipv6.or(self.public_ipv6),
            ..self.clone()
        }
    }
}

/// Masquerading and firewall rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrafficSettings {
    /// Masquerade what leaves the cluster network.
    pub masquerade: bool,
    /// Accept pods' packets in the forward chain.
    pub forward: bool,
    /// Choose source ports of masqueraded flows at random, where that is supported.
    pub random_fully: bool,
    /// Keep a blackhole route for this node's subnet.
    pub blackhole: bool,
    /// Time between two checks of the rules.
    pub resync: Duration,
    /// Refuse to start with iptables on a kernel that does not pass it bridged packets.
    pub require_br_netfilter: bool,
}

/// The datapath's workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerSettings {
    /// Number of workers; `None` for one per CPU.
    pub count: Option<u16>,
    /// Pin each worker to a CPU.
    pub pin: bool,
    /// Ask for a realtime class for the workers.
    pub realtime: bool,
    /// How long a worker polls for work before it sleeps; `None` for the engine's default.
    pub spin: Option<Duration>,
    /// Bytes of kernel memory for packets that wait for the workers; `None` for the engine's default.
    pub queue_memory: Option<usize>,
    /// Names of the features not to use, even if the kernel has them.
    pub without: Vec<String>,
}

/// A network configuration file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read the network configuration {}: {source}; set another file with --net-config",
    .path.display()
)]
pub struct NetConfigFileError {
    path: PathBuf,
    source: io::Error,
}

impl NetConfigFileError {
    /// Returns the error for a file whose filesystem does not answer.
    pub(crate) fn unanswered(settings: &Settings, source: io::Error) -> NetConfigFileError {
        let path = match &settings.net_config {
            Some(NetConfigSource::File(path)) => path.clone(),
            _ => PathBuf::new(),
        };
        NetConfigFileError { path, source }
    }
}

impl Settings {
    /// Returns the text of the network configuration to put into the store.
    pub fn net_config_text(&self) -> Result<Option<String>, NetConfigFileError> {
        match &self.net_config {
            None => Ok(None),
            Some(NetConfigSource::Text(text)) => Ok(Some(text.clone())),
            Some(NetConfigSource::File(path)) => {
                let read = regular::read_to_string(path, regular::USUAL);
                read.map(Some).map_err(|source| NetConfigFileError { path: path.clone(), source })
            }
        }
    }
}

/// flannel's defaults.
impl Default for Settings {
    fn default() -> Settings {
        Settings {
            store: Spec::default(),
            store_given: false,
            net_config: None,
            uplink: UplinkSettings::default(),
            subnet_file: SUBNET_FILE.into(),
            renew_margin: Duration::from_secs(60 * 60),
            traffic: TrafficSettings::default(),
            health: None,
            instance: None,
            run_dir: RUN_DIRECTORY.into(),
            workers: WorkerSettings::default(),
            counters_file: None,
        }
    }
}

impl Default for TrafficSettings {
    fn default() -> TrafficSettings {
        TrafficSettings {
            masquerade: false,
            forward: true,
            random_fully: true,
            blackhole: false,
            resync: Duration::from_secs(5),
            require_br_netfilter: true,
        }
    }
}
