//! Kubeconfig files, as far as a daemon can use them: certificates and tokens, inline or in files.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::KubeError;
use super::access::{Credentials, read_file};

/// Where bytes are.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Source {
    File(PathBuf),
    Inline {
        /// The field that holds them.
        name: &'static str,
        bytes: Vec<u8>,
    },
}

impl Source {
    pub(super) fn read(&self) -> Result<Vec<u8>, KubeError> {
        match self {
            Source::File(path) => read_file(path),
            Source::Inline { bytes, .. } => Ok(bytes.clone()),
        }
    }

    /// Returns the error for bytes that are not what they should be.
    pub(super) fn broken(&self, problem: &str) -> KubeError {
        let path = match self {
            Source::File(path) => path.clone(),
            Source::Inline { name, .. } => PathBuf::from(format!("{name} in the kubeconfig")),
        };
        KubeError::File { path, problem: problem.to_owned() }
    }
}

/// Without the bytes, which may be secret.
impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => write!(formatter, "{}", path.display()),
            Source::Inline { name, .. } => formatter.write_str(name),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    clusters: Vec<Named>,
    contexts: Vec<Named>,
    users: Vec<Named>,
    current_context: String,
}

/// One entry of any of the three lists.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    cluster: Option<Cluster>,
    context: Option<Context>,
    user: Option<User>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: String,
    certificate_authority_data: String,
    insecure_skip_tls_verify: bool,
    tls_server_name: String,
    proxy_url: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: String,
    client_certificate_data: String,
    client_key: String,
    client_key_data: String,
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: String,
    username: String,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
    #[serde(rename = "as")]
    impersonated: String,
}

/// Reads the credentials of the current context.
pub(super) fn read(path: &Path) -> Result<Credentials, KubeError> {
    let unusable = |problem: String| KubeError::Option {
        option: "--kubeconfig-file",
        value: path.display().to_string(),
        problem,
    };
    let bytes = read_file(path).map_err(|error| match error {
        KubeError::File { problem, .. } => unusable(problem),
        other => other,
    })?;
    parse(&bytes, path.parent().unwrap_or(Path::new(""))).map_err(unusable)
}

fn parse(bytes: &[u8], directory: &Path) -> Result<Credentials, String> {
    // The parser's message may quote what is there, a token perhaps; its place is enough.
    let file: File = serde_yaml_ng::from_slice(bytes).map_err(|error| {
        let place = error.location().map(|place| format!(" at line {}", place.line())).unwrap_or_default();
        format!("not a kubeconfig: bad YAML or a value of another type{place}")
    })?;
    let current = &file.current_context;
    if current.is_empty() {
        return Err("it has no current-context; write one".to_owned());
    }
    let context = find(&file.contexts, current).and_then(|entry| entry.context.as_ref());
    let context =
        context.ok_or_else(|| format!("its current-context {current:?} is not among its contexts"))?;
    let cluster = find(&file.clusters, &context.cluster).and_then(|entry| entry.cluster.as_ref());
    let cluster =
        cluster.ok_or_else(|| format!("the cluster {:?} is not among its clusters", context.cluster))?;
    let none = User::default();
    let user = match find(&file.users, &context.user).and_then(|entry| entry.user.as_ref()) {
        Some(user) => user,
        None if context.user.is_empty() => &none,
        None => return Err(format!("the user {:?} is not among its users", context.user)),
    };
    refuse(cluster, user)?;
    let of = |name, file: &str, data: &str| source(directory, name, file, data);
    let token = if user.token.is_empty() {
        of("token", &user.token_file, "")?
    } else {
        Some(Source::Inline { name: "token", bytes: user.token.clone().into_bytes() })
    };
    Ok(Credentials {
        server: cluster.server.clone(),
        authority: of(
            "certificate-authority-data",
            &cluster.certificate_authority,
            &cluster.certificate_authority_data,
        )?,
        certificate: of("client-certificate-data", &user.client_certificate, &user.client_certificate_data)?,
        key: of("client-key-data", &user.client_key, &user.client_key_data)?,
        token,
        server_name: Some(cluster.tls_server_name.clone()).filter(|name| !name.is_empty()),
        insecure: cluster.insecure_skip_tls_verify,
    })
}

/// Rejects what a daemon cannot do, or must not.
fn refuse(cluster: &Cluster, user: &User) -> Result<(), String> {
    let because = |what: &str, why: &str| Err(format!("{what} is not supported: {why}"));
    if user.exec.is_some() {
        return because(
            "exec",
            "a daemon on every node must not depend on a program for its credentials; write a token, a \
             tokenFile or a client certificate",
        );
    }
    if user.auth_provider.is_some() {
        return because("auth-provider", "Kubernetes has removed it; write a token or a client certificate");
    }
    if !user.username.is_empty() {
        return because("username", "API servers no longer accept passwords; write a token");
    }
    if !user.impersonated.is_empty() {
        return because("as", "give the daemon an account of its own");
    }
    if !cluster.proxy_url.is_empty() {
        return because("proxy-url", "the daemon must reach its API server without another program");
    }
    if cluster.server.is_empty() {
        return Err("its cluster has no server; write https://HOST:PORT".to_owned());
    }
    Ok(())
}

fn find<'a>(entries: &'a [Named], name: &str) -> Option<&'a Named> {
    entries.iter().find(|entry| entry.name == name)
}

/// Returns where the bytes are. As in kubectl, those in the kubeconfig count before those in a file, whose
/// path is relative to the kubeconfig's.
fn source(directory: &Path, name: &'static str, file: &str, data: &str) -> Result<Option<Source>, String> {
    if data.is_empty() {
        return Ok((!file.is_empty()).then(|| Source::File(directory.join(file))));
    }
    let bytes = STANDARD.decode(data.trim()).map_err(|_| format!("{name} is not base64"))?;
    Ok(Some(Source::Inline { name, bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
apiVersion: v1
kind: Config
current-context: kubelet
contexts:
- {name: other, context: {cluster: none, user: none}}
- name: kubelet
  context: {cluster: c, user: u, namespace: ignored}
clusters:
- name: c
  cluster: {server: "https://10.0.0.1:6443", certificate-authority-data: Y2E=, tls-server-name: kubernetes}
users:
- name: u
  user: {client-certificate: pki/client.crt, client-key: /pki/client.key, token: s3cret, username: ""}
preferences: {}
"#;

    fn parsed(text: &str) -> Result<Credentials, String> {
        parse(text.as_bytes(), Path::new("/etc/kubernetes"))
    }

    #[test]
    fn the_current_context_is_read() {
        let credentials = parsed(GOOD).expect("a kubeconfig");
        assert_eq!(credentials.server, "https://10.0.0.1:6443");
        let authority = Source::Inline { name: "certificate-authority-data", bytes: b"ca".to_vec() };
        assert_eq!(credentials.authority, Some(authority));
        assert_eq!(credentials.certificate, Some(Source::File("/etc/kubernetes/pki/client.crt".into())));
        assert_eq!(credentials.key, Some(Source::File("/pki/client.key".into())));
        assert_eq!(credentials.server_name.as_deref(), Some("kubernetes"));
        assert!(!credentials.insecure && !format!("{credentials:?}").contains("s3cret"));
        let token = credentials.token.expect("a token").read().expect("inline");
        assert_eq!(token, b"s3cret");
        // JSON is YAML.
        let json = r#"{"current-context":"a","contexts":[{"name":"a","context":{"cluster":"b"}}],
                       "clusters":[{"name":"b","cluster":{"server":"https://h","insecure-skip-tls-verify":true}}]}"#;
        assert!(parsed(json).expect("a kubeconfig").insecure);
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_reason() {
        for (from, to, reason) in [
            ("token: s3cret", "exec: {command: aws}", "exec is not supported: a daemon"),
            ("token: s3cret", "auth-provider: {name: gcp}", "auth-provider is not supported"),
            ("username: \"\"", "username: admin", "username is not supported"),
            ("username: \"\"", "as: admin", "as is not supported"),
            ("tls-server-name: kubernetes", "proxy-url: http://p", "proxy-url is not supported"),
            ("current-context: kubelet", "current-context: nowhere", "\"nowhere\" is not among its contexts"),
            ("current-context: kubelet", "current-context: ''", "no current-context"),
            ("current-context: kubelet", "current-context: other", "\"none\" is not among its clusters"),
            ("cluster: c, user: u", "cluster: c, user: x", "\"x\" is not among its users"),
            ("server: \"https://10.0.0.1:6443\"", "server: ''", "has no server"),
            ("Y2E=", "'*'", "certificate-authority-data is not base64"),
            ("users:", "users: s3cret", "not a kubeconfig"),
            ("kind: Config", "kind: [", "not a kubeconfig"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = parsed(&GOOD.replacen(from, to, 1)).expect_err(reason);
            assert!(error.contains(reason) && !error.contains("s3cret"), "{error}");
        }
        for text in ["", "[]", "42", "s3cret", "\u{0}", "a: &a [*a]"] {
            let error = parsed(text).expect_err(text);
            assert!(!error.contains("s3cret"), "{error}");
        }
        let error = read(Path::new("/nowhere/kubeconfig")).expect_err("no file");
        assert!(!error.is_passing(), "{error}");
    }

    #[test]
    fn the_data_in_the_file_counts_before_another_file() {
        let both = GOOD
            .replace("certificate-authority-data", "certificate-authority: x, certificate-authority-data");
        assert!(matches!(parsed(&both).expect("a kubeconfig").authority, Some(Source::Inline { .. })));
        let file = GOOD.replace("certificate-authority-data: Y2E=", "certificate-authority: ca.crt");
        let authority = parsed(&file).expect("a kubeconfig").authority;
        assert_eq!(authority, Some(Source::File("/etc/kubernetes/ca.crt".into())));
        let token = GOOD.replace("token: s3cret", "tokenFile: token");
        let token = parsed(&token).expect("a kubeconfig").token;
        assert_eq!(token, Some(Source::File("/etc/kubernetes/token".into())));
    }
}
