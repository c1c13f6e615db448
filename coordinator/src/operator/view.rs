//! What operators see of transactions and of the coordinator: the wire's answers, checked.
//!
//! These types are what `--json` prints: a field, once released, keeps its name, its type and its meaning; new ones may
//! join. docs/cli.md lists them. A value that this version does not know is an error and not a guess: the coordinator
//! may be newer, and mean something by it that must not be hidden.

pub(super) mod acts;
pub(super) mod participants;

use std::collections::BTreeMap;
use std::fmt;

use lockstep_proto::v1;
use lockstep_proto::wire::{WireError, known_enum, required};
use serde::{Serialize, Serializer};

use acts::{AdviceView, AuditView};
use participants::DatabaseAnswer;

/// A time of the coordinator's clock, from 1970 to 9999. Text and JSON: RFC 3339 in UTC, with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(jiff::Timestamp);

impl Moment {
    /// A field that must hold a time.
    pub(super) fn new(unix_ms: u64, field: &'static str) -> Result<Self, WireError> {
        let out_of_range = || WireError::Limit { field, why: "a time before the year 10000" };
        let ms = i64::try_from(unix_ms).map_err(|_overflow| out_of_range())?;
        jiff::Timestamp::from_millisecond(ms).map(Self).map_err(|_range| out_of_range())
    }

    /// A field that holds a time, or 0 if there is none.
    pub(super) fn maybe(unix_ms: u64, field: &'static str) -> Result<Option<Self>, WireError> {
        (unix_ms != 0).then(|| Self::new(unix_ms, field)).transpose()
    }

    /// Milliseconds from `earlier` to this; negative if `earlier` is later.
    pub(super) fn ms_since(self, earlier: Self) -> i64 {
        self.0.as_millisecond() - earlier.0.as_millisecond()
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").fmt(f)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Defines an enum that mirrors one of the wire's, with one name for each value, in text and in JSON.
macro_rules! names {
    ($(#[$doc:meta])* $name:ident from $wire:ident { $($value:ident => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum $name {
            $($value,)+
        }

        impl $name {
            /// Its name.
            pub(super) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }

            /// The value in a field that must hold a known one.
            fn from_wire(value: i32, field: &'static str) -> Result<Self, WireError> {
                match known_enum::<v1::$wire>(value, field)? {
                    v1::$wire::Unspecified => Err(WireError::UnknownEnum { field, value }),
                    $(v1::$wire::$value => Ok(Self::$value),)+
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

names! {
    /// Where a transaction is on its way.
    State from TransactionState {
        Active => "active",
        Preparing => "preparing",
        Deciding => "deciding",
        Committing => "committing",
        RollingBack => "rolling-back",
        CommittingOnePhase => "committing-one-phase",
        Ended => "ended",
    }
}

names! {
    /// How a transaction ended, or that it did not.
    Outcome from Outcome {
        Committed => "committed",
        RolledBack => "rolled-back",
        NothingToCommit => "nothing-to-commit",
        Heuristic => "heuristic",
        Undecided => "undecided",
        Unknown => "unknown",
    }
}

names! {
    /// What an operator is needed for.
    Situation from Situation {
        Undelivered => "undelivered",
        Undecided => "undecided",
        Orphan => "orphan",
        Heuristic => "heuristic",
    }
}

impl Situation {
    /// In a field that may hold none.
    fn maybe(value: i32) -> Result<Option<Self>, WireError> {
        if value == 0 { Ok(None) } else { Self::from_wire(value, "situation").map(Some) }
    }
}

/// What an action is called.
fn action_name(value: i32) -> Result<&'static str, WireError> {
    use v1::OperatorAction as A;
    Ok(match known_enum::<A>(value, "action")? {
        A::Unspecified => return Err(WireError::UnknownEnum { field: "action", value }),
        A::Retry => "retry",
        A::Pause => "pause",
        A::Resume => "resume",
        A::Rollback => "rollback",
        A::Commit => "commit",
        A::Abandon => "abandon",
        A::Acknowledge => "acknowledge",
        A::CommitOrphan => "commit-orphan",
        A::RollbackOrphan => "rollback-orphan",
        A::Retire => "retire",
        A::Rebind => "rebind",
        A::Drain => "drain",
    })
}

/// What `tx ls` shows.
#[derive(Debug, Serialize)]
pub(super) struct TransactionList {
    /// When the coordinator answered.
    pub as_of: Moment,
    /// Newest first.
    pub transactions: Vec<TransactionView>,
    /// There are more.
    pub truncated: bool,
}

/// What `tx show` shows.
#[derive(Debug, Serialize)]
pub(super) struct TransactionShown {
    /// When the coordinator answered.
    pub as_of: Moment,
    /// The transaction.
    pub transaction: TransactionView,
    /// What may be done now, and what may not.
    pub advice: Vec<AdviceView>,
    /// What was done, newest first.
    pub audit: Vec<AuditView>,
    /// Why the log cannot be read now, so that this is from the coordinator's memory alone; empty if it can.
    pub log_unavailable: String,
    /// What the databases said; empty if they were not asked.
    pub databases: Vec<DatabaseAnswer>,
}

/// One transaction.
#[derive(Debug, Serialize)]
pub(super) struct TransactionView {
    pub gtrid: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub state: State,
    pub outcome: Outcome,
    /// Whether the outcome can still change.
    pub can_change: bool,
    /// Why, where it did not commit.
    pub detail: String,
    pub began: Moment,
    /// Until there is a decision.
    pub deadline: Option<Moment>,
    pub decided: Option<Moment>,
    pub ended: Option<Moment>,
    pub situation: Option<Situation>,
    /// An operator holds its deliveries back.
    pub paused: bool,
    /// Its heuristic outcome was acknowledged.
    pub acknowledged: bool,
    /// Its span, as W3C writes it; empty if none was recorded.
    pub traceparent: String,
    pub branches: Vec<BranchView>,
}

/// One branch.
#[derive(Debug, Serialize)]
pub(super) struct BranchView {
    pub bqual: String,
    pub resource_manager: String,
    pub state: String,
    /// Empty if it has not voted, or it is not known (any more): one that is rolled back may have voted for either.
    pub vote: String,
    /// Deliveries of the decision that were tried.
    pub attempts: u32,
    /// Until the next one.
    pub next_attempt_in_ms: Option<u64>,
    pub last_error: String,
}

/// What `status` shows.
#[derive(Debug, Serialize)]
pub(super) struct StatusView {
    pub version: String,
    pub cluster: String,
    pub epoch: u32,
    pub uptime_ms: u64,
    pub transactions_in_flight: u64,
    pub undelivered: u64,
    /// Since when the first of them is known to be decided.
    pub undelivered_since: Option<Moment>,
    pub undecided: u64,
    pub orphans: u64,
    /// Null while the log cannot be read.
    pub heuristic: Option<u64>,
    /// Of these, nobody has acknowledged so many.
    pub heuristic_open: Option<u64>,
    pub draining: bool,
    pub log_behind: bool,
    /// Why no transaction may begin now; empty if one may.
    pub begins_refused: String,
    /// Why the log cannot be read now; empty if it can.
    pub log_unavailable: String,
    /// Null while the log cannot be read.
    pub log_bytes: Option<u64>,
    /// Null while the log is in PostgreSQL.
    pub log_free_bytes: Option<u64>,
    pub as_of: Moment,
    pub participants: Vec<ParticipantView>,
}

impl StatusView {
    /// How many transactions an operator may be needed for, as far as that is known.
    pub(super) fn unresolved(&self) -> u64 {
        self.undelivered + self.undecided + self.orphans + self.heuristic_open.unwrap_or(0)
    }
}

/// One resource manager.
#[derive(Debug, Serialize)]
pub(super) struct ParticipantView {
    pub resource_manager: String,
    /// How many instances are attached.
    pub sessions: u32,
    pub problem: String,
    /// Null while an instance is attached.
    pub down_since: Option<Moment>,
    pub retired: bool,
}

/// What `tx wait` learned.
#[derive(Debug, Clone, Serialize)]
pub(super) struct OutcomeView {
    pub gtrid: String,
    pub outcome: Outcome,
    pub detail: String,
    pub branches: u32,
    /// How many have still to apply the decision.
    pub branches_pending: u32,
}

impl TryFrom<v1::ListTransactionsResponse> for TransactionList {
    type Error = WireError;

    fn try_from(wire: v1::ListTransactionsResponse) -> Result<Self, WireError> {
        let transactions = wire.transactions.into_iter().map(TryInto::try_into);
        Ok(Self {
            as_of: Moment::new(wire.now_ms, "now_ms")?,
            transactions: transactions.collect::<Result<_, _>>()?,
            truncated: wire.truncated,
        })
    }
}

impl TryFrom<v1::ShowTransactionResponse> for TransactionShown {
    type Error = WireError;

    fn try_from(wire: v1::ShowTransactionResponse) -> Result<Self, WireError> {
        Ok(Self {
            as_of: Moment::new(wire.now_ms, "now_ms")?,
            transaction: required(wire.transaction, "transaction")?.try_into()?,
            advice: wire.advice.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            audit: wire.audit.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            log_unavailable: wire.log_unavailable,
            databases: Vec::new(),
        })
    }
}

impl TryFrom<v1::TransactionInfo> for TransactionView {
    type Error = WireError;

    fn try_from(wire: v1::TransactionInfo) -> Result<Self, WireError> {
        Ok(Self {
            gtrid: wire.gtrid,
            name: wire.name,
            labels: wire.labels.into_iter().collect(),
            state: State::from_wire(wire.state, "state")?,
            outcome: Outcome::from_wire(wire.outcome, "outcome")?,
            can_change: wire.can_change,
            detail: wire.detail,
            began: Moment::new(wire.began_ms, "began_ms")?,
            deadline: Moment::maybe(wire.deadline_ms, "deadline_ms")?,
            decided: Moment::maybe(wire.decided_ms, "decided_ms")?,
            ended: Moment::maybe(wire.ended_ms, "ended_ms")?,
            situation: Situation::maybe(wire.situation)?,
            paused: wire.paused,
            acknowledged: wire.acknowledged,
            traceparent: wire.traceparent,
            branches: wire.branches.into_iter().map(Into::into).collect(),
        })
    }
}

impl From<v1::BranchInfo> for BranchView {
    fn from(wire: v1::BranchInfo) -> Self {
        Self {
            bqual: wire.bqual,
            resource_manager: wire.resource_manager,
            state: wire.state,
            vote: wire.vote,
            attempts: wire.attempts,
            next_attempt_in_ms: Some(wire.next_attempt_in_ms).filter(|ms| *ms != 0),
            last_error: wire.last_error,
        }
    }
}

impl TryFrom<v1::StatusResponse> for StatusView {
    type Error = WireError;

    fn try_from(wire: v1::StatusResponse) -> Result<Self, WireError> {
        let participants = wire.participants.into_iter().map(TryInto::try_into);
        let of_log = |number| wire.log_unavailable.is_empty().then_some(number);
        Ok(Self {
            version: wire.version,
            cluster: wire.cluster,
            epoch: wire.epoch,
            uptime_ms: wire.uptime_ms,
            transactions_in_flight: wire.transactions_in_flight,
            undelivered: wire.undelivered,
            undelivered_since: Moment::maybe(wire.undelivered_since_ms, "undelivered_since_ms")?,
            undecided: wire.undecided,
            orphans: wire.orphans,
            heuristic: of_log(wire.heuristic),
            heuristic_open: of_log(wire.heuristic_open),
            draining: wire.draining,
            log_behind: wire.log_behind,
            begins_refused: wire.begins_refused,
            log_bytes: of_log(wire.log_bytes),
            log_unavailable: wire.log_unavailable,
            log_free_bytes: wire.log_free_bytes,
            as_of: Moment::new(wire.now_ms, "now_ms")?,
            participants: participants.collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<v1::ParticipantInfo> for ParticipantView {
    type Error = WireError;

    fn try_from(wire: v1::ParticipantInfo) -> Result<Self, WireError> {
        Ok(Self {
            resource_manager: wire.resource_manager,
            sessions: wire.sessions,
            problem: wire.problem,
            down_since: Moment::maybe(wire.down_since_ms, "down_since_ms")?,
            retired: wire.retired,
        })
    }
}

impl OutcomeView {
    /// The answer to an inquiry for `gtrid`.
    pub(super) fn new(gtrid: &str, wire: v1::InquireResponse) -> Result<Self, WireError> {
        Ok(Self {
            gtrid: gtrid.to_owned(),
            outcome: Outcome::from_wire(wire.outcome, "outcome")?,
            detail: wire.detail,
            branches: wire.branches,
            branches_pending: wire.branches_pending,
        })
    }
}
