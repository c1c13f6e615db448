//! The decision log and the disk under it, as the embedded log behaves: what is written is visible at once, and durable from the next
//! sync on. It outlives the coordinator's process; what was not synced does not outlive the machine's power.

use std::collections::BTreeMap;

use lockstep_coordinator::decision_log::{Batch, KnownResourceManager, LookUp, PruneLimits, Recorded};
use lockstep_coordinator::protocol::outcome::Outcome;
use lockstep_coordinator::protocol::presumption::EpochState;
use lockstep_coordinator::protocol::record::{DecisionKind, DecisionRecord, EndRecord};
use lockstep_proto::{ClusterId, Epoch, Gtrid, Incarnation, LogPosition, ResourceManagerName};

/// What the log has of one transaction.
#[derive(Debug, Clone, Default)]
struct Row {
    decision: Option<DecisionRecord>,
    end: Option<EndRecord>,
}

/// See the module.
#[derive(Debug)]
pub struct Log {
    /// Made with it.
    pub cluster: ClusterId,
    /// The newest forced batch of each epoch; the last one is the only one that is not sealed.
    epochs: Vec<LogPosition>,
    rows: BTreeMap<Gtrid, Row>,
    known: BTreeMap<ResourceManagerName, KnownResourceManager>,
    /// The newest pruned gtrid's time.
    pub horizon_ms: u64,
    /// What the rows were before the writes that were not synced, oldest first.
    unsynced: Vec<(Gtrid, Row)>,
}

/// What an append met.
#[derive(Debug)]
pub struct Contradiction {
    /// Whose record.
    pub gtrid: Gtrid,
    /// What does not fit.
    pub what: String,
}

impl Log {
    /// An empty one.
    #[must_use]
    pub const fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            epochs: Vec::new(),
            rows: BTreeMap::new(),
            known: BTreeMap::new(),
            horizon_ms: 0,
            unsynced: Vec::new(),
        }
    }

    /// Opens it: seals every earlier epoch, begins a new one, and syncs what is there before anyone reads it (P6).
    ///
    /// # Panics
    /// After four thousand million starts.
    pub fn open(&mut self, incarnation: [u8; 16]) -> LogPosition {
        self.unsynced.clear();
        let number = u32::try_from(self.epochs.len() + 1).expect("few starts");
        let epoch = Epoch::new(number).expect("counted from 1");
        let incarnation = Incarnation::from_bytes(incarnation);
        self.epochs.push(LogPosition { epoch, incarnation, sequence: 0 });
        self.position()
    }

    /// The only epoch that is not sealed, and its newest batch.
    ///
    /// # Panics
    /// If it was never opened.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        *self.epochs.last().expect("the log was opened")
    }

    /// Writes, visibly, and not yet durably. Repeating a write changes nothing.
    ///
    /// # Errors
    /// What the records on the log rule out.
    pub fn write(&mut self, batch: &Batch) -> Result<(), Contradiction> {
        for decision in &batch.decisions {
            let row = self.rows.entry(decision.gtrid).or_default();
            if row.decision.as_ref() == Some(decision) {
                continue;
            }
            if row.decision.is_some() || row.end.is_some() {
                let what = format!("{decision:?} where {row:?} stands");
                return Err(Contradiction { gtrid: decision.gtrid, what });
            }
            self.unsynced.push((decision.gtrid, row.clone()));
            row.decision = Some(decision.clone());
        }
        batch.ends.iter().try_for_each(|end| self.write_end(end))
    }

    fn write_end(&mut self, end: &EndRecord) -> Result<(), Contradiction> {
        let row = self.rows.entry(end.gtrid).or_default();
        let heuristic = matches!(end.outcome, Outcome::Heuristic(_));
        // Only a heuristic outcome is added to an end that is there.
        if row.end.is_some() && !heuristic {
            return Ok(());
        }
        let fits = match end.outcome {
            Outcome::Unknown => false,
            Outcome::Heuristic(_) => true,
            Outcome::Committed => row.decision.is_some(),
            Outcome::RolledBack | Outcome::NothingToCommit => {
                row.decision.as_ref().is_none_or(|decision| decision.kind == DecisionKind::OnePhaseIntent)
            }
        };
        if !fits {
            return Err(Contradiction { gtrid: end.gtrid, what: format!("{end:?} where {row:?} stands") });
        }
        self.unsynced.push((end.gtrid, row.clone()));
        row.end = Some(end.clone());
        Ok(())
    }

    /// Everything that is visible is durable.
    pub fn sync(&mut self) {
        self.unsynced.clear();
    }

    /// A force has succeeded: everything is durable, and the position moves.
    ///
    /// # Panics
    /// If it was never opened.
    pub fn forced(&mut self) -> LogPosition {
        self.sync();
        let newest = self.epochs.last_mut().expect("the log was opened");
        newest.sequence += 1;
        *newest
    }

    /// Power is lost: what was not synced is gone. Whose records that were.
    pub fn lose_power(&mut self) -> Vec<Gtrid> {
        let undone = std::mem::take(&mut self.unsynced);
        let gtrids = undone.iter().map(|(gtrid, _)| *gtrid).collect();
        for (gtrid, before) in undone.into_iter().rev() {
            self.rows.insert(gtrid, before);
        }
        gtrids
    }

    /// Whether this transaction's decision would survive a loss of power.
    #[must_use]
    pub fn is_decision_durable(&self, gtrid: &Gtrid) -> bool {
        let unsynced = |(other, before): &(Gtrid, Row)| other == gtrid && before.decision.is_none();
        self.decision(gtrid).is_some() && !self.unsynced.iter().any(unsynced)
    }

    /// The decision that is visible.
    #[must_use]
    pub fn decision(&self, gtrid: &Gtrid) -> Option<&DecisionRecord> {
        self.rows.get(gtrid)?.decision.as_ref()
    }

    /// What is known of a transaction.
    #[must_use]
    pub fn look_up(&self, gtrid: &Gtrid) -> LookUp {
        let recorded = match self.rows.get(gtrid).cloned().unwrap_or_default() {
            Row { decision: None, end: None } => Recorded::Absent,
            Row { decision: Some(decision), end: None } => Recorded::Decided(decision),
            Row { decision, end: Some(end) } => Recorded::Ended(decision, end),
        };
        let own = self.position().epoch;
        let epoch = match gtrid.epoch().cmp(&own) {
            std::cmp::Ordering::Less => EpochState::Sealed,
            std::cmp::Ordering::Equal => EpochState::Own,
            std::cmp::Ordering::Greater => EpochState::Unknown,
        };
        LookUp { recorded, epoch, below_horizon: gtrid.unix_ms() <= self.horizon_ms }
    }

    /// Whether this position is one that the log has come to (P8).
    #[must_use]
    pub fn reaches(&self, position: LogPosition) -> bool {
        let of = self.epochs.iter().find(|newest| newest.epoch == position.epoch);
        of.is_some_and(|newest| {
            newest.incarnation == position.incarnation && newest.sequence >= position.sequence
        })
    }

    /// Decisions without an end.
    #[must_use]
    pub fn unfinished(&self) -> Vec<DecisionRecord> {
        let open = self.rows.values().filter(|row| row.end.is_none());
        open.filter_map(|row| row.decision.clone()).collect()
    }

    /// What is known of a resource manager.
    #[must_use]
    pub fn known(&self, name: &ResourceManagerName) -> Option<&KnownResourceManager> {
        self.known.get(name)
    }

    /// The newest floor of any resource manager.
    #[must_use]
    pub fn newest_floor_ms(&self) -> u64 {
        self.known.values().filter_map(|known| known.floor).map(|floor| floor.unix_ms()).max().unwrap_or(0)
    }

    /// Remembers a resource manager, durably.
    pub fn remember(&mut self, known: KnownResourceManager) {
        self.sync();
        self.known.insert(known.name.clone(), known);
    }

    /// Removes what ended long ago and raises the horizon, durably (P7). How many rows went.
    pub fn prune(&mut self, limits: &PruneLimits) -> usize {
        let floors = self.known.values().map(|known| known.floor.map(|floor| floor.unix_ms()));
        let first = limits.below.unix_ms().min(limits.ended_before_ms);
        let first_kept = floors.into_iter().try_fold(first, |first, floor| Some(first.min(floor?)));
        let Some(first_kept) = first_kept else { return 0 };
        let old = |row: &Row| row.end.as_ref().is_some_and(|end| end.ended_ms < limits.ended_before_ms);
        let low = self.rows.iter().take_while(|(gtrid, _)| gtrid.unix_ms() < first_kept);
        let gone: Vec<Gtrid> = low.filter(|(_, row)| old(row)).map(|(gtrid, _)| *gtrid).collect();
        for gtrid in &gone {
            self.rows.remove(gtrid);
            self.horizon_ms = self.horizon_ms.max(gtrid.unix_ms());
        }
        if !gone.is_empty() {
            self.sync();
        }
        gone.len()
    }
}
