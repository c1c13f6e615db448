//! What applications and operators ask of a shard: begin, end, and what is known.

use std::time::Duration;

use lockstep_proto::museum::mutated;
use lockstep_proto::{Gtrid, Xid};

use super::{Live, Shard, Timer};
use crate::engine::input::{Answer, BranchView, Now, OutcomeAnswer, Summary, TransactionView, Wait};
use crate::protocol::branch::Branch;
use crate::protocol::event::Event;
use crate::protocol::record::About;
use crate::protocol::transaction::{PreparedAnswer, State, Transaction};

impl<R> Shard<R> {
    pub(super) fn begin(&mut self, random: [u8; 10], timeout: Duration, about: About, reply: R, now: Now) {
        if self.live.len() >= self.config.max_live {
            self.reply(reply, Answer::Full);
            return;
        }
        let earliest = if mutated("P7-begins-below-the-floor") { 0 } else { self.begins_from_ms };
        self.begins_from_ms = earliest.max(now.unix_ms);
        let gtrid = Gtrid::new(self.config.epoch, self.begins_from_ms, random);
        let deadline = now.monotonic + timeout;
        let timeout_ms = u64::try_from(timeout.as_millis()).expect("a timeout is at most a day");
        let live = Live {
            deadline: Some(deadline),
            deadline_ms: now.unix_ms + timeout_ms,
            ..Live::new(Transaction::new(gtrid, about))
        };
        let earlier = self.live.insert(gtrid, live);
        assert!(earlier.is_none(), "a gtrid is never given out twice: {gtrid}");
        self.timers.insert((deadline, Timer::Deadline(gtrid)));
        self.reply(reply, Answer::Begun(gtrid));
    }

    /// A client asks for an end, and waits for the outcome.
    pub(super) fn ask(&mut self, gtrid: Gtrid, event: Event, wait: Wait, reply: R, now: Now) {
        let Some(live) = self.live.get_mut(&gtrid) else {
            self.reply(reply, Answer::NotLive);
            return;
        };
        // Until the deadline there may be no decision; from the decision on `answer` shortens it.
        let from = live.deadline.map_or(now.monotonic, |deadline| deadline.max(now.monotonic));
        live.waiters.add(wait, from + self.config.apply_wait, reply);
        self.step_own(gtrid, event, now);
        self.limit_waiters(gtrid);
    }

    fn limit_waiters(&mut self, gtrid: Gtrid) {
        let Some(live) = self.live.get_mut(&gtrid) else { return };
        if let Some(reply) = live.waiters.take_excess() {
            let answer = Answer::Outcome(known(&live.transaction));
            self.reply(reply, answer);
        }
        self.set_wait_timer(gtrid);
    }

    /// Who has waited long enough is told what is known by now.
    pub(super) fn waited_long_enough(&mut self, gtrid: Gtrid, now: Now) {
        let live = self.live_mut(gtrid);
        live.wait_until = None;
        let answer = known(&live.transaction);
        for reply in live.waiters.take_late(now.monotonic) {
            self.reply(reply, Answer::Outcome(answer.clone()));
        }
        self.set_wait_timer(gtrid);
    }

    pub(super) fn inquire(&mut self, gtrid: Gtrid, reply: R) {
        let live = self.live.get(&gtrid);
        let answer = live.map_or(Answer::NotLive, |live| Answer::Outcome(known(&live.transaction)));
        self.reply(reply, answer);
    }

    pub(super) fn ask_prepared(&mut self, xids: &[Xid], reply: R) {
        let answer = |xid: &Xid| {
            let live = self.live.get(&xid.gtrid)?;
            // Whoever holds a delivery back does not want it to arrive by this way instead.
            let held = PreparedAnswer::StillRunning;
            Some(if live.paused { held } else { live.transaction.answer_prepared(&xid.bqual) })
        };
        let answers = xids.iter().map(answer).collect();
        self.reply(reply, Answer::Prepared(answers));
    }

    // ---- for people ----

    pub(super) fn list(&mut self, limit: usize, reply: R, now: Now) {
        let newest = self.live.values().rev().take(limit);
        let views = newest.map(|live| self.view(live, now)).collect();
        self.reply(reply, Answer::Listing(views));
    }

    pub(super) fn find(&mut self, prefix: &str, limit: usize, reply: R, now: Now) {
        let begins = |gtrid: &Gtrid| {
            let text = gtrid.to_string();
            text.starts_with(prefix) || text.split_once('.').is_some_and(|(_, hex)| hex.starts_with(prefix))
        };
        let found = self.live.iter().filter(|(gtrid, _)| begins(gtrid)).take(limit);
        let views = found.map(|(_, live)| self.view(live, now)).collect();
        self.reply(reply, Answer::Listing(views));
    }

    pub(super) fn summarize(&mut self, reply: R, now: Now) {
        self.begins_from_ms = self.begins_from_ms.max(now.unix_ms);
        let undecided = self.live.values().filter(|live| is_undecided(&live.transaction)).count();
        let overdue = self.live.values().filter(|live| is_overdue(live, now)).count();
        let undelivered = self.live.len() - undecided;
        let undelivered_since_ms = self.live.values().filter_map(|live| live.undelivered_since_ms).min();
        let oldest = self.live.keys().next().copied();
        let begins_from_ms = self.begins_from_ms;
        let queued = self.deliveries.depths().map(|(name, depth)| (name.clone(), depth)).collect();
        let summary = Summary {
            live: self.live.len(),
            undecided,
            overdue,
            undelivered,
            undelivered_since_ms,
            oldest,
            begins_from_ms,
            queued,
        };
        self.reply(reply, Answer::Summary(summary));
    }

    fn view(&self, live: &Live<R>, now: Now) -> TransactionView {
        let transaction = &live.transaction;
        let gtrid = transaction.gtrid();
        let branch = |branch: &Branch| {
            let bqual = branch.bqual.clone();
            let xid = Xid { gtrid, bqual: bqual.clone() };
            let delivery = self.deliveries.view(&xid, now.monotonic).unwrap_or_default();
            BranchView { bqual, state: branch.state_name(), delivery }
        };
        TransactionView {
            gtrid,
            about: transaction.about().clone(),
            state: transaction.state().clone(),
            deadline_ms: if transaction.deadline_applies() { live.deadline_ms } else { 0 },
            decided_ms: if is_undecided(transaction) { 0 } else { live.decided_ms },
            overdue: is_overdue(live, now),
            paused: live.paused,
            branches: transaction.branches().iter().map(branch).collect(),
        }
    }
}

/// Whether the outcome is still open, or may not be told yet.
pub(super) fn is_undecided(transaction: &Transaction) -> bool {
    match transaction.state() {
        State::Active | State::Preparing | State::Deciding(_) | State::DecisionUnknown(_) => true,
        State::RollbackOnly(_)
        | State::Committing
        | State::CommittingOnePhase
        | State::RollingBack(_)
        | State::Recording(_)
        | State::Ended(..) => false,
    }
}

/// Whether its time is over though nothing is decided.
fn is_overdue<R>(live: &Live<R>, now: Now) -> bool {
    is_undecided(&live.transaction) && live.deadline.is_some_and(|deadline| deadline <= now.monotonic)
}

/// What may be told of a live transaction.
fn known(transaction: &Transaction) -> OutcomeAnswer {
    let (outcome, detail) = match transaction.outcome() {
        Ok((outcome, why)) => (Some(outcome), why),
        Err(why) => (None, why),
    };
    OutcomeAnswer {
        outcome,
        detail: detail.to_owned(),
        branches: transaction.branches().len(),
        pending: transaction.pending(),
    }
}
