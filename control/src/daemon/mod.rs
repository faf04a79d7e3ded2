//! `loden run`: puts the parts together, in order, and takes them apart again.
//!
//! `start` brings a node up, [`Node::serve`] keeps it, `own_lease` looks after its lease. A stop ends the workers and
//! leaves the rest for the next start, as flannel does: devices with their routes, rules, lease, `subnet.env`.

mod datapath;
mod endpoints;
mod error;
mod extension;
mod own_lease;
mod report;
mod schedule;
mod start;
mod store_request;
mod traffic;
mod uplink;
mod wait_for_store;
mod ways;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::Engine;
use futures::FutureExt;
use model::lease::LeaseAttrs;
use model::net_config::NetConfig;
use rtnetlink::Handle;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::apply::{Applier, ApplyError, subnet_file};
use crate::persist::remembered::Remembered;
use crate::plan::{self, Context, Plan};
use crate::serve::board::{Board, Phase};
use crate::serve::counters_file::{self, CountersFile};
use crate::serve::wireguard_socket::Sockets;
use crate::settings::{Settings, UplinkSettings};
use crate::traffic::Keeper;
use crate::underlay::select;
use crate::underlay::{self, Underlay};
use store::lease::ledger::Ledger;
use store::lease::renewal::Renewal;
use store::{Event, Owned, Store, Watch};

use self::endpoints::Endpoints;
pub use self::error::DaemonError;
use self::report::Report;
use self::schedule::Schedule;
use self::start::Origin;
use self::store_request::StoreRequest;
use self::uplink::Uplink;

/// How often counters are written out and the workers' notices are read.
const TICK: Duration = Duration::from_secs(1);
/// How long to collect further changes of leases before acting on the first.
const GATHER: Duration = Duration::from_millis(5);
/// After acting, the next time is so many times as far away as it has taken, but not farther than [`REST_MOST`].
const REST: u32 = 4;
/// The longest rest.
const REST_MOST: Duration = Duration::from_millis(200);

/// Runs the daemon until a signal stops it. A second signal ends it at once.
pub async fn run(settings: &Settings) -> Result<(), DaemonError> {
    let mut signals = Signals::new()?;
    // Before anything that may take long: a probe must not mistake a slow store for a hung daemon.
    let endpoints = Endpoints::open(settings).await?;
    let result = live(settings, &endpoints, &mut signals).await;
    or_second_signal(endpoints.close(), &mut signals).await;
    result
}

async fn live(settings: &Settings, endpoints: &Endpoints, signals: &mut Signals) -> Result<(), DaemonError> {
    let mut report = signal(SignalKind::user_defined1()).map_err(DaemonError::Signals)?;
    let mut from = Origin::Memory;
    let (node, result) = loop {
        let mut node = tokio::select! {
            node = Node::start(settings, endpoints, from) => node?,
            () = signals.received() => return Ok(()),
        };
        notify(&[NotifyState::Ready]);
        tokio::select! {
            ended = node.serve(settings, &mut report) => match ended {
                Ok(()) => node.stop().await,
                Err(error) => break (node, Err(error)),
            },
            () = signals.received() => break (node, Ok(())),
        }
        from = Origin::Store;
    };
    notify(&[NotifyState::Stopping]);
    endpoints.board.set_phase(Phase::Stopping);
    or_second_signal(node.stop(), signals).await;
    result
}

/// Ends what a first signal has begun, unless a second one comes.
async fn or_second_signal(ending: impl Future<Output = ()>, signals: &mut Signals) {
    tokio::select! {
        () = ending => {}
        () = signals.received() => tracing::warn!("second signal: ending at once"),
    }
}

/// Tells systemd, where it has asked for that.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell systemd; NOTIFY_SOCKET names no socket that listens");
    }
}

/// Whether to go on after an answer of the store.
enum Next {
    GoOn,
    /// What the node was started from does not hold any more.
    Anew,
}

/// A node that forwards.
struct Node {
    board: Arc<Board>,
    memory: Remembered,
    context: Context,
    store: Store,
    engine: Arc<Engine>,
    own: Owned,
    /// The store has given us this lease, in this run.
    confirmed: bool,
    renewal: Renewal,
    store_request: StoreRequest,
    /// Our lease was removed while a request that writes it was under way.
    removed_meanwhile: bool,
    watch: Watch,
    ledger: Ledger,
    plan: Arc<Plan>,
    applier: Applier,
    schedule: Schedule,
    rules: Keeper,
    /// Removed with the node.
    _sockets: Option<Sockets>,
    report: Report,
    counters_file: Option<CountersFile>,
    uplink: Uplink,
    /// What we wished before the last change: an event of that time is no stranger's.
    former: Option<LeaseAttrs>,
}

impl Node {
    /// Follows leases, renews our own and keeps the host as planned, until something cannot be mended. `Ok`: the
    /// node has to be started anew from the store.
    async fn serve(&mut self, settings: &Settings, report: &mut Signal) -> Result<(), DaemonError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changed: Option<Instant> = None;
        let mut rested = Instant::now();
        loop {
            let request = self.next_request();
            tokio::select! {
                event = self.watch.next() => {
                    let mut next = Some(event);
                    // With all that is there already: ten thousand leases are not ten thousand turns.
                    while let Some(event) = next {
                        if self.handle(event)? {
                            changed.get_or_insert(rested.max(Instant::now() + GATHER));
                        }
                        next = self.watch.next().now_or_never();
                    }
                }
                () = until(changed) => {
                    changed = None;
                    let began = Instant::now();
                    self.look_around().await;
                    self.replan()?;
                    if !self.apply(settings).await? {
                        self.schedule.ask_again();
                    }
                    rested = Instant::now() + (began.elapsed() * REST).min(REST_MOST);
                }
                () = until(request) => self.ask(),
                answer = self.store_request.answer() => match self.take(answer).await? {
                    Next::GoOn => {}
                    Next::Anew => return Ok(()),
                },
                () = self.schedule.due() => self.compare(settings).await?,
                _ = tick.tick() => self.tick(settings)?,
                _ = report.recv() => counters_file::log(&self.engine),
            }
        }
    }

    /// Compares the whole host with the plan, as nothing may stay that nobody has told us of.
    async fn compare(&mut self, settings: &Settings) -> Result<(), DaemonError> {
        self.schedule.begin();
        let uplink = self.follow_uplink(settings).await?;
        if self.look_around().await || uplink {
            self.replan()?;
        }
        let whole = self.apply(settings).await?;
        self.schedule.end();
        if !whole || !self.uplink.is_settled() {
            self.schedule.ask_again();
        }
        self.uplink.next_look().into_iter().for_each(|when| self.schedule.ask_at(when));
        Ok(())
    }

    /// Looks at the host again; `true` if the plan depends on something that has changed.
    async fn look_around(&mut self) -> bool {
        ways::refresh(self.applier.netlink(), &mut self.context, self.ledger.peers()).await
    }

    fn replan(&mut self) -> Result<(), DaemonError> {
        self.plan = Arc::new(plan::plan(&self.context, &self.own.published, self.ledger.peers())?);
        self.board.set_plan(&self.plan);
        Ok(())
    }

    /// Takes in one event of the watch; `true` if the peers have changed.
    fn handle(&mut self, event: Event) -> Result<bool, DaemonError> {
        let change = self.ledger.handle(event);
        self.handle_own(change.own)?;
        Ok(change.peers)
    }

    /// Brings the host to the plan; `true` if all of it could be done. What cannot be is told and tried again; a
    /// device that somebody has removed is made anew.
    async fn apply(&mut self, settings: &Settings) -> Result<bool, DaemonError> {
        let mut result = self.applier.apply(&self.plan, &*self.engine).await;
        if let Err(ApplyError::DeviceGone(device)) = &result {
            tracing::warn!(%device, "somebody has removed the device; making it anew");
            let outline = plan::outline(&self.context)?;
            result = match self.reopen(&outline, settings).await {
                Ok(()) => self.applier.apply(&self.plan, &*self.engine).await,
                Err(problem) => Err(ApplyError::Closed(problem)),
            };
        }
        let whole = matches!(&result, Ok(applied) if applied.failures.is_empty());
        match result {
            Ok(applied) => {
                let failures = applied.failures.iter().map(ToString::to_string).collect();
                self.board.reconciled(applied.changes, failures);
                self.report.tell(&self.plan, &applied);
                if applied.is_promised() && !self.board.was_ready() {
                    start::ready(&self.board, &self.own, settings, &self.store);
                }
            }
            Err(error) => {
                self.board.reconciled(0, vec![error.to_string()]);
                self.report.tell_failures(BTreeSet::from([error.to_string()]));
            }
        }
        Ok(whole)
    }

    fn tick(&mut self, settings: &Settings) -> Result<(), DaemonError> {
        for notice in self.engine.notices() {
            let device =
                self.plan.tunnels.get(notice.tunnel).map_or("", |tunnel| tunnel.link.device.as_str());
            match notice.event {
                engine::Event::UnderlayDowngraded => tracing::warn!(
                    device,
                    worker = notice.worker.place(),
                    "the kernel refused a batch of datagrams; they leave one by one from now on"
                ),
                engine::Event::OverlayDowngraded { tcp, udp } => tracing::warn!(
                    device,
                    worker = notice.worker.place(),
                    tcp,
                    udp,
                    "the TUN refused a super-packet; what it still takes is true"
                ),
                engine::Event::WorkerFailed(why) => {
                    return Err(DaemonError::WorkerFailed { worker: notice.worker.place(), why });
                }
            }
        }
        // No message tells of a file.
        if !subnet_file::is_written(&settings.subnet_file, &self.plan.subnet_env) {
            self.schedule.ask_again();
        }
        self.write_counters();
        self.memory.keep_sometimes(&self.plan, &self.own, self.ledger.peers());
        Ok(())
    }

    fn write_counters(&mut self) {
        let Some(file) = &mut self.counters_file else { return };
        if let Err(error) = file.write(&self.engine)
            && !std::mem::replace(&mut self.report.counters_failed, true)
        {
            tracing::warn!(path = %file.path().display(), %error, "cannot write the counters");
        }
    }

    async fn stop(mut self) {
        self.write_counters();
        self.memory.keep(&self.plan, &self.own, self.ledger.peers());
        // The rules themselves stay, as in flannel.
        drop(self.rules);
        // Joining threads blocks; a second signal must still get through.
        let engine = self.engine;
        let _ = tokio::task::spawn_blocking(move || engine.stop()).await;
        tracing::info!(lease = %self.own.key(), "stopped; what was made here stays for the next start, loden cleanup removes it");
    }
}

/// The signals that end the daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals, DaemonError> {
        let listen = |kind| signal(kind).map_err(DaemonError::Signals);
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn choose_underlay(
    netlink: &Handle,
    settings: &Settings,
    config: &NetConfig,
) -> Result<Underlay, DaemonError> {
    let wish = underlay_wish(settings, config);
    let observed = underlay::observe(netlink, settings.uplink.can_reach).await?;
    let underlay = select::select(&observed, &wish)?;
    let (ipv4, ipv6) = (underlay.ipv4.map(|ends| ends.public), underlay.ipv6.map(|ends| ends.public));
    tracing::info!(interface = %underlay.interface, mtu = underlay.mtu, ?ipv4, ?ipv6, "underlay");
    Ok(underlay)
}

/// What the operator and the network configuration ask of the uplink.
fn underlay_wish(settings: &Settings, config: &NetConfig) -> select::Wish {
    let UplinkSettings { ifaces, patterns, can_reach, public_ip, public_ipv6 } = settings.uplink.clone();
    select::Wish {
        ifaces,
        patterns,
        can_reach,
        public_ip,
        public_ipv6,
        ipv4: config.ipv4.is_some(),
        ipv6: config.ipv6.is_some(),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The wall clock, in which leases end.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
