//! Faults that befall the world as a whole: drawn with each transaction, they come a little later. And people, who are not faults, but act.

use lockstep_coordinator::engine::input::Input;

use super::faults::Kind;
use super::happening::Happening;
use super::history::{Local, number_of};
use super::node::ReplyTo;
use super::queue::Time;
use super::trace::say;
use super::world::{MILLI, SECOND, World};

/// What befalls a world.
const CALAMITIES: [Kind; 10] = [
    Kind::Partition,
    Kind::SessionBreak,
    Kind::CoordinatorCrash,
    Kind::PowerLoss,
    Kind::ParticipantCrash,
    Kind::ClockJump,
    Kind::StoreRestart,
    Kind::Failover,
    Kind::Hand,
    Kind::OperatorRollback,
];
/// How far a clock jumps at most, in milliseconds; and one in eight of those that do.
const LONGEST_JUMP_MS: u64 = 20_000;
const LONGEST_RARE_JUMP_MS: u64 = 180_000;
/// Within which time after a branch is prepared a hand is laid on one: most are in doubt for milliseconds only.
const HAND_COMES_WITHIN: Time = 8 * MILLI;

impl World {
    /// Draws what is to befall the world around this transaction.
    pub(super) fn draw_calamities(&mut self) {
        for kind in CALAMITIES {
            if self.faults.draws(kind, &mut self.rng) {
                let after = self.rng.below(100 * MILLI);
                self.plan(after, Happening::Befalls(kind));
            }
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds strike at their occasions")]
    pub(super) fn befalls(&mut self, kind: Kind) {
        if self.faults.are_over() {
            return;
        }
        match kind {
            Kind::Partition => self.cut_off(),
            Kind::SessionBreak => self.session_breaks(),
            Kind::CoordinatorCrash | Kind::PowerLoss => {
                if self.node.is_some() {
                    self.faults.count(kind);
                    self.kill_node(kind == Kind::PowerLoss);
                }
            }
            Kind::ParticipantCrash => {
                let instance = self.rng.index(self.instances.len());
                if self.instances[instance].session().is_some() {
                    self.faults.count(kind);
                    self.kill_instance(instance);
                }
            }
            Kind::ClockJump => self.clock_jumps(),
            Kind::StoreRestart => {
                let store = self.rng.index(self.stores.len());
                self.faults.count(kind);
                say!(self, None, "store {store} restarts");
                self.stores[store].restart(&mut self.history);
            }
            Kind::Failover => self.failover(),
            Kind::Hand => self.hand_is_laid(),
            Kind::OperatorRollback => self.operator_rolls_back(),
            other => unreachable!("{} strikes at its occasions", other.name()),
        }
    }

    fn cut_off(&mut self) {
        let instance = self.rng.index(self.instances.len());
        let lasts = self.rng.between(50 * MILLI, 8 * SECOND);
        self.faults.count(Kind::Partition);
        say!(self, None, "instance {instance} is cut off for {} ms", lasts / MILLI);
        self.instances[instance].cut_until = self.now + lasts;
        if let Some(link) = self.instances[instance].link()
            && lasts > SECOND
        {
            self.break_link(link);
        }
    }

    fn session_breaks(&mut self) {
        let instance = self.rng.index(self.instances.len());
        if let Some(link) = self.instances[instance].link() {
            self.faults.count(Kind::SessionBreak);
            self.break_link(link);
        }
    }

    fn clock_jumps(&mut self) {
        if self.skew_ms != 0 {
            say!(self, None, "the coordinator's clock is set right");
            self.skew_ms = 0;
            return;
        }
        self.faults.count(Kind::ClockJump);
        let wrong_for = self.rng.below(3 * SECOND);
        self.plan(wrong_for, Happening::Befalls(Kind::ClockJump));
        let longest = if self.rng.below(8) == 0 { LONGEST_RARE_JUMP_MS } else { LONGEST_JUMP_MS };
        let by = i64::try_from(self.rng.below(longest)).expect("a few minutes");
        self.skew_ms = if self.rng.coin() { by } else { -by };
        say!(self, None, "the coordinator's clock is {} ms off", self.skew_ms);
    }

    /// The standby lacks less than what is retained: whose evidence was pruned is not brought back.
    fn failover(&mut self) {
        let store = self.rng.index(self.stores.len());
        let since = self.now.saturating_sub(self.style.retention / 2);
        let undone = self.stores[store].fail_over(since, &mut self.history);
        if undone > 0 {
            say!(self, None, "store {store} fails over, and {undone} commits are undone");
            self.faults.count(Kind::Failover);
            self.reached.note("commit undone by a failover");
        }
    }

    fn hand_is_laid(&mut self) {
        let store = self.rng.index(self.stores.len());
        let in_reach = self.stores[store].in_reach_of_hands(&self.history);
        if in_reach.is_empty() {
            self.hands += 1; // It waits for one.
            return;
        }
        let xid = in_reach[self.rng.index(in_reach.len())].clone();
        self.faults.count(Kind::Hand);
        let how = self.rng.below(5);
        let about = Some(number_of(&xid.gtrid));
        if how == 0 {
            say!(self, about, "{xid} is made impossible to end, by hand");
            let facts = self.history.branch(&xid);
            (facts.by_hand, facts.local) = (true, Local::Hazard);
        } else {
            let commit = how < 3;
            say!(self, about, "{xid} is {} by hand", if commit { "committed" } else { "rolled back" });
            let now = self.now;
            self.stores[store].end_by_hand(&xid, commit, now, &mut self.history);
        }
    }

    /// A branch is prepared: a hand that waits for one comes soon.
    pub(super) fn hand_may_come(&mut self) {
        if self.hands > 0 {
            self.hands -= 1;
            let after = self.rng.below(HAND_COMES_WITHIN);
            self.plan(after, Happening::Befalls(Kind::Hand));
        }
    }

    /// One of the newest transactions.
    fn operator_rolls_back(&mut self) {
        let count = self.history.transactions.len();
        if count == 0 || self.node.is_none() {
            return;
        }
        let newest = self.rng.index(count.min(4));
        let gtrid = self.history.transactions[count - 1 - newest].gtrid;
        self.faults.count(Kind::OperatorRollback);
        say!(self, Some(number_of(&gtrid)), "an operator rolls it back");
        let why = "an operator rolled it back".to_owned();
        self.give(self.shard_of(&gtrid), Input::Rollback { gtrid, why, reply: ReplyTo::Nobody });
    }
}
