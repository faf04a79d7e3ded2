//! Tests of `renewal`.
