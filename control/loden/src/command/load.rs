//! `loden load`: the load generator as a process, for benchmarks and for manual use. Prints one JSON object
//! per run.

use std::process::ExitCode;

use load::{Report, RttLoad, Server, SizesLoad, Stop, TcpLoad, UdpLoad, VerifyLoad};

use crate::options::{LoadMode, LoadOptions, Times};
use crate::output::{print, say};

/// Runs one kind of load to its end, or the server forever. An error means that there are no figures.
pub(crate) fn run(options: &LoadOptions) -> anyhow::Result<ExitCode> {
    let stop = Stop::default();
    let (report, right) = match options.mode {
        LoadMode::Server { listen } => {
            let server = Server::start(listen)?;
            say(format_args!("loden load: listening on {}", server.address()));
            loop {
                std::thread::park();
            }
        }
        LoadMode::Tcp { server, streams, bytes: Some(bytes), .. } => {
            let report = load::verify(server, &VerifyLoad { streams, bytes }, &stop)?;
            let right = report.equal;
            (Report::Verify(report), right)
        }
        LoadMode::Tcp { server, streams, times: Times { seconds: interval, warm_up }, .. } => {
            (Report::Tcp(load::tcp(server, &TcpLoad { streams, warm_up, interval }, &stop)?), true)
        }
        LoadMode::Udp { server, size, flows, batch, times: Times { seconds: interval, warm_up } } => {
            let load = UdpLoad { size, flows, batch, warm_up, interval };
            (Report::Udp(load::udp(server, &load, &stop)?), true)
        }
        LoadMode::Rtt { server, size, times: Times { seconds: interval, warm_up } } => {
            (Report::Rtt(load::rtt(server, &RttLoad { size, warm_up, interval }, &stop)?), true)
        }
        LoadMode::Sizes { server, from, to } => {
            let report = load::sizes(server, &SizesLoad { from, to }, &stop)?;
            let right = report.right == to - from + 1 && report.duplicates == 0;
            (Report::Sizes(report), right)
        }
    };
    print(&(serde_json::to_string(&report)? + "\n"))?;
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
