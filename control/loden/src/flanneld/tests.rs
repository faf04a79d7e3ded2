//! The whole table, Go's grammar, the environment, and noise.

use std::collections::BTreeMap;

use model::backend::Secret;
use proptest::prelude::*;

use super::*;

type Check = fn(&RunOptions) -> bool;

/// Each flag with a value and its expected effect.
const VALUES: &[(&str, &str, Check)] = &[
    ("etcd-endpoints", "https://a:1, https://b:2", |o| o.etcd.endpoints == ["https://a:1", " https://b:2"]),
    ("etcd-prefix", "/other", |o| o.etcd.prefix == "/other"),
    ("etcd-keyfile", "/k", |o| o.etcd.keyfile == Some("/k".into())),
    ("etcd-certfile", "/c", |o| o.etcd.certfile == Some("/c".into())),
    ("etcd-cafile", "/a", |o| o.etcd.cafile == Some("/a".into())),
    ("etcd-username", "root", |o| o.etcd.username == "root"),
    ("etcd-password", "-x=y", |o| o.etcd.password == Some(Secret::new("-x=y"))),
    ("iface", "eth1", |o| o.iface == ["eth1"]),
    ("iface-regex", "^eth[0-9]$", |o| o.iface_regex == ["^eth[0-9]$"]),
    ("iface-can-reach", "192.0.2.1", |o| o.iface_can_reach == Some([192, 0, 2, 1].into())),
    ("subnet-file", "/tmp/s.env", |o| o.subnet_file.as_os_str() == "/tmp/s.env"),
    ("public-ip", "192.0.2.9", |o| o.public_ip == Some([192, 0, 2, 9].into())),
    ("public-ipv6", "2001:db8::9", |o| o.public_ipv6 == "2001:db8::9".parse().ok()),
    ("subnet-lease-renew-margin", "0x10", |o| o.subnet_lease_renew_margin == 16),
    ("ip-masq", "true", |o| o.traffic.ip_masq),
    ("ip-masq-fully-random-disable", "T", |o| o.traffic.ip_masq_fully_random_disable),
    ("kube-subnet-mgr", "1", |o| o.kube.subnet_mgr),
    ("kube-api-url", "https://api", |o| o.kube.api_url == "https://api"),
    ("kube-annotation-prefix", "example.org", |o| o.kube.annotation_prefix == "example.org"),
    ("kubeconfig-file", "/kc", |o| o.kube.kubeconfig_file == Some("/kc".into())),
    ("healthz-ip", "::1", |o| o.health.ip == "::1"),
    ("healthz-port", "10256", |o| o.health.port == 10256),
    ("iptables-resync", "7", |o| o.traffic.iptables_resync == 7),
    ("iptables-forward-rules", "false", |o| !o.traffic.iptables_forward_rules),
    ("require-br-netfilter", "0", |o| !o.traffic.require_br_netfilter),
    ("ip-blackhole-route", "TRUE", |o| o.traffic.ip_blackhole_route),
    ("net-config-path", "/n.json", |o| o.kube.net_config_path.as_os_str() == "/n.json"),
    ("set-node-network-unavailable", "f", |o| !o.kube.set_node_network_unavailable),
    ("v", "0", |_| true),
    ("vmodule", "a=1,b=2", |_| true),
    ("log_backtrace_at", "main.go:3", |_| true),
    ("store", "sqlite:/l.db", |o| o.store.as_deref() == Some("sqlite:/l.db")),
    ("workers", "2", |o| o.workers == Some(2)),
    ("pin", "true", |o| o.pin),
    ("spin-us", "50", |o| o.spin_us == Some(50)),
    ("realtime", "true", |o| o.realtime),
    ("queue-memory", "32", |o| o.queue_memory == Some(32)),
    ("without", "tso,gro", |o| o.without == ["tso", "gro"]),
    ("counters-file", "/c.json", |o| o.counters_file == Some("/c.json".into())),
    ("instance", "second", |o| o.instance.as_deref() == Some("second")),
    ("run-dir", "/tmp/run", |o| o.run_dir.as_os_str() == "/tmp/run"),
];

#[test]
fn every_flag_in_every_form() {
    let untested: Vec<_> = table::all()
        .map(|flag| flag.name)
        .filter(|name| *name != "version" && !VALUES.iter().any(|(tested, ..)| tested == name))
        .collect();
    assert!(untested.is_empty(), "{untested:?}");
    for (name, value, check) in VALUES {
        let boolean = table::all().any(|flag| flag.name == *name && flag.kind == Kind::Bool);
        for dashes in ["-", "--"] {
            let joined = run(&[&format!("{dashes}{name}={value}")]);
            assert!(check(&joined.options), "{dashes}{name}={value}: {joined:?}");
            if !boolean {
                let apart = run(&[&format!("{dashes}{name}"), value]);
                assert_eq!(apart, joined, "{dashes}{name} {value}");
            }
        }
        let variable = variable(name);
        let from_environment = run_with(&[], &[(&variable, value)]);
        assert!(check(&from_environment.options) && from_environment.warnings.is_empty(), "{variable}");
    }
}

#[test]
fn the_defaults_are_those_shown_and_those_of_loden_run() {
    assert_eq!(run(&[]).options, RunOptions::default());
    for flag in table::all().filter(|flag| !flag.default.is_empty()) {
        let mut filled = Filled::default();
        (flag.set)(&mut filled, flag.default).expect("a good default");
        assert_eq!(filled, Filled::default(), "-{}", flag.name);
    }
}

#[test]
fn the_flags_are_flannels_and_sorted() {
    let names = |flags: &[Flag]| flags.iter().map(|flag| flag.name).collect::<Vec<_>>();
    let flannel = names(table::FLANNEL);
    assert_eq!(flannel.len(), 28 + 3, "28 of flannel's own and 3 of klog's");
    assert!(flannel.is_sorted() && names(table::OWN).is_sorted());
}

#[test]
fn booleans_as_go_writes_them() {
    assert!(run(&["-ip-masq"]).options.traffic.ip_masq);
    for value in ["1", "t", "T", "true", "TRUE", "True"] {
        assert!(run(&[&format!("--ip-masq={value}")]).options.traffic.ip_masq, "{value}");
        assert!(run(&[&format!("--iptables-forward-rules={value}")]).options.traffic.iptables_forward_rules);
    }
    for value in ["0", "f", "F", "false", "FALSE", "False"] {
        assert!(!run(&[&format!("--iptables-forward-rules={value}")]).options.traffic.iptables_forward_rules);
    }
    // A value apart is an argument, and ends the flags.
    let ended = run(&["-ip-masq", "false", "-iface", "eth0"]);
    assert!(ended.options.traffic.ip_masq && ended.options.iface.is_empty());
    assert!(ended.warnings[0].contains(r#"from "false" on"#), "{:?}", ended.warnings);
}

#[test]
fn lists_append_and_empty_values_name_nothing() {
    let options =
        run(&["--iface=eth0", "-iface", "eth1", "-iface=", "-iface-regex", "a", "-iface-regex=b"]).options;
    assert_eq!((options.iface.len(), options.iface_regex.len()), (2, 2));
    let empty = run(&["-public-ip=", "-public-ipv6", "", "-iface-can-reach=", "-etcd-cafile="]).options;
    assert_eq!(empty, RunOptions::default());
}

#[test]
fn the_command_line_wins_over_the_environment() {
    let mixed = run_with(
        &["-etcd-prefix=/line", "-iface", "eth0"],
        &[
            ("FLANNELD_ETCD_PREFIX", "/variable"),
            ("FLANNELD_IFACE", "eth1"),
            ("FLANNELD_HEALTHZ_PORT", ""),
            ("FLANNELD_IPTABLES_RESYNC", "soon"),
            ("FLANNELD_IP_MASQ", "true"),
            ("FLANNELD_VERSION", "true"),
            ("FLANNELD_LOG_BACKTRACE_AT", "x"),
            ("FLANNELD_IFACE_REGEX", "a,b"),
        ],
    );
    assert_eq!(mixed.options.etcd.prefix, "/line");
    assert_eq!(mixed.options.iface, ["eth0"]);
    assert!(mixed.options.traffic.ip_masq);
    assert_eq!(mixed.options.traffic.iptables_resync, 5);
    assert_eq!(mixed.options.iface_regex, ["a,b"], "no splitting");
    assert_eq!(mixed.warnings.len(), 1);
    assert!(
        mixed.warnings[0].contains("FLANNELD_IPTABLES_RESYNC=\"soon\": parse error"),
        "{:?}",
        mixed.warnings
    );
}

#[test]
fn a_wrong_address_of_this_node_stops_a_start_wherever_it_is() {
    for (flag, variable, value) in [
        ("-public-ip", "FLANNELD_PUBLIC_IP", "2001:db8::1"),
        ("-public-ipv6", "FLANNELD_PUBLIC_IPV6", "192.0.2.1"),
        ("-iface-can-reach", "FLANNELD_IFACE_CAN_REACH", "gateway.example"),
    ] {
        for refused in [request(&[flag, value], &[]), request(&[], &[(variable, value)])] {
            let error = refused.expect_err(flag).to_string();
            assert!(error.contains(value), "{error}");
        }
    }
}

#[test]
fn ends_and_helps() {
    assert_eq!(request(&["-iface", "eth0", "-h"], &[]), Ok(Request::Usage));
    for help in ["-h", "--h", "-help", "--help", "-help=yes"] {
        assert_eq!(request(&[help], &[]), Ok(Request::Usage), "{help}");
    }
    assert_eq!(request(&["--version"], &[]), Ok(Request::Version));
    assert_eq!(request(&["-version=false"], &[]), request(&[], &[]));
    // What stands behind -- is not looked at; a dash alone is an argument.
    assert!(run(&["-ip-masq", "--", "-nonsense"]).warnings.is_empty());
    assert_eq!(run(&["-", "-nonsense"]).warnings.len(), 1);
}

#[test]
fn bad_flags_have_a_reason() {
    for (line, reason) in [
        (&["-nosuch"][..], "flag provided but not defined: -nosuch"),
        (&["--nosuch=1"], "flag provided but not defined: -nosuch"),
        (
            &["-remote=10.0.0.1:8888"],
            "flag provided but not defined: -remote: the client and server modes left",
        ),
        (&["---iface"], "bad flag syntax: ---iface"),
        (&["-=x"], "bad flag syntax: -=x"),
        (&["-iface"], "flag needs an argument: -iface"),
        (&["-ip-masq=yes"], r#"invalid boolean value "yes" for -ip-masq: parse error"#),
        (&["-healthz-port", "http"], r#"invalid value "http" for flag -healthz-port: parse error"#),
        (&["-healthz-port=70000"], r#"invalid value "70000" for flag -healthz-port: value out of range"#),
        (&["-without=speed"], "unknown feature"),
        (&["-workers=0"], "must be between 1 and 256"),
    ] {
        let error = request(line, &[]).expect_err("bad").to_string();
        assert!(error.contains(reason), "{line:?}: {error}");
    }
}

#[test]
fn levels_of_klog() {
    for (level, verbose) in [("0", 0), ("1", 0), ("2", 1), ("5", 1), ("6", 2), ("10", 2), ("-1", 0)] {
        assert_eq!(run(&["-v", level]).verbose, verbose, "{level}");
    }
}

#[test]
fn called_by_its_name() {
    assert!(is_program_name(Some(OsStr::new("/opt/bin/flanneld"))));
    assert!(is_program_name(Some(OsStr::new("flanneld"))));
    for other in ["loden", "/flanneld/loden", "flanneld.old", "", "/", ".."] {
        assert!(!is_program_name(Some(OsStr::new(other))), "{other}");
    }
    assert!(!is_program_name(None));
}

#[test]
fn the_usage_text_is_the_golden_one() {
    let golden = include_str!("usage.txt");
    assert_eq!(usage(), golden, "put the new text into control/loden/src/flanneld/usage.txt if it is meant");
}

#[test]
fn not_utf_8_is_a_reason_or_a_warning() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = || OsString::from_vec(vec![b'-', 0xff]);
    assert!(parse([bytes()], |_| None).is_err());
    let request = parse([], |name| (name == "FLANNELD_IFACE").then(bytes)).expect("it goes on");
    let expected = ["FLANNELD_IFACE: not UTF-8; variable ignored"];
    assert!(matches!(request, Request::Run(run) if run.warnings == expected));
}

proptest! {
    #[test]
    fn no_line_and_no_environment_panics(
        line in proptest::collection::vec(argument(), 0..8),
        value in "\\PC{0,12}",
    ) {
        let _ = parse(line.into_iter().map(OsString::from), |_| Some(OsString::from(&value)));
    }
}

/// Noise, and things that nearly make sense.
fn argument() -> impl Strategy<Value = String> {
    let names: Vec<_> = table::all().map(|flag| flag.name).collect();
    prop_oneof![
        "\\PC{0,12}",
        "-{0,3}=?[a-z-]{0,8}",
        (0..3usize, proptest::sample::select(names), "(=\\PC{0,8})?")
            .prop_map(|(dashes, name, value)| format!("{}{name}{value}", "-".repeat(dashes))),
    ]
}

fn run(line: &[&str]) -> Invocation {
    run_with(line, &[])
}

fn run_with(line: &[&str], environment: &[(&str, &str)]) -> Invocation {
    match request(line, environment) {
        Ok(Request::Run(invocation)) => *invocation,
        other => panic!("{line:?}: {other:?}"),
    }
}

fn request(line: &[&str], environment: &[(&str, &str)]) -> Result<Request, BadFlag> {
    let environment: BTreeMap<_, _> = environment.iter().copied().collect();
    parse(line.iter().map(OsString::from), |name| environment.get(name).map(OsString::from))
}
