//! Flannel's contract as plain data: the formats shared with other programs, byte for byte.
//!
//! ```text
//! net_config   the cluster's network configuration, with flannel's defaults and checks
//! backend      the Backend object of that configuration; the data a VXLAN node publishes
//! lease        a node's subnets, the text of their key and the JSON of their attributes
//! subnet_env   the file that CNI plugins and Docker wait for
//! cidr         strict CIDR text and masks, shared by the above
//! secrets      a configuration without its secrets, for logs
//! json         a JSON object read by the rules of Go's decoder, shared by the above
//! error        errors in a network configuration, and warnings
//! ```
//!
//! Nothing here does I/O, reads a clock or panics on any input.

pub mod backend;
pub mod cidr;
pub mod error;
mod json;
pub mod lease;
mod members;
pub mod net_config;
pub mod secrets;
pub mod subnet_env;
pub mod uapi;
pub mod wireguard;
