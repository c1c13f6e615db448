//! A process is killed at every crash point, and the next one finds what the protocol promises (P25, P27).
//!
//! The child says what it has answered before it dies; the test plays the coordinator with that: a branch whose vote was heard
//! gets the decision, any other is presumed rolled back.

use std::collections::BTreeSet;

use lockstep::resource::{Fate, Prepared, Resource};

use crate::faults;
use crate::harness::{
    Database, Decision, Said, branch, cluster, name, orders, position, prepare, resource_at, say, work,
};

const SETUP: &str = "CREATE TABLE account (id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT UNIQUE, balance INTEGER); \
     CREATE TABLE history (at INTEGER PRIMARY KEY, account); \
     CREATE TRIGGER noted AFTER UPDATE ON account BEGIN INSERT INTO history (account) VALUES (new.id); END; \
     INSERT INTO account (owner, balance) VALUES ('ada', 100), ('bob', 50), ('cyd', 0);";
const WORK: &str = "UPDATE account SET balance = balance - 10 WHERE owner = 'ada'; DELETE FROM account WHERE owner = 'cyd'; \
     INSERT INTO account (owner, balance) VALUES ('dan', 10)";

/// Played by [`Database::child`], in a process of its own.
#[test]
#[ignore = "other tests start it"]
fn child() {
    let (scenario, path, argument) = orders();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match scenario.as_str() {
            "branch" => play_branch(resource_at(&path).await, argument.parse().unwrap()).await,
            "one-phase" => play_one_phase(resource_at(&path).await).await,
            "restart" => play_restart(resource_at(&path).await, argument.parse().unwrap()).await,
            "prove" => play_prove(resource_at(&path).await).await,
            "hold" => play_hold(resource_at(&path).await).await,
            "failing-sync" => faults::play_failing_sync(&path, &argument).await,
            "full" => faults::play_full(&path, &argument).await,
            unknown => panic!("no scenario {unknown:?}"),
        }
    });
}

type Sqlite = lockstep::resource::sqlite::Sqlite;

async fn end(resource: &Sqlite, decision: Decision) -> Fate {
    match decision {
        Decision::Commit => resource.commit(&branch(1), &position(2)).await.unwrap(),
        Decision::Rollback => resource.rollback(&branch(1), &position(2)).await.unwrap(),
    }
}

async fn play_branch(resource: Sqlite, decision: Decision) {
    resource.attach(&name()).await.unwrap();
    if prepare(&resource, 1, WORK).await == Prepared::Yes {
        say("voted");
    }
    say(&format!("{:?}", end(&resource, decision).await));
}

async fn play_one_phase(resource: Sqlite) {
    resource.attach(&name()).await.unwrap();
    let open = work(&resource, 1, WORK).await;
    say(&format!("{:?}", resource.commit_one_phase(&branch(1), open, &position(1)).await.unwrap()));
}

async fn play_restart(resource: Sqlite, decision: Decision) {
    resource.attach(&name()).await.unwrap();
    say(&format!("{:?}", end(&resource, decision).await));
}

async fn play_prove(resource: Sqlite) {
    resource.attach(&name()).await.unwrap();
    say(&format!("{:?}", resource.prove(&branch(1), &position(2)).await.unwrap()));
}

async fn play_hold(resource: Sqlite) {
    resource.attach(&name()).await.unwrap();
    assert_eq!(prepare(&resource, 1, WORK).await, Prepared::Yes);
    say("voted");
    std::future::pending::<()>().await;
}

/// The points that a branch passes on its way to this end.
fn points(decision: Decision) -> Vec<&'static str> {
    let preparing =
        ["sqlite-attach-tables", "sqlite-prepare-journal", "sqlite-journal-written", "sqlite-prepare-done"];
    let ending: &[&str] = match decision {
        Decision::Commit => &[
            "sqlite-commit-begun",
            "sqlite-commit-committed",
            "sqlite-journal-end-written",
            "sqlite-commit-ended",
        ],
        Decision::Rollback => &[
            "sqlite-rollback-begun",
            "sqlite-journal-end-written",
            "sqlite-rollback-ended",
            "sqlite-rollback-rolled-back",
            "sqlite-fence-written",
        ],
    };
    [&preparing[..], ending].concat()
}

/// The points that a restart passes, for one branch or another.
const RESTARTING: [&str; 3] = ["sqlite-replay-begun", "sqlite-replay-written", "sqlite-recovery-ended"];
const PROVING: [&str; 1] = ["sqlite-fence-written"];
const ONE_PHASE: [&str; 2] = ["sqlite-one-phase-begun", "sqlite-one-phase-committed"];
/// Tried in `hazards`.
const HAZARD: [&str; 2] = ["sqlite-hazard-kept", "sqlite-hazard-recorded"];

/// The contents that there may be.
struct Contents {
    before: String,
    after: String,
}

impl Contents {
    async fn new() -> Self {
        let database = Database::new(SETUP).await;
        let before = database.dump().await;
        let said = database.child("one-phase").run();
        assert!(said.heard("Committed"));
        Self { before, after: database.dump().await }
    }
}

/// Brings the branch to its end, several times over, and looks at what is there.
async fn check(database: &Database, contents: &Contents, said: &Said, decision: Decision) {
    let decision = if said.heard("voted") { decision } else { Decision::Rollback };
    let (fate, content) = match decision {
        Decision::Commit => (Fate::Committed, &contents.after),
        Decision::Rollback => (Fate::RolledBack, &contents.before),
    };
    let case = format!("{decision:?} after {:?}", said.lines);
    for _process in 0..2 {
        let resource = database.attached().await;
        for _asked in 0..2 {
            assert_eq!(end(&resource, decision).await, fate, "{case}");
            assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [], "{case}");
            assert_eq!(&database.dump().await, content, "{case}");
        }
        // The file is free for the next one.
        drop(work(&resource, 2, "UPDATE account SET balance = 0").await);
    }
}

#[tokio::test]
async fn killed_at_each_point_of_a_branch() {
    let contents = Contents::new().await;
    for decision in [Decision::Commit, Decision::Rollback] {
        for point in points(decision) {
            let database = Database::new(SETUP).await;
            let said = database.child("branch").argument(decision.text()).killed_at(point).run();
            assert!(said.killed, "{point} was not reached: {:?}", said.lines);
            if point == "sqlite-rollback-ended" || point == "sqlite-rollback-rolled-back" {
                // The end mark comes first: as soon as others can change the rows, no entry may speak of them.
                let journal = std::fs::read(database.journal()).unwrap();
                assert_eq!(journal[12..16], [0; 4], "{point}");
            }
            check(&database, &contents, &said, decision).await;
        }
    }
}

#[tokio::test]
async fn killed_again_while_it_recovers() {
    let contents = Contents::new().await;
    let mut reached = BTreeSet::new();
    for (decision, first) in [
        (Decision::Commit, "sqlite-prepare-done"),
        (Decision::Commit, "sqlite-commit-begun"),
        (Decision::Commit, "sqlite-commit-committed"),
        (Decision::Rollback, "sqlite-rollback-begun"),
        (Decision::Rollback, "sqlite-rollback-ended"),
    ] {
        for second in RESTARTING.into_iter().chain(points(decision)) {
            let database = Database::new(SETUP).await;
            let said = database.child("branch").argument(decision.text()).killed_at(first).run();
            assert!(said.killed);
            let decided = if said.heard("voted") { decision } else { Decision::Rollback };
            let again = database.child("restart").argument(decided.text()).killed_at(second).run();
            if again.killed {
                reached.insert(second);
            }
            check(&database, &contents, &said, decision).await;
        }
    }
    for point in RESTARTING {
        assert!(reached.contains(point), "{point} was never reached: {reached:?}");
    }
}

#[tokio::test]
async fn killed_at_each_point_of_a_one_phase_commit() {
    let contents = Contents::new().await;
    for (point, fate, content) in
        [(ONE_PHASE[0], Fate::RolledBack, &contents.before), (ONE_PHASE[1], Fate::Committed, &contents.after)]
    {
        let database = Database::new(SETUP).await;
        assert!(database.child("one-phase").killed_at(point).run().killed, "{point} was not reached");
        // Once more, killed where its own effect is visible and its answer was not given.
        let again = database.child("prove").killed_at(PROVING[0]).run();
        assert_eq!(again.killed, fate == Fate::RolledBack, "{point}");
        for _process in 0..2 {
            let resource = database.attached().await;
            assert_eq!(resource.prove(&branch(1), &position(2)).await.unwrap(), fate, "{point}");
            assert_eq!(&database.dump().await, content, "{point}");
        }
    }
}

/// A prepared branch of a killed process, reported by the next one and committed though it was told to commit in one phase (P10).
#[tokio::test]
async fn a_prepared_branch_that_has_to_be_proved_is_committed() {
    let contents = Contents::new().await;
    let database = Database::new(SETUP).await;
    assert!(database.child("branch").argument("commit").killed_at("sqlite-prepare-done").run().killed);
    let resource = database.attached().await;
    assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [branch(1).xid]);
    assert_eq!(resource.prove(&branch(1), &position(2)).await.unwrap(), Fate::Committed);
    assert_eq!(database.dump().await, contents.after);
}

/// A list that is not kept by hand: whoever adds a point has to say where it is tried.
#[test]
fn every_crash_point_in_the_source_is_tried() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/resource/sqlite");
    let mut declared = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        declared.extend(text.split("fail_point!(\"").skip(1).map(|rest| {
            let (point, _) = rest.split_once('"').unwrap();
            point.to_owned()
        }));
    }
    let decisions = [Decision::Commit, Decision::Rollback];
    let tried: BTreeSet<_> = decisions
        .into_iter()
        .flat_map(points)
        .chain(RESTARTING)
        .chain(PROVING)
        .chain(ONE_PHASE)
        .chain(HAZARD)
        .map(str::to_owned)
        .collect();
    assert_eq!(declared, tried);
}
