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

/// The server undoes such a statement only, and XA PREPARE would succeed with the rest.
#[tokio::test]
async fn a_statement_that_failed_turns_the_branch_down_though_its_error_was_swallowed() {
    let site = Site::new().await;
    let holder = site.prepared(9).await;
    let failures = [
        // Locks that are waited for in vain, by a change and by a read.
        ("SET innodb_lock_wait_timeout = 1; UPDATE account SET amount = 0 WHERE id IN (8, 9)", 1205),
        ("SET innodb_lock_wait_timeout = 1; SELECT * FROM account WHERE id = 9 FOR UPDATE", 1205),
        ("SELECT * FROM account WHERE id = 9 FOR UPDATE NOWAIT", 1205),
        ("SET STATEMENT max_statement_time = 0.2 FOR UPDATE account SET amount = 0 WHERE id = 9", 1969),
        // Half of its rows were changed when it failed.
        ("INSERT INTO account VALUES (11, 1), (1, 1)", 1062),
        ("UPDATE account SET id = id + 1 WHERE id < 3 ORDER BY id", 1062),
        ("INSERT INTO account VALUES (12, 'much')", 1366),
    ];
    for (statement, expected) in failures {
        let (branch, mut open) = site.written(1).await;
        let error = run(&mut open, statement).await.unwrap_err();
        assert!(error.to_string().contains(&expected.to_string()), "{statement}: {error}");
        // What comes behind it does not hide it.
        run(&mut open, "UPDATE account SET amount = amount + 1 WHERE id = 2").await.unwrap();
        let reason = reason(site.prepare(&branch, open).await);
        assert!(reason.contains("had failed before"), "{statement}: {reason}");
        assert_eq!(site.evidence(&branch).await, None, "{statement}");
        assert!(is_free(&site.pool, 1).await, "{statement}");
    }
    assert_eq!(site.rollback(&holder).await, Ok(Fate::RolledBack));
    site.assert_nothing_is_prepared().await;
    assert_eq!((site.amount(1).await, site.amount(2).await), (100, 100));
}

/// The server rolls the whole branch back, and refuses to prepare it.
#[tokio::test]
async fn a_deadlock_turns_the_branch_down_though_its_error_was_swallowed() {
    let site = Site::new().await;
    let (one, mut open_one) = site.written(1).await;
    let (two, mut open_two) = site.written(2).await;
    let (to_two, to_one) = (take_from(2), take_from(1));
    let (first, second) = tokio::join!(run(&mut open_one, &to_two), run(&mut open_two, &to_one));
    assert!(first.is_err() != second.is_err(), "one of them is the victim: {first:?} {second:?}");
    let (victim, open_victim, winner, open_winner) = match first {
        Err(_) => (one, open_one, two, open_two),
        Ok(()) => (two, open_two, one, open_one),
    };
    let reason = reason(site.prepare(&victim, open_victim).await);
    assert!(reason.contains("had failed before"), "{reason}");
    assert_eq!(site.prepare(&winner, open_winner).await, Prepared::Yes);
    assert_eq!(site.commit(&winner).await, Ok(Fate::Committed));
    assert_eq!((site.amount(1).await, site.amount(2).await), (99, 99));
    site.assert_nothing_is_prepared().await;
}

#[tokio::test]
async fn what_a_service_does_on_purpose_instead_of_failing_is_prepared() {
    let site = Site::new().await;
    let (branch, mut open) = site.written(1).await;
    for statement in [
        "INSERT IGNORE INTO account VALUES (2, 7)",
        "INSERT INTO account VALUES (2, 7) ON DUPLICATE KEY UPDATE amount = amount - 1",
        "SAVEPOINT s; UPDATE account SET amount = 0 WHERE id = 3; ROLLBACK TO SAVEPOINT s",
        // Nothing was done by these.
        "DELETE FROM account WHERE id = 77",
        "SELECT * FROM account WHERE id = 4 FOR UPDATE",
    ] {
        run(&mut open, statement).await.unwrap();
    }
    assert_eq!(site.prepare(&branch, open).await, Prepared::Yes);
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    let amounts = (site.amount(1).await, site.amount(2).await, site.amount(3).await);
    assert_eq!(amounts, (99, 99, 100));
}

/// P16: XA refuses what would end the branch behind our back, and what commits by itself.
#[tokio::test]
async fn a_service_can_not_commit_inside_of_a_branch() {
    let site = Site::new().await;
    let (branch, mut open) = site.written(1).await;
    for statement in [
        "COMMIT",
        "ROLLBACK",
        "BEGIN",
        "START TRANSACTION",
        "CREATE TABLE made (n int)",
        "ALTER TABLE account ADD COLUMN made int",
        "TRUNCATE account",
        "LOCK TABLES account WRITE",
        "FLUSH STATUS",
        "SET autocommit = 0; SET autocommit = 1",
    ] {
        let error = run(&mut open, statement).await.unwrap_err();
        assert!(error.to_string().contains("1399"), "{statement}: {error}");
    }
    // Nothing of it was done, and nothing was undone.
    assert_eq!(site.prepare(&branch, open).await, Prepared::Yes);
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    assert_eq!(site.amount(1).await, 99);
}

/// What XA statements of the service's own do to a branch is found, and no evidence of it is left.
#[tokio::test]
async fn a_branch_that_the_service_ended_with_xa_statements_is_refused_and_nothing_false_is_prepared() {
    let site = Site::new().await;
    let endings: [fn(&str) -> String; 4] = [
        |xid| format!("XA END {xid}"),
        |xid| format!("XA END {xid}; XA ROLLBACK {xid}"),
        |xid| format!("XA END {xid}; XA ROLLBACK {xid}; UPDATE account SET amount = amount - 1 WHERE id = 2"),
        |xid| format!("XA END {xid}; XA ROLLBACK {xid}; XA START {xid}"),
    ];
    for ending in endings {
        let (branch, mut open) = site.written(1).await;
        let session = session_of(&mut open).await;
        let ending = ending(&xid_of(&branch));
        run(&mut open, &ending).await.unwrap();
        let reason = reason(site.prepare(&branch, open).await);
        assert!(reason.contains("XA statements"), "{ending}: {reason}");
        eventually("its connection is closed", async || !is_running(&site.pool, session).await).await;
        assert_eq!(site.evidence(&branch).await, None, "{ending}");
        site.assert_nothing_is_prepared().await;
    }
    // What it did by itself outside of the branch is its own affair.
    assert_eq!((site.amount(1).await, site.amount(2).await), (100, 99));
}

/// P16: what was committed can't be undone, so it is told, to whoever asks at any time.
#[tokio::test]
async fn a_branch_that_the_service_committed_itself_is_a_hazard() {
    let site = Site::new().await;
    let behind = [
        "",
        "; BEGIN",
        "; UPDATE account SET amount = 0 WHERE id = 2",
        "; XA START 'x'",
        "; XA START 'x'; XA END 'x'",
    ];
    for (number, behind) in (1..).zip(behind) {
        for one_phase in [false, true] {
            let (branch, mut open) = site.written(1).await;
            let xid = xid_of(&branch);
            run(&mut open, &format!("XA END {xid}; XA COMMIT {xid} ONE PHASE{behind}")).await.unwrap();
            if one_phase {
                let fate = site.resource.commit_one_phase(&branch, open, &position(1)).await;
                assert_eq!(fate, Ok(Fate::Hazard), "{behind}");
            } else {
                let answer = site.prepare(&branch, open).await;
                assert!(
                    matches!(&answer, Prepared::Hazard(why) if why.contains("committed")),
                    "{behind}: {answer:?}"
                );
            }
            assert_eq!(site.commit(&branch).await, Ok(Fate::Hazard), "{behind}");
            assert_eq!(site.rollback(&branch).await, Ok(Fate::Hazard), "{behind}");
            assert_eq!(site.evidence(&branch).await.as_deref(), Some("hazard"), "{behind}");
        }
        assert_eq!(site.amount(1).await, 100 - 2 * number, "what it did commit");
    }
    site.assert_nothing_is_prepared().await;
}

/// Repository code that begins a transaction of its own must work inside of a branch.
#[tokio::test]
async fn a_transaction_of_sqlx_inside_of_a_branch_is_a_savepoint() {
    let site = Site::new().await;
    let (branch, mut open) = site.written(1).await;
    let connection: &mut MySqlConnection = MySql::connection(&mut open);
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

/// P23. A prepared branch without changes would be listed, gone after a restart, and answered 1402 when it is committed.
#[tokio::test]
async fn a_branch_that_wrote_nothing_is_rolled_back() {
    let site = Site::new().await;
    sqlx::raw_sql("CREATE TABLE empty (n int)").execute(&site.pool).await.unwrap();
    for work in [
        "SELECT 1",
        "SELECT * FROM account WHERE id = 1 FOR UPDATE",
        "UPDATE account SET amount = 0 WHERE id = 77",
        "INSERT INTO empty SELECT id FROM account WHERE id > 77",
        "SELECT amount, count(*) FROM account GROUP BY amount ORDER BY 2",
    ] {
        let branch = site.branch();
        let mut open = site.resource.begin(&branch, LONG).await.unwrap();
        run(&mut open, work).await.unwrap();
        assert_eq!(site.prepare(&branch, open).await, Prepared::ReadOnly, "{work}");
        assert_eq!(site.evidence(&branch).await, None, "{work}");
        assert!(is_free(&site.pool, 1).await, "{work}");
    }
    site.assert_nothing_is_prepared().await;
}

/// Whatever may have written something is no read-only branch.
#[tokio::test]
async fn no_way_of_writing_is_taken_for_reading() {
    let site = Site::new().await;
    for statement in [
        "CREATE TABLE parent (id int PRIMARY KEY)",
        "CREATE TABLE child (parent int REFERENCES parent (id) ON DELETE CASCADE)",
        "CREATE TABLE log (id int)",
        "CREATE TRIGGER log AFTER UPDATE ON account FOR EACH ROW INSERT INTO log VALUES (NEW.id)",
        "CREATE PROCEDURE work() INSERT INTO log VALUES (7)",
        "CREATE FUNCTION counted() RETURNS int BEGIN INSERT INTO log VALUES (8); RETURN 1; END",
        "CREATE SEQUENCE numbers",
        "INSERT INTO parent VALUES (1), (2), (3)",
        "INSERT INTO child VALUES (1)",
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&site.pool).await.unwrap();
    }
    for work in [
        "INSERT INTO log VALUES (1)",
        "INSERT INTO log SELECT id FROM parent",
        "REPLACE INTO parent VALUES (2)",
        "UPDATE account SET amount = amount WHERE id = 2",
        "DELETE FROM parent WHERE id = 1",
        "DELETE FROM parent",
        "DELETE log, parent FROM log JOIN parent USING (id) WHERE log.id = 1",
        "CALL work()",
        "SELECT counted()",
        "SELECT NEXTVAL(numbers)",
    ] {
        let branch = site.branch();
        let mut open = site.resource.begin(&branch, LONG).await.unwrap();
        // Something that it can join with, and that is counted on its own.
        if work.contains("JOIN") {
            sqlx::raw_sql("INSERT INTO log VALUES (1); INSERT IGNORE INTO parent VALUES (1)")
                .execute(&site.pool)
                .await
                .unwrap();
        }
        run(&mut open, work).await.unwrap();
        assert_eq!(site.prepare(&branch, open).await, Prepared::Yes, "{work}");
        assert_eq!(site.rollback(&branch).await, Ok(Fate::RolledBack), "{work}");
    }
}

/// What was written to them stays when the branch is rolled back.
#[tokio::test]
async fn tables_that_can_not_be_rolled_back_turn_the_branch_down() {
    let site = Site::new().await;
    for engine in ["MyISAM", "Aria", "MEMORY"] {
        let sql = format!("CREATE TABLE in_{engine} (n int) ENGINE = {engine}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&site.pool).await.unwrap();
    }
    for work in [
        "INSERT INTO in_MyISAM VALUES (1)",
        "INSERT INTO in_Aria VALUES (1)",
        "INSERT INTO in_MEMORY VALUES (1)",
        "CREATE TEMPORARY TABLE t (n int)",
    ] {
        let (branch, mut open) = site.written(1).await;
        run(&mut open, work).await.unwrap();
        run(&mut open, &take_from(2)).await.unwrap();
        let reason = reason(site.prepare(&branch, open).await);
        assert!(reason.contains("InnoDB"), "{work}: {reason}");
    }
    site.assert_nothing_is_prepared().await;
    assert_eq!((site.amount(1).await, site.amount(2).await), (100, 100));
    // Reading them is nobody's harm.
    let (branch, mut open) = site.written(1).await;
    run(&mut open, "SELECT * FROM in_MyISAM; DELETE FROM in_MyISAM WHERE n = 5").await.unwrap();
    assert_eq!(site.prepare(&branch, open).await, Prepared::Yes);
    assert_eq!(site.rollback(&branch).await, Ok(Fate::RolledBack));
}

/// Whatever a handler leaves behind in its session.
#[tokio::test]
async fn a_changed_session_does_not_mislead_the_evidence() {
    let site = Site::new().await;
    let elsewhere = Site::new().await;
    let use_elsewhere = format!("USE {}", elsewhere.database.as_ref().unwrap().name);
    for change in [
        use_elsewhere.as_str(),
        "SET sql_mode = ''",
        "SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,TRADITIONAL'",
        "SET time_zone = '+09:00'",
        "SET timestamp = 1",
        "SET timestamp = 4000000000",
        "SET character_set_client = latin1, collation_connection = latin1_german2_ci",
        "SET unique_checks = 0, foreign_key_checks = 0, check_constraint_checks = 0",
        "SET autocommit = 0",
    ] {
        let (branch, mut open) = site.written(1).await;
        run(&mut open, change).await.unwrap();
        assert_eq!(site.prepare(&branch, open).await, Prepared::Yes, "{change}");
        assert_eq!(site.commit(&branch).await, Ok(Fate::Committed), "{change}");
        assert_eq!(site.evidence(&branch).await.as_deref(), Some("branch"), "{change}");
        let (fenced, mut open) = site.written(1).await;
        run(&mut open, change).await.unwrap();
        assert_eq!(site.rollback(&fenced).await, Ok(Fate::RolledBack), "{change}");
        reason(site.prepare(&fenced, open).await);
    }
    assert_eq!(elsewhere.scalar::<i64>("SELECT count(*) FROM lockstep_evidence").await, 0);
}

/// A session that was set up for a branch never serves anybody else.
#[tokio::test]
async fn a_branchs_connection_never_returns_to_the_pool() {
    let site = Site::at(&fresh_database().url(), 1).await;
    for ending in ["prepared", "rolled back", "read-only", "refused", "one phase", "dropped"] {
        let branch = site.branch();
        let mut open = site.resource.begin(&branch, LONG).await.unwrap();
        let session = session_of(&mut open).await;
        if ending != "read-only" {
            run(&mut open, &take_from(1)).await.unwrap();
        }
        match ending {
            "rolled back" => site.resource.discard(open).await,
            "one phase" => {
                site.resource.commit_one_phase(&branch, open, &position(1)).await.unwrap();
            }
            "refused" => {
                run(&mut open, "INSERT INTO account VALUES (1, 1)").await.unwrap_err();
                reason(site.prepare(&branch, open).await);
            }
            "dropped" => drop(open),
            _ => drop(site.prepare(&branch, open).await),
        }
        // The pool has one connection, and it is another one.
        let next: i64 = site.scalar("SELECT CAST(CONNECTION_ID() AS SIGNED)").await;
        assert_ne!(next, session, "{ending}");
        eventually("the session ends", async || !is_running(&site.pool, session).await).await;
        let lock_wait: i64 = site.scalar("SELECT CAST(@@innodb_lock_wait_timeout AS SIGNED)").await;
        assert_eq!(lock_wait, 50, "the server's own, after a branch that was {ending}");
        site.rollback(&branch).await.unwrap();
    }
}

/// By the server: more than 64 bytes on either side are refused.
#[tokio::test]
async fn a_branch_of_the_longest_name_is_prepared_and_found_again() {
    let site = Site::new().await;
    let longest = name(&"n".repeat(47));
    let resource = MySql::new(site.pool.clone());
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

/// What an early vote goes by: a branch that has only read, or locked rows, waits for the coordinator (P23).
#[tokio::test]
async fn whether_a_branch_has_written_is_known_while_it_is_open() {
    let site = Site::new().await;
    let branch = site.branch();
    let mut open = site.resource.begin(&branch, LONG).await.unwrap();
    assert!(!MySql::has_written(&mut open).await);
    run(&mut open, "SELECT * FROM account; SELECT * FROM account WHERE id = 1 FOR UPDATE").await.unwrap();
    assert!(!MySql::has_written(&mut open).await, "it has only read");
    run(&mut open, &take_from(1)).await.unwrap();
    assert!(MySql::has_written(&mut open).await);
    assert_eq!(site.prepare(&branch, open).await, Prepared::Yes);
    assert_eq!(site.rollback(&branch).await, Ok(Fate::RolledBack));

    // One that can't be asked says yes: preparing finds out.
    let (branch, mut open) = site.written(2).await;
    let session = session_of(&mut open).await;
    sqlx::raw_sql(AssertSqlSafe(format!("KILL {session}"))).execute(&site.pool).await.unwrap();
    assert!(MySql::has_written(&mut open).await);
    reason(site.prepare(&branch, open).await);
}
