//! Selects the interface and addresses that carry the tunnels: flannel's rules, as a pure function.
//!
//! Every `--iface` is tried, then every `--iface-regex`, then `--iface-can-reach`; the first that fits wins.
//! If none is given, the public address determines the interface, or else the default route.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use regex::Regex;

use super::{Address, Endpoint, Interface, Observed, Underlay};

/// The requests of the operator and of the network configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// `--iface`: names or addresses, tried in order.
    pub ifaces: Vec<String>,
    /// `--iface-regex`: patterns of addresses, then of names, tried in order.
    pub patterns: Vec<String>,
    /// `--iface-can-reach`; [`Observed::reached`] holds the kernel's answer.
    pub can_reach: Option<IpAddr>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
    /// IPv4 is enabled.
    pub ipv4: bool,
    /// IPv6 is enabled.
    pub ipv6: bool,
    /// The addresses chosen before. Each stays as long as the interface has it, it is usable, and the rules
    /// allow it.
    pub chosen: Chosen,
}

/// Addresses that were chosen before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
}

/// Reasons why no interface could be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// Neither an option nor a default route determines an interface.
    #[error("no {family} default route, so no interface can be chosen; set --iface NAME or --public-ip IP")]
    NoDefaultRoute {
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The two families' default routes leave by different interfaces.
    #[error(
        "the IPv4 default route leaves through {ipv4}, the IPv6 one through {ipv6}, but one interface must \
         serve both; set --iface"
    )]
    SplitDefaultRoutes {
        /// Interface of the IPv4 default route.
        ipv4: String,
        /// Interface of the IPv6 default route.
        ipv6: String,
    },
    /// No candidate fits.
    #[error("no usable interface: {}", .0.join("; "))]
    NoneFits(
        /// One sentence per candidate.
        Vec<String>,
    ),
}

/// Chooses the interface and its addresses.
pub fn select(observed: &Observed, wish: &Wish) -> Result<Underlay, SelectError> {
    let mut rejections = Vec::new();
    for candidate in candidates(observed, wish)? {
        match candidate.and_then(|candidate| complete(observed, candidate, wish)) {
            Ok(underlay) => return Ok(underlay),
            Err(rejection) => rejections.push(rejection),
        }
    }
    Err(SelectError::NoneFits(rejections))
}

/// An interface, with the addresses that the wish already determines.
struct Candidate<'a> {
    interface: &'a Interface,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

fn candidates<'a>(
    observed: &'a Observed,
    wish: &Wish,
) -> Result<Vec<Result<Candidate<'a>, String>>, SelectError> {
    let named = wish.ifaces.iter().map(|value| by_value(observed, wish, "--iface", value));
    let matched = wish.patterns.iter().map(|pattern| by_pattern(observed, wish, pattern));
    let reached = wish.can_reach.iter().map(|target| by_reach(observed, wish, *target));
    let asked: Vec<_> = named.chain(matched).chain(reached).collect();
    if !asked.is_empty() {
        return Ok(asked);
    }
    if let Some(ip) = wish.public_ip {
        return Ok(vec![by_value(observed, wish, "--public-ip", &ip.to_string())]);
    }
    if let Some(ip) = wish.public_ipv6 {
        return Ok(vec![by_value(observed, wish, "--public-ipv6", &ip.to_string())]);
    }
    let interface = by_default_route(observed, wish)?;
    Ok(vec![Ok(Candidate { interface, ipv4: None, ipv6: None })])
}

fn by_value<'a>(
    observed: &'a Observed,
    wish: &Wish,
    flag: &str,
    value: &str,
) -> Result<Candidate<'a>, String> {
    let Ok(ip) = value.parse::<IpAddr>() else {
        let interface = observed.interfaces.iter().find(|interface| interface.name == value);
        return match interface {
            Some(interface) => Ok(Candidate { interface, ipv4: None, ipv6: None }),
            None => Err(format!("{flag} {value}: no interface has this name")),
        };
    };
    let holder = holder(observed, ip).ok_or_else(|| {
        let advice =
            if flag == "--iface" { "" } else { " (an address outside this host needs --iface as well)" };
        format!("{flag} {value}: no interface has this address{advice}")
    })?;
    match ip {
        IpAddr::V4(_) if !wish.ipv4 => {
            Err(format!("{flag} {value}: IPv4 is disabled in the network configuration"))
        }
        IpAddr::V6(_) if !wish.ipv6 => {
            Err(format!("{flag} {value}: IPv6 is disabled in the network configuration"))
        }
        IpAddr::V4(ipv4) => {
            // In dual stack the same interface must also have the IPv6 public address.
            if let Some(ipv6) = wish.public_ipv6.filter(|_| wish.ipv6) {
                if !has_address(holder, ipv6.into()) {
                    return Err(format!("{flag} {value}: interface {} does not have {ipv6}", holder.name));
                }
                return Ok(Candidate { interface: holder, ipv4: Some(ipv4), ipv6: Some(ipv6) });
            }
            Ok(Candidate { interface: holder, ipv4: Some(ipv4), ipv6: None })
        }
        IpAddr::V6(ipv6) => Ok(Candidate { interface: holder, ipv4: None, ipv6: Some(ipv6) }),
    }
}

/// Matches the pattern, unanchored, against addresses first (in dual stack one of each family on the same
/// interface), then against names.
fn by_pattern<'a>(observed: &'a Observed, wish: &Wish, pattern: &str) -> Result<Candidate<'a>, String> {
    let regex = Regex::new(pattern).map_err(|error| format!("--iface-regex {pattern}: {error}"))?;
    let matches = |ip: IpAddr| regex.is_match(&ip.to_string());
    for interface in &observed.interfaces {
        let ipv4 = first(interface, wish.chosen.ipv4, ipv4_of, |ip| matches(ip.into()));
        let ipv6 = first(interface, wish.chosen.ipv6, ipv6_of, |ip| matches(ip.into()));
        let (ipv4, ipv6) = (ipv4.filter(|_| wish.ipv4), ipv6.filter(|_| wish.ipv6));
        if ipv4.is_some() == wish.ipv4 && ipv6.is_some() == wish.ipv6 {
            return Ok(Candidate { interface, ipv4, ipv6 });
        }
    }
    let named = observed.interfaces.iter().find(|interface| regex.is_match(&interface.name));
    let interface =
        named.ok_or_else(|| format!("--iface-regex {pattern}: no interface address or name matches"))?;
    Ok(Candidate { interface, ipv4: None, ipv6: None })
}

/// Returns the interface of the route to `target` and, for the target's family, the route's source address.
fn by_reach<'a>(observed: &'a Observed, wish: &Wish, target: IpAddr) -> Result<Candidate<'a>, String> {
    let rejected = |why: &str| format!("--iface-can-reach {target}: {why}");
    let reached = match &observed.reached {
        Some(Ok(reached)) => reached,
        Some(Err(why)) => return Err(rejected(why)),
        None => return Err(rejected("the route has not been looked up")),
    };
    let interface = observed.interfaces.iter().find(|interface| interface.index == reached.interface);
    let interface =
        interface.ok_or_else(|| rejected("the route leaves through an interface that is gone"))?;
    let (ipv4, ipv6) = match reached.source {
        Some(IpAddr::V4(ip)) => (Some(ip).filter(|_| wish.ipv4), None),
        Some(IpAddr::V6(ip)) => (None, Some(ip).filter(|_| wish.ipv6)),
        None => (None, None),
    };
    Ok(Candidate { interface, ipv4, ipv6 })
}

fn by_default_route<'a>(observed: &'a Observed, wish: &Wish) -> Result<&'a Interface, SelectError> {
    let outgoing = |ipv6: bool, family| {
        let route = observed.default_routes.iter().find(|route| route.ipv6 == ipv6);
        route
            .and_then(|route| observed.interfaces.iter().find(|interface| interface.index == route.interface))
            .ok_or(SelectError::NoDefaultRoute { family })
    };
    match (wish.ipv4, wish.ipv6) {
        (true, true) => {
            let (ipv4, ipv6) = (outgoing(false, "IPv4")?, outgoing(true, "IPv6")?);
            if ipv4.name != ipv6.name {
                return Err(SelectError::SplitDefaultRoutes {
                    ipv4: ipv4.name.clone(),
                    ipv6: ipv6.name.clone(),
                });
            }
            Ok(ipv4)
        }
        (false, true) => outgoing(true, "IPv6"),
        _ => outgoing(false, "IPv4"),
    }
}

fn complete(observed: &Observed, candidate: Candidate<'_>, wish: &Wish) -> Result<Underlay, String> {
    let interface = candidate.interface;
    if interface.mtu == 0 {
        return Err(format!("{}: its MTU is 0", interface.name));
    }
    let missing =
        |family: &str| format!("{}: no usable {family} address, but {family} is enabled", interface.name);
    let ipv4 = match wish.ipv4 {
        false => None,
        true => {
            let local = candidate
                .ipv4
                .or_else(|| choose(interface, wish.chosen.ipv4, ipv4_of))
                .ok_or_else(|| missing("IPv4"))?;
            Some(endpoint(observed, local, wish.public_ip))
        }
    };
    let ipv6 = match wish.ipv6 {
        false => None,
        true => {
            let local = candidate
                .ipv6
                .or_else(|| choose(interface, wish.chosen.ipv6, ipv6_of))
                .ok_or_else(|| missing("IPv6"))?;
            Some(endpoint(observed, local, wish.public_ipv6))
        }
    };
    Ok(Underlay { interface: interface.name.clone(), index: interface.index, mtu: interface.mtu, ipv4, ipv6 })
}

fn endpoint<A: Copy + Into<IpAddr>>(observed: &Observed, local: A, public: Option<A>) -> Endpoint<A> {
    let source = public.filter(|public| holder(observed, (*public).into()).is_some()).unwrap_or(local);
    Endpoint { source, public: public.unwrap_or(local), local }
}

/// Returns the address chosen before, while it is usable, else the best one. A link-local address gives way
/// as soon as there is another.
fn choose<A: Copy + PartialEq>(
    interface: &Interface,
    chosen: Option<A>,
    of_family: fn(IpAddr) -> Option<A>,
) -> Option<A> {
    let best = best(interface, of_family);
    let global =
        |ip: &A| usable(interface).any(|other| of_family(other.ip) == Some(*ip) && !is_link_local(other));
    chosen
        .filter(|ip| first(interface, Some(*ip), of_family, |other| other == *ip).is_some())
        .filter(global)
        .or(best)
}

/// Returns the usable address that is allowed: the one chosen before, else the first in the kernel's order.
fn first<A: Copy + PartialEq>(
    interface: &Interface,
    chosen: Option<A>,
    of_family: fn(IpAddr) -> Option<A>,
    allowed: impl Fn(A) -> bool,
) -> Option<A> {
    let all = || usable(interface).filter_map(|address| of_family(address.ip)).filter(|ip| allowed(*ip));
    all().find(|ip| chosen == Some(*ip)).or_else(|| all().next())
}

/// Returns the address that flannel would choose: global before link-local, permanent before dynamic, stable
/// before temporary, and otherwise the first in the kernel's order. Unlike flannel, an IPv4 address with a
/// subnet comes before one without: that may be on another host tomorrow.
fn best<A>(interface: &Interface, of_family: fn(IpAddr) -> Option<A>) -> Option<A> {
    usable(interface)
        .filter_map(|address| of_family(address.ip).map(|ip| (rank(address), ip)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, ip)| ip)
}

fn usable(interface: &Interface) -> impl Iterator<Item = &Address> {
    interface.addresses.iter().filter(|address| !address.deprecated && is_unicast(address.ip))
}

fn rank(address: &Address) -> impl Ord + Copy + use<> {
    (is_link_local(address), address.alone, Reverse(address.permanent), address.temporary)
}

fn ipv4_of(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

fn ipv6_of(ip: IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => Some(ip),
    }
}

fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !ip.is_broadcast()
        }
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast(),
    }
}

fn is_link_local(address: &Address) -> bool {
    address.link_scope
        || match address.ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        }
}

fn holder(observed: &Observed, ip: IpAddr) -> Option<&Interface> {
    observed.interfaces.iter().find(|interface| has_address(interface, ip))
}

fn has_address(interface: &Interface, ip: IpAddr) -> bool {
    interface.addresses.iter().any(|address| address.ip == ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::underlay::{DefaultRoute, Reached};

    #[test]
    fn without_flags_the_default_route_chooses() {
        let chosen = select(&host(), &v4()).expect("eth0 fits");
        assert_eq!(chosen.interface, "eth0");
        assert_eq!(chosen.mtu, 1500);
        assert_eq!(chosen.ipv4, Some(same("192.0.2.7")));
        assert_eq!(chosen.ipv6, None);
    }

    #[test]
    fn the_first_default_route_wins() {
        let mut host = host();
        host.default_routes.insert(0, DefaultRoute { ipv6: false, interface: 3 });
        assert_eq!(select(&host, &v4()).expect("eth1 fits").interface, "eth1");
    }

    #[test]
    fn without_a_default_route_the_error_asks_for_an_option() {
        let host = Observed { default_routes: vec![], ..host() };
        let error = select(&host, &v4()).expect_err("nothing determines an interface");
        assert_eq!(error, SelectError::NoDefaultRoute { family: "IPv4" });
        assert!(error.to_string().contains("--iface"), "{error}");
    }

    #[test]
    fn iface_by_name_then_by_address() {
        let by_name = Wish { ifaces: vec!["eth1".into()], ..v4() };
        assert_eq!(select(&host(), &by_name).expect("eth1 fits").ipv4, Some(same("198.51.100.7")));
        let by_address = Wish { ifaces: vec!["198.51.100.8".into()], ..v4() };
        assert_eq!(select(&host(), &by_address).expect("eth1 fits").ipv4, Some(same("198.51.100.8")));
    }

    #[test]
    fn the_first_iface_that_fits_wins_and_misses_are_reported() {
        let second = Wish { ifaces: vec!["nosuch0".into(), "eth1".into()], ..v4() };
        assert_eq!(select(&host(), &second).expect("eth1 fits").interface, "eth1");
        let none = Wish { ifaces: vec!["nosuch0".into(), "203.0.113.9".into()], ..v4() };
        let error = select(&host(), &none).expect_err("neither exists").to_string();
        assert!(error.contains("nosuch0") && error.contains("203.0.113.9"), "{error}");
    }

    #[test]
    fn a_public_address_on_the_host_names_the_interface() {
        let wish = Wish { public_ip: Some([198, 51, 100, 8].into()), ..v4() };
        let chosen = select(&host(), &wish).expect("eth1 holds it");
        assert_eq!((chosen.interface.as_str(), chosen.ipv4), ("eth1", Some(same("198.51.100.8"))));
    }

    #[test]
    fn a_public_address_elsewhere_needs_an_interface() {
        let nat = Wish { public_ip: Some([203, 0, 113, 9].into()), ..v4() };
        let error = select(&host(), &nat).expect_err("not on this host").to_string();
        assert!(error.contains("needs --iface as well"), "{error}");
        let with_iface = Wish { ifaces: vec!["eth0".into()], ..nat };
        let chosen = select(&host(), &with_iface).expect("eth0 fits");
        let behind_nat = Endpoint {
            source: [192, 0, 2, 7].into(),
            public: [203, 0, 113, 9].into(),
            local: [192, 0, 2, 7].into(),
        };
        assert_eq!(chosen.ipv4, Some(behind_nat));
    }

    #[test]
    fn dual_stack_wants_one_interface_for_both() {
        let chosen = select(&host(), &dual()).expect("eth0 carries both");
        assert_eq!(chosen.ipv6.map(|end| end.source), Some("2001:db8::7".parse().expect("address")));
        let mut split = host();
        split.default_routes[1].interface = 3;
        let error = select(&split, &dual()).expect_err("routes differ");
        assert_eq!(error, SelectError::SplitDefaultRoutes { ipv4: "eth0".into(), ipv6: "eth1".into() });
    }

    #[test]
    fn dual_stack_public_addresses_must_share_the_interface() {
        let public_ipv6: Ipv6Addr = "2001:db8::7".parse().expect("address");
        let apart =
            Wish { public_ip: Some([198, 51, 100, 7].into()), public_ipv6: Some(public_ipv6), ..dual() };
        assert!(matches!(select(&host(), &apart), Err(SelectError::NoneFits(_))));
        let together = Wish { public_ip: Some([192, 0, 2, 7].into()), ..apart };
        assert_eq!(select(&host(), &together).expect("eth0 holds both").interface, "eth0");
    }

    #[test]
    fn an_ipv6_literal_in_dual_stack_still_finds_an_ipv4_address() {
        let wish = Wish { ifaces: vec!["2001:db8::7".into()], ..dual() };
        assert_eq!(select(&host(), &wish).expect("eth0 fits").ipv4, Some(same("192.0.2.7")));
        let off = Wish { ifaces: vec!["2001:db8::7".into()], ..v4() };
        assert!(select(&host(), &off).expect_err("IPv6 is off").to_string().contains("IPv6 is disabled"));
    }

    #[test]
    fn a_pattern_matches_addresses_first_then_names() {
        let by =
            |pattern: &str, wish: Wish| select(&host(), &Wish { patterns: vec![pattern.into()], ..wish });
        let chosen = by(r"^198\.51\.100\.8$", v4()).expect("an address of eth1");
        assert_eq!((chosen.interface.as_str(), chosen.ipv4), ("eth1", Some(same("198.51.100.8"))));
        // Unanchored; a name gets the interface's best address.
        assert_eq!(by("th1", v4()).expect("a name").ipv4, Some(same("198.51.100.7")));
        // Neither a loopback address nor an address of a disabled family is a candidate.
        assert!(by("^127", v4()).is_err() && by("^2001", v4()).is_err());
        let nat = Wish { public_ip: Some([203, 0, 113, 9].into()), ..v4() };
        let chosen = by("51.100.8", nat).expect("an address of eth1").ipv4.expect("IPv4");
        assert_eq!((chosen.source.octets()[3], chosen.public.octets()[3]), (8, 9));
    }

    #[test]
    fn a_pattern_in_dual_stack_takes_one_address_of_each_family_or_a_name() {
        let by = |pattern: &str| select(&host(), &Wish { patterns: vec![pattern.into()], ..dual() });
        let chosen = by(r"^192\.0\.2\.|^2001:db8:").expect("both on eth0");
        assert_eq!(chosen.ipv6.map(|ends| ends.local.to_string()).as_deref(), Some("2001:db8::7"));
        assert!(by(r"^192\.0\.2\.").is_err(), "no IPv6 address matches, and no name");
        assert_eq!(by("eth0").expect("a name").interface, "eth0");
    }

    #[test]
    fn a_bad_pattern_is_skipped_and_an_empty_one_matches_all() {
        let wish = Wish { patterns: vec!["(".into(), "eth1".into()], ..v4() };
        assert_eq!(select(&host(), &wish).expect("the second").interface, "eth1");
        let only = Wish { patterns: vec!["(".into()], ..v4() };
        let error = select(&host(), &only).expect_err("no pattern").to_string();
        assert!(error.contains("--iface-regex ("), "{error}");
        assert_eq!(
            select(&host(), &Wish { patterns: vec![String::new()], ..v4() }).expect("any").interface,
            "eth0"
        );
    }

    #[test]
    fn names_then_patterns_then_reach() {
        let wish = Wish {
            ifaces: vec!["nosuch0".into()],
            patterns: vec!["nosuch".into()],
            can_reach: Some([198, 51, 100, 1].into()),
            ..v4()
        };
        let host = reaching(3, Some("198.51.100.8"));
        assert_eq!(select(&host, &wish).expect("eth1").ipv4, Some(same("198.51.100.8")));
        let earlier = Wish { patterns: vec!["eth0".into()], ..wish };
        assert_eq!(select(&host, &earlier).expect("eth0").interface, "eth0");
    }

    #[test]
    fn the_way_to_an_address_in_every_mix_of_families() {
        let to = |ip: &str, wish: Wish| Wish { can_reach: ip.parse().ok(), ..wish };
        let v6 = reaching(2, Some("2001:db8::7"));
        let chosen = select(&v6, &to("2001:db8::1", dual())).expect("eth0");
        assert_eq!(chosen.ipv4, Some(same("192.0.2.7")), "the other family is looked up");
        // The route of a disabled family still determines an interface.
        assert_eq!(select(&v6, &to("2001:db8::1", v4())).expect("eth0").ipv4, Some(same("192.0.2.7")));
        assert!(select(&reaching(9, None), &to("192.0.2.1", v4())).is_err(), "an interface that is gone");
        let unreachable = Observed { reached: Some(Err("Network is unreachable".into())), ..host() };
        let error = select(&unreachable, &to("192.0.2.1", v4())).expect_err("no route").to_string();
        assert!(error.contains("--iface-can-reach 192.0.2.1: Network is unreachable"), "{error}");
        assert!(select(&host(), &to("192.0.2.1", v4())).is_err());
    }

    #[test]
    fn addresses_rank_global_then_permanent_then_stable() {
        let ranked = [
            at("fe80::1", |a| a.link_scope = true),
            at("2001:db8::dead", |a| a.deprecated = true),
            at("2001:db8::beef", |a| (a.permanent, a.temporary) = (false, true)),
            at("2001:db8::5", |a| a.permanent = false),
            at("2001:db8::9", |_| {}),
            at("2001:db8::8", |_| {}),
        ];
        // Worst to best is the order above, except that equals keep the kernel's order.
        let best_of = |count: usize| {
            let interface = Interface { addresses: ranked[..count].to_vec(), ..host().interfaces[0].clone() };
            best(&interface, ipv6_of).map(|ip| ip.to_string())
        };
        assert_eq!(best_of(2).as_deref(), Some("fe80::1"));
        assert_eq!(best_of(3).as_deref(), Some("2001:db8::beef"));
        assert_eq!(best_of(4).as_deref(), Some("2001:db8::5"));
        assert_eq!(best_of(6).as_deref(), Some("2001:db8::9"));
    }

    /// An address from DHCP, and one that keepalived adds for a while.
    #[test]
    fn a_virtual_address_that_comes_later_is_not_chosen() {
        let dynamic = at("192.0.2.7", |a| a.permanent = false);
        let virtual_ip = at("192.0.2.100", |a| a.alone = true);
        let other = at("192.0.2.9", |_| {});
        let chosen_of = |addresses: Vec<Address>, chosen: Option<&str>, by: Wish| {
            let mut host = host();
            host.interfaces[1].addresses = addresses;
            let ipv4 = chosen.map(|ip| ip.parse().expect("address"));
            let wish = Wish { chosen: Chosen { ipv4, ipv6: None }, ..by };
            select(&host, &wish).expect("eth0 fits").ipv4.expect("IPv4").public.to_string()
        };
        let pattern = || Wish { patterns: vec![r"^192\.0\.2\.".into()], ..v4() };
        let named = || Wish { ifaces: vec!["eth0".into()], ..v4() };
        for by in [v4, named, pattern] {
            for addresses in
                [vec![dynamic, virtual_ip], vec![virtual_ip, dynamic], vec![virtual_ip, other, dynamic]]
            {
                assert_eq!(chosen_of(addresses, Some("192.0.2.7"), by()), "192.0.2.7");
            }
            // Ours is gone, or was never chosen.
            assert_eq!(chosen_of(vec![virtual_ip], Some("192.0.2.7"), by()), "192.0.2.100");
        }
        for by in [v4, named] {
            assert_eq!(chosen_of(vec![virtual_ip, dynamic], None, by()), "192.0.2.7");
            let gone = at("192.0.2.7", |a| a.deprecated = true);
            assert_eq!(chosen_of(vec![gone, virtual_ip, other], Some("192.0.2.7"), by()), "192.0.2.9");
            // A host whose own address has no subnet keeps it too.
            assert_eq!(chosen_of(vec![virtual_ip, other], Some("192.0.2.100"), by()), "192.0.2.100");
            let link_local = at("169.254.7.7", |a| a.link_scope = true);
            assert_eq!(chosen_of(vec![link_local, virtual_ip], Some("169.254.7.7"), by()), "192.0.2.100");
            assert_eq!(chosen_of(vec![link_local], Some("169.254.7.7"), by()), "169.254.7.7");
        }
    }

    #[test]
    fn an_ipv6_address_stays_chosen_too() {
        let mut host = host();
        host.interfaces[1].addresses.push(at("2001:db8::100", |_| {}));
        host.interfaces[1].addresses[2].permanent = false;
        let public =
            |chosen| select(&host, &Wish { chosen, ..dual() }).expect("eth0").ipv6.expect("IPv6").public;
        assert_eq!(public(Chosen::default()), "2001:db8::100".parse::<Ipv6Addr>().expect("address"));
        let before = "2001:db8::7".parse().expect("address");
        assert_eq!(public(Chosen { ipv4: None, ipv6: Some(before) }), before);
    }

    #[test]
    fn an_interface_without_an_address_or_mtu_is_refused() {
        let loopback = Wish { ifaces: vec!["lo".into()], ..v4() };
        assert!(select(&host(), &loopback).expect_err("only 127.0.0.1").to_string().contains("IPv4 address"));
        let mut host = host();
        host.interfaces[1].mtu = 0;
        assert!(select(&host, &v4()).expect_err("MTU 0").to_string().contains("MTU is 0"));
    }

    fn host() -> Observed {
        let interface =
            |index, name: &str, addresses| Interface { index, name: name.into(), mtu: 1500, addresses };
        Observed {
            interfaces: vec![
                interface(1, "lo", vec![at("127.0.0.1", |_| {}), at("::1", |_| {})]),
                interface(
                    2,
                    "eth0",
                    vec![
                        at("192.0.2.7", |_| {}),
                        at("fe80::7", |a| a.link_scope = true),
                        at("2001:db8::7", |_| {}),
                    ],
                ),
                interface(
                    3,
                    "eth1",
                    vec![at("198.51.100.7", |_| {}), at("198.51.100.8", |a| a.temporary = true)],
                ),
            ],
            default_routes: vec![
                DefaultRoute { ipv6: false, interface: 2 },
                DefaultRoute { ipv6: true, interface: 2 },
            ],
            reached: None,
        }
    }

    fn reaching(interface: u32, source: Option<&str>) -> Observed {
        let source = source.map(|ip| ip.parse().expect("address"));
        Observed { reached: Some(Ok(Reached { interface, source })), ..host() }
    }

    fn at(ip: &str, change: impl FnOnce(&mut Address)) -> Address {
        let ip = ip.parse().expect("address");
        let mut address = Address {
            ip,
            link_scope: false,
            permanent: true,
            temporary: false,
            deprecated: false,
            alone: false,
        };
        change(&mut address);
        address
    }

    fn same(ip: &str) -> Endpoint<Ipv4Addr> {
        let ip = ip.parse().expect("address");
        Endpoint { source: ip, public: ip, local: ip }
    }

    fn v4() -> Wish {
        Wish { ipv4: true, ..Wish::default() }
    }

    fn dual() -> Wish {
        Wish { ipv6: true, ..v4() }
    }
}
