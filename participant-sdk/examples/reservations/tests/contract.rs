//! The ledger keeps every rule of `lockstep::Resource`.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

use std::sync::Mutex;

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
