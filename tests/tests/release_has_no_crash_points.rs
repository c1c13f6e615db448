//! The program that users run has neither crash points nor bugs to put back in it: nothing in its environment can make it kill itself, and
//! nothing at all can make it forget a rule.
//!
//! Their names are texts in a program that has them. So the program is built with the features that users get, and searched. It is not
//! optimised, which would take minutes, and names away if anything: what is compiled depends on features, and no source asks whether it is.
//! The same search finds every name of the coordinator's and the protocol's in this test's own program, which has the coordinator in it and was built with
//! all of them: it can find them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod sources;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sources::{root, sources};

/// The names of the crash points and bugs in the sources of a crate, its comments left out. From the sources and not from a table: a table
/// would be in this program.
fn names(of: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_path, text) in sources(of) {
        let code =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        for before in ["fail_point!(\"", "mutated(\""] {
            let found = code.split(before).skip(1).filter_map(|rest| rest.split_once('"'));
            names.extend(found.map(|(name, _)| name.to_owned()));
        }
    }
    names
}

/// Those of the names that occur in a program.
fn found_in(program: &Path, names: &BTreeSet<String>) -> BTreeSet<String> {
    let bytes = fs::read(program).unwrap();
    // As text, whose search is part of the standard library as it was built: one of this crate's own, without optimisation, takes
    // minutes for a hundred names. What is no text is replaced, and names are text.
    let text = String::from_utf8_lossy(&bytes);
    names.iter().filter(|name| text.contains(name.as_str())).cloned().collect()
}

/// `cargo build -p lockstep-coordinator --bin lockstep`, into the workspace's own target directory. Alone: no test's features are in it.
fn build() -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "-p", "lockstep-coordinator", "--bin", "lockstep"]);
    cargo.arg("--message-format=json-render-diagnostics").current_dir(root());
    // As the workspace has it: with more of it, what a function ignores is kept for a debugger.
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
    // Set for the test's own build and not meant for this one.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_"))
    {
        cargo.env_remove(name);
    }
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let executable = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.expect("cargo says what it has built")
}

#[test]
fn the_release_program_has_no_crash_point_and_no_bug_in_it() {
    // So that the coordinator is in this program.
    let coordinator: fn(Vec<String>) -> std::process::ExitCode = lockstep_coordinator::run;
    std::hint::black_box(coordinator);
    let [of_the_coordinator, of_the_sdk, of_both] = ["coordinator", "participant-sdk", "proto"].map(names);
    assert!(of_the_coordinator.len() > 10 && of_the_sdk.len() > 10 && !of_both.is_empty());
    let in_here: BTreeSet<_> = &of_the_coordinator | &of_both;
    let found = found_in(&std::env::current_exe().unwrap(), &in_here);
    assert_eq!(found, in_here, "the search finds what is there");

    for (path, text) in ["coordinator", "participant-sdk", "proto"].into_iter().flat_map(sources) {
        let asks = text.contains("debug_assertions");
        assert!(!asks, "{}: a release is no longer what is built here", path.display());
    }
    let released = build();
    assert_eq!(
        found_in(&released, &(&in_here | &of_the_sdk)),
        BTreeSet::new(),
        "these are in {}",
        released.display()
    );
    // It is the program, and not something else without names in it.
    let version = Command::new(&released).arg("--version").output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&version.stdout).trim(),
        concat!("lockstep ", env!("CARGO_PKG_VERSION"))
    );
}
