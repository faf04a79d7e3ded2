//! The order of choices, and walks over every kind of pool.

use model::lease::LeaseAttrs;
use model::net_config;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

const NODE: &str = r#"{"PublicIP":"192.0.2.7","PublicIPv6":null}"#;
const OTHER: &str = r#"{"PublicIP":"192.0.2.8","PublicIPv6":null}"#;

fn config(members: &str) -> NetConfig {
    net_config::parse(&format!(r#"{{{members},"Backend":{{"Type":"vxlan"}}}}"#)).unwrap().0
}

fn plain() -> NetConfig {
    config(r#""Network":"10.3.0.0/16""#)
}

fn dual() -> NetConfig {
    config(r#""Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48""#)
}

fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

fn lease(text: &str, attrs: &str) -> Lease {
    Lease { key: key(text), attrs: LeaseAttrs::parse(attrs).unwrap(), expires: Some(1_000) }
}

fn wish<'a>(config: &'a NetConfig, attrs: &str, previous: Option<&str>) -> Wish<'a> {
    Wish { config, attrs: LeaseAttrs::parse(attrs).unwrap(), previous: previous.map(key), former: None }
}

fn random() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn decide_for(
    config: &NetConfig,
    attrs: &str,
    previous: Option<&str>,
    leases: &[Lease],
) -> Result<Decision, OutOfSubnets> {
    decide(&wish(config, attrs, previous), leases, &[], &mut random())
}

#[test]
fn the_lease_with_our_address_is_used_again() {
    let leases = [lease("10.3.1.0-24", OTHER), lease("10.3.9.0-24", NODE)];
    let decision = decide_for(&plain(), NODE, Some("10.3.4.0-24"), &leases).unwrap();
    assert_eq!(decision, Decision { remove: vec![], key: key("10.3.9.0-24"), reuse: true });
}

#[test]
fn of_several_leases_with_our_address_the_previous_one_is_used() {
    let leases = [lease("10.3.1.0-24", NODE), lease("10.3.9.0-24", NODE)];
    let decision = decide_for(&plain(), NODE, Some("10.3.9.0-24"), &leases).unwrap();
    assert_eq!(decision.key, key("10.3.9.0-24"));
}

#[test]
fn a_lease_outside_the_configuration_is_removed() {
    for stale in
        ["10.4.1.0-24", "10.3.1.0-25", "10.3.0.0-24", "10.3.1.0-24&fc00:0:0:1::-64", "fc00:0:0:1::-64"]
    {
        let leases = [lease(stale, NODE), lease("10.3.5.0-24", OTHER)];
        let decision = decide_for(&plain(), NODE, None, &leases).unwrap();
        assert_eq!(decision.remove, [key(stale)], "{stale}");
        assert!(!decision.reuse && allows(&plain(), &decision.key), "{stale}");
    }
    let decision = decide_for(&dual(), NODE, None, &[lease("10.3.1.0-24", NODE)]).unwrap();
    assert_eq!(decision.remove, [key("10.3.1.0-24")]);
    assert!(decision.key.ipv6().is_some());
}

#[test]
fn the_previous_subnet_is_honoured_if_free_and_allowed() {
    let decision = decide_for(&plain(), NODE, Some("10.3.77.0-24"), &[lease("10.3.1.0-24", OTHER)]).unwrap();
    assert_eq!(decision, Decision { remove: vec![], key: key("10.3.77.0-24"), reuse: false });
    let taken = [lease("10.3.77.0-24", OTHER)];
    assert_ne!(decide_for(&plain(), NODE, Some("10.3.77.0-24"), &taken).unwrap().key, key("10.3.77.0-24"));
    let overlapped = [lease("10.3.64.0-20", OTHER)];
    assert_ne!(
        decide_for(&plain(), NODE, Some("10.3.77.0-24"), &overlapped).unwrap().key,
        key("10.3.77.0-24")
    );
    for outside in ["10.4.77.0-24", "10.3.0.0-24", "10.3.77.0-26", "10.3.77.0-24&fc00:0:0:1::-64"] {
        let decision = decide_for(&plain(), NODE, Some(outside), &[]).unwrap();
        assert_ne!(decision.key, key(outside), "{outside}");
    }
    let previous = "10.3.77.0-24&fc00:0:0:9::-64";
    assert_eq!(decide_for(&dual(), NODE, Some(previous), &[]).unwrap().key, key(previous));
}

#[test]
fn a_subnet_that_a_removal_frees_can_be_chosen() {
    let all =
        config(r#""Network":"10.3.0.0/24","SubnetLen":26,"SubnetMin":"10.3.0.64","SubnetMax":"10.3.0.64""#);
    // Another length, so not compatible, yet it covers the only subnet there is.
    let decision = decide_for(&all, NODE, None, &[lease("10.3.0.64-27", NODE)]).unwrap();
    assert_eq!(decision.key, key("10.3.0.64-26"));
}

#[test]
fn nodes_without_ipv4_are_told_apart_by_ipv6() {
    let v6 = config(r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48""#);
    let node = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::7"}"#;
    let other = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::8"}"#;
    let leases = [lease("fc00:0:0:5::-64", other), lease("fc00:0:0:6::-64", node)];
    assert_eq!(decide_for(&v6, node, None, &leases).unwrap().key, key("fc00:0:0:6::-64"));
    assert!(!decide_for(&v6, node, None, &leases[..1]).unwrap().reuse);
    let nobody = r#"{"PublicIP":"0.0.0.0","PublicIPv6":null}"#;
    assert!(!decide_for(&v6, nobody, None, &[lease("fc00:0:0:5::-64", nobody)]).unwrap().reuse);
}

#[test]
fn unreadable_rows_hold_their_subnets() {
    let two =
        config(r#""Network":"10.3.0.0/24","SubnetLen":26,"SubnetMin":"10.3.0.64","SubnetMax":"10.3.0.128""#);
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let decision = decide(&wish(&two, NODE, None), &[], &[key("10.3.0.64-26")], &mut random).unwrap();
        assert_eq!(decision.key, key("10.3.0.128-26"));
    }
}

#[test]
fn one_of_the_first_hundred_free_ones() {
    let held: Vec<SubnetKey> = (1..=50).map(|third| key(&format!("10.3.{third}.0-24"))).collect();
    let mut seen: Vec<u8> = (0..5_000)
        .map(|seed| choose(&plain(), &held, &mut StdRng::seed_from_u64(seed)).unwrap())
        .map(|key| key.ipv4().unwrap().ip().octets()[2])
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, (51..=150).collect::<Vec<u8>>());
}

#[test]
fn the_families_are_chosen_independently() {
    let differ = (0..50).filter(|seed| {
        let key = choose(&dual(), &[], &mut StdRng::seed_from_u64(*seed)).unwrap();
        u16::from(key.ipv4().unwrap().ip().octets()[2]) != key.ipv6().unwrap().ip().segments()[3]
    });
    assert!(differ.count() > 0);
}

#[test]
fn every_subnet_can_be_handed_out_and_then_no_more() {
    let small = config(r#""Network":"10.3.0.0/24","SubnetLen":28"#);
    let mut held = Vec::new();
    for _ in 0..15 {
        let key = choose(&small, &held, &mut random()).unwrap();
        assert!(allows(&small, &key) && !held.iter().any(|other: &SubnetKey| other.overlaps(&key)));
        held.push(key);
    }
    assert_eq!(
        choose(&small, &held, &mut random()).unwrap_err().to_string(),
        "out of subnets: none of the IPv4 subnets of length 28 from 10.3.0.16 to 10.3.0.240 is free \
         (15 leases held); enlarge the network or remove leases of nodes that are gone"
    );
}

#[test]
fn pools_that_hold_nothing() {
    let reversed = config(r#""Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.8.0""#);
    assert!(choose(&reversed, &[], &mut random()).is_err());
    assert!(choose(&plain(), &[key("10.0.0.0-8")], &mut random()).is_err());
    assert!(choose(&dual(), &[key("10.9.0.0-16&fc00::-16")], &mut random()).is_err());
    let nothing = NetConfig { ipv4: None, ipv6: None, ..plain() };
    assert!(choose(&nothing, &[], &mut random()).is_err());
}

#[test]
fn the_ends_of_the_address_space() {
    let top = config(r#""Network":"255.255.255.240/28""#);
    let held = [key("255.255.255.244-30"), key("255.255.255.248-30")];
    assert_eq!(choose(&top, &held, &mut random()).unwrap(), key("255.255.255.252-30"));
    assert!(choose(&top, &[key("255.255.255.240-28")], &mut random()).is_err());
    let top = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"ffff::/16","IPv6SubnetLen":18"#;
    let held = [key("ffff:4000::-18"), key("ffff:8000::-18")];
    assert_eq!(choose(&config(top), &held, &mut random()).unwrap(), key("ffff:c000::-18"));
    assert!(choose(&config(top), &[key("ffff::-16")], &mut random()).is_err());
}

#[test]
fn a_wide_lease_is_one_step_of_the_walk() {
    let wide = config(r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/8","IPv6SubnetLen":126"#);
    // 2^117 subnets lie behind this one lease.
    let walk_over = [key("fc00::-9")];
    let key = choose(&wide, &walk_over, &mut random()).unwrap();
    assert!(!key.overlaps(&walk_over[0]));
}

#[test]
fn ten_thousand_leases() {
    let large = config(r#""Network":"10.0.0.0/8""#);
    let held: Vec<SubnetKey> =
        (0..10_000u32).rev().map(|n| key(&format!("10.{}.{}.0-24", n / 256, n % 256))).collect();
    let free: Vec<u128> = Walk::new(
        0x0a00_0100,
        0x0aff_ff00,
        32,
        24,
        held.iter().filter_map(SubnetKey::ipv4).map(range_v4).collect(),
    )
    .unwrap()
    .take(3)
    .collect();
    assert_eq!(free, [10_000, 10_001, 10_002].map(|n| 0x0a00_0000 + n * 256));
    assert!(!held.contains(&choose(&large, &held, &mut random()).unwrap()));
}

proptest! {
    /// Whatever the pool and the leases, the walk ends, and finds what a plain search finds.
    #[test]
    fn the_walk_agrees_with_a_plain_search(
        length in 4..=30u8, min: u8, max: u8,
        held in proptest::collection::vec((any::<u8>(), 0..=31u8), 0..12),
    ) {
        // Addresses of eight bits, moved up, keep the plain search short.
        let step = 1u128 << (32 - length);
        let (min, max) = (u128::from(min) << 24, u128::from(max) << 24);
        let taken: Vec<(u128, u128)> = held
            .iter()
            .filter_map(|(top, length)| cidr::masked_v4((u32::from(*top) << 24).into(), *length))
            .map(range_v4)
            .collect();
        let mut plain = Vec::new();
        let mut base = min.next_multiple_of(step);
        while base <= max && plain.len() < 20 {
            let end = base + step - 1;
            let touching = taken.iter().filter(|(start, last)| *start <= end && *last >= base);
            match touching.map(|(_, last)| last).max() {
                Some(last) => base = (last + 1).next_multiple_of(step),
                None => {
                    plain.push(base);
                    base += step;
                }
            }
        }
        let walked: Vec<u128> = Walk::new(min, max, 32, length, taken).unwrap().take(20).collect();
        prop_assert_eq!(walked, plain);
    }

    #[test]
    fn no_pool_makes_it_panic_or_hang(
        min: u128, max: u128, length: u8, held: Vec<(u128, u128)>, width in 0..=255u32,
    ) {
        if let Some(walk) = Walk::new(min, max, width, length, held) {
            prop_assert!(walk.take(CANDIDATES).count() <= CANDIDATES);
        }
    }

    #[test]
    fn a_choice_is_allowed_and_free(
        seed: u64, held in proptest::collection::vec((0..=255u8, 17..=28u8), 0..200),
    ) {
        let held: Vec<SubnetKey> = held
            .into_iter()
            .filter_map(|(third, length)| {
                SubnetKey::new(cidr::masked_v4([10, 3, third, 0].into(), length), None)
            })
            .collect();
        match choose(&plain(), &held, &mut StdRng::seed_from_u64(seed)) {
            Ok(key) => {
                prop_assert!(allows(&plain(), &key));
                prop_assert!(!held.iter().any(|other| other.overlaps(&key)));
            }
            Err(_) => {
                let covered = |third: u8| held.iter().any(|other| other.overlaps(&key_of(third)));
                prop_assert!((1..=255).all(covered));
            }
        }
    }
}

fn key_of(third: u8) -> SubnetKey {
    key(&format!("10.3.{third}.0-24"))
}
