//! Captures every frame that crosses a device.

use std::io::Read;

use lab::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

/// An open packet socket (packet(7)).
pub struct Capture(Socket);

impl Capture {
    /// Starts to capture on all devices of the namespace: a frame that crosses two of them appears twice.
    pub fn start(namespace: &Namespace) -> Capture {
        let open = || {
            // ETH_P_ALL (linux/if_ether.h).
            let every = i32::from(0x0003u16.to_be());
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(every)))?;
            super::enlarge_buffer(&socket, 64 << 20);
            socket.set_nonblocking(true)?;
            std::io::Result::Ok(socket)
        };
        Capture(namespace.run(open).expect("the namespace").expect("a packet socket"))
    }

    /// Returns the frames captured since the last call.
    pub fn frames(&mut self) -> Vec<Vec<u8>> {
        let (mut frame, mut frames) = (vec![0; 1 << 16], Vec::new());
        while let Ok(length) = self.0.read(&mut frame) {
            frames.push(frame[..length].to_vec());
        }
        frames
    }
}
