//! While a branch is open: its deadline, its locks, and the ways in which it is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep::resource::{Fate, Resource as _, ResourceError};
use sqlx::Executor as _;
use tokio::time::{Instant, timeout};

use super::*;

/// The time of a branch that is to run out of it. A machine that is busy with other things has to begin it in
/// less.
const SHORT: Duration = Duration::from_secs(1);

/// P19: the process may be stopped; the database ends the branch all the same.
#[tokio::test]
async fn the_database_ends_a_branch_soon_after_its_deadline() {
    let site = Site::new().await;
    let branch = site.branch();
    let mut open = site.resource.begin(&branch, SHORT).await.unwrap();
    run(&mut open, &take_from(1)).await.unwrap();
    let session = session_of(&mut open).await;
    let idle = Instant::now();
    eventually("the database ends it", async || !is_running(&site.pool, session).await).await;
    assert!(idle.elapsed() >= SHORT, "ended before its deadline");
    // Its row is free again, and a late prepare comes to nothing.
    assert!(is_free(&site.pool, 1).await);
    reason(site.prepare(&branch, open).await);
    assert_eq!(site.rollback(&branch).await, Ok(Fate::RolledBack));
}

/// Each statement begins the idle time anew, so a branch could live on: but the server's clock is asked before
/// the prepare.
#[tokio::test]
async fn a_branch_that_outlived_its_deadline_is_not_prepared() {
    let site = Site::new().await;
    let (branch, one_phase) = (site.branch(), site.branch());
    let mut open = site.resource.begin(&branch, SHORT).await.unwrap();
    let mut open_one_phase = site.resource.begin(&one_phase, SHORT).await.unwrap();
    let begun = Instant::now();
    run(&mut open, &take_from(1)).await.unwrap();
    run(&mut open_one_phase, &take_from(2)).await.unwrap();
    while begun.elapsed() < SHORT + Duration::from_millis(1_200) {
        run(&mut open, "SELECT SLEEP(0.05)").await.unwrap();
        run(&mut open_one_phase, "SELECT 1").await.unwrap();
    }
    let reason = reason(site.prepare(&branch, open).await);
    assert!(reason.contains("deadline"), "{reason}");
    let fate = site.resource.commit_one_phase(&one_phase, open_one_phase, &position(1)).await;
    assert_eq!(fate, Ok(Fate::RolledBack));
    site.assert_nothing_is_prepared().await;
    assert_eq!((site.amount(1).await, site.amount(2).await), (100, 100));
}

/// The server counts a branch's time from its XA START: a process that was stopped there must not hand the branch
/// out.
#[tokio::test]
async fn a_branch_whose_begin_was_answered_after_its_deadline_is_not_handed_out() {
    let database = fresh_database();
    Site::at(&database.url(), 1).await;
    let leaving = Arc::new(AtomicBool::new(false));
    let hook = Arc::clone(&leaving);
    let pool = MySqlPoolOptions::new()
        .test_before_acquire(false)
        .before_acquire(move |_connection, _metadata| {
            hook.store(true, Ordering::Relaxed);
            Box::pin(async { Ok(true) })
        })
        .connect_lazy(&database.url())
        .unwrap();
    let resource = MySql::new(pool.clone());
    resource.attach(&name(NAME)).await.unwrap();
    // On a busy machine the answer may be there before anything else runs in this process: then once more.
    for _ in 0..20 {
        pool.execute("SELECT 1").await.unwrap();
        eventually("its connection is back", async || pool.num_idle() == 1).await;
        leaving.store(false, Ordering::Relaxed);
        let branch = branch_of(ClusterId::from_random(1), &name(NAME));
        let started = Instant::now();
        let begin = async { (resource.begin(&branch, SHORT).await, started.elapsed()) };
        let ((begun, took), ()) = tokio::join!(begin, async {
            while !leaving.load(Ordering::Relaxed) && started.elapsed() < SHORT {
                tokio::task::yield_now().await;
            }
            // XA START is on its way. Nothing of this process runs now, as if it were stopped.
            std::thread::sleep(SHORT * 2);
        });
        match begun {
            Ok(open) => {
                assert!(took < SHORT, "handed out {took:?} after it was asked for, with {SHORT:?} to live");
                resource.discard(open).await;
            }
            // This process notices first that it is late, or that the server has ended the session meanwhile.
            Err(ResourceError::Unavailable(_why)) => return,
            Err(error @ ResourceError::Unfit(_)) => panic!("{error:?}"),
        }
    }
    panic!("it was always begun in time");
}

/// Whoever holds the user lock instead would be killed when the branch is dropped.
#[tokio::test]
async fn a_branch_whose_session_gets_no_user_lock_is_not_begun() {
    let site = Site::new().await;
    let branch = site.branch();
    let mut stranger = site.pool.acquire().await.unwrap();
    (*stranger).execute(AssertSqlSafe(format!("DO GET_LOCK('{}', 0)", open_lock(&branch)))).await.unwrap();
    let error = site.resource.begin(&branch, LONG).await.unwrap_err();
    assert!(matches!(&error, ResourceError::Unavailable(why) if why.contains("user lock")), "{error:?}");
    let session = own_session(&mut stranger).await;
    assert_eq!(holder(&site.pool, &open_lock(&branch)).await, Some(session));
}

/// Deadlock detection never fires on a prepared branch's locks.
#[tokio::test]
async fn a_wait_for_a_lock_ends_with_the_deadline() {
    let site = Site::new().await;
    let holder = site.prepared(1).await;
    let branch = site.branch();
    let begun = Instant::now();
    let mut open = site.resource.begin(&branch, SHORT).await.unwrap();
    let error = run(&mut open, &take_from(1)).await.unwrap_err();
    assert!(error.to_string().contains("1205"), "{error}");
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    let reason = reason(site.prepare(&branch, open).await);
    assert!(reason.contains("had failed before"), "{reason}");
    assert_eq!(site.rollback(&holder).await, Ok(Fate::RolledBack));
}

#[tokio::test]
async fn a_statement_ends_soon_after_the_deadline() {
    let site = Site::new().await;
    let branch = site.branch();
    let mut open = site.resource.begin(&branch, SHORT).await.unwrap();
    let begun = Instant::now();
    let error = run(&mut open, "SELECT SLEEP(120)").await.unwrap_err();
    assert!(error.to_string().contains("1969"), "{error}");
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    site.resource.discard(open).await;
}

/// P17, and a handler whose client went away: its future is dropped in the middle of a statement.
#[tokio::test]
async fn a_branch_dropped_in_the_middle_of_a_statement_frees_its_locks_soon() {
    let site = Site::new().await;
    let blocker = site.prepared(2).await;
    for ending in ["dropped", "discarded"] {
        let (_, mut open) = site.written(1).await;
        let session = session_of(&mut open).await;
        timeout(Duration::from_millis(200), run(&mut open, &take_from(2))).await.unwrap_err();
        match ending {
            "dropped" => drop(open),
            _ => site.resource.discard(open).await,
        }
        // Far sooner than the minute until its deadline, and though the server was busy waiting for a lock: it is killed.
        eventually("the session ends", async || !is_running(&site.pool, session).await).await;
        eventually("its lock is free", async || is_free(&site.pool, 1).await).await;
    }
    assert_eq!(site.rollback(&blocker).await, Ok(Fate::RolledBack));
    assert_eq!((site.amount(1).await, site.amount(2).await), (100, 100));
}

#[tokio::test]
async fn a_discarded_branch_leaves_nothing() {
    let site = Site::new().await;
    let (branch, open) = site.written(1).await;
    site.resource.discard(open).await;
    let (_, mut failed) = site.written(2).await;
    run(&mut failed, "INSERT INTO account VALUES (1, 1)").await.unwrap_err();
    site.resource.discard(failed).await;
    assert_eq!((site.amount(1).await, site.amount(2).await), (100, 100));
    assert!(is_free(&site.pool, 1).await && is_free(&site.pool, 2).await);
    assert_eq!(site.evidence(&branch).await, None);
}

/// Otherwise somebody's abandoned statements would be prepared and committed with the branch.
#[tokio::test]
async fn a_transaction_left_open_in_the_pool_does_not_become_part_of_a_branch() {
    let site = Site::at(&fresh_database().url(), 1).await;
    let mut connection = site.pool.acquire().await.unwrap();
    (*connection).execute("BEGIN").await.unwrap();
    (*connection).execute("UPDATE account SET amount = 0 WHERE id = 7").await.unwrap();
    drop(connection);
    let error = site.resource.begin(&site.branch(), LONG).await.unwrap_err();
    assert!(matches!(&error, ResourceError::Unavailable(why) if why.contains("still open")), "{error:?}");
    let branch = site.prepared(1).await;
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    assert_eq!((site.amount(1).await, site.amount(7).await), (99, 100));
}

/// A pool full of branches that wait for their decision must not keep the decision out.
#[tokio::test]
async fn a_full_pool_does_not_hold_up_what_is_decided() {
    let site = Site::at(&fresh_database().url(), 1).await;
    let (commits, rolls_back) = (site.prepared(1).await, site.prepared(2).await);
    let (branch, open) = site.written(3).await;
    let error = site.resource.begin(&site.branch(), Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(&error, ResourceError::Unavailable(why) if why.contains("pool's 1")), "{error:?}");
    assert_eq!(site.commit(&commits).await, Ok(Fate::Committed));
    assert_eq!(site.rollback(&rolls_back).await, Ok(Fate::RolledBack));
    assert_eq!(site.resource.prepared(site.cluster, &name(NAME)).await, Ok(vec![]));
    site.resource.attach(&name(NAME)).await.unwrap();
    assert_eq!(site.prepare(&branch, open).await, Prepared::Yes);
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
}

/// The server's error names no lock; what InnoDB lists while the wait lasts does, and takes a privilege to read.
#[tokio::test]
async fn a_lock_that_was_waited_for_is_named_where_the_server_may_be_asked() {
    let site = Site::new().await;
    let database = site.database.as_ref().unwrap();
    let user = format!("plain_{}", database.name);
    database.sql(&format!(
        "CREATE USER {user}@'127.0.0.1'; GRANT ALL ON {}.* TO {user}@'127.0.0.1'",
        database.name
    ));
    let plain = Site::attached(&database.url_as(&user), 5, site.cluster).await;
    let (_, mut holder) = site.written(1).await;
    let session = session_of(&mut holder).await;
    site.prepared(2).await;
    let unnamed = "the server does not name it".to_owned();
    let named = |holder: &str| {
        let table = &site.database.as_ref().unwrap().name;
        [format!("a lock on a row of `{table}`.`account` (index PRIMARY, page "), format!("held by {holder}")]
    };
    let waits = [
        (&site, 1, named(&format!("session {session}"))),
        (&site, 2, named("a prepared branch")),
        (&plain, 1, [unnamed.clone(), unnamed]),
    ];
    futures::future::join_all(waits.map(|(site, account, parts)| async move {
        // The wait ends a while before this, in whole seconds.
        let branch = site.branch();
        let mut open = site.resource.begin(&branch, Duration::from_secs(6)).await.unwrap();
        let error = run(&mut open, &take_from(account)).await.unwrap_err();
        let lock = MySql::awaited_lock(&open, &error).unwrap();
        assert!(parts.iter().all(|part| lock.contains(part)), "{lock}, and not {parts:?}");
        let error = run(&mut open, "SELECT nothing").await.unwrap_err();
        assert_eq!(MySql::awaited_lock(&open, &error), None, "{error}");
    }))
    .await;
}
