//! What a participant and its coordinator say to each other, as checked types. `participant/wire.rs` has the way to the wire.

use std::time::Duration;

use lockstep_proto::{
    ClusterId, Epoch, Gtrid, InstanceId, LogPosition, Positions, ResourceManagerId, ResourceManagerName, Xid,
};

use crate::branch::{Applied, Decision, Refusal, Vote};
use crate::resource::{Fate, Inspection};

/// From the participant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToCoordinator {
    /// The first message of a session, alone in its frame.
    Hello(Hello),
    /// A branch exists.
    Enlist(Xid),
    /// A vote.
    Vote(Xid, Vote),
    /// What a decision has led to.
    Acknowledge(Xid, Applied),
    /// The prepared branches of the store, or a part of them.
    Report {
        /// At most 1,024.
        prepared: Vec<Xid>,
        /// The oldest transaction that the store still holds something of. Counts in the last report of a listing only.
        oldest_held: Option<Gtrid>,
        /// Whether this is the last report of its listing.
        complete: bool,
        /// The listing's number within the session.
        listing: u64,
    },
    /// Evidence rows that are old enough to go, and what they prove. At most 1,024.
    Reconcile(Vec<(Xid, Fate)>),
    /// The answer to the question with this number; or why there is none.
    Inspection(u64, Result<Inspection, String>),
}

/// Who attaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The resource manager.
    pub name: ResourceManagerName,
    /// Its stored identity.
    pub identity: ResourceManagerId,
    /// This process.
    pub instance: InstanceId,
    /// The cluster that the store belongs to, once it has been attached.
    pub cluster: Option<ClusterId>,
    /// The newest place in the decision log that the store has evidence of, for each epoch.
    pub seen: Positions,
    /// Where the store lives, if a change of it matters; else empty.
    pub location: String,
    /// PostgreSQL's timeline, 0 elsewhere.
    pub timeline: u32,
}

/// From the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromCoordinator {
    /// The answer to a hello.
    Welcome(Welcome),
    /// The branch is part of the transaction, whose deadline is so far away.
    Enlisted(Xid, Duration),
    /// It is not.
    EnlistRefused(Xid, Refusal),
    /// A vote is asked for.
    Prepare(Xid, LogPosition),
    /// A decision.
    Decide(Xid, Decision, LogPosition),
    /// The commit is left to this branch.
    CommitOnePhase(Xid, LogPosition),
    /// What to do with branches that were reported as prepared.
    ReportAnswer(Vec<(Xid, BranchAnswer)>, LogPosition),
    /// Evidence rows that may go.
    ReconcileAnswer(Vec<Xid>),
    /// A message was not acted on.
    Refused(Xid, String),
    /// Epochs of other coordinators were sealed.
    Sealed(Vec<u32>),
    /// Who shares the coordinator's log. It is none of the session's business: there is a session for each of them.
    Nodes(Vec<NodeAddress>),
    /// The coordinator is going away.
    Drain,
    /// What does the store say? The question's number, the coordinator's cluster, and the transaction, if it is about one. It is none of
    /// the session's business: nothing follows from it.
    Inspect(u64, ClusterId, Option<Gtrid>),
}

impl FromCoordinator {
    /// The one branch that it is about.
    #[must_use]
    pub const fn xid(&self) -> Option<&Xid> {
        match self {
            Self::Enlisted(xid, _)
            | Self::EnlistRefused(xid, _)
            | Self::Prepare(xid, _)
            | Self::Decide(xid, ..)
            | Self::CommitOnePhase(xid, _)
            | Self::Refused(xid, _) => Some(xid),
            Self::Welcome(_)
            | Self::ReportAnswer(..)
            | Self::ReconcileAnswer(_)
            | Self::Sealed(_)
            | Self::Nodes(_)
            | Self::Drain
            | Self::Inspect(..) => None,
        }
    }
}

/// A coordinator, as another one tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddress {
    /// Its epoch.
    pub epoch: Epoch,
    /// Such as `http://10.0.0.1:7420`.
    pub address: String,
}

/// Whom the participant has attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version of the protocol that the coordinator speaks.
    pub protocol_version: u32,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its epoch, and the newest forced batch in its log.
    pub position: LogPosition,
    /// How long ended commits are kept; evidence is kept at least as long.
    pub retention: Duration,
    /// Every epoch below this number is sealed.
    pub sealed_below: u32,
    /// The newest epoch that the log has given out, to this coordinator or to another one on the same log.
    pub newest_epoch: u32,
    /// How often the participant lists its prepared branches.
    pub report_interval: Duration,
    /// Epochs of which the store need not keep what it has seen, once it has kept the position.
    pub settled: Vec<Epoch>,
}

/// What becomes of a branch that was reported as prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BranchAnswer {
    /// It commits.
    Commit,
    /// It rolls back.
    Rollback,
    /// There is no decision yet.
    StillRunning,
    /// The coordinator cannot tell; nothing may be done with the branch. Why.
    Unknown(String),
}
