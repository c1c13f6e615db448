//! What a suite has measured, as a table.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};

use crate::contender::Contender;
use crate::meter::{count, median};
use crate::suite::{Cell, Measured, Plan};
use crate::{alone, branch, engine, grown, restart, statements, wal};

/// One line for each contender and number of clients.
#[must_use]
pub fn table(measured: &Measured, plan: &Plan) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "clients",
        "contender",
        "tx/s",
        "lowest - highest",
        "of (b)",
        "of (b2)",
        "p50 ms",
        "p99 ms",
        "forced: databases",
        "coordinator",
        "CPU us",
        "clients",
        "tellers",
        "databases",
        "coordinator",
        "messages",
        "in frames",
    ]);
    for clients in &plan.clients {
        for contender in &plan.contenders {
            table.add_row(row(measured, *contender, *clients));
        }
    }
    table.to_string()
}

fn row(measured: &Measured, contender: Contender, clients: usize) -> Vec<String> {
    let each = |what: &dyn Fn(&Cell) -> f64| measured.each(contender, clients, what);
    let middle = |what: &dyn Fn(&Cell) -> f64| median(&each(what));
    let rates = each(&|cell| cell.seen.rate());
    let (lowest, highest) =
        (rates.iter().copied().fold(f64::INFINITY, f64::min), rates.iter().copied().fold(0.0, f64::max));
    let ratio = |by| number(measured.ratio(contender, by, clients, |cell| cell.seen.rate()), 2);
    let part = |name: &str| number(middle(&|cell| cell.processor.get(name).copied().unwrap_or(f64::NAN)), 0);
    let forced = measured.forced.iter().find(|f| f.contender == contender && f.clients == clients);
    vec![
        clients.to_string(),
        contender.title().to_owned(),
        number(median(&rates), 0),
        format!("{} - {}", number(lowest, 0), number(highest, 0)),
        ratio(Contender::Hand),
        ratio(Contender::HandServices),
        number(middle(&|cell| count(cell.seen.p50) / 1000.0), 2),
        number(middle(&|cell| count(cell.seen.p99) / 1000.0), 2),
        number(forced.map_or(f64::NAN, |forced| forced.databases), 2),
        // Lockstep's counts; what a peer's store forces is not known, unless it is one of the databases.
        if contender == Contender::Dtmrs {
            "-".to_owned()
        } else {
            number(middle(&|cell| cell.counted.forces), 2)
        },
        number(middle(&|cell| cell.processor.values().sum()), 0),
        part("clients"),
        part("tellers"),
        part("databases"),
        part("coordinator"),
        number(middle(&|cell| cell.counted.messages), 1),
        number(middle(&|cell| cell.counted.frames), 1),
    ]
}

fn number(value: f64, decimals: usize) -> String {
    if value.is_finite() { format!("{value:.decimals$}") } else { "-".to_owned() }
}

/// What the disk did before and after.
fn forced((before, after): (f64, f64)) -> String {
    format!("a forced write of 8 KiB took {before:.0} us before and {after:.0} us after")
}

/// A branch and its database.
#[must_use]
pub fn branch(measured: &[branch::Compared]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["at a time", "who", "database CPU us", "service CPU us"]);
    for branch::Compared { at_once, by_hand, lockstep } in measured {
        for (who, cost) in [("by hand", by_hand), ("Lockstep", lockstep)] {
            let (database, service) = (number(cost.database, 0), number(cost.service, 0));
            table.add_row([at_once.to_string(), who.to_owned(), database, service]);
        }
    }
    format!("each branch, medians of both in turn:\n{table}")
}

/// What a branch's statements cost the server.
#[must_use]
pub fn statements(counted: &[statements::Counted]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["a branch", "thousand instructions of the server"]);
    for statements::Counted { what, instructions } in counted {
        table.add_row([(*what).to_owned(), number(instructions / 1e3, 0)]);
    }
    table.to_string()
}

/// What the table does not say.
#[must_use]
pub fn summary(measured: &Measured, plan: &Plan) -> String {
    let mut lines = vec![course(measured)];
    let [us, peer] = [Contender::Lockstep, Contender::Dtmrs];
    let places = plan.dtmrs.iter().map(|dtmrs| dtmrs.place.title());
    lines.extend(places.map(|place| format!("(f) keeps its transactions in {place}")));
    if plan.contenders.contains(&us) && plan.contenders.contains(&peer) {
        lines.extend(plan.clients.iter().map(|clients| {
            let rate = measured.ratio(us, peer, *clients, |cell| cell.seen.rate());
            let slowest = measured.ratio(us, peer, *clients, |cell| count(cell.seen.p99));
            let (rate, slowest) = (number(rate, 2), number(slowest, 2));
            format!("(c) by (f) with {clients} clients: {rate} of its throughput, {slowest} of its p99")
        }));
    }
    lines.join("\n")
}

/// How the measuring went.
fn course(measured: &Measured) -> String {
    let disks: Vec<f64> = measured.valid().flat_map(|turn| [turn.disk_before, turn.disk_after]).collect();
    let (least, most) =
        (disks.iter().copied().fold(f64::INFINITY, f64::min), disks.iter().copied().fold(0.0, f64::max));
    format!(
        "{} turns count, {} are void; in those that count a forced write of 8 KiB took {:.0} us ({least:.0} to {most:.0}); the books were \
         right after each run, {} transfers in all",
        measured.valid().count(),
        measured.turns.len() - measured.valid().count(),
        median(&disks),
        measured.transfers,
    )
}

/// The coordinator alone: one line for each run.
#[must_use]
pub fn alone(measured: &alone::Measured) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "clients",
        "branches",
        "each takes ms",
        "tx/s",
        "p50 ms",
        "p99 ms",
        "forced",
        "records in each",
        "CPU us",
        "messages",
        "in frames",
    ]);
    for run in measured.runs.iter().chain(&measured.growth) {
        table.add_row([
            run.clients.to_string(),
            run.branches.to_string(),
            run.takes.to_string(),
            number(run.seen.rate(), 0),
            number(count(run.seen.p50) / 1000.0, 2),
            number(count(run.seen.p99) / 1000.0, 2),
            number(run.counted.forces, 3),
            number(run.counted.records / run.counted.forces, 1),
            number(run.processor, 0),
            number(run.counted.messages, 1),
            number(run.counted.frames, 2),
        ]);
    }
    let alone::Measured { disk, in_flight, log_bytes, shared_log, .. } = measured;
    let (coordinator, others) = measured.further_branch();
    let held = in_flight.iter().map(|alone::InFlight { held, bytes, bytes_afterwards, meanwhile }| {
        format!(
            "{held} in flight: {bytes:.0} bytes of memory each, {bytes_afterwards:.0} when they are gone; meanwhile {:.0} others a second, \
             64 clients, p50 {:.2} ms\n",
            meanwhile.seen.rate(),
            count(meanwhile.seen.p50) / 1000.0
        )
    });
    let held: String = held.collect();
    let many = measured.bytes_after_many.map_or(String::new(), |bytes| {
        format!("; its memory has grown by {bytes:.0} bytes over a million transactions")
    });
    format!(
        "{table}\n{held}{}; each further branch costs the coordinator \
         {coordinator:.0} us, and those around it {others:.0}{many}; {log_bytes:.0} bytes of log for each commit, \
         and {:.0} of write-ahead log where that is in PostgreSQL:\n{}",
        forced(*disk),
        shared_log.iter().map(|records| records.bytes).sum::<f64>(),
        write_ahead(shared_log),
    )
}

fn write_ahead(log: &[wal::Records]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["record", "each commit has", "bytes"]);
    for records in log {
        table.add_row([records.kind.clone(), number(records.number, 2), number(records.bytes, 1)]);
    }
    table
}

/// What is in doubt at a restart.
#[must_use]
pub fn restart(measured: &restart::Measured) -> String {
    let restart::Measured { disk, branches, bare, at_once, afterwards, normal, .. } = measured;
    let restart::Measured { meanwhile, found, left, .. } = measured;
    let loops = f64::midpoint(bare.0.seconds, bare.1.seconds);
    let recovery = |recovery: &restart::Recovery| {
        let restart::Recovery { serves, committed, services_memory } = recovery;
        let memory = count(services_memory.iter().copied().max().unwrap_or(0)) / 1e6;
        format!(
            "serves after {serves:.2} s, all committed after {:.2} s, {:.2} times the bare loop's mean; us for a branch: {}; a service had {memory:.0} MB at most",
            committed.seconds,
            committed.seconds / loops,
            parts(&committed.processor),
        )
    };
    format!(
        "{branches} branches in doubt\n\
         a bare loop of COMMIT PREPARED: {:.2} s before and {:.2} s after; us for a branch: {}; and {}\n\
         started again at once, while the servers end the sessions of the dead: {}\n\
         started again when they have ended them: {}\n\
         {:.0} new transfers a second beside {found} in doubt, of which {left} were left: {:.2} of the mean of {:.0} and {:.0} without; p50 {:.0} ms, p99 {:.0} ms, {} \
         refused for lack of room\n{}",
        bare.0.seconds,
        bare.1.seconds,
        parts(&bare.0.processor),
        parts(&bare.1.processor),
        recovery(at_once),
        recovery(afterwards),
        meanwhile.rate(),
        meanwhile.rate() / f64::midpoint(normal.0, normal.1),
        normal.0,
        normal.1,
        count(meanwhile.p50) / 1000.0,
        count(meanwhile.p99) / 1000.0,
        meanwhile.refused,
        forced(*disk),
    )
}

/// What each part took, and all of them.
fn parts(processor: &BTreeMap<String, f64>) -> String {
    let parts = processor.iter().map(|(part, micros)| format!("{part} {micros:.0}"));
    let all = processor.values().sum::<f64>();
    format!("{} = {all:.0}", parts.collect::<Vec<_>>().join(" + "))
}

/// The engine alone.
#[must_use]
pub fn engine(measured: &engine::Measured) -> String {
    let engine::Measured { disk, seen, processor, forces } = measured;
    format!(
        "{:.0} transactions a second, {:.0} for each second of one core's time ({processor:.1} us each); p50 {:.2} ms, p99 {:.2} ms; \
         {forces:.3} forced writes each; {}",
        seen.rate(),
        measured.per_core(),
        count(seen.p50) / 1000.0,
        count(seen.p99) / 1000.0,
        forced(*disk),
    )
}

/// The coordinator with a log that has grown.
#[must_use]
pub fn grown(measured: &grown::Measured) -> String {
    let grown::Measured { disk, normal, ended, in_doubt } = measured;
    format!(
        "an empty log: {normal:.0} transactions a second\n\
         {} transactions that have ended, {:.0} bytes each: serves after {:.2} s, {:.0} a second ({:.2} of the empty log's)\n\
         {} in doubt: serves after {:.2} s, all told after {:.1} s more: {:.0} a second ({:.2}); meanwhile {:.0} new ones a second \
         ({:.2}), with {:.0} still to be told\n{}",
        ended.transactions,
        ended.bytes / count(ended.transactions as u64),
        ended.serves,
        ended.rate,
        ended.rate / normal,
        in_doubt.transactions,
        in_doubt.serves,
        in_doubt.resolved,
        in_doubt.rate(),
        in_doubt.rate() / normal,
        in_doubt.meanwhile,
        in_doubt.meanwhile / normal,
        in_doubt.left,
        forced(*disk),
    )
}
