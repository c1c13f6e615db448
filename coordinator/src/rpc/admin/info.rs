//! What is told of a transaction, from where it lives or from its record.

use lockstep_proto::{Bqual, Gtrid, v1};

use crate::decision_log::Recorded;
use crate::decision_log::audit::AuditRecord;
use crate::engine::input::{BranchView, TransactionView};
use crate::protocol::branch::Branch;
use crate::protocol::outcome::{BranchEnd, Outcome};
use crate::protocol::record::{About, DecisionKind, DecisionRecord, EndRecord};
use crate::protocol::situation::{Situation, Standing};
use crate::protocol::transaction::State;
use crate::rpc::wire_outcome;

/// Of one that is live.
pub(super) fn live_info(view: TransactionView) -> v1::TransactionInfo {
    let standing = Standing::of_live(&view.state, view.overdue);
    let (situation, paused) = (situation(standing, view.overdue), view.paused);
    let committed = standing == Standing::Committing;
    let (outcome, detail, can_change) = match &view.state {
        State::Active
        | State::Preparing
        | State::Deciding(_)
        | State::DecisionUnknown(_)
        | State::CommittingOnePhase => (None, String::new(), true),
        State::RollbackOnly(why) | State::RollingBack(why) => (Some(Outcome::RolledBack), why.clone(), false),
        State::Committing => (Some(Outcome::Committed), String::new(), false),
        State::Recording(end) => (Some(end.outcome), end.detail.clone(), false),
        State::Ended(outcome, detail) => (Some(*outcome), detail.clone(), false),
    };
    v1::TransactionInfo {
        state: wire_state(&view.state).into(),
        outcome: wire_outcome(outcome).into(),
        detail,
        deadline_ms: view.deadline_ms,
        decided_ms: view.decided_ms,
        branches: view.branches.into_iter().map(|branch| live_branch(branch, committed)).collect(),
        can_change,
        situation: situation.into(),
        paused,
        ..info(view.gtrid, view.about)
    }
}

/// How a branch in this state has voted, as far as that is proved. `committed`: it was decided so in two phases, for which everyone had voted,
/// whatever became of the branch then. One that is rolled back may have voted for either; the transaction's detail names who refused.
fn vote(state: &str, committed: bool) -> &'static str {
    match state {
        "read-only" => "read-only",
        "prepared" | "committed" => "commit",
        _whatever_became_of_it if committed => "commit",
        _not_known => "",
    }
}

fn live_branch(branch: BranchView, committed: bool) -> v1::BranchInfo {
    let next = branch.delivery.next_in.unwrap_or_default();
    v1::BranchInfo {
        attempts: branch.delivery.attempts,
        next_attempt_in_ms: u64::try_from(next.as_millis()).unwrap_or(u64::MAX),
        last_error: branch.delivery.last_error,
        vote: vote(branch.state, committed).to_owned(),
        ..branch_info(&branch.bqual, branch.state)
    }
}

fn wire_state(state: &State) -> v1::TransactionState {
    match state {
        State::Active => v1::TransactionState::Active,
        State::Preparing => v1::TransactionState::Preparing,
        State::Deciding(_) | State::DecisionUnknown(_) => v1::TransactionState::Deciding,
        State::Committing => v1::TransactionState::Committing,
        State::CommittingOnePhase => v1::TransactionState::CommittingOnePhase,
        State::RollbackOnly(_) | State::RollingBack(_) => v1::TransactionState::RollingBack,
        State::Recording(_) | State::Ended(..) => v1::TransactionState::Ended,
    }
}

/// Of one that has ended. `acknowledged`: its heuristic outcome was.
pub(super) fn ended_info(
    decision: Option<&DecisionRecord>,
    end: EndRecord,
    acknowledged: bool,
) -> v1::TransactionInfo {
    let standing = Standing::of_ended(end.outcome, acknowledged);
    let decided = |bqual: &Bqual| decision.is_some_and(|decision| has_committed(decision, bqual));
    let ended = end.branches.iter().map(|(bqual, how)| ended_branch(bqual, *how, decided(bqual)));
    let branches = ended.collect();
    v1::TransactionInfo {
        state: v1::TransactionState::Ended.into(),
        outcome: wire_outcome(Some(end.outcome)).into(),
        detail: end.detail,
        decided_ms: decision.map_or(0, |decision| decision.decided_ms),
        ended_ms: end.ended_ms,
        branches,
        situation: situation(standing, false).into(),
        acknowledged,
        ..info(end.gtrid, end.about)
    }
}

/// Recorded and not live here: at another node, in an export, or in the log of a coordinator that is stopped.
pub(super) fn decided_info(decision: DecisionRecord) -> v1::TransactionInfo {
    let (state, outcome, can_change) = match decision.kind {
        DecisionKind::Commit => (v1::TransactionState::Committing, Some(Outcome::Committed), false),
        // Whether its only branch has committed stands in its database alone (P10).
        DecisionKind::OnePhaseIntent => (v1::TransactionState::CommittingOnePhase, None, true),
    };
    let delivering = |bqual: &Bqual| v1::BranchInfo {
        vote: vote(Branch::DELIVERING, !can_change).to_owned(),
        ..branch_info(bqual, Branch::DELIVERING)
    };
    v1::TransactionInfo {
        state: state.into(),
        outcome: wire_outcome(outcome).into(),
        can_change,
        decided_ms: decision.decided_ms,
        situation: v1::Situation::Undelivered.into(),
        branches: decision.branches.iter().map(delivering).collect(),
        ..info(decision.gtrid, decision.about)
    }
}

fn info(gtrid: Gtrid, about: About) -> v1::TransactionInfo {
    v1::TransactionInfo {
        gtrid: gtrid.to_string(),
        name: about.name,
        labels: about.labels.into_iter().collect(),
        began_ms: gtrid.unix_ms(),
        traceparent: about.trace.map_or(String::new(), |trace| trace.to_string()),
        ..v1::TransactionInfo::default()
    }
}

fn branch_info(bqual: &Bqual, state: &str) -> v1::BranchInfo {
    v1::BranchInfo {
        bqual: bqual.to_string(),
        resource_manager: bqual.resource_manager().to_string(),
        state: state.to_owned(),
        ..v1::BranchInfo::default()
    }
}

/// Whether this branch is among those that were decided to commit, for which all of them had voted.
fn has_committed(decision: &DecisionRecord, bqual: &Bqual) -> bool {
    decision.kind == DecisionKind::Commit && decision.branches.contains(bqual)
}

/// What the decision tells of a transaction that was made from its end alone.
pub(super) fn add_decision(info: &mut v1::TransactionInfo, decision: &DecisionRecord) {
    info.decided_ms = decision.decided_ms;
    for branch in &mut info.branches {
        let committed = branch.bqual.parse().is_ok_and(|bqual| has_committed(decision, &bqual));
        vote(&branch.state, committed).clone_into(&mut branch.vote);
    }
}

fn ended_branch(bqual: &Bqual, how: BranchEnd, committed: bool) -> v1::BranchInfo {
    v1::BranchInfo { vote: vote(how.name(), committed).to_owned(), ..branch_info(bqual, how.name()) }
}

/// From its record; `None` if there is none.
pub(crate) fn recorded_info(recorded: Recorded, acknowledged: bool) -> Option<v1::TransactionInfo> {
    match recorded {
        Recorded::Ended(decision, end) => Some(ended_info(decision.as_ref(), end, acknowledged)),
        Recorded::Decided(decision) => Some(decided_info(decision)),
        Recorded::Absent => None,
    }
}

fn situation(standing: Standing, overdue: bool) -> v1::Situation {
    standing.situation(overdue).map_or(v1::Situation::Unspecified, wire_situation)
}

/// The wire's word for a situation.
pub(super) fn wire_situation(situation: Situation) -> v1::Situation {
    match situation {
        Situation::Undelivered => v1::Situation::Undelivered,
        Situation::Undecided => v1::Situation::Undecided,
        Situation::Orphan => v1::Situation::Orphan,
        Situation::Heuristic => v1::Situation::Heuristic,
    }
}

/// An operator's action, as it is told.
pub(crate) fn audit_entry(record: AuditRecord) -> v1::AuditEntry {
    let operation = record.operation;
    v1::AuditEntry {
        id: record.id,
        at_ms: operation.at_ms,
        who: operation.who,
        action: operation.action,
        subject: operation.subject,
        gtrid: operation.gtrid.map_or(String::new(), |gtrid| gtrid.to_string()),
        reason: operation.reason,
        before: operation.before,
        after: operation.after,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        About, Bqual, BranchEnd, DecisionKind, DecisionRecord, EndRecord, Gtrid, Outcome, decided_info,
        ended_info, v1,
    };
    use crate::protocol::outcome::Heuristic;

    fn decision(kind: DecisionKind) -> DecisionRecord {
        let gtrid = Gtrid::new(lockstep_proto::Epoch::new(1).expect("not 0"), 1, [1; 10]);
        let bqual = Bqual::new(&"orders-db".parse().expect("a name"), 1);
        DecisionRecord { gtrid, kind, branches: vec![bqual], decided_ms: 2, about: About::default() }
    }

    /// P10: an intent is no commit; nobody may read one out of it.
    #[test]
    fn an_intent_on_record_is_shown_as_undecided() {
        let intent = decided_info(decision(DecisionKind::OnePhaseIntent));
        assert_eq!(intent.state(), v1::TransactionState::CommittingOnePhase);
        assert_eq!((intent.outcome(), intent.can_change), (v1::Outcome::Undecided, true));
        assert_eq!(intent.branches[0].vote, "");
        let commit = decided_info(decision(DecisionKind::Commit));
        assert_eq!(commit.state(), v1::TransactionState::Committing);
        assert_eq!((commit.outcome(), commit.can_change), (v1::Outcome::Committed, false));
        assert_eq!(commit.branches[0].vote, "commit", "a durable commit proves it");
    }

    /// A branch that was rolled back by hand had voted for the commit; one that was told to roll back may have, too.
    #[test]
    fn how_a_branch_ended_is_not_taken_for_its_vote() {
        let decision = decision(DecisionKind::Commit);
        let end = EndRecord {
            gtrid: decision.gtrid,
            outcome: Outcome::Heuristic(Heuristic::Rollback),
            detail: String::new(),
            ended_ms: 3,
            branches: vec![(decision.branches[0].clone(), BranchEnd::RolledBack)],
            about: About::default(),
        };
        let shown = ended_info(Some(&decision), end.clone(), false);
        assert_eq!(shown.branches[0].vote, "commit");
        let rolled_back = EndRecord { outcome: Outcome::RolledBack, ..end };
        assert_eq!(ended_info(None, rolled_back, false).branches[0].vote, "");
    }
}
