//! A containerd for one host, driven as a kubelet drives it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tonic::Status;

use crate::cage::Cage;
use crate::common::{Cluster, await_until};
use crate::cri::{self, Client};
use crate::image::IMAGE;

/// Time limit of a command in a container, in seconds.
const PATIENCE: i64 = 20;

/// CRI's number for the host's network.
const NODE: i32 = 2;
/// CRI's number for a container that has ended.
const EXITED: i32 = 2;

/// A running containerd. Dropping it removes its pods; the cage ends the rest.
pub struct Containerd {
    pub cage: Cage,
    socket: PathBuf,
    logs: PathBuf,
    client: Client,
    pods: Vec<String>,
}

/// A pod with one container.
pub struct Pod {
    pub sandbox: String,
    pub container: String,
    /// In the runtime's order.
    pub addresses: Vec<IpAddr>,
}

/// A pod in the host's network.
pub struct HostPod {
    sandbox: String,
    config: cri::SandboxConfig,
}

impl Containerd {
    /// Starts containerd on a host and imports the image. It looks for plugins in `bin` and for
    /// configurations in `conf`. A shell restarts it when it is killed, as an init system would.
    pub fn start(cluster: &Cluster, number: usize, bin: &Path, conf: &Path, image: &Path) -> Containerd {
        let place = cluster.file(&format!("containerd{number}"));
        let logs = place.join("logs");
        fs::create_dir_all(&logs).expect("a directory");
        let (socket, config) = (place.join("c.sock"), place.join("config.toml"));
        fs::write(&config, toml(&place, bin, conf)).expect("a file");
        let line = format!("while :; do containerd -c {}; sleep 0.1; done", config.display());
        let cage = Cage::start(cluster, number, &place, &line);
        let mut client = None;
        await_until("containerd", || {
            client = Client::connect(&socket).ok();
            client.is_some()
        });
        let client = client.expect("waited for");
        let containerd = Containerd { cage, socket, logs, client, pods: Vec::new() };
        containerd.import(image);
        containerd
    }

    /// Imports an archive of images.
    pub fn import(&self, archive: &Path) {
        let [address, archive] = [&self.socket, archive].map(|path| path.display().to_string());
        let imported =
            self.cage.output("ctr", &["-a", &address, "-n", "k8s.io", "images", "import", &archive]);
        imported.unwrap_or_else(|error| panic!("{error}\n{}", self.cage.log_text()));
    }

    /// Returns whether containerd has a usable network configuration, or why not.
    pub fn network(&self) -> Result<(), String> {
        let answer: cri::StatusResponse =
            self.client.call("Status", cri::Empty {}).map_err(|error| error.to_string())?;
        let conditions = answer.status.map(|status| status.conditions).unwrap_or_default();
        match conditions.into_iter().find(|condition| condition.kind == "NetworkReady") {
            Some(condition) if condition.good => Ok(()),
            Some(condition) => Err(condition.message),
            None => Err("no word of the network".to_owned()),
        }
    }

    /// Runs a pod whose container runs a shell command. Its port 80 is also the host's `host_port`.
    pub fn run(&mut self, name: &str, line: &str, host_port: Option<u16>) -> Pod {
        self.try_run(name, line, host_port)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.cage.log_text()))
    }

    /// Opens another connection, for a thread.
    pub fn client(&self) -> Client {
        Client::connect(&self.socket).expect("containerd")
    }

    /// Creates a pod without a container.
    pub fn sandbox(&self, client: &Client, name: &str) -> Result<String, Status> {
        let request = cri::RunPodSandboxRequest { config: Some(self.config(name, None)) };
        client.call("RunPodSandbox", request).map(|cri::SandboxId { id }| id)
    }

    /// Kills containerd and returns whether it was running. Its pods continue, and the shell restarts it.
    pub fn kill(&self) -> bool {
        self.cage.kill_child("containerd")
    }

    pub fn try_run(&mut self, name: &str, line: &str, host_port: Option<u16>) -> Result<Pod, Status> {
        let named = |name: &str| Some(cri::Named { name: name.to_owned() });
        let config = self.config(name, host_port);
        let container = cri::ContainerConfig {
            metadata: named("main"),
            image: named(IMAGE),
            command: ["/bin/sh", "-c", line].map(str::to_owned).into(),
            log_path: format!("{name}.log"),
            linux: Some(cri::LinuxContainer::default()),
            ..cri::ContainerConfig::default()
        };
        let sandbox = self.run_sandbox(&config)?;
        let container = self.start_container(&sandbox, config, container)?;
        let id = cri::SandboxId { id: sandbox.clone() };
        let answer: cri::SandboxStatusResponse = self.client.call("PodSandboxStatus", id)?;
        let network = answer.status.and_then(|status| status.network).unwrap_or_default();
        let texts = std::iter::once(network.ip).chain(network.more.into_iter().map(|more| more.ip));
        let addresses = texts.filter_map(|text| text.parse().ok()).collect();
        Ok(Pod { sandbox, container, addresses })
    }

    /// Runs a pod in the host's network, without a container.
    pub fn run_on_host(&mut self, name: &str) -> HostPod {
        let network = Some(cri::Namespaces { network: NODE });
        let security = Some(cri::SandboxSecurity { namespaces: network });
        let linux = Some(cri::LinuxSandbox { security });
        let config = cri::SandboxConfig { linux, ..self.config(name, None) };
        let sandbox = self.run_sandbox(&config).expect("a pod");
        HostPod { sandbox, config }
    }

    /// Starts a container in a pod in the host's network, and returns its id. Its log is that of its name.
    pub fn start_on_host(&self, pod: &HostPod, name: &str, mut container: cri::ContainerConfig) -> String {
        container.metadata = Some(cri::Named { name: name.to_owned() });
        container.log_path = format!("{name}.log");
        let security = container.linux.get_or_insert_default().security.get_or_insert_default();
        security.namespaces = Some(cri::Namespaces { network: NODE });
        let started = self.start_container(&pod.sandbox, pod.config.clone(), container);
        started.unwrap_or_else(|error| panic!("{error}\n{}", self.cage.log_text()))
    }

    /// Waits for a container to end, and returns its exit code.
    pub fn await_end(&self, container: &str) -> i32 {
        let mut code = None;
        await_until("a container's end", || {
            let id = cri::ContainerId { id: container.to_owned() };
            let answer: cri::ContainerStatusResponse =
                self.client.call("ContainerStatus", id).expect("a status");
            code = answer.status.filter(|status| status.state == EXITED).map(|status| status.exit_code);
            code.is_some()
        });
        code.expect("waited for")
    }

    /// Returns what a container has printed.
    pub fn log_text(&self, name: &str) -> String {
        fs::read_to_string(self.logs.join(format!("{name}.log"))).unwrap_or_default()
    }

    fn run_sandbox(&mut self, config: &cri::SandboxConfig) -> Result<String, Status> {
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()) };
        let cri::SandboxId { id } = self.client.call("RunPodSandbox", request)?;
        self.pods.push(id.clone());
        Ok(id)
    }

    fn start_container(
        &self,
        sandbox: &str,
        sandbox_config: cri::SandboxConfig,
        config: cri::ContainerConfig,
    ) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            sandbox: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let cri::ContainerId { id } = self.client.call("CreateContainer", request)?;
        let _: cri::Empty = self.client.call("StartContainer", cri::ContainerId { id: id.clone() })?;
        Ok(id)
    }

    /// Runs a shell command in a pod and returns its output, without the final newline.
    pub fn exec(&self, pod: &Pod, line: &str) -> String {
        self.exec_in(&pod.container, line)
    }

    /// Runs a shell command in a container and returns its output, without the final newline.
    pub fn exec_in(&self, container: &str, line: &str) -> String {
        let request = cri::ExecSyncRequest {
            container: container.to_owned(),
            command: ["/bin/sh", "-c", line].map(str::to_owned).into(),
            timeout: PATIENCE,
        };
        let answer: cri::ExecSyncResponse = self.client.call("ExecSync", request).expect(line);
        let [stdout, stderr] =
            [answer.stdout, answer.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned());
        assert_eq!(answer.exit_code, 0, "{line}: {stdout}\n{stderr}");
        stdout
    }

    /// Stops and removes a pod.
    pub fn remove(&mut self, sandbox: &str) -> Result<(), Status> {
        self.remove_by(&self.client, sandbox)?;
        self.pods.retain(|pod| pod != sandbox);
        Ok(())
    }

    /// Stops and removes a pod over another connection.
    pub fn remove_by(&self, client: &Client, sandbox: &str) -> Result<(), Status> {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let _: cri::Empty = client.call(method, cri::SandboxId { id: sandbox.to_owned() })?;
        }
        Ok(())
    }

    /// Returns all pods, whatever their state.
    pub fn list(&self) -> Result<Vec<String>, Status> {
        let answer: cri::SandboxList = self.client.call("ListPodSandbox", cri::Empty {})?;
        Ok(answer.items.into_iter().map(|item| item.id).collect())
    }

    fn config(&self, name: &str, host_port: Option<u16>) -> cri::SandboxConfig {
        let mapping = |port| cri::PortMapping { container_port: 80, host_port: i32::from(port) };
        cri::SandboxConfig {
            metadata: Some(cri::SandboxMetadata {
                name: name.to_owned(),
                uid: format!("{name}-uid"),
                namespace: "default".to_owned(),
            }),
            log_directory: self.logs.display().to_string(),
            port_mappings: host_port.map(mapping).into_iter().collect(),
            linux: Some(cri::LinuxSandbox::default()),
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for pod in std::mem::take(&mut self.pods) {
            let _ = self.remove(&pod);
        }
    }
}

fn toml(place: &Path, bin: &Path, conf: &Path) -> String {
    let place = place.display();
    // A container may neither lower the OOM score nor raise its capabilities.
    format!(
        r#"version = 2
root = "{place}/root"
state = "{place}/state"
[grpc]
address = "{place}/c.sock"
[ttrpc]
address = "{place}/c.sock.ttrpc"
[debug]
level = "warn"
address = "{place}/debug.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{}"
conf_dir = "{}"
"#,
        bin.display(),
        conf.display()
    )
}
