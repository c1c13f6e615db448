//! What the log's answers mean, as tables: every record, in every state of its epoch, for every question.

use lockstep_proto::{Bqual, Xid};

use super::names::{bqual, gtrid};
use crate::protocol::event::Applied;
use crate::protocol::outcome::{BranchEnd, Heuristic, Outcome};
use crate::protocol::presumption::{
    EpochState, Judgement, Known, LookUp, PreparedFate, Recorded, conclude, judge, late_end, prepared_fate,
};
use crate::protocol::record::{About, DecisionKind, DecisionRecord, EndRecord};
use crate::protocol::situation::{Proof, Standing};

const EPOCHS: [EpochState; 4] = [EpochState::Own, EpochState::Sealed, EpochState::Live, EpochState::Unknown];

/// A decision about the branch `a`.
fn decision(kind: DecisionKind) -> DecisionRecord {
    DecisionRecord {
        gtrid: gtrid(1),
        kind,
        branches: vec![bqual("a")],
        decided_ms: 1,
        about: About::default(),
    }
}

/// An end in which `a` did this.
fn end(outcome: Outcome, a: BranchEnd) -> EndRecord {
    let branches = vec![(bqual("a"), a)];
    EndRecord {
        gtrid: gtrid(1),
        outcome,
        detail: String::new(),
        branches,
        ended_ms: 2,
        about: About::default(),
    }
}

/// Every combination of what is known about the epoch and the horizon, with this record.
fn look_ups(recorded: &Recorded) -> Vec<(LookUp, bool)> {
    let mut all = Vec::new();
    for epoch in EPOCHS {
        for below_horizon in [false, true] {
            for behind in [false, true] {
                all.push((LookUp { recorded: recorded.clone(), epoch, below_horizon }, behind));
            }
        }
    }
    all
}

/// The records there are, by name.
fn record(name: &str) -> Recorded {
    let commit = || decision(DecisionKind::Commit);
    let intent = || decision(DecisionKind::OnePhaseIntent);
    let mixed = Outcome::Heuristic(Heuristic::Mixed);
    match name {
        "commit" => Recorded::Decided(commit()),
        "intent" => Recorded::Decided(intent()),
        "commit, committed" => Recorded::Ended(Some(commit()), end(Outcome::Committed, BranchEnd::Committed)),
        "commit, heuristic, a committed" => Recorded::Ended(Some(commit()), end(mixed, BranchEnd::Committed)),
        "commit, heuristic, a rolled back" => {
            Recorded::Ended(Some(commit()), end(mixed, BranchEnd::RolledBack))
        }
        "intent, committed" => Recorded::Ended(Some(intent()), end(Outcome::Committed, BranchEnd::Committed)),
        "intent, rolled back" => {
            Recorded::Ended(Some(intent()), end(Outcome::RolledBack, BranchEnd::RolledBack))
        }
        "intent, nothing to commit" => {
            Recorded::Ended(Some(intent()), end(Outcome::NothingToCommit, BranchEnd::ReadOnly))
        }
        "intent, heuristic, a hazard" => Recorded::Ended(Some(intent()), end(mixed, BranchEnd::Hazard)),
        "rolled back, a lost" => Recorded::Ended(None, end(Outcome::RolledBack, BranchEnd::Lost)),
        "heuristic, a committed" => Recorded::Ended(None, end(mixed, BranchEnd::Committed)),
        other => panic!("no such record: {other}"),
    }
}

/// Absence proves a rollback only if no record can appear any more and none has been removed (P4, P7, P8, P9).
#[test]
fn silence_is_a_rollback_only_where_nothing_can_be_hidden_by_it() {
    for (look_up, behind) in look_ups(&Recorded::Absent) {
        let expected = match (look_up.epoch, look_up.below_horizon, behind) {
            (EpochState::Own | EpochState::Sealed, false, false) => Some(Known::PresumedRolledBack),
            // Its coordinator may still decide: also where this log has lost something (P14).
            (EpochState::Live, false, false) | (EpochState::Live, _, true) => Some(Known::Elsewhere),
            (EpochState::Own | EpochState::Sealed | EpochState::Live | EpochState::Unknown, _, _) => None,
        };
        match (conclude(&look_up, behind), expected) {
            (Known::Unknown(why), None) => assert!(!why.is_empty()),
            (known, Some(expected)) => assert_eq!(known, expected, "{look_up:?}, behind: {behind}"),
            (known, None) => panic!("{known:?} was concluded from {look_up:?}, behind: {behind}"),
        }
    }
}

/// A record counts whatever else is known: nothing that was lost or pruned can contradict it.
#[test]
fn a_record_is_what_it_says() {
    let ended = |outcome| Known::Ended(outcome, String::new());
    let mixed = ended(Outcome::Heuristic(Heuristic::Mixed));
    let table = [
        ("commit", Known::Committing),
        ("intent", Known::OnePhase),
        ("commit, committed", ended(Outcome::Committed)),
        ("commit, heuristic, a committed", mixed.clone()),
        ("intent, committed", ended(Outcome::Committed)),
        ("intent, rolled back", ended(Outcome::RolledBack)),
        ("intent, nothing to commit", ended(Outcome::NothingToCommit)),
        ("rolled back, a lost", ended(Outcome::RolledBack)),
        ("heuristic, a committed", mixed),
    ];
    for (name, expected) in table {
        for (look_up, behind) in look_ups(&record(name)) {
            assert_eq!(conclude(&look_up, behind), expected, "{name}");
        }
    }
}

/// What becomes of a branch that is listed as prepared: `a`, which the decision names, and `b`, which it does not.
#[test]
fn a_prepared_branch_follows_the_decision_that_names_it() {
    use PreparedFate::{Commit, Rollback, StillRunning, Unknown};
    let operator = Unknown("its one-phase commit has a heuristic outcome on record: an operator decides");
    let table = [
        ("commit", Commit, Rollback),
        ("intent", Commit, Rollback),
        ("commit, committed", Commit, Rollback),
        ("commit, heuristic, a committed", Commit, Rollback),
        ("commit, heuristic, a rolled back", Commit, Rollback),
        ("intent, committed", Commit, Rollback),
        ("intent, rolled back", Rollback, Rollback),
        ("intent, nothing to commit", Rollback, Rollback),
        ("intent, heuristic, a hazard", operator, Rollback),
        ("rolled back, a lost", Rollback, Rollback),
        ("heuristic, a committed", Rollback, Rollback),
    ];
    for (name, a, b) in table {
        for (look_up, behind) in look_ups(&record(name)) {
            assert_eq!(prepared_fate(&look_up, behind, &bqual("a")), a, "{name}: a");
            assert_eq!(prepared_fate(&look_up, behind, &bqual("b")), b, "{name}: b");
        }
    }
    for (look_up, behind) in look_ups(&Recorded::Absent) {
        let presumed = conclude(&look_up, behind) == Known::PresumedRolledBack;
        let fate = prepared_fate(&look_up, behind, &bqual("a"));
        assert_eq!(fate == Rollback, presumed, "{look_up:?}");
        assert_ne!(fate, Commit, "{look_up:?}");
        // Its coordinator will decide it, or be sealed: nothing for an operator.
        let elsewhere = look_up.epoch == EpochState::Live && (behind || !look_up.below_horizon);
        assert_eq!(fate == StillRunning, elsewhere, "{look_up:?}");
    }
}

/// How a branch turned out to have ended, against the record: committed, rolled back, hazard; of `a` and of `b`.
#[test]
fn a_late_end_is_compared_with_the_record() {
    use Judgement::{Agrees, Differs, Open};
    let table = [
        ("commit", [Open, Open, Open], [Open, Open, Open]),
        ("intent", [Open, Open, Open], [Open, Open, Open]),
        ("commit, committed", [Agrees, Differs, Differs], [Differs, Agrees, Differs]),
        ("commit, heuristic, a committed", [Agrees, Differs, Differs], [Differs, Agrees, Differs]),
        ("commit, heuristic, a rolled back", [Differs, Agrees, Differs], [Differs, Agrees, Differs]),
        ("intent, committed", [Agrees, Differs, Differs], [Differs, Agrees, Differs]),
        ("intent, rolled back", [Differs, Agrees, Differs], [Differs, Agrees, Differs]),
        ("intent, nothing to commit", [Differs, Agrees, Differs], [Differs, Agrees, Differs]),
        ("intent, heuristic, a hazard", [Differs, Differs, Agrees], [Differs, Agrees, Differs]),
        ("rolled back, a lost", [Differs, Agrees, Differs], [Differs, Agrees, Differs]),
        ("heuristic, a committed", [Agrees, Differs, Differs], [Differs, Agrees, Differs]),
    ];
    let ends = [Applied::Committed, Applied::RolledBack, Applied::Hazard];
    for (name, a, b) in table {
        for (look_up, behind) in look_ups(&record(name)) {
            assert_eq!(ends.map(|end| judge(&look_up, behind, &bqual("a"), end)), a, "{name}: a");
            assert_eq!(ends.map(|end| judge(&look_up, behind, &bqual("b"), end)), b, "{name}: b");
        }
    }
}

/// P19: above the horizon an unknown row is a heuristic commit, below it it was judged before. P8: unless the log itself is not to
/// be trusted, or never gave the epoch out.
#[test]
fn a_late_end_without_a_record_is_judged_only_by_a_log_that_can() {
    for (look_up, behind) in look_ups(&Recorded::Absent) {
        let judged = |applied| judge(&look_up, behind, &bqual("a"), applied);
        let (committed, rolled_back) = match (look_up.epoch, look_up.below_horizon, behind) {
            (EpochState::Own | EpochState::Sealed, false, false) => (Judgement::Differs, Judgement::Agrees),
            (EpochState::Own | EpochState::Sealed | EpochState::Live, true, false) => {
                (Judgement::Agrees, Judgement::Agrees)
            }
            (EpochState::Own | EpochState::Sealed | EpochState::Live | EpochState::Unknown, _, _) => {
                (Judgement::Open, Judgement::Open)
            }
        };
        assert_eq!(judged(Applied::Committed), committed, "{look_up:?}, behind: {behind}");
        assert_eq!(judged(Applied::Hazard), committed, "{look_up:?}, behind: {behind}");
        assert_eq!(judged(Applied::RolledBack), rolled_back, "{look_up:?}, behind: {behind}");
    }
}

/// What goes on record when `a`, or `b`, which the decision does not name, turns out to have ended so.
#[test]
fn a_late_end_that_differs_is_heuristic() {
    use Applied::{Committed, Hazard, RolledBack};
    let table = [
        ("commit, committed", "a", RolledBack, Heuristic::Rollback),
        ("commit, committed", "a", Hazard, Heuristic::Hazard),
        ("commit, committed", "b", Committed, Heuristic::Commit),
        ("commit, committed", "b", Hazard, Heuristic::Hazard),
        ("commit, heuristic, a rolled back", "a", Committed, Heuristic::Commit),
        ("commit, heuristic, a rolled back", "b", Committed, Heuristic::Mixed),
        ("intent, committed", "a", RolledBack, Heuristic::Rollback),
        ("intent, rolled back", "a", Committed, Heuristic::Commit),
        ("intent, heuristic, a hazard", "a", Committed, Heuristic::Commit),
        ("rolled back, a lost", "a", Committed, Heuristic::Commit),
        ("rolled back, a lost", "b", Committed, Heuristic::Mixed),
        ("heuristic, a committed", "b", Committed, Heuristic::Commit),
    ];
    let absent = [("a", Committed, Heuristic::Commit), ("a", Hazard, Heuristic::Hazard)];
    let recorded = table.map(|(name, branch, applied, expected)| (record(name), branch, applied, expected));
    let absent = absent.map(|(branch, applied, expected)| (Recorded::Absent, branch, applied, expected));
    for (recorded, branch, applied, expected) in recorded.into_iter().chain(absent) {
        let look_up = LookUp { recorded, epoch: EpochState::Own, below_horizon: false };
        let xid = Xid { gtrid: gtrid(1), bqual: bqual(branch) };
        assert_eq!(judge(&look_up, false, &xid.bqual, applied), Judgement::Differs, "{look_up:?}");
        let end = late_end(&look_up, &xid, applied, 9);
        assert_eq!(end.outcome, Outcome::Heuristic(expected), "{look_up:?}, {branch} {applied}");

        // Once that is on record, the same is no news any more, and what the others did is still there.
        let decision = look_up.recorded.decision().cloned();
        let others = end.branches.len();
        let again = LookUp { recorded: Recorded::Ended(decision, end), ..look_up.clone() };
        assert_eq!(judge(&again, false, &xid.bqual, applied), Judgement::Agrees, "{again:?}");
        let recorded = look_up.recorded.end().map_or(0, |end| end.branches.len());
        assert_eq!(others, recorded + usize::from(branch == "b" || recorded == 0), "{again:?}");
    }
}

/// What is on record and not live here is live where it is delivered, unless the epoch is this node's own.
#[test]
fn a_decision_that_is_not_live_here_is_another_nodes() {
    let open = Standing::Heuristic { acknowledged: false };
    let table = [
        ("commit", Standing::Committing),
        ("intent", Standing::OnePhase),
        ("commit, committed", Standing::Ended),
        ("intent, heuristic, a hazard", open),
    ];
    for (name, here) in table {
        let ended = record(name).end().is_some();
        for (look_up, behind) in look_ups(&record(name)) {
            let elsewhere = !ended && look_up.epoch != EpochState::Own;
            let expected = if elsewhere { Standing::Elsewhere } else { here };
            assert_eq!(Standing::of_recorded(&look_up, behind, false), Some(expected), "{name}: {look_up:?}");
        }
    }
    for (look_up, behind) in look_ups(&Recorded::Absent) {
        let expected = match conclude(&look_up, behind) {
            Known::PresumedRolledBack => Some(Standing::RollingBack),
            Known::Elsewhere => Some(Standing::Elsewhere),
            Known::Ended(..) | Known::Committing | Known::OnePhase | Known::Unknown(_) => None,
        };
        assert_eq!(Standing::of_recorded(&look_up, behind, false), expected, "{look_up:?}");
    }
}

/// P10: a one-phase commit that was given up can be resolved when its branch turns out to be prepared.
#[test]
fn a_prepared_branch_of_which_the_record_does_not_tell_is_an_operators() {
    let proof = Some(Proof::NotCommitted);
    for (look_up, behind) in look_ups(&record("intent, heuristic, a hazard")) {
        let of = |bqual: &Bqual| Standing::of_prepared(&look_up, behind, true, [bqual].into_iter(), proof);
        assert_eq!(of(&bqual("a")), Standing::Intended(Proof::NotCommitted));
        assert_eq!(of(&bqual("b")), Standing::Heuristic { acknowledged: true }, "it is told to roll back");
    }
    for (look_up, behind) in look_ups(&record("commit, heuristic, a rolled back")) {
        let found = Standing::of_prepared(&look_up, behind, false, [&bqual("a")].into_iter(), proof);
        assert_eq!(found, Standing::Heuristic { acknowledged: false }, "it is told to commit");
    }
}
