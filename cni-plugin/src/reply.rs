//! Replies to the runtime: results, and errors with the codes of the CNI specification (section "Error").

use std::fmt::Display;

use serde_json::{Value, json};

/// Supported versions of the specification, oldest first.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The error codes in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is not supported.
    IncompatibleVersion = 1,
    /// The container is unknown.
    UnknownContainer = 3,
    /// An environment variable is missing or invalid.
    BadEnvironment = 4,
    /// I/O with a file or a process failed.
    Io = 5,
    /// The input is not valid JSON.
    Decoding = 6,
    /// The configuration is invalid.
    BadConfig = 7,
    /// The network namespace is invalid.
    BadNamespace = 8,
    /// A retry may succeed.
    TryAgain = 11,
    /// STATUS: no pod can be given a network now.
    NotAvailable = 50,
}

/// An error for the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The code.
    pub code: u64,
    /// The problem, in a few words.
    pub message: String,
    /// The operating system's error, and what to do.
    pub details: String,
}

impl Failure {
    /// Creates an error with one of our own codes.
    pub fn new(code: Code, message: impl Into<String>, details: impl Display) -> Failure {
        Failure { code: code as u64, message: message.into(), details: details.to_string() }
    }

    /// Appends to the details.
    pub fn and(mut self, more: impl Display) -> Failure {
        if !self.details.is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str(&more.to_string());
        self
    }
}

/// Renders the error object.
pub fn error(failure: &Failure, version: Option<&str>) -> String {
    let version = version.filter(|version| !version.is_empty()).unwrap_or(VERSIONS[VERSIONS.len() - 1]);
    let Failure { code, message, details } = failure;
    let mut object = json!({ "cniVersion": version, "code": code, "msg": message });
    if !details.is_empty() {
        object["details"] = Value::from(details.as_str());
    }
    format!("{object:#}\n")
}

/// Renders the reply to VERSION.
pub fn versions() -> String {
    let newest = VERSIONS[VERSIONS.len() - 1];
    format!("{:#}\n", json!({ "cniVersion": newest, "supportedVersions": VERSIONS }))
}

/// Describes the plugin to a person who starts it by hand.
pub fn about() -> String {
    format!(
        "loden-cni {}: a drop-in for flannel's CNI plugin, to be started by container runtimes \
         (CNI_COMMAND is not set)\n\
         CNI protocol versions supported: {}\n",
        env!("CARGO_PKG_VERSION"),
        VERSIONS.join(", ")
    )
}

/// Parses an error object printed by another plugin.
pub fn parse_error(text: &str) -> Option<Failure> {
    let object: Value = serde_json::from_str(text).ok()?;
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let code = object.get("code")?.as_u64().filter(|code| *code != 0)?;
    Some(Failure { code, message: text("msg"), details: text("details") })
}

/// Parses another plugin's reply to VERSION (`PluginDecoder.Decode`, CNI library).
pub fn parse_versions(text: &str) -> Option<Vec<String>> {
    let object: Value = serde_json::from_str(text).ok()?;
    let texts = |list: &Vec<Value>| list.iter().map(|one| one.as_str().map(str::to_owned)).collect();
    match object.get("supportedVersions").and_then(Value::as_array).filter(|list| !list.is_empty()) {
        Some(list) => texts(list),
        // The list came after this version.
        None if object["cniVersion"] == "0.2.0" => Some(vec!["0.1.0".to_owned(), "0.2.0".to_owned()]),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_error_survives_the_round_trip() {
        let failure = Failure::new(Code::TryAgain, "not ready", "no file").and("start the daemon");
        let text = error(&failure, Some("0.3.1"));
        assert_eq!(
            serde_json::from_str::<Value>(&text).expect("JSON"),
            json!({
                "cniVersion": "0.3.1", "code": 11, "msg": "not ready", "details": "no file; start the daemon"
            })
        );
        assert_eq!(parse_error(&text), Some(failure));
        let bare = Failure::new(Code::Io, "x", "");
        assert!(error(&bare, None).contains("1.1.0") && !error(&bare, None).contains("details"));
    }

    #[test]
    fn text_that_is_not_an_error_object_does_not_parse() {
        for text in
            ["", "{}", "[]", "1", "{\"code\":0}", "{\"code\":\"7\"}", "{\"code\":-7}", "{\"msg\":\"x\"}"]
        {
            assert_eq!(parse_error(text), None, "{text}");
        }
    }

    #[test]
    fn supported_versions_are_a_list_or_nothing() {
        let some = |list: &[&str]| Some(list.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
        for (text, expected) in [
            (r#"{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}"#, some(&["0.4.0", "1.0.0"])),
            (r#"{"cniVersion":"0.2.0"}"#, some(&["0.1.0", "0.2.0"])),
            (r#"{"cniVersion":"1.0.0"}"#, None),
            (r#"{"supportedVersions":[]}"#, None),
            (r#"{"supportedVersions":[1]}"#, None),
            (r#"{"supportedVersions":"1.0.0"}"#, None),
            ("[]", None),
            ("", None),
        ] {
            assert_eq!(parse_versions(text), expected, "{text}");
        }
        assert_eq!(parse_versions(&versions()), some(&VERSIONS));
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in ".*") {
            parse_versions(&text);
            parse_error(&text);
        }
    }
}
