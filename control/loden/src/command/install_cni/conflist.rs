//! Generates and checks CNI configurations, and finds those that take precedence, those that would give the
//! same addresses, and the plugins that they need.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, ensure};
use model::subnet_env::SUBNET_FILE;
use serde::Serialize;
use serde_json::Value;
use store::regular;

use crate::options::{InstallCniOptions, PLUGIN};

/// The file name extensions that runtimes read.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// Names of flannel's plugin and of ours.
const OWN_NAMES: [&str; 2] = ["flannel", PLUGIN];
/// The usual IPAM plugin.
const HOST_LOCAL: &str = "host-local";
/// Its usual directory.
const RESERVATIONS: &str = "/var/lib/cni/networks";

/// A list of plugins, with the keys in flannel's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    name: &'a str,
    cni_version: &'a str,
    plugins: (Flannel<'a>, PortMap),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Flannel<'a> {
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet_file: Option<&'a Path>,
    delegate: Delegate,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Delegate {
    /// Lets a pod reach itself through its service.
    hairpin_mode: bool,
    is_default_gateway: bool,
}

#[derive(Serialize)]
struct PortMap {
    r#type: &'static str,
    capabilities: Capabilities,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Capabilities {
    port_mappings: bool,
}

/// Generates the configuration of flannel's manifest, with the values of `options`.
pub(super) fn generate(options: &InstallCniOptions, plugin: &str) -> anyhow::Result<String> {
    // CNI's rule for network names, which become file names.
    let mut letters = options.network.chars();
    let good = letters.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && letters.all(|letter| letter.is_ascii_alphanumeric() || "_.-".contains(letter));
    ensure!(
        good,
        "--network {:?} is not a valid CNI name: a letter or digit, then letters, digits, _ . -",
        options.network
    );
    let subnet_file =
        (options.subnet_file != Path::new(SUBNET_FILE)).then_some(options.subnet_file.as_path());
    let list = List {
        name: &options.network,
        cni_version: &options.cni_version,
        plugins: (
            Flannel {
                r#type: plugin,
                subnet_file,
                delegate: Delegate { hairpin_mode: true, is_default_gateway: true },
            },
            PortMap { r#type: "portmap", capabilities: Capabilities { port_mappings: true } },
        ),
    };
    Ok(serde_json::to_string_pretty(&list).context("cannot write the configuration as JSON")? + "\n")
}

/// Checks that a runtime can read this configuration: an object with a type, or with a list of plugins that
/// each have one, in a file with the extension that runtimes expect for that kind.
pub(super) fn check(bytes: &[u8], file_name: &str) -> anyhow::Result<()> {
    let json: Value = serde_json::from_slice(bytes).context("it is not JSON")?;
    let has_type = |plugin: &Value| plugin.get("type").is_some_and(Value::is_string);
    let good = match json.get("plugins") {
        Some(Value::Array(plugins)) => !plugins.is_empty() && plugins.iter().all(has_type),
        Some(_) => false,
        None => has_type(&json),
    };
    ensure!(good, "it has no list \"plugins\" whose members each have a \"type\"");
    ensure!(json.get("name").is_some_and(Value::is_string), "it has no \"name\"");
    // A list of versions came with CNI 1.1.
    let is_version = |value: &Value| value.as_str().is_some_and(|version| !version.is_empty());
    let versions = json.get("cniVersions").and_then(Value::as_array).filter(|all| !all.is_empty());
    ensure!(
        json.get("plugins").is_none()
            || json.get("cniVersion").is_some_and(is_version)
            || versions.is_some_and(|all| all.iter().all(is_version)),
        "it has no \"cniVersion\", and runtimes then use the first one, which has no lists of plugins"
    );
    let (what, extensions): (_, &[&str]) = match json.get("plugins") {
        Some(_) => ("a list of plugins", &["conflist"]),
        None => ("a single plugin", &["conf", "json"]),
    };
    let extension = Path::new(file_name).extension();
    let extensions: Vec<String> = extensions.iter().map(|one| format!(".{one}")).collect();
    ensure!(
        extension.is_some_and(|extension| extensions.iter().any(|one| extension == &one[1..])),
        "it is {what}, which runtimes read only from a file named *{}, not from {file_name:?}: rename the \
         file",
        extensions.join(" or *")
    );
    Ok(())
}

/// The addresses that a plugin of ours hands out: those of this node's subnet, each to one pod of a network.
#[derive(Debug, PartialEq, Eq)]
struct Addresses {
    network: String,
    subnet_file: String,
    /// Where `host-local` keeps its reservations.
    reservations: String,
}

/// Finds a configuration whose pods would get the same addresses as those of this one, because another
/// network, or the same with another directory of reservations, reads the same subnet file. Returns what to
/// say about it.
pub(super) fn clash(bytes: &[u8], path: &Path, ours: &[String]) -> Option<String> {
    let mine = addresses(bytes, ours);
    let directory = path.parent()?;
    let mut names = names(directory);
    names.retain(|name| path.file_name().is_none_or(|own| own != name.as_str()));
    for name in names {
        let there = directory.join(&name);
        let Ok(bytes) = regular::read(&there, regular::USUAL) else { continue };
        for other in addresses(&bytes, ours) {
            let same_source = |one: &&Addresses| one.subnet_file == other.subnet_file && **one != other;
            if let Some(one) = mine.iter().find(same_source) {
                return Some(format!(
                    "network {:?} of {} takes its addresses from {} as well, and pods of the two would \
                     have the same ones: remove that file, or give this network the same name and \
                     \"dataDir\"",
                    other.network,
                    there.display(),
                    one.subnet_file
                ));
            }
        }
    }
    None
}

/// Lists the addresses that plugins of ours would hand out with this configuration.
fn addresses(bytes: &[u8], ours: &[String]) -> Vec<Addresses> {
    let Ok(json) = serde_json::from_slice::<Value>(bytes) else { return Vec::new() };
    let text = |value: &Value, default: &str| value.as_str().unwrap_or(default).to_owned();
    let of = |plugin: &Value| Addresses {
        network: text(&json["name"], ""),
        subnet_file: text(&plugin["subnetFile"], SUBNET_FILE),
        reservations: text(&plugin["ipam"]["dataDir"], RESERVATIONS),
    };
    let uses_host_local = |plugin: &&Value| ipam_of(plugin) == HOST_LOCAL;
    plugins(&json)
        .into_iter()
        .filter(|plugin| is_ours(plugin, ours))
        .filter(uses_host_local)
        .map(of)
        .collect()
}

/// Lists the plugins that a configuration needs and that are not in the directory.
pub(super) fn missing_plugins(bytes: &[u8], directory: &Path, ours: &[String]) -> Vec<String> {
    let json = serde_json::from_slice(bytes).unwrap_or_default();
    let mut needed = Vec::new();
    for plugin in plugins(&json) {
        needed.push(plugin["type"].as_str().unwrap_or_default());
        if is_ours(plugin, ours) {
            needed.push(plugin["delegate"]["type"].as_str().unwrap_or("bridge"));
            needed.push(ipam_of(plugin));
        } else {
            needed.push(plugin["ipam"]["type"].as_str().unwrap_or_default());
        }
    }
    let is_program = |name: &str| {
        let file = fs::metadata(directory.join(name));
        file.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let mut missing: Vec<String> = Vec::new();
    for name in needed.into_iter().filter(|name| !name.is_empty() && !is_program(name)) {
        if !missing.iter().any(|one| one == name) {
            missing.push(name.to_owned());
        }
    }
    missing
}

fn plugins(json: &Value) -> Vec<&Value> {
    match json.get("plugins") {
        Some(plugins) => plugins.as_array().into_iter().flatten().collect(),
        None => vec![json],
    }
}

fn is_ours(plugin: &Value, ours: &[String]) -> bool {
    plugin["type"]
        .as_str()
        .is_some_and(|kind| OWN_NAMES.contains(&kind) || ours.iter().any(|name| name == kind))
}

fn ipam_of(plugin: &Value) -> &str {
    plugin["ipam"]["type"].as_str().unwrap_or(HOST_LOCAL)
}

/// Lists the configurations that runtimes would use before ours, in the runtimes' order.
pub(super) fn earlier(directory: &Path, ours: &str) -> Vec<String> {
    let mut names = names(directory);
    names.retain(|name| name.as_str() < ours);
    names
}

/// Lists the configurations in a directory, in the runtimes' order.
fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_one = |name: &String| {
        Path::new(name).extension().is_some_and(|end| EXTENSIONS.iter().any(|known| end == *known))
    };
    let mut names: Vec<String> = names.filter(is_one).collect();
    names.sort();
    names
}
