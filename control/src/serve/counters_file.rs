//! The engine's counters as log lines on request, and as a JSON file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use engine::{Engine, Status, TunnelStatus};
use nix::libc::O_NONBLOCK;
use serde_json::{Map, Value, json};
use store::regular;

use crate::persist::atomic_file;

/// Logs every non-zero counter, one line each.
pub fn log(engine: &Engine) {
    for tunnel in engine.status().tunnels {
        let totals: Vec<_> = tunnel.totals().into_iter().filter(|(_, value)| *value != 0).collect();
        tracing::info!(device = %tunnel.device, "{} non-zero counters", totals.len());
        for (name, value) in totals {
            tracing::info!(device = %tunnel.device, "{name} {value}");
        }
    }
}

/// The JSON file, and the counters last written to it.
#[derive(Debug)]
pub struct CountersFile {
    path: PathBuf,
    written: Option<Status>,
}

impl CountersFile {
    /// Prepares to write to this path.
    pub fn new(path: PathBuf) -> CountersFile {
        CountersFile { path, written: None }
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the file with the current counters; readers see the old text or the new one. If no counter
    /// has changed, only the file's modification time is updated, which is cheaper.
    pub fn write(&mut self, engine: &Engine) -> io::Result<()> {
        let status = engine.status();
        if self.written.as_ref() == Some(&status) && self.touch().is_ok() {
            return Ok(());
        }
        atomic_file::check_target(&self.path)?;
        let mut temporary = self.path.as_os_str().to_owned();
        temporary.push(".new");
        let text = format!("{:#}\n", json(engine, &status));
        open(Path::new(&temporary), OpenOptions::new().create(true).truncate(true))?
            .write_all(text.as_bytes())
            .and_then(|()| fs::rename(&temporary, &self.path))?;
        self.written = Some(status);
        Ok(())
    }

    fn touch(&self) -> io::Result<()> {
        open(&self.path, &mut OpenOptions::new())?.set_modified(SystemTime::now())
    }
}

/// Opens a regular file for writing; a FIFO would keep its writer waiting.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.write(true).custom_flags(O_NONBLOCK).open(path)?;
    regular::check(&file.metadata()?)?;
    Ok(file)
}

/// Renders counters and chosen features by tunnel.
fn json(engine: &Engine, status: &Status) -> Value {
    let chosen = engine.chosen();
    let tunnels = status.tunnels.iter().zip(chosen).map(|(tunnel, chosen)| {
        let features: Map<String, Value> =
            chosen.features.named().into_iter().map(|(name, on)| (name.to_owned(), on.into())).collect();
        json!({
            "device": tunnel.device,
            "features": features,
            "syscalls": tunnel.syscalls(),
            "totals": object(tunnel.totals()),
            "unread": { "egress": tunnel.unread.egress, "ingress": tunnel.unread.ingress },
            "workers": workers(tunnel),
        })
    });
    json!({ "tunnels": tunnels.collect::<Vec<_>>() })
}

fn workers(tunnel: &TunnelStatus) -> Vec<Value> {
    tunnel.workers.iter().map(|counters| object(counters.clone())).collect()
}

fn object(counters: Vec<(String, u64)>) -> Value {
    Value::Object(counters.into_iter().map(|(name, value)| (name, value.into())).collect())
}
