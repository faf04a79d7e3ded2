//! flannel's `--kube-*` options, and what its manifest puts into the environment.

use std::path::PathBuf;

use super::KubeError;
use super::annotations::Names;
use crate::StoreId;

/// flannel's annotation prefix.
pub const ANNOTATION_PREFIX: &str = "flannel.alpha.coreos.com";
/// The path where flannel's manifests mount the network configuration.
pub const NET_CONFIG_PATH: &str = "/etc/kube-flannel/net-conf.json";
/// Where a pod finds the credentials of its service account.
pub(super) const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How to reach a cluster, and which of its nodes this is. The defaults are flannel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The API server's address; empty: that of the kubeconfig, or of the pod's environment.
    pub api_url: String,
    /// The kubeconfig; `None`: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The prefix of the annotations, as flannel's option takes it.
    pub annotation_prefix: String,
    /// The file of the network configuration.
    pub net_config_path: PathBuf,
    /// Set the node's condition NetworkUnavailable to False once the node forwards.
    pub set_network_unavailable: bool,
    /// This node.
    pub node: Identity,
    /// Host and port of the service `kubernetes`, which a pod finds in its environment.
    pub service: Option<(String, String)>,
    /// The directory with the credentials of the pod's service account.
    pub service_account: PathBuf,
}

/// What tells which node this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The node's name.
    Node(String),
    /// A pod that runs on it.
    Pod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
}

impl Default for Config {
    fn default() -> Config {
        Config {
            api_url: String::new(),
            kubeconfig: None,
            annotation_prefix: ANNOTATION_PREFIX.to_owned(),
            net_config_path: NET_CONFIG_PATH.into(),
            set_network_unavailable: true,
            node: Identity::Node(String::new()),
            service: None,
            service_account: SERVICE_ACCOUNT.into(),
        }
    }
}

impl Config {
    /// Takes from the environment what flannel does: `NODE_NAME`, or `POD_NAME` with `POD_NAMESPACE`, and the
    /// address of the service `kubernetes`.
    pub fn with_environment(self, variable: impl Fn(&str) -> Option<String>) -> Result<Config, KubeError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let node = match (variable("NODE_NAME"), variable("POD_NAMESPACE"), variable("POD_NAME")) {
            (Some(node), _, _) => Identity::Node(node),
            (None, Some(namespace), Some(name)) => Identity::Pod { namespace, name },
            _ => {
                let problem = "not set, and neither are both POD_NAME and POD_NAMESPACE; they tell which \
                               node this is"
                    .to_owned();
                return Err(KubeError::Option { option: "NODE_NAME", value: String::new(), problem });
            }
        };
        let service = variable("KUBERNETES_SERVICE_HOST").zip(variable("KUBERNETES_SERVICE_PORT"));
        Ok(Config { node, service, ..self })
    }

    /// Returns the annotations' names.
    pub(super) fn names(&self) -> Result<Names, KubeError> {
        Names::new(&self.annotation_prefix).map_err(|problem| KubeError::Option {
            option: "--kube-annotation-prefix",
            value: self.annotation_prefix.clone(),
            problem,
        })
    }

    /// Returns what identifies the cluster, as far as that is known before it answers.
    pub(crate) fn id(&self) -> StoreId {
        let node = match &self.node {
            Identity::Node(name) => format!("node {name}"),
            // Each pod of a DaemonSet has a name of its own, and they are of one cluster.
            Identity::Pod { namespace, .. } => format!("pods in {namespace}"),
        };
        StoreId { name: format!("kubernetes:{} ({node})", self.annotation_prefix), endpoints: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Config, KubeError> {
        let found = |name: &str| variables.iter().find(|(known, _)| *known == name);
        Config::default().with_environment(|name| found(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_node_is_named_by_its_variable_or_by_the_pod() {
        let pod = || Identity::Pod { namespace: "kube-flannel".into(), name: "p".into() };
        let (namespace, name) = (("POD_NAMESPACE", "kube-flannel"), ("POD_NAME", "p"));
        for (variables, expected) in [
            (&[namespace, name][..], pod()),
            (&[namespace, name, ("NODE_NAME", "")], pod()),
            (&[namespace, name, ("NODE_NAME", "n1")], Identity::Node("n1".into())),
        ] {
            assert_eq!(with(variables).expect("a node").node, expected);
        }
        for variables in [&[][..], &[name], &[namespace], &[("POD_NAME", ""), namespace]] {
            let error = with(variables).expect_err("no node").to_string();
            assert!(error.contains("NODE_NAME") && error.contains("POD_NAMESPACE"), "{error}");
        }
    }

    #[test]
    fn the_service_needs_both_of_its_variables() {
        let node = ("NODE_NAME", "n1");
        let (host, port) = (("KUBERNETES_SERVICE_HOST", "10.43.0.1"), ("KUBERNETES_SERVICE_PORT", "443"));
        let both = Some(("10.43.0.1".to_owned(), "443".to_owned()));
        assert_eq!(with(&[node, host, port]).expect("a node").service, both);
        assert_eq!(with(&[node, host]).expect("a node").service, None);
    }
}
