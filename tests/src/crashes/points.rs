//! The crash points, written down by hand: who dies there, and what must come of it.
//!
//! The four columns of a row are the four ways that a transaction can take past a point: over two phases to a commit and to
//! a rollback, and in one phase (a single branch) to a commit and to a rollback. What is claimed of a commit is the protocol
//! in a nutshell: before its decision is durable it must not happen, afterwards it must.

use Reach::{First, No, Yes};

use crate::harness::books::Database;
use crate::trial::checker::Expected;

/// Which process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// The coordinator.
    Coordinator,
    /// A bank: one that takes part.
    Participant,
    /// Whoever began the transaction.
    Client,
}

/// When a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// While transactions run.
    Work,
    /// When it starts again after another crash, which left something to recover: at the point of [`first_crash`].
    Recovery,
    /// The same, after a crash at these points, by [`Way::ALL`].
    RecoveryFrom([&'static str; 4]),
}

/// Whether a way leads past a point, and what becomes of the transaction that is under way when the process dies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It does, and this is what must come.
    Yes(Expected),
    /// It does, and this must come of the first transaction that gets there. Later passes may be about an earlier one.
    First(Expected),
    /// It does not, and why.
    No(&'static str),
}

/// Which circumstances a point needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// None.
    Nothing,
    /// Records and evidence that are forgotten after a second.
    ShortRetention,
    /// A decision log that grows by megabytes.
    Growth,
    /// Somebody who changes the schema of the database while its bank is down, so that a branch that was prepared cannot be written
    /// again.
    Meddling,
    /// An operator who does something meanwhile. When the process has died there, what was done is on record, or it is not.
    Operator {
        /// Which of the two.
        on_record: bool,
    },
}

/// The ways that a transaction can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Two branches, to a commit.
    Commit,
    /// Two branches, to a rollback.
    Rollback,
    /// One branch, to a commit.
    OnePhaseCommit,
    /// One branch, to a rollback.
    OnePhaseRollback,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Commit, Self::Rollback, Self::OnePhaseCommit, Self::OnePhaseRollback];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Rollback => "rollback",
            Self::OnePhaseCommit => "one-phase-commit",
            Self::OnePhaseRollback => "one-phase-rollback",
        }
    }

    /// How many banks take part.
    #[must_use]
    pub const fn banks(self) -> usize {
        match self {
            Self::Commit | Self::Rollback => 2,
            Self::OnePhaseCommit | Self::OnePhaseRollback => 1,
        }
    }

    /// Whether transactions on this way are meant to commit.
    #[must_use]
    pub const fn commits(self) -> bool {
        match self {
            Self::Commit | Self::OnePhaseCommit => true,
            Self::Rollback | Self::OnePhaseRollback => false,
        }
    }
}

/// The point of the crash that leaves something to recover, for those points that are passed in a recovery.
#[must_use]
pub const fn first_crash(victim: Victim, way: Way) -> &'static str {
    match (victim, way) {
        // The decision is durable, and nobody has heard of it.
        (Victim::Coordinator | Victim::Client, Way::Commit) => "log-before-answer",
        // One branch is prepared, and the other one refuses.
        (Victim::Coordinator | Victim::Client, Way::Rollback) => "coordinator-vote-received",
        // The intent is durable and the branch has committed, which only its evidence knows.
        (Victim::Coordinator | Victim::Client, Way::OnePhaseCommit) => "coordinator-acknowledge-received",
        // The intent is durable, and the branch goes with the session.
        (Victim::Coordinator | Victim::Client, Way::OnePhaseRollback) => "log-before-answer",
        // Prepared, and about to commit.
        (Victim::Participant, Way::Commit) => "sdk-decision-received",
        // Prepared, and nobody knows.
        (Victim::Participant, Way::Rollback) => "sdk-before-vote",
        // Committed, and nobody knows.
        (Victim::Participant, Way::OnePhaseCommit) => "sdk-after-commit-one-phase",
        // Told to commit by itself, and lost before it could.
        (Victim::Participant, Way::OnePhaseRollback) => "sdk-commit-one-phase-received",
    }
}

/// Where the coordinator's decision log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Log {
    /// In its own directory.
    Embedded,
    /// In PostgreSQL.
    Shared,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// Its name in the source.
    pub name: &'static str,
    /// Who dies there.
    pub victim: Victim,
    /// The only kind of database that has it, if there is only one.
    pub only_in: Option<Database>,
    /// The only kind of log that has it, if there is only one.
    pub only_with: Option<Log>,
    /// When.
    pub moment: Moment,
    /// What it needs.
    pub needs: Needs,
    /// By [`Way::ALL`].
    reach: [Reach; 4],
    /// Why only SQLite has it on the way to a rollback, where that is so.
    not_in_servers_on_rollback: Option<&'static str>,
}

impl Point {
    /// Whether this way leads past it, and to what.
    #[must_use]
    pub fn reach(&self, way: Way, database: Database) -> Reach {
        let in_server = matches!(database, Database::Postgres | Database::MariaDb);
        match self.not_in_servers_on_rollback {
            Some(why) if in_server && way == Way::Rollback => No(why),
            Some(_) | None => self.reach[way as usize],
        }
    }

    const fn new(name: &'static str, victim: Victim, reach: [Reach; 4]) -> Self {
        Self {
            name,
            victim,
            only_in: None,
            only_with: None,
            moment: Moment::Work,
            needs: Needs::Nothing,
            reach,
            not_in_servers_on_rollback: None,
        }
    }

    const fn in_recovery_from(mut self, points: [&'static str; 4]) -> Self {
        self.moment = Moment::RecoveryFrom(points);
        self
    }

    const fn in_recovery(mut self) -> Self {
        self.moment = Moment::Recovery;
        self
    }

    const fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    const fn not_in_servers_on_rollback(mut self, why: &'static str) -> Self {
        self.not_in_servers_on_rollback = Some(why);
        self
    }

    const fn only_in(mut self, database: Database) -> Self {
        self.only_in = Some(database);
        self
    }

    const fn only_with(mut self, log: Log) -> Self {
        self.only_with = Some(log);
        self
    }
}

const fn coordinator(name: &'static str, reach: [Reach; 4]) -> Point {
    Point::new(name, Victim::Coordinator, reach)
}

const fn embedded(name: &'static str, reach: [Reach; 4]) -> Point {
    coordinator(name, reach).only_with(Log::Embedded)
}

const fn shared(name: &'static str, reach: [Reach; 4]) -> Point {
    coordinator(name, reach).only_with(Log::Shared)
}

const fn participant(name: &'static str, reach: [Reach; 4]) -> Point {
    Point::new(name, Victim::Participant, reach)
}

const fn sqlite(name: &'static str, reach: [Reach; 4]) -> Point {
    participant(name, reach).only_in(Database::Sqlite)
}

const fn postgres(name: &'static str, reach: [Reach; 4]) -> Point {
    participant(name, reach).only_in(Database::Postgres)
}

const fn mysql(name: &'static str, reach: [Reach; 4]) -> Point {
    participant(name, reach).only_in(Database::MariaDb)
}

const fn client(name: &'static str, reach: [Reach; 4]) -> Point {
    Point::new(name, Victim::Client, reach)
}

const COMMITTED: Expected = Expected::Committed;
const ROLLED_BACK: Expected = Expected::RolledBack;
const EITHER: Expected = Expected::Either;
const HEURISTIC: Expected = Expected::Heuristic;

/// Passed on every way, before anything that decides.
const BEFORE_THE_DECISION: [Reach; 4] = [Yes(ROLLED_BACK); 4];
/// Passed on every way, when the decision, or the evidence of one phase, is durable.
const AFTER_THE_DECISION: [Reach; 4] = [Yes(COMMITTED), Yes(ROLLED_BACK), Yes(COMMITTED), Yes(ROLLED_BACK)];
/// Passed once, when processes first meet, or beside transactions; how many branches those have makes no difference.
const BESIDE: [Reach; 4] = [First(EITHER), First(ROLLED_BACK), No(SAME), No(SAME)];

const ALONE: &str = "a single branch is not prepared: it is told to commit by itself";
const IN_COMPANY: &str = "one of several branches is prepared, never told to commit by itself";
const PRESUMED: &str = "a rollback forces nothing to disk: without a record it is presumed";
const NEVER_COMMITS: &str = "a branch of a transaction that rolls back is never told to commit";
const NEVER_UNDONE: &str = "a prepared branch of a transaction that commits is never rolled back";
const NO_ROW: &str =
    "after ROLLBACK PREPARED or XA ROLLBACK there is no row of evidence that could be forgotten";
const NOTHING_LOST: &str = "a branch that cannot be written again loses nothing when it is rolled back";
const NO_FENCE: &str = "the evidence of a branch that has committed keeps the fence out";
const SAME: &str = "it is passed beside transactions: the same as with two branches";

/// Only where branches are prepared, before the decision.
const PREPARING: [Reach; 4] = [Yes(ROLLED_BACK), Yes(ROLLED_BACK), No(ALONE), No(ALONE)];
/// Only where a prepared branch commits.
const COMMITTING: [Reach; 4] = [Yes(COMMITTED), No(NEVER_COMMITS), No(ALONE), No(ALONE)];
/// Only where a prepared branch is rolled back.
const UNDOING: [Reach; 4] = [No(NEVER_UNDONE), Yes(ROLLED_BACK), No(ALONE), No(ALONE)];
/// Only in one phase, while the branch is not committed and open: it is lost with its session.
const OPEN_IN_ONE_PHASE: [Reach; 4] = [No(IN_COMPANY), No(IN_COMPANY), Yes(ROLLED_BACK), Yes(ROLLED_BACK)];
/// Only in one phase, when the branch has committed, or could not.
const ONE_PHASE_DONE: [Reach; 4] = [No(IN_COMPANY), No(IN_COMPANY), Yes(COMMITTED), Yes(ROLLED_BACK)];

/// Only where a prepared branch is found after a crash.
const REPLAYED: [Reach; 4] = [Yes(COMMITTED), Yes(ROLLED_BACK), No(ALONE), No(ALONE)];
/// Only where a prepared branch cannot be written again, and has to commit.
const MISFIT: [Reach; 4] = [Yes(HEURISTIC), No(NOTHING_LOST), No(ALONE), No(ALONE)];

/// Where a bank dies that has applied what was decided and has told nobody.
const APPLIED_UNHEARD: [&str; 4] = [
    "postgres-after-commit-prepared",
    "postgres-after-rollback-prepared",
    "sdk-after-commit-one-phase",
    "sdk-commit-one-phase-received",
];

/// The same over MariaDB.
const APPLIED_UNHEARD_IN_MARIADB: [&str; 4] = [
    "mysql-after-commit-prepared",
    "mysql-after-rollback-prepared",
    "sdk-after-commit-one-phase",
    "sdk-commit-one-phase-received",
];

/// Every crash point there is.
pub const POINTS: &[Point] = &[
    client("sdk-client-before-commit", BEFORE_THE_DECISION),
    client("sdk-client-after-commit", AFTER_THE_DECISION),
    // A branch opens and enlists.
    participant("sdk-before-bind", BESIDE),
    participant("sdk-after-bind", BESIDE),
    participant("sdk-before-begin", BEFORE_THE_DECISION),
    participant("sdk-after-begin", BEFORE_THE_DECISION),
    participant("sdk-before-enlist", BEFORE_THE_DECISION),
    participant("sdk-after-enlist", BEFORE_THE_DECISION),
    // It is prepared and votes. Its session breaks before the vote is there, so nobody counts on it.
    participant("sdk-prepare-received", PREPARING),
    participant("sdk-before-prepare", PREPARING),
    participant("sdk-after-prepare", PREPARING),
    participant("sdk-before-vote", PREPARING),
    // It hears the decision, applies and acknowledges it.
    participant("sdk-decision-received", [Yes(COMMITTED), Yes(ROLLED_BACK), No(ALONE), Yes(ROLLED_BACK)]),
    participant("sdk-before-commit", COMMITTING),
    participant("sdk-after-commit", COMMITTING),
    participant("sdk-before-rollback", UNDOING),
    participant("sdk-after-rollback", UNDOING),
    participant("sdk-before-acknowledge", AFTER_THE_DECISION),
    // One phase.
    participant("sdk-commit-one-phase-received", OPEN_IN_ONE_PHASE),
    participant("sdk-before-commit-one-phase", OPEN_IN_ONE_PHASE),
    participant("sdk-after-commit-one-phase", ONE_PHASE_DONE),
    participant("sdk-before-prove", ONE_PHASE_DONE).in_recovery(),
    participant("sdk-after-prove", ONE_PHASE_DONE).in_recovery(),
    // It comes back and compares what it holds with what the coordinator knows.
    participant("sdk-before-list", AFTER_THE_DECISION).in_recovery(),
    participant("sdk-after-list", AFTER_THE_DECISION).in_recovery(),
    participant("sdk-before-report", AFTER_THE_DECISION).in_recovery(),
    participant("sdk-report-answered", AFTER_THE_DECISION).in_recovery(),
    participant("sdk-before-forget", BESIDE).needs(Needs::ShortRetention).not_in_servers_on_rollback(NO_ROW),
    participant("sdk-after-forget", BESIDE).needs(Needs::ShortRetention).not_in_servers_on_rollback(NO_ROW),
    // SQLite: the journal is the prepare.
    sqlite("sqlite-attach-tables", BESIDE),
    sqlite("sqlite-prepare-journal", PREPARING),
    sqlite("sqlite-journal-written", PREPARING),
    sqlite("sqlite-prepare-done", PREPARING),
    sqlite("sqlite-commit-begun", COMMITTING),
    sqlite("sqlite-commit-committed", COMMITTING),
    sqlite("sqlite-journal-end-written", [Yes(COMMITTED), Yes(ROLLED_BACK), No(ALONE), No(ALONE)]),
    sqlite("sqlite-commit-ended", COMMITTING),
    sqlite("sqlite-rollback-begun", UNDOING),
    sqlite("sqlite-rollback-ended", UNDOING),
    sqlite("sqlite-rollback-rolled-back", UNDOING),
    sqlite("sqlite-fence-written", UNDOING),
    sqlite("sqlite-one-phase-begun", [No(IN_COMPANY), No(IN_COMPANY), Yes(ROLLED_BACK), Yes(ROLLED_BACK)]),
    sqlite("sqlite-one-phase-committed", [No(IN_COMPANY), No(IN_COMPANY), Yes(COMMITTED), No(NEVER_COMMITS)]),
    // SQLite: what the journal holds is written again.
    sqlite("sqlite-replay-begun", REPLAYED).in_recovery(),
    sqlite("sqlite-replay-written", REPLAYED).in_recovery(),
    sqlite("sqlite-recovery-ended", COMMITTING).in_recovery_from(["sqlite-commit-committed"; 4]),
    sqlite("sqlite-hazard-kept", MISFIT).in_recovery().needs(Needs::Meddling),
    sqlite("sqlite-hazard-recorded", MISFIT).in_recovery().needs(Needs::Meddling),
    // PostgreSQL.
    postgres("postgres-before-identity", BESIDE),
    postgres("postgres-after-identity", BESIDE),
    postgres("postgres-after-begin", BEFORE_THE_DECISION),
    postgres("postgres-before-prepare", PREPARING),
    postgres("postgres-after-prepare", PREPARING),
    postgres("postgres-before-commit-prepared", COMMITTING),
    postgres("postgres-after-commit-prepared", COMMITTING),
    postgres("postgres-before-rollback-prepared", UNDOING),
    postgres("postgres-after-rollback-prepared", UNDOING),
    postgres("postgres-before-commit-one-phase", OPEN_IN_ONE_PHASE),
    postgres("postgres-after-commit-one-phase", ONE_PHASE_DONE),
    // The decision comes again, and nothing is prepared any more.
    postgres("postgres-before-fence", AFTER_THE_DECISION).in_recovery_from(APPLIED_UNHEARD),
    postgres("postgres-after-fence", AFTER_THE_DECISION).in_recovery_from(APPLIED_UNHEARD),
    postgres("postgres-before-forget", [First(EITHER), No(NO_ROW), No(SAME), No(SAME)])
        .needs(Needs::ShortRetention),
    postgres("postgres-after-forget", [First(EITHER), No(NO_ROW), No(SAME), No(SAME)])
        .needs(Needs::ShortRetention),
    // MariaDB. The branch of a bank that votes rollback is turned down behind its evidence.
    mysql("mysql-before-identity", BESIDE),
    mysql("mysql-after-identity", BESIDE),
    mysql("mysql-after-begin", BEFORE_THE_DECISION),
    mysql("mysql-before-evidence", BEFORE_THE_DECISION),
    mysql("mysql-before-prepare", PREPARING),
    mysql("mysql-after-prepare", PREPARING),
    mysql("mysql-before-commit-prepared", COMMITTING),
    mysql("mysql-after-commit-prepared", COMMITTING),
    mysql("mysql-before-rollback-prepared", UNDOING),
    mysql("mysql-after-rollback-prepared", UNDOING),
    mysql(
        "mysql-before-commit-one-phase",
        [No(IN_COMPANY), No(IN_COMPANY), Yes(ROLLED_BACK), No(NEVER_COMMITS)],
    ),
    mysql(
        "mysql-after-commit-one-phase",
        [No(IN_COMPANY), No(IN_COMPANY), Yes(COMMITTED), No(NEVER_COMMITS)],
    ),
    mysql("mysql-before-fence", AFTER_THE_DECISION).in_recovery_from(APPLIED_UNHEARD_IN_MARIADB),
    mysql("mysql-after-fence", [No(NO_FENCE), Yes(ROLLED_BACK), No(NO_FENCE), Yes(ROLLED_BACK)])
        .in_recovery_from(APPLIED_UNHEARD_IN_MARIADB),
    mysql("mysql-before-forget", [First(EITHER), No(NO_ROW), No(SAME), No(SAME)])
        .needs(Needs::ShortRetention),
    mysql("mysql-after-forget", [First(EITHER), No(NO_ROW), No(SAME), No(SAME)]).needs(Needs::ShortRetention),
    // The coordinator hears and says.
    coordinator("coordinator-enlist-received", BEFORE_THE_DECISION),
    coordinator("coordinator-before-prepare", PREPARING),
    coordinator("coordinator-vote-received", PREPARING),
    coordinator("coordinator-before-decide", [Yes(COMMITTED), Yes(ROLLED_BACK), No(ALONE), Yes(ROLLED_BACK)]),
    coordinator("coordinator-before-commit-one-phase", OPEN_IN_ONE_PHASE),
    coordinator("coordinator-acknowledge-received", AFTER_THE_DECISION),
    coordinator("coordinator-before-answer", AFTER_THE_DECISION),
    // A decision is forced.
    coordinator("log-before-force", [Yes(ROLLED_BACK), No(PRESUMED), Yes(ROLLED_BACK), Yes(ROLLED_BACK)]),
    coordinator(
        "log-after-insert-before-commit",
        [First(ROLLED_BACK), Yes(ROLLED_BACK), First(ROLLED_BACK), Yes(ROLLED_BACK)],
    )
    .only_with(Log::Embedded),
    // In one phase only the intent is durable now, and the open branch goes with its session.
    coordinator(
        "log-after-commit-before-checkpoint",
        [First(COMMITTED), Yes(ROLLED_BACK), First(ROLLED_BACK), Yes(ROLLED_BACK)],
    )
    .only_with(Log::Embedded),
    coordinator("log-before-answer", [Yes(COMMITTED), No(PRESUMED), Yes(ROLLED_BACK), Yes(ROLLED_BACK)]),
    // The log looks after itself.
    embedded("log-remember-before-commit", BESIDE),
    embedded("log-remember-after-commit", BESIDE),
    embedded("log-prune-before-commit", BESIDE).needs(Needs::ShortRetention),
    embedded("log-prune-after-commit", BESIDE).needs(Needs::ShortRetention),
    embedded("log-before-checkpoint", BESIDE).needs(Needs::Growth),
    embedded("log-between-checkpoint-passes", BESIDE).needs(Needs::Growth),
    embedded("log-after-checkpoint", BESIDE).needs(Needs::Growth),
    shared("log-shared-remember-before-commit", BESIDE),
    shared("log-shared-remember-after-commit", BESIDE),
    shared("log-shared-prune-before-commit", BESIDE).needs(Needs::ShortRetention),
    shared("log-shared-prune-after-commit", BESIDE).needs(Needs::ShortRetention),
    // An operator acts: it is put on record, and only then done.
    coordinator("operator-before-record", BESIDE).needs(Needs::Operator { on_record: false }),
    embedded("log-operate-before-commit", BESIDE).needs(Needs::Operator { on_record: false }),
    embedded("log-operate-after-commit", BESIDE).needs(Needs::Operator { on_record: true }),
    shared("log-shared-operate-before-commit", BESIDE).needs(Needs::Operator { on_record: false }),
    shared("log-shared-operate-after-commit", BESIDE).needs(Needs::Operator { on_record: true }),
    coordinator("operator-recorded-before-act", BESIDE).needs(Needs::Operator { on_record: true }),
    coordinator("operator-after-act", BESIDE).needs(Needs::Operator { on_record: true }),
    // It comes back.
    embedded("log-open-before-seal", AFTER_THE_DECISION).in_recovery(),
    embedded("log-open-after-seal", AFTER_THE_DECISION).in_recovery(),
    embedded("log-open-after-checkpoint", AFTER_THE_DECISION).in_recovery(),
    shared("log-shared-open-before-epoch", AFTER_THE_DECISION).in_recovery(),
    shared("log-shared-open-before-seal", AFTER_THE_DECISION).in_recovery(),
    shared("log-shared-seal-before-commit", AFTER_THE_DECISION).in_recovery(),
    shared("log-shared-open-after-seal", AFTER_THE_DECISION).in_recovery(),
    coordinator("coordinator-recovered-before-serving", AFTER_THE_DECISION).in_recovery(),
    coordinator("coordinator-report-received", AFTER_THE_DECISION).in_recovery(),
];

/// Where a process dies once more, while it comes back from a crash at `point`: those of the recovery that it passes whatever the first
/// crash has left, and those of the replay where that has left a branch in a SQLite journal.
#[must_use]
pub fn second_crashes(point: &Point, way: Way, database: Database, log: Log) -> &'static [&'static str] {
    if point.moment != Moment::Work || point.needs != Needs::Nothing {
        return &[];
    }
    let left_in_journal = ["sdk-after-prepare", "sdk-before-vote", "sqlite-prepare-done"];
    match (point.victim, log) {
        (Victim::Client, _) => &[],
        (Victim::Participant, _)
            if database == Database::Sqlite && way.banks() == 2 && left_in_journal.contains(&point.name) =>
        {
            &["sqlite-replay-begun", "sqlite-replay-written"]
        }
        (Victim::Participant, _) => {
            &["sdk-before-list", "sdk-after-list", "sdk-before-report", "sdk-report-answered"]
        }
        (Victim::Coordinator, Log::Embedded) => &[
            "log-open-before-seal",
            "log-open-after-seal",
            "log-open-after-checkpoint",
            "coordinator-recovered-before-serving",
        ],
        (Victim::Coordinator, Log::Shared) => &[
            "log-shared-open-before-epoch",
            "log-shared-open-before-seal",
            "log-shared-seal-before-commit",
            "log-shared-open-after-seal",
            "coordinator-recovered-before-serving",
        ],
    }
}

/// The row of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Point> {
    POINTS.iter().find(|point| point.name == name)
}
