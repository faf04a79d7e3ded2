//! Why bytes are not the header they were taken for.

use core::fmt;

/// The one error of this crate.
///
/// It carries no position and no text: the caller knows which header it asked for, and turns the answer into a
/// counter on the hot path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// The slice ends before the header, or before the length the header claims; on emit, the buffer is too
    /// short.
    Truncated,
    /// The version field names another protocol version.
    BadVersion,
    /// The header length field is below the minimum, or cannot be expressed.
    BadHeaderLength,
    /// The total length field is shorter than the header it belongs to.
    BadTotalLength,
    /// A checksum does not match the bytes it covers.
    BadChecksum,
    /// A bit that must be zero is set.
    Reserved,
    /// Well formed, but a kind this crate does not handle, or a value that does not fit its field.
    Unsupported,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Truncated => "bytes end before the header or its payload does",
            Malformed::BadVersion => "version field names another protocol",
            Malformed::BadHeaderLength => "header length field is impossible",
            Malformed::BadTotalLength => "total length field is shorter than the header",
            Malformed::BadChecksum => "checksum does not match",
            Malformed::Reserved => "a reserved bit is set",
            Malformed::Unsupported => "kind or value is not supported",
        })
    }
}

impl core::error::Error for Malformed {}
