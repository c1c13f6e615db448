//! A single branch, committed without being prepared: its evidence is the only thing that tells (P10).

use lockstep::resource::{Fate, Resource as _};

use super::*;

impl Site {
    async fn commit_one_phase(&self, branch: &BranchId, open: OpenBranch) -> Fate {
        self.resource.commit_one_phase(branch, open, &position(1)).await.unwrap()
    }

    async fn prove(&self, branch: &BranchId) -> Fate {
        self.resource.prove(branch, &position(1)).await.unwrap()
    }
}

#[tokio::test]
async fn the_evidence_of_a_commit_is_there_for_whoever_asks_later() {
    let site = Site::new().await;
    let (branch, open) = site.written(1).await;
    assert_eq!(site.commit_one_phase(&branch, open).await, Fate::Committed);
    assert_eq!(site.amount(1).await, 99);
    assert_eq!(site.prove(&branch).await, Fate::Committed);
    assert_eq!(site.other_instance().await.prove(&branch).await, Fate::Committed);
}

/// COMMIT of a failed transaction succeeds, and rolls back.
#[tokio::test]
async fn what_cannot_be_committed_is_rolled_back_and_stays_so() {
    let site = Site::new().await;
    sqlx::raw_sql("CREATE TABLE orders (account int REFERENCES account DEFERRABLE INITIALLY DEFERRED)")
        .execute(&site.pool)
        .await
        .unwrap();
    for (work, fails) in
        [("SELECT 1 / 0", true), ("INSERT INTO orders VALUES (4711)", false), ("ROLLBACK", false)]
    {
        let (branch, mut open) = site.written(1).await;
        assert_eq!(run(&mut open, work).await.is_err(), fails, "{work}");
        assert_eq!(site.commit_one_phase(&branch, open).await, Fate::RolledBack, "{work}");
        assert_eq!(site.evidence(&branch).await, None, "{work}");
        assert_eq!(site.prove(&branch).await, Fate::RolledBack, "{work}");
        assert_eq!(site.evidence(&branch).await.as_deref(), Some("fence"), "{work}");
    }
    assert_eq!(site.amount(1).await, 100);
}

/// P16, P10: the intent is answered with what the store proves, and no later proof says otherwise.
#[tokio::test]
async fn a_branch_that_its_service_committed_itself_is_a_hazard_for_good() {
    let site = Site::new().await;
    let (branch, mut open) = site.written(1).await;
    run(&mut open, "COMMIT").await.unwrap();
    assert_eq!(site.commit_one_phase(&branch, open).await, Fate::Hazard);
    assert_eq!(site.prove(&branch).await, Fate::Hazard);
    assert_eq!(site.other_instance().await.prove(&branch).await, Fate::Hazard);
}

/// It is committed like any other: there is no later answer that could differ, and its NOTIFY is published.
#[tokio::test]
async fn a_branch_that_wrote_nothing_is_committed_with_evidence() {
    let site = Site::new().await;
    let mut listener = sqlx::postgres::PgListener::connect_with(&site.pool).await.unwrap();
    listener.listen("news").await.unwrap();
    let branch = site.branch();
    let mut open = site.resource.begin(&branch, LONG).await.unwrap();
    run(&mut open, "NOTIFY news, 'decided'").await.unwrap();
    assert_eq!(site.commit_one_phase(&branch, open).await, Fate::Committed);
    assert_eq!(listener.recv().await.unwrap().payload(), "decided");
    assert_eq!(site.prove(&branch).await, Fate::Committed);
}

#[tokio::test]
async fn a_branch_that_is_neither_prepared_nor_committed_is_fenced_by_the_proof() {
    let site = Site::new().await;
    let (branch, open) = site.written(1).await;
    let other = site.other_instance().await;
    assert_eq!(other.prove(&branch).await, Fate::RolledBack);
    assert_eq!(site.commit_one_phase(&branch, open).await, Fate::RolledBack);
    assert_eq!(site.amount(1).await, 100);
}

/// An early vote crossed the intent (P10).
#[tokio::test]
async fn a_branch_that_turns_out_to_be_prepared_is_committed_by_the_proof() {
    let site = Site::new().await;
    let branch = site.prepared(1).await;
    assert_eq!(site.prove(&branch).await, Fate::Committed);
    assert_eq!(site.amount(1).await, 99);
}

/// P22: a handler may ask for less than durable; its branch is durable all the same, and `remote_apply` stays.
#[tokio::test]
async fn a_commit_is_durable_whatever_the_handler_asked_for() {
    let site = Site::new().await;
    sqlx::raw_sql(
        "CREATE TABLE durability (level text); \
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN INSERT INTO public.durability VALUES (current_setting(''synchronous_commit'')); RETURN NULL; END'; \
         CREATE TRIGGER note AFTER INSERT ON lockstep.evidence FOR EACH ROW EXECUTE FUNCTION note()",
    )
    .execute(&site.pool)
    .await
    .unwrap();
    for (asked, expected) in [("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply", "remote_apply")]
    {
        let (branch, mut open) = site.written(1).await;
        run(&mut open, &format!("SET synchronous_commit = {asked}")).await.unwrap();
        assert_eq!(site.commit_one_phase(&branch, open).await, Fate::Committed);
        let level: String = site.scalar("SELECT level FROM durability").await;
        assert_eq!(level, expected, "{asked}");
        sqlx::raw_sql("TRUNCATE durability").execute(&site.pool).await.unwrap();
    }
    // The fence too, on a connection of the resource's own.
    let default = "ALTER ROLE harness IN DATABASE";
    let name = &site.database.as_ref().unwrap().name;
    sqlx::raw_sql(AssertSqlSafe(format!("{default} {name} SET synchronous_commit = off")))
        .execute(&site.pool)
        .await
        .unwrap();
    let site = site.other_instance().await;
    assert_eq!(site.prove(&site.branch()).await, Fate::RolledBack);
    assert_eq!(site.scalar::<String>("SELECT level FROM durability").await, "on");
}
