//! Helpers for all tests.

pub(crate) mod node;
pub(crate) mod packet;
pub(crate) mod reference;
