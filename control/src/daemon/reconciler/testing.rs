//! A node, its peers and moments for the tests of this folder.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use model::lease::{Lease, LeaseAttrs, SubnetKey};
use model::net_config;
use store::lease::{Holder, Owned};
use store::{Cause, StoreError};
use wire::addr::Mac;

use super::Now;
use crate::plan::{self, Context, Identity};
use crate::underlay::reach::Reach;
use crate::underlay::{Endpoint, Underlay};

pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: u64 = 86_400;
/// A plan of it depends on everything that plans can depend on.
const CONFIG: &str = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

pub(super) fn start() -> Now {
    Now { instant: Instant::now(), unix: 1_000_000 }
}

pub(super) fn context(underlay: Underlay) -> Context {
    Context {
        config: net_config::parse(CONFIG).expect("a good configuration").0,
        underlay,
        identity: Identity { mac: Mac::new([2, 0, 0, 0, 0, 1]), mac_v6: Mac::new([2, 0, 0, 0, 0, 2]) },
        ip_masq: false,
        extension_data: None,
        reach: Reach::new(),
        private_key: None,
    }
}

/// An uplink with the address 192.0.2.HOST.
pub(super) fn underlay(host: u8, mtu: u32) -> Underlay {
    let address = address(host);
    let ends = Endpoint { source: address, public: address, local: address };
    Underlay { interface: "eth0".into(), index: 2, mtu, ipv4: Some(ends), ipv6: None }
}

pub(super) fn address(host: u8) -> Ipv4Addr {
    [192, 0, 2, host].into()
}

pub(super) fn key(third: u8) -> SubnetKey {
    format!("10.3.{third}.0-24").parse().expect("a key")
}

/// What our node publishes from an uplink with this address.
pub(super) fn wish(host: u8) -> LeaseAttrs {
    plan::outline(&context(underlay(host, 1500))).expect("an outline").attrs
}

/// Our lease, wished from `host` and published as `wish` says, or with an address that an administrator has
/// put.
pub(super) fn owned(host: u8, overwrite: Option<u8>, expires: u64) -> Owned {
    let wished = wish(host);
    let public_ip = overwrite.map_or(wished.public_ip, address);
    let attrs = LeaseAttrs { public_ip, ..wished.clone() };
    Owned { published: Lease { key: key(1), attrs, expires: Some(expires) }, wished }
}

/// The lease of a peer at 192.0.2.HOST.
pub(super) fn peer(third: u8, host: u8) -> Lease {
    let attrs = format!(
        r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":null,"BackendType":"vxlan",
            "BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:{third:02x}:{host:02x}"}}}}"#
    );
    Lease { key: key(third), attrs: LeaseAttrs::parse(&attrs).expect("attributes"), expires: None }
}

/// Whose a stored lease is in a store where leases belong to public addresses, as in etcd.
pub(super) fn by_address(wished: &LeaseAttrs, stored: &Lease) -> Holder {
    match wished {
        _ if *wished == stored.attrs => Holder::Us,
        _ if wished.public_ip == stored.attrs.public_ip => Holder::Rival,
        _ => Holder::Stranger,
    }
}

/// Whose it is in a store where leases belong to nodes, and an administrator may overwrite a public address.
pub(super) fn by_node(wished: &LeaseAttrs, stored: &Lease) -> Holder {
    let LeaseAttrs { public_ip, public_ipv6, .. } = stored.attrs;
    if (LeaseAttrs { public_ip, public_ipv6, ..wished.clone() }) == stored.attrs {
        Holder::Us
    } else {
        Holder::Stranger
    }
}

pub(super) fn unreachable() -> StoreError {
    StoreError::Passing(Cause::Unconfigured)
}
