//! Starting an engine: open everything, deal it out to the workers, start the threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};

use crossbeam_channel::Sender;
use io::udp::Aside;
use io::{Error, Waiter, tun};
use path::WorkerIndex;

use crate::config::{EngineConfig, TunnelConfig};
use crate::event::{self, Event, Notice, Notifier};
use crate::layout::{self, OpenTunnel};
use crate::port::Port;
use crate::status::Page;
use crate::tunnel::{Parts, Sealing, Tunnel};
use crate::wireguard::crypt::Crypt;
use crate::wireguard::{Settings, Shared, keeper};
use crate::worker::{Wire, Worker};
use crate::{Engine, RunningTunnel, RunningWorker, snapshot};

/// What one worker is given.
#[derive(Default)]
struct Share {
    /// Each with the tunnel that it serves.
    ports: Vec<(usize, Port)>,
    tunnels: Vec<Tunnel<tun::Queue>>,
    pages: Vec<Arc<Page>>,
}

/// What a keeper is started with.
struct KeeperParts<'c> {
    settings: &'c Settings,
    shared: Shared,
    socket: Aside,
}

pub(crate) fn start(config: &EngineConfig, tunnels: &[TunnelConfig]) -> Result<Engine, Error> {
    let mut opened = Vec::new();
    // A host that needs no tunnel needs no worker.
    let mut workers = if tunnels.is_empty() { 0 } else { layout::workers(config) };
    for tunnel in tunnels {
        let one = OpenTunnel::open(config, tunnel, workers)?;
        // A device with fewer queues than workers bounds the workers of all tunnels: each owns a queue of every device.
        workers = one.chosen.workers;
        opened.push(one);
    }
    let (sender, notices) = event::channel();
    let mut shares: Vec<Share> = (0..workers).map(|_| Share::default()).collect();
    let (mut running, mut keepers) = (Vec::new(), Vec::new());
    for (index, (mut one, tunnel)) in opened.into_iter().zip(tunnels).enumerate() {
        one.shrink(config, workers);
        let (tunnel, keeper) = deal(index, one, tunnel, &mut shares, &sender)?;
        running.push(tunnel);
        keepers.push(keeper);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut engine = Engine { threads: Vec::new(), stop, tunnels: running, notices };
    let cores = layout::cores();
    for (index, share) in (0..).map(WorkerIndex).zip(shares) {
        let core = config.pin.then(|| cores[index.place() % cores.len()]);
        let notifier = Notifier { tunnel: 0, worker: index, sender: sender.clone() };
        let worker = run(config, share, core, notifier, Arc::clone(&engine.stop))
            .map_err(|cause| Error::new(format!("starting worker {index}"), cause))?;
        engine.threads.push(worker);
    }
    for (index, keeper) in keepers.into_iter().enumerate() {
        let Some(KeeperParts { settings, shared, socket }) = keeper else { continue };
        let wakers = engine.threads.iter().map(|running| running.waker.clone()).collect();
        let handle = keeper::start(index, settings, shared, socket, wakers)
            .map_err(|cause| Error::new("starting the handshakes' thread", cause))?;
        if let Some(tunnel) = engine.tunnels.get_mut(index) {
            tunnel.keeper = Some(handle);
        }
    }
    Ok(engine)
}

/// Deals one tunnel's queues and ports out to the workers. Returns what control keeps of it, and what its keeper is to be
/// started with, if it has one.
fn deal<'c>(
    index: usize,
    one: OpenTunnel,
    tunnel: &'c TunnelConfig,
    shares: &mut [Share],
    sender: &Sender<Notice>,
) -> Result<(RunningTunnel, Option<KeeperParts<'c>>), Error> {
    let workers = shares.len();
    let (publisher, readers) = snapshot::channel(Arc::clone(&tunnel.table), workers);
    let pages: Vec<_> = (0..workers).map(|_| Page::new()).collect();
    let keeper = match &tunnel.wireguard {
        Some(settings) => {
            one.ports.first().map(Port::aside).transpose()?.flatten().map(|socket| KeeperParts {
                settings,
                shared: Shared::new(workers, settings),
                socket,
            })
        }
        None => None,
    };
    let mut queues: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    for (number, queue) in one.queues.into_iter().enumerate() {
        queues[layout::owner(number, workers).place()].push(queue);
    }
    let each = (0..).map(WorkerIndex).zip(shares).zip(queues.into_iter().zip(one.ports).zip(readers));
    for ((worker, share), ((queues, port), fib)) in each {
        let sealing = keeper.as_ref().map_or(Sealing::Plain, |keeper| {
            Sealing::Wireguard(Box::new(Crypt::new(&keeper.shared, worker, tunnel.mtu.get())))
        });
        let parts = Parts {
            fib,
            mtu: tunnel.mtu.get(),
            lanes: tunnel.fan.max(1),
            switches: one.chosen.features,
            notifier: Notifier { tunnel: index, worker, sender: sender.clone() },
            sealing,
        };
        share.ports.push((index, port));
        share.tunnels.push(Tunnel::new(queues, parts));
        share.pages.push(Arc::clone(&pages[worker.place()]));
    }
    let running = RunningTunnel {
        device: one.chosen.device.clone(),
        publisher,
        table_bytes: AtomicUsize::new(tunnel.table.bytes()),
        pages,
        persist: tunnel.persist,
        keeper: None,
        hold: Mutex::new(Some(one.hold)),
        chosen: one.chosen,
    };
    Ok((running, keeper))
}

/// Starts one worker's thread.
fn run(
    config: &EngineConfig,
    share: Share,
    core: Option<usize>,
    notifier: Notifier,
    stop: Arc<AtomicBool>,
) -> std::io::Result<RunningWorker> {
    let waiter = Waiter::new()?;
    let waker = waiter.waker();
    let wire = Wire::new(share.ports);
    let mut worker = Worker::new(wire, share.tunnels, share.pages, waiter, config.wait, stop)?;
    let thread =
        std::thread::Builder::new().name(format!("loden-w{}", notifier.worker)).spawn(move || {
            if let Some(core) = core {
                // A core that was taken away since is no reason not to run.
                let _ = io::thread::pin_to_core(core);
            }
            // Nothing in a worker panics by intent. If one does, control must be told, since the queue and the socket are
            // gone and the rest goes on as if nothing were.
            let why = match catch_unwind(AssertUnwindSafe(|| worker.run())) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => format!("waiting for packets: {error}"),
                Err(_) => "it panicked; the message is above".to_owned(),
            };
            notifier.send(Event::WorkerFailed(why));
        })?;
    Ok(RunningWorker { thread: Mutex::new(Some(thread)), waker })
}
