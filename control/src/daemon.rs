//! `loden run`: puts the parts together, in order, and takes them apart again.
//!
//! Start: store and configuration, interface, devices and sockets, lease, peers, kernel, `subnet.env`. An
//! error on the way ends the process with nothing left behind, because devices vanish with it; only a lease
//! stays, and the next start takes it back by its public address. Stop is the reverse: workers, devices and
//! with them the routes go; lease and `subnet.env` stay for the next start, as in flannel.

mod datapath;
mod error;
mod memory;
mod rules;
mod startup;
mod surface;
mod told;
mod uplink;
mod waiting;
mod ways;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::Engine;
use model::lease::{Lease, LeaseAttrs, SubnetKey};
use model::net_config::NetConfig;
use model::subnet_env::Recorded;
use rtnetlink::Handle;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::apply::subnet_file;
use crate::apply::{Applier, ApplyError};
use crate::board::{Board, Phase};
use crate::lease::ledger::{Ledger, Own};
use crate::lease::renewal::{Renewal, Step};
use crate::lease::same_node;
use crate::netlink;
use crate::options::RunOptions;
use crate::plan::{self, Context, Identity, Plan};
use crate::store::{Event, Store, StoreError, Watch, Wish};
use crate::traffic::Keeper;
use crate::underlay::reach::Reach;
use crate::underlay::select;
use crate::underlay::{self, Underlay};
use crate::{counters, host};

pub use self::error::DaemonError;
use self::memory::Memory;
use self::surface::Surface;
use self::told::Told;
use self::uplink::Uplink;

/// How often the host is compared with the plan although nothing happened.
const COMPARE: Duration = Duration::from_secs(5);
/// The comparison may take one part in this many of the time. With ten thousand routes it takes 15 ms.
const IDLE_SHARE: u32 = 1000;
/// How often counters are written out and the workers' notices are read.
const TICK: Duration = Duration::from_secs(1);
/// Longest sleep before the wall clock is asked again whether a lease is due.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// How long to collect further changes of leases before acting on the first.
const GATHER: Duration = Duration::from_millis(20);

/// Runs the daemon until a signal stops it. A second signal ends it at once.
pub async fn run(options: &RunOptions) -> Result<(), DaemonError> {
    let mut signals = Signals::new()?;
    refuse_unsupported(options)?;
    // Before anything that may take long: a probe must not mistake a slow store for a hung daemon.
    let surface = Surface::open(options).await?;
    let result = live(options, &surface, &mut signals).await;
    tokio::select! {
        () = surface.close() => {}
        () = signals.received() => {}
    }
    result
}

async fn live(options: &RunOptions, surface: &Surface, signals: &mut Signals) -> Result<(), DaemonError> {
    let mut report = signal(SignalKind::user_defined1()).map_err(DaemonError::Signals)?;
    let mut node = tokio::select! {
        node = Node::start(options, surface) => node?,
        () = signals.received() => return Ok(()),
    };
    notify(&[NotifyState::Ready]);
    let result = tokio::select! {
        result = node.serve(options, &mut report) => result,
        () = signals.received() => Ok(()),
    };
    notify(&[NotifyState::Stopping]);
    surface.board.set_phase(Phase::Stopping);
    tokio::select! {
        () = node.stop(options) => {}
        () = signals.received() => tracing::warn!("second signal: ending at once"),
    }
    result
}

/// Tells systemd, where it has asked for that.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell systemd; NOTIFY_SOCKET names no socket that listens");
    }
}

/// A node that forwards.
struct Node {
    board: Arc<Board>,
    memory: Memory,
    context: Context,
    store: Store,
    engine: Arc<Engine>,
    own: Lease,
    renewal: Renewal,
    watch: Watch,
    ledger: Ledger,
    plan: Arc<Plan>,
    applier: Applier,
    rules: Keeper,
    told: Told,
    uplink: Uplink,
    /// What our lease said before its last change: an event of that time is no stranger's.
    former: Option<LeaseAttrs>,
}

impl Node {
    /// The way of a lease, from the store to the kernel.
    async fn start(options: &RunOptions, surface: &Surface) -> Result<Node, DaemonError> {
        let board = &surface.board;
        let margin = options.renew_margin()?;
        // Before it is overwritten: it says what the run before has left.
        let recorded = subnet_file::previous(&options.subnet_file);
        let netlink = netlink::connect()?;
        let store = match options.store_spec() {
            "etcd" => Store::etcd(options.etcd.config())?,
            spec => Store::open(spec).await?,
        };
        let config = waiting::network_config(&store, options).await?;
        rules::check(options, &config)?;
        let underlay = choose_underlay(&netlink, options, &config).await?;
        board.set_underlay(&underlay);
        let extension_data = startup::before(&config).await?;
        let mut memory = Memory::open(surface.state_file(), options);
        let identity = memory.identity(|| Identity::from_random(rand::random()));
        let ip_masq = options.traffic.ip_masq;
        let reach = Reach::new();
        let mut context = Context { config, underlay, identity, ip_masq, extension_data, reach };
        let outline = plan::outline(&context)?;
        outline.notes.iter().for_each(|note| tracing::warn!("{note}"));
        let engine = Arc::new(datapath::start(options, &outline)?);
        board.set_engine(&engine);
        let first = waiting::first_lease(&store, &context.config, outline.attrs, previous(recorded.as_ref()));
        let own = board.timed("acquire", first).await?;
        board.set_own(&own);
        startup::after(&context.config, &own).await?;
        let renewal = Renewal::new(&own, margin, unix_now());
        let (mut watch, mut ledger) = (store.watch().await?, Ledger::new(Some(own.key)));
        ledger.handle(watch.next().await);
        ways::refresh(&netlink, &mut context, ledger.peers()).await;
        let plan = Arc::new(plan::plan(&context, &own, ledger.peers())?);
        memory.promise(rules::wanted(options));
        let rules = rules::start(options, &context.config, &own, recorded.as_ref(), netlink.clone()).await?;
        let mut applier = Applier::new(netlink, options.subnet_file.clone());
        let applied = applier.apply(&plan, &*engine).await?;
        board.set_plan(&plan);
        board.reconciled(applied.changes, applied.failures.iter().map(ToString::to_string).collect());
        let mut told = Told::default();
        told.tell(&plan, &applied);
        warn_of_gaps(&context.config);
        tracing::info!(lease = %own.key, subnet_file = %options.subnet_file.display(), "ready");
        board.set_files(surface.files(options));
        board.set_phase(Phase::Ready);
        memory.keep(&plan, &own, ledger.peers());
        let board = Arc::clone(board);
        Ok(Node {
            board,
            memory,
            context,
            store,
            engine,
            own,
            renewal,
            watch,
            ledger,
            plan,
            applier,
            rules,
            told,
            uplink: Uplink::default(),
            former: None,
        })
    }

    /// Follows leases, renews our own and keeps the host as planned, until something cannot be mended.
    async fn serve(&mut self, options: &RunOptions, report: &mut Signal) -> Result<(), DaemonError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changed: Option<Instant> = None;
        let mut compare = Instant::now() + COMPARE;
        loop {
            let renewal = self.next_renewal();
            tokio::select! {
                event = self.watch.next() => {
                    if self.handle(event)? {
                        changed.get_or_insert(Instant::now() + GATHER);
                    }
                }
                () = until(changed) => {
                    changed = None;
                    self.look_around().await;
                    self.replan()?;
                    self.apply().await?;
                }
                () = until(renewal) => self.renew().await?,
                () = sleep_until(compare) => {
                    let uplink = self.follow_uplink(options).await?;
                    if self.look_around().await || uplink {
                        self.replan()?;
                    }
                    let began = Instant::now();
                    self.apply().await?;
                    compare = Instant::now() + COMPARE.max(began.elapsed() * IDLE_SHARE);
                }
                _ = tick.tick() => self.tick(options)?,
                _ = report.recv() => counters::log(&self.engine),
            }
        }
    }

    /// Looks at the host again; `true` if the plan depends on something that has changed.
    async fn look_around(&mut self) -> bool {
        ways::refresh(self.applier.netlink(), &mut self.context, self.ledger.peers()).await
    }

    fn replan(&mut self) -> Result<(), DaemonError> {
        self.plan = Arc::new(plan::plan(&self.context, &self.own, self.ledger.peers())?);
        self.board.set_plan(&self.plan);
        Ok(())
    }

    /// Takes in one event of the watch; `true` if the peers have changed.
    fn handle(&mut self, event: Event) -> Result<bool, DaemonError> {
        let change = self.ledger.handle(event);
        match change.own {
            Own::Unchanged => {}
            Own::Removed => {
                tracing::warn!(lease = %self.own.key, "our lease was removed from the store; taking it again");
                self.renewal.handle_lost();
            }
            Own::Written => {
                if let Some(stored) = self.ledger.own() {
                    if self.former.as_ref() == Some(&stored.attrs) {
                        return Ok(change.peers);
                    }
                    check_still_ours(&self.own, stored)?;
                    self.own.expires = stored.expires;
                    self.renewal.handle_renewed(stored, unix_now());
                }
            }
        }
        Ok(change.peers)
    }

    fn next_renewal(&self) -> Option<Instant> {
        let now = unix_now();
        match self.renewal.poll(now) {
            // Expiries are points of the wall clock, which may jump while a sleep runs on.
            Step::Sleep(due) => due
                .map(|due| Instant::now() + Duration::from_secs(due.saturating_sub(now)).min(LONGEST_SLEEP)),
            Step::Renew | Step::Acquire => Some(Instant::now()),
        }
    }

    async fn renew(&mut self) -> Result<(), DaemonError> {
        match self.renewal.poll(unix_now()) {
            Step::Sleep(_) => {}
            Step::Renew => match self.board.timed("renew", self.store.renew(&self.own)).await {
                Ok(lease) => self.keep(lease),
                Err(StoreError::Lost { why, .. }) => {
                    tracing::warn!(lease = %self.own.key, why, "our lease is no longer ours; trying to take it again");
                    self.renewal.handle_lost();
                }
                Err(error) => self.try_later(&error),
            },
            Step::Acquire => {
                let (attrs, key) = (self.own.attrs.clone(), self.own.key);
                let wish = acquire(&self.store, &self.context.config, attrs, Some(key));
                match self.board.timed("acquire", wish).await {
                    Ok(lease) if lease.key == key => self.keep(lease),
                    Ok(other) => {
                        // Pods already have addresses of the old subnet: only a restart can change it.
                        let _ = self.store.remove(&other.key).await;
                        return Err(lost(key, "another node took the subnet; restart to get a new one"));
                    }
                    Err(StoreError::OutOfSubnets(error)) => return Err(lost(key, &error.to_string())),
                    Err(error) => self.try_later(&error),
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, lease: Lease) {
        tracing::info!(lease = %lease.key, "lease renewed");
        self.renewal.handle_renewed(&lease, unix_now());
        self.board.set_own(&lease);
        self.own = lease;
    }

    fn try_later(&mut self, error: &StoreError) {
        tracing::warn!("cannot renew our lease, trying again in a minute: {error}");
        self.renewal.handle_failure(unix_now());
    }

    /// Compares the host with the plan. Only a lost device ends the daemon; the rest is tried again.
    async fn apply(&mut self) -> Result<(), DaemonError> {
        match self.applier.apply(&self.plan, &*self.engine).await {
            Ok(applied) => {
                let failures = applied.failures.iter().map(ToString::to_string).collect();
                self.board.reconciled(applied.changes, failures);
                self.told.tell(&self.plan, &applied);
            }
            Err(error @ ApplyError::DeviceGone(_)) => return Err(error.into()),
            Err(error) => {
                self.board.reconciled(0, vec![error.to_string()]);
                self.told.tell_failures(BTreeSet::from([error.to_string()]));
            }
        }
        Ok(())
    }

    fn tick(&mut self, options: &RunOptions) -> Result<(), DaemonError> {
        for notice in self.engine.notices() {
            let device =
                self.plan.tunnels.get(notice.tunnel).map_or("", |tunnel| tunnel.link.device.as_str());
            match notice.event {
                engine::Event::UnderlayDowngraded => tracing::warn!(
                    device,
                    worker = notice.worker,
                    "the kernel refused a batch of datagrams; they leave one by one from now on"
                ),
                engine::Event::OverlayDowngraded { tcp, udp } => tracing::warn!(
                    device,
                    worker = notice.worker,
                    tcp,
                    udp,
                    "the TUN refused a super-packet; what it still takes is true"
                ),
                engine::Event::WorkerFailed(why) => {
                    return Err(DaemonError::WorkerFailed { worker: notice.worker, why });
                }
            }
        }
        self.write_counters(options);
        self.memory.keep_sometimes(&self.plan, &self.own, self.ledger.peers());
        Ok(())
    }

    fn write_counters(&mut self, options: &RunOptions) {
        let Some(path) = &options.counters_file else { return };
        if let Err(error) = counters::write(&self.engine, path)
            && !std::mem::replace(&mut self.told.counters_failed, true)
        {
            tracing::warn!(path = %path.display(), %error, "cannot write the counters");
        }
    }

    async fn stop(mut self, options: &RunOptions) {
        self.write_counters(options);
        self.memory.keep(&self.plan, &self.own, self.ledger.peers());
        // The rules themselves stay, as in flannel.
        drop(self.rules);
        // Joining threads blocks; a second signal must still get through.
        let engine = self.engine;
        let _ = tokio::task::spawn_blocking(move || engine.stop()).await;
        tracing::info!(lease = %self.own.key, "stopped; the lease is kept for the next start");
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

/// What the command line knows and the daemon does not do. Going on without would be worse than an error.
fn refuse_unsupported(options: &RunOptions) -> Result<(), DaemonError> {
    let refuse = |flag, advice| Err(DaemonError::NotYet { flag, advice });
    if options.kube.subnet_mgr {
        return refuse("--kube-subnet-mgr", "the Kubernetes store is still to come; use --store");
    }
    Ok(())
}

async fn choose_underlay(
    netlink: &Handle,
    options: &RunOptions,
    config: &NetConfig,
) -> Result<Underlay, DaemonError> {
    let wish = underlay_wish(options, config);
    let observed = underlay::observe(netlink, options.iface_can_reach).await?;
    let underlay = select::select(&observed, &wish)?;
    let (ipv4, ipv6) = (underlay.ipv4.map(|ends| ends.public), underlay.ipv6.map(|ends| ends.public));
    tracing::info!(interface = %underlay.interface, mtu = underlay.mtu, ?ipv4, ?ipv6, "underlay");
    Ok(underlay)
}

/// What the operator and the network configuration ask of the uplink.
fn underlay_wish(options: &RunOptions, config: &NetConfig) -> select::Wish {
    select::Wish {
        ifaces: options.iface.clone(),
        patterns: options.iface_regex.clone(),
        can_reach: options.iface_can_reach,
        public_ip: options.public_ip,
        public_ipv6: options.public_ipv6,
        ipv4: config.ipv4.is_some(),
        ipv6: config.ipv6.is_some(),
    }
}

/// What somebody else has to set for pods to be reachable.
fn warn_of_gaps(config: &NetConfig) {
    for gap in host::gaps(config.ipv4.is_some(), config.ipv6.is_some(), config.nftables) {
        tracing::warn!("{}: {}; to change it: {}", gap.what, gap.cost, gap.fix);
    }
}

async fn acquire(
    store: &Store,
    config: &NetConfig,
    attrs: LeaseAttrs,
    previous: Option<SubnetKey>,
) -> Result<Lease, StoreError> {
    store.acquire(&Wish { config, attrs, previous }).await
}

/// The subnets of an earlier run, as `subnet.env` has them.
fn previous(recorded: Option<&Recorded>) -> Option<SubnetKey> {
    let recorded = recorded?;
    SubnetKey::new(recorded.subnet(), recorded.ipv6_subnet())
}

/// Two daemons that publish one address would take the lease from each other for ever, so the one that
/// finds itself replaced gives up.
fn check_still_ours(own: &Lease, stored: &Lease) -> Result<(), DaemonError> {
    if stored.attrs == own.attrs {
        return Ok(());
    }
    Err(match same_node(&own.attrs, &stored.attrs) {
        true => lost(own.key, "another daemon publishes the same address; give each its own --public-ip"),
        false => lost(own.key, "another node took the subnet; restart to get a new one"),
    })
}

fn lost(lease: SubnetKey, why: &str) -> DaemonError {
    DaemonError::LeaseLost { lease, why: why.to_owned() }
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
