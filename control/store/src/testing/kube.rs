//! An API server inside the test's process, which can do what a real one does at its worst. It has nodes, a
//! pod, events, and a history that a watch can be behind of.
//!
//! That it speaks as a real one does is shown by the tests that run against a real one as well.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

use super::etcd::make_certificates;
use crate::kube::client::frame;
use crate::kube::messages::{self, ListMeta, NodeList, RawExtension, WatchEvent, encode};
use crate::kube::{Config, Identity};

/// flannel's prefix, which the tests use.
const PREFIX: &str = "flannel.alpha.coreos.com/";

type Body = BoxBody<Bytes, std::io::Error>;

/// An API server. Dropping the value ends it.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    directory: TempDir,
    is_tls: bool,
    shared: Shared,
    task: JoinHandle<()>,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This status with this body, and perhaps so many seconds to wait.
    Status(u16, String, Option<u32>),
    /// The answer ends in its midst.
    Half,
    /// The connection is closed without an answer.
    Cut,
    /// The answer is a page for a browser.
    Page,
    /// The answer is these bytes.
    Body(Vec<u8>),
}

type Shared = Arc<(Mutex<State>, watch::Sender<u64>)>;

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<String, Stored>,
    pods: BTreeMap<String, String>,
    revision: u64,
    changes: Vec<(u64, &'static str, Stored)>,
    /// A watch from before this is gone.
    compacted: u64,
    events: Vec<Value>,
    requests: Vec<String>,
    faults: VecDeque<(String, Fault)>,
    /// Requests of these beginnings are denied.
    denied: Vec<String>,
    token: Option<String>,
    /// Watches begun before this number end.
    watches: u64,
}

#[derive(Debug, Clone, Default)]
struct Stored {
    node: messages::Node,
    conditions: Vec<Value>,
}

impl Server {
    /// Starts a server on a free port of the loopback, in the caller's runtime and namespace.
    pub async fn start() -> Server {
        Server::serve(TempDir::new().unwrap(), None).await
    }

    /// Starts a server that speaks TLS, and takes clients with a certificate of its authority as well.
    pub async fn start_tls() -> Server {
        let directory = TempDir::new().unwrap();
        make_certificates(directory.path(), Ipv4Addr::LOCALHOST);
        let acceptor = acceptor(directory.path());
        Server::serve(directory, Some(acceptor)).await
    }

    async fn serve(directory: TempDir, tls: Option<TlsAcceptor>) -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { revision: 1000, ..State::default() };
        let shared: Shared = Arc::new((Mutex::new(state), watch::Sender::new(0)));
        let (inside, is_tls) = (Arc::clone(&shared), tls.is_some());
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (shared, tls) = (Arc::clone(&inside), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => talk(stream, shared).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                talk(stream, shared).await;
                            }
                        }
                    }
                });
            }
        });
        Server { address, directory, is_tls, shared, task }
    }

    /// Returns the server's address.
    pub fn url(&self) -> String {
        format!("http{}://{}", if self.is_tls { "s" } else { "" }, self.address)
    }

    /// Returns the path of a file made for the server: `ca.pem`, `client.pem`, `client.key`, `stranger.pem`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns how the daemon of a node reaches the server. Its network configuration is a file that this
    /// writes.
    pub fn config(&self, node: &str, network: &str) -> Config {
        let net_config_path = self.file("net-conf.json");
        std::fs::write(&net_config_path, network).unwrap();
        Config {
            api_url: self.url(),
            net_config_path,
            node: Identity::Node(node.to_owned()),
            service_account: self.file("nowhere"),
            ..Config::default()
        }
    }

    /// Creates a node with these pod CIDRs, as a kubelet and the controller manager do.
    pub fn add(&self, name: &str, cidrs: &[&str]) {
        self.change(|state| {
            let uid = format!("{:08x}-0000-4000-8000-{:012x}", state.revision, name.len());
            let meta = messages::ObjectMeta { name: name.to_owned(), uid, ..Default::default() };
            let spec = messages::NodeSpec {
                pod_cidr: cidrs.first().copied().unwrap_or_default().to_owned(),
                pod_cidrs: cidrs.iter().map(|&text| text.to_owned()).collect(),
            };
            let node = messages::Node { meta: Some(meta), spec: Some(spec) };
            state.write(name, "ADDED", Stored { node, conditions: Vec::new() });
        });
    }

    /// Sets annotations by flannel's short names, as an administrator or another node's daemon does.
    pub fn annotate(&self, name: &str, pairs: &[(&str, &str)]) {
        self.modify(name, |stored| {
            for (name, text) in pairs {
                let name = if name.contains('/') { (*name).to_owned() } else { format!("{PREFIX}{name}") };
                meta(stored).annotations.insert(name, (*text).to_owned());
            }
        });
    }

    /// Removes an annotation.
    pub fn remove_annotation(&self, name: &str, annotation: &str) {
        self.modify(name, |stored| _ = meta(stored).annotations.remove(&format!("{PREFIX}{annotation}")));
    }

    /// Makes the node one that a stock flannel with the backend host-gw runs on.
    pub fn join(&self, name: &str, public_ip: &str) {
        let pairs = [
            ("kube-subnet-manager", "true"),
            ("backend-type", "host-gw"),
            ("backend-data", "null"),
            ("public-ip", public_ip),
        ];
        self.annotate(name, &pairs);
    }

    /// Sets the pod CIDRs of a node that has none.
    pub fn assign(&self, name: &str, cidrs: &[&str]) {
        self.modify(name, |stored| {
            let spec = stored.node.spec.get_or_insert_default();
            spec.pod_cidrs = cidrs.iter().map(|&text| text.to_owned()).collect();
        });
    }

    /// Writes to a node as kubelets do, without a change that matters.
    pub fn touch(&self, name: &str) {
        self.modify(name, |_| ());
    }

    /// Deletes a node.
    pub fn delete(&self, name: &str) {
        self.change(|state| {
            let stored = state.nodes.get(name).unwrap().clone();
            state.write(name, "DELETED", stored);
            state.nodes.remove(name);
        });
    }

    /// Puts a pod on a node.
    pub fn add_pod(&self, namespace: &str, name: &str, node: &str) {
        self.lock().pods.insert(format!("{namespace}/{name}"), node.to_owned());
    }

    /// Ends all watches, as a server does from time to time.
    pub fn end_watches(&self) {
        self.lock().watches += 1;
        self.shared.1.send_modify(|turn| *turn += 1);
    }

    /// Forgets the history up to now.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.compacted = state.revision;
        state.changes.clear();
    }

    /// Takes the cluster back to an older state: nodes are gone, and the history begins earlier.
    pub fn rewind(&self, gone: &[&str]) {
        let mut state = self.lock();
        gone.iter().for_each(|name| _ = state.nodes.remove(*name));
        state.revision -= 500;
        state.changes.clear();
    }

    /// Answers the next request that begins so, such as `GET /api/v1/nodes?watch`, by a fault.
    pub fn fail(&self, beginning: &str, fault: Fault) {
        self.lock().faults.push_back((beginning.to_owned(), fault));
    }

    /// Denies all requests that begin so; none denies nothing any more.
    pub fn deny(&self, beginning: Option<&str>) {
        self.lock().denied = beginning.map(str::to_owned).into_iter().collect();
    }

    /// Demands this token.
    pub fn demand(&self, token: &str) {
        self.lock().token = Some(token.to_owned());
    }

    /// Returns the node's annotations under flannel's prefix, by their short names.
    pub fn annotations(&self, name: &str) -> BTreeMap<String, String> {
        let state = self.lock();
        let meta = state.nodes[name].node.meta.clone().unwrap_or_default();
        let short = |(name, text): (String, String)| Some((name.strip_prefix(PREFIX)?.to_owned(), text));
        meta.annotations.into_iter().filter_map(short).collect()
    }

    /// Returns the node's conditions.
    pub fn conditions(&self, name: &str) -> Vec<Value> {
        self.lock().nodes[name].conditions.clone()
    }

    /// Returns the events that were created.
    pub fn events(&self) -> Vec<Value> {
        self.lock().events.clone()
    }

    /// Returns all requests so far: method, path and query.
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    fn modify(&self, name: &str, change: impl FnOnce(&mut Stored)) {
        self.change(|state| {
            let mut stored = state.nodes.get(name).unwrap().clone();
            change(&mut stored);
            state.write(name, "MODIFIED", stored);
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.shared.1.send_modify(|turn| *turn += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn write(&mut self, name: &str, kind: &'static str, mut stored: Stored) {
        self.revision += 1;
        meta(&mut stored).version = self.revision.to_string();
        self.changes.push((self.revision, kind, stored.clone()));
        self.nodes.insert(name.to_owned(), stored);
    }

    /// Merges a patch of a node's status.
    fn patch(&mut self, name: &str, patch: &Value) -> Option<messages::Node> {
        let mut stored = self.nodes.get(name)?.clone();
        for (name, text) in patch["metadata"]["annotations"].as_object().into_iter().flatten() {
            meta(&mut stored).annotations.insert(name.clone(), text.as_str()?.to_owned());
        }
        for condition in patch["status"]["conditions"].as_array().into_iter().flatten() {
            stored.conditions.retain(|known| known["type"] != condition["type"]);
            stored.conditions.push(condition.clone());
        }
        self.write(name, "MODIFIED", stored);
        Some(self.nodes[name].node.clone())
    }
}

fn meta(stored: &mut Stored) -> &mut messages::ObjectMeta {
    stored.node.meta.get_or_insert_default()
}

async fn talk<S>(stream: S, shared: Shared)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { answer(request, shared).await }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Answers one request. The error closes the connection.
async fn answer(request: Request<Incoming>, shared: Shared) -> Result<Response<Body>, std::io::Error> {
    let target = request.uri().path_and_query().unwrap().to_string();
    let line = format!("{} {target}", request.method());
    let authorization = request.headers().get(header::AUTHORIZATION).cloned();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let query = query(request.uri().query().unwrap_or_default());
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    {
        let mut state = shared.0.lock().unwrap();
        state.requests.push(line.clone());
        let due = state.faults.iter().position(|(beginning, _)| line.starts_with(beginning));
        if let Some((_, fault)) = due.and_then(|index| state.faults.remove(index)) {
            return faulty(fault);
        }
        if state.denied.iter().any(|beginning| line.starts_with(beginning)) {
            return Ok(status(403, "is forbidden: no RBAC policy matched"));
        }
        let wanted = state.token.as_ref().map(|token| format!("Bearer {token}"));
        if wanted.is_some_and(|wanted| authorization.is_none_or(|value| value != wanted.as_str())) {
            return Ok(status(401, "Unauthorized"));
        }
    }
    if query.contains_key("watch") {
        return Ok(follow(&query, shared));
    }
    let mut state = shared.0.lock().unwrap();
    let parts: Vec<&str> = path.trim_start_matches("/api/v1/").split('/').collect();
    Ok(match (method, parts.as_slice()) {
        (Method::GET, ["nodes"]) => page(&query, &state),
        (Method::GET, ["nodes", name]) => match state.nodes.get(*name) {
            Some(stored) => object("Node", &stored.node),
            None => status(404, &format!("nodes \"{name}\" not found")),
        },
        (Method::PATCH, ["nodes", name, "status"]) => {
            let patch: Value = serde_json::from_slice(&body).unwrap();
            let patched = state.patch(name, &patch);
            drop(state);
            shared.1.send_modify(|turn| *turn += 1);
            match patched {
                Some(node) => object("Node", &node),
                None => status(404, &format!("nodes \"{name}\" not found")),
            }
        }
        (Method::GET, ["namespaces", namespace, "pods", name]) => {
            match state.pods.get(&format!("{namespace}/{name}")) {
                Some(node) => {
                    let spec = Some(messages::PodSpec { node_name: node.clone() });
                    object("Pod", &messages::Pod { spec })
                }
                None => status(404, &format!("pods \"{name}\" not found")),
            }
        }
        (Method::POST, ["namespaces", _, "events"]) => {
            state.events.push(serde_json::from_slice(&body).unwrap());
            let answer = Response::builder().status(StatusCode::CREATED).body(full("{}"));
            answer.unwrap()
        }
        _ => status(404, "the server could not find the requested resource"),
    })
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.replace("%3D", "="))).collect()
}

/// Returns a page of the nodes. The rest is named by the list's version and the next node.
fn page(query: &BTreeMap<String, String>, state: &State) -> Response<Body> {
    let limit: usize = query["limit"].parse().unwrap();
    let rest = query.get("continue").map(|rest| rest.split_once('=').unwrap());
    if rest.is_some_and(|(version, _)| version.parse::<u64>().unwrap() < state.compacted) {
        return status(410, "The provided continue parameter is too old");
    }
    let first = rest.map_or("", |(_, first)| first);
    let version = rest.map_or_else(|| state.revision.to_string(), |(version, _)| version.to_owned());
    let mut nodes = state.nodes.range(first.to_owned()..);
    let items = nodes.by_ref().take(limit).map(|(_, stored)| stored.node.clone()).collect();
    let rest = nodes.next().map(|(name, _)| format!("{version}={name}")).unwrap_or_default();
    object("NodeList", &NodeList { meta: Some(ListMeta { version, rest }), items })
}

/// Sends the changes since a version, then each that comes.
fn follow(query: &BTreeMap<String, String>, shared: Shared) -> Response<Body> {
    let mut sent: u64 = query["resourceVersion"].parse().unwrap();
    let (sender, receiver) = mpsc::channel::<Bytes>(16);
    let began = shared.0.lock().unwrap().watches;
    if sent < shared.0.lock().unwrap().compacted {
        return status(410, "too old resource version");
    }
    tokio::spawn(async move {
        let mut turns = shared.1.subscribe();
        loop {
            turns.mark_unchanged();
            let news: Vec<(u64, Vec<u8>)> = {
                let state = shared.0.lock().unwrap();
                if state.watches != began {
                    return;
                }
                let new = state.changes.iter().filter(|(revision, _, _)| *revision > sent);
                new.map(|(revision, kind, stored)| (*revision, event(kind, &stored.node))).collect()
            };
            for (revision, bytes) in news {
                // In two parts: frames need not arrive whole.
                let (head, tail) = bytes.split_at(bytes.len() / 2);
                for part in [head, tail] {
                    if sender.send(Bytes::copy_from_slice(part)).await.is_err() {
                        return;
                    }
                }
                sent = revision;
            }
            tokio::select! {
                _ = turns.changed() => {}
                () = sender.closed() => return,
                // A bookmark, sooner than a real server's.
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    let version = shared.0.lock().unwrap().revision.to_string();
                    let meta = messages::ObjectMeta { version, ..Default::default() };
                    let node = messages::Node { meta: Some(meta), spec: None };
                    let _ = sender.send(event("BOOKMARK", &node).into()).await;
                }
            }
        }
    });
    let parts = stream::unfold(receiver, async |mut receiver| {
        let part = receiver.recv().await?;
        Some((Ok::<_, std::io::Error>(Frame::data(part)), receiver))
    });
    Response::new(BodyExt::boxed(StreamBody::new(parts)))
}

fn event(kind: &str, node: &messages::Node) -> Vec<u8> {
    let raw = encode("v1", "Node", node).into();
    frame(&WatchEvent { kind: kind.to_owned(), object: Some(RawExtension { raw }) })
}

fn object(kind: &str, message: &impl prost::Message) -> Response<Body> {
    Response::new(full(encode("v1", kind, message)))
}

fn status(code: u16, message: &str) -> Response<Body> {
    let body = serde_json::json!({ "kind": "Status", "message": message, "code": code }).to_string();
    Response::builder().status(code).body(full(body)).unwrap()
}

fn faulty(fault: Fault) -> Result<Response<Body>, std::io::Error> {
    Ok(match fault {
        Fault::Status(code, body, wait) => {
            let mut answer = Response::builder().status(code);
            if let Some(wait) = wait {
                answer = answer.header(header::RETRY_AFTER, wait);
            }
            answer.body(full(body)).unwrap()
        }
        Fault::Page => Response::new(full("<html><body>Please log in</body></html>")),
        Fault::Body(body) => Response::new(full(body)),
        Fault::Cut => return Err(std::io::Error::other("cut")),
        Fault::Half => {
            let broken = Err(std::io::Error::other("cut"));
            let parts = stream::iter([Ok(Frame::data(Bytes::from_static(b"k8s\0\n\x0a"))), broken]);
            Response::new(BodyExt::boxed(StreamBody::new(parts)))
        }
    })
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed()
}

fn acceptor(directory: &Path) -> TlsAcceptor {
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let chain = |name: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(&read(name)).map(Result::unwrap).collect()
    };
    let key = PrivateKeyDer::from_pem_slice(&read("server.key")).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    chain("ca.pem").into_iter().for_each(|authority| roots.add(authority).unwrap());
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
    let clients = clients.allow_unauthenticated().build().unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config =
        config.with_client_cert_verifier(clients).with_single_cert(chain("server.pem"), key).unwrap();
    TlsAcceptor::from(Arc::new(config))
}
