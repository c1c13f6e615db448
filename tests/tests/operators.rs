//! The four situations on real databases, every operator's action in each, and their resolution through the command line.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use lockstep_tests::harness::roles::Roles;
use lockstep_tests::operators::{matrix, runbook};

#[test]
fn every_page_of_the_runbook_is_followed() {
    let pages = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/runbook");
    let files =
        std::fs::read_dir(pages).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<String> = files.filter(|name| name != "README.md").collect();
    found.sort();
    let mut followed = runbook::PAGES.map(|page| page.name);
    followed.sort_unstable();
    assert_eq!(found, followed);
}

#[test]
fn every_situation_is_resolved_as_the_runbook_says_and_every_unsafe_action_is_refused() {
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let report = matrix::run(&roles).unwrap();
    assert!(report.is_clean(), "{}", report.text());
}
