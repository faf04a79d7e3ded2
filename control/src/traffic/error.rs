//! Errors of traffic rules.

use store::Kind;

use super::program::ProgramError;
use crate::netlink::NetlinkError;

/// Reasons why rules could not be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// A firewall program is missing or failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The rules were added, but are missing afterwards.
    #[error("the rules in {what} were added and are missing again; does another program remove them?")]
    NotKept {
        /// The chain.
        what: String,
    },
    /// The kernel rejected a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel does not pass bridged packets to iptables.
    #[error(
        "br_netfilter is not loaded ({0} is missing), so service rules would not see packets between pods on \
         one bridge; run `modprobe br_netfilter`, set EnableNFTables, or start without it by \
         --require-br-netfilter=false"
    )]
    BrNetfilter(&'static str),
}

impl TrafficError {
    /// Returns the kind of this failure.
    pub fn kind(&self) -> Kind {
        match self {
            TrafficError::Program(error) => error.kind(),
            TrafficError::NotKept { what } => Kind::new("rules not kept").of(what),
            TrafficError::Netlink(error) => error.kind(),
            TrafficError::BrNetfilter(switch) => Kind::new("br_netfilter").of(switch),
        }
    }
}
