//! What is in `deploy/`: the dashboard asks for metrics that there are, and the unit is one that systemd takes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lockstep_tests::harness::tools::{promtool, shellcheck, systemd_analyze};
use serde_json::Value;
use tempfile::TempDir;

/// What Prometheus adds to every series, and a histogram to its own.
const LABELS_OF_ALL: [&str; 3] = ["instance", "job", "le"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

/// Each metric of docs/metrics.md, which another test holds against what is served, with its type and its labels.
fn documented() -> BTreeMap<String, (String, Vec<String>)> {
    let page = read("docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `lockstep_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[2].split(", ").filter(|label| !label.is_empty()).map(str::to_owned).collect();
        (format!("lockstep_{}", cells[0].trim_end_matches('`')), (cells[1].to_owned(), labels))
    })
    .collect()
}

/// The words of an expression that can be a name.
fn words(expression: &str) -> impl Iterator<Item = &str> {
    expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}

/// The metrics that an expression asks for, by the names that they are documented under.
///
/// # Panics
/// If one is not.
fn asked_for(expression: &str, documented: &BTreeMap<String, (String, Vec<String>)>) -> BTreeSet<String> {
    let is_documented = |word: &str| {
        let parts = ["_bucket", "_sum", "_count"].into_iter().filter_map(|part| word.strip_suffix(part));
        let mut histograms =
            parts.filter(|name| documented.get(*name).is_some_and(|(kind, _)| kind == "histogram"));
        match documented.get(word) {
            Some((kind, _)) if kind != "histogram" => word.to_owned(),
            Some(_) | None => {
                let found = histograms.next().unwrap_or_else(|| panic!("{word} is no series: {expression}"));
                found.to_owned()
            }
        }
    };
    words(expression).filter(|word| word.starts_with("lockstep_")).map(is_documented).collect()
}

/// The labels that an expression groups by.
fn grouped_by(expression: &str) -> impl Iterator<Item = &str> {
    let groups = expression.split("by (").skip(1).filter_map(|rest| rest.split(')').next());
    groups.flat_map(|labels| labels.split(", "))
}

/// Every expression of the dashboard, with the title of its panel.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            found.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    found
}

#[test]
fn the_dashboard_shows_every_metric_and_no_other() {
    let (documented, dashboard) =
        (documented(), serde_json::from_str(&read("deploy/grafana/lockstep.json")).unwrap());
    let mut shown = BTreeSet::new();
    for (title, expression) in expressions(&dashboard) {
        let metrics = asked_for(&expression, &documented);
        assert!(!metrics.is_empty(), "{title}: {expression}");
        for label in grouped_by(&expression) {
            let known = |metric: &String| documented[metric].1.iter().any(|known| known == label);
            assert!(
                LABELS_OF_ALL.contains(&label) || metrics.iter().any(known),
                "{title}: nothing has a label {label}: {expression}"
            );
        }
        shown.extend(metrics);
    }
    let all: BTreeSet<String> = documented.into_keys().collect();
    assert!(all.len() > 10, "{all:?}");
    assert_eq!(shown, all, "the dashboard has a panel for each");
}

/// promtool knows no dashboards, but it knows rules: each expression becomes one.
#[test]
fn every_expression_of_the_dashboard_is_one() {
    let dashboard = serde_json::from_str(&read("deploy/grafana/lockstep.json")).unwrap();
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (number, (_, expression)) in expressions(&dashboard).iter().enumerate() {
        let expression = expression.replace("$__rate_interval", "5m");
        let quoted = serde_json::to_string(&expression).unwrap();
        rules.push_str(&format!("      - record: panel:{number}\n        expr: {quoted}\n"));
    }
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("rules.yml"), &rules).unwrap();
    promtool(&["check", "rules", "rules.yml"], directory.path(), "")
        .unwrap_or_else(|error| panic!("{error}\n{rules}"));
}

#[test]
fn the_alerts_ask_for_metrics_that_there_are() {
    let documented = documented();
    let rules = read("deploy/prometheus/rules.yml");
    let expressions: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    assert!(expressions.len() > 5, "{expressions:?}");
    // What Prometheus says itself of whom it scrapes.
    let of_prometheus = |expression: &&str| words(expression).any(|word| word == "up");
    for expression in expressions.into_iter().filter(|expression| !of_prometheus(expression)) {
        assert!(!asked_for(expression, &documented).is_empty(), "{expression}");
    }
}

/// `stage.sh` is looked at with each of the acts that take it over.
#[test]
fn the_scripts_of_the_demo_have_no_known_mistake() {
    let acts = std::fs::read_dir(repository().join("demo/acts.d")).unwrap();
    let acts = acts.map(|act| format!("demo/acts.d/{}", act.unwrap().file_name().to_str().unwrap()));
    let scripts: Vec<String> =
        acts.chain(["demo/acts", "demo/compose/make-secrets", ".ci/run"].map(str::to_owned)).collect();
    let mut arguments = vec!["--external-sources"];
    arguments.extend(scripts.iter().map(String::as_str));
    shellcheck(&arguments, repository()).unwrap();
}

#[test]
fn systemd_takes_the_unit_and_finds_it_well_closed() {
    let directory = TempDir::new().unwrap();
    let unit = read("deploy/systemd/lockstep.service");
    // The only thing that it wants to be there.
    let program = "/usr/local/bin/lockstep";
    assert!(unit.contains(&format!("ExecStart={program} serve\n")));
    std::fs::write(directory.path().join("lockstep.service"), unit.replace(program, "/bin/true")).unwrap();
    let said = systemd_analyze(&["verify", "--man=no", "./lockstep.service"], directory.path()).unwrap();
    assert_eq!(said, "", "no warning either");
    // Of 100; an ordinary service has more than 90.
    let closed = ["security", "--offline=true", "--threshold=15", "./lockstep.service"];
    systemd_analyze(&closed, directory.path()).unwrap();
}
