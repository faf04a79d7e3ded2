//! `loden status`: queries the daemons of this host and prints their status.

mod render;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use control::persist::instance::Instance;
use control::serve::status_socket::{is_absent, query};

use crate::options::StatusOptions;

/// Queries the daemons and prints their status.
pub(crate) fn run(options: &StatusOptions) -> anyhow::Result<ExitCode> {
    let instances = match &options.instance {
        Some(name) => vec![Instance::new(name, &options.run_dir)?],
        None => Instance::all(&options.run_dir),
    };
    let mut documents = Vec::new();
    for instance in &instances {
        match query(&instance.socket()) {
            Ok(document) => documents.push(document),
            Err(error) if is_absent(&error) => eprintln!("{}: not running", instance.name()),
            Err(error) => return Err(error).with_context(|| cannot_query(&instance.socket())),
        }
    }
    if documents.is_empty() {
        bail!("no daemon runs with --run-dir {}; start one with loden run", options.run_dir.display());
    }
    if options.json {
        println!("{:#}", serde_json::json!({ "daemons": documents }));
    } else {
        let texts: Vec<String> = documents.iter().map(render::text).collect();
        print!("{}", texts.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

fn cannot_query(path: &Path) -> String {
    format!("cannot query the daemon at {}; only root can use the socket", path.display())
}
