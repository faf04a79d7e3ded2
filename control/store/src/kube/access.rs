//! Where the API server is, and by what we prove who we are: from a kubeconfig, or from a pod's service
//! account. Read again for each connection, since tokens, certificates and authorities are rotated.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::uri::{Authority, Uri};
use http::{HeaderValue, header};
use tokio_rustls::rustls::ClientConfig;

use super::config::Config;
use super::kubeconfig::{self, Source};
use super::{KubeError, tls};
use crate::regular;

/// All that a connection needs.
#[derive(Debug, Clone)]
pub(super) struct Access {
    /// The address, for messages and for the request's line.
    pub(super) url: String,
    pub(super) host: String,
    pub(super) port: u16,
    /// What stands before every path.
    pub(super) path: String,
    /// `None` for plain HTTP.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// The name in the server's certificate.
    pub(super) server_name: String,
    /// The value of the header `Authorization`.
    pub(super) authorization: Option<HeaderValue>,
    /// What to log once.
    pub(super) warning: Option<String>,
}

/// What a kubeconfig or a pod says, before any file is read that it names.
#[derive(Debug, Default)]
pub(super) struct Credentials {
    pub(super) server: String,
    pub(super) authority: Option<Source>,
    pub(super) certificate: Option<Source>,
    pub(super) key: Option<Source>,
    pub(super) token: Option<Source>,
    pub(super) server_name: Option<String>,
    /// Take any certificate.
    pub(super) insecure: bool,
}

impl Access {
    /// Reads all files. Blocks.
    pub(super) fn read(config: &Config) -> Result<Access, KubeError> {
        let mut credentials = Credentials::of(config)?;
        if !config.api_url.is_empty() {
            credentials.server.clone_from(&config.api_url);
        }
        Access::with(&credentials)
    }

    fn with(credentials: &Credentials) -> Result<Access, KubeError> {
        let url = credentials.server.trim_end_matches('/');
        let parts = Parts::of(url)?;
        let server_name = credentials.server_name.clone().unwrap_or_else(|| parts.host.clone());
        let tls = if parts.is_tls { Some(Arc::new(tls::config(credentials)?)) } else { None };
        let authorization = match &credentials.token {
            // A token in plain text would be everybody's.
            Some(source) if parts.is_tls => Some(bearer(source)?),
            _ => None,
        };
        let is_withheld = credentials.token.is_some() && authorization.is_none();
        let warning = is_withheld.then(|| {
            format!("the token is not sent to {url}, where all could read it; use https, or remove the token")
        });
        let Parts { host, port, path, .. } = parts;
        Ok(Access { url: url.to_owned(), host, port, path, tls, server_name, authorization, warning })
    }
}

impl Credentials {
    fn of(config: &Config) -> Result<Credentials, KubeError> {
        if let Some(path) = config.kubeconfig.as_deref().filter(|path| !path.as_os_str().is_empty()) {
            return kubeconfig::read(path);
        }
        let file = |name: &str| config.service_account.join(name);
        let of_the_pod = |server: String| Credentials {
            server,
            authority: Some(Source::File(file("ca.crt"))),
            token: Some(Source::File(file("token"))),
            ..Credentials::default()
        };
        match &config.service {
            Some((host, port)) if host.contains(':') => Ok(of_the_pod(format!("https://[{host}]:{port}"))),
            Some((host, port)) => Ok(of_the_pod(format!("https://{host}:{port}"))),
            None if !config.api_url.is_empty() && file("token").is_file() => Ok(of_the_pod(String::new())),
            None if !config.api_url.is_empty() => Ok(Credentials::default()),
            None => Err(KubeError::Option {
                option: "--kube-subnet-mgr",
                value: "true".to_owned(),
                problem: "neither --kubeconfig-file nor --kube-api-url is given, and this is no pod: \
                          KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"
                    .to_owned(),
            }),
        }
    }
}

/// The parts of an address.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    is_tls: bool,
    /// Without the brackets of IPv6.
    host: String,
    port: u16,
    path: String,
}

impl Parts {
    fn of(url: &str) -> Result<Parts, KubeError> {
        let unusable = |problem: &str| KubeError::Option {
            option: "the API server's address",
            // Not where a password may be in it.
            value: if url.contains('@') { String::new() } else { url.to_owned() },
            problem: problem.to_owned(),
        };
        if url.contains('@') {
            return Err(unusable("a user in the address is not supported; write a token in the kubeconfig"));
        }
        // As in kubectl, an address without a scheme means http.
        let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = whole.parse().map_err(|_| unusable("not an address; write https://HOST:PORT"))?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(unusable("unknown scheme; write https://HOST:PORT")),
        };
        let host = uri.authority().map(Authority::host).unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || uri.query().is_some() {
            return Err(unusable("no host; write https://HOST:PORT"));
        }
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let path = uri.path().trim_end_matches('/').to_owned();
        Ok(Parts { is_tls, host: host.to_owned(), port, path })
    }
}

fn bearer(source: &Source) -> Result<HeaderValue, KubeError> {
    let token = String::from_utf8(source.read()?).unwrap_or_default();
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
        .ok()
        .filter(|_| !token.trim().is_empty())
        .ok_or_else(|| source.broken("no token; write one line of text"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns the header and its value, if there is one.
pub(super) fn header_of(access: &Access) -> Option<(header::HeaderName, HeaderValue)> {
    access.authorization.clone().map(|value| (header::AUTHORIZATION, value))
}

/// Reads one of the files that prove who we are.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, KubeError> {
    regular::read(path, regular::USUAL).map_err(|error| KubeError::File {
        path: PathBuf::from(path),
        problem: format!("cannot read it: {error}; check that the file is there and that we may read it"),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::kube::Identity;

    fn config(change: impl FnOnce(&mut Config)) -> Config {
        let mut config = Config { node: Identity::Node("n1".into()), ..Config::default() };
        change(&mut config);
        config
    }

    #[test]
    fn addresses_have_a_host() {
        let parts = |is_tls, host: &str, port, path: &str| Parts {
            is_tls,
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        };
        for (url, expected) in [
            ("https://10.0.0.1:6443", parts(true, "10.0.0.1", 6443, "")),
            ("https://[fd00::1]:6443/", parts(true, "fd00::1", 6443, "")),
            ("https://api.example.org", parts(true, "api.example.org", 443, "")),
            (
                "https://rancher.example.org/k8s/clusters/c-1",
                parts(true, "rancher.example.org", 443, "/k8s/clusters/c-1"),
            ),
            ("http://127.0.0.1:8080", parts(false, "127.0.0.1", 8080, "")),
            ("127.0.0.1:8080", parts(false, "127.0.0.1", 8080, "")),
        ] {
            assert_eq!(Parts::of(url), Ok(expected), "{url}");
        }
        for url in ["", "https://", "unix:///run/api", "https://a b", "https://u:s3cret@a:1", "https://a?x=1"]
        {
            let error = Parts::of(url).expect_err(url).to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_pod_has_its_service_account_and_others_need_a_flag() {
        let directory = tempfile::tempdir().expect("a directory");
        let service = |host: &str| Some((host.to_owned(), "443".to_owned()));
        let of = |config: &Config| Credentials::of(config);
        let pod = config(|config| {
            config.service = service("fd00::1");
            config.service_account = directory.path().into();
        });
        let credentials = of(&pod).expect("a pod");
        assert_eq!(credentials.server, "https://[fd00::1]:443");
        assert_eq!(credentials.token, Some(Source::File(directory.path().join("token"))));
        let error = of(&config(|_| ())).expect_err("nothing").to_string();
        assert!(error.contains("--kubeconfig-file") && error.contains("no pod"), "{error}");
        // A pod whose service does not answer yet is given the address, and keeps its token.
        let mut given = config(|config| {
            config.api_url = "https://10.0.0.1:6443".into();
            config.service_account = directory.path().into();
        });
        assert_eq!(of(&given).expect("an address").token, None);
        fs::write(directory.path().join("token"), "t").expect("a token");
        assert!(of(&given).expect("an address").token.is_some());
        given.service = service("10.43.0.1");
        assert!(of(&given).expect("an address").token.is_some());
    }

    #[test]
    fn a_token_never_travels_in_plain_text() {
        let token = || Some(Source::Inline { name: "token", bytes: b"s3cret\n".to_vec() });
        let plain =
            Credentials { server: "http://127.0.0.1:1".into(), token: token(), ..Credentials::default() };
        let access = Access::with(&plain).expect("an address");
        assert_eq!(access.authorization, None);
        let warning = access.warning.expect("a warning");
        assert!(warning.contains("http://127.0.0.1:1,") && !warning.contains("s3cret"), "{warning}");
        let without = Credentials { token: None, ..plain };
        assert_eq!(Access::with(&without).expect("an address").warning, None);
        let tls = Credentials {
            server: "https://127.0.0.1:1".into(),
            insecure: true,
            token: token(),
            ..Credentials::default()
        };
        let access = Access::with(&tls).expect("an address");
        assert_eq!(access.authorization, Some(HeaderValue::from_static("Bearer s3cret")));
        assert_eq!(access.warning, None);
        assert!(!format!("{access:?} {tls:?}").contains("s3cret"));
        let empty =
            Credentials { token: Some(Source::Inline { name: "token", bytes: b" \n".to_vec() }), ..tls };
        assert!(Access::with(&empty).expect_err("no token").to_string().contains("no token"));
    }
}
