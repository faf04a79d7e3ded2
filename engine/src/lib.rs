//! The worker loop: one worker per core, run to completion.
//!
//! ```text
//! control ── publish(Fib) ──► mailbox ──► worker 0: some queues of each TUN, wire with socket 0 of each port
//!    ▲                               └──► worker 1: the other queues, wire with socket 1 of each port
//!    └── status(), notices() ◄── counter pages, few events
//! ```
//!
//! [`Engine::start`] opens devices and sockets, then starts the threads; control assigns addresses to the
//! devices and publishes tables; [`Engine::stop`] ends the threads and closes everything. A flow stays on one
//! worker in both directions: the kernel selects a socket by the outer flow, and the TUN learns the queue
//! from writes.
//!
//! Start reading at `worker`, then `tunnel`. The crate `path` decides what happens to a packet.

mod bounds;
mod clock;
pub mod config;
mod event;
mod layout;
mod own_nat;
mod path_mtu;
mod port;
pub mod selftest;
pub mod snapshot;
mod start;
pub mod status;
#[doc(hidden)]
pub mod testing;
mod tunnel;
pub mod unread;
pub mod wireguard;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use io::Waker;
use io::scheduler::Attention;
use path::Fib;

pub use config::{EngineConfig, Switches, TunnelConfig, WaitPolicy};
pub use event::{Event, Notice};
pub use io::Error;
pub use io::tun::ensure_node;
pub use status::{Status, TunnelStatus};

use crate::snapshot::Publisher;
use crate::status::Page;

/// A running engine. Dropping it stops it.
pub struct Engine {
    threads: Vec<RunningWorker>,
    stop: Arc<AtomicBool>,
    tunnels: Vec<RunningTunnel>,
    notices: Receiver<Notice>,
    learner: Option<path_mtu::LearnerHandle>,
    /// Why there are fewer workers than configured.
    shortage: Option<String>,
}

struct RunningWorker {
    thread: Mutex<Option<JoinHandle<()>>>,
    waker: Waker,
    attention: Attention,
}

/// Control's part of one tunnel.
struct RunningTunnel {
    device: String,
    publisher: Publisher<Fib>,
    /// Size of the newest table.
    table_bytes: AtomicUsize,
    pages: Vec<Arc<Page>>,
    unread: Option<unread::Meter>,
    paths: Arc<path_mtu::Paths>,
    persist: bool,
    /// Set while datagrams must not be joined.
    paused: Arc<AtomicBool>,
    /// The keeper of a WireGuard tunnel.
    keeper: Option<wireguard::KeeperHandle>,
    /// Keeps the device in use; `None` once the engine has stopped.
    hold: Mutex<Option<io::tun::Hold>>,
    chosen: Chosen,
}

/// What a tunnel uses after probing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The name that the kernel assigned to the TUN device.
    pub device: String,
    /// Number of workers and of listening sockets.
    pub workers: usize,
    /// Packets that may wait in each queue of the device. The engine does not set this length: whoever
    /// configures the device does.
    pub queue_length: u32,
    /// Whether the kernel limits the bytes that wait in each queue, not only the packets.
    pub limited: bool,
    /// Source ports, which all workers share.
    pub source_ports: Vec<u16>,
    /// The features in use.
    pub features: Switches,
    /// One sentence for each requested feature that was not granted.
    pub notes: Vec<String>,
}

impl RunningTunnel {
    fn chosen(&self) -> Chosen {
        let mut chosen = self.chosen.clone();
        if self.paused.load(Ordering::Relaxed) {
            chosen.features.gso = false;
            chosen.notes.push(PAUSED.to_owned());
        }
        chosen
    }
}

/// Why a tunnel's datagrams are not joined for the time being.
const PAUSED: &str = "gso is paused: this host translates the tunnel's source address towards an interface \
    without checksum offload";

impl Engine {
    /// Opens the devices and sockets of all tunnels and starts the workers. A new device is down and has no
    /// address; one that an earlier run left behind forwards immediately. On an error nothing stays open.
    pub fn start(config: &EngineConfig, tunnels: &[TunnelConfig]) -> Result<Engine, Error> {
        start::start(config, tunnels)
    }

    /// Makes tunnel `index` use `table`, from each worker's next turn on.
    pub fn publish(&self, index: usize, table: &Arc<Fib>) {
        if let Some(tunnel) = self.tunnels.get(index) {
            tunnel.paths.renew(table);
            tunnel.publisher.publish(table);
            tunnel.table_bytes.store(table.bytes(), Ordering::Relaxed);
            // A sleeping worker would otherwise keep the old table until its next packet.
            for running in &self.threads {
                let _ = running.waker.wake();
            }
        }
    }

    /// Replaces the peers of a WireGuard tunnel. Peers that remain keep their sessions.
    pub fn set_peers(&self, index: usize, peers: Vec<wireguard::PeerConfig>) {
        if let Some(keeper) = self.keeper(index) {
            keeper.set_peers(peers);
        }
    }

    /// Returns the state of a WireGuard tunnel's peers, ordered by key. Returns `None` for other tunnels, and
    /// if the keeper is too busy with handshakes to answer.
    pub fn peers(&self, index: usize) -> Option<Vec<wireguard::PeerStatus>> {
        self.keeper(index)?.status()
    }

    fn keeper(&self, index: usize) -> Option<&wireguard::KeeperHandle> {
        self.tunnels.get(index)?.keeper.as_ref()
    }

    /// Returns the size of each tunnel's newest table in bytes. The workers share it.
    pub fn table_bytes(&self) -> impl Iterator<Item = usize> {
        self.tunnels.iter().map(|tunnel| tunnel.table_bytes.load(Ordering::Relaxed))
    }

    /// Returns what each tunnel uses now.
    pub fn chosen(&self) -> impl Iterator<Item = Chosen> {
        self.tunnels.iter().map(RunningTunnel::chosen)
    }

    /// Returns what the scheduler grants each worker.
    pub fn attention(&self) -> impl Iterator<Item = &Attention> {
        self.threads.iter().map(|running| &running.attention)
    }

    /// Returns why there are fewer workers than configured, if a limit of this process is the reason.
    pub fn shortage(&self) -> Option<&str> {
        self.shortage.as_deref()
    }

    /// Makes the devices configured to persist outlive this engine. Until then new devices disappear with the
    /// engine.
    pub fn keep_devices(&self) -> Result<(), Error> {
        for tunnel in &self.tunnels {
            let hold = tunnel.hold.lock().unwrap_or_else(PoisonError::into_inner);
            hold.as_ref().filter(|_| tunnel.persist).map_or(Ok(()), io::tun::Hold::keep)?;
        }
        Ok(())
    }

    /// Returns the current counters. Never stops a worker.
    pub fn status(&self) -> Status {
        let read = |tunnel: &RunningTunnel| {
            let unread = tunnel.unread.as_ref().map(unread::Meter::read).unwrap_or_default();
            TunnelStatus::read(&tunnel.device, &tunnel.pages, tunnel.paths.status(), unread)
        };
        Status { tunnels: self.tunnels.iter().map(read).collect() }
    }

    /// Returns the notices that workers have sent since the last call.
    pub fn notices(&self) -> impl Iterator<Item = Notice> + '_ {
        self.notices.try_iter()
    }

    /// Stops the workers and closes devices and sockets. Counters remain readable.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        for running in &self.threads {
            let _ = running.waker.wake();
        }
        for running in &self.threads {
            let thread = running.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(thread) = thread {
                // A worker that panicked has nothing left to close.
                let _ = thread.join();
            }
        }
        if let Some(learner) = &self.learner {
            learner.stop();
        }
        for tunnel in &self.tunnels {
            if let Some(keeper) = &tunnel.keeper {
                keeper.stop();
            }
            if let Some(unread) = &tunnel.unread {
                unread.stop();
            }
            tunnel.hold.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
