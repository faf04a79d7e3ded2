//! The error of parsing and writing headers.

use core::fmt;

/// The reason why bytes are not a valid header.
///
/// The error holds no position or text: the caller knows which header it parsed, and on the hot path it only
/// increments a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// The slice is shorter than the header or than the length that the header states; when writing, the
    /// buffer is too short.
    Truncated,
    /// The version field holds another protocol version.
    BadVersion,
    /// The header length is below the minimum or cannot be encoded.
    BadHeaderLength,
    /// The total length does not include the header, or does not match the message type.
    BadTotalLength,
    /// A checksum does not match the bytes it covers.
    BadChecksum,
    /// A bit that must be zero is set.
    Reserved,
    /// A valid header of a kind that this crate does not handle, or a value that does not fit its field.
    Unsupported,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Truncated => "header or payload is truncated",
            Malformed::BadVersion => "unexpected protocol version",
            Malformed::BadHeaderLength => "invalid header length",
            Malformed::BadTotalLength => "invalid total length",
            Malformed::BadChecksum => "checksum mismatch",
            Malformed::Reserved => "reserved bit is set",
            Malformed::Unsupported => "unsupported type or value",
        })
    }
}

impl core::error::Error for Malformed {}
