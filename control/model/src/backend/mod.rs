//! Backends: their options in the network configuration, and the data that a VXLAN node publishes.

use std::fmt;

use wire::addr::{Mac, Vni};

use crate::error::{ConfigError, Warning};
use crate::json::{Mismatch, Object, shorten};
use crate::lease::RawJson;
use crate::secrets::redact;

/// The kernel's default port, `port` in drivers/net/vxlan/vxlan_core.c; the assigned 4789 came later.
pub const VXLAN_PORT: u16 = 8472;
/// Flannel's default port for `udp`.
pub const UDP_PORT: u16 = 8285;
/// Flannel's default ports for `wireguard`, IPv4 and IPv6.
pub const WIREGUARD_PORTS: (u16, u16) = (51820, 51821);
/// Default proposal that flannel passes to strongSwan.
const ESP_PROPOSAL: &str = "aes128gcm16-sha256-prfsha256-ecp256";
/// Shortest pre-shared key that flannel's `ipsec` accepts, in characters.
const IPSEC_PSK_LEN: usize = 96;
/// Smallest outer MTU that leaves a pod the 68 bytes of RFC 791 after 50 of VXLAN headers.
const MIN_OUTER_MTU: i64 = 68 + 50;

/// The way in which packets travel between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// VXLAN, RFC 7348.
    Vxlan(Vxlan),
    /// Bare IP packets in UDP.
    Udp {
        /// The port of every node.
        port: u16,
    },
    /// Kernel routes to the nodes, no tunnel.
    HostGw,
    /// IP in IP, protocol 4.
    Ipip {
        /// Plain routes to nodes on the same link.
        direct_routing: bool,
    },
    /// WireGuard.
    Wireguard(Wireguard),
    /// A lease without a datapath.
    Alloc,
    /// Commands that run for each event.
    Extension(Extension),
    /// IPsec through strongSwan.
    Ipsec(Ipsec),
    /// Routes in Tencent's cloud.
    TencentVpc {
        /// Key ID, if the environment does not set it.
        access_key_id: Option<Secret>,
        /// Key, if the environment does not set it.
        access_key_secret: Option<Secret>,
    },
}

/// Options of `vxlan`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: Vni,
    /// UDP destination port; a 0 in the configuration has become 8472.
    pub port: u16,
    /// Outer MTU in bytes; `None`: the interface's.
    pub mtu: Option<u32>,
    /// Group policy extension.
    pub gbp: bool,
    /// Learning of peers' addresses from received packets.
    pub learning: bool,
    /// Plain routes to nodes on the same link.
    pub direct_routing: bool,
}

/// Options of `wireguard`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wireguard {
    /// UDP port for IPv4, and for both families in the modes with a single tunnel.
    pub listen_port: u16,
    /// UDP port for IPv6.
    pub listen_port_v6: u16,
    /// Key shared by all peers: 32 bytes in base64.
    pub psk: Option<Secret>,
    /// Outer MTU in bytes; `None`: the interface's.
    pub mtu: Option<u32>,
    /// The tunnels to use.
    pub mode: WireguardMode,
    /// Seconds between keepalives; 0 turns them off.
    pub keepalive: u16,
}

/// The tunnels of a `wireguard` node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireguardMode {
    /// One tunnel for each family.
    Separate,
    /// One tunnel, over the family that reaches the peer.
    Auto,
    /// One tunnel, over IPv4.
    Ipv4,
    /// One tunnel, over IPv6.
    Ipv6,
}

/// Commands of `extension`; empty ones are skipped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extension {
    /// The command whose output becomes the node's data.
    pub pre_startup: String,
    /// The command to run once the node has its lease.
    pub post_startup: String,
    /// The command to run for each new peer.
    pub subnet_add: String,
    /// The command to run for each peer that left.
    pub subnet_remove: String,
}

/// Options of `ipsec`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipsec {
    /// Key shared by all peers.
    pub psk: Secret,
    /// ESP in UDP.
    pub udp_encap: bool,
    /// Cipher proposal in strongSwan's notation.
    pub esp_proposal: String,
}

/// A text that must not appear in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// The data that a VXLAN node publishes for one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanData {
    /// Network identifier; old nodes publish none.
    pub vni: Option<Vni>,
    /// MAC address of the tunnel end.
    pub mac: Mac,
}

/// Invalid published data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// The text is not a JSON object.
    #[error("vxlan data: not a JSON object: {0}")]
    Syntax(String),
    /// The node has not set up its device yet.
    #[error("vxlan data: VtepMAC is empty: the node has no tunnel device yet")]
    NoMac,
    /// A field has an invalid value.
    #[error("vxlan data: {field} = {value}: must be {rule}")]
    Field {
        /// The field as flannel spells it.
        field: &'static str,
        /// The value as written, shortened.
        value: String,
        /// The values that the field accepts.
        rule: &'static str,
    },
}

impl Backend {
    /// Returns the type as named in flannel's configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Backend::Vxlan(_) => "vxlan",
            Backend::Udp { .. } => "udp",
            Backend::HostGw => "host-gw",
            Backend::Ipip { .. } => "ipip",
            Backend::Wireguard(_) => "wireguard",
            Backend::Alloc => "alloc",
            Backend::Extension(_) => "extension",
            Backend::Ipsec(_) => "ipsec",
            Backend::TencentVpc { .. } => "tencent-vpc",
        }
    }

    /// Returns the type as published in leases, which is empty for three types. Nodes ignore peers of a
    /// different published type, except `udp`, which accepts all.
    pub fn published_type(&self) -> &'static str {
        match self {
            Backend::Udp { .. } | Backend::Alloc | Backend::TencentVpc { .. } => "",
            _ => self.name(),
        }
    }

    /// Parses the text under `Backend`. Keys that the type does not use become warnings.
    pub(crate) fn parse(text: &str, warnings: &mut Vec<Warning>) -> Result<Backend, ConfigError> {
        let object = Object::parse(text).map_err(|_| ConfigError::Key {
            key: "Backend".into(),
            value: shorten(&redact(text)),
            rule: "must be an object with a Type".into(),
        })?;
        let mut keys = Keys { object };
        let name = keys.string("Type")?;
        let backend = match name.to_lowercase().as_str() {
            "vxlan" => keys.vxlan()?,
            "udp" => Backend::Udp { port: keys.port("Port", 1, UDP_PORT)? },
            "host-gw" => Backend::HostGw,
            "ipip" => Backend::Ipip { direct_routing: keys.boolean("DirectRouting")? },
            "wireguard" => keys.wireguard()?,
            "alloc" => Backend::Alloc,
            "extension" => keys.extension()?,
            "ipsec" => keys.ipsec()?,
            "tencent-vpc" => Backend::TencentVpc {
                access_key_id: keys.secret("AccessKeyID")?,
                access_key_secret: keys.secret("AccessKeySecret")?,
            },
            _ => return Err(unknown_type(&name, keys.object.misspelt("Type"))),
        };
        let unknown = keys.object.unknown();
        warnings.extend(
            unknown.into_iter().map(|key| Warning::UnknownKey {
                key: format!("Backend.{key}"),
                meant: keys.object.meant(key),
            }),
        );
        Ok(backend)
    }
}

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// Returns the text, which must not be logged.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(hidden)")
    }
}

impl VxlanData {
    /// Parses a node's data: any spacing, keys in any case, unknown keys skipped.
    pub fn parse(text: &str) -> Result<VxlanData, DataError> {
        let mut object = Object::parse(text).map_err(|error| DataError::Syntax(error.to_string()))?;
        let mismatch =
            |field| move |Mismatch { value, wanted }| DataError::Field { field, value, rule: wanted };
        let vni = object.integer("VNI").map_err(mismatch("VNI"))?;
        let mac = object.string("VtepMAC").map_err(mismatch("VtepMAC"))?.unwrap_or_default();
        if mac.is_empty() {
            return Err(DataError::NoMac);
        }
        let field = |field, value: String, rule| DataError::Field { field, value: shorten(&value), rule };
        Ok(VxlanData {
            vni: vni
                .map(|number| {
                    let small = u32::try_from(number).ok().and_then(Vni::new);
                    small.ok_or_else(|| field("VNI", number.to_string(), "between 0 and 16777215"))
                })
                .transpose()?,
            mac: mac.parse().map_err(|_| field("VtepMAC", mac, "a MAC address, aa:bb:cc:dd:ee:ff"))?,
        })
    }

    /// Renders the data as flannel does: compact and in this order, because a flannel node that takes over
    /// cuts its old MAC address out of the text instead of parsing it.
    pub fn to_json(&self) -> RawJson {
        RawJson::trusted(match self.vni {
            Some(vni) => format!(r#"{{"VNI":{vni},"VtepMAC":"{}"}}"#, self.mac),
            None => format!(r#"{{"VtepMAC":"{}"}}"#, self.mac),
        })
    }
}

/// The backend's object; its errors name the full path of the key.
struct Keys {
    object: Object,
}

impl Keys {
    fn vxlan(&mut self) -> Result<Backend, ConfigError> {
        let vni = self.integer("VNI", 0, Vni::MAX.into(), 1)? as u32;
        // Used only by Windows nodes, which read the same configuration.
        for windows_only in ["MacPrefix", "Name"] {
            self.string(windows_only)?;
        }
        Ok(Backend::Vxlan(Vxlan {
            vni: Vni::new(vni).ok_or_else(|| error("VNI", vni.to_string(), "must fit 24 bits"))?,
            port: match self.port("Port", 0, 0)? {
                0 => VXLAN_PORT,
                port => port,
            },
            mtu: self.mtu()?,
            gbp: self.boolean("GBP")?,
            learning: self.boolean("Learning")?,
            direct_routing: self.boolean("DirectRouting")?,
        }))
    }

    fn wireguard(&mut self) -> Result<Backend, ConfigError> {
        let (port, port_v6) = WIREGUARD_PORTS;
        let psk = self.secret("PSK")?;
        if psk.as_ref().is_some_and(|key| crate::wireguard::parse_key(key.reveal()).is_none()) {
            return Err(error("PSK", "(hidden)".into(), "must be 32 bytes in base64"));
        }
        let mode = match self.string("Mode")?.as_str() {
            "" | "separate" => WireguardMode::Separate,
            "auto" => WireguardMode::Auto,
            "ipv4" => WireguardMode::Ipv4,
            "ipv6" => WireguardMode::Ipv6,
            other => {
                let rule = "must be separate, auto, ipv4 or ipv6, in lower case";
                return Err(error("Mode", shorten(other), rule));
            }
        };
        Ok(Backend::Wireguard(Wireguard {
            listen_port: self.port("ListenPort", 1, port)?,
            listen_port_v6: self.port("ListenPortV6", 1, port_v6)?,
            psk,
            mtu: self.mtu()?,
            mode,
            keepalive: self.port("PersistentKeepaliveInterval", 0, 0)?,
        }))
    }

    fn extension(&mut self) -> Result<Backend, ConfigError> {
        // Old samples contain this key; flannel never runs the command.
        self.string("ShutdownCommand")?;
        Ok(Backend::Extension(Extension {
            pre_startup: self.string("PreStartupCommand")?,
            post_startup: self.string("PostStartupCommand")?,
            subnet_add: self.string("SubnetAddCommand")?,
            subnet_remove: self.string("SubnetRemoveCommand")?,
        }))
    }

    fn ipsec(&mut self) -> Result<Backend, ConfigError> {
        let psk = self.secret("PSK")?.filter(|key| key.reveal().len() >= IPSEC_PSK_LEN);
        let proposal = self.string("ESPProposal")?;
        Ok(Backend::Ipsec(Ipsec {
            psk: psk.ok_or_else(|| error("PSK", "(hidden)".into(), "must have 96 characters or more"))?,
            udp_encap: self.boolean("UDPEncap")?,
            esp_proposal: if proposal.is_empty() { ESP_PROPOSAL.to_owned() } else { proposal },
        }))
    }

    fn mtu(&mut self) -> Result<Option<u32>, ConfigError> {
        // 0 means the interface's MTU.
        match self.integer("MTU", 0, u16::MAX.into(), 0)? {
            0 => Ok(None),
            mtu if mtu < MIN_OUTER_MTU => Err(error("MTU", mtu.to_string(), "must be 0 or 118 to 65535")),
            mtu => Ok(Some(mtu as u32)),
        }
    }

    fn port(&mut self, key: &'static str, min: i64, default: u16) -> Result<u16, ConfigError> {
        Ok(self.integer(key, min, u16::MAX.into(), default.into())? as u16)
    }

    fn integer(&mut self, key: &'static str, min: i64, max: i64, default: i64) -> Result<i64, ConfigError> {
        let number = self.object.integer(key).map_err(|found| wrong_type(key, found))?.unwrap_or(default);
        if (min..=max).contains(&number) {
            return Ok(number);
        }
        Err(error(key, number.to_string(), format!("must be between {min} and {max}")))
    }

    fn boolean(&mut self, key: &'static str) -> Result<bool, ConfigError> {
        Ok(self.object.boolean(key).map_err(|found| wrong_type(key, found))?.unwrap_or(false))
    }

    fn string(&mut self, key: &'static str) -> Result<String, ConfigError> {
        Ok(self.object.string(key).map_err(|found| wrong_type(key, found))?.unwrap_or_default())
    }

    /// Reads a secret; as in flannel, an empty one counts as absent.
    fn secret(&mut self, key: &'static str) -> Result<Option<Secret>, ConfigError> {
        let hide = |found: Mismatch| wrong_type(key, Mismatch { value: "(hidden)".into(), ..found });
        let text = self.object.string(key).map_err(hide)?.unwrap_or_default();
        Ok((!text.is_empty()).then_some(Secret(text)))
    }
}

fn unknown_type(name: &str, misspelt: Option<&str>) -> ConfigError {
    let known = "must be vxlan, udp, host-gw, ipip, wireguard, alloc, extension, ipsec or tencent-vpc";
    let hint = misspelt.map(|key| format!("; is the unknown key {:?} meant?", shorten(key)));
    error("Type", format!("{:?}", shorten(name)), format!("{known}{}", hint.unwrap_or_default()))
}

fn wrong_type(key: &'static str, found: Mismatch) -> ConfigError {
    error(key, found.value, format!("must be {}", found.wanted))
}

fn error(key: &'static str, value: String, rule: impl Into<String>) -> ConfigError {
    ConfigError::Key { key: format!("Backend.{key}"), value, rule: rule.into() }
}

#[cfg(test)]
mod tests;
