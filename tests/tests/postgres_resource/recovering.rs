//! Finishing a branch, and finding out about one that is not there to be finished.

use lockstep::resource::{Fate, Resource as _};
use sqlx::Executor as _;

use super::*;

#[tokio::test]
async fn every_later_answer_is_the_first_one() {
    let site = Site::new().await;
    let committed = site.prepared(1).await;
    for _ in 0..2 {
        assert_eq!(site.commit(&committed).await, Ok(Fate::Committed));
        assert_eq!(site.rollback(&committed).await, Ok(Fate::Committed));
        assert_eq!(site.resource.prove(&committed, &position(1)).await, Ok(Fate::Committed));
    }
    let rolled_back = site.prepared(2).await;
    for _ in 0..2 {
        assert_eq!(site.rollback(&rolled_back).await, Ok(Fate::RolledBack));
        assert_eq!(site.commit(&rolled_back).await, Ok(Fate::RolledBack));
        assert_eq!(site.resource.prove(&rolled_back, &position(1)).await, Ok(Fate::RolledBack));
    }
    assert_eq!((site.amount(1).await, site.amount(2).await), (99, 100));
}

/// P15: the second instance to roll back finds the first one's fence, which is no evidence of a commit.
#[tokio::test]
async fn a_fence_keeps_a_late_prepare_out_and_is_not_read_as_a_commit() {
    let site = Site::new().await;
    let other = site.other_instance().await;
    let (branch, open) = site.written(1).await;
    assert_eq!(other.rollback(&branch).await, Ok(Fate::RolledBack));
    assert_eq!(site.rollback(&branch).await, Ok(Fate::RolledBack));
    let reason = reason(site.prepare(&branch, open).await);
    assert!(reason.contains("fenced"), "{reason}");
    assert_eq!(other.commit(&branch).await, Ok(Fate::RolledBack));
    site.assert_nothing_is_prepared().await;
    assert_eq!(site.amount(1).await, 100);
}

/// The snapshot of a serializable branch is older than the fence.
#[tokio::test]
async fn a_fence_keeps_out_a_prepare_whose_snapshot_does_not_see_it() {
    let site = Site::new().await;
    let branch = site.branch();
    let mut open = site.resource.begin(&branch, LONG).await.unwrap();
    run(&mut open, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    run(&mut open, &take_from(1)).await.unwrap();
    assert_eq!(site.rollback(&branch).await, Ok(Fate::RolledBack));
    reason(site.prepare(&branch, open).await);
    site.assert_nothing_is_prepared().await;
}

/// Only a duplicate key is an answer (P15): as long as the branch may still become prepared, nothing is known.
#[tokio::test]
async fn a_fence_that_has_to_wait_says_that_it_is_not_known() {
    let site = Site::new().await;
    let (branch, open) = site.written(1).await;
    // The backend is between the evidence row and PREPARE: a trigger holds it there.
    sqlx::raw_sql(
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END'; \
         CREATE TRIGGER hold AFTER INSERT ON lockstep.evidence FOR EACH ROW WHEN (NEW.kind = 'branch') \
         EXECUTE FUNCTION hold()",
    )
    .execute(&site.pool)
    .await
    .unwrap();
    let mut holder = site.pool.acquire().await.unwrap();
    (*holder).execute("SELECT pg_advisory_lock(7)").await.unwrap();
    let one = position(1);
    let prepare = site.resource.prepare(&branch, open, &one);
    let ask = async {
        eventually("the prepare is held", async || {
            let waiting = "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database \
                           WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted";
            site.scalar::<i64>(waiting).await == 1
        })
        .await;
        let rollback = site.rollback(&branch).await;
        let commit = site.commit(&branch).await;
        (*holder).execute("SELECT pg_advisory_unlock(7)").await.unwrap();
        (rollback, commit)
    };
    let (prepared, (rollback, commit)) = tokio::join!(prepare, ask);
    assert!(rollback.as_ref().is_err_and(|why| why.0.contains("lock timeout")), "{rollback:?}");
    assert!(commit.is_err(), "{commit:?}");
    assert_eq!(prepared, Ok(Prepared::Yes));
    assert_eq!(site.rollback(&branch).await, Ok(Fate::RolledBack));
    site.assert_nothing_is_prepared().await;
}

/// The caller reports it as a heuristic outcome.
#[tokio::test]
async fn what_somebody_did_by_hand_is_told_as_it_is() {
    let site = Site::new().await;
    let (to_commit, to_roll_back) = (site.prepared(1).await, site.prepared(2).await);
    let by_hand = |sql: &str, branch: &BranchId| AssertSqlSafe(format!("{sql} PREPARED 'lockstep:{branch}'"));
    sqlx::raw_sql(by_hand("ROLLBACK", &to_commit)).execute(&site.pool).await.unwrap();
    sqlx::raw_sql(by_hand("COMMIT", &to_roll_back)).execute(&site.pool).await.unwrap();
    assert_eq!(site.commit(&to_commit).await, Ok(Fate::RolledBack));
    assert_eq!(site.rollback(&to_roll_back).await, Ok(Fate::Committed));
    assert_eq!((site.amount(1).await, site.amount(2).await), (100, 99));
}

#[tokio::test]
async fn instances_that_finish_the_same_branch_at_once_agree() {
    let site = Site::new().await;
    let other = site.other_instance().await;
    for round in 0..20 {
        let branch = site.prepared(1).await;
        let first = async || match round % 2 {
            0 => site.commit(&branch).await,
            _ => site.rollback(&branch).await,
        };
        let (one, two) = tokio::join!(resolved(first), resolved(async || other.commit(&branch).await));
        assert_eq!(one, two, "round {round}");
        let evidence = site.evidence(&branch).await;
        let expected = if one == Fate::Committed { "branch" } else { "fence" };
        // A rollback that found it prepared needs no fence, and the commit behind it makes one.
        assert_eq!(evidence.as_deref(), Some(expected), "round {round}");
    }
    site.assert_nothing_is_prepared().await;
}

/// Nothing automatic touches what is not ours.
#[tokio::test]
async fn foreign_prepared_transactions_are_left_alone() {
    let site = Site::new().await;
    let other_cluster = branch_of(ClusterId::from_random(0xdead_beef), &name(NAME));
    let other_name = branch_of(site.cluster, &name("billing-db"));
    let longer_name = branch_of(site.cluster, &name("orders-db-2"));
    let ours = site.branch();
    let foreign = [
        "somebody-elses".to_owned(),
        format!("lockstepper:{ours}"),
        format!("lockstep:{}:nonsense", site.cluster),
        format!("lockstep:{ours}:and-more"),
        format!("lockstep:{other_cluster}"),
        format!("lockstep:{other_name}"),
        format!("lockstep:{longer_name}"),
    ];
    for (number, gid) in foreign.iter().enumerate() {
        let work = format!("INSERT INTO account VALUES (1000 + {number}, 0)");
        let sql = AssertSqlSafe(format!("BEGIN; {work}; PREPARE TRANSACTION '{gid}'"));
        sqlx::raw_sql(sql).execute(&site.pool).await.unwrap();
    }
    let before = gids(&site.pool).await;
    assert_eq!(before.len(), foreign.len());
    // A branch of ours in another database of the same server: it has to be finished from there.
    let elsewhere = Site::new().await;
    let there = elsewhere.branch();
    let there = BranchId { cluster: site.cluster, ..there };
    let mut open = elsewhere.resource.begin(&there, LONG).await.unwrap();
    run(&mut open, &take_from(1)).await.unwrap();
    assert_eq!(elsewhere.prepare(&there, open).await, Prepared::Yes);

    assert_eq!(site.resource.prepared(site.cluster, &name(NAME)).await, Ok(vec![]));
    let refused = site.rollback(&there).await.unwrap_err();
    assert!(refused.0.contains("another database"), "{refused}");
    let mine = site.prepared(1).await;
    assert_eq!(site.resource.prepared(site.cluster, &name(NAME)).await, Ok(vec![mine.xid.clone()]));
    assert_eq!(site.rollback(&mine).await, Ok(Fate::RolledBack));
    assert_eq!(gids(&site.pool).await, before);
    assert_eq!(elsewhere.commit(&there).await, Ok(Fate::Committed));
}

async fn gids(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid")
        .fetch_all(pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_branch_of_another_role_stays_prepared_and_the_remedy_is_named() {
    let site = Site::new().await;
    sqlx::raw_sql(
        "CREATE ROLE other_role_service LOGIN; GRANT USAGE ON SCHEMA lockstep TO other_role_service; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON lockstep.evidence TO other_role_service; \
         GRANT SELECT, INSERT, UPDATE ON lockstep.identity TO other_role_service; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON lockstep.positions TO other_role_service",
    )
    .execute(&site.pool)
    .await
    .unwrap();
    let branch = site.prepared(1).await;
    let service = Postgres::new(pool(&site.database.as_ref().unwrap().url_as("other_role_service"), 2));
    service.attach(&name(NAME)).await.unwrap();
    for refused in
        [service.commit(&branch, &position(1)).await, service.rollback(&branch, &position(1)).await]
    {
        let why = refused.unwrap_err().0;
        assert!(why.contains("role that prepared it"), "{why}");
    }
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
}

#[tokio::test]
async fn a_killed_connection_leaves_a_question_that_can_be_answered() {
    let site = Site::new().await;
    let killer = site.pool.clone();
    let kill = async |backend: i32| {
        let killed: bool = sqlx::query_scalar("SELECT pg_terminate_backend($1, 5000)")
            .bind(backend)
            .fetch_one(&killer)
            .await
            .unwrap();
        assert!(killed, "the backend did not end");
    };
    // Before the prepare is sent.
    let (before, mut open) = site.written(1).await;
    kill(backend_of(&mut open).await).await;
    site.resource.prepare(&before, open, &position(1)).await.unwrap_err();
    assert_eq!(site.rollback(&before).await, Ok(Fate::RolledBack));

    // While the server works on it: a deferred constraint takes its time.
    sqlx::raw_sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(30); RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION slow()",
    )
    .execute(&site.pool)
    .await
    .unwrap();
    let one = position(1);
    for one_phase in [false, true] {
        let (within, mut open) = site.written(2).await;
        let backend = backend_of(&mut open).await;
        let end = async {
            match one_phase {
                false => site.resource.prepare(&within, open, &one).await.map(drop),
                true => site.resource.commit_one_phase(&within, open, &one).await.map(drop),
            }
        };
        let (answer, ()) = tokio::join!(end, async {
            eventually("the server works on it", async || {
                let sleeping = "SELECT count(*) FROM pg_stat_activity \
                                WHERE datname = current_database() AND wait_event = 'PgSleep'";
                site.scalar::<i64>(sleeping).await == 1
            })
            .await;
            kill(backend).await;
        });
        answer.unwrap_err();
        assert_eq!(site.rollback(&within).await, Ok(Fate::RolledBack));
    }
    site.assert_nothing_is_prepared().await;
    assert_eq!((site.amount(1).await, site.amount(2).await), (100, 100));
}

/// A server drops the handler's future when its client goes away; then a prepare may be under way that nobody
/// waits for.
#[tokio::test]
async fn a_prepare_that_nobody_waits_for_can_be_found_out_about() {
    let site = Site::new().await;
    for wait in [0, 100, 200, 300, 400, 600, 1_000, 2_000] {
        let (branch, open) = site.written(1).await;
        let one = position(1);
        let prepare = site.resource.prepare(&branch, open, &one);
        drop(tokio::time::timeout(Duration::from_micros(wait), prepare).await);
        assert_eq!(
            resolved(async || site.rollback(&branch).await).await,
            Fate::RolledBack,
            "after {wait} µs"
        );
        // Whatever was still under way, nothing comes of it later.
        assert_eq!(site.commit(&branch).await, Ok(Fate::RolledBack), "after {wait} µs");
    }
    site.assert_nothing_is_prepared().await;
    assert_eq!(site.amount(1).await, 100);
}
