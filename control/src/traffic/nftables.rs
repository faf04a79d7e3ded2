//! Rules in nftables: observe with `nft list table`, compare, change with one `nft -f -`.
//!
//! Each family has its own table, so rules of others never get in the way. iptables is not needed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::error::TrafficError;
use super::program::{ProgramError, Programs, run};
use super::rules::{self, Nets, NftChain, Purpose, Repair, Scope};

const PACKAGE: &str = "nftables";
/// `nft`'s name of each family, with flannel's table in it.
const TABLES: [(&str, &str); 2] = [("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")];
/// A table that exists only in dry runs.
const PROBE: &str = "flannel-probe";

/// The program, and what it and the kernel support.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nft {
    program: PathBuf,
    random_fully: bool,
    comments: bool,
}

/// The table of one family.
#[derive(Debug)]
pub struct Nftables {
    nft: Nft,
    nets: Nets,
    family: &'static str,
    table: &'static str,
    /// Our chains in this nft's spelling, where it differs from ours.
    spelled: BTreeMap<Purpose, Listed>,
}

/// A chain as `nft list` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The declarations: comment, type and hook.
    pub head: Vec<String>,
    /// The rules, in order.
    pub rules: Vec<String>,
}

impl Nft {
    /// Finds the program, and probes its and the kernel's features with dry runs.
    pub async fn open(programs: &Programs, random_fully: bool) -> Result<Nft, TrafficError> {
        let program = programs.find("nft", PACKAGE)?;
        let comments = accepts(&program, &format!("add table ip {PROBE} {{ comment \"probe\" ; }}\n")).await
            && accepts(&program, &chain_probe("comment \"probe\" ;", "return")).await;
        let random_fully =
            random_fully && accepts(&program, &chain_probe("", "masquerade fully-random")).await;
        Ok(Nft { program, random_fully, comments })
    }

    /// Creates the tables of both families, as flannel does even if one family is off.
    pub async fn make_tables(&self, ipv4: bool, ipv6: bool) -> Result<(), TrafficError> {
        for ((family, table), needed) in TABLES.into_iter().zip([ipv4, ipv6]) {
            match run(&self.program, &["-f", "-"], &self.add_table(family, table)).await {
                Err(error) if needed => return Err(error.into()),
                Err(error) => tracing::debug!(table, "cannot create a table that is not needed: {error}"),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    fn add_table(&self, family: &str, table: &str) -> String {
        let comment =
            if self.comments { format!(" {{ comment \"rules for {table}\" ; }}") } else { String::new() };
        format!("add table {family} {table}{comment}\n")
    }
}

impl Nftables {
    /// Describes the table for these networks.
    pub fn new(nft: &Nft, nets: Nets) -> Nftables {
        let (family, table) = TABLES[usize::from(nets.is_ipv6())];
        Nftables { nft: nft.clone(), nets, family, table, spelled: BTreeMap::new() }
    }

    /// Makes the chains of these purposes match the wanted ones. Returns true if anything was changed.
    pub async fn apply(&mut self, purposes: &[Purpose], scope: Scope) -> Result<bool, TrafficError> {
        let wanted: Vec<NftChain> = purposes
            .iter()
            .map(|purpose| rules::nftables(*purpose, &self.nets, self.nft.random_fully))
            .collect();
        let listed = self.observe().await?;
        let changes: Vec<String> = wanted.iter().map(|chain| self.diff(&listed, chain, scope)).collect();
        if changes.iter().all(String::is_empty) {
            return Ok(false);
        }
        // Adds the table as well: a flushed ruleset has none.
        let script = self.nft.add_table(self.family, self.table) + &changes.concat();
        run(&self.nft.program, &["-f", "-"], &script).await?;
        let listed = self.observe().await?;
        for chain in wanted {
            self.verify(&listed, &chain)?;
        }
        Ok(true)
    }

    async fn observe(&self) -> Result<BTreeMap<String, Listed>, TrafficError> {
        match run(&self.nft.program, &["list", "table", self.family, self.table], "").await {
            Ok(text) => Ok(parse(&text)),
            Err(error) if is_absent(&error) => Ok(BTreeMap::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the input for `nft -f -` that makes the chain match `wanted`; empty if it does.
    fn diff(&self, listed: &BTreeMap<String, Listed>, wanted: &NftChain, scope: Scope) -> String {
        let spelled = self.spelled.get(&wanted.purpose).cloned().unwrap_or_else(|| self.listed(wanted));
        let found = listed.get(wanted.name);
        let place = format!("{} {} {}", self.family, self.table, wanted.name);
        let mut script = String::new();
        let first = match found {
            Some(found) if found.head == spelled.head => {
                match rules::compare(&found.rules, &spelled.rules, scope == Scope::Start) {
                    Repair::Nothing => return script,
                    Repair::Append(present) => present,
                    Repair::Refill => {
                        let _ = writeln!(script, "flush chain {place}");
                        0
                    }
                }
            }
            found => {
                if found.is_some() {
                    let _ = writeln!(script, "flush chain {place}\ndelete chain {place}");
                }
                let comment = match self.nft.comments {
                    true => format!(" comment \"{}\" ;", wanted.comment),
                    false => String::new(),
                };
                let NftChain { hook, priority, .. } = wanted;
                let _ = writeln!(
                    script,
                    "add chain {place} {{ {hook} priority {priority} ; policy accept ;{comment} }}"
                );
                0
            }
        };
        for rule in &wanted.rules[first..] {
            let _ = writeln!(script, "add rule {place} {rule}");
        }
        script
    }

    /// Returns the chain as a current nft lists it.
    fn listed(&self, chain: &NftChain) -> Listed {
        let comment = self.nft.comments.then(|| format!("comment \"{}\"", chain.comment));
        let hook = format!("{} priority {}; policy accept;", chain.hook, chain.priority_name);
        Listed { head: comment.into_iter().chain([hook]).collect(), rules: chain.rules.clone() }
    }

    /// Checks that the added chain exists, and remembers its spelling.
    fn verify(&mut self, listed: &BTreeMap<String, Listed>, wanted: &NftChain) -> Result<(), TrafficError> {
        if self.diff(listed, wanted, Scope::Resync).is_empty() {
            return Ok(());
        }
        match listed.get(wanted.name) {
            Some(found) if found.rules.len() == wanted.rules.len() => {
                let listed = [found.head.as_slice(), &found.rules].concat().join("; ");
                tracing::debug!(chain = wanted.name, %listed, "this nft spells rules in its own way");
                self.spelled.insert(wanted.purpose, found.clone());
                Ok(())
            }
            _ => {
                Err(TrafficError::NotKept { what: format!("{} {} {}", self.family, self.table, wanted.name) })
            }
        }
    }
}

/// Removes our tables of both families. Returns what was removed, and the errors. A host without nft has no
/// tables.
pub async fn clean(programs: &Programs) -> (Vec<String>, Vec<TrafficError>) {
    let (mut removed, mut failures) = (Vec::new(), Vec::new());
    let Ok(program) = programs.find("nft", PACKAGE) else { return (removed, failures) };
    for (family, table) in TABLES {
        match run(&program, &["delete", "table", family, table], "").await {
            Ok(_) => removed.push(format!("nftables {family} {table}")),
            Err(error) if is_absent(&error) => {}
            Err(error) => failures.push(error.into()),
        }
    }
    (removed, failures)
}

/// Removes the chain of one purpose. Returns false if there was none.
pub async fn remove(programs: &Programs, ipv6: bool, purpose: Purpose) -> Result<bool, TrafficError> {
    let program = programs.find("nft", PACKAGE)?;
    let (family, table) = TABLES[usize::from(ipv6)];
    let chain = match purpose {
        Purpose::Masquerade => "postrtg",
        Purpose::Forward => "forward",
    };
    let script = format!("flush chain {family} {table} {chain}\ndelete chain {family} {table} {chain}\n");
    match run(&program, &["-f", "-"], &script).await {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Parses the chains in the listing of a table. An unknown line counts as a rule, and so as a difference.
pub fn parse(text: &str) -> BTreeMap<String, Listed> {
    let mut chains: BTreeMap<String, Listed> = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            chains.entry(name.to_owned()).or_default();
            current = Some(name.to_owned());
        } else if line == "}" {
            current = None;
        } else if let Some(chain) = current.as_ref().and_then(|name| chains.get_mut(name)) {
            let is_head = line.starts_with("type ") || line.starts_with("comment ");
            match (line.is_empty(), is_head) {
                (true, _) => {}
                (_, true) => chain.head.push(line.to_owned()),
                (_, false) => chain.rules.push(line.to_owned()),
            }
        }
    }
    chains
}

async fn accepts(program: &Path, script: &str) -> bool {
    run(program, &["--check", "-f", "-"], script).await.is_ok()
}

fn chain_probe(comment: &str, rule: &str) -> String {
    format!(
        "add table ip {PROBE}\n\
         add chain ip {PROBE} probe {{ type nat hook postrouting priority 100 ; {comment} }}\n\
         add rule ip {PROBE} probe {rule}\n"
    )
}

fn is_absent(error: &ProgramError) -> bool {
    matches!(error, ProgramError::Failed { complaint, .. } if complaint.contains("No such file or directory"))
}
