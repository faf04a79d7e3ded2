//! `loden status`: queries the daemons of this host and prints their status.

mod render;

use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use control::persist::instance::Instance;
use control::serve::status_socket::{is_absent, query};

use crate::options::StatusOptions;
use crate::output::{print, say};

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
            Err(error) if is_absent(&error) => say(format_args!("{}: not running", instance.name())),
            Err(error) => {
                let what = cannot_query(&instance.socket(), &error);
                return Err(error).context(what);
            }
        }
    }
    if documents.is_empty() {
        bail!("no daemon runs with --run-dir {}; start one with loden run", options.run_dir.display());
    }
    if options.json {
        print(&format!("{:#}\n", serde_json::json!({ "daemons": documents })))?;
    } else {
        let texts: Vec<String> = documents.iter().map(render::text).collect();
        print(&texts.join("\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn cannot_query(path: &Path, error: &io::Error) -> String {
    let why = match error.kind() {
        ErrorKind::PermissionDenied => "only root can use the socket",
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "it does not answer: it hangs, or is stopped",
        _ => "is it a daemon of this version?",
    };
    format!("cannot query the daemon at {}; {why}", path.display())
}
