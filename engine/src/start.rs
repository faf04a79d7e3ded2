//! Starts an engine: opens everything, assigns it to the workers, and starts the threads.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};

use crossbeam_channel::Sender;
use io::too_big::TooBigSocket;
use io::udp::Aside;
use io::udp::PathMtuSockets;
use io::{Error, Waiter, files, scheduler, tun};
use path::quote::Own;
use path::{Format, SegmentSizes, WorkerIndex};

use crate::bounds::Bounds;
use crate::clock::Clock;
use crate::config::{EngineConfig, TunnelConfig};
use crate::event::{self, Event, Notice, Notifier};
use crate::layout::{self, OpenTunnel};
use crate::own_nat::{self, Guard, Progress};
use crate::path_mtu::{self, Hint, Learner, Paths, Watched};
use crate::port::Port;
use crate::status::Page;
use crate::tunnel::{Parts, Sealing, Tunnel};
use crate::unread::Meter;
use crate::wireguard::crypt::Crypt;
use crate::wireguard::{Settings, Shared, keeper};
use crate::worker::{Wire, Worker};
use crate::{Chosen, Engine, RunningTunnel, RunningWorker, snapshot};

/// One worker's ports and tunnels.
#[derive(Default)]
struct Share {
    /// Each port with the tunnel that it serves.
    ports: Vec<(usize, Port)>,
    tunnels: Vec<Tunnel<tun::Queue>>,
    pages: Vec<Arc<Page>>,
}

/// The arguments for starting a keeper.
struct KeeperParts<'c> {
    settings: &'c Settings,
    shared: Shared,
    socket: Aside,
}

/// Number of files that the rest of the process must still be able to open: stores, sockets, state files.
const SPARE_FILES: u64 = 64;

/// Starts an engine, with fewer workers than configured if the limit of open files permits no more.
pub(crate) fn start(config: &EngineConfig, tunnels: &[TunnelConfig]) -> Result<Engine, Error> {
    // Without tunnels there are no workers.
    let wanted = if tunnels.is_empty() { 0 } else { layout::workers(config) };
    let limit = files::raise_limit();
    let mut workers = wanted;
    loop {
        match start_with(config, tunnels, workers) {
            Err(error) if files::is_exhausted(&error.cause) && workers > 1 => workers = workers * 3 / 4,
            Ok(mut engine) if workers < wanted => {
                let limit = limit.map_or_else(|error| error.to_string(), |limit| limit.to_string());
                engine.shortage = Some(format!(
                    "{workers} workers instead of {wanted}: the limit of open files is {limit}; {}",
                    files::ADVICE
                ));
                return Ok(engine);
            }
            answer => return answer,
        }
    }
}

fn start_with(config: &EngineConfig, tunnels: &[TunnelConfig], workers: usize) -> Result<Engine, Error> {
    let (learner, note) = learner(tunnels)?;
    let mut opened = Vec::new();
    let bounds = Bounds::new(config, tunnels, workers);
    let mut workers = workers;
    for tunnel in tunnels {
        let mut one =
            OpenTunnel::open(config, tunnel, &bounds, workers, note.is_none() && families(tunnel)[1])?;
        // A device with few queues limits the workers of all tunnels: each worker owns a queue of every
        // device.
        workers = one.chosen.workers;
        if families(tunnel).contains(&true) {
            one.chosen.notes.extend(note.clone());
        }
        opened.push(one);
    }
    let (sender, notices) = event::channel();
    let mut shares: Vec<Share> = (0..workers).map(|_| Share::default()).collect();
    let (mut running, mut keepers) = (Vec::new(), Vec::new());
    let (mut watched, mut guards) = (Vec::new(), Vec::new());
    for (index, (mut one, tunnel)) in opened.into_iter().zip(tunnels).enumerate() {
        one.shrink(workers);
        let (running_tunnel, keeper) = distribute(index, one, tunnel, &mut shares, &sender)?;
        watched.push(Watched {
            paths: Arc::clone(&running_tunnel.paths),
            own: own(tunnel, &running_tunnel.chosen),
            families: families(tunnel),
            established: keeper.as_ref().map(|keeper| keeper.shared.established.clone()),
            notifier: Notifier { tunnel: index, worker: path_mtu::NOBODY, sender: sender.clone() },
        });
        if running_tunnel.chosen.features.gso {
            guards.push(Guard {
                paths: Arc::clone(&running_tunnel.paths),
                own: own(tunnel, &running_tunnel.chosen),
                paused: Arc::clone(&running_tunnel.paused),
                notifier: Notifier { tunnel: index, worker: path_mtu::NOBODY, sender: sender.clone() },
                progress: Progress::default(),
            });
        }
        running.push(running_tunnel);
        keepers.push(keeper);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut engine =
        Engine { threads: Vec::new(), stop, tunnels: running, notices, learner: None, shortage: None };
    let cores = layout::cores();
    for (index, share) in (0..).map(WorkerIndex).zip(shares) {
        let core = config.pin.then(|| cores[index.place() % cores.len()]);
        let notifier = Notifier { tunnel: 0, worker: index, sender: sender.clone() };
        let worker = run(config, share, core, notifier, learner.hint(), Arc::clone(&engine.stop))
            .map_err(|cause| Error::new(format!("starting worker {index}"), cause))?;
        engine.threads.push(worker);
    }
    let notifier = Notifier { tunnel: 0, worker: path_mtu::NOBODY, sender: sender.clone() };
    let handle = learner.start(watched, own_nat::Watch::new(guards), Arc::clone(&engine.stop), notifier);
    engine.learner = Some(handle.map_err(|cause| Error::new("starting the path MTU thread", cause))?);
    for (index, keeper) in keepers.into_iter().enumerate() {
        let Some(KeeperParts { settings, shared, socket }) = keeper else { continue };
        let wakers = engine.threads.iter().map(|running| running.waker.clone()).collect();
        let notifier = Notifier { tunnel: index, worker: WorkerIndex(0), sender: sender.clone() };
        let handle = keeper::start(settings, shared, socket, wakers, notifier)
            .map_err(|cause| Error::new("starting the WireGuard handshake thread", cause))?;
        if let Some(tunnel) = engine.tunnels.get_mut(index) {
            tunnel.keeper = Some(handle);
        }
    }
    match files::left() {
        Some(left) if left < SPARE_FILES => {
            let cause = std::io::Error::from_raw_os_error(files::EXHAUSTED);
            Err(Error::new(format!("keeping {SPARE_FILES} files for other uses"), cause)
                .advise(files::ADVICE))
        }
        _ => Ok(engine),
    }
}

/// Opens the sockets for ICMP messages that the tunnels need. Returns a note if that is not permitted.
fn learner(tunnels: &[TunnelConfig]) -> Result<(Learner, Option<String>), Error> {
    let (mut sockets, mut note) = (Vec::new(), None);
    for ipv6 in [false, true] {
        if tunnels.iter().any(|tunnel| families(tunnel)[usize::from(ipv6)]) {
            match TooBigSocket::open(ipv6) {
                Ok(socket) => sockets.push(socket),
                Err(error) if files::is_exhausted(&error.cause) => return Err(error),
                Err(error) => note = Some(format!("path MTUs are left to the kernel: {error}")),
            }
        }
    }
    let learner = Learner::new(sockets).map_err(|cause| Error::new("waiting for ICMP messages", cause))?;
    Ok((learner, note))
}

/// Whether a tunnel depends on ICMP messages about path MTUs, over IPv4 and over IPv6. Over IPv4 only ipip
/// sets DF; other outer packets are fragmented on their way.
fn families(tunnel: &TunnelConfig) -> [bool; 2] {
    let ipip = matches!(tunnel.format(), Format::Ipip(_));
    let ipv6 = tunnel.listen.is_ipv6() || tunnel.listen_besides.iter().any(SocketAddr::is_ipv6);
    [ipip, ipv6 && !ipip]
}

fn own(tunnel: &TunnelConfig, chosen: &Chosen) -> Own {
    let address = match tunnel.format() {
        Format::Ipip(ipip) => Some(ipip.local.into()),
        _ => Some(tunnel.send_from.unwrap_or(tunnel.listen.ip())).filter(|ip| !ip.is_unspecified()),
    };
    Own { address, ports: chosen.source_ports.clone() }
}

/// Distributes one tunnel's queues and ports over the workers. Returns control's part of the tunnel, and the
/// arguments for starting its keeper, if it has one.
fn distribute<'c>(
    index: usize,
    one: OpenTunnel,
    tunnel: &'c TunnelConfig,
    shares: &mut [Share],
    sender: &Sender<Notice>,
) -> Result<(RunningTunnel, Option<KeeperParts<'c>>), Error> {
    let workers = shares.len();
    let sizes = Arc::new(SegmentSizes::new(tunnel.mtu.get(), RandomState::new().hash_one(index)));
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
    let mut path_mtu_sockets = PathMtuSockets::default();
    // The ports share the fan; without one each sends from its own socket.
    let distinct = if tunnel.send_from.is_some() { 1 } else { one.ports.len() };
    for port in one.ports.iter().take(distinct) {
        path_mtu_sockets.join(port.path_mtu_sockets()?);
    }
    let unread = Meter::new(&one.chosen.device, &one.ports)?;
    let mut queues: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    for (number, queue) in one.queues.into_iter().enumerate() {
        queues[layout::owner(number, workers).place()].push(queue);
    }
    let paused = Arc::new(AtomicBool::new(false));
    let each = (0..).map(WorkerIndex).zip(shares).zip(queues.into_iter().zip(one.ports).zip(readers));
    for ((worker, share), ((queues, mut port), fib)) in each {
        port.pause_segmentation_by(&paused);
        let sealing = keeper.as_ref().map_or(Sealing::Plain, |keeper| {
            Sealing::Wireguard(Box::new(Crypt::new(&keeper.shared, worker, tunnel.mtu.get())))
        });
        let parts = Parts {
            fib,
            sizes: Arc::clone(&sizes),
            lanes: tunnel.fan.max(1),
            switches: one.chosen.features,
            notifier: Notifier { tunnel: index, worker, sender: sender.clone() },
            sealing,
            clock: Clock::start(),
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
        unread,
        paths: Paths::new(Arc::clone(&tunnel.table), path_mtu_sockets),
        persist: tunnel.persist,
        paused,
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
    hint: Hint,
    stop: Arc<AtomicBool>,
) -> std::io::Result<RunningWorker> {
    let waiter = Waiter::new()?;
    let waker = waiter.waker();
    let wire = Wire::new(share.ports).with_hint(hint);
    let mut worker = Worker::new(wire, share.tunnels, share.pages, waiter, config.wait, stop)?;
    let realtime = config.realtime;
    let (sender, granted) = crossbeam_channel::bounded(1);
    let thread =
        std::thread::Builder::new().name(format!("loden-w{}", notifier.worker)).spawn(move || {
            if let Some(core) = core {
                // If the core is no longer allowed, run without pinning.
                let _ = io::thread::pin_to_core(core);
            }
            let _ = sender.send(scheduler::ask(realtime));
            event::watch(&notifier, Event::WorkerFailed, || worker.run());
        })?;
    let attention = granted.recv().unwrap_or_default();
    Ok(RunningWorker { thread: Mutex::new(Some(thread)), waker, attention })
}
