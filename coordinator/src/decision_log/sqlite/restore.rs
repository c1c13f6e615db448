//! `lockstep restore` on an embedded log: one forced transaction, while no coordinator runs.

use std::path::Path;

use lockstep_proto::{ClusterId, Epoch, Incarnation};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteSynchronous;

use super::epochs::{self, mark};
use super::open::{OpenError, Opening};
use super::transaction::{Broken, Fault, Tx};
use super::{audit, checkpoint};
use crate::decision_log::data_dir::DataDir;
use crate::decision_log::restore::{BEHIND, Marks, Order, RESTORED, Restoration, RestoreError, Step};
use crate::decision_log::rows::{self, EpochRow};

/// Carries an operator's order out, or only looks what it would do.
///
/// # Errors
/// [`RestoreError`]: nothing was done.
pub async fn restore(dir: &Path, order: &Order) -> Result<Restoration, RestoreError> {
    DataDir::expect_log(dir)?;
    // A few pages are all that is written.
    let dir = DataDir::open(dir, 0).map_err(OpenError::from)?;
    let opening = Opening { file: dir.log_file() };
    let mut connection = opening.connect(SqliteSynchronous::Full).await?;
    opening.migrate(&mut connection).await?;
    let cluster = cluster(&mut connection).await.map_err(|fault| opening.fault(fault))?;
    let orders = order.is_for(cluster)?;
    let broken = Broken::default();
    let failed = |source| OpenError::NoEpoch { file: opening.file.clone(), source };
    let mut tx = Tx::begin(&mut connection, &broken).await.map_err(failed)?;
    let work = match carry_out(tx.connection(), cluster, order).await {
        // An undone transaction has done nothing.
        Ok(Ok(done)) if orders => Ok(done),
        Ok(decided) => {
            let _undone = tx.finish::<()>(Err(Fault::Refused("it is only looked at".to_owned()))).await;
            return decided.map(|done| Restoration { dry_run: true, ..done });
        }
        Err(fault) => Err(fault),
    };
    let done = tx.finish(work).await.map_err(failed)?;
    checkpoint::truncate(&mut connection)
        .await
        .map_err(|what| OpenError::NotCheckpointed { file: opening.file.clone(), what })?;
    Ok(done)
}

/// Whose log it is.
pub(super) async fn cluster(connection: &mut SqliteConnection) -> Result<ClusterId, Fault> {
    let record = mark(connection, rows::CLUSTER).await?;
    let record = record.ok_or_else(|| Fault::Fatal("the cluster id is missing".to_owned()))?;
    rows::decode_cluster(&record).map_err(|error| epochs::damaged("cluster id", error))
}

async fn carry_out(
    connection: &mut SqliteConnection,
    cluster: ClusterId,
    order: &Order,
) -> Result<Result<Restoration, RestoreError>, Fault> {
    let behind = mark(connection, BEHIND).await?;
    let restored = mark(connection, RESTORED).await?;
    let marks = Marks::decode(behind.as_deref(), restored.as_deref());
    let marks = marks.map_err(|error| epochs::damaged("a restore", error))?;
    let newest: Option<u32> =
        sqlx::query_scalar("SELECT max(number) FROM epochs").fetch_one(&mut *connection).await?;
    let unfinished: i64 = sqlx::query_scalar("SELECT count(*) FROM transactions WHERE ended_ms IS NULL")
        .fetch_one(&mut *connection)
        .await?;
    let (record, below) = match marks.carry_out(order, newest.unwrap_or(0)) {
        Ok(carried_out) => carried_out,
        Err(refused) => return Ok(Err(refused)),
    };
    epochs::set_mark(connection, RESTORED, &record).await?;
    audit::record(connection, &order.operation(cluster, &marks, newest.unwrap_or(0), below)).await?;
    if order.step == Step::Restore {
        begin_anew(connection, below).await?;
    }
    let (unfinished, was_behind) = (unfinished.cast_unsigned(), marks.is_behind());
    Ok(Ok(Restoration { cluster, below, unfinished, was_behind, dry_run: false }))
}

/// Takes the epoch of the restore. The next start seals it with all others, and takes the one after it.
async fn begin_anew(connection: &mut SqliteConnection, epoch: Epoch) -> Result<(), Fault> {
    let row = EpochRow { incarnation: Incarnation::from_bytes(rand::random()), sequence: 0, sealed: false };
    sqlx::query("INSERT INTO epochs (number, record) VALUES (?1, ?2)")
        .bind(epoch.get())
        .bind(rows::encode_epoch(epoch.get(), &row))
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM marks WHERE name = ?1").bind(BEHIND).execute(connection).await?;
    Ok(())
}
