//! Reading files in whose place something else may be: a FIFO, a device, a directory, or far too much.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

/// Maximum length of a configuration, which usually takes a few kilobytes; GC names each pod of the node in
/// it.
pub const MAX_CONFIGURATION: u64 = 32 << 20;

/// Reasons why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system's error.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The path names something else, which is not opened, or not read.
    #[error("it is not a regular file")]
    NotRegular,
    /// The file is longer than the limit.
    #[error("it is longer than {0} bytes")]
    TooLong(u64),
}

impl ReadError {
    /// Returns true if there is no file of this name.
    pub fn is_absence(&self) -> bool {
        matches!(self.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
    }

    /// Returns the kind of the system's error.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            ReadError::Io(error) => error.kind(),
            ReadError::NotRegular | ReadError::TooLong(_) => io::ErrorKind::Other,
        }
    }
}

/// Reads a regular file of at most `limit` bytes, without ever waiting for another process.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    open(OpenOptions::new().read(true), path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLong(limit));
    }
    Ok(bytes)
}

/// Opens a regular file, or creates one if the options say so, without ever waiting for another process.
pub fn open(options: &mut OpenOptions, path: &Path) -> Result<File, ReadError> {
    // Opening may already have an effect on a device.
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(ReadError::NotRegular);
    }
    let file = options.custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(ReadError::NotRegular) }
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn only_regular_files_of_bounded_length_are_read() {
        let place = tempfile::tempdir().expect("a directory");
        let at = |name: &str| place.path().join(name);
        fs::write(at("file"), "12345").expect("a file");
        nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).expect("a FIFO");
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
        std::os::unix::fs::symlink(at("fifo"), at("link")).expect("a link");
        std::os::unix::fs::symlink(at("file"), at("good-link")).expect("a link");
        File::create(at("huge")).expect("a file").set_len(1 << 40).expect("a hole");
        assert_eq!(read(&at("file"), 5).expect("it"), b"12345");
        assert_eq!(read(&at("good-link"), 5).expect("it"), b"12345");
        assert!(matches!(read(&at("file"), 4), Err(ReadError::TooLong(4))));
        assert!(matches!(read(&at("huge"), 1 << 20), Err(ReadError::TooLong(_))));
        for other in [at("fifo"), at("link"), at("socket"), at("."), "/dev/zero".into()] {
            let error = read(&other, 5).expect_err("not a file");
            assert!(matches!(error, ReadError::NotRegular), "{}: {error}", other.display());
        }
        for absent in [at("none"), at("file/none")] {
            assert!(read(&absent, 5).expect_err("nothing").is_absence());
        }
        assert!(open(OpenOptions::new().write(true).create(true), &at("new")).is_ok());
        assert!(open(OpenOptions::new().write(true).create(true), &at("fifo")).is_err());
    }
}
