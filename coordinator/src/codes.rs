//! What a coordinator refuses or ends with, and what keeps a command from asking one, has a code, and a page in `docs/errors` that says
//! what happened, why, and what to do.
//!
//! A code is a promise: its number is never given to another error. The first digit tells the kind: 1 a coordinator that does not
//! start or cannot go on, 2 what was asked for is malformed, 3 the coordinator could not be asked or does not know, 4 refused, 5 a
//! participant that is not served, 6 a command that could not do its own part on this machine.

use std::fmt;

use crate::protocol::situation::Forbidden;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)+) => {
        /// The code of an error. Its text is `LS` and four digits.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[$doc])* $name = $number,)+
        }

        impl Code {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)+];
        }
    };
}

codes! {
    /// The address is taken, or not this machine's.
    CannotListen = 101,
    /// Another coordinator has the data directory.
    DataDirInUse = 102,
    /// A newer version wrote the log.
    NewerLog = 103,
    /// Too little room to begin.
    NoRoom = 104,
    /// The log is not what was written.
    LogDamaged = 105,
    /// The log's file system or settings lose what was written.
    NotDurable = 106,
    /// The log or its directory cannot be opened.
    CannotOpenLog = 107,
    /// A forced write failed, or may have.
    LogFailed = 108,
    /// A part of the coordinator has ended.
    Bug = 109,
    /// A second signal came while it was draining.
    EndedAtOnce = 110,
    /// The database has no decision log of this version.
    NoSchema = 111,
    /// This node's clock is far off that of its log.
    LogClock = 112,
    /// Some of the command line is wrong.
    WrongCommandLine = 201,
    /// Some of the configuration is wrong.
    WrongConfiguration = 202,
    /// Several transactions begin so.
    Ambiguous = 203,
    /// An identifier that is none.
    MalformedId = 204,
    /// A value out of its limits.
    OutOfLimits = 205,
    /// An address of a coordinator that is none.
    WrongAddress = 206,
    /// A command for a shared log, and an embedded one was named.
    SharedLogOnly = 207,
    /// A command for an embedded log, and a shared one was named.
    EmbeddedLogOnly = 208,
    /// Nobody listens there.
    NothingAnswers = 301,
    /// No answer in time.
    NoAnswerInTime = 302,
    /// Something answers that is no coordinator.
    NoCoordinator = 303,
    /// An answer that this version does not understand.
    StrangeAnswer = 304,
    /// No such transaction.
    NotFound = 305,
    /// No such resource manager.
    NoSuchParticipant = 306,
    /// The decision log cannot be asked now.
    LogUnavailable = 307,
    /// The coordinator is stopping.
    Stopping = 308,
    /// It belongs to another cluster.
    ForeignCluster = 309,
    /// As many transactions are in flight as may be.
    TransactionLimit = 401,
    /// Nothing new is begun.
    Draining = 402,
    /// The log has lost decisions that participants have seen.
    LogBehind = 403,
    /// Too little room to go on beginning.
    DiskFull = 404,
    /// The clock stands before what was pruned.
    ClockBehind = 405,
    /// An action without a reason.
    NoReason = 410,
    /// A dangerous action that was not confirmed.
    NotConfirmed = 411,
    /// See [`Forbidden::CommitIsDurable`].
    CommitIsDurable = 412,
    /// See [`Forbidden::OnePhaseUnderWay`].
    OnePhaseUnderWay = 413,
    /// See [`Forbidden::RollbackIsDecided`].
    RollbackIsDecided = 414,
    /// See [`Forbidden::ForcedCommit`].
    ForcedCommit = 415,
    /// See [`Forbidden::DecisionUnderWay`].
    DecisionUnderWay = 416,
    /// See [`Forbidden::NotDecided`].
    NotDecided = 417,
    /// See [`Forbidden::Ended`].
    Ended = 418,
    /// See [`Forbidden::NotHeuristic`].
    NotHeuristic = 419,
    /// See [`Forbidden::AcknowledgedBefore`].
    AcknowledgedBefore = 420,
    /// See [`Forbidden::HeuristicIsFinal`].
    HeuristicIsFinal = 421,
    /// See [`Forbidden::NoOrphan`].
    NoOrphan = 422,
    /// See [`Forbidden::IsOrphan`].
    IsOrphan = 423,
    /// See [`Forbidden::CommittedElsewhere`].
    CommittedElsewhere = 424,
    /// See [`Forbidden::CommitNotProved`].
    CommitNotProved = 425,
    /// See [`Forbidden::NotEveryoneAnswered`].
    NotEveryoneAnswered = 426,
    /// See [`Forbidden::OtherCluster`].
    OtherCluster = 427,
    /// See [`Forbidden::OtherCoordinator`].
    OtherCoordinator = 428,
    /// No branch waits there.
    NoBranchToAbandon = 429,
    /// It is attached.
    StillAttached = 430,
    /// Its database has not moved.
    NothingToRebind = 431,
    /// The participants were told, and it is still prepared.
    OrphanNotEnded = 432,
    /// See [`Forbidden::NotOnRecord`].
    NotOnRecord = 433,
    /// A node may be running.
    NodesRunning = 434,
    /// The log is not one that was restored.
    NotRestored = 435,
    /// No numbers are left for epochs.
    EpochsUsedUp = 436,
    /// What attached does not speak the protocol.
    NotAParticipant = 501,
    /// It speaks another version of it.
    ProtocolVersion = 502,
    /// Its clock is far off.
    ClockSkew = 503,
    /// Another database has that name.
    IdentityMismatch = 504,
    /// The database was moved or copied.
    LocationChanged = 505,
    /// An old primary.
    StaleTimeline = 506,
    /// An operator has said that it is gone for good.
    Retired = 507,
    /// The database is not set up to take part.
    Unfit = 508,
    /// Standard output cannot be written.
    OutputFailed = 601,
    /// The operating system gives the process too little.
    SystemRefuses = 602,
    /// There is no decision log in the directory.
    NoLogThere = 603,
    /// A backup was not made.
    BackupFailed = 604,
    /// A database could not be asked.
    DatabaseUnreachable = 605,
}

impl Code {
    /// The number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Why an action is refused.
    #[must_use]
    pub const fn of_forbidden(forbidden: Forbidden) -> Self {
        match forbidden {
            Forbidden::CommitIsDurable => Self::CommitIsDurable,
            Forbidden::OnePhaseUnderWay => Self::OnePhaseUnderWay,
            Forbidden::RollbackIsDecided => Self::RollbackIsDecided,
            Forbidden::ForcedCommit => Self::ForcedCommit,
            Forbidden::DecisionUnderWay => Self::DecisionUnderWay,
            Forbidden::NotDecided => Self::NotDecided,
            Forbidden::Ended => Self::Ended,
            Forbidden::NotHeuristic => Self::NotHeuristic,
            Forbidden::NotOnRecord => Self::NotOnRecord,
            Forbidden::AcknowledgedBefore => Self::AcknowledgedBefore,
            Forbidden::HeuristicIsFinal => Self::HeuristicIsFinal,
            Forbidden::NoOrphan => Self::NoOrphan,
            Forbidden::IsOrphan => Self::IsOrphan,
            Forbidden::CommittedElsewhere => Self::CommittedElsewhere,
            Forbidden::CommitNotProved => Self::CommitNotProved,
            Forbidden::NotEveryoneAnswered => Self::NotEveryoneAnswered,
            Forbidden::OtherCluster => Self::OtherCluster,
            Forbidden::OtherCoordinator => Self::OtherCoordinator,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LS{:04}", self.number())
    }
}
