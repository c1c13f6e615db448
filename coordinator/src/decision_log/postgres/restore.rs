//! `lockstep restore` on a log in PostgreSQL: one transaction, while no node runs.

use std::time::Duration;

use lockstep_proto::{ClusterId, Epoch, Incarnation};
use sqlx::PgConnection;

use super::audit;
use super::connect::{Failure, answer, run};
use super::durability::Accepted;
use super::open::{Opening, known_cluster};
use super::schema;
use crate::decision_log::restore::{BEHIND, Marks, Order, RESTORED, Restoration, RestoreError, Step};
use crate::decision_log::rows;

/// How long a statement may take. Longer than any wait for a lock.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the epoch of the restore is called: nobody's, and given up as soon as it is there.
const NODE: &str = "lockstep restore";

/// Carries an operator's order out, or only looks what it would do.
///
/// # Errors
/// [`RestoreError`]: nothing was done.
pub async fn restore(url: &str, accepted: Accepted, order: &Order) -> Result<Restoration, RestoreError> {
    let opening = Opening::new(url, accepted)?;
    let mut connection = opening.connect().await?;
    schema::check(&mut connection).await.map_err(|error| opening.schema(error))?;
    let failed = |failure: Failure| RestoreError::from(opening.failed("restore", &failure));
    let cluster = known_cluster(&mut connection).await.map_err(|error| opening.failed("read", &error))?;
    let orders = order.is_for(cluster)?;
    run(
        &mut connection,
        PATIENCE,
        "BEGIN; SET LOCAL lock_timeout = '10s'; LOCK lockstep_log.epochs IN EXCLUSIVE MODE",
    )
    .await
    .map_err(failed)?;
    let done = carry_out(&mut connection, cluster, order, orders).await;
    // A connection that is dropped undoes it as well.
    let end = if orders && done.is_ok() { "COMMIT" } else { "ROLLBACK" };
    run(&mut connection, PATIENCE, end).await.map_err(failed)?;
    done.map_err(|undone| match undone {
        Undone::Refused(refused) => refused,
        Undone::Failed(failure) => failed(failure),
        Undone::Damaged(why) => opening.failed("read", &why).into(),
    })
}

enum Undone {
    Refused(RestoreError),
    Failed(Failure),
    Damaged(rows::RowError),
}

impl From<RestoreError> for Undone {
    fn from(error: RestoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<Failure> for Undone {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

async fn carry_out(
    connection: &mut PgConnection,
    cluster: ClusterId,
    order: &Order,
    orders: bool,
) -> Result<Restoration, Undone> {
    let facts = sqlx::query_as(
        "SELECT (SELECT max(number) FROM lockstep_log.epochs) AS newest, \
             (SELECT count(*) FROM lockstep_log.transactions WHERE ended_ms IS NULL) AS unfinished, \
             (SELECT record FROM lockstep_log.marks WHERE name = $1) AS behind, \
             (SELECT record FROM lockstep_log.marks WHERE name = $2) AS restored, \
             (SELECT string_agg(DISTINCT l.node, ', ') FROM lockstep_log.epochs AS e \
                 JOIN lockstep_log.leases AS l ON l.epoch = e.number \
                 WHERE NOT e.sealed AND l.expires_at > clock_timestamp()) AS nodes",
    )
    .bind(BEHIND)
    .bind(RESTORED);
    let facts: Vec<Facts> = answer(PATIENCE, facts.fetch_all(&mut *connection)).await?;
    let facts = facts.into_iter().next().expect("a SELECT without FROM has one row");
    if let (Step::Restore, Some(nodes)) = (order.step, &facts.nodes) {
        return Err(RestoreError::NodesRunning(nodes.clone()).into());
    }
    let marks = Marks::decode(facts.behind.as_deref(), facts.restored.as_deref()).map_err(Undone::Damaged)?;
    let newest = facts.newest.and_then(super::epochs::epoch).map_or(0, Epoch::get);
    let (record, below) = marks.carry_out(order, newest)?;
    if orders {
        let mark = sqlx::query(
            "INSERT INTO lockstep_log.marks (name, record) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET record = excluded.record",
        )
        .bind(RESTORED)
        .bind(record);
        answer(PATIENCE, mark.execute(&mut *connection)).await?;
        audit::record(connection, &order.operation(cluster, &marks, newest, below)).await?;
        if order.step == Step::Restore {
            begin_anew(connection, below).await?;
        }
    }
    Ok(Restoration {
        cluster,
        below,
        unfinished: facts.unfinished.cast_unsigned(),
        was_behind: marks.is_behind(),
        dry_run: !orders,
    })
}

#[derive(sqlx::FromRow)]
struct Facts {
    newest: Option<i64>,
    unfinished: i64,
    behind: Option<Vec<u8>>,
    restored: Option<Vec<u8>>,
    nodes: Option<String>,
}

/// Takes the epoch of the restore, which has sealed and adopted every other one and has given its lease up: the next node seals it, and
/// delivers what all of them have left (P5).
async fn begin_anew(connection: &mut PgConnection, epoch: Epoch) -> Result<(), Failure> {
    let number = i64::from(epoch.get());
    let incarnation = Incarnation::from_bytes(rand::random());
    let take = sqlx::query(
        "WITH taken AS (INSERT INTO lockstep_log.epochs (number, incarnation) VALUES ($1, $2) \
         ), positioned AS (INSERT INTO lockstep_log.positions (epoch) VALUES ($1) \
         ), barred AS (INSERT INTO lockstep_log.barriers (epoch) VALUES ($1) \
         ) \
         INSERT INTO lockstep_log.leases (epoch, node, expires_at, floor_ms) VALUES ($1, $3, '-infinity', 0)",
    )
    .bind(number)
    .bind(incarnation.as_bytes().as_slice())
    .bind(NODE);
    answer(PATIENCE, take.execute(&mut *connection)).await?;
    let adopt = sqlx::query("UPDATE lockstep_log.epochs SET sealed = true, owner = $1 WHERE number <> $1");
    answer(PATIENCE, adopt.bind(number).execute(&mut *connection)).await?;
    let settle = sqlx::query("DELETE FROM lockstep_log.marks WHERE name = $1").bind(BEHIND);
    answer(PATIENCE, settle.execute(connection)).await?;
    Ok(())
}
