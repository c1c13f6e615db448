//! Questions that need the shards first and then the log, as `engine/inquiry.rs` and `engine/handle.rs` ask them (P4): between the two time
//! passes, and whatever can happen, happens.

use lockstep::resource::Fate;
use lockstep::session::message::FromCoordinator;
use lockstep_coordinator::decision_log::PruneLimits;
use lockstep_coordinator::engine::handle::recorded_outcome;
use lockstep_coordinator::engine::input::{Answer, Input, OutcomeAnswer};
use lockstep_coordinator::engine::inquiry::BranchAnswer;
use lockstep_coordinator::protocol::event::Applied;
use lockstep_coordinator::protocol::outcome::Outcome;
use lockstep_coordinator::protocol::presumption::{Judgement, judge, late_end, prepared_fate};
use lockstep_coordinator::protocol::transaction::PreparedAnswer;
use lockstep_proto::{Gtrid, Xid};

use super::client::Told;
use super::faults::Kind;
use super::happening::Happening;
use super::history::number_of;
use super::node::{ReplyTo, told_fate};
use super::trace::say;
use super::world::{MILLI, World};

/// Rows that one pruning removes are not limited here: a world has few.
const ROWS: u32 = u32::MAX;

/// What the log is asked.
#[derive(Debug)]
pub enum Question {
    /// Branches that are prepared, and what the shards have said of them.
    Prepared(usize, Vec<(Xid, Option<PreparedAnswer>)>),
    /// Evidence of transactions that are not live.
    Evidence(usize, Vec<(Xid, Fate)>),
    /// A branch that ended so, of a transaction that is not live.
    Stray(Xid, Applied),
    /// A client's, about a transaction that is not live.
    Outcome(u32, u32, Gtrid),
}

impl World {
    pub(super) fn look_up_later(&mut self, question: Question) {
        let reads = self.rng.between(50, 2 * MILLI);
        self.plan(reads, Happening::LooksUp(self.lives, question));
    }

    pub(super) fn looks_up(&mut self, question: Question) {
        match question {
            Question::Prepared(link, xids) => self.answer_report(link, xids),
            Question::Evidence(link, rows) => self.judge_evidence(link, rows),
            Question::Stray(xid, applied) => {
                self.judge_branch(&xid, applied);
            }
            Question::Outcome(client, attempt, gtrid) => {
                let look_up = self.log.look_up(&gtrid);
                let answer = recorded_outcome(&look_up, false);
                if answer.outcome == Some(Outcome::Unknown) {
                    self.reached.note("presumption refused");
                }
                self.answer_outcome(client, attempt, gtrid, &answer);
            }
        }
    }

    // ---- participants ----

    /// What the shards say of these, where they are live.
    fn ask_live(&mut self, xids: &[Xid]) -> Vec<Option<PreparedAnswer>> {
        let mut live = vec![None; xids.len()];
        for shard in 0..self.style.shards {
            let here: Vec<usize> =
                (0..xids.len()).filter(|i| self.shard_of(&xids[*i].gtrid) == shard).collect();
            if here.is_empty() {
                continue;
            }
            let asked = here.iter().map(|index| xids[*index].clone()).collect();
            let answer = self.ask(shard, Input::AskPrepared { xids: asked, reply: ReplyTo::Here });
            let Some(Answer::Prepared(told)) = answer else { continue };
            here.into_iter().zip(told).for_each(|(index, answer)| live[index] = answer);
        }
        live
    }

    pub(super) fn report_arrives(&mut self, link: usize, xids: Vec<Xid>) {
        if xids.is_empty() {
            return;
        }
        let live = self.ask_live(&xids);
        self.look_up_later(Question::Prepared(link, xids.into_iter().zip(live).collect()));
    }

    fn answer_report(&mut self, link: usize, xids: Vec<(Xid, Option<PreparedAnswer>)>) {
        let mut answers = Vec::with_capacity(xids.len());
        for (xid, live) in xids {
            let answer = match live {
                Some(answer) => BranchAnswer::from(answer),
                None => BranchAnswer::from(prepared_fate(&self.log.look_up(&xid.gtrid), false, &xid.bqual)),
            };
            self.before_answering_prepared(&xid, answer, live.is_some());
            answers.push((xid, told_fate(answer)));
        }
        let Some(node) = &self.node else { return };
        let position = node.position;
        if self.links[link].up_at_node {
            self.send_down(link, FromCoordinator::ReportAnswer(answers, position));
        }
    }

    /// Notes what a complete listing says of a resource manager's floor (P7).
    pub(super) fn note_floor(&mut self, link: usize, oldest_held: Option<Gtrid>) {
        let Some(now) = self.live_floor() else { return };
        let name = self.stores[self.instances[self.links[link].instance].store].name.clone();
        let Some(node) = &mut self.node else { return };
        let Some(before) = node.sessions.get_mut(&link) else { return };
        if let Some(before) = before.replace(now) {
            let floor = oldest_held.map_or(before, |oldest| oldest.min(before));
            node.floors.insert(name, floor);
        }
    }

    pub(super) fn reconcile_arrives(&mut self, link: usize, rows: Vec<(Xid, Fate)>) {
        let xids: Vec<Xid> = rows.iter().map(|(xid, _)| xid.clone()).collect();
        let live = self.ask_live(&xids);
        let over = rows.into_iter().zip(live).filter(|(_, live)| live.is_none()).map(|(row, _)| row);
        let over = over.collect();
        self.look_up_later(Question::Evidence(link, over));
    }

    fn judge_evidence(&mut self, link: usize, rows: Vec<(Xid, Fate)>) {
        let mut forget = Vec::with_capacity(rows.len());
        for (xid, fate) in rows {
            let applied = match fate {
                Fate::Committed => Applied::Committed,
                Fate::RolledBack => Applied::RolledBack,
                Fate::Hazard => Applied::Hazard,
            };
            if self.judge_branch(&xid, applied) {
                forget.push(xid);
            }
        }
        if forget.is_empty() || self.strikes(Kind::LogRefused) {
            return;
        }
        // What was read has to be durable before anyone acts on it.
        self.log.forced();
        if self.node.is_some() && self.links[link].up_at_node {
            self.send_down(link, FromCoordinator::ReconcileAnswer(forget));
        }
    }

    /// Compares how a branch ended with what is recorded of its transaction. Whether its evidence may go.
    fn judge_branch(&mut self, xid: &Xid, applied: Applied) -> bool {
        let look_up = self.log.look_up(&xid.gtrid);
        match judge(&look_up, false, &xid.bqual, applied) {
            Judgement::Agrees => true,
            Judgement::Open => false,
            Judgement::Differs => {
                say!(self, Some(number_of(&xid.gtrid)), "late heuristic outcome: {xid} is {applied}");
                self.reached.note("late heuristic outcome");
                self.force_heuristic(late_end(&look_up, xid, applied, self.unix_ms()))
            }
        }
    }

    // ---- clients ----

    pub(super) fn answer_client(&mut self, client: u32, attempt: u32, answer: Answer) {
        match answer {
            Answer::Begun(gtrid) => {
                self.history.of(&gtrid).gtrid = gtrid;
                self.send_answer(client, attempt, Told::Begun(gtrid));
            }
            Answer::Full => {
                self.reached.note("as many live as may be");
                self.send_answer(client, attempt, Told::Refused);
            }
            Answer::Outcome(outcome) => {
                let gtrid = self.clients[client as usize].asked();
                self.answer_outcome(client, attempt, gtrid, &outcome);
            }
            Answer::NotLive => {
                let gtrid = self.clients[client as usize].asked();
                self.answer_from_log(client, attempt, gtrid);
            }
            Answer::Prepared(_) | Answer::Listing(_) | Answer::Acted(_) | Answer::Summary(_) => {
                unreachable!("a client asks for none of these")
            }
        }
    }

    /// In this order: what is not on its way any more is in the log.
    fn answer_from_log(&mut self, client: u32, attempt: u32, gtrid: Gtrid) {
        let Some(node) = &self.node else { return };
        let Some(end) = node.writer.end_on_its_way(&gtrid) else {
            return self.look_up_later(Question::Outcome(client, attempt, gtrid));
        };
        let (outcome, detail, branches) = (Some(end.outcome), end.detail.clone(), end.branches.len());
        self.reached.note("end told on its way to the log");
        let answer = OutcomeAnswer { outcome, detail, branches, pending: 0 };
        self.answer_outcome(client, attempt, gtrid, &answer);
    }

    fn answer_outcome(&mut self, client: u32, attempt: u32, gtrid: Gtrid, answer: &OutcomeAnswer) {
        self.before_telling_client(gtrid, answer.outcome);
        self.send_answer(client, attempt, Told::Outcome(answer.outcome));
    }

    pub(super) fn send_answer(&mut self, client: u32, attempt: u32, told: Told) {
        if self.strikes_rarely(Kind::CoordinatorCrash) {
            return self.kill_node(false);
        }
        if self.strikes(Kind::CallLost) {
            return;
        }
        let latency = self.latency();
        self.plan(latency, Happening::AnswerArrives(client, attempt, told));
    }

    // ---- maintenance ----

    pub(super) fn prunes(&mut self) {
        let Some(node) = &mut self.node else { return };
        let floors = std::mem::take(&mut node.floors);
        for (name, floor) in floors {
            if let Some(mut known) = self.log.known(&name).cloned() {
                known.floor = Some(floor);
                self.log.remember(known);
            }
        }
        let retention_ms = self.style.retention / MILLI;
        if let Some(below) = self.live_floor() {
            let ended_before_ms = self.unix_ms().saturating_sub(retention_ms);
            if self.log.prune(&PruneLimits { ended_before_ms, below, limit: ROWS }) > 0 {
                self.reached.note("log pruned");
            }
        }
        if let Some(node) = &mut self.node {
            node.horizon_ms = self.log.horizon_ms;
            let every = (self.style.retention / 10).max(100 * MILLI);
            self.plan(every, Happening::Prunes(self.lives));
        }
    }
}
