//! The load generator in the pods: `loden load`, which the demo uses as well.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Namespace, Process};
use serde_json::Value;

use crate::affinity;
use crate::interrupt::Interrupted;
use crate::scenario::Load;
use crate::subject::{Context, Standing};

/// Polling interval of a waiting harness: long, because each poll takes CPU from the measurement.
const POLL: Duration = Duration::from_millis(50);

/// Time that a load may take beyond its nominal duration.
const GRACE: Duration = Duration::from_secs(15);

/// Time limit for the first load through a new subject to succeed.
const READY: Duration = Duration::from_secs(10);

/// Length of that first load, in seconds.
const FIRST_SECONDS: f64 = 0.2;

/// Payload of a small datagram, in bytes.
const SMALL: usize = 64;

/// Port of the server in pod B.
const PORT: u16 = 5299;

/// Port of the server that is bound to one CPU.
const PORT_APART: u16 = 5300;

/// The server in pod B. Dropping it stops the server.
pub struct Server {
    process: Process,
    address: SocketAddr,
}

/// The result of one load.
#[derive(Debug)]
pub struct Measured {
    /// The figures that the load reported, by metric key.
    pub metrics: BTreeMap<String, f64>,
    /// Payload bytes carried, for bulk loads.
    pub bulk_bytes: Option<f64>,
    /// The generator's reply, unmodified.
    pub reply: Value,
}

impl Server {
    /// Starts the server in pod B and waits until a short load from pod A gets through.
    pub fn start(standing: &Standing, context: &Context) -> Result<Self> {
        Self::start_on(None, PORT, standing, context)
    }

    /// Runs one load from pod A for `seconds`.
    pub fn measure(
        &mut self,
        load: Load,
        seconds: f64,
        standing: &Standing,
        context: &Context,
    ) -> Result<Measured> {
        if load == Load::RoundTripApart {
            let [here, there] = affinity::two_cpus()?.context("pods on different CPUs need two CPUs")?;
            let mut apart = Self::start_on(Some(there), PORT_APART, standing, context)?;
            return apart.measure_from(Some(here), load, seconds, standing, context);
        }
        let _loops = load.is_beside_busy_loops().then(|| busy_loops(standing)).transpose()?;
        self.measure_from(None, load, seconds, standing, context)
    }

    fn start_on(cpu: Option<usize>, port: u16, standing: &Standing, context: &Context) -> Result<Self> {
        let (namespace, address) = standing.server()?;
        let address = SocketAddr::new(address, port);
        let mut command = Command::new(&context.loden);
        command.args(["load", "server", "--listen", &address.to_string()]).stdout(Stdio::null());
        let process = spawn(namespace, &mut command, cpu)?;
        let mut server = Server { process, address };
        server.await_path(standing, context)?;
        Ok(server)
    }

    fn measure_from(
        &mut self,
        cpu: Option<usize>,
        load: Load,
        seconds: f64,
        standing: &Standing,
        context: &Context,
    ) -> Result<Measured> {
        let mut command = Command::new(&context.loden);
        command.args(arguments(load, self.address, seconds)).stdout(Stdio::piped());
        let process = spawn(standing.client(), &mut command, cpu)?;
        let text = finish(process, Duration::from_secs_f64(seconds) + GRACE, context)?;
        if let Some(status) = self.process.try_wait()? {
            bail!("the load server exited ({status}): {}", self.process.stderr_tail());
        }
        parse_reply(&text).with_context(|| format!("unexpected reply of loden load: {}", text.trim()))
    }

    fn await_path(&mut self, standing: &Standing, context: &Context) -> Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            match self.measure_from(None, Load::RoundTrip, FIRST_SECONDS, standing, context) {
                Ok(_) => return Ok(()),
                Err(error) if error.is::<Interrupted>() || Instant::now() > deadline => {
                    return Err(error.context("the pods cannot reach each other"));
                }
                Err(_) => thread::sleep(POLL),
            }
        }
    }
}

/// Starts two programs for each CPU that compute and nothing else. Dropping them ends them.
fn busy_loops(standing: &Standing) -> Result<Vec<Process>> {
    let count = 2 * thread::available_parallelism()?.get();
    let start = || {
        let mut command = Command::new("sh");
        Ok(Process::spawn(standing.client(), command.args(["-c", "while :; do :; done"]))?)
    };
    (0..count).map(|_| start()).collect()
}

/// Starts `command` in `namespace`, bound to `cpu` if given. A child inherits the affinity of the thread that
/// starts it, so that thread binds itself first and ends afterwards.
fn spawn(namespace: &Namespace, command: &mut Command, cpu: Option<usize>) -> Result<Process> {
    let Some(cpu) = cpu else { return Ok(Process::spawn(namespace, command)?) };
    let start = || -> Result<Process> {
        affinity::bind(cpu)?;
        Ok(Process::spawn(namespace, command)?)
    };
    thread::scope(|scope| scope.spawn(start).join().unwrap_or_else(|panic| resume_unwind(panic)))
}

/// Waits for the end of a load and returns its output. An interruption ends the load early.
fn finish(mut process: Process, timeout: Duration, context: &Context) -> Result<String> {
    let deadline = Instant::now() + timeout;
    // The reply fits easily into the pipe, so it can be read at the end.
    let mut stdout = process.child().and_then(|child| child.stdout.take()).context("no pipe to the load")?;
    let status = loop {
        context.interrupt.check()?;
        if let Some(status) = process.try_wait()? {
            break status;
        }
        ensure!(Instant::now() < deadline, "the load did not finish within {} s", timeout.as_secs());
        thread::sleep(POLL);
    };
    let mut text = String::new();
    stdout.read_to_string(&mut text).context("cannot read the load's reply")?;
    ensure!(status.success(), "the load failed ({status}): {}", process.stderr_tail());
    Ok(text)
}

fn arguments(load: Load, server: SocketAddr, seconds: f64) -> Vec<String> {
    let (mode, own): (&str, &[(&str, usize)]) = match load {
        Load::Tcp1 | Load::Tcp1Busy => ("tcp", &[("--streams", 1)]),
        Load::Tcp4 => ("tcp", &[("--streams", 4)]),
        Load::Udp64Flows1 => ("udp", &[("--size", SMALL), ("--flows", 1)]),
        Load::Udp64Flows64 => ("udp", &[("--size", SMALL), ("--flows", 64)]),
        Load::RoundTrip | Load::RoundTripApart | Load::RoundTripBusy => ("rtt", &[("--size", SMALL)]),
    };
    let mut arguments = vec!["load".to_owned(), mode.to_owned(), server.to_string()];
    arguments.extend(own.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.to_string()]));
    // Without a warm-up, so that the counted bytes match the CPU time.
    arguments.extend(["--seconds", &seconds.to_string(), "--warm-up", "0"].map(str::to_owned));
    arguments
}

/// Extracts the figures from the generator's reply.
fn parse_reply(text: &str) -> Result<Measured> {
    let reply: Value = serde_json::from_str(text)?;
    let number =
        |key: &str| reply.get(key).and_then(Value::as_f64).with_context(|| format!("no number {key}"));
    let mut metrics = BTreeMap::new();
    let mut insert = |key: &str, value: f64| metrics.insert(key.to_owned(), value);
    let mut bulk_bytes = None;
    match reply.get("mode").and_then(Value::as_str) {
        Some("tcp") => {
            insert("gbit_per_s", number("gbit_per_s")?);
            bulk_bytes = Some(number("bytes")?);
        }
        Some("udp") => {
            insert("delivered_kpps", number("packets_per_s")? / 1e3);
            let (sent, received) = (number("sent")?, number("received")?);
            ensure!(sent > 0.0, "nothing was sent");
            insert("lost_percent", (1.0 - received / sent).max(0.0) * 100.0);
        }
        Some("rtt") => {
            insert("rtt_p50_us", number("p50_us")?);
            insert("rtt_p99_us", number("p99_us")?);
        }
        _ => bail!("unknown mode"),
    }
    Ok(Measured { metrics, bulk_bytes, reply })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        "10.5.2.2:5299".parse().unwrap()
    }

    #[test]
    fn command_lines() {
        assert_eq!(
            arguments(Load::Udp64Flows64, server(), 2.5).join(" "),
            "load udp 10.5.2.2:5299 --size 64 --flows 64 --seconds 2.5 --warm-up 0"
        );
        assert_eq!(
            arguments(Load::Tcp4, server(), 3.0).join(" "),
            "load tcp 10.5.2.2:5299 --streams 4 --seconds 3 --warm-up 0"
        );
    }

    #[test]
    fn bulk_replies_give_bytes() {
        let measured = parse_reply(r#"{"mode":"tcp","bytes":1000,"gbit_per_s":9.5,"new":[1]}"#).unwrap();
        assert_eq!(measured.metrics["gbit_per_s"], 9.5);
        assert_eq!(measured.bulk_bytes, Some(1000.0));
        assert_eq!(measured.reply["new"][0], 1);
    }

    #[test]
    fn datagram_replies_give_rate_and_loss() {
        let text = r#"{"mode":"udp","packets_per_s":80000.0,"sent":1000,"received":750}"#;
        let metrics = parse_reply(text).unwrap().metrics;
        assert_eq!((metrics["delivered_kpps"], metrics["lost_percent"]), (80.0, 25.0));
    }

    #[test]
    fn round_trip_replies_give_percentiles() {
        let metrics = parse_reply(r#"{"mode":"rtt","p50_us":40,"p99_us":90.5}"#).unwrap().metrics;
        assert_eq!((metrics["rtt_p50_us"], metrics["rtt_p99_us"]), (40.0, 90.5));
    }

    #[test]
    fn noise_is_an_error() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"mode":"tcp"}"#,
            r#"{"mode":"sizes"}"#,
            r#"{"mode":"rtt","p50_us":"x"}"#,
            r#"{"mode":"udp","packets_per_s":1,"sent":0,"received":0}"#,
        ] {
            assert!(parse_reply(text).is_err(), "{text:?}");
        }
    }
}
