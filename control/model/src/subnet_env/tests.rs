//! The file byte for byte, and the liberties of dotenv files.

use proptest::prelude::*;

use super::*;

fn v4(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn v6(text: &str) -> Ipv6Network {
    text.parse().unwrap()
}

fn dual() -> SubnetEnv {
    SubnetEnv {
        ipv4: Some((v4("10.244.0.0/16"), v4("10.244.1.0/24"))),
        ipv6: Some((v6("2001:cafe:42::/56"), v6("2001:cafe:42:1::/64"))),
        mtu: 1450,
        ip_masq: true,
    }
}

#[test]
fn the_file_of_each_kind_of_node() {
    let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
        FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42:1::1/64\n\
        FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    assert_eq!(render(&dual()), text);
    assert_eq!(
        render(&SubnetEnv { ipv6: None, ip_masq: false, mtu: 1472, ..dual() }),
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
    );
    assert_eq!(
        render(&SubnetEnv { ipv4: None, ..dual() }),
        "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42:1::1/64\n\
         FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
}

#[test]
fn what_was_written_is_read_without_host_bits() {
    let recorded = parse(&render(&dual()));
    assert_eq!(recorded.network(), Some(v4("10.244.0.0/16")));
    assert_eq!(recorded.subnet(), Some(v4("10.244.1.0/24")));
    assert_eq!(recorded.ipv6_network(), Some(v6("2001:cafe:42::/56")));
    assert_eq!(recorded.ipv6_subnet(), Some(v6("2001:cafe:42:1::/64")));
    assert_eq!((recorded.mtu, recorded.ip_masq), (Some(1450), Some(true)));
    assert_eq!(recorded.problems, []);
}

#[test]
fn dotenv_liberties() {
    let lines = [
        "FLANNEL_SUBNET=10.244.1.1/24",
        "  FLANNEL_SUBNET = 10.244.1.1/24  ",
        "export FLANNEL_SUBNET=10.244.1.1/24",
        "export\tFLANNEL_SUBNET=\"10.244.1.1/24\"",
        "FLANNEL_SUBNET='10.244.1.1/24' # ours",
        "FLANNEL_SUBNET=10.244.1.1/24 # ours",
        "FLANNEL_SUBNET: 10.244.1.1/24",
        "FLANNEL_SUBNET=\"10.244.1.1\\/24\"",
        "# a comment\n\nFOO=bar\nFLANNEL_SUBNET=10.244.1.1/24\r\n",
        "FLANNEL_SUBNET=10.9.9.9/24\nFLANNEL_SUBNET=10.244.1.1/24",
    ];
    for text in lines {
        let recorded = parse(text);
        assert_eq!(recorded.subnet(), Some(v4("10.244.1.0/24")), "{text}");
        assert_eq!(recorded.problems, [], "{text}");
    }
}

#[test]
fn lists_keep_their_valid_members() {
    let recorded = parse("FLANNEL_NETWORK=10.244.0.0/16,nonsense, 10.245.0.0/16,fd00::/48");
    assert_eq!(recorded.networks, [v4("10.244.0.0/16"), v4("10.245.0.0/16")]);
    assert_eq!(recorded.network(), None);
    assert_eq!(recorded.problems.len(), 2);
    let recorded = parse("FLANNEL_IPV6_NETWORK=fd00::/48,10.0.0.0/8,fd01::/48");
    assert_eq!(recorded.ipv6_networks, [v6("fd00::/48"), v6("fd01::/48")]);
    assert_eq!(parse("FLANNEL_NETWORK=bad,10.244.0.0/16").network(), Some(v4("10.244.0.0/16")));
}

#[test]
fn only_invalid_members_are_none() {
    for text in ["FLANNEL_NETWORK=bad,worse", "FLANNEL_NETWORK=", "FLANNEL_NETWORK=,", ""] {
        assert_eq!(parse(text).networks, [], "{text}");
        assert_eq!(parse(text).network(), None, "{text}");
    }
    assert_eq!(parse("FLANNEL_IPV6_SUBNET=bad,worse").ipv6_subnet(), None);
}

#[test]
fn invalid_lines_do_not_affect_others() {
    let recorded = parse(
        "nonsense\n=1\nFLANNEL_MTU=big\nFLANNEL_IPMASQ=yes\nA B=1\nX=\"open\nFLANNEL_SUBNET=10.244.1.1/24",
    );
    assert_eq!(recorded.subnet(), Some(v4("10.244.1.0/24")));
    assert_eq!((recorded.mtu, recorded.ip_masq), (None, Some(false)));
    let lines: Vec<usize> = recorded.problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5, 6]);
    assert_eq!(recorded.problems[2].to_string(), "line 3: \"big\": ignored, expected a number of bytes");
}

#[test]
fn a_problem_names_flannels_key_that_it_concerns() {
    for (line, key) in [
        ("FLANNEL_SUBNET=10.244.7.1/99", Some("FLANNEL_SUBNET")),
        ("export FLANNEL_NETWORK=10.244.0.0/16,bad", Some("FLANNEL_NETWORK")),
        ("FLANNEL_IPV6_SUBNET", Some("FLANNEL_IPV6_SUBNET")),
        ("  export\tFLANNEL_IPV6_NETWORK=\"fd00::/48", Some("FLANNEL_IPV6_NETWORK")),
        ("FLANNEL_MTU \"1450\"", Some("FLANNEL_MTU")),
        ("FLANNEL_MTU=-1", Some("FLANNEL_MTU")),
        ("FLANNEL_IPMASQ=yes", Some(IPMASQ)),
        ("FLANNEL_MTUS", None),
        ("FLANNEL_MT", None),
        ("OTHER=\"open", None),
        ("=1", None),
    ] {
        let problems = parse(line).problems;
        assert_eq!(problems.iter().map(|problem| problem.key).collect::<Vec<_>>(), [key], "{line}");
    }
}

#[test]
fn masquerading_is_true_by_that_word_alone() {
    for (text, masquerades) in [
        ("FLANNEL_IPMASQ=true", Some(true)),
        ("FLANNEL_IPMASQ=\"true\"", Some(true)),
        ("FLANNEL_IPMASQ=false", Some(false)),
        ("FLANNEL_IPMASQ=True", Some(false)),
        ("FLANNEL_IPMASQ=1", Some(false)),
        ("FLANNEL_IPMASQ=", Some(false)),
        ("FLANNEL_MTU=1450", None),
    ] {
        assert_eq!(parse(text).ip_masq, masquerades, "{text}");
    }
}

proptest! {
    #[test]
    fn round_trip(a: u32, b in 8..30u8, c: u128, d in 9..126u8, families in 0..4u8, mtu: u32, ip_masq: bool) {
        let pair_v4 = (cidr::masked_v4(a.into(), b - 2).unwrap(), cidr::masked_v4(a.into(), b).unwrap());
        // The first bit keeps the address out of the IPv4-mapped range, which does not parse.
        let c = c | 1 << 127;
        let pair_v6 = (cidr::masked_v6(c.into(), d - 2).unwrap(), cidr::masked_v6(c.into(), d).unwrap());
        let env = SubnetEnv {
            ipv4: (families & 1 != 0).then_some(pair_v4),
            ipv6: (families & 2 != 0).then_some(pair_v6),
            mtu,
            ip_masq,
        };
        let recorded = parse(&render(&env));
        prop_assert_eq!(recorded.network().zip(recorded.subnet()), env.ipv4);
        prop_assert_eq!(recorded.ipv6_network().zip(recorded.ipv6_subnet()), env.ipv6);
        prop_assert_eq!((recorded.mtu, recorded.ip_masq), (Some(mtu), Some(ip_masq)));
        prop_assert_eq!(recorded.problems, []);
    }

    #[test]
    fn noise_never_panics(text in ".*", bytes: Vec<u8>, lines in r#"((export )?FLANNEL_(SUBNET|MTU|IPMASQ)[=: ]["'\\#ä0-9./,]{0,12}\n?){0,5}"#) {
        parse(&text);
        parse(&String::from_utf8_lossy(&bytes));
        parse(&lines);
    }
}
