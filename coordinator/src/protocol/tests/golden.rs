//! Golden scripts: one claim each, named by it; the output is the whole trace of one transaction.
//!
//! Commands: `begin`, `enlist a b`, `commit`, `rollback`, `deadline`, `vote a=commit b=rollback c=read-only`, `lost a`,
//! `log forced|refused|unknown|found|absent`, `again`, `ack a=committed b=rolled-back c=hazard`, `prepared a` (what is a
//! participant told that lists it?), `many 3` (enlists so many of one resource manager), and `crash`: memory is gone, and what
//! is recorded is recovered. A write whose answer had not come is lost by `crash`, and found by `crash written`.

use std::error::Error;
use std::fmt::Write as _;

use goldenscript::Command;

use super::names::{bqual, gtrid, short, shorten};
use super::{scripts, show};
use crate::protocol::branch::{Branch, BranchState};
use crate::protocol::event::{Applied, Effects, Event, Reply, Vote};
use crate::protocol::record::{About, DecisionRecord, EndRecord, LogWrite};
use crate::protocol::transaction::{PreparedAnswer, Transaction};

#[test]
fn scripts() {
    scripts::run_all("src/protocol/testscripts", Runner::new);
}

/// Milliseconds since 1970 in every script.
const NOW: u64 = 2_000;

struct Runner {
    transaction: Transaction,
    /// What was given to the log and not answered yet.
    writing: Option<LogWrite>,
    /// What the log has.
    decision: Option<DecisionRecord>,
    end: Option<EndRecord>,
}

type Output = Result<String, Box<dyn Error>>;

impl Runner {
    fn new() -> Self {
        let transaction = Transaction::new(gtrid(1), About::default());
        Self { transaction, writing: None, decision: None, end: None }
    }

    fn step(&mut self, event: Event, output: &mut String) {
        writeln!(output, "> {}", shorten(&event.to_string())).unwrap();
        let before = self.transaction.clone();
        match self.transaction.step(event, NOW) {
            Ok(effects) => {
                show_changes(&before, &self.transaction, output);
                self.show_effects(effects, output);
            }
            Err(rejected) => {
                assert_eq!(before, self.transaction, "a rejected event changes nothing");
                writeln!(output, "rejected: {}", shorten(&rejected.to_string())).unwrap();
            }
        }
    }

    fn show_effects(&mut self, effects: Effects, output: &mut String) {
        if let Some(write) = effects.log {
            writeln!(output, "log: {}", show::write(&write)).unwrap();
            match write {
                LogWrite::LazyEnd(end) => self.end = Some(end),
                forced @ (LogWrite::ForceDecision(_) | LogWrite::ForceEnd(_)) => self.writing = Some(forced),
            }
        }
        for (bqual, message) in effects.messages {
            writeln!(output, "send {}: {}", short(&bqual), show::message(message)).unwrap();
        }
        if let Some(reply) = effects.reply {
            writeln!(output, "reply: {}", show_reply(&reply)).unwrap();
        }
    }

    fn log(&mut self, answer: &str, output: &mut String) -> Result<(), Box<dyn Error>> {
        let event = match answer {
            "forced" => Event::LogForced,
            "refused" => Event::LogRefused("the disk is full".into()),
            "unknown" => Event::LogUnknown("the connection broke".into()),
            "found" => Event::LogFound,
            "absent" => Event::LogAbsent,
            other => return Err(format!("the log does not answer {other}").into()),
        };
        match answer {
            "forced" | "found" => self.is_written(),
            "refused" | "absent" => self.writing = None,
            _ => {}
        }
        self.step(event, output);
        Ok(())
    }

    fn is_written(&mut self) {
        match self.writing.take() {
            Some(LogWrite::ForceDecision(decision)) => self.decision = Some(decision),
            Some(LogWrite::ForceEnd(end) | LogWrite::LazyEnd(end)) => self.end = Some(end),
            None => {}
        }
    }

    /// Memory is gone; what the log has comes back.
    fn crash(&mut self, written: bool, output: &mut String) {
        writeln!(output, "> crash").unwrap();
        if written {
            self.is_written();
        }
        self.writing = None;
        if let Some(end) = &self.end {
            writeln!(output, "the log has its end: {}", show::outcome(end.outcome)).unwrap();
            return;
        }
        let Some(decision) = self.decision.clone() else {
            writeln!(output, "no record: presumed rolled back").unwrap();
            return;
        };
        let (transaction, effects) = Transaction::recover(decision, NOW);
        writeln!(output, "recovered: {}", transaction.state().name()).unwrap();
        for branch in transaction.branches() {
            writeln!(output, "{}: {}", short(&branch.bqual), branch_state(branch)).unwrap();
        }
        self.transaction = transaction;
        self.show_effects(effects, output);
    }

    fn prepared(&self, name: &str, output: &mut String) {
        let answer = match self.transaction.answer_prepared(&bqual(name)) {
            PreparedAnswer::Commit => "commit",
            PreparedAnswer::Rollback => "roll back",
            PreparedAnswer::StillRunning => "still running",
        };
        writeln!(output, "whoever has {name} prepared is told: {answer}").unwrap();
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _context: &goldenscript::Context) -> Output {
        let mut output = String::new();
        let mut args = command.consume_args();
        match command.name.as_str() {
            "begin" => *self = Self::new(),
            "commit" => self.step(Event::CommitRequested, &mut output),
            "rollback" => {
                let why = args.next_pos().unwrap_or("changed my mind").to_owned();
                self.step(Event::RollbackRequested(why), &mut output);
            }
            "deadline" => self.step(Event::DeadlinePassed, &mut output),
            "again" => self.step(Event::RecordAgain, &mut output),
            "log" => self.log(args.next_pos().ok_or("what does the log say?")?, &mut output)?,
            "crash" => self.crash(args.next_pos() == Some("written"), &mut output),
            "many" => {
                for number in 1..=args.next_pos().ok_or("how many?")?.parse()? {
                    self.step(Event::Enlist(bqual(&format!("m{number}"))), &mut String::new());
                }
            }
            "enlist" | "lost" | "prepared" => {
                while let Some(name) = args.next_pos() {
                    match command.name.as_str() {
                        "enlist" => self.step(Event::Enlist(bqual(name)), &mut output),
                        "lost" => self.step(Event::BranchLost(bqual(name)), &mut output),
                        _ => self.prepared(name, &mut output),
                    }
                }
            }
            "vote" | "ack" => {
                while let Some((name, word)) = args.next_key() {
                    let event = match command.name.as_str() {
                        "vote" => Event::Voted(bqual(name), vote(word)?),
                        _ => Event::Acknowledged(bqual(name), applied(word)?),
                    };
                    self.step(event, &mut output);
                }
            }
            other => return Err(format!("no such command: {other}").into()),
        }
        args.reject_next()?;
        Ok(output)
    }
}

fn vote(word: &str) -> Result<Vote, Box<dyn Error>> {
    match word {
        "commit" => Ok(Vote::Commit),
        "rollback" => Ok(Vote::Rollback("out of stock".into())),
        "hazard" => Ok(Vote::Hazard("its service committed".into())),
        "read-only" => Ok(Vote::ReadOnly),
        other => Err(format!("no such vote: {other}").into()),
    }
}

fn applied(word: &str) -> Result<Applied, Box<dyn Error>> {
    match word {
        "committed" => Ok(Applied::Committed),
        "rolled-back" => Ok(Applied::RolledBack),
        "hazard" => Ok(Applied::Hazard),
        other => Err(format!("a branch does not end {other}").into()),
    }
}

fn show_changes(before: &Transaction, after: &Transaction, output: &mut String) {
    if before.state().name() != after.state().name() {
        writeln!(output, "state: {} → {}", before.state().name(), after.state().name()).unwrap();
    }
    for branch in after.branches() {
        let name = short(&branch.bqual);
        let now = branch_state(branch);
        match before.branches().iter().find(|old| old.bqual == branch.bqual) {
            None => writeln!(output, "{name}: {now}").unwrap(),
            Some(old) if old.state == branch.state => {}
            Some(old) => {
                writeln!(output, "{name}: {} → {now}", branch_state(old)).unwrap();
            }
        }
    }
}

/// The state's name, which tells the two kinds of having been told apart.
fn branch_state(branch: &Branch) -> &'static str {
    if branch.state == BranchState::ToldOpen { "delivering while open" } else { branch.state_name() }
}

fn show_reply(reply: &Reply) -> String {
    let (what, outcome, detail) = match reply {
        Reply::Decided(outcome, detail) => ("decided", outcome, detail),
        Reply::Ended(outcome, detail) => ("ended", outcome, detail),
    };
    let detail = if detail.is_empty() { String::new() } else { format!(" ({})", shorten(detail)) };
    format!("{what} {}{detail}", show::outcome(*outcome))
}
