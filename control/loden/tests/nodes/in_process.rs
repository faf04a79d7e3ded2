//! The daemon inside the test's own process, on a store in memory: it does what an administrator of
//! Kubernetes can do to a node, and sees what no store of a file or of etcd is told.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control::daemon;
use control::persist::state_file;
use control::settings::{NetConfigSource, Settings, UplinkSettings};
use lab::Wiring;
use store::lease::{Event, Owned};
use store::{Memory, Spec, Store, Watch};
use tokio::time::{sleep, timeout};

use crate::common::{self, Cluster, LIMIT, VXLAN};

/// Longer than a comparison of the host with the plan, which also looks for something to publish.
const A_WHILE: Duration = Duration::from_secs(3);
const THERE: [u8; 4] = [198, 51, 100, 1];

/// What the subnet file said whenever the daemon announced that it is ready.
type Announcements = Arc<Mutex<Vec<String>>>;

#[test]
fn a_node_is_announced_once_in_each_start_after_its_subnet_file() {
    let Some(world) = World::build("ip-ready") else { return };
    for start in 1..=2 {
        world.run(async |store| {
            world.await_announcement(start).await;
            // What is applied later announces nothing again: a peer that comes, a subnet file that is
            // restored.
            let Store::Memory(memory) = store else { panic!("another store") };
            let peer = r#"{"PublicIP":"203.0.113.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:09"}}"#;
            memory.put_row("10.244.200.0-24", peer, None);
            let subnet_file = &world.settings.subnet_file;
            fs::remove_file(subnet_file).expect("a subnet file");
            timeout(LIMIT, written(subnet_file)).await.expect("the subnet file again");
        });
        let announcements = world.announcements.lock().unwrap();
        assert_eq!(announcements.len(), start, "{announcements:?}");
        assert!(
            announcements.iter().all(|text| text.contains("FLANNEL_SUBNET=10.244.")),
            "{announcements:?}"
        );
    }
}

#[test]
fn an_overwritten_public_address_ends_nothing_and_is_not_fought() {
    let Some(world) = World::build("ip-over") else { return };
    // While the daemon runs.
    let own = world.run(async |store| {
        world.await_announcement(1).await;
        let own = store.leases().await.expect("leases").remove(0);
        let mut watch = store.watch();
        assert_eq!(watch.next().await, Event::Snapshot(vec![own.clone()]));
        let Store::Memory(memory) = store else { panic!("another store") };
        memory.overwrite_public_ip(&own.key, Some(THERE.into()));
        assert_eq!(published(&watch.next().await), THERE);
        assert_quiet(&mut watch).await;
        own
    });
    // From the state of that run, and from the next one's.
    for start in 2..=3 {
        world.run(async |store| {
            world.await_announcement(start).await;
            let mut watch = store.watch();
            // Whether the start has already been confirmed by the store or not: what it writes is no other
            // lease.
            sleep(A_WHILE).await;
            let Event::Snapshot(leases) = watch.next().await else { panic!("a snapshot was due") };
            assert_eq!(leases.iter().map(|lease| lease.key).collect::<Vec<_>>(), [own.key]);
            assert_eq!(leases[0].attrs.public_ip.octets(), THERE);
            while timeout(Duration::from_millis(100), watch.next()).await.is_ok() {}
            assert_quiet(&mut watch).await;
        });
        let kept = world.kept();
        assert_eq!(kept.key(), own.key);
        assert_eq!((&kept.wished, kept.published.attrs.public_ip.octets()), (&own.attrs, THERE));
    }
}

/// One host, and all that is the daemon's.
struct World {
    cluster: Cluster,
    settings: Settings,
    announcements: Announcements,
}

impl World {
    fn build(name: &str) -> Option<World> {
        if !common::ready(&["ip"]) {
            return None;
        }
        let cluster = Cluster::build(name, 2, Wiring::Direct, VXLAN);
        let (memory, announcements) = (Memory::new(), Announcements::default());
        let settings = Settings {
            store: Spec::Memory(memory.clone()),
            net_config: Some(NetConfigSource::Text(VXLAN.to_owned())),
            uplink: UplinkSettings {
                ifaces: vec![cluster.host(1).uplink().to_owned()],
                ..UplinkSettings::default()
            },
            subnet_file: cluster.file("subnet.env"),
            run_dir: cluster.file("run"),
            ..Settings::default()
        };
        let (told, subnet_file) = (Arc::clone(&announcements), settings.subnet_file.clone());
        memory.on_ready(move || {
            told.lock().unwrap().push(fs::read_to_string(&subnet_file).unwrap_or_default());
        });
        Some(World { cluster, settings, announcements })
    }

    /// Runs a daemon on the host for as long as `work` takes.
    fn run<R: Send>(&self, work: impl AsyncFnOnce(Store) -> R + Send) -> R {
        let inside = || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let store = Store::open(self.settings.store.clone()).await.expect("the store");
                tokio::select! {
                    ended = daemon::run(&self.settings) => panic!("the daemon has ended: {ended:?}"),
                    result = work(store) => result,
                }
            })
        };
        self.cluster.host(1).namespace().run(inside).expect("the host")
    }

    async fn await_announcement(&self, number: usize) {
        let announced = async {
            while self.announcements.lock().unwrap().len() < number {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, announced).await.expect("an announcement");
    }

    /// Our own lease as the last run has kept it for the next one.
    fn kept(&self) -> Owned {
        let mut files = fs::read_dir(&self.settings.run_dir).expect("the run directory");
        let is_state = |path: &Path| path.extension().is_some_and(|end| end == "json");
        let path = files.find_map(|file| Some(file.ok()?.path()).filter(|path| is_state(path)));
        let state = state_file::read(&path.expect("a state file")).expect("a state").expect("a state");
        state.own().expect("our lease")
    }
}

async fn written(path: &Path) {
    while !path.exists() {
        sleep(Duration::from_millis(20)).await;
    }
}

fn published(event: &Event) -> [u8; 4] {
    let Event::Put(lease) = event else { panic!("a put was due: {event:?}") };
    lease.attrs.public_ip.octets()
}

async fn assert_quiet(watch: &mut Watch) {
    let more = timeout(A_WHILE, watch.next()).await;
    assert!(more.is_err(), "published again: {more:?}");
}
