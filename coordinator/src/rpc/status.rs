//! The one table from errors to gRPC statuses.
//!
//! Each status carries a `google.rpc.ErrorInfo` with the domain `lockstep` and a reason for programs; the message is for people.

use lockstep_proto::wire::WireError;
use lockstep_proto::{ClusterId, Gtrid, ParseIdError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::engine::handle::{BeginError, EngineError};
use crate::engine::shell::Stopped;
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

/// The status code and the reason of an error.
fn row(error: &RequestError) -> (Code, &'static str) {
    match error {
        RequestError::Id(cause) => match cause.kind {
            "gtrid" => (Code::InvalidArgument, "MALFORMED_GTRID"),
            _ => (Code::InvalidArgument, "MALFORMED_ID"),
        },
        RequestError::ForeignCluster { .. } => (Code::FailedPrecondition, "FOREIGN_CLUSTER"),
        RequestError::Timeout(_) => (Code::InvalidArgument, "INVALID_TIMEOUT"),
        RequestError::Name(_) => (Code::InvalidArgument, "INVALID_NAME"),
        RequestError::Labels(_) | RequestError::Label(_) => (Code::InvalidArgument, "INVALID_LABELS"),
        RequestError::Field(_) => (Code::InvalidArgument, "INVALID_FIELD"),
        RequestError::AlreadyCommitted(_) => (Code::FailedPrecondition, "ALREADY_COMMITTED"),
        RequestError::NotFound(_) => (Code::NotFound, "NOT_FOUND"),
        RequestError::Ambiguous { .. } => (Code::InvalidArgument, "AMBIGUOUS"),
        RequestError::Begin(cause) => match cause {
            BeginError::Full(_) => (Code::ResourceExhausted, "TRANSACTION_LIMIT"),
            BeginError::Draining => (Code::Unavailable, "DRAINING"),
            BeginError::Behind => (Code::FailedPrecondition, "LOG_BEHIND"),
            BeginError::DiskFull(_) => (Code::ResourceExhausted, "DISK_FULL"),
            BeginError::ClockBehind => (Code::FailedPrecondition, "CLOCK_BEHIND"),
            BeginError::Stopped(_) => (Code::Unavailable, "UNAVAILABLE"),
        },
        RequestError::Engine(EngineError::Log(_) | EngineError::NotDurable(_)) => {
            (Code::Unavailable, "LOG_UNAVAILABLE")
        }
        RequestError::Engine(EngineError::Stopped(_)) | RequestError::Stopped(_) => {
            (Code::Unavailable, "UNAVAILABLE")
        }
    }
}

/// The status code and the reason of a refused participant.
fn attach_row(error: &AttachError) -> (Code, &'static str) {
    match error {
        AttachError::NotAHello(_) => (Code::InvalidArgument, "NOT_A_HELLO"),
        AttachError::Malformed(WireError::Id(_)) => (Code::InvalidArgument, "MALFORMED_ID"),
        AttachError::Malformed(_) => (Code::InvalidArgument, "INVALID_FIELD"),
        AttachError::ProtocolVersion(_) => (Code::FailedPrecondition, "PROTOCOL_VERSION"),
        AttachError::ForeignCluster { .. } => (Code::FailedPrecondition, "FOREIGN_CLUSTER"),
        AttachError::ClockSkew { .. } => (Code::FailedPrecondition, "CLOCK_SKEW"),
        AttachError::Identity { .. } => (Code::FailedPrecondition, "IDENTITY_MISMATCH"),
        AttachError::Location { .. } => (Code::FailedPrecondition, "LOCATION_CHANGED"),
        AttachError::Timeline { .. } => (Code::FailedPrecondition, "STALE_TIMELINE"),
        AttachError::Log(_) | AttachError::Read(_) => (Code::Unavailable, "LOG_UNAVAILABLE"),
    }
}

fn status(code: Code, reason: &str, message: String) -> Status {
    let info = ErrorDetails::with_error_info(reason, DOMAIN, std::collections::HashMap::new());
    Status::with_error_details(code, message, info)
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        let (code, reason) = row(&error);
        status(code, reason, error.to_string())
    }
}

impl From<AttachError> for Status {
    fn from(error: AttachError) -> Self {
        let (code, reason) = attach_row(&error);
        status(code, reason, error.to_string())
    }
}
