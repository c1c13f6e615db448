//! The ledger keeps every rule of `lockstep::Resource`.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

use std::sync::Mutex;
use std::time::Duration;

use lockstep::resource::{Bqual, BranchId, ClusterId, Epoch, Gtrid, Resource as _, Xid};
use lockstep::testing::{Subject, contract};
use reservations::{Desk, Ledger};
use tempfile::TempDir;

/// Ledgers in temporary directories, each with seats that all keys are reservations of.
#[derive(Default)]
struct Ledgers {
    directories: Mutex<Vec<TempDir>>,
}

impl Subject for Ledgers {
    type Resource = Ledger;

    async fn create(&self) -> String {
        let directory = tempfile::tempdir().unwrap();
        let address = directory.path().to_str().unwrap().to_owned();
        Ledger::new(&address).add_item("seat", 1_000).await.unwrap();
        self.directories.lock().unwrap().push(directory);
        address
    }

    async fn open(&self, address: &str) -> Ledger {
        Ledger::new(address)
    }

    async fn write(&self, desk: &mut Desk, key: &str) -> Result<(), String> {
        desk.reserve(key, "seat", 1).await.map_err(|error| error.to_string())
    }

    async fn read(&self, desk: &mut Desk) -> Result<(), String> {
        desk.left("seat").await.map(drop).map_err(|error| error.to_string())
    }

    async fn is_there(&self, ledger: &Ledger, _address: &str, key: &str) -> bool {
        ledger.entry(key).await.unwrap().is_some()
    }
}

#[tokio::test]
async fn a_ledger_keeps_the_contract() {
    contract(Ledgers::default()).await.assert_kept();
}

/// What an early vote goes by: a branch that has only read waits for the coordinator.
#[tokio::test]
async fn a_ledger_tells_whether_a_branch_has_written() {
    let ledgers = Ledgers::default();
    let ledger = ledgers.open(&ledgers.create().await).await;
    let name = "shop".parse().unwrap();
    ledger.attach(&name).await.unwrap();
    let gtrid = Gtrid::new(Epoch::new(1).unwrap(), 1, [1; 10]);
    let branch =
        BranchId { cluster: ClusterId::from_random(1), xid: Xid { gtrid, bqual: Bqual::new(&name, 1) } };
    let mut desk = ledger.begin(&branch, Duration::from_secs(60)).await.unwrap();
    ledgers.read(&mut desk).await.unwrap();
    assert!(!Ledger::has_written(&mut desk).await);
    ledgers.write(&mut desk, "key").await.unwrap();
    assert!(Ledger::has_written(&mut desk).await);
}
