//! The doctor's questions, with the cost of each gap.

use std::env;
use std::fs;
use std::path::Path;

use control::cgroup::CpuLimits;
use control::netlink::{Netlink, NetlinkError};
use control::underlay;
use control::underlay::sysctls;
use engine::Switches;
use engine::selftest::{self, Outcome, Report};
use io::probe::{self, Probe, TunProbe};
use io::scheduler::{self, Attention};
use nix::errno::Errno;

use super::diagnosis::Verdict::{self, Fact, Needed, No, Unknown, Yes};
use super::diagnosis::{Choice, Diagnosis, Finding};

const TUN: &str = "TUN";
/// How a probe begins that was not made.
const NOT_PROBED: &str = "not probed";
const SOCKETS: &str = "UDP sockets";
const SELF_TEST: &str = "Self-test: bytes sent through each offload and compared";
const RIGHTS: &str = "Capabilities";
const HOST: &str = "This host";
const SCHEDULER: &str = "Scheduler";
const FIREWALL: &str = "Firewall tools";
const LATER: &str = "Not used yet";

/// Examines the host. A question that cannot be answered becomes a finding, never an error.
pub(super) async fn examine() -> Diagnosis {
    let tun = probe::tun_details();
    let report = selftest::run(&Switches::default());
    let mut findings = of_tun(&tun);
    findings.extend(of_sockets());
    findings.extend(of_self_test(&report));
    findings.extend(of_rights());
    findings.extend(of_host().await);
    findings.extend(of_scheduler());
    findings.extend(of_firewall());
    findings.extend(of_the_future());
    let can_run = !findings.iter().any(|finding| finding.verdict == Needed);
    Diagnosis { kernel: kernel(), can_run, findings, chosen: choose(&tun, &report) }
}

/// What depends on a missing feature is not asked about: its answer would be the same, and its remedy wrong.
fn of_tun(tun: &TunProbe) -> Vec<Finding> {
    let needed = |name, probe: &Probe, fix| Finding {
        verdict: verdict(probe, Needed),
        ..gap(TUN, name, probe, "", fix)
    };
    let device = needed("/dev/net/tun", &tun.device, device_fix(&tun.device));
    if !tun.device.is_granted() {
        return vec![device];
    }
    let mut create = needed("create a device", &tun.create, "run as root or grant CAP_NET_ADMIN");
    if create.detail.starts_with(NOT_PROBED) {
        create.verdict = Unknown;
        create.fix = "run as root or allow user namespaces";
    }
    let asked = vec![device, create, needed("virtio header", &tun.vnet_hdr, "a kernel from 2.6.27 on")];
    let offloads = if tun.create.is_granted() { offloads(tun) } else { Vec::new() };
    asked.into_iter().chain(of_queues(tun)).chain(offloads).collect()
}

/// Returns how to get the node of the driver, by what the kernel has answered.
fn device_fix(device: &Probe) -> &'static str {
    let Probe::Missing { errno, .. } = device else { return "" };
    match errno.map(Errno::from_raw) {
        Some(Errno::EACCES | Errno::EPERM) => {
            "run as root or give users access (chmod 0666 /dev/net/tun); in a container allow the device \
             10:200"
        }
        Some(Errno::ENOENT) => {
            "mkdir -p /dev/net && mknod /dev/net/tun c 10 200, which loden run does itself where it may; in \
             a container pass the device in: --device /dev/net/tun"
        }
        Some(Errno::ENODEV | Errno::ENXIO) => "load the driver on the host: modprobe tun",
        Some(Errno::EMFILE | Errno::ENFILE) => "raise the limit on open files (ulimit -n)",
        _ => "replace /dev/net/tun by the device 10:200; in a container pass it in: --device /dev/net/tun",
    }
}

fn of_queues(tun: &TunProbe) -> Vec<Finding> {
    vec![
        gap(
            TUN,
            "several queues",
            &tun.multi_queue,
            "a single worker handles all traffic: at most one core forwards",
            "a kernel from 3.8 on",
        ),
        gap(
            TUN,
            "queues limited in bytes (bpf)",
            &probe::bpf(),
            "there are fewer queues, limited in packets: large ones may take more kernel memory",
            "grant CAP_BPF; a kernel from 5.5 on",
        ),
    ]
}

fn offloads(tun: &TunProbe) -> Vec<Finding> {
    vec![
        gap(
            TUN,
            "TCP super-packets (tso)",
            &tun.tso,
            "bulk TCP needs one system call per packet instead of one per 64 KiB",
            "a kernel from 2.6.27 on, or a seccomp profile that allows TUNSETOFFLOAD",
        ),
        gap(
            TUN,
            "UDP super-packets (uso)",
            &tun.uso,
            "QUIC and other bulk UDP need one system call per packet; TCP is not affected",
            "a kernel from 6.2 on",
        ),
    ]
}

fn of_sockets() -> Vec<Finding> {
    vec![
        gap(
            SOCKETS,
            "UDP_SEGMENT (gso)",
            &probe::udp_segment(),
            "each sent datagram passes the network stack separately",
            "a kernel from 4.18 on, or a seccomp profile that allows it",
        ),
        gap(
            SOCKETS,
            "UDP_GRO (gro)",
            &probe::udp_gro(),
            "each received datagram passes the network stack separately",
            "a kernel from 5.0 on, or a seccomp profile that allows it",
        ),
        gap(
            SOCKETS,
            "notice of this host's own SNAT",
            &probe::connection_tracking(),
            "if the host translates the tunnel's packets towards an interface without checksum offload, \
             those sent together are lost",
            "grant CAP_NET_ADMIN; a kernel with CONFIG_NF_CT_NETLINK; on such a host pass --without gso",
        ),
    ]
}

fn of_self_test(report: &Report) -> Vec<Finding> {
    let finding = |check: &selftest::Check| {
        let (verdict, detail, cost, fix) = match &check.outcome {
            Outcome::Works => (Yes, String::new(), "", ""),
            Outcome::Broken(why) => (
                No,
                why.clone(),
                "the kernel offers it but corrupts data; loden does not use it",
                "another kernel release",
            ),
            Outcome::Untested(why) => (
                Unknown,
                why.clone(),
                "a broken offload goes unnoticed until traffic flows",
                "run as root or allow user namespaces",
            ),
        };
        let name = format!("{}: {}", check.feature, check.what);
        Finding { group: SELF_TEST, name, verdict, detail, cost, fix }
    };
    report.checks.iter().map(finding).collect()
}

fn of_rights() -> Vec<Finding> {
    let cost = |name| match name {
        "CAP_NET_ADMIN" => (
            "devices, addresses and routes cannot be configured",
            "grant it; vxlan, udp and wireguard need no other capability",
        ),
        "CAP_NET_RAW" => (
            "the ipip backend cannot start, and path MTUs are not learned",
            "grant it; without it use vxlan, udp, wireguard or host-gw",
        ),
        "CAP_SYS_ADMIN" => (
            "super-packets are not tested before they are used",
            "grant it for the start, or run loden doctor as root once",
        ),
        "CAP_SYS_RESOURCE" => (
            "socket buffers are limited to net.core.rmem_max and wmem_max",
            "grant it, or raise these two sysctls",
        ),
        "CAP_SYS_NICE" => ("the workers compete with ordinary programs", "grant it"),
        "CAP_BPF" => ("the devices' queues are limited in packets, not in bytes", "grant it"),
        _ => ("nothing today", "grant it if a later feature needs it"),
    };
    let finding = |(name, probe): (&'static str, Probe)| {
        let (cost, fix) = cost(name);
        gap(RIGHTS, name, &probe, cost, fix)
    };
    probe::capabilities().into_iter().map(finding).collect()
}

async fn of_host() -> Vec<Finding> {
    let mut findings = vec![forwarding(false), forwarding(true)];
    let gaps = sysctls::gaps(true, true, false);
    for finding in &mut findings {
        if let Some(gap) = gaps.iter().find(|gap| gap.what.starts_with(&finding.name)) {
            (finding.cost, finding.fix) = (gap.cost, gap.fix);
        }
    }
    let bridge = gaps.iter().find(|gap| gap.what.starts_with("br_netfilter"));
    findings.push(match bridge {
        // flannel refuses to start without it, and so does `loden run` by default.
        Some(gap) => {
            Finding { cost: gap.cost, fix: gap.fix, ..plain(HOST, "br_netfilter", Needed, String::new()) }
        }
        None => plain(HOST, "br_netfilter", Yes, String::new()),
    });
    match interfaces().await {
        Ok(interfaces) => findings.extend(interfaces),
        Err(error) => findings.push(plain(HOST, "interfaces", Unknown, error.to_string())),
    }
    findings
}

fn forwarding(ipv6: bool) -> Finding {
    let name = if ipv6 { "IPv6 forwarding" } else { "IPv4 forwarding" };
    match sysctls::forwards(ipv6) {
        Some(true) => plain(HOST, name, Yes, String::new()),
        Some(false) => plain(HOST, name, No, String::new()),
        None => plain(HOST, name, Unknown, "the kernel does not report it".into()),
    }
}

async fn interfaces() -> Result<Vec<Finding>, NetlinkError> {
    let observed = underlay::observe(&Netlink::connect()?, None).await?;
    let finding = |interface: &underlay::Interface| {
        let default = |ipv6| {
            let first = observed.default_routes.iter().find(|route| route.ipv6 == ipv6);
            first.is_some_and(|route| route.interface == interface.index)
        };
        let mut detail = format!("MTU {}", interface.mtu);
        if default(false) {
            detail += ", IPv4 default route";
        }
        if default(true) {
            detail += ", IPv6 default route";
        }
        plain(HOST, &format!("interface {}", interface.name), Fact, detail)
    };
    Ok(observed.interfaces.iter().map(finding).collect())
}

fn of_scheduler() -> Vec<Finding> {
    let mut findings = match (scheduler::try_out(false), scheduler::try_out(true)) {
        (Ok(ordinary), Ok(realtime)) => of_attention(&ordinary, &realtime),
        (Err(error), _) | (_, Err(error)) => {
            vec![plain(SCHEDULER, "workers before other programs", Unknown, format!("not probed: {error}"))]
        }
    };
    let limits = CpuLimits::read();
    let verdict = if limits.are_tight() { No } else { Yes };
    let mut quota = plain(SCHEDULER, "no CPU quota", verdict, limits.to_string());
    if limits.are_tight() {
        quota.cost = "once it is used up, no packet moves until the next period, up to 100 ms";
        quota.fix = "remove the CPU limit of the unit or container; give it weight instead";
    }
    findings.push(quota);
    findings
}

fn of_attention(ordinary: &Attention, realtime: &Attention) -> Vec<Finding> {
    let verdict = if ordinary.is_preferred() { Yes } else { No };
    let mut preferred = plain(SCHEDULER, "workers before other programs", verdict, ordinary.to_string());
    if !ordinary.is_preferred() {
        preferred.detail = ordinary.refused.join("; ");
        preferred.cost = "beside busy programs the workers get less CPU time, and pods less throughput";
        preferred.fix = "grant CAP_SYS_NICE, or a limit of nice values (LimitNICE=-5)";
    }
    let detail = if realtime.realtime { "allowed; not used without it" } else { "not allowed" };
    let realtime = plain(SCHEDULER, "realtime class (--realtime)", Fact, detail.to_owned());
    vec![preferred, realtime]
}

fn of_firewall() -> Vec<Finding> {
    let finding = |tool| match in_path(tool) {
        Some(path) => plain(FIREWALL, tool, Yes, path),
        None => Finding {
            cost: "this tool cannot add masquerade and forward rules; --ip-masq fails without it",
            fix: "install iptables or nftables, depending on the configured mode",
            ..plain(FIREWALL, tool, No, String::new())
        },
    };
    ["iptables", "ip6tables", "nft"].into_iter().map(finding).collect()
}

fn of_the_future() -> Vec<Finding> {
    let cost = "nothing today";
    vec![
        gap(LATER, "AF_XDP", &probe::af_xdp(), cost, "CONFIG_XDP_SOCKETS and CAP_NET_RAW"),
        gap(LATER, "io_uring", &probe::io_uring(), cost, "sysctl -w kernel.io_uring_disabled=0"),
    ]
}

fn choose(tun: &TunProbe, report: &Report) -> Vec<Choice> {
    let tested = report.choose(Switches::default());
    let granted = |feature| match feature {
        "tso" => tun.tso.clone(),
        "uso" => tun.uso.clone(),
        "gso" => probe::udp_segment(),
        "gro" => probe::udp_gro(),
        "multiqueue" => tun.multi_queue.clone(),
        _ => Probe::Granted,
    };
    let choice = |(feature, passed): (&'static str, bool)| {
        let why = match granted(feature) {
            Probe::Missing { why, .. } => why,
            Probe::Granted if !passed => "the self-test found it broken".to_owned(),
            Probe::Granted => String::new(),
        };
        Choice { feature, used: why.is_empty(), why }
    };
    tested.named().into_iter().map(choice).collect()
}

fn gap(group: &'static str, name: &str, probe: &Probe, cost: &'static str, fix: &'static str) -> Finding {
    let finding = plain(group, name, verdict(probe, No), String::new());
    match probe {
        Probe::Granted => finding,
        Probe::Missing { why, .. } => Finding { detail: why.clone(), cost, fix, ..finding },
    }
}

fn verdict(probe: &Probe, otherwise: Verdict) -> Verdict {
    if probe.is_granted() { Yes } else { otherwise }
}

fn plain(group: &'static str, name: &str, verdict: Verdict, detail: String) -> Finding {
    Finding { group, name: name.to_owned(), verdict, detail, cost: "", fix: "" }
}

fn in_path(tool: &str) -> Option<String> {
    // The PATH of a daemon often lacks these directories.
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(Into::into);
    let candidates = env::split_paths(&path).chain(usual).map(|directory| directory.join(tool));
    candidates.into_iter().find(|file| is_file(file)).map(|file| file.display().to_string())
}

fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

fn kernel() -> String {
    match nix::sys::utsname::uname() {
        Ok(name) => format!("{} {}", name.release().to_string_lossy(), name.machine().to_string_lossy()),
        Err(error) => format!("unknown ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(why: &str, errno: Option<Errno>) -> Probe {
        Probe::Missing { why: why.into(), errno: errno.map(|errno| errno as i32) }
    }

    fn tun(device: Probe, create: Probe) -> TunProbe {
        let (vnet_hdr, multi_queue) = (device.clone(), device.clone());
        TunProbe { device, tso: create.clone(), uso: create.clone(), create, vnet_hdr, multi_queue }
    }

    #[test]
    fn the_remedy_follows_the_error_and_what_depends_on_it_is_hidden() {
        for (errno, remedy, not) in [
            (Errno::EACCES, "run as root", "modprobe"),
            (Errno::EPERM, "10:200", "modprobe"),
            (Errno::ENOENT, "mknod", "modprobe"),
            (Errno::ENODEV, "modprobe tun", "mknod"),
            (Errno::ENXIO, "modprobe tun", "mknod"),
            (Errno::ENOTDIR, "10:200", "modprobe"),
        ] {
            let device = missing("it cannot be opened", Some(errno));
            let findings = of_tun(&tun(device, missing("not probed: no device", None)));
            assert_eq!(findings.len(), 1, "{findings:?}");
            let fix = findings[0].fix;
            assert!(
                fix.contains(remedy) && !fix.contains(not) && !fix.contains("kernel from"),
                "{errno}: {fix}"
            );
            assert_eq!(findings[0].verdict, Needed);
        }
        let findings = of_tun(&tun(Probe::Granted, missing("not probed: no namespace", None)));
        assert_eq!(findings[1].verdict, Unknown);
        let findings = of_tun(&tun(Probe::Granted, missing("refused", Some(Errno::EPERM))));
        assert!(findings[1].verdict == Needed && findings[1].fix.contains("CAP_NET_ADMIN"), "{findings:?}");
        assert!(findings.iter().all(|finding| !finding.name.contains("super-packets")), "{findings:?}");
    }

    #[test]
    fn every_capability_that_is_used_has_its_cost() {
        let findings = of_rights();
        let raw = findings.iter().find(|finding| finding.name == "CAP_NET_RAW").expect("asked about");
        assert!(raw.verdict == Yes || raw.cost.contains("ipip"), "{raw:?}");
    }
}
