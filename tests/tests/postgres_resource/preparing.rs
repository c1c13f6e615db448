//! From an open branch to a vote: what is prepared, what is refused and why, and what becomes of the connection.

use sqlx::Connection as _;

use super::*;

#[tokio::test]
async fn a_prepared_branch_is_listed_and_goes_either_way() {
    let site = Site::new().await;
    let (commits, rolls_back) = (site.prepared(1).await, site.prepared(2).await);
    let mut listed = site.resource.prepared(site.cluster, &name(NAME)).await.unwrap();
    listed.sort();
    let mut expected = vec![commits.xid.clone(), rolls_back.xid.clone()];
    expected.sort();
    assert_eq!(listed, expected);
    assert_eq!((site.amount(1).await, site.amount(2).await), (100, 100));

    assert_eq!(site.commit(&commits).await, Ok(Fate::Committed));
    assert_eq!(site.rollback(&rolls_back).await, Ok(Fate::RolledBack));
    assert_eq!((site.amount(1).await, site.amount(2).await), (99, 100));
    assert_eq!(site.evidence(&commits).await.as_deref(), Some("branch"));
    assert_eq!(site.evidence(&rolls_back).await, None);
    site.assert_nothing_is_prepared().await;
}

/// PREPARE TRANSACTION in a failed transaction succeeds, and prepares nothing.
#[tokio::test]
async fn a_failed_transaction_is_refused() {
    let site = Site::new().await;
    let (branch, mut open) = site.written(1).await;
    run(&mut open, "SELECT 1 / 0").await.unwrap_err();
    let reason = reason(site.prepare(&branch, open).await);
    assert!(reason.contains("had failed before"), "{reason}");
    site.assert_nothing_is_prepared().await;
    assert_eq!(site.evidence(&branch).await, None);
    assert_eq!(site.amount(1).await, 100);
}

#[tokio::test]
async fn an_error_inside_of_a_savepoint_is_the_services_own_affair() {
    let site = Site::new().await;
    let (branch, mut open) = site.written(1).await;
    run(&mut open, "SAVEPOINT s").await.unwrap();
    run(&mut open, "SELECT 1 / 0").await.unwrap_err();
    run(&mut open, "ROLLBACK TO SAVEPOINT s").await.unwrap();
    assert_eq!(site.prepare(&branch, open).await, Prepared::Yes);
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    assert_eq!(site.amount(1).await, 99);
}

/// P16: otherwise the evidence row alone would be prepared, and the rest is committed already.
#[tokio::test]
async fn a_transaction_that_the_service_rolled_back_is_refused_and_nothing_false_is_prepared() {
    let site = Site::new().await;
    let endings = [
        "ROLLBACK",
        "ROLLBACK AND CHAIN",
        "ROLLBACK; BEGIN; UPDATE account SET amount = amount - 1 WHERE id = 2",
        "ROLLBACK; BEGIN; UPDATE account SET amount = amount - 0 WHERE id = 2; COMMIT",
        "RESET lockstep.branch",
    ];
    for ending in endings {
        let (branch, mut open) = site.written(1).await;
        let backend = backend_of(&mut open).await;
        run(&mut open, ending).await.unwrap();
        let reason = reason(site.prepare(&branch, open).await);
        assert!(reason.contains("ended the branch's local transaction itself"), "{ending}: {reason}");
        assert_eq!(site.evidence(&branch).await, None, "{ending}");
        site.assert_nothing_is_prepared().await;
        eventually("its connection is closed", async || !is_running(&site.pool, backend).await).await;
    }
    // What it did in a transaction that it began itself is rolled back.
    assert_eq!((site.amount(1).await, site.amount(2).await), (100, 100));
}

/// P16: what is durable already can't be taken back, and "rolled back" would be a lie.
#[tokio::test]
async fn a_transaction_that_the_service_committed_is_a_hazard_whoever_asks_and_whenever() {
    let site = Site::new().await;
    let other = site.other_instance().await;
    let endings = [
        "COMMIT",
        "COMMIT; BEGIN",
        "COMMIT AND CHAIN",
        "COMMIT; BEGIN; UPDATE account SET amount = amount - 1 WHERE id = 2",
        "COMMIT; BEGIN; SELECT 1; ROLLBACK",
        // Autocommitted beside it.
        "COMMIT; UPDATE account SET amount = amount - 1 WHERE id = 3",
    ];
    for (committed, ending) in (1..).zip(endings) {
        let (branch, mut open) = site.written(1).await;
        let backend = backend_of(&mut open).await;
        run(&mut open, ending).await.unwrap();
        let why = hazard(site.prepare(&branch, open).await);
        assert!(why.contains("committed the branch's local transaction itself"), "{ending}: {why}");
        assert_eq!(site.amount(1).await, 100 - committed, "{ending}");
        site.assert_nothing_is_prepared().await;
        assert_eq!(site.rollback(&branch).await, Ok(Fate::Hazard), "{ending}");
        assert_eq!(other.commit(&branch).await, Ok(Fate::Hazard), "{ending}");
        eventually("its connection is closed", async || !is_running(&site.pool, backend).await).await;
    }
    assert_eq!((site.amount(2).await, site.amount(3).await), (100, 99));
}

/// The branch before it on the same connection was committed by the SDK.
#[tokio::test]
async fn a_rollback_by_the_service_is_not_taken_for_the_commit_of_an_earlier_branch() {
    let database = fresh_database();
    let site = Site::at(&database.url(), 1).await;
    let (first, open) = site.written(1).await;
    assert_eq!(site.prepare(&first, open).await, Prepared::Yes);
    let (second, mut open) = site.written(2).await;
    run(&mut open, "ROLLBACK").await.unwrap();
    let reason = reason(site.prepare(&second, open).await);
    assert!(reason.contains("ROLLBACK on the branch's connection"), "{reason}");
    assert_eq!(site.rollback(&second).await, Ok(Fate::RolledBack));
    assert_eq!(site.commit(&first).await, Ok(Fate::Committed));
}

/// Repository code that begins a transaction of its own must work inside of a branch.
#[tokio::test]
async fn a_transaction_of_sqlx_inside_of_a_branch_is_a_savepoint() {
    let site = Site::new().await;
    let (branch, mut open) = site.written(1).await;
    let connection: &mut PgConnection = Postgres::connection(&mut open);
    let mut inner = connection.begin().await.unwrap();
    sqlx::raw_sql("UPDATE account SET amount = amount - 1 WHERE id = 2").execute(&mut *inner).await.unwrap();
    inner.commit().await.unwrap();
    let mut inner = connection.begin().await.unwrap();
    sqlx::raw_sql("UPDATE account SET amount = amount - 1 WHERE id = 3").execute(&mut *inner).await.unwrap();
    drop(inner);
    assert_eq!(site.prepare(&branch, open).await, Prepared::Yes);
    assert_eq!(site.amount(2).await, 100, "it was committed with the inner transaction");
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    assert_eq!((site.amount(1).await, site.amount(2).await, site.amount(3).await), (99, 99, 100));
}

#[tokio::test]
async fn a_leaked_transaction_of_sqlx_does_not_reach_the_pool() {
    let site = Site::new().await;
    let (branch, mut open) = site.written(1).await;
    let backend = backend_of(&mut open).await;
    std::mem::forget(Postgres::connection(&mut open).begin().await.unwrap());
    assert_eq!(site.prepare(&branch, open).await, Prepared::Yes);
    eventually("its connection is closed", async || !is_running(&site.pool, backend).await).await;
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    assert_eq!(site.amount(1).await, 99);
}

/// P23: a NOTIFY has no xid, and must not be published before the decision.
#[tokio::test]
async fn a_branch_that_wrote_nothing_is_rolled_back() {
    let site = Site::new().await;
    let mut listener = sqlx::postgres::PgListener::connect_with(&site.pool).await.unwrap();
    listener.listen("news").await.unwrap();
    let branch = site.branch();
    let mut open = site.resource.begin(&branch, LONG).await.unwrap();
    run(&mut open, "SELECT * FROM account; NOTIFY news, 'too early'").await.unwrap();
    assert_eq!(site.prepare(&branch, open).await, Prepared::ReadOnly);
    assert_eq!(site.evidence(&branch).await, None);
    site.assert_nothing_is_prepared().await;
    sqlx::raw_sql("NOTIFY news, 'the next one'").execute(&site.pool).await.unwrap();
    assert_eq!(listener.recv().await.unwrap().payload(), "the next one");
}

/// It wrote nothing that stays, but it holds something until the end.
#[tokio::test]
async fn a_branch_that_only_locked_rows_is_prepared() {
    let site = Site::new().await;
    let branch = site.branch();
    let mut open = site.resource.begin(&branch, LONG).await.unwrap();
    run(&mut open, "SELECT * FROM account WHERE id = 1 FOR UPDATE").await.unwrap();
    assert_eq!(site.prepare(&branch, open).await, Prepared::Yes);
    let taken =
        sqlx::raw_sql("SELECT 1 FROM account WHERE id = 1 FOR UPDATE NOWAIT").execute(&site.pool).await;
    assert!(taken.is_err(), "the lock went before the decision");
    assert_eq!(site.rollback(&branch).await, Ok(Fate::RolledBack));
}

#[tokio::test]
async fn what_postgresql_cannot_prepare_is_refused_with_the_reason() {
    let site = Site::new().await;
    sqlx::raw_sql(
        "CREATE TABLE orders (account int REFERENCES account DEFERRABLE INITIALLY DEFERRED); \
         CREATE TABLE private (n int); INSERT INTO private VALUES (1)",
    )
    .execute(&site.pool)
    .await
    .unwrap();
    for (work, expected) in [
        ("CREATE TEMPORARY TABLE t (n int)", "temporary objects"),
        ("LISTEN news", "LISTEN, UNLISTEN, or NOTIFY"),
        ("NOTIFY news", "LISTEN, UNLISTEN, or NOTIFY"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "WITH HOLD"),
        ("SELECT pg_export_snapshot()", "exported snapshots"),
        ("INSERT INTO orders VALUES (4711)", "a constraint that is checked at the end does not hold"),
        ("SET TRANSACTION READ ONLY", "READ ONLY"),
        (
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
          'BEGIN PERFORM pg_sleep(1); RETURN NULL; END'; CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON private \
          DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow(); \
          INSERT INTO private VALUES (2); SET LOCAL statement_timeout = 50",
            "statement timeout",
        ),
    ] {
        let (branch, mut open) = site.written(1).await;
        run(&mut open, work).await.unwrap();
        let reason = reason(site.prepare(&branch, open).await);
        assert!(reason.contains(expected), "{work}: {reason}");
        assert_eq!(site.evidence(&branch).await, None, "{work}");
        site.assert_nothing_is_prepared().await;
    }
    assert_eq!(site.amount(1).await, 100);
}

#[tokio::test]
async fn a_serialization_failure_says_that_the_same_may_succeed_again() {
    let site = Site::new().await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let branch = site.branch();
        let mut it = site.resource.begin(&branch, LONG).await.unwrap();
        run(&mut it, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE").await.unwrap();
        run(&mut it, "SELECT sum(amount) FROM account").await.unwrap();
        open.push((branch, it));
    }
    for (id, (_, it)) in open.iter_mut().enumerate() {
        let sql = format!("INSERT INTO account SELECT {}, sum(amount) FROM account", 100 + id);
        run(it, &sql).await.unwrap();
    }
    let (first, second) = (open.remove(0), open.remove(0));
    assert_eq!(site.prepare(&first.0, first.1).await, Prepared::Yes);
    let reason = reason(site.prepare(&second.0, second.1).await);
    assert!(reason.contains("40001") && reason.contains("may succeed"), "{reason}");
    assert_eq!(site.commit(&first.0).await, Ok(Fate::Committed));
    site.assert_nothing_is_prepared().await;
}

#[tokio::test]
async fn every_isolation_level_is_the_services_choice() {
    let site = Site::new().await;
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let branch = site.branch();
        let mut open = site.resource.begin(&branch, LONG).await.unwrap();
        run(&mut open, &format!("SET TRANSACTION ISOLATION LEVEL {level}")).await.unwrap();
        run(&mut open, &take_from(1)).await.unwrap();
        assert_eq!(site.prepare(&branch, open).await, Prepared::Yes, "{level}");
        assert_eq!(site.commit(&branch).await, Ok(Fate::Committed), "{level}");
    }
    assert_eq!(site.amount(1).await, 97);
}

/// A prepared transaction belongs to the role that was in force, and no other can finish it.
#[tokio::test]
async fn a_branch_that_took_another_role_can_still_be_finished() {
    let site = Site::new().await;
    // Roles are the whole server's, so the names must be the test's own.
    sqlx::raw_sql(
        "CREATE ROLE took_role_service LOGIN NOINHERIT; CREATE ROLE took_role_tenant; \
         GRANT took_role_tenant TO took_role_service; GRANT ALL ON account TO took_role_tenant; \
         GRANT USAGE ON SCHEMA lockstep TO took_role_service; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON lockstep.evidence TO took_role_service; \
         GRANT SELECT, INSERT, UPDATE ON lockstep.identity TO took_role_service; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON lockstep.positions TO took_role_service",
    )
    .execute(&site.pool)
    .await
    .unwrap();
    let pool = pool(&site.database.as_ref().unwrap().url_as("took_role_service"), 2);
    let service = Postgres::new(pool);
    service.attach(&name(NAME)).await.unwrap();
    for role in ["SET LOCAL ROLE took_role_tenant", "SET ROLE took_role_tenant"] {
        let branch = site.branch();
        let mut open = service.begin(&branch, LONG).await.unwrap();
        run(&mut open, role).await.unwrap();
        run(&mut open, &take_from(1)).await.unwrap();
        assert_eq!(service.prepare(&branch, open, &position(1)).await, Ok(Prepared::Yes), "{role}");
        assert_eq!(service.commit(&branch, &position(1)).await, Ok(Fate::Committed), "{role}");
    }
    assert_eq!(site.amount(1).await, 98);
}

/// A handler's search_path may put anything before the functions and operators that the evidence is guarded with.
#[tokio::test]
async fn a_changed_search_path_does_not_mislead_the_evidence() {
    let site = Site::new().await;
    sqlx::raw_sql(
        "CREATE SCHEMA odd; \
         CREATE FUNCTION odd.current_setting(text, boolean) RETURNS text LANGUAGE sql AS 'SELECT ''odd''::text'; \
         CREATE FUNCTION odd.same(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'; \
         CREATE OPERATOR odd.= (FUNCTION = odd.same, LEFTARG = text, RIGHTARG = text); \
         CREATE FUNCTION odd.pg_prepared_xact() RETURNS TABLE (gid text) LANGUAGE sql AS 'SELECT ''odd''::text'; \
         CREATE TABLE odd.evidence (xid text)",
    )
    .execute(&site.pool)
    .await
    .unwrap();
    let (branch, mut open) = site.written(1).await;
    run(&mut open, "SET LOCAL search_path = odd, pg_catalog, public").await.unwrap();
    assert_eq!(site.prepare(&branch, open).await, Prepared::Yes);
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    let (branch, mut open) = site.written(1).await;
    run(&mut open, "COMMIT; SET search_path = odd, pg_catalog, public").await.unwrap();
    let why = hazard(site.prepare(&branch, open).await);
    assert!(why.contains("committed the branch's local transaction itself"), "{why}");
}

/// A connection that is known to be good goes back, and behaves like new for whoever gets it next.
#[tokio::test]
async fn connections_return_to_the_services_pool() {
    let database = fresh_database();
    let site = Site::at(&database.url(), 1).await;
    let backend: i32 = site.scalar("SELECT pg_backend_pid()").await;
    let prepared = site.prepared(1).await;
    let branch = site.branch();
    let open = site.resource.begin(&branch, LONG).await.unwrap();
    assert_eq!(site.prepare(&branch, open).await, Prepared::ReadOnly);
    let (branch, mut open) = site.written(2).await;
    run(&mut open, "SELECT 1 / 0").await.unwrap_err();
    reason(site.prepare(&branch, open).await);
    let (branch, mut open) = site.written(2).await;
    run(&mut open, "CREATE TEMPORARY TABLE t (n int)").await.unwrap();
    reason(site.prepare(&branch, open).await);
    let (branch, open) = site.written(2).await;
    assert_eq!(site.resource.commit_one_phase(&branch, open, &position(1)).await, Ok(Fate::Committed));
    let (_, open) = site.written(2).await;
    site.resource.discard(open).await;

    let mut connection = site.pool.acquire().await.unwrap();
    let now: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *connection).await.unwrap();
    assert_eq!(now, backend, "a connection was closed on the way");
    // sqlx counts right: this is a transaction of its own, and not a savepoint.
    let mut transaction = connection.begin().await.unwrap();
    sqlx::raw_sql("UPDATE account SET amount = 0 WHERE id = 3").execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    drop(connection);
    assert_eq!(site.amount(3).await, 0);
    assert_eq!(site.amount(2).await, 99);
    let left: String = site.scalar("SELECT current_setting('lockstep.branch', true)").await;
    assert_eq!(left, "");
    assert_eq!(site.scalar::<String>("SHOW lock_timeout").await, "0");
    assert_eq!(site.rollback(&prepared).await, Ok(Fate::RolledBack));
    // Nor does an operator read of it: sqlx ends a transaction that is there.
    let warnings: Vec<String> = database.log().into_iter().filter(|line| line.contains("WARNING")).collect();
    assert!(warnings.is_empty(), "{warnings:?}");
}

/// By the server: a name of 200 bytes is refused.
#[tokio::test]
async fn a_branch_of_the_longest_name_is_prepared_and_found_again() {
    let site = Site::new().await;
    let longest = name(&"n".repeat(47));
    let resource = Postgres::new(site.pool.clone());
    resource.attach(&longest).await.unwrap();
    let gtrid = Gtrid::new(Epoch::new(u32::MAX).unwrap(), (1 << 48) - 1, [255; 10]);
    let branch =
        BranchId { cluster: site.cluster, xid: Xid { gtrid, bqual: Bqual::new(&longest, u64::MAX) } };
    let mut open = resource.begin(&branch, LONG).await.unwrap();
    run(&mut open, &take_from(1)).await.unwrap();
    assert_eq!(resource.prepare(&branch, open, &position(1)).await, Ok(Prepared::Yes));
    assert_eq!(resource.prepared(site.cluster, &longest).await, Ok(vec![branch.xid.clone()]));
    assert_eq!(resolved(async || resource.commit(&branch, &position(2)).await).await, Fate::Committed);
    assert_eq!(site.amount(1).await, 99);
}
