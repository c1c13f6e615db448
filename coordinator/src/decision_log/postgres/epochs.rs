//! Epochs: taken at a start, fenced by their row, kept by a lease, sealed and adopted when that has run out.
//!
//! The row in `epochs` decides who wins (P1, P2, P5); the lease, in a row of its own, only says when to try. Its time is the
//! server's: no node's clock counts.

use std::time::Duration;

use lockstep_proto::limits::MAX_NODES;
use lockstep_proto::{Epoch, Incarnation, LogPosition};
use sqlx::{PgConnection, PgExecutor};

use super::connect::{Failure, answer, run};
use super::durability::Setting;
use super::open::Options;
use crate::decision_log::rows;

/// How long a statement of this module may take. Longer than any wait for a lock in it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The epoch that this node writes under, as it knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own {
    /// Its number.
    pub(super) epoch: Epoch,
    /// Which epoch of that number.
    pub(super) incarnation: Incarnation,
    /// Raised after each write whose result is unknown (P2).
    pub(super) generation: i64,
    /// Its newest forced batch.
    pub(super) sequence: u64,
}

impl Own {
    /// The newest forced batch of it.
    pub(super) fn position(&self) -> LogPosition {
        LogPosition { epoch: self.epoch, incarnation: self.incarnation, sequence: self.sequence }
    }

    /// What the server's list of sessions calls the one that writes under this epoch.
    pub(super) fn session_name(&self) -> String {
        session_name(self.epoch, self.incarnation.as_bytes())
    }
}

/// What a log says of the own epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing<T> {
    /// It goes on.
    Unsealed(T),
    /// Another node has taken over.
    Sealed,
    /// It has no such epoch. Nothing ever removes one: the log was put back to an older state (P8).
    Gone,
}

/// What a node says when its epoch is [`Standing::Gone`].
pub(super) fn gone(epoch: Epoch) -> String {
    format!(
        "the decision log has no epoch {epoch} any more: its server has failed over to a standby that did not have it, or was \
         restored from a backup. Stop every coordinator and run `lockstep restore`"
    )
}

fn session_name(epoch: Epoch, incarnation: &[u8]) -> String {
    let digits: String = incarnation.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("lockstep epoch {epoch} {digits}")
}

/// An epoch that was taken.
#[derive(Debug)]
pub(super) struct Taken {
    /// It.
    pub(super) own: Own,
    /// Earlier ones that were not sealed in the snapshot from which it was taken. All others are, in any copy of the log that has it.
    pub(super) beside: Vec<Epoch>,
}

/// Takes the next epoch, with a lease that runs out unless it is renewed. `None`: another node took that number at the same moment.
pub(super) async fn take(
    connection: &mut PgConnection,
    options: &Options,
    floor_ms: i64,
) -> Result<Option<Taken>, Failure> {
    let incarnation = Incarnation::from_bytes(rand::random());
    // One statement, and so one snapshot: what it lists as unsealed is complete below the number that it takes.
    let statement = sqlx::query_as(
        "WITH taken AS ( \
             INSERT INTO lockstep_log.epochs (number, incarnation) \
             SELECT coalesce(max(number), 0) + 1, $1 FROM lockstep_log.epochs RETURNING number \
         ), positioned AS (INSERT INTO lockstep_log.positions (epoch) SELECT number FROM taken \
         ), barred AS (INSERT INTO lockstep_log.barriers (epoch) SELECT number FROM taken \
         ), leased AS ( \
             INSERT INTO lockstep_log.leases (epoch, node, address, expires_at, floor_ms) \
             SELECT number, $2, $3, clock_timestamp() + $4 * interval '1 millisecond', $5 FROM taken \
         ) \
         SELECT number, ARRAY(SELECT number FROM lockstep_log.epochs WHERE NOT sealed) FROM taken",
    )
    .bind(incarnation.as_bytes().as_slice())
    .bind(&options.node)
    .bind(options.address.as_deref().unwrap_or_default())
    .bind(millis(options.lease))
    .bind(floor_ms);
    let rows: Vec<(i64, Vec<i64>)> = match answer(PATIENCE, statement.fetch_all(connection)).await {
        Err(failure) if failure.is(Failure::DUPLICATE_KEY) => return Ok(None),
        taken => taken?,
    };
    let taken = |(number, unsealed): (i64, Vec<i64>)| {
        let own = Own { epoch: epoch(number)?, incarnation, generation: 1, sequence: 0 };
        Some(Taken { own, beside: unsealed.into_iter().filter_map(epoch).collect() })
    };
    Ok(rows.into_iter().next().and_then(taken))
}

/// The epoch of this number. The table holds no others than there are.
pub(super) fn epoch(number: i64) -> Option<Epoch> {
    u32::try_from(number).ok().and_then(Epoch::new)
}

/// As PostgreSQL counts it.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Raises the own epoch's generation, after all writes of the old one: they have been done, or never will be (P2). The new
/// generation and the newest forced batch.
pub(super) async fn fence(
    connection: &mut PgConnection,
    within: Duration,
    own: &Own,
) -> Result<Standing<Own>, Failure> {
    let statement = sqlx::query_scalar(
        "UPDATE lockstep_log.epochs SET generation = generation + 1 \
         WHERE number = $1 AND incarnation = $2 AND NOT sealed RETURNING generation",
    )
    .bind(i64::from(own.epoch.get()))
    .bind(own.incarnation.as_bytes().as_slice());
    let generations: Vec<i64> = answer(within, statement.fetch_all(&mut *connection)).await?;
    let Some(generation) = generations.first() else { return is_over(connection, within, own).await };
    // In a statement of its own: the one before may have waited for the batch that this has to count.
    let sequence = sqlx::query_scalar("SELECT sequence FROM lockstep_log.positions WHERE epoch = $1")
        .bind(i64::from(own.epoch.get()));
    let sequences: Vec<i64> = answer(within, sequence.fetch_all(connection)).await?;
    let sequence = sequences.first().map_or(own.sequence, |sequence| sequence.cast_unsigned());
    Ok(Standing::Unsealed(Own { generation: *generation, sequence, ..*own }))
}

/// Why there is no unsealed row of the own epoch.
async fn is_over<T>(
    connection: &mut PgConnection,
    within: Duration,
    own: &Own,
) -> Result<Standing<T>, Failure> {
    let statement =
        sqlx::query_scalar("SELECT number FROM lockstep_log.epochs WHERE number = $1 AND incarnation = $2")
            .bind(i64::from(own.epoch.get()))
            .bind(own.incarnation.as_bytes().as_slice());
    let rows: Vec<i64> = answer(within, statement.fetch_all(connection)).await?;
    Ok(if rows.is_empty() { Standing::Gone } else { Standing::Sealed })
}

/// Locks the own epoch's row for a write that is no decision, inside of an open transaction. Whether the epoch is unsealed and as this
/// node knows it.
pub(super) async fn hold(connection: &mut PgConnection, own: &Own) -> Result<bool, Failure> {
    let statement = sqlx::query_scalar(
        "SELECT number FROM lockstep_log.epochs \
         WHERE number = $1 AND incarnation = $2 AND generation = $3 AND NOT sealed FOR SHARE",
    )
    .bind(i64::from(own.epoch.get()))
    .bind(own.incarnation.as_bytes().as_slice())
    .bind(own.generation);
    let rows: Vec<i64> = answer(PATIENCE, statement.fetch_all(connection)).await?;
    Ok(!rows.is_empty())
}

/// What a node says of itself with each renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// No transaction that is live here, or will be, began earlier; milliseconds since 1970.
    pub floor_ms: u64,
    /// Transactions that are live here.
    pub live: u64,
}

/// A node that has not given its lease up, and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddress {
    /// Its epoch.
    pub epoch: Epoch,
    /// Such as `http://10.0.0.1:7420`.
    pub address: String,
}

/// What a renewal found.
pub(super) struct Renewed {
    /// Who shares the log, newest first, so that after many short lives the living are among those that are told of.
    pub(super) nodes: Vec<NodeAddress>,
    /// The newest forced batch of the own epoch, as the log has it (P8).
    pub(super) sequence: u64,
    /// What the server's settings are now.
    pub(super) settings: [(Setting, String); 2],
}

/// Sealed, numbers and addresses of nodes, the newest batch, `fsync`, `full_page_writes`; what was set.
type RenewedRow = (bool, Vec<i64>, Vec<String>, Option<i64>, String, String, String);

/// Renews the own lease, unless it was given up.
pub(super) async fn renew(
    connection: &mut PgConnection,
    within: Duration,
    own: &Own,
    lease: Duration,
    renewal: Renewal,
) -> Result<Standing<Renewed>, Failure> {
    let column = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    // Not forced: a lease that a crash of the server forgets was only shorter.
    let statement = sqlx::query_as(
        "WITH own AS ( \
             SELECT number, sealed FROM lockstep_log.epochs WHERE number = $1 AND incarnation = $5 \
         ), renewed AS ( \
             UPDATE lockstep_log.leases AS l SET expires_at = clock_timestamp() + $2 * interval '1 millisecond', \
                 floor_ms = greatest(floor_ms, $3), live = $4 \
             FROM own WHERE l.epoch = own.number AND NOT own.sealed AND l.expires_at <> '-infinity' \
         ), listed AS ( \
             SELECT e.number, l.address FROM lockstep_log.epochs AS e \
             JOIN lockstep_log.leases AS l ON l.epoch = e.number \
             WHERE NOT e.sealed AND l.address <> '' AND l.expires_at <> '-infinity' ORDER BY e.number DESC LIMIT $6 \
         ) \
         SELECT sealed, ARRAY(SELECT number FROM listed ORDER BY number DESC), \
             ARRAY(SELECT address FROM listed ORDER BY number DESC), \
             (SELECT sequence FROM lockstep_log.positions WHERE epoch = $1), \
             current_setting('fsync'), current_setting('full_page_writes'), set_config('synchronous_commit', 'off', true) \
         FROM own",
    )
    .bind(i64::from(own.epoch.get()))
    .bind(millis(lease))
    .bind(column(renewal.floor_ms))
    .bind(column(renewal.live))
    .bind(own.incarnation.as_bytes().as_slice())
    .bind(i64::try_from(MAX_NODES).expect("a few"));
    let rows: Vec<RenewedRow> = answer(within, statement.fetch_all(connection)).await?;
    let Some((sealed, numbers, addresses, sequence, fsync, full_page_writes, _set)) = rows.into_iter().next()
    else {
        return Ok(Standing::Gone);
    };
    let node = |(number, address)| epoch(number).map(|epoch| NodeAddress { epoch, address });
    let nodes = numbers.into_iter().zip(addresses).filter_map(node).collect();
    let sequence = sequence.unwrap_or(0).cast_unsigned();
    let settings = [(Setting::Fsync, fsync), (Setting::FullPageWrites, full_page_writes)];
    Ok(if sealed { Standing::Sealed } else { Standing::Unsealed(Renewed { nodes, sequence, settings }) })
}

/// Tells the other nodes that nothing which is live here, or will be, is older than this (P7).
///
/// Before anybody else is told of it, and before the floors of the others are read: of two nodes one has read what the other published. Either
/// a node that starts sees this floor and begins nothing below it, whatever its clock says; or its own, which it has
/// published with its epoch, is among those that are read here. Not forced by itself.
pub(super) async fn publish_floor(
    executor: impl PgExecutor<'_>,
    own: &Own,
    floor_ms: u64,
) -> Result<(), Failure> {
    let statement = sqlx::query(
        "WITH published AS ( \
             UPDATE lockstep_log.leases SET floor_ms = $2 WHERE epoch = $1 AND floor_ms < $2 \
         ) \
         SELECT set_config('synchronous_commit', 'off', true)",
    )
    .bind(i64::from(own.epoch.get()))
    .bind(rows::column_ms(floor_ms));
    answer(PATIENCE, statement.execute(executor)).await.map(drop)
}

/// Lets the own lease run out now, so that a peer takes over at its next look. Not forced, so that it does not wait for a standby that is
/// away: a lease that is there again after a crash of the server only lasts longer.
pub(super) async fn release(connection: &mut PgConnection, own: &Own) -> Result<(), Failure> {
    let statement = sqlx::query(
        "WITH released AS ( \
             UPDATE lockstep_log.leases SET expires_at = '-infinity', live = 0 WHERE epoch = $1 \
         ) \
         SELECT set_config('synchronous_commit', 'off', true)",
    )
    .bind(i64::from(own.epoch.get()));
    answer(PATIENCE, statement.execute(connection)).await.map(drop)
}

/// An epoch that may be sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expired {
    pub(super) epoch: Epoch,
    session: String,
}

/// Unsealed epochs of others whose lease was given up, with `run_out` those whose lease has run out, and with `succeeds` those that
/// an earlier life of this node left; the oldest first.
pub(super) async fn expired(
    connection: &mut PgConnection,
    own: &Own,
    run_out: bool,
    succeeds: Option<&str>,
) -> Result<Vec<Expired>, Failure> {
    let statement = sqlx::query_as(
        "SELECT e.number, e.incarnation FROM lockstep_log.epochs AS e \
         JOIN lockstep_log.leases AS l ON l.epoch = e.number \
         WHERE NOT e.sealed AND e.number <> $1 \
             AND (l.expires_at = '-infinity' OR ($3 AND l.expires_at <= clock_timestamp()) \
                 OR (l.node = $2 AND e.number < $1)) ORDER BY e.number",
    )
    .bind(i64::from(own.epoch.get()))
    .bind(succeeds)
    .bind(run_out);
    let rows: Vec<(i64, Vec<u8>)> = answer(PATIENCE, statement.fetch_all(connection)).await?;
    let expired = |(number, incarnation): (i64, Vec<u8>)| {
        epoch(number).map(|epoch| Expired { epoch, session: session_name(epoch, &incarnation) })
    };
    Ok(rows.into_iter().filter_map(expired).collect())
}

/// What came of trying to seal an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sealed {
    /// It is sealed, and this node owns it and all that it had adopted.
    Now,
    /// Another node was faster.
    Before,
    /// The own epoch is sealed: nothing may be adopted under it.
    OwnIsOver,
}

/// Seals an epoch and adopts it, with all that it had adopted, in one transaction (P5). The rows are locked in the order of
/// their numbers, so that two nodes that seal each other do not wait for each other. After a refusal for a lock, the connection
/// may be used again.
pub(super) async fn seal(
    connection: &mut PgConnection,
    own: &Own,
    sealed: &Expired,
) -> Result<Sealed, Failure> {
    let result = try_to_seal(connection, own, sealed.epoch).await;
    fail::fail_point!("log-shared-seal-before-commit");
    let end = match &result {
        Ok(Sealed::Now) => "COMMIT",
        Ok(Sealed::Before | Sealed::OwnIsOver) | Err(_) => "ROLLBACK",
    };
    run(connection, PATIENCE, end).await?;
    result
}

async fn try_to_seal(connection: &mut PgConnection, own: &Own, epoch: Epoch) -> Result<Sealed, Failure> {
    run(connection, PATIENCE, "BEGIN; SET LOCAL lock_timeout = '1s'").await?;
    if own.epoch < epoch && !hold_unsealed(connection, own).await? {
        return Ok(Sealed::OwnIsOver);
    }
    let (number, owner) = (i64::from(epoch.get()), i64::from(own.epoch.get()));
    let statement = sqlx::query(
        "UPDATE lockstep_log.epochs SET sealed = true, owner = $2 WHERE number = $1 AND NOT sealed",
    )
    .bind(number)
    .bind(owner);
    let done = answer(PATIENCE, statement.execute(&mut *connection)).await?;
    if done.rows_affected() != 1 {
        return Ok(Sealed::Before);
    }
    if own.epoch > epoch && !hold_unsealed(connection, own).await? {
        return Ok(Sealed::OwnIsOver);
    }
    let inherit =
        sqlx::query("UPDATE lockstep_log.epochs SET owner = $2 WHERE owner = $1").bind(number).bind(owner);
    answer(PATIENCE, inherit.execute(connection)).await?;
    Ok(Sealed::Now)
}

/// As [`hold`], of whatever generation: a seal decides nothing that an earlier generation could contradict.
async fn hold_unsealed(connection: &mut PgConnection, own: &Own) -> Result<bool, Failure> {
    let statement = sqlx::query_scalar(
        "SELECT number FROM lockstep_log.epochs WHERE number = $1 AND incarnation = $2 AND NOT sealed FOR SHARE",
    )
    .bind(i64::from(own.epoch.get()))
    .bind(own.incarnation.as_bytes().as_slice());
    let rows: Vec<i64> = answer(PATIENCE, statement.fetch_all(connection)).await?;
    Ok(!rows.is_empty())
}

/// The server's process of this connection.
pub(super) async fn process(connection: &mut PgConnection) -> Result<i32, Failure> {
    let statement = sqlx::query_scalar("SELECT pg_backend_pid()");
    let pids: Vec<i32> = answer(PATIENCE, statement.fetch_all(connection)).await?;
    Ok(pids.into_iter().next().expect("a SELECT without FROM has one row"))
}

/// Ends the sessions that keep `sealer`, a server's process, from sealing an epoch: a node that was stopped in the middle of a statement
/// would hold a row for ever (P5). Those are the sessions of that epoch, and whichever of another node holds the row: one that was
/// stopped while it was sealing. What such a session had not committed is undone by the server. How many were ended.
///
/// Those that wait for a standby are left alone: they have committed, and end as soon as it is there, for which the seal waits too.
pub(super) async fn end_sessions(
    connection: &mut PgConnection,
    sealed: &Expired,
    sealer: i32,
) -> Result<u64, Failure> {
    let statement = sqlx::query_scalar(
        "WITH holders AS MATERIALIZED (SELECT pg_blocking_pids($2) AS pids) \
         SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a, holders \
         WHERE a.datname = current_database() AND cardinality(holders.pids) > 0 \
             AND a.wait_event IS DISTINCT FROM 'SyncRep' \
             AND (a.application_name = $1 OR starts_with(a.application_name, $1 || ' ') \
                 OR (a.pid = ANY (holders.pids) AND a.wait_event_type IS DISTINCT FROM 'Lock' \
                     AND starts_with(a.application_name, 'lockstep epoch ')))",
    )
    .bind(&sealed.session)
    .bind(sealer);
    let ended: Vec<bool> = answer(PATIENCE, statement.fetch_all(connection)).await?;
    Ok(ended.len() as u64)
}

/// The sealed epochs that this node has adopted.
pub(super) async fn owned(connection: &mut PgConnection, own: &Own) -> Result<Vec<Epoch>, Failure> {
    let statement =
        sqlx::query_scalar("SELECT number FROM lockstep_log.epochs WHERE owner = $1 ORDER BY number")
            .bind(i64::from(own.epoch.get()));
    let numbers: Vec<i64> = answer(PATIENCE, statement.fetch_all(connection)).await?;
    Ok(numbers.into_iter().filter_map(epoch).collect())
}
