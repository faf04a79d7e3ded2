use super::*;
use clap::Parser;
use proptest::prelude::*;

const SAMPLE: &str =
    "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
const BIP: &str = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n";
const MASQ: &str = "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n";
const MTU_LINE: &str = "DOCKER_OPT_MTU=\"--mtu=1472\"\n";
const ALL: &str = "=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n";

/// flannel's own five examples.
#[test]
fn the_five_golden_outputs() {
    let each = format!("{BIP}{MASQ}{MTU_LINE}");
    for (flags, wanted) in [
        (&[][..], format!("{each}DOCKER_OPTS{ALL}")),
        (&["-i"], each.clone()),
        (&["-c"], format!("DOCKER_OPTS{ALL}")),
        (&["-k", "CUSTOM_KEY"], format!("{each}CUSTOM_KEY{ALL}")),
        (&["-m"], format!("{BIP}{MTU_LINE}DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n")),
    ] {
        assert_eq!(made(flags, SAMPLE, &[]).expect("options"), wanted, "{flags:?}");
    }
}

#[test]
fn flags_come_together_and_the_node_masquerades_for_docker() {
    let masquerading = SAMPLE.replace("IPMASQ=false", "IPMASQ=true");
    let text = made(&["-ic", "-kX"], &masquerading, &[]).expect("options");
    assert!(text.contains("--ip-masq=false\"\n") && text.contains("X=\" --bip"), "{text}");
}

#[test]
fn variables_of_the_environment_count_and_the_file_wins() {
    let environment = [
        ("DOCKER_OPT_LOG", "--log-level=warn"),
        ("DOCKER_OPTS", "-H fd://"),
        ("FLANNEL_MTU", "9000"),
        ("DOCKER_OPT_BIP", "--bip=1.2.3.4/8"),
    ];
    let text = made(&["-c"], SAMPLE, &environment).expect("options");
    let wanted = "-H fd://  --bip=10.1.74.1/24 --ip-masq=true --log-level=warn --mtu=1472";
    assert_eq!(text, format!("DOCKER_OPTS=\"{wanted}\"\n"));
    let alone = [("FLANNEL_SUBNET", "10.9.9.1/24"), ("DOCKER_OPT_X", "a\"$b`c\\")];
    let text = made(&["-i"], "", &alone).expect("options");
    assert_eq!(text, "DOCKER_OPT_BIP=\"--bip=10.9.9.1/24\"\nDOCKER_OPT_X=\"a\\\"\\$b\\`c\\\\\"\n");
}

#[test]
fn values_that_dockerd_would_reject_are_errors() {
    for (from, to, said) in [
        ("FLANNEL_SUBNET=10.1.74.1/24", "", "FLANNEL_SUBNET is missing"),
        ("10.1.74.1/24", "10.1.74.1", "not an IPv4 address with prefix length"),
        ("10.1.74.1/24", "\"$(reboot)/24\"", "not an IPv4 address"),
        ("1472", "big", "not a number of bytes"),
        ("IPMASQ=false", "IPMASQ=maybe", "neither true nor false"),
    ] {
        let error = made(&[], &SAMPLE.replace(from, to), &[]).expect_err(to);
        assert!(error.to_string().contains(said), "{error}");
    }
    let error = made(&["-k", "1 2"], SAMPLE, &[]).expect_err("a key").to_string();
    assert!(error.contains("not a variable name"), "{error}");
}

#[test]
fn both_names_of_the_script_are_known() {
    for (name, is) in [("/opt/bin/mk-docker-opts.sh", true), ("mk-docker-opts", true), ("loden", false)] {
        assert_eq!(is_program_name(Some(OsStr::new(name))), is, "{name}");
    }
}

proptest! {
    #[test]
    fn noise_never_panics(file in "\\PC{0,60}", key in "\\PC{0,10}", value in "\\PC{0,20}") {
        let environment = BTreeMap::from([(format!("DOCKER_OPT_{key}"), value)]);
        let _ = render(&parsed(&[]), &file, environment);
    }
}

fn made(flags: &[&str], file: &str, environment: &[(&str, &str)]) -> anyhow::Result<String> {
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    render(&parsed(flags), file, environment)
}

fn parsed(flags: &[&str]) -> DockerOptsOptions {
    let line = ["loden", NAME].iter().chain(flags);
    match crate::options::CommandLine::try_parse_from(line).expect("a good line").command {
        crate::options::Command::MkDockerOpts(options) => options,
        other => panic!("{other:?}"),
    }
}
