//! The entrance to all stores.

use model::error::{ConfigError, Warning};
use model::lease::{Lease, LeaseAttrs, SubnetKey};
use model::net_config::{self, NetConfig};
use model::secrets::redact;

use crate::error::{Cause, StoreError};
use crate::kube::{KubeError, NodeAddresses};
use crate::lease::{self, Holder, Owned, Wish};
use crate::{Etcd, Kube, Memory, Position, Spec, Sqlite, Watch};

/// A store of any kind. Clones share the store and its connection.
#[derive(Debug, Clone)]
pub enum Store {
    /// The store of a flannel cluster.
    Etcd(Etcd),
    /// A Kubernetes cluster.
    Kube(Kube),
    /// A file shared by the daemons of one machine.
    Sqlite(Sqlite),
    /// A store in memory, which ends with the process.
    Memory(Memory),
}

/// The network configuration in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The text as stored.
    pub text: String,
    /// The configuration that the text means.
    pub config: NetConfig,
    /// Legal members of the configuration that a person should look at.
    pub warnings: Vec<Warning>,
}

impl Store {
    /// Opens the store that `spec` names. It need not be there yet: each request tries to reach it.
    pub async fn open(spec: Spec) -> Result<Store, StoreError> {
        match spec {
            Spec::Etcd(config) => Ok(Store::Etcd(Etcd::open(config)?)),
            Spec::Kube(config) => Ok(Store::Kube(Kube::lazy(config)?)),
            Spec::Sqlite(path) => Ok(Store::Sqlite(Sqlite::lazy(path)?)),
            Spec::Memory(store) => Ok(Store::Memory(store)),
        }
    }

    /// Reads the network configuration, after replacing the stored one by `given`, if any.
    /// [`StoreError::Passing`] while no configuration is set, and while others may correct a broken one.
    pub async fn network(&self, given: Option<&str>) -> Result<Network, StoreError> {
        let fatal = |error: ConfigError| StoreError::Fatal(Cause::Config(error));
        // A broken one must not reach the other nodes.
        given.map(net_config::parse).transpose().map_err(fatal)?;
        let mut stored = self.net_config().await?;
        if let Some(new) = given
            && stored.as_deref() != Some(new)
        {
            if let Some(old) = &stored {
                // Nodes that run keep the old one until they restart.
                let [old, new] = [old, new].map(redact);
                tracing::warn!(old, new, "replacing the network configuration in the store");
            }
            self.set_net_config(new).await?;
            stored = Some(new.to_owned());
        }
        let text = stored.ok_or(StoreError::Passing(Cause::Unconfigured))?;
        let parse = match self {
            Store::Kube(_) => net_config::parse_assigned,
            Store::Etcd(_) | Store::Sqlite(_) | Store::Memory(_) => net_config::parse,
        };
        let (config, warnings) = parse(&text).map_err(|error| match self {
            // Another member of the cluster wrote it and can correct it.
            Store::Etcd(_) => StoreError::Passing(Cause::Config(error)),
            // As in flannel: a ConfigMap that is corrected comes with a restart.
            Store::Kube(_) | Store::Sqlite(_) | Store::Memory(_) => fatal(error),
        })?;
        if let Store::Kube(store) = self {
            store.learn(&config);
        }
        Ok(Network { text, config, warnings })
    }

    /// Reads the text of the network configuration, if one is set.
    pub async fn net_config(&self) -> Result<Option<String>, StoreError> {
        match self {
            Store::Etcd(store) => Ok(store.net_config().await?),
            Store::Kube(store) => Ok(store.net_config().await?),
            Store::Sqlite(store) => Ok(store.net_config().await?),
            Store::Memory(store) => Ok(store.net_config()),
        }
    }

    /// Sets the text of the network configuration without a check. Leases stay as they are.
    pub async fn set_net_config(&self, text: &str) -> Result<(), StoreError> {
        match self {
            Store::Etcd(store) => Ok(store.set_net_config(text).await?),
            Store::Kube(_) => Err(KubeError::ReadOnly.into()),
            Store::Sqlite(store) => Ok(store.set_net_config(text).await?),
            Store::Memory(store) => {
                store.set_net_config(text);
                Ok(())
            }
        }
    }

    /// Acquires a lease: the one that this node holds, else the previous subnets, else a random choice of the
    /// first hundred free ones. In Kubernetes the subnets are the node's pod CIDRs. The published attributes
    /// may differ from the wish, see [`Owned`].
    pub async fn acquire(&self, wish: &Wish<'_>) -> Result<Owned, StoreError> {
        check(&wish.attrs, wish.config.ipv4.is_some())?;
        match self {
            Store::Etcd(store) => store.acquire(wish).await.map(Owned::as_wished),
            Store::Kube(store) => store.acquire(wish).await,
            Store::Sqlite(store) => store.acquire(wish).await.map(Owned::as_wished),
            Store::Memory(store) => store.acquire(wish),
        }
    }

    /// Renews our lease with an unchanged wish; [`StoreError::Lost`] if it is no longer stored as ours. The
    /// published attributes may have changed all the same, see [`Owned`].
    pub async fn renew(&self, own: &Owned) -> Result<Owned, StoreError> {
        self.update(own, &own.wished).await
    }

    /// Renews our lease with another wish; [`StoreError::Lost`] if it is no longer stored as ours. The
    /// published attributes may differ from the wish, see [`Owned`].
    pub async fn update(&self, own: &Owned, wished: &LeaseAttrs) -> Result<Owned, StoreError> {
        check(wished, own.published.subnet().is_some())?;
        match self {
            Store::Etcd(store) => store.update(&own.published, wished).await.map(Owned::as_wished),
            Store::Kube(store) => store.update(own, wished).await,
            Store::Sqlite(store) => store.update(&own.published, wished).await.map(Owned::as_wished),
            Store::Memory(store) => store.update(own, wished),
        }
    }

    /// Returns the holder of a lease that is stored under our key, given the attributes that we wished. Does
    /// no I/O.
    pub fn holder(&self, wished: &LeaseAttrs, stored: &Lease) -> Holder {
        match self {
            Store::Etcd(_) | Store::Sqlite(_) => lease::holder(wished, &stored.attrs),
            Store::Kube(store) => store.holder(wished, stored),
            Store::Memory(store) => store.holder(wished, stored),
        }
    }

    /// Lists all readable leases that are not void.
    pub async fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        match self {
            Store::Etcd(store) => Ok(store.leases().await?),
            Store::Kube(store) => Ok(store.leases().await?),
            Store::Sqlite(store) => Ok(store.leases().await?),
            Store::Memory(store) => Ok(store.leases()),
        }
    }

    /// Returns what an earlier run of this node has published, if its lease is still there: that of the node
    /// that publishes `attrs`, with the subnets `previous`. In Kubernetes the node's name tells whose it is.
    pub async fn published(
        &self,
        attrs: &LeaseAttrs,
        previous: Option<SubnetKey>,
    ) -> Result<Option<LeaseAttrs>, StoreError> {
        let leases = match self {
            // Without the expiries, each of which is a call.
            Store::Etcd(store) => store.listed().await?,
            Store::Kube(store) => return Ok(store.published().await?),
            Store::Sqlite(_) | Store::Memory(_) => self.leases().await?,
        };
        let lease = leases.into_iter().find(|stored| lease::same_node(attrs, &stored.attrs));
        Ok(lease.filter(|lease| previous == Some(lease.key)).map(|lease| lease.attrs))
    }

    /// Removes a lease, whoever holds it. Returns true if there was one. In Kubernetes a lease goes with its
    /// node, which is not ours to delete.
    pub async fn remove(&self, key: &SubnetKey) -> Result<bool, StoreError> {
        match self {
            Store::Etcd(store) => Ok(store.remove(key).await?),
            Store::Kube(_) => Ok(false),
            Store::Sqlite(store) => Ok(store.remove(key).await?),
            Store::Memory(store) => Ok(store.remove(key)),
        }
    }

    /// Follows all leases, our own among them, from the first call of [`Watch::next`] on. The first event is
    /// a snapshot.
    pub fn watch(&self) -> Watch {
        self.watch_since(None)
    }

    /// Follows all leases like [`Store::watch`]. The first event is a rewind where the store is behind
    /// `since`, which is the position of an earlier run's watch.
    pub fn watch_since(&self, since: Option<Position>) -> Watch {
        match self {
            Store::Etcd(store) => store.watch(since),
            Store::Kube(store) => store.watch(since),
            Store::Sqlite(store) => store.watch(since),
            Store::Memory(store) => store.watch(since),
        }
    }

    /// Tells the store that this node forwards, if that kind of store records it. The daemon calls this once
    /// per start, after `subnet.env` is written.
    pub async fn announce_ready(&self) -> Result<(), StoreError> {
        match self {
            // Like flannel, nothing is recorded there.
            Store::Etcd(_) | Store::Sqlite(_) => {}
            Store::Kube(store) => store.announce_ready().await?,
            Store::Memory(store) => store.announce_ready(),
        }
        Ok(())
    }

    /// Reads what the store says of the node itself, if that kind of store says anything.
    pub async fn look_at_node(&self) -> Result<(), StoreError> {
        match self {
            Store::Kube(store) => Ok(store.look_at_node().await?),
            Store::Etcd(_) | Store::Sqlite(_) | Store::Memory(_) => Ok(()),
        }
    }

    /// Returns the addresses that an administrator asks this node to use, as they were last read. Does no
    /// I/O.
    pub fn node_addresses(&self) -> NodeAddresses {
        match self {
            Store::Kube(store) => store.node_addresses(),
            Store::Etcd(_) | Store::Sqlite(_) | Store::Memory(_) => NodeAddresses::default(),
        }
    }
}

/// Refuses attributes that must reach no other node, whatever the store.
fn check(attrs: &LeaseAttrs, has_ipv4: bool) -> Result<(), StoreError> {
    attrs.check(has_ipv4).map_err(|error| StoreError::Fatal(Cause::Unpublishable(error)))
}
