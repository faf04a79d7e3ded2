//! Target for bytes received on a WireGuard port, as the workers and the keeper process them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use path::PeerId;
use path::wireguard::intake::{Intake, Message};
use path::wireguard::noise;
use path::wireguard::peer::Moment;
use path::wireguard::session::{Keys, OVERHEAD};
use path::wireguard::{Gate, Peer, SecretKey, Session, SessionIndex, Window};
use wire::wireguard::{HEADER_LEN, Header, Kind};

/// This node's private key. The corpus contains messages made with this key and [`THEIRS`].
pub const OURS: SecretKey = SecretKey([1; 32]);
/// The peer's private key.
pub const THEIRS: SecretKey = SecretKey([2; 32]);
/// The sending and receiving keys of the session.
pub const SESSION: ([u8; 32], [u8; 32]) = ([3; 32], [4; 32]);

/// Processes a message of any kind. A header that parses must be written back unchanged. A record that opens
/// must be the one that sealing produces, and must open only once.
pub fn wireguard(data: &[u8]) {
    if let Ok(Kind::Data(header)) = Kind::parse(data) {
        let mut out = [0xee; HEADER_LEN];
        header.emit(&mut out);
        assert_eq!(out[..], data[..HEADER_LEN]);
        record(data, header);
    }
    let _ = Gate::new(&OURS.public()).admits(data);
    let from = SocketAddr::from(([192, 0, 2, 2], 51820));
    let mut intake = Intake::new(&OURS.public());
    let mut peer = Peer::new(PeerId(0), THEIRS.public());
    let mut actions = Vec::new();
    let moment = Moment { now: 1_000, stamp: [9; 12], index: SessionIndex(7), jitter: 0 };
    peer.endpoint = Some(from);
    peer.begin(&OURS, &moment, &mut actions);
    match intake.check(IpAddr::V4(Ipv4Addr::LOCALHOST), data, 0) {
        Ok(Message::Initiation(message)) => {
            if let Some(initiation) = noise::receive(&OURS, message) {
                let known = initiation.peer == THEIRS.public();
                let taken = known && peer.handle_initiation(initiation, from, &moment, &mut actions);
                assert!(known || !taken);
            }
        }
        Ok(Message::Response(_, message)) => _ = peer.handle_response(message, from, 1_001, &mut actions),
        Ok(Message::Cookie(_, message)) => _ = peer.handle_cookie(message, 1_001),
        Err(_) => {}
    }
    // The peer's timers must end after any message.
    for _ in 0..40 {
        let Some(now) = peer.poll_timeout() else { return };
        peer.handle_timeout(&OURS, &Moment { now, ..moment }, &mut actions);
    }
    assert!(peer.poll_timeout().is_none(), "a timer never ends");
}

fn record(data: &[u8], header: Header) {
    let (send, receive) = SESSION;
    let (here, there) = (SessionIndex(1), SessionIndex(2));
    let ours = Session::new(PeerId(0), (here, there), &Keys { send, receive }, true, 0);
    let theirs = Session::new(PeerId(0), (there, here), &Keys { send: receive, receive: send }, false, 0);
    let mut opened = data.to_vec();
    let Some(len) = ours.open(&mut opened, header.counter) else { return };
    assert_eq!(len + OVERHEAD, data.len());
    let mut window = Window::default();
    assert!(window.accept(header.counter) && !window.accept(header.counter));
    let mut sealed = opened.clone();
    if header.receiver == theirs.remote.0 {
        assert_eq!(theirs.seal(&mut sealed, len, len, header.counter), Some(data.len()));
        assert_eq!(sealed, data);
    }
}
