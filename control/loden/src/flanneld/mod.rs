//! flanneld's command line: Go's form of flags, and `FLANNELD_*` variables.
//!
//! The rules are those of Go's package `flag`: one dash or two, `-name value` or `-name=value`, booleans
//! without a value or with `=`, the end at `--` or at the first argument that is no flag. Unlike flannel,
//! which ends with code 0 and the whole usage text on a flag it does not know, [`parse`] gives a reason.
//!
//! ```text
//! go       values
//! table    the flags
//! usage    what -h prints
//! ```

mod go;
mod table;
mod usage;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use self::table::{Filled, Flag, GONE, Kind};
use crate::options::RunOptions;

pub(crate) use self::usage::usage;

/// What begins the name of a variable that stands for a flag.
const PREFIX: &str = "FLANNELD_";

/// Flags that say who this node is.
const IDENTITY: [&str; 3] = ["public-ip", "public-ipv6", "iface-can-reach"];

/// From this `-v` on we say more. klog's users go to 2 for more and to 6 for all.
const MORE: i32 = 2;
const ALL: i32 = 6;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// To run.
    Run(Box<Invocation>),
    /// To print the version.
    Version,
    /// To print how it is used.
    Usage,
}

/// A daemon to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// The same value that `loden run` gets from clap.
    pub options: RunOptions,
    /// As many as `-v` of `loden run`.
    pub verbose: u8,
    /// What was wrong and is being ignored: to be logged.
    pub complaints: Vec<String>,
}

/// Why the command line makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadFlag(String);

/// Whether the program was called by flanneld's name.
pub(crate) fn is_named_so(program: Option<&OsStr>) -> bool {
    crate::options::is_called(program, &["flanneld"])
}

/// Reads the arguments, without the program's name, and the environment.
///
/// The command line wins over the environment. A variable with a bad value is left out and complained of,
/// except one that says who this node is: a daemon with another address than asked for, or on another interface,
/// harms others.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Request, BadFlag> {
    let mut filled = Filled::default();
    let mut complaints = Vec::new();
    let mut seen = BTreeSet::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let argument = text(&argument)?;
        let dashes = if argument.starts_with("--") { 2 } else { usize::from(argument.starts_with('-')) };
        if dashes == 0 || argument == "-" {
            complaints.push(format!(
                "the arguments from {argument:?} on are ignored: flags end where one begins without a dash, and \
                 a boolean takes its value after ="
            ));
            break;
        }
        let body = &argument[dashes..];
        if body.is_empty() {
            break;
        }
        if body.starts_with(['-', '=']) {
            return Err(BadFlag(format!("bad flag syntax: {argument}")));
        }
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let Some(flag) = table::all().find(|flag| flag.name == name) else {
            return if matches!(name, "h" | "help") { Ok(Request::Usage) } else { Err(unknown(name)) };
        };
        let value = match (value, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => "true".to_owned(),
            (None, _) => match arguments.next() {
                Some(value) => text(&value)?,
                None => return Err(BadFlag(format!("flag needs an argument: -{name}"))),
            },
        };
        (flag.set)(&mut filled, &value).map_err(|why| invalid(flag, &value, &why))?;
        seen.insert(flag.name);
    }
    if filled.version {
        return Ok(Request::Version);
    }
    for flag in table::all().filter(|flag| !seen.contains(flag.name)) {
        apply_variable(flag, &environment, &mut filled, &mut complaints)?;
    }
    let verbose = u8::from(filled.verbosity >= MORE) + u8::from(filled.verbosity >= ALL);
    Ok(Request::Run(Box::new(Invocation { options: filled.options, verbose, complaints })))
}

fn apply_variable(
    flag: &Flag,
    environment: &impl Fn(&str) -> Option<OsString>,
    filled: &mut Filled,
    complaints: &mut Vec<String>,
) -> Result<(), BadFlag> {
    let name = variable(flag.name);
    let Some(value) = environment(&name).filter(|value| !value.is_empty()) else { return Ok(()) };
    // By then it is too late for flannel as well.
    if flag.name == "version" {
        return Ok(());
    }
    // A setter may have begun before it fails.
    let mut changed = filled.clone();
    let result = match value.to_str() {
        Some(value) => (flag.set)(&mut changed, value).map_err(|why| format!("{name}={value:?}: {why}")),
        None => Err(format!("{name}: not UTF-8")),
    };
    match result {
        Ok(()) => *filled = changed,
        Err(why) if IDENTITY.contains(&flag.name) => return Err(BadFlag(why)),
        Err(why) => complaints.push(format!("{why}; the variable is ignored")),
    }
    Ok(())
}

/// The variable that stands for a flag.
fn variable(flag: &str) -> String {
    format!("{PREFIX}{}", flag.to_ascii_uppercase().replace(['-', '.'], "_"))
}

fn text(argument: &OsStr) -> Result<String, BadFlag> {
    let refused = || BadFlag(format!("the argument {argument:?} is not UTF-8"));
    argument.to_str().map(str::to_owned).ok_or_else(refused)
}

fn unknown(name: &str) -> BadFlag {
    let gone = GONE.iter().find(|(gone, _)| *gone == name);
    let why = gone.map(|(_, why)| format!(": {why}")).unwrap_or_default();
    BadFlag(format!("flag provided but not defined: -{name}{why}"))
}

fn invalid(flag: &Flag, value: &str, why: &str) -> BadFlag {
    BadFlag(match flag.kind {
        Kind::Bool => format!("invalid boolean value {value:?} for -{}: {why}", flag.name),
        _ => format!("invalid value {value:?} for flag -{}: {why}", flag.name),
    })
}

#[cfg(test)]
mod tests;
