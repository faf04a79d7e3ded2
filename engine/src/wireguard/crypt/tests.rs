//! A worker's part alone: sealing, opening, and reports to the keeper.

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use io::memory::{
    self, Datagram, MemoryConfig, MemoryOverlay, MemoryUnderlay, OverlayHandle, UnderlayHandle,
};
use ipnetwork::IpNetwork;
use path::SegmentSizes;
use path::encap::Format;
use path::fib::{FibBuilder, PeerSpec};
use path::wireguard::SecretKey;
use path::wireguard::session::Keys;
use wire::{ipv4, virtio};

use super::*;
use crate::config::{Switches, WaitPolicy};
use crate::event::{self, Notifier};
use crate::snapshot;
use crate::status::Page;
use crate::tunnel::{Parts, Sealing, Tunnel};
use crate::wireguard::Settings;
use crate::worker::{Wire, Worker};

const MTU: u16 = 1420;

fn shared() -> Shared {
    let private = SecretKey([7; 32]);
    Shared::new(1, &Settings { private, peers: Vec::new() })
}

fn session(peer: u32, local: u32) -> Arc<Session> {
    let keys = Keys { send: [1; 32], receive: [2; 32] };
    let indices = (SessionIndex(local), SessionIndex(local + 1000));
    Arc::new(Session::new(PeerId(peer), indices, &keys, true, 1))
}

fn at(host: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host], 51820))
}

/// Returns the messages to the keeper.
fn reports(shared: &Shared) -> Vec<FromWorker> {
    shared.from_worker.1.try_iter().collect()
}

/// Builds a record of an unknown session.
fn unknown() -> Vec<u8> {
    let mut record = vec![0; OVERHEAD];
    let other = session(1, 2);
    let len = other.seal(&mut record, 0, 0, 0).unwrap();
    record.truncate(len);
    record
}

#[test]
fn each_sender_of_an_unknown_session_is_reported_once_a_second() {
    let shared = shared();
    let mut crypt = Crypt::new(&shared, WorkerIndex(0), MTU);
    let mut counters = Counters::default();
    let mut arrive = |crypt: &mut Crypt, from: SocketAddr| {
        let mut record = unknown();
        let len = record.len() as u32;
        let answer = crypt.open(&mut record, 0..len, from, 0, &mut counters);
        assert_eq!(answer.unwrap_err(), DropReason::WgUnknownSession);
    };
    for host in [1, 2, 1, 2, 3] {
        arrive(&mut crypt, at(host));
    }
    let from = |mail: &FromWorker| if let FromWorker::Unknown(from) = mail { Some(*from) } else { None };
    let reported: Vec<_> = reports(&shared).iter().filter_map(from).collect();
    assert_eq!(reported, [at(1), at(2), at(3)]);
    // Of any number of forged senders only a limited number is reported.
    for port in 0..10_000 {
        arrive(&mut crypt, SocketAddr::from(([203, 0, 113, 1], port)));
    }
    assert_eq!(reports(&shared).len(), STRANGERS - 3);
    crypt.now += REQUEST_INTERVAL;
    arrive(&mut crypt, at(1));
    assert_eq!(reports(&shared).len(), 1, "reported again in the next second");
}

#[test]
fn removing_peers_removes_their_sessions_and_no_others() {
    let shared = shared();
    let mut crypt = Crypt::new(&shared, WorkerIndex(0), MTU);
    for peer in 0..100 {
        shared.mailboxes[0].put(ToWorker::Peer(PeerId(peer), Some(at(1)), Arc::new(Pulse::default())));
        shared.mailboxes[0].put(ToWorker::Session(session(peer, 2 * peer), true));
        shared.mailboxes[0].put(ToWorker::Session(session(peer, 2 * peer + 1), false));
    }
    let mut counters = Counters::default();
    crypt.refresh(&mut counters);
    assert_eq!((crypt.peers.len(), crypt.inbound.len()), (100, 200));
    (0..90).for_each(|peer| shared.mailboxes[0].put(ToWorker::Gone(PeerId(peer))));
    crypt.refresh(&mut counters);
    assert_eq!((crypt.peers.len(), crypt.inbound.len()), (10, 20));
    assert!(crypt.inbound.values().all(|inbound| inbound.session.peer >= PeerId(90)));
}

#[test]
fn waiting_packets_are_sent_in_order_with_their_own_peers_session() {
    let shared = shared();
    let mut crypt = Crypt::new(&shared, WorkerIndex(0), MTU);
    let mut counters = Counters::default();
    for peer in [4, 5] {
        shared.mailboxes[0].put(ToWorker::Peer(
            PeerId(peer),
            Some(at(peer as u8)),
            Arc::new(Pulse::default()),
        ));
    }
    crypt.refresh(&mut counters);
    assert!(!crypt.has_unblocked());
    for peer in [4, 5] {
        let slot = crypt.peers.get_mut(&PeerId(peer)).unwrap();
        let lens: [&[u8]; 2] = [&[peer as u8; 20], &[peer as u8; 30]];
        slot.staged.extend(lens.map(|packet| shared.waiting.keep([packet].into_iter()).unwrap()));
    }
    shared.mailboxes[0].put(ToWorker::Session(session(5, 50), true));
    crypt.refresh(&mut counters);
    assert!(crypt.has_unblocked(), "a session has arrived");
    assert!(crypt.seal_staged());
    let sealed = crypt.sealed();
    let sent: Vec<_> = sealed.batch.iter().map(|one| (one.peer, one.to)).collect();
    assert_eq!(sent, [(PeerId(5), at(5)); 2]);
    assert_eq!(sealed.spans.iter().map(|span| span.end - span.start).collect::<Vec<_>>(), [64, 64], "padded");
    assert!(!crypt.seal_staged(), "no more");
    crypt.refresh(&mut counters);
    assert!(!crypt.has_unblocked());
    assert_eq!(crypt.peers[&PeerId(4)].staged.len(), 2, "still waiting");
}

/// Builds the record that the peer of `session` would send with this counter.
fn from_peer(session: &Session, counter: u64, len: usize) -> Vec<u8> {
    let keys = Keys { send: [2; 32], receive: [1; 32] };
    let other = Session::new(PeerId(0), (session.remote, session.local), &keys, false, 1);
    let mut record = vec![0; OVERHEAD + len.next_multiple_of(PADDING)];
    other.seal(&mut record, len, usize::from(MTU), counter).unwrap();
    record
}

/// Adds a peer with an address, and a session that is used for sending if `send` is true.
fn add(shared: &Shared, peer: u32, session: &Arc<Session>, send: bool) {
    shared.mailboxes[0].put(ToWorker::Peer(PeerId(peer), Some(at(1)), Arc::new(Pulse::default())));
    shared.mailboxes[0].put(ToWorker::Session(Arc::clone(session), send));
}

#[test]
fn only_an_authentic_record_requests_a_rekey() {
    let shared = shared();
    let mut crypt = Crypt::new(&shared, WorkerIndex(0), MTU);
    let mut counters = Counters::default();
    let session = session(4, 40);
    add(&shared, 4, &session, true);
    crypt.refresh(&mut counters);
    crypt.now = 170_000;
    let mut arrive = |crypt: &mut Crypt, mut record: Vec<u8>| {
        let len = record.len() as u32;
        crypt.open(&mut record, 0..len, at(1), 0, &mut counters).map(|opened| opened.is_some())
    };
    let mut forged = from_peer(&session, 0, 100);
    forged[20] ^= 1;
    assert_eq!(arrive(&mut crypt, forged), Err(DropReason::WgForged));
    assert!(reports(&shared).is_empty(), "a forgery has no effect");
    assert_eq!(arrive(&mut crypt, from_peer(&session, 0, 100)), Ok(true));
    let wanted = |shared: &Shared| {
        reports(shared).iter().filter(|mail| matches!(mail, FromWorker::Want(PeerId(4)))).count()
    };
    assert_eq!(wanted(&shared), 1);
    assert_eq!(arrive(&mut crypt, from_peer(&session, 0, 100)), Err(DropReason::WgReplay));
    session.retry_rekey();
    assert_eq!(arrive(&mut crypt, from_peer(&session, 0, 100)), Err(DropReason::WgReplay));
    assert_eq!(wanted(&shared), 0, "nor has a replay");
}

/// A worker with the tunnel of `crypt` over ports in memory. Its table has so many peers.
fn worker(
    crypt: Crypt,
    peers: u16,
) -> (Worker<MemoryOverlay, MemoryUnderlay>, OverlayHandle, UnderlayHandle) {
    let mut fib = FibBuilder::new(Format::Wireguard);
    for id in 0..peers {
        let peer = PeerSpec { remote: at(1), mac: None, mtu: MTU };
        let subnet = IpNetwork::new(pod_of(id).into(), 24).unwrap();
        fib.add_numbered(subnet, peer, PeerId(id.into())).unwrap();
    }
    let (overlay, pods) = memory::overlay();
    let (underlay, network) = memory::underlay(at(100), MemoryConfig::default());
    let (_, mut readers) = snapshot::channel(Arc::new(fib.build().unwrap()), 1);
    let parts = Parts {
        fib: readers.remove(0),
        sizes: Arc::new(SegmentSizes::new(MTU, 7)),
        lanes: 1,
        switches: Switches::default(),
        notifier: Notifier { tunnel: 0, worker: WorkerIndex(0), sender: event::channel().0 },
        clock: crypt.clock.clone(),
        sealing: Sealing::Wireguard(Box::new(crypt)),
    };
    let policy = WaitPolicy { spin: Duration::MAX, moderate: Duration::ZERO };
    let tunnels = vec![Tunnel::new(vec![overlay], parts)];
    let (pages, waiter) = (vec![Page::new()], io::Waiter::new().unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let worker = Worker::new(Wire::new(vec![(0, underlay)]), tunnels, pages, waiter, policy, stop).unwrap();
    (worker, pods, network)
}

/// Returns the address of a peer's pod.
fn pod_of(peer: u16) -> Ipv4Addr {
    let [high, low] = peer.to_be_bytes();
    Ipv4Addr::new(10, 100 + high, low, 7)
}

/// Builds a packet of `len` bytes to a peer's pod as a TUN delivers it. `id` tells it from others.
fn outgoing(peer: u16, id: u16, len: u16) -> Vec<u8> {
    let header = ipv4::Header {
        header_len: 20,
        tos: 0,
        total_len: len,
        id,
        dont_fragment: false,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol: 253,
        checksum: 0,
        src: Ipv4Addr::new(10, 1, 0, 5),
        dst: pod_of(peer),
    };
    let mut packet = vec![0; virtio::HEADER_LEN + usize::from(len)];
    header.emit(&mut packet[virtio::HEADER_LEN..]).unwrap();
    ipv4::fill_checksum(&mut packet[virtio::HEADER_LEN..][..20]);
    packet
}

/// Returns the ids of the packets that were sent, in order.
fn sent(network: &UnderlayHandle, session: &Session) -> Vec<u16> {
    let keys = Keys { send: [2; 32], receive: [1; 32] };
    let other = Session::new(PeerId(0), (session.remote, session.local), &keys, false, 1);
    let id = |datagram: Datagram| {
        let mut record = datagram.bytes;
        let counter = u64::from_le_bytes(*record[8..].first_chunk().unwrap());
        other.open(&mut record, counter).unwrap();
        let packet = &record[HEADER_LEN..];
        u16::from_be_bytes([packet[4], packet[5]])
    };
    network.collect().into_iter().map(id).collect()
}

/// The session comes up in the middle of a turn, by its first record, by mail, and by a peer's address, which
/// comes by mail or with a record.
#[test]
fn packets_that_waited_are_sent_before_those_of_the_same_turn() {
    for way in ["record", "mail", "address", "address of a record"] {
        let shared = shared();
        let (mut worker, pods, network) = worker(Crypt::new(&shared, WorkerIndex(0), MTU), 5);
        let session = session(4, 40);
        match way {
            "record" => add(&shared, 4, &session, false),
            "mail" => shared.mailboxes[0].put(ToWorker::Peer(PeerId(4), Some(at(1)), Arc::default())),
            _ => {
                shared.mailboxes[0].put(ToWorker::Peer(PeerId(4), None, Arc::default()));
                shared.mailboxes[0].put(ToWorker::Session(Arc::clone(&session), true));
            }
        }
        (1..=3).for_each(|id| pods.inject(&outgoing(4, id, 100)));
        worker.turn().unwrap();
        assert_eq!(sent(&network, &session), [] as [u16; 0], "{way}: waiting");
        match way {
            "record" | "address of a record" => {
                let bytes = from_peer(&session, 0, 0);
                network.inject(Datagram { from: at(1), to: at(100), lane: 0, ecn: 0, bytes });
            }
            "mail" => shared.mailboxes[0].put(ToWorker::Session(Arc::clone(&session), true)),
            _ => shared.mailboxes[0].put(ToWorker::Peer(PeerId(4), Some(at(1)), Arc::default())),
        }
        (4..=6).for_each(|id| pods.inject(&outgoing(4, id, 100)));
        worker.rouse();
        worker.turn().unwrap();
        assert_eq!(sent(&network, &session), [1, 2, 3, 4, 5, 6], "{way}");
    }
}

/// Returns this process's memory in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn packets_to_dead_peers_are_bounded_in_all_and_their_memory_returns() {
    const PEERS: u16 = 2_000;
    let shared = shared();
    let budget = shared.waiting.left();
    let (mut worker, pods, _network) = worker(Crypt::new(&shared, WorkerIndex(0), MTU), PEERS);
    let all = || (0..PEERS).map(|id| PeerId(id.into()));
    all().for_each(|id| shared.mailboxes[0].put(ToWorker::Peer(id, Some(at(1)), Arc::default())));
    let mut turn = || {
        worker.rouse();
        worker.turn().unwrap();
    };
    turn();
    let before = resident();
    for round in 0..20 {
        for peer in 0..PEERS {
            pods.inject(&outgoing(peer, round, 1400));
            if peer % 100 == 0 {
                turn();
            }
        }
        turn();
    }
    let full = resident() - before;
    assert!(shared.waiting.left() < 1400 + 100, "{}", shared.waiting.left());
    assert!((budget / 2..2 * budget).contains(&full), "{full}");
    all().for_each(|id| shared.mailboxes[0].put(ToWorker::GiveUp(id)));
    turn();
    assert_eq!(shared.waiting.left(), budget);
    assert!(shared.waiting.return_memory());
    let after = resident().saturating_sub(before);
    assert!(after < budget / 4, "{after} of {full} bytes stay");
}

#[test]
fn a_peers_new_packets_displace_its_own_and_nothing_waits_for_nobody() {
    let shared = shared();
    let mut crypt = Crypt::new(&shared, WorkerIndex(0), MTU);
    crypt.waiting = Budget::new(3 * 200);
    let budget = crypt.waiting.clone();
    let (mut worker, pods, network) = worker(crypt, 6);
    for id in [4, 5] {
        shared.mailboxes[0].put(ToWorker::Peer(PeerId(id), Some(at(1)), Arc::default()));
    }
    (1..=5).for_each(|id| pods.inject(&outgoing(4, id, 100)));
    pods.inject(&outgoing(5, 6, 100));
    worker.turn().unwrap();
    let session = session(4, 40);
    shared.mailboxes[0].put(ToWorker::Session(Arc::clone(&session), true));
    worker.turn().unwrap();
    assert_eq!(sent(&network, &session), [3, 4, 5]);
    // The keeper has given up, and has not been asked again yet.
    shared.mailboxes[0].put(ToWorker::GiveUp(PeerId(5)));
    pods.inject(&outgoing(5, 7, 100));
    worker.rouse();
    worker.turn().unwrap();
    assert_eq!(budget.left(), 600);
}

#[test]
fn records_at_the_wrong_worker_are_bounded_and_take_no_handshakes_place() {
    let shared = shared();
    let mut crypt = Crypt::new(&shared, WorkerIndex(0), MTU);
    let mut counters = Counters::default();
    let session = session(4, 40);
    add(&shared, 4, &session, true);
    crypt.refresh(&mut counters);
    assert!(session.claim(WorkerIndex(1)));
    let mut arrive = |crypt: &mut Crypt, len: usize| {
        let mut record = from_peer(&session, 0, len);
        let len = record.len() as u32;
        crypt.open(&mut record, 0..len, at(66), 0, &mut counters).map(|opened| opened.is_some())
    };
    assert_eq!(arrive(&mut crypt, 65_000), Err(DropReason::WgTooLong));
    assert_eq!(arrive(&mut crypt, usize::from(MTU)), Ok(false));
    let budget = shared.astray.left();
    while arrive(&mut crypt, usize::from(MTU)) == Ok(false) {}
    assert!((1_000..4_000).contains(&shared.strays.1.len()), "{}", shared.strays.1.len());
    let mut message = handshake();
    let len = message.len() as u32;
    let answer = crypt.open(&mut message, 0..len, at(1), 0, &mut Counters::default());
    assert!(matches!(answer, Ok(None)), "{answer:?}");
    shared.strays.1.try_iter().for_each(drop);
    assert!(shared.astray.left() > budget, "the memory has returned");
}

/// Builds an initiation that passes the gate.
fn handshake() -> Vec<u8> {
    let (ours, theirs) = (SecretKey([7; 32]), SecretKey([9; 32]));
    let mut peer = path::wireguard::Peer::new(PeerId(0), ours.public());
    peer.endpoint = Some(at(100));
    let index = SessionIndex(77);
    let moment = path::wireguard::peer::Moment { now: 1, stamp: [1; 12], index, jitter: 0 };
    let mut actions = Vec::new();
    peer.begin(&theirs, &moment, &mut actions);
    let message = actions.into_iter().find_map(|action| match action {
        path::wireguard::peer::Action::Send(_, message) => Some(message),
        _ => None,
    });
    message.unwrap()
}

#[test]
fn replies_that_answer_nothing_are_dropped_and_a_flood_takes_no_handshakes_place() {
    let shared = shared();
    let mut crypt = Crypt::new(&shared, WorkerIndex(0), MTU);
    let mut arrive = |mut message: Vec<u8>| {
        let len = message.len() as u32;
        let opened = crypt.open(&mut message, 0..len, at(66), 0, &mut Counters::default());
        opened.map(|opened| opened.is_some())
    };
    let cookie = |index: u32| {
        let mut message = vec![0; 64];
        (message[0], message[60]) = (3, 1);
        message[4..8].copy_from_slice(&index.to_le_bytes());
        message
    };
    for index in 0..10_000 {
        assert_eq!(arrive(cookie(index)), Err(DropReason::WgStranger));
    }
    assert!(shared.cookies.1.is_empty());
    // Somebody has seen a handshake of ours.
    shared.awaited.insert(SessionIndex(5));
    assert_eq!(arrive(cookie(5)), Ok(false));
    while arrive(cookie(5)) != Err(DropReason::WgBusy) {}
    assert_eq!(shared.cookies.1.len(), 256);
    assert_eq!(arrive(handshake()), Ok(false));
    assert_eq!(shared.handshakes.1.len(), 1);
}
