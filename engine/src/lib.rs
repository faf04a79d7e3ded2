//! The loop: one worker a core, run to completion.
//!
//! ```text
//! control ── publish(Fib) ──► mailbox ──► worker 0: queue 0 of each TUN, and a wire with socket 0 of each port
//!    ▲                               └──► worker 1: queue 1 of each TUN, and a wire with socket 1 of each port
//!    └── status(), notices() ◄── counter pages, few events
//! ```
//!
//! [`Engine::start`] opens devices and sockets, then starts the threads; control addresses the devices and
//! publishes tables; [`Engine::stop`] ends the threads and closes everything. A flow stays on one worker both
//! ways: the kernel picks a socket by the outer flow, and the TUN learns the queue from our writes.
//!
//! Start reading at `worker`, then `tunnel`; what happens to a packet is in the crate `path`.

pub mod config;
mod event;
mod layout;
mod port;
pub mod selftest;
pub mod snapshot;
mod start;
pub mod status;
#[doc(hidden)]
pub mod testing;
mod tunnel;
pub mod wireguard;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use io::Waker;
use path::Fib;

pub use config::{EngineConfig, Switches, TunnelConfig, WaitPolicy};
pub use event::{Event, Notice};
pub use io::Error;
pub use status::{Status, TunnelStatus};

use crate::snapshot::Publisher;
use crate::status::Page;

/// A running engine. Dropping it stops it.
pub struct Engine {
    threads: Vec<RunningWorker>,
    stop: Arc<AtomicBool>,
    tunnels: Vec<RunningTunnel>,
    notices: Receiver<Notice>,
}

struct RunningWorker {
    thread: Mutex<Option<JoinHandle<()>>>,
    waker: Waker,
}

/// What control holds of one tunnel.
struct RunningTunnel {
    device: String,
    publisher: Publisher<Fib>,
    /// Memory of the newest table.
    table_bytes: AtomicUsize,
    pages: Vec<Arc<Page>>,
    persist: bool,
    /// For a tunnel that makes handshakes.
    keeper: Option<wireguard::KeeperHandle>,
    /// Keeps the device in use; `None` once the engine has stopped.
    hold: Mutex<Option<io::tun::Hold>>,
    chosen: Chosen,
}

/// What a tunnel really got, after probing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Name of the TUN device as the kernel gave it.
    pub device: String,
    /// Workers, and so listening sockets; and queues, unless another number was asked for.
    pub workers: usize,
    /// Source ports of all workers.
    pub source_ports: Vec<u16>,
    /// The features in use.
    pub features: Switches,
    /// One sentence for each feature that was wanted and not granted.
    pub notes: Vec<String>,
}

impl Engine {
    /// Opens the devices and sockets of all tunnels and starts the workers. A new device is down and has no
    /// address; one that an earlier run has left forwards at once. On an error nothing stays open.
    pub fn start(config: &EngineConfig, tunnels: &[TunnelConfig]) -> Result<Engine, Error> {
        start::start(config, tunnels)
    }

    /// Makes `table` the one that tunnel `index` uses, from each worker's next turn on.
    pub fn publish(&self, index: usize, table: &Arc<Fib>) {
        if let Some(tunnel) = self.tunnels.get(index) {
            tunnel.publisher.publish(table);
            tunnel.table_bytes.store(table.bytes(), Ordering::Relaxed);
            // A sleeping worker would otherwise hold the old table until its next packet.
            for running in &self.threads {
                let _ = running.waker.wake();
            }
        }
    }

    /// Makes these the peers of a WireGuard tunnel. Sessions of those that stay go on.
    pub fn set_peers(&self, index: usize, peers: Vec<wireguard::PeerConfig>) {
        if let Some(keeper) = self.keeper(index) {
            keeper.set_peers(peers);
        }
    }

    /// Returns the state of the peers of a WireGuard tunnel, by key. `None` for another tunnel, and for one too busy with
    /// handshakes to answer.
    pub fn peers(&self, index: usize) -> Option<Vec<wireguard::PeerStatus>> {
        self.keeper(index)?.status()
    }

    fn keeper(&self, index: usize) -> Option<&wireguard::KeeperHandle> {
        self.tunnels.get(index)?.keeper.as_ref()
    }

    /// Memory of each tunnel's newest table, in bytes. The workers share it.
    pub fn table_bytes(&self) -> impl Iterator<Item = usize> {
        self.tunnels.iter().map(|tunnel| tunnel.table_bytes.load(Ordering::Relaxed))
    }

    /// What each tunnel got of what it asked for.
    pub fn chosen(&self) -> impl Iterator<Item = &Chosen> {
        self.tunnels.iter().map(|tunnel| &tunnel.chosen)
    }

    /// Makes the devices that were opened to persist outlive this engine. Until then an engine that ends takes new
    /// devices with it.
    pub fn keep_devices(&self) -> Result<(), Error> {
        for tunnel in &self.tunnels {
            let hold = tunnel.hold.lock().unwrap_or_else(PoisonError::into_inner);
            hold.as_ref().filter(|_| tunnel.persist).map_or(Ok(()), io::tun::Hold::keep)?;
        }
        Ok(())
    }

    /// All counters as they are now. Never stops a worker.
    pub fn status(&self) -> Status {
        let tunnels = self.tunnels.iter().map(|t| TunnelStatus::read(&t.device, &t.pages)).collect();
        Status { tunnels }
    }

    /// Takes the notices that workers have sent since the last call.
    pub fn notices(&self) -> impl Iterator<Item = Notice> + '_ {
        self.notices.try_iter()
    }

    /// Stops the workers and closes devices and sockets. Counters stay readable.
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
        for tunnel in &self.tunnels {
            if let Some(keeper) = &tunnel.keeper {
                keeper.stop();
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
