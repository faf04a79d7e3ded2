//! The verbs. An interface's state is saved before the delegate creates the interface, and removed only after
//! the delegate has deleted it, so that DEL and GC find everything that a killed plugin leaves behind.

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
use crate::versions;

/// Time limits for a delegate.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the runtime's request; an ADD's includes the time spent waiting for other requests on the
    /// interface.
    pub request: Duration,
    /// For each deletion that the runtime does not name: undoing a failed ADD, and each interface in a GC.
    pub cleanup: Duration,
}

impl Default for Timeouts {
    /// Together less than two minutes, after which a kubelet gives up without learning the reason.
    fn default() -> Timeouts {
        Timeouts { request: Duration::from_secs(90), cleanup: Duration::from_secs(20) }
    }
}

/// Runs the request. Returns the text to print.
pub fn run(request: &Request, timeouts: Timeouts) -> Result<String, Failure> {
    let done = |answer: Result<(), Failure>| answer.map(|()| String::new());
    match request.verb {
        Verb::Add => add(request, timeouts),
        Verb::Del => done(del(request, timeouts.request)),
        Verb::Check => done(check(request, timeouts.request)),
        Verb::Status => done(status(request, timeouts.request)),
        Verb::Gc => done(gc(request, timeouts)),
        Verb::Version => Ok(reply::versions()),
    }
}

fn add(request: &Request, timeouts: Timeouts) -> Result<String, Failure> {
    let subnet = subnet::read(&request.config.subnet_file)?;
    let config = delegate::build(&request.config, &subnet)?;
    let (states, attachment) = (states(request), attachment(request));
    let deadline = Instant::now() + timeouts.request;
    versions::check(request, &config, deadline).map_err(InvokeError::into_failure)?;
    let _lock = states.lock(&attachment)?;
    let left = deadline.saturating_duration_since(Instant::now());
    let before = (states.read_own(&attachment)?, states.netns(&attachment));
    states.write(&attachment, &config, request.namespace().as_ref())?;
    let result =
        plugin(request, &config, left).run("ADD", &[], &config).and_then(
            |printed| match serde_json::from_str::<Value>(&printed) {
                Ok(Value::Object(_)) => Ok(printed),
                _ => {
                    let excerpt: String = printed.trim().chars().take(500).collect();
                    let message = format!("the plugin {} printed no result", name_of(&config));
                    let details = format!("its output was {excerpt:?}");
                    Err(InvokeError::Indeterminate(Failure::new(Code::Decoding, message, details)))
                }
            },
        );
    match result {
        Ok(printed) => Ok(printed),
        Err(InvokeError::NotStarted(failure)) => {
            // If an earlier ADD created the interface, its state stays.
            match before {
                (Found::Config(config), netns) => states.write(&attachment, &config, netns.as_ref())?,
                (Found::Broken | Found::Nothing, _) => states.remove(&attachment)?,
            }
            Err(failure)
        }
        // The runtime cannot know that there is something to delete.
        Err(InvokeError::Indeterminate(failure)) => {
            match delete(request, &states, &attachment, &config, None, timeouts.cleanup) {
                Ok(()) => Err(failure),
                Err(second) => Err(failure.and(format!("undoing it failed as well: {}", second.message))),
            }
        }
        // A failed ADD is followed by a DEL (specification, section "ADD").
        Err(InvokeError::Failed(failure)) => Err(failure),
    }
}

fn del(request: &Request, timeout: Duration) -> Result<(), Failure> {
    let (states, attachment) = (states(request), attachment(request));
    let read = || states.read(&attachment, &request.config.name);
    if read()? == Found::Nothing {
        return Ok(());
    }
    let _lock = states.lock_for_deletion(&attachment)?;
    match read()? {
        Found::Nothing => Ok(()),
        Found::Config(config) => {
            let netns = netns_of_deletion(request, &states, &attachment);
            delete(request, &states, &attachment, &config, netns, timeout)
        }
        Found::Broken => delete_broken(request, &states, &attachment, timeout),
    }
}

/// Returns what replaces the namespace that the runtime named: nothing if its path now names another
/// namespace, whose interface of this name is not ours to delete.
fn netns_of_deletion(request: &Request, states: &States, attachment: &Attachment) -> Option<&'static str> {
    let now = request.namespace()?;
    let is_hosts = now.is_own() && !request.netns_override;
    let is_others = states.netns(attachment).is_some_and(|recorded| recorded.differs(&now));
    (is_hosts || is_others).then_some("")
}

/// Deletes an interface whose state is unreadable. The configuration that ADD would use now names the same
/// interface and the same addresses.
fn delete_broken(
    request: &Request,
    states: &States,
    attachment: &Attachment,
    timeout: Duration,
) -> Result<(), Failure> {
    let subnet = subnet::read(&request.config.subnet_file)
        .map_err(|failure| failure.and("the saved state of this container is unreadable as well"))?;
    let netns = netns_of_deletion(request, states, attachment);
    let config = delegate::build(&request.config, &subnet)?;
    delete(request, states, attachment, &config, netns, timeout)
}

/// Has the delegate delete an interface, and removes its state after that. A delegate that does not support
/// the saved version of the specification, since it has been replaced by another release, is asked in others:
/// what a deletion needs is the same in all.
///
/// `netns` replaces the network namespace that the runtime named; empty means that there is none.
fn delete(
    request: &Request,
    states: &States,
    attachment: &Attachment,
    config: &Value,
    netns: Option<&str>,
    timeout: Duration,
) -> Result<(), Failure> {
    let mut variables =
        vec![("CNI_CONTAINERID", attachment.container.as_str()), ("CNI_IFNAME", &attachment.interface)];
    variables.extend(netns.map(|path| ("CNI_NETNS", path)));
    let deadline = Instant::now() + timeout;
    let mut refusal = None;
    for config in versions::in_turn(config) {
        let left = deadline.saturating_duration_since(Instant::now());
        match plugin(request, &config, left).run("DEL", &variables, &config) {
            Ok(_) => {
                refusal = None;
                break;
            }
            Err(InvokeError::Failed(failure)) if failure.code == Code::IncompatibleVersion as u64 => {
                refusal.get_or_insert(failure);
            }
            Err(error) => return Err(error.into_failure()),
        }
    }
    refusal.map_or(Ok(()), Err)?;
    states.remove(attachment).map_err(|failure| failure.and("the interface itself was deleted"))
}

fn check(request: &Request, timeout: Duration) -> Result<(), Failure> {
    let attachment = attachment(request);
    let Found::Config(mut config) = states(request).read(&attachment, &request.config.name)? else {
        let message = format!("no saved state for interface {} of this container", attachment.interface);
        return Err(Failure::new(Code::UnknownContainer, message, attachment.container));
    };
    if let (Some(previous), Value::Object(config)) = (&request.config.previous, &mut config) {
        config.insert("prevResult".into(), with_gateways(previous.clone()));
    }
    let answer = plugin(request, &config, timeout).run("CHECK", &[], &config);
    answer.map_err(InvokeError::into_failure).map(drop)
}

/// Adds the address's gateway to every route that has none. `bridge` installs such routes with that gateway,
/// but its CHECK looks for a route without one (`ValidateExpectedRoute`, containernetworking plugins 1.1).
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

fn status(request: &Request, timeout: Duration) -> Result<(), Failure> {
    let unavailable = |failure: Failure| Failure { code: Code::NotAvailable as u64, ..failure };
    let subnet = subnet::read(&request.config.subnet_file).map_err(unavailable)?;
    let config = delegate::build(&request.config, &subnet).map_err(unavailable)?;
    let deadline = Instant::now() + timeout;
    versions::check(request, &config, deadline).map_err(|error| unavailable(error.into_failure()))?;
    let left = deadline.saturating_duration_since(Instant::now());
    match plugin(request, &config, left).run("STATUS", &[], &config) {
        Ok(_) => Ok(()),
        Err(InvokeError::Failed(failure)) if lacks_verb(&failure) => Ok(()),
        Err(InvokeError::NotStarted(failure)) => Err(unavailable(failure)),
        Err(error) => Err(error.into_failure()),
    }
}

fn gc(request: &Request, timeouts: Timeouts) -> Result<(), Failure> {
    let valid = valid(request)?;
    let states = states(request);
    let mut failures = Vec::new();
    for attachment in states.list()? {
        // A file name without an interface may be flannel's, and then stands for any interface of the
        // container.
        let is_ambiguous = attachment.is_first();
        let is_used = |one: &Attachment| one.container == attachment.container && is_ambiguous;
        if valid.contains(&attachment) || valid.iter().any(is_used) {
            continue;
        }
        let deleted = states.lock(&attachment).and_then(|_lock| match states.read_own(&attachment)? {
            Found::Config(config) if config["name"] == request.config.name => {
                // A namespace that still exists would otherwise keep the interface.
                let netns = states.netns(&attachment);
                let path = netns.as_ref().and_then(Netns::path).unwrap_or_default();
                delete(request, &states, &attachment, &config, Some(path), timeouts.cleanup)
            }
            // Several networks may share the directory, and a broken state does not name its network.
            Found::Config(_) | Found::Broken | Found::Nothing => Ok(()),
        });
        failures.extend(deleted.err());
    }
    states.sweep();
    // Without a subnet there is no configuration for the delegate; the interfaces above needed only their
    // states.
    if let Ok(subnet) = subnet::read(&request.config.subnet_file) {
        let mut config = delegate::build(&request.config, &subnet)?;
        host_local::sweep(&config);
        config["cni.dev/valid-attachments"] =
            request.config.valid.clone().unwrap_or_else(|| Value::Array(Vec::new()));
        match plugin(request, &config, timeouts.request).run("GC", &[], &config) {
            Ok(_) => {}
            Err(InvokeError::Failed(failure)) if lacks_verb(&failure) => {}
            Err(error) => failures.push(error.into_failure()),
        }
    }
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(()),
        Some(first) if count == 1 => Err(first),
        Some(first) => Err(first.and(format!("{} more could not be deleted", count - 1))),
    }
}

/// Returns the interfaces to keep. Without a list nothing may be deleted.
fn valid(request: &Request) -> Result<BTreeSet<Attachment>, Failure> {
    let bad = |details: &str| Failure::new(Code::BadConfig, "cni.dev/valid-attachments is invalid", details);
    let list = request.config.valid.as_ref().ok_or_else(|| bad("it is missing"))?;
    let list = list.as_array().ok_or_else(|| bad("it is not a list"))?;
    let entry = |entry: &Value| {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(Attachment { container: text("containerID")?, interface: text("ifname")? })
    };
    list.iter().map(|one| entry(one).ok_or_else(|| bad("an entry lacks containerID or ifname"))).collect()
}

/// Returns true if this is the error of a plugin older than the verb. Such a plugin checks for a container
/// and an interface, which STATUS and GC do not have, before it checks the verb (`skel.pluginMain`, CNI
/// library 1.1).
fn lacks_verb(failure: &Failure) -> bool {
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

fn plugin<'a>(request: &'a Request, config: &'a Value, timeout: Duration) -> Plugin<'a> {
    Plugin { name: name_of(config), path: &request.path, timeout }
}

/// Returns the delegate's type; a state written by another program may lack one.
fn name_of(config: &Value) -> &str {
    config.get("type").and_then(Value::as_str).unwrap_or_default()
}
