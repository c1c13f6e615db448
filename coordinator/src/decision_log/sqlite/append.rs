//! Writing decisions and ends: what is there is read first, then one statement writes whatever is new.
//!
//! Reading first costs one look per record on pages that are in memory, and buys three things: a repeated write changes
//! nothing, a decision is never replaced by another one (stability), and an end can be written relative to its decision.
//! No one writes in between: the transaction has the write lock.

use std::collections::{BTreeMap, HashMap};

use lockstep_proto::Gtrid;
use lockstep_proto::museum::mutated;
use sqlx::SqliteConnection;

use super::hex::{Hex, json};
use super::transaction::Fault;
use crate::decision_log::ends::{Ended, can_end, how_ended, says_more};
use crate::decision_log::rows;
use crate::protocol::record::{DecisionRecord, EndRecord};

/// What the log has of a transaction before the write.
struct Stored {
    decision: Option<DecisionRecord>,
    ended: Option<Ended>,
}

/// What a row will have that it has not yet.
#[derive(Default)]
struct Change {
    decision: Option<Vec<u8>>,
    end: Option<(i64, Vec<u8>, Ended)>,
}

/// Writes decisions, then ends, inside an open transaction. Bytes of the records that were new.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    decisions: &[DecisionRecord],
    ends: &[EndRecord],
) -> Result<u64, Fault> {
    let decided = decisions.iter().map(|decision| decision.gtrid);
    let ended = ends.iter().map(|end| end.gtrid);
    let stored = stored(connection, decided.chain(ended)).await?;
    let changes = plan(stored, decisions, ends)?;
    if changes.is_empty() {
        return Ok(0);
    }
    let rows = json(changes.iter().map(|(gtrid, change)| {
        let (ended_ms, ending) = change.end.as_ref().map(|(ms, record, _)| (*ms, Hex::of(record))).unzip();
        let heuristic =
            change.end.as_ref().is_some_and(|(.., how)| *how == Ended::Heuristically).then_some(1);
        (Hex::of(gtrid), change.decision.as_ref().map(Hex::of), ended_ms, ending, heuristic)
    }));
    let bytes = rows.len() / 2;
    let done = sqlx::query(
        "INSERT INTO transactions (gtrid, decision, ended_ms, ending, heuristic) \
         SELECT unhex(value ->> 0), unhex(value ->> 1), value ->> 2, unhex(value ->> 3), value ->> 4 \
         FROM json_each(?1) WHERE true \
         ON CONFLICT (gtrid) DO UPDATE SET ended_ms = excluded.ended_ms, ending = excluded.ending, \
             heuristic = excluded.heuristic",
    )
    .bind(rows)
    .execute(connection)
    .await?;
    let expected = changes.len() as u64;
    if done.rows_affected() != expected {
        let written = done.rows_affected();
        return Err(Fault::Fatal(format!("{expected} rows were to be written, and {written} were")));
    }
    Ok(bytes as u64)
}

/// Key, decision, whether it has ended, whether heuristically.
type StoredRow = (Vec<u8>, Option<Vec<u8>>, bool, bool);

async fn stored(
    connection: &mut SqliteConnection,
    gtrids: impl Iterator<Item = Gtrid>,
) -> Result<HashMap<Gtrid, Stored>, Fault> {
    let keys = json(gtrids.map(|gtrid| Hex::of(gtrid.to_bytes())));
    let found: Vec<StoredRow> = sqlx::query_as(
        "SELECT gtrid, decision, ended_ms IS NOT NULL, heuristic IS NOT NULL FROM transactions \
         WHERE gtrid IN (SELECT unhex(value) FROM json_each(?1))",
    )
    .bind(keys)
    .fetch_all(connection)
    .await?;
    let mut stored = HashMap::with_capacity(found.len());
    for (key, decision, ended, heuristic) in found {
        let gtrid = Gtrid::from_bytes(&key).expect("a row that was found by a gtrid's bytes has them");
        let decision = decision.map(|record| rows::decode_decision(gtrid, &record)).transpose();
        let decision = decision.map_err(|error| {
            Fault::Fatal(format!("the decision log is damaged: transaction {gtrid}: {error}"))
        })?;
        let how = if heuristic { Ended::Heuristically } else { Ended::AsDecided };
        stored.insert(gtrid, Stored { decision, ended: ended.then_some(how) });
    }
    Ok(stored)
}

/// What is new, in the order of the keys: neighbours lie on one page.
fn plan(
    mut stored: HashMap<Gtrid, Stored>,
    decisions: &[DecisionRecord],
    ends: &[EndRecord],
) -> Result<BTreeMap<[u8; Gtrid::BYTES], Change>, Fault> {
    let mut changes = BTreeMap::<_, Change>::new();
    for decision in decisions {
        let gtrid = decision.gtrid;
        match stored.get(&gtrid) {
            Some(Stored { decision: Some(same), .. }) if same == decision => continue,
            Some(_) if mutated("AC2-a-decision-is-replaced") => {}
            Some(_) => return Err(contradiction(gtrid, "a decision, where the log has another, or an end")),
            None => {}
        }
        changes.entry(gtrid.to_bytes()).or_default().decision = Some(rows::encode_decision(decision));
        stored.insert(gtrid, Stored { decision: Some(decision.clone()), ended: None });
    }
    for end in ends {
        let before = stored.entry(end.gtrid).or_insert(Stored { decision: None, ended: None });
        let how = how_ended(end.outcome);
        if !says_more(before.ended, how) {
            continue;
        }
        let record = rows::encode_end(end, before.decision.as_ref());
        let record = record.filter(|_| can_end(before.decision.as_ref(), end));
        let record = record.ok_or_else(|| {
            contradiction(end.gtrid, "an end with an outcome that does not follow from the decision")
        })?;
        let change = changes.entry(end.gtrid.to_bytes()).or_default();
        change.end = Some((rows::column_ms(end.ended_ms), record, how));
        before.ended = Some(how);
    }
    Ok(changes)
}

/// The engine asks for something that the log rules out: one of the two is wrong about the transaction. Refusing would let
/// the engine conclude that there is no decision.
fn contradiction(gtrid: Gtrid, what: &str) -> Fault {
    Fault::Fatal(format!("transaction {gtrid} was to get {what}"))
}
