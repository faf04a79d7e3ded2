//! What all tests share.

pub(crate) mod node;
pub(crate) mod packet;
pub(crate) mod reference;
