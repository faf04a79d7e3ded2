//! Release notes: a section of docs/changelog.md.

use anyhow::{Result, bail, ensure};

/// The section of what has no version yet.
const UNRELEASED: &str = "Unreleased";

/// Returns the section of a version, without its heading and with one line per paragraph or item: GitHub and
/// GitLab show line breaks of notes as they are.
pub(crate) fn of(changelog: &str, version: &str) -> Result<String> {
    let sections = sections(changelog);
    let Some((_, body)) = sections.iter().find(|(name, _)| *name == version) else {
        let names: Vec<&str> = sections.iter().map(|(name, _)| *name).collect();
        bail!(
            "docs/changelog.md has no section {version}, only {}; rename {UNRELEASED} for a release",
            names.join(", ")
        );
    };
    let text = unwrap(body);
    ensure!(!text.is_empty(), "the section {version} of docs/changelog.md is empty");
    Ok(text)
}

/// Splits the changelog at its headings of the second level: `## 1.0.0`, `## [1.0.0] - 2026-11-28`.
fn sections(changelog: &str) -> Vec<(&str, Vec<&str>)> {
    let mut sections: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in changelog.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let name = heading.split_whitespace().next().unwrap_or_default();
            sections.push((name.trim_start_matches('[').trim_end_matches(']'), Vec::new()));
        } else if let Some((_, body)) = sections.last_mut() {
            body.push(line);
        }
    }
    sections
}

fn unwrap(lines: &[&str]) -> String {
    let mut text = String::new();
    let (mut code, mut open) = (false, false);
    for line in lines {
        let start = line.trim_start();
        let fence = start.starts_with("```");
        let begins = ["- ", "* ", "#", "|", ">"].iter().any(|mark| start.starts_with(mark));
        if open && !code && !fence && !begins && !start.is_empty() {
            text += " ";
            text += start.trim_end();
        } else {
            text += "\n";
            text += line.trim_end();
        }
        code ^= fence;
        open = !code && !fence && !start.is_empty() && !start.starts_with(['#', '|']);
    }
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{Options, Task};

    const CHANGELOG: &str = "# Changelog\n\nText.\n\n## Unreleased\n\n## [0.2.0-rc.1] - 2026-11-28\r\n\r\n\
        ### Added\r\n\r\n- One\r\n  of two lines.\r\n- Two.\r\n  - Below.\n\n## 0.1.0\n\n\
        A text\nof two lines.\n\n\
        ```sh\na\nb\n```\n\n| a |\n| b |\n";

    #[test]
    fn a_section_is_found_by_its_version_and_has_whole_lines() {
        let notes = of(CHANGELOG, "0.2.0-rc.1").expect("notes");
        assert_eq!(notes, "### Added\n\n- One of two lines.\n- Two.\n  - Below.");
        let notes = of(CHANGELOG, "0.1.0").expect("notes");
        assert_eq!(notes, "A text of two lines.\n\n```sh\na\nb\n```\n\n| a |\n| b |");
    }

    #[test]
    fn a_version_without_notes_is_an_error_that_names_what_is_there() {
        let error = of(CHANGELOG, "0.2.0").expect_err("not there").to_string();
        assert!(error.contains("no section 0.2.0, only Unreleased, 0.2.0-rc.1, 0.1.0;"), "{error}");
        let error = of(CHANGELOG, UNRELEASED).expect_err("empty").to_string();
        assert_eq!(error, "the section Unreleased of docs/changelog.md is empty");
        assert!(of("", "0.1.0").is_err());
    }

    #[test]
    fn notes_need_no_directory_and_a_release_needs_one() {
        let parse = |words: &[&str]| Options::try_parse_from([&["deploy/release"], words].concat());
        let version = |words: &[&str]| match parse(words).expect("options").task {
            Some(Task::Notes { version }) => version,
            None => panic!("a release"),
        };
        assert_eq!(version(&["notes"]), env!("CARGO_PKG_VERSION"));
        assert_eq!(version(&["notes", "0.1.0-rc.1"]), "0.1.0-rc.1");
        let options = parse(&["./notes", "--only", "deb,rpm"]).expect("options");
        assert!(options.task.is_none() && options.output == Some("./notes".into()));
        for (words, said) in [
            (&[][..], "<DIR>"),
            (&["notes", "0.1.0", "more"], "unexpected argument 'more'"),
            (&["DIR", "notes"], "the subcommand 'notes' cannot be used with '<DIR>'"),
            (&["DIR", "--target", "armv7"], "[possible values: x86_64, aarch64]"),
        ] {
            let error = parse(words).expect_err("refused").to_string();
            assert!(error.contains(said), "{words:?}: {error}");
        }
    }

    #[test]
    fn this_trees_changelog_has_notes() {
        let notes = of(include_str!("../../../docs/changelog.md"), UNRELEASED).expect("notes");
        assert!(notes.starts_with("### Added\n\n- "));
        let whole =
            |line: &str| line.is_empty() || line.starts_with('#') || line.trim_start().starts_with("- ");
        assert_eq!(notes.lines().find(|line| !whole(line)), None);
    }
}
