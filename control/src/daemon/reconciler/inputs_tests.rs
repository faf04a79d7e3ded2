//! Each input changes the plan, and nothing else asks for a new one.

use std::net::IpAddr;

use super::super::testing::*;
use super::*;
use crate::underlay::reach::Way;

#[test]
fn every_change_of_an_input_asks_for_a_plan_and_gets_it() {
    let (moment, now) = (start(), start().instant);
    let mut inputs = inputs(1);
    take(&mut inputs);

    assert_eq!(inputs.handle_event(Event::Put(peer(2, 2)), moment), Own::Unchanged);
    assert_eq!(peers(&take(&mut inputs)), [key(2)]);

    inputs.set_underlay(underlay(1, 1400), now).expect("usable");
    assert_eq!(take(&mut inputs).subnet_env.mtu, 1350);

    inputs.set_reach(Reach::from([(IpAddr::V4(address(2)), Way::OnLink)]), now);
    assert_eq!(take(&mut inputs).direct.as_ref().expect("direct routing").routes.len(), 1);

    assert!(inputs.set_own(owned(2, None, DAY), now));
    assert_eq!(peers(&take(&mut inputs)), [], "the peer has our address now");
}

#[test]
fn what_is_no_input_asks_for_no_plan() {
    let (moment, now) = (start(), start().instant);
    let mut inputs = inputs(1);
    inputs.handle_event(Event::Put(peer(2, 2)), moment);
    let plan = take(&mut inputs);
    inputs.handle_event(Event::Put(Lease { expires: Some(7), ..peer(2, 2) }), moment);
    assert!(!inputs.set_own(owned(1, None, 2 * DAY), now), "renewed");
    inputs.set_reach(Reach::new(), now);
    assert_eq!(inputs.changed_since(), None);
    assert!(Arc::ptr_eq(&plan, &inputs.take_plan().expect("a plan")));
    assert_eq!(inputs.own().published.expires, Some(2 * DAY));
}

#[test]
fn changes_count_from_the_first() {
    let now = start();
    let mut inputs = inputs(1);
    take(&mut inputs);
    for (third, at) in [(2, now), (3, now.after(HOUR))] {
        inputs.handle_event(Event::Put(peer(third, third)), at);
        assert_eq!(inputs.changed_since(), Some(now.instant));
    }
}

/// The lease stayed out for good: nothing replanned after a publication.
#[test]
fn a_peer_with_our_former_address_becomes_a_peer_once_ours_is_another() {
    let (moment, now) = (start(), start().instant);
    let mut inputs = inputs(1);
    inputs.handle_event(Event::Put(peer(2, 1)), moment);
    assert_eq!(take(&mut inputs).ignored[0].reason, "it has our own public address 192.0.2.1");
    inputs.set_underlay(underlay(7, 1500), now).expect("usable");
    assert_eq!(take(&mut inputs).ignored.len(), 1, "published is the former address");
    inputs.set_own(owned(7, None, DAY), now);
    let plan = take(&mut inputs);
    assert_eq!((peers(&plan), plan.ignored.len()), (vec![key(2)], 0));
}

#[test]
fn an_uplink_that_cannot_carry_the_tunnels_changes_nothing() {
    let mut inputs = inputs(1);
    let plan = take(&mut inputs);
    assert!(inputs.set_underlay(underlay(7, 60), start().instant).is_err());
    assert_eq!(inputs.context().underlay, underlay(1, 1500));
    assert_eq!(inputs.outline().attrs, wish(1));
    assert!(inputs.changed_since().is_none() && Arc::ptr_eq(&plan, &take_unchanged(&mut inputs)));
}

#[test]
fn only_another_address_or_mtu_asks_for_other_tunnels() {
    let now = start().instant;
    let mut inputs = inputs(1);
    assert!(inputs.set_underlay(underlay(7, 1500), now).expect("usable"));
    assert!(inputs.set_underlay(underlay(7, 1400), now).expect("usable"));
    let renamed = Underlay { interface: "eth1".into(), ..underlay(7, 1400) };
    assert!(!inputs.set_underlay(renamed, now).expect("usable"));
}

fn inputs(host: u8) -> Inputs {
    let own = owned(host, None, DAY);
    let ledger = Ledger::new(Some(own.key()));
    Inputs::new(context(underlay(host, 1500)), own, ledger, start().instant).expect("inputs")
}

fn take(inputs: &mut Inputs) -> Arc<Plan> {
    assert!(inputs.changed_since().is_some(), "a plan is due");
    let plan = take_unchanged(inputs);
    assert_eq!(inputs.changed_since(), None);
    plan
}

fn take_unchanged(inputs: &mut Inputs) -> Arc<Plan> {
    inputs.take_plan().expect("a plan")
}

fn peers(plan: &Plan) -> Vec<model::lease::SubnetKey> {
    let subnets = plan.tunnels[0].peers.iter().map(|peer| match peer.subnet {
        ipnetwork::IpNetwork::V4(subnet) => model::lease::SubnetKey::new(Some(subnet), None).expect("a key"),
        ipnetwork::IpNetwork::V6(_) => panic!("IPv4 only"),
    });
    subnets.collect()
}
