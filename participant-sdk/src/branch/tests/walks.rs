//! What must hold on every path: random walks with a store that tells the truth or nothing, a handler that does anything a
//! handler can do, and a network that delivers anything at any time.

use proptest::prelude::*;

use super::*;

/// What the store would say if it could be asked without changing anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    /// A part of it was committed by its service.
    Hazard,
    /// No trace: open, gone, or never there.
    Nothing,
    Prepared,
    Committed,
    /// A fence keeps it from ever committing.
    Fenced,
}

/// Where the connection of the local transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    None,
    Here,
    WithHandler,
    InOperation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HandlerIs {
    Absent,
    WaitingForConnection,
    Working,
    WaitingForAnswer,
}

/// The world around one branch, and what it has seen.
#[derive(Debug)]
struct World {
    branch: Branch,
    truth: Truth,
    connection: Connection,
    handler: HandlerIs,
    running: Option<Operation>,
    ask_again: usize,
    voted_commit: bool,
    voted_rollback: bool,
    told_commit: bool,
    told_rollback: bool,
    decided: bool,
    failed_handler: bool,
}

impl World {
    fn new() -> Self {
        Self {
            branch: Branch::absent(),
            truth: Truth::Nothing,
            connection: Connection::None,
            handler: HandlerIs::Absent,
            running: None,
            ask_again: 0,
            voted_commit: false,
            voted_rollback: false,
            told_commit: false,
            told_rollback: false,
            decided: false,
            failed_handler: false,
        }
    }

    /// What can happen now.
    fn possible(&self, fresh: bool) -> Vec<Event> {
        let mut events = Vec::new();
        if self.branch.state() == &State::Absent {
            // A bqual is joined first in its life: later it is only talked about.
            if fresh {
                events.push(Event::Joined(Duration::from_secs(1)));
            }
        } else {
            events.extend([Event::DeadlinePassed, Event::SessionLost]);
        }
        if self.branch.is_idle() {
            events.push(Event::Joined(Duration::from_secs(1)));
        }
        match self.handler {
            HandlerIs::Working => events.extend([
                Event::Finished(Then::StayOpen),
                Event::Finished(Then::Vote(position(1))),
                Event::HandlerGone,
            ]),
            HandlerIs::WaitingForAnswer => events.push(Event::HandlerGone),
            HandlerIs::Absent | HandlerIs::WaitingForConnection => {}
        }
        events.extend((self.ask_again > 0).then_some(Event::AskAgain));
        events.extend([
            Event::Enlisted,
            Event::EnlistRefused(refusal()),
            Event::Prepare(position(1)),
            Event::Decide(Decision::Commit, position(1)),
            Event::Decide(Decision::Rollback, position(1)),
            Event::CommitOnePhase(position(1)),
        ]);
        events
    }

    /// Ends the running operation: truthfully, or (`lost`) without an answer, before or after it has had its effect.
    fn end_operation(&mut self, choice: u8, lost: bool) {
        let operation = self.running.take().expect("called while one runs");
        let effect = !lost || choice.is_multiple_of(2);
        let fate = |truth| match truth {
            Truth::Committed => Fate::Committed,
            Truth::Hazard => Fate::Hazard,
            Truth::Nothing | Truth::Prepared | Truth::Fenced => Fate::RolledBack,
        };
        let event = match operation {
            Operation::Begin(_) if choice.is_multiple_of(3) => Event::NotBegun("busy".to_owned()),
            Operation::Begin(_) => {
                self.connection = Connection::Here;
                Event::Begun
            }
            Operation::Discard => {
                self.connection = Connection::None;
                Event::Discarded
            }
            Operation::Prepare(_) => {
                self.connection = Connection::None;
                let prepared = match choice % 4 {
                    0 => Prepared::No("constraint".to_owned()),
                    1 => Prepared::ReadOnly,
                    2 => Prepared::Hazard("its service committed".to_owned()),
                    _ => Prepared::Yes,
                };
                match prepared {
                    Prepared::Yes if effect => self.truth = Truth::Prepared,
                    Prepared::Hazard(_) if effect => self.truth = Truth::Hazard,
                    Prepared::Yes | Prepared::Hazard(_) | Prepared::No(_) | Prepared::ReadOnly => {}
                }
                Event::PrepareDone(if lost { Err(unresolved()) } else { Ok(prepared) })
            }
            Operation::Find => {
                Event::Found(if lost { Err(unresolved()) } else { Ok(self.truth == Truth::Prepared) })
            }
            Operation::CommitOnePhase(_) => {
                self.connection = Connection::None;
                if effect {
                    self.truth = if choice.is_multiple_of(3) { Truth::Fenced } else { Truth::Committed };
                }
                Event::Resolved(if lost { Err(unresolved()) } else { Ok(fate(self.truth)) })
            }
            Operation::Commit(_) | Operation::Prove(_) if effect => {
                self.truth = match self.truth {
                    Truth::Prepared | Truth::Committed => Truth::Committed,
                    Truth::Nothing | Truth::Fenced => Truth::Fenced,
                    Truth::Hazard => Truth::Hazard,
                };
                Event::Resolved(if lost { Err(unresolved()) } else { Ok(fate(self.truth)) })
            }
            Operation::Rollback(_) if effect => {
                self.truth = match self.truth {
                    ended @ (Truth::Committed | Truth::Hazard) => ended,
                    Truth::Nothing | Truth::Prepared | Truth::Fenced => Truth::Fenced,
                };
                Event::Resolved(if lost { Err(unresolved()) } else { Ok(fate(self.truth)) })
            }
            Operation::Commit(_) | Operation::Prove(_) | Operation::Rollback(_) => {
                Event::Resolved(Err(unresolved()))
            }
        };
        self.happen(event);
    }

    fn happen(&mut self, event: Event) {
        match &event {
            Event::Joined(_) => self.handler = HandlerIs::WaitingForConnection,
            Event::Finished(_) => {
                self.connection = Connection::Here;
                self.handler = HandlerIs::WaitingForAnswer;
            }
            Event::HandlerGone => {
                if self.connection == Connection::WithHandler {
                    self.connection = Connection::Here;
                }
                self.handler = HandlerIs::Absent;
            }
            Event::Decide(Decision::Commit, _) => (self.told_commit, self.decided) = (true, true),
            Event::CommitOnePhase(_) => self.told_commit = true,
            Event::Decide(Decision::Rollback, _) => (self.told_rollback, self.decided) = (true, true),
            Event::AskAgain => self.ask_again -= 1,
            Event::Enlisted
            | Event::EnlistRefused(_)
            | Event::Prepare(_)
            | Event::DeadlinePassed
            | Event::SessionLost
            | Event::Begun
            | Event::NotBegun(_)
            | Event::Discarded
            | Event::PrepareDone(_)
            | Event::Found(_)
            | Event::Resolved(_) => {}
        }
        let actions = self.branch.step(event).expect("only what can happen happens");
        actions.into_iter().for_each(|action| self.observe(action));
    }

    fn observe(&mut self, action: Action) {
        // A coordinator that decides for a branch that had not voted, and orders it to commit in one phase as well, is beyond help.
        if self.failed_handler && !self.decided {
            assert_ne!(self.truth, Truth::Committed, "a handler was told that it is rolled back");
        }
        match action {
            Action::Run(operation) => self.start(operation),
            Action::Enlist => assert!(!self.voted_commit && !self.voted_rollback),
            Action::Vote(Vote::Commit) => {
                assert_eq!(self.truth, Truth::Prepared, "a commit vote means prepared");
                assert!(!self.voted_rollback, "after a rollback vote");
                self.voted_commit = true;
            }
            Action::Vote(Vote::Rollback(_)) => {
                assert!(matches!(self.truth, Truth::Nothing | Truth::Fenced), "it could still commit");
                self.voted_rollback = true;
            }
            Action::Vote(Vote::ReadOnly) => assert_eq!(self.truth, Truth::Nothing),
            Action::Acknowledge(Applied::Committed) => assert_eq!(self.truth, Truth::Committed),
            Action::Acknowledge(Applied::RolledBack) => {
                assert!(matches!(self.truth, Truth::Nothing | Truth::Fenced), "it could still commit");
                assert_eq!(self.connection, Connection::None, "its local transaction may still be open");
            }
            Action::Vote(Vote::Hazard(_)) | Action::Acknowledge(Applied::Hazard) => {
                assert_eq!(self.truth, Truth::Hazard);
            }
            Action::Acknowledge(Applied::NotYet(_)) => {}
            Action::Hand => {
                assert_eq!(
                    (self.connection, self.handler),
                    (Connection::Here, HandlerIs::WaitingForConnection)
                );
                (self.connection, self.handler) = (Connection::WithHandler, HandlerIs::Working);
            }
            Action::Answer(result) => {
                assert!(matches!(
                    self.handler,
                    HandlerIs::WaitingForConnection | HandlerIs::WaitingForAnswer
                ));
                if result.is_ok() {
                    assert_eq!(self.handler, HandlerIs::WaitingForAnswer);
                }
                self.failed_handler |= result.is_err();
                self.handler = HandlerIs::Absent;
            }
            Action::AskLater(_) => self.ask_again += 1,
        }
    }

    fn start(&mut self, operation: Operation) {
        assert_eq!(self.running, None, "two operations at a time");
        match operation {
            Operation::Discard | Operation::Prepare(_) | Operation::CommitOnePhase(_) => {
                assert_eq!(self.connection, Connection::Here, "a handler may hold it (P17)");
                self.connection = Connection::InOperation;
            }
            Operation::Begin(_) => assert_eq!(self.connection, Connection::None),
            Operation::Find | Operation::Commit(_) | Operation::Rollback(_) | Operation::Prove(_) => {}
        }
        match operation {
            Operation::Prepare(_) | Operation::CommitOnePhase(_) => {
                assert!(!self.voted_rollback, "a branch that voted rollback can never commit");
            }
            Operation::Commit(_) | Operation::Prove(_) => {
                assert!(self.told_commit, "nobody decided to commit")
            }
            Operation::Rollback(_) if self.voted_commit && self.truth == Truth::Prepared => {
                assert!(self.told_rollback, "a branch that voted commit is rolled back by decision only");
            }
            Operation::Begin(_) | Operation::Discard | Operation::Find | Operation::Rollback(_) => {}
        }
        self.running = Some(operation);
    }

    /// The faults stop: every operation is answered, every handler lets go, every wait ends.
    fn heal(&mut self) {
        for _ in 0..100 {
            if self.running.is_some() {
                self.end_operation(3, false);
            } else if self.handler == HandlerIs::Working {
                self.happen(Event::HandlerGone);
            } else if self.ask_again > 0 {
                self.happen(Event::AskAgain);
            } else {
                break;
            }
        }
        let settled =
            matches!(self.branch.state(), State::Absent | State::Open(_) | State::Prepared | State::Ended(_));
        assert!(settled && self.running.is_none(), "it is stuck: {self:#?}");
        assert_ne!(self.handler, HandlerIs::WaitingForConnection, "a handler waits for ever");
        if self.handler == HandlerIs::WaitingForAnswer {
            assert!(matches!(self.branch.state(), State::Open(Handler::Finishing(_))));
        }
        assert!(
            self.connection == Connection::None || self.branch.is_open(),
            "a connection is left over: {self:#?}"
        );
    }
}

/// How far a walk's branch has come when chance takes over: the deeper states are rarely reached by chance alone.
#[derive(Debug, Clone, Copy)]
enum From {
    Nothing,
    Idle,
    Preparing,
    VotingEarly,
    Prepared,
}

impl World {
    fn from(start: From) -> Self {
        let mut world = Self::new();
        if matches!(start, From::Idle | From::Preparing | From::Prepared) {
            world.happen(Event::Joined(Duration::from_secs(1)));
            world.end_operation(1, false);
            world.happen(Event::Finished(Then::StayOpen));
            world.happen(Event::Enlisted);
        }
        if matches!(start, From::VotingEarly) {
            world.happen(Event::Joined(Duration::from_secs(1)));
            world.end_operation(1, false);
            world.happen(Event::Enlisted);
            world.happen(Event::Finished(Then::Vote(position(1))));
        }
        if matches!(start, From::Preparing | From::Prepared) {
            world.happen(Event::Prepare(position(1)));
        }
        if matches!(start, From::Prepared) {
            world.end_operation(3, false);
            assert!(world.voted_commit);
        }
        world
    }
}

fn walk(start: From, steps: &[(u8, u8)]) {
    let mut world = World::from(start);
    let mut fresh = matches!(start, From::Nothing);
    for (which, choice) in steps {
        // Half of the time whatever runs comes to its end, and every second time without an answer.
        if world.running.is_some() && which % 2 == 0 {
            world.end_operation(choice / 2, which % 4 == 0);
            continue;
        }
        let events = world.possible(fresh);
        let event = events[usize::from(*choice) % events.len()].clone();
        fresh &= matches!(event, Event::Enlisted | Event::EnlistRefused(_));
        world.happen(event);
    }
    world.heal();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_path_breaks_a_promise(
        start in prop_oneof![Just(From::Nothing), Just(From::Idle), Just(From::Preparing), Just(From::VotingEarly), Just(From::Prepared)],
        steps in proptest::collection::vec(any::<(u8, u8)>(), 0..30),
    ) {
        walk(start, &steps);
    }
}
