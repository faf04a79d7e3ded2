//! `loden-cni`: reads the request, runs it and prints the reply.

use std::io::{Read, Write, stdin, stdout};
use std::process::ExitCode;

use cni_plugin::files::MAX_CONFIGURATION;
use cni_plugin::reply::{self, Code, Failure};
use cni_plugin::request::{self, Environment, Request, Verb};
use cni_plugin::verbs::{self, Timeouts};

fn main() -> ExitCode {
    let environment = Environment::read(|name| std::env::var(name).ok());
    let Some(verb) = environment.verb.clone() else {
        eprint!("{}", reply::about());
        return ExitCode::SUCCESS;
    };
    let mut version = None;
    let answer = Verb::parse(&verb).and_then(|parsed| {
        let text = if parsed.needs_configuration() { read_stdin()? } else { String::new() };
        version = request::version_of(&text);
        let request = Request::check(&verb, environment, &text)?;
        verbs::run(&request, Timeouts::default())
    });
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(failure) => (reply::error(&failure, version.as_deref()), ExitCode::FAILURE),
    };
    // If the runtime does not read, there is no one left to notify.
    let _ = stdout().write_all(text.as_bytes());
    code
}

fn read_stdin() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    stdin()
        .take(MAX_CONFIGURATION + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::new(Code::Io, "cannot read the configuration from stdin", error))?;
    if bytes.len() as u64 > MAX_CONFIGURATION {
        return Err(Failure::new(
            Code::Decoding,
            "the configuration on stdin is too long",
            format!("more than {} MiB", MAX_CONFIGURATION >> 20),
        ));
    }
    String::from_utf8(bytes)
        .map_err(|error| Failure::new(Code::Decoding, "the configuration on stdin is not UTF-8", error))
}
