//! What is promised, in words, and written down by hand. Nothing here is taken from the code that runs the cells, nor from the
//! code under test: where a statement is not sent any more, or the server answers otherwise, its cells fail.

use crate::harness::books::Database;
use crate::trial::checker::Expected;

/// The kinds of database, from the first column of the README's table to its last row.
pub const DATABASES: [Database; 4] = [Database::Postgres, Database::MariaDb, Database::Sqlite, Database::Own];

/// The ways that a transaction takes through the bank under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Its branch is prepared and committed, and so is another bank's.
    Commit,
    /// Its branch is prepared and the other bank refuses; or the client gives up before anything is prepared.
    Rollback,
    /// It has only read; another bank has written.
    ReadOnly,
    /// It is alone.
    OnePhase,
    /// Its branch is prepared when its handler ends, before anybody asks, and then committed with another bank's.
    EarlyVote,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Commit, Self::Rollback, Self::ReadOnly, Self::OnePhase, Self::EarlyVote];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Rollback => "rollback",
            Self::ReadOnly => "read-only",
            Self::OnePhase => "one-phase",
            Self::EarlyVote => "early-vote",
        }
    }
}

/// What strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nothing.
    Clean,
    /// SIGKILL of the participant.
    ParticipantKilled,
    /// SIGKILL of the database server.
    ServerKilled,
    /// The connection between the two is cut.
    Cut,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Clean, Self::ParticipantKilled, Self::ServerKilled, Self::Cut];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::ParticipantKilled => "participant-killed",
            Self::ServerKilled => "server-killed",
            Self::Cut => "cut",
        }
    }
}

/// Statements that a bank sends together to its server, at which a fault can strike.
#[derive(Debug)]
pub struct Step {
    /// In which kind of database.
    pub database: Database,
    /// On which way.
    pub way: Way,
    /// What it is, in a report.
    pub name: &'static str,
    /// What is in its text and in no other's on this way.
    pub text: &'static str,
    /// What the server answers to each statement, in order: the beginnings of its words.
    pub answers: &'static [&'static str],
    /// Whether its text has the branch's name.
    pub names_its_branch: bool,
    /// It is sent only if the connection was cut at this step before.
    pub behind: Option<Lost>,
    /// How the transaction is given up where it is to be rolled back.
    pub given_up: GivenUp,
    /// It belongs to a vote that nobody has asked for: it comes before the client asks for the commit.
    pub unasked: bool,
    /// What must become of the transaction if the server has not got it.
    pub before: Expected,
    /// What must become of it if the server has executed it and the participant knows nothing, or only a part of the answers.
    pub after: Expected,
    /// The same if it knows them all.
    pub heard: Expected,
}

/// A step that was cut before this one.
#[derive(Debug, Clone, Copy)]
pub struct Lost {
    /// What is in its text.
    pub text: &'static str,
    /// What the server had answered, if it had got it.
    pub answers: Option<&'static [&'static str]>,
}

/// How a transaction is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// The other bank votes rollback.
    ByTheOther,
    /// The client rolls it back when all the work is done.
    ByTheClient,
}

/// A crash point at which a participant is killed that has no connection to cut or to watch.
#[derive(Debug)]
pub struct Death {
    /// In which kind of database.
    pub database: Database,
    /// On which way.
    pub way: Way,
    /// The crash point.
    pub point: &'static str,
    /// It belongs to a vote that nobody has asked for.
    pub unasked: bool,
    /// What must become of the transaction.
    pub expected: Expected,
}

/// Why there are no cells for a kind of database, on any way, under this fault; nothing if there are.
#[must_use]
pub const fn impossible(database: Database, fault: Fault) -> Option<&'static str> {
    match (database, fault) {
        (Database::Sqlite, Fault::ServerKilled) => {
            Some("SQLite has no server: it is a library in the participant, and dies with it")
        }
        (Database::Sqlite, Fault::Cut) => Some(
            "SQLite has no connection that could be cut; the participant is killed before and after each step instead",
        ),
        (Database::Own, Fault::ServerKilled) => Some(
            "the example of a store of one's own has no server: it is a file of the participant's, and dies with it",
        ),
        (Database::Own, Fault::Cut) => Some(
            "the example of a store of one's own has no connection that could be cut; the participant is killed before and after \
             each record instead",
        ),
        (Database::Sqlite | Database::Own, Fault::Clean | Fault::ParticipantKilled)
        | (Database::Postgres | Database::MariaDb, _) => None,
    }
}

const COMMITTED: Expected = Expected::Committed;
const ROLLED_BACK: Expected = Expected::RolledBack;
const EITHER: Expected = Expected::Either;

const fn postgres(
    way: Way,
    name: &'static str,
    text: &'static str,
    answers: &'static [&'static str],
) -> Step {
    Step::new(Database::Postgres, way, name, text, answers)
}

const fn mariadb(way: Way, name: &'static str, text: &'static str, answers: &'static [&'static str]) -> Step {
    Step::new(Database::MariaDb, way, name, text, answers)
}

impl Step {
    const fn new(
        database: Database,
        way: Way,
        name: &'static str,
        text: &'static str,
        answers: &'static [&'static str],
    ) -> Self {
        Self {
            database,
            way,
            name,
            text,
            answers,
            names_its_branch: true,
            behind: None,
            given_up: GivenUp::ByTheOther,
            unasked: false,
            before: ROLLED_BACK,
            after: ROLLED_BACK,
            heard: ROLLED_BACK,
        }
    }

    const fn ends(mut self, before: Expected, after: Expected) -> Self {
        self.before = before;
        self.after = after;
        self.heard = after;
        self
    }

    const fn behind(mut self, text: &'static str, answers: Option<&'static [&'static str]>) -> Self {
        self.behind = Some(Lost { text, answers });
        self
    }

    const fn heard(mut self, expected: Expected) -> Self {
        self.heard = expected;
        self
    }

    const fn about_all_branches(mut self) -> Self {
        self.names_its_branch = false;
        self
    }

    const fn unasked(mut self) -> Self {
        self.unasked = true;
        self
    }

    const fn given_up_by_the_client(mut self) -> Self {
        self.given_up = GivenUp::ByTheClient;
        self
    }
}

const PREPARE: &str = "PREPARE TRANSACTION 'lockstep:";
const COMMIT_PREPARED: &str = "COMMIT PREPARED 'lockstep:";
const ROLLBACK_PREPARED: &str = "ROLLBACK PREPARED 'lockstep:";
/// The question before an early vote: a branch that has only read waits for the coordinator.
const HAS_WRITTEN: &str = " AS written";
const ONE_PHASE: &str = "; COMMIT; BEGIN";
const FENCE: &str = "'fence'";
/// The position of the decision, which is newer than the evidence's.
const KEEP: &str = "SELECT lockstep.keep_position(";
const KEPT: &[&str] = &["SELECT 1"];

/// Constraints, the role, the evidence; then PREPARE, and the question what became of it.
const PREPARED: &[&str] = &["SET CONSTRAINTS", "SET", "SELECT 1", "PREPARE TRANSACTION", "BEGIN", "SHOW"];
/// The same, and the evidence is refused because nothing was written.
const NOT_PREPARED: &[&str] = &["SET CONSTRAINTS", "SET", "ERROR 23514"];
/// The same, with COMMIT, and the evidence is read.
const COMMITTED_ALONE: &[&str] = &["SET CONSTRAINTS", "SET", "SELECT 1", "COMMIT", "BEGIN", "SELECT 1"];
/// The fence goes in.
const FENCED: &[&str] = &["INSERT 0 1", "SELECT 1"];
/// The evidence keeps it out.
const NOT_FENCED: &[&str] = &["INSERT 0 0", "SELECT 1"];

/// The evidence of MariaDB, in the round trip before: settings, the session's user lock, two savepoint statements and
/// their warnings, the counters, the row.
const XA_EVIDENCE: &str = " 'branch', ";
const XA_EVIDENCE_WRITTEN: &[&str] = &["OK", "OK", "OK", "OK", "ROWS", "ROWS", "OK"];
const XA_END: &str = "XA END ";
const XA_PREPARE: &str = "; XA PREPARE ";
const XA_COMMIT: &str = "XA COMMIT ";
const XA_ROLLBACK: &str = "XA ROLLBACK ";
const XA_ONE_PHASE: &str = " ONE PHASE";
const XA_RECOVER: &str = "XA RECOVER";
const XA_HAS_WRITTEN: &str = "IN ('Handler_write', ";
const XA_KEEP: &str = ".lockstep_positions (resource_manager, ";
const KIND: &str = "SELECT kind FROM";
const KIND_UNCOMMITTED: &str = "READ UNCOMMITTED; SELECT kind FROM";
const SESSION_IS_THERE: &str = "SELECT CAST(IS_USED_LOCK(";
/// There is no such branch, or not for this session.
const NO_XID: &[&str] = &["ERROR 1397"];
const DUPLICATE: &[&str] = &["ERROR 1062"];
/// Whether it is a replica, and the list.
const LISTED: &[&str] = &["ROWS", "ROWS"];

/// Every step at which a connection can be cut, and a server or its participant killed.
pub const STEPS: &[Step] = &[
    // A prepare without an answer is undone, whatever the server had done: nobody has voted yet.
    postgres(Way::Commit, "prepare", PREPARE, PREPARED),
    postgres(Way::Commit, "position before the commit", KEEP, KEPT)
        .about_all_branches()
        .ends(COMMITTED, COMMITTED),
    postgres(Way::Commit, "commit", COMMIT_PREPARED, &["COMMIT PREPARED"]).ends(COMMITTED, COMMITTED),
    // The commit was executed and its answer lost: it is not there any more, and the evidence says why.
    postgres(Way::Commit, "commit again", COMMIT_PREPARED, &["ERROR 42704"])
        .behind(COMMIT_PREPARED, Some(&["COMMIT PREPARED"]))
        .ends(COMMITTED, COMMITTED),
    postgres(Way::Commit, "fence after a commit", FENCE, NOT_FENCED)
        .behind(COMMIT_PREPARED, Some(&["COMMIT PREPARED"]))
        .ends(COMMITTED, COMMITTED),
    postgres(Way::Rollback, "prepare", PREPARE, PREPARED),
    postgres(Way::Rollback, "rollback", ROLLBACK_PREPARED, &["ROLLBACK PREPARED"]),
    postgres(Way::Rollback, "rollback again", ROLLBACK_PREPARED, &["ERROR 42704"])
        .behind(ROLLBACK_PREPARED, Some(&["ROLLBACK PREPARED"])),
    postgres(Way::Rollback, "fence after a rollback", FENCE, FENCED)
        .behind(ROLLBACK_PREPARED, Some(&["ROLLBACK PREPARED"])),
    postgres(Way::Rollback, "rollback of an open branch", "ROLLBACK", &["ROLLBACK"]).given_up_by_the_client(),
    // A prepare that never came, or whose answer is lost, is made sure of.
    postgres(Way::Rollback, "fence after a lost prepare", FENCE, FENCED).behind(PREPARE, None),
    // The refusal is the read-only vote, if it is heard.
    postgres(Way::ReadOnly, "prepare", PREPARE, NOT_PREPARED).heard(EITHER),
    // The branch is over and has voted, or is about to.
    postgres(Way::ReadOnly, "rollback of what was read", "ROLLBACK", &["ROLLBACK"]).ends(EITHER, EITHER),
    postgres(Way::OnePhase, "commit", ONE_PHASE, COMMITTED_ALONE).ends(ROLLED_BACK, COMMITTED),
    // The answer is lost; what became of it is proved.
    postgres(Way::OnePhase, "question after a commit", COMMIT_PREPARED, &["ERROR 42704"])
        .behind(ONE_PHASE, Some(COMMITTED_ALONE))
        .ends(COMMITTED, COMMITTED),
    postgres(Way::OnePhase, "fence after a commit", FENCE, NOT_FENCED)
        .behind(ONE_PHASE, Some(COMMITTED_ALONE))
        .ends(COMMITTED, COMMITTED),
    postgres(Way::OnePhase, "fence after a lost commit", FENCE, FENCED).behind(ONE_PHASE, None),
    postgres(Way::EarlyVote, "question whether it has written", HAS_WRITTEN, &["SELECT 1"]).unasked(),
    // The handler waits for this prepare, and fails with it.
    postgres(Way::EarlyVote, "prepare", PREPARE, PREPARED).unasked(),
    postgres(Way::EarlyVote, "position before the commit", KEEP, KEPT)
        .about_all_branches()
        .ends(COMMITTED, COMMITTED),
    postgres(Way::EarlyVote, "commit", COMMIT_PREPARED, &["COMMIT PREPARED"]).ends(COMMITTED, COMMITTED),
    postgres(Way::EarlyVote, "fence after a commit", FENCE, NOT_FENCED)
        .behind(COMMIT_PREPARED, Some(&["COMMIT PREPARED"]))
        .ends(COMMITTED, COMMITTED),
    // MariaDB. The evidence goes first, in a round trip of its own: without its OK nothing is prepared.
    mariadb(Way::Commit, "evidence", XA_EVIDENCE, XA_EVIDENCE_WRITTEN),
    mariadb(Way::Commit, "prepare", XA_PREPARE, &["OK", "OK"]).heard(COMMITTED),
    mariadb(Way::Commit, "position before the commit", XA_KEEP, &["OK"])
        .about_all_branches()
        .ends(COMMITTED, COMMITTED),
    mariadb(Way::Commit, "commit", XA_COMMIT, &["OK"]).ends(COMMITTED, COMMITTED),
    // The session that has prepared is lost: another one asks whether it has ended, commits, and looks whether that was done.
    mariadb(Way::Commit, "question for the session that has prepared", SESSION_IS_THERE, &["ROWS"])
        .behind(XA_COMMIT, None)
        .about_all_branches()
        .ends(COMMITTED, COMMITTED),
    mariadb(Way::Commit, "commit by another session", XA_COMMIT, &["OK"])
        .behind(XA_COMMIT, None)
        .ends(COMMITTED, COMMITTED),
    mariadb(Way::Commit, "look whether it was done", KIND, &["ROWS"])
        .behind(XA_COMMIT, None)
        .ends(COMMITTED, COMMITTED),
    mariadb(Way::Commit, "commit again", XA_COMMIT, NO_XID)
        .behind(XA_COMMIT, Some(&["OK"]))
        .ends(COMMITTED, COMMITTED),
    mariadb(Way::Commit, "list after a commit", XA_RECOVER, LISTED)
        .behind(XA_COMMIT, Some(&["OK"]))
        .about_all_branches()
        .ends(COMMITTED, COMMITTED),
    mariadb(Way::Commit, "fence after a commit", FENCE, DUPLICATE)
        .behind(XA_COMMIT, Some(&["OK"]))
        .ends(COMMITTED, COMMITTED),
    mariadb(Way::Commit, "kind of what kept the fence out", KIND, &["ROWS"])
        .behind(XA_COMMIT, Some(&["OK"]))
        .ends(COMMITTED, COMMITTED),
    mariadb(Way::Rollback, "evidence", XA_EVIDENCE, XA_EVIDENCE_WRITTEN),
    mariadb(Way::Rollback, "prepare", XA_PREPARE, &["OK", "OK"]),
    mariadb(Way::Rollback, "rollback", XA_ROLLBACK, &["OK"]),
    mariadb(Way::Rollback, "rollback by another session", XA_ROLLBACK, &["OK"]).behind(XA_ROLLBACK, None),
    mariadb(Way::Rollback, "look whether it was done", KIND_UNCOMMITTED, &["OK", "ROWS"])
        .behind(XA_ROLLBACK, None),
    mariadb(Way::Rollback, "rollback again", XA_ROLLBACK, NO_XID).behind(XA_ROLLBACK, Some(&["OK"])),
    mariadb(Way::Rollback, "list after a rollback", XA_RECOVER, LISTED)
        .behind(XA_ROLLBACK, Some(&["OK"]))
        .about_all_branches(),
    mariadb(Way::Rollback, "fence after a rollback", FENCE, &["OK"]).behind(XA_ROLLBACK, Some(&["OK"])),
    mariadb(Way::Rollback, "end of an open branch", XA_END, &["OK"]).given_up_by_the_client(),
    mariadb(Way::Rollback, "rollback of an open branch", XA_ROLLBACK, &["OK"]).given_up_by_the_client(),
    mariadb(Way::Rollback, "fence after a lost prepare", FENCE, &["OK"]).behind(XA_PREPARE, None),
    // The counters are the read-only vote, if they are heard. Then the branch is over, or is about to be.
    mariadb(Way::ReadOnly, "evidence", XA_EVIDENCE, XA_EVIDENCE_WRITTEN).heard(COMMITTED),
    mariadb(Way::ReadOnly, "end of what was read", XA_END, &["OK"]).ends(EITHER, EITHER),
    mariadb(Way::ReadOnly, "rollback of what was read", XA_ROLLBACK, &["OK"]).ends(EITHER, EITHER),
    mariadb(Way::OnePhase, "evidence", XA_EVIDENCE, XA_EVIDENCE_WRITTEN),
    mariadb(Way::OnePhase, "commit", XA_ONE_PHASE, &["OK", "OK"]).ends(ROLLED_BACK, COMMITTED),
    mariadb(Way::OnePhase, "question after a commit", XA_COMMIT, NO_XID)
        .behind(XA_ONE_PHASE, Some(&["OK", "OK"]))
        .ends(COMMITTED, COMMITTED),
    mariadb(Way::OnePhase, "fence after a commit", FENCE, DUPLICATE)
        .behind(XA_ONE_PHASE, Some(&["OK", "OK"]))
        .ends(COMMITTED, COMMITTED),
    mariadb(Way::OnePhase, "kind of what kept the fence out", KIND, &["ROWS"])
        .behind(XA_ONE_PHASE, Some(&["OK", "OK"]))
        .ends(COMMITTED, COMMITTED),
    mariadb(Way::OnePhase, "fence after a lost commit", FENCE, &["OK"]).behind(XA_ONE_PHASE, None),
    mariadb(Way::EarlyVote, "question whether it has written", XA_HAS_WRITTEN, &["ROWS"]).unasked(),
    mariadb(Way::EarlyVote, "evidence", XA_EVIDENCE, XA_EVIDENCE_WRITTEN).unasked(),
    mariadb(Way::EarlyVote, "prepare", XA_PREPARE, &["OK", "OK"]).heard(COMMITTED).unasked(),
    mariadb(Way::EarlyVote, "position before the commit", XA_KEEP, &["OK"])
        .about_all_branches()
        .ends(COMMITTED, COMMITTED),
    mariadb(Way::EarlyVote, "commit", XA_COMMIT, &["OK"]).ends(COMMITTED, COMMITTED),
    mariadb(Way::EarlyVote, "fence after a commit", FENCE, DUPLICATE)
        .behind(XA_COMMIT, Some(&["OK"]))
        .ends(COMMITTED, COMMITTED),
];

const fn sqlite(way: Way, point: &'static str, expected: Expected) -> Death {
    Death { database: Database::Sqlite, way, point, unasked: false, expected }
}

const fn own(way: Way, point: &'static str, expected: Expected) -> Death {
    Death { database: Database::Own, way, point, unasked: false, expected }
}

impl Death {
    const fn unasked(mut self) -> Self {
        self.unasked = true;
        self
    }
}

/// Where a participant is killed that has its database in itself: before and after each thing that it makes durable.
pub const DEATHS: &[Death] = &[
    sqlite(Way::Commit, "sqlite-prepare-journal", ROLLED_BACK),
    sqlite(Way::Commit, "sqlite-journal-written", ROLLED_BACK),
    sqlite(Way::Commit, "sqlite-prepare-done", ROLLED_BACK),
    sqlite(Way::Commit, "sqlite-commit-begun", COMMITTED),
    sqlite(Way::Commit, "sqlite-commit-committed", COMMITTED),
    sqlite(Way::Commit, "sqlite-journal-end-written", COMMITTED),
    sqlite(Way::Commit, "sqlite-commit-ended", COMMITTED),
    sqlite(Way::Rollback, "sqlite-prepare-journal", ROLLED_BACK),
    sqlite(Way::Rollback, "sqlite-journal-written", ROLLED_BACK),
    sqlite(Way::Rollback, "sqlite-prepare-done", ROLLED_BACK),
    sqlite(Way::Rollback, "sqlite-rollback-begun", ROLLED_BACK),
    sqlite(Way::Rollback, "sqlite-rollback-rolled-back", ROLLED_BACK),
    sqlite(Way::Rollback, "sqlite-rollback-ended", ROLLED_BACK),
    sqlite(Way::Rollback, "sqlite-fence-written", ROLLED_BACK),
    sqlite(Way::ReadOnly, "sdk-before-prepare", ROLLED_BACK),
    sqlite(Way::ReadOnly, "sdk-after-prepare", ROLLED_BACK),
    sqlite(Way::ReadOnly, "sdk-before-vote", ROLLED_BACK),
    sqlite(Way::OnePhase, "sqlite-one-phase-begun", ROLLED_BACK),
    sqlite(Way::OnePhase, "sqlite-one-phase-committed", COMMITTED),
    sqlite(Way::OnePhase, "sdk-after-commit-one-phase", COMMITTED),
    sqlite(Way::EarlyVote, "sqlite-prepare-journal", ROLLED_BACK).unasked(),
    sqlite(Way::EarlyVote, "sqlite-journal-written", ROLLED_BACK).unasked(),
    sqlite(Way::EarlyVote, "sqlite-prepare-done", ROLLED_BACK).unasked(),
    sqlite(Way::EarlyVote, "sdk-before-vote", ROLLED_BACK).unasked(),
    sqlite(Way::EarlyVote, "sqlite-commit-begun", COMMITTED),
    sqlite(Way::EarlyVote, "sqlite-commit-committed", COMMITTED),
    sqlite(Way::EarlyVote, "sqlite-commit-ended", COMMITTED),
    // A record that is written survives the process, synced or not: only a machine that loses its power tells the difference.
    own(Way::Commit, "sdk-before-prepare", ROLLED_BACK),
    own(Way::Commit, "reservations-prepare-written", ROLLED_BACK),
    own(Way::Commit, "reservations-prepare-durable", ROLLED_BACK),
    own(Way::Commit, "sdk-before-commit", COMMITTED),
    own(Way::Commit, "reservations-end-written", COMMITTED),
    own(Way::Commit, "reservations-end-durable", COMMITTED),
    own(Way::Rollback, "sdk-before-prepare", ROLLED_BACK),
    own(Way::Rollback, "reservations-prepare-written", ROLLED_BACK),
    own(Way::Rollback, "reservations-prepare-durable", ROLLED_BACK),
    own(Way::Rollback, "sdk-before-rollback", ROLLED_BACK),
    own(Way::Rollback, "reservations-end-written", ROLLED_BACK),
    own(Way::Rollback, "reservations-end-durable", ROLLED_BACK),
    own(Way::ReadOnly, "sdk-before-prepare", ROLLED_BACK),
    own(Way::ReadOnly, "sdk-after-prepare", ROLLED_BACK),
    own(Way::ReadOnly, "sdk-before-vote", ROLLED_BACK),
    own(Way::OnePhase, "sdk-before-commit-one-phase", ROLLED_BACK),
    own(Way::OnePhase, "reservations-end-written", COMMITTED),
    own(Way::OnePhase, "reservations-end-durable", COMMITTED),
    own(Way::OnePhase, "sdk-after-commit-one-phase", COMMITTED),
    own(Way::EarlyVote, "sdk-before-prepare", ROLLED_BACK).unasked(),
    own(Way::EarlyVote, "reservations-prepare-written", ROLLED_BACK).unasked(),
    own(Way::EarlyVote, "reservations-prepare-durable", ROLLED_BACK).unasked(),
    own(Way::EarlyVote, "reservations-end-written", COMMITTED),
    own(Way::EarlyVote, "reservations-end-durable", COMMITTED),
];
