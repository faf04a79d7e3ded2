//! Whatever happens, in whatever order: in the end the host is as a plan made from scratch would have it.

use std::time::Duration;

use model::lease::Lease;
use proptest::prelude::*;

use super::testing::*;
use super::world::World;

/// One thing that happens to a node.
#[derive(Clone, Debug)]
enum Happening {
    Uplink(Result<(u8, u32), &'static str>),
    Routes(u8),
    CannotOpen(bool),
    CannotApply(bool),
    KernelSilent(bool),
    DeviceGone,
    Peer { third: u8, host: u8 },
    PeerGone(u8),
    OwnRemoved,
    OwnExpiresLater,
    Overwrite(Option<u8>),
    StoreDown(bool),
    Relisted,
    RequestServed,
    AnswerArrives { lost: bool },
    EventsArrive(usize),
    Wait(Duration),
    Suspend(Duration),
}

use Happening::*;

impl World {
    fn happen(&mut self, happening: Happening) {
        match happening {
            Uplink(uplink) => {
                self.host.uplink = uplink.map(|(host, mtu)| underlay(host, mtu)).map_err(String::from)
            }
            Routes(routes) => self.host.routes = routes,
            CannotOpen(so) => self.host.cannot_open = so,
            CannotApply(so) => self.host.cannot_apply = so,
            KernelSilent(so) => self.host.silent = so,
            DeviceGone => self.host.device_gone = true,
            Peer { third, host } => self.store.put(peer(third, host)),
            PeerGone(third) => self.store.remove(key(third)),
            OwnRemoved => self.store.remove(key(1)),
            OwnExpiresLater => self.rewrite_own(|own| own.expires = own.expires.map(|expires| expires + 60)),
            Overwrite(by) if self.store.by_node => {
                self.store.overwrite = by;
                self.rewrite_own(|own| own.attrs.public_ip = by.map_or(own.attrs.public_ip, address));
            }
            Overwrite(_) => {}
            StoreDown(so) => self.store.down = so,
            Relisted => self.store.list(),
            RequestServed => self.serve(),
            AnswerArrives { lost } => self.answer(lost).expect("goes on"),
            EventsArrive(most) => self.deliver(most).expect("goes on"),
            Wait(time) => self.wait(time),
            Suspend(time) => self.sleep(self.now.instant + time),
        }
        if matches!(happening, Uplink(_) | Routes(_) | DeviceGone) && self.node.wants_reports() {
            self.node.handle_report(self.now);
        }
        self.act();
    }

    fn rewrite_own(&mut self, change: impl FnOnce(&mut Lease)) {
        if let Some(mut own) = self.store.rows.get(&key(1)).cloned() {
            change(&mut own);
            self.store.put(own);
        }
    }

    /// Nothing is out of order any more, and all that is on its way arrives.
    fn heal(&mut self) {
        (self.store.down, self.host.cannot_open, self.host.cannot_apply) = (false, false, false);
        self.host.silent = false;
        if !matches!(&self.host.uplink, Ok(uplink) if uplink.mtu >= 1400) {
            self.happen(Uplink(Ok((8, 1500))));
        }
        self.settle(Duration::from_secs(200));
    }

    fn settle(&mut self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.serve();
            self.answer(false).expect("goes on");
            self.deliver(usize::MAX).expect("goes on");
            self.wait(Duration::from_secs(1));
        }
    }

    fn check(&self) {
        let (context, plan) = self.expected();
        let applied = self.host.applied.as_ref().expect("applied");
        assert_eq!(**applied, plan, "applied, and from scratch");
        let outline = crate::plan::outline(&context).expect("an outline");
        assert_eq!(self.host.opened, outline.tunnels, "tunnels that are open");
        let own = self.node.inputs().own();
        assert_eq!((&own.wished, &own.published.attrs), (&outline.attrs, &self.store.rows[&key(1)].attrs));
        if let Some(recorded) = &self.recorded {
            assert_eq!((&recorded.wished, &recorded.published.attrs), (&own.wished, &own.published.attrs));
        }
        assert_eq!(self.node.problems().into_values().collect::<Vec<_>>(), [""; 0]);
    }
}

fn happening() -> impl Strategy<Value = Happening> {
    let host = || prop::sample::select(vec![1_u8, 2, 3, 7, 8]);
    let uplink = prop_oneof![
        4 => (prop::sample::select(vec![1_u8, 7, 8]), prop::sample::select(vec![1500, 1400])).prop_map(Ok),
        1 => Just(Err("no default route")),
        1 => Just(Ok((7, 60))),
    ];
    prop_oneof![
        5 => uplink.prop_map(Uplink),
        1 => (0..2_u8).prop_map(Routes),
        1 => any::<bool>().prop_map(CannotOpen),
        1 => any::<bool>().prop_map(CannotApply),
        1 => any::<bool>().prop_map(KernelSilent),
        1 => Just(DeviceGone),
        5 => (2..6_u8, host()).prop_map(|(third, host)| Peer { third, host }),
        2 => (2..6_u8).prop_map(PeerGone),
        1 => Just(OwnRemoved),
        1 => Just(OwnExpiresLater),
        2 => prop::option::of(host()).prop_map(Overwrite),
        1 => any::<bool>().prop_map(StoreDown),
        1 => Just(Relisted),
        4 => Just(RequestServed),
        4 => prop::bool::weighted(0.2).prop_map(|lost| AnswerArrives { lost }),
        4 => (1..4_usize).prop_map(EventsArrive),
        6 => (1..20_u64).prop_map(|seconds| Wait(Duration::from_millis(seconds * 500))),
        1 => (1..40_u64).prop_map(|hours| Suspend(HOUR * hours as u32)),
    ]
}

proptest! {
    /// After any sequence of uplink, lease and publication events the applied plan equals the plan made from
    /// scratch of the final inputs; and a node that has settled writes nothing to the store and applies
    /// nothing out of turn.
    #[test]
    fn the_applied_plan_is_that_of_the_final_inputs(
        by_node: bool,
        remembered: bool,
        happenings in prop::collection::vec(happening(), 0..60),
    ) {
        let mut world = World::new(by_node, remembered);
        happenings.into_iter().for_each(|happening| world.happen(happening));
        world.heal();
        world.check();
        let (writes, applications) = (world.store.writes, world.host.applications);
        world.settle(Duration::from_secs(600));
        world.check();
        prop_assert_eq!(world.store.writes, writes, "a settled node has nothing to publish");
        prop_assert!(world.host.applications <= applications + 11, "once a minute");
    }
}

/// A kernel that does not answer says nothing about a peer: its route stays, and is looked at soon.
#[test]
fn a_peer_is_not_given_up_because_the_kernel_does_not_answer() {
    let mut world = World::new(false, false);
    world.happen(Peer { third: 2, host: 3 });
    world.settle(Duration::from_secs(2));
    world.check();
    let before = world.host.applied.clone().expect("applied");
    world.happen(KernelSilent(true));
    world.happen(Peer { third: 3, host: 5 });
    world.happen(EventsArrive(1));
    world.wait(Duration::from_secs(20));
    let now = world.host.applied.clone().expect("applied");
    let routes = |plan: &crate::plan::Plan| plan.direct.as_ref().map(|direct| direct.routes.clone());
    assert!(routes(&before).is_some_and(|routes| !routes.is_empty()), "{before:?}");
    assert_eq!(routes(&now), routes(&before));
    assert_eq!(world.node.problems().len(), 1, "{:?}", world.node.problems());
    world.happen(KernelSilent(false));
    world.settle(Duration::from_secs(6));
    world.check();
}

/// The case from the field: nothing replanned after a publication, and the peer had no route for good.
#[test]
fn a_peer_at_our_former_address_gets_its_route_when_ours_has_changed() {
    let mut world = World::new(false, false);
    world.happen(Peer { third: 2, host: 1 });
    world.settle(Duration::from_secs(2));
    assert_eq!(world.host.applied.as_ref().expect("applied").ignored.len(), 1);
    world.happen(Uplink(Ok((7, 1500))));
    world.settle(Duration::from_secs(15));
    assert_eq!(world.host.applied.as_ref().expect("applied").ignored, []);
    world.check();
}

#[test]
fn an_overwritten_address_neither_ends_the_node_nor_makes_it_write() {
    let mut world = World::new(true, false);
    let writes = world.store.writes;
    world.happen(Overwrite(Some(99)));
    world.settle(Duration::from_secs(600));
    world.check();
    assert_eq!(world.store.writes, writes);
    assert_eq!(world.node.inputs().own().published.attrs.public_ip, address(99));
    // A changed uplink is published once, and the administrator's address stays.
    world.happen(Uplink(Ok((7, 1500))));
    world.settle(Duration::from_secs(600));
    world.check();
    assert_eq!(world.store.writes, writes + 1);
    assert_eq!(world.node.inputs().own().published.attrs.public_ip, address(99));
}

/// The administrator's event overtakes the answer to our own publication.
#[test]
fn an_answer_that_arrives_after_a_later_event_does_not_bring_back_what_was_published_before() {
    let mut world = World::new(true, false);
    world.happen(Uplink(Ok((7, 1500))));
    world.wait(Duration::from_secs(10));
    for happening in [RequestServed, Overwrite(Some(99)), EventsArrive(2), AnswerArrives { lost: false }] {
        world.happen(happening);
    }
    world.settle(Duration::from_secs(2));
    world.check();
}

/// The store has published our new address, and the connection that it left by took the answer along.
#[test]
fn a_publication_whose_answer_gets_lost_does_not_end_the_node() {
    for event_is_late in [false, true] {
        let mut world = World::new(false, false);
        world.happen(Uplink(Ok((7, 1500))));
        world.wait(Duration::from_secs(10));
        world.happen(RequestServed);
        world.happen(AnswerArrives { lost: true });
        if event_is_late {
            for _ in 0..20 {
                world.wait(Duration::from_secs(1));
                world.happen(RequestServed);
                world.happen(AnswerArrives { lost: false });
            }
        }
        world.settle(Duration::from_secs(20));
        world.check();
    }
}

#[test]
fn a_removed_device_is_made_again_at_once_and_tried_once_a_comparison() {
    let mut world = World::new(false, false);
    world.wait(Duration::from_secs(60));
    world.happen(DeviceGone);
    let applications = world.host.applications;
    world.wait(Duration::from_secs(1));
    assert_eq!((world.host.applications, world.host.device_gone), (applications + 2, false));
    world.happen(CannotOpen(true));
    world.happen(DeviceGone);
    let applications = world.host.applications;
    world.wait(Duration::from_secs(60));
    assert!((12..=26).contains(&(world.host.applications - applications)), "{}", world.host.applications);
    world.heal();
    world.check();
}

#[test]
fn a_lease_that_ran_out_while_the_machine_slept_is_acquired_again() {
    let mut world = World::new(false, false);
    world.happen(Suspend(HOUR * 30));
    world.settle(Duration::from_secs(5));
    world.check();
    assert_eq!(world.store.writes, 1);
}
