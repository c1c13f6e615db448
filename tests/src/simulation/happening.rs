//! What can be planned in a world, and who takes it.

use std::time::Duration;

use lockstep::branch::Operation;
use lockstep::resource::{BranchId, EvidenceRow, Unresolved};
use lockstep::session::message::{FromCoordinator, Hello, ToCoordinator};
use lockstep::session::{Closing, Done, Event, HandlerId, Listing};
use lockstep_proto::{ClusterId, Xid};

use super::client::{Call, Request, Told};
use super::faults::Kind;
use super::node_questions::Question;
use super::store::Process;
use super::world::World;

/// Something that is planned. What is planned for a process that has ended meanwhile does not happen.
#[derive(Debug)]
pub enum Happening {
    // ---- the network ----
    /// A hello arrives at the coordinator.
    HelloArrives(usize, Hello),
    /// A message arrives at the coordinator.
    AtNode(usize, ToCoordinator),
    /// A message arrives at a participant.
    AtParticipant(usize, FromCoordinator),
    /// The coordinator learns that a session is over.
    EndsAtNode(usize),
    /// A participant learns it.
    EndsAtParticipant(usize, Closing),
    /// The greeting should be over.
    GreetingIsLate(usize),

    // ---- participants ----
    /// A participant's process starts.
    InstanceStarts(usize),
    /// It attaches to its store, and then dials.
    Dials(Process),
    /// An operation takes effect in the store.
    TakesEffect(Process, BranchId, Operation),
    /// Its reply is here.
    Replied(Process, Xid, Done),
    /// A store is bound to a cluster.
    Binds(Process, u64, ClusterId),
    /// A listing is begun.
    Lists(Process, u64, ClusterId, bool),
    /// Its second half: the store had been restarted so often when it began.
    ListsOn(Process, u64, u32, Listing),
    /// Old evidence is looked for.
    LooksForEvidence(Process, u64, ClusterId, Duration, usize),
    /// It was found.
    FoundEvidence(Process, u64, Result<Vec<EvidenceRow>, Unresolved>),
    /// A store says how much room it has.
    FindsRoom(Process),
    /// Evidence is deleted.
    Forgets(Process, u64, Vec<BranchId>),
    /// A wait is over.
    AsksAgain(Process, Xid),
    /// A client's call arrives at a service.
    CallArrives(Call),
    /// A handler is done.
    HandlerEnds(Process, HandlerId, Xid, bool),

    // ---- clients ----
    /// The next one.
    ClientArrives,
    /// A client has waited long enough for the answer to this attempt.
    ClientWakes(u32, u32),
    /// A request arrives at the coordinator.
    RequestArrives(u32, u32, Request),
    /// Its answer is here.
    AnswerArrives(u32, u32, Told),
    /// A service has answered this attempt; whether its work is done.
    CallAnswered(u32, u32, bool),

    // ---- the coordinator ----
    /// Its process starts.
    NodeStarts,
    /// A force of this life is over.
    ForceEnds(u32),
    /// Ends have waited long enough.
    LazyIsDue(u32),
    /// The log was read again behind the fence.
    ReadBehindFence(u32),
    /// A look into the log.
    LooksUp(u32, Question),
    /// Pruning.
    Prunes(u32),

    /// A fault that was drawn before, or a person.
    Befalls(Kind),
}

impl World {
    pub(super) fn happen(&mut self, what: Happening) {
        use Happening as H;
        match what {
            H::HelloArrives(link, hello) => self.hello_arrives(link, hello),
            H::AtNode(link, message) => self.at_node(link, message),
            H::AtParticipant(link, message) => self.at_participant(link, message),
            H::EndsAtNode(link) => self.ends_at_node(link),
            H::EndsAtParticipant(link, why) => self.ends_at_participant(link, &why),
            H::GreetingIsLate(link) => self.greeting_is_late(link),

            H::InstanceStarts(instance) => self.instance_starts(instance),
            H::ClientArrives => self.next_client(),
            H::CallArrives(call) => self.call_arrives(call),
            H::ClientWakes(client, attempt) => self.client_wakes(client, attempt),
            H::RequestArrives(client, attempt, request) => self.request_arrives(client, attempt, request),
            H::AnswerArrives(client, attempt, told) => self.answer_arrives(client, attempt, told),
            H::CallAnswered(client, attempt, done) => self.call_answered(client, attempt, done),

            H::NodeStarts => self.node_starts(),
            H::ForceEnds(life) if self.is_alive(life) => self.force_ends(),
            H::LazyIsDue(life) if self.is_alive(life) => self.lazy_is_due(),
            H::ReadBehindFence(life) if self.is_alive(life) => self.read_behind_fence(),
            H::LooksUp(life, question) if self.is_alive(life) => self.looks_up(question),
            H::Prunes(life) if self.is_alive(life) => self.prunes(),
            H::ForceEnds(_) | H::LazyIsDue(_) | H::ReadBehindFence(_) | H::LooksUp(..) | H::Prunes(_) => {}

            H::TakesEffect(process, branch, operation) => self.takes_effect(process, branch, operation),
            H::Dials(process)
            | H::Replied(process, ..)
            | H::Binds(process, ..)
            | H::Lists(process, ..)
            | H::ListsOn(process, ..)
            | H::LooksForEvidence(process, ..)
            | H::FoundEvidence(process, ..)
            | H::FindsRoom(process)
            | H::Forgets(process, ..)
            | H::AsksAgain(process, ..)
            | H::HandlerEnds(process, ..) => {
                if self.instances[process.instance].is(process) {
                    self.at_process(process, what);
                }
            }
            H::Befalls(kind) => self.befalls(kind),
        }
    }

    /// What is planned for a process that is still alive.
    fn at_process(&mut self, process: Process, what: Happening) {
        use Happening as H;
        let instance = process.instance;
        match what {
            H::Dials(_) => self.dials(instance),
            H::Replied(_, xid, done) => self.tell(instance, Event::Done(xid, done)),
            H::Binds(_, session, cluster) => self.binds(instance, session, cluster),
            H::Lists(_, session, cluster, again) => self.lists(process, session, cluster, again),
            H::ListsOn(_, session, restarts, listing) => self.lists_on(instance, session, restarts, listing),
            H::LooksForEvidence(_, session, cluster, retention, limit) => {
                self.looks_for_evidence(process, session, cluster, retention, limit);
            }
            H::FoundEvidence(_, session, found) => self.tell(instance, Event::OldEvidence(session, found)),
            H::FindsRoom(_) => self.finds_room(instance),
            H::Forgets(_, session, branches) => self.forgets(instance, session, &branches),
            H::AsksAgain(_, xid) => self.tell(instance, Event::AskAgain(xid)),
            H::HandlerEnds(_, handler, xid, well) => self.handler_ends(instance, handler, xid, well),
            H::HelloArrives(..)
            | H::AtNode(..)
            | H::AtParticipant(..)
            | H::EndsAtNode(_)
            | H::EndsAtParticipant(..)
            | H::GreetingIsLate(_)
            | H::InstanceStarts(_)
            | H::TakesEffect(..)
            | H::ClientArrives
            | H::CallArrives(_)
            | H::ClientWakes(..)
            | H::RequestArrives(..)
            | H::AnswerArrives(..)
            | H::CallAnswered(..)
            | H::NodeStarts
            | H::ForceEnds(_)
            | H::LazyIsDue(_)
            | H::ReadBehindFence(_)
            | H::LooksUp(..)
            | H::Prunes(_)
            | H::Befalls(_) => unreachable!("only what is planned for a process comes here"),
        }
    }
}
