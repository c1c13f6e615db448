//! The four situations on real databases, every operator's action in each, and their resolution through the command line.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use lockstep_tests::harness::roles::Roles;
use lockstep_tests::operators::stage::{ORDERS, Servers, World};
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

/// Where the coordinator dies of an operator's action, and whether it is on record then.
const BROKEN_OFF: [(&str, bool); 5] = [
    ("operator-before-record", false),
    ("log-operate-before-commit", false),
    ("log-operate-after-commit", true),
    ("operator-recorded-before-act", true),
    ("operator-after-act", true),
];

/// Nothing is done by hand without its record, and what is on record is done, or can be asked for again.
#[test]
fn an_action_that_a_crash_breaks_off_is_on_record_or_was_not_done() {
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let servers = Servers::start().unwrap();
    let mut world = World::start(&servers, &roles, "broken_off").unwrap();
    for (point, on_record) in BROKEN_OFF {
        world.wait_until_attached().unwrap();
        let gtrid = world.commit_without_orders().unwrap().to_string();
        let id = gtrid.as_str();
        let undelivered = |shown: &serde_json::Value| shown["transaction"]["situation"] == "undelivered";
        let show = ["tx", "show", id, "--offline"];
        world.restart(Some(point)).unwrap();
        world.until("its recovery", &show, undelivered).unwrap();
        let abandon = ["tx", "abandon", id, "--resource", ORDERS, "--reason", point, "--confirm", id];
        let ran = world.lockstep(&abandon).unwrap();
        assert_ne!(ran.code, 0, "{point}: {ran:?}");
        world.wait_until_it_died().unwrap();

        world.restart(None).unwrap();
        let actions = |world: &World<'_>| {
            let audit = world.until("the audit", &["audit", "ls", id], |_answered| true).unwrap();
            audit["entries"].as_array().unwrap().len()
        };
        assert_eq!(actions(&world), usize::from(on_record), "{point}");
        let shown = world.until("the transaction", &show, |_answered| true).unwrap();
        let done = shown["transaction"]["outcome"] == "heuristic";
        assert!(on_record || !done, "{point}: it was done, and is not on record: {shown}");
        let again = world.lockstep(&abandon).unwrap();
        let was_done = again.code == 4 && again.stderr.contains("LS0421");
        assert!(again.code == 0 || (on_record && was_done), "{point}: {again:?}");
        let given_up = |shown: &serde_json::Value| {
            let branches = shown["transaction"]["branches"].as_array().cloned().unwrap_or_default();
            shown["transaction"]["outcome"] == "heuristic"
                && branches.iter().any(|branch| branch["state"] == "abandoned")
        };
        world.until("the branch to be given up", &show, given_up).unwrap();
        assert!(actions(&world) >= 1, "{point}");
        world.attach_orders().unwrap();
    }
}
