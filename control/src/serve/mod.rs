//! What a daemon shows of itself: probes and metrics over HTTP, `loden status`, `wg show`, the counters file.

pub mod board;
pub mod counters_file;
pub mod http;
pub mod status_socket;
pub mod wireguard_socket;
