//! Generates and checks CNI configurations, and finds those that take precedence.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use model::subnet_env::SUBNET_FILE;
use serde::Serialize;
use serde_json::Value;

use crate::options::InstallCniOptions;

/// The file name extensions that runtimes read.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

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

/// Lists the configurations that runtimes would use before ours, in the runtimes' order.
pub(super) fn earlier(directory: &Path, ours: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_one = |name: &String| {
        Path::new(name).extension().is_some_and(|end| EXTENSIONS.iter().any(|known| end == *known))
    };
    let mut names: Vec<String> = names.filter(|name| name.as_str() < ours && is_one(name)).collect();
    names.sort();
    names
}
