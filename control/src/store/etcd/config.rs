//! Where etcd is and how to prove who we are: flannel's `--etcd-*` options as one value.

use std::path::PathBuf;

use model::backend::Secret;

/// flannel's defaults for `--etcd-endpoints` and `--etcd-prefix`.
const ENDPOINTS: [&str; 2] = ["http://127.0.0.1:4001", "http://127.0.0.1:2379"];
const PREFIX: &str = "/coreos.com/network";

/// How to reach an etcd cluster. The default is flannel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `http://HOST:PORT`, `https://HOST:PORT` or `HOST:PORT`; tried in order. The scheme of the first
    /// decides for all, as in flannel; without one there is TLS if a TLS file is given.
    pub endpoints: Vec<String>,
    /// What all keys begin with. May be empty; slashes are cleaned as Go's `path.Join` does.
    pub prefix: String,
    /// Certificates that the servers must descend from, in PEM; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate in PEM. Used only together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Its key in PEM.
    pub key_file: Option<PathBuf>,
    /// User of etcd's own authentication; used only together with a password.
    pub username: String,
    /// Its password.
    pub password: Option<Secret>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            endpoints: ENDPOINTS.map(str::to_owned).to_vec(),
            prefix: PREFIX.to_owned(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: String::new(),
            password: None,
        }
    }
}
