//! The network between participants and the coordinator: sessions that break, and messages that are lost, doubled, late and overtaken.
//!
//! A real session is a TCP stream, which does none of that but break. The protocol is held to more: a message that is lost inside a
//! session stands for every way in which it can be missing, from a full outbox to a proxy.

use lockstep::session::Closing;
use lockstep::session::message::{FromCoordinator, Hello, ToCoordinator};
use lockstep_proto::Xid;

use super::faults::Kind;
use super::happening::Happening;
use super::queue::Time;
use super::trace::say;
use super::world::{MILLI, SECOND, World};

/// How long a participant waits for its welcome.
const GREETING_TIMEOUT: Time = 5 * SECOND;
/// The longest until a side notices that the other one is gone: a ping and its timeout.
const NOTICED_WITHIN: Time = 4 * SECOND;

/// One session's stream.
#[derive(Debug)]
pub struct Link {
    /// Which instance's.
    pub instance: usize,
    /// Which life of the coordinator's.
    pub life: u32,
    /// The coordinator has it.
    pub up_at_node: bool,
    /// The participant has it.
    pub up_at_participant: bool,
    /// The latest arrival in each direction: what is sent later arrives later, as a rule.
    last: [Time; 2],
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// What a message is about.
fn about_up(message: &ToCoordinator) -> Option<&Xid> {
    match message {
        ToCoordinator::Enlist(xid) | ToCoordinator::Vote(xid, _) | ToCoordinator::Acknowledge(xid, _) => {
            Some(xid)
        }
        ToCoordinator::Hello(_)
        | ToCoordinator::Report { .. }
        | ToCoordinator::Reconcile(_)
        | ToCoordinator::Inspection(..) => None,
    }
}

fn about_down(message: &FromCoordinator) -> Option<&Xid> {
    match message {
        FromCoordinator::Enlisted(xid, _)
        | FromCoordinator::EnlistRefused(xid, _)
        | FromCoordinator::Prepare(xid, _)
        | FromCoordinator::Decide(xid, ..)
        | FromCoordinator::CommitOnePhase(xid, _)
        | FromCoordinator::Refused(xid, _) => Some(xid),
        FromCoordinator::Welcome(_)
        | FromCoordinator::ReportAnswer(..)
        | FromCoordinator::ReconcileAnswer(_)
        | FromCoordinator::Inspect(..)
        | FromCoordinator::Nodes(_)
        | FromCoordinator::Sealed(_)
        | FromCoordinator::Drain => None,
    }
}

pub(super) fn number(xid: Option<&Xid>) -> Option<u32> {
    xid.map(|xid| super::history::number_of(&xid.gtrid))
}

impl World {
    /// A new stream, and a hello on its way.
    pub(super) fn open_link(&mut self, instance: usize, hello: Hello) -> usize {
        let number = self.links.len();
        let life = self.lives;
        let up = Link { instance, life, up_at_node: false, up_at_participant: true, last: [0; 2] };
        self.links.push(up);
        let latency = self.latency();
        self.plan(GREETING_TIMEOUT, Happening::GreetingIsLate(number));
        if self.node.is_none() || self.is_cut(instance) {
            let why = Closing::Broken("the coordinator is out of reach".to_owned());
            self.plan(latency, Happening::EndsAtParticipant(number, why));
        } else {
            self.plan(latency, Happening::HelloArrives(number, hello));
        }
        number
    }

    pub(super) fn is_cut(&self, instance: usize) -> bool {
        self.instances[instance].cut_until > self.now
    }

    /// How long a message takes, if nothing is wrong.
    pub(super) fn latency(&mut self) -> Time {
        self.style.latency + self.rng.below(self.style.latency)
    }

    pub(super) fn send_up(&mut self, link: usize, message: ToCoordinator) {
        if self.lost(link, about_up(&message)) {
            say!(self, number(about_up(&message)), "LOST link {link} up: {message:?}");
            return;
        }
        if self.strikes(Kind::Duplicate) {
            let at = self.arrival(link, Way::Up);
            self.queue.plan(at, Happening::AtNode(link, message.clone()));
        }
        let at = self.arrival(link, Way::Up);
        self.queue.plan(at, Happening::AtNode(link, message));
    }

    pub(super) fn send_down(&mut self, link: usize, message: FromCoordinator) {
        if self.lost(link, about_down(&message)) {
            say!(self, number(about_down(&message)), "LOST link {link} down: {message:?}");
            return;
        }
        if self.strikes(Kind::Duplicate) {
            let at = self.arrival(link, Way::Down);
            self.queue.plan(at, Happening::AtParticipant(link, message.clone()));
        }
        let at = self.arrival(link, Way::Down);
        self.queue.plan(at, Happening::AtParticipant(link, message));
    }

    fn lost(&mut self, link: usize, _about: Option<&Xid>) -> bool {
        self.is_cut(self.links[link].instance) || self.strikes(Kind::Loss)
    }

    /// When a message that is sent now arrives.
    fn arrival(&mut self, link: usize, way: Way) -> Time {
        let mut at = self.now + self.latency();
        if self.strikes(Kind::Delay) {
            let longest = if self.rng.below(200) == 0 { 2 * SECOND } else { 20 * MILLI };
            at += self.rng.between(2 * MILLI, longest);
        }
        if self.strikes(Kind::Reorder) {
            // It stands aside, and what is sent after it passes.
            let longest = if self.rng.below(200) == 0 { 500 * MILLI } else { 10 * MILLI };
            return at + self.rng.between(MILLI, longest);
        }
        let last = &mut self.links[link].last[way as usize];
        at = at.max(*last);
        *last = at;
        at
    }

    // ---- arrivals ----

    pub(super) fn at_node(&mut self, link: usize, message: ToCoordinator) {
        if self.links[link].up_at_node {
            self.heard_by_node(link, message);
        }
    }

    pub(super) fn at_participant(&mut self, link: usize, message: FromCoordinator) {
        if self.links[link].up_at_participant {
            self.heard_by_participant(link, message);
        }
    }

    pub(super) fn greeting_is_late(&mut self, link: usize) {
        let instance = self.links[link].instance;
        if self.links[link].up_at_participant && !self.instances[instance].attached {
            let why = Closing::Broken("the coordinator did not welcome us in time".to_owned());
            self.ends_at_participant(link, &why);
            self.end_soon_at_node(link);
        }
    }

    // ---- ends ----

    /// Breaks a session; each side learns it at its own time.
    pub(super) fn break_link(&mut self, link: usize) {
        say!(self, None, "link {link} breaks");
        self.end_soon_at_node(link);
        self.end_soon_at_participant(link);
    }

    pub(super) fn end_soon_at_node(&mut self, link: usize) {
        let noticed = self.noticed();
        self.plan(noticed, Happening::EndsAtNode(link));
    }

    pub(super) fn end_soon_at_participant(&mut self, link: usize) {
        let noticed = self.noticed();
        let why = Closing::Broken("the stream broke".to_owned());
        self.plan(noticed, Happening::EndsAtParticipant(link, why));
    }

    /// A reset is noticed at once, a silence late.
    fn noticed(&mut self) -> Time {
        if self.rng.below(8) > 0 { self.latency() } else { self.rng.below(NOTICED_WITHIN) }
    }
}
