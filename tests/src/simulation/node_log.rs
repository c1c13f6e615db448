//! What stands between the shards and the log, as `decision_log/group_commit.rs` is it live: whatever waits goes into one forced write;
//! and what can become of such a write.

use std::collections::BTreeMap;

use lockstep_coordinator::decision_log::Batch;
use lockstep_coordinator::engine::input::{Input, LogAnswer};
use lockstep_coordinator::protocol::outcome::Outcome;
use lockstep_coordinator::protocol::record::{EndRecord, LogWrite};
use lockstep_proto::Gtrid;

use super::faults::Kind;
use super::happening::Happening;
use super::history::number_of;
use super::trace::say;
use super::world::{MILLI, SECOND, World};

/// What becomes of a forced write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Forced,
    Refused,
    /// An error; whether it is written.
    Error(bool),
    /// Power fails in the middle of it.
    Torn,
}

/// A forced write under way.
#[derive(Debug)]
struct Flight {
    batch: Batch,
    waiters: Vec<(usize, Gtrid)>,
    /// How many of the batch's ends somebody waits for; the others ride along.
    forced_ends: usize,
    fate: Fate,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Writer {
    batch: Batch,
    waiters: Vec<(usize, Gtrid)>,
    lazy: Vec<EndRecord>,
    flight: Option<Flight>,
    /// Ends that were handed over and are not in the log yet.
    on_their_way: BTreeMap<Gtrid, EndRecord>,
}

impl Writer {
    /// The end of a transaction that is on its way to the log.
    #[must_use]
    pub fn end_on_its_way(&self, gtrid: &Gtrid) -> Option<&EndRecord> {
        self.on_their_way.get(gtrid)
    }

    /// Whether everything that was handed over is in the log.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.flight.is_none() && self.waiters.is_empty() && self.lazy.is_empty()
    }

    fn have_arrived(&mut self, ends: &[EndRecord]) {
        for end in ends {
            self.on_their_way.remove(&end.gtrid);
        }
    }
}

impl World {
    fn writer(&mut self) -> &mut Writer {
        &mut self.node.as_mut().expect("a write is of a coordinator that runs").writer
    }

    pub(super) fn submit(&mut self, shard: usize, write: LogWrite) {
        self.before_writing(&write);
        let writer = self.writer();
        match write {
            LogWrite::ForceDecision(decision) => {
                writer.waiters.push((shard, decision.gtrid));
                writer.batch.decisions.push(decision);
            }
            LogWrite::ForceEnd(end) => {
                writer.waiters.push((shard, end.gtrid));
                writer.batch.ends.push(end);
            }
            LogWrite::LazyEnd(end) => {
                writer.on_their_way.insert(end.gtrid, end.clone());
                writer.lazy.push(end);
                if writer.lazy.len() == 1 {
                    self.plan(SECOND, Happening::LazyIsDue(self.lives));
                }
                return;
            }
        }
        self.force();
    }

    /// Begins to force what waits, unless a force is under way.
    fn force(&mut self) {
        let writer = self.writer();
        if writer.flight.is_some() || writer.waiters.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut writer.batch);
        let waiters = std::mem::take(&mut writer.waiters);
        let forced_ends = batch.ends.len();
        batch.ends.append(&mut writer.lazy);
        let fate = self.draw_fate();
        self.writer().flight = Some(Flight { batch, waiters, forced_ends, fate });
        let disk = self.style.disk + self.rng.below(self.style.disk);
        self.plan(disk, Happening::ForceEnds(self.lives));
    }

    fn draw_fate(&mut self) -> Fate {
        if self.strikes(Kind::LogTorn) {
            Fate::Torn
        } else if self.strikes(Kind::LogErrorAbsent) {
            Fate::Error(false)
        } else if self.strikes(Kind::LogErrorThere) {
            Fate::Error(true)
        } else if self.strikes(Kind::LogRefused) {
            Fate::Refused
        } else {
            Fate::Forced
        }
    }

    pub(super) fn force_ends(&mut self) {
        let fate = self.writer().flight.as_ref().map(|flight| flight.fate);
        match fate.expect("a force that ends was begun") {
            Fate::Forced => self.forced(),
            Fate::Refused => self.refused(),
            Fate::Error(there) if self.style.embedded_log => {
                // The process ends (P6); what was written stays in the page cache, unsynced.
                let batch = self.writer().flight.as_ref().map(|flight| flight.batch.clone());
                self.reached.note(if there { "log error, written" } else { "log error, not written" });
                if let Some(batch) = batch.filter(|_| there) {
                    self.write(&batch);
                }
                self.kill_node(false);
            }
            Fate::Error(there) => self.unknown(there),
            Fate::Torn => self.kill_node(true),
        }
    }

    fn forced(&mut self) {
        let flight = self.writer().flight.take().expect("a force that ends was begun");
        self.write(&flight.batch);
        let position = self.log.forced();
        let Some(node) = &mut self.node else { return };
        // Before any result: a message that follows from a decision carries a position that has it (P8).
        node.position = position;
        node.writer.have_arrived(&flight.batch.ends[flight.forced_ends..]);
        self.answer_waiters(flight.waiters, &LogAnswer::Forced);
        if self.node.is_some() {
            self.force();
        }
    }

    fn refused(&mut self) {
        let mut flight = self.writer().flight.take().expect("a force that ends was begun");
        let lazy = flight.batch.ends.split_off(flight.forced_ends);
        self.keep_for_later(lazy);
        self.reached.note("log write refused");
        self.answer_waiters(flight.waiters, &LogAnswer::Refused("the disk is full".to_owned()));
        if self.node.is_some() {
            self.force();
        }
    }

    fn keep_for_later(&mut self, mut lazy: Vec<EndRecord>) {
        if lazy.is_empty() {
            return;
        }
        let writer = self.writer();
        lazy.append(&mut writer.lazy);
        writer.lazy = lazy;
        self.plan(SECOND, Happening::LazyIsDue(self.lives));
    }

    /// Nobody knows; the answer comes from a read behind the fence. Until then nothing else is forced.
    fn unknown(&mut self, there: bool) {
        let flight = self.writer().flight.as_ref().expect("a force that ends was begun");
        let (batch, waiters) = (flight.batch.clone(), flight.waiters.clone());
        if there {
            self.write(&batch);
            self.log.sync();
        }
        let read = self.rng.between(10 * MILLI, 2 * SECOND);
        self.plan(read, Happening::ReadBehindFence(self.lives));
        for (shard, gtrid) in waiters {
            let answer = LogAnswer::Unknown("the connection broke".to_owned());
            self.give(shard, Input::Log { gtrid, answer });
        }
    }

    pub(super) fn read_behind_fence(&mut self) {
        let Some(mut flight) = self.writer().flight.take() else { return };
        let there = flight.fate == Fate::Error(true);
        self.reached.note(if there { "log found after unknown" } else { "log absent after unknown" });
        let lazy = flight.batch.ends.split_off(flight.forced_ends);
        if there {
            self.writer().have_arrived(&lazy);
        } else {
            self.keep_for_later(lazy);
        }
        let answer = if there { LogAnswer::Found } else { LogAnswer::Absent };
        self.answer_waiters(flight.waiters, &answer);
        if self.node.is_some() {
            self.force();
        }
    }

    fn answer_waiters(&mut self, waiters: Vec<(usize, Gtrid)>, answer: &LogAnswer) {
        for (_, gtrid) in &waiters {
            self.history.of(gtrid).deciding = None;
        }
        for (shard, gtrid) in waiters {
            say!(self, Some(number_of(&gtrid)), "log: {answer:?}");
            self.give(shard, Input::Log { gtrid, answer: answer.clone() });
        }
    }

    pub(super) fn lazy_is_due(&mut self) {
        let lazy = std::mem::take(&mut self.writer().lazy);
        if lazy.is_empty() {
            return;
        }
        let batch = Batch { decisions: Vec::new(), ends: lazy };
        self.write(&batch);
        self.writer().have_arrived(&batch.ends);
    }

    /// What becomes of what was not answered when the coordinator ends. What was written may be in the page cache, and if
    /// power is lost, on the disk with all that was written before it, or torn.
    pub(super) fn abandon_write(&mut self, writer: Writer, power: bool) {
        let Writer { waiters, flight, .. } = writer;
        let in_flight = flight.iter().flat_map(|flight| flight.waiters.iter());
        for (_, gtrid) in in_flight.chain(&waiters) {
            self.history.of(gtrid).deciding = None;
        }
        let arrives = flight.as_ref().is_some_and(|flight| flight.fate == Fate::Forced) && self.rng.coin();
        if let Some(flight) = flight.filter(|_| arrives) {
            self.reached.note("killed with its write on the disk");
            self.write(&flight.batch);
            if power {
                self.log.sync();
            }
        }
        if power {
            self.lose_power();
        }
    }

    fn lose_power(&mut self) {
        for gtrid in self.log.lose_power() {
            self.reached.note("unsynced record lost");
            let shown = self.log.decision(&gtrid).is_some();
            let facts = self.history.of(&gtrid);
            facts.decision = facts.decision.take().filter(|_| shown);
        }
    }

    /// Writes to the log, visibly.
    fn write(&mut self, batch: &Batch) {
        for decision in &batch.decisions {
            self.before_decision_is_visible(decision);
            self.history.note_decision(decision);
        }
        for end in &batch.ends {
            say!(self, Some(number_of(&end.gtrid)), "log shows the end {:?}: {}", end.outcome, end.detail);
            if let Outcome::Heuristic(heuristic) = end.outcome {
                self.reached.heuristic(heuristic);
                self.before_heuristic_is_recorded(end);
                self.history.of(&end.gtrid).heuristic = true;
            }
        }
        if let Err(contradiction) = self.log.write(batch) {
            self.violate("stability", Some(number_of(&contradiction.gtrid)), contradiction.what);
        }
    }

    /// Puts a late heuristic outcome on record. Whether it is.
    pub(super) fn force_heuristic(&mut self, end: EndRecord) -> bool {
        if self.strikes(Kind::LogRefused) {
            return false;
        }
        self.write(&Batch { decisions: Vec::new(), ends: vec![end] });
        self.log.forced();
        true
    }
}
