//! Finishing a branch, and finding out about one that is not there to be finished.

use lockstep::resource::{Fate, Resource as _};
use sqlx::{Connection as _, Executor as _};

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

/// P15: the second instance to roll back finds the first one's fence, which is no evidence of a commit. P18: XA PREPARE
/// would have succeeded all the same.
#[tokio::test]
async fn a_fence_keeps_a_late_prepare_out_and_is_not_read_as_a_commit() {
    let site = Site::new().await;
    let other = site.other_instance().await;
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        // The branch's snapshot is older than the fence.
        let branch = site.branch();
        let set = format!("SET SESSION TRANSACTION ISOLATION LEVEL {isolation}");
        let pool = MySqlPoolOptions::new()
            .after_connect(move |connection, _| {
                let set = set.clone();
                Box::pin(async move { connection.execute(AssertSqlSafe(set)).await.map(drop) })
            })
            .connect_lazy(&site.url())
            .unwrap();
        let resource = MySql::new(pool);
        resource.attach(&name(NAME)).await.unwrap();
        let mut open = resource.begin(&branch, LONG).await.unwrap();
        run(&mut open, "SELECT * FROM account").await.unwrap();
        run(&mut open, &take_from(1)).await.unwrap();
        assert_eq!(other.rollback(&branch).await, Ok(Fate::RolledBack), "{isolation}");
        assert_eq!(site.rollback(&branch).await, Ok(Fate::RolledBack), "{isolation}");
        let reason = reason(resource.prepare(&branch, open, &position(1)).await.unwrap());
        assert!(reason.contains("fenced"), "{isolation}: {reason}");
        assert_eq!(other.commit(&branch).await, Ok(Fate::RolledBack), "{isolation}");
    }
    site.assert_nothing_is_prepared().await;
    assert_eq!(site.amount(1).await, 100);
}

/// Only a duplicate key is an answer (P15): as long as the branch may still become prepared, nothing is known.
#[tokio::test]
async fn a_fence_that_has_to_wait_says_that_it_is_not_known() {
    let site = Site::new().await;
    let (branch, open) = site.written(1).await;
    // The session is between the evidence row and XA PREPARE: a trigger holds it there.
    let lock = site.database.as_ref().unwrap().name.clone();
    let trigger = format!(
        "CREATE TRIGGER hold AFTER INSERT ON lockstep_evidence FOR EACH ROW \
         BEGIN IF NEW.kind = 'branch' THEN DO GET_LOCK('{lock}', 30); DO RELEASE_LOCK('{lock}'); END IF; END"
    );
    sqlx::raw_sql(AssertSqlSafe(trigger)).execute(&site.pool).await.unwrap();
    let mut holder = sqlx::MySqlConnection::connect(&site.url()).await.unwrap();
    holder.execute(AssertSqlSafe(format!("DO GET_LOCK('{lock}', 0)"))).await.unwrap();
    let one = position(1);
    let prepare = site.resource.prepare(&branch, open, &one);
    let ask = async {
        eventually("the prepare is held", async || {
            let waiting = "SELECT count(*) FROM information_schema.processlist \
                           WHERE db = DATABASE() AND state = 'User lock'";
            site.scalar::<i64>(waiting).await == 1
        })
        .await;
        let rollback = site.rollback(&branch).await;
        let commit = site.commit(&branch).await;
        holder.close().await.unwrap();
        (rollback, commit)
    };
    let (prepared, (rollback, commit)) = tokio::join!(prepare, ask);
    for asked in [rollback, commit] {
        assert!(asked.as_ref().is_err_and(|why| why.0.contains("still there")), "{asked:?}");
    }
    assert_eq!(site.evidence(&branch).await, None, "a fence for a branch that may become prepared");
    assert_eq!(prepared, Ok(Prepared::Yes));
    assert_eq!(site.rollback(&branch).await, Ok(Fate::RolledBack));
    site.assert_nothing_is_prepared().await;
}

/// P24, and the trap of participants.md: the server says "unknown" of a branch that it lists, as long as the session is there
/// that prepared it. That is no answer, and ends with the session.
#[tokio::test]
async fn a_branch_whose_session_is_still_there_is_not_known_to_be_gone() {
    let site = Site::new().await;
    let other = site.other_instance().await;
    let branch = site.branch();
    // A process that is stopped behind XA PREPARE.
    let mut preparer = sqlx::MySqlConnection::connect(&site.url()).await.unwrap();
    let xid = xid_of(&branch);
    let (work, evidence) = (take_from(1), evidence_like(&site.prepared_and_committed(2).await, &branch));
    let sql = format!("XA START {xid}; {work}; {evidence}; XA END {xid}; XA PREPARE {xid}");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut preparer).await.unwrap();
    assert_eq!(site.resource.prepared(site.cluster, &name(NAME)).await, Ok(vec![branch.xid.clone()]));
    for asked in [other.commit(&branch).await, other.rollback(&branch).await] {
        assert!(asked.as_ref().is_err_and(|why| why.0.contains("still there")), "{asked:?}");
    }
    assert_eq!(site.evidence(&branch).await, None, "a fence for a branch that is prepared");
    drop(preparer);
    assert_eq!(resolved(async || other.commit(&branch).await).await, Fate::Committed);
    assert_eq!(site.amount(1).await, 99);
}

/// The caller reports it as a heuristic outcome.
#[tokio::test]
async fn what_somebody_did_by_hand_is_told_as_it_is() {
    let site = Site::new().await;
    let (to_commit, to_roll_back) = (site.prepared(1).await, site.prepared(2).await);
    for (statement, branch) in [("ROLLBACK", &to_commit), ("COMMIT", &to_roll_back)] {
        let by_hand = format!("XA {statement} {}", xid_of(branch));
        // As long as the session is there that prepared it, nobody else can.
        let finished = async || site.pool.execute(AssertSqlSafe(&*by_hand)).await.is_ok();
        eventually("somebody's hand finishes it", finished).await;
    }
    assert_eq!(site.commit(&to_commit).await, Ok(Fate::RolledBack));
    assert_eq!(site.rollback(&to_roll_back).await, Ok(Fate::Committed));
    assert_eq!((site.amount(1).await, site.amount(2).await), (100, 99));
}

/// Prepared branches have no owner: whoever can log in and knows the name ends one, without any privilege for its tables. It is told
/// as it is; that nobody guesses a name is all that protects it.
#[tokio::test]
async fn a_user_without_privileges_can_end_a_branch_and_it_is_told_as_it_is() {
    let site = Site::new().await;
    let branch = site.prepared(1).await;
    let database = site.database.as_ref().unwrap();
    let user = format!("stranger_{}", database.name);
    database.sql(&format!("CREATE USER {user}@'127.0.0.1'; GRANT SELECT ON account TO {user}@'127.0.0.1'"));
    let mut stranger = sqlx::MySqlConnection::connect(&database.url_as(&user)).await.unwrap();
    assert!(stranger.execute("UPDATE account SET amount = 0").await.is_err());
    let commit = format!("XA COMMIT {}", xid_of(&branch));
    let has_ended = async || holder(&site.pool, &user_lock(&branch)).await.is_none();
    eventually("the session that has prepared it ends", has_ended).await;
    // It has let its lock go, and nothing shows when it has let the branch go as well.
    tokio::time::sleep(Duration::from_millis(100)).await;
    stranger.execute(AssertSqlSafe(commit)).await.unwrap();
    assert_eq!(site.amount(1).await, 99);
    assert_eq!(site.rollback(&branch).await, Ok(Fate::Committed));
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

/// Nothing automatic touches what is not ours. XA RECOVER lists the whole server (P18).
#[tokio::test]
async fn foreign_branches_are_left_alone() {
    let server = server(&[]);
    server.create_database("ours").unwrap();
    let site = Site::at(&server.url("ours"), 5).await;
    let (cluster, ours) = (site.cluster, site.branch());
    let of = |branch: &BranchId, format: i64| {
        format!("'{}:{}','{}',{format}", branch.cluster, branch.xid.gtrid, branch.xid.bqual)
    };
    let foreign = [
        "'somebody-elses'".to_owned(),
        of(&ours, 1),
        of(&site.branch(), 0),
        format!("'{cluster}:nonsense','{}',1819239275", ours.xid.bqual),
        format!("'{cluster}:{}','nonsense',1819239275", ours.xid.gtrid),
        "X'ff',X'fe',1819239275".to_owned(),
        of(&branch_of(ClusterId::from_random(0xdead_beef), &name(NAME)), 1_819_239_275),
        of(&branch_of(cluster, &name("billing-db")), 1_819_239_275),
        of(&branch_of(cluster, &name("orders-db-2")), 1_819_239_275),
    ];
    for (number, xid) in foreign.iter().enumerate() {
        let mut connection = sqlx::MySqlConnection::connect(&server.url("ours")).await.unwrap();
        let work = format!("INSERT INTO account VALUES (1000 + {number}, 0)");
        let sql = AssertSqlSafe(format!("XA START {xid}; {work}; XA END {xid}; XA PREPARE {xid}"));
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
    let before = listed(&site.pool).await;
    assert_eq!(before.len(), foreign.len());
    assert_eq!(site.resource.prepared(cluster, &name(NAME)).await, Ok(vec![]));
    let mine = site.prepared(1).await;
    assert_eq!(site.resource.prepared(cluster, &name(NAME)).await, Ok(vec![mine.xid.clone()]));
    site.resource.attach(&name(NAME)).await.unwrap();
    assert_eq!(site.rollback(&mine).await, Ok(Fate::RolledBack));
    let mut after = listed(&site.pool).await;
    let mut before = before;
    before.sort();
    after.sort();
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_killed_session_leaves_a_question_that_can_be_answered() {
    let site = Site::new().await;
    let kill = async |session: i64| {
        sqlx::raw_sql(AssertSqlSafe(format!("KILL {session}"))).execute(&site.pool).await.unwrap();
        eventually("the session ends", async || !is_running(&site.pool, session).await).await;
    };
    // Before anything of the prepare is sent: then it is certainly not prepared.
    let (before, mut open) = site.written(1).await;
    kill(session_of(&mut open).await).await;
    reason(site.prepare(&before, open).await);
    assert_eq!(site.rollback(&before).await, Ok(Fate::RolledBack));

    // While the server writes the evidence: a trigger takes its time.
    let slow = "CREATE TRIGGER slow AFTER INSERT ON lockstep_evidence FOR EACH ROW \
                BEGIN IF NEW.kind = 'branch' THEN DO SLEEP(30); END IF; END";
    site.pool.execute(slow).await.unwrap();
    let one = position(1);
    for one_phase in [false, true] {
        let (within, mut open) = site.written(2).await;
        let session = session_of(&mut open).await;
        let end = async {
            match one_phase {
                false => drop(reason(site.resource.prepare(&within, open, &one).await.unwrap())),
                true => {
                    let fate = site.resource.commit_one_phase(&within, open, &one).await;
                    assert_eq!(fate, Ok(Fate::RolledBack));
                }
            }
        };
        tokio::join!(end, async {
            eventually("the server works on it", async || {
                let sleeping = "SELECT count(*) FROM information_schema.processlist \
                                WHERE db = DATABASE() AND state = 'User sleep'";
                site.scalar::<i64>(sleeping).await == 1
            })
            .await;
            kill(session).await;
        });
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
    for wait in [0, 200, 400, 600, 800, 1_000, 1_500, 2_000, 3_000, 5_000] {
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
        assert_eq!(resolved(async || site.commit(&branch).await).await, Fate::RolledBack, "after {wait} µs");
    }
    site.assert_nothing_is_prepared().await;
    assert_eq!(site.amount(1).await, 100);
}

/// The session that prepared a branch finishes it, with certainty; one that has let it go does not keep another instance from it.
#[tokio::test]
async fn a_branch_is_finished_where_it_was_prepared_and_let_go_after_a_moment() {
    let site = Site::new().await;
    let other = site.other_instance().await;
    let is_kept = async |branch: &BranchId| holder(&other.pool, &user_lock(branch)).await.is_some();
    let branch = site.prepared(1).await;
    assert!(is_kept(&branch).await);
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    assert_eq!(site.amount(1).await, 99);
    let undone = site.prepared(2).await;
    assert_eq!(site.rollback(&undone).await, Ok(Fate::RolledBack));

    // Nobody decides: another instance may, without being told that it has to wait for ever.
    let (committed, rolled_back) = (site.prepared(3).await, site.prepared(4).await);
    assert_eq!(other.commit(&committed).await, Ok(Fate::Committed));
    assert_eq!(other.rollback(&rolled_back).await, Ok(Fate::RolledBack));
    assert!(!is_kept(&committed).await);
    assert_eq!((site.amount(3).await, site.amount(4).await), (99, 100));
    site.assert_nothing_is_prepared().await;
}

/// MariaDB answers OK to whoever finishes a branch whose session is just ending, and does nothing. That it says so of a branch that has
/// no evidence, or still has it, looks the same, and can be had at will.
#[tokio::test]
async fn what_the_server_says_it_did_is_acknowledged_only_if_it_did() {
    let site = Site::new().await;
    let [committed, rolled_back] = [site.branch(), site.branch()];
    for (branch, account) in [(&committed, 1), (&rolled_back, 2)] {
        let mut preparer = sqlx::MySqlConnection::connect(&site.url()).await.unwrap();
        let xid = xid_of(branch);
        let sql = format!("XA START {xid}; {}; XA END {xid}; XA PREPARE {xid}", take_from(account));
        preparer.execute(AssertSqlSafe(sql)).await.unwrap();
        preparer.close().await.unwrap();
    }
    let told = site.commit(&committed).await.unwrap_err().0;
    assert!(told.contains("did not do it") && told.contains(&committed.to_string()), "{told}");
    assert!(told.contains("restart the database server"), "{told}");

    let sql = evidence_like(&site.prepared_and_committed(3).await, &rolled_back);
    let mut evidence = sqlx::MySqlConnection::connect(&site.url()).await.unwrap();
    evidence.execute("BEGIN").await.unwrap();
    evidence.execute(AssertSqlSafe(sql)).await.unwrap();
    let told = site.rollback(&rolled_back).await.unwrap_err().0;
    assert!(told.contains("XA ROLLBACK") && told.contains("did not do it"), "{told}");
}

/// SQL that gives `branch` the evidence of another one.
fn evidence_like(another: &BranchId, branch: &BranchId) -> String {
    let columns = "kind, deadline, noticed, resource_manager, gtrid_uuid, gtrid_epoch, epoch, incarnation, sequence, \
         written_at";
    format!(
        "INSERT INTO lockstep_evidence (xid, {columns}) \
         SELECT '{branch}', {columns} FROM lockstep_evidence WHERE xid = '{another}'"
    )
}
