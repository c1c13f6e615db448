//! Who shares a log: for people, read from the log itself, whether or not anybody runs.

use lockstep_proto::Epoch;
use sqlx::PgConnection;

use super::connect::{Failure, answer};
use super::epochs::epoch;
use super::read::PATIENCE;

/// How an epoch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// Its node keeps its lease.
    Live,
    /// Its lease has run out: another node is about to take over.
    Expired,
    /// It is over.
    Sealed,
}

/// One life of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What the node calls itself.
    pub node: String,
    /// Where others reach it; empty if it has not said.
    pub address: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// How it stands.
    pub state: NodeState,
    /// How long its lease still lasts, by the server's clock; 0 if it has run out.
    pub lease_ms: u64,
    /// Transactions that were live there when it last renewed its lease.
    pub live: u64,
    /// Its decisions without an end.
    pub unfinished: u64,
    /// The epoch whose node delivers those, if it is sealed.
    pub adopted_by: Option<Epoch>,
}

/// Node, address, epoch, sealed, milliseconds of its lease, live, unfinished, owner.
type NodeRow = (String, String, i64, bool, i64, i64, i64, Option<i64>);

/// Every epoch that is not sealed or has left something unfinished, and with `all` every other one too; the newest first.
pub(super) async fn nodes(connection: &mut PgConnection, all: bool) -> Result<Vec<Node>, Failure> {
    let statement = sqlx::query_as(
        "SELECT * FROM ( \
             SELECT l.node, l.address, e.number, e.sealed, \
                 CASE WHEN NOT isfinite(l.expires_at) THEN 0 ELSE \
                     greatest(0, extract(epoch FROM l.expires_at - clock_timestamp()) * 1000)::bigint END AS lease_ms, \
                 l.live, (SELECT count(*) FROM lockstep_log.transactions AS t \
                     WHERE t.epoch = e.number AND t.ended_ms IS NULL) AS unfinished, e.owner \
             FROM lockstep_log.epochs AS e JOIN lockstep_log.leases AS l ON l.epoch = e.number) AS nodes \
         WHERE $1 OR NOT sealed OR unfinished > 0 ORDER BY number DESC",
    )
    .bind(all);
    let rows: Vec<NodeRow> = answer(PATIENCE, statement.fetch_all(connection)).await?;
    Ok(rows.into_iter().filter_map(node).collect())
}

fn node((node, address, number, sealed, lease_ms, live, unfinished, owner): NodeRow) -> Option<Node> {
    let state = match (sealed, lease_ms) {
        (true, _) => NodeState::Sealed,
        (false, 0) => NodeState::Expired,
        (false, _) => NodeState::Live,
    };
    Some(Node {
        node,
        address,
        epoch: epoch(number)?,
        state,
        lease_ms: if sealed { 0 } else { lease_ms.cast_unsigned() },
        live: if sealed { 0 } else { live.cast_unsigned() },
        unfinished: unfinished.cast_unsigned(),
        adopted_by: owner.and_then(epoch),
    })
}
