//! Keys in the notation of WireGuard's tools, and the data that a `wireguard` node publishes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::json::{Object, shorten};
use crate::lease::RawJson;

/// Parses a key: 44 characters of base64 that encode 32 bytes.
pub fn parse_key(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// Renders a key in base64.
pub fn render_key(key: &[u8; 32]) -> String {
    STANDARD.encode(key)
}

/// The data that a node publishes for one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireguardData {
    /// The node's public key.
    pub public_key: [u8; 32],
    /// The node's UDP port; old nodes publish none and use the same port as the reader.
    pub port: Option<u16>,
}

impl WireguardData {
    /// Renders the data as flannel does.
    pub fn to_json(&self) -> RawJson {
        let key = render_key(&self.public_key);
        let port = self.port.map(|port| format!(",\"Port\":{port}")).unwrap_or_default();
        RawJson::trusted(format!("{{\"PublicKey\":\"{key}\"{port}}}"))
    }

    /// Parses the data of a node; the error names the invalid field.
    pub fn parse(text: &str) -> Result<WireguardData, String> {
        let mut object =
            Object::parse(text).map_err(|error| format!("wireguard data: not a JSON object: {error}"))?;
        let key = object.string("PublicKey").map_err(|error| bad_key(&error.value))?.unwrap_or_default();
        let public_key = parse_key(&key).ok_or_else(|| bad_key(&shorten(&key)))?;
        let port = match object.integer("Port").map_err(|error| bad_port(&error.value))? {
            None | Some(0) => None,
            Some(port) => Some(u16::try_from(port).map_err(|_| bad_port(&port.to_string()))?),
        };
        Ok(WireguardData { public_key, port })
    }
}

fn bad_key(value: &str) -> String {
    format!("wireguard data: PublicKey = {value}: must be 32 bytes in base64")
}

fn bad_port(value: &str) -> String {
    format!("wireguard data: Port = {value}: must be 1 to 65535")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: &str = r#"{"PublicKey":"YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY=","Port":51820}"#;

    #[test]
    fn the_data_of_a_flannel_node_round_trips() {
        let data = WireguardData::parse(STOCK).expect("data");
        assert_eq!((&data.public_key, data.port), (b"abcdefghijklmnopqrstuvwxyz123456", Some(51820)));
        assert_eq!(data.to_json().as_str(), STOCK);
        let old = WireguardData::parse(r#"{"publickey":"YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY="}"#);
        assert_eq!(old.expect("data").port, None);
    }

    #[test]
    fn the_invalid_field_is_named() {
        for (text, field) in [
            ("null", "JSON"),
            ("{}", "PublicKey"),
            (r#"{"PublicKey":"bm90IGEga2V5","Port":1}"#, "PublicKey"),
            (r#"{"PublicKey":7}"#, "PublicKey"),
            (r#"{"PublicKey":"YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY=","Port":65536}"#, "Port"),
            (r#"{"PublicKey":"YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY=","Port":-1}"#, "Port"),
        ] {
            let error = WireguardData::parse(text).expect_err(text);
            assert!(error.contains(field), "{error}");
        }
    }
}
