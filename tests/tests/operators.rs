//! The four situations on real databases, every operator's action in each, and their resolution through the command line.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use lockstep_tests::harness::roles::Roles;
use lockstep_tests::operators::{matrix, runbook};

#[test]
fn every_page_of_the_runbook_is_followed() {
    let files = |folder: &str| {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbook").join(folder);
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap())
    };
    let situations = files("").filter(|name| name != "README.md" && name != "alerts");
    let mut found: Vec<String> =
        situations.chain(files("alerts").map(|name| format!("alerts/{name}"))).collect();
    found.sort();
    let mut followed: Vec<&str> = runbook::pages().iter().map(|page| page.name).collect();
    followed.sort_unstable();
    assert_eq!(found, followed);
}

#[test]
fn every_situation_is_resolved_as_the_runbook_says_and_every_unsafe_action_is_refused() {
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let report = matrix::run(&roles).unwrap();
    assert!(report.is_clean(), "{}", report.text());
}
