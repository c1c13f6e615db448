//! What a run ends with: a table for people, or one JSON object for programs, and the exit code.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::Options;
use crate::books::{Books, Violation};
use crate::ledger::{Told, Transfer};
use crate::role::Role;
use crate::scenario::{Failure, Run};

const COLUMNS: u16 = 80;
/// Violations that the table names; the JSON object names all.
const NAMED: usize = 8;

/// What a run found out. Its fields are those of the JSON object.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    mode: &'static str,
    seed: u64,
    clients: u16,
    transfers: usize,
    committed: usize,
    /// Including those that a bank declined.
    rolled_back: usize,
    declined: usize,
    /// Outcomes whose answer was lost, and that were learned by asking again.
    unknown_resolved: u32,
    unknown_left: usize,
    kills: u32,
    kills_by_role: BTreeMap<&'static str, u32>,
    /// Those that left a prepared branch behind, whose transaction was in doubt until everyone was back.
    kills_while_prepared: u32,
    money_before: i64,
    money_after: i64,
    violations: usize,
    /// In words.
    violation_list: Vec<String>,
    seconds: f64,
    /// Where the files are, if they were kept.
    kept: Option<String>,
}

/// What a report is made of.
pub(crate) struct Findings<'a> {
    pub(crate) transfers: &'a BTreeMap<u32, (Transfer, Told)>,
    pub(crate) unknown_resolved: u32,
    pub(crate) kills: BTreeMap<Role, u32>,
    pub(crate) kills_while_prepared: u32,
    pub(crate) books: &'a Books,
    pub(crate) violations: Vec<Violation>,
    pub(crate) took: Duration,
}

impl Report {
    pub(crate) fn new(options: &Options, findings: Findings<'_>) -> Self {
        let Findings { transfers, unknown_resolved, kills, kills_while_prepared, books, violations, took } =
            findings;
        let count = |is: fn(&Told) -> bool| transfers.values().filter(|(_, told)| is(told)).count();
        let declined = count(|told| matches!(told, Told::Declined));
        Self {
            mode: if options.naive { "naive" } else { "lockstep" },
            seed: options.seed,
            clients: options.clients,
            transfers: transfers.len(),
            committed: count(|told| matches!(told, Told::Committed)),
            rolled_back: declined + count(|told| matches!(told, Told::RolledBack)),
            declined,
            unknown_resolved,
            unknown_left: count(|told| matches!(told, Told::Unknown(_))),
            kills: kills.values().sum(),
            kills_by_role: kills.into_iter().map(|(role, kills)| (role.name(), kills)).collect(),
            kills_while_prepared,
            money_before: Books::opening_money(),
            money_after: books.money(),
            violations: violations.len(),
            violation_list: violations.iter().map(ToString::to_string).collect(),
            seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
            kept: None,
        }
    }

    /// Whether something was found that must not be.
    pub(crate) const fn is_wrong(&self) -> bool {
        self.violations > 0
    }
}

/// Says what became of a run, and returns the exit code: 0 only if nothing was wrong.
pub(crate) fn tell(options: &Options, run: Result<Run, Failure>) -> ExitCode {
    let Run { result, last_words, kept } =
        run.unwrap_or_else(|failure| Run { result: Err(failure), last_words: Vec::new(), kept: None });
    for (role, lines) in last_words {
        eprintln!("--- the last lines of {role}\n{lines}\n---");
    }
    let kept = kept.map(|dir| dir.display().to_string());
    if let Some(dir) = &kept {
        eprintln!("kept: {dir}");
    }
    match result {
        Ok(report) => {
            let report = Report { kept, ..report };
            println!("{}", if options.json { json(&report) } else { text(&report) });
            ExitCode::from(u8::from(report.is_wrong()))
        }
        Err(failure) => {
            eprintln!("error: {failure} (seed {})", options.seed);
            if options.json {
                // Without "violations": nothing was checked.
                println!(
                    "{}",
                    serde_json::json!({ "error": failure.to_string(), "seed": options.seed, "kept": kept })
                );
            }
            ExitCode::FAILURE
        }
    }
}

fn json(report: &Report) -> String {
    serde_json::to_string(report).expect("a report consists of texts, numbers and lists and maps of them")
}

fn text(report: &Report) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(COLUMNS);
    let broken_off = report.rolled_back - report.declined;
    let by_role: Vec<_> =
        report.kills_by_role.iter().map(|(role, kills)| format!("{role} {kills}")).collect();
    for (what, number, more) in [
        (
            "transfers",
            report.transfers.to_string(),
            format!("by {} clients, in {} s", report.clients, report.seconds),
        ),
        ("committed", report.committed.to_string(), String::new()),
        (
            "rolled back",
            report.rolled_back.to_string(),
            format!("{} declined by a bank, {broken_off} broken off", report.declined),
        ),
        (
            "unknown",
            report.unknown_left.to_string(),
            format!("{} learned by asking again", report.unknown_resolved),
        ),
        ("kill -9", report.kills.to_string(), by_role.join(", ")),
        (
            "",
            report.kills_while_prepared.to_string(),
            "of these left a transaction in doubt for a while".to_owned(),
        ),
        ("money", report.money_after.to_string(), format!("{} before", report.money_before)),
        ("violations", report.violations.to_string(), format!("seed {}", report.seed)),
    ] {
        table.add_row([
            Cell::new(what),
            Cell::new(number).set_alignment(CellAlignment::Right),
            Cell::new(more),
        ]);
    }
    format!("{table}\n{}", verdict(report))
}

fn verdict(report: &Report) -> String {
    if report.violations == 0 {
        return "The books are right: every transfer is in both banks or in neither, as its\n\
                client was told, and no branch is left prepared."
            .to_owned();
    }
    let mut lines = vec!["The books are wrong:".to_owned()];
    lines.extend(report.violation_list.iter().take(NAMED).map(|violation| format!("- {violation}")));
    if report.violations > NAMED {
        lines.push(format!("- and {} more, all of which --json lists", report.violations - NAMED));
    }
    if report.mode == "naive" {
        lines.push("This is what two plain commits come to when a process dies between them.".to_owned());
    }
    lines.join("\n")
}
