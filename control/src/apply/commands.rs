//! The operator's commands of the `extension` backend.
//!
//! As in flannel, commands run without a shell: a command is split at blanks, then `$NAME` and `${NAME}` in
//! each word are replaced from the event's variables and the environment. Quotes and pipes have no meaning.

use std::collections::BTreeMap;
use std::io;
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::children;
use crate::plan::{CommandPeer, Commands};

/// The failure of a command.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The command could not be started or waited for.
    #[error("cannot run the command {command:?}: {source}; commands run without a shell")]
    Start {
        /// The command as configured.
        command: String,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The command exited with an error.
    #[error("the command {command:?} failed ({status}): {output}")]
    Failed {
        /// The command as configured.
        command: String,
        /// The exit status.
        status: ExitStatus,
        /// The text that the command printed.
        output: String,
    },
}

/// Runs one command to completion. Returns everything it printed to stdout and stderr, trimmed.
///
/// The command inherits our environment plus `variables`, and reads `stdin` followed by a newline.
pub async fn run(
    command: &str,
    variables: &[(&'static str, String)],
    stdin: &str,
) -> Result<String, CommandError> {
    let failed = |source| CommandError::Start { command: command.to_owned(), source };
    let mut words = command.split_ascii_whitespace().map(|word| expand(word, variables));
    let Some(program) = words.next() else {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "the command is blank")));
    };
    // One pipe for both outputs preserves their order.
    let (reader, writer) = io::pipe().map_err(failed)?;
    let mut reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(failed)?;
    let mut process = Command::new(program);
    process
        .args(words)
        .envs(variables.iter().map(|(name, value)| (*name, value.as_str())))
        .stdin(Stdio::piped())
        .stdout(writer.try_clone().map_err(failed)?)
        .stderr(writer);
    let (mut child, _ours) = children::spawn(&mut process).map_err(failed)?;
    // Leaves only the child's copies of the pipe's write end open.
    drop(process);
    let mut input = child.stdin.take();
    let line = format!("{stdin}\n");
    let feed = async move {
        if let Some(input) = &mut input {
            // A command may exit without reading its input.
            let _ = input.write_all(line.as_bytes()).await;
        }
    };
    let gather = async move {
        let mut output = Vec::new();
        reader.read_to_end(&mut output).await.map(|_| output)
    };
    let (status, output, ()) = tokio::join!(child.wait(), gather, feed);
    let status = status.map_err(failed)?;
    let output = output.map_err(failed)?;
    let output = String::from_utf8_lossy(&output).trim().to_owned();
    if status.success() {
        return Ok(output);
    }
    Err(CommandError::Failed { command: command.to_owned(), status, output })
}

/// Runs the operator's commands as peers come and go. The commands run one after another on their own task,
/// so that a slow one delays only the next; a failure is logged and, as in flannel, not retried.
#[derive(Debug, Default)]
pub(super) struct Runner {
    known: BTreeMap<String, CommandPeer>,
    queue: Option<mpsc::UnboundedSender<Call>>,
}

#[derive(Debug)]
struct Call {
    command: String,
    peer: CommandPeer,
}

impl Runner {
    /// Queues a call for every peer that appeared, changed or left. Returns the number of calls.
    pub(super) fn apply(&mut self, wanted: &Commands) -> usize {
        let calls = diff(&self.known, wanted);
        self.known.clone_from(&wanted.peers);
        let made = calls.len();
        if made > 0 {
            for call in calls {
                let queue = self.queue.get_or_insert_with(start);
                if let Err(unsent) = queue.send(call) {
                    // The task has ended, which it never should: the calls that waited are lost with it.
                    let queue = self.queue.insert(start());
                    let _ = queue.send(unsent.0);
                }
            }
        }
        made
    }
}

fn diff(known: &BTreeMap<String, CommandPeer>, wanted: &Commands) -> Vec<Call> {
    let call = |command: &String, peer: &CommandPeer| Call { command: command.clone(), peer: peer.clone() };
    let gone = known.iter().filter(|(key, _)| !wanted.peers.contains_key(*key));
    let new = wanted.peers.iter().filter(|(key, peer)| known.get(*key) != Some(peer));
    let removals = gone.map(|(_, peer)| call(&wanted.remove, peer));
    let calls = removals.chain(new.map(|(_, peer)| call(&wanted.add, peer)));
    calls.filter(|call| !call.command.trim().is_empty()).collect()
}

fn start() -> mpsc::UnboundedSender<Call> {
    let (sender, mut calls) = mpsc::unbounded_channel::<Call>();
    tokio::spawn(async move {
        while let Some(Call { command, peer }) = calls.recv().await {
            match run(&command, &peer.variables, &peer.stdin).await {
                Ok(output) => tracing::info!(command, output, "ran a command for a peer"),
                Err(error) => tracing::error!("{error}"),
            }
        }
    });
    sender
}

/// Expands variables as Go's `os.Expand` does: an unknown name becomes empty, a lone `$` stays.
fn expand(word: &str, variables: &[(&'static str, String)]) -> String {
    let value = |name: &str| match variables.iter().find(|(known, _)| *known == name) {
        Some((_, value)) => value.clone(),
        None => std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default(),
    };
    let mut out = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = after;
        if let Some(braced) = after.strip_prefix('{') {
            // An unclosed brace is a syntax error; Go drops the two characters.
            rest = match braced.split_once('}') {
                Some((name, tail)) => {
                    out.push_str(&value(name));
                    tail
                }
                None => braced,
            };
            continue;
        }
        let is_special = |c: char| c.is_ascii_digit() || "*#$@!?-".contains(c);
        let name = match after.chars().next() {
            Some(first) if is_special(first) => &after[..1],
            _ => {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                &after[..end.unwrap_or(after.len())]
            }
        };
        if name.is_empty() {
            out.push('$');
        } else {
            out.push_str(&value(name));
            rest = &after[name.len()..];
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand_as_in_go() {
        let variables = [("SUBNET", "10.5.1.0/24".to_owned()), ("A", "x".to_owned())];
        for (word, expected) in [
            ("$SUBNET", "10.5.1.0/24"),
            ("${SUBNET}dev", "10.5.1.0/24dev"),
            ("$Adev", ""),
            ("${A}dev-$A", "xdev-x"),
            ("no$LODEN_NO_SUCH_THING!", "no!"),
            ("100$", "100$"),
            ("$.$A", "$.x"),
            ("$$A$1", "A"),
            ("${A", "A"),
            ("ü$Aü", "üxü"),
            ("'$A'|;", "'x'|;"),
        ] {
            assert_eq!(expand(word, &variables), expected, "{word}");
        }
    }

    #[tokio::test]
    async fn a_command_gets_words_variables_and_input_and_no_shell() {
        let variables = [("SUBNET", "10.5.1.0/24".to_owned())];
        assert_eq!(run("echo $SUBNET  'a  b' ; ls", &variables, "").await.unwrap(), "10.5.1.0/24 'a b' ; ls");
        assert_eq!(run("printenv SUBNET", &variables, "").await.unwrap(), "10.5.1.0/24");
        assert_eq!(run("cat", &[], "data").await.unwrap(), "data");
        assert_eq!(run("od -c", &[], "").await.unwrap(), "0000000  \\n\n0000001");
    }

    #[tokio::test]
    async fn failures_carry_both_outputs_and_the_command() {
        let error = run("ls /no-such-place", &[], "").await.unwrap_err().to_string();
        assert!(error.contains("no-such-place") && error.contains("exit status: 2"), "{error}");
        let error = run("/no/such/program --x", &[], "").await.unwrap_err().to_string();
        assert!(error.contains("/no/such/program") && error.contains("without a shell"), "{error}");
        assert!(run(" ", &[], "").await.is_err());
    }

    #[tokio::test]
    async fn a_megabyte_of_unread_input_or_of_output_does_not_hang() {
        assert_eq!(run("true", &[], &"x".repeat(1 << 20)).await.unwrap(), "");
        assert_eq!(run("cat", &[], &"x".repeat(1 << 20)).await.unwrap().len(), 1 << 20);
    }

    #[test]
    fn peers_are_told_once_and_again_when_they_change() {
        let peer = |stdin: &str| CommandPeer { variables: Vec::new(), stdin: stdin.to_owned() };
        let wanted = |peers: &[(&str, &str)]| Commands {
            add: "add".into(),
            remove: "remove".into(),
            peers: peers.iter().map(|(key, stdin)| ((*key).to_owned(), peer(stdin))).collect(),
        };
        let texts = |known: &[(&str, &str)], now: &[(&str, &str)]| {
            let calls = diff(&wanted(known).peers, &wanted(now));
            calls.iter().map(|call| format!("{} {}", call.command, call.peer.stdin)).collect::<Vec<_>>()
        };
        assert_eq!(texts(&[], &[("a", "1"), ("b", "2")]), ["add 1", "add 2"]);
        assert!(texts(&[("a", "1")], &[("a", "1")]).is_empty());
        assert_eq!(texts(&[("a", "1"), ("b", "2")], &[("b", "3")]), ["remove 1", "add 3"]);
        let silent = Commands { add: " ".into(), ..wanted(&[("a", "1")]) };
        assert!(diff(&BTreeMap::new(), &silent).is_empty());
    }
}
