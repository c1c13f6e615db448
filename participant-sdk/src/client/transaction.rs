//! One transaction in the hands of the application that began it.
//!
//! A transaction that is dropped rolls back, best effort, in the background; whatever that misses, the deadline
//! catches. From the moment commit is sent, nothing here ever sends a rollback again, whether the caller drops the
//! future, the connection breaks or the answer is lost (protocol.md, P13): the coordinator may be committing, and a
//! rollback that overtakes the commit's repetition would turn "committed" into a guess.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use lockstep_proto::Gtrid;
use lockstep_proto::limits::cut;
use lockstep_proto::museum::mutated;
use lockstep_proto::v1;
use tokio::runtime::Handle;
use tonic::{Code, Status};

use super::nodes::Coordinator;
use super::{COMMIT_TURN, Client, Outcome, TURN, outcome};
use crate::clock;
use crate::context::Context;
use crate::error::{CommitError, RollbackError};
use crate::status::{reason, sentence};

/// Bytes of a rollback's reason.
const MAX_REASON_BYTES: usize = 256;
/// The reason a coordinator gives for refusing to roll a committed transaction back.
const ALREADY_COMMITTED: &str = "ALREADY_COMMITTED";

/// A transaction that was begun and has not ended. Dropping it rolls it back.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct Transaction {
    client: Client,
    context: Context,
    /// The coordinator that it was begun at: of several, the one that can end it.
    home: Arc<Coordinator>,
    /// Where a drop can send its rollback from: the runtime that the transaction was begun in.
    runtime: Handle,
    /// Whether a drop still has to roll back: neither commit was sent nor rollback confirmed.
    armed: bool,
}

/// A commit that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The transaction.
    pub gtrid: Gtrid,
    /// Its branches.
    pub branches: u32,
    /// How many of them have still to apply the decision. They will: it is durable. Until then, a reader of their stores
    /// does not see it.
    pub branches_pending: u32,
    /// No branch had written anything.
    pub nothing_to_commit: bool,
}

impl Transaction {
    pub(super) fn new(client: Client, context: Context, home: Arc<Coordinator>) -> Self {
        Self { client, context, home, runtime: Handle::current(), armed: true }
    }

    /// Its id.
    #[must_use]
    pub const fn gtrid(&self) -> Gtrid {
        self.context.gtrid()
    }

    /// What a called service needs to work in this transaction.
    #[must_use]
    pub const fn context(&self) -> Context {
        self.context
    }

    /// The same, for the last call to a service: its branch votes when the handler ends, and the commit saves the round in which
    /// it would be asked. Without this a branch stays open, for further calls, until commit is requested.
    ///
    /// Choose it for a service that is called once, and not long before the commit: from its vote on the branch keeps its locks
    /// until the transaction is decided, also while the coordinator is away, and a further call to the same service fails.
    /// What that service calls in turn is not marked.
    #[must_use]
    pub const fn vote(&self) -> Context {
        self.context.vote()
    }

    /// Commits, and waits until every branch has applied the decision, or the coordinator has waited long enough for
    /// that: see [`Committed::branches_pending`].
    ///
    /// Cancelling this call does not roll back: if commit was sent, it may still succeed.
    ///
    /// # Errors
    /// [`CommitError::Unknown`] unless there is a definite answer.
    pub async fn commit(self) -> Result<Committed, CommitError> {
        self.send_commit(v1::Wait::Applied).await
    }

    /// Commits, and returns as soon as the decision is durable: sooner than [`Transaction::commit`], and a reader may not
    /// see the branches' work yet.
    ///
    /// # Errors
    /// As [`Transaction::commit`].
    pub async fn commit_when_decided(self) -> Result<Committed, CommitError> {
        self.send_commit(v1::Wait::Decided).await
    }

    /// Rolls back. `reason` is for people: the first 256 bytes are kept.
    ///
    /// # Errors
    /// If the coordinator has not confirmed it. The transaction is rolled back at its deadline then.
    pub async fn rollback(mut self, reason: impl AsRef<str>) -> Result<(), RollbackError> {
        let result = send_rollback(&self.client, &self.context, &self.home, reason.as_ref()).await;
        // Not before: a call that is cancelled on the way leaves it to the drop.
        self.armed = false;
        result
    }

    async fn send_commit(mut self, wait: v1::Wait) -> Result<Committed, CommitError> {
        // Before anything is sent, so that no cancellation point lies between the two (P13).
        self.armed = mutated("P13-rolls-back-behind-a-commit");
        fail::fail_point!("sdk-client-before-commit");
        let result = commit(&self.client, &self.context, &self.home, wait).await;
        fail::fail_point!("sdk-client-after-commit");
        result
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("context", &self.context)
            .field("armed", &self.armed)
            .finish_non_exhaustive()
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (client, context, home) = (self.client.clone(), self.context, Arc::clone(&self.home));
        // On a runtime that is shutting down the task is never run: the deadline ends the transaction.
        drop(self.runtime.spawn(async move {
            if let Err(unconfirmed) =
                send_rollback(&client, &context, &home, "dropped by the application").await
            {
                tracing::warn!(gtrid = %context.gtrid(), %unconfirmed, "a dropped transaction");
            }
        }));
    }
}

/// Until when an answer to commit is worth waiting for: the coordinator may decide until the deadline, and what was lost
/// after that is asked for again.
fn patience_end(client: &Client, context: &Context) -> Instant {
    context.deadline().max(clock::now()) + client.shared.patience
}

async fn commit(
    client: &Client,
    context: &Context,
    home: &Arc<Coordinator>,
    wait: v1::Wait,
) -> Result<Committed, CommitError> {
    let gtrid = context.gtrid();
    let request = v1::CommitRequest {
        gtrid: gtrid.to_string(),
        cluster: context.cluster().to_string(),
        wait: wait.into(),
    };
    let until = patience_end(client, context);
    // A lost answer is followed by the same commit again, at another coordinator if there is one: it has no second effect, and
    // answers as the first would have. To any but its own, it is an inquiry.
    let answer = client.repeat(Some(home), until, |mut rpc| {
        let request = request.clone();
        client.in_turn(COMMIT_TURN, async move {
            let response = rpc.commit(request).await?;
            decided_or_again(response)
        })
    });
    let (response, _who) =
        answer.await.map_err(|status| CommitError::Unknown { gtrid, detail: sentence(&status) })?;
    let committed = |nothing_to_commit| Committed {
        gtrid,
        branches: response.branches,
        branches_pending: response.branches_pending,
        nothing_to_commit,
    };
    match outcome(response.outcome, response.detail) {
        Some(Outcome::Committed) => Ok(committed(false)),
        Some(Outcome::NothingToCommit) => Ok(committed(true)),
        Some(Outcome::RolledBack { detail }) => Err(CommitError::RolledBack { gtrid, detail }),
        Some(Outcome::Heuristic { detail }) => Err(CommitError::Heuristic { gtrid, detail }),
        Some(Outcome::Unknown { detail }) => Err(CommitError::Unknown { gtrid, detail }),
        Some(Outcome::Undecided) => {
            Err(CommitError::Unknown { gtrid, detail: "it is still undecided".to_owned() })
        }
        None => {
            let detail = format!("the coordinator's answer, outcome {}, is not understood", response.outcome);
            Err(CommitError::Unknown { gtrid, detail })
        }
    }
}

/// Makes an answer that may be another one a moment later look like none, so that it is asked for again.
fn decided_or_again(
    response: tonic::Response<v1::CommitResponse>,
) -> Result<tonic::Response<v1::CommitResponse>, Status> {
    let answer = response.get_ref();
    match outcome(answer.outcome, answer.detail.clone()) {
        Some(Outcome::Unknown { detail }) => {
            Err(Status::unavailable(format!("the coordinator cannot tell: {detail}")))
        }
        Some(Outcome::Undecided) => Err(Status::unavailable("it is still undecided")),
        Some(
            Outcome::Committed
            | Outcome::NothingToCommit
            | Outcome::RolledBack { .. }
            | Outcome::Heuristic { .. },
        )
        | None => Ok(response),
    }
}

async fn send_rollback(
    client: &Client,
    context: &Context,
    home: &Arc<Coordinator>,
    why: &str,
) -> Result<(), RollbackError> {
    let gtrid = context.gtrid();
    let request = v1::RollbackRequest {
        gtrid: gtrid.to_string(),
        cluster: context.cluster().to_string(),
        reason: cut(why, MAX_REASON_BYTES).to_owned(),
    };
    // Any but its own can only tell what the log says, which is nothing before one of them has taken over: it is asked again.
    let answer = client.repeat(Some(home), clock::now() + client.shared.patience, |mut rpc| {
        let request = request.clone();
        client.in_turn(TURN, async move {
            let response = rpc.rollback(request).await?;
            match outcome(response.get_ref().outcome, String::new()) {
                Some(Outcome::Undecided) => Err(Status::unavailable(response.into_inner().detail)),
                _ended_or_unknown => Ok(response),
            }
        })
    });
    let (response, _who) = answer.await.map_err(|status| rollback_error(gtrid, &status))?;
    let unconfirmed = |detail: String| RollbackError::Unconfirmed { gtrid, detail };
    match outcome(response.outcome, response.detail) {
        Some(Outcome::RolledBack { .. } | Outcome::NothingToCommit) => Ok(()),
        Some(Outcome::Committed) => {
            Err(RollbackError::AlreadyCommitted { gtrid, detail: "it was committed before".to_owned() })
        }
        Some(Outcome::Heuristic { detail }) => Err(RollbackError::Heuristic { gtrid, detail }),
        Some(Outcome::Unknown { detail }) => Err(unconfirmed(detail)),
        Some(Outcome::Undecided) => Err(unconfirmed("it is still undecided".to_owned())),
        None => Err(unconfirmed(format!("outcome {} is not understood", response.outcome))),
    }
}

fn rollback_error(gtrid: Gtrid, status: &Status) -> RollbackError {
    let detail = sentence(status);
    if status.code() == Code::FailedPrecondition && reason(status).as_deref() == Some(ALREADY_COMMITTED) {
        RollbackError::AlreadyCommitted { gtrid, detail }
    } else {
        RollbackError::Unconfirmed { gtrid, detail }
    }
}
