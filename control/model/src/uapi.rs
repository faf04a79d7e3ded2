//! What the tools of the WireGuard project ask of a userspace implementation
//! (<https://www.wireguard.com/xplatform/>, "configuration protocol").

/// More than the longest request that means anything here: `set`, which can be longer, is refused whatever it
/// says.
pub const LONGEST: usize = 4096;

/// What a client has said so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing whole yet.
    Unfinished,
    /// How the interface is configured, and how its peers are.
    Get,
    /// Something else.
    Other,
    /// More than anybody may.
    TooMuch,
}

/// Reads what has come; an empty line ends a request.
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
    fn requests_by_their_end() {
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
