//! A node that forwards: its parts, and the loop that carries out what the reconciler decides.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use store::{Event, Store, Watch};
use tokio::signal::unix::Signal;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use super::endpoints::Disks;
use super::error::DaemonError;
use super::host::Host;
use super::look;
use super::reconciler::{Action, End, HostState, Now, Reconciler};
use super::report::{self, Report};
use super::store_request::StoreRequest;
use super::wait_for_store;
use crate::apply::{Applied, ApplyError, subnet_file};
use crate::netlink::Changes;
use crate::persist::remembered::Remembered;
use crate::plan::Plan;
use crate::serve::board::{Board, Phase};
use crate::serve::counters_file::{self, CountersFile};
use crate::serve::wireguard_socket::Sockets;
use crate::settings::Settings;
use crate::traffic::Keeper;

/// How often counters are written out and the workers' notices are read.
const TICK: Duration = Duration::from_secs(1);

/// How long a node that forwards from memory waits for the store before it is ready without its word.
const WORD: Duration = Duration::from_secs(2);

/// How long to wait for the last request to the store.
const PARTING: Duration = Duration::from_secs(5);

/// A node that forwards.
pub(super) struct Node<'a> {
    pub(super) settings: &'a Settings,
    /// Decides what is done.
    pub(super) reconciler: Reconciler,
    pub(super) store: Store,
    pub(super) store_request: StoreRequest,
    pub(super) watch: Watch,
    /// The kernel reports changes of the host here.
    pub(super) changes: Changes,
    pub(super) host: Host,
    pub(super) memory: Remembered,
    pub(super) board: Arc<Board>,
    pub(super) report: Report,
    /// `subnet.env` is written, and all that it promises is in place.
    pub(super) is_promised: bool,
    pub(super) is_ready: bool,
    pub(super) started: Instant,
    /// Tells the store that this node is ready, until that is done.
    pub(super) announcement: Option<Pin<Box<dyn Future<Output = ()>>>>,
    pub(super) counters_file: Option<Arc<Mutex<CountersFile>>>,
    /// Does all work on files.
    pub(super) disks: Disks,
    /// The rules stay in place as long as this does.
    pub(super) rules: Keeper,
    /// Closed with the node.
    pub(super) sockets: Option<Sockets>,
}

impl Node<'_> {
    /// Keeps the node as planned until it cannot go on; `Ok` if it has to be started again from the store.
    pub(super) async fn serve(&mut self, log_counters: &mut Signal) -> Result<(), DaemonError> {
        let ended = self.follow(log_counters).await;
        self.board.pause();
        match ended {
            Ok(never) => match never {},
            Err(End::Restart) => Ok(()),
            Err(End::Failed { error, give_back }) => {
                if let Some(other) = give_back {
                    // Nobody uses it; if the store does not answer it runs out.
                    let _ = timeout(PARTING, self.store.remove(&other)).await;
                }
                match *error {
                    DaemonError::Rival { .. } => {
                        self.memory.set_evicted(&self.reconciler.inputs().own().wished, now().unix);
                    }
                    DaemonError::LeaseLost { .. } => self.memory.disown(),
                    _ => {}
                }
                Err(*error)
            }
        }
    }

    async fn follow(&mut self, log_counters: &mut Signal) -> Result<std::convert::Infallible, End> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(action) = self.reconciler.poll_action(now())? {
                self.carry_out(action).await;
                self.board.turned(Instant::now());
            }
            self.board.turned(Instant::now());
            let next_action = sleep_until(self.reconciler.poll_timeout(now()).into());
            tokio::select! {
                event = self.watch.next(), if self.reconciler.wants_events() => self.take_events(event)?,
                answer = self.store_request.answer() => {
                    let holder = |wished: &_, stored: &_| self.store.holder(wished, stored);
                    self.reconciler.handle_answer(answer, holder, now())?;
                    self.announce_if_ready();
                }
                // One report is enough; the rest stays unread until the comparison.
                () = self.changes.happened(), if self.reconciler.wants_reports() => {
                    self.reconciler.handle_report(now());
                }
                () = done(&mut self.announcement) => self.announcement = None,
                () = next_action => {}
                _ = tick.tick() => self.tick().await?,
                _ = log_counters.recv() => counters_file::log(self.host.engine()),
            }
        }
    }

    /// Takes in an event with all that are there already: ten thousand leases are not ten thousand turns.
    fn take_events(&mut self, first: Event) -> Result<(), End> {
        let mut next = Some(first);
        while let Some(event) = next {
            let holder = |wished: &_, stored: &_| self.store.holder(wished, stored);
            self.reconciler.handle_event(event, holder, now())?;
            next = self.watch.next().now_or_never();
        }
        Ok(())
    }

    async fn carry_out(&mut self, action: Action) {
        match action {
            Action::Ask(request) => {
                self.store_request.start(*request, &self.store, &self.board, self.settings);
            }
            Action::RecordLease => {
                self.board.set_own(&self.reconciler.inputs().own().published);
                // A start from memory needs to know that it is still good.
                self.remember();
            }
            Action::LookAtUplink => {
                // What was reported so far is looked at now.
                self.changes.forget();
                let context = self.reconciler.inputs().context();
                let uplink = self.settings.uplink.with(self.store.node_addresses());
                let seen =
                    look::uplink(self.host.netlink(), &uplink, &context.config, &context.underlay).await;
                self.reconciler.handle_uplink(seen, now());
                self.board.set_underlay(&self.reconciler.inputs().context().underlay);
            }
            Action::Reopen(plan) => {
                let inputs = self.reconciler.inputs();
                let opened = self.host.reopen(self.settings, inputs, &plan, &mut self.memory).await;
                self.board.set_engine(self.host.engine());
                self.reconciler.handle_opened(opened);
            }
            Action::LookAtWays => {
                let inputs = self.reconciler.inputs();
                let reach = look::ways(self.host.netlink(), inputs.context(), inputs.peers()).await;
                self.reconciler.handle_reach(reach.map_err(|error| error.to_string()), now());
            }
            Action::Apply(plan) => self.apply(plan).await,
        }
    }

    /// Brings the host to the plan. What could not be done is logged once and retried.
    async fn apply(&mut self, plan: Arc<Plan>) {
        self.board.set_plan(&plan);
        let result = self.host.apply(plan).await;
        let state = match &result {
            Ok(applied) if applied.failures.is_empty() => HostState::AsPlanned,
            Err(ApplyError::DeviceGone(_)) => HostState::DeviceGone,
            _ => HostState::Different,
        };
        let is_final = self.reconciler.handle_applied(state, now());
        match result {
            Ok(applied) => self.show_applied(&applied),
            Err(ApplyError::DeviceGone(device)) if !is_final => {
                tracing::warn!(%device, "the device was removed; recreating it");
            }
            Err(error) => {
                self.board.reconciled(0, vec![error.to_string()]);
                let failures =
                    [(error.kind(), error.to_string())].into_iter().chain(self.reconciler.problems());
                self.report.report_failures(failures);
            }
        }
    }

    pub(super) fn show_applied(&mut self, applied: &Applied) {
        let failures = applied.failures.iter().map(|failure| (failure.kind(), failure.to_string()));
        self.board.reconciled(applied.changes, applied.failures.iter().map(ToString::to_string).collect());
        self.report.report_plan(self.host.plan(), applied.changes);
        self.report.report_failures(failures.chain(self.reconciler.problems()));
        self.is_promised |= applied.is_promised();
        self.announce_if_ready();
    }

    /// Announces this node once what it promises is in place. A node that starts from memory gives the store
    /// a moment to say that the configuration is another one by now.
    fn announce_if_ready(&mut self) {
        let heard = self.reconciler.wants_events() || self.started.elapsed() >= WORD;
        if self.is_promised && heard && !std::mem::replace(&mut self.is_ready, true) {
            self.announce_ready();
        }
    }

    /// Pods may come.
    fn announce_ready(&mut self) {
        let lease = self.reconciler.inputs().own().key();
        tracing::info!(%lease, subnet_file = %self.settings.subnet_file.display(), "ready");
        self.board.set_phase(Phase::Ready);
        let store = self.store.clone();
        // Beside the loop: a store that hangs must not keep the node from its other work.
        self.announcement = Some(Box::pin(async move { wait_for_store::announce_ready(&store).await }));
    }

    async fn tick(&mut self) -> Result<(), DaemonError> {
        self.check_tasks()?;
        self.announce_if_ready();
        for notice in self.host.engine().notices() {
            report::report_notice(self.host.plan(), notice)?;
        }
        // Nobody reports changes of a file.
        let (path, content) = (self.settings.subnet_file.clone(), self.host.plan().subnet_env.clone());
        let look = move || subnet_file::is_written(&path, &content);
        let is_written = self.disks.subnet_file.run(look).await.unwrap_or_default();
        let state = self.memory.path().map(Path::to_owned);
        let look = move || state.is_none_or(|state| state.exists());
        let is_remembered = self.disks.run_dir.run(look).await.unwrap_or(true);
        if !is_written {
            self.reconciler.handle_difference(now());
        }
        if !is_remembered {
            self.remember();
        }
        self.write_counters().await;
        let inputs = self.reconciler.inputs();
        let position = inputs.position(self.watch.position());
        self.memory.keep_sometimes(self.host.plan(), inputs.own(), inputs.lasting(), position);
        Ok(())
    }

    /// Fails if a task of this node has ended: nothing else would notice.
    fn check_tasks(&self) -> Result<(), DaemonError> {
        let tasks = [
            ("watching the leases", self.watch.has_ended()),
            ("keeping the traffic rules", self.rules.has_ended()),
            ("the socket for wg show", self.sockets.as_ref().is_some_and(Sockets::has_ended)),
        ];
        match tasks.into_iter().find(|(_, has_ended)| *has_ended) {
            Some((what, _)) => Err(DaemonError::TaskEnded { what }),
            None => Ok(()),
        }
    }

    pub(super) fn remember(&mut self) {
        let inputs = self.reconciler.inputs();
        let position = inputs.position(self.watch.position());
        self.memory.keep(self.host.plan(), inputs.own(), inputs.lasting(), position);
    }

    async fn write_counters(&mut self) {
        let (Some(file), Some(path)) = (self.counters_file.clone(), &self.settings.counters_file) else {
            return;
        };
        let engine = Arc::clone(self.host.engine());
        let write = move || file.lock().unwrap_or_else(PoisonError::into_inner).write(&engine);
        if let Err(error) = self.disks.counters.run(write).await.flatten() {
            self.report.report_counters(path, &error);
        }
    }

    /// Stops the workers. What the node has made stays.
    pub(super) async fn stop(mut self) {
        self.write_counters().await;
        self.remember();
        // The rules themselves stay, as in flannel.
        drop(self.rules);
        if let Some(sockets) = self.sockets.take() {
            sockets.close().await;
        }
        self.host.stop().await;
        let lease = self.reconciler.inputs().own().key();
        tracing::info!(
            %lease,
            "stopped; what was made here stays for the next start, loden cleanup removes it"
        );
    }
}

/// Waits for the end of the work; forever if there is none. Nothing is lost if the wait is dropped half-way.
async fn done(work: &mut Option<Pin<Box<dyn Future<Output = ()>>>>) {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

/// Reads both clocks.
pub(super) fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Now { instant: Instant::now(), unix }
}
