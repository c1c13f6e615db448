//! A participant's process: the shell around the SDK's real session, as `participant/driver.rs` is it live. It may be killed between any
//! two effects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use lockstep::JoinError;
use lockstep::branch::Operation;

use lockstep::session::message::{FromCoordinator, ToCoordinator};
use lockstep::session::{Closing, Effect, Event, HandlerId, Session};
use lockstep_proto::{InstanceId, ResourceManagerName, Xid};

use super::client::Call;
use super::faults::Kind;
use super::happening::Happening;
use super::history::{BranchFacts, Local, branch_number, number_of};
use super::node::micros_up;
use super::queue::Time;
use super::store::Process;
use super::trace::say;
use super::world::{MILLI, SECOND, World};

/// Waits between attempts to attach.
const FIRST_WAIT: Time = 50 * MILLI;
const LONGEST_WAIT: Time = 2 * SECOND;
const WAIT_AFTER_REFUSAL: Time = 30 * SECOND;
/// Waits between questions to a store that did not answer.
const FIRST_QUESTION: Time = 100 * MILLI;
const LONGEST_QUESTION: Time = 10 * SECOND;

/// One instance of a participant.
#[derive(Debug)]
pub struct Instance {
    /// Which of its lives.
    pub life: u32,
    /// Which store it serves.
    pub store: usize,
    name: ResourceManagerName,
    number: usize,
    /// `None` while the process is down.
    session: Option<Session>,
    link: Option<usize>,
    /// The greeting is done.
    pub attached: bool,
    /// When the session wants to be woken.
    pub wake: Time,
    /// Cut off from the coordinator until then.
    pub cut_until: Time,
    attempts: u32,
    /// Connections that are neither with a handler nor in an operation.
    here: BTreeSet<u32>,
    /// Branches with an operation of the open connection under way.
    busy: Vec<u32>,
    /// What each running handler was called for.
    handlers: BTreeMap<HandlerId, Call>,
    next_handler: HandlerId,
    /// What was read while the greeting waited for the store.
    unread: VecDeque<FromCoordinator>,
    events: VecDeque<Event>,
}

impl Instance {
    /// One that is down.
    #[must_use]
    pub fn new(number: usize, store: usize, name: &ResourceManagerName) -> Self {
        Self {
            life: 0,
            store,
            name: name.clone(),
            number,
            session: None,
            link: None,
            attached: false,
            wake: Time::MAX,
            cut_until: 0,
            attempts: 0,
            here: BTreeSet::new(),
            busy: Vec::new(),
            handlers: BTreeMap::new(),
            next_handler: 0,
            unread: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Whether this is its life now.
    #[must_use]
    pub fn is(&self, process: Process) -> bool {
        self.life == process.life && self.session.is_some()
    }

    fn process(&self) -> Process {
        Process { instance: self.number, life: self.life }
    }

    /// Its stream.
    #[must_use]
    pub const fn link(&self) -> Option<usize> {
        self.link
    }

    /// The session, if the process runs.
    #[must_use]
    pub const fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }
}

impl World {
    pub(super) fn instance_starts(&mut self, instance: usize) {
        let id = InstanceId::from_bytes(u128::from(self.rng.bits()).to_be_bytes());
        let process = &mut self.instances[instance];
        if process.session.is_some() {
            return;
        }
        process.life += 1;
        process.session = Some(Session::new(process.name.clone(), id));
        (process.attempts, process.link, process.attached) = (0, None, false);
        let dials = Happening::Dials(process.process());
        say!(self, None, "instance {instance} starts");
        self.plan(0, dials);
    }

    /// Kills a participant's process. What it had just sent to its store still gets there, or not.
    pub(super) fn kill_instance(&mut self, instance: usize) {
        let process = &mut self.instances[instance];
        let Some(session) = process.session.take() else { return };
        self.reached.session_seen(session.seen());
        let gone = process.process();
        let busy = std::mem::take(&mut process.busy);
        process.here.clear();
        process.handlers.clear();
        process.unread.clear();
        process.events.clear();
        process.wake = Time::MAX;
        process.attached = false;
        let link = process.link.take();
        let store = process.store;
        say!(self, None, "instance {instance} is killed");
        self.stores[store].disconnect(gone, &busy, &mut self.history);
        if let Some(link) = link {
            self.links[link].up_at_participant = false;
            self.end_soon_at_node(link);
        }
        let down = self.rng.between(5 * MILLI, 300 * MILLI);
        self.plan(down, Happening::InstanceStarts(instance));
    }

    // ---- the session ----

    /// Has the session take an event, and carries out what it asks for. An event that comes up on the way is taken after that.
    pub(super) fn tell(&mut self, instance: usize, event: Event) {
        let process = &mut self.instances[instance];
        process.events.push_back(event);
        if process.events.len() > 1 {
            return;
        }
        let life = process.life;
        let now = Duration::from_micros(self.now);
        loop {
            let process = &mut self.instances[instance];
            let Some(session) = process.session.as_mut().filter(|_| process.life == life) else { return };
            let Some(event) = process.events.front_mut() else { break };
            let event = std::mem::replace(event, Event::Tick);
            for effect in session.handle(now, event) {
                if self.strikes_rarely(Kind::ParticipantCrash) {
                    return self.kill_instance(instance);
                }
                self.effect(instance, effect);
                // Carrying it out may have ended the process.
                if self.instances[instance].life != life || self.instances[instance].session.is_none() {
                    return;
                }
            }
            self.instances[instance].events.pop_front();
        }
        let process = &mut self.instances[instance];
        let wake = process.session.as_ref().and_then(Session::next_wake);
        process.wake = wake.map_or(Time::MAX, micros_up);
    }

    fn effect(&mut self, instance: usize, effect: Effect) {
        let process = self.instances[instance].process();
        match effect {
            Effect::Send(ToCoordinator::Hello(hello)) => {
                let link = self.open_link(instance, hello);
                self.instances[instance].link = Some(link);
            }
            Effect::Send(message) => {
                self.before_participant_says(&message);
                if let Some(link) = self.instances[instance].link {
                    self.send_up(link, message);
                }
            }
            Effect::Run(branch, operation) => {
                self.takes_connection(instance, &branch.xid, &operation);
                let prepares = matches!(operation, Operation::Prepare(_));
                self.begin_operation(process, branch, operation);
                // The one moment in which a process is missed most: what it had sent may still prepare its branch.
                if prepares && self.faults.strikes_rarely(Kind::ParticipantCrash, 20, &mut self.rng) {
                    self.kill_instance(instance);
                }
            }
            Effect::Hand(handler, xid) => self.hand(instance, handler, xid),
            Effect::RefuseJoin(handler, why) => {
                if matches!(why, JoinError::NoRoom { .. }) {
                    self.reached.note("no room for a branch");
                } else if matches!(why, JoinError::Voted { .. }) {
                    self.reached.note("joined after an early vote");
                }
                self.answer_call(instance, handler, false);
            }
            Effect::AnswerFinish(handler, Err(_)) => self.answer_call(instance, handler, false),
            Effect::AnswerFinish(handler, Ok(())) => self.answer_call(instance, handler, true),
            Effect::AskLater(xid, failed) => {
                let wait = (FIRST_QUESTION << failed.min(10)).min(LONGEST_QUESTION);
                self.plan(wait, Happening::AsksAgain(process, xid));
            }
            Effect::Settle(position, epochs) => {
                self.stores[self.instances[instance].store].settle(position, &epochs);
            }
            Effect::Bind(session, cluster) => {
                let at = self.store_takes();
                self.plan(at, Happening::Binds(process, session, cluster));
            }
            Effect::List { session, cluster, again } => {
                let at = self.store_takes();
                self.plan(at, Happening::Lists(process, session, cluster, again));
            }
            Effect::FindRoom => {
                let at = self.store_takes();
                self.plan(at, Happening::FindsRoom(process));
            }
            Effect::FindOldEvidence { session, cluster, retention, limit } => {
                let at = self.store_takes();
                let happening = Happening::LooksForEvidence(process, session, cluster, retention, limit);
                self.plan(at, happening);
            }
            Effect::Forget(session, branches) => {
                let at = self.store_takes();
                self.plan(at, Happening::Forgets(process, session, branches));
            }
            // There is one coordinator at a time: nobody tells of another one's epoch.
            Effect::Sealed(epochs) => unreachable!("epochs {epochs:?} are told to be sealed"),
            Effect::Attached(..) => self.instances[instance].attached = true,
            Effect::Close(why) => self.close(instance, &why),
            Effect::Warn(_, text) => say!(self, None, "instance {instance} warns: {text}"),
        }
    }

    /// A connection that is used up has to be here, and not with a handler (P17).
    fn takes_connection(&mut self, instance: usize, xid: &Xid, operation: &Operation) {
        let number = branch_number(&xid.bqual);
        match operation {
            Operation::Discard | Operation::Prepare(_) | Operation::CommitOnePhase(_) => {
                let process = &mut self.instances[instance];
                process.busy.push(number);
                if !process.here.remove(&number) {
                    let what = format!("{operation:?} of {xid}, whose connection a handler has");
                    self.violate("agreement", Some(number_of(&xid.gtrid)), what);
                }
            }
            Operation::Begin(_)
            | Operation::Find
            | Operation::Commit(_)
            | Operation::Rollback(_)
            | Operation::Prove(_) => {}
        }
    }

    /// An operation of this branch's connection is over.
    pub(super) fn is_free(&mut self, instance: usize, number: u32) {
        self.instances[instance].busy.retain(|busy| *busy != number);
    }

    /// A branch's connection is with the shell.
    pub(super) fn has_connection(&mut self, instance: usize, number: u32) {
        self.instances[instance].here.insert(number);
    }

    // ---- the stream ----

    pub(super) fn dials(&mut self, instance: usize) {
        if self.instances[instance].link.is_some() {
            return;
        }
        if self.strikes(Kind::Unavailable) {
            return self.dial_later(instance, &Closing::Broken("the store is out of reach".to_owned()));
        }
        // No branch is joined before the room is known.
        self.finds_room(instance);
        let attachment = self.stores[self.instances[instance].store].attachment();
        self.tell(instance, Event::Dialled(attachment));
    }

    pub(super) fn heard_by_participant(&mut self, link: usize, message: FromCoordinator) {
        let instance = self.links[link].instance;
        say!(self, about(&message), "instance {instance} hears over link {link}: {message:?}");
        let process = &mut self.instances[instance];
        if process.session.as_ref().is_some_and(Session::is_binding) {
            process.unread.push_back(message);
            return;
        }
        self.tell(instance, Event::Received(message));
    }

    pub(super) fn ends_at_participant(&mut self, link: usize, why: &Closing) {
        if !std::mem::replace(&mut self.links[link].up_at_participant, false) {
            return;
        }
        let instance = self.links[link].instance;
        say!(self, None, "link {link} is over at instance {instance}: {why:?}");
        self.down(instance, why);
        self.end_soon_at_node(link);
        self.tell(instance, Event::Disconnected);
    }

    /// The session ends it.
    fn close(&mut self, instance: usize, why: &Closing) {
        let Some(link) = self.instances[instance].link else { return };
        say!(self, None, "instance {instance} closes link {link}: {why:?}");
        self.reached.note("session closed by its participant");
        self.links[link].up_at_participant = false;
        self.end_soon_at_node(link);
        self.down(instance, why);
    }

    fn down(&mut self, instance: usize, why: &Closing) {
        let process = &mut self.instances[instance];
        if std::mem::take(&mut process.attached) {
            process.attempts = 0;
        }
        process.link = None;
        process.unread.clear();
        self.dial_later(instance, why);
    }

    fn dial_later(&mut self, instance: usize, why: &Closing) {
        let process = &mut self.instances[instance];
        let wait = match why {
            Closing::Refused(_) => WAIT_AFTER_REFUSAL,
            Closing::Broken(_) | Closing::Detached => {
                (FIRST_WAIT << process.attempts.min(10)).min(LONGEST_WAIT)
            }
        };
        process.attempts += 1;
        let dials = Happening::Dials(process.process());
        self.plan(wait, dials);
    }

    /// The greeting has ended: what was sent behind the welcome may be read.
    pub(super) fn reads_on(&mut self, instance: usize) {
        while let Some(message) = self.instances[instance].unread.pop_front() {
            self.tell(instance, Event::Received(message));
        }
    }

    // ---- handlers ----

    pub(super) fn call_arrives(&mut self, call: Call) {
        let process = &mut self.instances[call.instance];
        if process.session.is_none() {
            return; // The connection is refused; the caller finds out by itself.
        }
        let handler = process.next_handler;
        process.next_handler += 1;
        let (instance, gtrid, deadline) = (call.instance, call.gtrid, call.deadline);
        let branch = self.history.branches.len();
        self.history.branches.push(BranchFacts {
            transaction: number_of(&gtrid),
            read_only: call.read_only,
            local: Local::None,
            was_prepared: false,
            voted_commit: false,
            by_hand: false,
            undone: false,
        });
        self.instances[instance].handlers.insert(handler, call);
        let event = Event::Join {
            handler,
            cluster: self.log.cluster,
            gtrid,
            deadline: Duration::from_micros(deadline),
            random: branch as u64,
        };
        self.tell(instance, event);
    }

    /// A handler has the connection, and works.
    fn hand(&mut self, instance: usize, handler: HandlerId, xid: Xid) {
        let number = branch_number(&xid.bqual);
        let process = &mut self.instances[instance];
        process.here.remove(&number);
        let process = process.process();
        // A handler that comes second may write where the first did not.
        if let Some(call) = self.instances[instance].handlers.get(&handler)
            && !call.read_only
        {
            self.history.branches[number as usize].read_only = false;
        }
        let mut works = self.latency();
        if self.strikes(Kind::HandlerSlow) {
            works += self.rng.between(100 * MILLI, 5 * SECOND);
        }
        let well = !self.strikes(Kind::HandlerFails);
        self.plan(works, Happening::HandlerEnds(process, handler, xid, well));
    }

    pub(super) fn handler_ends(&mut self, instance: usize, handler: HandlerId, xid: Xid, well: bool) {
        self.has_connection(instance, branch_number(&xid.bqual));
        if well {
            let call = self.instances[instance].handlers.get(&handler);
            // One that has written nothing votes when it is asked (P23).
            let writes = !self.history.branches[branch_number(&xid.bqual) as usize].read_only;
            let votes = call.is_some_and(|call| call.votes) && writes;
            self.tell(instance, Event::Finished { xid, handler, votes });
        } else {
            self.tell(instance, Event::HandlerGone(xid, handler));
            self.answer_call(instance, handler, false);
        }
    }

    fn answer_call(&mut self, instance: usize, handler: HandlerId, done: bool) {
        let Some(call) = self.instances[instance].handlers.remove(&handler) else { return };
        if self.strikes(Kind::CallLost) {
            return;
        }
        let latency = self.latency();
        self.plan(latency, Happening::CallAnswered(call.client, call.attempt, done));
    }
}

fn about(message: &FromCoordinator) -> Option<u32> {
    match message {
        FromCoordinator::Enlisted(xid, _)
        | FromCoordinator::EnlistRefused(xid, _)
        | FromCoordinator::Prepare(xid, _)
        | FromCoordinator::Decide(xid, ..)
        | FromCoordinator::CommitOnePhase(xid, _)
        | FromCoordinator::Refused(xid, _) => Some(number_of(&xid.gtrid)),
        FromCoordinator::Welcome(_)
        | FromCoordinator::ReportAnswer(..)
        | FromCoordinator::ReconcileAnswer(_)
        | FromCoordinator::Inspect(..)
        | FromCoordinator::Nodes(_)
        | FromCoordinator::Sealed(_)
        | FromCoordinator::Drain => None,
    }
}
