//! How a packet may end. Every packet ends in exactly one [`Verdict`]; every drop has a reason and a counter.

/// What becomes of one packet that a worker handed to [`egress`](crate::egress) or
/// [`ingress`](crate::ingress).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Encapsulated and queued towards a peer, in this many datagrams.
    ToUnderlay(u32),
    /// Stripped and queued towards the pods.
    ToOverlay,
    /// Answered with an ICMP error towards the pod; the packet itself is gone, for this reason.
    Reply(DropReason),
    /// Gone, for this reason.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)*];

            /// The name used by counters and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$name => $text,)* }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than the headers it claims to have.
    Truncated => "truncated",
    /// Neither IPv4 nor IPv6.
    NotIp => "not_ip",
    /// An IP header that contradicts itself or the length of the packet.
    BadIpHeader => "bad_ip_header",
    /// An IPv4 header checksum that does not match.
    BadIpChecksum => "bad_ip_checksum",
    /// A TCP or UDP header that contradicts the length of the packet.
    BadTransportHeader => "bad_transport_header",
    /// A TCP or UDP checksum that does not match.
    BadTransportChecksum => "bad_transport_checksum",
    /// A virtio header that asks for something the packet cannot be.
    BadOffload => "bad_offload",
    /// No peer owns the destination.
    NoRoute => "no_route",
    /// Larger than the tunnel carries.
    TooBig => "too_big",
    /// Its time to live is used up.
    TtlExpired => "ttl_expired",
    /// The outer network said "congested" of a packet whose sender cannot hear it (RFC 6040 section 4.2).
    EcnUnheard => "ecn_unheard",
    /// VXLAN header bits set that must be zero.
    VxlanReserved => "vxlan_reserved",
    /// Another VXLAN network.
    WrongVni => "wrong_vni",
    /// Inner Ethernet destination is not this node.
    WrongMac => "wrong_mac",
    /// Inner Ethernet source is this node: a loop.
    OwnMac => "own_mac",
    /// Inner Ethernet type is neither IPv4 nor IPv6.
    WrongEthertype => "wrong_ethertype",
    /// Neither a WireGuard message nor long enough for one.
    WgMalformed => "wg_malformed",
    /// A WireGuard record for a session that nobody has here.
    WgUnknownSession => "wg_unknown_session",
    /// A WireGuard record of a session that is too old.
    WgExpired => "wg_expired",
    /// A WireGuard record that was not sealed with the session's key.
    WgForged => "wg_forged",
    /// A WireGuard record that was received before, or is too old to tell.
    WgReplay => "wg_replay",
    /// A WireGuard handshake message that was not made for our key, or comes from nobody we know, or too late.
    WgStranger => "wg_stranger",
    /// A packet from an address that is not the WireGuard peer's.
    WgSource => "wg_source",
    /// The WireGuard peer does not answer, and no more packets are kept for it.
    WgNoSession => "wg_no_session",
    /// More WireGuard handshakes than can be looked at.
    WgBusy => "wg_busy",
    /// More segments in one datagram than any kernel sends.
    TooManySegments => "too_many_segments",
    /// The underlay's send queue is full.
    UnderlayFull => "underlay_full",
    /// The underlay refused the datagram.
    UnderlayError => "underlay_error",
    /// The overlay device refused the packet.
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
