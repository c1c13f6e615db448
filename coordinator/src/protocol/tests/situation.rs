//! What may be done in which situation, as a table: every standing, every action.

use crate::protocol::outcome::{Heuristic, Outcome};
use crate::protocol::presumption::{EpochState, LookUp, Recorded};
use crate::protocol::record::DecisionKind;
use crate::protocol::situation::{Action, Forbidden, Proof, Situation, Standing};
use crate::protocol::transaction::State;

/// A column for each of [`Action::ALL`]: retry, pause, resume, rollback, commit, abandon, acknowledge, commit and rollback an orphan.
/// `y` is yes; the letters are those of [`letter`].
const TABLE: [(Standing, &str); 18] = [
    (Standing::Open { overdue: false }, "uuuyfunoo"),
    (Standing::Open { overdue: true }, "uuuyfunoo"),
    (Standing::Deciding, "wwwwfwnoo"),
    (Standing::Committing, "yyyccynoo"),
    (Standing::OnePhase, "yyy11ynoo"),
    (Standing::RollingBack, "yyyrrynoo"),
    (Standing::Ended, "eeeeeenee"),
    (Standing::Recording, "hhhhhhRhh"),
    (Standing::Heuristic { acknowledged: false }, "hhhhhhyhh"),
    (Standing::Heuristic { acknowledged: true }, "hhhhhhahh"),
    (Standing::Orphan(Proof::Committed), "iiiCiiiyC"),
    (Standing::Orphan(Proof::NotCommitted), "iiiiPiiPy"),
    (Standing::Orphan(Proof::Incomplete), "iiiSPiiPS"),
    (Standing::Intended(Proof::Committed), "iiiCiiiyC"),
    (Standing::Intended(Proof::NotCommitted), "iiiiPiiyy"),
    (Standing::Intended(Proof::Incomplete), "iiiSPiiyS"),
    (Standing::Foreign, "FFFFFFFFF"),
    (Standing::Elsewhere, "EEEEEEEEE"),
];

fn letter(answer: Result<(), Forbidden>) -> char {
    match answer {
        Ok(()) => 'y',
        Err(Forbidden::CommitIsDurable) => 'c',
        Err(Forbidden::OnePhaseUnderWay) => '1',
        Err(Forbidden::RollbackIsDecided) => 'r',
        Err(Forbidden::ForcedCommit) => 'f',
        Err(Forbidden::DecisionUnderWay) => 'w',
        Err(Forbidden::NotDecided) => 'u',
        Err(Forbidden::Ended) => 'e',
        Err(Forbidden::NotHeuristic) => 'n',
        Err(Forbidden::NotOnRecord) => 'R',
        Err(Forbidden::AcknowledgedBefore) => 'a',
        Err(Forbidden::HeuristicIsFinal) => 'h',
        Err(Forbidden::NoOrphan) => 'o',
        Err(Forbidden::IsOrphan) => 'i',
        Err(Forbidden::CommittedElsewhere) => 'C',
        Err(Forbidden::CommitNotProved) => 'P',
        Err(Forbidden::NotEveryoneAnswered) => 'S',
        Err(Forbidden::OtherCluster) => 'F',
        Err(Forbidden::OtherCoordinator) => 'E',
    }
}

#[test]
fn every_standing_and_every_action() {
    for (standing, expected) in TABLE {
        let found: String = Action::ALL.map(|action| letter(standing.permit(action))).iter().collect();
        assert_eq!(found, expected, "{standing:?}");
    }
}

/// Each refusal is used, and says what to do instead.
#[test]
fn every_refusal_is_met_and_has_a_way_out() {
    let met: Vec<Forbidden> = TABLE
        .iter()
        .flat_map(|(standing, _)| Action::ALL.map(|action| standing.permit(action)))
        .filter_map(Result::err)
        .collect();
    for forbidden in Forbidden::ALL {
        assert!(met.contains(&forbidden), "{forbidden:?} is never met");
        assert!(!forbidden.to_string().is_empty() && !forbidden.instead().is_empty());
    }
}

/// The opposite of a durable decision, and a commit that nobody has proved, are never permitted.
#[test]
fn nothing_permitted_can_tear_a_transaction() {
    for (standing, _) in TABLE {
        assert!(standing.permit(Action::Commit).is_err(), "a forced commit of {standing:?}");
        let rollback = standing.permit(Action::Rollback).is_ok();
        assert_eq!(rollback, matches!(standing, Standing::Open { .. }), "{standing:?}");
        let commit = standing.permit(Action::CommitOrphan).is_ok();
        let proved = matches!(standing, Standing::Orphan(Proof::Committed) | Standing::Intended(_));
        assert_eq!(commit, proved, "{standing:?}");
        let rollback = standing.permit(Action::RollbackOrphan).is_ok();
        let proof = Proof::NotCommitted;
        assert_eq!(
            rollback,
            [Standing::Orphan(proof), Standing::Intended(proof)].contains(&standing),
            "{standing:?}"
        );
    }
}

#[test]
fn each_state_has_its_standing_and_its_situation() {
    let live = |state, overdue| {
        let standing = Standing::of_live(&state, overdue);
        (standing, standing.situation(overdue))
    };
    use Situation::{Heuristic as H, Undecided, Undelivered};
    assert_eq!(live(State::Active, false), (Standing::Open { overdue: false }, None));
    assert_eq!(live(State::Preparing, true), (Standing::Open { overdue: true }, Some(Undecided)));
    assert_eq!(live(State::Deciding(DecisionKind::Commit), false), (Standing::Deciding, None));
    let unknown = State::DecisionUnknown(DecisionKind::OnePhaseIntent);
    assert_eq!(live(unknown, true), (Standing::Deciding, Some(Undecided)));
    assert_eq!(live(State::Committing, false), (Standing::Committing, Some(Undelivered)));
    assert_eq!(live(State::CommittingOnePhase, false), (Standing::OnePhase, Some(Undelivered)));
    assert_eq!(live(State::RollingBack(String::new()), false), (Standing::RollingBack, Some(Undelivered)));
    let heuristic = Outcome::Heuristic(Heuristic::Mixed);
    let open = Standing::Heuristic { acknowledged: false };
    assert_eq!(live(State::Ended(heuristic, String::new()), false), (open, Some(H)));
    assert_eq!(Standing::Recording.situation(false), Some(H));
    assert_eq!(Standing::of_ended(heuristic, true).situation(false), None, "it was dealt with");
    assert_eq!(Standing::of_ended(Outcome::Committed, false).situation(false), None);
    assert_eq!(Standing::Orphan(Proof::Incomplete).situation(false), Some(Situation::Orphan));
    assert_eq!(Standing::Foreign.situation(false), Some(Situation::Orphan));
}

/// Every cluster counts its epochs from 1, so that this log knows an epoch of the same number.
#[test]
fn what_another_cluster_has_prepared_is_foreign_whatever_the_log_knows_of_its_epoch() {
    for epoch in [EpochState::Own, EpochState::Sealed, EpochState::Live, EpochState::Unknown] {
        for below_horizon in [false, true] {
            for behind in [false, true] {
                let look_up = LookUp { recorded: Recorded::Absent, epoch, below_horizon };
                let standing = Standing::of_prepared(&look_up, behind, false, std::iter::empty(), None);
                assert_eq!(standing, Standing::Foreign, "{look_up:?}, behind: {behind}");
            }
        }
    }
}
