//! The usage text that `-h` prints.

use std::fmt::Write as _;

use super::table::{FLANNEL, Flag, Kind, OWN};

/// Returns the usage text in the form of Go's `flag` package.
pub(crate) fn usage() -> String {
    let mut text = String::from(
        "Usage: flanneld [OPTION]...\n\n\
         loden as a drop-in for flanneld. Flags take one dash or two. Each can be set by a variable: -iface\n\
         by FLANNELD_IFACE. The command line takes precedence.\n\n",
    );
    FLANNEL.iter().for_each(|flag| describe(&mut text, flag));
    text.push_str("\nFlags of loden:\n\n");
    OWN.iter().for_each(|flag| describe(&mut text, flag));
    text
}

fn describe(text: &mut String, flag: &Flag) {
    let word = match flag.kind {
        Kind::Bool => "",
        Kind::Int => " int",
        Kind::Text => " string",
        Kind::List => " string, repeatable",
    };
    let default = match (flag.default, flag.kind) {
        // Go omits zero values.
        ("" | "0" | "false", _) => String::new(),
        (default, Kind::Text) => format!(" (default {default:?})"),
        (default, _) => format!(" (default {default})"),
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "  -{}{word}\n        {}{default}", flag.name, flag.help);
}
