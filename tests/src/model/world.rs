//! One state of a world: all that there is, and what an observer has to remember of its past.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockstep::branch::{Applied, Branch, Decision, Event, Handler, Operation, State, Vote};
use lockstep_coordinator::protocol::event::Event as TransactionEvent;
use lockstep_coordinator::protocol::record::{About, DecisionRecord, EndRecord, LogWrite};
use lockstep_coordinator::protocol::transaction::Transaction;
use lockstep_proto::{Bqual, Epoch, Gtrid, Incarnation, LogPosition};

use super::bounds::{Bounds, Faults};
use super::log::Log;

/// Coordinators at a time.
pub const NODES: usize = 2;

/// What really became of a branch's work in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Truth {
    /// A local transaction is open.
    Open,
    /// It is prepared.
    Prepared,
    /// Its work is there, and so is its evidence.
    Committed,
    /// Its work is gone.
    RolledBack,
    /// It had written nothing, and is over.
    ReadOnly,
}

/// How far a session is, as the coordinator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Link {
    /// There is none.
    None,
    /// It is there.
    Up,
    /// It is over, and the coordinator has not noticed. What was sent before may still arrive.
    Broken,
}

/// A message to a participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Down {
    /// Prepare.
    Prepare,
    /// Commit.
    Commit,
    /// Roll back.
    Rollback,
    /// Commit in one phase.
    CommitOnePhase,
}

/// A message of a participant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Up {
    /// A vote.
    Vote(Vote),
    /// What a decision has led to.
    Acknowledge(Applied),
    /// The branch is prepared.
    Report,
}

/// What a coordinator has given to the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Writing {
    /// It is on its way.
    OnItsWay(Record),
    /// Nobody knows whether it arrived. `limbo`: it has not, and still may.
    Unknown {
        /// What was written.
        record: Record,
        /// See above.
        limbo: bool,
        /// The generation has moved: nothing of an earlier one can arrive any more.
        fenced: bool,
    },
}

/// A forced record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Record {
    /// A decision.
    Decision(DecisionRecord),
    /// A heuristic end.
    End(EndRecord),
}

/// A coordinator's process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    /// Under which it writes.
    pub epoch: u8,
    /// The transaction, while it is live here.
    pub transaction: Option<Transaction>,
    /// Its session with each participant.
    pub links: Vec<Link>,
    /// Whose session has enlisted its branch: only that one's vote counts, and its end loses the branch.
    pub holds: Vec<bool>,
    /// At most one write at a time.
    pub writing: Option<Writing>,
    /// An end that is to be written some time.
    pub lazy: Option<EndRecord>,
    /// It has sealed an epoch and is still to read what that left.
    pub adopting: bool,
    /// Participants' questions about a transaction that is not live here: the log is asked next.
    pub looking_up: Vec<bool>,
    /// The same for the application's.
    pub looking_up_outcome: bool,
}

/// A participant's process, and its store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Participant {
    /// What its process knows.
    pub branch: Branch,
    /// Its session: with which coordinator.
    pub session: Option<usize>,
    /// One bit for each epoch that it was told is sealed.
    pub sealed: u8,
    /// The one operation of its store.
    pub running: Option<Operation>,
    /// What a process that is gone had sent to the store.
    pub late: Option<Operation>,
    /// It waits to ask its store again.
    pub asks_again: bool,
    /// A handler has the connection.
    pub handler: bool,
    /// What became of its work.
    pub truth: Truth,
    /// A fence stands in its way.
    pub fenced: bool,
    /// It was prepared, whatever became of it.
    pub was_prepared: bool,
    /// It writes nothing.
    pub read_only: bool,
    /// Somebody has ended it by hand.
    pub by_hand: bool,
    /// A failover has undone its commit.
    pub undone: bool,
    /// On their way to it; any may overtake any other.
    pub down: BTreeSet<Down>,
    /// On their way from it.
    pub up: Vec<Up>,
}

/// What anyone was told, and what was sent: for the properties.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Told {
    /// The application means to commit (`true`) or to roll back.
    pub asked: Option<bool>,
    /// It was told that all is committed.
    pub committed: bool,
    /// It was told that all is rolled back.
    pub rolled_back: bool,
    /// It was told anything else that is final.
    pub other: bool,
    /// A branch was told to commit.
    pub commit_sent: bool,
    /// A branch was told to roll back.
    pub rollback_sent: bool,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// The log.
    pub log: Log,
    /// The coordinators.
    pub nodes: [Option<Arc<Node>>; NODES],
    /// The participants.
    pub participants: Vec<Arc<Participant>>,
    /// What a coordinator that is gone had sent to the log, and under which epoch.
    pub stray: Option<(u8, Record)>,
    /// What was said.
    pub told: Told,
    /// What may still go wrong.
    pub left: Faults,
    /// What must not be and was seen while something happened.
    pub broken: Option<&'static str>,
}

/// The transaction.
#[must_use]
pub fn gtrid() -> Gtrid {
    Gtrid::new(Epoch::new(1).expect("1 is an epoch"), 0, [0; 10])
}

/// A branch's name.
///
/// # Panics
/// With more than three.
#[must_use]
pub fn bqual(number: usize) -> Bqual {
    Bqual::new(&["a", "b", "c"][number].parse().expect("a letter is a name"), 0)
}

/// The branch of this name.
///
/// # Panics
/// If it is none of this world.
#[must_use]
pub fn number_of(bqual: &Bqual) -> usize {
    match bqual.resource_manager_str() {
        "a" => 0,
        "b" => 1,
        "c" => 2,
        other => unreachable!("no participant is called {other}"),
    }
}

/// Positions are not modelled: one for all.
///
/// # Panics
/// Never.
#[must_use]
pub fn position() -> LogPosition {
    LogPosition {
        epoch: Epoch::new(1).expect("1 is an epoch"),
        incarnation: Incarnation::from_bytes([0; 16]),
        sequence: 0,
    }
}

impl World {
    /// The first state: every branch is enlisted with the first coordinator.
    ///
    /// # Panics
    /// If the machines refuse the simplest beginning there is.
    #[must_use]
    pub fn beginning(bounds: &Bounds) -> Self {
        let mut transaction = Transaction::new(gtrid(), About::default());
        let mut participants = Vec::new();
        for number in 0..bounds.branches {
            let enlisted = transaction.step(TransactionEvent::Enlist(bqual(number)), 0);
            let _message = enlisted.expect("an active transaction enlists");
            let works = number >= bounds.branches - bounds.working;
            participants.push(Arc::new(Participant {
                branch: begun(works),
                session: Some(0),
                sealed: 0,
                running: None,
                late: None,
                asks_again: false,
                handler: works,
                truth: Truth::Open,
                fenced: false,
                was_prepared: false,
                read_only: number < bounds.read_only,
                by_hand: false,
                undone: false,
                down: BTreeSet::new(),
                up: Vec::new(),
            }));
        }
        let node = Node { transaction: Some(transaction), ..Node::new(1, bounds.branches, Link::Up) };
        let node = Node { holds: vec![true; bounds.branches], ..node };
        Self {
            log: Log { epochs: 1, ..Log::default() },
            nodes: [Some(Arc::new(node)), None],
            participants,
            stray: None,
            told: Told::default(),
            left: bounds.faults,
            broken: None,
        }
    }

    /// Everything has come to its end: nothing is in doubt, nothing is under way, and the application knows if it wanted to.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let quiet = |participant: &Arc<Participant>| {
            let settled = !matches!(participant.truth, Truth::Open | Truth::Prepared);
            settled && participant.running.is_none() && participant.late.is_none()
        };
        let nodes = self.nodes.iter().flatten();
        let idle = |node: &Arc<Node>| node.transaction.is_none() && node.lazy.is_none() && !node.adopting;
        let told = &self.told;
        let knows = told.asked.is_none() || told.committed || told.rolled_back || told.other;
        self.participants.iter().all(quiet)
            && nodes.clone().count() > 0
            && nodes.clone().all(idle)
            && (self.log.decision.is_none() || self.log.end.is_some())
            && knows
    }
}

impl Node {
    /// One that has just started.
    #[must_use]
    pub fn new(epoch: u8, branches: usize, link: Link) -> Self {
        Self {
            epoch,
            transaction: None,
            links: vec![link; branches],
            holds: vec![false; branches],
            writing: None,
            lazy: None,
            adopting: false,
            looking_up: vec![false; branches],
            looking_up_outcome: false,
        }
    }
}

impl From<LogWrite> for Record {
    fn from(write: LogWrite) -> Self {
        match write {
            LogWrite::ForceDecision(decision) => Self::Decision(decision),
            LogWrite::ForceEnd(end) | LogWrite::LazyEnd(end) => Self::End(end),
        }
    }
}

/// A branch that its handler works in, or has just left.
fn begun(works: bool) -> Branch {
    let mut branch = Branch::absent();
    let mut step = |event| branch.step(event).expect("a branch begins like this");
    step(Event::Joined(std::time::Duration::from_secs(1)));
    step(Event::Begun);
    step(Event::Enlisted);
    if !works {
        step(Event::Finished(lockstep::branch::Then::StayOpen));
        assert_eq!(branch.state(), &State::Open(Handler::Idle), "its handler has left it");
    }
    branch
}

/// What a message is to a branch.
#[must_use]
pub fn told(message: Down) -> Event {
    match message {
        Down::Prepare => Event::Prepare(position()),
        Down::Commit => Event::Decide(Decision::Commit, position()),
        Down::Rollback => Event::Decide(Decision::Rollback, position()),
        Down::CommitOnePhase => Event::CommitOnePhase(position()),
    }
}
