//! The checker: looks at the books from outside, and compares them with what the clients were told.
//!
//! It reads the SQLite files with connections of its own, read-only, after every process has stopped. It uses nothing
//! of Lockstep, and is the same for both kinds of run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, SqliteConnection};

use crate::bank::{ACCOUNTS, OPENING_BALANCE};
use crate::ledger::{Operation, Told, Transfer};
use crate::role::Role;

/// The head of the journal in which the SDK keeps a prepared branch, beside the bank's file: the kind stands at byte
/// 12, and 0 there says that no branch is prepared.
const JOURNAL_HEAD: usize = 16;
const JOURNAL_KIND: usize = 12;

/// Everything the files say.
#[derive(Debug, Clone)]
pub(crate) struct Books {
    pub(crate) banks: [BankBooks; 2],
    /// Decisions in the coordinator's log that have not reached every bank.
    pub(crate) undelivered: u64,
}

/// One bank's file.
#[derive(Debug, Clone)]
pub(crate) struct BankBooks {
    pub(crate) bank: Role,
    /// Balance by account.
    pub(crate) accounts: BTreeMap<i64, i64>,
    /// Account and amount, by transfer.
    pub(crate) entries: BTreeMap<i64, (i64, i64)>,
    /// Whether a branch is prepared that nobody has finished.
    pub(crate) prepared: bool,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Violation {
    /// A transfer that is half done, or not what its client was told.
    Transfer { number: u32, told: Told, found: [Found; 2] },
    /// A bank has an entry for a transfer that nobody made.
    NeverMade { bank: Role, transfer: i64 },
    /// There is more money, or less.
    Money { before: i64, after: i64 },
    /// An account's balance is not what its entries make.
    Balance { bank: Role, account: i64, balance: i64, expected: i64 },
    /// A branch is still prepared.
    Prepared { bank: Role },
    /// The log has decisions that have not reached every bank.
    Undelivered { decisions: u64 },
    /// The coordinator did not come to an end with all transactions in the time it had.
    InDoubt { transactions: u64 },
    /// The coordinator has recorded that branches ended differently.
    Heuristic { transactions: u64 },
}

/// What a bank has of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    /// Its part, as it was asked for.
    Part,
    /// Something else under its number.
    Otherwise,
}

impl Books {
    /// Reads the files in `dir`.
    pub(crate) async fn read(dir: &Path) -> Result<Self, sqlx::Error> {
        let [bank_a, bank_b] = Role::BANKS;
        let banks = [BankBooks::read(dir, bank_a).await?, BankBooks::read(dir, bank_b).await?];
        let mut log = open(&dir.join("decision-log/decisions.db")).await?;
        let undelivered = sqlx::query_scalar("SELECT count(*) FROM transactions WHERE ended_ms IS NULL")
            .fetch_one(&mut log)
            .await?;
        Ok(Self { banks, undelivered })
    }

    /// All money in both banks.
    pub(crate) fn money(&self) -> i64 {
        self.banks.iter().flat_map(|bank| bank.accounts.values()).sum()
    }

    /// What was in both banks before the first transfer.
    pub(crate) const fn opening_money() -> i64 {
        2 * ACCOUNTS * OPENING_BALANCE
    }
}

impl BankBooks {
    async fn read(dir: &Path, bank: Role) -> Result<Self, sqlx::Error> {
        let mut file = open(&dir.join(format!("{bank}.db"))).await?;
        let accounts = sqlx::query_as("SELECT number, balance FROM accounts").fetch_all(&mut file).await?;
        let entries: Vec<(i64, i64, i64)> =
            sqlx::query_as("SELECT transfer, account, amount FROM entries").fetch_all(&mut file).await?;
        Ok(Self {
            bank,
            accounts: accounts.into_iter().collect(),
            entries: entries
                .into_iter()
                .map(|(transfer, account, amount)| (transfer, (account, amount)))
                .collect(),
            prepared: holds_prepared_branch(dir, bank)?,
        })
    }

    /// What this bank has of a transfer.
    fn find(&self, transfer: &Transfer) -> Found {
        let leg =
            transfer.legs().into_iter().find(|leg| leg.bank == self.bank).expect("every bank has a part");
        let amount = match leg.operation {
            Operation::Withdraw => -leg.movement.amount,
            Operation::Deposit => leg.movement.amount,
        };
        match self.entries.get(&i64::from(transfer.number)) {
            None => Found::Nothing,
            Some(entry) if *entry == (leg.movement.account, amount) => Found::Part,
            Some(_) => Found::Otherwise,
        }
    }

    fn balances(&self) -> impl Iterator<Item = Violation> {
        self.accounts.iter().filter_map(|(account, balance)| {
            let of_account = self.entries.values().filter(|(number, _)| number == account);
            let expected = OPENING_BALANCE + of_account.map(|(_, amount)| amount).sum::<i64>();
            let (bank, account, balance) = (self.bank, *account, *balance);
            (balance != expected).then_some(Violation::Balance { bank, account, balance, expected })
        })
    }
}

/// Everything that must not be in these books after these transfers.
pub(crate) fn check(books: &Books, transfers: &BTreeMap<u32, (Transfer, Told)>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (number, (transfer, told)) in transfers {
        let found = [books.banks[0].find(transfer), books.banks[1].find(transfer)];
        let right = match told {
            Told::Committed => found == [Found::Part; 2],
            Told::Declined | Told::RolledBack => found == [Found::Nothing; 2],
            Told::Unknown(_) | Told::Heuristic(_) => false,
        };
        if !right {
            violations.push(Violation::Transfer { number: *number, told: told.clone(), found });
        }
    }
    for bank in &books.banks {
        let made =
            |transfer: &i64| u32::try_from(*transfer).is_ok_and(|number| transfers.contains_key(&number));
        let foreign = bank.entries.keys().filter(|transfer| !made(transfer));
        violations
            .extend(foreign.map(|transfer| Violation::NeverMade { bank: bank.bank, transfer: *transfer }));
        violations.extend(bank.balances());
        violations.extend(bank.prepared.then_some(Violation::Prepared { bank: bank.bank }));
    }
    let (before, after) = (Books::opening_money(), books.money());
    violations.extend((before != after).then_some(Violation::Money { before, after }));
    let decisions = books.undelivered;
    violations.extend((decisions > 0).then_some(Violation::Undelivered { decisions }));
    violations
}

/// Whether a branch is prepared in a bank. A bank that never took part in a transaction has no journal.
pub(crate) fn holds_prepared_branch(dir: &Path, bank: Role) -> std::io::Result<bool> {
    has_prepared_branch(&dir.join(format!("{bank}.db")))
}

/// Whether a branch is prepared in a SQLite file: by the head of the journal beside it.
pub(crate) fn has_prepared_branch(database: &Path) -> std::io::Result<bool> {
    use std::io::Read as _;

    let mut head = [0; JOURNAL_HEAD];
    let mut journal = database.as_os_str().to_owned();
    journal.push("-lockstep");
    match std::fs::File::open(journal) {
        Ok(mut journal) => journal.read_exact(&mut head)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(head[JOURNAL_KIND..] != [0; JOURNAL_HEAD - JOURNAL_KIND])
}

async fn open(file: &Path) -> Result<SqliteConnection, sqlx::Error> {
    SqliteConnectOptions::new().filename(file).read_only(true).connect().await
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transfer { number, told, found: [at_a, at_b] } => {
                let told = match told {
                    Told::Committed => "told as done".to_owned(),
                    Told::Declined | Told::RolledBack => "told as not done".to_owned(),
                    Told::Unknown(gtrid) => format!("whose outcome ({gtrid}) could not be learned"),
                    Told::Heuristic(detail) => format!("told as heuristic ({detail})"),
                };
                write!(f, "transfer {number}, {told}: bank-a {at_a}, bank-b {at_b}")
            }
            Self::NeverMade { bank, transfer } => {
                write!(f, "{bank} has an entry for transfer {transfer}, which was never made")
            }
            Self::Money { before, after } => {
                write!(f, "there was {before} of money before, and there is {after} after")
            }
            Self::Balance { bank, account, balance, expected } => {
                write!(f, "account {account} of {bank} has {balance}, and its entries make {expected}")
            }
            Self::Prepared { bank } => write!(f, "{bank} holds a prepared branch that nobody has finished"),
            Self::Undelivered { decisions } => {
                write!(f, "{decisions} decisions in the coordinator's log have not reached every bank")
            }
            Self::InDoubt { transactions } => {
                write!(f, "the coordinator had {transactions} transactions left in doubt")
            }
            Self::Heuristic { transactions } => {
                write!(f, "the coordinator has recorded {transactions} heuristic outcomes")
            }
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "has nothing",
            Self::Part => "has it",
            Self::Otherwise => "has something else",
        })
    }
}

#[cfg(test)]
mod tests;
