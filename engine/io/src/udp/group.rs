//! Combines several ports into one, for a tunnel that listens on both IPv4 and IPv6 or on several port
//! numbers.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{Aside, Features, PathMtuSockets, UdpConfig, UdpPort, open};
use crate::overflow::Overflow;
use crate::wait::Waiter;
use crate::{Error, PortCounters, Received, Shape, Transmit, TransmitOutcome, Underlay};

/// One worker's ports, at least one: its [`Underlay`].
#[derive(Debug)]
pub struct UdpGroup {
    ports: Vec<UdpPort>,
    /// The port that the next `receive` reads first.
    first: usize,
    shape: Shape,
    notes: Vec<String>,
    /// The sum of all ports' counters.
    counters: PortCounters,
}

/// Opens `queues` groups, one per worker. The first port is as in `config`; one more listens on each of
/// `besides`.
///
/// The first port of each family sends; `config.send_from` must be `None`.
pub fn open_groups(
    config: &UdpConfig,
    besides: &[SocketAddr],
    queues: usize,
) -> Result<Vec<UdpGroup>, Error> {
    if config.send_from.is_some() {
        let all = std::iter::once(&config.listen).chain(besides);
        let addresses: Vec<String> = all.map(SocketAddr::to_string).collect();
        let doing = format!("listening on {}", addresses.join(", "));
        return Err(Error::new(doing, io::ErrorKind::InvalidInput.into())
            .advise("a separate source address cannot be combined with several listening ports"));
    }
    let mut groups: Vec<UdpGroup> = open(config, queues)?.into_iter().map(UdpGroup::new).collect();
    for listen in besides {
        let ports = open(&UdpConfig { listen: *listen, ..config.clone() }, queues)?;
        groups.iter_mut().zip(ports).for_each(|(group, port)| group.join(port));
    }
    Ok(groups)
}

impl UdpGroup {
    fn new(port: UdpPort) -> UdpGroup {
        let (notes, shape) = (port.notes().to_vec(), port.shape());
        UdpGroup { ports: vec![port], first: 0, shape, notes, counters: PortCounters::default() }
    }

    fn join(&mut self, port: UdpPort) {
        self.notes.extend(port.notes().iter().cloned());
        self.ports.push(port);
    }

    /// Returns a second sender for the group's addresses, for threads other than workers.
    pub fn aside(&self) -> Result<Aside, Error> {
        let mut all = Aside { sockets: Vec::new() };
        for port in &self.ports {
            all.sockets.extend(port.aside()?.sockets);
        }
        Ok(all)
    }

    /// Returns the sockets of all ports that ignore the kernel's path MTUs.
    pub fn path_mtu_sockets(&self) -> Result<PathMtuSockets, Error> {
        let mut all = PathMtuSockets::default();
        for port in &self.ports {
            all.join(port.path_mtu_sockets()?);
        }
        Ok(all)
    }

    /// Returns a counter of what the listening sockets' buffers have no room for.
    pub fn overflow(&self) -> Result<Overflow, Error> {
        let mut all = Overflow::new(Vec::new());
        for port in &self.ports {
            all.join(port.overflow()?);
        }
        Ok(all)
    }

    /// Returns the addresses and ports that the group listens on.
    pub fn lane_addrs(&self) -> Vec<SocketAddr> {
        self.ports.iter().flat_map(UdpPort::lane_addrs).collect()
    }

    /// Makes all ports send datagrams singly while `paused` is set; see
    /// [`UdpPort::pause_segmentation_by`].
    pub fn pause_segmentation_by(&mut self, paused: &Arc<AtomicBool>) {
        self.ports.iter_mut().for_each(|port| port.pause_segmentation_by(paused));
    }

    /// Returns the features that all ports use now.
    pub fn features(&self) -> Features {
        let all = |feature: fn(Features) -> bool| self.ports.iter().all(|port| feature(port.features()));
        Features { segment: all(|one| one.segment), gro: all(|one| one.gro), mmsg: all(|one| one.mmsg) }
    }

    /// Returns one sentence for each requested feature that was not granted.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    fn update_counters(&mut self) {
        let sum = |sum: PortCounters, port: &UdpPort| sum.plus(port.counters());
        self.counters = self.ports.iter().fold(PortCounters::default(), sum);
    }
}

impl Underlay for UdpGroup {
    fn shape(&self) -> Shape {
        self.shape
    }

    /// Reads the ports in turn into the slots that are left, starting each call at another port. A batch
    /// smaller than the number of slots therefore means that all ports are empty, and no port starves the
    /// others.
    fn receive(&mut self, arena: &mut [u8], at: usize, out: &mut Vec<Received>) -> io::Result<()> {
        out.clear();
        // The ports share the slots of one port.
        let len = self.shape.len;
        let end = arena.len().min(at + self.shape.bytes());
        let arena = &mut arena[..end];
        let count = self.ports.len();
        let mut answer = Err(io::ErrorKind::WouldBlock.into());
        let begin = self.first;
        self.first = (begin + 1) % count.max(1);
        let mut free = at;
        for turn in 0..count {
            let room = free + len <= end && out.len() < out.capacity();
            let Some(port) = self.ports.get_mut((begin + turn) % count).filter(|_| room || turn == 0) else {
                break;
            };
            match port.receive_more(arena, free, out) {
                Ok(()) => answer = Ok(()),
                Err(error) if answer.is_err() => answer = Err(error),
                Err(_) => {}
            }
            // Slots of skipped messages stay unused; those after the last received one are free.
            free = out.last().map_or(free, |last| last.at as usize + len);
        }
        self.update_counters();
        answer
    }

    /// Sends each run of one family through that family's socket, which keeps the order within the family.
    fn transmit(&mut self, arena: &[u8], spans: &[Range<u32>], batch: &[Transmit]) -> TransmitOutcome {
        let mut all = TransmitOutcome::default();
        for run in batch.chunk_by(|one, next| one.to.is_ipv4() == next.to.is_ipv4()) {
            let ipv4 = run.first().is_some_and(|one| one.to.is_ipv4());
            let port = self.ports.iter_mut().find(|port| port.is_ipv4() == ipv4);
            let outcome = port.map(|port| port.transmit(arena, spans, run)).unwrap_or_default();
            all.sent += outcome.sent;
            all.dropped_full += outcome.dropped_full;
            all.dropped_error += outcome.dropped_error;
            all.too_big = outcome.too_big.or(all.too_big);
        }
        self.update_counters();
        all
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }

    fn register(&self, waiter: &mut Waiter, token: usize) -> io::Result<()> {
        self.ports.iter().try_for_each(|port| port.register(waiter, token))
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::PeerId;

    const SLOT: usize = 2048;

    #[test]
    fn each_family_uses_its_own_socket() {
        let mut pair = pair();
        let [v4, v6] = addresses(&pair);
        let mut waiter = Waiter::new().expect("a waiter");
        pair.register(&mut waiter, 3).expect("registered");
        let mut strangers = Vec::new();
        for to in [v4, v6] {
            let stranger = stranger(to);
            stranger.send_to(b"hello", to).expect("sent");
            let ready = waiter.wait(Some(Duration::from_secs(20))).expect("woken");
            assert!(ready.contains(3), "{to}");
            let got = drain(&mut pair, 4);
            assert_eq!(got, [(stranger.local_addr().expect("address"), b"hello".to_vec())]);
            strangers.push(stranger);
        }
        // The families alternate, so that each send is a separate run.
        let arena = b"onetwothreefour";
        let spans = [0..3, 3..6, 6..11, 11..15];
        let batch: Vec<Transmit> = (0..4_u32)
            .map(|index| Transmit {
                to: strangers[index as usize % 2].local_addr().expect("address"),
                peer: PeerId(0),
                lane: 0,
                first_span: index,
                span_count: 1,
                segment_size: 0,
                segments: 1,
                ecn: 0,
            })
            .collect();
        assert_eq!(pair.transmit(arena, &spans, &batch).sent, 4);
        for (stranger, (from, words)) in strangers.iter().zip([(v4, ["one", "three"]), (v6, ["two", "four"])])
        {
            for word in words {
                assert_eq!(next(stranger), (from, word.as_bytes().to_vec()));
            }
        }
        let aside = pair.aside().expect("aside");
        for (stranger, from) in strangers.iter().zip([v4, v6]) {
            aside.send(b"aside", stranger.local_addr().expect("address"));
            assert_eq!(next(stranger), (from, b"aside".to_vec()));
        }
        let counters = *pair.counters();
        assert_eq!((counters.reads, counters.writes), (2, 4));
        assert_eq!((counters.read_bytes, counters.write_bytes), (10, 15));
    }

    #[test]
    fn neither_family_starves_the_other_and_nothing_is_lost_or_overwritten() {
        let mut pair = pair();
        let [v4, v6] = addresses(&pair);
        let (one, other) = (stranger(v4), stranger(v6));
        for index in 0..20_u8 {
            one.send_to(&[4, index], v4).expect("sent");
        }
        for index in 0..3_u8 {
            other.send_to(&[6, index], v6).expect("sent");
        }
        settle();
        let first = drain(&mut pair, 8);
        let second = drain(&mut pair, 8);
        let of = |batch: &[(SocketAddr, Vec<u8>)], family: u8| -> Vec<u8> {
            batch.iter().filter(|(_, bytes)| bytes[0] == family).map(|(_, bytes)| bytes[1]).collect()
        };
        assert_eq!((first.len(), second.len()), (8, 8), "full, so more may be waiting");
        assert_eq!([of(&first, 6), of(&second, 6)].concat(), [0, 1, 2], "the second call reads it first");
        let third = drain(&mut pair, 8);
        assert_eq!(third.len(), 7, "not full, so both ports are empty");
        assert_eq!([of(&first, 4), of(&second, 4), of(&third, 4)].concat(), (0..20).collect::<Vec<u8>>());
        let mut out = Vec::with_capacity(8);
        let error = pair.receive(&mut [0; 8 * SLOT], 0, &mut out).expect_err("nothing left");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_batch_never_exceeds_the_callers_capacity() {
        let mut pair = pair();
        let [v4, v6] = addresses(&pair);
        let (one, other) = (stranger(v4), stranger(v6));
        for _ in 0..4 {
            one.send_to(b"4", v4).expect("sent");
            other.send_to(b"6", v6).expect("sent");
        }
        settle();
        let mut out = Vec::with_capacity(6);
        let room = out.capacity();
        pair.receive(&mut vec![0; 16 * SLOT], 0, &mut out).expect("received");
        assert_eq!((out.len(), out.capacity()), (6.min(room), room));
    }

    #[test]
    fn a_third_port_receives_and_the_first_of_its_family_sends() {
        let besides = ["[::1]:0", "[::1]:0"].map(|text| text.parse().expect("address"));
        let mut group = open_groups(&config("127.0.0.1:0"), &besides, 1).expect("opened").remove(0);
        let ours = group.lane_addrs();
        let stranger = stranger(ours[2]);
        stranger.send_to(b"third", ours[2]).expect("sent");
        settle();
        let from = stranger.local_addr().expect("address");
        assert_eq!(drain(&mut group, 4), [(from, b"third".to_vec())]);
        let transmit = Transmit {
            to: from,
            peer: PeerId(0),
            lane: 0,
            first_span: 0,
            span_count: 1,
            segment_size: 0,
            segments: 1,
            ecn: 0,
        };
        assert_eq!(group.transmit(b"back", &[0..4], &[transmit]).sent, 1);
        assert_eq!(next(&stranger), (ours[1], b"back".to_vec()));
    }

    #[test]
    fn a_separate_source_address_is_rejected() {
        let from = Some("127.0.0.1".parse().expect("address"));
        let config = UdpConfig { send_from: from, ..config("127.0.0.1:0") };
        let error = open_groups(&config, &[], 1).expect_err("rejected").to_string();
        assert!(error.contains("separate source address"), "{error}");
    }

    fn config(listen: &str) -> UdpConfig {
        UdpConfig {
            listen: listen.parse().expect("address"),
            send_from: None,
            fan: 0,
            shape: Shape { slots: 16, len: SLOT },
            segment: true,
            gro: true,
            mmsg: true,
            own_path_mtu: true,
            receive_buffer: 1 << 20,
            send_buffer: 1 << 20,
        }
    }

    fn pair() -> UdpGroup {
        // Datagrams that one core sends to itself stay in order.
        let cores = crate::thread::allowed_cores().expect("cores");
        crate::thread::pin_to_core(cores[0]).expect("a core of ours");
        let groups = open_groups(&config("127.0.0.1:0"), &["[::1]:0".parse().expect("address")], 1);
        groups.expect("both families on loopback").pop().expect("one")
    }

    fn addresses(pair: &UdpGroup) -> [SocketAddr; 2] {
        pair.lane_addrs().try_into().expect("two")
    }

    fn stranger(peer: SocketAddr) -> UdpSocket {
        let socket = UdpSocket::bind(SocketAddr::new(peer.ip(), 0)).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        socket
    }

    /// Waits until everything that this thread has sent to itself has arrived, which a busy kernel may delay.
    fn settle() {
        let marker = stranger("127.0.0.1:0".parse().expect("address"));
        marker.send_to(b"marker", marker.local_addr().expect("address")).expect("sent");
        next(&marker);
    }

    fn next(socket: &UdpSocket) -> (SocketAddr, Vec<u8>) {
        let mut room = [0; 64];
        let (len, from) = socket.recv_from(&mut room).expect("a datagram");
        (from, room[..len].to_vec())
    }

    /// Makes one receive call with `slots` slots.
    fn drain(pair: &mut UdpGroup, slots: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut arena = vec![0; slots * SLOT];
        let mut out = Vec::with_capacity(slots);
        pair.receive(&mut arena, 0, &mut out).expect("datagrams");
        let bytes = |one: &Received| arena[one.at as usize..(one.at + one.len) as usize].to_vec();
        out.iter().map(|one| (one.source, bytes(one))).collect()
    }
}
