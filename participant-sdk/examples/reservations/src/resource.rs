//! The protocol's side: how a ledger prepares, commits, rolls back, and proves what it did.
//!
//! Everything is answered under one lock, from a state that is on disk, and every change is one record. So each
//! answer is true at one moment, and there is no moment between two records that a crash could show:
//!
//! - *Prepared* is a record. Before it, a crash leaves nothing; behind it, the branch can go either way, since what it takes
//!   was put aside for it.
//! - *Ended* is a record. It is the decision's effect and its evidence in one.
//! - A branch of which there is no record is fenced by an *ended* record before anything is said of it. A prepare that comes
//!   later meets that.

use std::time::{Duration, UNIX_EPOCH};

use lockstep::resource::{
    Attachment, BranchId, ClusterId, EvidenceRow, Fate, Gtrid, LogPosition, MAX_TIMEOUT, Prepared, Resource,
    ResourceError, ResourceManagerName, Unresolved, Xid, wall_clock,
};
use tokio::time::Instant;

use crate::journal::JournalError;
use crate::ledger::{Access, Desk, Draft, Ledger, LedgerError};
use crate::record::{Ended, Record, Text};

impl Resource for Ledger {
    type Connection = Desk;
    type Open = Desk;

    async fn attach(&self, _name: &ResourceManagerName) -> Result<Attachment, ResourceError> {
        let access = self.access().await?;
        let state = &access.opened().state;
        Ok(Attachment {
            identity: state.identity,
            cluster: state.cluster,
            seen: state.seen.clone(),
            // Whoever moves the directory moves all of it.
            location: String::new(),
            timeline: 0,
        })
    }

    async fn bind(&self, cluster: ClusterId) -> Result<(), Unresolved> {
        let access = self.access().await?;
        if access.opened().state.cluster.is_some() {
            return Ok(());
        }
        Ok(access.write(Record::Bound { cluster }).await?)
    }

    async fn begin(&self, branch: &BranchId, remaining: Duration) -> Result<Desk, ResourceError> {
        // So that a ledger that cannot be used refuses the work and not the vote.
        drop(self.access().await?);
        Ok(self.open_desk(branch.clone(), Instant::now() + remaining, deadline_ms(remaining)))
    }

    fn connection(open: &mut Desk) -> &mut Desk {
        open
    }

    fn connection_ref(open: &Desk) -> &Desk {
        open
    }

    async fn has_written(open: &mut Desk) -> bool {
        !open.draft().entries.is_empty()
    }

    async fn prepare(
        &self,
        branch: &BranchId,
        open: Desk,
        position: &LogPosition,
    ) -> Result<Prepared, Unresolved> {
        let access = self.access().await?;
        let Draft { entries, deadline_ms, .. } = match ready(&access, branch, &open)? {
            Ready::Yes(draft) => draft,
            Ready::No(why) => return Ok(Prepared::No(why)),
        };
        if entries.is_empty() {
            return Ok(Prepared::ReadOnly);
        }
        let record = Record::Prepared { branch: branch.clone(), entries, deadline_ms, position: *position };
        access.write(record).await?;
        // Only now: until it was prepared, the open branch kept what it had put aside from others.
        drop(open);
        Ok(Prepared::Yes)
    }

    async fn commit_one_phase(
        &self,
        branch: &BranchId,
        open: Desk,
        position: &LogPosition,
    ) -> Result<Fate, Unresolved> {
        let access = self.access().await?;
        let Draft { entries, deadline_ms, .. } = match ready(&access, branch, &open)? {
            Ready::Yes(draft) => draft,
            Ready::No(why) => {
                tracing::warn!(%branch, %why, "a branch was rolled back instead of committed in one phase");
                return Ok(Fate::RolledBack);
            }
        };
        let outcome = Ended::Committed;
        let record =
            Record::Ended { branch: branch.clone(), outcome, entries, deadline_ms, position: *position };
        access.write(record).await?;
        drop(open);
        Ok(Fate::Committed)
    }

    async fn discard(&self, open: Desk) {
        drop(open);
    }

    async fn commit(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        self.end(branch, position, Ended::Committed).await
    }

    async fn rollback(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        self.end(branch, position, Ended::RolledBack).await
    }

    /// The same as a commit here: what is prepared is committed, and what is not is proved.
    async fn prove(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        self.end(branch, position, Ended::Committed).await
    }

    async fn prepared(&self, cluster: ClusterId, name: &ResourceManagerName) -> Result<Vec<Xid>, Unresolved> {
        let access = self.access().await?;
        let branches = access.opened().state.prepared.keys();
        let ours = branches.filter(|branch| {
            branch.cluster == cluster && branch.xid.bqual.resource_manager_str() == name.as_str()
        });
        Ok(ours.map(|branch| branch.xid.clone()).collect())
    }

    async fn oldest_evidence(&self, cluster: ClusterId) -> Result<Option<Gtrid>, Unresolved> {
        let access = self.access().await?;
        let committed =
            access.opened().state.evidence.iter().filter(|(branch, evidence)| {
                branch.cluster == cluster && evidence.outcome == Ended::Committed
            });
        Ok(committed.map(|(branch, _)| branch.xid.gtrid).min())
    }

    async fn old_evidence(
        &self,
        cluster: ClusterId,
        retention: Duration,
        limit: usize,
    ) -> Result<Vec<EvidenceRow>, Unresolved> {
        let access = self.access().await?;
        let until = millis(wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default())
            .saturating_sub(millis(retention));
        let old = access
            .opened()
            .state
            .evidence
            .iter()
            .filter(|(branch, evidence)| branch.cluster == cluster && evidence.deadline_ms <= until);
        let rows = old
            .map(|(branch, evidence)| EvidenceRow { branch: branch.clone(), fate: fate(evidence.outcome) });
        Ok(rows.take(limit).collect())
    }

    async fn forget(&self, branches: &[BranchId]) -> Result<(), Unresolved> {
        let access = self.access().await?;
        let evidence = &access.opened().state.evidence;
        let known = branches.iter().filter(|branch| evidence.contains_key(branch));
        let branches: Vec<_> = known.cloned().map(Text).collect();
        if branches.is_empty() {
            return Ok(());
        }
        Ok(access.write(Record::Forgotten { branches }).await?)
    }
}

/// Whether an open branch may end well.
enum Ready {
    Yes(Draft),
    No(String),
}

fn ready(access: &Access, branch: &BranchId, open: &Desk) -> Result<Ready, Unresolved> {
    let state = &access.opened().state;
    let draft = open.draft();
    assert_eq!(*branch, draft.branch, "a branch is ended with its own desk");
    if state.prepared.contains_key(branch) {
        return Err(Unresolved(format!("the branch {branch} is prepared already")));
    }
    match state.evidence.get(branch).map(|evidence| evidence.outcome) {
        Some(Ended::Committed) => Err(Unresolved(format!("the branch {branch} is committed already"))),
        Some(Ended::RolledBack) => Ok(Ready::No("it was rolled back before".to_owned())),
        None if !draft.is_alive() => Ok(Ready::No("the transaction's deadline has passed".to_owned())),
        None => Ok(Ready::Yes(draft)),
    }
}

impl Ledger {
    /// Ends a prepared branch as wanted, tells how one has ended, and keeps one that nobody knows from ever committing.
    async fn end(
        &self,
        branch: &BranchId,
        position: &LogPosition,
        wanted: Ended,
    ) -> Result<Fate, Unresolved> {
        let access = self.access().await?;
        let state = &access.opened().state;
        if let Some(evidence) = state.evidence.get(branch) {
            return Ok(fate(evidence.outcome));
        }
        let (outcome, deadline_ms) = match state.prepared.get(branch) {
            // Whoever was told of the decision must find how it ended, however late that is: the retention counts from now, or later.
            Some(prepared) => (wanted, prepared.deadline_ms.max(deadline_ms(Duration::ZERO))),
            // No branch that exists has a later deadline.
            None => (Ended::RolledBack, deadline_ms(MAX_TIMEOUT)),
        };
        let entries = Vec::new();
        let position = *position;
        let record = Record::Ended { branch: branch.clone(), outcome, entries, deadline_ms, position };
        access.write(record).await?;
        Ok(fate(outcome))
    }
}

fn fate(outcome: Ended) -> Fate {
    match outcome {
        Ended::Committed => Fate::Committed,
        Ended::RolledBack => Fate::RolledBack,
    }
}

/// The moment when this will have passed, in milliseconds since 1970. For people and for pruning: what may still be
/// prepared is decided by a clock that nobody sets.
fn deadline_ms(remaining: Duration) -> u64 {
    millis((wall_clock() + remaining).duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<LedgerError> for Unresolved {
    fn from(error: LedgerError) -> Self {
        Self(error.to_string())
    }
}

impl From<LedgerError> for ResourceError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Journal(JournalError::Damaged { .. }) => Self::Unfit(error.to_string()),
            LedgerError::Journal(JournalError::Disk { .. })
            | LedgerError::Occupied(_)
            | LedgerError::Unknown { .. } => Self::Unavailable(error.to_string()),
        }
    }
}
