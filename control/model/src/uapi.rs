//! Requests that the WireGuard project's tools send to a userspace implementation
//! (<https://www.wireguard.com/xplatform/>, "configuration protocol").

/// Maximum length of a request. Only a `set` can be longer, and every `set` is rejected.
pub const LONGEST: usize = 4096;

/// The request that a client has sent so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Incomplete.
    Unfinished,
    /// `get`: the configuration of the interface and the state of its peers.
    Get,
    /// Any other request.
    Other,
    /// Longer than allowed.
    TooMuch,
}

/// Parses the bytes received so far; an empty line ends a request.
pub fn read(bytes: &[u8]) -> Asked {
    if bytes.len() > LONGEST {
        Asked::TooMuch
    } else if !bytes.ends_with(b"\n\n") {
        Asked::Unfinished
    } else if bytes.starts_with(b"get=1\n") {
        Asked::Get
    } else {
        Asked::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_line_ends_a_request() {
        for (bytes, asked) in [
            (&b""[..], Asked::Unfinished),
            (b"get=1\n", Asked::Unfinished),
            (b"get=1\n\n", Asked::Get),
            (b"get=11\n\n", Asked::Other),
            (b"set=1\nlisten_port=7\n\n", Asked::Other),
            (b"\n\n", Asked::Other),
            (&[b'x'; LONGEST + 1], Asked::TooMuch),
        ] {
            assert_eq!(read(bytes), asked, "{bytes:x?}");
        }
    }
}
