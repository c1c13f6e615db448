//! One process with two databases, each a resource manager with a session of its own: PostgreSQL and SQLite.

use lockstep_tests::harness::bank::SECOND;

use super::*;

struct Branches {
    stage: Stage,
    books: [Books; 2],
    bank: Bank,
}

impl Branches {
    async fn attached(point: Option<&str>) -> (Self, Option<Fuse>) {
        let stage = Stage::set().await;
        let books =
            [stage.books("ledger", Database::Postgres).await, stage.books("cash", Database::Sqlite).await];
        let fuse = point.map(|point| stage.fuse("ledger", point));
        let bank = stage.bank(&books[0], Some(&books[1]), fuse.as_ref()).await;
        (Self { stage, books, bank }, fuse)
    }

    /// Moves 5 from the one database to the other.
    async fn transfer(&self) -> Transaction {
        let transaction = self.stage.begin(TIMEOUT).await;
        let second = format!("{}{SECOND}{APPLY}", self.bank.address());
        self.stage.apply(&self.bank, transaction.context(), -5).await.unwrap();
        self.stage.apply_at(&second, transaction.context(), 5).await.unwrap();
        transaction
    }

    async fn added(&self) -> [i64; 2] {
        [added(&self.books[0]).await, added(&self.books[1]).await]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_branches_of_one_process_end_together() {
    let (branches, _) = Branches::attached(None).await;
    let committed = branches.transfer().await.commit().await.unwrap();
    assert_eq!((committed.branches, committed.branches_pending), (2, 0));
    assert_eq!(branches.added().await, [-5, 5]);
    branches.transfer().await.rollback("changed my mind").await.unwrap();
    assert_eq!(branches.added().await, [-5, 5]);
}

/// Killed when the first of the two is told to commit, and when the first is asked to prepare.
#[tokio::test(flavor = "multi_thread")]
async fn the_branches_of_a_process_that_dies_end_together() {
    for (point, committed) in [("sdk-decision-received", true), ("sdk-prepare-received", false)] {
        let (mut branches, fuse) = Branches::attached(Some(point)).await;
        let transaction = branches.transfer().await;
        let gtrid = transaction.gtrid();
        let committing = tokio::spawn(transaction.commit_when_decided());
        was_killed(&mut branches.bank, &fuse.unwrap());
        branches.bank.start_again(None).unwrap();
        can_be_called(&branches.bank).await;
        assert_eq!(committing.await.unwrap().is_ok(), committed, "{gtrid} at {point}");
        assert_eq!(branches.added().await, if committed { [-5, 5] } else { [0, 0] }, "{point}");
    }
}
