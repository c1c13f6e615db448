//! The checker has to find every kind of damage, planted by hand in real files, and nothing in books that are right.

use std::path::Path;

use sqlx::SqlitePool;
use tempfile::TempDir;

use super::*;
use crate::bank;

const SEED: u64 = 7;

/// Two banks with their accounts, a log without unfinished decisions, and the transfers that are made in them.
struct Files {
    dir: TempDir,
    banks: [SqlitePool; 2],
    transfers: BTreeMap<u32, (Transfer, Told)>,
}

impl Files {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let [bank_a, bank_b] = Role::BANKS;
        let banks = [open_bank(dir.path(), bank_a).await, open_bank(dir.path(), bank_b).await];
        std::fs::create_dir(dir.path().join("decision-log")).unwrap();
        let log = bank::open(dir.path().join("decision-log/decisions.db").to_str().unwrap()).await.unwrap();
        sqlx::raw_sql("CREATE TABLE transactions (ended_ms INTEGER); INSERT INTO transactions VALUES (1)")
            .execute(&log)
            .await
            .unwrap();
        log.close().await;
        Self { dir, banks, transfers: BTreeMap::new() }
    }

    /// Makes a transfer in these banks, and has its client told so.
    async fn transfer(&mut self, number: u32, banks: &[Role], told: Told) {
        let transfer = Transfer::generate(SEED, number);
        for leg in transfer.legs().into_iter().filter(|leg| banks.contains(&leg.bank)) {
            let mut tx = self.banks[usize::from(leg.bank == Role::BankB)].begin().await.unwrap();
            match leg.operation {
                Operation::Withdraw => bank::take(&mut tx, &leg.movement).await.unwrap(),
                Operation::Deposit => bank::put(&mut tx, &leg.movement).await.unwrap(),
            }
            tx.commit().await.unwrap();
        }
        self.transfers.insert(number, (transfer, told));
    }

    /// Ten transfers that are right.
    async fn right() -> Self {
        let mut files = Self::new().await;
        for number in 0..8 {
            files.transfer(number, &Role::BANKS, Told::Committed).await;
        }
        files.transfer(8, &[], Told::Declined).await;
        files.transfer(9, &[], Told::RolledBack).await;
        files
    }

    async fn sql(&self, bank: usize, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.banks[bank]).await.unwrap();
    }

    async fn check(&self) -> Vec<Violation> {
        check(&Books::read(self.dir.path()).await.unwrap(), &self.transfers)
    }
}

async fn open_bank(dir: &Path, bank: Role) -> SqlitePool {
    let pool = bank::open(dir.join(format!("{bank}.db")).to_str().unwrap()).await.unwrap();
    bank::make_accounts(&mut pool.acquire().await.unwrap()).await.unwrap();
    pool
}

#[tokio::test]
async fn books_that_are_right_have_no_violation() {
    assert_eq!(Files::right().await.check().await, []);
}

#[tokio::test]
async fn a_half_transfer_is_found_whatever_its_client_was_told() {
    for (bank, found) in
        [(Role::BankA, [Found::Part, Found::Nothing]), (Role::BankB, [Found::Nothing, Found::Part])]
    {
        for told in [Told::Committed, Told::RolledBack, Told::Declined] {
            let mut files = Files::right().await;
            files.transfer(10, &[bank], told.clone()).await;
            let violations = files.check().await;
            assert!(violations.contains(&Violation::Transfer { number: 10, told, found }), "{violations:?}");
            assert!(matches!(violations[..], [_, Violation::Money { .. }]), "{violations:?}");
        }
    }
}

#[tokio::test]
async fn what_a_client_was_told_has_to_be_true() {
    let mut files = Files::right().await;
    files.transfer(10, &Role::BANKS, Told::RolledBack).await;
    files.transfer(11, &[], Told::Committed).await;
    files.transfer(12, &[], Told::Heuristic("a bank was forced".to_owned())).await;
    let gtrid = "1.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f".parse().unwrap();
    files.transfer(13, &[], Told::Unknown(gtrid)).await;
    let violations = files.check().await;
    let number = |violation: &Violation| match violation {
        Violation::Transfer { number, .. } => Some(*number),
        Violation::NeverMade { .. }
        | Violation::Money { .. }
        | Violation::Balance { .. }
        | Violation::Prepared { .. }
        | Violation::Undelivered { .. }
        | Violation::InDoubt { .. }
        | Violation::Heuristic { .. } => None,
    };
    let numbers: Vec<_> = violations.iter().map(number).collect();
    assert_eq!(numbers, [10, 11, 12, 13].map(Some), "{violations:?}");
}

#[tokio::test]
async fn money_from_nowhere_is_found_and_so_is_a_balance_that_does_not_fit_its_entries() {
    let files = Files::right().await;
    files.sql(0, "UPDATE accounts SET balance = balance + 5 WHERE number = 3").await;
    let (before, after) = (Books::opening_money(), Books::opening_money() + 5);
    let violations = files.check().await;
    assert!(violations.contains(&Violation::Money { before, after }), "{violations:?}");
    let balance = |violation: &&Violation| matches!(violation, Violation::Balance { account: 3, .. });
    assert_eq!(violations.iter().filter(balance).count(), 1, "{violations:?}");

    // Moved inside a bank: no money is missing, and two balances are wrong.
    files.sql(0, "UPDATE accounts SET balance = balance - 5 WHERE number = 4").await;
    let violations = files.check().await;
    assert!(
        matches!(violations[..], [Violation::Balance { .. }, Violation::Balance { .. }]),
        "{violations:?}"
    );
}

#[tokio::test]
async fn an_entry_of_another_account_or_of_no_transfer_is_found() {
    let files = Files::right().await;
    files.sql(1, "UPDATE entries SET account = (account + 1) % 20 WHERE transfer = 2").await;
    files.sql(1, "INSERT INTO entries VALUES (4000000000000, 0, 0)").await;
    let violations = files.check().await;
    let told = Told::Committed;
    assert!(violations.contains(&Violation::Transfer {
        number: 2,
        told,
        found: [Found::Part, Found::Otherwise]
    }));
    assert!(violations.contains(&Violation::NeverMade { bank: Role::BankB, transfer: 4_000_000_000_000 }));
}

#[tokio::test]
async fn a_branch_that_is_still_prepared_and_a_decision_that_is_not_delivered_are_found() {
    let files = Files::right().await;
    let journal = files.dir.path().join("bank-b.db-lockstep");
    std::fs::write(&journal, b"lockstep\x01\0\0\0\x01\0\0\0").unwrap();
    let log = bank::open(files.dir.path().join("decision-log/decisions.db").to_str().unwrap()).await.unwrap();
    sqlx::raw_sql("INSERT INTO transactions VALUES (NULL)").execute(&log).await.unwrap();
    let violations = files.check().await;
    assert_eq!(
        violations,
        [Violation::Prepared { bank: Role::BankB }, Violation::Undelivered { decisions: 1 }]
    );

    // The same journal with its end mark.
    std::fs::write(&journal, b"lockstep\x01\0\0\0\0\0\0\0").unwrap();
    assert_eq!(files.check().await, [Violation::Undelivered { decisions: 1 }]);
}
