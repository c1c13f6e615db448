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

/// Each is called, and comes back with the next attach when somebody has dropped it.
#[tokio::test]
async fn functions_are_called_and_made_again() {
    let site = Site::new().await;
    let prepared = site.prepared(1).await;
    sqlx::raw_sql("DROP FUNCTION lockstep.keep_position").execute(&site.pool).await.unwrap();
    let told = site.commit(&prepared).await.unwrap_err();
    assert!(told.to_string().contains("keep_position"), "{told}");
    sqlx::raw_sql("DROP FUNCTION lockstep.write_evidence").execute(&site.pool).await.unwrap();
    let (branch, open) = site.written(2).await;
    let why = reason(site.prepare(&branch, open).await);
    assert!(why.contains("write_evidence"), "{why}");

    site.resource.attach(&name(NAME)).await.unwrap();
    assert_eq!(site.commit(&prepared).await, Ok(Fate::Committed));
    let branch = site.prepared(2).await;
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
}

/// One that is not as we make it is neither called nor replaced.
#[tokio::test]
async fn a_function_of_another_form_is_left_alone() {
    let site = Site::new().await;
    let harms = [
        "CREATE OR REPLACE FUNCTION lockstep.keep_position(of_resource_manager text, at_epoch bigint, at_incarnation uuid, \
         at_sequence bigint) RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE ''not ours''; END'",
        "ALTER FUNCTION lockstep.keep_position SECURITY DEFINER",
        "ALTER FUNCTION lockstep.keep_position SET search_path = public",
    ];
    for harm in harms {
        sqlx::raw_sql(harm).execute(&site.pool).await.unwrap();
        site.resource.attach(&name(NAME)).await.unwrap();
        let form = "SELECT concat(prosrc, prosecdef, proconfig) FROM pg_proc WHERE proname = 'keep_position'";
        let before: String = site.scalar(form).await;
        // A decision that is newer than all that are kept.
        let branch = site.prepared(1).await;
        let sequence = 100 + u64::from(rand::random::<u32>());
        assert_eq!(site.resource.commit(&branch, &position(sequence)).await, Ok(Fate::Committed), "{harm}");
        assert_eq!(site.scalar::<String>(form).await, before);
        sqlx::raw_sql("DROP FUNCTION lockstep.keep_position").execute(&site.pool).await.unwrap();
        site.resource.attach(&name(NAME)).await.unwrap();
    }
}
