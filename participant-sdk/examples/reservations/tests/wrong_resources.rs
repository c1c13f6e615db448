//! The contract kit is tested itself: for each of its rules there is a resource here that breaks it, and the kit says so.
//!
//! Each is a ledger, which keeps them all, behind a wrapper that does one thing wrong.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

mod wrong;

use lockstep::testing::{Rule, contract_of};
use wrong::WrongLedgers;

/// A test for each rule, of this name: a child process finds it by that.
macro_rules! each_is_found {
    ($($test:ident $rule:ident,)*) => {
        const TRIED: &[Rule] = &[$(Rule::$rule),*];

        $(
            #[tokio::test]
            async fn $test() {
                is_found(Rule::$rule).await;
            }
        )*
    };
}

async fn is_found(rule: Rule) {
    let report = contract_of(WrongLedgers::that_break(rule), &[rule]).await;
    assert_eq!(report.broken().collect::<Vec<_>>(), [rule]);
    let finding = &report.findings()[0];
    let broken = finding.broken.as_ref().unwrap();
    println!("{report}");
    let text = report.to_string();
    for part in [rule.name(), rule.text(), &broken.expected, &broken.happened] {
        assert!(text.contains(part), "{text}");
    }
    // It was the rule that was broken, and not the kit that could not go on.
    assert!(!broken.expected.starts_with("a child process"), "{text}");
}

each_is_found! {
    an_identity_that_changes IdentityStays,
    a_binding_that_changes BoundOnce,
    a_binding_that_rolls_back BindingDisturbsNothing,
    attaching_that_rolls_back AttachingDisturbsNothing,
    work_that_shows_when_it_is_prepared NothingShowsBeforeCommit,
    a_commit_that_does_nothing CommitApplies,
    a_rollback_that_does_nothing RollbackUndoes,
    a_vote_from_memory PreparedSurvives,
    a_commit_that_is_forgotten CommitRepeats,
    a_rollback_that_is_forgotten RollbackRepeats,
    a_rollback_without_a_fence LatePrepareIsRefused,
    an_answer_without_a_fence UnknownIsFenced,
    a_proof_that_rolls_back ProofCommitsPrepared,
    a_vote_for_nothing ReadOnlyLeavesNothing,
    a_one_phase_commit_without_evidence OnePhaseHasEvidence,
    a_one_phase_commit_over_a_fence OnePhaseIsFenced,
    a_discard_that_commits DiscardLeavesNothing,
    a_drop_that_commits DropLeavesNothing,
    a_commit_past_the_ledger_that_is_not_noticed OwnCommitIsHazard,
    a_vote_for_what_was_undone FailedWorkIsRefused,
    a_branch_without_a_deadline DeadlineHolds,
    a_listing_that_misses_one ListingIsComplete,
    a_listing_of_everyone ListingIsOwn,
    a_commit_by_xid_alone ForeignIsUntouched,
    a_rollback_that_does_not_look_again TasksAgree,
    a_commit_that_is_noted_before_it_is_done LostRepliesAreFound,
    evidence_that_nobody_hears_of OldestEvidenceIsOldest,
    evidence_that_ages_at_once OldEvidenceIsListed,
    a_late_commit_that_is_old_at_once LateCommitIsKept,
    evidence_that_stays ForgetDeletes,
    a_position_that_is_not_told SeenIsKept,
    a_commit_that_keeps_the_position_of_its_prepare SeenCoversCommits,
    a_position_that_goes_with_its_evidence SeenOutlivesEvidence,
    a_position_that_hides_those_of_other_epochs SeenOfEachEpoch,
    attaching_that_does_not_survive_itself CrashWhileAttaching,
    a_vote_before_it_is_durable CrashWhilePreparing,
    a_commit_that_is_undone_after_a_crash CrashWhileCommitting,
    a_rollback_that_is_undone_after_a_crash CrashWhileRollingBack,
    a_one_phase_answer_before_it_is_durable CrashInOnePhase,
    forgetting_that_loses_the_position CrashWhileForgetting,
}

#[test]
fn there_is_a_wrong_resource_for_each_rule() {
    assert_eq!(TRIED, Rule::ALL);
}
