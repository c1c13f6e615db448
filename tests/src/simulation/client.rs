//! The applications: they begin, call services, and end their transactions by the rules of the SDK's client. Every request is repeated
//! until it is answered or patience ends; once commit was sent, rollback never is (P13).

use std::time::Duration;

use lockstep_coordinator::engine::input::{Input, Wait};
use lockstep_coordinator::protocol::outcome::Outcome;
use lockstep_coordinator::protocol::record::About;
use lockstep_proto::Gtrid;

use super::faults::Kind;
use super::happening::Happening;
use super::history::{Facts, bits_of, number_of};
use super::node::ReplyTo;
use super::queue::Time;
use super::trace::say;
use super::world::{MILLI, SECOND, World};

/// How long a request is repeated while nobody answers.
const PATIENCE: Time = 10 * SECOND;
/// How long one attempt waits.
const ATTEMPT: Time = 2 * SECOND;
/// Between two attempts when the answer was that there is none yet.
const AGAIN: Time = 200 * MILLI;

/// A call of a service.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who calls.
    pub client: u32,
    /// With which attempt.
    pub attempt: u32,
    /// Whom.
    pub instance: usize,
    /// In which transaction.
    pub gtrid: Gtrid,
    /// Until when.
    pub deadline: Time,
    /// The service writes nothing.
    pub read_only: bool,
    /// It votes when its handler ends, without being asked.
    pub votes: bool,
}

/// What a client asks of the coordinator.
#[derive(Debug, Clone, Copy)]
pub enum Request {
    /// Begin, with this timeout.
    Begin(Time),
    /// Commit.
    Commit(Gtrid, Wait),
    /// Roll back.
    Rollback(Gtrid),
    /// How has it ended?
    Inquire(Gtrid),
}

/// What it is told.
#[derive(Debug, Clone, Copy)]
pub enum Told {
    /// It has begun.
    Begun(Gtrid),
    /// Not now.
    Refused,
    /// What is known.
    Outcome(Option<Outcome>),
}

/// What it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Beginning,
    Calling,
    Ending,
    Inquiring,
    Done,
}

/// How it means to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Commit(Wait),
    Rollback,
    /// It forgets about it.
    Abandon,
}

/// One application's transaction.
#[derive(Debug)]
pub struct Client {
    state: State,
    gtrid: Option<Gtrid>,
    timeout: Time,
    deadline: Time,
    patience: Time,
    attempt: u32,
    /// The instances to call, and whether the service only reads.
    calls: Vec<(usize, bool)>,
    called: usize,
    ending: Ending,
    /// Commit is sent before the last service has answered.
    hasty: bool,
    /// It asks once more when it knows.
    curious: bool,
}

impl Client {
    /// The transaction that it asks about.
    ///
    /// # Panics
    /// If it has not begun one.
    #[must_use]
    pub fn asked(&self) -> Gtrid {
        self.gtrid.expect("who asks for an outcome has a transaction")
    }

    /// The transaction that it has begun.
    #[must_use]
    pub const fn gtrid(&self) -> Option<Gtrid> {
        self.gtrid
    }
}

impl World {
    pub(super) fn next_client(&mut self) {
        if self.faults.are_over() || self.violation.is_some() {
            return;
        }
        self.client_arrives(false);
        self.draw_calamities();
        if self.clients.len() < self.wanted() {
            let until = self.rng.below(2 * self.style.between);
            self.plan(until, Happening::ClientArrives);
        }
    }

    /// A client begins. `plain`: it means nothing but to commit.
    pub(super) fn client_arrives(&mut self, plain: bool) {
        let calls = (0..self.rng.pick(&[1, 2, 2, 2, 3, 3, 4])).map(|_| self.planned_call()).collect();
        let wait = if self.rng.coin() { Wait::Applied } else { Wait::Decided };
        let ending = match self.rng.below(100) {
            0..1 if !plain => Ending::Abandon,
            1..2 if !plain => Ending::Rollback,
            _ => Ending::Commit(wait),
        };
        let client = Client {
            state: State::Beginning,
            gtrid: None,
            timeout: if plain { 30 * SECOND } else { self.rng.pick(&self.style.timeouts) },
            deadline: 0,
            patience: self.now + PATIENCE,
            attempt: 0,
            calls,
            called: 0,
            ending,
            hasty: !plain && self.rng.below(60) == 0,
            curious: self.rng.below(8) == 0,
        };
        self.busy_clients += 1;
        self.clients.push(client);
        let client = u32::try_from(self.clients.len() - 1).expect("a world has few clients");
        self.begin(client);
    }

    fn planned_call(&mut self) -> (usize, bool) {
        (self.rng.index(self.instances.len()), self.rng.below(12) == 0)
    }

    fn client(&mut self, client: u32) -> &mut Client {
        &mut self.clients[client as usize]
    }

    fn is_done(&mut self, client: u32) {
        let client = self.client(client);
        assert_ne!(client.state, State::Done, "a client is done once");
        client.state = State::Done;
        self.busy_clients -= 1;
    }

    /// Sends a request, and waits for its answer.
    fn request(&mut self, client: u32, request: Request) {
        if self.strikes(Kind::ClientGone) {
            return self.is_done(client);
        }
        self.client(client).attempt += 1;
        let attempt = self.client(client).attempt;
        self.plan(ATTEMPT, Happening::ClientWakes(client, attempt));
        if self.strikes(Kind::CallLost) {
            return;
        }
        let latency = self.latency();
        self.plan(latency, Happening::RequestArrives(client, attempt, request));
    }

    fn begin(&mut self, client: u32) {
        let timeout = self.client(client).timeout;
        self.request(client, Request::Begin(timeout));
    }

    // ---- at the coordinator ----

    pub(super) fn request_arrives(&mut self, client: u32, attempt: u32, request: Request) {
        let Some(node) = &self.node else {
            // The connection is refused, which is known at once.
            return self.plan(AGAIN, Happening::ClientWakes(client, attempt));
        };
        let reply = ReplyTo::Client(client, attempt);
        match request {
            Request::Begin(_) if self.unix_ms() <= node.horizon_ms => {
                self.reached.note("clock behind the horizon");
                self.send_answer(client, attempt, Told::Refused);
            }
            Request::Begin(timeout) => self.begins(timeout, reply),
            Request::Commit(gtrid, wait) => {
                say!(self, Some(number_of(&gtrid)), "coordinator is asked to commit");
                self.give(self.shard_of(&gtrid), Input::Commit { gtrid, wait, reply });
            }
            Request::Rollback(gtrid) => {
                say!(self, Some(number_of(&gtrid)), "coordinator is asked to roll back");
                let why = "the application rolled it back".to_owned();
                self.give(self.shard_of(&gtrid), Input::Rollback { gtrid, why, reply });
            }
            Request::Inquire(gtrid) => self.give(self.shard_of(&gtrid), Input::Inquire { gtrid, reply }),
        }
    }

    fn begins(&mut self, timeout: Time, reply: ReplyTo) {
        let random = bits_of(self.history.transactions.len());
        // Its time is not known before the shard has made it; nothing but its number is looked at.
        let gtrid = Gtrid::new(self.log.position().epoch, self.unix_ms(), random);
        self.history.transactions.push(Facts {
            gtrid,
            enlisted: Vec::new(),
            decision: None,
            deciding: None,
            told_committed: false,
            told_rolled_back: false,
            heuristic: false,
        });
        say!(self, Some(number_of(&gtrid)), "coordinator begins {gtrid}");
        let timeout = Duration::from_micros(timeout);
        let input = Input::Begin { random, timeout, about: About::default(), reply };
        self.give(self.shard_of(&gtrid), input);
    }

    // ---- answers ----

    pub(super) fn answer_arrives(&mut self, client: u32, attempt: u32, told: Told) {
        let Client { attempt: current, state, gtrid, .. } = *self.client(client);
        if attempt != current {
            return; // Of an attempt that was given up.
        }
        say!(self, gtrid.as_ref().map(number_of), "client {client} is told {told:?}");
        match (state, told) {
            (State::Beginning, Told::Begun(gtrid)) => {
                let now = self.now;
                let client_ = self.client(client);
                client_.gtrid = Some(gtrid);
                client_.deadline = now + client_.timeout;
                client_.state = State::Calling;
                self.call_next(client);
            }
            (State::Beginning, Told::Refused) | (State::Ending | State::Inquiring, Told::Outcome(None)) => {
                self.plan(AGAIN, Happening::ClientWakes(client, attempt));
            }
            (State::Ending | State::Inquiring, Told::Outcome(Some(Outcome::Unknown))) => {
                self.plan(AGAIN, Happening::ClientWakes(client, attempt));
            }
            (State::Ending, Told::Outcome(Some(_))) => self.knows(client),
            (State::Inquiring, Told::Outcome(Some(_))) => self.is_done(client),
            (State::Done, _) => {}
            (State::Beginning | State::Calling | State::Ending | State::Inquiring, _) => {
                unreachable!("{told:?} answers no question of a client that is {state:?}")
            }
        }
    }

    fn knows(&mut self, client: u32) {
        if self.client(client).curious {
            self.inquire(client);
        } else {
            self.is_done(client);
        }
    }

    fn inquire(&mut self, client: u32) {
        let patience = self.now + PATIENCE;
        let asks = self.client(client);
        (asks.state, asks.patience) = (State::Inquiring, patience);
        let gtrid = asks.asked();
        self.request(client, Request::Inquire(gtrid));
    }

    pub(super) fn client_wakes(&mut self, client: u32, attempt: u32) {
        let now = self.now;
        let Client { attempt: current, state, patience, ending, gtrid, .. } = *self.client(client);
        if attempt != current {
            return;
        }
        match state {
            State::Done => {}
            State::Calling => self.work_failed(client),
            State::Beginning if now > patience => self.is_done(client),
            State::Beginning => self.begin(client),
            // The outcome is unknown to it. Some ask later.
            State::Ending if now > patience && gtrid.is_some() && self.client(client).curious => {
                self.reached.note("outcome unknown to its client");
                self.inquire(client);
            }
            State::Ending | State::Inquiring if now > patience => self.is_done(client),
            State::Ending => self.send_ending(client, ending),
            State::Inquiring => {
                let gtrid = self.client(client).asked();
                self.request(client, Request::Inquire(gtrid));
            }
        }
    }

    // ---- the work ----

    fn call_next(&mut self, client: u32) {
        if self.strikes(Kind::ClientGone) {
            return self.is_done(client);
        }
        let votes = self.style.early_votes && self.rng.coin();
        let faultless = self.faults.are_over() || self.faults.are_none();
        let calls = self.client(client);
        let Some((instance, read_only)) = calls.calls.get(calls.called).copied() else {
            return self.end(client);
        };
        calls.called += 1;
        calls.attempt += 1;
        // Once it has voted, nobody can work in it any more. A few have it do so too early all the same.
        let comes_again = calls.calls[calls.called..].iter().any(|(later, _)| *later == instance);
        let votes = votes && (!comes_again || calls.curious && !faultless);
        let hasty = calls.hasty && calls.called == calls.calls.len();
        let call = Call {
            client,
            attempt: calls.attempt,
            instance,
            gtrid: calls.asked(),
            deadline: calls.deadline,
            read_only,
            votes,
        };
        self.plan(ATTEMPT, Happening::ClientWakes(client, call.attempt));
        if !self.strikes(Kind::CallLost) {
            let latency = self.latency();
            self.plan(latency, Happening::CallArrives(call));
        }
        if hasty {
            self.end(client);
        }
    }

    pub(super) fn call_answered(&mut self, client: u32, attempt: u32, done: bool) {
        let Client { attempt: current, state, .. } = *self.client(client);
        if attempt != current || state != State::Calling {
            return;
        }
        if done { self.call_next(client) } else { self.work_failed(client) }
    }

    fn work_failed(&mut self, client: u32) {
        let abandons = self.rng.below(8) == 0;
        self.client(client).ending = if abandons { Ending::Abandon } else { Ending::Rollback };
        self.end(client);
    }

    fn end(&mut self, client: u32) {
        let now = self.now;
        let ends = self.client(client);
        ends.state = State::Ending;
        ends.patience = match ends.ending {
            // Until the deadline the coordinator may be deciding.
            Ending::Commit(_) => ends.deadline.max(now) + PATIENCE,
            Ending::Rollback | Ending::Abandon => now + PATIENCE,
        };
        let ending = ends.ending;
        self.send_ending(client, ending);
    }

    fn send_ending(&mut self, client: u32, ending: Ending) {
        let gtrid = self.client(client).asked();
        match ending {
            Ending::Commit(wait) => self.request(client, Request::Commit(gtrid, wait)),
            Ending::Rollback => self.request(client, Request::Rollback(gtrid)),
            Ending::Abandon => self.is_done(client),
        }
    }

    /// Whether this client meant to commit, and everything it knows of went well.
    pub(super) fn meant_to_commit(&self, client: usize) -> Option<Gtrid> {
        let client = &self.clients[client];
        let meant = matches!(client.ending, Ending::Commit(_)) && !client.hasty;
        client.gtrid.filter(|_| meant && client.called == client.calls.len())
    }
}
