//! What goes into a shard, and what comes out.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_proto::{Epoch, Gtrid, ResourceManagerName, Xid};

use super::delivery::{DeliveryView, Monotonic, SessionId};
use crate::protocol::event::{Applied, EnlistRefusal, Vote};
use crate::protocol::outcome::Outcome;
use crate::protocol::record::{About, DecisionRecord, LogWrite};
use crate::protocol::transaction::PreparedAnswer;

/// The moment at which a shard takes an input. The only clock it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since the coordinator started: deadlines and backoff count in it.
    pub monotonic: Monotonic,
    /// Milliseconds since 1970: in gtrids and in records, for people.
    pub unix_ms: u64,
}

/// When a commit is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// When every branch has applied the decision, or the configured time after it.
    Applied,
    /// When it is decided.
    Decided,
}

/// What a participant says of a decision it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acknowledgement {
    /// The branch has ended.
    Ended(Applied),
    /// It cannot be done or told now, and why.
    NotYet(String),
}

/// What the log says of a forced write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogAnswer {
    /// Durable.
    Forced,
    /// Not written, and never will be.
    Refused(String),
    /// Unknown.
    Unknown(String),
    /// After unknown: it is there.
    Found,
    /// After unknown: it is not there and never will be.
    Absent,
}

/// One thing for a shard to take. `R` is whatever the shell answers through: the shard only hands it back.
#[derive(Debug)]
pub enum Input<R> {
    /// A new transaction. `random`: bits for its gtrid.
    Begin {
        /// For the gtrid; they also choose the shard.
        random: [u8; 10],
        /// Until it is rolled back.
        timeout: Duration,
        /// For people.
        about: About,
        /// Gets [`Answer::Begun`] or [`Answer::Full`].
        reply: R,
    },
    /// Commit. Gets [`Answer::Outcome`] or [`Answer::NotLive`].
    Commit {
        /// Which.
        gtrid: Gtrid,
        /// When to answer.
        wait: Wait,
        /// Where to.
        reply: R,
    },
    /// Roll back. Gets [`Answer::Outcome`] or [`Answer::NotLive`].
    Rollback {
        /// Which.
        gtrid: Gtrid,
        /// Why, for people.
        why: String,
        /// Where to.
        reply: R,
    },
    /// What is known of it. Gets [`Answer::Outcome`] or [`Answer::NotLive`].
    Inquire {
        /// Which.
        gtrid: Gtrid,
        /// Where to.
        reply: R,
    },
    /// What the prepared branches among these have to do. Gets [`Answer::Prepared`].
    AskPrepared {
        /// Branches of any transactions of this shard.
        xids: Vec<Xid>,
        /// Where to.
        reply: R,
    },
    /// Gets [`Answer::Listing`]: the newest transactions of this shard, at most `limit`.
    List {
        /// How many.
        limit: usize,
        /// Where to.
        reply: R,
    },
    /// Gets [`Answer::Listing`]: those whose text or hex digits begin so, at most `limit`.
    Find {
        /// The beginning of a gtrid, or of its hex digits.
        prefix: String,
        /// How many.
        limit: usize,
        /// Where to.
        reply: R,
    },
    /// An operator acts on the deliveries of a transaction whose decision is durable. Gets [`Answer::Acted`] or
    /// [`Answer::NotLive`].
    Act {
        /// Which.
        gtrid: Gtrid,
        /// What.
        act: Act,
        /// Where to.
        reply: R,
    },
    /// This resource manager is gone for good (P28): what is to be delivered to it, now or later, is given up.
    Retire {
        /// Which.
        resource_manager: ResourceManagerName,
    },
    /// Gets [`Answer::Summary`].
    Summarize {
        /// Where to.
        reply: R,
    },
    /// A session attached.
    Attached {
        /// Its number, never used twice.
        session: SessionId,
        /// What it serves.
        resource_manager: ResourceManagerName,
    },
    /// A session ended.
    Detached {
        /// Which.
        session: SessionId,
    },
    /// A participant enlists a branch.
    Enlist {
        /// Over this session.
        session: SessionId,
        /// Which.
        xid: Xid,
    },
    /// A participant votes.
    Vote {
        /// Over this session.
        session: SessionId,
        /// Which branch.
        xid: Xid,
        /// How.
        vote: Vote,
    },
    /// A participant answers a decision.
    Acknowledge {
        /// Over this session.
        session: SessionId,
        /// Which branch.
        xid: Xid,
        /// What it says.
        acknowledgement: Acknowledgement,
    },
    /// The log answers a forced write of this transaction.
    Log {
        /// Whose.
        gtrid: Gtrid,
        /// What.
        answer: LogAnswer,
    },
    /// An unfinished decision that was found in the log at the start.
    Recover(DecisionRecord),
    /// Time has passed.
    Tick,
}

/// What an operator does with the deliveries of a decision. None of it can contradict the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Send them now.
    Retry,
    /// Send none of them until they are resumed. It is remembered by this process alone: a restart delivers.
    Pause,
    /// Send them again.
    Resume,
    /// Give up the branches of this resource manager: each ends as a hazard, because nobody knows what it did.
    Abandon(ResourceManagerName),
}

/// What a participant is sent by a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToParticipant {
    /// The branch is enlisted; the transaction ends at its deadline, so long from now.
    Enlisted(Xid, Duration),
    /// It is not.
    EnlistRefused(Xid, Refusal),
    /// Prepare, within this time.
    Prepare(Xid, Duration),
    /// The decision is commit.
    Commit(Xid),
    /// The decision is rollback.
    Rollback(Xid),
    /// Commit without preparing, within this time, or find out what became of the branch.
    CommitOnePhase(Xid, Duration),
    /// A message of the participant was not acted on, and why.
    Refused(Xid, String),
}

/// Why an enlist was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// By the transaction.
    ByTransaction(EnlistRefusal),
    /// No such transaction is live here.
    NotActive,
    /// The bqual does not name the session's resource manager.
    ForeignBranch,
}

/// Something for the shell to do, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<R> {
    /// Give this to the log. For a forced write the answer comes back as [`Input::Log`].
    Log(LogWrite),
    /// Send this over this session; if that cannot be done, the session is over.
    Send(SessionId, ToParticipant),
    /// Answer.
    Reply(R, Answer),
    /// A branch voted commit whose transaction is not live: the log has to say what it does.
    StrayVote(SessionId, Xid),
    /// A branch ended so whose transaction is not live: the log has to say whether that fits.
    StrayAcknowledgement(Xid, Applied),
}

/// An answer of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The transaction's id.
    Begun(Gtrid),
    /// As many transactions are in flight as may be.
    Full,
    /// What is known of the outcome.
    Outcome(OutcomeAnswer),
    /// No such transaction is live here: the log has to answer.
    NotLive,
    /// For each branch asked for, in order: what it has to do, or `None` if its transaction is not live.
    Prepared(Vec<Option<PreparedAnswer>>),
    /// Transactions.
    Listing(Vec<TransactionView>),
    /// An operator's act was carried out: on so many branches.
    Acted(usize),
    /// Numbers.
    Summary(Summary),
}

/// What is known of a live transaction's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeAnswer {
    /// `None`: not decided, or not to be told yet.
    pub outcome: Option<Outcome>,
    /// Why, for people.
    pub detail: String,
    /// How many branches it has.
    pub branches: usize,
    /// How many of them have still to end.
    pub pending: usize,
}

/// A live transaction, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionView {
    /// Which.
    pub gtrid: Gtrid,
    /// What it is called.
    pub about: About,
    /// Its state's wire number follows from this one.
    pub state: crate::protocol::transaction::State,
    /// Milliseconds since 1970; 0 once the deadline means nothing.
    pub deadline_ms: u64,
    /// Milliseconds since 1970; 0 without a durable decision.
    pub decided_ms: u64,
    /// Its deadline has passed, and it has no decision.
    pub overdue: bool,
    /// An operator holds its deliveries back.
    pub paused: bool,
    /// Its branches.
    pub branches: Vec<BranchView>,
}

/// A branch of a live transaction, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchView {
    /// Which.
    pub bqual: lockstep_proto::Bqual,
    /// Its state's name.
    pub state: &'static str,
    /// The delivery under way, if there is one.
    pub delivery: DeliveryView,
}

/// A shard in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Live transactions.
    pub live: usize,
    /// Those without a decision.
    pub undecided: usize,
    /// Those of them whose deadline has passed.
    pub overdue: usize,
    /// Decided, and a branch has not acknowledged.
    pub undelivered: usize,
    /// Since when the first of these is known to be decided, milliseconds since 1970.
    pub undelivered_since_ms: Option<u64>,
    /// The oldest live transaction.
    pub oldest: Option<Gtrid>,
    /// Nothing that begins from now on carries an earlier time, whatever the clock does. Milliseconds since 1970.
    pub begins_from_ms: u64,
    /// Decisions that each resource manager has not acknowledged.
    pub queued: BTreeMap<ResourceManagerName, usize>,
}

impl Summary {
    /// No transaction that is live, or begins in this epoch from now on, is older than this (P7).
    #[must_use]
    pub fn floor(&self, epoch: Epoch) -> Gtrid {
        let next = Gtrid::new(epoch, self.begins_from_ms, [0; 10]);
        self.oldest.map_or(next, |oldest| oldest.min(next))
    }
}
