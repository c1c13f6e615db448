//! Answers to participants about branches whose transactions may not be live any more.
//!
//! Citus's order of recovery, and P4 and P20: the participant has listed its prepared branches; then the shards say which are live;
//! then, for the rest, the log is read, in one snapshot. What began or ended between two of these steps is
//! answered "still running", and comes again with the next listing.

use lockstep_proto::{Epoch, Gtrid, Xid};

use super::clock;
use super::handle::{Engine, EngineError, soon};
use super::input::{Answer, Input};
use super::shard::shard_of;
use super::shell::{Stopped, StrayAcknowledgement};
use crate::decision_log::{Batch, LookUp};
use crate::protocol::event::Applied;
use crate::protocol::presumption::{Judgement, PreparedFate, judge, late_end, prepared_fate};
use crate::protocol::transaction::PreparedAnswer;

/// What a participant does with a branch that it listed as prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BranchAnswer {
    /// Commit it.
    Commit,
    /// Roll it back.
    Rollback,
    /// List it again later.
    StillRunning,
    /// Leave it alone, and why: it needs an operator.
    Unknown(&'static str),
}

/// From the shard in which the transaction is live.
impl From<PreparedAnswer> for BranchAnswer {
    fn from(answer: PreparedAnswer) -> Self {
        match answer {
            PreparedAnswer::Commit => Self::Commit,
            PreparedAnswer::Rollback => Self::Rollback,
            PreparedAnswer::StillRunning => Self::StillRunning,
        }
    }
}

/// From the log, for a transaction that is not live.
impl From<PreparedFate> for BranchAnswer {
    fn from(fate: PreparedFate) -> Self {
        match fate {
            PreparedFate::Commit => Self::Commit,
            PreparedFate::Rollback => Self::Rollback,
            PreparedFate::StillRunning => Self::StillRunning,
            PreparedFate::Unknown(why) => Self::Unknown(why),
        }
    }
}

/// Answers for each of these prepared branches, in their order, that their participant may act on.
///
/// # Errors
/// [`EngineError`]: nothing is known then; the participant lists again.
pub async fn answer_prepared(engine: &Engine, xids: &[Xid]) -> Result<Vec<BranchAnswer>, EngineError> {
    let (answers, committed) = judge_prepared(engine, xids).await?;
    engine.cover(committed).await?;
    Ok(answers)
}

/// What would be answered, for people.
///
/// # Errors
/// As [`answer_prepared`].
pub async fn look_at_prepared(engine: &Engine, xids: &[Xid]) -> Result<Vec<BranchAnswer>, EngineError> {
    let (mut answers, unknown) = ask_live(engine, xids).await?;
    let gtrids = gtrids_of(xids, &unknown);
    let asked = engine.clone();
    let look_ups = soon(async move { asked.log().look_up(&gtrids).await }).await.flatten();
    for (place, index) in unknown.into_iter().enumerate() {
        answers[index] = match &look_ups {
            Ok(look_ups) => prepared_fate(&look_ups[place], engine.is_behind(), &xids[index].bqual).into(),
            Err(_away) => BranchAnswer::Unknown(LOG_AWAY),
        };
    }
    Ok(answers)
}

/// Why nothing is known of a branch whose transaction is not live here, for now.
const LOG_AWAY: &str = "the decision log cannot be asked now: whether anybody answers for it is not known";

/// The answers, and the epochs of those that the log's decisions gave.
async fn judge_prepared(
    engine: &Engine,
    xids: &[Xid],
) -> Result<(Vec<BranchAnswer>, Vec<Epoch>), EngineError> {
    let (mut answers, unknown) = ask_live(engine, xids).await?;
    let gtrids = gtrids_of(xids, &unknown);
    let look_ups = if gtrids.is_empty() { Vec::new() } else { engine.log().look_up(&gtrids).await? };
    let behind = engine.is_behind();

    let mut committed = Vec::new();
    for (index, look_up) in unknown.into_iter().zip(&look_ups) {
        answers[index] = prepared_fate(look_up, behind, &xids[index].bqual).into();
        if answers[index] == BranchAnswer::Commit {
            committed.push(xids[index].gtrid.epoch());
        }
    }
    Ok((answers, committed))
}

/// What the live transactions say, and the places of the branches that have none, where something else is still to be said.
async fn ask_live(engine: &Engine, xids: &[Xid]) -> Result<(Vec<BranchAnswer>, Vec<usize>), Stopped> {
    let live = ask_shards(engine, xids).await?;
    let unknown = (0..xids.len()).filter(|index| live[*index].is_none()).collect();
    let from_shard =
        |answer: Option<PreparedAnswer>| answer.map_or(BranchAnswer::StillRunning, BranchAnswer::from);
    Ok((live.into_iter().map(from_shard).collect(), unknown))
}

fn gtrids_of(xids: &[Xid], places: &[usize]) -> Vec<Gtrid> {
    places.iter().map(|index| xids[*index].gtrid).collect()
}

/// For each branch what its live transaction says, or `None`.
async fn ask_shards(engine: &Engine, xids: &[Xid]) -> Result<Vec<Option<PreparedAnswer>>, Stopped> {
    let count = engine.shards().count();
    let mut answers = vec![None; xids.len()];
    for (number, shard) in engine.shards().iter().enumerate() {
        let here: Vec<usize> =
            (0..xids.len()).filter(|i| shard_of(&xids[*i].gtrid, count) == number).collect();
        if here.is_empty() {
            continue;
        }
        let asked = here.iter().map(|index| xids[*index].clone()).collect();
        let answer = shard.ask(|reply| Input::AskPrepared { xids: asked, reply }).await?;
        let Answer::Prepared(told) = answer else {
            unreachable!("prepared branches are answered one by one, not with {answer:?}")
        };
        here.into_iter().zip(told).for_each(|(index, answer)| answers[index] = answer);
    }
    Ok(answers)
}

/// Judges evidence rows that are old enough to go: those returned may. A branch that ended otherwise than its transaction is put on
/// record first (P19).
///
/// # Errors
/// [`EngineError`]: no row may go then; the participant asks again.
pub async fn reconcile(engine: &Engine, rows: &[(Xid, Applied)]) -> Result<Vec<Xid>, EngineError> {
    let xids: Vec<Xid> = rows.iter().map(|(xid, _)| xid.clone()).collect();
    let live = ask_shards(engine, &xids).await?;
    let over = rows.iter().zip(live).filter(|(_, live)| live.is_none()).map(|(row, _)| row);
    let over: Vec<&(Xid, Applied)> = over.collect();
    let gtrids: Vec<Gtrid> = over.iter().map(|(xid, _)| xid.gtrid).collect();
    let look_ups = if gtrids.is_empty() { Vec::new() } else { engine.log().look_up(&gtrids).await? };

    let mut forget = Vec::new();
    for ((xid, applied), look_up) in over.into_iter().zip(&look_ups) {
        let may_go = match judge(look_up, engine.is_behind(), &xid.bqual, *applied) {
            Judgement::Agrees => true,
            Judgement::Open => false,
            Judgement::Differs => record_heuristic(engine, xid, *applied).await?,
        };
        if may_go {
            forget.push(xid.clone());
        }
    }
    if !forget.is_empty() {
        // An end that was read here may have been written lazily. Were power lost now, its decision would be delivered again, and
        // find no evidence of having been applied. A force takes along whatever was written before it.
        engine.log().force(&Batch::default()).await?;
    }
    Ok(forget)
}

/// Compares branches that ended after their transactions were forgotten with what is recorded of these.
pub async fn judge_strays(engine: Engine, mut strays: tokio::sync::mpsc::Receiver<StrayAcknowledgement>) {
    const AT_ONCE: usize = 256;
    let mut taken = Vec::with_capacity(AT_ONCE);
    while strays.recv_many(&mut taken, AT_ONCE).await > 0 {
        let gtrids: Vec<Gtrid> = taken.iter().map(|stray| stray.xid.gtrid).collect();
        match engine.log().look_up(&gtrids).await {
            Ok(look_ups) => {
                for (stray, look_up) in taken.drain(..).zip(&look_ups) {
                    judge_stray(&engine, &stray, look_up).await;
                }
            }
            Err(error) => {
                tracing::error!(%error, "late acknowledgements could not be compared with the decision log");
                taken.clear();
            }
        }
    }
}

async fn judge_stray(engine: &Engine, stray: &StrayAcknowledgement, look_up: &LookUp) {
    match judge(look_up, engine.is_behind(), &stray.xid.bqual, stray.applied) {
        // Where it is open, the branch's shard has it, or its evidence will be compared again before it goes.
        Judgement::Agrees | Judgement::Open => {}
        Judgement::Differs => {
            // Not on record yet: its evidence will be compared again before it goes.
            if let Err(error) = record_heuristic(engine, &stray.xid, stray.applied).await {
                tracing::error!(gtrid = %stray.xid.gtrid, %error, "a heuristic outcome is not on record yet");
            }
        }
    }
}

/// Puts on record that this branch ended differently from its transaction. Whether that is durable.
///
/// One at a time, each from what is on record then: the new record says what the one before it said of the other branches, and
/// two that were made from the same one would each lack what the other adds.
async fn record_heuristic(engine: &Engine, xid: &Xid, applied: Applied) -> Result<bool, EngineError> {
    let _one_at_a_time = engine.late_ends().lock().await;
    let look_ups = engine.log().look_up(&[xid.gtrid]).await?;
    let look_up = &look_ups[0];
    match judge(look_up, engine.is_behind(), &xid.bqual, applied) {
        Judgement::Agrees => return Ok(true),
        Judgement::Open => return Ok(false),
        Judgement::Differs => {}
    }
    let record = late_end(look_up, xid, applied, clock::unix_ms());
    tracing::error!(gtrid = %xid.gtrid, bqual = %xid.bqual, %applied, "heuristic outcome: {}", record.detail);
    match engine.log().force(&Batch { decisions: Vec::new(), ends: vec![record] }).await {
        Ok(_position) => {
            engine.metrics().turned_out_heuristic();
            Ok(true)
        }
        Err(error) => {
            tracing::error!(gtrid = %xid.gtrid, %error, "the heuristic outcome is not on record yet");
            Ok(false)
        }
    }
}
