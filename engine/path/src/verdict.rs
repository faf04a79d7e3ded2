//! The ways in which a packet can end. Every packet ends in one [`Verdict`]; every drop has a reason and a
//! counter.

/// The outcome of one packet that a worker passed to [`egress`](crate::egress) or
/// [`ingress`](crate::ingress).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Encapsulated in this many datagrams and queued for a peer.
    ToUnderlay(u32),
    /// Stripped and queued for the pods.
    ToOverlay,
    /// Dropped for this reason, with an ICMP error to the pod.
    Reply(DropReason),
    /// Dropped for this reason, without the ICMP error that its sender would get if there were fewer.
    Suppressed(DropReason),
    /// Dropped for this reason.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// The reason why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)*];

            /// Returns the name used in counters and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$name => $text,)* }
            }
        }
    };
}

drop_reasons! {
    /// The packet is shorter than its headers state.
    Truncated => "truncated",
    /// The packet is neither IPv4 nor IPv6.
    NotIp => "not_ip",
    /// The IP header is inconsistent or contradicts the packet's length.
    BadIpHeader => "bad_ip_header",
    /// The IPv4 header checksum does not match.
    BadIpChecksum => "bad_ip_checksum",
    /// The TCP or UDP header contradicts the packet's length.
    BadTransportHeader => "bad_transport_header",
    /// The TCP or UDP checksum does not match.
    BadTransportChecksum => "bad_transport_checksum",
    /// The virtio header does not fit the packet.
    BadOffload => "bad_offload",
    /// No peer owns the destination.
    NoRoute => "no_route",
    /// The destination is a multicast group, or everybody: no node subscribes to any.
    Multicast => "multicast",
    /// The packet exceeds the tunnel's MTU.
    TooBig => "too_big",
    /// The time to live or hop limit has expired.
    TtlExpired => "ttl_expired",
    /// The underlay marked congestion (CE), but the inner sender does not support ECN (RFC 6040 section 4.2).
    EcnUnheard => "ecn_unheard",
    /// A reserved bit of the VXLAN header is set.
    VxlanReserved => "vxlan_reserved",
    /// The datagram belongs to another VXLAN network.
    WrongVni => "wrong_vni",
    /// The inner Ethernet destination is not this node.
    WrongMac => "wrong_mac",
    /// The inner Ethernet source is this node, which means a loop.
    OwnMac => "own_mac",
    /// The inner EtherType is neither IPv4 nor IPv6.
    WrongEthertype => "wrong_ethertype",
    /// The tunnel has no network of the packet's family.
    WrongFamily => "wrong_family",
    /// The source address is unspecified, loopback, link-local or multicast.
    BadSource => "bad_source",
    /// The source address is one of this host's, which means a loop or a forged packet.
    OwnSource => "own_source",
    /// The datagram is not a WireGuard message, or is too short for one.
    WgMalformed => "wg_malformed",
    /// The WireGuard record is for a session that does not exist here.
    WgUnknownSession => "wg_unknown_session",
    /// The WireGuard record belongs to an expired session.
    WgExpired => "wg_expired",
    /// The WireGuard record was not sealed with the session's key.
    WgForged => "wg_forged",
    /// The WireGuard record was received before, or is too old for the replay window.
    WgReplay => "wg_replay",
    /// The WireGuard handshake message was not made for this node's key, has an unknown sender, or is
    /// outdated.
    WgStranger => "wg_stranger",
    /// The packet's source address does not belong to the WireGuard peer that sealed it.
    WgSource => "wg_source",
    /// The WireGuard peer does not respond, and its queue of waiting packets is full.
    WgNoSession => "wg_no_session",
    /// The packets that wait for WireGuard sessions have used up their memory.
    WgWaitingFull => "wg_waiting_full",
    /// The WireGuard record arrived at the wrong worker and is too long to be passed on.
    WgTooLong => "wg_too_long",
    /// More WireGuard handshakes arrived than can be processed.
    WgBusy => "wg_busy",
    /// The datagram has more segments than a kernel sends at once: 128, UDP_MAX_SEGMENTS
    /// (include/linux/udp.h).
    TooManySegments => "too_many_segments",
    /// The underlay's send queue is full.
    UnderlayFull => "underlay_full",
    /// The underlay rejected the datagram.
    UnderlayError => "underlay_error",
    /// The overlay device rejected the packet.
    OverlayError => "overlay_error",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_order() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(DropReason::ALL[..i].iter().all(|other| other.name() != reason.name()));
        }
    }
}
