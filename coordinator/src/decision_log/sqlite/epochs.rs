//! Epochs: every start takes a new one and seals all earlier ones, in one transaction.
//!
//! There is one process on this log at a time, by the lock of its directory, so sealing needs no lease: whoever opens the
//! log is alone, and all others are over. The epoch's row is still compared in every transaction that writes: if the
//! lock has failed us (a copied directory, a deleted lock file), the second process seals the first one's epoch, and
//! the first one's next write finds its row changed and ends it, before two processes decide differently.

use std::collections::BTreeMap;

use lockstep_proto::museum::mutated;
use lockstep_proto::{ClusterId, Epoch, Incarnation, LogPosition};
use sqlx::SqliteConnection;

use super::transaction::Fault;
use crate::decision_log::rows::{self, EpochRow};

/// The epoch that this process writes under, as its row is now.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnEpoch {
    /// Its number.
    pub(super) epoch: Epoch,
    /// Its row.
    pub(super) row: EpochRow,
}

impl OwnEpoch {
    /// The newest forced batch of it.
    pub(super) fn position(&self) -> LogPosition {
        let EpochRow { incarnation, sequence, sealed: _ } = self.row;
        LogPosition { epoch: self.epoch, incarnation, sequence }
    }
}

/// What opening the log found and did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    pub(super) cluster: ClusterId,
    pub(super) own: OwnEpoch,
    /// Earlier epochs that were still unsealed.
    pub(super) sealed: usize,
    /// The log is new.
    pub(super) created: bool,
}

/// Seals every earlier epoch and takes the next one. In a new log it also makes the cluster id.
pub(super) async fn take(connection: &mut SqliteConnection) -> Result<Taken, Fault> {
    let epochs = all(connection).await?;
    let (cluster, created) = match mark(connection, rows::CLUSTER).await? {
        Some(record) => (rows::decode_cluster(&record).map_err(|error| damaged("cluster id", error))?, false),
        None if epochs.is_empty() => (new_log(connection).await?, true),
        None => return Err(Fault::Fatal("the cluster id is missing".to_owned())),
    };
    let unsealed = epochs.iter().filter(|(_, row)| !row.sealed);
    let mut sealed = 0;
    for (number, row) in unsealed {
        if mutated("P5-earlier-epochs-stay-unsealed") {
            continue;
        }
        change(connection, *number, row, &EpochRow { sealed: true, ..*row }).await?;
        sealed += 1;
    }
    let newest = epochs.last_key_value().map_or(0, |(number, _)| *number);
    let epoch = newest.checked_add(1).and_then(Epoch::new);
    let epoch = epoch.ok_or_else(|| Fault::Fatal("all 4,294,967,295 epochs are used up".to_owned()))?;
    let incarnation = Incarnation::from_bytes(rand::random());
    let row = EpochRow { incarnation, sequence: 0, sealed: false };
    sqlx::query("INSERT INTO epochs (number, record) VALUES (?1, ?2)")
        .bind(epoch.get())
        .bind(rows::encode_epoch(epoch.get(), &row))
        .execute(connection)
        .await?;
    Ok(Taken { cluster, own: OwnEpoch { epoch, row }, sealed, created })
}

/// Every epoch, each of them checked: which ones are sealed is what absence is judged by.
async fn all(connection: &mut SqliteConnection) -> Result<BTreeMap<u32, EpochRow>, Fault> {
    let found: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT number, record FROM epochs").fetch_all(connection).await?;
    let mut epochs = BTreeMap::new();
    for (number, record) in found {
        let known = u32::try_from(number).ok().filter(|number| *number > 0);
        let number = known.ok_or_else(|| Fault::Fatal(format!("{number} is no epoch")))?;
        let row = rows::decode_epoch(number, &record).map_err(|error| damaged("an epoch", error))?;
        epochs.insert(number, row);
    }
    Ok(epochs)
}

async fn new_log(connection: &mut SqliteConnection) -> Result<ClusterId, Fault> {
    let cluster = ClusterId::from_random(rand::random());
    for (name, record) in
        [(rows::CLUSTER, rows::encode_cluster(cluster)), (rows::HORIZON, rows::encode_horizon(0))]
    {
        sqlx::query("INSERT INTO marks (name, record) VALUES (?1, ?2)")
            .bind(name)
            .bind(record)
            .execute(&mut *connection)
            .await?;
    }
    Ok(cluster)
}

/// The record of a mark, if it is there.
pub(super) async fn mark(connection: &mut SqliteConnection, name: &str) -> Result<Option<Vec<u8>>, Fault> {
    let record = sqlx::query_scalar("SELECT record FROM marks WHERE name = ?1")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    Ok(record)
}

/// Writes a mark, whether or not it is there.
pub(super) async fn set_mark(
    connection: &mut SqliteConnection,
    name: &str,
    record: &[u8],
) -> Result<(), Fault> {
    sqlx::query(
        "INSERT INTO marks (name, record) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET record = excluded.record",
    )
    .bind(name)
    .bind(record)
    .execute(connection)
    .await?;
    Ok(())
}

/// Changes an epoch's row, if it is still what it was.
async fn change(
    connection: &mut SqliteConnection,
    number: u32,
    old: &EpochRow,
    new: &EpochRow,
) -> Result<(), Fault> {
    let done = sqlx::query("UPDATE epochs SET record = ?3 WHERE number = ?1 AND record = ?2")
        .bind(number)
        .bind(rows::encode_epoch(number, old))
        .bind(rows::encode_epoch(number, new))
        .execute(connection)
        .await?;
    if done.rows_affected() == 1 || mutated("P1-a-sealed-epoch-decides") { Ok(()) } else { Err(lost(number)) }
}

/// Counts a forced batch in the own epoch's row: this is also the check that the epoch is unsealed (P1).
pub(super) async fn advance(connection: &mut SqliteConnection, own: &OwnEpoch) -> Result<OwnEpoch, Fault> {
    let next = EpochRow { sequence: own.row.sequence + 1, ..own.row };
    change(connection, own.epoch.get(), &own.row, &next).await?;
    Ok(OwnEpoch { row: next, ..*own })
}

/// Checks that the own epoch is unsealed, for a write that is no forced batch.
pub(super) async fn hold(connection: &mut SqliteConnection, own: &OwnEpoch) -> Result<(), Fault> {
    let found: Option<Vec<u8>> = sqlx::query_scalar("SELECT record FROM epochs WHERE number = ?1")
        .bind(own.epoch.get())
        .fetch_optional(connection)
        .await?;
    if found == Some(rows::encode_epoch(own.epoch.get(), &own.row)) {
        Ok(())
    } else {
        Err(lost(own.epoch.get()))
    }
}

fn lost(number: u32) -> Fault {
    Fault::Fatal(format!(
        "epoch {number} was sealed or changed by someone else: another process has this log open"
    ))
}

/// A record of `what` that is not what was written.
pub(super) fn damaged(what: impl std::fmt::Display, error: rows::RowError) -> Fault {
    Fault::Fatal(format!("the decision log is damaged: the record of {what}: {error}"))
}
