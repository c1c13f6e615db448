//! The participants' processes, with the real branch machine, and their stores, as `lockstep::resource::Resource` wants them (P15 to P19).

use std::sync::Arc;

use lockstep::branch::{Action, Applied, Branch, Event, Operation, State, Vote};
use lockstep::resource::{Fate, Prepared, Unresolved};

use super::world::{Down, Link, Participant, Truth, Up, World, told};

fn unresolved() -> Unresolved {
    Unresolved(String::new())
}

impl Participant {
    /// What the store does: the truth changes, and this is its answer.
    fn perform(&mut self, operation: &Operation, refuses: bool) -> Event {
        match operation {
            Operation::Begin(_) => unreachable!("every branch has begun"),
            Operation::Discard => {
                if self.truth == Truth::Open {
                    self.truth = Truth::RolledBack;
                }
                Event::Discarded
            }
            Operation::Prepare(_) => Event::PrepareDone(self.prepare(refuses)),
            Operation::Find => Event::Found(Ok(self.truth == Truth::Prepared)),
            Operation::CommitOnePhase(_) => Event::Resolved(self.commit_one_phase()),
            Operation::Commit(_) | Operation::Prove(_) => {
                if self.truth == Truth::Prepared {
                    self.truth = Truth::Committed;
                }
                Event::Resolved(Ok(self.resolve()))
            }
            Operation::Rollback(_) => {
                if self.truth == Truth::Prepared {
                    self.truth = Truth::RolledBack;
                }
                Event::Resolved(Ok(self.resolve()))
            }
        }
    }

    fn prepare(&mut self, refuses: bool) -> Result<Prepared, Unresolved> {
        if self.truth != Truth::Open {
            return Err(unresolved());
        }
        if self.fenced || refuses {
            self.truth = Truth::RolledBack;
            return Ok(Prepared::No(String::new()));
        }
        if self.read_only {
            self.truth = Truth::ReadOnly;
            return Ok(Prepared::ReadOnly);
        }
        (self.truth, self.was_prepared) = (Truth::Prepared, true);
        Ok(Prepared::Yes)
    }

    fn commit_one_phase(&mut self) -> Result<Fate, Unresolved> {
        if self.truth != Truth::Open {
            return Err(unresolved());
        }
        self.truth = if self.fenced { Truth::RolledBack } else { Truth::Committed };
        Ok(if self.fenced { Fate::RolledBack } else { Fate::Committed })
    }

    /// Evidence tells what became of it; where there is none, a fence makes that final.
    fn resolve(&mut self) -> Fate {
        if self.truth == Truth::Committed {
            return Fate::Committed;
        }
        self.fenced = true;
        Fate::RolledBack
    }

    /// What was sent to the store takes no effect: what was open goes with its connection.
    fn vanish(&mut self, operation: &Operation) -> Event {
        let uses_up =
            matches!(operation, Operation::Discard | Operation::Prepare(_) | Operation::CommitOnePhase(_));
        if uses_up && self.truth == Truth::Open {
            self.truth = Truth::RolledBack;
        }
        unanswered(operation)
    }
}

/// What a process hears of an operation whose answer is lost.
fn unanswered(operation: &Operation) -> Event {
    match operation {
        Operation::Begin(_) => unreachable!("every branch has begun"),
        Operation::Discard => Event::Discarded,
        Operation::Prepare(_) => Event::PrepareDone(Err(unresolved())),
        Operation::Find => Event::Found(Err(unresolved())),
        Operation::CommitOnePhase(_)
        | Operation::Commit(_)
        | Operation::Rollback(_)
        | Operation::Prove(_) => Event::Resolved(Err(unresolved())),
    }
}

impl World {
    pub(super) fn participant(&mut self, number: usize) -> &mut Participant {
        Arc::make_mut(&mut self.participants[number])
    }

    /// Gives an event to a branch and carries out what it asks for.
    pub(super) fn step_branch(&mut self, number: usize, event: Event) {
        let Ok(actions) = self.participant(number).branch.step(event) else {
            self.broken = Some("an event that a branch holds impossible has come up");
            return;
        };
        for action in actions {
            self.act(number, action);
        }
    }

    fn act(&mut self, number: usize, action: Action) {
        match action {
            Action::Run(operation) => {
                let participant = self.participant(number);
                let uses_up = matches!(
                    operation,
                    Operation::Discard | Operation::Prepare(_) | Operation::CommitOnePhase(_)
                );
                let (two, taken) = (participant.running.is_some(), uses_up && participant.handler);
                participant.running = Some(operation);
                if two {
                    self.broken = Some("two operations of one branch at a time");
                }
                if taken {
                    self.broken = Some("a connection is used that a handler has (P17)");
                }
            }
            Action::Vote(Vote::Rollback(_)) => self.say(number, Up::Vote(Vote::Rollback(String::new()))),
            Action::Vote(vote) => self.say(number, Up::Vote(vote)),
            // The coordinator learns nothing from it but that the decision has to be told again, which it is anyway.
            Action::Acknowledge(Applied::NotYet(_)) => {}
            Action::Acknowledge(applied) => self.say(number, Up::Acknowledge(applied)),
            Action::AskLater(_) => self.participant(number).asks_again = true,
            Action::Enlist | Action::Hand | Action::Answer(_) => {}
        }
    }

    /// A message goes out over the session, if there is one.
    pub(super) fn say(&mut self, number: usize, message: Up) {
        let participant = self.participant(number);
        if participant.session.is_some() && !participant.up.contains(&message) {
            participant.up.push(message);
            // Their order means nothing: any may overtake any other.
            participant.up.sort_by_key(|up| format!("{up:?}"));
        }
    }

    pub(super) fn hears(&mut self, number: usize, message: Down, stays: bool) {
        if !stays {
            self.participant(number).down.remove(&message);
        }
        self.step_branch(number, told(message));
    }

    pub(super) fn store_answers(&mut self, number: usize, refuses: bool, heard: bool) {
        let participant = self.participant(number);
        let Some(operation) = participant.running.take() else { return };
        let answer = participant.perform(&operation, refuses);
        self.step_branch(number, if heard { answer } else { unanswered(&operation) });
    }

    pub(super) fn store_is_out_of_reach(&mut self, number: usize) {
        let participant = self.participant(number);
        let Some(operation) = participant.running.take() else { return };
        let answer = participant.vanish(&operation);
        self.step_branch(number, answer);
    }

    /// What a process that is gone had sent arrives, or never will.
    pub(super) fn late(&mut self, number: usize, arrives: bool) {
        let participant = self.participant(number);
        let Some(operation) = participant.late.take() else { return };
        if arrives {
            participant.perform(&operation, false);
        } else {
            participant.vanish(&operation);
        }
    }

    /// The process dies, and another one takes its place. What it had sent to its store may still get there.
    pub(super) fn participant_dies(&mut self, number: usize) {
        self.session_ends(number);
        let participant = self.participant(number);
        participant.branch = Branch::absent();
        (participant.handler, participant.asks_again, participant.sealed) = (false, false, 0);
        let sent = participant.running.take();
        match sent {
            Some(Operation::Discard | Operation::Find | Operation::Begin(_)) | None => {
                if participant.truth == Truth::Open && participant.late.is_none() {
                    participant.truth = Truth::RolledBack;
                }
            }
            // One that is gone can have sent one thing only; the one before is over by then.
            Some(sent) => participant.late = Some(sent),
        }
    }

    // ---- sessions ----

    /// The session is over: at once for the participant, and some time later for its coordinator.
    pub(super) fn session_ends(&mut self, number: usize) {
        let Some(node) = self.participant(number).session.take() else { return };
        self.participant(number).down.clear();
        if let Some(node) = self.node(node) {
            node.links[number] = Link::Broken;
        } else {
            self.participant(number).up.clear();
        }
        self.session_lost(number);
    }

    pub(super) fn session_lost(&mut self, number: usize) {
        let over = matches!(self.participants[number].branch.state(), State::Ended(_) | State::Absent);
        if !over {
            self.step_branch(number, Event::SessionLost);
        }
    }

    /// A participant attaches, and is told which epochs are sealed (P19).
    pub(super) fn attach(&mut self, number: usize, node: usize) {
        self.session_ends(number);
        // A new session of an instance supersedes its old one, wherever that was with this coordinator.
        self.notice(node, number);
        let sealed = self.log.sealed;
        let participant = self.participant(number);
        // What was still on its way over the old one would have to be told apart.
        participant.up.clear();
        participant.session = Some(node);
        participant.sealed |= sealed;
        if let Some(node) = self.node(node) {
            node.links[number] = Link::Up;
        }
    }

    /// Whether a participant may attach to this coordinator now.
    pub(super) fn may_attach(&self, number: usize, node: usize) -> bool {
        let Some(there) = &self.nodes[node] else { return false };
        let participant = &self.participants[number];
        let stale = participant.sealed & (1 << there.epoch) != 0;
        !there.adopting && !stale && participant.session != Some(node)
    }
}
