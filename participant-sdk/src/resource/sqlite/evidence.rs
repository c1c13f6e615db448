//! The tables that the SDK keeps in the database, and every statement on them.
//!
//! `lockstep_evidence` has one row for each branch whose end is provable here (P15). `lockstep_identity` has one row: what this
//! database is (P21), and the newest log position of each epoch that is in no row of evidence any more (P8).

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_proto::limits::MAX_TIMEOUT;
use lockstep_proto::museum::mutated;
use lockstep_proto::{ClusterId, Epoch, Gtrid, Incarnation, LogPosition, Positions, ResourceManagerId};
use sqlx::{Row, SqliteConnection};

use super::entry::POSITION_BYTES;
use crate::resource::{BranchId, EvidenceRow, Fate, ResourceError, wall_clock};

/// The version of the two tables.
const FORMAT: i64 = 1;

const CREATE: &str = "
CREATE TABLE IF NOT EXISTS lockstep_identity (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    format INTEGER NOT NULL,
    identity BLOB NOT NULL CHECK (length(identity) = 16),
    cluster TEXT,
    -- Positions one behind the other, one for each epoch. Older SDKs wrote one at most, and refuse more.
    seen BLOB
) STRICT;
CREATE TABLE IF NOT EXISTS lockstep_evidence (
    branch TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('branch', 'fence', 'hazard')),
    cluster TEXT NOT NULL,
    gtrid BLOB NOT NULL,
    position BLOB NOT NULL,
    deadline_ms INTEGER NOT NULL,
    written_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockstep_evidence_old ON lockstep_evidence (cluster, deadline_ms);
CREATE INDEX IF NOT EXISTS lockstep_evidence_oldest ON lockstep_evidence (cluster, gtrid) WHERE kind <> 'fence';
";

/// What a row proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The branch committed: the row is part of its local transaction.
    Branch,
    /// It did not, and the row keeps it from ever doing so.
    Fence,
    /// It was to commit, and could not be written again after a crash; or its service may have committed a part of it by itself.
    /// It never will be whole.
    Hazard,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Branch => "branch",
            Self::Fence => "fence",
            Self::Hazard => "hazard",
        }
    }

    /// What it says of its branch.
    pub(super) fn fate(self) -> Fate {
        match self {
            Self::Branch => Fate::Committed,
            Self::Fence if mutated("P15-a-fence-is-evidence") => Fate::Committed,
            Self::Fence => Fate::RolledBack,
            Self::Hazard => Fate::Hazard,
        }
    }
}

impl FromStr for Kind {
    type Err = sqlx::Error;

    fn from_str(text: &str) -> Result<Self, sqlx::Error> {
        [Self::Branch, Self::Fence, Self::Hazard].into_iter().find(|kind| kind.text() == text).ok_or_else(
            || sqlx::Error::Decode(format!("lockstep_evidence has a row of an unknown kind {text:?}").into()),
        )
    }
}

/// A row to be written.
#[derive(Debug, Clone)]
pub(super) struct NewEvidence<'a> {
    pub branch: &'a BranchId,
    pub kind: Kind,
    pub position: [u8; POSITION_BYTES],
    pub deadline_ms: i64,
}

/// Epoch, sequence, incarnation: the order of the bytes is the order of positions.
pub(super) fn position_bytes(position: &LogPosition) -> [u8; POSITION_BYTES] {
    let mut bytes = [0; POSITION_BYTES];
    bytes[..4].copy_from_slice(&position.epoch.get().to_be_bytes());
    bytes[4..12].copy_from_slice(&position.sequence.to_be_bytes());
    bytes[12..].copy_from_slice(position.incarnation.as_bytes());
    bytes
}

fn position(bytes: &[u8]) -> Option<LogPosition> {
    let bytes: &[u8; POSITION_BYTES] = bytes.try_into().ok()?;
    Some(LogPosition {
        epoch: Epoch::new(u32::from_be_bytes(bytes[..4].try_into().ok()?))?,
        sequence: u64::from_be_bytes(bytes[4..12].try_into().ok()?),
        incarnation: Incarnation::from_slice(&bytes[12..])?,
    })
}

/// Milliseconds since 1970; times before that are 0, those far beyond are the last.
pub(super) fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The deadline that a fence keeps when nobody knows its branch's: no branch that exists has a later one.
pub(super) fn latest_deadline_ms() -> i64 {
    unix_ms(wall_clock() + MAX_TIMEOUT)
}

/// What the database says of itself, or `None` before the first attach.
pub(super) async fn identity(
    connection: &mut SqliteConnection,
) -> Result<Option<ResourceManagerId>, ResourceError> {
    let failed = |error: sqlx::Error| {
        ResourceError::Unavailable(format!("the table lockstep_identity cannot be read: {error}"))
    };
    let exists: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = 'lockstep_identity')",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(failed)?;
    if !exists {
        return Ok(None);
    }
    let row = sqlx::query("SELECT format, identity FROM main.lockstep_identity")
        .fetch_optional(connection)
        .await
        .map_err(failed)?;
    let Some(row) = row else { return Ok(None) };
    let format: i64 = row.try_get(0).map_err(failed)?;
    if format != FORMAT {
        return Err(ResourceError::Unfit(format!(
            "the SDK's tables in this database have format {format}, and this program knows format {FORMAT} only"
        )));
    }
    let identity: Vec<u8> = row.try_get(1).map_err(failed)?;
    Ok(ResourceManagerId::from_slice(&identity))
}

/// Makes the tables and the identity, inside a transaction.
pub(super) async fn create(connection: &mut SqliteConnection) -> Result<ResourceManagerId, sqlx::Error> {
    sqlx::raw_sql(CREATE).execute(&mut *connection).await?;
    let identity = ResourceManagerId::from_bytes(rand::random());
    sqlx::query("INSERT INTO main.lockstep_identity (one, format, identity) VALUES (1, ?1, ?2)")
        .bind(FORMAT)
        .bind(identity.as_bytes().as_slice())
        .execute(connection)
        .await?;
    Ok(identity)
}

/// The cluster that the database is bound to.
pub(super) async fn cluster(connection: &mut SqliteConnection) -> Result<Option<ClusterId>, sqlx::Error> {
    let text: Option<String> =
        sqlx::query_scalar("SELECT cluster FROM main.lockstep_identity").fetch_one(connection).await?;
    text.map(|text| text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))).transpose()
}

/// Binds it, if it is not bound yet.
pub(super) async fn bind(connection: &mut SqliteConnection, cluster: ClusterId) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE main.lockstep_identity SET cluster = ?1 WHERE cluster IS NULL")
        .bind(cluster.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

/// The newest log position of each epoch, of all rows, those that were pruned included.
pub(super) async fn newest_positions(connection: &mut SqliteConnection) -> Result<Positions, sqlx::Error> {
    let mut positions = kept(connection).await?;
    // Their first four bytes are the epoch.
    let newest: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT max(position) FROM main.lockstep_evidence GROUP BY substr(position, 1, 4)",
    )
    .fetch_all(connection)
    .await?;
    for bytes in newest {
        positions.see(known(&bytes)?);
    }
    Ok(positions)
}

fn known(bytes: &[u8]) -> Result<LogPosition, sqlx::Error> {
    position(bytes).ok_or_else(|| sqlx::Error::Decode("a log position of another form".into()))
}

/// What is kept beside the evidence.
async fn kept(connection: &mut SqliteConnection) -> Result<Positions, sqlx::Error> {
    let bytes: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT seen FROM main.lockstep_identity").fetch_one(connection).await?;
    bytes.unwrap_or_default().chunks(POSITION_BYTES).map(known).collect()
}

async fn set_kept(connection: &mut SqliteConnection, kept: &Positions) -> Result<(), sqlx::Error> {
    let bytes: Vec<u8> = kept.iter().flat_map(position_bytes).collect();
    sqlx::query("UPDATE main.lockstep_identity SET seen = ?1").bind(bytes).execute(connection).await?;
    Ok(())
}

/// Keeps a position, unless a newer one of its epoch is kept, inside a transaction.
async fn keep(connection: &mut SqliteConnection, position: LogPosition) -> Result<(), sqlx::Error> {
    let mut positions = kept(connection).await?;
    if !positions.covers(&position) {
        positions.see(position);
        set_kept(connection, &positions).await?;
    }
    Ok(())
}

/// Keeps a position, and lets go of those of these epochs, inside a transaction.
pub(super) async fn settle(
    connection: &mut SqliteConnection,
    position: LogPosition,
    epochs: &[Epoch],
) -> Result<(), sqlx::Error> {
    let mut positions = kept(connection).await?;
    positions.see(position);
    positions.forget(epochs);
    set_kept(connection, &positions).await
}

/// What is on record of a branch.
pub(super) async fn kind_of(
    connection: &mut SqliteConnection,
    branch: &BranchId,
) -> Result<Option<Kind>, sqlx::Error> {
    let kind: Option<String> =
        sqlx::query_scalar("SELECT kind FROM main.lockstep_evidence WHERE branch = ?1")
            .bind(branch.to_string())
            .fetch_optional(connection)
            .await?;
    kind.map(|kind| kind.parse()).transpose()
}

/// Writes a row, unless there is one: then its kind.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    row: &NewEvidence<'_>,
) -> Result<Option<Kind>, sqlx::Error> {
    if row.kind == Kind::Fence && mutated("P15-no-fence") {
        return Ok(None);
    }
    let inserted = sqlx::query(
        "INSERT INTO main.lockstep_evidence (branch, kind, cluster, gtrid, position, deadline_ms, written_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (branch) DO NOTHING",
    )
    .bind(row.branch.to_string())
    .bind(row.kind.text())
    .bind(row.branch.cluster.to_string())
    .bind(row.branch.xid.gtrid.to_bytes().as_slice())
    .bind(row.position.as_slice())
    .bind(row.deadline_ms)
    .bind(unix_ms(wall_clock()))
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() == 1 || mutated("P15-a-duplicate-is-overlooked") {
        Ok(None)
    } else {
        kind_of(connection, row.branch).await
    }
}

/// Completes a branch's row with its commit. The retention counts from now if its deadline has passed: whoever was told to commit it must find
/// the row, however late that is. The decision's position is kept in the row where that has an older one of the same epoch; the row of a
/// branch that another epoch's coordinator decides about keeps what it was prepared with.
pub(super) async fn complete(
    connection: &mut SqliteConnection,
    branch: &BranchId,
    position: &LogPosition,
) -> Result<(), sqlx::Error> {
    let now = unix_ms(wall_clock());
    let raised: Option<bool> = sqlx::query_scalar(
        "UPDATE main.lockstep_evidence SET written_ms = ?3, deadline_ms = max(deadline_ms, ?4), \
         position = CASE WHEN substr(position, 1, 4) = substr(?2, 1, 4) THEN max(position, ?2) ELSE position END \
         WHERE branch = ?1 RETURNING substr(position, 1, 4) = substr(?2, 1, 4)",
    )
    .bind(branch.to_string())
    .bind(position_bytes(position).as_slice())
    .bind(now)
    .bind(if mutated("P19-retention-counts-from-the-deadline") { 0 } else { now })
    .fetch_optional(&mut *connection)
    .await?;
    if raised == Some(true) {
        return Ok(());
    }
    keep(connection, *position).await
}

/// The oldest transaction of the cluster with a row of kind *branch* or *hazard*: it is still to be compared with its record.
pub(super) async fn oldest(
    connection: &mut SqliteConnection,
    cluster: ClusterId,
) -> Result<Option<Gtrid>, sqlx::Error> {
    if mutated("P7-evidence-holds-nothing") {
        return Ok(None);
    }
    let bytes: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT min(gtrid) FROM main.lockstep_evidence WHERE cluster = ?1 AND kind <> 'fence'",
    )
    .bind(cluster.to_string())
    .fetch_one(connection)
    .await?;
    bytes
        .map(|bytes| {
            Gtrid::from_bytes(&bytes).ok_or_else(|| sqlx::Error::Decode("a gtrid of another form".into()))
        })
        .transpose()
}

/// Rows whose branch's deadline was `retention` ago or longer, the oldest deadlines first.
pub(super) async fn old(
    connection: &mut SqliteConnection,
    cluster: ClusterId,
    retention: Duration,
    limit: usize,
) -> Result<Vec<EvidenceRow>, sqlx::Error> {
    let retention = if mutated("P19-evidence-is-old-at-once") { Duration::ZERO } else { retention };
    let until =
        unix_ms(wall_clock()).saturating_sub(i64::try_from(retention.as_millis()).unwrap_or(i64::MAX));
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT branch, kind FROM main.lockstep_evidence WHERE cluster = ?1 AND deadline_ms <= ?2 \
         ORDER BY deadline_ms LIMIT ?3",
    )
    .bind(cluster.to_string())
    .bind(until)
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|(branch, kind)| {
            let branch = branch.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
            Ok(EvidenceRow { branch, fate: kind.parse::<Kind>()?.fate() })
        })
        .collect()
}

/// The evidence of one transaction, with when it was written, in milliseconds since 1970.
pub(super) async fn of_transaction(
    connection: &mut SqliteConnection,
    cluster: ClusterId,
    gtrid: Gtrid,
) -> Result<Vec<(BranchId, Fate, u64)>, sqlx::Error> {
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "SELECT branch, kind, written_ms FROM main.lockstep_evidence WHERE branch >= ?1 || ':' AND branch < ?1 || ';' \
         ORDER BY branch",
    )
    .bind(format!("{cluster}:{gtrid}"))
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|(branch, kind, written_ms)| {
            let branch = branch.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
            Ok((branch, kind.parse::<Kind>()?.fate(), u64::try_from(written_ms).unwrap_or_default()))
        })
        .collect()
}

/// Deletes a row by key, keeping its position, inside a transaction.
pub(super) async fn forget(connection: &mut SqliteConnection, branch: &BranchId) -> Result<(), sqlx::Error> {
    let position: Option<Vec<u8>> =
        sqlx::query_scalar("DELETE FROM main.lockstep_evidence WHERE branch = ?1 RETURNING position")
            .bind(branch.to_string())
            .fetch_optional(&mut *connection)
            .await?;
    match position.filter(|_| !mutated("P8-pruning-forgets-the-position")) {
        Some(position) => keep(connection, known(&position)?).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn positions() -> impl Strategy<Value = LogPosition> {
        (1u32.., any::<u64>(), any::<[u8; 16]>()).prop_map(|(epoch, sequence, incarnation)| LogPosition {
            epoch: Epoch::new(epoch).unwrap(),
            incarnation: Incarnation::from_bytes(incarnation),
            sequence,
        })
    }

    proptest! {
        #[test]
        fn the_bytes_of_positions_are_in_their_order(a in positions(), b in positions()) {
            prop_assert_eq!(position(&position_bytes(&a)), Some(a));
            if (a.epoch, a.sequence) < (b.epoch, b.sequence) {
                prop_assert!(position_bytes(&a) < position_bytes(&b));
            }
        }
    }
}
