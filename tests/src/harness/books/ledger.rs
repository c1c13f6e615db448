//! Books in a ledger of reservations: a file of its own format, read here line by line, without the code that writes it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use reservations::Ledger;
use serde_json::Value;

use super::super::{Failed, Result};
use super::{ACCOUNTS, OPENING_BALANCE, Page};

/// The item that stands for an account.
pub(crate) fn item(account: i64) -> String {
    format!("account-{account}")
}

/// A new ledger in this directory, which is made.
pub(super) async fn make(directory: &Path) -> Result<()> {
    let what = || format!("no ledger in {}", directory.display());
    fs::create_dir_all(directory).map_err(Failed::because(what()))?;
    let ledger = Ledger::new(directory);
    let stock = u32::try_from(OPENING_BALANCE).expect("a constant");
    for account in 0..ACCOUNTS {
        ledger.add_item(&item(account), stock).await.map_err(Failed::because(what()))?;
    }
    Ok(())
}

/// What the lines of the file come to.
#[derive(Debug, Default)]
struct Sums {
    stock: BTreeMap<String, i64>,
    /// By reference: item and change.
    entries: BTreeMap<String, (String, i64)>,
    /// By branch: its entries.
    prepared: BTreeMap<String, Vec<Value>>,
}

impl Sums {
    fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("ledger");
        let text = fs::read_to_string(&path).map_err(Failed::because(format!("{}", path.display())))?;
        let mut sums = Self::default();
        // What is behind the last end of a line is not written to its end yet.
        let (whole, _cut) = text.rsplit_once('\n').unwrap_or_default();
        for line in whole.lines() {
            // Before it stand its checksum and its length.
            let json = &line[line.find('{').unwrap_or_default()..];
            let record = serde_json::from_str(json).map_err(Failed::because(format!("the line {line}")))?;
            sums.add(&record);
        }
        Ok(sums)
    }

    fn add(&mut self, record: &Value) {
        let word = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        let entries = || record["entries"].as_array().cloned().unwrap_or_default();
        match word("record").as_str() {
            "item" => {
                self.stock.insert(word("item"), record["stock"].as_i64().unwrap_or_default());
            }
            // The stock that it led to is in the item's line.
            "entry" => self.enter(record),
            "prepared" => {
                self.prepared.insert(word("branch"), entries());
            }
            "ended" => {
                let before = self.prepared.remove(&word("branch")).unwrap_or_default();
                if record["outcome"] == "committed" {
                    for entry in before.iter().chain(&entries()) {
                        self.enter(entry);
                        let change = entry["change"].as_i64().unwrap_or_default();
                        *self
                            .stock
                            .entry(entry["item"].as_str().unwrap_or_default().to_owned())
                            .or_default() += change;
                    }
                }
            }
            _ => {}
        }
    }

    fn enter(&mut self, entry: &Value) {
        let word = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let change = entry["change"].as_i64().unwrap_or_default();
        self.entries.insert(word("reference"), (word("item"), change));
    }
}

pub(super) fn read(directory: &Path) -> Result<Page> {
    let Sums { stock, entries, .. } = Sums::read(directory)?;
    let fits = |account: &i64| {
        let item = item(*account);
        let moved: i64 = entries.values().filter(|(of, _)| *of == item).map(|(_, change)| change).sum();
        stock.get(&item).copied() == Some(OPENING_BALANCE + moved)
    };
    let wrong_accounts = (0..ACCOUNTS).filter(|account| !fits(account)).collect();
    let transfers = entries.iter().map(|(reference, (_, change))| (reference.clone(), *change)).collect();
    Ok(Page { transfers, total: stock.values().sum(), wrong_accounts })
}

pub(super) fn prepared(directory: &Path) -> Result<Vec<String>> {
    Ok(Sums::read(directory)?.prepared.into_keys().collect())
}
