//! The raw JSON of a run: every sample, and everything else that a report needs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// Version of this layout; raised when a field changes meaning.
pub const SCHEMA: u32 = 1;

/// One run of the harness, as written to `--output`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Raw {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// The environment of the run.
    pub environment: Environment,
    /// The settings of the run.
    pub settings: Settings,
    /// Every sample of every round, in the order taken.
    pub samples: Vec<Sample>,
    /// Failed measurements, in order of occurrence.
    #[serde(default)]
    pub failures: Vec<Failure>,
    /// Notes that a reader must know before trusting the figures.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The machine and the source that produced the figures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Environment {
    /// Kernel release.
    pub kernel: String,
    /// CPU model name.
    pub cpu: String,
    /// Number of CPUs online.
    pub cores: usize,
    /// Commit of the source tree, with `+changes` if it was edited; `unknown` outside a checkout.
    pub commit: String,
    /// Start of the run, UTC, RFC 3339.
    pub date: String,
    /// The command as typed.
    pub command_line: Vec<String>,
}

/// The settings of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Settings {
    /// Rounds per testbed.
    pub rounds: u32,
    /// Seconds per load.
    pub seconds: f64,
    /// Subject that the others are compared to.
    pub baseline: String,
    /// Extra flags given to `loden run`.
    pub loden_args: Vec<String>,
}

/// One load, run once against one subject.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Testbed by name.
    pub testbed: String,
    /// Subject by name.
    pub subject: String,
    /// Load by name.
    pub load: String,
    /// Round, from 1.
    pub round: u32,
    /// The figures, by key of [`crate::scenario::METRICS`].
    pub metrics: BTreeMap<String, f64>,
    /// CPU seconds of the whole machine during the load, by kind (`busy`, `softirq`, …).
    #[serde(default)]
    pub cpu_seconds: BTreeMap<String, f64>,
    /// The change of each of the daemon's counters during the load, by host.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, BTreeMap<String, f64>>,
    /// The load generator's reply, unmodified.
    #[serde(default)]
    pub reply: serde_json::Value,
}

/// A subject that did not start, or a load that did not finish.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Failure {
    /// Testbed by name.
    pub testbed: String,
    /// Subject by name.
    pub subject: String,
    /// Load by name; `None` if the subject itself failed.
    pub load: Option<String>,
    /// Round, from 1.
    pub round: u32,
    /// The error.
    pub error: String,
}

/// Reads a raw file; the error names the file and the problem.
pub fn read(path: &Path) -> Result<Raw> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is not a raw result of loden-bench", path.display()))
}

/// Parses raw JSON; rejects unknown schemas.
pub fn parse(text: &str) -> Result<Raw> {
    let raw: Raw = serde_json::from_str(text)?;
    ensure!(raw.schema == SCHEMA, "schema {} is not supported, only {SCHEMA}", raw.schema);
    Ok(raw)
}

/// Writes a raw file atomically: a reader sees either the old content or the new.
pub fn write(path: &Path, raw: &Raw) -> Result<()> {
    let text = serde_json::to_string_pretty(raw)?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(parent)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        std::io::Write::write_all(&mut file, b"\n")?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Raw {
        Raw {
            schema: SCHEMA,
            environment: Environment { kernel: "6.18".into(), ..Environment::default() },
            settings: Settings::default(),
            samples: vec![Sample {
                subject: "kernel:vxlan".into(),
                metrics: BTreeMap::from([("gbit_per_s".to_owned(), 1.5)]),
                ..Sample::default()
            }],
            failures: vec![],
            notes: vec![],
        }
    }

    #[test]
    fn a_written_file_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw.json");
        write(&path, &small()).unwrap();
        let back = read(&path).unwrap();
        assert_eq!(back.environment.kernel, "6.18");
        assert_eq!(back.samples[0].metrics["gbit_per_s"], 1.5);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_schema_is_rejected_by_number() {
        let text = serde_json::to_string(&Raw { schema: 9, ..small() }).unwrap();
        assert!(parse(&text).unwrap_err().to_string().contains("schema 9"));
    }

    #[test]
    fn noise_is_an_error() {
        for text in ["", "{}", "[1]", "{\"schema\":1}", "\u{0}"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
