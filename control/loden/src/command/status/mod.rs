//! `loden status`: asks the daemons of this host and prints what they say.

mod render;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use control::persist::instance::Places;
use control::serve::status_socket::{ask, is_absent};

use crate::options::StatusOptions;

/// Asks the daemons and prints what they say.
pub(crate) fn run(options: &StatusOptions) -> anyhow::Result<ExitCode> {
    let places = match &options.instance {
        Some(name) => vec![Places::new(name, &options.run_dir)?],
        None => Places::all(&options.run_dir),
    };
    let mut documents = Vec::new();
    for places in &places {
        match ask(&places.socket()) {
            Ok(document) => documents.push(document),
            Err(error) if is_absent(&error) => eprintln!("{}: not running", places.name()),
            Err(error) => return Err(error).with_context(|| cannot_ask(&places.socket())),
        }
    }
    if documents.is_empty() {
        bail!("no daemon runs with --run-dir {}; loden run starts one", options.run_dir.display());
    }
    if options.json {
        println!("{:#}", serde_json::json!({ "daemons": documents }));
    } else {
        let texts: Vec<String> = documents.iter().map(render::text).collect();
        print!("{}", texts.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

fn cannot_ask(path: &Path) -> String {
    format!("cannot ask the daemon at {}; the socket is for root alone", path.display())
}
