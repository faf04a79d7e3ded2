//! Tests of `subnet_env`.
