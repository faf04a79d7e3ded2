//! The store that flannel clusters use: etcd v3, every key and value as flannel writes it.

mod config;

pub use config::Config;
