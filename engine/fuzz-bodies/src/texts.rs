//! Targets for texts written by other programs.

use model::backend::VxlanData;
use model::lease::{LeaseAttrs, RawJson, SubnetKey};
use model::uapi::{self, Asked};
use model::{net_config, subnet_env as env};

/// Parses a network configuration. An accepted one must be usable; a rejected one must have an error text.
pub fn net_conf(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match net_config::parse(text) {
        Ok((config, _)) => {
            assert!(config.ipv4.is_some() || config.ipv6.is_some());
            if let Some(pool) = config.ipv4 {
                assert!((pool.network.prefix() + 2..=30).contains(&pool.subnet_len));
                assert!(pool.network.contains(pool.subnet_min) && pool.network.contains(pool.subnet_max));
            }
            if let Some(pool) = config.ipv6 {
                assert!((pool.network.prefix() + 2..=126).contains(&pool.subnet_len));
                assert!(pool.network.contains(pool.subnet_min) && pool.network.contains(pool.subnet_max));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Feeds a client's request to the control socket in pieces. It must get one answer, which depends only on
/// the bytes received so far.
pub fn control_socket(data: &[u8]) {
    let Some((&size, request)) = data.split_first() else { return };
    let mut received = Vec::new();
    for piece in request.chunks(usize::from(size) + 1) {
        received.extend_from_slice(piece);
        match uapi::read(&received) {
            Asked::Unfinished => assert!(received.len() <= uapi::LONGEST),
            Asked::Get => return assert!(received.starts_with(b"get=1\n") && received.ends_with(b"\n\n")),
            Asked::Other => return assert!(!received.starts_with(b"get=1\n")),
            Asked::TooMuch => return assert!(received.len() > uapi::LONGEST),
        }
    }
}

/// Parses a `subnet.env`. The values read must survive being written and read again.
pub fn subnet_env(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = env::parse(text);
    assert!(read.problems.iter().all(|problem| !problem.to_string().is_empty()));
    let written = env::render(&env::SubnetEnv {
        ipv4: read.network().zip(read.subnet()),
        ipv6: read.ipv6_network().zip(read.ipv6_subnet()),
        mtu: read.mtu.unwrap_or(1450),
        ip_masq: read.ip_masq.unwrap_or(false),
    });
    let again = env::parse(&written);
    assert!(again.problems.is_empty(), "{written:?}");
    assert_eq!(again.network().zip(again.subnet()).is_some(), read.network().zip(read.subnet()).is_some());
    assert_eq!(again.mtu, Some(read.mtu.unwrap_or(1450)));
}

/// Parses a lease's stored value and its backend data. Both must survive being written and read again.
pub fn lease_value(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let attrs = match LeaseAttrs::parse(text) {
        Ok(attrs) => attrs,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let written = attrs.to_json();
    assert_eq!(LeaseAttrs::parse(&written).as_ref(), Ok(&attrs), "{written}");
    for data in [&attrs.backend_data, &attrs.backend_v6_data].into_iter().flatten() {
        if let Ok(vxlan) = VxlanData::parse(data.as_str()) {
            assert_eq!(VxlanData::parse(vxlan.to_json().as_str()), Ok(vxlan));
        }
        assert!(RawJson::parse(data.as_str()).is_ok());
    }
}

/// Parses a lease's key, which must survive being written and read again.
pub fn subnet_key(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<SubnetKey>() {
        Ok(key) => {
            assert!(key.ipv4().is_some() || key.ipv6().is_some());
            assert_eq!(key.to_string().parse(), Ok(key), "{key}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
