//! What can happen next in a world, and that it happens.
//!
//! Each step is one effect: whatever else there is can come between any two of them. A step that [`Happening::is_fault`] is taken only as
//! often as the bounds allow; all others are what protocol, timers and restarts do by themselves.

use lockstep::branch::{Event as BranchEvent, Operation, Then};
use lockstep_coordinator::protocol::event::Event;
use lockstep_coordinator::protocol::transaction::State;

use super::bounds::Faults;
use super::world::{Down, Link, NODES, Truth, Up, World, Writing, position};

/// One step. Numbers are of coordinators (`node`) and participants.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it, and what takes them says more")]
pub enum Happening {
    // ---- the application ----
    AsksToEnd { node: usize, commit: bool },
    Inquires { node: usize },
    LooksUpOutcome { node: usize },
    HandlerEnds { participant: usize, then: Ends },
    // ---- messages ----
    Hears { participant: usize, message: Down },
    HearsTwice { participant: usize, message: Down },
    LosesDown { participant: usize, message: Down },
    HearsFrom { node: usize, participant: usize, place: usize },
    HearsFromTwice { node: usize, participant: usize, place: usize },
    LosesUp { participant: usize, place: usize },
    TellsAgain { node: usize, participant: usize },
    Lists { participant: usize },
    LooksUp { node: usize, participant: usize },
    // ---- sessions ----
    Breaks { participant: usize },
    Notices { node: usize, participant: usize },
    Attaches { participant: usize, node: usize },
    // ---- timers ----
    DeadlinePasses { node: usize },
    BranchDeadlinePasses { participant: usize },
    AsksAgain { participant: usize },
    RecordsAgain { node: usize },
    // ---- stores ----
    StoreAnswers { participant: usize },
    StoreRefuses { participant: usize },
    AnswerIsLost { participant: usize },
    StoreIsOutOfReach { participant: usize },
    LateArrives { participant: usize },
    LateVanishes { participant: usize },
    FailsOver { participant: usize },
    HandEnds { participant: usize, commit: bool },
    // ---- the log ----
    Writes { node: usize },
    WriteIsRefused { node: usize },
    WriteArrivesUnheard { node: usize },
    WriteIsInLimbo { node: usize },
    LimboArrives { node: usize },
    Fences { node: usize },
    ReadsBehindFence { node: usize },
    LazyArrives { node: usize },
    StrayArrives,
    // ---- lives ----
    NodeDies { node: usize },
    NodeStarts { node: usize, beside: bool },
    Seals { node: usize, epoch: u8, alive: bool },
    Adopts { node: usize },
    NoticesSeal { node: usize },
    ParticipantDies { participant: usize },
}

/// How a handler ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// It has done its work.
    Well,
    /// It has done its work and votes.
    Voting,
    /// It fails.
    Badly,
}

type Budget = fn(&mut Faults) -> &mut u8;

impl Happening {
    /// Which budget it is taken from, if it is a fault.
    #[must_use]
    pub fn budget(&self) -> Option<Budget> {
        match self {
            Self::HearsTwice { .. } | Self::HearsFromTwice { .. } => Some(|left| &mut left.duplicate),
            Self::LosesDown { .. } | Self::LosesUp { .. } => Some(|left| &mut left.loss),
            Self::Breaks { .. } => Some(|left| &mut left.session_breaks),
            Self::StoreRefuses { .. } => Some(|left| &mut left.refuses),
            Self::AnswerIsLost { .. } | Self::StoreIsOutOfReach { .. } => Some(|left| &mut left.unresolved),
            Self::FailsOver { .. } => Some(|left| &mut left.failover),
            Self::HandEnds { .. } => Some(|left| &mut left.hand),
            Self::WriteIsRefused { .. } => Some(|left| &mut left.refused),
            Self::WriteArrivesUnheard { .. } | Self::WriteIsInLimbo { .. } => Some(|left| &mut left.unknown),
            Self::NodeDies { .. } => Some(|left| &mut left.coordinator_dies),
            Self::NodeStarts { beside: true, .. } | Self::Seals { alive: true, .. } => {
                Some(|left| &mut left.takeover)
            }
            Self::ParticipantDies { .. } => Some(|left| &mut left.participant_dies),
            Self::AsksToEnd { .. }
            | Self::Inquires { .. }
            | Self::LooksUpOutcome { .. }
            | Self::HandlerEnds { .. }
            | Self::Hears { .. }
            | Self::HearsFrom { .. }
            | Self::TellsAgain { .. }
            | Self::Lists { .. }
            | Self::LooksUp { .. }
            | Self::Notices { .. }
            | Self::Attaches { .. }
            | Self::DeadlinePasses { .. }
            | Self::BranchDeadlinePasses { .. }
            | Self::AsksAgain { .. }
            | Self::RecordsAgain { .. }
            | Self::StoreAnswers { .. }
            | Self::LateArrives { .. }
            | Self::LateVanishes { .. }
            | Self::Writes { .. }
            | Self::LimboArrives { .. }
            | Self::Fences { .. }
            | Self::ReadsBehindFence { .. }
            | Self::LazyArrives { .. }
            | Self::StrayArrives
            | Self::NodeStarts { beside: false, .. }
            | Self::Seals { alive: false, .. }
            | Self::Adopts { .. }
            | Self::NoticesSeal { .. } => None,
        }
    }

    /// Whether it is a fault: an end has to be reachable without any.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        self.budget().is_some()
    }
}

impl World {
    /// Everything that can happen now.
    #[must_use]
    pub fn possible(&self) -> Vec<Happening> {
        let mut possible = Vec::with_capacity(32);
        for node in 0..NODES {
            self.possible_at_node(node, &mut possible);
        }
        possible.extend(self.stray.as_ref().map(|_| Happening::StrayArrives));
        for participant in 0..self.participants.len() {
            self.possible_at_participant(participant, &mut possible);
        }
        possible
            .retain(|happening| happening.budget().is_none_or(|budget| *budget(&mut self.left.clone()) > 0));
        possible
    }

    fn possible_at_node(&self, number: usize, possible: &mut Vec<Happening>) {
        let Some(node) = &self.nodes[number] else {
            let beside = self.nodes.iter().any(Option::is_some);
            possible.push(Happening::NodeStarts { node: number, beside });
            return;
        };
        possible.push(Happening::NodeDies { node: number });
        if self.log.is_sealed(node.epoch) {
            possible.push(Happening::NoticesSeal { node: number });
        }
        for epoch in (1..=self.log.epochs).filter(|epoch| *epoch != node.epoch) {
            let owner = self.nodes.iter().flatten().any(|node| node.epoch == epoch);
            if !self.log.is_sealed(epoch) && !self.log.is_sealed(node.epoch) {
                possible.push(Happening::Seals { node: number, epoch, alive: owner });
            }
        }
        if node.adopting {
            possible.push(Happening::Adopts { node: number });
            return; // It serves nobody before.
        }
        self.possible_for_client(number, possible);
        self.possible_with_log(number, possible);
        if let Some(transaction) = &node.transaction {
            if transaction.deadline_applies() {
                possible.push(Happening::DeadlinePasses { node: number });
            }
            if matches!(transaction.state(), State::Recording(_)) && node.writing.is_none() {
                possible.push(Happening::RecordsAgain { node: number });
            }
        }
        for participant in 0..self.participants.len() {
            if node.links[participant] == Link::Broken {
                possible.push(Happening::Notices { node: number, participant });
            }
            if node.looking_up[participant] {
                possible.push(Happening::LooksUp { node: number, participant });
            }
            if self.to_tell_again(number, participant).is_some() {
                possible.push(Happening::TellsAgain { node: number, participant });
            }
            if node.links[participant] != Link::None {
                for place in 0..self.participants[participant].up.len() {
                    possible.push(Happening::HearsFrom { node: number, participant, place });
                    possible.push(Happening::HearsFromTwice { node: number, participant, place });
                }
            }
        }
    }

    fn possible_for_client(&self, number: usize, possible: &mut Vec<Happening>) {
        let Some(node) = &self.nodes[number] else { return };
        let told = &self.told;
        if node.looking_up_outcome {
            possible.push(Happening::LooksUpOutcome { node: number });
        }
        if told.asked.is_none() {
            if node.transaction.is_some() {
                possible.push(Happening::AsksToEnd { node: number, commit: true });
                possible.push(Happening::AsksToEnd { node: number, commit: false });
            }
        } else if !(told.committed || told.rolled_back || told.other || node.looking_up_outcome) {
            possible.push(Happening::Inquires { node: number });
        }
    }

    fn possible_with_log(&self, number: usize, possible: &mut Vec<Happening>) {
        let Some(node) = &self.nodes[number] else { return };
        match &node.writing {
            Some(Writing::OnItsWay(_)) => possible.extend([
                Happening::Writes { node: number },
                Happening::WriteIsRefused { node: number },
                Happening::WriteArrivesUnheard { node: number },
                Happening::WriteIsInLimbo { node: number },
            ]),
            Some(Writing::Unknown { limbo, fenced, .. }) => {
                possible.extend(limbo.then_some(Happening::LimboArrives { node: number }));
                possible.push(if *fenced {
                    Happening::ReadsBehindFence { node: number }
                } else {
                    Happening::Fences { node: number }
                });
            }
            None => {}
        }
        possible.extend(node.lazy.as_ref().map(|_| Happening::LazyArrives { node: number }));
    }

    fn possible_at_participant(&self, number: usize, possible: &mut Vec<Happening>) {
        let there = &self.participants[number];
        for message in &there.down {
            possible.push(Happening::Hears { participant: number, message: *message });
            possible.push(Happening::HearsTwice { participant: number, message: *message });
            possible.push(Happening::LosesDown { participant: number, message: *message });
        }
        possible.extend((0..there.up.len()).map(|place| Happening::LosesUp { participant: number, place }));
        if there.session.is_some() {
            possible.push(Happening::Breaks { participant: number });
            if there.truth == Truth::Prepared && there.down.is_empty() && there.up.is_empty() {
                possible.push(Happening::Lists { participant: number });
            }
        }
        let nodes = (0..NODES).filter(|node| self.may_attach(number, *node));
        possible.extend(nodes.map(|node| Happening::Attaches { participant: number, node }));
        if there.handler {
            // One that has written nothing does not vote before it is asked (P23).
            let votes = (!there.read_only).then_some(Ends::Voting);
            let ends = [Ends::Well, Ends::Badly].into_iter().chain(votes);
            possible.extend(ends.map(|then| Happening::HandlerEnds { participant: number, then }));
        }
        if there.branch.is_open() {
            possible.push(Happening::BranchDeadlinePasses { participant: number });
        }
        if there.asks_again {
            possible.push(Happening::AsksAgain { participant: number });
        }
        self.possible_in_store(number, possible);
        possible.push(Happening::ParticipantDies { participant: number });
    }

    fn possible_in_store(&self, participant: usize, possible: &mut Vec<Happening>) {
        let there = &self.participants[participant];
        if there.running.is_some() {
            possible.push(Happening::StoreAnswers { participant });
            possible.push(Happening::AnswerIsLost { participant });
            possible.push(Happening::StoreIsOutOfReach { participant });
            if matches!(there.running, Some(Operation::Prepare(_))) {
                possible.push(Happening::StoreRefuses { participant });
            }
        }
        if there.late.is_some() {
            possible.push(Happening::LateArrives { participant });
            possible.push(Happening::LateVanishes { participant });
        }
        if there.truth == Truth::Committed && there.was_prepared && !there.undone {
            possible.push(Happening::FailsOver { participant });
        }
        if there.truth == Truth::Prepared && !there.undone {
            possible.push(Happening::HandEnds { participant, commit: true });
            possible.push(Happening::HandEnds { participant, commit: false });
        }
    }

    /// The world after this.
    #[must_use]
    pub fn after(&self, happening: &Happening) -> Self {
        let mut next = self.clone();
        if let Some(budget) = happening.budget() {
            *budget(&mut next.left) -= 1;
        }
        next.happen(happening);
        next
    }

    fn happen(&mut self, happening: &Happening) {
        match *happening {
            Happening::AsksToEnd { node, commit } => self.asks_to_end(node, commit),
            Happening::Inquires { node } => self.inquires(node),
            Happening::LooksUpOutcome { node } => self.looks_up_outcome(node),
            Happening::TellsAgain { node, participant } => self.tells_again(node, participant),
            Happening::LooksUp { node, participant } => self.looks_up(node, participant),
            Happening::Notices { node, participant } => self.notice(node, participant),
            Happening::Attaches { participant, node } => self.attach(participant, node),
            Happening::DeadlinePasses { node } => drop(self.step(node, Event::DeadlinePassed)),
            Happening::RecordsAgain { node } => drop(self.step(node, Event::RecordAgain)),
            Happening::Writes { node } => self.writes(node, true),
            Happening::WriteArrivesUnheard { node } => self.writes(node, false),
            Happening::WriteIsRefused { node } => self.write_is_refused(node),
            Happening::WriteIsInLimbo { node } => self.write_is_in_limbo(node),
            Happening::LimboArrives { node } => self.limbo_arrives(node),
            Happening::Fences { node } => self.fences(node),
            Happening::ReadsBehindFence { node } => self.reads_behind_fence(node),
            Happening::LazyArrives { node } => self.lazy_arrives(node),
            Happening::StrayArrives => self.stray_arrives(),
            Happening::NodeDies { node } | Happening::NoticesSeal { node } => self.node_dies(node),
            Happening::NodeStarts { node, .. } => self.node_starts(node),
            Happening::Seals { node, epoch, .. } => self.seals(node, epoch),
            Happening::Adopts { node } => self.adopts(node),
            Happening::HearsFrom { node, participant, place } => {
                let message = self.participant(participant).up.remove(place);
                self.hears_from(node, participant, message);
            }
            Happening::HearsFromTwice { node, participant, place } => {
                let message = self.participants[participant].up[place].clone();
                self.hears_from(node, participant, message);
            }
            Happening::HandlerEnds { .. }
            | Happening::Hears { .. }
            | Happening::HearsTwice { .. }
            | Happening::LosesDown { .. }
            | Happening::LosesUp { .. }
            | Happening::Lists { .. }
            | Happening::Breaks { .. }
            | Happening::BranchDeadlinePasses { .. }
            | Happening::AsksAgain { .. }
            | Happening::StoreAnswers { .. }
            | Happening::StoreRefuses { .. }
            | Happening::AnswerIsLost { .. }
            | Happening::StoreIsOutOfReach { .. }
            | Happening::LateArrives { .. }
            | Happening::LateVanishes { .. }
            | Happening::FailsOver { .. }
            | Happening::HandEnds { .. }
            | Happening::ParticipantDies { .. } => self.happen_to_participant(happening),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the coordinators' are taken before")]
    fn happen_to_participant(&mut self, happening: &Happening) {
        match *happening {
            Happening::HandlerEnds { participant, then } => {
                self.participant(participant).handler = false;
                let event = match then {
                    Ends::Well => BranchEvent::Finished(Then::StayOpen),
                    Ends::Voting => BranchEvent::Finished(Then::Vote(position())),
                    Ends::Badly => BranchEvent::HandlerGone,
                };
                self.step_branch(participant, event);
            }
            Happening::Hears { participant, message } => self.hears(participant, message, false),
            Happening::HearsTwice { participant, message } => self.hears(participant, message, true),
            Happening::LosesDown { participant, message } => {
                self.participant(participant).down.remove(&message);
            }
            Happening::LosesUp { participant, place } => drop(self.participant(participant).up.remove(place)),
            Happening::Lists { participant } => self.say(participant, Up::Report),
            Happening::Breaks { participant } => self.session_ends(participant),
            Happening::BranchDeadlinePasses { participant } => {
                self.step_branch(participant, BranchEvent::DeadlinePassed);
            }
            Happening::AsksAgain { participant } => {
                self.participant(participant).asks_again = false;
                self.step_branch(participant, BranchEvent::AskAgain);
            }
            Happening::StoreAnswers { participant } => self.store_answers(participant, false, true),
            Happening::StoreRefuses { participant } => self.store_answers(participant, true, true),
            Happening::AnswerIsLost { participant } => self.store_answers(participant, false, false),
            Happening::StoreIsOutOfReach { participant } => self.store_is_out_of_reach(participant),
            Happening::LateArrives { participant } => self.late(participant, true),
            Happening::LateVanishes { participant } => self.late(participant, false),
            Happening::FailsOver { participant } => {
                let there = self.participant(participant);
                (there.truth, there.undone) = (Truth::Prepared, true);
            }
            Happening::HandEnds { participant, commit } => {
                let there = self.participant(participant);
                there.by_hand = true;
                there.truth = if commit { Truth::Committed } else { Truth::RolledBack };
            }
            Happening::ParticipantDies { participant } => self.participant_dies(participant),
            _ => unreachable!("{happening:?} happens to a coordinator"),
        }
    }
}
