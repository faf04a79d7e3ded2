//! What the plan of a node that starts depends on besides leases, and the place for its tunnels.

use model::backend::Backend;
use model::net_config::NetConfig;

use super::error::DaemonError;
use super::{look, traffic};
use crate::apply::takeover::{self, Found};
use crate::netlink::Netlink;
use crate::persist::disk;
use crate::persist::remembered::Remembered;
use crate::persist::wireguard_key;
use crate::plan::{self, Context, Identity, Outline};
use crate::serve::board::Board;
use crate::settings::Settings;
use crate::underlay::reach::Reach;

/// Collects what the plan depends on. The ways to the peers and what commands print are still missing. Also
/// tells whether the MAC addresses are new: neither a former run nor a kernel device has left any.
pub(super) async fn collect(
    config: NetConfig,
    settings: &Settings,
    netlink: &Netlink,
    memory: &mut Remembered,
    board: &Board,
) -> Result<(Context, bool), DaemonError> {
    traffic::check(&settings.traffic, &config)?;
    let chosen = memory.chosen();
    let underlay = look::choose_uplink(netlink, &settings.uplink, &config, chosen).await?;
    board.set_underlay(&underlay);
    let found = takeover::look(netlink, &config).await?;
    let known = memory.identity();
    let is_new = known.is_none() && found == Found::default();
    let identity = found.over(&known.unwrap_or_else(|| Identity::from_random(rand::random())));
    memory.set_identity(&identity);
    let private_key = match &config.backend {
        Backend::Wireguard(_) => {
            let path = wireguard_key::path(|name| std::env::var_os(name));
            let load = move || wireguard_key::load(&path, rand::random);
            Some(disk::once(load).await.map_err(DaemonError::Files)??)
        }
        _ => None,
    };
    let context = Context {
        config,
        underlay,
        identity,
        ip_masq: settings.traffic.masquerade,
        extension_data: None,
        reach: Reach::new(),
        private_key,
    };
    Ok((context, is_new))
}

/// Outlines the tunnels to open, and makes the place for them free.
pub(super) async fn outline(
    context: &Context,
    netlink: &Netlink,
    left: takeover::Left<'_>,
) -> Result<Outline, DaemonError> {
    let outline = plan::outline(context)?;
    outline.notes.iter().for_each(|note| tracing::warn!("{note}"));
    takeover::make(netlink, &outline, left).await?;
    Ok(outline)
}
