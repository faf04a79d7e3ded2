//! flannel's `udp` format: nothing in front of the inner packet, no check of the sender.

use crate::encap::Stripped;
use crate::template::{Patch, Template};
use crate::verdict::DropReason;

/// The template towards every peer: nothing.
pub fn template() -> Template {
    Template::new(&[], Patch::Nothing)
}

/// The whole datagram is the packet.
#[inline]
pub fn strip(datagram: &[u8]) -> Result<Stripped, DropReason> {
    if datagram.is_empty() { Err(DropReason::Truncated) } else { Ok(Stripped { offset: 0, v6: None }) }
}
