//! The engine's counters for people and for tools: log lines on request, and a JSON file.

use std::fs;
use std::io;
use std::path::Path;

use engine::{Engine, TunnelStatus};
use serde_json::{Map, Value, json};

/// Logs every counter that is not zero, one line each.
pub fn log(engine: &Engine) {
    for tunnel in engine.status().tunnels {
        let totals: Vec<_> = tunnel.totals().into_iter().filter(|(_, value)| *value != 0).collect();
        tracing::info!(device = %tunnel.device, "{} counters are not zero", totals.len());
        for (name, value) in totals {
            tracing::info!(device = %tunnel.device, "{name} {value}");
        }
    }
}

/// Replaces the file with the counters as they are now. Readers see the old text or the new one.
pub fn write(engine: &Engine, path: &Path) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let text = format!("{:#}\n", json(engine));
    fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path))
}

/// Counters and chosen features by tunnel.
fn json(engine: &Engine) -> Value {
    let chosen = engine.chosen();
    let tunnels = engine.status().tunnels.into_iter().zip(chosen).map(|(tunnel, chosen)| {
        let features: Map<String, Value> =
            chosen.features.named().into_iter().map(|(name, on)| (name.to_owned(), on.into())).collect();
        json!({
            "device": tunnel.device,
            "features": features,
            "syscalls": tunnel.syscalls(),
            "totals": object(tunnel.totals()),
            "workers": workers(&tunnel),
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
