//! The kernel's vxlan, configured as by flannel's vxlan backend.

use anyhow::{Context as _, Result};
use lab::{FlannelVxlan, Host, Lab, Mac, PodNetwork, VxlanPeer};

use super::{UNDERLAY_MTU, fixed_networks};

/// flannel's name for VNI 1, its default.
const DEVICE: &str = "flannel.1";

/// flannel's default VNI on Linux.
const VNI: u32 = 1;

/// Linux's original vxlan port, which flannel uses.
const PORT: u16 = 8472;

/// Outer IPv4, UDP, VXLAN and inner Ethernet headers, in bytes.
const OVERHEAD: u32 = 20 + 8 + 8 + 14;

/// Creates the devices and their entries on both hosts.
pub(super) fn start(lab: &Lab) -> Result<Vec<PodNetwork>> {
    let networks = fixed_networks(lab, UNDERLAY_MTU - OVERHEAD)?;
    for (host, network) in lab.hosts().iter().zip(&networks) {
        let subnet = network.ipv4.context("an IPv4 subnet is needed")?;
        let device = FlannelVxlan {
            name: DEVICE,
            vni: VNI,
            port: PORT,
            parent: host.uplink(),
            local: host.underlay().into(),
            mac: mac(host),
            address: subnet.network().into(),
            mtu: network.mtu,
            learning: false,
        };
        let added = host.namespace().add_flannel_vxlan(&device);
        added.context("the kernel may lack vxlan: leave kernel:vxlan out of --subjects")?;
        let others = lab.hosts().iter().zip(&networks).filter(|(other, _)| other.number() != host.number());
        for (other, network) in others {
            let Some(subnet) = network.ipv4 else { continue };
            let peer = VxlanPeer { subnet: subnet.into(), mac: mac(other), remote: other.underlay().into() };
            host.namespace().add_vxlan_peer(DEVICE, &peer)?;
        }
    }
    Ok(networks)
}

/// Returns a locally administered address for a host.
fn mac(host: &Host) -> Mac {
    [0x02, 0x10, 0xde, 0, 0, host.number() as u8]
}
