//! What a suite has measured, as a table.

use comfy_table::{Table, presets};

use crate::alone;
use crate::contender::Contender;
use crate::meter::{count, median};
use crate::suite::{Cell, Measured, Plan};

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
        number(middle(&|cell| cell.counted.forces), 2),
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

/// What the table does not say.
#[must_use]
pub fn summary(measured: &Measured, plan: &Plan) -> String {
    let mut lines = vec![course(measured)];
    let [us, peer] = [Contender::Lockstep, Contender::Dtmrs];
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
    let alone::Measured { disk, bytes_in_flight, bytes_afterwards, log_bytes, .. } = measured;
    format!(
        "{table}\na forced write of 8 KiB took {:.0} us before and {:.0} us after; memory for each transaction in flight {bytes_in_flight:.0} \
         bytes, {bytes_afterwards:.0} when they are gone; {log_bytes:.0} bytes of log for each commit",
        disk.0, disk.1
    )
}
