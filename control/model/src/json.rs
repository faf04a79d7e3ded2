//! A JSON object read by the rules of Go's `encoding/json`, which flannel's formats inherit.
//!
//! Keys match regardless of case, the last of several equal keys wins, `null` leaves the default, an integer
//! has no fraction and no exponent, and values are never converted between types.

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::members::{Members, fold};
use crate::secrets::redact;

/// One object, and the keys that were read from it.
pub(crate) struct Object {
    members: Vec<(String, Box<RawValue>)>,
    known: Vec<&'static str>,
}

/// A value of the wrong type for its key.
#[derive(Debug)]
pub(crate) struct Mismatch {
    /// The value as written, shortened.
    pub(crate) value: String,
    /// The values that the key accepts.
    pub(crate) wanted: &'static str,
}

impl Object {
    /// Parses a text that consists of one object.
    pub(crate) fn parse(text: &str) -> Result<Object, serde_json::Error> {
        serde_json::from_str::<Members>(text).map(|Members(members)| Object { members, known: Vec::new() })
    }

    /// Returns the text under `key`, if present. A `null` is returned as such.
    pub(crate) fn raw(&mut self, key: &'static str) -> Option<&RawValue> {
        self.known.push(key);
        self.members.iter().rev().find(|(name, _)| fold(name) == fold(key)).map(|(_, value)| &**value)
    }

    pub(crate) fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, Mismatch> {
        self.typed(key, "true or false")
    }

    pub(crate) fn string(&mut self, key: &'static str) -> Result<Option<String>, Mismatch> {
        self.typed(key, "a string")
    }

    /// Reads a whole number, in a type wide enough for every range that callers check afterwards.
    pub(crate) fn integer(&mut self, key: &'static str) -> Result<Option<i64>, Mismatch> {
        self.typed(key, "a whole number, without quotes, fraction or exponent")
    }

    /// Returns the keys, as written, that no call has read.
    pub(crate) fn unknown(&self) -> Vec<&str> {
        let is_known = |name: &str| self.known.iter().any(|key| fold(key) == fold(name));
        self.members.iter().map(|(name, _)| name.as_str()).filter(|name| !is_known(name)).collect()
    }

    /// Returns an unknown key that may be meant for this one, a letter or two from it.
    pub(crate) fn misspelt(&self, key: &str) -> Option<&str> {
        let distance = |name: &&str| strsim::damerau_levenshtein(&fold(name), &fold(key));
        let nearest = self.unknown().into_iter().min_by_key(distance)?;
        (distance(&nearest) <= (key.len() / 3).clamp(1, 2)).then_some(nearest)
    }

    /// Returns the known key that an unknown one may stand for.
    pub(crate) fn meant(&self, name: &str) -> Option<&'static str> {
        let distance = |key: &&'static str| strsim::damerau_levenshtein(&fold(name), &fold(key));
        let nearest = self.known.iter().copied().min_by_key(|key| distance(key))?;
        (distance(&nearest) <= (nearest.len() / 3).clamp(1, 2)).then_some(nearest)
    }

    /// Returns the last value that is not null, because in Go each assignment overwrites the previous one.
    fn typed<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        wanted: &'static str,
    ) -> Result<Option<T>, Mismatch> {
        self.known.push(key);
        let mut last = None;
        for (_, value) in self.members.iter().filter(|(name, _)| fold(name) == fold(key)) {
            let parsed = serde_json::from_str::<Option<T>>(value.get())
                .map_err(|_| Mismatch { value: shorten(&redact(value.get())), wanted })?;
            last = parsed.or(last);
        }
        Ok(last)
    }
}

/// Shortens a value to fit on a line of the log.
pub(crate) fn shorten(text: &str) -> String {
    const LONGEST: usize = 80;
    // Blanks are not collapsed, because a stray one may be the mistake.
    let line = text.replace(char::is_control, " ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_without_case_and_the_last_one_wins() {
        let mut object = Object::parse(r#"{"port":1,"Port":2,"PORT":3,"extra":0}"#).unwrap();
        assert_eq!(object.integer("Port").unwrap(), Some(3));
        assert_eq!(object.unknown(), ["extra"]);
    }

    #[test]
    fn null_leaves_the_earlier_value() {
        let mut object = Object::parse(r#"{"a":7,"A":null,"b":null}"#).unwrap();
        assert_eq!(object.integer("A").unwrap(), Some(7));
        assert_eq!(object.boolean("b").unwrap(), None);
        assert_eq!(object.string("absent").unwrap(), None);
    }

    #[test]
    fn two_letters_fold_to_ascii() {
        let mut object = Object::parse("{\"\u{17f}ubnetLen\":28,\"\u{212a}ey\":1}").unwrap();
        assert_eq!(object.integer("SubnetLen").unwrap(), Some(28));
        assert_eq!(object.integer("key").unwrap(), Some(1));
    }

    #[test]
    fn nothing_is_converted() {
        for text in [r#""24""#, "24.0", "2.4e1", "true", "[]", "{}", "99999999999999999999"] {
            let mut object = Object::parse(&format!(r#"{{"n":{text}}}"#)).unwrap();
            assert!(object.integer("n").is_err(), "{text}");
        }
        let mut object = Object::parse(r#"{"s":10,"b":"true"}"#).unwrap();
        assert_eq!(object.string("s").unwrap_err().value, "10");
        assert!(object.boolean("b").is_err());
    }

    #[test]
    fn only_a_single_complete_object_parses() {
        for text in ["", "null", "[]", "7", "{", "{} {}", "{}x", r#"{"a":}"#, "{'a':1}", "// c\n{}"] {
            assert!(Object::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn long_values_are_cut_at_a_character_boundary() {
        let text = "ä".repeat(200);
        assert_eq!(shorten(&text).chars().count(), 83);
    }
}
