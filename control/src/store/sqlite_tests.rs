//! Tests of the sqlite store.
