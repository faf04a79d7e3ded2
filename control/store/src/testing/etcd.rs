//! A real etcd for tests, on a loopback address of its own or in a namespace of the test. Dropping the value
//! ends it.

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longest time for any step; more means failure.
const LIMIT: Duration = Duration::from_secs(60);

/// An etcd, running or killed.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    directory: TempDir,
    address: Ipv4Addr,
    port: u16,
    security: Security,
    /// The words before each command that make it run where the server is.
    inside: Vec<String>,
    /// User and password for `etcdctl`.
    user: Option<String>,
}

/// Who may connect to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Everybody.
    None,
    /// Everybody, over TLS.
    Tls,
    /// Clients with a certificate of the same authority.
    ClientCertificate,
}

/// Returns whether a test with etcd can run. Prints what is missing; in CI a missing program is a failure.
pub fn ready() -> bool {
    let programs = ["etcd", "etcdctl", "openssl", "setpriv"];
    let paths: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let is_there = |program: &str| paths.iter().any(|path| path.join(program).is_file());
    let missing: Vec<&str> = programs.into_iter().filter(|program| !is_there(program)).collect();
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    assert!(std::env::var_os("CI").is_none(), "this test needs {missing}");
    eprintln!("skipped: this test needs {missing} (apt-get install etcd-server etcd-client openssl)");
    false
}

impl Server {
    /// Starts an empty server and waits until it answers.
    pub fn start(security: Security) -> Server {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        // An address for this process, a pair of ports for each server in it: no two can collide.
        let [_, high, middle, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 64 | (high & 0x3f), middle, low);
        let port = 2379 + 10 * COUNT.fetch_add(1, Ordering::Relaxed);
        Server::start_at_place(security, address, port, Vec::new())
    }

    /// Starts an empty server in the network namespace of this path, on `address`.
    pub fn start_in(security: Security, namespace: &Path, address: Ipv4Addr) -> Server {
        let inside = vec!["nsenter".to_owned(), format!("--net={}", namespace.display())];
        Server::start_at_place(security, address, 2379, inside)
    }

    fn start_at_place(security: Security, address: Ipv4Addr, port: u16, inside: Vec<String>) -> Server {
        // In memory if possible: etcd syncs each write.
        let directory = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        if security != Security::None {
            make_certificates(directory.path(), address);
        }
        let mut server = Server { child: None, directory, address, port, security, inside, user: None };
        server.restart();
        server
    }

    /// Returns the URL of the server.
    pub fn endpoint(&self) -> String {
        self.url(self.port)
    }

    /// Returns the path of a file made for the server: `ca.pem`, `client.pem`, `client.key`, `stranger.pem`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Makes the server hang: it keeps its connections and answers nothing until [`Server::resume`].
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Starts the server again with what it had stored.
    pub fn restart(&mut self) {
        self.start_at(self.port);
    }

    /// Ends the server and starts it again with nothing stored.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.file("data")).unwrap();
        self.restart();
    }

    /// Copies what is stored.
    pub fn backup(&mut self) -> TempDir {
        let copy = TempDir::new().unwrap();
        let target = copy.path().join("data");
        self.kill();
        copy_tree(&self.file("data"), &target);
        self.restart();
        copy
    }

    /// Ends the server and starts it again with what was stored at the time of a backup.
    pub fn restore(&mut self, backup: &Path) {
        self.kill();
        std::fs::remove_dir_all(self.file("data")).unwrap();
        copy_tree(&backup.join("data"), &self.file("data"));
        self.restart();
    }

    /// Restores a backup like [`Server::restore`], with `step` before clients of the usual port see it.
    pub fn restore_aside(&mut self, backup: &Path, step: impl FnOnce(&Server)) {
        self.kill();
        std::fs::remove_dir_all(self.file("data")).unwrap();
        copy_tree(&backup.join("data"), &self.file("data"));
        self.aside(step);
    }

    /// Moves the server to another port while `step` runs, so that clients of the usual one do not see it.
    pub fn aside(&mut self, step: impl FnOnce(&Server)) {
        let port = self.port;
        self.port += 5;
        self.start_at(self.port);
        step(self);
        self.port = port;
        self.start_at(port);
    }

    /// Runs `etcdctl`, which must succeed, and returns its output.
    pub fn etcdctl(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).output().unwrap();
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "etcdctl {arguments:?}: {out} {error}");
        out.into_owned()
    }

    /// Puts the content of a file, which may be longer than a command line.
    pub fn put_file(&self, key: &str, value: &Path) {
        let input = std::fs::File::open(value).unwrap();
        let output = self.command().args(["put", key]).stdin(input).output().unwrap();
        assert!(output.status.success(), "put {key}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Creates users `root` and `flannel`, each with its own name as password, and turns on authentication.
    /// `flannel` may use only the network below `prefix`.
    pub fn enable_users(&mut self, prefix: &str) {
        let config = format!("{prefix}/config");
        let subnets = format!("{prefix}/subnets");
        self.etcdctl(&["user", "add", "root:root"]);
        self.etcdctl(&["user", "grant-role", "root", "root"]);
        self.etcdctl(&["role", "add", "node"]);
        self.etcdctl(&["role", "grant-permission", "node", "readwrite", &config]);
        self.etcdctl(&["role", "grant-permission", "--prefix=true", "node", "readwrite", &subnets]);
        self.etcdctl(&["user", "add", "flannel:flannel"]);
        self.etcdctl(&["user", "grant-role", "flannel", "node"]);
        self.etcdctl(&["auth", "enable"]);
        self.user = Some("root:root".to_owned());
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a running server");
        nix::sys::signal::kill(Pid::from_raw(child.id() as i32), signal).expect("a signal");
    }

    fn url(&self, port: u16) -> String {
        let scheme = if self.security == Security::None { "http" } else { "https" };
        format!("{scheme}://{}:{port}", self.address)
    }

    fn command(&self) -> Command {
        let mut command = self.program("etcdctl");
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(self.endpoint());
        // The default limit for a login is 2 s, which a busy machine can exceed.
        let patience = format!("{}s", LIMIT.as_secs());
        command.args(["--dial-timeout", &patience, "--command-timeout", &patience]);
        command.args(self.user.iter().flat_map(|user| ["--user", user.as_str()]));
        if self.security != Security::None {
            command.arg("--cacert").arg(self.file("ca.pem"));
            command.arg("--cert").arg(self.file("client.pem")).arg("--key").arg(self.file("client.key"));
        }
        command
    }

    /// Returns a command for `program` where the server is.
    fn program(&self, program: &str) -> Command {
        let mut words = self.inside.iter().map(String::as_str).chain([program]);
        let mut command = Command::new(words.next().unwrap_or(program));
        command.args(words);
        command
    }

    fn listens(&self) -> bool {
        if self.inside.is_empty() {
            return TcpStream::connect(SocketAddrV4::new(self.address, self.port)).is_ok();
        }
        let knock = format!("</dev/tcp/{}/{}", self.address, self.port);
        let mut command = self.program("bash");
        command.args(["-c", &knock]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Returns true once the server has become leader: it listens before that and rejects requests.
    fn answers(&self) -> bool {
        self.command().args(["get", "anything"]).output().is_ok_and(|output| output.status.success())
    }

    fn start_at(&mut self, port: u16) {
        self.kill();
        let (client, peer) = (self.url(port), format!("http://{}:{}", self.address, self.port_of_peers()));
        let mut command = self.program("setpriv");
        // Ends with the test.
        command.args(["--pdeathsig", "KILL", "etcd", "--name", "test", "--log-level", "error"]);
        command.args(["--initial-cluster", &format!("test={peer}"), "--initial-advertise-peer-urls", &peer]);
        command.args(["--listen-peer-urls", &peer]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        // A single member need not wait for others before it leads.
        command.args(["--heartbeat-interval", "20", "--election-timeout", "200"]);
        command.arg("--data-dir").arg(self.file("data"));
        if self.security != Security::None {
            command.arg("--cert-file").arg(self.file("server.pem"));
            command.arg("--key-file").arg(self.file("server.key"));
        }
        if self.security == Security::ClientCertificate {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(self.file("ca.pem"));
        }
        let log = std::fs::File::create(self.file("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + LIMIT;
        while !(self.listens() && self.answers()) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            let log = || std::fs::read_to_string(self.file("log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "etcd does not come up: {}", log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn port_of_peers(&self) -> u16 {
        // The tens are the server's own.
        2379 + (self.port - 2379) / 10 * 10 + 1
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp -a {}", from.display());
}

/// Creates an authority with certificates for a server at `address` and a client, and an unknown authority.
pub(crate) fn make_certificates(directory: &Path, address: Ipv4Addr) {
    let openssl = |arguments: &str| {
        let output =
            Command::new("openssl").current_dir(directory).args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for authority in ["ca", "stranger"] {
        openssl(&format!(
            "req -x509 {KEY} -keyout {authority}.key -out {authority}.pem -subj /CN={authority} -days 30"
        ));
    }
    for (name, extension) in
        [("server", format!("subjectAltName=IP:{address}")), ("client", "basicConstraints=CA:FALSE".into())]
    {
        std::fs::write(directory.join("extension"), extension).unwrap();
        openssl(&format!("req {KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 30 \
             -extfile extension"
        ));
    }
}
