//! Values as Go's `flag` package reads them.

use std::num::IntErrorKind;

/// Go's message for a value that it cannot parse.
const SYNTAX: &str = "parse error";
const RANGE: &str = "value out of range";

/// Parses a boolean (`strconv.ParseBool`).
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(SYNTAX.to_owned()),
    }
}

/// Parses an integer with Go's prefixes `0x`, `0o`, `0b` and `0`, and underscores between digits
/// (`strconv.ParseInt` with base 0).
pub(super) fn integer(text: &str) -> Result<i64, String> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, prefixed, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, true, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, true, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, true, &digits[2..]),
        [b'0', _, ..] => (8, true, &digits[1..]),
        _ => (10, false, digits),
    };
    // An underscore stands between two digits, or between a prefix and a digit.
    let lonely = digits.ends_with('_') || digits.contains("__") || (digits.starts_with('_') && !prefixed);
    let plain: String = digits.chars().filter(|character| *character != '_').collect();
    // The standard parser would take a second sign.
    if lonely || plain.is_empty() || !plain.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(SYNTAX.to_owned());
    }
    let magnitude = i128::from_str_radix(&plain, radix).map_err(|error| match error.kind() {
        IntErrorKind::PosOverflow => RANGE.to_owned(),
        _ => SYNTAX.to_owned(),
    })?;
    i64::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| RANGE.to_owned())
}

/// Parses an integer in the range of the flag's type.
pub(super) fn bounded<T: TryFrom<i64>>(text: &str) -> Result<T, String> {
    T::try_from(integer(text)?).map_err(|_| RANGE.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn booleans_are_gos_twelve_words() {
        for word in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(boolean(word), Ok(true));
        }
        for word in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(boolean(word), Ok(false));
        }
        for word in ["", "yes", "no", "on", "tRUE", " true", "2"] {
            assert!(boolean(word).is_err(), "{word:?}");
        }
    }

    #[test]
    fn integers_in_every_base() {
        for (text, value) in [
            ("0", 0),
            ("60", 60),
            ("-1", -1),
            ("+7", 7),
            ("0x1F", 31),
            ("0b101", 5),
            ("0o17", 15),
            ("017", 15),
            ("1_000", 1000),
            ("0x_ff", 255),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(integer(text), Ok(value), "{text}");
        }
        for text in ["", "-", "+-1", "--1", "1e3", "0x", "08", "1__0", "_1", "1_", " 1", "1.5", "ä"] {
            assert_eq!(integer(text), Err(SYNTAX.to_owned()), "{text}");
        }
        for text in ["9223372036854775808", "99999999999999999999999999999999999999999999999999"] {
            assert_eq!(integer(text), Err(RANGE.to_owned()), "{text}");
        }
        assert_eq!(bounded::<u16>("65536"), Err(RANGE.to_owned()));
        assert_eq!(bounded::<u16>("-1"), Err(RANGE.to_owned()));
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "\\PC{0,40}") {
            let _ = (boolean(&text), integer(&text), bounded::<u16>(&text));
        }

        #[test]
        fn decimals_come_back(value: i64) {
            prop_assert_eq!(integer(&value.to_string()), Ok(value));
        }
    }
}
