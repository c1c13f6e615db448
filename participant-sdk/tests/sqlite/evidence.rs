//! Evidence, fences, and what the database knows of itself (P8, P15, P19, P21, P27).

use std::time::Duration;

use lockstep::resource::{Epoch, EvidenceRow, Fate, LogPosition, Positions, Prepared, Resource};

use crate::harness::{Database, LONG, branch, cluster, gtrid, name, position, prepare, refusal, run, work};

const ONE: &str = "CREATE TABLE t (v)";

#[tokio::test]
async fn a_fence_keeps_a_branch_from_being_prepared_or_committed() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    for number in [1, 2] {
        for _asked in 0..2 {
            assert_eq!(resource.rollback(&branch(number), &position(1)).await.unwrap(), Fate::RolledBack);
            assert_eq!(resource.commit(&branch(number), &position(1)).await.unwrap(), Fate::RolledBack);
            assert_eq!(resource.prove(&branch(number), &position(1)).await.unwrap(), Fate::RolledBack);
        }
    }
    let why = refusal(&resource, 1, "INSERT INTO t VALUES (1)").await;
    assert!(why.contains("rolled back before"), "{why}");
    let open = work(&resource, 2, "INSERT INTO t VALUES (2)").await;
    let fate = resource.commit_one_phase(&branch(2), open, &position(1)).await.unwrap();
    assert_eq!(fate, Fate::RolledBack);
    assert_eq!(database.dump().await, Database::new(ONE).await.dump().await);
}

#[tokio::test]
async fn a_branch_that_has_committed_is_not_prepared_a_second_time() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    let open = work(&resource, 1, "INSERT INTO t VALUES (1)").await;
    assert_eq!(resource.commit_one_phase(&branch(1), open, &position(1)).await.unwrap(), Fate::Committed);
    let open = work(&resource, 1, "INSERT INTO t VALUES (1)").await;
    resource.prepare(&branch(1), open, &position(1)).await.unwrap_err();
    // As the caller of an unresolved prepare does.
    assert_eq!(resource.rollback(&branch(1), &position(1)).await.unwrap(), Fate::Committed);
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&database.pool().await).await.unwrap();
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn a_one_phase_commit_that_wrote_nothing_has_evidence_too() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    let open = work(&resource, 1, "SELECT * FROM t").await;
    assert_eq!(resource.commit_one_phase(&branch(1), open, &position(1)).await.unwrap(), Fate::Committed);
    assert_eq!(resource.prove(&branch(1), &position(1)).await.unwrap(), Fate::Committed);
}

fn seen<const N: usize>(positions: [LogPosition; N]) -> Positions {
    positions.into_iter().collect()
}

/// As an SDK has left it that knew one position only.
#[tokio::test]
async fn the_one_position_that_an_older_sdk_has_kept_is_still_reported() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    let older =
        "UPDATE lockstep_identity SET seen = x'00000002000000000000000707070707070707070707070707070707'";
    run(&mut database.stranger().await, older).await.unwrap();
    resource.rollback(&branch(1), &position(4)).await.unwrap();
    resource.forget(&[branch(1)]).await.unwrap();
    let older = LogPosition { epoch: Epoch::new(2).unwrap(), ..position(7) };
    assert_eq!(resource.attach(&name()).await.unwrap().seen, seen([older, position(4)]));
}

/// Every message's position is kept, the newest one also when its row is pruned.
#[tokio::test]
async fn the_newest_log_position_is_never_forgotten() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    assert_eq!(resource.attach(&name()).await.unwrap().seen, seen([]));
    let open = work(&resource, 1, "INSERT INTO t VALUES (1)").await;
    resource.prepare(&branch(1), open, &position(4)).await.unwrap();
    assert_eq!(resource.attach(&name()).await.unwrap().seen, seen([]), "it is not committed yet");
    resource.commit(&branch(1), &position(300)).await.unwrap();
    assert_eq!(resource.attach(&name()).await.unwrap().seen, seen([position(300)]));
    resource.rollback(&branch(2), &position(70_000)).await.unwrap();
    let open = work(&resource, 3, "INSERT INTO t VALUES (3)").await;
    resource.commit_one_phase(&branch(3), open, &position(5)).await.unwrap();
    let newest = seen([position(70_000)]);
    assert_eq!(resource.attach(&name()).await.unwrap().seen, newest);
    resource.forget(&[branch(2), branch(1), branch(99)]).await.unwrap();
    assert_eq!(resource.attach(&name()).await.unwrap().seen, newest);
    resource.forget(&[branch(3)]).await.unwrap();
    drop(resource);
    assert_eq!(database.resource().await.attach(&name()).await.unwrap().seen, newest);
}

#[tokio::test]
async fn old_rows_are_listed_after_their_deadline_and_the_retention() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    let moment = Duration::from_secs(1);
    for number in [5, 3] {
        let mut open = resource.begin(&branch(number), moment).await.unwrap();
        run(lockstep::resource::sqlite::Sqlite::connection(&mut open), "INSERT INTO t VALUES (1)")
            .await
            .unwrap();
        assert_eq!(resource.prepare(&branch(number), open, &position(1)).await.unwrap(), Prepared::Yes);
        match number {
            5 => assert_eq!(resource.rollback(&branch(5), &position(1)).await.unwrap(), Fate::RolledBack),
            _ => assert_eq!(resource.commit(&branch(3), &position(1)).await.unwrap(), Fate::Committed),
        }
    }
    // Whose deadline nobody here knows: its fence stays for the longest timeout.
    resource.rollback(&branch(1), &position(1)).await.unwrap();
    let old = |retention, limit| resource.old_evidence(cluster(), retention, limit);
    assert_eq!(old(moment, 10).await.unwrap(), []);
    let row = |number, fate| EvidenceRow { branch: branch(number), fate };
    while old(moment, 10).await.unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(old(moment, 10).await.unwrap(), [row(5, Fate::RolledBack), row(3, Fate::Committed)]);
    assert_eq!(old(moment, 1).await.unwrap(), [row(5, Fate::RolledBack)]);
    assert_eq!(old(LONG, 10).await.unwrap(), []);
    assert_eq!(resource.old_evidence("00000000".parse().unwrap(), moment, 10).await.unwrap(), []);
    resource.forget(&[branch(3), branch(5)]).await.unwrap();
    assert_eq!(old(Duration::ZERO, 10).await.unwrap(), []);
}

/// Only rows of kind *branch* keep the horizon back: a fence proves nothing that a record would be needed for.
#[tokio::test]
async fn the_oldest_evidence_is_that_of_a_branch() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    assert_eq!(resource.oldest_evidence(cluster()).await.unwrap(), None);
    resource.rollback(&branch(1), &position(1)).await.unwrap();
    assert_eq!(resource.oldest_evidence(cluster()).await.unwrap(), None);
    for number in [7, 4, 9] {
        prepare(&resource, number, "INSERT INTO t VALUES (1)").await;
        resource.commit(&branch(number), &position(1)).await.unwrap();
    }
    prepare(&resource, 2, "INSERT INTO t VALUES (1)").await;
    assert_eq!(resource.oldest_evidence(cluster()).await.unwrap(), Some(gtrid(4)));
    assert_eq!(resource.oldest_evidence("00000000".parse().unwrap()).await.unwrap(), None);
}

#[tokio::test]
async fn only_prepared_branches_of_that_cluster_and_name_are_listed() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), []);
    prepare(&resource, 1, "INSERT INTO t VALUES (1)").await;
    for _process in 0..2 {
        let resource = if _process == 0 { resource.clone() } else { break };
        assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [branch(1).xid]);
        assert_eq!(resource.prepared("00000000".parse().unwrap(), &name()).await.unwrap(), []);
        assert_eq!(resource.prepared(cluster(), &"bank-b".parse().unwrap()).await.unwrap(), []);
    }
    drop(resource);
    let resource = database.attached().await;
    assert_eq!(resource.prepared(cluster(), &name()).await.unwrap(), [branch(1).xid]);
    assert_eq!(resource.prepared("00000000".parse().unwrap(), &name()).await.unwrap(), []);
}

#[tokio::test]
async fn a_database_knows_itself() {
    let database = Database::new(ONE).await;
    let resource = database.attached().await;
    let first = resource.attach(&name()).await.unwrap();
    assert_eq!((first.cluster, first.timeline), (None, 0));
    resource.bind(cluster()).await.unwrap();
    resource.bind("00000000".parse().unwrap()).await.unwrap();
    drop(resource);
    let again = database.resource().await.attach(&name()).await.unwrap();
    assert_eq!(again.identity, first.identity);
    assert_eq!(again.location, first.location);
    assert_eq!(again.cluster, Some(cluster()));
    assert!(again.location.contains("/bank.db#"), "{}", again.location);
    let other = Database::new(ONE).await;
    assert_ne!(other.resource().await.attach(&name()).await.unwrap().identity, first.identity);

    // A copy in its place is another file: told by its inode.
    std::fs::copy(database.path(), database.path().with_file_name("copy")).unwrap();
    std::fs::rename(database.path().with_file_name("copy"), database.path()).unwrap();
    let copy = database.resource().await.attach(&name()).await.unwrap();
    assert_eq!(copy.identity, first.identity);
    assert_ne!(copy.location, first.location);
}

#[tokio::test]
async fn tables_of_a_later_format_are_refused() {
    let database = Database::new(ONE).await;
    drop(database.attached().await);
    run(&mut database.stranger().await, "UPDATE lockstep_identity SET format = 2").await.unwrap();
    let why = crate::harness::unfit(&database.resource().await).await;
    assert!(why.contains("format 2"), "{why}");
}
