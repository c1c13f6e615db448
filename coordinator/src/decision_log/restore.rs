//! A log that was restored from a backup, or has failed over to a standby that lacked the newest of it (P8).
//!
//! What is not in such a log may have been decided all the same, and the numbers of the epochs that it has lost would be given out again. Two
//! marks in the log say what follows from that, to every node and to every later start. They are read in the same snapshot as the
//! record that they are about:
//! - *behind*: a participant has seen more than the log has. Nothing is presumed any more, of any transaction;
//! - *restored*: an operator has dealt with it (`lockstep restore`). Transactions of all epochs before that moment are presumed nothing of,
//!   for ever. New epochs have numbers far above all that were lost, and begin as usual.
//!
//! A branch that is prepared, and of which the log has no record, then stays as it is until an operator has compared it with what the
//! other databases did. Evidence of such transactions stays with the participants as long: it is what the operator compares with.
//! When that is done (`lockstep restore --settled`), the evidence may go.

use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition, limits};
use prost::Message;

use super::audit::{Effect, Operation};
use super::data_dir::NoLog;
use super::rows::{self, Kind, RowError};
use super::{EpochState, postgres, sqlite};
use crate::codes::Code;

/// Numbers of epochs that a restore leaves out: more than a coordinator can have taken since the backup, at one a second for
/// more than a week.
const LEFT_OUT: u32 = 1_000_000;

/// The name of the mark that says that the log is behind. Its record is empty.
pub(super) const BEHIND: &str = "behind";
/// The name of the mark that says that the log was restored.
pub(super) const RESTORED: &str = "restored";

/// What an operator wants done about a restored log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The log is one that was restored, or has failed over with a loss.
    Restore,
    /// No branch from before the restore is in doubt any more.
    Settle,
}

/// An operator's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What to do.
    pub step: Step,
    /// For whom: the cluster's id, as it was typed. `None`: only look what would be done.
    pub confirm: Option<String>,
    /// Why, for whoever looks at it later.
    pub reason: String,
    /// Who says to have asked for it.
    pub who: String,
    /// When, milliseconds since 1970.
    pub now_ms: u64,
}

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restoration {
    /// Whose log it is.
    pub cluster: ClusterId,
    /// A transaction of an epoch below this one is presumed nothing of.
    pub below: Epoch,
    /// Decisions without an end, which the next start delivers.
    pub unfinished: u64,
    /// Participants have told that they had seen more.
    pub was_behind: bool,
    /// It was only looked at.
    pub dry_run: bool,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The embedded log cannot be opened.
    #[error(transparent)]
    Embedded(#[from] sqlite::OpenError),
    /// The shared log cannot be opened.
    #[error(transparent)]
    Shared(#[from] postgres::OpenError),
    /// The directory has none.
    #[error(transparent)]
    NoLog(#[from] NoLog),
    /// It is another cluster's.
    #[error("refused: this is the log of cluster {ours}, not of {typed}: look whether it is the right one")]
    OtherCluster {
        /// Whose it is.
        ours: ClusterId,
        /// For whom the order is.
        typed: String,
    },
    /// Nodes may be running.
    #[error(
        "refused: these nodes hold a lease, and so may be running: {0}. Stop every node first; one that was killed is over when its lease has run out"
    )]
    NodesRunning(String),
    /// There is nothing to settle.
    #[error(
        "refused: the log is not one that was restored, or is behind again: run `lockstep restore` without --settled first"
    )]
    NotRestored,
    /// No numbers are left for epochs.
    #[error("refused: no numbers are left for epochs: make a new log")]
    EpochsUsedUp,
}

impl RestoreError {
    /// Its code: docs/errors has a page for it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Embedded(error) => error.code(),
            Self::Shared(error) => error.code(),
            Self::NoLog(error) => error.code(),
            Self::OtherCluster { .. } => Code::ForeignCluster,
            Self::NodesRunning(_) => Code::NodesRunning,
            Self::NotRestored => Code::NotRestored,
            Self::EpochsUsedUp => Code::EpochsUsedUp,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct RestoredBody {
    #[prost(uint32, tag = "1")]
    below: u32,
    #[prost(bool, tag = "2")]
    settled: bool,
    /// For people, of the last step.
    #[prost(string, tag = "3")]
    reason: String,
    #[prost(uint64, tag = "4")]
    at_ms: u64,
}

/// The record of the mark [`BEHIND`].
pub(super) fn encode_behind() -> Vec<u8> {
    rows::frame(Kind::Mark, BEHIND.as_bytes(), &[])
}

/// What the two marks say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Marks {
    behind: bool,
    restored: Option<RestoredBody>,
}

impl Marks {
    /// From their records.
    pub(super) fn decode(behind: Option<&[u8]>, restored: Option<&[u8]>) -> Result<Self, RowError> {
        let behind = behind.map(|record| rows::unframe::<()>(Kind::Mark, BEHIND.as_bytes(), record));
        let restored = restored.map(|record| rows::unframe(Kind::Mark, RESTORED.as_bytes(), record));
        Ok(Self { behind: behind.transpose()?.is_some(), restored: restored.transpose()? })
    }

    /// Whether a participant has seen more than the log has, and nobody has dealt with it.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// The first epoch of which anything is presumed since a restore, and whether that is settled.
    #[must_use]
    pub fn restored_below(&self) -> Option<(u32, bool)> {
        self.restored.as_ref().map(|restored| (restored.below, restored.settled))
    }

    fn restored_above(&self, epoch: Epoch) -> Option<&RestoredBody> {
        self.restored.as_ref().filter(|restored| epoch.get() < restored.below)
    }

    /// What absence of this transaction is judged by: its epoch, and whether it is below the horizon.
    /// Another node that has not been sealed still decides, and is to be left to it: also where the log is behind.
    pub(super) fn weigh(&self, gtrid: &Gtrid, epoch: EpochState, below_horizon: bool) -> (EpochState, bool) {
        if self.behind {
            return match epoch {
                EpochState::Live => (EpochState::Live, false),
                EpochState::Own | EpochState::Sealed | EpochState::Unknown => {
                    (EpochState::Unknown, below_horizon)
                }
            };
        }
        match self.restored_above(gtrid.epoch()) {
            None => (epoch, below_horizon),
            Some(restored) if restored.settled => (EpochState::Sealed, true),
            Some(_open) => (EpochState::Unknown, below_horizon),
        }
    }

    /// Whether a participant that has seen this tells nothing that an operator has not dealt with.
    pub(super) fn covers(&self, position: LogPosition) -> bool {
        self.restored_above(position.epoch).is_some()
    }

    /// The record of [`RESTORED`] that carries an order out in a log whose newest epoch is `newest`, and the first epoch of which
    /// things are presumed again.
    pub(super) fn carry_out(&self, order: &Order, newest: u32) -> Result<(Vec<u8>, Epoch), RestoreError> {
        let below = match (order.step, &self.restored) {
            (Step::Restore, _) => newest.checked_add(LEFT_OUT).ok_or(RestoreError::EpochsUsedUp)?,
            (Step::Settle, Some(restored)) if !self.behind => restored.below,
            (Step::Settle, _) => return Err(RestoreError::NotRestored),
        };
        let body = RestoredBody {
            below,
            settled: order.step == Step::Settle,
            reason: order.reason.clone(),
            at_ms: order.now_ms,
        };
        let record = rows::frame(Kind::Mark, RESTORED.as_bytes(), &body.encode_to_vec());
        let below = Epoch::new(below).expect("it is a sum with what is left out, or was an epoch before");
        Ok((record, below))
    }
}

impl Order {
    /// What is put on record of it, in the transaction that carries it out.
    pub(super) fn operation(
        &self,
        cluster: ClusterId,
        marks: &Marks,
        newest: u32,
        below: Epoch,
    ) -> Operation {
        let (action, after) = match self.step {
            Step::Restore => ("restore", format!("nothing is presumed of epochs below {below}")),
            Step::Settle => ("settle", format!("evidence from before epoch {below} may go")),
        };
        let behind = if marks.is_behind() { ", and the log was behind" } else { "" };
        Operation {
            at_ms: self.now_ms,
            who: limits::cut(&self.who, limits::MAX_DETAIL_BYTES).to_owned(),
            action: action.to_owned(),
            subject: cluster.to_string(),
            gtrid: None,
            reason: limits::cut(&self.reason, limits::MAX_DETAIL_BYTES).to_owned(),
            before: format!("the newest epoch was {newest}{behind}"),
            after,
            effect: Effect::None,
        }
    }

    /// Whether it is for this cluster; `false`: nothing is to be done.
    pub(super) fn is_for(&self, cluster: ClusterId) -> Result<bool, RestoreError> {
        match &self.confirm {
            None => Ok(false),
            Some(typed) if *typed == cluster.to_string() => Ok(true),
            Some(typed) => Err(RestoreError::OtherCluster { ours: cluster, typed: typed.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Epoch, EpochState, Gtrid, Marks};

    /// An operator's rollback goes through the owner or after the seal (P14): who is live is not hidden by what the log lacks.
    #[test]
    fn a_log_that_is_behind_still_tells_who_is_live() {
        let behind = Marks { behind: true, restored: None };
        let gtrid = Gtrid::new(Epoch::new(7).expect("not 0"), 1, [1; 10]);
        for below_horizon in [false, true] {
            let weigh = |epoch| behind.weigh(&gtrid, epoch, below_horizon);
            assert_eq!(weigh(EpochState::Live), (EpochState::Live, false));
            for epoch in [EpochState::Own, EpochState::Sealed, EpochState::Unknown] {
                assert_eq!(weigh(epoch), (EpochState::Unknown, below_horizon), "{epoch:?}");
            }
        }
    }
}
