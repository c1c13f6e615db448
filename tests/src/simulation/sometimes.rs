//! What a run has reached. A run in which the rare things never happen proves nothing about them; so it fails, and names what it never saw.

use std::collections::BTreeMap;

use lockstep::session::seen as sdk;
use lockstep_coordinator::engine::shard::{Shard, seen as protocol};
use lockstep_coordinator::protocol::outcome::{Heuristic, Outcome};
use lockstep_coordinator::protocol::record::DecisionKind;

use super::node::ReplyTo;
use super::world::World;

/// What has to be reached: on each line how often it comes in a million transactions, and what.
const ALL: &str = include_str!("sometimes.txt");
/// What is to come so often in a run of some size has to come at least once: it comes in clusters, a world at a time.
const EXPECTED: u64 = 100;

/// What a run of so many transactions was to reach, and has not.
///
/// # Panics
/// If the list is malformed.
#[must_use]
pub fn never_seen(reached: &Reached, transactions: u64) -> Vec<String> {
    let situations = reached.situations();
    let lines = ALL.lines().filter(|line| !line.starts_with('#'));
    let wanted = lines.filter_map(|line| {
        let (per_million, what) = line.split_once(' ').expect("a number, a space and a situation");
        let per_million: u64 = per_million.parse().expect("a number");
        (per_million.saturating_mul(transactions) / 1_000_000 >= EXPECTED).then_some(what)
    });
    wanted.filter(|wanted| !situations.contains_key(*wanted)).map(str::to_owned).collect()
}

/// How often what was reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reached {
    protocol: protocol::Seen,
    sdk: sdk::Seen,
    notes: BTreeMap<&'static str, u64>,
}

impl Reached {
    /// Notes a situation.
    pub fn note(&mut self, what: &'static str) {
        *self.notes.entry(what).or_default() += 1;
    }

    pub(super) fn recovered(&mut self, kind: DecisionKind) {
        self.note(match kind {
            DecisionKind::Commit => "commit recovered",
            DecisionKind::OnePhaseIntent => "one-phase intent recovered",
        });
    }

    pub(super) fn heuristic(&mut self, heuristic: Heuristic) {
        self.note(match heuristic {
            Heuristic::Commit => "heuristic commit",
            Heuristic::Rollback => "heuristic rollback",
            Heuristic::Mixed => "heuristic mixed",
            Heuristic::Hazard => "heuristic hazard",
        });
    }

    pub(super) fn outcome(&mut self, outcome: Option<Outcome>) {
        self.note(match outcome {
            None => "told: not decided",
            Some(Outcome::Committed) => "told: committed",
            Some(Outcome::RolledBack) => "told: rolled back",
            Some(Outcome::NothingToCommit) => "told: nothing to commit",
            Some(Outcome::Heuristic(_)) => "told: heuristic",
            Some(Outcome::Unknown) => "told: unknown",
        });
    }

    pub(super) fn shards_seen(&mut self, shards: &[Shard<ReplyTo>]) {
        for shard in shards {
            add(&mut self.protocol.0, &shard.seen().0);
        }
    }

    pub(super) fn session_seen(&mut self, seen: &sdk::Seen) {
        add(&mut self.sdk.0, &seen.0);
    }

    /// Adds what another world has reached.
    pub fn add(&mut self, other: &Self) {
        add(&mut self.protocol.0, &other.protocol.0);
        add(&mut self.sdk.0, &other.sdk.0);
        for (what, count) in &other.notes {
            *self.notes.entry(what).or_default() += count;
        }
    }

    /// Everything that was reached, by its name.
    #[must_use]
    pub fn situations(&self) -> BTreeMap<String, u64> {
        let mut situations = pairs("coordinator", &protocol::STATES, &protocol::EVENTS, &self.protocol.0);
        situations.append(&mut pairs("branch", &sdk::STATES, &sdk::EVENTS, &self.sdk.0));
        situations.extend(self.notes.iter().map(|(what, count)| ((*what).to_owned(), *count)));
        situations
    }
}

fn add<const E: usize, const S: usize>(to: &mut [[u64; E]; S], from: &[[u64; E]; S]) {
    for (to, from) in to.iter_mut().flatten().zip(from.iter().flatten()) {
        *to += from;
    }
}

fn pairs<const E: usize, const S: usize>(
    machine: &str,
    states: &[&str; S],
    events: &[&str; E],
    counts: &[[u64; E]; S],
) -> BTreeMap<String, u64> {
    let mut pairs = BTreeMap::new();
    for (state, counts) in states.iter().zip(counts) {
        for (event, count) in events.iter().zip(counts).filter(|(_, count)| **count > 0) {
            pairs.insert(format!("{machine} {state}: {event}"), *count);
        }
    }
    pairs
}

impl World {
    /// Takes over what the machines that are still there have gone through.
    pub(super) fn note_seen(&mut self) {
        if let Some(node) = &self.node {
            self.reached.shards_seen(&node.shards);
        }
        for instance in &self.instances {
            if let Some(session) = instance.session() {
                self.reached.session_seen(session.seen());
            }
        }
    }
}
