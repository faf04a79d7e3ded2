//! What each verb does. An interface's state is there before the delegate gives it, and until the delegate has taken it
//! away: whatever is killed meanwhile, DEL and GC find what is left.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::delegate;
use crate::host_local;
use crate::invoke::{InvokeError, Plugin};
use crate::netns::Netns;
use crate::reply::{self, Code, Failure};
use crate::request::{Request, Verb};
use crate::state::{Attachment, Found, States};
use crate::subnet;

/// How long a delegate may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For what the runtime asks; in ADD with what others on the same interface have taken of it.
    pub asked: Duration,
    /// For taking away what the runtime does not ask about: a failed ADD's, and each of GC's.
    pub unasked: Duration,
}

impl Default for Patience {
    /// Together less than two minutes, after which a kubelet gives up and hears no reason.
    fn default() -> Patience {
        Patience { asked: Duration::from_secs(90), unasked: Duration::from_secs(20) }
    }
}

/// Does it; what to print.
pub fn run(request: &Request, patience: Patience) -> Result<String, Failure> {
    let done = |answer: Result<(), Failure>| answer.map(|()| String::new());
    match request.verb {
        Verb::Add => add(request, patience),
        Verb::Del => done(del(request, patience.asked)),
        Verb::Check => done(check(request, patience.asked)),
        Verb::Status => done(status(request, patience.asked)),
        Verb::Gc => done(gc(request, patience)),
        Verb::Version => Ok(reply::versions()),
    }
}

fn add(request: &Request, patience: Patience) -> Result<String, Failure> {
    let subnet = subnet::read(&request.config.subnet_file)?;
    let config = delegate::build(&request.config, &subnet);
    let (states, attachment) = (states(request), attachment(request));
    let began = Instant::now();
    let _lock = states.lock(&attachment)?;
    let left = patience.asked.saturating_sub(began.elapsed());
    let before = (states.read_own(&attachment)?, states.netns(&attachment));
    states.write(&attachment, &config, request.netns.as_ref())?;
    let result =
        plugin(request, &config, left).run("ADD", &[], &config).and_then(
            |printed| match serde_json::from_str::<Value>(&printed) {
                Ok(Value::Object(_)) => Ok(printed),
                _ => {
                    let words: String = printed.trim().chars().take(500).collect();
                    let message = format!("the plugin {} printed no result", name_of(&config));
                    Err(InvokeError::Rubbish(Failure::new(Code::Decoding, message, format!("{words:?}"))))
                }
            },
        );
    match result {
        Ok(printed) => Ok(printed),
        Err(InvokeError::NotStarted(failure)) => {
            // An interface that somebody has given already keeps its own.
            match before {
                (Found::Config(config), netns) => states.write(&attachment, &config, netns.as_ref())?,
                (Found::Broken | Found::Nothing, _) => states.remove(&attachment)?,
            }
            Err(failure)
        }
        // The runtime will not know that there is something to take away.
        Err(InvokeError::Rubbish(failure)) => {
            match take_away(request, &states, &attachment, &config, None, patience.unasked) {
                Ok(()) => Err(failure),
                Err(second) => Err(failure.and(format!("and it could not be undone: {}", second.message))),
            }
        }
        // A failed ADD is followed by a DEL (specification, section "ADD").
        Err(InvokeError::Refused(failure)) => Err(failure),
    }
}

fn del(request: &Request, patience: Duration) -> Result<(), Failure> {
    let (states, attachment) = (states(request), attachment(request));
    let read = || states.read(&attachment, &request.config.name);
    if read()? == Found::Nothing {
        return Ok(());
    }
    let _lock = states.lock_to_take_away(&attachment)?;
    match read()? {
        Found::Nothing => Ok(()),
        Found::Config(config) => take_away(request, &states, &attachment, &config, None, patience),
        Found::Broken => take_away_broken(request, &states, &attachment, patience),
    }
}

/// What ADD would give now names the same interface and the same addresses.
fn take_away_broken(
    request: &Request,
    states: &States,
    attachment: &Attachment,
    patience: Duration,
) -> Result<(), Failure> {
    let subnet = subnet::read(&request.config.subnet_file)
        .map_err(|failure| failure.and("and the state of this container cannot be read"))?;
    take_away(request, states, attachment, &delegate::build(&request.config, &subnet), None, patience)
}

/// Has the delegate take it away, and forgets it only then. With `netns` not from the namespace that the runtime has
/// named but from this one; from none if it is empty.
fn take_away(
    request: &Request,
    states: &States,
    attachment: &Attachment,
    config: &Value,
    netns: Option<&str>,
    patience: Duration,
) -> Result<(), Failure> {
    let mut variables =
        vec![("CNI_CONTAINERID", attachment.container.as_str()), ("CNI_IFNAME", &attachment.interface)];
    variables.extend(netns.map(|path| ("CNI_NETNS", path)));
    plugin(request, config, patience).run("DEL", &variables, config).map_err(InvokeError::into_failure)?;
    states.remove(attachment).map_err(|failure| failure.and("the interface itself has been taken away"))
}

fn check(request: &Request, patience: Duration) -> Result<(), Failure> {
    let attachment = attachment(request);
    let Found::Config(mut config) = states(request).read(&attachment, &request.config.name)? else {
        let message = format!("nothing is known of {} of this container", attachment.interface);
        return Err(Failure::new(Code::UnknownContainer, message, attachment.container));
    };
    if let (Some(previous), Value::Object(config)) = (&request.config.previous, &mut config) {
        config.insert("prevResult".into(), with_gateways(previous.clone()));
    }
    let answer = plugin(request, &config, patience).run("CHECK", &[], &config);
    answer.map_err(InvokeError::into_failure).map(drop)
}

/// A route without a gateway goes by the address's own; `bridge` sets it so, and when it checks looks for a route
/// without one (`ValidateExpectedRoute`, containernetworking plugins 1.1).
fn with_gateways(mut result: Value) -> Value {
    let gateways: Vec<Value> =
        result["ips"].as_array().into_iter().flatten().filter_map(|ip| ip.get("gateway").cloned()).collect();
    let is_v6 = |value: &Value| value.as_str().is_some_and(|text| text.contains(':'));
    for route in result.get_mut("routes").and_then(Value::as_array_mut).into_iter().flatten() {
        let same_family = |gateway: &&Value| route.get("dst").is_some_and(|dst| is_v6(dst) == is_v6(gateway));
        if let Some(gateway) = gateways.iter().find(same_family).filter(|_| route.get("gw").is_none()) {
            route["gw"] = gateway.clone();
        }
    }
    result
}

fn status(request: &Request, patience: Duration) -> Result<(), Failure> {
    let unavailable = |failure: Failure| Failure { code: Code::NotAvailable as u64, ..failure };
    let subnet = subnet::read(&request.config.subnet_file).map_err(unavailable)?;
    let config = delegate::build(&request.config, &subnet);
    match plugin(request, &config, patience).run("STATUS", &[], &config) {
        Ok(_) => Ok(()),
        Err(InvokeError::Refused(failure)) if knows_no_such_verb(&failure) => Ok(()),
        Err(InvokeError::NotStarted(failure)) => Err(unavailable(failure)),
        Err(error) => Err(error.into_failure()),
    }
}

fn gc(request: &Request, patience: Patience) -> Result<(), Failure> {
    let valid = valid(request)?;
    let states = states(request);
    let mut failures = Vec::new();
    for attachment in states.list()? {
        // A name without an interface may be flannel's, and then of any interface of the container.
        let is_unclear = attachment.is_first();
        let is_used = |one: &Attachment| one.container == attachment.container && is_unclear;
        if valid.contains(&attachment) || valid.iter().any(is_used) {
            continue;
        }
        let swept = states.lock(&attachment).and_then(|_lock| match states.read_own(&attachment)? {
            Found::Config(config) if config["name"] == request.config.name => {
                // A namespace that lives on would keep the interface.
                let netns = states.netns(&attachment);
                let path = netns.as_ref().and_then(Netns::path).unwrap_or_default();
                take_away(request, &states, &attachment, &config, Some(path), patience.unasked)
            }
            // Several networks may keep their states in one directory, and a broken one does not say whose it is.
            Found::Config(_) | Found::Broken | Found::Nothing => Ok(()),
        });
        failures.extend(swept.err());
    }
    states.sweep();
    // Without a subnet nothing can be configured; what there was has been taken away by its own state.
    if let Ok(subnet) = subnet::read(&request.config.subnet_file) {
        let mut config = delegate::build(&request.config, &subnet);
        host_local::sweep(&config);
        config["cni.dev/valid-attachments"] =
            request.config.valid.clone().unwrap_or_else(|| Value::Array(Vec::new()));
        match plugin(request, &config, patience.asked).run("GC", &[], &config) {
            Ok(_) => {}
            Err(InvokeError::Refused(failure)) if knows_no_such_verb(&failure) => {}
            Err(error) => failures.push(error.into_failure()),
        }
    }
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(()),
        Some(first) if count == 1 => Err(first),
        Some(first) => Err(first.and(format!("{} more could not be removed", count - 1))),
    }
}

/// The interfaces that are to stay. Without a list nothing may be removed.
fn valid(request: &Request) -> Result<BTreeSet<Attachment>, Failure> {
    let bad =
        |details: &str| Failure::new(Code::BadConfig, "cni.dev/valid-attachments makes no sense", details);
    let list = request.config.valid.as_ref().ok_or_else(|| bad("it is missing"))?;
    let list = list.as_array().ok_or_else(|| bad("it is not a list"))?;
    let entry = |entry: &Value| {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(Attachment { container: text("containerID")?, interface: text("ifname")? })
    };
    list.iter().map(|one| entry(one).ok_or_else(|| bad("an entry lacks containerID or ifname"))).collect()
}

/// How plugins answer that are older than the verb. They look for a container and an interface, which these verbs do
/// not have, before they look at the verb (`skel.pluginMain`, CNI library 1.1).
fn knows_no_such_verb(failure: &Failure) -> bool {
    let says = |words: &[&str]| words.iter().any(|words| failure.message.contains(words));
    failure.code == Code::BadEnvironment as u64 && says(&["unknown CNI_COMMAND", "interface name is empty"])
        || failure.code == Code::UnknownContainer as u64 && says(&["missing containerID"])
        || failure.code == Code::IncompatibleVersion as u64
}

fn states(request: &Request) -> States {
    States::in_directory(&request.config.data_directory)
}

fn attachment(request: &Request) -> Attachment {
    Attachment { container: request.container.clone(), interface: request.interface.clone() }
}

fn plugin<'a>(request: &'a Request, config: &'a Value, patience: Duration) -> Plugin<'a> {
    Plugin { name: name_of(config), path: &request.path, patience }
}

/// A state that somebody else has written may have no type.
fn name_of(config: &Value) -> &str {
    config.get("type").and_then(Value::as_str).unwrap_or_default()
}
