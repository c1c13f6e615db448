//! One global transaction: the transition table.
//!
//! [`Transaction::step`] matches the state first and the event inside it, one function per state. The state changes only in
//! `become_…` functions. A pair of state and event that is not listed is [`Rejected`], naming both, and changes nothing. The same
//! table runs live, in recovery ([`Transaction::recover`]) and in every test.

use lockstep_proto::{Bqual, Gtrid, limits};

use super::branch::{Branch, BranchState};
use super::event::{Applied, Effects, EnlistRefusal, Event, Message, Rejected, Reply, Vote};
use super::outcome::{BranchEnd, Heuristic, Outcome};
use super::record::{About, DecisionKind, DecisionRecord, EndRecord, LogWrite};

/// Where a transaction is on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The application works; branches enlist.
    Active,
    /// Doomed: the branches are told to roll back, and the application will learn it when it asks to commit.
    RollbackOnly(String),
    /// Commit was requested; votes are awaited.
    Preparing,
    /// The decision record is on its way to the log. From here on no deadline, no broken session and no request ends it.
    Deciding(DecisionKind),
    /// Whether the decision record is in the log is unknown. Nothing leaves until the log was read again (P2).
    DecisionUnknown(DecisionKind),
    /// The commit decision is durable; branches have still to acknowledge it.
    Committing,
    /// The intent is durable; the branch's evidence is awaited (P10).
    CommittingOnePhase,
    /// Being rolled back, and why.
    RollingBack(String),
    /// A heuristic outcome is on its way to the log; the transaction is not forgotten before it is there.
    Recording(EndRecord),
    /// Over. It may be forgotten.
    Ended(Outcome, String),
}

impl State {
    /// The state's name, for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::RollbackOnly(_) => "rollback only",
            Self::Preparing => "preparing",
            Self::Deciding(DecisionKind::Commit) => "deciding",
            Self::Deciding(DecisionKind::OnePhaseIntent) => "deciding in one phase",
            Self::DecisionUnknown(DecisionKind::Commit) => "decision unknown",
            Self::DecisionUnknown(DecisionKind::OnePhaseIntent) => "intent unknown",
            Self::Committing => "committing",
            Self::CommittingOnePhase => "committing in one phase",
            Self::RollingBack(_) => "rolling back",
            Self::Recording(_) => "recording a heuristic outcome",
            Self::Ended(..) => "ended",
        }
    }
}

/// What the protocol says to a participant that lists one of this transaction's branches as prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PreparedAnswer {
    /// The decision is commit.
    Commit,
    /// The decision is rollback.
    Rollback,
    /// There is none yet, or it may not leave yet: ask again.
    StillRunning,
}

/// One global transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    gtrid: Gtrid,
    about: About,
    state: State,
    branches: Vec<Branch>,
}

type Stepped = Result<Effects, Rejected>;

impl Transaction {
    /// A transaction that was just begun.
    #[must_use]
    pub fn new(gtrid: Gtrid, about: About) -> Self {
        Self { gtrid, about, state: State::Active, branches: Vec::new() }
    }

    /// A transaction whose decision was found in the log after a restart, and what has to be done for it. It takes the
    /// way that it would have taken live: its record has just turned out to be durable.
    pub fn recover(record: DecisionRecord, now_ms: u64) -> (Self, Effects) {
        let state = match record.kind {
            DecisionKind::Commit => BranchState::Prepared,
            DecisionKind::OnePhaseIntent => BranchState::Enlisted,
        };
        let branches = record.branches.into_iter().map(|bqual| Branch { bqual, state }).collect();
        let mut transaction =
            Self { gtrid: record.gtrid, about: record.about, state: State::Deciding(record.kind), branches };
        let effects = transaction.step(Event::LogForced, now_ms).expect("deciding takes a forced log");
        (transaction, effects)
    }

    /// Its id.
    #[must_use]
    pub fn gtrid(&self) -> Gtrid {
        self.gtrid
    }

    /// What people call it.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Where it is on its way.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its branches, in the order in which they enlisted.
    #[must_use]
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// How many branches have not ended.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.branches.iter().filter(|branch| branch.ended().is_none()).count()
    }

    /// Whether the outcome is decided for good, so that its deadline means nothing any more.
    #[must_use]
    pub fn deadline_applies(&self) -> bool {
        match self.state {
            State::Active | State::RollbackOnly(_) | State::Preparing => true,
            State::Deciding(_)
            | State::DecisionUnknown(_)
            | State::Committing
            | State::CommittingOnePhase
            | State::RollingBack(_)
            | State::Recording(_)
            | State::Ended(..) => false,
        }
    }

    /// What a participant that lists `bqual` as prepared has to do with it.
    #[must_use]
    pub fn answer_prepared(&self, bqual: &Bqual) -> PreparedAnswer {
        match &self.state {
            State::Active | State::Preparing | State::Deciding(_) | State::DecisionUnknown(_) => {
                PreparedAnswer::StillRunning
            }
            // A branch that the decision does not name never voted commit to it: it is rolled back (P12).
            State::Committing | State::CommittingOnePhase if self.branch(bqual).is_none() => {
                PreparedAnswer::Rollback
            }
            State::Committing | State::CommittingOnePhase => PreparedAnswer::Commit,
            State::RollbackOnly(_) | State::RollingBack(_) => PreparedAnswer::Rollback,
            // Every branch has ended, some differently from the decision: the log answers for it soon.
            State::Recording(_) | State::Ended(..) => PreparedAnswer::StillRunning,
        }
    }

    /// Takes one event and says what has to be done. `now_ms`: milliseconds since 1970, for the records people read.
    ///
    /// # Errors
    /// [`Rejected`] if the event cannot happen in this state or is not of this transaction. Nothing changed then. From a
    /// participant that is the participant's fault; from the log it is a bug of the coordinator.
    pub fn step(&mut self, event: Event, now_ms: u64) -> Stepped {
        let effects = match &self.state {
            State::Active => self.step_active(event, now_ms),
            State::RollbackOnly(why) => {
                let why = why.clone();
                self.step_rollback_only(event, &why, now_ms)
            }
            State::Preparing => self.step_preparing(event, now_ms),
            State::Deciding(kind) => {
                let kind = *kind;
                self.step_deciding(event, kind, now_ms)
            }
            State::DecisionUnknown(kind) => {
                let kind = *kind;
                self.step_decision_unknown(event, kind, now_ms)
            }
            State::Committing => self.step_committing(event, now_ms),
            State::CommittingOnePhase => self.step_committing_one_phase(event, now_ms),
            State::RollingBack(_) => self.step_rolling_back(event, now_ms),
            State::Recording(record) => {
                let record = record.clone();
                self.step_recording(event, record)
            }
            State::Ended(..) => self.step_ended(event),
        }?;
        effects.assert_ordered();
        Ok(effects)
    }

    fn step_active(&mut self, event: Event, now_ms: u64) -> Stepped {
        match event {
            Event::Enlist(bqual) => Ok(self.enlist(bqual)),
            Event::CommitRequested => Ok(self.request_commit(now_ms)),
            Event::RollbackRequested(why) => Ok(self.become_rolling_back(why, now_ms)),
            Event::DeadlinePassed => {
                Ok(self.become_rolling_back("its deadline passed before commit was requested".into(), now_ms))
            }
            Event::Voted(bqual, vote) => {
                let refused = self.record_vote(&bqual, vote)?;
                Ok(refused.map_or_else(Effects::none, |why| self.become_rollback_only(why)))
            }
            Event::BranchLost(bqual) => {
                self.lose(&bqual)?;
                Ok(self.become_rollback_only(format!("the session of branch {bqual} broke before it voted")))
            }
            Event::Acknowledged(..) => self.reject(event, "no decision was sent"),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "nothing was given to the log"),
        }
    }

    fn step_rollback_only(&mut self, event: Event, why: &str, now_ms: u64) -> Stepped {
        match event {
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::RollbackOnly)),
            // The application has now asked, or will not ask in time: what is left is only to hear from the branches.
            Event::CommitRequested | Event::RollbackRequested(_) | Event::DeadlinePassed => {
                Ok(self.become_rolling_back(why.to_owned(), now_ms))
            }
            Event::Voted(bqual, vote) => self.vote_after_rollback(&bqual, &vote),
            Event::BranchLost(bqual) => {
                self.lose(&bqual)?;
                Ok(Effects::none())
            }
            Event::Acknowledged(bqual, applied) => {
                self.end_told_branch(&bqual, applied)?;
                Ok(Effects::none())
            }
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "nothing was given to the log"),
        }
    }

    fn step_preparing(&mut self, event: Event, now_ms: u64) -> Stepped {
        match event {
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::CommitRequested)),
            Event::CommitRequested => Ok(Effects::none()),
            Event::RollbackRequested(why) => Ok(self.become_rolling_back(why, now_ms)),
            Event::DeadlinePassed => {
                let missing = self.branches.iter().filter(|branch| branch.awaits_vote());
                let names: Vec<_> = missing.map(|branch| branch.bqual.as_str()).collect();
                let why = format!("its deadline passed before these branches voted: {}", names.join(", "));
                Ok(self.become_rolling_back(why, now_ms))
            }
            Event::Voted(bqual, vote) => match self.record_vote(&bqual, vote)? {
                Some(why) => Ok(self.become_rolling_back(why, now_ms)),
                None if self.branches.iter().any(Branch::awaits_vote) => Ok(Effects::none()),
                None => Ok(self.decide_by_votes(now_ms)),
            },
            Event::BranchLost(bqual) => {
                self.lose(&bqual)?;
                let why = format!("the session of branch {bqual} broke before it voted");
                Ok(self.become_rolling_back(why, now_ms))
            }
            Event::Acknowledged(..) => self.reject(event, "no decision was sent"),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "nothing was given to the log"),
        }
    }

    fn step_deciding(&mut self, event: Event, kind: DecisionKind, now_ms: u64) -> Stepped {
        match event {
            Event::LogForced => Ok(self.decision_is_durable(kind, now_ms)),
            Event::LogRefused(why) => {
                Ok(self.become_rolling_back(format!("the decision log refused the decision: {why}"), now_ms))
            }
            Event::LogUnknown(_) => Ok(self.become_decision_unknown(kind)),
            Event::LogFound | Event::LogAbsent => self.reject(event, "the log's answer is not unknown"),
            Event::Enlist(_)
            | Event::CommitRequested
            | Event::RollbackRequested(_)
            | Event::DeadlinePassed
            | Event::Voted(..)
            | Event::BranchLost(_)
            | Event::Acknowledged(..)
            | Event::RecordAgain => self.while_the_log_writes(event),
        }
    }

    fn step_decision_unknown(&mut self, event: Event, kind: DecisionKind, now_ms: u64) -> Stepped {
        match event {
            Event::LogFound => Ok(self.decision_is_durable(kind, now_ms)),
            Event::LogAbsent => {
                Ok(self.become_rolling_back("the decision did not reach the decision log".into(), now_ms))
            }
            Event::LogForced | Event::LogRefused(_) | Event::LogUnknown(_) => {
                self.reject(event, "only reading the log behind the fence ends this")
            }
            Event::Enlist(_)
            | Event::CommitRequested
            | Event::RollbackRequested(_)
            | Event::DeadlinePassed
            | Event::Voted(..)
            | Event::BranchLost(_)
            | Event::Acknowledged(..)
            | Event::RecordAgain => self.while_the_log_writes(event),
        }
    }

    /// What everyone but the log may do between a decision's way to the log and the log's answer: nothing ends the
    /// transaction meanwhile. A vote that crosses a one-phase intent is kept for later.
    fn while_the_log_writes(&mut self, event: Event) -> Stepped {
        match event {
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::CommitRequested)),
            // Too late to change anything: whoever asked waits for the outcome.
            Event::CommitRequested
            | Event::RollbackRequested(_)
            | Event::DeadlinePassed
            | Event::BranchLost(_) => Ok(Effects::none()),
            Event::Voted(bqual, vote) => {
                // In one phase the branch has not voted yet; whatever it says decides nothing before the log has answered.
                let _why = self.record_vote(&bqual, vote)?;
                Ok(Effects::none())
            }
            Event::Acknowledged(..) => self.reject(event, "no decision was sent"),
            Event::RecordAgain => self.reject(event, "no end was given to the log"),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent => self.reject(event, "the log's answers are handled by the state itself"),
        }
    }

    fn step_committing(&mut self, event: Event, now_ms: u64) -> Stepped {
        match event {
            Event::Acknowledged(bqual, applied) => {
                self.end_told_branch(&bqual, applied)?;
                Ok(self.end_if_all_ended(Outcome::Committed, String::new(), now_ms))
            }
            Event::Voted(bqual, vote) => self.repeated_vote(&bqual, &vote),
            Event::CommitRequested => Ok(reply(Reply::Decided(Outcome::Committed, String::new()))),
            // The engine answers that it is too late.
            Event::RollbackRequested(_) => Ok(reply(Reply::Decided(Outcome::Committed, String::new()))),
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::CommitRequested)),
            Event::DeadlinePassed | Event::BranchLost(_) => Ok(Effects::none()),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "the decision is durable already"),
        }
    }

    fn step_committing_one_phase(&mut self, event: Event, now_ms: u64) -> Stepped {
        match event {
            Event::Acknowledged(bqual, applied) => {
                self.end_told_branch(&bqual, applied)?;
                Ok(self.end_one_phase(now_ms))
            }
            // An early vote that crossed the intent (P10). A commit vote is answered by the delivery under way.
            Event::Voted(bqual, Vote::Commit) => {
                self.known(&bqual)?;
                Ok(Effects::none())
            }
            Event::Voted(bqual, vote @ (Vote::Rollback(_) | Vote::ReadOnly)) => {
                self.end_by_vote(&bqual, &vote)?;
                Ok(self.end_one_phase(now_ms))
            }
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::CommitRequested)),
            // Only evidence ends it: whoever asked waits (P10).
            Event::CommitRequested
            | Event::RollbackRequested(_)
            | Event::DeadlinePassed
            | Event::BranchLost(_) => Ok(Effects::none()),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "the intent is durable already"),
        }
    }

    fn step_rolling_back(&mut self, event: Event, now_ms: u64) -> Stepped {
        let State::RollingBack(why) = &self.state else { unreachable!("called in this state only") };
        let why = why.clone();
        match event {
            Event::Acknowledged(bqual, applied) => {
                self.end_told_branch(&bqual, applied)?;
                Ok(self.end_if_all_ended(Outcome::RolledBack, why, now_ms))
            }
            Event::BranchLost(bqual) => {
                self.lose(&bqual)?;
                Ok(self.end_if_all_ended(Outcome::RolledBack, why, now_ms))
            }
            Event::Voted(bqual, vote) => {
                let _none = self.vote_after_rollback(&bqual, &vote)?;
                Ok(self.end_if_all_ended(Outcome::RolledBack, why, now_ms))
            }
            Event::CommitRequested | Event::RollbackRequested(_) => {
                Ok(reply(Reply::Decided(Outcome::RolledBack, why)))
            }
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::RollbackOnly)),
            Event::DeadlinePassed => Ok(Effects::none()),
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "nothing was given to the log"),
        }
    }

    fn step_recording(&mut self, event: Event, record: EndRecord) -> Stepped {
        match event {
            Event::LogForced | Event::LogFound => Ok(self.become_ended(record.outcome, record.detail)),
            // Everything waits for the record: nobody forgets a heuristic outcome that is not written down.
            Event::LogRefused(_) | Event::LogUnknown(_) | Event::LogAbsent => Ok(Effects::none()),
            Event::RecordAgain => Ok(Effects { log: Some(LogWrite::ForceEnd(record)), ..Effects::none() }),
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::Ended)),
            Event::CommitRequested
            | Event::RollbackRequested(_)
            | Event::DeadlinePassed
            | Event::BranchLost(_)
            | Event::Voted(..) => Ok(Effects::none()),
            Event::Acknowledged(ref bqual, applied) => {
                self.repeated_acknowledgement(bqual, applied)?;
                Ok(Effects::none())
            }
        }
    }

    fn step_ended(&mut self, event: Event) -> Stepped {
        let State::Ended(outcome, detail) = &self.state else { unreachable!("called in this state only") };
        match event {
            Event::Enlist(bqual) => Ok(refuse(bqual, EnlistRefusal::Ended)),
            Event::CommitRequested | Event::RollbackRequested(_) => {
                Ok(reply(Reply::Ended(*outcome, detail.clone())))
            }
            Event::DeadlinePassed | Event::BranchLost(_) | Event::Voted(..) => Ok(Effects::none()),
            Event::Acknowledged(ref bqual, applied) => {
                self.repeated_acknowledgement(bqual, applied)?;
                Ok(Effects::none())
            }
            Event::LogForced
            | Event::LogRefused(_)
            | Event::LogUnknown(_)
            | Event::LogFound
            | Event::LogAbsent
            | Event::RecordAgain => self.reject(event, "nothing is on its way to the log"),
        }
    }

    // ---- what the states share ----

    fn enlist(&mut self, bqual: Bqual) -> Effects {
        if self.branch(&bqual).is_some() {
            return refuse(bqual, EnlistRefusal::DuplicateBranch);
        }
        if self.branches.len() >= limits::MAX_BRANCHES {
            return refuse(bqual, EnlistRefusal::TooManyBranches);
        }
        self.branches.push(Branch::enlisted(bqual.clone()));
        Effects { messages: vec![(bqual, Message::Enlisted)], ..Effects::none() }
    }

    /// Commit was requested: who has not voted yet is asked, unless nobody or only one branch is left.
    fn request_commit(&mut self, now_ms: u64) -> Effects {
        let mut open = self.branches.iter().filter(|branch| branch.awaits_vote());
        let (first, second) = (open.next(), open.next());
        let others_left = self.branches.iter().all(|branch| branch.awaits_vote() || branch.is_read_only());
        match (first, second) {
            (None, _) => self.decide_by_votes(now_ms),
            (Some(_), None) if others_left => self.become_deciding(DecisionKind::OnePhaseIntent, now_ms),
            (Some(_), _) => self.become_preparing(),
        }
    }

    /// Every branch has voted, none of them rollback.
    fn decide_by_votes(&mut self, now_ms: u64) -> Effects {
        if self.branches.iter().all(Branch::is_read_only) {
            return self.become_ended(Outcome::NothingToCommit, String::new());
        }
        self.become_deciding(DecisionKind::Commit, now_ms)
    }

    fn decision_is_durable(&mut self, kind: DecisionKind, now_ms: u64) -> Effects {
        match kind {
            DecisionKind::Commit => self.become_committing(),
            DecisionKind::OnePhaseIntent => self.become_committing_one_phase(now_ms),
        }
    }

    /// Notes a vote. `Some` with the reason if it is a rollback vote.
    fn record_vote(&mut self, bqual: &Bqual, vote: Vote) -> Result<Option<String>, Rejected> {
        let branch = self.known(bqual)?;
        if branch.has_voted(&vote) {
            return Ok(None);
        }
        if !branch.awaits_vote() {
            let why = format!("the branch is {} and cannot vote that now", branch.state_name());
            return self.reject(Event::Voted(bqual.clone(), vote), &why);
        }
        let (state, refused) = match vote {
            Vote::Commit => (BranchState::Prepared, None),
            Vote::ReadOnly => (BranchState::Ended(BranchEnd::ReadOnly), None),
            Vote::Rollback(why) => (
                BranchState::Ended(BranchEnd::RolledBack),
                Some(format!("branch {bqual} voted rollback: {why}")),
            ),
        };
        self.branch_mut(bqual).state = state;
        Ok(refused)
    }

    /// A vote that arrives when the branch was already told to roll back.
    fn vote_after_rollback(&mut self, bqual: &Bqual, vote: &Vote) -> Stepped {
        let branch = self.known(bqual)?;
        if branch.ended().is_some() {
            return Ok(Effects::none());
        }
        match vote {
            // It is prepared, so that its session's end does not end it any more.
            Vote::Commit => self.branch_mut(bqual).state = BranchState::Told,
            Vote::Rollback(_) | Vote::ReadOnly => self.end_by_vote(bqual, vote)?,
        }
        Ok(Effects::none())
    }

    fn end_by_vote(&mut self, bqual: &Bqual, vote: &Vote) -> Result<(), Rejected> {
        self.known(bqual)?;
        let end = match vote {
            Vote::Rollback(_) => BranchEnd::RolledBack,
            Vote::ReadOnly => BranchEnd::ReadOnly,
            Vote::Commit => unreachable!("a commit vote ends no branch"),
        };
        let branch = self.branch_mut(bqual);
        if branch.ended().is_none() {
            branch.state = BranchState::Ended(end);
        }
        Ok(())
    }

    /// A vote after the decision: only the one that is known already.
    fn repeated_vote(&self, bqual: &Bqual, vote: &Vote) -> Stepped {
        self.known(bqual)?;
        match vote {
            Vote::Commit | Vote::ReadOnly => Ok(Effects::none()),
            Vote::Rollback(_) => {
                self.reject(Event::Voted(bqual.clone(), vote.clone()), "the branch had voted otherwise")
            }
        }
    }

    /// The session of a branch that had not voted broke.
    fn lose(&mut self, bqual: &Bqual) -> Result<(), Rejected> {
        self.known(bqual)?;
        let branch = self.branch_mut(bqual);
        branch.state = match branch.state {
            BranchState::Enlisted | BranchState::ToldOpen => BranchState::Ended(BranchEnd::Lost),
            BranchState::Preparing => BranchState::InDoubt,
            // Whatever is or may be prepared outlives its session.
            kept @ (BranchState::Prepared
            | BranchState::InDoubt
            | BranchState::Told
            | BranchState::Ended(_)) => kept,
        };
        Ok(())
    }

    fn end_told_branch(&mut self, bqual: &Bqual, applied: Applied) -> Result<(), Rejected> {
        let branch = self.known(bqual)?;
        match branch.state {
            BranchState::Told | BranchState::ToldOpen => {
                self.branch_mut(bqual).state = BranchState::Ended(applied.into());
                Ok(())
            }
            BranchState::Ended(_) => self.repeated_acknowledgement(bqual, applied),
            BranchState::Enlisted | BranchState::Preparing | BranchState::Prepared | BranchState::InDoubt => {
                self.reject(
                    Event::Acknowledged(bqual.clone(), applied),
                    "no decision was sent to this branch",
                )
            }
        }
    }

    /// An acknowledgement for a branch that has ended: the one that is known already, or one that says less.
    fn repeated_acknowledgement(&self, bqual: &Bqual, applied: Applied) -> Result<(), Rejected> {
        let fits = match self.known(bqual)?.ended() {
            Some(BranchEnd::Committed) => applied == Applied::Committed,
            Some(BranchEnd::RolledBack | BranchEnd::ReadOnly | BranchEnd::Lost) => {
                applied == Applied::RolledBack
            }
            Some(BranchEnd::Hazard) => applied == Applied::Hazard,
            None => false,
        };
        if fits {
            return Ok(());
        }
        self.reject(
            Event::Acknowledged(bqual.clone(), applied),
            "it does not fit what the branch acknowledged before",
        )
    }

    /// Ends the transaction once its last branch has.
    fn end_if_all_ended(&mut self, decided: Outcome, detail: String, now_ms: u64) -> Effects {
        if self.pending() > 0 {
            return Effects::none();
        }
        match self.heuristic(decided) {
            Some(heuristic) => self.become_recording(heuristic, now_ms),
            None => {
                let record = self.end_record(decided, detail.clone(), now_ms);
                let mut effects = self.become_ended(decided, detail);
                effects.log = Some(LogWrite::LazyEnd(record));
                effects
            }
        }
    }

    /// The one branch of a one-phase commit has ended, and its end is the transaction's outcome (P10).
    fn end_one_phase(&mut self, now_ms: u64) -> Effects {
        let end = self.branches.iter().filter(|branch| !branch.is_read_only()).find_map(Branch::ended);
        let (outcome, detail) = match end {
            Some(BranchEnd::Committed) => (Outcome::Committed, String::new()),
            Some(BranchEnd::Hazard) => return self.become_recording(Heuristic::Hazard, now_ms),
            Some(BranchEnd::RolledBack | BranchEnd::Lost) => {
                (Outcome::RolledBack, "its only branch could not commit in one phase".to_owned())
            }
            Some(BranchEnd::ReadOnly) => unreachable!("read-only branches are filtered out"),
            None if self.pending() > 0 => return Effects::none(),
            None => (Outcome::NothingToCommit, String::new()),
        };
        self.end_if_all_ended(outcome, detail, now_ms)
    }

    /// How the branches differ from the decision, if any does.
    fn heuristic(&self, decided: Outcome) -> Option<Heuristic> {
        let ended = |end| self.branches.iter().any(|branch| branch.state == BranchState::Ended(end));
        let committed = ended(BranchEnd::Committed);
        let rolled_back = ended(BranchEnd::RolledBack) || ended(BranchEnd::Lost);
        match decided {
            _ if committed && rolled_back => Some(Heuristic::Mixed),
            _ if ended(BranchEnd::Hazard) => Some(Heuristic::Hazard),
            Outcome::Committed if rolled_back => Some(Heuristic::Rollback),
            Outcome::RolledBack if committed => Some(Heuristic::Commit),
            Outcome::Committed
            | Outcome::RolledBack
            | Outcome::NothingToCommit
            | Outcome::Heuristic(_)
            | Outcome::Unknown => None,
        }
    }

    fn end_record(&self, outcome: Outcome, detail: String, now_ms: u64) -> EndRecord {
        let branches =
            self.branches.iter().filter_map(|branch| Some((branch.bqual.clone(), branch.ended()?)));
        EndRecord {
            gtrid: self.gtrid,
            outcome,
            detail: limits::cut(&detail, limits::MAX_DETAIL_BYTES).to_owned(),
            branches: branches.collect(),
            ended_ms: now_ms,
            about: self.about.clone(),
        }
    }

    fn branch(&self, bqual: &Bqual) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.bqual == *bqual)
    }

    fn known(&self, bqual: &Bqual) -> Result<&Branch, Rejected> {
        self.branch(bqual).ok_or_else(|| Rejected {
            state: self.state.name(),
            event: format!("a message about branch {bqual}"),
            why: "no such branch is enlisted".into(),
        })
    }

    fn branch_mut(&mut self, bqual: &Bqual) -> &mut Branch {
        self.branches
            .iter_mut()
            .find(|branch| branch.bqual == *bqual)
            .expect("the caller has seen this branch")
    }

    fn reject<T>(&self, event: Event, why: &str) -> Result<T, Rejected> {
        Err(Rejected { state: self.state.name(), event: event.to_string(), why: why.to_owned() })
    }

    // ---- the only places where the state changes ----

    fn become_preparing(&mut self) -> Effects {
        self.state = State::Preparing;
        let mut effects = Effects::none();
        for branch in self.branches.iter_mut().filter(|branch| branch.state == BranchState::Enlisted) {
            branch.state = BranchState::Preparing;
            effects.messages.push((branch.bqual.clone(), Message::Prepare));
        }
        effects
    }

    fn become_deciding(&mut self, kind: DecisionKind, now_ms: u64) -> Effects {
        self.assert_decidable(kind);
        self.state = State::Deciding(kind);
        let wanted = self.branches.iter().filter(|branch| !branch.is_read_only());
        let record = DecisionRecord {
            gtrid: self.gtrid,
            kind,
            branches: wanted.map(|branch| branch.bqual.clone()).collect(),
            decided_ms: now_ms,
            about: self.about.clone(),
        };
        Effects { log: Some(LogWrite::ForceDecision(record)), ..Effects::none() }
    }

    /// The invariants `commit_needs_all_votes` and, in one phase, that there is nobody else to ask.
    fn assert_decidable(&self, kind: DecisionKind) {
        let mut wanted = self.branches.iter().filter(|branch| !branch.is_read_only());
        match kind {
            DecisionKind::Commit => {
                let all = wanted.all(|branch| branch.state == BranchState::Prepared);
                assert!(all, "commit is decided only when every branch voted commit or read-only: {self:?}");
            }
            DecisionKind::OnePhaseIntent => {
                let alone =
                    wanted.clone().count() == 1 && wanted.all(|branch| branch.state == BranchState::Enlisted);
                assert!(alone, "one phase is only for a single branch that has not voted: {self:?}");
            }
        }
    }

    fn become_decision_unknown(&mut self, kind: DecisionKind) -> Effects {
        self.state = State::DecisionUnknown(kind);
        Effects::none()
    }

    fn become_committing(&mut self) -> Effects {
        self.state = State::Committing;
        let mut effects = reply(Reply::Decided(Outcome::Committed, String::new()));
        for branch in self.branches.iter_mut().filter(|branch| branch.ended().is_none()) {
            assert_eq!(
                branch.state,
                BranchState::Prepared,
                "a commit goes only to branches that voted commit"
            );
            branch.state = BranchState::Told;
            effects.messages.push((branch.bqual.clone(), Message::Commit));
        }
        effects
    }

    fn become_committing_one_phase(&mut self, now_ms: u64) -> Effects {
        self.state = State::CommittingOnePhase;
        let mut effects = Effects::none();
        for branch in self.branches.iter_mut().filter(|branch| branch.ended().is_none()) {
            branch.state = BranchState::Told;
            effects.messages.push((branch.bqual.clone(), Message::CommitOnePhase));
        }
        if effects.messages.is_empty() {
            // The branch ended by a vote that crossed the intent.
            return self.end_one_phase(now_ms);
        }
        effects
    }

    /// Tells every branch that may still hold anything to roll back.
    fn tell_rollback(&mut self) -> Vec<(Bqual, Message)> {
        let mut messages = Vec::new();
        for branch in &mut self.branches {
            branch.state = match branch.state {
                BranchState::Enlisted => BranchState::ToldOpen,
                BranchState::Preparing | BranchState::Prepared | BranchState::InDoubt => BranchState::Told,
                BranchState::ToldOpen | BranchState::Told | BranchState::Ended(_) => continue,
            };
            messages.push((branch.bqual.clone(), Message::Rollback));
        }
        messages
    }

    fn become_rollback_only(&mut self, why: String) -> Effects {
        self.state = State::RollbackOnly(why);
        Effects { messages: self.tell_rollback(), ..Effects::none() }
    }

    fn become_rolling_back(&mut self, why: String, now_ms: u64) -> Effects {
        let messages = self.tell_rollback();
        self.state = State::RollingBack(why.clone());
        let mut effects = self.end_if_all_ended(Outcome::RolledBack, why.clone(), now_ms);
        if effects.reply.is_none() && effects.log.is_none() {
            effects.reply = Some(Reply::Decided(Outcome::RolledBack, why));
        }
        effects.messages = messages;
        effects
    }

    fn become_recording(&mut self, heuristic: Heuristic, now_ms: u64) -> Effects {
        let branches =
            self.branches.iter().filter_map(|branch| Some(format!("{} {:?}", branch.bqual, branch.ended()?)));
        let detail = format!("branches ended differently: {}", branches.collect::<Vec<_>>().join(", "));
        let record = self.end_record(Outcome::Heuristic(heuristic), detail, now_ms);
        self.state = State::Recording(record.clone());
        Effects { log: Some(LogWrite::ForceEnd(record)), ..Effects::none() }
    }

    fn become_ended(&mut self, outcome: Outcome, detail: String) -> Effects {
        assert_eq!(self.pending(), 0, "a transaction ends only when every branch has: {self:?}");
        self.state = State::Ended(outcome, detail.clone());
        reply(Reply::Ended(outcome, detail))
    }
}

fn reply(reply: Reply) -> Effects {
    Effects { reply: Some(reply), ..Effects::none() }
}

fn refuse(bqual: Bqual, why: EnlistRefusal) -> Effects {
    Effects { messages: vec![(bqual, Message::EnlistRefused(why))], ..Effects::none() }
}
