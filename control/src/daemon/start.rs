//! How a node comes up.
//!
//! From the store: configuration, interface, devices and sockets, lease, peers, kernel, `subnet.env`. An
//! error on the way ends the process; what it leaves is the devices, and the next start takes them and the
//! lease back. Only `subnet.env` may come later: the node forwards for the pods that it has, and is not ready
//! before.
//!
//! From memory, where an earlier run has left what is needed: the same with its configuration and leases, and
//! the tables are filled before the first packet is read. The store is asked afterwards, beside the loop; if
//! it says something else, the node starts again from the store.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use engine::Engine;
use model::backend::Backend;
use model::lease::{LeaseAttrs, SubnetKey};
use model::net_config::NetConfig;
use model::subnet_env::Recorded;
use store::lease::ledger::Ledger;
use store::{Event, Owned, Store, Watch, Wish};
use tokio::time::sleep;

use super::endpoints::Endpoints;
use super::error::DaemonError;
use super::host::Host;
use super::node::{self, Node};
use super::reconciler::{Inputs, OwnLease, Reconciler};
use super::report::Report;
use super::store_request::StoreRequest;
use super::wait_for_store::Trust;
use super::{context, datapath, extension, look, traffic, wait_for_store};
use crate::apply::engine::Numbers;
use crate::apply::{subnet_file, takeover};
use crate::netlink::{Changes, Netlink};
use crate::persist::disk;
use crate::persist::remembered::{Past, Remembered};
use crate::persist::state_file::StateFile;
use crate::plan::{self, Context, Outline};
use crate::serve::board::Board;
use crate::serve::counters_file::CountersFile;
use crate::serve::wireguard_socket::{self, Sockets};
use crate::settings::Settings;
use crate::underlay::sysctls;

/// Where a node may start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// What an earlier run has written down, or the store.
    Memory,
    /// The store alone.
    Store,
}

/// Brings a node up.
pub(super) async fn start<'a>(
    settings: &'a Settings,
    endpoints: &'a Endpoints,
    from: Origin,
) -> Result<Node<'a>, DaemonError> {
    let path = settings.subnet_file.clone();
    let recorded = disk::once(move || subnet_file::previous(&path)).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the previous subnet file; ignoring it");
        None
    });
    let (file, known, there) = (endpoints.state_file(), settings.clone(), recorded.clone());
    let remember = move || {
        let memory = Remembered::open(file, &known);
        let past = memory.past(&known, there.as_ref(), node::now().unix);
        (memory, past)
    };
    let (memory, past) = match disk::once(remember).await {
        Ok(read) => read,
        Err(error) => {
            tracing::warn!(%error, "state file of the previous run ignored");
            (Remembered::open(StateFile::new(None, None), settings), None)
        }
    };
    let mut beginning = Beginning {
        settings,
        endpoints,
        recorded,
        netlink: Netlink::connect()?,
        changes: Changes::listen()?,
        store: Store::open(settings.store.clone()).await?,
        memory,
    };
    if let Some(past) = past.as_ref().filter(|_| from == Origin::Memory) {
        match beginning.resume(past).await {
            Ok(Some(standing)) => return beginning.finish(standing).await,
            Ok(None) => {}
            Err(error) => tracing::warn!("cannot start from memory, asking the store: {error}"),
        }
    }
    let standing = beginning.join(past).await?;
    beginning.finish(standing).await
}

/// What both ways begin with.
struct Beginning<'a> {
    settings: &'a Settings,
    endpoints: &'a Endpoints,
    /// What `subnet.env` said before it was written again: what an earlier run has left.
    recorded: Option<Recorded>,
    netlink: Netlink,
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

impl<'a> Beginning<'a> {
    /// Starts from memory; none where the host is not what it was, or where the kernel forwards without us.
    async fn resume(&mut self, past: &Past) -> Result<Option<Standing>, DaemonError> {
        let Past { config, own, peers } = past.clone();
        let (mut context, _) = self.context(config).await?;
        let outline = self.outline(&context).await?;
        if outline.tunnels.is_empty() || !is_at_its_address(&own, &outline.attrs) {
            return Ok(None);
        }
        let mut ledger = Ledger::new(Some(own.key()));
        ledger.handle(Event::Snapshot(peers), node::now());
        context.reach = look::ways(&self.netlink, &context, ledger.peers()).await?;
        let planned = plan::plan(&context, &own.published, ledger.peers())?;
        let (engine, numbers) =
            datapath::open(self.settings, &context, &outline, &planned.tunnels, &mut self.memory)?;
        tracing::info!(lease = %own.key(), peers = ledger.peers().len(), "forwarding from memory");
        let board = &self.endpoints.board;
        board.set_engine(&engine);
        board.set_remembered(&own.published);
        let watch = self.store.watch_since(self.memory.position());
        Ok(Some(Standing { context, engine, numbers, own, ledger, watch, confirmed: false }))
    }

    /// Starts from the store. What is remembered of its leases tells which of them a store has lost.
    async fn join(&mut self, past: Option<Past>) -> Result<Standing, DaemonError> {
        let (text, config) = wait_for_store::network_config(&self.store, self.settings, Trust::Store).await?;
        self.memory.set_config(text);
        wait_for_store::look_at_node(&self.store).await?;
        let former = self.memory.own(node::now().unix).map(|own| own.published);
        let past = past.filter(|past| past.config == config);
        let (mut context, is_new) = self.context(config).await?;
        if is_new && matches!(context.config.backend, Backend::Vxlan(_)) {
            self.take_published_identity(&mut context).await?;
        }
        // Not for a remembered configuration: nothing that commands make is resumed.
        context.extension_data = extension::before(&context.config).await?;
        let outline = self.outline(&context).await?;
        let (engine, numbers) = datapath::open(self.settings, &context, &outline, &[], &mut self.memory)?;
        let board = &self.endpoints.board;
        board.set_engine(&engine);
        self.leave_to_twin(&outline.attrs).await;
        let previous = previous(self.recorded.as_ref());
        let config = &context.config;
        let wish = Wish { config, attrs: outline.attrs, previous, former: former.as_ref() };
        let first = wait_for_store::first_lease(&self.store, &wish, Trust::Store);
        let own = board.timed("acquire", first).await?;
        board.set_own(&own.published);
        extension::after(&context.config, &own.published).await?;
        let mut ledger = Ledger::new(Some(own.key()));
        let past = past.filter(|past| past.own.key() == own.key());
        let mut watch = self.store.watch_since(past.as_ref().and_then(|_| self.memory.position()));
        ledger.handle(Event::Snapshot(past.map(|past| past.peers).unwrap_or_default()), node::now());
        ledger.handle(watch.next().await, node::now());
        context.reach = look::ways(&self.netlink, &context, ledger.peers()).await?;
        Ok(Standing { context, engine, numbers, own, ledger, watch, confirmed: true })
    }

    /// Leaves the lease to another daemon that publishes our address and has evicted us, for a while that
    /// grows, or until it has no such lease any more.
    async fn leave_to_twin(&self, ours: &LeaseAttrs) {
        let back_off = self.memory.back_off(ours, node::now().unix);
        if back_off.is_zero() {
            return;
        }
        let seconds = back_off.as_secs();
        tracing::warn!(
            "another daemon publishes our address and has taken our lease; waiting {seconds} s before taking \
             it back; give each its own --public-ip"
        );
        if wait_for_store::end_of_twin(&self.store, ours, sleep(back_off)).await {
            tracing::info!("no other daemon publishes our address any more");
        }
    }

    /// Takes the MAC addresses that an earlier run has published, where its state file is lost: the peers
    /// know them. That the lease is ours shows in `subnet.env`, unless the store knows this node by its name;
    /// a twin with our address must stay another daemon.
    async fn take_published_identity(&mut self, context: &mut Context) -> Result<(), DaemonError> {
        let attrs = plan::outline(context)?.attrs;
        let previous = previous(self.recorded.as_ref());
        if let Some(attrs) = wait_for_store::published(&self.store, &attrs, previous).await? {
            context.identity = context.identity.published(&attrs);
            self.memory.set_identity(&context.identity);
        }
        Ok(())
    }

    async fn context(&mut self, config: NetConfig) -> Result<(Context, bool), DaemonError> {
        let board = &self.endpoints.board;
        let uplink = self.settings.uplink.with(self.store.node_addresses());
        let settings = Settings { uplink, ..self.settings.clone() };
        context::collect(config, &settings, &self.netlink, &mut self.memory, board).await
    }

    async fn outline(&self, context: &Context) -> Result<Outline, DaemonError> {
        let subnets = takeover::subnets(&context.config, self.recorded.as_ref());
        let label = self.endpoints.label();
        let left = takeover::Left { devices: self.memory.devices(), label: &label, subnets: &subnets };
        context::outline(context, &self.netlink, left).await
    }

    /// Makes a node, ready if possible, of a datapath.
    async fn finish(self, standing: Standing) -> Result<Node<'a>, DaemonError> {
        let Beginning { settings, endpoints, recorded, netlink, changes, store, mut memory } = self;
        let Standing { context, engine, numbers, own, ledger, watch, confirmed } = standing;
        let board = Arc::clone(&endpoints.board);
        let own_lease = if confirmed { OwnLease::acquired } else { OwnLease::remembered };
        let own_lease = own_lease(&own, settings.renew_margin, node::now());
        let mut inputs = Inputs::new(context, own, ledger, node::now().instant)?;
        let plan = inputs.take_plan()?;
        let reconciler = Reconciler::new(inputs, own_lease, node::now().instant);
        let (context, own) = (reconciler.inputs().context(), reconciler.inputs().own());
        memory.announce_firewall(traffic::wanted(&settings.traffic));
        let handle = netlink.clone();
        let rules =
            traffic::start(&settings.traffic, &context.config, &own.published, recorded.as_ref(), handle)
                .await?;
        board.set_plan(&plan);
        board.set_store_health(watch.health());
        let shown = Arc::clone(&board);
        let (host, applied) = Host::new(
            netlink.reporting(move || shown.goes_on(Instant::now())),
            endpoints.disks.subnet_file.clone(),
            settings.subnet_file.clone(),
            &endpoints.label(),
            engine,
            numbers,
            plan,
        )
        .await?;
        let interface = &context.underlay.interface;
        if let Err(error) = takeover::remove_routes(host.netlink(), interface, host.plan()).await {
            tracing::warn!("routes of an earlier configuration may lead past the tunnel: {error}");
        }
        warn_of_gaps(&context.config);
        datapath::keep(host.engine());
        let sockets = control_sockets(context, &board).await?;
        let mut files = endpoints.files(settings);
        files.extend(sockets.iter().flat_map(Sockets::paths).map(|path| path.display().to_string()));
        board.set_files(files);
        let mut node = Node {
            settings,
            reconciler,
            store,
            store_request: StoreRequest::default(),
            watch,
            changes,
            host,
            memory,
            board,
            report: Report::default(),
            is_promised: false,
            is_ready: false,
            started: Instant::now(),
            announcement: None,
            counters_file: settings
                .counters_file
                .clone()
                .map(|path| Arc::new(Mutex::new(CountersFile::new(path)))),
            disks: endpoints.disks.clone(),
            rules,
            sockets,
        };
        node.show_applied(&applied);
        node.remember();
        Ok(node)
    }
}

/// Tells whether a lease of an earlier run was wished with the addresses that are wished now. What an
/// administrator has published in their place does not matter.
fn is_at_its_address(own: &Owned, now: &LeaseAttrs) -> bool {
    own.wished.public_ip == now.public_ip && own.wished.public_ipv6 == now.public_ipv6
}

/// Serves what `wg show` asks, where there is something to show.
async fn control_sockets(context: &Context, board: &Arc<Board>) -> Result<Option<Sockets>, DaemonError> {
    let Some(private) = &context.private_key else { return Ok(None) };
    let tunnels = plan::outline(context)?.tunnels.into_iter().enumerate();
    let devices: Vec<_> =
        tunnels.map(|(index, tunnel)| (index, tunnel.device, tunnel.listen.port())).collect();
    Ok(Some(wireguard_socket::serve(&devices, private, board).await))
}

/// Warns of what somebody else has to set for pods to be reachable.
fn warn_of_gaps(config: &NetConfig) {
    for gap in sysctls::gaps(config.ipv4.is_some(), config.ipv6.is_some(), config.nftables) {
        tracing::warn!("{}: {}; to change it: {}", gap.what, gap.cost, gap.fix);
    }
}

/// Returns the subnets of an earlier run, as `subnet.env` has them.
fn previous(recorded: Option<&Recorded>) -> Option<SubnetKey> {
    let recorded = recorded?;
    SubnetKey::new(recorded.subnet(), recorded.ipv6_subnet())
}

#[cfg(test)]
mod tests {
    use model::lease::Lease;

    use super::*;

    #[test]
    fn a_remembered_lease_is_trusted_by_its_wish_whatever_is_published() {
        let attrs = |ip: &str| {
            let text = format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null}}"#);
            LeaseAttrs::parse(&text).expect("attributes")
        };
        let key = "10.3.1.0-24".parse().expect("a key");
        for (wished, published, now, trusted) in [
            ("192.0.2.1", "192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "203.0.113.9", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.1", "192.0.2.7", false),
            ("192.0.2.1", "192.0.2.7", "192.0.2.7", false),
        ] {
            let published = Lease { key, attrs: attrs(published), expires: None };
            let own = Owned { published, wished: attrs(wished) };
            assert_eq!(is_at_its_address(&own, &attrs(now)), trusted, "{own:?}");
        }
    }
}
