//! A child process inside a namespace, stopped when its value is dropped.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Error, Namespace};

/// Time that a child has to exit after SIGTERM before it gets SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// Polling interval of a waiting parent.
const POLL: Duration = Duration::from_millis(10);

/// Number of bytes of a child's stderr that an error may quote.
const TAIL: u64 = 4096;

/// A running child. Dropping it sends SIGTERM, after five seconds SIGKILL, and reaps the child.
///
/// The child's stderr goes to a file, so that it never blocks on a reader; stdout goes where the command
/// sends it. The child has its own process group, so that Ctrl-C at the terminal reaches only the parent,
/// which then stops its children in order.
#[derive(Debug)]
pub struct Process {
    child: Option<Child>,
    name: String,
    stderr: File,
}

impl Process {
    /// Starts `command` in `namespace` with stderr in an unnamed file.
    pub fn spawn(namespace: &Namespace, command: &mut Command) -> Result<Self, Error> {
        let log = tempfile::tempfile().map_err(|error| Error::system("create a temporary file", error))?;
        Self::start(namespace, command, log)
    }

    /// Starts `command` in `namespace` with stderr in a new file at `log`.
    pub fn spawn_logged(namespace: &Namespace, command: &mut Command, log: &Path) -> Result<Self, Error> {
        let file = File::options()
            .read(true)
            .append(true)
            .create_new(true)
            .open(log)
            .map_err(|error| Error::system(format!("create {}", log.display()), error))?;
        Self::start(namespace, command, file)
    }

    fn start(namespace: &Namespace, command: &mut Command, stderr: File) -> Result<Self, Error> {
        let name = command.get_program().to_string_lossy().into_owned();
        let writer = stderr.try_clone().map_err(|error| Error::system("duplicate a file", error))?;
        command.stdin(Stdio::null()).stderr(writer).process_group(0);
        let child = namespace.spawn(command)?;
        Ok(Process { child: Some(child), name, stderr })
    }

    /// Returns the process ID, which stays the child's until this value is dropped.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Returns the child, for example to read its stdout.
    pub fn child(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }

    /// Returns the exit status, or `None` while the child runs.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        let Some(child) = &mut self.child else { return Ok(None) };
        child.try_wait().map_err(|error| Error::system(format!("wait for {}", self.name), error))
    }

    /// Waits at most `limit` for the child to exit.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>, Error> {
        let deadline = Instant::now() + limit;
        loop {
            match self.try_wait()? {
                None if Instant::now() < deadline => thread::sleep(POLL),
                answer => return Ok(answer),
            }
        }
    }

    /// Sends a signal, unless the child has exited.
    pub fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        // A child keeps its ID until it is reaped, so the signal cannot reach another process.
        if self.try_wait()?.is_some() || self.child.is_none() {
            return Ok(());
        }
        kill(Pid::from_raw(self.id() as i32), signal)
            .map_err(|errno| Error::system(format!("send {signal} to {}", self.name), errno))
    }

    /// Stops the child with SIGTERM, and with SIGKILL after five seconds. Returns the exit status.
    pub fn stop(&mut self) -> Result<Option<ExitStatus>, Error> {
        if self.child.is_none() {
            return Ok(None);
        }
        self.signal(Signal::SIGTERM)?;
        if let Some(status) = self.wait(GRACE)? {
            return Ok(Some(status));
        }
        self.signal(Signal::SIGKILL)?;
        self.wait(GRACE)
    }

    /// Leaves the child running. Returns its process ID.
    pub fn detach(mut self) -> u32 {
        let id = self.id();
        self.child = None;
        id
    }

    /// Returns the last 4 KiB of the child's stderr, starting at a full line and without trailing blanks.
    pub fn stderr_tail(&self) -> String {
        let read = || -> std::io::Result<(bool, Vec<u8>)> {
            // Read through a new file description, because the child shares the position of ours.
            let mut file =
                File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.stderr)))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
            let mut bytes = Vec::new();
            file.take(TAIL).read_to_end(&mut bytes)?;
            Ok((length > TAIL, bytes))
        };
        let Ok((cut, bytes)) = read() else { return String::new() };
        let text = String::from_utf8_lossy(&bytes);
        let text = match text.split_once('\n') {
            Some((_, rest)) if cut => rest,
            _ => &text,
        };
        text.trim_end().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
