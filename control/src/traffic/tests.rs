//! Rules added to network namespaces that end with the test, by each kind of iptables and by nft.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use model::subnet_env;
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::*;
use crate::netlink::Netlink;

const MASQUERADE: &str = r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.1.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#;
const FORWARD: &str = r#"-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#;
const NFT_V4: &str = "table ip flannel-ipv4 {
	comment \"rules for flannel-ipv4\"
	chain postrtg {
		comment \"chain to manage traffic masquerading by flannel\"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark 0x00004000 return
		ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return
		ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 return
		ip saddr != 10.244.1.0/24 ip daddr 10.244.0.0/16 return
		ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random
	}

	chain forward {
		comment \"chain to accept flannel traffic\"
		type filter hook forward priority filter; policy accept;
		ip saddr 10.244.0.0/16 accept
		ip daddr 10.244.0.0/16 accept
	}
}";
const KINDS: [&str; 2] = ["nft", "legacy"];

#[test]
fn iptables_rules_are_as_flannel_saves_them_and_a_second_round_changes_nothing() {
    each_kind(async |world| {
        let mut traffic = world.start(ALL, IPTABLES, dual()).await;
        assert_eq!(world.saved("iptables", "nat"), MASQUERADE);
        assert_eq!(world.saved("iptables", "filter"), FORWARD);
        let v6 = |text: &str| {
            let text =
                text.replace("10.244.1.0/24", "fd00:244:0:1::/64").replace("10.244.0.0/16", "fd00:244::/48");
            text.replace("224.0.0.0/4", "ff00::/8")
        };
        assert_eq!(world.saved("ip6tables", "nat"), v6(MASQUERADE));
        assert_eq!(world.saved("ip6tables", "filter"), v6(FORWARD));
        assert_eq!(traffic.resync().await, 0);
        let mut again = world.start(ALL, IPTABLES, dual()).await;
        assert_eq!(again.resync().await, 0);
        assert_eq!(world.saved("iptables", "nat"), MASQUERADE, "one jump");
    });
}

#[test]
fn nftables_rules_are_as_flannel_lists_them_and_need_no_iptables() {
    in_namespace(&["nft"], async |world| {
        world.only(&["nft"]);
        let mut traffic = world.start(ALL, NFTABLES, dual()).await;
        assert_eq!(world.shell("nft list table ip flannel-ipv4"), NFT_V4);
        let v6 =
            NFT_V4.replace("10.244.1.0/24", "fd00:244:0:1::/64").replace("10.244.0.0/16", "fd00:244::/48");
        let v6 = v6.replace("224.0.0.0/4", "ff00::/8").replace("ip saddr", "ip6 saddr");
        let v6 = v6.replace("ip daddr", "ip6 daddr").replace("ip flannel", "ip6 flannel");
        assert_eq!(
            world.shell("nft list table ip6 flannel-ipv6"),
            v6.replace("flannel-ipv4", "flannel-ipv6")
        );
        assert_eq!(traffic.resync().await, 0);
        assert_eq!(world.start(ALL, NFTABLES, dual()).await.resync().await, 0);
    });
    in_namespace(&["nft"], async |world| {
        world.only(&["nft"]);
        world.start(ALL, NFTABLES, v4()).await;
        let v6 = world.shell("nft list table ip6 flannel-ipv6");
        assert_eq!(v6, "table ip6 flannel-ipv6 {\n\tcomment \"rules for flannel-ipv6\"\n}", "both tables");
    });
}

#[test]
fn a_flushed_firewall_heals() {
    each_kind(async |world| {
        let mut traffic = world.start(ALL, IPTABLES, v4()).await;
        for harm in [
            "iptables-restore </dev/null; printf '*nat\\nCOMMIT\\n*filter\\nCOMMIT\\n' | iptables-restore",
            "printf '*nat\\n-F FLANNEL-POSTRTG\\nCOMMIT\\n' | iptables-restore -n",
            "printf '*nat\\n-F POSTROUTING\\nCOMMIT\\n' | iptables-restore -n",
            "printf '*nat\\n-D FLANNEL-POSTRTG 2\\nCOMMIT\\n*filter\\n-D FLANNEL-FWD 2\\nCOMMIT\\n' | \
             iptables-restore -n",
            // The same rules in another order.
            "iptables-save -t nat | grep -v POSTROUTING | awk '/^-A/{l[++n]=$0;next}/^COMMIT/{while(n)print \
             l[n--]}1' | iptables-restore -n",
        ] {
            world.shell(harm);
            assert_ne!(
                (world.saved("iptables", "nat"), world.saved("iptables", "filter")),
                (MASQUERADE.into(), FORWARD.into()),
                "{harm}"
            );
            assert_eq!(traffic.resync().await, 1, "{harm}");
            assert_eq!(world.saved("iptables", "nat"), MASQUERADE, "{harm}");
            assert_eq!(world.saved("iptables", "filter"), FORWARD, "{harm}");
            assert_eq!(traffic.resync().await, 0, "{harm}");
        }
    });
    in_namespace(&["nft"], async |world| {
        let mut traffic = world.start(ALL, NFTABLES, v4()).await;
        for harm in [
            "nft flush ruleset",
            "nft flush chain ip flannel-ipv4 postrtg",
            "nft delete table ip flannel-ipv4",
            "nft -a list chain ip flannel-ipv4 postrtg | awk '/daddr 10.244.1.0/{print $NF}' | xargs nft \
             delete rule ip flannel-ipv4 postrtg handle",
            "nft -a list chain ip flannel-ipv4 postrtg | awk '/mark/{print $NF}' | xargs nft delete rule ip \
             flannel-ipv4 postrtg handle; nft add rule ip flannel-ipv4 postrtg mark 0x4000 return",
            "nft add chain ip flannel-ipv4 forward '{ policy drop; }'",
        ] {
            world.shell(harm);
            assert_eq!(traffic.resync().await, 1, "{harm}");
            assert_eq!(world.sorted_table(), sorted_chains(NFT_V4), "{harm}");
            assert_eq!(traffic.resync().await, 0, "{harm}");
        }
    });
}

#[test]
fn rules_of_others_stay_and_keep_their_order() {
    each_kind(async |world| {
        world.shell(
            "printf '*nat\\n:KUBE - [0:0]\\n-A POSTROUTING -s 1.1.1.1/32 -j KUBE\\n\
             -A KUBE -p tcp -j ACCEPT\\nCOMMIT\\n\
             *filter\\n:FORWARD DROP [0:0]\\n\
             -A FORWARD -m comment --comment \"o\\\\\"ne\" -j DROP\\nCOMMIT\\n' | iptables-restore",
        );
        let others = |world: &World| {
            let saved = world.shell("iptables-save | grep -v '^#'");
            saved.lines().filter(|line| !line.contains("FLANNEL")).map(strip_counters).collect::<Vec<_>>()
        };
        let before = others(world);
        let mut traffic = world.start(ALL, IPTABLES, v4()).await;
        assert_eq!(others(world), before);
        let forward = world.shell("iptables-save -t filter | grep '^-A FORWARD'");
        assert!(forward.lines().last().expect("rules").ends_with("-j FLANNEL-FWD"), "appended: {forward}");
        // Rules of others: one after ours, one between ours.
        world.shell(
            "printf '*filter\\n-A FORWARD -s 2.2.2.2/32 -j ACCEPT\\n-I FLANNEL-FWD 2 -s 3.3.3.3/32 -j \
             DROP\\nCOMMIT\\n' | iptables-restore -n",
        );
        let with_late = world.shell("iptables-save -t filter | grep '^-A'");
        assert_eq!(traffic.resync().await, 0, "an exception in our chain stays");
        assert_eq!(world.shell("iptables-save -t filter | grep '^-A'"), with_late);
        world.shell("printf '*nat\\n-F FLANNEL-POSTRTG\\nCOMMIT\\n' | iptables-restore -n");
        assert_eq!(traffic.resync().await, 1);
        assert_eq!(world.shell("iptables-save -t filter | grep '^-A'"), with_late);

        let cleaned = cleanup::cleanup(&world.programs, &world.netlink, None).await;
        assert!(cleaned.failures.is_empty(), "{cleaned:?}");
        assert_eq!(others(world).len(), before.len() + 1, "{:?}", others(world));
        assert!(!world.shell("iptables-save").contains("FLANNEL"));
    });
}

#[test]
fn what_another_run_left_goes() {
    each_kind(async |world| {
        world.shell(
            "printf '*nat\\n:FLANNEL-POSTRTG - [0:0]\\n-A POSTROUTING -m comment --comment \"flanneld masq\" \
             -j FLANNEL-POSTRTG\\n\
             -A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\\n\
             -A FLANNEL-POSTRTG -s 10.99.0.0/16 -j MASQUERADE\\nCOMMIT\\n' | iptables-restore -n",
        );
        let previous = subnet_env::parse(
            "FLANNEL_NETWORK=10.99.0.0/16\nFLANNEL_SUBNET=10.99.7.1/24\nFLANNEL_IPMASQ=true\n",
        );
        world.start_after(ALL, IPTABLES, v4(), Some(&previous)).await;
        assert_eq!(world.saved("iptables", "nat"), MASQUERADE);
        world
            .start_after(TrafficSettings { masquerade: false, ..ALL }, IPTABLES, v4(), Some(&previous))
            .await;
        assert_eq!(world.saved("iptables", "nat"), "", "masquerading was turned off");
        assert_eq!(world.saved("iptables", "filter"), FORWARD);
    });
}

#[test]
fn the_other_mode_is_left_without_a_trace() {
    each_kind(async |world| {
        world.start(ALL, IPTABLES, dual()).await;
        world.start(ALL, NFTABLES, dual()).await;
        for program in ["iptables", "ip6tables"] {
            assert!(!world.shell(&format!("{program}-save")).contains("FLANNEL"), "{program}");
        }
        assert_eq!(world.shell("nft list table ip flannel-ipv4"), NFT_V4);
        world.start(ALL, IPTABLES, dual()).await;
        assert!(!world.shell("nft list tables").contains("flannel"));
        assert_eq!(world.saved("iptables", "nat"), MASQUERADE);

        world.shell("nft add table ip flannel-ipv4; ip route add blackhole 10.244.1.0/24");
        let previous = subnet_env::parse("FLANNEL_SUBNET=10.244.1.1/24");
        let cleaned = cleanup::cleanup(&world.programs, &world.netlink, Some(&previous)).await;
        assert!(cleaned.failures.is_empty(), "{cleaned:?}");
        assert_eq!(cleaned.removed.len(), 6, "{cleaned:?}");
        assert!(
            !world.shell("iptables-save; ip6tables-save; nft list tables").to_lowercase().contains("flannel")
        );
        assert_eq!(world.shell("ip route show type blackhole"), "");
        let again = cleanup::cleanup(&world.programs, &world.netlink, Some(&previous)).await;
        assert!(again.removed.is_empty() && again.failures.is_empty(), "{again:?}");
    });
}

#[test]
fn looking_for_rules_makes_no_tables() {
    in_namespace(&["iptables-save", "nft"], async |world| {
        let cleaned = cleanup::cleanup(&world.programs, &world.netlink, None).await;
        assert!(cleaned.removed.is_empty() && cleaned.failures.is_empty(), "{cleaned:?}");
        assert_eq!(world.shell("nft list ruleset"), "");
        assert_eq!(world.shell("cat /proc/thread-self/net/ip_tables_names"), "");
    });
}

#[test]
fn the_blackhole_route_is_kept_in_both_families() {
    in_namespace(&["ip"], async |world| {
        let mut traffic = world.start(BLACKHOLE, IPTABLES, dual()).await;
        let shown = |world: &World| {
            (world.shell("ip route show type blackhole"), world.shell("ip -6 route show type blackhole"))
        };
        let there = shown(world);
        assert_eq!(there.0, "blackhole 10.244.1.0/24");
        assert!(there.1.starts_with("blackhole fd00:244:0:1::/64 dev lo metric 1024"), "{}", there.1);
        assert_eq!(traffic.resync().await, 0);
        world.shell("ip route flush type blackhole; ip -6 route flush type blackhole");
        traffic.resync().await;
        assert_eq!(shown(world), there);
    });
}

#[test]
fn missing_and_broken_programs_are_named() {
    in_namespace(&["iptables-restore"], async |world| {
        world.only(&[]);
        let error = world.try_start(ALL, IPTABLES).await.expect_err("no iptables").to_string();
        assert!(error.contains("iptables-save") && error.contains("install the package iptables"), "{error}");
        let error = world.try_start(ALL, NFTABLES).await.expect_err("no nft").to_string();
        assert!(error.contains("cannot find nft: install the package nftables"), "{error}");
        // Without masquerading a failure is logged and retried.
        let mut traffic =
            world.try_start(TrafficSettings { masquerade: false, ..ALL }, IPTABLES).await.expect("a start");
        assert_eq!(traffic.reported.len(), 1);
        world.use_kind("nft");
        assert_eq!(traffic.resync().await, 1);
        assert_eq!((world.saved("iptables", "filter").as_str(), traffic.reported.len()), (FORWARD, 0));

        for (script, expected) in [
            ("echo oh no >&2; exit 3", "oh no"),
            ("kill -9 $$", "signal: 9"),
            ("head -c 300000 /dev/urandom; cat >/dev/null", "were added and are missing again"),
        ] {
            world.program("iptables-restore", script);
            world.program("iptables-save", script);
            let error = world.try_start(ALL, IPTABLES).await.expect_err("broken").to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{script}: {error}");
        }
    });
}

#[test]
fn an_old_iptables_gets_no_options_that_it_lacks() {
    in_namespace(&["iptables-restore"], async |world| {
        world.use_kind("nft");
        world.program(
            "iptables-restore",
            "case \"$*\" in *version*) echo iptables-restore v1.4.21; exit;; *wait*) exit 2;; esac\nexec \
             /usr/sbin/iptables-nft-restore \"$@\"",
        );
        world.start(ALL, IPTABLES, v4()).await;
        assert_eq!(world.saved("iptables", "nat"), MASQUERADE.replace(" --random-fully", ""));
    });
    in_namespace(&["iptables-restore"], async |world| {
        world.use_kind("nft");
        world.start(TrafficSettings { random_fully: false, ..ALL }, IPTABLES, v4()).await;
        assert_eq!(world.saved("iptables", "nat"), MASQUERADE.replace(" --random-fully", ""), "by the flag");
    });
}

#[test]
fn rules_that_iptables_spells_differently_are_not_rewritten() {
    in_namespace(&["iptables-restore"], async |world| {
        world.use_kind("nft");
        world.program(
            "iptables-save",
            "/usr/sbin/iptables-nft-save \"$@\" | sed 's,0x4000/0x4000,16384/16384,; s,^-A POSTROUTING,& -m \
             dull,'",
        );
        let mut traffic = world.start(ALL, IPTABLES, v4()).await;
        assert_eq!(traffic.resync().await, 0);
        world.shell("printf '*nat\\n-F FLANNEL-POSTRTG\\nCOMMIT\\n' | /usr/sbin/iptables-nft-restore -n");
        assert!(!world.try_start(ALL, IPTABLES).await.expect("a start").firewalls.is_empty());
        assert_eq!(world.shell("/usr/sbin/iptables-nft-save -t nat | grep '^-A FLANNEL'").lines().count(), 6);
    });
}

#[test]
fn noise_in_listings_does_no_harm() {
    use proptest::prelude::*;
    proptest!(|(text in any::<String>(), shaped in
        "([*:]|-A |chain |FLANNEL-POSTRTG|FLANNEL-FWD|nat|[ {}\n])*")| {
        for text in [text, shaped] {
            let tables = iptables::parse(&text);
            iptables::removal(&tables, &["FLANNEL-POSTRTG", "FLANNEL-FWD"]);
            let nets = dual().ipv4.expect("IPv4");
            for table in tables.values() {
                iptables::diff(table, &rules::iptables(Purpose::Masquerade, &nets, true), Scope::Start);
            }
            nftables::parse(&text);
        }
    });
}

const ALL: TrafficSettings = TrafficSettings {
    require_br_netfilter: false,
    masquerade: true,
    forward: true,
    random_fully: true,
    blackhole: false,
    resync: Duration::from_secs(5),
};
const BLACKHOLE: TrafficSettings =
    TrafficSettings { masquerade: false, forward: false, blackhole: true, ..ALL };
const IPTABLES: bool = false;
const NFTABLES: bool = true;

fn v4() -> Networks {
    let net = |text: &str| text.parse().expect("a prefix");
    Networks { ipv4: Some(Nets { cluster: net("10.244.0.0/16"), own: net("10.244.1.0/24") }), ipv6: None }
}

fn dual() -> Networks {
    let net = |text: &str| text.parse().expect("a prefix");
    let ipv6 = Nets { cluster: net("fd00:244::/48"), own: net("fd00:244:0:1::/64") };
    Networks { ipv6: Some(ipv6), ..v4() }
}

/// A namespace, and a directory of programs that is searched first.
struct World {
    place: TempDir,
    programs: Programs,
    netlink: Netlink,
}

/// Runs `work` with each kind of iptables in turn.
fn each_kind(work: impl AsyncFn(&mut World) + Sync) {
    for kind in KINDS {
        in_namespace(&["iptables-nft-save", "iptables-legacy-save", "nft"], async |world| {
            world.use_kind(kind);
            work(world).await;
        });
    }
}

/// Runs `work` on a thread with its own namespace, if the programs are installed and the user is root.
fn in_namespace(needed: &[&str], work: impl AsyncFn(&mut World) + Sync) {
    let all = Programs::from_env();
    let mut missing: Vec<&str> = needed.iter().copied().filter(|name| all.find(name, "").is_err()).collect();
    if !lab::userns::privileged() {
        missing.push("root");
    }
    if !missing.is_empty() {
        let missing = missing.join(", ");
        assert!(std::env::var_os("CI").is_none(), "this test needs {missing}");
        eprintln!("skipped: this test needs {missing}");
        return;
    }
    // Tests in parallel would wait for the lock of the legacy iptables until they time out.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let place = tempfile::tempdir().expect("a directory");
            let programs = Programs::in_directories(
                [place.path(), Path::new("/usr/sbin"), Path::new("/sbin")].map(Path::to_owned).to_vec(),
            );
            let netlink = Netlink::connect().expect("netlink");
            let mut world = World { place, programs, netlink };
            world.shell("ip link set lo up");
            work(&mut world).await;
        });
    };
    std::thread::scope(|scope| {
        scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

impl World {
    async fn start(&self, settings: TrafficSettings, nftables: bool, networks: Networks) -> Traffic {
        self.start_after(settings, nftables, networks, None).await
    }

    async fn start_after(
        &self,
        settings: TrafficSettings,
        nftables: bool,
        networks: Networks,
        previous: Option<&Recorded>,
    ) -> Traffic {
        let (programs, netlink) = (self.programs.clone(), self.netlink.clone());
        let traffic = Traffic::start(programs, settings, nftables, networks, previous, netlink).await;
        let traffic = traffic.expect("a start");
        assert_eq!(traffic.reported, BTreeSet::new());
        traffic
    }

    async fn try_start(&self, settings: TrafficSettings, nftables: bool) -> Result<Traffic, TrafficError> {
        Traffic::start(self.programs.clone(), settings, nftables, v4(), None, self.netlink.clone()).await
    }

    /// Makes `iptables` an alias of this kind.
    fn use_kind(&self, kind: &str) {
        for family in ["iptables", "ip6tables"] {
            for what in ["save", "restore"] {
                let link = self.place.path().join(format!("{family}-{what}"));
                let _ = std::fs::remove_file(&link);
                symlink(format!("/usr/sbin/{family}-{kind}-{what}"), link).expect("a link");
            }
        }
    }

    /// Hides all programs but these.
    fn only(&mut self, programs: &[&str]) {
        for program in programs {
            let real = Programs::from_env().find(program, "").expect("asked for before");
            symlink(real, self.place.path().join(program)).expect("a link");
        }
        self.programs = Programs::in_directories(vec![self.place.path().to_owned()]);
    }

    /// Replaces a program by a shell script.
    fn program(&self, name: &str, script: &str) {
        let path = self.place.path().join(name);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    fn shell(&self, line: &str) -> String {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.place.path().display());
        let output = Command::new("sh").args(["-c", line]).env("PATH", path).output().expect("sh");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Returns flannel's rules in a table, jumps included, as flannel's end-to-end tests read them.
    fn saved(&self, program: &str, table: &str) -> String {
        self.shell(&format!("{program}-save -t {table} | grep '^-A.*FLANNEL' || true"))
    }

    fn sorted_table(&self) -> Vec<String> {
        sorted_chains(&self.shell("nft list table ip flannel-ipv4"))
    }
}

/// Returns the chains of a listing in alphabetical order, because a recreated chain comes last.
fn sorted_chains(listing: &str) -> Vec<String> {
    let mut chains: Vec<String> =
        listing.split("\tchain ").map(|chain| chain.trim_end_matches(['}', '\n', '\t']).to_owned()).collect();
    chains.sort();
    chains
}

fn strip_counters(line: &str) -> String {
    line.split(" [").next().unwrap_or_default().to_owned()
}
