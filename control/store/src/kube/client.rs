//! Calls to the API server: HTTP/1.1, one connection for a list with the watch behind it, and one for each
//! other call. They are rare, and a connection of its own has the newest token, certificate and authority.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use nix::libc;
use prost::Message;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::KubeError;
use super::access::{self, Access};
use super::config::Config;
use super::messages::{self, NodeList, Status, WatchEvent};
use crate::aside::{self, Single};

/// Time limit of everything before the first request: files, the name, TCP, TLS.
const CONNECT: Duration = Duration::from_secs(15);
/// Time limit of an answer's head, and of each part of its body.
const PATIENCE: Duration = Duration::from_secs(30);
/// A server that vanished silently is found by TCP: after so long without a byte, by so many probes.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(20), Duration::from_secs(5), 3);
/// Largest page of a list: 250 nodes of 256 KiB each, many times what nodes with long image lists have.
const LARGEST_PAGE: usize = 64 << 20;
/// Largest object, alone or in an event of a watch; etcd takes 1.5 MiB by default.
const LARGEST_OBJECT: usize = 16 << 20;
/// Largest error that is read.
const LARGEST_ERROR: usize = 64 << 10;
/// Longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const PROTOBUF_STREAM: &str = "application/vnd.kubernetes.protobuf;stream=watch";
const JSON: &str = "application/json";
const MERGE: &str = "application/strategic-merge-patch+json";

const ELSEWHERE: &str = "check that the API server runs there and can be reached";
const CERTIFICATE: &str =
    "check the certificate authority: the server may be another cluster's, or its certificate new";
const CLOCK: &str = "check the clock of this host: the server's certificate is not valid at its time";

/// What is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Read the pod that this daemon is in.
    ReadPod,
    /// Read our node.
    ReadNode,
    /// List all nodes.
    ListNodes,
    /// Follow all nodes.
    WatchNodes,
    /// Write to our node.
    PatchStatus,
    /// Tell an administrator.
    CreateEvent,
}

/// How to reach a cluster.
#[derive(Debug, Clone)]
pub(super) struct Client {
    config: Arc<Config>,
    reading: Single<Result<Access, KubeError>>,
    has_warned: Arc<AtomicBool>,
}

/// A connection to the server.
pub(super) struct Connection {
    access: Access,
    sender: SendRequest<Full<Bytes>>,
}

/// A watch's answer, event by event.
pub(super) struct Events {
    body: Incoming,
    buffer: BytesMut,
    server: String,
}

impl Call {
    /// Returns the verb that a role must allow.
    pub fn verb(self) -> &'static str {
        match self {
            Call::ReadPod | Call::ReadNode => "get",
            Call::ListNodes => "list",
            Call::WatchNodes => "watch",
            Call::PatchStatus => "patch",
            Call::CreateEvent => "create",
        }
    }

    /// Returns the resource that a role must allow it on.
    pub fn resource(self) -> &'static str {
        match self {
            Call::ReadPod => "pods",
            Call::ReadNode | Call::ListNodes | Call::WatchNodes => "nodes",
            Call::PatchStatus => "nodes/status",
            Call::CreateEvent => "events",
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Call::ReadPod => "read this daemon's pod",
            Call::ReadNode => "read our node",
            Call::ListNodes => "list the nodes",
            Call::WatchNodes => "watch the nodes",
            Call::PatchStatus => "write to our node's status",
            Call::CreateEvent => "create an event",
        })
    }
}

impl Client {
    pub(super) fn new(config: Arc<Config>) -> Client {
        Client { config, reading: Single::default(), has_warned: Arc::default() }
    }

    /// Reads one object.
    pub(super) async fn get<M: Message + Default>(&self, call: Call, path: &str) -> Result<M, KubeError> {
        self.connect(call).await?.get(call, path).await
    }

    /// Writes a part of an object, and returns the whole.
    pub(super) async fn patch<M: Message + Default>(
        &self,
        call: Call,
        path: &str,
        body: String,
    ) -> Result<M, KubeError> {
        let mut connection = self.connect(call).await?;
        let answer = connection.send(call, Method::PATCH, path, PROTOBUF, Some((MERGE, body))).await?;
        connection.whole(call, answer).await
    }

    /// Creates an object.
    pub(super) async fn create(&self, call: Call, path: &str, body: String) -> Result<(), KubeError> {
        let mut connection = self.connect(call).await?;
        connection.send(call, Method::POST, path, JSON, Some((JSON, body))).await?;
        Ok(())
    }

    /// Opens a connection.
    pub(super) async fn connect(&self, call: Call) -> Result<Connection, KubeError> {
        let config = Arc::clone(&self.config);
        let read = self.reading.run("loden-kube", move || Access::read(&config));
        let access = match timeout(CONNECT, read).await {
            Ok(Ok(access)) => access?,
            Ok(Err(error)) => return Err(unread(call, &error.to_string())),
            Err(_) => return Err(unread(call, "the filesystem does not answer")),
        };
        if let Some(warning) = &access.warning
            && !self.has_warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("lease store: {warning}");
        }
        let opened = timeout(CONNECT, open(&access)).await.unwrap_or_else(|_| Err(silent()));
        match opened {
            Ok(sender) => Ok(Connection { access, sender }),
            Err(error) => {
                let answer = reason(&error);
                Err(KubeError::Unreachable {
                    tried: call,
                    server: access.url,
                    advice: advice(&answer),
                    answer,
                })
            }
        }
    }
}

impl Connection {
    /// Reads one object.
    pub(super) async fn get<M: Message + Default>(&mut self, call: Call, path: &str) -> Result<M, KubeError> {
        let answer = self.send(call, Method::GET, path, PROTOBUF, None).await?;
        self.whole(call, answer).await
    }

    /// Reads a page of the nodes, of at most `most` ones.
    pub(super) async fn page(&mut self, path: &str, most: usize) -> Result<NodeList, KubeError> {
        let call = Call::ListNodes;
        let answer = self.send(call, Method::GET, path, PROTOBUF, None).await?;
        let bytes =
            read(answer.into_body(), LARGEST_PAGE).await.map_err(|error| self.broken(call, &error))?;
        match messages::nodes_of(&bytes) {
            None => Err(self.broken(call, NO_KUBERNETES)),
            Some(count) if count > most => {
                Err(self.broken(call, &format!("a page of {count} nodes, far more than were asked for")))
            }
            Some(_) => messages::decode(bytes).ok_or_else(|| self.broken(call, NO_KUBERNETES)),
        }
    }

    /// Returns the server's address.
    pub(super) fn url(&self) -> &str {
        &self.access.url
    }

    /// Begins a watch, which is the last thing that this connection does.
    pub(super) async fn watch(mut self, call: Call, path: &str) -> Result<Events, KubeError> {
        let answer = self.send(call, Method::GET, path, PROTOBUF_STREAM, None).await?;
        Ok(Events { body: answer.into_body(), buffer: BytesMut::new(), server: self.access.url })
    }

    /// Sends a request, and waits for the head of an answer that is no error.
    async fn send(
        &mut self,
        call: Call,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, String)>,
    ) -> Result<Response<Incoming>, KubeError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.access.path))
            .header(header::HOST, authority(&self.access))
            .header(header::USER_AGENT, concat!("loden/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, accept);
        if let Some((name, value)) = access::header_of(&self.access) {
            request = request.header(name, value);
        }
        let body = body.map_or_else(Bytes::new, |(kind, text)| {
            if let Some(headers) = request.headers_mut()
                && let Ok(kind) = http::HeaderValue::from_str(kind)
            {
                headers.insert(header::CONTENT_TYPE, kind);
            }
            Bytes::from(text)
        });
        let request = request.body(Full::new(body)).map_err(|error| self.broken(call, &error.to_string()))?;
        let answer = match timeout(PATIENCE, self.sender.send_request(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.broken(call, &reason(&error))),
            Err(_) => return Err(self.broken(call, "no answer in time")),
        };
        if answer.status().is_success() { Ok(answer) } else { Err(self.refusal(call, answer).await) }
    }

    /// Reads an answer to its end.
    async fn whole<M: Message + Default>(
        &self,
        call: Call,
        answer: Response<Incoming>,
    ) -> Result<M, KubeError> {
        let bytes =
            read(answer.into_body(), LARGEST_OBJECT).await.map_err(|error| self.broken(call, &error))?;
        messages::decode(bytes).ok_or_else(|| self.broken(call, NO_KUBERNETES))
    }

    async fn refusal(&self, call: Call, answer: Response<Incoming>) -> KubeError {
        let status = answer.status();
        let wait = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let wait = wait.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let body = read(answer.into_body(), LARGEST_ERROR).await.unwrap_or_default();
        let text = message_of(&body, status);
        let (tried, server) = (call, self.access.url.clone());
        match status {
            StatusCode::UNAUTHORIZED => KubeError::Unauthorized { tried, server, answer: text },
            StatusCode::FORBIDDEN => KubeError::Denied { tried, server, answer: text },
            StatusCode::GONE => KubeError::Gone { tried },
            StatusCode::NOT_FOUND => KubeError::Missing { tried, server, answer: text },
            _ => KubeError::Refused {
                tried,
                server,
                status: status.as_u16(),
                answer: text,
                wait: wait.map(|wait| wait.min(LONGEST_WAIT)),
            },
        }
    }

    pub(super) fn broken(&self, call: Call, answer: &str) -> KubeError {
        broken(call, &self.access.url, answer)
    }
}

impl Events {
    /// Waits for the next event; `None` at the regular end of the watch. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<WatchEvent>, KubeError> {
        let call = Call::WatchNodes;
        loop {
            match take(&mut self.buffer) {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(problem) => return Err(broken(call, &self.server, problem)),
            }
            match self.body.frame().await {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(broken(call, &self.server, "the answer broke off")),
                Some(Err(error)) => return Err(broken(call, &self.server, &reason(&error))),
                Some(Ok(frame)) => self.buffer.extend(frame.into_data()),
            }
        }
    }
}

/// Takes the first event, if the whole of it is there: its length in four bytes, then the event.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<WatchEvent>, &'static str> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if length > LARGEST_OBJECT {
        return Err(NO_KUBERNETES);
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    WatchEvent::decode(buffer.split_to(length).freeze()).map(Some).map_err(|_| NO_KUBERNETES)
}

/// Encodes one event as the server does.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn frame(event: &WatchEvent) -> Vec<u8> {
    let bytes = event.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[..], &bytes].concat()
}

/// Writes a text so that it may stand in a path or in a query.
pub(super) fn escape(text: &str) -> String {
    let escaped = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    });
    escaped.collect()
}

const NO_KUBERNETES: &str = "the answer is not that of an API server";

fn authority(access: &Access) -> String {
    let Access { host, port, .. } = access;
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn open(access: &Access) -> io::Result<SendRequest<Full<Bytes>>> {
    let name = (access.host.clone(), access.port);
    let addresses = aside::run("resolver", move || name.to_socket_addrs()).await??;
    let stream = connect(addresses).await?;
    match &access.tls {
        None => shake_hands(stream).await,
        Some(config) => {
            let name = ServerName::try_from(access.server_name.clone()).map_err(io::Error::other)?;
            let connector = TlsConnector::from(Arc::clone(config));
            shake_hands(connector.connect(name, stream).await?).await
        }
    }
}

async fn connect(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match timeout(CONNECT / 3, TcpStream::connect(address)).await.unwrap_or_else(|_| Err(silent())) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                let (idle, interval, retries) = KEEPALIVE;
                let keepalive =
                    TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn shake_hands<S>(stream: S) -> io::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with the sender and the bodies.
    tokio::spawn(connection);
    Ok(sender)
}

/// Reads a body of `most` bytes at most.
async fn read(mut body: Incoming, most: usize) -> Result<Bytes, String> {
    let mut bytes = BytesMut::new();
    loop {
        let frame = match timeout(PATIENCE, body.frame()).await {
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(frame)) => frame.map_err(|error| reason(&error))?,
            Err(_) => return Err("the answer stopped half-way".to_owned()),
        };
        bytes.extend(frame.into_data());
        if bytes.len() > most {
            return Err(format!("the answer has more than {most} bytes"));
        }
    }
}

/// Returns what an error's body says, on one line.
fn message_of(body: &Bytes, status: StatusCode) -> String {
    #[derive(serde::Deserialize)]
    struct Said {
        message: String,
    }
    let said = match messages::decode::<Status>(body.clone()) {
        Some(status) => status.message,
        None => match serde_json::from_slice::<Said>(body) {
            Ok(said) => said.message,
            Err(_) => String::from_utf8_lossy(body).into_owned(),
        },
    };
    let line = one_line(&said);
    if line.is_empty() { status.canonical_reason().unwrap_or("no reason").to_owned() } else { line }
}

/// Returns a server's words as they may stand in the log: on one line, and not long.
pub(super) fn one_line(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut line = String::new();
    for word in text.split_whitespace() {
        let visible = word.chars().filter(|letter| !letter.is_control());
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(visible.take(LONGEST));
        // At least that many characters.
        if line.len() > LONGEST * 4 {
            break;
        }
    }
    line.chars().take(LONGEST).collect()
}

fn broken(call: Call, server: &str, answer: &str) -> KubeError {
    let (server, answer) = (server.to_owned(), answer.to_owned());
    KubeError::Unreachable { tried: call, server, advice: advice(&answer), answer }
}

fn unread(call: Call, answer: &str) -> KubeError {
    let advice = "check the files of the kubeconfig or of the service account";
    KubeError::Unreachable { tried: call, server: "this host".to_owned(), answer: answer.to_owned(), advice }
}

fn silent() -> io::Error {
    io::Error::from_raw_os_error(libc::ETIMEDOUT)
}

/// Returns what to check, by what rustls says of a certificate.
fn advice(answer: &str) -> &'static str {
    match answer {
        answer if answer.contains("not valid yet") || answer.contains("expired") => CLOCK,
        answer if answer.contains("certificate") => CERTIFICATE,
        _ => ELSEWHERE,
    }
}

/// Returns an error with its causes, without repetitions.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = one_line(&error.to_string());
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_one_short_line() {
        assert_eq!(one_line(" a\n b\u{2028}c\u{1b}[31m\r\n"), "a b c[31m");
        for long in ["x".repeat(1 << 20), "\u{fffd} ".repeat(1000), "\u{7}".repeat(1000) + "x"] {
            let line = one_line(&long);
            assert!(line.chars().count() <= 300 && !line.is_empty(), "{line}");
        }
        assert_eq!(one_line(&"x".repeat(301)).len(), 300);
        let said = serde_json::json!({ "message": "no\nWARN forged" }).to_string();
        assert_eq!(message_of(&said.into(), StatusCode::BAD_GATEWAY), "no WARN forged");
        assert_eq!(message_of(&Bytes::new(), StatusCode::BAD_GATEWAY), "Bad Gateway");
        let error = io::Error::other("a certificate for\n".repeat(9999));
        assert!(reason(&error).len() <= 300 && !reason(&error).contains('\n'));
    }
}
