//! What `-h` prints.

use std::fmt::Write as _;

use super::table::{FLANNEL, Flag, Kind, OWN};

/// The usage text, in the form of Go's `flag` package.
pub(crate) fn usage() -> String {
    let mut text = String::from(
        "Usage: flanneld [OPTION]...\n\n\
         loden in the place of flanneld. Each flag takes one dash or two, and has a variable: -iface is\n\
         FLANNELD_IFACE; the command line wins.\n\n",
    );
    FLANNEL.iter().for_each(|flag| describe(&mut text, flag));
    text.push_str("\nloden's own:\n\n");
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
        // Go leaves out the defaults that say nothing.
        ("" | "0" | "false", _) => String::new(),
        (default, Kind::Text) => format!(" (default {default:?})"),
        (default, _) => format!(" (default {default})"),
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "  -{}{word}\n        {}{default}", flag.name, flag.help);
}
