//! The bugs. A name begins with the rule of docs/protocol.md, or the property of docs/verification.md, that it breaks, if it is one of those.

use lockstep::testing::Rule;

use super::log::Promise;
use super::schedule::Schedule;
use super::script::Script;

/// Who is meant to find a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// `prove simulate`, by one of these invariants.
    Simulation(&'static [&'static str]),
    /// `prove model`, in the small world of this name, by one of these properties.
    Model(&'static str, &'static [&'static str]),
    /// The embedded decision log, on a real file.
    Log(Promise),
    /// A real SQLite database under the contract of stores, by one of these rules.
    Store(&'static [Rule]),
    /// A schedule that is written out, for the pure parts.
    Script(Script),
    /// A schedule that is written out, on real databases, files and connections.
    Schedule(Schedule),
}

impl Layer {
    /// The rules of the contract that are tried for it.
    #[must_use]
    pub const fn rules(&self) -> &'static [Rule] {
        match self {
            Self::Store(rules) => rules,
            Self::Simulation(_) | Self::Model(..) | Self::Log(_) | Self::Script(_) | Self::Schedule(_) => &[],
        }
    }
}

/// A bug that can be put back.
#[derive(Debug, Clone, Copy)]
pub struct Bug {
    /// Its name, as it stands in the code.
    pub name: &'static str,
    /// What the code does with it.
    pub what: &'static str,
    /// Who is meant to find it.
    pub layer: Layer,
}

const fn bug(name: &'static str, what: &'static str, layer: Layer) -> Bug {
    Bug { name, what, layer }
}

const fn simulation(name: &'static str, what: &'static str, by: &'static [&'static str]) -> Bug {
    bug(name, what, Layer::Simulation(by))
}

const fn schedule(name: &'static str, what: &'static str, schedule: Schedule) -> Bug {
    bug(name, what, Layer::Schedule(schedule))
}

const fn model(
    name: &'static str,
    what: &'static str,
    world: &'static str,
    by: &'static [&'static str],
) -> Bug {
    bug(name, what, Layer::Model(world, by))
}

/// All of them.
pub const BUGS: &[Bug] = &[
    // ---- the decision ----
    simulation(
        "AC2-rollback-overtakes-the-log",
        "a rollback is carried out while the commit decision is on its way to the log",
        &["stability"],
    ),
    simulation(
        "AC2-rollback-after-commit",
        "a rollback is carried out after commit was decided",
        &["stability", "agreement", "reply_matches_log"],
    ),
    simulation(
        "AC3-first-vote-decides",
        "commit is decided with the first vote, and the others are not waited for",
        &["commit_needs_all_votes"],
    ),
    simulation(
        "AC3-silence-is-a-vote",
        "who has not voted by the deadline is taken to have voted commit",
        &["commit_needs_all_votes"],
    ),
    simulation("AC3-no-is-yes", "a rollback vote counts as a commit vote", &["commit_needs_all_votes"]),
    simulation(
        "read-only-is-prepared",
        "a read-only vote counts as a commit vote, and its branch is told to commit",
        &["commit_needs_all_votes", "agreement"],
    ),
    simulation(
        "told-before-durable",
        "the application is told of a commit that is still on its way to the log",
        &["reply_matches_log"],
    ),
    simulation(
        "prepared-told-before-durable",
        "a prepared branch that is listed is told to commit while the decision is on its way to the log",
        &["durable_before_sent"],
    ),
    simulation(
        "recovery-leaves-commits-to-others",
        "a restarted coordinator delivers none of the commits that it finds in its log",
        &["termination_after_healing"],
    ),
    simulation(
        "a-decision-is-sent-once",
        "a decision that is not acknowledged is not sent again while its session lasts",
        &["termination_after_healing"],
    ),
    // ---- the log's answer ----
    simulation(
        "P2-unknown-is-written",
        "a decision whose write is of unknown result is taken to be in the log",
        &["durable_before_sent", "assertion"],
    ),
    simulation(
        "P2-unknown-is-absent",
        "a decision whose write is of unknown result is taken not to be in the log",
        &["stability"],
    ),
    simulation(
        "P2-found-is-absent",
        "after an unknown write the record is found, and the transaction rolled back all the same",
        &["stability"],
    ),
    simulation(
        "P2-absent-is-found",
        "after an unknown write the record is not found, and the transaction committed all the same",
        &["durable_before_sent"],
    ),
    // ---- silence ----
    model(
        "P4-presumes-under-a-live-epoch",
        "a coordinator answers rolled back because the log has no decision, while the owner may still write one",
        "takeover",
        &["reply_matches_log", "stability"],
    ),
    bug(
        "P7-presumes-below-the-horizon",
        "a transaction that was pruned is answered with rolled back",
        Layer::Log(Promise::Horizon),
    ),
    simulation(
        "P7-begins-below-the-floor",
        "a coordinator whose clock was set back begins transactions below the floors that it has given out",
        &["termination_after_healing", "no_orphan_left", "reply_matches_log"],
    ),
    simulation(
        "P7-holds-nothing-old",
        "a participant does not say how old the oldest of its prepared branches and evidence is",
        &["termination_after_healing", "no_orphan_left", "heuristics_recorded"],
    ),
    bug(
        "P8-a-lost-tail-is-presumed",
        "a log that was restored from a backup answers rolled back for what it has lost",
        Layer::Script(Script::LostTail),
    ),
    bug(
        "P8-presumes-under-an-unknown-epoch",
        "rolled back is answered for an epoch that the log has never given out",
        Layer::Script(Script::UnknownEpoch),
    ),
    simulation(
        "P9-undecided-is-rolled-back",
        "a prepared branch that is listed before the decision is told to roll back",
        &["stability", "agreement"],
    ),
    simulation(
        "an-ended-commit-is-forgotten",
        "a branch that a failover has brought back after its transaction's end is told to roll back",
        &["stability"],
    ),
    // ---- one phase ----
    simulation(
        "P10-no-intent",
        "a branch is told to commit in one phase before its intent is in the log",
        &["durable_before_sent"],
    ),
    simulation(
        "P10-rollback-ends-an-intent",
        "a rollback ends a transaction whose only branch was told to commit in one phase",
        &["reply_matches_log", "stability", "agreement"],
    ),
    simulation(
        "P10-session-ends-an-intent",
        "a broken session ends a transaction whose only branch was told to commit in one phase",
        &["reply_matches_log", "agreement"],
    ),
    simulation(
        "P10-intent-recovered-as-commit",
        "a restarted coordinator takes a one-phase intent for a commit decision",
        &["durable_before_sent"],
    ),
    simulation(
        "P10-an-error-is-a-rollback",
        "a one-phase commit whose reply is lost is acknowledged as rolled back",
        &["agreement"],
    ),
    simulation(
        "P11-nothing-is-a-commit",
        "a transaction in which nobody wrote is reported as committed, without a record",
        &["reply_matches_log"],
    ),
    // ---- branches and sessions ----
    simulation(
        "P12-lost-branch-is-forgotten",
        "a branch whose session broke before it voted is taken off the transaction, and the others commit",
        &["commit_needs_all_votes"],
    ),
    simulation(
        "P12-lost-branch-has-voted",
        "a branch whose session broke while it prepared is taken to have voted commit",
        &["commit_needs_all_votes"],
    ),
    bug(
        "anyone-votes",
        "an instance's vote counts for a branch that another instance holds",
        Layer::Script(Script::AnotherInstanceVotes),
    ),
    simulation(
        "P15-an-error-is-a-no",
        "a prepare whose reply is lost is taken for refused, and a rollback acknowledged from that",
        &["agreement"],
    ),
    simulation(
        "P15-an-error-is-a-yes",
        "a prepare whose reply is lost is voted commit",
        &["commit_needs_all_votes"],
    ),
    simulation(
        "votes-before-it-is-prepared",
        "a participant votes commit, and prepares after that",
        &["commit_needs_all_votes"],
    ),
    simulation(
        "unknown-xid-is-done",
        "a decision whose branch the store does not know, or that has no answer, is acknowledged as committed",
        &["agreement"],
    ),
    simulation(
        "P17-ends-what-a-handler-holds",
        "a branch whose deadline passes is ended on the connection that its handler works with",
        &["agreement"],
    ),
    model(
        "a-branch-that-is-not-found-is-undone",
        "a prepare that comes twice, the second time after the commit, rolls back what a failover has brought back",
        "failover",
        &["agreement", "commit_needs_all_votes"],
    ),
    // ---- evidence and heuristics ----
    simulation(
        "heuristic-is-taken-for-done",
        "a branch that ended otherwise than decided is counted as done",
        &["heuristics_recorded", "reply_matches_log", "stability"],
    ),
    simulation(
        "P19-evidence-is-not-compared",
        "late evidence against the decision is let go without a record",
        &["heuristics_recorded"],
    ),
    simulation(
        "P19-evidence-goes-unasked",
        "a participant deletes old evidence without having the coordinator compare it",
        &["heuristics_recorded", "agreement"],
    ),
    simulation(
        "P20-lists-only-when-it-attaches",
        "prepared branches are listed when a participant attaches, and never again",
        &["termination_after_healing", "no_orphan_left"],
    ),
    // ---- who belongs to whom ----
    bug(
        "P19-commands-of-a-sealed-epoch",
        "a participant takes commands from a coordinator whose epoch it was told is sealed",
        Layer::Script(Script::OldCoordinator),
    ),
    bug(
        "P21-any-cluster-decides",
        "a participant takes commands from the coordinator of another cluster",
        Layer::Script(Script::OtherCluster),
    ),
    bug(
        "P21-any-database-of-that-name",
        "another database is served under a name that is taken",
        Layer::Script(Script::OtherDatabase),
    ),
    bug(
        "P21-an-old-primary-is-served",
        "a primary that a failover has left behind is served beside the promoted one",
        Layer::Script(Script::OldPrimary),
    ),
    // ---- the embedded log ----
    bug(
        "P1-a-sealed-epoch-decides",
        "a decision is written though the epoch's row is not what its node left there",
        Layer::Log(Promise::OneOwner),
    ),
    bug(
        "AC2-a-decision-is-replaced",
        "a second decision is written where another one stands",
        Layer::Log(Promise::Stability),
    ),
    bug("P5-earlier-epochs-stay-unsealed", "opening the log seals nothing", Layer::Log(Promise::Sealed)),
    bug(
        "P6-goes-on-after-a-failed-write",
        "the log is read and written after a write of unknown result",
        Layer::Log(Promise::Broken),
    ),
    bug(
        "P7-prunes-above-the-floors",
        "records are pruned of which a resource manager may still hold a branch",
        Layer::Log(Promise::Floors),
    ),
    bug(
        "P7-the-horizon-stays-behind",
        "records are pruned, and the horizon is not raised",
        Layer::Log(Promise::Horizon),
    ),
    // ---- a store's evidence ----
    bug(
        "P15-a-fence-is-evidence",
        "the kind of an evidence row is not looked at: a fence is read as committed",
        Layer::Store(&[Rule::LatePrepareIsRefused, Rule::UnknownIsFenced]),
    ),
    bug(
        "P15-a-duplicate-is-overlooked",
        "evidence that meets a fence is taken to have been written",
        Layer::Store(&[Rule::LatePrepareIsRefused, Rule::CommitRepeats]),
    ),
    bug(
        "P15-no-fence",
        "a rollback of a branch that is not there leaves no fence",
        Layer::Store(&[Rule::LatePrepareIsRefused, Rule::UnknownIsFenced]),
    ),
    bug(
        "P8-pruning-forgets-the-position",
        "the newest log position goes with the evidence that held it",
        Layer::Store(&[Rule::SeenOutlivesEvidence]),
    ),
    bug(
        "P8-one-position-for-all-epochs",
        "the newest log position of one epoch hides that of another one, which is open at the same time",
        Layer::Store(&[Rule::SeenOfEachEpoch]),
    ),
    bug(
        "P19-evidence-is-old-at-once",
        "evidence is let go before the retention is over",
        Layer::Store(&[Rule::OldEvidenceIsListed]),
    ),
    bug(
        "P7-evidence-holds-nothing",
        "evidence does not count in what a store says it still holds",
        Layer::Store(&[Rule::OldestEvidenceIsOldest]),
    ),
    bug(
        "P19-prepares-after-the-deadline",
        "a branch is prepared though its deadline has passed",
        Layer::Store(&[Rule::DeadlineHolds]),
    ),
    bug(
        "P19-retention-counts-from-the-deadline",
        "the evidence of a commit that comes late is as old as its branch",
        Layer::Store(&[Rule::LateCommitIsKept]),
    ),
    // ---- what a person may do ----
    bug(
        "P14-who-does-not-answer-has-nothing",
        "an orphan may be rolled back though a resource manager has not said what it has of it",
        Layer::Script(Script::SilentResourceManager),
    ),
    // ---- what only real databases show ----
    schedule(
        "P3-reads-without-a-write",
        "what is read from a replicated log leaves the node though no standby has it",
        Schedule::ReadWithoutWrite,
    ),
    schedule(
        "P13-rolls-back-behind-a-commit",
        "an application that gives up waiting for its commit sends a rollback",
        Schedule::CancelledCommit,
    ),
    schedule(
        "P16-prepares-what-the-service-began",
        "PostgreSQL prepares the transaction that it finds, whoever began it",
        Schedule::OwnTransaction,
    ),
    schedule(
        "P18-prepares-without-evidence",
        "MariaDB is told to prepare though the branch's evidence was refused",
        Schedule::RefusedEvidence,
    ),
    schedule(
        "P18-lists-the-neighbours-branches",
        "on a MariaDB server with several resource managers, each takes all branches for its own",
        Schedule::Neighbour,
    ),
    schedule(
        "P19-old-when-first-seen",
        "a two-phase row of PostgreSQL or MariaDB is old when it is first seen, and its branch's deadline is long past",
        Schedule::LateCommit,
    ),
    schedule(
        "P22-any-setting-will-do",
        "a PostgreSQL server is served that can lose what it has confirmed",
        Schedule::TornPages,
    ),
    schedule(
        "P23-read-only-is-committed",
        "a branch that has written nothing is committed when it is asked for its vote",
        Schedule::Notification,
    ),
    schedule(
        "P24-unknown-xid-is-done",
        "MariaDB's \"unknown xid\" is taken for done, while the session is there that prepared the branch",
        Schedule::SessionStillThere,
    ),
    schedule(
        "P25-two-instances-of-a-file",
        "a SQLite file is served by as many instances as want to",
        Schedule::TwoInstances,
    ),
    schedule(
        "P26-before-images-are-not-compared",
        "a branch that is written again after a crash overwrites what has changed in between",
        Schedule::ChangedInBetween,
    ),
    schedule(
        "P27-acknowledged-before-the-end-mark",
        "a commit is acknowledged, and its evidence goes, while the journal still has its entry",
        Schedule::JournalComesBack,
    ),
];
