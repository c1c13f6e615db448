//! Every state that a transaction of up to four branches can reach, by every event in every order, with the promises that hold on
//! every step of the way. Events are not only those that make sense: each may come in each state.
//!
//! Sources of the promises: AC1 to AC5 of Bernstein, Hadzilacos and Goodman, chapter 7; P10 and P12; the order of
//! forced writes and messages in Mohan, Lindsay and Obermarck, section 3.

use std::collections::{BTreeSet, VecDeque};

use lockstep_proto::Bqual;

use super::names::{bqual, gtrid};
use super::table::{covered, letter};
use crate::protocol::branch::BranchState;
use crate::protocol::event::{Applied, Effects, Event, Message, Reply, Vote};
use crate::protocol::outcome::{BranchEnd, Heuristic, Outcome};
use crate::protocol::record::{About, DecisionKind, LogWrite};
use crate::protocol::transaction::{State, Transaction};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What is told apart: the state with its outcome, and each branch's state. Not the reasons, which only people read.
type Key = (&'static str, String, Vec<&'static str>);

fn key(transaction: &Transaction) -> Key {
    let outcome = match transaction.state() {
        State::Ended(outcome, _) => format!("{outcome:?}"),
        State::Recording(record) => format!("{:?}", record.outcome),
        State::Active
        | State::RollbackOnly(_)
        | State::Preparing
        | State::Deciding(_)
        | State::DecisionUnknown(_)
        | State::Committing
        | State::CommittingOnePhase
        | State::RollingBack(_) => String::new(),
    };
    let branches = transaction.branches().iter().map(|branch| letter(branch.state)).collect();
    (transaction.state().name(), outcome, branches)
}

fn events() -> Vec<Event> {
    let why = || "why".to_owned();
    let mut events = vec![
        Event::CommitRequested,
        Event::RollbackRequested(why()),
        Event::DeadlinePassed,
        Event::LogForced,
        Event::LogRefused(why()),
        Event::LogUnknown(why()),
        Event::LogFound,
        Event::LogAbsent,
        Event::RecordAgain,
    ];
    for bqual in NAMES.map(bqual) {
        let branch = || bqual.clone();
        events.push(Event::Enlist(branch()));
        events.push(Event::BranchLost(branch()));
        events.push(Event::Abandoned(branch()));
        events.extend(
            [Vote::Commit, Vote::Rollback(why()), Vote::ReadOnly, Vote::Hazard(why())]
                .map(|vote| Event::Voted(branch(), vote)),
        );
        events.extend(
            [Applied::Committed, Applied::RolledBack, Applied::Hazard]
                .map(|applied| Event::Acknowledged(branch(), applied)),
        );
    }
    events
}

struct Step<'a> {
    before: &'a Transaction,
    event: &'a Event,
    after: &'a Transaction,
    effects: &'a Effects,
}

#[test]
fn every_reachable_state() {
    let start = Transaction::new(gtrid(1), About::default());
    let mut seen = BTreeSet::from([key(&start)]);
    let mut edges = BTreeSet::new();
    let mut reached = BTreeSet::new();
    let mut waiting = VecDeque::from([start]);
    let events = events();
    while let Some(before) = waiting.pop_front() {
        can_end(&before);
        recovers(&before);
        reached.insert((before.state().name(), None));
        reached.extend(before.branches().iter().map(|b| (before.state().name(), Some(letter(b.state)))));
        for event in &events {
            let mut after = before.clone();
            let Ok(effects) = after.step(event.clone(), 1) else {
                assert_eq!(before, after, "a rejected event changes nothing");
                continue;
            };
            let step = Step { before: &before, event, after: &after, effects: &effects };
            step.check();
            edges.insert((before.state().name(), after.state().name()));
            if seen.insert(key(&after)) {
                waiting.push_back(after);
            }
        }
    }
    assert!(seen.len() > 5_000, "only {} states were reached: the walk has gone wrong", seen.len());
    assert_eq!(reached, covered(), "table.txt covers what can be reached, and nothing else");
    assert_eq!(edges, all_edges(), "the ways from state to state are those that the essay draws");
}

/// The ways from state to state, as `protocol/mod.rs` draws them. From any state an event may lead to itself.
fn all_edges() -> BTreeSet<(&'static str, &'static str)> {
    let table: [(&str, &[&str]); 12] = [
        (
            "active",
            &["rollback only", "preparing", "deciding", "deciding in one phase", "rolling back", "ended"],
        ),
        ("rollback only", &["rolling back", "recording a heuristic outcome", "ended"]),
        ("preparing", &["deciding", "rolling back", "recording a heuristic outcome", "ended"]),
        ("deciding", &["committing", "decision unknown", "rolling back"]),
        (
            "deciding in one phase",
            &[
                "committing in one phase",
                "intent unknown",
                "rolling back",
                "recording a heuristic outcome",
                "ended",
            ],
        ),
        ("decision unknown", &["committing", "rolling back"]),
        (
            "intent unknown",
            &["committing in one phase", "rolling back", "recording a heuristic outcome", "ended"],
        ),
        ("committing", &["recording a heuristic outcome", "ended"]),
        ("committing in one phase", &["recording a heuristic outcome", "ended"]),
        ("rolling back", &["recording a heuristic outcome", "ended"]),
        ("recording a heuristic outcome", &["ended"]),
        ("ended", &[]),
    ];
    let mut edges = BTreeSet::new();
    for (from, to) in table {
        edges.insert((from, from));
        edges.extend(to.iter().map(|to| (from, *to)));
    }
    edges
}

impl Step<'_> {
    fn check(&self) {
        self.messages_follow_the_decision();
        self.decisions_need_all_votes();
        self.nothing_leaves_while_the_log_writes();
        self.outcomes_are_what_branches_did();
        self.replies_are_true();
        self.ends_are_final();
    }

    fn state_of(&self, transaction: &Transaction, bqual: &Bqual) -> Option<BranchState> {
        transaction.branches().iter().find(|branch| branch.bqual == *bqual).map(|branch| branch.state)
    }

    /// Whether the log has just said that the record is there.
    fn is_durable_now(&self, kind: DecisionKind) -> bool {
        match (self.before.state(), self.event) {
            (State::Deciding(written), Event::LogForced)
            | (State::DecisionUnknown(written), Event::LogFound) => *written == kind,
            _ => false,
        }
    }

    /// `durable_before_sent`: a commit leaves with the step that learns that its record is durable, and goes only to who voted
    /// commit. A rollback goes to nobody who was told to commit.
    fn messages_follow_the_decision(&self) {
        for (bqual, message) in &self.effects.messages {
            let before = self.state_of(self.before, bqual);
            match message {
                Message::Commit => {
                    assert!(self.is_durable_now(DecisionKind::Commit), "{self}");
                    assert_eq!(before, Some(BranchState::Prepared), "{self}");
                }
                Message::CommitOnePhase => {
                    assert!(self.is_durable_now(DecisionKind::OnePhaseIntent), "{self}");
                    assert_eq!(self.effects.messages.len(), 1, "{self}");
                }
                Message::Rollback => {
                    assert!(self.is_rolling_back(), "{self}");
                    assert!(!matches!(before, None | Some(BranchState::Ended(_))), "{self}");
                }
                Message::Prepare => assert_eq!(before, Some(BranchState::Enlisted), "{self}"),
                Message::Enlisted => assert_eq!(before, None, "{self}"),
                Message::EnlistRefused(_) => {}
            }
        }
    }

    fn is_rolling_back(&self) -> bool {
        matches!(self.after.state(), State::RollbackOnly(_) | State::RollingBack(_))
    }

    /// `commit_needs_all_votes` (AC3), and P12: a lost branch is not a vote. In one phase nobody else may have voted commit.
    fn decisions_need_all_votes(&self) {
        let Some(LogWrite::ForceDecision(decision)) = &self.effects.log else { return };
        let wanted = match decision.kind {
            DecisionKind::Commit => BranchState::Prepared,
            DecisionKind::OnePhaseIntent => BranchState::Enlisted,
        };
        let mut named = 0;
        for branch in self.after.branches() {
            let is_named = decision.branches.contains(&branch.bqual);
            let read_only = branch.state == BranchState::Ended(BranchEnd::ReadOnly);
            assert!(read_only != is_named && (read_only || branch.state == wanted), "{self}");
            named += usize::from(is_named);
        }
        assert!(named == decision.branches.len() && named > 0, "{self}");
        assert!(decision.kind == DecisionKind::Commit || named == 1, "{self}");
    }

    /// Nothing but the log's answer makes anything leave while a record is on its way. Refusing a new branch tells nothing.
    fn nothing_leaves_while_the_log_writes(&self) {
        let writing = matches!(
            self.before.state(),
            State::Deciding(_) | State::DecisionUnknown(_) | State::Recording(_)
        );
        let log_answered = matches!(
            self.event,
            Event::LogForced | Event::LogRefused(_) | Event::LogFound | Event::LogAbsent | Event::RecordAgain
        );
        if writing && !log_answered {
            let refusals =
                self.effects.messages.iter().all(|(_, message)| matches!(message, Message::EnlistRefused(_)));
            assert!(refusals && self.effects.reply.is_none() && self.effects.log.is_none(), "{self}");
        }
    }

    /// `agreement` (AC1) and `heuristics_recorded`: an outcome without a heuristic is one that no branch contradicts.
    fn outcomes_are_what_branches_did(&self) {
        let outcome = match self.after.state() {
            State::Ended(outcome, _) => *outcome,
            State::Recording(record) => record.outcome,
            State::Active
            | State::RollbackOnly(_)
            | State::Preparing
            | State::Deciding(_)
            | State::DecisionUnknown(_)
            | State::Committing
            | State::CommittingOnePhase
            | State::RollingBack(_) => return,
        };
        let did = |end| self.after.branches().iter().any(|branch| branch.ended() == Some(end));
        let committed = did(BranchEnd::Committed);
        let rolled_back = did(BranchEnd::RolledBack) || did(BranchEnd::Lost);
        let hazard = did(BranchEnd::Hazard) || did(BranchEnd::Abandoned);
        let expected = match outcome {
            Outcome::Committed => !rolled_back && !hazard && committed,
            Outcome::RolledBack => !committed && !hazard,
            Outcome::NothingToCommit => !committed && !rolled_back && !hazard,
            Outcome::Heuristic(Heuristic::Mixed) => committed && rolled_back,
            Outcome::Heuristic(Heuristic::Commit) => committed && !rolled_back && !hazard,
            Outcome::Heuristic(Heuristic::Rollback) => rolled_back && !committed && !hazard,
            Outcome::Heuristic(Heuristic::Hazard) => hazard && !(committed && rolled_back),
            Outcome::Unknown => false,
        };
        assert!(expected && self.after.pending() == 0, "{self}");
    }

    /// `stability` (AC2) and `reply_matches_log`, as far as one transaction can see: committed is told only where the commit
    /// decision is durable, or the one branch has proved it.
    fn replies_are_true(&self) {
        let (outcome, why) = match &self.effects.reply {
            None => return,
            Some(Reply::Decided(outcome, why) | Reply::Ended(outcome, why)) => (*outcome, why.as_str()),
        };
        assert_eq!(
            self.after.outcome(),
            Ok((outcome, why)),
            "what is told now is told to who asks later: {self}"
        );
        let told_as = match (&self.effects.reply, outcome) {
            (Some(Reply::Ended(..)), _) => matches!(self.after.state(), State::Ended(..)),
            (_, Outcome::Committed) => matches!(self.after.state(), State::Committing),
            (_, Outcome::RolledBack) => matches!(self.after.state(), State::RollingBack(_)),
            (_, Outcome::NothingToCommit | Outcome::Heuristic(_) | Outcome::Unknown) => false,
        };
        assert!(told_as, "{self}");
        let contradicted = self.after.branches().iter().any(|branch| match branch.ended() {
            Some(BranchEnd::Hazard | BranchEnd::Abandoned) => true,
            Some(BranchEnd::Committed) => outcome == Outcome::RolledBack,
            Some(BranchEnd::RolledBack | BranchEnd::Lost) => outcome == Outcome::Committed,
            Some(BranchEnd::ReadOnly) | None => false,
        });
        let heuristic = matches!(outcome, Outcome::Heuristic(_));
        assert!(heuristic || !contradicted, "a heuristic outcome is not rounded: {self}");
    }

    /// How a branch ended changes only where it was an assumption, or was contradicted.
    fn ends_are_final(&self) {
        for branch in self.before.branches() {
            let Some(before) = branch.ended() else { continue };
            let after = self.state_of(self.after, &branch.bqual);
            let kept = after == Some(BranchState::Ended(before));
            let hazard = after == Some(BranchState::Ended(BranchEnd::Hazard));
            let assumed = matches!(before, BranchEnd::Lost | BranchEnd::Abandoned);
            let proved = assumed && matches!(after, Some(BranchState::Ended(_)));
            assert!(kept || hazard || proved, "{self}");
        }
    }
}

impl std::fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} --{}--> {}: {:?}; {:?} before, {:?} after",
            self.before.state().name(),
            self.event,
            self.after.state().name(),
            self.effects,
            self.before.branches(),
            self.after.branches()
        )
    }
}

/// `termination_after_healing` (AC5): from every state the log's answer, the deadline and an acknowledgement of each branch end it.
fn can_end(transaction: &Transaction) {
    let mut transaction = transaction.clone();
    for _ in 0..4 {
        let next = match transaction.state() {
            State::Active | State::RollbackOnly(_) | State::Preparing => vec![Event::DeadlinePassed],
            State::Deciding(_) | State::Recording(_) => vec![Event::LogForced],
            State::DecisionUnknown(_) => vec![Event::LogFound],
            State::Committing | State::CommittingOnePhase | State::RollingBack(_) => {
                let pending = transaction.branches().iter().filter(|branch| branch.ended().is_none());
                pending.map(|branch| Event::Acknowledged(branch.bqual.clone(), Applied::RolledBack)).collect()
            }
            State::Ended(..) => return,
        };
        for event in next {
            let stepped = transaction.step(event, 1);
            assert!(stepped.is_ok(), "{stepped:?}");
        }
    }
    assert!(matches!(transaction.state(), State::Ended(..)), "{transaction:?}");
}

/// A crash: what a durable decision leads to after a restart is what it leads to live, for every branch that it names.
fn recovers(transaction: &Transaction) {
    let State::Deciding(kind) = transaction.state() else { return };
    let mut live = transaction.clone();
    let branches = transaction.branches().iter();
    let named = branches.filter(|branch| branch.state != BranchState::Ended(BranchEnd::ReadOnly));
    let named: Vec<Bqual> = named.map(|branch| branch.bqual.clone()).collect();
    if named.is_empty() {
        // A read-only vote crossed the intent: live it is over, and after a restart its evidence says so.
        return;
    }
    let record = crate::protocol::record::DecisionRecord {
        gtrid: gtrid(1),
        kind: *kind,
        branches: named.clone(),
        decided_ms: 1,
        about: About::default(),
    };
    let (recovered, effects) = Transaction::recover(record, 1);
    let told = live.step(Event::LogForced, 1).unwrap();
    if let State::Ended(..) | State::Recording(_) = live.state() {
        // A rollback or hazard vote crossed the intent: after a restart the branch is asked, and says the same.
        return;
    }
    assert_eq!(recovered.state(), live.state());
    assert_eq!(effects, told);
    for bqual in &named {
        assert_eq!(recovered.answer_prepared(bqual), live.answer_prepared(bqual));
    }
}
