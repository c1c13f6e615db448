//! What a message about one branch does to that branch.

use lockstep_proto::Bqual;
use lockstep_proto::museum::mutated;

use super::Transaction;
use crate::protocol::branch::BranchState;
use crate::protocol::event::{Applied, Event, Rejected, Vote};
use crate::protocol::outcome::BranchEnd;

impl Transaction {
    /// Notes a vote. `Some` with the reason if the transaction can't commit after it.
    pub(super) fn record_vote(&mut self, bqual: &Bqual, vote: Vote) -> Result<Option<String>, Rejected> {
        let branch = self.known(bqual)?;
        if branch.has_voted(&vote) {
            return Ok(None);
        }
        if !branch.awaits_vote() {
            let why = format!("the branch is {} and cannot vote that now", branch.state_name());
            return self.reject(Event::Voted(bqual.clone(), vote), &why);
        }
        let (state, refused) = match vote {
            Vote::Commit => (BranchState::Prepared, None),
            Vote::Rollback(_) if mutated("AC3-no-is-yes") => (BranchState::Prepared, None),
            Vote::ReadOnly if mutated("read-only-is-prepared") => (BranchState::Prepared, None),
            Vote::ReadOnly => (BranchState::Ended(BranchEnd::ReadOnly), None),
            Vote::Rollback(why) => (
                BranchState::Ended(BranchEnd::RolledBack),
                Some(format!("branch {bqual} voted rollback: {why}")),
            ),
            Vote::Hazard(why) => (
                BranchState::Ended(BranchEnd::Hazard),
                Some(format!("branch {bqual} ended before it was prepared: {why}")),
            ),
        };
        self.branch_mut(bqual).state = state;
        Ok(refused)
    }

    /// A vote that crossed the rollback: any but a commit vote says what an acknowledgement would. After a commit vote the
    /// branch is prepared, so that its session's end does not end it any more. Of a branch that has ended, by another instance's
    /// acknowledgement, a late vote says nothing, unless it is a hazard: what that instance fenced, this one's service had
    /// committed.
    pub(super) fn vote_after_rollback(&mut self, bqual: &Bqual, vote: &Vote) -> Result<(), Rejected> {
        if let Some(before) = self.known(bqual)?.ended() {
            let hazard =
                matches!(vote, Vote::Hazard(_)).then(|| after_another(before, Applied::Hazard)).flatten();
            self.branch_mut(bqual).state = BranchState::Ended(hazard.unwrap_or(before));
            return Ok(());
        }
        self.branch_mut(bqual).state = match vote {
            Vote::Commit => BranchState::Told,
            Vote::Rollback(_) => BranchState::Ended(BranchEnd::RolledBack),
            Vote::ReadOnly => BranchState::Ended(BranchEnd::ReadOnly),
            Vote::Hazard(_) => BranchState::Ended(BranchEnd::Hazard),
        };
        Ok(())
    }

    /// A vote that crossed a one-phase commit (P10). A commit vote is answered by the delivery under way. The others are the word
    /// of the instance that holds the branch, from before it saw the delivery: there is nothing left that could commit.
    pub(super) fn vote_after_one_phase(&mut self, bqual: &Bqual, vote: &Vote) -> Result<(), Rejected> {
        let branch = self.known(bqual)?;
        let end = match (branch.ended(), vote) {
            (None, Vote::Rollback(_)) => BranchEnd::RolledBack,
            (None, Vote::ReadOnly) => BranchEnd::ReadOnly,
            (None, Vote::Hazard(_)) => BranchEnd::Hazard,
            (None, Vote::Commit) | (Some(BranchEnd::ReadOnly), Vote::ReadOnly) => return Ok(()),
            (Some(_), Vote::Commit | Vote::Rollback(_) | Vote::ReadOnly | Vote::Hazard(_)) => {
                return self.reject(Event::Voted(bqual.clone(), vote.clone()), "the branch has ended");
            }
        };
        self.branch_mut(bqual).state = BranchState::Ended(end);
        Ok(())
    }

    /// A vote after the commit decision: only the one that the decision was made of.
    pub(super) fn vote_after_commit(&self, bqual: &Bqual, vote: &Vote) -> Result<(), Rejected> {
        let read_only = self.known(bqual)?.is_read_only();
        let fits = match vote {
            Vote::Commit => !read_only,
            Vote::ReadOnly => read_only,
            Vote::Rollback(_) | Vote::Hazard(_) => false,
        };
        if fits {
            return Ok(());
        }
        self.reject(Event::Voted(bqual.clone(), vote.clone()), "the branch had voted otherwise")
    }

    /// The session of a branch broke. `Some` with the reason if something was lost with it: a branch that had voted is durable,
    /// or over, and does not need its session any more.
    pub(super) fn lose(&mut self, bqual: &Bqual) -> Result<Option<String>, Rejected> {
        if mutated("P12-lost-branch-is-forgotten") && self.known(bqual)?.state == BranchState::Enlisted {
            self.branches.retain(|branch| branch.bqual != *bqual);
            return Ok(None);
        }
        if mutated("P12-lost-branch-has-voted") && self.known(bqual)?.state == BranchState::Preparing {
            self.branch_mut(bqual).state = BranchState::Prepared;
            return Ok(None);
        }
        let state = match self.known(bqual)?.state {
            BranchState::Enlisted | BranchState::ToldOpen => BranchState::Ended(BranchEnd::Lost),
            BranchState::Preparing => BranchState::InDoubt,
            BranchState::Prepared | BranchState::InDoubt | BranchState::Told | BranchState::Ended(_) => {
                return Ok(None);
            }
        };
        self.branch_mut(bqual).state = state;
        Ok(Some(format!("the session of branch {bqual} broke before it voted")))
    }

    /// The session of a branch broke while a decision was on its way to the log. That ends nothing (P10): a branch that had not
    /// voted may have been prepared early, or be committing by itself soon, at whichever instance comes next.
    pub(super) fn doubt(&mut self, bqual: &Bqual) -> Result<(), Rejected> {
        if self.known(bqual)?.state == BranchState::Enlisted {
            self.branch_mut(bqual).state = BranchState::InDoubt;
        }
        Ok(())
    }

    /// A branch that was told the decision says how it ended.
    pub(super) fn acknowledge(&mut self, bqual: &Bqual, applied: Applied) -> Result<(), Rejected> {
        let end = match self.known(bqual)?.state {
            BranchState::Told | BranchState::ToldOpen => Some(applied.into()),
            BranchState::Ended(before) => after_another(before, applied),
            BranchState::Enlisted | BranchState::Preparing | BranchState::Prepared | BranchState::InDoubt => {
                None
            }
        };
        let Some(end) = end else {
            let event = Event::Acknowledged(bqual.clone(), applied);
            return self.reject(event, "no decision was sent to this branch");
        };
        self.branch_mut(bqual).state = BranchState::Ended(end);
        Ok(())
    }

    /// An operator gives a branch up that was told the decision and has not said how it ended (P28).
    pub(super) fn abandon(&mut self, bqual: &Bqual) -> Result<(), Rejected> {
        match self.known(bqual)?.state {
            BranchState::Told | BranchState::ToldOpen => {}
            BranchState::Enlisted
            | BranchState::Preparing
            | BranchState::Prepared
            | BranchState::InDoubt
            | BranchState::Ended(_) => {
                return self.reject(Event::Abandoned(bqual.clone()), "no decision waits for this branch");
            }
        }
        self.branch_mut(bqual).state = BranchState::Ended(BranchEnd::Abandoned);
        Ok(())
    }

    /// An acknowledgement when every branch has ended and the end is written down, or about to be: only one that says the same.
    /// What says otherwise is found again when the branch's evidence is compared with the record (P19).
    pub(super) fn acknowledge_again(&self, bqual: &Bqual, applied: Applied) -> Result<(), Rejected> {
        let fits = match self.known(bqual)?.ended() {
            Some(BranchEnd::Committed) => applied == Applied::Committed,
            Some(BranchEnd::RolledBack | BranchEnd::ReadOnly | BranchEnd::Lost) => {
                applied == Applied::RolledBack
            }
            Some(BranchEnd::Hazard) => applied == Applied::Hazard,
            Some(BranchEnd::Abandoned) | None => false,
        };
        if fits {
            return Ok(());
        }
        let event = Event::Acknowledged(bqual.clone(), applied);
        self.reject(event, "the branch has ended otherwise, and that is on its way to the log")
    }
}

/// How a branch ended that said, or was taken, to have ended one way, and now acknowledges another. Whoever claims both ends has
/// proved neither: a hazard, which a person has to look at. That a branch went with its session was only assumed, and of one that was
/// given up nothing was known. `None`: it left
/// with a read-only vote, was told nothing, and has nothing to say; if it did write, its evidence will tell (P19).
fn after_another(before: BranchEnd, applied: Applied) -> Option<BranchEnd> {
    match (before, applied) {
        (BranchEnd::Lost | BranchEnd::Abandoned, proved) => Some(proved.into()),
        (BranchEnd::Committed, Applied::Committed)
        | (BranchEnd::RolledBack | BranchEnd::ReadOnly, Applied::RolledBack) => Some(before),
        (BranchEnd::Committed, Applied::RolledBack | Applied::Hazard)
        | (BranchEnd::RolledBack, Applied::Committed | Applied::Hazard)
        | (BranchEnd::Hazard, Applied::Committed | Applied::RolledBack | Applied::Hazard) => {
            Some(BranchEnd::Hazard)
        }
        (BranchEnd::ReadOnly, Applied::Committed | Applied::Hazard) => None,
    }
}
