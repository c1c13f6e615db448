//! The architecture, held by tests: what must not occur where.
//!
//! `protocol/` and the shards are pure functions of (state, event, now), so that the same code runs live, in recovery, in a
//! simulator and in a model checker. One clock, one random number, one map without an order, and a run no longer repeats.

use std::fs;
use std::path::{Path, PathBuf};

/// Words that stand for waiting, input and output, time, chance, and an order that differs from run to run.
const IMPURE: [&str; 20] = [
    "tokio",
    "sqlx",
    "tonic",
    "prost",
    "futures",
    "async",
    "await",
    "tracing",
    "fail_point",
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "DefaultHasher",
    "RandomState",
    "rand",
    "env",
    "fs",
    "net",
    "thread",
];

/// The pure part of the engine. Whoever adds a file decides, and says so here, whether it is pure.
const PURE_ENGINE: [&str; 3] = ["shard", "delivery.rs", "input.rs"];
const SHELL_ENGINE: [&str; 6] =
    ["mod.rs", "clock.rs", "handle.rs", "inquiry.rs", "maintenance.rs", "shell.rs"];

#[test]
fn the_protocol_is_pure() {
    let offences = occurrences(&sources("protocol"), &IMPURE);
    assert!(offences.is_empty(), "in a pure module:\n{}", offences.join("\n"));
}

#[test]
fn the_shards_are_pure() {
    let files: Vec<PathBuf> =
        PURE_ENGINE.iter().flat_map(|name| sources(&format!("engine/{name}"))).collect();
    let offences = occurrences(&files, &IMPURE);
    assert!(offences.is_empty(), "in a pure module:\n{}", offences.join("\n"));
}

#[test]
fn every_file_of_the_engine_is_known_to_be_pure_or_shell() {
    for entry in fs::read_dir(root().join("engine")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let tests = name == "tests" || name == "testscripts";
        let known = tests || PURE_ENGINE.contains(&name.as_str()) || SHELL_ENGINE.contains(&name.as_str());
        assert!(known, "is engine/{name} pure? Say so in {}", file!());
    }
}

/// The protocol knows nothing of what is around it: neither the engine that runs it nor the log that keeps its records.
#[test]
fn the_protocol_depends_on_nothing_around_it() {
    for file in sources("protocol") {
        for (number, line) in code(&file) {
            let outside = line.split("crate::").skip(1).any(|path| !path.starts_with("protocol"));
            assert!(!outside, "the protocol looks out: {}", at(&file)((number, line)));
        }
    }
}

/// What the log's silence means is concluded in one place (P4, P7, P8, P9): nobody else looks at what it is concluded from.
#[test]
fn presumption_is_decided_in_one_place() {
    let facts = ["below_horizon", "EpochState"];
    let elsewhere = sources("").into_iter().filter(|file| {
        // The log finds the facts out; it draws no conclusions.
        !file.ends_with("protocol/presumption.rs") && !file.starts_with(root().join("decision_log"))
    });
    let offences = occurrences(&elsewhere.collect::<Vec<_>>(), &facts);
    assert!(offences.is_empty(), "conclusions belong into protocol/presumption.rs:\n{}", offences.join("\n"));
}

/// A transaction's state changes only in `become_…`, where what the change asks for stands beside it.
#[test]
fn a_state_changes_only_in_a_transition() {
    let assigns = |line: &str| line.contains("self.state = ") || line.contains("state: State::");
    for file in sources("protocol/transaction") {
        let allowed = match file.file_name().unwrap().to_str().unwrap() {
            "transitions.rs" => continue,
            // A new one, and one that is recovered.
            "mod.rs" => 2,
            _ => 0,
        };
        let lines: Vec<String> =
            code(&file).into_iter().filter(|(_, line)| assigns(line)).map(at(&file)).collect();
        assert!(
            lines.len() <= allowed,
            "{} belong into transitions.rs:\n{}",
            file.display(),
            lines.join("\n")
        );
    }
}

/// The scan itself: it finds what it looks for in files that have it, and nothing in comments.
#[test]
fn the_scan_finds_what_is_there() {
    assert!(!occurrences(&sources("engine/shell.rs"), &["tokio"]).is_empty());
    assert!(!occurrences(&sources("engine/clock.rs"), &["Instant", "SystemTime"]).is_empty());
    assert!(words("let random = operand; // rand").all(|word| word != "rand"));
    assert!(words("use std::env;").any(|word| word == "env"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The Rust files at or under this place in `src`, tests left out.
fn sources(place: &str) -> Vec<PathBuf> {
    let mut waiting = vec![root().join(place)];
    let mut files = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path)
                .expect("a folder of sources")
                .map(|entry| entry.expect("an entry").path());
            waiting.extend(entries.filter(|entry| !entry.ends_with("tests")));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
    assert!(!files.is_empty(), "there is no source at {place}");
    files
}

/// The lines that are not comments, with their numbers.
fn code(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).expect("a source file");
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned()));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//")).collect()
}

/// The identifiers in a line, up to a comment behind them.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split_once("// ").map_or(line, |(code, _)| code);
    code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}

fn at(file: &Path) -> impl Fn((usize, String)) -> String {
    move |(number, line)| format!("{}:{number}: {}", file.display(), line.trim())
}

fn occurrences(files: &[PathBuf], forbidden: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        let lines =
            code(file).into_iter().filter(|(_, line)| words(line).any(|word| forbidden.contains(&word)));
        found.extend(lines.map(at(file)));
    }
    found
}
