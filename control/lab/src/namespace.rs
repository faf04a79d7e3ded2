//! A named network namespace under `/run/netns`, as iproute2 creates them.

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::thread;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::Error;

/// The directory of named namespaces, by iproute2's convention (`NETNS_RUN_DIR`).
pub const NETNS_DIRECTORY: &str = "/run/netns";

/// A named network namespace with `lo` up. Dropping it removes the name; the kernel frees the namespace and
/// its devices once the last process and socket inside are gone.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
    handle: File,
    removed_on_drop: bool,
}

impl Namespace {
    /// Creates the namespace `name`. Fails if the name is taken or privileges are missing.
    pub fn create(name: &str) -> Result<Self, Error> {
        let tried = format!("create network namespace {name}");
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(Error::new(tried, "not a plain file name"));
        }
        let path = Path::new(NETNS_DIRECTORY).join(name);
        let lock = prepare_directory()?;
        File::options().write(true).create_new(true).open(&path).map_err(|error| {
            let taken = error.kind() == io::ErrorKind::AlreadyExists;
            let error = Error::system(&tried, error);
            if taken { error.next(format!("remove it with `ip netns delete {name}`")) } else { error }
        })?;
        if let Err(error) = bind_new(&path) {
            // Without the bind mount, nothing refers to our empty file.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        drop(lock);
        let handle = match File::open(&path) {
            Ok(handle) => handle,
            Err(error) => {
                unbind(&path);
                return Err(Error::system(tried, error));
            }
        };
        let namespace = Namespace { name: name.to_owned(), path, handle, removed_on_drop: true };
        namespace.set_up("lo")?;
        Ok(namespace)
    }

    /// Opens an existing namespace by name, for example one left by `loden demo --keep`. Dropping the value
    /// does not remove the namespace.
    pub fn open(name: &str) -> Result<Self, Error> {
        let path = Path::new(NETNS_DIRECTORY).join(name);
        let handle = File::open(&path)
            .map_err(|error| Error::system(format!("open network namespace {}", path.display()), error))?;
        Ok(Namespace { name: name.to_owned(), path, handle, removed_on_drop: false })
    }

    /// Lists the names of all namespaces under [`NETNS_DIRECTORY`] that start with `prefix`, sorted.
    pub fn names(prefix: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(NETNS_DIRECTORY) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect();
        names.sort();
        names
    }

    /// Removes a namespace by name, if it exists.
    pub fn remove(name: &str) -> Result<(), Error> {
        let path = Path::new(NETNS_DIRECTORY).join(name);
        unbind(&path);
        if path.exists() {
            return Err(Error::new(format!("remove network namespace {name}"), "it still exists"));
        }
        Ok(())
    }

    /// Returns the name under [`NETNS_DIRECTORY`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the path for `nsenter --net=PATH`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the namespace when this value is dropped.
    pub fn keep(&mut self) {
        self.removed_on_drop = false;
    }

    /// Runs `work` on its own thread inside the namespace and returns its result. Threads and sockets that
    /// `work` creates belong to the namespace. A panic in `work` is propagated.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, Error> {
        let inside = || -> Result<R, Error> {
            setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::system(format!("enter network namespace {}", self.name), errno))?;
            Ok(work())
        };
        thread::scope(|scope| {
            let worker = thread::Builder::new()
                .name(format!("in {}", self.name))
                .spawn_scoped(scope, inside)
                .map_err(|error| Error::system("start a thread", error))?;
            worker.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Starts `command` inside the namespace.
    ///
    /// The child is started by a thread that has entered the namespace, because a hook between fork and exec
    /// would require unsafe code.
    pub fn spawn(&self, command: &mut Command) -> Result<Child, Error> {
        let tried = format!("start {} in {}", command.get_program().to_string_lossy(), self.name);
        self.run(|| command.spawn())?.map_err(|error| Error::system(tried, error))
    }

    /// Runs `command` inside the namespace to completion and returns its output.
    pub fn output(&self, command: &mut Command) -> Result<Output, Error> {
        let tried = format!("run {} in {}", command.get_program().to_string_lossy(), self.name);
        self.run(|| command.output())?.map_err(|error| Error::system(tried, error))
    }

    /// Runs `command` inside the namespace to completion, with this process's input and output.
    pub fn status(&self, command: &mut Command) -> Result<ExitStatus, Error> {
        let tried = format!("run {} in {}", command.get_program().to_string_lossy(), self.name);
        self.run(|| command.status())?.map_err(|error| Error::system(tried, error))
    }

    /// Runs `work` with a route netlink connection opened inside the namespace.
    pub fn netlink<R, Work, Answer>(&self, work: Work) -> Result<R, Error>
    where
        R: Send,
        Work: FnOnce(rtnetlink::Handle) -> Answer + Send,
        Answer: Future<Output = R>,
    {
        let tried = || format!("open a netlink connection in {}", self.name);
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .map_err(|error| Error::system(tried(), error))?;
            runtime.block_on(async {
                let (connection, handle, _) =
                    rtnetlink::new_connection().map_err(|error| Error::system(tried(), error))?;
                let driver = tokio::spawn(connection);
                let answer = work(handle).await;
                driver.abort();
                Ok(answer)
            })
        })?
    }

    /// Sets a sysctl of the namespace, such as `net.ipv4.ip_forward`, with `/` in place of a dot that belongs
    /// to a device name.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<(), Error> {
        let path = sysctl_path(name);
        self.run(|| fs::write(&path, value))?
            .map_err(|error| Error::system(format!("set {name} to {value} in {}", self.name), error))
    }

    /// Reads a sysctl of the namespace, without the trailing newline.
    pub fn sysctl(&self, name: &str) -> Result<String, Error> {
        let path = sysctl_path(name);
        self.run(|| fs::read_to_string(&path))?
            .map(|text| text.trim_end().to_owned())
            .map_err(|error| Error::system(format!("read {name} in {}", self.name), error))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.removed_on_drop {
            unbind(&self.path);
        }
    }
}

/// Makes [`NETNS_DIRECTORY`] a shared mount point, so that a namespace unmounted here is unmounted in every
/// mount namespace. iproute2 does the same before its first namespace; doing it later would hide earlier
/// mounts. The returned lock blocks other processes that create namespaces.
fn prepare_directory() -> Result<Flock<File>, Error> {
    let tried = || format!("prepare {NETNS_DIRECTORY}");
    let next = "run as root, or in your own user namespace";
    fs::create_dir_all(NETNS_DIRECTORY).map_err(|error| Error::system(tried(), error).next(next))?;
    let directory = File::open(NETNS_DIRECTORY).map_err(|error| Error::system(tried(), error))?;
    let lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| Error::system(tried(), errno))?;
    let nothing: Option<&str> = None;
    let share = || mount(nothing, NETNS_DIRECTORY, nothing, MsFlags::MS_SHARED | MsFlags::MS_REC, nothing);
    // EINVAL: not a mount point yet.
    match share() {
        Err(nix::errno::Errno::EINVAL) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(NETNS_DIRECTORY), NETNS_DIRECTORY, nothing, flags, nothing)
                .and_then(|()| share())
                .map_err(|errno| Error::system(tried(), errno).next(next))?;
        }
        answer => answer.map_err(|errno| Error::system(tried(), errno).next(next))?,
    }
    Ok(lock)
}

/// Creates a network namespace on its own thread and binds it to the file at `path`.
fn bind_new(path: &Path) -> Result<(), Error> {
    let tried = || format!("create network namespace {}", path.display());
    let create = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let nothing: Option<&str> = None;
        mount(Some("/proc/thread-self/ns/net"), path, nothing, MsFlags::MS_BIND, nothing)
    };
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .spawn_scoped(scope, create)
            .map_err(|error| Error::system(tried(), error))?;
        worker
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
            .map_err(|errno| Error::system(tried(), errno).next("run as root: CAP_SYS_ADMIN is needed"))
    })
}

/// Unmounts and removes the file of a namespace. Both steps are always tried, because a half-created
/// namespace has only the file.
fn unbind(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

/// Converts a name such as `net.ipv4.conf.eth0.rp_filter` into a path: dots become slashes, and slashes dots.
fn sysctl_path(name: &str) -> PathBuf {
    let path: String = name
        .chars()
        .map(|letter| match letter {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect();
    Path::new("/proc/sys").join(path)
}
