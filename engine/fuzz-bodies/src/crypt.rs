//! Target for the workers of a WireGuard tunnel under the keeper's updates in any order.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use engine::testing::{Sealed, Update};
use io::memory::Datagram;
use path::wireguard::session::{Keys, OVERHEAD};
use path::wireguard::{Session, SessionIndex};
use path::{Fib, FibBuilder, Format, PeerId, PeerSpec, Sources};
use wire::wireguard::{HEADER_LEN, PADDING};
use wire::{ipv4, virtio};

use crate::input::Input;
use crate::wireguard::OURS;

const MTU: u16 = 1420;
const WORKERS: u32 = 2;
const PEERS: u32 = 4;
/// Maximum operations of one input.
const OPERATIONS: usize = 512;
/// Memory for waiting packets and for strays: a few packets of full size.
const BUDGETS: (usize, usize) = (8_000, 4_000);
/// A protocol of no transport, whose packets are not joined.
const PROTOCOL: u8 = 253;

/// Runs two workers of a tunnel through a series of operations: mail from the keeper, packets from pods,
/// genuine, repeated and forged records at any worker from any address, and time.
///
/// Nothing may panic. A pod's packet is sent at most once, with a session of its peer, after the packets
/// that came before it; a counter seals one record; a record is delivered at most once. In the end each
/// packet has been sent or counted as dropped, and no memory is kept.
pub fn crypt(data: &[u8]) {
    let mut input = Input(data);
    let mut model = Model::new();
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        model.step(&mut input);
    }
    model.finish();
}

/// A session and the peer's end of it.
struct Pair {
    ours: Arc<Session>,
    theirs: Session,
    peer: PeerId,
    /// The workers that were told to forget it. A keeper does not publish it there again.
    forgotten: HashSet<usize>,
    /// The counters of this node's records.
    used: HashSet<u64>,
    /// The counters of the peer's records that were delivered.
    delivered: HashSet<u64>,
}

struct Model {
    tunnel: Sealed,
    sessions: Vec<Pair>,
    /// The peer of each packet from a pod, by its number.
    packets: Vec<PeerId>,
    sent: HashSet<u16>,
    /// The last packet that each worker has sent to each peer.
    last: HashMap<(usize, PeerId), u16>,
}

impl Model {
    fn new() -> Model {
        let tunnel = Sealed::new(WORKERS, &OURS.public(), &table(), MTU, BUDGETS);
        Model {
            tunnel: tunnel.unwrap_or_else(|error| panic!("{error}")),
            sessions: Vec::new(),
            packets: Vec::new(),
            sent: HashSet::new(),
            last: HashMap::new(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let operation = input.byte();
        let worker = usize::from(operation >> 4) % WORKERS as usize;
        let peer = PeerId(u32::from(operation >> 5) % PEERS);
        match operation & 15 {
            0 => self.tunnel.mail(worker, Update::Peer(peer, endpoint(input))),
            1 => self.remove(worker, peer),
            2 => self.add_session(peer, input.byte()),
            3 | 4 => self.publish(worker, input),
            5 => self.forget(worker, input),
            6 => self.tunnel.mail(worker, Update::GiveUp(peer)),
            7 | 8 => self.send(worker, peer, input),
            9 | 10 => self.receive(worker, input),
            11 => {
                let len = input.below(200);
                let bytes = (0..len).map(|_| input.byte()).collect();
                self.inject(worker, input, bytes);
            }
            12 => self.tunnel.advance(1 << input.below(18)),
            13 => self.tunnel.take_reports(),
            _ => self.turn(worker),
        }
    }

    fn remove(&mut self, worker: usize, peer: PeerId) {
        self.tunnel.mail(worker, Update::Gone(peer));
        for pair in self.sessions.iter_mut().filter(|pair| pair.peer == peer) {
            pair.forgotten.insert(worker);
        }
    }

    fn add_session(&mut self, peer: PeerId, flags: u8) {
        let number = self.sessions.len() as u32;
        let (local, remote) = (SessionIndex(number + 1), SessionIndex(number + 1000));
        let keys = |send, receive| Keys { send: [send; 32], receive: [receive; 32] };
        // Two sessions with the same keys would open each other's records.
        let key = number as u8;
        let born = self.tunnel.now();
        let ours = Session::new(peer, (local, remote), &keys(key, !key), flags & 1 == 0, born);
        let theirs = Session::new(peer, (remote, local), &keys(!key, key), flags & 1 != 0, born);
        if self.sessions.len() < 64 {
            self.sessions.push(Pair {
                ours: Arc::new(ours),
                theirs,
                peer,
                forgotten: HashSet::new(),
                used: HashSet::new(),
                delivered: HashSet::new(),
            });
        }
    }

    fn session(&mut self, input: &mut Input<'_>) -> Option<&mut Pair> {
        let count = self.sessions.len();
        // The newest ones first.
        let index = count.checked_sub(1 + input.below(count.max(1)))?;
        self.sessions.get_mut(index)
    }

    fn publish(&mut self, worker: usize, input: &mut Input<'_>) {
        let send = input.byte() & 1 == 0;
        if let Some(pair) = self.session(input).filter(|pair| !pair.forgotten.contains(&worker)) {
            let session = Arc::clone(&pair.ours);
            self.tunnel.mail(worker, Update::Session(session, send));
        }
    }

    fn forget(&mut self, worker: usize, input: &mut Input<'_>) {
        if let Some(pair) = self.session(input) {
            pair.forgotten.insert(worker);
            let index = pair.ours.local;
            self.tunnel.mail(worker, Update::Forget(index));
        }
    }

    fn send(&mut self, worker: usize, peer: PeerId, input: &mut Input<'_>) {
        for _ in 0..=input.below(4) {
            let len = ipv4::MIN_HEADER_LEN as u16 + input.word() % (MTU - ipv4::MIN_HEADER_LEN as u16 + 1);
            let mut packet = vec![0; virtio::HEADER_LEN];
            packet.extend(build(pod(0), pod(peer.0 + 1), self.packets.len() as u16, len));
            self.tunnel.workers[worker].pods.inject(&packet);
            self.packets.push(peer);
        }
        if input.rarely() {
            return;
        }
        self.turn(worker);
    }

    /// Makes a record of the peer's arrive, perhaps damaged, perhaps for the second time.
    fn receive(&mut self, worker: usize, input: &mut Input<'_>) {
        let (counter, len) = (u64::from(input.byte()), input.word() % (MTU + 1));
        let keepalive = len < ipv4::MIN_HEADER_LEN as u16;
        let Some(pair) = self.session(input) else { return };
        // The session and the counter, for recognising the packet.
        let id = (pair.ours.local.0 << 8) as u16 | counter as u16;
        let packet = match keepalive {
            true => Vec::new(),
            false => build(pod(pair.peer.0 + 1), pod(0), id, len),
        };
        let mut record = vec![0; OVERHEAD + packet.len().next_multiple_of(PADDING)];
        record[HEADER_LEN..HEADER_LEN + packet.len()].copy_from_slice(&packet);
        let sealed = pair.theirs.seal(&mut record, packet.len(), usize::from(MTU), counter);
        record.truncate(sealed.unwrap_or_default());
        self.inject(worker, input, record);
    }

    fn inject(&mut self, worker: usize, input: &mut Input<'_>, mut bytes: Vec<u8>) {
        if input.rarely() {
            let at = usize::from(input.word());
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= input.byte();
            }
        }
        let from = endpoint(input).unwrap_or(SocketAddr::from(([203, 0, 113, 1], 1)));
        let to = SocketAddr::from(([192, 0, 2, 1], 51820));
        self.tunnel.workers[worker].network.inject(Datagram { from, to, lane: 0, ecn: 0, bytes });
    }

    fn turn(&mut self, worker: usize) {
        let turned = &mut self.tunnel.workers[worker];
        turned.worker.rouse();
        if let Err(error) = turned.worker.turn() {
            panic!("{error}");
        }
        let (records, written) = (turned.network.collect(), turned.pods.collect());
        records.into_iter().for_each(|record| self.check_record(worker, record));
        written.iter().for_each(|packet| self.check_delivery(&packet[virtio::HEADER_LEN..]));
    }

    fn check_record(&mut self, worker: usize, datagram: Datagram) {
        let mut record = datagram.bytes;
        let header = match wire::wireguard::Kind::parse(&record) {
            Ok(wire::wireguard::Kind::Data(header)) => header,
            other => panic!("{other:?}"),
        };
        let pair = self.sessions.iter_mut().find(|pair| pair.ours.remote.0 == header.receiver);
        let pair = pair.unwrap_or_else(|| panic!("a record for nobody"));
        assert!(pair.used.insert(header.counter), "counter {} seals two records", header.counter);
        assert!(pair.theirs.open(&mut record, header.counter).is_some(), "the peer cannot open the record");
        let id = u16::from_be_bytes([record[HEADER_LEN + 4], record[HEADER_LEN + 5]]);
        assert_eq!(self.packets.get(usize::from(id)), Some(&pair.peer), "with another peer's session");
        assert!(self.sent.insert(id), "packet {id} was sent twice");
        let last = self.last.insert((worker, pair.peer), id);
        assert!(last < Some(id), "packet {id} was sent after {last:?}");
    }

    fn check_delivery(&mut self, packet: &[u8]) {
        let header = ipv4::Header::parse(packet).unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(usize::from(header.total_len), packet.len());
        assert_eq!((header.dst, header.protocol), (pod(0), PROTOCOL), "a damaged record was opened");
        let local = SessionIndex(u32::from(header.id >> 8));
        let pair = self.sessions.iter_mut().find(|pair| pair.ours.local == local);
        let pair = pair.unwrap_or_else(|| panic!("a packet of no session"));
        assert_eq!(header.src, pod(pair.peer.0 + 1));
        assert!(pair.delivered.insert(u64::from(header.id & 0xff)), "a record was delivered twice");
    }

    fn finish(&mut self) {
        for worker in 0..WORKERS as usize {
            self.turn(worker);
        }
        for _ in 0..2 {
            self.tunnel.take_reports();
            (0..PEERS).for_each(|peer| {
                (0..WORKERS as usize).for_each(|worker| self.tunnel.mail(worker, Update::Gone(PeerId(peer))));
            });
            (0..WORKERS as usize).for_each(|worker| self.turn(worker));
        }
        let dropped: u64 = (0..WORKERS as usize).map(|worker| self.dropped(worker)).sum();
        let ends = self.sent.len() as u64 + dropped;
        assert_eq!(self.packets.len() as u64, ends, "each packet ends once");
        assert_eq!(self.tunnel.left(), BUDGETS, "something is still kept");
    }

    fn dropped(&self, worker: usize) -> u64 {
        engine::status::names()
            .filter(|name| name.starts_with("egress.drop."))
            .map(|name| self.tunnel.workers[worker].worker.counter(&name))
            .sum()
    }
}

fn endpoint(input: &mut Input<'_>) -> Option<SocketAddr> {
    let host = input.byte() & 3;
    (host > 0).then_some(SocketAddr::from(([192, 0, 2, 1 + host], 51820)))
}

fn pod(node: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, node as u8, 5)
}

/// Builds a packet of `len` bytes; `id` tells it from others.
fn build(src: Ipv4Addr, dst: Ipv4Addr, id: u16, len: u16) -> Vec<u8> {
    let mut packet = vec![0; usize::from(len)];
    let header = ipv4::Header {
        header_len: ipv4::MIN_HEADER_LEN,
        tos: 0,
        total_len: len,
        id,
        dont_fragment: false,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol: PROTOCOL,
        checksum: 0,
        src,
        dst,
    };
    assert!(header.emit(&mut packet).is_ok());
    ipv4::fill_checksum(&mut packet[..ipv4::MIN_HEADER_LEN]);
    packet
}

fn table() -> Fib {
    let mut builder = FibBuilder::new(Format::Wireguard).admit(Sources::default());
    for peer in 0..PEERS {
        let remote = SocketAddr::from(([192, 0, 2, 2], 51820));
        let spec = PeerSpec { remote, mac: None, mtu: MTU };
        let subnet = format!("10.1.{}.0/24", peer + 1);
        if let Ok(subnet) = subnet.parse() {
            assert_eq!(builder.add_numbered(subnet, spec, PeerId(peer)), Ok(()));
        }
    }
    builder.build().unwrap_or_else(|error| panic!("{error}"))
}
