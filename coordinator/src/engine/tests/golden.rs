//! Golden scripts: one claim each, named by it; the output is everything that a shard does.
//!
//! A branch is written `t1.a`: the branch `a` of the transaction `t1`. Clients are called as the script likes; a client's name
//! stands before what it is answered. Commands:
//! `attach s1 a` (a session of the resource manager a), `detach s1`, `begin t1 timeout=30s`, `enlist s1 t1.a`,
//! `vote s1 t1.a=commit`, `ack s1 t1.a=committed` (or `not-yet`), `commit c1 t1 wait=decided`, `rollback c1 t1`, `inquire c1 t1`,
//! `prepared t1.a`, `list 10`, `find 1`, `summary`, `log t1 forced`, `recover t1 a b`, `recover-intent t1 a`,
//! `retry t1`, `pause t1`, `resume t1`, `abandon t1 a`, `retire a` (an operator), `recover-many a 600`, `commit-many t1 64`, `late 5s` (time passes, and the shell is too busy to notice), `wait 5s` (as the shell would: a tick whenever a timer is due), `timer` (when is the next one due?), `show t1`. With
//! `[count]` before it only the number of outputs of each kind is shown.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use goldenscript::Command;
use lockstep_proto::{Gtrid, Xid};

use crate::engine::delivery::SessionId;
use crate::engine::input::{
    Acknowledgement, Act, Answer, BranchView, Input, LogAnswer, Now, OutcomeAnswer, Output, Refusal,
    ToParticipant, TransactionView, Wait,
};
use crate::engine::shard::{Shard, ShardConfig};
use crate::protocol::event::{Applied, Vote};
use crate::protocol::record::{About, DecisionKind, DecisionRecord};
use crate::protocol::tests::names::{bqual, gtrid, resource_manager, short, shorten};
use crate::protocol::tests::{scripts, show};
use crate::protocol::transaction::PreparedAnswer;

#[test]
fn scripts() {
    scripts::run_all("src/engine/testscripts", Runner::new);
}

const CONFIG: ShardConfig = ShardConfig {
    epoch: lockstep_proto::Epoch::new(1).unwrap(),
    max_live: 4,
    apply_wait: Duration::from_secs(10),
    begin_from_ms: 0,
};

/// The wall clock when a script begins, in milliseconds since 1970.
const START_MS: u64 = 1_000;

struct Runner {
    shard: Shard<String>,
    time: Duration,
    gtrids: BTreeMap<String, Gtrid>,
}

type Failure = Box<dyn Error>;

impl Runner {
    fn new() -> Self {
        Self { shard: Shard::new(CONFIG), time: Duration::ZERO, gtrids: BTreeMap::new() }
    }

    fn now(&self) -> Now {
        let since = u64::try_from(self.time.as_millis()).unwrap();
        Now { monotonic: self.time, unix_ms: START_MS + since }
    }

    fn step(&mut self, input: Input<String>, out: &mut String) {
        for output in self.shard.step(input, self.now()) {
            self.show(output, out);
        }
    }

    /// Lets time pass as the shell does: a tick whenever one is due.
    fn wait(&mut self, duration: Duration, out: &mut String) {
        let until = self.time + duration;
        while let Some(due) = self.shard.next_timer().filter(|due| *due <= until) {
            assert!(due >= self.time, "a timer that is due was fired already");
            self.time = due;
            let before = out.len();
            self.step(Input::Tick, out);
            if out.len() > before {
                out.insert_str(before, &format!("at {due:?}:\n"));
            }
        }
        self.time = until;
    }

    fn gtrid(&self, name: &str) -> Gtrid {
        let number = name.trim_start_matches('t').parse().unwrap();
        self.gtrids.get(name).copied().unwrap_or_else(|| gtrid(number))
    }

    fn xid(&self, name: &str) -> Result<Xid, Failure> {
        let (transaction, branch) = name.split_once('.').ok_or_else(|| format!("{name} is no branch"))?;
        Ok(Xid { gtrid: self.gtrid(transaction), bqual: bqual(branch) })
    }

    fn name(&self, gtrid: &Gtrid) -> String {
        let named = self.gtrids.iter().find(|(_, other)| *other == gtrid);
        named.map_or_else(|| gtrid.to_string(), |(name, _)| name.clone())
    }

    fn branch_name(&self, xid: &Xid) -> String {
        format!("{}.{}", self.name(&xid.gtrid), short(&xid.bqual))
    }

    fn recover(&mut self, name: &str, kind: DecisionKind, branches: Vec<&str>, out: &mut String) {
        let gtrid = self.gtrid(name);
        self.gtrids.insert(name.to_owned(), gtrid);
        let branches = branches.into_iter().map(bqual).collect();
        let record = DecisionRecord { gtrid, kind, branches, decided_ms: 500, about: About::default() };
        self.step(Input::Recover(record), out);
    }

    fn recover_numbered(&mut self, number: u64, branches: &[&str], out: &mut String) {
        let gtrid = Gtrid::new(CONFIG.epoch, number, [9; 10]);
        let branches = branches.iter().map(|name| bqual(name)).collect();
        let kind = DecisionKind::Commit;
        let record = DecisionRecord { gtrid, kind, branches, decided_ms: 500, about: About::default() };
        self.step(Input::Recover(record), out);
    }

    fn show(&mut self, output: Output<String>, out: &mut String) {
        let line = match output {
            Output::Log(write) => {
                let gtrid = match &write {
                    crate::protocol::record::LogWrite::ForceDecision(decision) => decision.gtrid,
                    crate::protocol::record::LogWrite::ForceEnd(end)
                    | crate::protocol::record::LogWrite::LazyEnd(end) => end.gtrid,
                };
                format!("log {}: {}", self.name(&gtrid), show::write(&write))
            }
            Output::Send(session, message) => format!("s{} ← {}", session.0, self.show_message(&message)),
            Output::Reply(client, answer) => format!("{client} ← {}", self.show_answer(&client, answer)),
            Output::StrayVote(session, xid) => {
                format!("the log is asked about {}, for s{}", self.branch_name(&xid), session.0)
            }
            Output::StrayAcknowledgement(xid, applied) => {
                format!("the log is compared with {}: {applied}", self.branch_name(&xid))
            }
        };
        writeln!(out, "{line}").unwrap();
    }

    fn show_message(&self, message: &ToParticipant) -> String {
        match message {
            ToParticipant::Enlisted(xid, left) => {
                format!("{} enlisted, {left:?} left", self.branch_name(xid))
            }
            ToParticipant::EnlistRefused(xid, why) => {
                let why = match why {
                    Refusal::ByTransaction(why) => format!("{why:?}"),
                    Refusal::NotActive => "NotActive".into(),
                    Refusal::ForeignBranch => "ForeignBranch".into(),
                };
                format!("{} not enlisted: {why}", self.branch_name(xid))
            }
            ToParticipant::Prepare(xid, left) => format!("{} prepare, {left:?} left", self.branch_name(xid)),
            ToParticipant::Commit(xid) => format!("{} commit", self.branch_name(xid)),
            ToParticipant::Rollback(xid) => format!("{} roll back", self.branch_name(xid)),
            ToParticipant::CommitOnePhase(xid, left) => {
                format!("{} commit in one phase, {left:?} left", self.branch_name(xid))
            }
            ToParticipant::Refused(xid, why) => {
                format!("{} refused: {}", self.branch_name(xid), shorten(why))
            }
        }
    }

    fn show_answer(&mut self, client: &str, answer: Answer) -> String {
        match answer {
            Answer::Begun(gtrid) => {
                self.gtrids.insert(client.to_owned(), gtrid);
                format!("begun: {gtrid}")
            }
            Answer::Full => "full".into(),
            Answer::Outcome(answer) => show_outcome(&answer),
            Answer::NotLive => "not live: ask the log".into(),
            Answer::Prepared(answers) => {
                let words = answers.iter().map(|answer| match answer {
                    Some(PreparedAnswer::Commit) => "commit",
                    Some(PreparedAnswer::Rollback) => "roll back",
                    Some(PreparedAnswer::StillRunning) => "still running",
                    None => "not live: ask the log",
                });
                words.collect::<Vec<_>>().join(", ")
            }
            Answer::Listing(views) => {
                let views = views.iter().map(|view| self.show_view(view));
                views.collect::<Vec<_>>().join("; ")
            }
            Answer::Acted(branches) => format!("done: {branches} branches"),
            Answer::Summary(summary) => {
                let oldest = summary.oldest.map_or("none".into(), |gtrid| self.name(&gtrid));
                format!(
                    "live {}, undecided {}, undelivered {}, oldest {oldest}",
                    summary.live, summary.undecided, summary.undelivered
                )
            }
        }
    }

    fn show_view(&self, view: &TransactionView) -> String {
        let mut text = format!("{} {}", self.name(&view.gtrid), view.state.name());
        if view.deadline_ms > 0 {
            write!(text, ", deadline at {} ms", view.deadline_ms - START_MS).unwrap();
        }
        if view.decided_ms > 0 {
            write!(text, ", decided at {} ms", view.decided_ms).unwrap();
        }
        for branch in &view.branches {
            write!(text, ", {}", show_branch(branch)).unwrap();
        }
        text
    }
}

fn show_branch(view: &BranchView) -> String {
    let mut text = format!("{} {}", short(&view.bqual), view.state);
    let delivery = &view.delivery;
    if delivery.attempts > 0 || !delivery.last_error.is_empty() {
        write!(text, " (sent {} times", delivery.attempts).unwrap();
        if let Some(next_in) = delivery.next_in {
            write!(text, ", again in {next_in:?}").unwrap();
        }
        if !delivery.last_error.is_empty() {
            write!(text, ", {}", delivery.last_error).unwrap();
        }
        text.push(')');
    }
    text
}

fn show_outcome(answer: &OutcomeAnswer) -> String {
    let outcome = answer.outcome.map_or("not told".into(), show::outcome);
    let detail =
        if answer.detail.is_empty() { String::new() } else { format!(" ({})", shorten(&answer.detail)) };
    format!("{outcome}{detail}, {} of {} branches pending", answer.pending, answer.branches)
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, context: &goldenscript::Context) -> Result<String, Failure> {
        let mut out = self.carry_out(command)?;
        if context.tags.contains("count") {
            out = count(&out);
        }
        Ok(format!("> {command}\n{out}"))
    }
}

/// How many lines there are of each kind, the names of transactions left out.
fn count(lines: &str) -> String {
    let mut counts = BTreeMap::<String, usize>::new();
    for line in lines.lines() {
        let kind = line.split(' ').map(|word| if word.contains('.') { "…" } else { word });
        *counts.entry(kind.collect::<Vec<_>>().join(" ")).or_default() += 1;
    }
    counts.into_iter().map(|(kind, count)| format!("{count} × {kind}\n")).collect()
}

impl Runner {
    fn carry_out(&mut self, command: &Command) -> Result<String, Failure> {
        let mut out = String::new();
        let mut args = command.consume_args();
        let mut next = |what: &'static str| args.next_pos().ok_or(what);
        match command.name.as_str() {
            "attach" | "detach" | "enlist" | "vote" | "ack" => self.participant(command, &mut out)?,
            "begin" | "commit" | "rollback" | "inquire" => self.client(command, &mut out)?,
            "prepared" | "list" | "find" | "summary" | "show" => self.question(command, &mut out)?,
            "retry" | "pause" | "resume" | "abandon" => {
                let gtrid = self.gtrid(next("which transaction?")?);
                let act = match command.name.as_str() {
                    "retry" => Act::Retry,
                    "pause" => Act::Pause,
                    "resume" => Act::Resume,
                    _ => Act::Abandon(resource_manager(next("whose branch?")?)),
                };
                self.step(Input::Act { gtrid, act, reply: "operator".to_owned() }, &mut out);
            }
            "retire" => {
                let resource_manager = resource_manager(next("who?")?);
                self.step(Input::Retire { resource_manager }, &mut out);
            }
            "log" => {
                let gtrid = self.gtrid(next("which transaction?")?);
                let answer = log_answer(next("what does the log say?")?)?;
                self.step(Input::Log { gtrid, answer }, &mut out);
            }
            "recover" | "recover-intent" => {
                let kind = match command.name.as_str() {
                    "recover" => DecisionKind::Commit,
                    _ => DecisionKind::OnePhaseIntent,
                };
                let name = next("which transaction?")?;
                let branches = std::iter::from_fn(|| args.next_pos()).collect();
                self.recover(name, kind, branches, &mut out);
            }
            "recover-many" => {
                let branches: Vec<_> = [next("of which resource manager?")?].into();
                for number in 0..next("how many?")?.parse()? {
                    self.recover_numbered(number, &branches, &mut out);
                }
            }
            "commit-many" => {
                let gtrid = self.gtrid(next("which transaction?")?);
                for _ in 0..next("how many?")?.parse()? {
                    let input = Input::Commit { gtrid, wait: Wait::Decided, reply: "c".to_owned() };
                    self.step(input, &mut out);
                }
            }
            "late" => self.time += duration(next("how long?")?)?,
            "wait" => self.wait(duration(next("how long?")?)?, &mut out),
            "timer" => {
                let due = self.shard.next_timer().map(|due| due.saturating_sub(self.time));
                writeln!(out, "{}", due.map_or("no timer".into(), |due| format!("due in {due:?}")))?;
            }
            other => return Err(format!("no such command: {other}").into()),
        }
        Ok(out)
    }

    fn participant(&mut self, command: &Command, out: &mut String) -> Result<(), Failure> {
        let mut args = command.consume_args();
        let number = args.next_pos().ok_or("which session?")?.trim_start_matches('s').parse()?;
        let session = SessionId(number);
        match command.name.as_str() {
            "attach" => {
                let resource_manager = resource_manager(args.next_pos().ok_or("of which resource manager?")?);
                self.step(Input::Attached { session, resource_manager }, out);
            }
            "detach" => self.step(Input::Detached { session }, out),
            "enlist" => {
                while let Some(name) = args.next_pos() {
                    let xid = self.xid(name)?;
                    self.step(Input::Enlist { session, xid }, out);
                }
            }
            _ => {
                while let Some((name, word)) = args.next_key() {
                    let xid = self.xid(name)?;
                    let input = if command.name == "vote" {
                        Input::Vote { session, xid, vote: vote(word)? }
                    } else {
                        Input::Acknowledge { session, xid, acknowledgement: acknowledgement(word)? }
                    };
                    self.step(input, out);
                }
            }
        }
        Ok(())
    }

    fn client(&mut self, command: &Command, out: &mut String) -> Result<(), Failure> {
        let mut args = command.consume_args();
        let reply = args.next_pos().ok_or("who asks?")?.to_owned();
        if command.name == "begin" {
            let timeout = duration(args.take_key("timeout").unwrap_or("30s"))?;
            let number: u8 = reply.trim_start_matches('t').parse()?;
            let input = Input::Begin { random: [number; 10], timeout, about: About::default(), reply };
            self.step(input, out);
            return Ok(());
        }
        let gtrid = self.gtrid(args.next_pos().ok_or("which transaction?")?);
        let wait = match args.take_key("wait") {
            None => Wait::Applied,
            Some("decided") => Wait::Decided,
            Some(other) => return Err(format!("nobody waits for {other}").into()),
        };
        let input = match command.name.as_str() {
            "commit" => Input::Commit { gtrid, wait, reply },
            "rollback" => Input::Rollback { gtrid, why: "changed my mind".into(), reply },
            _ => Input::Inquire { gtrid, reply },
        };
        self.step(input, out);
        Ok(())
    }

    fn question(&mut self, command: &Command, out: &mut String) -> Result<(), Failure> {
        let mut args = command.consume_args();
        let reply = command.name.clone();
        let input = match command.name.as_str() {
            "prepared" => {
                let xids: Result<_, _> =
                    std::iter::from_fn(|| args.next_pos()).map(|name| self.xid(name)).collect();
                Input::AskPrepared { xids: xids?, reply }
            }
            "list" => Input::List { limit: args.next_pos().unwrap_or("10").parse()?, reply },
            "find" => Input::Find { prefix: args.next_pos().unwrap_or("").to_owned(), limit: 10, reply },
            "show" => {
                let prefix = self.gtrid(args.next_pos().ok_or("which transaction?")?).to_string();
                Input::Find { prefix, limit: 1, reply }
            }
            _ => Input::Summarize { reply },
        };
        self.step(input, out);
        Ok(())
    }
}

fn duration(text: &str) -> Result<Duration, Failure> {
    Ok(humantime::parse_duration(text)?)
}

fn vote(word: &str) -> Result<Vote, Failure> {
    match word {
        "commit" => Ok(Vote::Commit),
        "rollback" => Ok(Vote::Rollback("out of stock".into())),
        "hazard" => Ok(Vote::Hazard("its service committed".into())),
        "read-only" => Ok(Vote::ReadOnly),
        other => Err(format!("no such vote: {other}").into()),
    }
}

fn acknowledgement(word: &str) -> Result<Acknowledgement, Failure> {
    match word {
        "committed" => Ok(Acknowledgement::Ended(Applied::Committed)),
        "rolled-back" => Ok(Acknowledgement::Ended(Applied::RolledBack)),
        "hazard" => Ok(Acknowledgement::Ended(Applied::Hazard)),
        "not-yet" => Ok(Acknowledgement::NotYet("the database is restarting".into())),
        other => Err(format!("no such acknowledgement: {other}").into()),
    }
}

fn log_answer(word: &str) -> Result<LogAnswer, Failure> {
    match word {
        "forced" => Ok(LogAnswer::Forced),
        "refused" => Ok(LogAnswer::Refused("the disk is full".into())),
        "unknown" => Ok(LogAnswer::Unknown("the connection broke".into())),
        "found" => Ok(LogAnswer::Found),
        "absent" => Ok(LogAnswer::Absent),
        other => Err(format!("the log does not answer {other}").into()),
    }
}
