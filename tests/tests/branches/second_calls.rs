//! One transaction that calls the same service twice: where it finds its branch, and where it does not.

use lockstep::{CommitError, JoinError, Participant, Postgres, Sqlite};
use sqlx::{PgPool, SqlitePool};

use super::*;

/// A database with the seats 1 and 2, both free.
async fn seats() -> PgPool {
    let pool = PgPool::connect(&fresh_database().url()).await.unwrap();
    let sql = "CREATE TABLE seats (number INT PRIMARY KEY, taken_by TEXT); INSERT INTO seats VALUES (1), (2)";
    sqlx::raw_sql(sql).execute(&pool).await.unwrap();
    pool
}

async fn take(
    participant: &Participant<Postgres>,
    context: &Context,
    seat: i32,
    by: &str,
) -> Result<(), String> {
    let mut branch = participant.join(context).await.map_err(|error| error.to_string())?;
    let sql = sqlx::query("UPDATE seats SET taken_by = coalesce(taken_by, '') || $2 WHERE number = $1");
    sql.bind(seat).bind(by).execute(&mut *branch).await.map_err(|error| error.to_string())?;
    branch.finish().await.map_err(|error| error.to_string())
}

async fn taken(pool: &PgPool) -> Vec<Option<String>> {
    sqlx::query_scalar("SELECT taken_by FROM seats ORDER BY number").fetch_all(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_call_of_the_same_instance_continues_the_branch() {
    let stage = Stage::set().await;
    let pool = seats().await;
    let service = attach(&stage, "seats", Postgres::new(pool.clone())).await;
    let tx = stage.begin(TIMEOUT).await;
    take(&service, &tx.context(), 1, "ann").await.unwrap();
    // The same row again: it sees what the first call has written, and waits for nothing.
    take(&service, &tx.context(), 1, "+bob").await.unwrap();
    take(&service, &tx.context(), 2, "cyn").await.unwrap();
    assert_eq!(tx.commit().await.unwrap().branches, 1);
    assert_eq!(taken(&pool).await, [Some("ann+bob".to_owned()), Some("cyn".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_call_of_the_same_instance_continues_the_branch_in_sqlite() {
    let stage = Stage::set().await;
    let file = stage.directory.path().join("seats.db");
    let pool = SqlitePool::connect(&format!("sqlite:{}?mode=rwc", file.display())).await.unwrap();
    sqlx::raw_sql("CREATE TABLE seats (number INTEGER PRIMARY KEY, taken_by TEXT)")
        .execute(&pool)
        .await
        .unwrap();
    let service = attach(&stage, "seats", Sqlite::new(pool.clone())).await;
    let tx = stage.begin(TIMEOUT).await;
    for seats in 0..2_i64 {
        let mut branch = service.join(&tx.context()).await.unwrap();
        let seen: i64 =
            sqlx::query_scalar("SELECT count(*) FROM seats").fetch_one(&mut *branch).await.unwrap();
        assert_eq!(seen, seats);
        sqlx::query("INSERT INTO seats VALUES (NULL, 'ann')").execute(&mut *branch).await.unwrap();
        branch.finish().await.unwrap();
    }
    assert_eq!(tx.commit().await.unwrap().branches, 1);
    let taken: i64 = sqlx::query_scalar("SELECT count(*) FROM seats").fetch_one(&pool).await.unwrap();
    assert_eq!(taken, 2);
}

/// Two processes of one bank, behind one name: each opens a branch of its own, and neither sees the other's.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_call_of_another_instance_is_a_branch_of_its_own() {
    let stage = Stage::set().await;
    let pool = seats().await;
    let one = attach(&stage, "seats", Postgres::new(pool.clone())).await;
    let other = attach(
        &stage,
        "seats",
        Postgres::new(PgPool::connect_with((*pool.connect_options()).clone()).await.unwrap()),
    )
    .await;
    let tx = stage.begin(TIMEOUT).await;
    take(&one, &tx.context(), 1, "ann").await.unwrap();
    take(&other, &tx.context(), 2, "bob").await.unwrap();
    let mut branch = other.join(&tx.context()).await.unwrap();
    let seen: Vec<Option<String>> = sqlx::query_scalar("SELECT taken_by FROM seats ORDER BY number")
        .fetch_all(&mut *branch)
        .await
        .unwrap();
    assert_eq!(seen, [None, Some("bob".to_owned())], "the other branch's work is not to be seen in this one");
    branch.finish().await.unwrap();
    assert_eq!(tx.commit().await.unwrap().branches, 2);
    assert_eq!(taken(&pool).await, [Some("ann".to_owned()), Some("bob".to_owned())]);
}

/// Both processes want the same row: the second waits for a lock that only the transaction's end would free. That is an error
/// when the deadline comes, whether the first branch is open or has voted.
#[tokio::test(flavor = "multi_thread")]
async fn two_branches_of_a_transaction_that_want_one_row_fail_within_its_deadline() {
    let stage = Stage::set().await;
    let books = stage.books("bank", Database::Postgres).await;
    let (one, other) = (stage.bank(&books, None, None).await, stage.bank(&books, None, None).await);
    for votes in [false, true] {
        let timeout = Duration::from_secs(4);
        let start = clock::now();
        let tx = stage.begin(timeout).await;
        let first = if votes { tx.vote() } else { tx.context() };
        stage.apply(&one, first, 1).await.unwrap();
        let words = stage.apply(&other, tx.context(), 1).await.unwrap_err();
        // The lock is waited for until the deadline, at which the coordinator frees it too: either may come first.
        assert!(words.contains("lock timeout") || words.contains("deadline"), "{words}");
        assert!(start.elapsed() < timeout + Duration::from_secs(10), "{:?}", start.elapsed());
        let error = tx.commit().await.unwrap_err();
        assert!(matches!(error, CommitError::RolledBack { .. }), "{error:?}");
        assert_eq!(added(&books).await, 0);
    }
}

/// The same process has voted: its branch is neither continued nor followed by another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_after_the_vote_is_refused_at_once() {
    let stage = Stage::set().await;
    let pool = seats().await;
    let service = attach(&stage, "seats", Postgres::new(pool.clone())).await;
    let tx = stage.begin(TIMEOUT).await;
    let start = clock::now();
    take(&service, &tx.vote(), 1, "ann").await.unwrap();
    let error = service.join(&tx.context()).await.unwrap_err();
    assert!(matches!(error, JoinError::Voted { gtrid } if gtrid == tx.gtrid()), "{error:?}");
    assert!(start.elapsed() < TIMEOUT / 2, "it waited");
    // Who goes on all the same commits what was done.
    assert_eq!(tx.commit().await.unwrap().branches, 1);
    assert_eq!(taken(&pool).await, [Some("ann".to_owned()), None]);
}
