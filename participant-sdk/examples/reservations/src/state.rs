//! What follows from the journal's records: the stock, the entries, the prepared branches, and the evidence of those that ended.
//!
//! [`State::apply`] is the only way to change it, live and after a restart: what a restart makes of the journal is
//! what the process had in memory.

use std::collections::BTreeMap;

use lockstep::resource::{BranchId, ClusterId, LogPosition, Positions, ResourceManagerId};

use crate::record::{Ended, Entry, Record, Text, VERSION};

/// A branch that voted to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedBranch {
    /// What it will have done.
    pub entries: Vec<Entry>,
    /// When its transaction's time is over, in milliseconds since 1970.
    pub deadline_ms: u64,
    /// The newest place in the decision log that was known then.
    pub position: LogPosition,
}

/// What is on record of a branch that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// How it ended.
    pub outcome: Ended,
    /// When its transaction's time was over, at the latest, or when it ended, if that was later; in milliseconds since 1970. Retention counts
    /// from there.
    pub deadline_ms: u64,
    /// The newest place in the decision log that was known then.
    pub position: LogPosition,
}

/// Everything that is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Who it is.
    pub identity: ResourceManagerId,
    /// Which cluster it belongs to.
    pub cluster: Option<ClusterId>,
    /// How many there are of each item, without what is prepared.
    pub items: BTreeMap<String, u64>,
    /// The ledger, by reference: item and change.
    pub entries: BTreeMap<String, (String, i64)>,
    /// Branches in doubt.
    pub prepared: BTreeMap<BranchId, PreparedBranch>,
    /// Branches that have ended.
    pub evidence: BTreeMap<BranchId, Evidence>,
    /// The newest place in the decision log of each epoch that any record has named, forgotten ones too.
    pub seen: Positions,
}

/// A record that does not fit those before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Contradiction(String);

impl State {
    /// A ledger with nothing in it.
    #[must_use]
    pub fn new(identity: ResourceManagerId) -> Self {
        Self {
            identity,
            cluster: None,
            items: BTreeMap::new(),
            entries: BTreeMap::new(),
            prepared: BTreeMap::new(),
            evidence: BTreeMap::new(),
            seen: Positions::new(),
        }
    }

    /// The state after this record.
    ///
    /// # Errors
    /// If it cannot have been written after those before it. The state is then to be thrown away.
    pub fn apply(&mut self, record: &Record) -> Result<(), Contradiction> {
        match record {
            Record::Ledger { .. } => return contradiction("a ledger begins once"),
            Record::Bound { cluster } => self.cluster = Some(*cluster),
            Record::Item { item, stock } => {
                if self.items.insert(item.clone(), *stock).is_some() {
                    return contradiction(format!("the item {item:?} is there twice"));
                }
            }
            Record::Entry(entry) => self.enter(entry)?,
            Record::Prepared { branch, entries, deadline_ms, position } => {
                let prepared = PreparedBranch {
                    entries: entries.clone(),
                    deadline_ms: *deadline_ms,
                    position: *position,
                };
                let again = self.prepared.insert(branch.clone(), prepared).is_some();
                if again || self.evidence.contains_key(branch) {
                    return contradiction(format!("the branch {branch} was prepared after it had a record"));
                }
                self.seen.see(*position);
            }
            Record::Ended { branch, outcome, entries, deadline_ms, position } => {
                let evidence = Evidence { outcome: *outcome, deadline_ms: *deadline_ms, position: *position };
                self.end(branch, evidence, entries)?;
            }
            Record::Forgotten { branches } => {
                for Text(branch) in branches {
                    self.evidence.remove(branch);
                }
            }
            Record::Seen { position } => self.seen.see(*position),
            Record::Complete => {}
        }
        Ok(())
    }

    fn end(&mut self, branch: &BranchId, evidence: Evidence, entries: &[Entry]) -> Result<(), Contradiction> {
        let prepared = self.prepared.remove(branch);
        if evidence.outcome == Ended::Committed {
            let prepared = prepared.map(|prepared| prepared.entries).unwrap_or_default();
            for entry in prepared.iter().chain(entries) {
                self.move_stock(entry)?;
                self.enter(entry)?;
            }
        }
        self.seen.see(evidence.position);
        if self.evidence.insert(branch.clone(), evidence).is_some() {
            return contradiction(format!("the branch {branch} ended twice"));
        }
        Ok(())
    }

    fn move_stock(&mut self, entry: &Entry) -> Result<(), Contradiction> {
        let Entry { reference, item, change } = entry;
        let Some(stock) = self.items.get_mut(item) else {
            return contradiction(format!("{reference:?} is for the item {item:?}, which is not there"));
        };
        match stock.checked_add_signed(*change) {
            Some(moved) => *stock = moved,
            None => return contradiction(format!("{reference:?} takes more {item:?} than there are")),
        }
        Ok(())
    }

    fn enter(&mut self, entry: &Entry) -> Result<(), Contradiction> {
        let line = (entry.item.clone(), entry.change);
        match self.entries.insert(entry.reference.clone(), line) {
            None => Ok(()),
            Some(_) => contradiction(format!("{:?} is entered twice", entry.reference)),
        }
    }

    /// The fewest records that lead to this state.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let mut records = vec![Record::Ledger { version: VERSION, identity: self.identity }];
        records.extend(self.cluster.map(|cluster| Record::Bound { cluster }));
        records.extend(self.seen.iter().map(|position| Record::Seen { position: *position }));
        records.extend(
            self.items.iter().map(|(item, stock)| Record::Item { item: item.clone(), stock: *stock }),
        );
        records.extend(self.entries.iter().map(|(reference, (item, change))| {
            Record::Entry(Entry { reference: reference.clone(), item: item.clone(), change: *change })
        }));
        records.extend(self.prepared.iter().map(|(branch, prepared)| Record::Prepared {
            branch: branch.clone(),
            entries: prepared.entries.clone(),
            deadline_ms: prepared.deadline_ms,
            position: prepared.position,
        }));
        let ended = self.evidence.iter().map(|(branch, evidence)| Record::Ended {
            branch: branch.clone(),
            outcome: evidence.outcome,
            // They are entered already.
            entries: Vec::new(),
            deadline_ms: evidence.deadline_ms,
            position: evidence.position,
        });
        records.extend(ended);
        records.push(Record::Complete);
        records
    }
}

fn contradiction<T>(why: impl Into<String>) -> Result<T, Contradiction> {
    Err(Contradiction(why.into()))
}
