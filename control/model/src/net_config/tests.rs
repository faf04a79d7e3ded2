//! Tests of `net_config`.
