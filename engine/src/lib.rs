//! The loop: one worker a core, run to completion.
//!
//! ```text
//! control ── publish(Fib) ──► mailbox ──► worker 0: queue 0 of each TUN, socket 0 of each port
//!    ▲                               └──► worker 1: queue 1 of each TUN, socket 1 of each port
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
pub mod status;
#[doc(hidden)]
pub mod testing;
mod tunnel;
pub mod wireguard;
mod worker;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use io::{Waiter, Waker};
use path::Fib;

pub use config::{Config, Switches, TunnelConfig, WaitPolicy};
pub use event::{Event, Notice};
pub use io::Error;
pub use status::{Status, TunnelStatus};

use crate::event::Events;
use crate::layout::Opened;
use crate::port::Port;
use crate::snapshot::Publisher;
use crate::status::Page;
use crate::tunnel::{Parts, Tunnel};
use crate::wireguard::crypt::Crypt;
use crate::worker::Worker;

/// A running engine. Dropping it stops it.
pub struct Engine {
    threads: Vec<Running>,
    stop: Arc<AtomicBool>,
    tunnels: Vec<Handle>,
    notices: Receiver<Notice>,
}

struct Running {
    thread: Mutex<Option<JoinHandle<()>>>,
    waker: Waker,
}

/// What control holds of one tunnel.
struct Handle {
    device: String,
    publisher: Publisher<Fib>,
    /// Memory of the newest table.
    table_bytes: AtomicUsize,
    pages: Vec<Arc<Page>>,
    persist: bool,
    /// The handshakes of a tunnel that has some.
    wireguard: Option<wireguard::Handle>,
    /// `None` once the engine has stopped.
    keeper: Mutex<Option<io::tun::Keeper>>,
    chosen: Chosen,
}

/// What a tunnel really got, after probing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Name of the TUN device as the kernel gave it.
    pub device: String,
    /// Workers, and so queues and listening sockets.
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
    pub fn start(config: &Config, tunnels: &[TunnelConfig]) -> Result<Engine, Error> {
        let mut opened = Vec::new();
        // A host that needs no tunnel needs no worker.
        let mut workers = if tunnels.is_empty() { 0 } else { layout::workers(config) };
        for tunnel in tunnels {
            let one = Opened::open(config, tunnel, workers)?;
            // A device with fewer queues than asked for bounds all tunnels: a worker owns one of each.
            workers = workers.min(one.queues.len());
            opened.push(one);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, notices) = event::channel();
        let mut shares: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
        let (mut handles, mut keepers) = (Vec::new(), Vec::new());
        for (index, (mut one, tunnel)) in opened.into_iter().zip(tunnels).enumerate() {
            let (publisher, readers) = snapshot::channel(Arc::clone(&tunnel.table), workers);
            let pages: Vec<_> = (0..workers).map(|_| Page::new()).collect();
            one.chosen.workers = workers;
            let wireguard = tunnel
                .wireguard
                .as_ref()
                .map(|settings| (settings, wireguard::Parts::new(workers, settings)));
            let crypt = |worker| {
                let (_, parts) = wireguard.as_ref()?;
                Some(Box::new(Crypt::new(parts, worker, tunnel.mtu.get())))
            };
            let aside = one.ports.first().map(Port::aside).transpose()?.flatten();
            let ports = one.queues.into_iter().zip(one.ports).zip(readers).enumerate();
            for ((worker, ((queue, port), fib)), share) in ports.zip(&mut shares) {
                let parts = Parts {
                    fib,
                    mtu: tunnel.mtu.get(),
                    lanes: tunnel.fan.max(1),
                    switches: one.chosen.features,
                    events: Events { tunnel: index, worker, sender: sender.clone() },
                    crypt: crypt(worker),
                };
                share.push((Tunnel::new(queue, port, parts), Arc::clone(&pages[worker])));
            }
            handles.push(Handle {
                device: one.chosen.device.clone(),
                publisher,
                table_bytes: AtomicUsize::new(tunnel.table.bytes()),
                pages,
                persist: tunnel.persist,
                keeper: Mutex::new(Some(one.keeper)),
                wireguard: None,
                chosen: one.chosen,
            });
            keepers.extend(
                wireguard.zip(aside).map(|((settings, parts), aside)| (index, settings, parts, aside)),
            );
        }
        let mut engine = Engine { threads: Vec::new(), stop, tunnels: handles, notices };
        let cores = layout::cores();
        for (index, share) in shares.into_iter().enumerate() {
            let failed = |cause| Error::new(format!("starting worker {index}"), cause);
            let waiter = Waiter::new().map_err(failed)?;
            let waker = waiter.waker();
            let (tunnels, pages) = share.into_iter().unzip();
            let stop = Arc::clone(&engine.stop);
            let mut worker = Worker::new(tunnels, pages, waiter, config.wait, stop).map_err(failed)?;
            let core = config.pin.then(|| cores[index % cores.len()]);
            let failure = Events { tunnel: 0, worker: index, sender: sender.clone() };
            let thread = std::thread::Builder::new()
                .name(format!("loden-w{index}"))
                .spawn(move || {
                    if let Some(core) = core {
                        // A core that was taken away since is no reason not to run.
                        let _ = io::thread::pin_to_core(core);
                    }
                    // Nothing in a worker panics by intent. If one does, control must hear of it, since the
                    // queue and the socket are gone and the rest goes on as if nothing were.
                    let why = match catch_unwind(AssertUnwindSafe(|| worker.run())) {
                        Ok(Ok(())) => return,
                        Ok(Err(error)) => format!("waiting for packets: {error}"),
                        Err(_) => "it panicked; the message is above".to_owned(),
                    };
                    failure.send(Event::WorkerFailed(why));
                })
                .map_err(failed)?;
            engine.threads.push(Running { thread: Mutex::new(Some(thread)), waker });
        }
        for (index, settings, parts, aside) in keepers {
            let wakers = engine.threads.iter().map(|running| running.waker.clone()).collect();
            let started = wireguard::keeper::start(index, settings, parts, aside, wakers);
            let handle = started.map_err(|cause| Error::new("starting the handshakes' thread", cause))?;
            if let Some(tunnel) = engine.tunnels.get_mut(index) {
                tunnel.wireguard = Some(handle);
            }
        }
        Ok(engine)
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
        if let Some(handle) = self.tunnels.get(index).and_then(|tunnel| tunnel.wireguard.as_ref()) {
            handle.set_peers(peers);
        }
    }

    /// How the peers of a WireGuard tunnel are, by key; `None` if it is none, or too busy with handshakes to say.
    pub fn peers(&self, index: usize) -> Option<Vec<wireguard::PeerStatus>> {
        let handle = self.tunnels.get(index).and_then(|tunnel| tunnel.wireguard.as_ref());
        handle?.status()
    }

    /// Memory of each tunnel's newest table, in bytes. The workers share it.
    pub fn table_bytes(&self) -> impl Iterator<Item = usize> {
        self.tunnels.iter().map(|tunnel| tunnel.table_bytes.load(Ordering::Relaxed))
    }

    /// What each tunnel got of what it asked for.
    pub fn chosen(&self) -> impl Iterator<Item = &Chosen> {
        self.tunnels.iter().map(|tunnel| &tunnel.chosen)
    }

    /// Makes those devices outlive this engine that were opened to do so. Until then an engine that ends takes new
    /// devices with it.
    pub fn keep_devices(&self) -> Result<(), Error> {
        for tunnel in &self.tunnels {
            let keeper = tunnel.keeper.lock().unwrap_or_else(PoisonError::into_inner);
            keeper.as_ref().filter(|_| tunnel.persist).map_or(Ok(()), io::tun::Keeper::keep)?;
        }
        Ok(())
    }

    /// All counters as they are now. Never stops a worker.
    pub fn status(&self) -> Status {
        let tunnels = self.tunnels.iter().map(|t| TunnelStatus::read(&t.device, &t.pages)).collect();
        Status { tunnels }
    }

    /// What workers had to say since the last call.
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
            if let Some(handle) = &tunnel.wireguard {
                handle.stop();
            }
            tunnel.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
