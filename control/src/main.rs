//! `loden`.
fn main() {}
