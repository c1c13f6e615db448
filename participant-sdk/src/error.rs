//! The errors of this crate. One enum per operation, and for each of them one question answered: what may the caller do?
//!
//! [`Advice`] is that answer. The texts say what happened, to which transaction, and what to do next. *Unknown* is never
//! folded into one of the others: a commit whose answer was lost is neither a success nor a failure.

use std::time::Duration;

use lockstep_proto::{ClusterId, Gtrid, ParseIdError};

/// What a caller may do after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Advice {
    /// Nothing of what this call was to do was committed or will be. It is safe to do it again from the start, in a new
    /// transaction, and it may succeed then.
    Retry,
    /// The same would fail again, or a person has to look first. The error's text says which.
    GiveUp,
    /// The outcome is not known to this process. Ask for it with [`crate::Client::inquire`] before doing anything that
    /// depends on it; doing the work again before that may do it twice.
    AskLater(Gtrid),
}

/// An address that a client or participant was given is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{address:?} is no coordinator's address: {why}; it has the form http://HOST:PORT (docs/errors/LS0206.md)"
)]
pub struct ConnectError {
    /// What was given.
    pub address: String,
    /// What is wrong with it.
    pub why: String,
}

impl ConnectError {
    /// A list of coordinators with nothing on it.
    pub(crate) fn none() -> Self {
        Self { address: String::new(), why: "no address was given".to_owned() }
    }

    /// Always [`Advice::GiveUp`]: the configuration has to change.
    #[must_use]
    pub const fn advice(&self) -> Advice {
        Advice::GiveUp
    }
}

/// No transaction was begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BeginError {
    /// No coordinator answered for as long as the client is patient, or it is going away.
    #[error("no transaction was begun, no coordinator could be reached: {0}")]
    Unavailable(String),
    /// The coordinator has as many transactions in flight as it takes.
    #[error("no transaction was begun, the coordinator takes no more now: {0}")]
    Busy(String),
    /// The timeout, the name or a label is outside its limits.
    #[error("no transaction was begun: {0}")]
    Invalid(String),
    /// The coordinator begins none as it stands: an operator has to act first, as the text says.
    #[error("no transaction was begun, the coordinator refuses it: {0}")]
    Refused(String),
    /// The coordinator's answer is none that this version understands.
    #[error("no transaction can be used, the coordinator's answer is not understood: {0}")]
    Protocol(String),
}

impl BeginError {
    /// Begin again, or have the call or the coordinator mended first.
    #[must_use]
    pub const fn advice(&self) -> Advice {
        match self {
            Self::Unavailable(_) | Self::Busy(_) => Advice::Retry,
            Self::Invalid(_) | Self::Refused(_) | Self::Protocol(_) => Advice::GiveUp,
        }
    }
}

/// A commit that did not, or not certainly, succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// No branch has committed or can.
    #[error("transaction {gtrid} was rolled back: {detail}")]
    RolledBack {
        /// The transaction.
        gtrid: Gtrid,
        /// Why.
        detail: String,
    },
    /// At least one branch ended differently from the others. It is on record at the coordinator.
    #[error(
        "transaction {gtrid} has a heuristic outcome: {detail}; look at it with `lockstep tx show {gtrid}`"
    )]
    Heuristic {
        /// The transaction.
        gtrid: Gtrid,
        /// Which branch.
        detail: String,
    },
    /// Commit was sent, and no definite answer came. It may have committed, and may still.
    #[error(
        "whether transaction {gtrid} committed is not known: {detail}; inquire before doing the work again"
    )]
    Unknown {
        /// The transaction.
        gtrid: Gtrid,
        /// What stood in the way of an answer.
        detail: String,
    },
}

impl CommitError {
    /// Safe to do again, a matter for a person, or to be asked for.
    #[must_use]
    pub const fn advice(&self) -> Advice {
        match self {
            Self::RolledBack { .. } => Advice::Retry,
            Self::Heuristic { .. } => Advice::GiveUp,
            Self::Unknown { gtrid, .. } => Advice::AskLater(*gtrid),
        }
    }

    /// The transaction.
    #[must_use]
    pub const fn gtrid(&self) -> Gtrid {
        match self {
            Self::RolledBack { gtrid, .. } | Self::Heuristic { gtrid, .. } | Self::Unknown { gtrid, .. } => {
                *gtrid
            }
        }
    }
}

/// A rollback that is not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RollbackError {
    /// Someone else has committed the transaction before.
    #[error("transaction {gtrid} has committed and cannot be rolled back: {detail}")]
    AlreadyCommitted {
        /// The transaction.
        gtrid: Gtrid,
        /// What the coordinator said.
        detail: String,
    },
    /// At least one branch ended differently from the others. It is on record at the coordinator.
    #[error(
        "transaction {gtrid} has a heuristic outcome: {detail}; look at it with `lockstep tx show {gtrid}`"
    )]
    Heuristic {
        /// The transaction.
        gtrid: Gtrid,
        /// Which branch.
        detail: String,
    },
    /// No definite answer came. This process has never asked for a commit: unless someone else did, the transaction is
    /// rolled back at its deadline at the latest.
    #[error("the rollback of transaction {gtrid} is not confirmed, it ends at its deadline: {detail}")]
    Unconfirmed {
        /// The transaction.
        gtrid: Gtrid,
        /// What stood in the way of an answer.
        detail: String,
    },
}

impl RollbackError {
    /// A matter for whoever committed it, for a person, or to be asked for.
    #[must_use]
    pub const fn advice(&self) -> Advice {
        match self {
            Self::AlreadyCommitted { .. } | Self::Heuristic { .. } => Advice::GiveUp,
            Self::Unconfirmed { gtrid, .. } => Advice::AskLater(*gtrid),
        }
    }
}

/// An inquiry that was not answered. It has changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InquireError {
    /// No coordinator answered for as long as the client is patient.
    #[error("the outcome of transaction {gtrid} could not be asked for: {detail}")]
    Unavailable {
        /// The transaction.
        gtrid: Gtrid,
        /// What stood in the way.
        detail: String,
    },
    /// The coordinator cannot answer for this transaction: it belongs to another cluster, or the answer is none that this
    /// version understands.
    #[error("the coordinator cannot tell the outcome of transaction {gtrid}: {detail}")]
    Refused {
        /// The transaction.
        gtrid: Gtrid,
        /// Why.
        detail: String,
    },
}

impl InquireError {
    /// Ask again, or ask elsewhere.
    #[must_use]
    pub const fn advice(&self) -> Advice {
        match self {
            Self::Unavailable { gtrid, .. } => Advice::AskLater(*gtrid),
            Self::Refused { .. } => Advice::GiveUp,
        }
    }
}

/// What became of [`crate::Client::transaction`] when it did not commit for certain.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError<E> {
    /// There was no transaction; the work was not started.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// The work failed, and what it did is rolled back, now or at the transaction's deadline.
    #[error("the work failed and is rolled back: {0}")]
    Work(E),
    /// The work was done, and the commit did not, or not certainly, succeed.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl<E> TransactionError<E> {
    /// For [`TransactionError::Work`] this is [`Advice::GiveUp`]: nothing of it was committed, and whether it can succeed
    /// next time only its author knows.
    #[must_use]
    pub const fn advice(&self) -> Advice {
        match self {
            Self::Begin(error) => error.advice(),
            Self::Work(_) => Advice::GiveUp,
            Self::Commit(error) => error.advice(),
        }
    }
}

/// A request does not say, or not clearly, which transaction it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// The header is not there.
    #[error(
        "the header lockstep-context is missing: this call works inside a transaction, which its caller has to name"
    )]
    Missing,
    /// The header is there more than once.
    #[error("the header lockstep-context is there more than once")]
    Repeated,
    /// The header is there and is not a context.
    #[error("malformed header lockstep-context {text:?}: {why}")]
    Malformed {
        /// Its value, cut to 128 bytes.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl ContextError {
    /// Always [`Advice::GiveUp`]: the caller's code has to change.
    #[must_use]
    pub const fn advice(&self) -> Advice {
        Advice::GiveUp
    }
}

/// A participant that did not attach.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The name is no resource manager's.
    #[error(transparent)]
    Name(#[from] ParseIdError),
    /// The coordinator's address is none.
    #[error(transparent)]
    Address(#[from] ConnectError),
    /// The store cannot be a safe participant as it is set up. Names what has to change.
    #[error("the store cannot take part: {0} (docs/errors/LS0508.md)")]
    Unfit(String),
    /// The two sides do not fit together, and waiting does not mend it.
    #[error("attaching as {name} was refused: {detail}")]
    Refused {
        /// The resource manager.
        name: String,
        /// Why, and what to do.
        detail: String,
    },
}

impl AttachError {
    /// Always [`Advice::GiveUp`]: what waiting can mend is waited for.
    #[must_use]
    pub const fn advice(&self) -> Advice {
        Advice::GiveUp
    }
}

/// A branch that was not opened. Where the coordinator heard of it, it was told to roll the transaction back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The context is of another cluster than this participant's.
    #[error("transaction {gtrid} is of cluster {theirs}, and this participant is attached to cluster {ours}")]
    ForeignCluster {
        /// The transaction.
        gtrid: Gtrid,
        /// The context's cluster.
        theirs: ClusterId,
        /// The participant's.
        ours: ClusterId,
    },
    /// The transaction's deadline passed before the branch was open.
    #[error("the deadline of transaction {gtrid} has passed")]
    Expired {
        /// The transaction.
        gtrid: Gtrid,
    },
    /// There is no session with the coordinator now; it is being mended.
    #[error("transaction {gtrid} cannot be joined, this participant is not attached to its coordinator now")]
    NotAttached {
        /// The transaction.
        gtrid: Gtrid,
    },
    /// The participant is being detached, or was.
    #[error("transaction {gtrid} cannot be joined, this participant is going away")]
    Detaching {
        /// The transaction.
        gtrid: Gtrid,
    },
    /// As many branches are open, or waited for, as may be.
    #[error(
        "transaction {gtrid} cannot be joined, this participant has as many open branches as it may have"
    )]
    TooManyBranches {
        /// The transaction.
        gtrid: Gtrid,
    },
    /// The store has no room for another branch now: no slot to prepare it in, or no connection and no place to wait for
    /// one. Nothing was begun, and the coordinator has not heard of it: this transaction may be joined again, and it goes on
    /// without this branch.
    #[error("transaction {gtrid} cannot be joined now, the store has no room for another branch: {detail}")]
    NoRoom {
        /// The transaction.
        gtrid: Gtrid,
        /// What is taken, and by whom.
        detail: String,
    },
    /// The store could not open a local transaction now.
    #[error("transaction {gtrid} could not be joined, the store is not available: {detail}")]
    StoreUnavailable {
        /// The transaction.
        gtrid: Gtrid,
        /// What the store said.
        detail: String,
    },
    /// The store cannot open a branch as it is set up.
    #[error("transaction {gtrid} could not be joined: {detail}")]
    StoreUnfit {
        /// The transaction.
        gtrid: Gtrid,
        /// What has to change.
        detail: String,
    },
    /// The branch was rolled back before its connection could be handed out, and with it the transaction.
    #[error("transaction {gtrid} cannot be joined, its branch here is rolled back: {detail}")]
    RolledBack {
        /// The transaction.
        gtrid: Gtrid,
        /// Why.
        detail: String,
    },
    /// An earlier call of the same transaction was marked as the last one to this service, and its branch here has voted: it can
    /// be neither continued nor seen. Mark only the last call ([`crate::Transaction::vote`], [`crate::Branch::vote`]).
    #[error(
        "transaction {gtrid} cannot be joined again, its branch here has voted: an earlier call was marked as the last one \
         to this service"
    )]
    Voted {
        /// The transaction.
        gtrid: Gtrid,
    },
    /// The coordinator takes no such branch: the transaction ended, or its commit was already requested.
    #[error("transaction {gtrid} takes no branch here: {detail}")]
    Refused {
        /// The transaction.
        gtrid: Gtrid,
        /// Why.
        detail: String,
    },
}

impl JoinError {
    /// [`Advice::Retry`] where a later transaction may be joined.
    #[must_use]
    pub const fn advice(&self) -> Advice {
        match self {
            Self::NotAttached { .. }
            | Self::Detaching { .. }
            | Self::TooManyBranches { .. }
            | Self::NoRoom { .. }
            | Self::StoreUnavailable { .. }
            | Self::RolledBack { .. } => Advice::Retry,
            Self::ForeignCluster { .. }
            | Self::Expired { .. }
            | Self::StoreUnfit { .. }
            | Self::Voted { .. }
            | Self::Refused { .. } => Advice::GiveUp,
        }
    }
}

/// The handler's work is rolled back. Answer its caller with an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FinishError {
    /// The branch was lost or doomed while the handler worked, and the transaction is rolled back with it.
    #[error("the branch of transaction {gtrid} is rolled back: {detail}")]
    RolledBack {
        /// The transaction.
        gtrid: Gtrid,
        /// Why.
        detail: String,
    },
    /// The service ended the branch's local transaction itself, and what it committed so cannot be rolled back. Told where the
    /// handler votes; elsewhere, whoever commits the transaction hears of it.
    #[error(
        "the branch of transaction {gtrid} was ended by its own service, which an operator has to look at: {detail}"
    )]
    Hazard {
        /// The transaction.
        gtrid: Gtrid,
        /// What is known of it.
        detail: String,
    },
    /// The coordinator takes no such branch: the transaction ended, or its commit was already requested. Its other branches
    /// may have committed: this one came too late to be part of it.
    #[error("transaction {gtrid} takes no branch here, and what was done in it is rolled back: {detail}")]
    Refused {
        /// The transaction.
        gtrid: Gtrid,
        /// Why.
        detail: String,
    },
}

impl FinishError {
    /// Do it again in a new transaction, or mend the caller, which did not wait for this branch.
    #[must_use]
    pub const fn advice(&self) -> Advice {
        match self {
            Self::RolledBack { .. } => Advice::Retry,
            Self::Hazard { .. } | Self::Refused { .. } => Advice::GiveUp,
        }
    }
}

/// A statement of a handler failed: what the handler's caller should hear. Made by [`crate::Branch::explain`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// Somebody else had a lock for as long as this transaction could wait. It may be a transaction that itself waits, in another
    /// database, for a lock of this one: no database can see that, and only the deadlines end it.
    #[error("transaction {gtrid} waited in {resource_manager} for {lock}, {}: another transaction has it", until(*.within, *.left))]
    LockWait {
        /// The transaction.
        gtrid: Gtrid,
        /// The resource manager in which it waited.
        resource_manager: String,
        /// Which lock, as the store names it.
        lock: String,
        /// From when the handler got its connection until the transaction's deadline.
        within: Duration,
        /// What of that was left when the wait ended: about a tenth, at most a second, unless the service has asked for other waits.
        left: Duration,
    },
    /// Anything else, in the store's words.
    #[error("transaction {gtrid} failed in {resource_manager}: {detail}")]
    Failed {
        /// The transaction.
        gtrid: Gtrid,
        /// The resource manager.
        resource_manager: String,
        /// What the store said.
        detail: String,
    },
}

fn until(within: Duration, left: Duration) -> String {
    let [within, left] = [within, left].map(|duration| duration.as_secs_f64());
    if left > 0.0 {
        return format!(
            "and gave up {left:.1} s before its deadline, {:.1} s after it came here",
            within - left
        );
    }
    format!("until its deadline, {within:.1} s after it came here")
}

impl WorkError {
    /// [`Advice::Retry`] where only time was lacking: in a new transaction, when this one has been rolled back.
    #[must_use]
    pub const fn advice(&self) -> Advice {
        match self {
            Self::LockWait { .. } => Advice::Retry,
            Self::Failed { .. } => Advice::GiveUp,
        }
    }
}
