//! The interfaces that show a daemon's state: HTTP for probes and metrics, the sockets of `loden status` and
//! `wg show`, and the counters file.

pub mod board;
pub mod counters_file;
pub mod http;
pub mod status_socket;
pub mod wireguard_socket;

mod connect;
