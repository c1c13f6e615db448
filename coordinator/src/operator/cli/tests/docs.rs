//! docs/configuration.md and docs/cli.md say what the program does, and nothing else.
//!
//! `UPDATE_GOLDENFILES=1 cargo test` writes the tables that come from the code anew; the rest is for a person.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::super::{Exit, command};
use crate::codes::Code;
use crate::config::environment::{TEST_PREFIX, variables};
use crate::config::tests::read_file;
use crate::config::{KEYS, Key};
use crate::protocol::situation::Forbidden;

const CONFIGURATION: &str = "configuration.md";
const CLI: &str = "cli.md";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).expect("the documentation is there")
}

/// The table between the marks that begin with `<!-- begin` and `<!-- end of begin`, which must be this one.
fn check_table(name: &str, begin: &str, table: &str) {
    let whole = text(name);
    let (before, rest) = whole.split_once(&format!("<!-- {begin}:")).expect("it begins");
    let (mark, rest) = rest.split_once("-->\n").expect("the mark ends");
    let (found, after) = rest.split_once(&format!("<!-- end of {begin} -->")).expect("it ends");
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        let new = format!("{before}<!-- {begin}:{mark}-->\n{table}<!-- end of {begin} -->{after}");
        std::fs::write(path(name), new).unwrap();
        return;
    }
    assert_eq!(found, table, "docs/{name} is not what the code says: see the head of {}", file!());
}

fn key_row(key: &Key) -> String {
    let values = match key.limits {
        Some((least, greatest)) => format!("{least} to {greatest}"),
        None => key.form.placeholder().to_lowercase().replace('|', " or "),
    };
    format!(
        "| `{}`<br>`{}`<br>`{}` | `{}` | {values} | {} |\n",
        key.name,
        key.flag(),
        key.variable,
        key.default,
        key.help
    )
}

#[test]
fn every_key_is_documented() {
    let head = "| Key, flag, variable | Default | Values | What it does |\n|---|---|---|---|\n".to_owned();
    let table = KEYS.iter().fold(head, |table, key| table + &key_row(key));
    check_table(CONFIGURATION, "keys", &table);
}

#[test]
fn every_exit_code_is_documented() {
    let mut table = "| Code | Meaning |\n|---|---|\n".to_owned();
    for exit in Exit::ALL {
        writeln!(table, "| {} | {} |", exit.code(), exit.meaning()).unwrap();
    }
    check_table(CLI, "exit codes", &table);
}

/// Each code has a page that begins with it and says what happened, why, and what to do; and each page has a code.
#[test]
fn every_error_code_has_a_page_and_every_page_a_code() {
    let pages = std::fs::read_dir(path("errors")).unwrap().map(|entry| entry.unwrap().file_name());
    let pages: BTreeSet<String> = pages.map(|name| name.into_string().unwrap()).collect();
    let expected = Code::ALL.iter().map(|code| format!("{code}.md"));
    let expected: BTreeSet<String> = expected.chain(["README.md".to_owned()]).collect();
    assert_eq!(pages, expected);
    let index = text("errors/README.md");
    for code in Code::ALL {
        let page = text(&format!("errors/{code}.md"));
        let title = page.lines().next().unwrap().strip_prefix(&format!("# {code}: "));
        let title = title.unwrap_or_else(|| panic!("{code}: its page begins with another title"));
        assert!(index.contains(&format!("| [{code}]({code}.md) | {title} |")), "{code} is not in the list");
        for part in ["**What happened.**", "**Why.**", "**What to do.**"] {
            assert!(page.contains(part), "{code}: {part}");
        }
        for link in page.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap()) {
            assert!(path("errors").join(link).exists(), "{code}: {link}");
        }
    }
}

/// What is refused says what to do with commands that exist.
#[test]
fn every_command_that_a_page_or_a_refusal_names_is_one() {
    let mut texts: Vec<(String, String)> =
        Forbidden::ALL.iter().map(|why| (format!("{why:?}"), why.instead().to_owned())).collect();
    for folder in ["errors", "runbook", "runbook/alerts"] {
        let files = std::fs::read_dir(path(folder)).unwrap().map(|entry| entry.unwrap().path());
        for file in files.filter(|file| file.is_file()) {
            texts.push((file.display().to_string(), std::fs::read_to_string(file).unwrap()));
        }
    }
    for (place, text) in texts {
        for quoted in text.split('`').filter(|text| text.starts_with("lockstep ")) {
            let words = quoted.split_whitespace().map(|word| match word {
                "ID" | "$ID" | "NAME" | "$NAME" | "TEXT" => "x",
                other => other,
            });
            let mut words: Vec<&str> = words.collect();
            // A command that acts is named by itself: a reason is asked for when it is run.
            if words.len() > 2 && !words.contains(&"--dry-run") && !words.contains(&"--reason") {
                words.extend(["--reason", "x"]);
            }
            let parsed = command().try_get_matches_from(&words);
            let understood = parsed.map_err(|error| error.kind()).map_or_else(
                |kind| {
                    use clap::error::ErrorKind as K;
                    // A name of several commands, or a flag that only some take.
                    matches!(kind, K::DisplayHelpOnMissingArgumentOrSubcommand | K::MissingRequiredArgument)
                        || (kind == K::UnknownArgument
                            && command().try_get_matches_from(quoted.split_whitespace()).is_ok())
                },
                |_| true,
            );
            assert!(understood, "{place}: `{quoted}` is no command");
        }
    }
}

/// The words of a text that begin with `prefix` and go on with these characters.
fn words<'a>(text: &'a str, prefix: &str, inner: impl Fn(char) -> bool) -> BTreeSet<&'a str> {
    text.match_indices(prefix)
        .filter(|(at, _)| !text[..*at].ends_with(|c: char| inner(c) || c == '-'))
        .map(|(at, _)| {
            let word = &text[at..];
            let end = word.find(|c| !inner(c)).unwrap_or(word.len());
            &word[..end]
        })
        .collect()
}

fn flags_in(text: &str) -> BTreeSet<&str> {
    let flags = words(text, "--", |c| c.is_ascii_lowercase() || c == '-');
    // A Markdown table's and a comment's lines are none.
    flags.into_iter().filter(|flag| flag.contains(|c: char| c.is_ascii_lowercase())).collect()
}

#[test]
fn every_variable_is_documented_and_no_other() {
    let documented = text(CONFIGURATION) + &text(CLI);
    let found = words(&documented, "LOCKSTEP_", |c| c.is_ascii_uppercase() || c == '_');
    let expected: BTreeSet<_> = variables().chain([TEST_PREFIX, "LOCKSTEP_"]).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_flag_of_the_configuration_is_documented_and_no_other() {
    let documented = text(CONFIGURATION);
    let keys: Vec<String> = KEYS.iter().map(Key::flag).collect();
    let mut expected: BTreeSet<_> = keys.iter().map(String::as_str).collect();
    expected.extend(["--config", "--help", "--origin", "--server"]);
    assert_eq!(flags_in(&documented), expected);
}

/// Every command that does something, with its whole name.
fn commands(command: &clap::Command, name: &str, found: &mut Vec<(String, clap::Command)>) {
    let mut inner = command.get_subcommands().filter(|inner| inner.get_name() != "help").peekable();
    if inner.peek().is_none() {
        found.push((name.to_owned(), command.clone()));
    }
    for inner in inner {
        commands(inner, &format!("{name} {}", inner.get_name()), found);
    }
}

#[test]
fn every_command_is_documented_with_its_flags_and_no_others() {
    let cli = text(CLI);
    let (_, rest) = cli.split_once("\n## `lockstep ").expect("there are commands");
    let sections: Vec<(&str, &str)> =
        rest.split("\n## `lockstep ").map(|section| section.split_once("`\n").expect("a heading")).collect();

    let mut found = Vec::new();
    commands(&command(), "", &mut found);
    let names: BTreeSet<_> = found.iter().map(|(name, _)| name.trim()).collect();
    assert_eq!(sections.iter().map(|(name, _)| *name).collect::<BTreeSet<_>>(), names);

    for (name, command) in &found {
        let is_key = |flag: &str| KEYS.iter().any(|key| key.name == flag);
        let flags = command.get_arguments().filter_map(clap::Arg::get_long).filter(|flag| !is_key(flag));
        let flags: BTreeSet<String> = flags.map(|flag| format!("--{flag}")).collect();
        let (_, section) =
            sections.iter().find(|(heading, _)| *heading == name.trim()).expect("compared above");
        let rows = section.lines().filter(|line| line.starts_with("| `--"));
        let documented: BTreeSet<String> = rows.flat_map(flags_in).map(str::to_owned).collect();
        assert_eq!(documented, flags, "{name}");
        assert!(command.get_arguments().all(|argument| argument.get_help().is_some()), "{name}");
    }
}

#[test]
fn every_field_of_the_json_is_documented() {
    fn fields(value: &serde_json::Value, found: &mut BTreeSet<String>) {
        match value {
            serde_json::Value::Object(object) => {
                for (name, value) in object {
                    found.insert(name.clone());
                    // Labels have the names that an application gives them.
                    if name != "labels" {
                        fields(value, found);
                    }
                }
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| fields(value, found)),
            serde_json::Value::Null
            | serde_json::Value::Bool(_)
            | serde_json::Value::Number(_)
            | serde_json::Value::String(_) => {}
        }
    }
    let cli = text(CLI);
    for golden in ["tx-ls.json", "tx-show.json", "tx-wait.json", "status.json", "banner.json", "doctor.json"]
    {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/operator/cli/golden").join(golden);
        let shown = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut found = BTreeSet::new();
        fields(&shown, &mut found);
        assert!(!found.is_empty());
        for field in found {
            assert!(cli.contains(&format!("`{field}`")), "{golden}: {field}");
        }
    }
}

#[test]
fn the_files_that_are_shown_are_taken() {
    let configuration = text(CONFIGURATION);
    let dir = tempfile::TempDir::new().unwrap();
    let mut files = 0;
    for block in configuration.split("```toml\n").skip(1) {
        let (file, _) = block.split_once("```").expect("it ends");
        read_file(file, &dir.path().join("lockstep.toml")).expect("an example that works");
        files += 1;
    }
    assert_eq!(files, 1);
}
