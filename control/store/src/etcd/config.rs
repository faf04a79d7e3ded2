//! etcd's endpoints and our credentials: flannel's `--etcd-*` options as one value.

use std::path::{Path, PathBuf};

use http::uri::Authority;
use model::backend::Secret;

use super::EtcdError;
use super::keys::Keys;
use crate::StoreId;

/// flannel's defaults for `--etcd-endpoints` and `--etcd-prefix`.
const ENDPOINTS: [&str; 2] = ["http://127.0.0.1:4001", "http://127.0.0.1:2379"];
const PREFIX: &str = "/coreos.com/network";

/// How to reach an etcd cluster. The defaults are flannel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `http://HOST:PORT`, `https://HOST:PORT` or `HOST:PORT`; tried in order. The scheme of the first
    /// decides for all, as in flannel; without one there is TLS if a TLS file is given.
    pub endpoints: Vec<String>,
    /// The prefix of all keys. May be empty; slashes are cleaned as Go's `path.Join` does.
    pub prefix: String,
    /// The certificate authorities of the servers, in PEM; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate in PEM. Used only together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// The key of our certificate in PEM.
    pub key_file: Option<PathBuf>,
    /// The user of etcd's own authentication; used only together with a password.
    pub username: String,
    /// The user's password.
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

/// The endpoints as we reach them, all by the same scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Targets {
    /// `http://…` or `https://…`, as the first endpoint says.
    pub(super) addresses: Vec<String>,
    pub(super) tls: bool,
    /// Warnings about options that are ignored.
    pub(super) complaints: Vec<String>,
}

impl Config {
    /// Checks the endpoints and chooses one scheme for all.
    pub(super) fn targets(&self) -> Result<Targets, EtcdError> {
        let mut complaints = Vec::new();
        if given(&self.cert_file).is_some() != given(&self.key_file).is_some() {
            complaints.push(
                "etcd: a client certificate needs both --etcd-certfile and --etcd-keyfile; ignored".into(),
            );
        }
        let parts: Vec<(Option<bool>, &str)> =
            self.endpoints.iter().map(|endpoint| split(endpoint)).collect::<Result<_, _>>()?;
        let Some((first, _)) = parts.first() else {
            return Err(unusable("", "none given; write http://HOST:PORT"));
        };
        let files = self.authority_file().is_some() || self.identity_files().is_some();
        let tls = first.unwrap_or(files);
        let scheme = if tls { "https" } else { "http" };
        if parts.iter().any(|(wish, _)| wish.is_some_and(|wish| wish != tls)) {
            complaints
                .push(format!("etcd: endpoints mix http and https; the first decides, so all use {scheme}"));
        }
        if files && !tls {
            complaints.push("etcd: the first endpoint is http; TLS files ignored".into());
        }
        if self.username.is_empty() != self.password.is_none() {
            complaints.push("etcd: a user name needs a password and vice versa; both ignored".into());
        }
        let addresses = parts.into_iter().map(|(_, host)| format!("{scheme}://{host}")).collect();
        Ok(Targets { addresses, tls, complaints })
    }

    /// Returns what identifies the cluster's network.
    pub(crate) fn id(&self) -> StoreId {
        let mut endpoints: Vec<String> = match self.targets() {
            Ok(targets) => targets.addresses,
            Err(_) => self.endpoints.clone(),
        };
        endpoints.sort_unstable();
        let config = Keys::new(&self.prefix);
        StoreId { name: format!("etcd:{}", String::from_utf8_lossy(config.leases())), endpoints }
    }

    /// Returns the file of the servers' certificate authorities.
    pub(super) fn authority_file(&self) -> Option<&Path> {
        given(&self.ca_file)
    }

    /// Returns our certificate and its key, if both are given.
    pub(super) fn identity_files(&self) -> Option<(&Path, &Path)> {
        given(&self.cert_file).zip(given(&self.key_file))
    }

    /// Returns user and password, if both are given.
    pub(super) fn user(&self) -> Option<(&str, &Secret)> {
        self.password.as_ref().filter(|_| !self.username.is_empty()).map(|secret| (&*self.username, secret))
    }
}

/// Returns the path unless it is empty, which is how unit files write "none".
fn given(path: &Option<PathBuf>) -> Option<&Path> {
    path.as_deref().filter(|path| !path.as_os_str().is_empty())
}

/// Splits an endpoint into whether it asks for TLS and `HOST:PORT`.
fn split(endpoint: &str) -> Result<(Option<bool>, &str), EtcdError> {
    let text = endpoint.trim();
    let (tls, host) = match text.split_once("://") {
        Some(("http", rest)) => (Some(false), rest),
        Some(("https", rest)) => (Some(true), rest),
        Some(_) => return Err(unusable(text, "unknown scheme; write http:// or https://")),
        None => (None, text),
    };
    if host.contains('@') {
        // Without the text: a password may stand before the @.
        return Err(unusable("", "a user in an endpoint is not supported; write --etcd-username"));
    }
    let host = host.strip_suffix('/').unwrap_or(host);
    match host.parse::<Authority>() {
        Ok(authority) if !authority.host().is_empty() => Ok((tls, host)),
        _ => Err(unusable(text, "no host and port; write http://HOST:PORT")),
    }
}

fn unusable(endpoint: &str, problem: &str) -> EtcdError {
    EtcdError::Option { option: "--etcd-endpoints", value: endpoint.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(endpoints: &[&str]) -> Result<Targets, EtcdError> {
        with(endpoints, |_| ())
    }

    fn with(endpoints: &[&str], change: impl FnOnce(&mut Config)) -> Result<Targets, EtcdError> {
        let mut config = Config {
            endpoints: endpoints.iter().map(|&text| text.to_owned()).collect(),
            ..Config::default()
        };
        change(&mut config);
        config.targets()
    }

    #[test]
    fn the_defaults_are_flannels() {
        let targets = Config::default().targets().unwrap();
        assert_eq!(targets.addresses, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
        assert!(!targets.tls && targets.complaints.is_empty());
        assert_eq!(Config::default().prefix, "/coreos.com/network");
    }

    #[test]
    fn the_first_scheme_decides_for_all() {
        let mixed = targets(&["http://a:1", "https://b:2", "c:3"]).unwrap();
        assert_eq!(mixed.addresses, ["http://a:1", "http://b:2", "http://c:3"]);
        assert_eq!((mixed.tls, mixed.complaints.len()), (false, 1));
        let mixed = targets(&["https://a:1", "http://[::1]:2/"]).unwrap();
        assert_eq!(mixed.addresses, ["https://a:1", "https://[::1]:2"]);
        assert_eq!((mixed.tls, mixed.complaints.len()), (true, 1));
    }

    #[test]
    fn without_a_scheme_the_files_decide() {
        assert!(!targets(&["a:1"]).unwrap().tls);
        assert!(with(&["a:1"], |config| config.ca_file = Some("ca.pem".into())).unwrap().tls);
        let empty = with(&["a:1"], |config| config.ca_file = Some("".into())).unwrap();
        assert_eq!((empty.tls, empty.complaints.len()), (false, 0));
        let half = with(&["a:1"], |config| config.cert_file = Some("c.pem".into())).unwrap();
        assert_eq!((half.tls, half.complaints.len()), (false, 1));
        let unused = with(&["http://a:1"], |config| config.ca_file = Some("ca.pem".into())).unwrap();
        assert_eq!((unused.tls, unused.complaints.len()), (false, 1));
    }

    #[test]
    fn half_a_user_is_none() {
        let mut config = Config { username: "u".into(), ..Config::default() };
        assert_eq!((config.user(), config.targets().unwrap().complaints.len()), (None, 1));
        config.password = Some(Secret::new("s3cret"));
        assert!(config.user().is_some() && config.targets().unwrap().complaints.is_empty());
    }

    #[test]
    fn unusable_endpoints_are_named_but_never_a_password() {
        for (endpoints, word) in [
            (&[][..], "none given"),
            (&[""], "no host"),
            (&["http://"], "no host"),
            (&["http://a:1", ""], "no host"),
            (&["a b:1"], "no host"),
            (&["http://a:1/path"], "no host"),
            (&["unix:///run/etcd"], "unknown scheme"),
            (&["http://u:s3cret@a:1"], "user in an endpoint"),
        ] {
            let line = targets(endpoints).unwrap_err().to_string();
            assert!(line.contains(word) && !line.contains("s3cret") && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn no_debug_form_shows_the_password() {
        let config = Config { password: Some(Secret::new("s3cret")), ..Config::default() };
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}
