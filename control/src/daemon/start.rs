//! How a node comes up.
//!
//! From the store: configuration, interface, devices and sockets, lease, peers, kernel, `subnet.env`. An error on
//! the way ends the process; what it leaves is the devices, and the next start takes them and the lease back. Only
//! `subnet.env` may come later: the node forwards for the pods that it has, and is not ready before.
//!
//! From memory, where a run before has left what is needed: the same with its configuration and leases, and the
//! tables are filled before the first packet is read. The store is asked afterwards, beside the loop; if it says
//! something else, the node starts anew from the store.

use std::sync::Arc;

use engine::Engine;
use model::backend::Backend;
use model::lease::SubnetKey;
use model::net_config::NetConfig;
use model::subnet_env::Recorded;
use rtnetlink::Handle;

use super::endpoints::Endpoints;
use super::report::Report;
use super::schedule::Schedule;
use super::store_request::StoreRequest;
use super::uplink::Uplink;
use super::{
    DaemonError, Node, choose_underlay, datapath, extension, traffic, unix_now, wait_for_store, ways,
};
use crate::apply::engine::Numbers;
use crate::apply::{Applier, subnet_file, takeover};
use crate::netlink::{self, Changes};
use crate::persist::remembered::{Past, Remembered};
use crate::persist::wireguard_key;
use crate::plan::{self, Context, Identity, Outline};
use crate::serve::board::{Board, Phase};
use crate::serve::counters_file::CountersFile;
use crate::serve::wireguard_socket::{self, Sockets};
use crate::settings::Settings;
use crate::underlay::reach::Reach;
use crate::underlay::sysctls;
use store::lease::Event;
use store::lease::ledger::Ledger;
use store::lease::renewal::Renewal;
use store::{Owned, Store, Watch};

/// Where a node may start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// What the run before has written down, or the store.
    Memory,
    /// The store alone.
    Store,
}

/// What both ways begin with.
struct Beginning<'a> {
    settings: &'a Settings,
    endpoints: &'a Endpoints,
    /// What `subnet.env` said before it was written anew: what the run before has left.
    recorded: Option<Recorded>,
    netlink: Handle,
    /// From before the first look at the host.
    changes: Changes,
    store: Store,
    memory: Remembered,
}

/// A datapath with the lease and the peers it is for.
struct Standing {
    context: Context,
    engine: Arc<Engine>,
    /// Of the peers in the engine's first tables.
    numbers: Vec<Numbers>,
    own: Owned,
    ledger: Ledger,
    watch: Watch,
    /// The store has given us this lease, in this run.
    confirmed: bool,
}

impl Node {
    /// Brings a node up.
    pub(super) async fn start(
        settings: &Settings,
        endpoints: &Endpoints,
        from: Origin,
    ) -> Result<Node, DaemonError> {
        let store = Store::open(settings.store.clone()).await?;
        let mut beginning = Beginning {
            settings,
            endpoints,
            recorded: subnet_file::previous(&settings.subnet_file),
            netlink: netlink::connect()?,
            changes: Changes::listen()?,
            store,
            memory: Remembered::open(endpoints.state_file(), settings),
        };
        let past = match from {
            Origin::Memory => beginning.memory.past(settings, unix_now()),
            Origin::Store => None,
        };
        if let Some(past) = past {
            match beginning.resume(past).await {
                Ok(Some(standing)) => return beginning.finish(standing).await,
                Ok(None) => {}
                Err(error) => tracing::warn!("cannot start from memory, asking the store: {error}"),
            }
        }
        let standing = beginning.join().await?;
        beginning.finish(standing).await
    }
}

impl Beginning<'_> {
    /// `None` where the host is not what it was, or where the kernel forwards without us.
    async fn resume(&mut self, past: Past) -> Result<Option<Standing>, DaemonError> {
        let Past { config, own, peers } = past;
        let mut context = self.context(config).await?;
        let outline = self.outline(&context).await?;
        let (then, now) = (&own.wished, &outline.attrs);
        let same_node = then.public_ip == now.public_ip && then.public_ipv6 == now.public_ipv6;
        if outline.tunnels.is_empty() || !same_node {
            return Ok(None);
        }
        let mut ledger = Ledger::new(Some(own.key()));
        ledger.handle(Event::Snapshot(peers));
        ways::refresh(&self.netlink, &mut context, ledger.peers()).await;
        let planned = plan::plan(&context, &own.published, ledger.peers())?;
        let switches = datapath::switches(self.settings, &outline, &mut self.memory);
        let (engine, numbers) =
            datapath::start(self.settings, &context, &outline, &planned.tunnels, switches)?;
        tracing::info!(lease = %own.key(), peers = ledger.peers().len(), "forwarding from memory");
        let board = &self.endpoints.board;
        board.set_engine(&engine);
        board.set_remembered(&own.published);
        let watch = self.store.watch().await?;
        Ok(Some(Standing { context, engine, numbers, own, ledger, watch, confirmed: false }))
    }

    async fn join(&mut self) -> Result<Standing, DaemonError> {
        let (text, config) = wait_for_store::network_config(&self.store, self.settings).await?;
        self.memory.set_config(text);
        let mut context = self.context(config).await?;
        // Not for a remembered configuration: nothing that commands make is gone on with.
        context.extension_data = extension::before(&context.config).await?;
        let outline = self.outline(&context).await?;
        let switches = datapath::switches(self.settings, &outline, &mut self.memory);
        let (engine, numbers) = datapath::start(self.settings, &context, &outline, &[], switches)?;
        let board = &self.endpoints.board;
        board.set_engine(&engine);
        let previous = previous(self.recorded.as_ref());
        let first = wait_for_store::first_lease(&self.store, &context.config, outline.attrs, previous);
        let own = board.timed("acquire", first).await?;
        board.set_own(&own.published);
        extension::after(&context.config, &own.published).await?;
        let (mut watch, mut ledger) = (self.store.watch().await?, Ledger::new(Some(own.key())));
        ledger.handle(watch.next().await);
        ways::refresh(&self.netlink, &mut context, ledger.peers()).await;
        Ok(Standing { context, engine, numbers, own, ledger, watch, confirmed: true })
    }

    /// What the plan depends on, besides leases.
    async fn context(&mut self, config: NetConfig) -> Result<Context, DaemonError> {
        traffic::check(&self.settings.traffic, &config)?;
        let underlay = choose_underlay(&self.netlink, self.settings, &config).await?;
        self.endpoints.board.set_underlay(&underlay);
        let found = takeover::look(&self.netlink, &config).await?;
        let known = self.memory.identity().unwrap_or_else(|| Identity::from_random(rand::random()));
        let identity = found.over(&known);
        self.memory.set_identity(&identity);
        let ip_masq = self.settings.traffic.masquerade;
        let private_key = match &config.backend {
            Backend::Wireguard(_) => {
                let path = wireguard_key::path(|name| std::env::var_os(name));
                Some(wireguard_key::load(&path, rand::random)?)
            }
            _ => None,
        };
        let reach = Reach::new();
        Ok(Context { config, underlay, identity, ip_masq, extension_data: None, reach, private_key })
    }

    /// The tunnels to open, with the place for them made free.
    async fn outline(&self, context: &Context) -> Result<Outline, DaemonError> {
        let outline = plan::outline(context)?;
        outline.notes.iter().for_each(|note| tracing::warn!("{note}"));
        takeover::make(&self.netlink, &outline, self.memory.devices()).await?;
        Ok(outline)
    }

    /// From a datapath to a node that is ready.
    async fn finish(self, standing: Standing) -> Result<Node, DaemonError> {
        let Beginning { settings, endpoints, recorded, netlink, changes, store, mut memory } = self;
        let Standing { context, engine, numbers, own, ledger, watch, confirmed } = standing;
        let board: &Arc<Board> = &endpoints.board;
        let plan = Arc::new(plan::plan(&context, &own.published, ledger.peers())?);
        memory.announce_firewall(traffic::wanted(&settings.traffic));
        let rules = traffic::start(
            &settings.traffic,
            &context.config,
            &own.published,
            recorded.as_ref(),
            netlink.clone(),
        )
        .await?;
        let mut applier = Applier::new(netlink, settings.subnet_file.clone());
        applier.begin_anew(numbers);
        let applied = applier.apply(&plan, &*engine).await?;
        board.set_plan(&plan);
        board.set_store_health(watch.health());
        board.reconciled(applied.changes, applied.failures.iter().map(ToString::to_string).collect());
        let mut report = Report::default();
        report.tell(&plan, &applied);
        warn_of_gaps(&context.config);
        datapath::keep(&engine);
        let sockets = control_sockets(&context, board)?;
        let mut files = endpoints.files(settings);
        files.extend(sockets.iter().flat_map(Sockets::paths).map(|path| path.display().to_string()));
        board.set_files(files);
        if applied.is_promised() {
            ready(board, &own, settings, &store);
        }
        memory.keep(&plan, &own, ledger.peers());
        let mut node = Node {
            board: Arc::clone(board),
            memory,
            context,
            store,
            engine,
            renewal: Renewal::new(&own.published, settings.renew_margin, unix_now()),
            own,
            confirmed,
            store_request: StoreRequest::default(),
            removed_meanwhile: false,
            watch,
            ledger,
            plan,
            applier,
            schedule: Schedule::new(changes),
            rules,
            report,
            counters_file: settings.counters_file.clone().map(CountersFile::new),
            _sockets: sockets,
            uplink: Uplink::default(),
            former: None,
        };
        if !confirmed {
            node.ask_to_confirm(settings)?;
        }
        Ok(node)
    }
}

/// Pods may come: `subnet.env` is written, and all that it promises is in place.
pub(super) fn ready(board: &Board, own: &Owned, settings: &Settings, store: &Store) {
    tracing::info!(lease = %own.key(), subnet_file = %settings.subnet_file.display(), "ready");
    board.set_phase(Phase::Ready);
    let store = store.clone();
    // In a task of its own: a store that hangs must not keep the node from its other work.
    tokio::spawn(async move { wait_for_store::announce_ready(&store).await });
}

/// What `wg show` asks, where there is something to show.
fn control_sockets(context: &Context, board: &Arc<Board>) -> Result<Option<Sockets>, DaemonError> {
    let Some(private) = &context.private_key else { return Ok(None) };
    let tunnels = plan::outline(context)?.tunnels.into_iter().enumerate();
    let devices: Vec<_> =
        tunnels.map(|(index, tunnel)| (index, tunnel.device, tunnel.listen.port())).collect();
    Ok(Some(wireguard_socket::serve(&devices, private, board)))
}

/// What somebody else has to set for pods to be reachable.
fn warn_of_gaps(config: &NetConfig) {
    for gap in sysctls::gaps(config.ipv4.is_some(), config.ipv6.is_some(), config.nftables) {
        tracing::warn!("{}: {}; to change it: {}", gap.what, gap.cost, gap.fix);
    }
}

/// The subnets of an earlier run, as `subnet.env` has them.
fn previous(recorded: Option<&Recorded>) -> Option<SubnetKey> {
    let recorded = recorded?;
    SubnetKey::new(recorded.subnet(), recorded.ipv6_subnet())
}
