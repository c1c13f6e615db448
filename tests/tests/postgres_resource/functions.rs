//! Our functions in the database: made where they may be, called where they are ours, and done without where not.

use lockstep::resource::{Fate, Prepared, Resource as _};

use super::*;

/// Somebody else's function of our name. No call of ours may reach it.
const DECOY: &str = "CREATE FUNCTION lockstep.write_evidence() RETURNS void LANGUAGE sql AS 'SELECT 1 / 0'";

impl Site {
    /// The same database, whose functions this instance does not call.
    async fn without_functions() -> Self {
        let site = Self::new().await;
        sqlx::raw_sql(DECOY).execute(&site.pool).await.unwrap();
        site.resource.attach(&name(NAME)).await.unwrap();
        sqlx::raw_sql(
            "DROP FUNCTION lockstep.write_evidence(text, text, uuid, bigint, bigint, uuid, bigint, interval, boolean); \
             DROP FUNCTION lockstep.keep_position",
        )
        .execute(&site.pool)
        .await
        .unwrap();
        site
    }

    /// A branch whose deadline has passed. The server would have ended an idle transaction: this one was kept busy.
    async fn too_late(&self) -> (BranchId, OpenBranch) {
        let branch = self.branch();
        let mut open = self.resource.begin(&branch, Duration::from_millis(1500)).await.unwrap();
        run(&mut open, &take_from(1)).await.unwrap();
        for _ in 0..2 {
            run(&mut open, "SELECT pg_sleep(1.3)").await.unwrap();
        }
        (branch, open)
    }

    /// A branch that has taken 1 from account 1, and for which the handler has run `work`.
    async fn worked(&self, work: &str) -> (BranchId, OpenBranch) {
        let (branch, mut open) = self.written(1).await;
        run(&mut open, work).await.unwrap();
        (branch, open)
    }
}

/// What the server is told in one round trip, and all that it may answer, whichever way it is told.
#[tokio::test]
async fn branches_end_the_same_with_and_without_functions() {
    for site in [Site::new().await, Site::without_functions().await] {
        let committed = site.prepared(2).await;
        assert_eq!(site.commit(&committed).await, Ok(Fate::Committed));
        assert_eq!(site.commit(&committed).await, Ok(Fate::Committed), "told a second time");
        assert_eq!(site.evidence(&committed).await.as_deref(), Some("branch"));
        let rolled_back = site.prepared(2).await;
        assert_eq!(site.rollback(&rolled_back).await, Ok(Fate::RolledBack));
        assert_eq!(site.amount(2).await, 99);

        let read_only = site.branch();
        let mut open = site.resource.begin(&read_only, LONG).await.unwrap();
        run(&mut open, "SELECT * FROM account").await.unwrap();
        assert_eq!(site.prepare(&read_only, open).await, Prepared::ReadOnly);

        let (branch, open) = site.worked("ROLLBACK; BEGIN; UPDATE account SET amount = 0 WHERE id = 3").await;
        let why = reason(site.prepare(&branch, open).await);
        assert!(why.contains("ended the branch's local transaction itself"), "{why}");
        let (branch, open) = site.worked("COMMIT; BEGIN; UPDATE account SET amount = 0 WHERE id = 3").await;
        assert!(matches!(site.prepare(&branch, open).await, Prepared::Hazard(_)));
        assert_eq!(site.amount(3).await, 100);

        let (branch, open) = site.written(4).await;
        assert_eq!(site.rollback(&branch).await, Ok(Fate::RolledBack));
        let why = reason(site.prepare(&branch, open).await);
        assert!(why.contains("fenced"), "{why}");

        let (branch, open) = site.written(5).await;
        assert_eq!(site.resource.commit_one_phase(&branch, open, &position(1)).await, Ok(Fate::Committed));
        assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
        assert_eq!(site.amount(5).await, 99);
        let (branch, open) = site.written(5).await;
        assert_eq!(site.rollback(&branch).await, Ok(Fate::RolledBack));
        assert_eq!(site.resource.commit_one_phase(&branch, open, &position(1)).await, Ok(Fate::RolledBack));
        assert_eq!(site.amount(5).await, 99);
        site.assert_nothing_is_prepared().await;
        assert_eq!(kept(&site).await, ["2"]);
    }
}

/// The deadline by the server's clock: the statement comes when it has passed (P19).
#[tokio::test]
async fn too_late_is_too_late_with_and_without_functions() {
    for site in [Site::new().await, Site::without_functions().await] {
        let (branch, open) = site.too_late().await;
        let why = reason(site.prepare(&branch, open).await);
        assert!(why.contains("deadline"), "{why}");
        let (branch, open) = site.too_late().await;
        assert_eq!(site.resource.commit_one_phase(&branch, open, &position(1)).await, Ok(Fate::RolledBack));
        assert_eq!(site.amount(1).await, 100);
    }
}

async fn kept(site: &Site) -> Vec<String> {
    let sql = "SELECT sequence::text FROM lockstep.positions WHERE resource_manager = 'orders-db'";
    sqlx::query_scalar(sql).fetch_all(&site.pool).await.unwrap()
}

/// How often a function of ours was called, as the server has counted it: it does so when a session ends, or is idle for a while.
async fn calls(site: &Site, function: &str) -> i64 {
    let sql = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_user_functions WHERE funcname = $1";
    let count = async || sqlx::query_scalar(sql).bind(function).fetch_one(&site.pool).await.unwrap();
    for _ in 0..50 {
        if count().await > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    count().await
}

/// Pasted from what the doctor has printed, with line breaks where there were blanks, they are ours all the same.
#[tokio::test]
async fn functions_are_called_however_they_were_made() {
    let site = Site::new().await;
    for name in ["write_evidence", "keep_position"] {
        let sql = format!("SELECT pg_get_functiondef('lockstep.{name}'::regproc)");
        let made: String = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&site.pool).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(made.replace(", ", ",\n    "))).execute(&site.pool).await.unwrap();
    }
    // Counted in the sessions that are opened from here on.
    let count = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET track_functions = pl', current_database()); END $$";
    sqlx::raw_sql(count).execute(&site.pool).await.unwrap();
    let other = site.other_instance().await;
    let branch = other.prepared(1).await;
    assert_eq!(other.commit(&branch).await, Ok(Fate::Committed));
    drop(other);
    assert_eq!((calls(&site, "write_evidence").await, calls(&site, "keep_position").await), (1, 1));
}

/// Dropped under a process that is attached: what is decided is carried out, one branch is turned down, those behind it are not, and the next attach
/// makes them again.
#[tokio::test]
async fn functions_that_are_gone_are_done_without() {
    let site = Site::new().await;
    let prepared = site.prepared(1).await;
    sqlx::raw_sql("DROP FUNCTION lockstep.keep_position").execute(&site.pool).await.unwrap();
    assert_eq!(site.commit(&prepared).await, Ok(Fate::Committed));
    assert_eq!(kept(&site).await, ["2"]);

    for in_one_phase in [false, true] {
        site.resource.attach(&name(NAME)).await.unwrap();
        sqlx::raw_sql("DROP FUNCTION lockstep.write_evidence").execute(&site.pool).await.unwrap();
        let (branch, open) = site.written(2).await;
        if in_one_phase {
            let fate = site.resource.commit_one_phase(&branch, open, &position(1)).await;
            assert_eq!(fate, Ok(Fate::RolledBack));
        } else {
            let why = reason(site.prepare(&branch, open).await);
            assert!(why.contains("the next branch does without them"), "{why}");
        }
        let branch = site.prepared(2).await;
        assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    }
    site.resource.attach(&name(NAME)).await.unwrap();
    let made = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'lockstep'::regnamespace";
    assert_eq!(site.scalar::<i64>(made).await, 2);
}

/// One that is not as we make it is neither called nor replaced.
#[tokio::test]
async fn a_function_of_another_form_is_left_alone() {
    let site = Site::new().await;
    let parameters = "of_resource_manager text, at_epoch bigint, at_incarnation uuid, at_sequence bigint";
    let harms = [
        format!(
            "CREATE OR REPLACE FUNCTION lockstep.keep_position({parameters}) RETURNS void LANGUAGE plpgsql \
             AS 'BEGIN RAISE ''not ours''; END'"
        ),
        "ALTER FUNCTION lockstep.keep_position SECURITY DEFINER".to_owned(),
        "ALTER FUNCTION lockstep.keep_position SET search_path = public".to_owned(),
        "ALTER FUNCTION lockstep.keep_position STABLE".to_owned(),
        DECOY.replace("write_evidence", "keep_position"),
    ];
    for harm in harms {
        sqlx::raw_sql(AssertSqlSafe(harm.as_str())).execute(&site.pool).await.unwrap();
        site.resource.attach(&name(NAME)).await.unwrap();
        let form = "SELECT string_agg(concat(prosrc, prosecdef, proconfig, provolatile), ' ' ORDER BY oid) FROM pg_proc \
                    WHERE proname = 'keep_position'";
        let before: String = site.scalar(form).await;
        // A decision that is newer than all that are kept.
        let branch = site.prepared(1).await;
        let sequence = 100 + u64::from(rand::random::<u32>());
        assert_eq!(site.resource.commit(&branch, &position(sequence)).await, Ok(Fate::Committed), "{harm}");
        assert_eq!(site.scalar::<String>(form).await, before);
        let drop_all = "DO $$ DECLARE each regprocedure; BEGIN FOR each IN SELECT oid FROM pg_proc \
                        WHERE proname = 'keep_position' LOOP EXECUTE format('DROP FUNCTION %s', each); END LOOP; END $$";
        sqlx::raw_sql(drop_all).execute(&site.pool).await.unwrap();
        site.resource.attach(&name(NAME)).await.unwrap();
    }
}
