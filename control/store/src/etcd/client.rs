//! Calls to etcd: one connection at a time, to whichever endpoint answers.
//!
//! A call that an endpoint does not answer goes to the next endpoint. The first endpoint may have carried it
//! out all the same, so every call that writes must be safe to repeat.
//!
//! An endpoint that is slow is not one that is dead: each call without an answer makes the next one wait
//! longer, and the connection stays. Pings find the connections that are dead.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::config::{Config, Targets};
use super::error::EtcdError;
use super::keys::Keys;
use super::messages::{
    AuthenticateRequest, AuthenticateResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use super::resolver::connector;
use crate::aside::Single;
use crate::regular;

/// Time limit of a call, divided among the endpoints, and the least share of an endpoint. It doubles with
/// each call that gets no answer, up to the longest one, and is what it was after an answer that came in
/// time.
const PATIENCE: Duration = Duration::from_secs(5);
const LEAST_PATIENCE: Duration = Duration::from_secs(2);
const LONGEST_PATIENCE: Duration = Duration::from_secs(60);
/// Time between two pings, which detect a server that vanished silently. etcd closes connections that ping
/// more often than every 5 s.
const PING: Duration = Duration::from_secs(10);
/// Largest response: more than a page of the largest values that etcd takes by default (1.5 MiB each).
const LARGEST_ANSWER: usize = 256 << 20;

const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// A handle to a cluster. Clones share the connection.
#[derive(Debug, Clone)]
pub(super) struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    targets: Targets,
    keys: Keys,
    link: Mutex<Link>,
}

/// The connections.
#[derive(Debug, Default)]
struct Link {
    /// Index of the endpoint in use.
    endpoint: usize,
    /// One for each endpoint.
    connections: Vec<Connection>,
    /// Calls without an answer in time, since the last one in time.
    delays: u32,
    /// Number of changes of what is in use: of several calls that fail together, one makes the change.
    generation: u64,
    /// The TLS files being read, for the endpoint of this index. They are read once at a time, since a
    /// filesystem that hangs keeps the thread.
    opening: Single<(usize, Result<Endpoint, EtcdError>)>,
}

/// The connection to one endpoint.
#[derive(Debug, Default)]
struct Connection {
    channel: Option<Channel>,
    token: Token,
}

#[derive(Debug, Clone, Default)]
enum Token {
    #[default]
    Unknown,
    /// No token needed: no user is given, etcd's authentication is off, or our certificate identifies us.
    None,
    Some(MetadataValue<Ascii>),
}

/// A connection, ready for one call.
#[derive(Clone)]
struct Line {
    channel: Channel,
    token: Token,
    generation: u64,
    endpoint: usize,
}

/// Why a call failed, by what to do next.
enum Failure {
    /// The endpoint does not work now: go to the next one.
    Unreachable(String),
    /// No answer in time: go to the next one, and wait longer.
    Slow,
    /// Our own options are unusable: nothing to try.
    Unusable(EtcdError),
    /// The token is invalid or missing: get a new one.
    Token(Status),
    /// An answer: return it.
    Refused(Status),
}

impl Client {
    /// Checks the endpoints. The first call connects; each connection reads the TLS files again.
    pub(super) fn new(config: Config) -> Result<Client, EtcdError> {
        let targets = config.targets()?;
        targets.complaints.iter().for_each(|complaint| tracing::warn!("{complaint}"));
        let keys = Keys::new(&config.prefix);
        let connections = targets.addresses.iter().map(|_| Connection::default()).collect();
        let link = Mutex::new(Link { connections, ..Link::default() });
        Ok(Client { shared: Arc::new(Shared { config, targets, keys, link }) })
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    /// Returns how long a call waits after this many calls without an answer in time.
    #[cfg(test)]
    pub(super) fn patience(&self, delays: u32) -> Duration {
        self.shared.patience(delays)
    }

    /// Sends one request and returns its answer.
    pub(super) async fn call<Q, A>(
        &self,
        tried: &'static str,
        method: &'static str,
        request: &Q,
    ) -> Result<A, EtcdError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.attempt(tried, |line| send(line, method, request.clone())).await
    }

    /// Opens a watch that ends when its server loses the cluster's leader. Returns after the first response.
    pub(super) async fn watch(
        &self,
        tried: &'static str,
        request: WatchCreateRequest,
    ) -> Result<Streaming<WatchResponse>, EtcdError> {
        self.attempt(tried, |line| open(line, request.clone())).await
    }

    /// Drops the token, so that the next connection asks for a new one: etcd rejects a watch without the
    /// reason.
    pub(super) async fn forget_token(&self) {
        let mut link = self.shared.link.lock().await;
        link.connection().token = Token::Unknown;
    }

    /// Returns the endpoint in use, as given.
    pub(super) async fn endpoint(&self) -> String {
        let endpoint = self.shared.link.lock().await.endpoint;
        self.shared.address(endpoint)
    }

    /// Tries every endpoint once, and one of them again for a connection that has died unnoticed.
    async fn attempt<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        tried: &'static str,
        step: impl Fn(Line) -> F,
    ) -> Result<T, EtcdError> {
        let shared = &*self.shared;
        let mut failure = None;
        let mut token_renewed = false;
        let count = shared.targets.addresses.len();
        for round in 0..=count {
            let (mut endpoint, patience) = shared.in_use().await;
            let mut generation = None;
            let began = Instant::now();
            let outcome = timeout(patience, async {
                let line = shared.line(patience).await?;
                (endpoint, generation) = (line.endpoint, Some(line.generation));
                step(line).await
            });
            match outcome.await.unwrap_or(Err(Failure::Slow)) {
                Ok(answer) => {
                    shared.answered(began.elapsed()).await;
                    return Ok(answer);
                }
                Err(Failure::Token(_)) if !token_renewed && shared.config.user().is_some() => {
                    token_renewed = true;
                    shared.renew_token(generation).await;
                }
                Err(Failure::Token(status) | Failure::Refused(status)) => {
                    return Err(shared.refusal(tried, endpoint, &status));
                }
                Err(Failure::Unusable(error)) => return Err(error),
                Err(Failure::Unreachable(answer)) => {
                    shared.next_endpoint(endpoint, generation, false).await;
                    failure = Some((endpoint, answer));
                }
                Err(Failure::Slow) => {
                    failure = Some((endpoint, shared.delay().await.into()));
                    shared.next_endpoint(endpoint, generation, true).await;
                    // Another attempt at once would only add to the load.
                    if round + 1 >= count {
                        break;
                    }
                }
            }
        }
        let (endpoint, answer) = failure.unwrap_or((0, "it rejected every new token".into()));
        Err(EtcdError::Unreachable { tried, endpoint: shared.address(endpoint), answer })
    }
}

impl Link {
    /// Returns the connection in use.
    fn connection(&mut self) -> &mut Connection {
        // The endpoint is an index of it; an empty list cannot be, since there is no client without
        // endpoints.
        let endpoint = self.endpoint;
        if self.connections.len() <= endpoint {
            self.connections.resize_with(endpoint + 1, Connection::default);
        }
        &mut self.connections[endpoint]
    }
}

impl Shared {
    /// Returns the endpoint in use, and how long to wait for it.
    async fn in_use(&self) -> (usize, Duration) {
        let link = self.link.lock().await;
        (link.endpoint, self.patience(link.delays))
    }

    fn patience(&self, delays: u32) -> Duration {
        (self.share() * (1 << delays.min(16))).min(LONGEST_PATIENCE)
    }

    /// Returns an endpoint's share of the time limit.
    fn share(&self) -> Duration {
        (PATIENCE / u32::try_from(self.targets.addresses.len()).unwrap_or(u32::MAX)).max(LEAST_PATIENCE)
    }

    /// Takes in how long an answer took. One that nearly came too late leaves the patience as it is.
    async fn answered(&self, took: Duration) {
        if took < self.share() / 2 {
            self.link.lock().await.delays = 0;
        }
    }

    /// Returns a connection with a token, both made if they do not exist yet.
    async fn line(&self, patience: Duration) -> Result<Line, Failure> {
        let mut link = self.link.lock().await;
        let (endpoint, generation) = (link.endpoint, link.generation);
        let channel = match &link.connection().channel {
            Some(channel) => channel.clone(),
            None => {
                let address = self.open(&link.opening, endpoint).await?;
                let channel = address
                    .connect_timeout(patience)
                    .http2_keep_alive_interval(PING)
                    .keep_alive_timeout(patience.max(PATIENCE))
                    .keep_alive_while_idle(true)
                    .connect_with_connector(connector(patience))
                    .await
                    .map_err(|error| Failure::Unreachable(reason(&error)))?;
                link.connection().channel.insert(channel).clone()
            }
        };
        let mut line = Line { channel, token: Token::None, generation, endpoint };
        let connection = link.connection();
        if let Token::Unknown = connection.token {
            connection.token = match self.config.user() {
                None => Token::None,
                Some((name, password)) => {
                    authenticate(line.clone(), name.to_owned(), password.reveal().to_owned()).await?
                }
            };
        }
        line.token = connection.token.clone();
        Ok(line)
    }

    async fn renew_token(&self, generation: Option<u64>) {
        let mut link = self.link.lock().await;
        if Some(link.generation) == generation {
            link.connection().token = Token::Unknown;
            link.generation += 1;
        }
    }

    /// Leaves an endpoint, unless another call has left it already. The connection to a slow one stays.
    async fn next_endpoint(&self, endpoint: usize, generation: Option<u64>, slow: bool) {
        let mut link = self.link.lock().await;
        if link.endpoint == endpoint && generation.is_none_or(|generation| generation == link.generation) {
            if slow {
                link.delays = link.delays.saturating_add(1);
            } else {
                *link.connection() = Connection::default();
            }
            link.endpoint = (endpoint + 1) % self.targets.addresses.len();
            link.generation += 1;
        }
    }

    fn address(&self, endpoint: usize) -> String {
        self.targets.addresses.get(endpoint).cloned().unwrap_or_default()
    }

    /// Makes an endpoint, on a thread of its own where that takes files.
    async fn open(
        &self,
        opening: &Single<(usize, Result<Endpoint, EtcdError>)>,
        endpoint: usize,
    ) -> Result<Endpoint, Failure> {
        let address = self.address(endpoint);
        if !self.targets.tls {
            return plain(&address).map_err(Failure::Unusable);
        }
        let failed = |error: io::Error| Failure::Unreachable(format!("cannot read the TLS files: {error}"));
        loop {
            let (address, config) = (address.clone(), self.config.clone());
            let work = move || (endpoint, secured(&address, &config));
            let (index, opened) = opening.run("etcd-files", work).await.map_err(failed)?;
            if index == endpoint {
                return opened.map_err(Failure::Unusable);
            }
        }
    }

    /// Says why a call has not got its answer in time.
    async fn delay(&self) -> &'static str {
        if self.link.lock().await.opening.is_under_way() {
            "the filesystem of the TLS files does not answer"
        } else {
            "no answer in time"
        }
    }

    fn refusal(&self, tried: &'static str, endpoint: usize, status: &Status) -> EtcdError {
        let (endpoint, answer) = (self.address(endpoint), one_line(status.message()));
        let lossy = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        match status.code() {
            Code::OutOfRange if answer.contains("compacted") => EtcdError::Compacted { tried },
            Code::OutOfRange if answer.contains("future revision") => EtcdError::Future { tried },
            Code::FailedPrecondition if answer.contains("lease already exists") => {
                EtcdError::Granted { tried }
            }
            Code::PermissionDenied | Code::Unauthenticated => {
                let (config, leases) = (lossy(self.keys.config()), lossy(self.keys.leases()));
                EtcdError::Denied { tried, endpoint, answer, config, leases }
            }
            // etcd gives this answer to a wrong password and to a missing one.
            Code::InvalidArgument
                if answer.contains("authentication failed") || answer.contains("user name") =>
            {
                let (config, leases) = (lossy(self.keys.config()), lossy(self.keys.leases()));
                EtcdError::Denied { tried, endpoint, answer, config, leases }
            }
            _ => EtcdError::Refused { tried, endpoint, answer },
        }
    }
}

async fn authenticate(line: Line, name: String, password: String) -> Result<Token, Failure> {
    match send(line, AUTHENTICATE, AuthenticateRequest { name, password }).await {
        Ok(AuthenticateResponse { token }) => match token.parse::<MetadataValue<Ascii>>() {
            Ok(mut token) => {
                token.set_sensitive(true);
                Ok(Token::Some(token))
            }
            Err(_) => Err(Failure::Refused(Status::internal("its token is not text"))),
        },
        Err(Failure::Refused(status)) if status.message().contains("authentication is not enabled") => {
            Ok(Token::None)
        }
        // A new token would not help.
        Err(Failure::Token(status)) => Err(Failure::Refused(status)),
        Err(failure) => Err(failure),
    }
}

async fn send<Q, A>(line: Line, method: &'static str, request: Q) -> Result<A, Failure>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut grpc = ready(&line).await?;
    let codec = ProstCodec::<Q, A>::default();
    let request = signed(&line, Request::new(request));
    let answer = grpc.unary(request, PathAndQuery::from_static(method), codec).await;
    answer.map(tonic::Response::into_inner).map_err(classify)
}

async fn open(line: Line, create: WatchCreateRequest) -> Result<Streaming<WatchResponse>, Failure> {
    let mut grpc = ready(&line).await?;
    // Keep the stream of requests open: its end would end the watch.
    let requests = stream::iter([WatchRequest { create_request: Some(create) }]).chain(stream::pending());
    let mut request = signed(&line, Request::new(requests));
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
    let answer = grpc.streaming(request, PathAndQuery::from_static(WATCH), codec).await;
    answer.map(tonic::Response::into_inner).map_err(classify)
}

async fn ready(line: &Line) -> Result<Grpc<Channel>, Failure> {
    let mut grpc = Grpc::new(line.channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
    grpc.ready().await.map_err(|error| Failure::Unreachable(reason(&error)))?;
    Ok(grpc)
}

fn signed<T>(line: &Line, mut request: Request<T>) -> Request<T> {
    if let Token::Some(token) = &line.token {
        request.metadata_mut().insert("token", token.clone());
    }
    request
}

fn classify(status: Status) -> Failure {
    let message = status.message();
    // The second: users or roles were changed. The third: authentication was turned on under us.
    let token = ["invalid auth token", "revision of auth store is old", "user name is empty"];
    if token.iter().any(|text| message.contains(text)) {
        return Failure::Token(status);
    }
    let passing = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled);
    if passing || status.source().is_some() {
        return Failure::Unreachable(explain(&status));
    }
    Failure::Refused(status)
}

/// Returns the message of a status with its causes.
pub(super) fn explain(status: &Status) -> String {
    match status.source() {
        Some(source) => reason(source),
        None => one_line(status.message()),
    }
}

/// Returns the chain of an error's causes without the repetitions that transports put on top.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        let text = one_line(&error.to_string());
        if let Some(last) = texts.last_mut()
            && (last.contains(&text) || text.contains(last.as_str()))
        {
            if text.len() > last.len() {
                *last = text;
            }
        } else if text != "transport error" {
            texts.push(text);
        }
    }
    if texts.is_empty() { error.to_string() } else { texts.join(": ") }
}

fn plain(address: &str) -> Result<Endpoint, EtcdError> {
    Endpoint::from_shared(address.to_owned()).map_err(|error| EtcdError::Option {
        option: "--etcd-endpoints",
        value: address.to_owned(),
        problem: reason(&error),
    })
}

/// Makes an endpoint with TLS. Reads our files, or the system's certificate authorities.
fn secured(address: &str, config: &Config) -> Result<Endpoint, EtcdError> {
    let tls = match config.authority_file() {
        Some(path) => {
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("--etcd-cafile", path)?))
        }
        None => ClientTlsConfig::new().with_native_roots(),
    };
    let tls = match config.identity_files() {
        Some((certificate, key)) => {
            let certificate = read("--etcd-certfile", certificate)?;
            tls.identity(Identity::from_pem(certificate, read("--etcd-keyfile", key)?))
        }
        None => tls,
    };
    plain(address)?.tls_config(tls).map_err(|error| {
        let files = [&config.ca_file, &config.cert_file, &config.key_file];
        let names: Vec<String> = files.into_iter().flatten().map(|path| path.display().to_string()).collect();
        EtcdError::Option {
            option: "--etcd-cafile, --etcd-certfile, --etcd-keyfile",
            value: names.join(", "),
            problem: format!("{}; each must be PEM, and the key the certificate's", reason(&error)),
        }
    })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn read(option: &'static str, path: &std::path::Path) -> Result<Vec<u8>, EtcdError> {
    regular::read(path, regular::USUAL).map_err(|error| EtcdError::Option {
        option,
        value: path.display().to_string(),
        problem: format!("cannot read it: {error}"),
    })
}
