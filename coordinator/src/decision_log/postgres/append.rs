//! Decisions and ends, in one statement: arrays in, one row out, one flush.
//!
//! The statement is the fence too (P1): nothing is written unless the own epoch's row, locked FOR SHARE, is unsealed and of the
//! generation that this node knows. A seal, or a new generation, waits for it, and it for them; and having waited it looks
//! at the row again.
//!
//! A decision is inserted plainly: one that is there already fails the whole statement, so that a batch is written whole or not
//! at all, and what is there is then compared ([`super::writer`]). An end may come again, and may follow from a decision only:
//! the statement checks both. Records of ends are complete by themselves, since what was decided is not read before.
//!
//! Most ends finish a decision that is on record: those are plain updates, of rows that nobody else changes. All others (no row, a row that has an
//! end, which another node may be pruning) are inserted, and what that finds is changed: for it, the server logs a lock of the row as well, and
//! goes by the order of the keys.
//!
//! The server has to find rows by their keys, however large the table was, or however few rows were unfinished, when it made its plan. So that
//! update asks for rows without an ending and not for those of the index `unfinished`, which it could otherwise walk through; and
//! [`super::connect`] sets up the sessions that write.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_proto::Gtrid;
use sqlx::PgConnection;

use super::connect::{Failure, answer};
use super::epochs::Own;
use crate::decision_log::ends::{Ended, can_end, how_ended, says_more};
use crate::decision_log::rows;
use crate::protocol::outcome::Outcome;
use crate::protocol::record::{DecisionKind, DecisionRecord, EndRecord};

/// What an end needs to find on record.
#[derive(Debug, Clone, Copy)]
enum Expects {
    /// No commit decision.
    NoCommit = 0,
    /// A decision.
    Decision = 1,
    /// Whatever it is.
    Anything = 2,
}

#[derive(Debug, Clone)]
struct End {
    ended_ms: i64,
    record: Vec<u8>,
    how: Ended,
    expects: Expects,
}

/// One transaction's part of a batch.
#[derive(Debug, Clone, Default)]
struct Change {
    decision: Option<DecisionRecord>,
    end: Option<End>,
}

/// What is to be written, in the order of the keys.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes(BTreeMap<[u8; Gtrid::BYTES], Change>);

/// The engine asked for something that no log may hold: one of the two is wrong about this transaction.
#[derive(Debug)]
pub(super) struct Contradiction(pub(super) String);

pub(super) fn contradiction(gtrid: Gtrid, what: &str) -> Contradiction {
    Contradiction(format!("transaction {gtrid} was to get {what}"))
}

/// What an end that does not follow from its decision is called.
pub(super) const MISFIT: &str = "an end with an outcome that does not follow from the decision";
/// What a second decision is called.
pub(super) const SECOND_DECISION: &str = "a decision, where the log has another, or an end";

impl Changes {
    /// Of a batch.
    pub(super) fn new(decisions: &[DecisionRecord], ends: &[EndRecord]) -> Result<Self, Contradiction> {
        let mut changes = BTreeMap::<_, Change>::new();
        for decision in decisions {
            let change = changes.entry(decision.gtrid.to_bytes()).or_default();
            match &change.decision {
                Some(same) if same != decision => return Err(contradiction(decision.gtrid, SECOND_DECISION)),
                Some(_) | None => change.decision = Some(decision.clone()),
            }
        }
        for end in ends {
            let change = changes.entry(end.gtrid.to_bytes()).or_default();
            let how = how_ended(end.outcome);
            if !says_more(change.end.as_ref().map(|end| end.how), how) {
                continue;
            }
            let expects = match (&change.decision, end.outcome) {
                (Some(decision), _) if can_end(Some(decision), end) => Expects::Anything,
                (Some(_), _) | (None, Outcome::Unknown) => return Err(contradiction(end.gtrid, MISFIT)),
                (None, Outcome::Heuristic(_)) => Expects::Anything,
                (None, Outcome::Committed) => Expects::Decision,
                (None, Outcome::RolledBack | Outcome::NothingToCommit) => Expects::NoCommit,
            };
            let record = rows::encode_end(end, None).ok_or_else(|| contradiction(end.gtrid, MISFIT))?;
            change.end = Some(End { ended_ms: rows::column_ms(end.ended_ms), record, how, expects });
        }
        Ok(Self(changes))
    }

    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose decisions are to be written.
    pub(super) fn decided(&self) -> impl Iterator<Item = &DecisionRecord> {
        self.0.values().filter_map(|change| change.decision.as_ref())
    }

    /// Without this decision, which is on record already; its end stays.
    pub(super) fn forget_decision(&mut self, gtrid: &Gtrid) {
        let key = gtrid.to_bytes();
        if let Some(change) = self.0.get_mut(&key) {
            change.decision = None;
            if change.end.is_none() {
                self.0.remove(&key);
            }
        }
    }
}

/// Rows with a decision, and perhaps an end, column by column.
#[derive(Default)]
struct Decided {
    gtrids: Vec<Vec<u8>>,
    kinds: Vec<i16>,
    decisions: Vec<Vec<u8>>,
    ended_ms: Vec<Option<i64>>,
    endings: Vec<Option<Vec<u8>>>,
    heuristic: Vec<bool>,
}

/// Rows with an end alone, column by column.
#[derive(Default)]
struct Ends {
    gtrids: Vec<Vec<u8>>,
    ended_ms: Vec<i64>,
    endings: Vec<Vec<u8>>,
    heuristic: Vec<bool>,
    expects: Vec<i16>,
}

fn columns(changes: &Changes) -> (Decided, Ends) {
    let (mut decided, mut ends) = (Decided::default(), Ends::default());
    for (key, change) in &changes.0 {
        let heuristic = change.end.as_ref().is_some_and(|end| end.how == Ended::Heuristically);
        match (&change.decision, &change.end) {
            (Some(decision), end) => {
                decided.gtrids.push(key.to_vec());
                decided.kinds.push(match decision.kind {
                    DecisionKind::Commit => 1,
                    DecisionKind::OnePhaseIntent => 2,
                });
                decided.decisions.push(rows::encode_decision(decision));
                decided.ended_ms.push(end.as_ref().map(|end| end.ended_ms));
                decided.endings.push(end.as_ref().map(|end| end.record.clone()));
                decided.heuristic.push(heuristic);
            }
            (None, Some(end)) => {
                ends.gtrids.push(key.to_vec());
                ends.ended_ms.push(end.ended_ms);
                ends.endings.push(end.record.clone());
                ends.heuristic.push(heuristic);
                ends.expects.push(end.expects as i16);
            }
            (None, None) => unreachable!("a change has a decision or an end"),
        }
    }
    (decided, ends)
}

/// What came of the statement.
#[derive(Debug)]
pub(super) enum Appended {
    /// It is written. The epoch's newest forced batch.
    Written(u64),
    /// The own epoch's row is sealed, or of another generation: nothing was written.
    Fenced,
    /// This transaction cannot have the end it was to get: nothing was written.
    Misfit(Gtrid),
}

/// Own rows that hold, the first end that does not fit, the sequence.
type AppendedRow = (i64, Option<Vec<u8>>, Option<i64>);

/// Writes all of it or nothing. `forced`: the answer comes when it is durable, and the batch counts.
pub(super) async fn append(
    connection: &mut PgConnection,
    within: Duration,
    own: &Own,
    changes: &Changes,
    forced: bool,
) -> Result<Appended, Failure> {
    let (decided, ends) = columns(changes);
    let statement = sqlx::query_as(
        "WITH own AS MATERIALIZED ( \
             SELECT number FROM lockstep_log.epochs \
             WHERE number = $1 AND generation = $2 AND NOT sealed FOR SHARE \
         ), ends AS ( \
             SELECT * FROM unnest($9::bytea[], $10::bigint[], $11::bytea[], $12::boolean[], $13::smallint[]) \
                 AS e (gtrid, ended_ms, ending, heuristic, expects) \
         ), misfits AS MATERIALIZED ( \
             SELECT e.gtrid FROM ends AS e LEFT JOIN lockstep_log.transactions AS t ON t.gtrid = e.gtrid \
             WHERE t.ended_ms IS NULL \
                 AND ((e.expects = 1 AND t.kind IS NULL) OR (e.expects = 0 AND t.kind IS NOT DISTINCT FROM 1)) \
         ), decided AS ( \
             INSERT INTO lockstep_log.transactions (gtrid, kind, decision, ended_ms, ending, heuristic) \
             SELECT d.gtrid, d.kind, d.decision, d.ended_ms, d.ending, d.heuristic \
             FROM own, unnest($3::bytea[], $4::smallint[], $5::bytea[], $6::bigint[], $7::bytea[], $8::boolean[]) \
                 AS d (gtrid, kind, decision, ended_ms, ending, heuristic) \
             WHERE NOT EXISTS (SELECT FROM misfits) \
         ), finished AS ( \
             UPDATE lockstep_log.transactions AS t \
             SET ended_ms = e.ended_ms, ending = e.ending, heuristic = e.heuristic FROM own, ends AS e \
             WHERE t.gtrid = e.gtrid AND t.ending IS NULL AND NOT EXISTS (SELECT FROM misfits) RETURNING t.gtrid \
         ), ended AS ( \
             INSERT INTO lockstep_log.transactions AS t (gtrid, ended_ms, ending, heuristic) \
             SELECT e.gtrid, e.ended_ms, e.ending, e.heuristic FROM own, ends AS e \
             WHERE NOT EXISTS (SELECT FROM misfits) AND e.gtrid NOT IN (SELECT gtrid FROM finished) ORDER BY e.gtrid \
             ON CONFLICT (gtrid) DO UPDATE SET ended_ms = excluded.ended_ms, ending = excluded.ending, \
                 heuristic = excluded.heuristic \
             WHERE t.ended_ms IS NULL OR excluded.heuristic \
         ), counted AS ( \
             UPDATE lockstep_log.positions AS p SET sequence = p.sequence + 1 FROM own \
             WHERE p.epoch = own.number AND $14 AND NOT EXISTS (SELECT FROM misfits) RETURNING p.sequence \
         ) \
         SELECT (SELECT count(*) FROM own), (SELECT gtrid FROM misfits LIMIT 1), (SELECT sequence FROM counted), \
             CASE WHEN NOT $14 THEN set_config('synchronous_commit', 'off', true) END",
    )
    .bind(i64::from(own.epoch.get()))
    .bind(own.generation)
    .bind(decided.gtrids)
    .bind(decided.kinds)
    .bind(decided.decisions)
    .bind(decided.ended_ms)
    .bind(decided.endings)
    .bind(decided.heuristic)
    .bind(ends.gtrids)
    .bind(ends.ended_ms)
    .bind(ends.endings)
    .bind(ends.heuristic)
    .bind(ends.expects)
    .bind(forced);
    let rows: Vec<AppendedRow> = answer(within, statement.fetch_all(connection)).await?;
    Ok(match rows.as_slice() {
        [(1, None, sequence)] => Appended::Written(sequence.map_or(own.sequence, i64::cast_unsigned)),
        [(1, Some(key), _)] => {
            let gtrid = Gtrid::from_bytes(key).expect("the statement returns a key that it was given");
            Appended::Misfit(gtrid)
        }
        _other => Appended::Fenced,
    })
}
