//! Errors of the planner.

/// The error for an IPv6-only node whose backend carries IPv4 only.
pub(super) const NO_IPV4: &str =
    "carries IPv4 only, but the network configuration has no IPv4 network; use vxlan or host-gw";

/// Reasons why this configuration does not work on this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The tunnel headers leave too little room.
    #[error(
        "MTU {outer} leaves {inner} bytes after {overhead} bytes of tunnel headers, but {family} needs \
         {least}; raise the MTU of {interface} or Backend.MTU"
    )]
    MtuTooSmall {
        /// The MTU of the underlay.
        outer: u32,
        /// Bytes left for the packet, or 0.
        inner: u32,
        /// Bytes of headers.
        overhead: u32,
        /// Bytes needed.
        least: u32,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Name of the underlay interface.
        interface: String,
    },
    /// The backend is not supported, or cannot carry what the configuration enables.
    #[error("Backend.Type = {backend}: {problem}")]
    Backend {
        /// The configured type.
        backend: &'static str,
        /// The problem and the remedy.
        problem: &'static str,
    },
    /// The kernel takes no device of this name.
    #[error(
        "Backend.VNI: the device {device} cannot be made, since a name has 15 characters at most; use a VNI \
         up to 9999999, with IPv6 up to 9999"
    )]
    DeviceName {
        /// The name.
        device: String,
    },
    /// An option of the backend is not supported.
    #[error("Backend.{key} = true: {problem}")]
    Option {
        /// The key.
        key: &'static str,
        /// The problem and the remedy.
        problem: &'static str,
    },
    /// An enabled family has no address on the underlay or no subnet in the lease.
    #[error("{family} is enabled, but {what} has none; restart loden once it has one")]
    FamilyMissing {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// What lacks an address or subnet.
        what: &'static str,
    },
}

pub(super) fn missing(family: &'static str, what: &'static str) -> PlanError {
    PlanError::FamilyMissing { family, what }
}
