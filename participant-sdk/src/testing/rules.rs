//! What is tried, as a list.

use std::fmt;

use super::site::Site;
use super::{Broken, Subject, attaching, branches, crashes, evidence, interference};

/// Defines the rules: their names, what they say, and the function that tries each.
macro_rules! rules {
    ($($variant:ident $name:literal $text:literal $attempt:path;)*) => {
        /// A rule that every resource keeps.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $(#[doc = $text] $variant,)*
        }

        impl Rule {
            /// All of them, in the order in which they are best read.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it says.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Tries it.
            pub(super) async fn attempt<S: Subject>(self, site: &Site<'_, S>) -> Result<(), Broken> {
                match self { $(Self::$variant => Box::pin($attempt(site)).await,)* }
            }
        }
    };
}

rules! {
    IdentityStays "identity-stays"
        "The identity is made at the first attach, is the same ever after, and no two stores share one."
        attaching::identity;
    BoundOnce "bound-once"
        "A store belongs to the first cluster that it was bound to, also after a restart."
        attaching::binding;
    BindingDisturbsNothing "binding-disturbs-nothing"
        "Binding, for the first time or again, leaves open branches and prepared ones as they are."
        attaching::binding_beside;
    AttachingDisturbsNothing "attaching-disturbs-nothing"
        "Attaching again leaves open branches and prepared ones as they are."
        attaching::again;

    NothingShowsBeforeCommit "nothing-shows-before-commit"
        "The work of an open or a prepared branch is seen by nobody else."
        branches::isolation;
    CommitApplies "commit-applies"
        "When a commit was answered with committed, the work is there, and the branch is not listed as prepared any more."
        branches::commit;
    RollbackUndoes "rollback-undoes"
        "When a rollback was answered with rolled back, the work is gone, and so are its locks."
        branches::rollback;
    PreparedSurvives "prepared-survives"
        "A prepared branch is listed after a restart, and can go either way."
        branches::survival;
    CommitRepeats "commit-repeats"
        "A branch that is committed stays so, whatever is asked of it, and however often."
        branches::commit_repeats;
    RollbackRepeats "rollback-repeats"
        "A branch that is rolled back stays so, whatever is asked of it, and however often."
        branches::rollback_repeats;
    LatePrepareIsRefused "late-prepare-is-refused"
        "A branch that was answered with rolled back can't be prepared any more."
        branches::late_prepare;
    UnknownIsFenced "unknown-is-fenced"
        "A commit, or a proof, of a branch that nobody knows is answered with rolled back, and holds from then on."
        branches::unknown;
    ProofCommitsPrepared "proof-commits-prepared"
        "A prepared branch that is to be proved is committed."
        branches::proof;
    ReadOnlyLeavesNothing "read-only-leaves-nothing"
        "A branch that only read votes read-only, and leaves nothing behind."
        branches::read_only;
    OnePhaseHasEvidence "one-phase-has-evidence"
        "A commit in one phase is applied at once, and can be proved ever after."
        branches::one_phase;
    OnePhaseIsFenced "one-phase-is-fenced"
        "A branch that was answered with rolled back can't be committed in one phase any more."
        branches::late_one_phase;
    DiscardLeavesNothing "discard-leaves-nothing"
        "A branch that is discarded leaves no work, no lock, and nothing prepared."
        branches::discard;
    DropLeavesNothing "drop-leaves-nothing"
        "An open branch that is dropped leaves no work, no lock, and nothing prepared."
        branches::dropped;
    OwnCommitIsHazard "own-commit-is-hazard"
        "A branch of which its service has committed something by itself votes hazard, and whoever asks later is told so."
        branches::committed_by_itself;
    FailedWorkIsRefused "failed-work-is-refused"
        "A branch of which the store has undone a part votes no, also if its handler kept the error to itself."
        branches::failed_silently;
    DeadlineHolds "deadline-holds"
        "A branch whose deadline has passed by some seconds is neither prepared nor committed in one phase."
        branches::deadline;

    ListingIsComplete "listing-is-complete"
        "All prepared branches are listed, and no others."
        interference::listing;
    ListingIsOwn "listing-is-own"
        "Branches of other clusters, or of other resource managers in the same store, are not listed."
        interference::own_listing;
    ForeignIsUntouched "foreign-is-untouched"
        "What is asked of a branch of one cluster does nothing to one of the same name of another."
        interference::foreign;
    TasksAgree "tasks-agree"
        "Two tasks that ask about one branch at the same time get the same answer, and it holds."
        interference::two_tasks;
    LostRepliesAreFound "lost-replies-are-found"
        "When whoever asked goes away in the middle, asking again finds the truth."
        interference::lost_replies;

    OldestEvidenceIsOldest "oldest-evidence-is-oldest"
        "The oldest evidence is that of the oldest transaction of this cluster that committed here, whenever that was."
        evidence::oldest;
    OldEvidenceIsListed "old-evidence-is-listed"
        "Evidence is listed as old when its deadline has passed by the retention, with what it proves, and no more than asked for."
        evidence::old;
    LateCommitIsKept "late-commit-is-kept"
        "Evidence of a commit that came long after its branch's deadline stays as long as any other: the retention counts from the commit."
        evidence::late_commit;
    ForgetDeletes "forget-deletes"
        "What is forgotten is gone, other evidence and the work itself stay, and forgetting twice is no error."
        evidence::forget;
    SeenIsKept "seen-is-kept"
        "The newest log position of any evidence or fence is reported at attach, also after a restart."
        evidence::seen;
    SeenCoversCommits "seen-covers-commits"
        "The log position that came with a commit is reported at attach, after a restart too: it is newer than the prepare's."
        evidence::seen_by_commit;
    SeenOutlivesEvidence "seen-outlives-evidence"
        "The newest log position is reported also when the evidence that held it was forgotten."
        evidence::seen_after_forget;
    SeenOfEachEpoch "seen-of-each-epoch"
        "The newest log position of each epoch is reported, in whatever order they came, after a restart and without their evidence too."
        evidence::seen_of_each_epoch;

    CrashWhileAttaching "crash-while-attaching"
        "A process that is killed while it attaches loses neither the identity nor a prepared branch."
        crashes::attaching;
    CrashWhilePreparing "crash-while-preparing"
        "A process that is killed while it prepares leaves a branch that can be rolled back; one that had voted leaves it prepared."
        crashes::preparing;
    CrashWhileCommitting "crash-while-committing"
        "A process that is killed while it commits leaves a branch that is prepared or committed."
        crashes::committing;
    CrashWhileRollingBack "crash-while-rolling-back"
        "A process that is killed while it rolls back leaves a branch that is prepared or rolled back."
        crashes::rolling_back;
    CrashInOnePhase "crash-in-one-phase"
        "A process that is killed while it commits in one phase leaves a branch of which it can be proved what became of it."
        crashes::one_phase;
    CrashWhileForgetting "crash-while-forgetting"
        "A process that is killed while it forgets evidence does not lose the newest log position with it."
        crashes::forgetting;
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
