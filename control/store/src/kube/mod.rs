//! The store of a Kubernetes cluster: a node's subnets are its pod CIDRs, and its attributes are flannel's
//! annotations of its Node object.
//!
//! Nothing is allocated here and nothing expires: a lease is there as long as its node. Who holds it shows in
//! the node's name, so nobody else can take it.
//!
//! ```text
//! config       flannel's --kube-* options
//! kubeconfig   the file, as far as a daemon can use it
//! access       address and credentials, read again for each connection
//! tls          whom to trust
//! client       calls
//! messages     Kubernetes' protocol buffers
//! bodies       what is written, as JSON
//! annotations  flannel's names and texts
//! node         a Node object as a lease
//! list         all nodes, page by page
//! watch        from Kubernetes' events to ours
//! ```

mod access;
mod annotations;
mod bodies;
pub(crate) mod client;
mod config;
mod error;
mod kubeconfig;
mod list;
pub(crate) mod messages;
mod node;
mod tls;
mod watch;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::lease::{Lease, LeaseAttrs, SubnetKey};
use model::net_config::NetConfig;
use tokio::time::timeout;

use crate::aside::Single;
use crate::lease::{self, Holder, Owned, Wish};
use crate::{Position, StoreError, Watch, regular, unix_now};
use annotations::{Annotations, Asked, Names};
use client::{Client, escape};
use node::{Families, Node, Reading};
use watch::Follower;

pub use client::Call;
pub use config::{ANNOTATION_PREFIX, Config, Identity, NET_CONFIG_PATH};
pub use error::KubeError;

/// How long to wait for the file of the network configuration.
const FILE_PATIENCE: Duration = Duration::from_secs(5);

/// A handle to a cluster. Clones share what they know of their node.
#[derive(Debug, Clone)]
pub struct Kube {
    config: Arc<Config>,
    names: Arc<Names>,
    client: Client,
    /// The file of the network configuration, as it is read.
    reading: Single<std::io::Result<String>>,
    own: Arc<Mutex<Own>>,
}

/// What a handle knows of its own node.
#[derive(Debug, Default)]
struct Own {
    /// The node's name, once it is known.
    node: Option<String>,
    families: Option<Families>,
    /// Our subnets and what we want to publish, once there is a wish.
    wish: Option<(SubnetKey, LeaseAttrs)>,
    /// What an administrator asks of the node.
    asked: Asked,
    /// Our annotations as we have left them.
    left: Annotations,
    /// What somebody else has written there, as it was last logged.
    foreign: Annotations,
    /// The node was told by an event that it has no pod CIDR.
    told: bool,
}

/// The addresses that an administrator asks a node to use, by flannel's annotations `node-public-ip` and
/// `node-public-ipv6`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// In place of `--public-ip`.
    pub ipv4: Option<Ipv4Addr>,
    /// In place of `--public-ipv6`.
    pub ipv6: Option<Ipv6Addr>,
}

/// Our node after what we wished was written to it.
struct Written {
    key: SubnetKey,
    /// What other nodes read.
    attrs: LeaseAttrs,
}

impl Kube {
    /// Checks the options. The first call reads the credentials and connects.
    pub fn lazy(config: Config) -> Result<Kube, KubeError> {
        let names = Arc::new(config.names()?);
        let config = Arc::new(config);
        let client = Client::new(Arc::clone(&config));
        Ok(Kube { names, client, config, reading: Single::default(), own: Arc::default() })
    }

    pub(crate) async fn net_config(&self) -> Result<Option<String>, KubeError> {
        let path = self.config.net_config_path.clone();
        let read = self.reading.run("loden-file", move || regular::read_to_string(&path, regular::USUAL));
        let read = timeout(FILE_PATIENCE, read).await;
        match read.unwrap_or_else(|_| Err(std::io::Error::other("the filesystem does not answer"))).flatten()
        {
            Ok(text) => Ok(Some(text)),
            Err(error) => {
                let problem = format!(
                    "cannot read the network configuration: {error}; mount the ConfigMap there, or set \
                     --net-config-path"
                );
                Err(KubeError::File { path: self.config.net_config_path.clone(), problem })
            }
        }
    }

    /// Takes in which families the network has.
    pub(crate) fn learn(&self, config: &NetConfig) {
        self.lock().families = Some(Families::of(config));
    }

    pub(crate) async fn acquire(&self, wish: &Wish<'_>) -> Result<Owned, StoreError> {
        self.learn(wish.config);
        let node = self.read_node().await?;
        let key = match node.own_key(wish.config) {
            Ok(key) => key,
            Err(error) => {
                self.tell(&node, &error).await;
                return Err(error.into());
            }
        };
        self.publish(node, key, &wish.attrs).await
    }

    pub(crate) async fn update(&self, own: &Owned, wished: &LeaseAttrs) -> Result<Owned, StoreError> {
        let node = match self.read_node().await {
            Err(KubeError::Missing { .. }) => return Err(lost(own, "the node was deleted")),
            node => node?,
        };
        if node.key_of(own.key()) != Some(own.key()) {
            return Err(lost(own, "the node has another podCIDR"));
        }
        self.publish(node, own.key(), wished).await
    }

    pub(crate) fn holder(&self, wished: &LeaseAttrs, stored: &Lease) -> Holder {
        match &self.lock().wish {
            // The watch reports nothing else under our key.
            Some((key, _)) if *key == stored.key => Holder::Us,
            _ => lease::holder(wished, &stored.attrs),
        }
    }

    pub(crate) async fn leases(&self) -> Result<Vec<Lease>, KubeError> {
        let mut connection = self.client.connect(Call::ListNodes).await?;
        let families = self.families();
        let take = |leases: &mut Vec<Lease>, node: Node| {
            if let Reading::Lease(lease) = node.read(&self.names, families) {
                leases.push(lease);
            }
        };
        let (mut leases, _) = list::all(&mut connection, take).await?;
        leases.sort_by_key(|lease| lease.key);
        leases.dedup_by_key(|lease| lease.key);
        Ok(leases)
    }

    /// Returns what an earlier run, or stock flannel, has published for this node.
    pub(crate) async fn published(&self) -> Result<Option<LeaseAttrs>, KubeError> {
        Ok(self.read_node().await?.published(&self.names))
    }

    pub(crate) fn watch(&self, since: Option<Position>) -> Watch {
        Watch::new(Follower::new(self.clone(), since))
    }

    /// Says on the node that its network is up.
    pub(crate) async fn announce_ready(&self) -> Result<(), KubeError> {
        if !self.config.set_network_unavailable {
            return Ok(());
        }
        let path = format!("{}/status", self.path(&self.node_name().await?));
        let body = bodies::network_available(unix_now());
        let _: messages::Node = self.client.patch(Call::PatchStatus, &path, body).await?;
        Ok(())
    }

    /// Returns the addresses that an administrator asks this node to use, as they were last read.
    pub(crate) fn node_addresses(&self) -> NodeAddresses {
        let own = self.lock();
        NodeAddresses { ipv4: own.asked.node_ip, ipv6: own.asked.node_ipv6 }
    }

    /// Reads our node, and what an administrator asks of it.
    pub(crate) async fn look_at_node(&self) -> Result<(), KubeError> {
        self.read_node().await.map(|_| ())
    }

    /// Reads our node.
    async fn read_node(&self) -> Result<Node, KubeError> {
        let name = self.node_name().await?;
        let node: messages::Node = self.client.get(Call::ReadNode, &self.path(&name)).await?;
        let mut node = Node::from(node);
        node.name = name;
        self.take_in(&node);
        Ok(node)
    }

    /// Takes in what an administrator asks of our node.
    fn take_in(&self, node: &Node) {
        let asked = self.names.asked(&node.annotations);
        let mut own = self.lock();
        for complaint in asked.complaints.iter().filter(|new| !own.asked.complaints.contains(new)) {
            tracing::warn!("lease store: node {}: {complaint}", node.name);
        }
        own.asked = asked;
    }

    /// Brings our node's annotations to the wish.
    async fn publish(&self, node: Node, key: SubnetKey, wished: &LeaseAttrs) -> Result<Owned, StoreError> {
        // Before the request: its answer may get lost after it was carried out.
        self.lock().wish = Some((key, wished.clone()));
        let Written { key, attrs } = self.write(node, key, wished).await?;
        let published = Lease { key, attrs, expires: None };
        Ok(Owned { published, wished: wished.clone() })
    }

    async fn write(&self, node: Node, key: SubnetKey, wished: &LeaseAttrs) -> Result<Written, KubeError> {
        let asked = self.lock().asked.clone();
        let changes = self.names.changes(&node.annotations, wished, &asked, &key);
        let after = if changes.is_empty() {
            node
        } else {
            let path = format!("{}/status", self.path(&node.name));
            let body = bodies::annotations(&changes);
            let after: messages::Node = self.client.patch(Call::PatchStatus, &path, body).await?;
            Node::from(after)
        };
        let left = self.names.ours(&after.annotations);
        self.lock().left = left.map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
        let attrs = after.published(&self.names).unwrap_or_else(|| wished.clone());
        Ok(Written { key, attrs })
    }

    /// Writes our wish again where somebody has changed it. Returns false if the node is no longer ours as it
    /// was: it was deleted, or has another subnet.
    async fn restore(&self) -> Result<bool, KubeError> {
        let Some((key, wished)) = self.lock().wish.clone() else { return Ok(true) };
        let node = match self.read_node().await {
            Err(KubeError::Missing { .. }) => return Ok(false),
            node => node?,
        };
        if node.key_of(key) != Some(key) {
            return Ok(false);
        }
        if let Some(warning) = self.intrusion(&node, key, &wished) {
            tracing::warn!("lease store: {warning}");
        }
        self.write(node, key, &wished).await?;
        Ok(true)
    }

    /// Returns what to log of what somebody else has written to our annotations, once for each text. Another
    /// daemon of this name would write there again and again, and so would we.
    fn intrusion(&self, node: &Node, key: SubnetKey, wished: &LeaseAttrs) -> Option<String> {
        let mut own = self.lock();
        let changes = self.names.changes(&node.annotations, wished, &own.asked, &key);
        let foreign = annotations::foreign(&node.annotations, &own.left, &changes);
        if foreign.iter().all(|(name, said)| own.foreign.get(name) == Some(said)) {
            return None;
        }
        let said: Vec<&str> = foreign.values().map(String::as_str).collect();
        let warning = format!(
            "somebody else writes the annotations of our node {}: {}; overwritten; is another daemon started \
             with this NODE_NAME?",
            node.name,
            said.join(", ")
        );
        own.foreign.extend(foreign);
        Some(warning)
    }

    /// Tells an administrator by an event on the node, once, if our role allows it.
    async fn tell(&self, node: &Node, problem: &KubeError) {
        if std::mem::replace(&mut self.lock().told, true) {
            return;
        }
        let body = bodies::event(node, "NoPodCIDR", &problem.to_string(), unix_now());
        let path = format!("/api/v1/namespaces/{}/events", bodies::NAMESPACE);
        if let Err(error) = self.client.create(Call::CreateEvent, &path, body).await {
            tracing::info!("no event about the missing pod network: {error}");
        }
    }

    /// Returns the name of our node, which a pod knows.
    async fn node_name(&self) -> Result<String, KubeError> {
        if let Some(name) = self.lock().node.clone() {
            return Ok(name);
        }
        let name = match &self.config.node {
            Identity::Node(name) => name.clone(),
            Identity::Pod { namespace, name } => {
                let path = format!("/api/v1/namespaces/{}/pods/{}", escape(namespace), escape(name));
                let pod: messages::Pod = self.client.get(Call::ReadPod, &path).await?;
                let node = pod.spec.unwrap_or_default().node_name;
                if !node::is_name(&node) {
                    return Err(KubeError::Unscheduled { pod: format!("{namespace}/{name}") });
                }
                node
            }
        };
        self.lock().node = Some(name.clone());
        Ok(name)
    }

    fn path(&self, node: &str) -> String {
        format!("/api/v1/nodes/{}", escape(node))
    }

    fn families(&self) -> Families {
        self.lock().families.unwrap_or(Families::BOTH)
    }

    fn lock(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost(own: &Owned, why: &'static str) -> StoreError {
    StoreError::Lost { key: own.key().to_string(), why }
}

#[cfg(test)]
mod tests;
