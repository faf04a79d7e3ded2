//! Requests of the runtime: environment variables and a configuration on stdin, validated like the CNI
//! library does.

use std::fmt::{self, Display};
use std::path::PathBuf;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::delegate;
use crate::invoke::DELEGATED;
use crate::netns::Netns;
use crate::reply::{Code, Failure, VERSIONS};

/// The file in which flannel's daemon records its subnet.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// The directory in which flannel's plugin saves what it needs for DEL.
const DATA_DIRECTORY: &str = "/var/lib/cni/flannel";
/// IFNAMSIZ (linux/if.h), without the terminating zero.
const MAX_IFNAME: usize = 15;
/// Maximum length of a container ID: NAME_MAX (linux/limits.h), because it is the name of a state file.
const MAX_CONTAINER: usize = 255;

/// The keys of the configuration that have a meaning, in flannel's spelling.
const KEYS: [&str; 10] = [
    "cniVersion",
    "name",
    "type",
    "subnetFile",
    "dataDir",
    "delegate",
    "ipam",
    "runtimeConfig",
    "prevResult",
    VALID,
];
/// The key of the attachments that GC keeps.
const VALID: &str = "cni.dev/valid-attachments";

/// A CNI command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Create an interface for a pod.
    Add,
    /// Delete the interface.
    Del,
    /// Check that the interface is still as ADD created it.
    Check,
    /// Report whether an ADD could succeed.
    Status,
    /// Delete interfaces that belong to no pod.
    Gc,
    /// Report the supported versions.
    Version,
}

impl Verb {
    /// Parses `CNI_COMMAND`.
    pub fn parse(text: &str) -> Result<Verb, Failure> {
        match text {
            "ADD" => Ok(Verb::Add),
            "DEL" => Ok(Verb::Del),
            "CHECK" => Ok(Verb::Check),
            "STATUS" => Ok(Verb::Status),
            "GC" => Ok(Verb::Gc),
            "VERSION" => Ok(Verb::Version),
            _ => Err(Failure::new(Code::BadEnvironment, format!("unknown CNI_COMMAND: {text}"), "")),
        }
    }

    /// Returns true if the configuration on stdin matters. A runtime may leave stdin open for other verbs.
    pub fn needs_configuration(self) -> bool {
        self != Verb::Version
    }
}

impl Display for Verb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Status => "STATUS",
            Verb::Gc => "GC",
            Verb::Version => "VERSION",
        })
    }
}

/// The variables of the protocol, not yet validated.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub verb: Option<String>,
    container: String,
    netns: String,
    interface: String,
    path: String,
    netns_override: bool,
    is_delegated: bool,
}

/// A valid request.
#[derive(Debug)]
pub struct Request {
    /// The command.
    pub verb: Verb,
    /// The container; empty for verbs that concern no container.
    pub container: String,
    /// The interface in the container; empty for verbs that concern no container.
    pub interface: String,
    /// `CNI_NETNS`, the path of the container's network namespace; empty if there is none.
    pub netns: String,
    /// `CNI_NETNS_OVERRIDE`: the container may share the plugin's own namespace.
    pub netns_override: bool,
    /// The directories in which to search for delegates.
    pub path: Vec<PathBuf>,
    /// The configuration.
    pub config: Config,
}

/// The configuration of the network.
#[derive(Debug, Default)]
pub struct Config {
    /// `cniVersion`; empty if absent, which means 0.1.0.
    pub version: String,
    /// `type`, by which the runtime found this plugin; empty if it is not a string.
    pub kind: String,
    /// `name`.
    pub name: String,
    /// `subnetFile`.
    pub subnet_file: PathBuf,
    /// `dataDir`.
    pub data_directory: PathBuf,
    /// `delegate`.
    pub delegate: Map<String, Value>,
    /// `ipam`, the base of the delegate's `ipam`.
    pub ipam: Map<String, Value>,
    /// `runtimeConfig`.
    pub runtime_config: Option<Value>,
    /// `prevResult`, for CHECK.
    pub previous: Option<Value>,
    /// `cni.dev/valid-attachments`, for GC.
    pub valid: Option<Value>,
}

impl Environment {
    /// Reads the variables.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Environment {
        let text = |name| variable(name).unwrap_or_default();
        Environment {
            verb: variable("CNI_COMMAND").filter(|verb| !verb.is_empty()),
            container: text("CNI_CONTAINERID"),
            netns: text("CNI_NETNS"),
            interface: text("CNI_IFNAME"),
            path: text("CNI_PATH"),
            netns_override: ["1", "true", "True", "TRUE", "t", "T"]
                .contains(&text("CNI_NETNS_OVERRIDE").as_str()),
            is_delegated: !text(DELEGATED).is_empty(),
        }
    }
}

impl Request {
    /// Validates everything that can be validated before the request runs.
    pub fn check(verb: &str, environment: Environment, stdin: &str) -> Result<Request, Failure> {
        let verb = Verb::parse(verb)?;
        let Environment { container, netns, interface, path, netns_override, is_delegated, .. } = environment;
        let concerns_a_pod = matches!(verb, Verb::Add | Verb::Del | Verb::Check);
        let needed = [
            ("CNI_CONTAINERID", &container, concerns_a_pod),
            ("CNI_NETNS", &netns, matches!(verb, Verb::Add | Verb::Check)),
            ("CNI_IFNAME", &interface, concerns_a_pod),
            ("CNI_PATH", &path, verb != Verb::Version),
        ];
        let missing: Vec<&str> = needed
            .iter()
            .filter(|(_, value, needed)| *needed && value.is_empty())
            .map(|(name, ..)| *name)
            .collect();
        if !missing.is_empty() {
            let message = format!("required env variables [{}] missing", missing.join(","));
            return Err(Failure::new(Code::BadEnvironment, message, ""));
        }
        if concerns_a_pod {
            check_container(&container)?;
            check_interface(&interface)?;
        }
        let config = if verb == Verb::Version { Config::default() } else { Config::parse(stdin)? };
        if is_delegated && verb != Verb::Version {
            return Err(delegate::is_itself(&config.kind));
        }
        let minimum = match verb {
            Verb::Check => Some("0.4.0"),
            Verb::Status | Verb::Gc => Some("1.1.0"),
            _ => None,
        };
        if let Some(minimum) = minimum.filter(|minimum| !config.is_at_least(minimum)) {
            let message = format!("config version does not allow {verb}");
            let details = format!("cniVersion is {:?}, but {verb} needs {minimum} or later", config.version);
            return Err(Failure::new(Code::IncompatibleVersion, message, details));
        }
        if verb == Verb::Add && !netns_override {
            check_netns(&netns)?;
        }
        let path = std::env::split_paths(&path).filter(|place| place.is_absolute()).collect();
        Ok(Request { verb, container, interface, netns, netns_override, path, config })
    }

    /// Returns the network namespace that the runtime's path names now, if any.
    pub fn namespace(&self) -> Option<Netns> {
        Netns::at(&self.netns)
    }
}

impl Config {
    /// Returns true if the configuration's version is this one or later.
    pub fn is_at_least(&self, version: &str) -> bool {
        let position = |version: &str| VERSIONS.iter().position(|known| *known == version);
        position(self.version()) >= position(version)
    }

    fn version(&self) -> &str {
        if self.version.is_empty() { VERSIONS[0] } else { &self.version }
    }

    fn parse(text: &str) -> Result<Config, Failure> {
        let mut object = members(text, &KEYS)?;
        let version = string(&mut object, "cniVersion")?.unwrap_or_default();
        if !version.is_empty() && !VERSIONS.contains(&version.as_str()) {
            let details =
                format!("cniVersion is {version:?}, supported versions are {}", VERSIONS.join(", "));
            return Err(Failure::new(Code::IncompatibleVersion, "incompatible CNI versions", details));
        }
        let name = string(&mut object, "name")?.unwrap_or_default();
        if !is_name(&name) {
            let details =
                format!("{name:?}: use letters, digits, `_`, `.` and `-`, starting with a letter or digit");
            return Err(Failure::new(Code::BadConfig, "the network name is missing or invalid", details));
        }
        let delegate = map(&mut object, "delegate")?;
        if delegate.get("type").is_some_and(|kind| !kind.is_string()) {
            return Err(bad("'delegate' dictionary, if present, must have (string) 'type' field"));
        }
        if delegate.contains_key("name") {
            return Err(bad("'delegate' dictionary must not have 'name' field, it'll be set by flannel"));
        }
        if delegate.contains_key("ipam") {
            return Err(bad("'delegate' dictionary must not have 'ipam' field, it'll be set by flannel"));
        }
        let place = |value: Option<String>, default: &str| {
            PathBuf::from(value.filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned()))
        };
        let kind = object.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Config {
            kind,
            subnet_file: place(string(&mut object, "subnetFile")?, SUBNET_FILE),
            data_directory: place(string(&mut object, "dataDir")?, DATA_DIRECTORY),
            ipam: map(&mut object, "ipam")?,
            runtime_config: optional_map(&mut object, "runtimeConfig")?.map(Value::Object),
            previous: object.remove("prevResult").filter(|value| !value.is_null()),
            // Go may write an empty list as null (CRI-O). A missing key is different: nothing is known to be
            // valid.
            valid: object.remove(VALID).map(|value| match value {
                Value::Null => Value::Array(Vec::new()),
                other => other,
            }),
            version,
            name,
            delegate,
        })
    }
}

/// Returns the version of a configuration that may otherwise be invalid; error objects carry it.
pub fn version_of(text: &str) -> Option<String> {
    let object = members(text, &KEYS[..1]).ok()?;
    object.get("cniVersion")?.as_str().filter(|version| VERSIONS.contains(version)).map(str::to_owned)
}

/// Returns true for what the CNI library accepts as a container ID or network name; it cannot form a path.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(allowed)
}

/// Returns true for a valid container ID.
pub fn is_container(text: &str) -> bool {
    is_name(text) && text.len() <= MAX_CONTAINER
}

fn check_container(id: &str) -> Result<(), Failure> {
    let bad = |message, details| Err(Failure::new(Code::BadEnvironment, message, details));
    match is_name(id) {
        true if is_container(id) => Ok(()),
        true => bad("containerID is too long", format!("{} characters, at most {MAX_CONTAINER}", id.len())),
        false => bad("invalid characters in containerID", format!("{id:?}")),
    }
}

fn check_interface(name: &str) -> Result<(), Failure> {
    let problem = if name.len() > MAX_IFNAME {
        "is too long"
    } else if name == "." || name == ".." {
        "is . or .."
    } else if name.contains(['/', ':']) || name.contains(char::is_whitespace) {
        "contains / or : or whitespace characters"
    } else {
        return Ok(());
    };
    Err(Failure::new(Code::BadEnvironment, format!("interface name {problem}"), format!("{name:?}")))
}

/// Rejects our own namespace: the host's interfaces would be mistaken for the pod's.
fn check_netns(path: &str) -> Result<(), Failure> {
    if Netns::at(path).is_some_and(|netns| netns.is_own()) {
        let message = "plugin's netns and netns from CNI_NETNS should not be the same";
        return Err(Failure::new(Code::BadNamespace, message, path));
    }
    Ok(())
}

/// Parses an object. The keys that are known count in any case, and the last of several, as for Go.
fn members(text: &str, known: &[&str]) -> Result<Map<String, Value>, Failure> {
    let wrong =
        |error| Failure::new(Code::Decoding, "the configuration on stdin is not a JSON object", error);
    let Members(members) = serde_json::from_str(text).map_err(wrong)?;
    let named = |key: String| match known.iter().find(|known| known.eq_ignore_ascii_case(&key)) {
        Some(known) => (*known).to_owned(),
        None => key,
    };
    Ok(members.into_iter().map(|(key, value)| (named(key), value)).collect())
}

/// The members of an object in their order.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Members;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

fn string(object: &mut Map<String, Value>, key: &str) -> Result<Option<String>, Failure> {
    match object.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(Failure::new(Code::Decoding, format!("{key} is not a string"), other)),
    }
}

fn map(object: &mut Map<String, Value>, key: &str) -> Result<Map<String, Value>, Failure> {
    optional_map(object, key).map(Option::unwrap_or_default)
}

fn optional_map(object: &mut Map<String, Value>, key: &str) -> Result<Option<Map<String, Value>>, Failure> {
    match object.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(Failure::new(Code::Decoding, format!("{key} is not an object"), other)),
    }
}

fn bad(message: &str) -> Failure {
    Failure::new(Code::BadConfig, message, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"{"cniVersion":"1.1.0","name":"cbr0","type":"flannel"}"#;

    fn environment(change: &[(&str, &str)]) -> Environment {
        let base = [
            ("CNI_CONTAINERID", "abc"),
            ("CNI_NETNS", "/run/netns/none"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin:relative:/usr/lib/cni"),
        ];
        Environment::read(|name| {
            let of = |list: &[(&str, &str)]| {
                list.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            };
            of(change).or_else(|| of(&base))
        })
    }

    fn rejection(verb: &str, change: &[(&str, &str)], stdin: &str) -> (u64, String) {
        let failure = Request::check(verb, environment(change), stdin).expect_err(stdin);
        (failure.code, failure.message)
    }

    #[test]
    fn defaults_are_flannels() {
        let request = Request::check("ADD", environment(&[]), GOOD).expect("good");
        assert_eq!(request.config.subnet_file.to_str(), Some(SUBNET_FILE));
        assert_eq!(request.config.data_directory.to_str(), Some(DATA_DIRECTORY));
        assert_eq!(request.path, [PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")]);
        let given = r#"{"name":"n","subnetFile":"/a","dataDir":"/b","delegate":null,"ipam":{"type":"x"}}"#;
        let config = Request::check("ADD", environment(&[]), given).expect("good").config;
        assert_eq!((config.subnet_file.to_str(), config.data_directory.to_str()), (Some("/a"), Some("/b")));
        assert!(config.is_at_least("0.1.0") && !config.is_at_least("0.2.0"), "no version means the first");
    }

    #[test]
    fn each_verb_names_the_missing_variables() {
        let none = [("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", ""), ("CNI_PATH", "")];
        for (verb, missing) in [
            ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
            ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
            ("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
            ("GC", "CNI_PATH"),
            ("STATUS", "CNI_PATH"),
        ] {
            assert_eq!(
                rejection(verb, &none, GOOD),
                (4, format!("required env variables [{missing}] missing"))
            );
        }
        assert!(Request::check("VERSION", environment(&none), "").is_ok());
        assert_eq!(rejection("UPDATE", &[], GOOD).0, 4);
    }

    #[test]
    fn names_that_form_paths_are_rejected() {
        for id in ["../x", "a/b", ".hidden", "-x", "a b", "ä", "a\n"] {
            let expected = (4, "invalid characters in containerID".to_owned());
            assert_eq!(rejection("DEL", &[("CNI_CONTAINERID", id)], GOOD), expected, "{id}");
        }
        let (longest, long) = ("a".repeat(255), "a".repeat(256));
        assert!(Request::check("DEL", environment(&[("CNI_CONTAINERID", &longest)]), GOOD).is_ok());
        assert_eq!(
            rejection("DEL", &[("CNI_CONTAINERID", &long)], GOOD),
            (4, "containerID is too long".to_owned())
        );
        for name in ["..", ".", "a/b", "a:b", "a b", "sixteencharacter"] {
            assert_eq!(rejection("ADD", &[("CNI_IFNAME", name)], GOOD).0, 4, "{name}");
        }
        for name in ["", "../x", "a/b", "-"] {
            let config = serde_json::json!({ "name": name }).to_string();
            assert_eq!(rejection("ADD", &[], &config).0, 7, "{name}");
        }
    }

    #[test]
    fn configurations_that_make_no_sense_have_their_code() {
        for (stdin, code) in [
            ("", 6),
            ("[]", 6),
            ("{\"name\":", 6),
            (r#"{"name":7}"#, 6),
            (r#"{"name":"n","delegate":[]}"#, 6),
            (r#"{"name":"n","ipam":"host-local"}"#, 6),
            (r#"{"name":"n","runtimeConfig":"mac"}"#, 6),
            (r#"{"name":"n","runtimeConfig":[]}"#, 6),
            (r#"{"name":"n","cniVersion":"2.0.0"}"#, 1),
            (r#"{"name":"n","delegate":{"type":7}}"#, 7),
            (r#"{"name":"n","delegate":{"name":"x"}}"#, 7),
            (r#"{"name":"n","delegate":{"ipam":{}}}"#, 7),
        ] {
            assert_eq!(rejection("ADD", &[], stdin).0, code, "{stdin}");
        }
        let old = r#"{"cniVersion":"0.3.1","name":"n"}"#;
        for verb in ["CHECK", "GC", "STATUS"] {
            assert_eq!(rejection(verb, &[], old).0, 1, "{verb}");
        }
        let (code, message) = rejection("GC", &[], r#"{"cniVersion":"1.0.0","name":"n"}"#);
        assert_eq!((code, message.as_str()), (1, "config version does not allow GC"));
    }

    #[test]
    fn the_hosts_own_namespace_is_rejected() {
        let own = [("CNI_NETNS", "/proc/self/ns/net")];
        assert_eq!(rejection("ADD", &own, GOOD).0, 8);
        let overridden = [own[0], ("CNI_NETNS_OVERRIDE", "true")];
        assert!(Request::check("ADD", environment(&overridden), GOOD).is_ok());
    }

    proptest! {
        #[test]
        fn noise_never_panics(verb in "[A-Z]{0,8}", id in ".*", name in ".*", text in ".*") {
            let change = [("CNI_CONTAINERID", id.as_str()), ("CNI_IFNAME", name.as_str())];
            for verb in [verb.as_str(), "ADD", "DEL", "GC"] {
                let _ = Request::check(verb, environment(&change), &text);
            }
            version_of(&text);
        }
    }
}
