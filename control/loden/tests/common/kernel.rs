//! A host with the kernel's vxlan, as a stock flannel node would leave it, and its lease in the store.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use lab::{FlannelVxlan, Namespace, PodNetwork, VxlanPeer};
use model::backend::{Backend, Vxlan, VxlanData};
use model::lease::{Lease, LeaseAttrs, RawJson};
use model::net_config;
use store::Wish;

use super::Cluster;

const MAC: [u8; 6] = [0x0e, 0x2a, 0x4b, 0x4e, 0x4c, 0x04];
const MAC_V6: [u8; 6] = [0x0e, 0x2a, 0x4b, 0x4e, 0x4c, 0x06];

/// The MTU of a flannel node's pods over an uplink with 1500, whatever the family.
const POD_MTU: u32 = 1450;

/// Returns whether this machine's kernel can create a vxlan device.
pub fn has_vxlan() -> bool {
    let try_it = || {
        let namespace = Namespace::create(&format!("vxlan{}-probe", std::process::id()))?;
        namespace.add_flannel_vxlan(&FlannelVxlan {
            name: "probe",
            vni: 1,
            port: 8472,
            parent: "lo",
            local: Ipv4Addr::LOCALHOST.into(),
            mac: MAC,
            address: Ipv4Addr::new(10, 244, 0, 0).into(),
            mtu: 1450,
            learning: false,
        })
    };
    try_it().is_ok()
}

/// A host without a daemon.
pub struct KernelNode {
    pub number: usize,
    pub lease: Lease,
    vxlan: Vxlan,
}

impl KernelNode {
    /// Acquires a lease for the host in flannel's form, creates the devices, and connects the pod.
    pub fn join(cluster: &mut Cluster, number: usize) -> KernelNode {
        let (config, _) = net_config::parse(&cluster.config).expect("a network configuration");
        let Backend::Vxlan(vxlan) = config.backend.clone() else { panic!("{} is not vxlan", cluster.config) };
        let host = cluster.host(number);
        let dual = config.ipv6.is_some();
        let data = |mac| data(&vxlan, mac);
        let attrs = LeaseAttrs {
            public_ip: host.underlay(),
            public_ipv6: dual.then(|| host.underlay6()),
            backend_type: "vxlan".to_owned(),
            backend_data: Some(data(MAC)),
            backend_v6_data: dual.then(|| data(MAC_V6)),
        };
        let lease = cluster.in_store(async |store| {
            store.set_net_config(&cluster.config).await.expect("the configuration");
            store
                .acquire(&Wish { config: &config, attrs, previous: None, former: None })
                .await
                .expect("a lease")
                .published
        });
        let node = KernelNode { number, lease, vxlan };
        node.make_devices(cluster);
        let network = PodNetwork { ipv4: node.lease.subnet(), ipv6: node.lease.ipv6_subnet(), mtu: POD_MTU };
        cluster.lab.hosts_mut()[number - 1].connect_pod(&network).expect("a pod");
        node
    }

    /// Adds another node as flannel does when it learns a lease: neighbour, FDB entry, on-link route.
    pub fn add_peer(&self, cluster: &Cluster, peer: &Lease) {
        let namespace = cluster.host(self.number).namespace();
        let [device, device_v6] = self.devices();
        if let (Some(subnet), Some(data)) = (peer.subnet(), &peer.attrs.backend_data) {
            let remote = IpAddr::V4(peer.attrs.public_ip);
            let entry = VxlanPeer { subnet: IpNetwork::V4(subnet), mac: mac(data), remote };
            namespace.add_vxlan_peer(&device, &entry).expect("a peer");
        }
        if let (Some(subnet), Some(data), Some(remote)) =
            (peer.ipv6_subnet(), &peer.attrs.backend_v6_data, peer.attrs.public_ipv6)
        {
            let remote = IpAddr::V6(remote);
            let entry = VxlanPeer { subnet: IpNetwork::V6(subnet), mac: mac(data), remote };
            namespace.add_vxlan_peer(&device_v6, &entry).expect("a peer");
        }
    }

    fn devices(&self) -> [String; 2] {
        ["flannel", "flannel-v6"].map(|name| format!("{name}.{}", self.vxlan.vni))
    }

    fn make_devices(&self, cluster: &Cluster) {
        let host = cluster.host(self.number);
        let [name, name_v6] = self.devices();
        let device = FlannelVxlan {
            name: &name,
            vni: self.vxlan.vni.get(),
            port: self.vxlan.port,
            parent: host.uplink(),
            local: host.underlay().into(),
            mac: MAC,
            address: self.lease.subnet().expect("IPv4").network().into(),
            mtu: 1450,
            learning: self.vxlan.learning,
        };
        host.namespace().add_flannel_vxlan(&device).expect("a vxlan device");
        if let Some(subnet) = self.lease.ipv6_subnet() {
            let device = FlannelVxlan {
                name: &name_v6,
                local: host.underlay6().into(),
                mac: MAC_V6,
                address: subnet.network().into(),
                mtu: 1430,
                ..device
            };
            host.namespace().add_flannel_vxlan(&device).expect("a vxlan device");
        }
    }
}

/// The backend data that stock flannel publishes.
fn data(vxlan: &Vxlan, [a, b, c, d, e, f]: [u8; 6]) -> RawJson {
    let vni = vxlan.vni;
    let text = format!(r#"{{"VNI":{vni},"VtepMAC":"{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"}}"#);
    RawJson::parse(&text).expect("JSON")
}

fn mac(data: &RawJson) -> [u8; 6] {
    VxlanData::parse(data.as_str()).expect("vxlan data").mac.octets()
}
