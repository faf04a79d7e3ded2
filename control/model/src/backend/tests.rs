//! The keys of each backend, their defaults and checks; published data.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<(Backend, Vec<Warning>), ConfigError> {
    let mut warnings = Vec::new();
    Backend::parse(text, &mut warnings).map(|backend| (backend, warnings))
}

fn backend(text: &str) -> Backend {
    let (backend, warnings) = parse(text).unwrap();
    assert_eq!(warnings, []);
    backend
}

fn message(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

const DEFAULT: fn() -> Vxlan = || Vxlan {
    vni: Vni::new(1).unwrap(),
    port: 8472,
    mtu: None,
    gbp: false,
    learning: false,
    direct_routing: false,
};

#[test]
fn vxlan_defaults_and_every_key() {
    assert_eq!(backend(r#"{"Type":"vxlan"}"#), Backend::Vxlan(DEFAULT()));
    assert_eq!(backend(r#"{"Type":"VXLAN","Port":0,"MTU":0,"VNI":null}"#), Backend::Vxlan(DEFAULT()));
    let all = r#"{"type":"vxlan","vni":4096,"PORT":4789,"mtu":1400,"gbp":true,"learning":true,
        "Directrouting":true,"MacPrefix":"0E-2A","Name":"flannel.4096"}"#;
    let wanted = Vxlan {
        vni: Vni::new(4096).unwrap(),
        port: 4789,
        mtu: Some(1400),
        gbp: true,
        learning: true,
        direct_routing: true,
    };
    assert_eq!(backend(all), Backend::Vxlan(wanted));
}

#[test]
fn direct_routing_in_the_spellings_of_the_field() {
    for key in ["directRouting", "DirectRouting", "Directrouting", "directrouting"] {
        let wanted = Backend::Vxlan(Vxlan { direct_routing: true, ..DEFAULT() });
        assert_eq!(backend(&format!(r#"{{"Type":"vxlan","{key}":true}}"#)), wanted);
    }
}

#[test]
fn numbers_out_of_range() {
    assert_eq!(
        message(r#"{"Type":"vxlan","VNI":16777216}"#),
        "network configuration: Backend.VNI = 16777216: must be between 0 and 16777215"
    );
    assert_eq!(
        message(r#"{"Type":"vxlan","Port":65536}"#),
        "network configuration: Backend.Port = 65536: must be between 0 and 65535"
    );
    assert_eq!(
        message(r#"{"Type":"vxlan","MTU":100}"#),
        "network configuration: Backend.MTU = 100: must be 0 or 118 to 65535"
    );
    assert_eq!(
        message(r#"{"Type":"udp","Port":0}"#),
        "network configuration: Backend.Port = 0: must be between 1 and 65535"
    );
    for bad in [r#""VNI":-1"#, r#""Port":-1"#, r#""MTU":65536"#, r#""VNI":18446744073709551616"#] {
        assert!(parse(&format!(r#"{{"Type":"vxlan",{bad}}}"#)).is_err(), "{bad}");
    }
}

#[test]
fn values_of_the_wrong_type() {
    assert_eq!(
        message(r#"{"Type":"vxlan","VNI":"1"}"#),
        "network configuration: Backend.VNI = \"1\": \
         must be a whole number, without quotes, fraction or exponent"
    );
    assert_eq!(
        message(r#"{"Type":"vxlan","DirectRouting":"true"}"#),
        "network configuration: Backend.DirectRouting = \"true\": must be true or false"
    );
    assert!(message(r#"{"Type":"vxlan","Port":8472.0}"#).contains("8472.0"));
    assert_eq!(message(r#"{"Type":1}"#), "network configuration: Backend.Type = 1: must be a string");
}

#[test]
fn types_that_do_not_exist() {
    let known = "must be vxlan, udp, host-gw, ipip, wireguard, alloc, extension, ipsec or tencent-vpc";
    assert_eq!(message("{}"), format!("network configuration: Backend.Type = \"\": {known}"));
    assert_eq!(
        message(r#"{"Type":"vlan"}"#),
        format!("network configuration: Backend.Type = \"vlan\": {known}")
    );
    for text in [r#""vxlan""#, "[]", "7"] {
        assert!(message(text).contains("must be an object with a Type"), "{text}");
    }
}

#[test]
fn the_plain_types() {
    assert_eq!(backend(r#"{"Type":"udp"}"#), Backend::Udp { port: 8285 });
    assert_eq!(backend(r#"{"Type":"udp","Port":7890}"#), Backend::Udp { port: 7890 });
    assert_eq!(backend(r#"{"Type":"Host-GW"}"#), Backend::HostGw);
    assert_eq!(backend(r#"{"Type":"alloc"}"#), Backend::Alloc);
    assert_eq!(backend(r#"{"Type":"ipip"}"#), Backend::Ipip { direct_routing: false });
    assert_eq!(backend(r#"{"Type":"ipip","directrouting":true}"#), Backend::Ipip { direct_routing: true });
    let extension = r#"{"Type":"extension","SubnetAddCommand":"add","ShutdownCommand":"never"}"#;
    let wanted = Extension { subnet_add: "add".into(), ..Extension::default() };
    assert_eq!(backend(extension), Backend::Extension(wanted));
    let cloud = backend(r#"{"Type":"tencent-vpc","AccessKeyID":"id","AccessKeySecret":"s3cret"}"#);
    assert_eq!(cloud.name(), "tencent-vpc");
    assert!(!format!("{cloud:?}").contains("s3cret"));
}

#[test]
fn wireguard_and_its_key() {
    let Backend::Wireguard(plain) = backend(r#"{"Type":"wireguard"}"#) else { panic!("another type") };
    assert_eq!((plain.listen_port, plain.listen_port_v6), (51820, 51821));
    assert_eq!((plain.mode, plain.keepalive, plain.psk), (WireguardMode::Separate, 0, None));
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let keyed = backend(&format!(r#"{{"Type":"wireguard","PSK":"{key}","Mode":"auto","MTU":1380}}"#));
    assert!(!format!("{keyed:?}").contains(key));
    let Backend::Wireguard(keyed) = keyed else { panic!("another type") };
    assert_eq!(keyed.psk.as_ref().map(Secret::reveal), Some(key));
    assert_eq!((keyed.mode, keyed.mtu), (WireguardMode::Auto, Some(1380)));
    assert_eq!(
        message(r#"{"Type":"wireguard","PSK":"too short"}"#),
        "network configuration: Backend.PSK = (hidden): must be 32 bytes in base64"
    );
    assert_eq!(
        message(r#"{"Type":"wireguard","PSK":12345}"#),
        "network configuration: Backend.PSK = (hidden): must be a string"
    );
    assert!(message(r#"{"Type":"wireguard","Mode":"Auto"}"#).contains("in lower case"));
}

#[test]
fn ipsec_needs_a_long_key() {
    let long = "k".repeat(96);
    let Backend::Ipsec(ipsec) = backend(&format!(r#"{{"Type":"ipsec","PSK":"{long}"}}"#)) else {
        panic!("another type")
    };
    assert_eq!(ipsec.esp_proposal, "aes128gcm16-sha256-prfsha256-ecp256");
    for short in ["{\"Type\":\"ipsec\"}".to_owned(), format!(r#"{{"Type":"ipsec","PSK":"{}"}}"#, &long[1..])]
    {
        assert_eq!(
            message(&short),
            "network configuration: Backend.PSK = (hidden): must have 96 characters or more"
        );
    }
}

#[test]
fn unknown_keys_are_warnings() {
    let (_, warnings) = parse(r#"{"Type":"host-gw","DirectRouting":true,"Vni":1}"#).unwrap();
    let keys = ["Backend.DirectRouting", "Backend.Vni"];
    assert_eq!(warnings, keys.map(|key| Warning::UnknownKey { key: key.into(), meant: None }));
}

#[test]
fn three_types_are_not_published() {
    assert_eq!(backend(r#"{"Type":"udp"}"#).published_type(), "");
    assert_eq!(backend(r#"{"Type":"alloc"}"#).published_type(), "");
    assert_eq!(backend(r#"{"Type":"tencent-vpc"}"#).published_type(), "");
    assert_eq!(backend(r#"{"Type":"vxlan"}"#).published_type(), "vxlan");
}

#[test]
fn vxlan_data_byte_for_byte() {
    let text = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#;
    let data = VxlanData::parse(text).unwrap();
    assert_eq!(data.vni, Vni::new(1));
    assert_eq!(data.mac, Mac::new([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44]));
    assert_eq!(data.to_json().as_str(), text);
}

#[test]
fn vxlan_data_of_other_nodes() {
    let old = VxlanData::parse(r#"{ "VtepMAC": "C6:D2:32:6F:8F:44" }"#).unwrap();
    assert_eq!(old.vni, None);
    assert_eq!(VxlanData::parse(r#"{"VNI":4096,"VtepMAC":""}"#), Err(DataError::NoMac));
    assert_eq!(VxlanData::parse(r#"{"VNI":4096}"#), Err(DataError::NoMac));
    let windows = VxlanData::parse(r#"{"VNI":4096,"VtepMAC":"0E-2A-0a-f4-01-05","extra":[]}"#).unwrap();
    assert_eq!(windows.mac.to_string(), "0e:2a:0a:f4:01:05");
    assert_eq!(
        VxlanData::parse(r#"{"VNI":1,"VtepMAC":"nonsense"}"#).unwrap_err().to_string(),
        "vxlan data: VtepMAC = nonsense: must be a MAC address, aa:bb:cc:dd:ee:ff"
    );
    for text in ["null", "", "\"\"", r#"{"VNI":-1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#, r#"{"VtepMAC":7}"#] {
        assert!(VxlanData::parse(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn vxlan_data_round_trips(vni in proptest::option::of(0..=Vni::MAX), octets: [u8; 6]) {
        let data = VxlanData { vni: vni.and_then(Vni::new), mac: Mac::new(octets) };
        prop_assert_eq!(VxlanData::parse(data.to_json().as_str()), Ok(data));
    }

    #[test]
    fn noise_never_panics(text in ".*", members in r#"("(Type|VNI|port|MTU|VtepMAC|PSK)":("vxlan"|"udp"|-?[0-9.e]{1,25}|null|\[\]|".{0,9}"),?){0,5}"#) {
        for text in [text, format!("{{{members}}}")] {
            let _ = parse(&text);
            let _ = VxlanData::parse(&text);
        }
    }
}
