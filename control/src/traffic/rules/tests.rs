//! The lines, compared with those in flannel's end-to-end tests.

use proptest::prelude::*;

use super::*;

fn v4() -> Nets {
    Nets { cluster: "10.244.0.0/16".parse().expect("CIDR"), own: "10.244.1.0/24".parse().expect("CIDR") }
}

fn v6() -> Nets {
    Nets { cluster: "fd00:244::/48".parse().expect("CIDR"), own: "fd00:244:0:1::/64".parse().expect("CIDR") }
}

#[test]
fn iptables_masquerading_is_flannels() {
    let chain = iptables(Purpose::Masquerade, &v4(), true);
    assert_eq!(chain.jump, r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#);
    let golden = r#"
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.1.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#;
    assert_eq!(chain.rules.join("\n"), golden.trim_start());
    let v6 = iptables(Purpose::Masquerade, &v6(), false);
    assert_eq!(
        v6.rules[4],
        "-A FLANNEL-POSTRTG -s fd00:244::/48 ! -d ff00::/8 \
         -m comment --comment \"flanneld masq\" -j MASQUERADE"
    );
}

#[test]
fn iptables_forwarding_is_flannels() {
    let chain = iptables(Purpose::Forward, &v4(), true);
    assert_eq!(chain.jump, r#"-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD"#);
    let golden = r#"
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#;
    assert_eq!(chain.rules.join("\n"), golden.trim_start());
}

#[test]
fn nftables_rules_are_flannels() {
    let golden = "\
meta mark 0x00004000 return
ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return
ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 return
ip saddr != 10.244.1.0/24 ip daddr 10.244.0.0/16 return
ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random";
    assert_eq!(nftables(Purpose::Masquerade, &v4(), true).rules.join("\n"), golden);
    let v6 = nftables(Purpose::Masquerade, &v6(), false).rules;
    assert_eq!(v6[4], "ip6 saddr fd00:244::/48 ip6 daddr != ff00::/8 masquerade");
    let forward = nftables(Purpose::Forward, &super::tests::v6(), true).rules;
    assert_eq!(forward, ["ip6 saddr fd00:244::/48 accept", "ip6 daddr fd00:244::/48 accept"]);
}

#[test]
fn a_chain_is_repaired_with_as_little_as_possible() {
    let wanted = lines("a b c");
    for (found, exact, repair) in [
        ("a b c", true, Repair::Nothing),
        ("a x b c", true, Repair::Refill),
        ("a x b c y", false, Repair::Nothing),
        ("", false, Repair::Append(0)),
        ("a", false, Repair::Append(1)),
        ("x a y b", false, Repair::Append(2)),
        ("b c", false, Repair::Refill),
        ("a c b", false, Repair::Refill),
        ("c b a", false, Repair::Refill),
    ] {
        assert_eq!(compare(&lines(found), &wanted, exact), repair, "{found:?} {exact}");
    }
}

#[test]
fn two_daemons_that_share_a_chain_settle() {
    // Both sets start with the same rule, as two flannels' do.
    let sets = [lines("mark a b"), lines("mark c d")];
    let mut chain = Vec::new();
    let mut idle = 0;
    for round in 0..20 {
        let wanted = &sets[round % 2];
        match compare(&chain, wanted, round < 2) {
            Repair::Nothing => idle += 1,
            Repair::Append(present) => chain.extend_from_slice(&wanted[present..]),
            Repair::Refill => chain.clone_from(wanted),
        }
    }
    assert!(idle >= 16, "{idle} of 20 rounds had nothing to do: {chain:?}");
}

proptest! {
    #[test]
    fn a_repair_always_leads_to_the_wanted_rules(found in letters(), wanted in letters(), exact: bool) {
        let mut chain = found.clone();
        match compare(&found, &wanted, exact) {
            Repair::Nothing => {}
            Repair::Append(present) => chain.extend_from_slice(&wanted[present..]),
            Repair::Refill => chain.clone_from(&wanted),
        }
        prop_assert_eq!(compare(&chain, &wanted, exact), Repair::Nothing);
    }

    #[test]
    fn quoting_is_undone_by_iptables_restore(text in "\\PC{0,40}") {
        let line = format!("-A X {} -j Y", quoted(&text));
        prop_assert_eq!(split(&line), ["-A", "X", &text, "-j", "Y"]);
    }

    #[test]
    fn no_comment_can_begin_another_command(text in any::<String>()) {
        prop_assert_eq!(quoted(&text).lines().count(), 1);
        prop_assert_eq!(split(&quoted(&text)).len(), 1);
    }

    #[test]
    fn every_prefix_gives_rules_of_one_line(address: [u8; 16], long in 0_u8..=128, own in 0_u8..=128) {
        let v4 = std::net::Ipv4Addr::new(address[0], address[1], address[2], address[3]);
        let v6 = std::net::Ipv6Addr::from(address);
        for (ip, longest) in [(v4.into(), 32), (v6.into(), 128)] {
            let net = |prefix: u8| IpNetwork::new(ip, prefix.min(longest)).expect("a prefix");
            let nets = Nets { cluster: net(long), own: net(own) };
            for purpose in [Purpose::Masquerade, Purpose::Forward] {
                let rules = iptables(purpose, &nets, true).rules.into_iter();
                let mut all = rules.chain(nftables(purpose, &nets, true).rules);
                prop_assert!(all.all(|rule| rule.lines().count() == 1));
            }
        }
    }
}

fn lines(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn letters() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[abcd]", 0..8)
}

/// Splits a line as `iptables-restore` does: blanks separate, quotes join, a backslash in quotes escapes the
/// next character.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut in_quotes, mut any) = (Vec::new(), String::new(), false, false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => (in_quotes, any) = (!in_quotes, true),
            '\\' if in_quotes => word.extend(letters.next()),
            ' ' | '\t' if !in_quotes => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            letter => word.push(letter),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}
