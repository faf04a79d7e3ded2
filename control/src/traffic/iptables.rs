//! Rules in iptables: observe with `iptables-save`, compare, change with one `iptables-restore`.
//!
//! The programs know whether this host keeps its rules in the legacy interface or in nftables, which lock to
//! take, and how to leave the rules of others alone; a second implementation would have to be kept in step
//! with them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use super::error::TrafficError;
use super::program::{Programs, run};
use super::rules::{self, Chain, FORWARD_CHAIN, Nets, POSTROUTING_CHAIN, Purpose, Repair, Scope};

const PACKAGE: &str = "iptables";
/// The first version that waits for another program's lock and knows `--random-fully`.
const MODERN: (u32, u32, u32) = (1, 6, 2);
/// The option that waits up to 10 seconds for the lock.
const WAIT: &str = "--wait=10";

/// The rules of one family.
#[derive(Debug)]
pub struct Iptables {
    nets: Nets,
    random_fully: bool,
    save: PathBuf,
    restore: PathBuf,
    waits: bool,
    /// Our rules in this iptables' spelling, where it differs from ours.
    spelled: BTreeMap<Purpose, (String, Vec<String>)>,
}

/// A table as `iptables-save` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The names of the chains.
    pub chains: Vec<String>,
    /// The rules, in order.
    pub rules: Vec<String>,
}

impl Iptables {
    /// Finds the programs and their features.
    pub async fn open(programs: &Programs, nets: Nets, random_fully: bool) -> Result<Iptables, TrafficError> {
        let family = if nets.is_ipv6() { "ip6tables" } else { "iptables" };
        let save = programs.find(&format!("{family}-save"), PACKAGE)?;
        let restore = programs.find(&format!("{family}-restore"), PACKAGE)?;
        let version = run(&restore, &["--version"], "").await?;
        let modern = version_of(&version).is_none_or(|version| version >= MODERN);
        let random_fully = random_fully && modern;
        Ok(Iptables { nets, random_fully, save, restore, waits: modern, spelled: BTreeMap::new() })
    }

    /// Makes the rules of these purposes match the wanted ones. Returns true if anything was changed.
    pub async fn apply(&mut self, purposes: &[Purpose], scope: Scope) -> Result<bool, TrafficError> {
        let wanted: Vec<Chain> = purposes.iter().map(|purpose| self.wanted(*purpose)).collect();
        let mut script = String::new();
        for chain in &wanted {
            let table = self.observe(chain.table).await?;
            script.push_str(&diff(&table, chain, scope));
        }
        if script.is_empty() {
            return Ok(false);
        }
        self.restore(&script).await?;
        for chain in wanted {
            self.verify(chain).await?;
        }
        Ok(true)
    }

    fn wanted(&self, purpose: Purpose) -> Chain {
        let mut chain = rules::iptables(purpose, &self.nets, self.random_fully);
        if let Some((jump, rules)) = self.spelled.get(&purpose) {
            (chain.jump, chain.rules) = (jump.clone(), rules.clone());
        }
        chain
    }

    /// Checks that the added rules exist, and remembers their spelling; otherwise every later round would
    /// find a difference.
    async fn verify(&mut self, wanted: Chain) -> Result<(), TrafficError> {
        let table = self.observe(wanted.table).await?;
        if diff(&table, &wanted, Scope::Resync).is_empty() {
            return Ok(());
        }
        let found = table.rules_of(wanted.name);
        let jump = table.rules_of(wanted.parent).into_iter().rfind(|line| leads_to(line, wanted.name));
        match jump {
            Some(jump) if found.len() == wanted.rules.len() => {
                let listed = found.join("; ");
                tracing::debug!(chain = wanted.name, %listed, "this iptables spells rules in its own way");
                self.spelled.insert(wanted.purpose, (jump, found));
                Ok(())
            }
            _ => Err(TrafficError::NotKept { what: format!("{} of {}", wanted.name, self.save.display()) }),
        }
    }

    async fn observe(&self, table: &str) -> Result<Table, TrafficError> {
        let text = run(&self.save, &["-t", table], "").await?;
        Ok(parse(&text).remove(table).unwrap_or_default())
    }

    async fn restore(&self, script: &str) -> Result<(), TrafficError> {
        let arguments: &[&str] = if self.waits { &["--noflush", WAIT] } else { &["--noflush"] };
        run(&self.restore, arguments, script).await?;
        Ok(())
    }
}

/// Removes our chains and the rules that lead to them, from every iptables of this host. Returns what was
/// removed, and the errors.
///
/// A host may have both kinds of iptables, and neither sees the other's rules. A kind that is not installed
/// has no rules.
pub async fn clean(programs: &Programs) -> (Vec<String>, Vec<TrafficError>) {
    let (mut removed, mut failures) = (Vec::new(), Vec::new());
    for family in ["iptables", "ip6tables"] {
        for (save, restore) in pairs(programs, family) {
            match clean_one(&save, &restore).await {
                Ok(chains) => removed.extend(chains.into_iter().map(|chain| format!("{family} {chain}"))),
                Err(error) => failures.push(error),
            }
        }
    }
    (removed, failures)
}

/// Removes the rules of one purpose from the iptables in use. Returns false if there were none.
pub async fn remove(programs: &Programs, ipv6: bool, purpose: Purpose) -> Result<bool, TrafficError> {
    let family = if ipv6 { "ip6tables" } else { "iptables" };
    let (table, chain) = match purpose {
        Purpose::Masquerade => ("nat", POSTROUTING_CHAIN),
        Purpose::Forward => ("filter", FORWARD_CHAIN),
    };
    let save = programs.find(&format!("{family}-save"), PACKAGE)?;
    let restore = programs.find(&format!("{family}-restore"), PACKAGE)?;
    let tables = parse(&run(&save, &["-t", table], "").await?);
    let script = removal(&tables, &[chain]);
    if script.is_empty() {
        return Ok(false);
    }
    run(&restore, &["--noflush", WAIT], &script).await?;
    Ok(true)
}

async fn clean_one(save: &std::path::Path, restore: &std::path::Path) -> Result<Vec<String>, TrafficError> {
    // No table is named, because naming one would make the kernel load it.
    let tables = parse(&run(save, &[], "").await?);
    let ours = [POSTROUTING_CHAIN, FORWARD_CHAIN];
    let script = removal(&tables, &ours);
    if script.is_empty() {
        return Ok(Vec::new());
    }
    run(restore, &["--noflush", WAIT], &script).await?;
    let chains = tables.iter().flat_map(|(name, table)| {
        let ours = table.chains.iter().filter(|chain| ours.contains(&chain.as_str()));
        ours.map(move |chain| format!("{name} {chain}"))
    });
    Ok(chains.collect())
}

fn pairs(programs: &Programs, family: &str) -> Vec<(PathBuf, PathBuf)> {
    let pair = |kind: &str| {
        let find = |what: &str| programs.find(&format!("{family}{kind}-{what}"), PACKAGE).ok();
        Some((find("save")?, find("restore")?))
    };
    let kinds: Vec<_> = ["-nft", "-legacy"].into_iter().filter_map(pair).collect();
    // If neither kind has its own name, the host has only one kind.
    if kinds.is_empty() { pair("").into_iter().collect() } else { kinds }
}

/// Parses the output of `iptables-save` by table. Unknown lines are skipped.
pub fn parse(text: &str) -> BTreeMap<String, Table> {
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    let mut current: Option<&mut Table> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            current = Some(tables.entry(name.trim().to_owned()).or_default());
        } else if let (Some(table), Some(chain)) = (&mut current, line.strip_prefix(':')) {
            table.chains.extend(chain.split_whitespace().next().map(str::to_owned));
        } else if let (Some(table), true) = (&mut current, line.starts_with("-A ")) {
            table.rules.push(line.trim_end().to_owned());
        } else if line == "COMMIT" {
            current = None;
        }
    }
    tables
}

impl Table {
    /// Returns the rules of one chain, in order.
    pub fn rules_of(&self, chain: &str) -> Vec<String> {
        self.rules.iter().filter(|rule| chain_of(rule) == chain).cloned().collect()
    }
}

/// Returns the input for `iptables-restore --noflush` that makes the table match `wanted`; empty if it does.
pub fn diff(table: &Table, wanted: &Chain, scope: Scope) -> String {
    let exact = scope == Scope::Start;
    let exists = table.chains.iter().any(|chain| chain == wanted.name);
    let repair = match exists {
        true => rules::compare(&table.rules_of(wanted.name), &wanted.rules, exact),
        false => Repair::Refill,
    };
    let jumps = table.rules_of(wanted.parent).iter().filter(|rule| **rule == wanted.jump).count();
    let surplus = if exact { jumps.saturating_sub(1) } else { 0 };
    if repair == Repair::Nothing && jumps > 0 && surplus == 0 {
        return String::new();
    }
    let mut lines = vec![format!("*{}", wanted.table)];
    let first = match repair {
        Repair::Nothing => wanted.rules.len(),
        Repair::Append(present) => present,
        Repair::Refill => {
            // Declaring a chain creates or empties it.
            lines.push(format!(":{} - [0:0]", wanted.name));
            0
        }
    };
    lines.extend(deletion(&wanted.jump).into_iter().cycle().take(surplus));
    if jumps == 0 {
        lines.push(wanted.jump.clone());
    }
    lines.extend_from_slice(&wanted.rules[first..]);
    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

/// Returns the input that removes these chains and every rule that leads to them; empty if there are none.
pub fn removal(tables: &BTreeMap<String, Table>, chains: &[&str]) -> String {
    let mut script = String::new();
    for (name, table) in tables {
        let ours: Vec<&&str> =
            chains.iter().filter(|chain| table.chains.iter().any(|found| found == **chain)).collect();
        if ours.is_empty() {
            continue;
        }
        let _ = writeln!(script, "*{name}");
        for rule in &table.rules {
            let inside = ours.iter().any(|chain| chain_of(rule) == **chain);
            if !inside && ours.iter().any(|chain| leads_to(rule, chain)) {
                script.extend(deletion(rule).map(|line| line + "\n"));
            }
        }
        for verb in ["-F", "-X"] {
            for chain in &ours {
                let _ = writeln!(script, "{verb} {chain}");
            }
        }
        script.push_str("COMMIT\n");
    }
    script
}

fn chain_of(rule: &str) -> &str {
    rule.strip_prefix("-A ").and_then(|rest| rest.split(' ').next()).unwrap_or_default()
}

fn leads_to(rule: &str, chain: &str) -> bool {
    [" -j ", " -g "].iter().any(|verb| rule.strip_suffix(chain).is_some_and(|rest| rest.ends_with(verb)))
}

fn deletion(rule: &str) -> Option<String> {
    rule.strip_prefix("-A ").map(|rest| format!("-D {rest}"))
}

/// Parses the version number in text such as `iptables-restore v1.8.9 (nf_tables)`.
fn version_of(text: &str) -> Option<(u32, u32, u32)> {
    let number = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let mut parts = number.split('.').map(|part| part.parse::<u32>());
    Some((parts.next()?.ok()?, parts.next()?.ok()?, parts.next().and_then(Result::ok).unwrap_or(0)))
}
