//! flanneld's command line: Go's form of flags, and `FLANNELD_*` variables.
//!
//! The rules are those of Go's package `flag`: one dash or two, `-name value` or `-name=value`, booleans
//! without a value or with `=`, the end at `--` or at the first argument that is not a flag. flannel answers
//! an unknown flag with the whole usage text and exit code 0; [`parse`] gives a reason instead.
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

/// The prefix of a variable that stands for a flag.
const PREFIX: &str = "FLANNELD_";

/// The flags that identify this node.
const IDENTITY: [&str; 3] = ["public-ip", "public-ipv6", "iface-can-reach"];

/// The `-v` from which on more is logged. klog's users set 2 for more and 6 for everything.
const MORE: i32 = 2;
const ALL: i32 = 6;

/// The request of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Run the daemon.
    Run(Box<Invocation>),
    /// Print the version.
    Version,
    /// Print the usage text.
    Usage,
}

/// A daemon to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// The options, as `loden run` gets them from clap.
    pub options: RunOptions,
    /// The number of `-v` flags of `loden run` that this corresponds to.
    pub verbose: u8,
    /// Warnings about ignored arguments and variables, to be logged.
    pub warnings: Vec<String>,
}

/// The reason for rejecting a command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadFlag(String);

/// Tells whether the program was called `flanneld`.
pub(crate) fn is_program_name(program: Option<&OsStr>) -> bool {
    crate::options::is_called(program, &["flanneld"])
}

/// Parses the arguments, without the program's name, and the environment.
///
/// The command line takes precedence over the environment. A variable with a bad value is ignored with a
/// warning, except one that identifies this node: a daemon with the wrong address or on the wrong interface
/// harms others.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Request, BadFlag> {
    let mut filled = Filled::default();
    let mut warnings = Vec::new();
    let mut seen = BTreeSet::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let argument = text(&argument)?;
        let dashes = if argument.starts_with("--") { 2 } else { usize::from(argument.starts_with('-')) };
        if dashes == 0 || argument == "-" {
            warnings.push(format!(
                "arguments from {argument:?} on ignored: the first argument without a dash ends the flags; \
                 give a boolean its value after ="
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
        apply_variable(flag, &environment, &mut filled, &mut warnings)?;
    }
    let verbose = u8::from(filled.verbosity >= MORE) + u8::from(filled.verbosity >= ALL);
    Ok(Request::Run(Box::new(Invocation { options: filled.options, verbose, warnings })))
}

fn apply_variable(
    flag: &Flag,
    environment: &impl Fn(&str) -> Option<OsString>,
    filled: &mut Filled,
    warnings: &mut Vec<String>,
) -> Result<(), BadFlag> {
    let name = variable(flag.name);
    let Some(value) = environment(&name).filter(|value| !value.is_empty()) else { return Ok(()) };
    // flannel ignores this variable as well.
    if flag.name == "version" {
        return Ok(());
    }
    // A setter that fails may have changed something.
    let mut changed = filled.clone();
    let result = match value.to_str() {
        Some(value) => (flag.set)(&mut changed, value).map_err(|why| format!("{name}={value:?}: {why}")),
        None => Err(format!("{name}: not UTF-8")),
    };
    match result {
        Ok(()) => *filled = changed,
        Err(why) if IDENTITY.contains(&flag.name) => return Err(BadFlag(why)),
        Err(why) => warnings.push(format!("{why}; variable ignored")),
    }
    Ok(())
}

/// Returns the name of the variable that stands for a flag.
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
