//! The flags of flanneld and loden's own flags, with the option that each one sets.

use engine::Switches;
use model::backend::Secret;

use super::go::{boolean, bounded, integer};
use crate::options::RunOptions;

/// The kind of value that a flag takes, as shown in the usage text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No value, or `=BOOL`.
    Bool,
    /// An integer.
    Int,
    /// Any text.
    Text,
    /// Any text, and the flag may be repeated.
    List,
}

/// One flag.
pub(super) struct Flag {
    /// The flag's name, without dashes.
    pub(super) name: &'static str,
    /// The kind of its value.
    pub(super) kind: Kind,
    /// Its default as shown in the usage text; empty for none.
    pub(super) default: &'static str,
    /// Its description in the usage text.
    pub(super) help: &'static str,
    /// Stores a value in the options.
    pub(super) set: fn(&mut Filled, &str) -> Result<(), String>,
}

/// The values that the flags fill in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) options: RunOptions,
    pub(super) verbosity: i32,
    pub(super) version: bool,
}

/// Removed flags that an old unit file may still have, with what to do instead.
pub(super) const GONE: [(&str, &str); 7] = [
    ("listen", "the client and server modes left flannel in 2017"),
    ("remote", "the client and server modes left flannel in 2017"),
    ("networks", "run one daemon for each network, with its own -etcd-prefix and -subnet-file"),
    ("subnet-dir", "run one daemon for each network, with its own -subnet-file"),
    ("use-multi-cluster-cidr", "it left flannel in 2023 with the alpha feature it was for"),
    ("charon-executable-path", "the ipsec backend is not supported"),
    ("charon-viciuri", "the ipsec backend is not supported"),
];

const fn flag(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
    set: fn(&mut Filled, &str) -> Result<(), String>,
) -> Flag {
    Flag { name, kind, default, help, set }
}

/// flannel's flags, sorted by name.
#[rustfmt::skip]
pub(super) const FLANNEL: &[Flag] = &[
    flag("etcd-cafile", Kind::Text, "", "certificates to trust when connecting to etcd",
        |to, text| { to.options.etcd.cafile = given(text); Ok(()) }),
    flag("etcd-certfile", Kind::Text, "", "client certificate for etcd",
        |to, text| { to.options.etcd.certfile = given(text); Ok(()) }),
    flag("etcd-endpoints", Kind::Text, "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "addresses of etcd, separated by commas",
        |to, text| { to.options.etcd.endpoints = text.split(',').map(str::to_owned).collect(); Ok(()) }),
    flag("etcd-keyfile", Kind::Text, "", "private key of the client certificate for etcd",
        |to, text| { to.options.etcd.keyfile = given(text); Ok(()) }),
    flag("etcd-password", Kind::Text, "", "password for etcd",
        |to, text| { to.options.etcd.password = Some(Secret::new(text)); Ok(()) }),
    flag("etcd-prefix", Kind::Text, "/coreos.com/network", "key in etcd that holds configuration and leases",
        |to, text| { to.options.etcd.prefix = text.to_owned(); Ok(()) }),
    flag("etcd-username", Kind::Text, "", "user name for etcd",
        |to, text| { to.options.etcd.username = text.to_owned(); Ok(()) }),
    flag("healthz-ip", Kind::Text, "0.0.0.0", "address on which /healthz, /readyz and /metrics are served",
        |to, text| { to.options.health.ip = text.to_owned(); Ok(()) }),
    flag("healthz-port", Kind::Int, "0", "TCP port of /healthz, /readyz and /metrics; 0 turns them off",
        |to, text| { to.options.health.port = bounded(text)?; Ok(()) }),
    flag("iface", Kind::List, "",
        "interface that carries the tunnel, by name or address; the first match is used",
        |to, text| { push(&mut to.options.iface, text); Ok(()) }),
    flag("iface-can-reach", Kind::Text, "", "use the interface whose route leads to this address; tried last",
        |to, text| { to.options.iface_can_reach = address(text)?; Ok(()) }),
    flag("iface-regex", Kind::List, "",
        "pattern for the interface's address or name; tried after every -iface",
        |to, text| { push(&mut to.options.iface_regex, text); Ok(()) }),
    flag("ip-blackhole-route", Kind::Bool, "false", "keep a blackhole route for this node's subnet",
        |to, text| { to.options.traffic.ip_blackhole_route = boolean(text)?; Ok(()) }),
    flag("ip-masq", Kind::Bool, "false", "masquerade packets that leave the cluster network",
        |to, text| { to.options.traffic.ip_masq = boolean(text)?; Ok(()) }),
    flag("ip-masq-fully-random-disable", Kind::Bool, "false", "masquerade without random source ports",
        |to, text| { to.options.traffic.ip_masq_fully_random_disable = boolean(text)?; Ok(()) }),
    flag("iptables-forward-rules", Kind::Bool, "true",
        "accept forwarded packets from and to the cluster network",
        |to, text| { to.options.traffic.iptables_forward_rules = boolean(text)?; Ok(()) }),
    flag("iptables-resync", Kind::Int, "5", "seconds between two checks of the rules",
        |to, text| { to.options.traffic.iptables_resync = bounded::<u32>(text)?.max(1); Ok(()) }),
    flag("kube-annotation-prefix", Kind::Text, "flannel.alpha.coreos.com", "prefix of the node annotations",
        |to, text| { to.options.kube.annotation_prefix = text.to_owned(); Ok(()) }),
    flag("kube-api-url", Kind::Text, "", "address of the Kubernetes API server",
        |to, text| { to.options.kube.api_url = text.to_owned(); Ok(()) }),
    flag("kube-subnet-mgr", Kind::Bool, "false", "take leases from the Kubernetes API, not from etcd",
        |to, text| { to.options.kube.subnet_mgr = boolean(text)?; Ok(()) }),
    flag("kubeconfig-file", Kind::Text, "", "how to reach the Kubernetes API server",
        |to, text| { to.options.kube.kubeconfig_file = given(text); Ok(()) }),
    flag("log_backtrace_at", Kind::Text, "", "accepted and ignored",
        |_, _| Ok(())),
    flag("net-config-path", Kind::Text, "/etc/kube-flannel/net-conf.json",
        "network configuration, with -kube-subnet-mgr",
        |to, text| { to.options.kube.net_config_path = text.into(); Ok(()) }),
    flag("public-ip", Kind::Text, "", "IPv4 address that other nodes send to",
        |to, text| { to.options.public_ip = address(text)?; Ok(()) }),
    flag("public-ipv6", Kind::Text, "", "IPv6 address that other nodes send to",
        |to, text| { to.options.public_ipv6 = address(text)?; Ok(()) }),
    flag("set-node-network-unavailable", Kind::Bool, "true",
        "set the node's NetworkUnavailable condition, with -kube-subnet-mgr",
        |to, text| { to.options.kube.set_node_network_unavailable = boolean(text)?; Ok(()) }),
    flag("subnet-file", Kind::Text, "/run/flannel/subnet.env", "file to write this node's subnet to",
        |to, text| { to.options.subnet_file = text.into(); Ok(()) }),
    flag("subnet-lease-renew-margin", Kind::Int, "60",
        "minutes before its expiry to renew a lease, 1 to 1439",
        |to, text| { to.options.subnet_lease_renew_margin = integer(text)?; Ok(()) }),
    flag("v", Kind::Int, "0", "log level: 2 or higher for more, 6 or higher for everything",
        |to, text| { to.verbosity = bounded(text)?; Ok(()) }),
    flag("version", Kind::Bool, "false", "print the version and exit",
        |to, text| { to.version = boolean(text)?; Ok(()) }),
    flag("vmodule", Kind::Text, "", "accepted and ignored",
        |_, _| Ok(())),
];

/// loden's own flags, as `loden run` has them, sorted by name.
#[rustfmt::skip]
pub(super) const OWN: &[Flag] = &[
    flag("counters-file", Kind::Text, "", "write the engine's counters to this file as JSON",
        |to, text| { to.options.counters_file = given(text); Ok(()) }),
    flag("instance", Kind::Text, "", "name of this daemon among several on a host",
        |to, text| { to.options.instance = Some(text.to_owned()).filter(|name| !name.is_empty()); Ok(()) }),
    flag("pin", Kind::Bool, "false", "pin each worker to a CPU",
        |to, text| { to.options.pin = boolean(text)?; Ok(()) }),
    flag("queue-memory", Kind::Int, "", "MiB of kernel memory for packets that wait for the workers",
        |to, text| { to.options.queue_memory = Some(within(text, 1, 16_384)?); Ok(()) }),
    flag("realtime", Kind::Bool, "false", "run the workers in a realtime class, before all ordinary programs",
        |to, text| { to.options.realtime = boolean(text)?; Ok(()) }),
    flag("require-br-netfilter", Kind::Bool, "true",
        "refuse to start with iptables on a kernel without br_netfilter",
        |to, text| { to.options.traffic.require_br_netfilter = boolean(text)?; Ok(()) }),
    flag("run-dir", Kind::Text, "/run/loden", "directory for the status socket and the state file",
        |to, text| { to.options.run_dir = text.into(); Ok(()) }),
    flag("spin-us", Kind::Int, "", "microseconds a worker polls for work before it sleeps, at most 10000",
        |to, text| { to.options.spin_us = Some(within(text, 0, 10_000)?); Ok(()) }),
    flag("store", Kind::Text, "", "etcd, or sqlite:PATH for daemons of one machine",
        |to, text| { to.options.store = Some(text.to_owned()).filter(|spec| !spec.is_empty()); Ok(()) }),
    flag("without", Kind::Text, "", "do not use these offloads: tso, uso, gso, gro, multiqueue, mmsg, all",
        |to, text| { to.options.without = features(text)?; Ok(()) }),
    flag("workers", Kind::Int, "", "worker threads, 1 to 256; one per CPU by default",
        |to, text| { to.options.workers = Some(within(text, 1, 256)?); Ok(()) }),
];

/// Every flag.
pub(super) fn all() -> impl Iterator<Item = &'static Flag> {
    FLANNEL.iter().chain(OWN)
}

fn given<T: for<'a> From<&'a str>>(text: &str) -> Option<T> {
    (!text.is_empty()).then(|| text.into())
}

/// Adds a value to a list. An unset variable in a unit file or manifest gives an empty value, which is
/// skipped.
fn push(list: &mut Vec<String>, text: &str) {
    if !text.is_empty() {
        list.push(text.to_owned());
    }
}

fn address<T: std::str::FromStr>(text: &str) -> Result<Option<T>, String> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| "not an address of this family".to_owned()),
    }
}

fn within<T: TryFrom<i64>>(text: &str, least: i64, most: i64) -> Result<T, String> {
    let value = integer(text)?;
    let refused = || format!("must be between {least} and {most}");
    if !(least..=most).contains(&value) {
        return Err(refused());
    }
    T::try_from(value).map_err(|_| refused())
}

fn features(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let mut switches = Switches::default();
    names.iter().try_for_each(|name| switches.switch_off(name))?;
    Ok(names)
}
