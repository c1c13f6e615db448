//! The transfers, and what their clients were told: the one thing besides the banks' files that the checker goes by.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep::Gtrid;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use crate::bank::{ACCOUNTS, Movement};
use crate::role::Role;

/// The most that one transfer moves: half of what is on an account at first, so that banks have to decline some.
const MOST: i64 = 500;

/// Money that goes from an account of one bank to an account of the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) number: u32,
    amount: i64,
    account_at_a: i64,
    account_at_b: i64,
    from_a: bool,
}

/// One bank's part of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leg {
    pub(crate) bank: Role,
    pub(crate) operation: Operation,
    pub(crate) movement: Movement,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Withdraw,
    Deposit,
}

impl Operation {
    /// Where a bank is asked for it.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Withdraw => "withdraw",
            Self::Deposit => "deposit",
        }
    }
}

impl Transfer {
    /// The transfer of this number: the same for the same seed, whichever client makes it and when.
    pub(crate) fn generate(seed: u64, number: u32) -> Self {
        // Not simply their sum: seed 1's second transfer would be seed 2's first.
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(number));
        Self {
            number,
            amount: random.random_range(1..=MOST),
            account_at_a: random.random_range(0..ACCOUNTS),
            account_at_b: random.random_range(0..ACCOUNTS),
            from_a: random.random(),
        }
    }

    /// Both parts, bank-a's first, whichever way the money goes. SQLite locks a whole file, and a branch holds that
    /// lock until its transaction has ended: two transfers that took the banks in different orders would wait for
    /// each other.
    pub(crate) fn legs(&self) -> [Leg; 2] {
        let (at_a, at_b) = match self.from_a {
            true => (Operation::Withdraw, Operation::Deposit),
            false => (Operation::Deposit, Operation::Withdraw),
        };
        let leg = |bank, operation, account| {
            let movement = Movement { transfer: self.number, account, amount: self.amount };
            Leg { bank, operation, movement }
        };
        [leg(Role::BankA, at_a, self.account_at_a), leg(Role::BankB, at_b, self.account_at_b)]
    }
}

/// What the client of a transfer was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// Done, in both banks.
    Committed,
    /// Not done, in neither bank: one of them declined.
    Declined,
    /// Not done, in neither bank: something broke on the way.
    RolledBack,
    /// The answer was lost: this transaction has to be asked for.
    Unknown(Gtrid),
    /// The banks differ, and the coordinator knows it.
    Heuristic(String),
}

/// What was begun, and what was told.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    unfinished: RefCell<BTreeSet<u32>>,
    halfway: RefCell<BTreeMap<u32, Instant>>,
    rest: RefCell<Duration>,
    told: RefCell<BTreeMap<u32, Told>>,
}

impl Ledger {
    /// From here on the transfer is unfinished, until its client was told how it ended.
    pub(crate) fn begun(&self, transfer: u32) {
        self.unfinished.borrow_mut().insert(transfer);
    }

    /// One bank has answered, the other was not asked yet.
    pub(crate) fn halfway(&self, transfer: u32) {
        self.halfway.borrow_mut().insert(transfer, Instant::now());
    }

    /// The transfer's client is told how it ended.
    pub(crate) fn tell(&self, transfer: u32, told: Told) {
        self.unfinished.borrow_mut().remove(&transfer);
        let since = self.halfway.borrow_mut().remove(&transfer);
        if let (Some(since), Told::Committed) = (since, &told) {
            let mut rest = self.rest.borrow_mut();
            *rest = (*rest * 7 + since.elapsed()) / 8;
        }
        self.told.borrow_mut().insert(transfer, told);
    }

    /// The transfers that are unfinished now.
    pub(crate) fn unfinished(&self) -> BTreeSet<u32> {
        self.unfinished.borrow().clone()
    }

    /// How long it takes now from halfway to the end, when nothing breaks.
    pub(crate) fn rest(&self) -> Duration {
        *self.rest.borrow()
    }

    /// The transfers whose outcome nobody was told yet.
    pub(crate) fn unknown(&self) -> Vec<(u32, Gtrid)> {
        let told = self.told.borrow();
        let unknown = told.iter().filter_map(|(number, told)| match told {
            Told::Unknown(gtrid) => Some((*number, *gtrid)),
            Told::Committed | Told::Declined | Told::RolledBack | Told::Heuristic(_) => None,
        });
        unknown.collect()
    }

    /// All transfers that were made from `seed`, and what was told of each.
    pub(crate) fn told(&self, seed: u64) -> BTreeMap<u32, (Transfer, Told)> {
        let told = self.told.borrow();
        let made =
            |(number, told): (&u32, &Told)| (*number, (Transfer::generate(seed, *number), told.clone()));
        told.iter().map(made).collect()
    }
}
