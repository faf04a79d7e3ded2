//! Atomic replacement of a file.
//!
//! The new file is written beside the old one, synced, and renamed over it: a reader sees the old bytes or
//! the new ones, and a program that runs from the old file continues. A rename would put a file in the place
//! of a device or a pipe as well, so such paths are refused, or written into.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use tempfile::NamedTempFile;

use store::regular;

/// The permission bits of a mode.
const MODE_BITS: u32 = 0o7777;

/// Length of the random end of a temporary file's name.
const RANDOM: usize = 6;
/// MAXSYMLINKS (linux/namei.h).
const MOST_LINKS: usize = 40;

/// A file that could not be replaced, with the step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {source}")]
pub struct WriteError {
    /// The step that failed, as an imperative followed by the path.
    pub what: &'static str,
    /// The file to replace.
    pub path: PathBuf,
    /// The system's error.
    #[source]
    pub source: io::Error,
}

/// Replaces the file unless it has these bytes and this mode already. Returns true if it was written. The
/// umask has no effect. A symbolic link is replaced itself; a device, a pipe or a socket is refused.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<bool, WriteError> {
    let mode = mode & MODE_BITS;
    let failed = |what| move |source| WriteError { what, path: path.to_owned(), source };
    sweep(path);
    if is_already_so(path, bytes, mode) {
        return Ok(false);
    }
    check_target(path).map_err(failed("replace"))?;
    let mut file = temporary(path).map_err(failed("create a temporary file for"))?;
    // On the file itself: an error of the wrapper contains the temporary name, which is always another.
    file.as_file_mut()
        .write_all(bytes)
        .and_then(|()| file.as_file().set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| file.as_file().sync_all())
        .map_err(failed("write"))?;
    file.persist(path).map_err(|error| failed("rename a temporary file to")(error.error))?;
    // The rename survives a power failure only once the directory is synced as well.
    File::open(parent(path))
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync the directory of"))?;
    Ok(true)
}

/// Writes to whatever the path leads to, as a shell's redirection does: a regular file is replaced as
/// [`write()`] does, also at the end of a symbolic link, and a device, a pipe or an open file of a process
/// (`/dev/stdout`) is written into. Returns true if it was written.
pub fn write_through(path: &Path, bytes: &[u8], mode: u32) -> Result<bool, WriteError> {
    let failed = |what| move |source| WriteError { what, path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(there) if is_open_file(path) || !there.is_file() && !there.is_dir() => {
            // Without a reader, opening a FIFO would wait for one. An open file may have text already.
            let options = File::options().append(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
            options.and_then(|mut stream| stream.write_all(bytes)).map_err(failed("write into"))?;
            Ok(true)
        }
        Ok(_) if path.is_symlink() => {
            let target = fs::canonicalize(path).map_err(failed("find the target of"))?;
            write(&target, bytes, mode)
        }
        _ => write(path, bytes, mode),
    }
}

/// Fails if a file cannot take the path's place, because the path names a device, a pipe, a socket or an open
/// file of a process, as `/dev/null` and `/dev/stdout` do.
pub fn check_target(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        // The rename will say so.
        Ok(there) if there.is_dir() => Ok(()),
        Ok(_) if is_open_file(path) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is an open file of a process, not a file name",
        )),
        Ok(there) => regular::check(&there),
        // A path that leads nowhere is the next steps' to report.
        Err(_) => Ok(()),
    }
}

/// Creates a file beside the path, on the same filesystem, to be renamed to it. What earlier calls left when
/// they were killed is removed. On an error, dropping the file removes it.
pub fn temporary(path: &Path) -> io::Result<NamedTempFile> {
    sweep(path);
    loop {
        let file = tempfile::Builder::new()
            .prefix(&prefix(path))
            .rand_bytes(RANDOM)
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(parent(path))
            .map_err(without_name)?;
        // Locked while it is written, so that no sweep takes it. One that did so before has removed it.
        let _ = file.as_file().try_lock();
        if file.path().exists() {
            return Ok(file);
        }
    }
}

/// Removes temporary files of this path that nobody writes any more.
fn sweep(path: &Path) {
    let prefix = prefix(path);
    for entry in fs::read_dir(parent(path)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let random = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        let is_ours = random.is_some_and(|random| {
            random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        if !is_ours || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        if File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn prefix(path: &Path) -> String {
    format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Returns true if the path leads through a link that stands for an open file (proc_pid_fd(5)), which is not
/// the name of that file.
fn is_open_file(path: &Path) -> bool {
    let mut place = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(target) = fs::read_link(&place) else { return false };
        if statfs(parent(&place)).is_ok_and(|system| system.filesystem_type() == PROC_SUPER_MAGIC) {
            return true;
        }
        place = parent(&place).join(target);
    }
    false
}

/// Returns an error of tempfile's without the temporary name, which is another one each time.
fn without_name(error: io::Error) -> io::Error {
    let text = error.to_string();
    match text.split_once(" at path ") {
        Some((plain, _)) => io::Error::new(error.kind(), plain.to_owned()),
        None => error,
    }
}

/// Returns the directory that contains the path.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn is_already_so(path: &Path, bytes: &[u8], mode: u32) -> bool {
    fs::metadata(path).is_ok_and(|there| {
        there.is_file() && there.len() == bytes.len() as u64 && there.mode() & MODE_BITS == mode
    }) && regular::read(path, bytes.len() as u64).is_ok_and(|there| there == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_bytes_or_mode_is_written() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("file");
        assert!(write(&path, b"one", 0o644).expect("first"));
        assert!(!write(&path, b"one", 0o644).expect("same"));
        assert!(write(&path, b"two", 0o644).expect("bytes"));
        assert!(write(&path, b"two", 0o755).expect("mode"));
        let there = fs::metadata(&path).expect("file");
        assert_eq!((fs::read(&path).expect("read"), there.mode() & MODE_BITS), (b"two".to_vec(), 0o755));
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1);
    }

    #[test]
    fn an_open_file_keeps_its_bytes() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("file");
        write(&path, b"old", 0o644).expect("first");
        let mut reader = File::open(&path).expect("open");
        write(&path, b"new", 0o644).expect("second");
        assert_eq!(io::read_to_string(&mut reader).expect("read"), "old");
    }

    #[test]
    fn what_is_no_file_is_refused_or_written_into() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        use std::os::unix::net::UnixListener;

        let directory = tempfile::tempdir().expect("directory");
        let at = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let _listener = UnixListener::bind(at("socket")).expect("a socket");
        symlink("/dev/null", at("null")).expect("a link");
        symlink(at("null"), at("null of null")).expect("a link");
        for name in ["fifo", "socket", "null", "null of null"] {
            let error = write(&at(name), b"bytes", 0o644).expect_err(name).to_string();
            assert!(error.contains("cannot replace") && error.contains("not a regular file"), "{error}");
        }
        // Nobody reads, so nobody waits.
        let error = write_through(&at("fifo"), b"bytes", 0o644).expect_err("no reader").to_string();
        assert!(error.contains("cannot write into"), "{error}");
        write_through(&at("socket"), b"bytes", 0o644).expect_err("not to be opened");
        assert!(write_through(&at("null of null"), b"bytes", 0o644).expect("written into"));
        let mut reader = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(at("fifo"));
        let reader = reader.as_mut().expect("a reader");
        assert!(write_through(&at("fifo"), b"bytes", 0o644).expect("written into"));
        assert_eq!(io::read_to_string(reader).expect("read"), "bytes");
        let kind = |name: &str| fs::symlink_metadata(at(name)).expect("there").file_type();
        assert!(kind("fifo").is_fifo() && kind("socket").is_socket() && kind("null").is_symlink());
        assert!(fs::metadata("/dev/null").expect("there").file_type().is_char_device());
    }

    #[test]
    fn an_open_file_of_a_process_is_not_renamed() {
        use std::os::fd::AsRawFd;

        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("out");
        let mut out = File::create(&path).expect("a file");
        out.write_all(b"before\n").expect("written");
        let name = PathBuf::from(format!("/dev/fd/{}", out.as_raw_fd()));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&name, &link).expect("a link");
        for place in [&name, &link] {
            let error = write(place, b"x", 0o644).expect_err("an open file").to_string();
            assert!(error.contains("open file"), "{error}");
            assert!(write_through(place, b"more\n", 0o644).expect("written into"));
        }
        assert_eq!(fs::read_to_string(&path).expect("read"), "before\nmore\nmore\n");
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 2);
    }

    #[test]
    fn a_link_is_replaced_or_followed() {
        let directory = tempfile::tempdir().expect("directory");
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("below")).expect("a directory");
        fs::write(at("below/file"), "old").expect("a file");
        std::os::unix::fs::symlink("below/file", at("link")).expect("a link");
        std::os::unix::fs::symlink("nowhere", at("dangling")).expect("a link");
        assert!(write_through(&at("link"), b"new", 0o644).expect("followed"));
        assert!(at("link").is_symlink());
        assert_eq!(fs::read(at("below/file")).expect("read"), b"new");
        assert!(!write_through(&at("link"), b"new", 0o644).expect("the same"));
        for name in ["link", "dangling"] {
            assert!(write(&at(name), b"newest", 0o644).expect("replaced"));
            assert!(!at(name).is_symlink());
        }
        assert_eq!(fs::read(at("below/file")).expect("read"), b"new");
    }

    #[test]
    fn files_of_killed_writers_are_swept_and_those_of_others_stay() {
        let directory = tempfile::tempdir().expect("directory");
        let at = |name: &str| directory.path().join(name);
        let path = at("flannel");
        let left = [".flannel.aB3dE9", ".flannel.000000"];
        let others =
            [".flannel.short", ".flannel.seven77", ".flannel.a-b_c.", ".loden.aB3dE9", "flannel.aB3dE9"];
        for name in left.iter().chain(&others) {
            fs::write(at(name), "partial").expect("a file");
        }
        let busy = temporary(&path).expect("another writer's");
        assert!(write(&path, b"bytes", 0o755).expect("written"));
        assert!(left.iter().all(|name| !at(name).exists()) && others.iter().all(|name| at(name).exists()));
        assert!(busy.path().exists());
        busy.persist(&path).expect("renamed");
        // Also if there is nothing to write.
        assert!(write(&path, b"bytes", 0o755).expect("written"));
        fs::write(at(left[0]), "partial").expect("a file");
        assert!(!write(&path, b"bytes", 0o755).expect("the same"));
        assert!(!at(left[0]).exists());
    }

    #[test]
    fn a_failure_is_the_same_text_each_time() {
        let nowhere = Path::new("/no/such/directory/file");
        let errors = [(); 2].map(|()| write(nowhere, b"bytes", 0o644).expect_err("nowhere").to_string());
        assert_eq!(errors[0], errors[1]);
        assert!(errors[0].contains("/no/such/directory/file: No such file"), "{}", errors[0]);
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_no_other() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("taken");
        fs::create_dir(&path).expect("a directory in the way");
        let error = write(&path, b"bytes", 0o644).expect_err("a directory").to_string();
        assert!(error.contains("taken"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1);
    }
}
