//! `UDP_SEGMENT` and `UDP_GRO` over the loopback device.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use io::udp::{self, UdpPort};
use io::{PeerId, Shape, Transmit, Underlay, Waiter};

use super::{Outcome, Report, TRAINS, pattern};
use crate::config::Switches;

const PATIENCE: Duration = Duration::from_millis(300);
const SHAPE: Shape = Shape { slots: 16, len: 1 << 16 };

pub(super) fn check(wanted: &Switches, report: &mut Report) {
    if wanted.gso {
        report.add("gso", "runs sent joined and received as single datagrams", trains(true, false));
    }
    if wanted.gro {
        report.add("gro", "runs sent joined or singly and received joined", trains(wanted.gso, true));
    }
}

fn trains(segment: bool, gro: bool) -> Outcome {
    for (size, total) in TRAINS {
        let sent = pattern(total);
        match carry(&sent, size, segment, gro) {
            Ok(Some(received)) if received == sent.chunks(size).map(<[u8]>::to_vec).collect::<Vec<_>>() => {}
            Ok(Some(received)) => {
                let count = received.len();
                return Outcome::Broken(format!(
                    "{total} bytes in datagrams of {size}: received {count} datagrams, wrong or too few"
                ));
            }
            Ok(None) => return Outcome::Untested("not supported by the kernel".into()),
            Err(error) => return Outcome::Untested(error),
        }
    }
    Outcome::Works
}

/// Sends `bytes` as datagrams of `size` and returns the received datagrams, or `None` if the feature is not
/// granted.
fn carry(bytes: &[u8], size: usize, segment: bool, gro: bool) -> Result<Option<Vec<Vec<u8>>>, String> {
    let config = |segment, gro| udp::UdpConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        send_from: None,
        fan: 1,
        shape: SHAPE,
        segment,
        gro,
        mmsg: true,
        own_path_mtu: true,
        receive_buffer: 1 << 20,
        send_buffer: 1 << 20,
    };
    let mut sender = open(&config(segment, false))?;
    let mut receiver = open(&config(false, gro))?;
    if (segment && !sender.features().segment) || (gro && !receiver.features().gro) {
        return Ok(None);
    }
    let to = receiver.local_addr().ok_or("the socket has no address")?;
    let spans: Vec<_> =
        (0..bytes.len()).step_by(size).map(|at| at as u32..bytes.len().min(at + size) as u32).collect();
    let train = Transmit {
        to,
        peer: PeerId(0),
        lane: 0,
        first_span: 0,
        span_count: spans.len() as u32,
        segment_size: size as u16,
        segments: spans.len() as u16,
        ecn: 0,
    };
    let outcome = sender.transmit(bytes, &spans, &[train]);
    if outcome.sent != spans.len() as u32 {
        return Err(format!("the loopback device accepted {} of {} datagrams", outcome.sent, spans.len()));
    }
    if segment && sender.counters().resent > 0 {
        return Ok(Some(Vec::new()));
    }
    receive(&mut receiver, spans.len()).map(Some)
}

fn open(config: &udp::UdpConfig) -> Result<UdpPort, String> {
    udp::open(config, 1).map_err(|error| error.to_string())?.pop().ok_or_else(|| "no socket".into())
}

fn receive(port: &mut UdpPort, expected: usize) -> Result<Vec<Vec<u8>>, String> {
    let mut waiter = Waiter::new().map_err(|error| error.to_string())?;
    port.register(&mut waiter, 0).map_err(|error| error.to_string())?;
    let mut arena = vec![0; SHAPE.bytes()];
    let mut batch = Vec::with_capacity(SHAPE.slots);
    let mut datagrams = Vec::new();
    while datagrams.len() < expected {
        if port.receive(&mut arena, 0, &mut batch).is_err() {
            if waiter.wait(Some(PATIENCE)).map_err(|error| error.to_string())?.is_empty() {
                break;
            }
            continue;
        }
        for one in &batch {
            let bytes = &arena[one.at as usize..(one.at + one.len) as usize];
            let size = if one.segment_size == 0 { bytes.len().max(1) } else { usize::from(one.segment_size) };
            datagrams.extend(bytes.chunks(size).map(<[u8]>::to_vec));
        }
    }
    Ok(datagrams)
}
