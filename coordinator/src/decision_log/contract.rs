//! What every decision log has to pass, whatever it is made of. One test per promise of [`DecisionLog`].
//!
//! A log joins with an implementation of [`Store`] and one line: `decision_log_contract!(MyStore)`. Behind the feature
//! `contract`, for tests in other crates.

#![allow(missing_docs, reason = "the name of each promise is what it says")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "these are tests")]
#![allow(async_fn_in_trait, reason = "nothing but these tests calls it")]

use lockstep_proto::{
    Bqual, ClusterId, Epoch, Gtrid, Incarnation, LogPosition, ResourceManagerId, TraceParent,
};

use super::audit::{AuditQuery, AuditRecord, Effect, Operation};
use super::restore::{Order, Restoration, RestoreError, Step};
use super::{
    AppendError, Batch, DecisionLog, EpochState, KnownResourceManager, LookUp, PruneLimits, ReadError,
    Recorded,
};
use crate::protocol::outcome::{BranchEnd, Heuristic, Outcome};
use crate::protocol::record::{About, DecisionKind, DecisionRecord, EndRecord};

/// A place where a log is.
pub trait Store {
    /// The log.
    type Log: DecisionLog;

    /// A new, empty place.
    async fn create() -> Self;

    /// Opens the log, as the only one on it, under a new epoch, sealing all earlier ones.
    async fn open(&self) -> Self::Log;

    /// Has an operator deal with it, while it is closed.
    async fn restore(&self, order: &Order) -> Result<Restoration, RestoreError>;
}

/// Makes a test of each promise for one [`Store`].
#[macro_export]
macro_rules! decision_log_contract {
    ($store:ty: $($promise:ident)*) => {
        $(#[tokio::test]
        async fn $promise() {
            $crate::decision_log::contract::$promise::<$store>().await;
        })*
    };
    ($store:ty) => {
        $crate::decision_log_contract! { $store:
            what_was_forced_is_there_after_a_crash
            a_new_log_knows_nothing
            ends_keep_everything_they_were_given
            an_end_without_a_decision_makes_a_row
            a_late_heuristic_outcome_replaces_the_end_and_stays
            an_end_may_come_with_its_decision
            lazy_ends_are_there_after_closing
            a_repeated_write_changes_nothing
            a_second_decision_is_an_unknown_and_breaks_the_log
            an_end_against_the_decision_is_an_unknown
            every_opening_takes_a_new_epoch_and_seals_the_others
            each_forced_batch_has_the_next_number
            positions_of_a_lost_tail_are_not_reached
            an_epoch_that_was_sealed_before_the_own_one_began_is_all_there
            a_log_that_is_behind_presumes_nothing_whoever_opens_it
            a_restored_log_presumes_nothing_of_what_was_before
            a_restore_is_done_only_as_it_was_confirmed
            looking_up_answers_in_the_order_asked
            looking_up_tells_the_epochs
            unfinished_decisions_come_page_by_page
            ended_transactions_come_newest_first
            pruning_removes_only_what_is_old_and_ended
            pruning_stays_below_every_floor
            pruning_waits_for_every_resource_manager
            pruning_stops_at_its_limit
            the_horizon_never_goes_down
            transactions_are_found_by_how_they_begin
            resource_managers_are_remembered
            an_operation_is_on_record_with_what_it_changes
            a_heuristic_outcome_stays_until_it_is_acknowledged
            a_retired_resource_manager_stays_retired_and_holds_nothing_up
            everything_on_record_is_walked_over
            a_closed_log_says_so
        }
    };
}
/// A time that gtrids of these tests are around.
pub const NOON_MS: u64 = 1_800_000_000_000;

/// A transaction of this epoch, begun `ms` after noon; `n` tells it from others of that moment.
pub fn gtrid(epoch: Epoch, ms: u64, n: u8) -> Gtrid {
    Gtrid::new(epoch, NOON_MS + ms, [n; 10])
}

/// A branch of `manager`; `n` tells it from its others.
pub fn bqual(manager: &str, n: u64) -> Bqual {
    Bqual::new(&manager.parse().unwrap(), n)
}

/// A commit decision over two databases.
pub fn commit(gtrid: Gtrid) -> DecisionRecord {
    DecisionRecord {
        gtrid,
        kind: DecisionKind::Commit,
        branches: vec![bqual("orders-db", gtrid.spread()), bqual("stock-db", gtrid.spread())],
        decided_ms: gtrid.unix_ms() + 20,
        about: About::default(),
    }
}

/// The end that follows from a decision, when all went well.
pub fn committed(decision: &DecisionRecord) -> EndRecord {
    EndRecord {
        gtrid: decision.gtrid,
        outcome: Outcome::Committed,
        detail: String::new(),
        branches: decision.branches.iter().map(|bqual| (bqual.clone(), BranchEnd::Committed)).collect(),
        ended_ms: decision.decided_ms + 20,
        about: decision.about.clone(),
    }
}

/// The end of a transaction that was rolled back.
pub fn rolled_back(gtrid: Gtrid) -> EndRecord {
    EndRecord {
        gtrid,
        outcome: Outcome::RolledBack,
        detail: "stock-db voted rollback: no stock".to_owned(),
        branches: vec![
            (bqual("orders-db", 1), BranchEnd::Lost),
            (bqual("stock-db", 2), BranchEnd::RolledBack),
            (bqual("user-db", 3), BranchEnd::ReadOnly),
        ],
        ended_ms: gtrid.unix_ms() + 40,
        about: about("refund"),
    }
}

/// A name and two labels.
pub fn about(name: &str) -> About {
    let labels = [("order", "o-91"), ("customer", "größer als 17")];
    About {
        name: name.to_owned(),
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        trace: TraceParent::new([9; 16], [7; 8], true),
    }
}

/// A resource manager that has reported `floor`.
pub fn manager(name: &str, floor: Option<Gtrid>) -> KnownResourceManager {
    KnownResourceManager {
        name: name.parse().unwrap(),
        identity: ResourceManagerId::from_bytes([7; 16]),
        location: String::new(),
        timeline: 1,
        floor,
        retired: false,
    }
}

/// A batch of decisions.
pub fn decisions(decisions: &[DecisionRecord]) -> Batch {
    Batch { decisions: decisions.to_vec(), ends: Vec::new() }
}

/// A batch of ends.
pub fn ends(ends: &[EndRecord]) -> Batch {
    Batch { decisions: Vec::new(), ends: ends.to_vec() }
}

async fn look<L: DecisionLog>(log: &L, gtrid: Gtrid) -> LookUp {
    log.look_up(&[gtrid]).await.unwrap().remove(0)
}

async fn recorded<L: DecisionLog>(log: &L, gtrid: Gtrid) -> Recorded {
    look(log, gtrid).await.recorded
}

fn own<L: DecisionLog>(log: &L) -> Epoch {
    log.position().epoch
}

pub async fn what_was_forced_is_there_after_a_crash<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let (epoch, cluster) = (own(&log), log.cluster());
    let plain = commit(gtrid(epoch, 0, 1));
    let named = DecisionRecord { about: about("transfer"), ..commit(gtrid(epoch, 1, 2)) };
    let intent = DecisionRecord {
        kind: DecisionKind::OnePhaseIntent,
        branches: vec![bqual("ledger", u64::MAX)],
        ..commit(gtrid(epoch, 2, 3))
    };
    let all = [plain, named, intent];
    log.force(&decisions(&all)).await.unwrap();
    // A drop without closing is as near to a crash as one gets inside one process.
    drop(log);

    let log = store.open().await;
    assert_eq!(log.cluster(), cluster);
    assert_eq!(log.unfinished(None, 10).await.unwrap(), all);
    for decision in all {
        assert_eq!(recorded(&log, decision.gtrid).await, Recorded::Decided(decision));
    }
}

pub async fn a_new_log_knows_nothing<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let answer = look(&log, gtrid(own(&log), 0, 1)).await;
    let nothing = LookUp { recorded: Recorded::Absent, epoch: EpochState::Own, below_horizon: false };
    assert_eq!(answer, nothing);
    assert_eq!(log.unfinished(None, 10).await.unwrap(), []);
    assert_eq!(log.recently_ended(10).await.unwrap(), []);
    assert_eq!(log.resource_managers().await.unwrap(), []);
    assert_eq!(log.look_up(&[]).await.unwrap(), []);
    let status = log.status().await.unwrap();
    assert_eq!((status.unfinished, status.heuristic, status.horizon_ms), (0, 0, 0));
    assert!(status.bytes > 0);
}

/// All kinds of ends of a transaction with a decision, some of which lie near to what an encoding may shorten.
fn ends_of(decision: &DecisionRecord) -> Vec<EndRecord> {
    let plain = committed(decision);
    let with = |change: &dyn Fn(&mut EndRecord)| {
        let mut end = plain.clone();
        change(&mut end);
        end
    };
    let read_only = (bqual("user-db", 9), BranchEnd::ReadOnly);
    vec![
        plain.clone(),
        with(&|end| end.branches.clear()),
        with(&|end| end.branches.reverse()),
        with(&|end| end.branches.truncate(1)),
        with(&|end| end.branches.push(read_only.clone())),
        with(&|end| end.branches.insert(1, read_only.clone())),
        with(&|end| end.about = About::default()),
        with(&|end| end.about = about("another name")),
        with(&|end| {
            end.outcome = Outcome::Heuristic(Heuristic::Mixed);
            end.detail = "stock-db was rolled back by hand".to_owned();
            end.branches[1].1 = BranchEnd::RolledBack;
        }),
        with(&|end| {
            end.outcome = Outcome::Heuristic(Heuristic::Rollback);
            end.branches.iter_mut().for_each(|branch| branch.1 = BranchEnd::RolledBack);
        }),
        with(&|end| {
            end.outcome = Outcome::Heuristic(Heuristic::Hazard);
            end.branches[0].1 = BranchEnd::Hazard;
        }),
    ]
}

pub async fn ends_keep_everything_they_were_given<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let epoch = own(&log);
    let mut written = Vec::new();
    for n in 0..11 {
        let decision = DecisionRecord { about: about("transfer"), ..commit(gtrid(epoch, 0, n)) };
        let end = ends_of(&decision).swap_remove(usize::from(n));
        written.push((decision, end));
    }
    let (forced, forced_ends): (Vec<_>, Vec<_>) = written.iter().cloned().unzip();
    log.force(&decisions(&forced)).await.unwrap();
    log.force(&ends(&forced_ends)).await.unwrap();
    drop(log);

    let log = store.open().await;
    for (decision, end) in written {
        let gtrid = decision.gtrid;
        assert_eq!(recorded(&log, gtrid).await, Recorded::Ended(Some(decision), end));
    }
    assert_eq!(log.unfinished(None, 100).await.unwrap(), []);
}

/// Else the evidence of a branch that was committed by hand is pruned, and nothing tells of it any more.
pub async fn a_late_heuristic_outcome_replaces_the_end_and_stays<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let gtrid = gtrid(own(&log), 0, 1);
    let plain = rolled_back(gtrid);
    log.force(&ends(std::slice::from_ref(&plain))).await.unwrap();
    assert_eq!(log.status().await.unwrap().heuristic, 0);

    let late = EndRecord {
        outcome: Outcome::Heuristic(Heuristic::Commit),
        branches: vec![(bqual("stock-db", 1), BranchEnd::Committed)],
        ..plain.clone()
    };
    let later = EndRecord {
        outcome: Outcome::Heuristic(Heuristic::Mixed),
        branches: vec![
            (bqual("stock-db", 1), BranchEnd::Committed),
            (bqual("orders-db", 1), BranchEnd::RolledBack),
        ],
        ..late.clone()
    };
    for heuristic in [late, later] {
        log.force(&ends(std::slice::from_ref(&heuristic))).await.unwrap();
        log.force(&ends(std::slice::from_ref(&plain))).await.unwrap();
        assert_eq!(recorded(&log, gtrid).await, Recorded::Ended(None, heuristic));
        assert_eq!(log.status().await.unwrap().heuristic, 1);
    }
}

pub async fn an_end_without_a_decision_makes_a_row<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let epoch = own(&log);
    let outcomes = [
        Outcome::RolledBack,
        Outcome::NothingToCommit,
        Outcome::Heuristic(Heuristic::Commit),
        Outcome::Heuristic(Heuristic::Mixed),
    ];
    let written: Vec<EndRecord> = (0..)
        .zip(outcomes)
        .map(|(n, outcome)| EndRecord { outcome, ..rolled_back(gtrid(epoch, 0, n)) })
        .collect();
    log.force(&ends(&written)).await.unwrap();
    drop(log);

    let log = store.open().await;
    for end in written {
        assert_eq!(recorded(&log, end.gtrid).await, Recorded::Ended(None, end));
    }
}

pub async fn an_end_may_come_with_its_decision<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let decision = commit(gtrid(own(&log), 0, 1));
    let end = committed(&decision);
    let batch = Batch { decisions: vec![decision.clone()], ends: vec![end.clone()] };
    log.force(&batch).await.unwrap();
    drop(log);
    let log = store.open().await;
    assert_eq!(recorded(&log, end.gtrid).await, Recorded::Ended(Some(decision), end));
}

pub async fn lazy_ends_are_there_after_closing<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let decision = commit(gtrid(own(&log), 0, 1));
    let (end, alone) = (committed(&decision), rolled_back(gtrid(own(&log), 0, 2)));
    log.force(&decisions(std::slice::from_ref(&decision))).await.unwrap();
    let before = log.position();
    log.write_lazily(&[end.clone(), alone.clone()]).await.unwrap();
    assert_eq!(log.position(), before, "a lazy write is no forced batch");
    assert_eq!(recorded(&log, alone.gtrid).await, Recorded::Ended(None, alone.clone()));
    log.close().await;
    drop(log);

    let log = store.open().await;
    assert_eq!(recorded(&log, end.gtrid).await, Recorded::Ended(Some(decision), end));
    assert_eq!(recorded(&log, alone.gtrid).await, Recorded::Ended(None, alone));
}

pub async fn a_repeated_write_changes_nothing<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let decision = commit(gtrid(own(&log), 0, 1));
    let end = committed(&decision);
    let first = decisions(std::slice::from_ref(&decision));
    log.force(&first).await.unwrap();
    log.force(&first).await.unwrap();
    log.force(&ends(std::slice::from_ref(&end))).await.unwrap();
    let later = EndRecord { ended_ms: end.ended_ms + 1, detail: "again".to_owned(), ..end.clone() };
    log.force(&ends(&[later.clone(), later.clone()])).await.unwrap();
    log.write_lazily(&[later]).await.unwrap();
    log.force(&first).await.unwrap();
    assert_eq!(recorded(&log, end.gtrid).await, Recorded::Ended(Some(decision), end));
}

pub async fn a_second_decision_is_an_unknown_and_breaks_the_log<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let decision = commit(gtrid(own(&log), 0, 1));
    log.force(&decisions(std::slice::from_ref(&decision))).await.unwrap();
    let bystander = commit(gtrid(own(&log), 0, 2));
    let other = DecisionRecord { decided_ms: 0, ..decision.clone() };
    let batch = decisions(&[bystander.clone(), other]);
    let error = log.force(&batch).await.unwrap_err();
    assert!(
        matches!(&error, AppendError::Unknown(why) if why.contains(&decision.gtrid.to_string())),
        "{error}"
    );

    // From here on it answers nothing: the engine was wrong about the log once.
    assert!(matches!(
        log.force(&decisions(&[commit(gtrid(own(&log), 0, 3))])).await,
        Err(AppendError::Unknown(_))
    ));
    assert!(matches!(log.look_up(&[decision.gtrid]).await, Err(ReadError::Unavailable(_))));
    drop(log);
    let log = store.open().await;
    assert_eq!(recorded(&log, decision.gtrid).await, Recorded::Decided(decision));
    assert_eq!(
        recorded(&log, bystander.gtrid).await,
        Recorded::Absent,
        "a batch is written whole or not at all"
    );
}

pub async fn an_end_against_the_decision_is_an_unknown<S: Store>() {
    for (decided, outcome) in [
        (true, Outcome::RolledBack),
        (true, Outcome::NothingToCommit),
        (true, Outcome::Unknown),
        (false, Outcome::Committed),
    ] {
        let store = S::create().await;
        let log = store.open().await;
        let decision = commit(gtrid(own(&log), 0, 1));
        if decided {
            log.force(&decisions(std::slice::from_ref(&decision))).await.unwrap();
        }
        let end = EndRecord { outcome, ..committed(&decision) };
        let result = log.force(&ends(std::slice::from_ref(&end))).await;
        assert!(matches!(result, Err(AppendError::Unknown(_))), "{end:?}");
        drop(log);
        let log = store.open().await;
        assert!(!matches!(recorded(&log, end.gtrid).await, Recorded::Ended(..)));
    }
}

pub async fn every_opening_takes_a_new_epoch_and_seals_the_others<S: Store>() {
    let store = S::create().await;
    let mut seen: Vec<LogPosition> = Vec::new();
    for _ in 0..4 {
        let log = store.open().await;
        let position = log.position();
        assert_eq!(position.sequence, 0);
        for earlier in &seen {
            assert!(position.epoch > earlier.epoch);
            assert_ne!(position.incarnation, earlier.incarnation);
            assert_eq!(look(&log, gtrid(earlier.epoch, 0, 1)).await.epoch, EpochState::Sealed);
        }
        assert_eq!(look(&log, gtrid(position.epoch, 0, 1)).await.epoch, EpochState::Own);
        seen.push(position);
    }
}

pub async fn each_forced_batch_has_the_next_number<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    for n in 1..=5 {
        let before = log.position();
        let position = log.force(&decisions(&[commit(gtrid(own(&log), 0, n))])).await.unwrap();
        assert_eq!(position, LogPosition { sequence: before.sequence + 1, ..before });
        assert_eq!(log.position(), position);
        assert_eq!(position.sequence, u64::from(n));
    }
}

pub async fn positions_of_a_lost_tail_are_not_reached<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let start = log.position();
    let position = log.force(&decisions(&[commit(gtrid(own(&log), 0, 1))])).await.unwrap();
    drop(log);
    let log = store.open().await;
    for behind in [start, position, log.position()] {
        assert!(log.reaches(behind).await.unwrap(), "{behind:?}");
    }
    let later = LogPosition { sequence: 2, ..position };
    let future = LogPosition { epoch: Epoch::new(99).unwrap(), ..position };
    let other = LogPosition { incarnation: Incarnation::from_bytes([0; 16]), ..position };
    for ahead in [later, future, other, LogPosition { sequence: 1, ..log.position() }] {
        assert!(!log.reaches(ahead).await.unwrap(), "{ahead:?}");
    }
}

pub async fn an_epoch_that_was_sealed_before_the_own_one_began_is_all_there<S: Store>() {
    let store = S::create().await;
    let mut epochs = Vec::new();
    for _life in 0..2 {
        let log = store.open().await;
        epochs.push(log.position().epoch);
        shut(log).await;
    }
    // The second one was sealed by it: before or behind the moment in which it took its own.
    let log = store.open().await;
    assert!(log.has_all_of(epochs[0]));
    for own_or_later in [log.position().epoch, Epoch::new(99).unwrap()] {
        assert!(!log.has_all_of(own_or_later), "{own_or_later}");
    }
}

fn order(step: Step, cluster: ClusterId) -> Order {
    Order {
        step,
        confirm: Some(cluster.to_string()),
        reason: "disk lost".to_owned(),
        who: "kim".to_owned(),
        now_ms: NOON_MS,
    }
}

/// Gives the place free. Whose log it was.
async fn shut(log: impl DecisionLog) -> ClusterId {
    log.close().await;
    log.cluster()
}

pub async fn a_log_that_is_behind_presumes_nothing_whoever_opens_it<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let absent = gtrid(log.position().epoch, 1, 1);
    assert_eq!(look(&log, absent).await.epoch, EpochState::Own);
    assert!(!log.status().await.unwrap().behind);
    log.note_behind().await.unwrap();
    log.note_behind().await.unwrap();
    assert_eq!(look(&log, absent).await.epoch, EpochState::Unknown);
    shut(log).await;
    let log = store.open().await;
    assert!(log.status().await.unwrap().behind);
    for epoch in [absent.epoch(), log.position().epoch] {
        assert_eq!(look(&log, gtrid(epoch, 1, 1)).await.epoch, EpochState::Unknown);
    }
    // What is on record is on record.
    let decision = commit(gtrid(log.position().epoch, 2, 2));
    log.force(&decisions(std::slice::from_ref(&decision))).await.unwrap();
    assert_eq!(look(&log, decision.gtrid).await.recorded, Recorded::Decided(decision));
}

pub async fn a_restored_log_presumes_nothing_of_what_was_before<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let before = log.position().epoch;
    let decision = commit(gtrid(before, 1, 1));
    log.force(&decisions(std::slice::from_ref(&decision))).await.unwrap();
    // What a participant has seen of the tail that is lost.
    let lost = LogPosition { sequence: 99, ..log.position() };
    let of_a_later_start = LogPosition { epoch: Epoch::new(before.get() + 7).unwrap(), ..lost };
    assert!(!log.reaches(lost).await.unwrap());
    log.note_behind().await.unwrap();
    let cluster = shut(log).await;

    let done = store.restore(&order(Step::Restore, cluster)).await.unwrap();
    assert_eq!((done.cluster, done.unfinished, done.was_behind), (cluster, 1, true));
    let log = store.open().await;
    assert!(log.position().epoch > done.below && done.below > before);
    assert!(!log.status().await.unwrap().behind);
    assert!(log.reaches(lost).await.unwrap() && log.reaches(of_a_later_start).await.unwrap());
    let absent = [gtrid(before, 2, 2), gtrid(of_a_later_start.epoch, 2, 2)];
    for absent in absent {
        assert_eq!(look(&log, absent).await.epoch, EpochState::Unknown);
    }
    assert_eq!(look(&log, gtrid(log.position().epoch, 3, 3)).await.epoch, EpochState::Own);
    assert_eq!(log.unfinished(None, 10).await.unwrap(), [decision]);
    shut(log).await;

    let settled = store.restore(&order(Step::Settle, cluster)).await.unwrap();
    assert_eq!(settled.below, done.below);
    let log = store.open().await;
    for absent in absent {
        // Still nothing is presumed; and whatever is to be compared with it was compared.
        let found = look(&log, absent).await;
        assert_eq!((found.epoch, found.below_horizon), (EpochState::Sealed, true));
    }
    // A second one covers what was begun since the first.
    let between = gtrid(log.position().epoch, 4, 4);
    shut(log).await;
    store.restore(&order(Step::Restore, cluster)).await.unwrap();
    let log = store.open().await;
    assert_eq!(look(&log, between).await.epoch, EpochState::Unknown);
}

pub async fn a_restore_is_done_only_as_it_was_confirmed<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let absent = gtrid(log.position().epoch, 1, 1);
    let cluster = shut(log).await;
    let wrong = Order { confirm: Some("zzzzzzzz".to_owned()), ..order(Step::Restore, cluster) };
    let refused = store.restore(&wrong).await.unwrap_err();
    assert!(matches!(refused, RestoreError::OtherCluster { .. }), "{refused}");
    let settled = store.restore(&order(Step::Settle, cluster)).await.unwrap_err();
    assert!(settled.to_string().contains("without --settled"), "{settled}");
    let look_only = Order { confirm: None, ..order(Step::Restore, cluster) };
    let looked = store.restore(&look_only).await.unwrap();
    assert!(looked.dry_run && looked.below > absent.epoch());
    let log = store.open().await;
    assert_eq!(log.position().epoch.get(), absent.epoch().get() + 1);
    assert_eq!(look(&log, absent).await.epoch, EpochState::Sealed);
}

pub async fn looking_up_answers_in_the_order_asked<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let epoch = own(&log);
    let known: Vec<DecisionRecord> =
        (0..40).map(|n| commit(gtrid(epoch, u64::from(n) * 7 % 11, n))).collect();
    log.force(&decisions(&known)).await.unwrap();
    let mut asked: Vec<Gtrid> = known.iter().rev().map(|decision| decision.gtrid).collect();
    asked.insert(5, gtrid(epoch, 3, 200));
    asked.push(asked[0]);
    let answers = log.look_up(&asked).await.unwrap();
    assert_eq!(answers.len(), asked.len());
    for (gtrid, answer) in asked.iter().zip(answers) {
        let decision = known.iter().find(|decision| decision.gtrid == *gtrid);
        assert_eq!(answer.recorded, decision.cloned().map_or(Recorded::Absent, Recorded::Decided));
    }
}

pub async fn looking_up_tells_the_epochs<S: Store>() {
    let store = S::create().await;
    let sealed = own(&store.open().await);
    let log = store.open().await;
    for (epoch, state) in [
        (sealed, EpochState::Sealed),
        (own(&log), EpochState::Own),
        (Epoch::new(own(&log).get() + 1).unwrap(), EpochState::Unknown),
        (Epoch::new(u32::MAX).unwrap(), EpochState::Unknown),
    ] {
        let answer = look(&log, gtrid(epoch, 0, 1)).await;
        assert_eq!(answer, LookUp { recorded: Recorded::Absent, epoch: state, below_horizon: false });
    }
}

pub async fn unfinished_decisions_come_page_by_page<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let epoch = own(&log);
    let all: Vec<DecisionRecord> = (0..10).map(|n| commit(gtrid(epoch, u64::from(n), n))).collect();
    let shuffled: Vec<DecisionRecord> = all.iter().rev().cloned().collect();
    log.force(&decisions(&shuffled)).await.unwrap();
    log.force(&ends(&[committed(&all[3]), rolled_back(gtrid(epoch, 4, 99))])).await.unwrap();
    let expected: Vec<DecisionRecord> =
        all.iter().filter(|decision| decision.gtrid != all[3].gtrid).cloned().collect();
    let mut found = Vec::new();
    loop {
        let after = found.last().map(|decision: &DecisionRecord| decision.gtrid);
        let page = log.unfinished(after, 4).await.unwrap();
        assert!(page.len() <= 4);
        if page.is_empty() {
            break;
        }
        found.extend(page);
    }
    assert_eq!(found, expected);
}

pub async fn ended_transactions_come_newest_first<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let epoch = own(&log);
    let all: Vec<EndRecord> = (0..6).map(|n| rolled_back(gtrid(epoch, u64::from(n), n))).collect();
    log.write_lazily(&all).await.unwrap();
    log.force(&decisions(&[commit(gtrid(epoch, 3, 77))])).await.unwrap();
    let newest: Vec<EndRecord> = all.iter().rev().take(4).cloned().collect();
    assert_eq!(log.recently_ended(4).await.unwrap(), newest);
    assert_eq!(log.recently_ended(100).await.unwrap().len(), 6);
}

/// Limits that let go whatever began and ended before `ms` after noon.
fn before(epoch: Epoch, ms: u64) -> PruneLimits {
    PruneLimits { ended_before_ms: NOON_MS + ms, below: gtrid(epoch, ms, 0), limit: 1000 }
}

/// Commits transactions begun at these times after noon; each ends 40 ms later.
async fn commit_at<L: DecisionLog>(log: &L, times: &[u64]) -> Vec<Gtrid> {
    let all: Vec<DecisionRecord> = times.iter().map(|ms| commit(gtrid(own(log), *ms, 1))).collect();
    log.force(&decisions(&all)).await.unwrap();
    log.force(&ends(&all.iter().map(committed).collect::<Vec<_>>())).await.unwrap();
    all.iter().map(|decision| decision.gtrid).collect()
}

pub async fn pruning_removes_only_what_is_old_and_ended<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let epoch = own(&log);
    let old = commit_at(&log, &[0, 100, 200]).await;
    let unfinished = commit(gtrid(epoch, 50, 2));
    log.force(&decisions(std::slice::from_ref(&unfinished))).await.unwrap();
    let long = EndRecord { ended_ms: NOON_MS + 900, ..rolled_back(gtrid(epoch, 60, 3)) };
    log.force(&ends(std::slice::from_ref(&long))).await.unwrap();
    let young = commit_at(&log, &[300, 1000]).await;

    // Began before the limits, at 200, and one that ended too late (at 340).
    assert_eq!(
        log.prune(PruneLimits { ended_before_ms: NOON_MS + 340, ..before(epoch, 400) }).await.unwrap(),
        3
    );
    let log = {
        log.close().await;
        drop(log);
        store.open().await
    };
    for gtrid in old {
        let answer = look(&log, gtrid).await;
        assert_eq!((answer.recorded, answer.below_horizon), (Recorded::Absent, true));
    }
    assert_eq!(recorded(&log, unfinished.gtrid).await, Recorded::Decided(unfinished));
    assert_eq!(recorded(&log, long.gtrid).await, Recorded::Ended(None, long));
    for gtrid in young {
        let answer = look(&log, gtrid).await;
        assert!(matches!(answer, LookUp { recorded: Recorded::Ended(..), below_horizon: false, .. }));
    }
    // The horizon is where the newest pruned one was, to the millisecond.
    assert_eq!(log.status().await.unwrap().horizon_ms, NOON_MS + 200);
    assert!(look(&log, gtrid(epoch, 200, 255)).await.below_horizon);
    assert!(!look(&log, gtrid(epoch, 201, 0)).await.below_horizon);
    // What lives keeps everything as old as itself.
    assert_eq!(log.prune(before(epoch, 300)).await.unwrap(), 0);
}

pub async fn pruning_stays_below_every_floor<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let epoch = own(&log);
    commit_at(&log, &[0, 100, 200, 300]).await;
    log.remember(&manager("orders-db", Some(gtrid(epoch, 900, 0)))).await.unwrap();
    log.remember(&manager("stock-db", Some(gtrid(epoch, 200, 0)))).await.unwrap();
    assert_eq!(log.prune(before(epoch, 800)).await.unwrap(), 2);
    assert_eq!(log.status().await.unwrap().horizon_ms, NOON_MS + 100);
    log.remember(&manager("stock-db", Some(gtrid(epoch, 201, 0)))).await.unwrap();
    assert_eq!(log.prune(before(epoch, 800)).await.unwrap(), 1);
    assert_eq!(log.status().await.unwrap().horizon_ms, NOON_MS + 200);
}

pub async fn pruning_waits_for_every_resource_manager<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let epoch = own(&log);
    let gtrids = commit_at(&log, &[0]).await;
    log.remember(&manager("orders-db", Some(gtrid(epoch, 900, 0)))).await.unwrap();
    log.remember(&manager("stock-db", None)).await.unwrap();
    drop(log);
    let log = store.open().await;
    assert_eq!(log.prune(before(epoch, 800)).await.unwrap(), 0);
    assert!(matches!(recorded(&log, gtrids[0]).await, Recorded::Ended(..)));
    log.remember(&manager("stock-db", Some(gtrid(epoch, 900, 0)))).await.unwrap();
    assert_eq!(log.prune(before(epoch, 800)).await.unwrap(), 1);
}

pub async fn pruning_stops_at_its_limit<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let epoch = own(&log);
    let gtrids = commit_at(&log, &[0, 100, 200, 300, 400]).await;
    let limits = PruneLimits { limit: 2, ..before(epoch, 800) };
    for (pruned, horizon_ms) in [(2, 100), (2, 300), (1, 400), (0, 400)] {
        assert_eq!(log.prune(limits).await.unwrap(), pruned);
        assert_eq!(log.status().await.unwrap().horizon_ms, NOON_MS + horizon_ms);
    }
    assert_eq!(recorded(&log, gtrids[4]).await, Recorded::Absent);
}

pub async fn the_horizon_never_goes_down<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let epoch = own(&log);
    commit_at(&log, &[500]).await;
    assert_eq!(log.prune(before(epoch, 800)).await.unwrap(), 1);
    // One that was older, and ended only afterwards.
    commit_at(&log, &[100]).await;
    assert_eq!(log.prune(before(epoch, 800)).await.unwrap(), 1);
    assert_eq!(log.status().await.unwrap().horizon_ms, NOON_MS + 500);
}

pub async fn transactions_are_found_by_how_they_begin<S: Store>() {
    let store = S::create().await;
    let mut all: Vec<Gtrid> = Vec::new();
    // Epochs 1 to 12, so that one number begins another.
    for n in 1..=12u8 {
        let log = store.open().await;
        let new = [commit(gtrid(own(&log), u64::from(n) << 20, n)), commit(gtrid(own(&log), 1, n))];
        log.force(&decisions(&new)).await.unwrap();
        log.force(&ends(&[committed(&new[1])])).await.unwrap();
        all.extend(new.map(|decision| decision.gtrid));
        log.close().await;
    }
    all.sort();
    let log = store.open().await;
    let digits = |gtrid: &Gtrid| gtrid.to_string().split_once('.').unwrap().1.to_owned();
    let mut prefixes: Vec<String> =
        ["", "1", "12", "1.", "12.", "2.01", "7.ff", "0", "01", "f", "13.", "99"].map(str::to_owned).into();
    for gtrid in &all {
        for length in [9, 10, 13, 31, 32] {
            prefixes.push(digits(gtrid)[..length].to_owned());
            prefixes.push(format!("{}.{}", gtrid.epoch(), &digits(gtrid)[..length]));
        }
    }
    for prefix in prefixes {
        let begins =
            |gtrid: &&Gtrid| gtrid.to_string().starts_with(&prefix) || digits(gtrid).starts_with(&prefix);
        let expected: Vec<Gtrid> = all.iter().filter(begins).copied().collect();
        assert_eq!(log.find(&prefix, 1000).await.unwrap(), expected, "{prefix:?}");
        assert_eq!(log.find(&prefix, 1).await.unwrap().len(), expected.len().min(1));
    }
    for nonsense in ["x", "1.2.3", "01.", "'", "1.%", "*", "ä", "0x1", " 1", "-1", &"0".repeat(33)] {
        assert_eq!(log.find(nonsense, 10).await.unwrap(), [], "{nonsense:?}");
    }
}

pub async fn resource_managers_are_remembered<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let stock = KnownResourceManager {
        location: "host:/var/lib/stock.db:12".to_owned(),
        ..manager("stock-db", Some(gtrid(own(&log), 5, 0)))
    };
    log.remember(&manager("ledger", None)).await.unwrap();
    log.remember(&stock).await.unwrap();
    let moved = KnownResourceManager { timeline: 3, location: String::new(), floor: None, ..stock.clone() };
    log.remember(&moved).await.unwrap();
    let back = KnownResourceManager { timeline: 2, ..moved.clone() };
    log.remember(&back).await.unwrap();
    let other = KnownResourceManager { identity: ResourceManagerId::from_bytes([8; 16]), ..stock };
    let refused = log.remember(&other).await;
    assert!(matches!(&refused, Err(AppendError::Refused(why)) if why.contains("stock-db")), "{refused:?}");
    // A floor that was reported before it was moved takes nothing back.
    let floor = gtrid(own(&log), 6, 0);
    log.remember_floor(&moved.name, floor).await.unwrap();
    let moved = KnownResourceManager { floor: Some(floor), ..moved };
    let strange = log.remember_floor(&"strange".parse().unwrap(), floor).await;
    assert!(matches!(strange, Err(AppendError::Refused(_))), "{strange:?}");
    drop(log);
    let log = store.open().await;
    assert_eq!(log.resource_managers().await.unwrap(), [manager("ledger", None), moved]);
}

/// An action of this kind, about this transaction.
pub fn operation(action: &str, gtrid: Option<Gtrid>, effect: Effect) -> Operation {
    Operation {
        at_ms: NOON_MS,
        who: "kim".to_owned(),
        action: action.to_owned(),
        subject: gtrid.map_or("stock-db".to_owned(), |gtrid| gtrid.to_string()),
        gtrid,
        reason: "größer als 17".to_owned(),
        before: "before".to_owned(),
        after: "after".to_owned(),
        effect,
    }
}

/// All of the audit, or what there is of one transaction.
async fn audit<L: DecisionLog>(log: &L, of: Option<Gtrid>) -> Vec<AuditRecord> {
    log.audit(AuditQuery { of, below: 0, limit: 100 }).await.unwrap()
}

pub async fn an_operation_is_on_record_with_what_it_changes<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let about = gtrid(own(&log), 0, 1);
    let before = log.position().sequence;
    let first = operation("retry", Some(about), Effect::None);
    assert_eq!(log.operate(&first).await, Ok(1));
    let known = manager("stock-db", None);
    let second = operation("rebind", None, Effect::Remember(known.clone()));
    assert_eq!(log.operate(&second).await, Ok(2));
    // A log that was restored to before it is noticed (P8).
    assert_eq!(log.position().sequence, before + 2);
    let third = operation("acknowledge", Some(about), Effect::Acknowledge);
    let refused = log.operate(&third).await;
    assert!(matches!(refused, Err(AppendError::Refused(_))), "there is nothing to acknowledge: {refused:?}");
    drop(log);

    let log = store.open().await;
    let record = |id, operation: &Operation| AuditRecord {
        id,
        operation: Operation { effect: Effect::None, ..operation.clone() },
    };
    assert_eq!(audit(&log, None).await, [record(2, &second), record(1, &first)]);
    assert_eq!(audit(&log, Some(about)).await, [record(1, &first)]);
    assert_eq!(audit(&log, Some(gtrid(own(&log), 0, 9))).await, []);
    let page = log.audit(AuditQuery { of: None, below: 2, limit: 1 }).await.unwrap();
    assert_eq!(page, [record(1, &first)]);
    assert_eq!(log.resource_managers().await.unwrap(), [known]);
}

pub async fn a_heuristic_outcome_stays_until_it_is_acknowledged<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let decision = commit(gtrid(own(&log), 0, 1));
    let outcome = Outcome::Heuristic(Heuristic::Hazard);
    let end = EndRecord { outcome, ..committed(&decision) };
    let batch = Batch { decisions: vec![decision.clone()], ends: vec![end.clone()] };
    log.force(&batch).await.unwrap();
    let limits = PruneLimits { ended_before_ms: u64::MAX, below: gtrid(own(&log), 1000, 0), limit: 10 };
    assert_eq!(log.prune(limits).await, Ok(0), "nobody has dealt with it");
    assert_eq!(log.open_heuristics(10).await.unwrap(), [end]);
    assert_eq!(log.status().await.unwrap().heuristic_open, 1);

    let acknowledge = operation("acknowledge", Some(decision.gtrid), Effect::Acknowledge);
    log.operate(&acknowledge).await.unwrap();
    assert!(matches!(log.operate(&acknowledge).await, Err(AppendError::Refused(_))), "it was acknowledged");
    assert!(log.is_acknowledged(decision.gtrid).await.unwrap());
    assert_eq!(log.open_heuristics(10).await.unwrap(), []);
    let status = log.status().await.unwrap();
    assert_eq!((status.heuristic, status.heuristic_open), (1, 0));
    assert_eq!(log.prune(limits).await, Ok(1));
    assert_eq!(audit(&log, Some(decision.gtrid)).await.len(), 1, "what was done stays");
}

pub async fn a_retired_resource_manager_stays_retired_and_holds_nothing_up<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let silent = manager("ledger", None);
    log.remember(&silent).await.unwrap();
    let decision = commit(gtrid(own(&log), 0, 1));
    let batch = Batch { decisions: vec![decision.clone()], ends: vec![committed(&decision)] };
    log.force(&batch).await.unwrap();
    let limits = PruneLimits { ended_before_ms: u64::MAX, below: gtrid(own(&log), 1000, 0), limit: 10 };
    assert_eq!(log.prune(limits).await, Ok(0), "it has not said what it holds");
    let retired = KnownResourceManager { retired: true, ..silent.clone() };
    log.operate(&operation("retire", None, Effect::Remember(retired.clone()))).await.unwrap();
    log.remember(&silent).await.unwrap();
    assert_eq!(log.resource_managers().await.unwrap(), [retired]);
    assert_eq!(log.prune(limits).await, Ok(1));
}

pub async fn everything_on_record_is_walked_over<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let open = commit(gtrid(own(&log), 0, 1));
    let over = rolled_back(gtrid(own(&log), 5, 2));
    log.force(&Batch { decisions: vec![open.clone()], ends: vec![over.clone()] }).await.unwrap();
    let first = log.walk(None, 1).await.unwrap();
    assert_eq!(first, [(open.gtrid, Recorded::Decided(open.clone()))]);
    let second = log.walk(Some(open.gtrid), 10).await.unwrap();
    assert_eq!(second, [(over.gtrid, Recorded::Ended(None, over))]);
}

pub async fn a_closed_log_says_so<S: Store>() {
    let store = S::create().await;
    let log = store.open().await;
    let decision = commit(gtrid(own(&log), 0, 1));
    log.close().await;
    let batch = decisions(std::slice::from_ref(&decision));
    assert!(matches!(log.force(&batch).await, Err(AppendError::Refused(_))));
    assert!(matches!(log.write_lazily(&[]).await, Err(AppendError::Refused(_))));
    assert!(matches!(log.look_up(&[decision.gtrid]).await, Err(ReadError::Unavailable(_))));
    log.close().await;
    drop(log);
    assert_eq!(recorded(&store.open().await, decision.gtrid).await, Recorded::Absent);
}
