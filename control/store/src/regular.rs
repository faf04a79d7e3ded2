//! Files that are read whole, and that are files.
//!
//! Opening a FIFO waits for its other end and opening a device can do anything, so only regular files are
//! opened, by whatever name.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::{O_NOCTTY, O_NONBLOCK};

/// The most bytes that a file is read of, unless the caller knows better.
pub const USUAL: u64 = 1 << 20;

/// Reads a regular file of `most` bytes at most.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    check(&fs::metadata(path)?)?;
    // Something else may have taken its place meanwhile.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(path)?;
    contents(file, most)
}

/// Reads a regular file of `most` bytes at most, which must be text.
pub fn read_to_string(path: &Path, most: u64) -> io::Result<String> {
    let bytes = read(path, most)?;
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

/// Fails unless this is a regular file.
pub fn check(found: &Metadata) -> io::Result<()> {
    let kind = found.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file")))
}

fn contents(file: File, most: u64) -> io::Result<Vec<u8>> {
    check(&file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_never_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let [fifo, file, link] = ["fifo", "file", "link"].map(|name| directory.path().join(name));
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO");
        std::os::unix::fs::symlink(&fifo, &link).expect("a link");
        for (path, what) in [
            (fifo.as_path(), "a FIFO"),
            (&link, "a FIFO"),
            (directory.path(), "a directory"),
            (Path::new("/dev/zero"), "a device"),
            (Path::new("/dev/tty"), "a device"),
        ] {
            let error = read(path, USUAL).expect_err(what).to_string();
            assert_eq!(error, format!("it is {what}, not a regular file"), "{}", path.display());
        }
        fs::write(&file, "four").expect("a file");
        assert_eq!(read(&file, 4).expect("it fits"), b"four");
        assert!(read(&file, 3).expect_err("too large").to_string().contains("more than 3 bytes"));
        fs::write(&file, [0xff]).expect("a file");
        assert_eq!(read_to_string(&file, 4).expect_err("no text").kind(), io::ErrorKind::InvalidData);
        assert_eq!(
            read(&directory.path().join("none"), 4).expect_err("none").kind(),
            io::ErrorKind::NotFound
        );
        // Of the kernel's files the size is not known before they are read.
        assert!(read_to_string(Path::new("/proc/self/stat"), USUAL).expect("it is regular").contains('('));
    }
}
