//! A branch that votes when its handler ends: what it saves, and what becomes of it whatever crashes then.

use lockstep::{CommitError, Outcome, Postgres, Sqlite};
use sqlx::{PgPool, SqlitePool};

use super::*;

/// Two banks with different databases, which have both voted in one transaction.
struct Voted {
    stage: Stage,
    books: [Books; 2],
    banks: Vec<Bank>,
    transaction: Transaction,
}

impl Voted {
    /// Each bank has this fuse.
    async fn with(timeout: Duration, point: Option<&str>) -> (Self, Vec<Fuse>) {
        let stage = Stage::set().await;
        let books = [stage.books("a", Database::Postgres).await, stage.books("b", Database::Sqlite).await];
        let fuses: Vec<_> =
            point.into_iter().flat_map(|point| ["a", "b"].map(|bank| stage.fuse(bank, point))).collect();
        let mut banks = Vec::new();
        for (number, books) in books.iter().enumerate() {
            banks.push(stage.bank(books, None, fuses.get(number)).await);
        }
        let transaction = stage.begin(timeout).await;
        stage.apply(&banks[0], transaction.vote(), -5).await.unwrap();
        stage.apply(&banks[1], transaction.vote(), 5).await.unwrap();
        (Self { stage, books, banks, transaction }, fuses)
    }

    /// Durable where they are, before anybody has asked for it.
    async fn both_are_prepared(&self) {
        for books in &self.books {
            assert_eq!(books.prepared().await.unwrap().len(), 1, "{} has voted", books.bank);
        }
        let gtrid = self.transaction.gtrid();
        let votes = async || self.stage.branch_states(gtrid).await == ["prepared", "prepared"];
        until("the votes to arrive", votes).await;
    }

    async fn added(&self) -> [i64; 2] {
        [added(&self.books[0]).await, added(&self.books[1]).await]
    }
}

/// A bank that receives a prepare is killed by its fuse: neither is, and without the mark both are.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_after_early_votes_prepares_nobody() {
    let (voted, fuses) = Voted::with(TIMEOUT, Some("sdk-prepare-received")).await;
    voted.both_are_prepared().await;
    let Voted { stage, books, mut banks, transaction } = voted;
    let committed = transaction.commit().await.unwrap();
    assert_eq!((committed.branches, committed.branches_pending), (2, 0));
    assert_eq!([added(&books[0]).await, added(&books[1]).await], [-5, 5]);
    assert!(fuses.iter().all(|fuse| fuse.fired_at().is_none()), "a prepare was sent");

    let transaction = stage.begin(TIMEOUT).await;
    stage.apply(&banks[0], transaction.context(), -5).await.unwrap();
    stage.apply(&banks[1], transaction.context(), 5).await.unwrap();
    let error = transaction.commit().await.unwrap_err();
    assert!(matches!(error, CommitError::RolledBack { .. }), "{error:?}");
    banks.iter_mut().zip(&fuses).for_each(|(bank, fuse)| was_killed(bank, fuse));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_early_vote_commits() {
    let stage = Stage::set().await;
    for database in [Database::Postgres, Database::Sqlite] {
        let books = stage.books(database.name(), database).await;
        let bank = stage.bank(&books, None, None).await;
        let transaction = stage.begin(TIMEOUT).await;
        stage.apply(&bank, transaction.vote(), 7).await.unwrap();
        let committed = transaction.commit().await.unwrap();
        assert_eq!((committed.branches, committed.branches_pending), (1, 0));
        assert_eq!(added(&books).await, 7);
    }
}

/// What a bank's constraint forbids is told by the call, not only by the commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_early_vote_is_told_to_the_caller() {
    let stage = Stage::set().await;
    for database in [Database::Postgres, Database::Sqlite] {
        let books = stage.books(database.name(), database).await;
        let bank = stage.bank(&books, None, None).await;
        let transaction = stage.begin(TIMEOUT).await;
        let apply = Apply { account: 0, amount: 7, refuse: true, only_read: false };
        let call = stage.http.post(format!("http://{}{APPLY}", bank.address()));
        let answer = call.headers(transaction.vote().to_headers()).json(&apply).send().await.unwrap();
        let words = answer.text().await.unwrap();
        assert!(words.contains("did not prepare it"), "{words}");
        let error = transaction.commit().await.unwrap_err();
        assert!(matches!(error, CommitError::RolledBack { .. }), "{error:?}");
        assert_eq!(added(&books).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn banks_that_die_after_their_votes_commit_when_they_are_back() {
    let (mut voted, _) = Voted::with(TIMEOUT, None).await;
    voted.both_are_prepared().await;
    for bank in &mut voted.banks {
        assert_eq!(bank.process().kill().unwrap(), Reaped::KILLED);
    }
    // Of an unprepared branch the coordinator would roll the transaction back now.
    for bank in &mut voted.banks {
        bank.start_again(None).unwrap();
        can_be_called(bank).await;
    }
    let Voted { transaction, books, stage: _stage, banks: _banks } = voted;
    assert_eq!(transaction.commit().await.unwrap().branches, 2);
    assert_eq!([added(&books[0]).await, added(&books[1]).await], [-5, 5]);
}

/// Both are prepared, and nobody has decided anything: no record, so rolled back.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_dies_before_the_commit_rolls_early_votes_back() {
    let (mut voted, _) = Voted::with(TIMEOUT, None).await;
    voted.both_are_prepared().await;
    voted.stage.crash_the_coordinator().await;
    assert_eq!(voted.added().await, [0, 0]);
    let outcome = voted.stage.client.inquire(voted.transaction.gtrid()).await.unwrap();
    assert!(matches!(outcome, Outcome::RolledBack { .. }), "{outcome:?}");
    let error = voted.transaction.commit().await.unwrap_err();
    assert!(matches!(error, CommitError::RolledBack { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_rolls_early_votes_back() {
    let (voted, _) = Voted::with(Duration::from_secs(5), None).await;
    assert_eq!(voted.added().await, [0, 0]);
    let error = voted.transaction.commit().await.unwrap_err();
    assert!(matches!(error, CommitError::RolledBack { .. }), "{error:?}");
    assert!(error.to_string().contains("deadline"), "{error}");
}

/// Prepared, and the vote is never sent: the coordinator has lost the branch, and the database rolls back what it finds.
#[tokio::test(flavor = "multi_thread")]
async fn a_bank_that_dies_before_its_early_vote_rolls_back() {
    let stage = Stage::set().await;
    for database in [Database::Postgres, Database::Sqlite] {
        let books = stage.books(database.name(), database).await;
        let fuse = stage.fuse(&books.bank, "sdk-before-vote");
        let mut bank = stage.bank(&books, None, Some(&fuse)).await;
        let transaction = stage.begin(TIMEOUT).await;
        stage.apply(&bank, transaction.vote(), 5).await.unwrap_err();
        was_killed(&mut bank, &fuse);
        assert_eq!(books.prepared().await.unwrap().len(), 1, "it died with a prepared branch");
        // A commit that comes before that would be told to the only branch, in one phase, and wait for the bank to say what became of it.
        let gtrid = transaction.gtrid();
        let noticed = async || stage.branch_states(gtrid).await != ["enlisted"];
        until("the coordinator to miss the bank", noticed).await;
        let error = transaction.commit().await.unwrap_err();
        assert!(matches!(error, CommitError::RolledBack { .. }), "{error:?}");
        bank.start_again(None).unwrap();
        can_be_called(&bank).await;
        assert_eq!(added(&books).await, 0);
    }
}

/// What a branch has only read or locked stays so until commit is requested (P23), whatever its caller has marked.
#[tokio::test(flavor = "multi_thread")]
async fn a_marked_call_that_writes_nothing_does_not_vote_early() {
    let stage = Stage::set().await;
    let pool = PgPool::connect(&fresh_database().url()).await.unwrap();
    let service = attach(&stage, "reader-db", Postgres::new(pool.clone())).await;
    let file = stage.directory.path().join("reader.db");
    let file_pool = SqlitePool::connect(&format!("sqlite:{}?mode=rwc", file.display())).await.unwrap();
    sqlx::raw_sql("CREATE TABLE t (v INTEGER)").execute(&file_pool).await.unwrap();
    let other = attach(&stage, "file-db", Sqlite::new(file_pool)).await;

    let tx = stage.begin(TIMEOUT).await;
    let mut branch = service.join(&tx.vote()).await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(23)").execute(&mut *branch).await.unwrap();
    branch.finish().await.unwrap();
    let mut branch = other.join(&tx.vote()).await.unwrap();
    sqlx::query("SELECT * FROM t").execute(&mut *branch).await.unwrap();
    branch.finish().await.unwrap();

    let is_free = async || {
        let try_it = sqlx::query_scalar::<_, bool>("SELECT pg_try_advisory_xact_lock(23)");
        try_it.fetch_one(&pool).await.unwrap()
    };
    assert_eq!(stage.branch_states(tx.gtrid()).await, ["enlisted", "enlisted"]);
    assert!(!is_free().await, "the lock went before commit was requested");
    assert!(tx.commit().await.unwrap().nothing_to_commit);
    until("the lock to go", is_free).await;
}
