//! The verbs. An interface's state is saved before the delegate creates the interface, and removed only after
//! the delegate has deleted it, so that DEL and GC find everything that a killed plugin leaves behind.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::delegate;
use crate::host_local;
use crate::invoke::{InvokeError, Plugin};
use crate::lock::Lock;
use crate::netns::Netns;
use crate::reply::{self, Code, Failure};
use crate::request::{Request, Verb};
use crate::state::{Attachment, Found, States};
use crate::subnet;
use crate::versions;

/// A GC starts no deletion for which less than this part of its time limit is left.
const SHORTEST_SHARE: u32 = 5;

/// Time limits for a delegate.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the runtime's request, with the time spent waiting for other requests on the interface.
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
    let lock = states.lock(&attachment, left(deadline))?;
    let before = (states.read_own(&attachment)?, states.netns(&attachment));
    if let (Found::Config(other), _) = &before
        && other["name"] != request.config.name
    {
        return Err(refuse(request, &states, &attachment, other));
    }
    states.write(&attachment, &config, request.namespace().as_ref())?;
    let result =
        plugin(request, &config, left(deadline), Some(&lock)).run("ADD", &[], &config).and_then(|printed| {
            match serde_json::from_str::<Value>(&printed) {
                Ok(Value::Object(_)) => Ok(printed),
                _ => {
                    let excerpt: String = printed.trim().chars().take(500).collect();
                    let message = format!("the plugin {} printed no result", name_of(&config));
                    let details = format!("its output was {excerpt:?}");
                    Err(InvokeError::Indeterminate(Failure::new(Code::Decoding, message, details)))
                }
            }
        });
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
            let deletion = Deletion { request, states: &states, attachment: &attachment, lock: Some(&lock) };
            match deletion.run(&config, None, timeouts.cleanup) {
                Ok(()) => Err(failure),
                Err(second) => Err(failure.and(format!("undoing it failed as well: {}", second.message))),
            }
        }
        // A failed ADD is followed by a DEL (specification, section "ADD").
        Err(InvokeError::Failed(failure)) => Err(failure),
    }
}

/// Refuses an interface that another network has created. The delegate would refuse it as well, but its DEL
/// would then delete the other network's interface.
fn refuse(request: &Request, states: &States, attachment: &Attachment, other: &Value) -> Failure {
    let message = format!(
        "CNI_IFNAME: interface {} of this container belongs to network {}",
        attachment.interface, other["name"]
    );
    let failure = Failure::new(Code::BadEnvironment, message, &attachment.container);
    match states.refuse(attachment, &request.config.name) {
        Ok(()) => failure,
        Err(second) => failure.and(second.message).and(second.details),
    }
}

fn del(request: &Request, timeout: Duration) -> Result<(), Failure> {
    let (states, attachment) = (states(request), attachment(request));
    let read = || states.read(&attachment, &request.config.name);
    if read()? == Found::Nothing {
        return Ok(());
    }
    let deadline = Instant::now() + timeout;
    let lock = states.lock_for_deletion(&attachment, left(deadline))?;
    let deletion = Deletion { request, states: &states, attachment: &attachment, lock: lock.as_ref() };
    match read()? {
        Found::Nothing => Ok(()),
        Found::Config(config) => deletion.run(&config, deletion.netns(), left(deadline)),
        Found::Broken => {
            // The configuration that ADD would use now names the same interface and the same addresses.
            let config = subnet::read(&request.config.subnet_file)
                .map_err(|failure| failure.and("the saved state of this container is unreadable as well"))
                .and_then(|subnet| delegate::build(&request.config, &subnet))?;
            deletion.run(&config, deletion.netns(), left(deadline))
        }
    }
}

/// The deletion of one interface.
struct Deletion<'a> {
    request: &'a Request,
    states: &'a States,
    attachment: &'a Attachment,
    lock: Option<&'a Lock>,
}

impl Deletion<'_> {
    /// Returns what replaces the namespace that the runtime named: nothing if its path now names another
    /// namespace, whose interface of this name is not ours to delete.
    fn netns(&self) -> Option<&'static str> {
        let now = self.request.namespace()?;
        let is_hosts = now.is_own() && !self.request.netns_override;
        let is_others = self.states.netns(self.attachment).is_some_and(|recorded| recorded.differs(&now));
        (is_hosts || is_others).then_some("")
    }

    /// Has the delegate delete the interface, and removes its state after that. If the delegate is no longer
    /// installed, what takes its place deletes as much as it knows.
    ///
    /// `netns` replaces the network namespace that the runtime named; empty means that there is none.
    fn run(&self, config: &Value, netns: Option<&str>, timeout: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + timeout;
        let mut done = self.delegate(name_of(config), config, netns, deadline);
        if matches!(done, Err(InvokeError::NotStarted(_)))
            && let Some((name, config)) = self.replacement(config)
        {
            done = self.delegate(&name, &config, netns, deadline);
        }
        done.map_err(InvokeError::into_failure)?;
        self.states.remove(self.attachment).map_err(|failure| failure.and("the interface itself was deleted"))
    }

    /// Runs the plugin's DEL. A plugin that does not support the saved version of the specification, since it
    /// has been replaced by another release, is asked in others: what a deletion needs is the same in all.
    fn delegate(
        &self,
        name: &str,
        config: &Value,
        netns: Option<&str>,
        deadline: Instant,
    ) -> Result<(), InvokeError> {
        let Attachment { container, interface } = self.attachment;
        let mut variables = vec![("CNI_CONTAINERID", container.as_str()), ("CNI_IFNAME", interface)];
        variables.extend(netns.map(|path| ("CNI_NETNS", path)));
        let mut refusal = None;
        for config in versions::in_turn(config) {
            let plugin = Plugin { name, path: &self.request.path, timeout: left(deadline), lock: self.lock };
            match plugin.run("DEL", &variables, &config) {
                Ok(_) => return Ok(()),
                Err(InvokeError::Failed(failure)) if failure.code == Code::IncompatibleVersion as u64 => {
                    refusal.get_or_insert(failure);
                }
                Err(error) => return Err(error),
            }
        }
        refusal.map_or(Ok(()), |failure| Err(InvokeError::Failed(failure)))
    }

    /// Returns the plugin, and its configuration, that can delete what a plugin created which is no longer
    /// installed: today's delegate with the saved addresses, or with today's; or the IPAM plugin alone, since
    /// the interface ends with its namespace.
    fn replacement(&self, config: &Value) -> Option<(String, Value)> {
        let is_installed = |name: &str| {
            let path = &self.request.path;
            Plugin { name, path, timeout: Duration::ZERO, lock: None }.is_installed()
        };
        let ipam = config["ipam"]["type"].as_str().unwrap_or_default();
        let today = delegate::type_of(&self.request.config);
        if !is_installed(today) {
            return is_installed(ipam).then(|| (ipam.to_owned(), config.clone()));
        }
        if ipam.is_empty() || is_installed(ipam) {
            let mut config = config.clone();
            config["type"] = today.into();
            return Some((today.to_owned(), config));
        }
        let subnet = subnet::read(&self.request.config.subnet_file).ok()?;
        Some((today.to_owned(), delegate::build(&self.request.config, &subnet).ok()?))
    }
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
    let answer = plugin(request, &config, timeout, None).run("CHECK", &[], &config);
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
    match plugin(request, &config, left(deadline), None).run("STATUS", &[], &config) {
        Ok(_) => Ok(()),
        Err(InvokeError::Failed(failure)) if lacks_verb(&failure) => Ok(()),
        Err(InvokeError::NotStarted(failure)) => Err(unavailable(failure)),
        Err(error) => Err(error.into_failure()),
    }
}

fn gc(request: &Request, timeouts: Timeouts) -> Result<(), Failure> {
    let valid = valid(request)?;
    let containers: BTreeSet<&str> = valid.iter().map(|one| one.container.as_str()).collect();
    let states = states(request);
    let deadline = Instant::now() + timeouts.request;
    let mut failures = Vec::new();
    // A file name without an interface may be flannel's, and then stands for any interface of the container.
    let is_kept = |one: &Attachment| {
        valid.contains(one) || one.is_first() && containers.contains(one.container.as_str())
    };
    let mut stale = states.list()?;
    stale.retain(|one| !is_kept(one));
    // A stable sort: those that failed last time come last.
    stale.sort_by_key(|one| states.failed(one));
    let (mut rest, mut failed) = (stale.iter(), Vec::new());
    for attachment in rest.by_ref() {
        // Delegates that hang leave time for the others.
        let limit = timeouts.cleanup.min(left(deadline) / 2);
        if let Err(failure) = collect(request, &states, attachment, limit) {
            failed.push(attachment);
            failures.push(failure);
        }
        if left(deadline) < timeouts.cleanup / SHORTEST_SHARE {
            break;
        }
    }
    let unreached = rest.len();
    if unreached > 0 {
        failed.into_iter().for_each(|one| states.set_failed(one));
    }
    states.sweep();
    // An ADD that has reserved an address has written its state before.
    let is_used = || {
        let listed = states.list().ok();
        let with_state: Option<BTreeSet<String>> =
            listed.map(|all| all.into_iter().map(|one| one.container).collect());
        move |one: &Attachment| {
            valid.contains(one) || with_state.as_ref().is_none_or(|all| all.contains(&one.container))
        }
    };
    host_local::sweep(&request.config, left(deadline) / 2, is_used);
    failures.extend(delegate_gc(request, left(deadline)).err());
    let count = failures.len();
    let Some(mut failure) = failures.into_iter().next() else { return Ok(()) };
    if count > 1 {
        failure = failure.and(format!("{} more could not be deleted", count - 1));
    }
    if unreached > 0 {
        failure = failure.and(format!("{unreached} were not reached in time and come first in the next GC"));
    }
    Err(failure)
}

/// Deletes an interface that belongs to no pod, if it is of this network.
fn collect(
    request: &Request,
    states: &States,
    attachment: &Attachment,
    limit: Duration,
) -> Result<(), Failure> {
    // Several networks may share the directory, and a broken state does not name its network.
    let is_ours =
        |found: &Found| matches!(found, Found::Config(config) if config["name"] == request.config.name);
    if !is_ours(&states.read_own(attachment)?) {
        return Ok(());
    }
    let deadline = Instant::now() + limit;
    let lock = states.lock(attachment, limit)?;
    match states.read_own(attachment)? {
        Found::Config(config) if config["name"] == request.config.name => {
            // A namespace that still exists would otherwise keep the interface.
            let netns = states.netns(attachment);
            let path = netns.as_ref().and_then(Netns::path).unwrap_or_default();
            Deletion { request, states, attachment, lock: Some(&lock) }.run(
                &config,
                Some(path),
                left(deadline),
            )
        }
        _ => Ok(()),
    }
}

/// Runs the delegate's own GC.
fn delegate_gc(request: &Request, timeout: Duration) -> Result<(), Failure> {
    // Without a subnet there is no configuration for the delegate.
    let Ok(subnet) = subnet::read(&request.config.subnet_file) else { return Ok(()) };
    let mut config = delegate::build(&request.config, &subnet)?;
    config["cni.dev/valid-attachments"] =
        request.config.valid.clone().unwrap_or_else(|| Value::Array(Vec::new()));
    match plugin(request, &config, timeout, None).run("GC", &[], &config) {
        Ok(_) => Ok(()),
        Err(InvokeError::Failed(failure)) if lacks_verb(&failure) => Ok(()),
        Err(error) => Err(error.into_failure()),
    }
}

/// Returns the interfaces to keep. Without a list nothing may be deleted.
fn valid(request: &Request) -> Result<BTreeSet<Attachment>, Failure> {
    let bad = |details: &str| Failure::new(Code::BadConfig, "cni.dev/valid-attachments is invalid", details);
    let list = request.config.valid.as_ref().ok_or_else(|| bad("it is missing"))?;
    let list = list.as_array().ok_or_else(|| bad("it is not a list"))?;
    let entry = |entry: &Value| {
        let members = entry.as_object()?;
        let member = |key: &str| members.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
        let text = |key: &str| member(key).and_then(|(_, value)| value.as_str()).map(str::to_owned);
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

fn plugin<'a>(
    request: &'a Request,
    config: &'a Value,
    timeout: Duration,
    lock: Option<&'a Lock>,
) -> Plugin<'a> {
    Plugin { name: name_of(config), path: &request.path, timeout, lock }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Returns the delegate's type; a state written by another program may lack one.
fn name_of(config: &Value) -> &str {
    config.get("type").and_then(Value::as_str).unwrap_or_default()
}
