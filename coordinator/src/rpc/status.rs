//! The one table from errors to gRPC statuses.
//!
//! Each status carries a `google.rpc.ErrorInfo` with the domain `lockstep` and a reason for programs; the message is for people.

use lockstep_proto::wire::WireError;
use lockstep_proto::{ClusterId, Gtrid, ParseIdError, ResourceManagerName};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::codes::Code as ErrorCode;
use crate::decision_log::AppendError;
use crate::engine::handle::{BeginError, EngineError};
use crate::engine::shell::Stopped;
use crate::protocol::outcome::Outcome;
use crate::protocol::situation::Forbidden;
use crate::sessions::attach::AttachError;

/// The `domain` of every `ErrorInfo`.
pub const DOMAIN: &str = "lockstep";

/// What is wrong with a request, or keeps it from being answered. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// An identifier that is none.
    #[error(transparent)]
    Id(#[from] ParseIdError),
    /// A transaction of another cluster.
    #[error(
        "the transaction belongs to cluster {theirs}, this is cluster {ours}: ask the coordinator it was begun at"
    )]
    ForeignCluster {
        /// Its cluster.
        theirs: String,
        /// This one.
        ours: ClusterId,
    },
    /// A timeout out of its limits.
    #[error("a timeout of {0} ms is out of its limits, which are 100 ms to 24 h")]
    Timeout(u64),
    /// A name that is too long.
    #[error("a name of {0} bytes is too long: at most 64 are allowed")]
    Name(usize),
    /// Too many labels.
    #[error("{0} labels are too many: at most 16 are allowed")]
    Labels(usize),
    /// A label that is too long.
    #[error("the label {0:?} is too long: its key and its value may have 256 bytes each")]
    Label(String),
    /// A field with a value that means nothing.
    #[error(transparent)]
    Field(#[from] WireError),
    /// A rollback of what has committed.
    #[error(
        "transaction {0} has committed, which cannot change any more: undo its effects with a new transaction"
    )]
    AlreadyCommitted(Gtrid),
    /// No such transaction is known.
    #[error(
        "no transaction begins with {0:?} here: it may have ended and be pruned, or be of another cluster"
    )]
    NotFound(String),
    /// Several are.
    #[error("{prefix:?} is the beginning of several transactions: {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// Some of those that begin so.
        candidates: Vec<String>,
    },
    /// No resource manager of this name has ever attached.
    #[error("no resource manager {0:?} has ever attached here")]
    NoSuchParticipant(String),
    /// An action that is not safe now.
    #[error("refused: {forbidden} ({what}: {context})")]
    Forbidden {
        /// The transaction.
        what: String,
        /// How its branches stand.
        context: String,
        /// Why.
        forbidden: Forbidden,
    },
    /// Nothing to give up.
    #[error("transaction {gtrid} has no branch in {name} that waits for its decision")]
    NoBranchToAbandon {
        /// The transaction.
        gtrid: Gtrid,
        /// The resource manager.
        name: ResourceManagerName,
    },
    /// An action without a reason.
    #[error("no reason was given, and everything that is done by hand is put on record with one")]
    NoReason,
    /// It ended between the look at it and the action.
    #[error("transaction {0} has ended in between")]
    EndedBefore(Gtrid),
    /// None of its branches could be told, or given up.
    #[error("transaction {0} has no branch that waits for its decision, or its deliveries are held back")]
    NothingWaits(Gtrid),
    /// An orphan's rollback without a word on who may have taken part.
    #[error("transaction {0} is rolled back only if everyone was asked, and it was not said who there is")]
    NotAllNamed(Gtrid),
    /// Some resource manager was not asked, because this log has never met it.
    #[error(
        "refused: {names} was not asked what it holds of {gtrid}, and may have committed: this decision log has never met it"
    )]
    NeverMet {
        /// The orphan.
        gtrid: Gtrid,
        /// Who was not asked.
        names: String,
    },
    /// A rollback that did not come about.
    #[error("transaction {gtrid} was not rolled back: {}", if outcome.is_some() { "its outcome is another one" } else { "it is not decided yet" })]
    NotRolledBack {
        /// The transaction.
        gtrid: Gtrid,
        /// Its outcome, if that is known.
        outcome: Option<Outcome>,
    },
    /// An action that is on record, and failed.
    #[error("it is on record as audit {audit_id}, and failed ({noted}): {why}")]
    NotDone {
        /// The number of its record.
        audit_id: u64,
        /// Whether its failure is on record.
        noted: String,
        /// How it failed.
        why: Box<RequestError>,
    },
    /// A dangerous action that was not confirmed.
    #[error("{action} cannot be taken back, and was not confirmed for {confirm}")]
    NotConfirmed {
        /// What was asked for.
        action: &'static str,
        /// What has to be confirmed.
        confirm: String,
    },
    /// A text that is too long.
    #[error("the field {0} is too long: at most 1,024 bytes are kept")]
    TooLong(&'static str),
    /// The record could not be made, so that nothing was done.
    #[error("it was not carried out, because it is not known to be on record: {0}")]
    NotRecorded(AppendError),
    /// It is attached.
    #[error("{name} has {attached} instances attached, so that it is neither gone nor moved")]
    StillAttached {
        /// Which.
        name: ResourceManagerName,
        /// How many.
        attached: usize,
    },
    /// It was retired before.
    #[error("{0} was retired before")]
    RetiredBefore(ResourceManagerName),
    /// Its database has not moved.
    #[error("{0} was not refused for where its database is, so that there is nothing to rebind")]
    NothingToRebind(ResourceManagerName),
    /// The participants were told, and a branch is still prepared.
    #[error(
        "the participants were told how to end {0}, and a branch of it is still prepared: look with `lockstep orphans scan`"
    )]
    OrphanNotEnded(Gtrid),
    /// It was not begun.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// The engine cannot answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The process is ending.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl RequestError {
    /// What to do about it, where the sentence does not say so.
    fn remedy(&self) -> String {
        match self {
            Self::Forbidden { what, forbidden, .. } => forbidden.instead().replace("ID", what),
            Self::NotAllNamed(_) => {
                "look at the plan with --dry-run; then name every resource manager that may have taken part: --all NAME,NAME"
                    .to_owned()
            }
            Self::NeverMet { names, .. } => format!("attach an instance of each of {names} first, and ask again"),
            Self::NotDone { why, .. } => why.remedy(),
            Self::EndedBefore(gtrid) | Self::NothingWaits(gtrid) | Self::NotRolledBack { gtrid, .. } => {
                format!("look at it: `lockstep tx show {gtrid}` lists what can be done now")
            }
            Self::NoReason => "say why: --reason TEXT".to_owned(),
            Self::NotConfirmed { confirm, .. } => {
                format!("look at the plan with --dry-run; then add what it prints: --confirm {confirm}")
            }
            Self::NoBranchToAbandon { gtrid, .. } => format!("`lockstep tx show {gtrid}` lists its branches"),
            Self::StillAttached { name, .. } => {
                format!("stop its services first; `lockstep participants show {name}` lists its instances")
            }
            Self::RetiredBefore(_) => "`lockstep audit ls` tells who did, when and why".to_owned(),
            Self::NothingToRebind(name) => {
                format!(
                    "`lockstep participants show {name}` says why its newest attach was refused, if it was"
                )
            }
            Self::NotFound(_) => {
                "`lockstep tx ls --all` lists what is there; `lockstep orphans scan` what is prepared and belongs to nobody"
                    .to_owned()
            }
            Self::NoSuchParticipant(_) => "`lockstep participants ls` lists those that have".to_owned(),
            Self::NotRecorded(_) => {
                "`lockstep health` says whether the decision log answers; then try again".to_owned()
            }
            Self::Engine(EngineError::Log(_) | EngineError::NotDurable(_)) => {
                "`lockstep health` says whether the decision log answers; what is live can be told again when it does".to_owned()
            }
            Self::Ambiguous { .. } => "name more of it: `lockstep tx ls` prints whole ids".to_owned(),
            Self::AlreadyCommitted(gtrid) => format!("look at it: `lockstep tx show {gtrid}`"),
            Self::OrphanNotEnded(_) => {
                "`lockstep orphans scan` lists what is still prepared; then ask again: `lockstep orphans resolve ID --dry-run`"
                    .to_owned()
            }
            Self::Id(_)
            | Self::ForeignCluster { .. }
            | Self::Timeout(_)
            | Self::Name(_)
            | Self::Labels(_)
            | Self::Label(_)
            | Self::Field(_)
            | Self::TooLong(_)
            | Self::Begin(_)
            | Self::Engine(EngineError::Stopped(_))
            | Self::Stopped(_) => String::new(),
        }
    }
}

/// The status, the reason for programs and the code for people of an error.
fn row(error: &RequestError) -> (Code, &'static str, ErrorCode) {
    match error {
        RequestError::Id(cause) => match cause.kind {
            "gtrid" => (Code::InvalidArgument, "MALFORMED_GTRID", ErrorCode::MalformedId),
            _ => (Code::InvalidArgument, "MALFORMED_ID", ErrorCode::MalformedId),
        },
        RequestError::ForeignCluster { .. } => {
            (Code::FailedPrecondition, "FOREIGN_CLUSTER", ErrorCode::ForeignCluster)
        }
        RequestError::Timeout(_) => (Code::InvalidArgument, "INVALID_TIMEOUT", ErrorCode::OutOfLimits),
        RequestError::Name(_) => (Code::InvalidArgument, "INVALID_NAME", ErrorCode::OutOfLimits),
        RequestError::Labels(_) | RequestError::Label(_) => {
            (Code::InvalidArgument, "INVALID_LABELS", ErrorCode::OutOfLimits)
        }
        RequestError::Field(_) => (Code::InvalidArgument, "INVALID_FIELD", ErrorCode::OutOfLimits),
        RequestError::TooLong(_) => (Code::InvalidArgument, "TOO_LONG", ErrorCode::OutOfLimits),
        RequestError::AlreadyCommitted(_) => {
            (Code::FailedPrecondition, "ALREADY_COMMITTED", ErrorCode::CommitIsDurable)
        }
        RequestError::NotFound(_) => (Code::NotFound, "NOT_FOUND", ErrorCode::NotFound),
        RequestError::NoSuchParticipant(_) => {
            (Code::NotFound, "NO_SUCH_PARTICIPANT", ErrorCode::NoSuchParticipant)
        }
        RequestError::Ambiguous { .. } => (Code::InvalidArgument, "AMBIGUOUS", ErrorCode::Ambiguous),
        RequestError::Forbidden { forbidden, .. } => {
            (Code::FailedPrecondition, "UNSAFE", ErrorCode::of_forbidden(*forbidden))
        }
        RequestError::NoBranchToAbandon { .. } => {
            (Code::FailedPrecondition, "NO_SUCH_BRANCH", ErrorCode::NoBranchToAbandon)
        }
        RequestError::NotDone { why, .. } => row(why),
        RequestError::NotRolledBack { outcome, .. } => not_rolled_back(*outcome),
        RequestError::NotAllNamed(_) => (Code::FailedPrecondition, "NOT_ALL_NAMED", ErrorCode::NotConfirmed),
        RequestError::NeverMet { .. } => {
            (Code::FailedPrecondition, "NEVER_MET", ErrorCode::NotEveryoneAnswered)
        }
        RequestError::EndedBefore(_) => (Code::FailedPrecondition, "ENDED", ErrorCode::Ended),
        RequestError::NothingWaits(_) => {
            (Code::FailedPrecondition, "NO_SUCH_BRANCH", ErrorCode::NoBranchToAbandon)
        }
        RequestError::NoReason => (Code::InvalidArgument, "NO_REASON", ErrorCode::NoReason),
        RequestError::NotConfirmed { .. } => {
            (Code::FailedPrecondition, "NOT_CONFIRMED", ErrorCode::NotConfirmed)
        }
        RequestError::NotRecorded(_) => (Code::Unavailable, "LOG_UNAVAILABLE", ErrorCode::LogUnavailable),
        RequestError::StillAttached { .. } => {
            (Code::FailedPrecondition, "STILL_ATTACHED", ErrorCode::StillAttached)
        }
        RequestError::RetiredBefore(_) => (Code::FailedPrecondition, "RETIRED", ErrorCode::Retired),
        RequestError::NothingToRebind(_) => {
            (Code::FailedPrecondition, "NOTHING_TO_REBIND", ErrorCode::NothingToRebind)
        }
        RequestError::OrphanNotEnded(_) => (Code::Aborted, "ORPHAN_NOT_ENDED", ErrorCode::OrphanNotEnded),
        RequestError::Begin(cause) => begin_row(cause),
        RequestError::Engine(EngineError::Log(_) | EngineError::NotDurable(_)) => {
            (Code::Unavailable, "LOG_UNAVAILABLE", ErrorCode::LogUnavailable)
        }
        RequestError::Engine(EngineError::Stopped(_)) | RequestError::Stopped(_) => {
            (Code::Unavailable, "UNAVAILABLE", ErrorCode::Stopping)
        }
    }
}

/// The same of a transaction that was not begun.
fn begin_row(error: &BeginError) -> (Code, &'static str, ErrorCode) {
    match error {
        BeginError::Full(_) => (Code::ResourceExhausted, "TRANSACTION_LIMIT", ErrorCode::TransactionLimit),
        BeginError::Draining => (Code::Unavailable, "DRAINING", ErrorCode::Draining),
        BeginError::Behind => (Code::FailedPrecondition, "LOG_BEHIND", ErrorCode::LogBehind),
        BeginError::DiskFull(_) => (Code::ResourceExhausted, "DISK_FULL", ErrorCode::DiskFull),
        BeginError::ClockBehind => (Code::FailedPrecondition, "CLOCK_BEHIND", ErrorCode::ClockBehind),
        BeginError::Stopped(_) => (Code::Unavailable, "UNAVAILABLE", ErrorCode::Stopping),
    }
}

/// The same of a rollback that did not come about.
fn not_rolled_back(outcome: Option<Outcome>) -> (Code, &'static str, ErrorCode) {
    match outcome {
        Some(Outcome::Heuristic(_)) => (Code::FailedPrecondition, "HEURISTIC", ErrorCode::HeuristicIsFinal),
        Some(Outcome::Committed | Outcome::RolledBack | Outcome::NothingToCommit | Outcome::Unknown)
        | None => (Code::FailedPrecondition, "NOT_DECIDED", ErrorCode::DecisionUnderWay),
    }
}

/// The same of a refused participant.
fn attach_row(error: &AttachError) -> (Code, &'static str, ErrorCode) {
    match error {
        AttachError::NotAHello(_) => (Code::InvalidArgument, "NOT_A_HELLO", ErrorCode::NotAParticipant),
        AttachError::Malformed(WireError::Id(_)) => {
            (Code::InvalidArgument, "MALFORMED_ID", ErrorCode::NotAParticipant)
        }
        AttachError::Malformed(_) => (Code::InvalidArgument, "INVALID_FIELD", ErrorCode::NotAParticipant),
        AttachError::ProtocolVersion(_) => {
            (Code::FailedPrecondition, "PROTOCOL_VERSION", ErrorCode::ProtocolVersion)
        }
        AttachError::ForeignCluster { .. } => {
            (Code::FailedPrecondition, "FOREIGN_CLUSTER", ErrorCode::ForeignCluster)
        }
        AttachError::ClockSkew { .. } => (Code::FailedPrecondition, "CLOCK_SKEW", ErrorCode::ClockSkew),
        AttachError::Identity { .. } => {
            (Code::FailedPrecondition, "IDENTITY_MISMATCH", ErrorCode::IdentityMismatch)
        }
        AttachError::Location { .. } => {
            (Code::FailedPrecondition, "LOCATION_CHANGED", ErrorCode::LocationChanged)
        }
        AttachError::Retired(_) => (Code::FailedPrecondition, "RETIRED", ErrorCode::Retired),
        AttachError::Timeline { .. } => {
            (Code::FailedPrecondition, "STALE_TIMELINE", ErrorCode::StaleTimeline)
        }
        AttachError::Log(_) | AttachError::Read(_) => {
            (Code::Unavailable, "LOG_UNAVAILABLE", ErrorCode::LogUnavailable)
        }
    }
}

/// The key of the metadata that has the code, such as `LS0412`.
pub const CODE_KEY: &str = "code";
/// The key of the metadata that says what to do.
pub const REMEDY_KEY: &str = "remedy";

fn status(
    (code, reason, number): (Code, &'static str, ErrorCode),
    message: String,
    remedy: String,
) -> Status {
    let mut metadata = std::collections::HashMap::from([(CODE_KEY.to_owned(), number.to_string())]);
    if !remedy.is_empty() {
        metadata.insert(REMEDY_KEY.to_owned(), remedy);
    }
    let info = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, message, info)
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        status(row(&error), error.to_string(), error.remedy())
    }
}

impl From<AttachError> for Status {
    fn from(error: AttachError) -> Self {
        status(attach_row(&error), error.to_string(), String::new())
    }
}
