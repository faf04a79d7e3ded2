//! Names of etcd's endpoints: the static program brings a resolver of its own, which must find what the
//! system's finds.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use lab::Wiring;
use nix::sys::signal::Signal;

use crate::Release;
use crate::common::{self, Cluster, VXLAN, await_until};

const A: u16 = 1;
const CNAME: u16 = 5;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A name, the system's settings under which it is looked up, and where the program must connect to.
const CASES: [(&str, &str, IpAddr); 7] = [
    ("plain.example", "nameserver 127.0.0.1\n", V4),
    ("six.example", "nameserver 127.0.0.1\n", V6),
    // A host with IPv6 alone.
    ("six.example", "nameserver ::1\n", V6),
    // As kubelet writes it into pods.
    (
        "etcd.infra",
        "search default.svc.cluster.test svc.cluster.test cluster.test\nnameserver 127.0.0.1\noptions ndots:5\n",
        V4,
    ),
    ("alias.example", "nameserver 127.0.0.1\n", V4),
    // Too large for UDP.
    ("large.example", "nameserver 127.0.0.1\n", V4),
    // The first server does not answer.
    ("plain.example", "nameserver 127.0.0.2\nnameserver 127.0.0.1\noptions timeout:1\n", V4),
];

#[test]
fn the_static_program_resolves_as_the_systems_library_does() {
    let Some(release) = Release::find(common::needs(&["unshare", "mount"])) else { return };
    let cluster = Cluster::build("rel-names", 1, Wiring::Switch, VXLAN);
    let namespace = cluster.host(1).namespace();
    namespace.run(serve).expect("the host");
    let _silent = namespace.run(|| UdpSocket::bind("127.0.0.2:53")).expect("the host").expect("a socket");
    let settings = cluster.file("resolv.conf");
    let ours = release.program(std::env::consts::ARCH, "loden");
    for program in [ours.as_path(), env!("CARGO_BIN_EXE_loden").as_ref()] {
        for (name, text, expected) in CASES {
            let listener = namespace.run(|| TcpListener::bind((expected, 0))).expect("the host");
            let listener = listener.expect("a listener");
            listener.set_nonblocking(true).expect("a listener");
            let port = listener.local_addr().expect("an address").port();
            std::fs::write(&settings, text).expect("a file");
            let usual = cluster.etcd_command(1, &format!("http://{name}:{port}"));
            let mut command = Command::new("unshare");
            let line = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", settings.display());
            command.args(["-m", "sh", "-c", &line, "sh"]).arg(program).args(usual.get_args());
            let mut daemon = cluster.spawn(1, command.stdout(Stdio::null()));
            let what = format!("{} connects to {name}", program.display());
            await_until(&what, || listener.accept().is_ok());
            daemon.end(Signal::SIGTERM);
        }
    }
}

/// Serves names in the namespace of the thread, on both loopback addresses.
fn serve() {
    for address in [V4, V6] {
        let udp = UdpSocket::bind((address, 53)).expect("port 53");
        let tcp = TcpListener::bind((address, 53)).expect("port 53");
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&answer(&buffer[..length], false), from);
            }
        });
        let tcp = Arc::new(tcp);
        thread::spawn(move || {
            while let Ok((stream, _)) = tcp.accept() {
                let _ = over_tcp(stream);
            }
        });
    }
}

fn over_tcp(mut stream: TcpStream) -> std::io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut query)?;
    let answer = answer(&query, true);
    stream.write_all(&(answer.len() as u16).to_be_bytes())?;
    stream.write_all(&answer)
}

/// Answers one question (RFC 1035 section 4.1).
fn answer(query: &[u8], over_tcp: bool) -> Vec<u8> {
    let mut name = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        name.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
        at = end;
    }
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let question = &query[12..at + 5];
    let record = |kind: u16, data: &[u8]| {
        // The name is the question's; an hour.
        let mut record = vec![0xc0, 12];
        record.extend(kind.to_be_bytes());
        record.extend([0, 1, 0, 0, 14, 16]);
        record.extend((data.len() as u16).to_be_bytes());
        record.extend(data);
        record
    };
    let here = || record(A, &[127, 0, 0, 1]);
    let name = name.join(".");
    let is_large = name == "large.example";
    let (known, answers) = match (name.as_str(), kind) {
        ("plain.example" | "etcd.infra.svc.cluster.test", A) => (true, vec![here()]),
        ("six.example", AAAA) => (true, vec![record(AAAA, &Ipv6Addr::LOCALHOST.octets())]),
        ("alias.example", A) => {
            let target = b"\x05plain\x07example\x00";
            let mut address = target.to_vec();
            address.extend(&here()[2..]);
            (true, vec![record(CNAME, target), address])
        }
        ("large.example", A) if over_tcp => (true, (0..40).map(|_| here()).collect()),
        ("plain.example" | "six.example" | "alias.example" | "large.example", _) => (true, vec![]),
        ("etcd.infra.svc.cluster.test", _) => (true, vec![]),
        _ => (false, vec![]),
    };
    let texts = if is_large && over_tcp { 30 } else { 0 };
    let is_cut = is_large && kind == A && !over_tcp;
    let mut message = query[..2].to_vec();
    // A response with recursion; cut; no such name.
    message.extend([0x81 | u8::from(is_cut) << 1, 0x80 | if known { 0 } else { 3 }]);
    for count in [1, answers.len() as u16, 0, texts] {
        message.extend(count.to_be_bytes());
    }
    message.extend(question);
    message.extend(answers.concat());
    for _ in 0..texts {
        let text = [vec![250], vec![b'x'; 250]].concat();
        message.extend(record(TXT, &text));
    }
    message
}
