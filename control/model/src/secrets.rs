//! A network configuration for logs: without pre-shared keys, passwords and the like.

use serde_json::value::RawValue;

use crate::members::{Members, fold};

/// The replacement for a hidden value.
const HIDDEN: &str = r#""(hidden)""#;
/// Words in a key, or in a text such as a command, that suggest a secret.
const WORDS: [&str; 6] = ["psk", "key", "secret", "password", "token", "credential"];
/// Maximum depth of nesting. No real configuration is deeper; one that is may be meant to exhaust the stack.
const DEEPEST: usize = 8;

/// Returns `text` with every secret value hidden, at any depth and however its key is written. Text that is
/// not JSON is hidden completely, because there is no telling where a secret starts.
pub fn redact(text: &str) -> String {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(value) => redact_value(value.get(), 0),
        Err(_) => format!("({} bytes that are not JSON)", text.len()),
    }
}

fn redact_value(value: &str, depth: usize) -> String {
    if depth > DEEPEST {
        return HIDDEN.to_owned();
    }
    let inside = |value: &RawValue| redact_value(value.get(), depth + 1);
    if let Ok(Members(members)) = serde_json::from_str(value) {
        let member = |(key, value): &(String, Box<RawValue>)| {
            let value = if suggests_secret(key) { HIDDEN.to_owned() } else { inside(value) };
            format!("{}:{value}", serde_json::Value::from(key.as_str()))
        };
        return format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","));
    }
    if let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(value) {
        return format!("[{}]", list.into_iter().map(inside).collect::<Vec<_>>().join(","));
    }
    match serde_json::from_str::<String>(value) {
        Ok(text) if suggests_secret(&text) => HIDDEN.to_owned(),
        _ => value.to_owned(),
    }
}

fn suggests_secret(text: &str) -> bool {
    let text = fold(text);
    WORDS.iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_are_hidden_wherever_they_are_and_the_rest_is_as_written() {
        for (text, expected) in [
            (
                r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard", "PSK": "s3cret"}}"#,
                r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard","PSK":"(hidden)"}}"#,
            ),
            (r#"{"psk":"s3cret","pSK":{"a":"s3cret"}}"#, r#"{"psk":"(hidden)","pSK":"(hidden)"}"#),
            ("{\"P\\u0053\u{212a}\":\"s3cret\"}", "{\"PS\u{212a}\":\"(hidden)\"}"),
            (
                r#"{"Backend":{"AccessKeyID":"s3cret","accesskeysecret":["s3cret"]}}"#,
                r#"{"Backend":{"AccessKeyID":"(hidden)","accesskeysecret":"(hidden)"}}"#,
            ),
            (r#"[{"a":[7,{"Password":"s3cret"}]},true]"#, r#"[{"a":[7,{"Password":"(hidden)"}]},true]"#),
            (r#"{"Backend":"{\"PSK\":\"s3cret\"}"}"#, r#"{"Backend":"(hidden)"}"#),
            (r#"{"SubnetAddCommand":"tell --token s3cret"}"#, r#"{"SubnetAddCommand":"(hidden)"}"#),
            (r#"{"PSK":"s3cret""#, "(15 bytes that are not JSON)"),
            ("PSK=s3cret", "(10 bytes that are not JSON)"),
            ("", "(0 bytes that are not JSON)"),
        ] {
            assert_eq!(redact(text), expected, "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(redact(&deep).len() < 100);
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            redact(&text);
        }
    }
}
