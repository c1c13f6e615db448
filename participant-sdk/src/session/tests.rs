//! The conversation, script by script: a file's name is its claim, its output is everything that leaves the machine.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use goldenscript::ArgumentConsumer;
use lockstep_proto::limits::PROTOCOL_VERSION;
use lockstep_proto::{Epoch, Incarnation, LogPosition, Positions, ResourceManagerId};

use super::message::{BranchAnswer, Hello};
use super::*;
use crate::branch::{Applied, Decision, Refusal, Vote};

mod limits;
mod names;

use names::{gtrid_of, letter_of, shorten, show_xid, xid_of};

/// The participant `bank`. Transactions are called a, b, …, each begun in epoch 2 unless written as `a@1`; the branch that
/// handler 7 opened in a is a/7; a branch of another resource manager is a/other.
struct Script {
    session: Session,
    now: Duration,
}

type Result_<T> = Result<T, Box<dyn Error>>;

fn cluster(name: Option<&str>) -> ClusterId {
    ClusterId::from_random(if name == Some("other") { 0xbad } else { 0x600d })
}

fn position(epoch: u32) -> LogPosition {
    let incarnation = Incarnation::from_bytes([0; 16]);
    LogPosition { epoch: Epoch::new(epoch).unwrap(), incarnation, sequence: 1 }
}

fn unresolved() -> Unresolved {
    Unresolved("connection lost".to_owned())
}

fn attachment(identity: u8, cluster: Option<ClusterId>, seen: Positions) -> Attachment {
    let identity = ResourceManagerId::from_bytes([identity; 16]);
    Attachment { identity, cluster, seen, location: String::new(), timeline: 0 }
}

fn welcome(epoch: u32) -> Welcome {
    Welcome {
        protocol_version: PROTOCOL_VERSION,
        cluster: cluster(None),
        position: position(epoch),
        retention: Duration::from_secs(3600),
        sealed_below: epoch,
        newest_epoch: epoch,
        report_interval: Duration::from_secs(60),
        settled: Vec::new(),
    }
}

fn session() -> Session {
    Session::new("bank".parse().unwrap(), InstanceId::from_bytes([7; 16]))
}

/// Numbers with commas between them; none is no number.
fn numbers(text: Option<String>) -> Result_<Vec<u32>> {
    let text = text.unwrap_or_default();
    let numbers = text.split(',').filter(|number| !number.is_empty());
    Ok(numbers.map(str::parse).collect::<Result<_, _>>()?)
}

fn evidence((xid, kind): (&str, &str)) -> Result_<EvidenceRow> {
    let branch = BranchId { cluster: cluster(None), xid: xid_of(xid)? };
    let fate = match kind {
        "branch" => Fate::Committed,
        "fence" => Fate::RolledBack,
        "hazard" => Fate::Hazard,
        other => return Err(format!("no such evidence: {other}").into()),
    };
    Ok(EvidenceRow { branch, fate })
}

impl Script {
    fn new() -> Self {
        Self { session: session(), now: Duration::ZERO }
    }

    fn event(&self, command: &goldenscript::Command) -> Result_<Event> {
        let mut arguments = command.consume_args();
        let key =
            |arguments: &mut ArgumentConsumer<'_>, name: &str| arguments.take_key(name).map(str::to_owned);
        let number = |text: Option<String>, default: u32| text.map_or(Ok(default), |text| text.parse());
        let (epoch, seconds) =
            (number(key(&mut arguments, "epoch"), 2)?, number(key(&mut arguments, "seconds"), 30)?);
        let of_cluster = key(&mut arguments, "cluster");
        let event = match command.name.as_str() {
            "dialled" => {
                let bound = of_cluster.as_deref() != Some("none");
                let cluster = bound.then(|| cluster(of_cluster.as_deref()));
                let seen = numbers(key(&mut arguments, "seen"))?;
                Event::Dialled(attachment(1, cluster, seen.into_iter().map(position).collect()))
            }
            "welcome" => Event::Received(FromCoordinator::Welcome(Welcome {
                protocol_version: number(key(&mut arguments, "version"), PROTOCOL_VERSION)?,
                cluster: cluster(of_cluster.as_deref()),
                sealed_below: number(key(&mut arguments, "sealed-below"), epoch)?,
                newest_epoch: number(key(&mut arguments, "newest"), epoch)?,
                report_interval: Duration::from_secs(number(key(&mut arguments, "interval"), 60)?.into()),
                settled: numbers(key(&mut arguments, "settled"))?
                    .into_iter()
                    .filter_map(Epoch::new)
                    .collect(),
                ..welcome(epoch)
            })),
            "sealed" | "told-sealed" => {
                let epochs = positions(&mut arguments).into_iter().map(str::parse);
                let epochs = epochs.collect::<Result<Vec<u32>, _>>()?;
                if command.name == "sealed" {
                    Event::Received(FromCoordinator::Sealed(epochs))
                } else {
                    Event::Sealed(epochs)
                }
            }
            "bound" => Event::Bound(self.session.number, Ok(())),
            "bound-fails" => Event::Bound(self.session.number, Err(unresolved())),
            "disconnected" => Event::Disconnected,
            "wait" => Event::Tick,
            "detach" => Event::Detach(self.now + Duration::from_secs(seconds.into())),
            "join" | "finished" | "voted" | "gone" | "ask-again" | "done" => return self.local(command),
            "listed" => {
                let session =
                    key(&mut arguments, "session").map_or(Ok(self.session.number), |text| text.parse())?;
                let store = key(&mut arguments, "store")
                    .map(|store| attachment(u8::from(store == "same"), None, Positions::new()));
                let oldest_evidence =
                    key(&mut arguments, "oldest").map(|name| gtrid_of(&name)).transpose()?;
                let prepared = positions(&mut arguments).into_iter().map(xid_of).collect::<Result_<_>>()?;
                Event::Listed(session, Ok(Listing { attachment: store, prepared, oldest_evidence }))
            }
            "listed-fails" => Event::Listed(self.session.number, Err(unresolved())),
            "old-evidence" => {
                let rows = keys(&mut arguments).into_iter().map(evidence).collect::<Result_<_>>()?;
                Event::OldEvidence(self.session.number, Ok(rows))
            }
            "forgotten" => Event::Forgotten(self.session.number, Ok(())),
            _ => return self.received(command),
        };
        arguments.reject_next()?;
        Ok(event)
    }

    /// From a handler or the store.
    fn local(&self, command: &goldenscript::Command) -> Result_<Event> {
        let mut arguments = command.consume_args();
        let seconds: u64 = arguments.take_key("seconds").map_or(Ok(30), str::parse)?;
        let cluster = cluster(arguments.take_key("cluster"));
        let first = arguments.next_pos().ok_or("which branch or handler?")?;
        if command.name == "ask-again" {
            arguments.reject_next()?;
            return Ok(Event::AskAgain(xid_of(first)?));
        }
        let second = arguments.next_pos().ok_or("an argument is missing")?;
        arguments.reject_next()?;
        Ok(match command.name.as_str() {
            "join" => {
                let (handler, gtrid) = (first.parse()?, gtrid_of(second)?);
                let deadline = self.now + Duration::from_secs(seconds);
                Event::Join { handler, cluster, gtrid, deadline, random: handler }
            }
            "finished" | "voted" => {
                let votes = command.name == "voted";
                Event::Finished { xid: xid_of(first)?, handler: second.parse()?, votes }
            }
            "gone" => Event::HandlerGone(xid_of(first)?, second.parse()?),
            "done" => Event::Done(xid_of(first)?, done(second)?),
            other => return Err(format!("no command {other}").into()),
        })
    }

    fn received(&self, command: &goldenscript::Command) -> Result_<Event> {
        let mut arguments = command.consume_args();
        let epoch = arguments.take_key("epoch").map_or(Ok(2), str::parse)?;
        let seconds: u64 = arguments.take_key("seconds").map_or(Ok(30), str::parse)?;
        let position = position(epoch);
        let mut xid = || xid_of(arguments.next_pos().ok_or("which branch?")?);
        let message = match command.name.as_str() {
            "enlisted" => FromCoordinator::Enlisted(xid()?, Duration::from_secs(seconds)),
            "enlist-refused" => FromCoordinator::EnlistRefused(xid()?, refusal(false)),
            "rollback-only" => FromCoordinator::EnlistRefused(xid()?, refusal(true)),
            "prepare" => FromCoordinator::Prepare(xid()?, position),
            "commit" => FromCoordinator::Decide(xid()?, Decision::Commit, position),
            "rollback" => FromCoordinator::Decide(xid()?, Decision::Rollback, position),
            "one-phase" => FromCoordinator::CommitOnePhase(xid()?, position),
            "refused" => FromCoordinator::Refused(xid()?, "no such branch".to_owned()),
            "drain" => FromCoordinator::Drain,
            "answer" => {
                let answers = keys(&mut arguments).into_iter().map(answer).collect::<Result_<_>>()?;
                FromCoordinator::ReportAnswer(answers, position)
            }
            "forget" => {
                let xids = positions(&mut arguments).into_iter().map(xid_of).collect::<Result_<_>>()?;
                FromCoordinator::ReconcileAnswer(xids)
            }
            other => return Err(format!("no command {other}").into()),
        };
        arguments.reject_next()?;
        Ok(Event::Received(message))
    }
}

fn positions<'a>(arguments: &mut ArgumentConsumer<'a>) -> Vec<&'a str> {
    std::iter::from_fn(|| arguments.next_pos()).collect()
}

fn keys<'a>(arguments: &mut ArgumentConsumer<'a>) -> Vec<(&'a str, &'a str)> {
    std::iter::from_fn(|| arguments.next_key()).collect()
}

fn refusal(rollback_only: bool) -> Refusal {
    Refusal { rollback_only, detail: if rollback_only { "rollback only" } else { "not active" }.to_owned() }
}

fn answer((xid, answer): (&str, &str)) -> Result_<(Xid, BranchAnswer)> {
    let answer = match answer {
        "commit" => BranchAnswer::Commit,
        "rollback" => BranchAnswer::Rollback,
        "still-running" => BranchAnswer::StillRunning,
        "unknown" => BranchAnswer::Unknown("below the horizon".to_owned()),
        other => return Err(format!("no answer {other}").into()),
    };
    Ok((xid_of(xid)?, answer))
}

fn done(name: &str) -> Result_<Done> {
    let not_begun = |unfit| Done::NotBegun { detail: "no connection".to_owned(), unfit };
    Ok(match name {
        "begun" => Done::Begun,
        "not-begun" => not_begun(false),
        "unfit" => not_begun(true),
        "discarded" => Done::Discarded,
        "yes" => Done::Prepared(Ok(Prepared::Yes)),
        "read-only" => Done::Prepared(Ok(Prepared::ReadOnly)),
        "no" => Done::Prepared(Ok(Prepared::No("constraint".to_owned()))),
        "prepare-lost" => Done::Prepared(Err(unresolved())),
        "found" => Done::Found(Ok(true)),
        "not-found" => Done::Found(Ok(false)),
        "committed" => Done::Resolved(Ok(Fate::Committed)),
        "rolled-back" => Done::Resolved(Ok(Fate::RolledBack)),
        "lost" => Done::Resolved(Err(unresolved())),
        other => return Err(format!("no result {other}").into()),
    })
}

fn show_message(message: &ToCoordinator) -> String {
    match message {
        ToCoordinator::Hello(Hello { cluster, seen, .. }) => {
            let cluster = cluster.map_or("none".to_owned(), |cluster| cluster.to_string());
            let epochs: Vec<String> = seen.iter().map(|seen| format!("epoch {}", seen.epoch)).collect();
            let seen = if epochs.is_empty() { "nothing".to_owned() } else { epochs.join(" and ") };
            format!("hello, cluster {cluster}, seen {seen}")
        }
        ToCoordinator::Enlist(xid) => format!("enlist {}", show_xid(xid)),
        ToCoordinator::Vote(xid, Vote::Hazard(why)) => format!("vote {} hazard ({why})", show_xid(xid)),
        ToCoordinator::Vote(xid, Vote::Rollback(why)) => format!("vote {} rollback ({why})", show_xid(xid)),
        ToCoordinator::Vote(xid, vote) => format!("vote {} {vote:?}", show_xid(xid)).to_lowercase(),
        ToCoordinator::Acknowledge(xid, Applied::NotYet(why)) => {
            format!("acknowledge {} not yet ({why})", show_xid(xid))
        }
        ToCoordinator::Acknowledge(xid, Applied::RolledBack) => {
            format!("acknowledge {} rolled back", show_xid(xid))
        }
        ToCoordinator::Acknowledge(xid, applied) => {
            format!("acknowledge {} {applied:?}", show_xid(xid)).to_lowercase()
        }
        ToCoordinator::Inspection(question, answer) => format!("inspection {question} {answer:?}"),
        ToCoordinator::Report { prepared, oldest_held, complete, listing } => {
            let names: Vec<_> = prepared.iter().map(show_xid).collect();
            let oldest = oldest_held.map_or("nothing".to_owned(), |gtrid| letter_of(&gtrid));
            let complete = if *complete { "complete" } else { "to be continued" };
            format!("report {listing}: [{}], oldest held {oldest}, {complete}", names.join(" "))
        }
        ToCoordinator::Reconcile(rows) => {
            let row = |(xid, fate): &(Xid, Fate)| {
                let kind = match fate {
                    Fate::Committed => "branch",
                    Fate::RolledBack => "fence",
                    Fate::Hazard => "hazard",
                };
                format!("{}={kind}", show_xid(xid))
            };
            format!("reconcile [{}]", rows.iter().map(row).collect::<Vec<_>>().join(" "))
        }
    }
}

fn show_effect(effect: &Effect) -> String {
    match effect {
        Effect::Send(message) => format!("send: {}", show_message(message)),
        Effect::Run(branch, operation) => {
            let operation = match operation {
                Operation::Begin(remaining) => format!("begin within {remaining:?}"),
                Operation::Discard => "discard".to_owned(),
                Operation::Prepare(_) => "prepare".to_owned(),
                Operation::Find => "find".to_owned(),
                Operation::CommitOnePhase(_) => "commit in one phase".to_owned(),
                Operation::Commit(_) => "commit".to_owned(),
                Operation::Rollback(_) => "rollback".to_owned(),
                Operation::Prove(_) => "prove".to_owned(),
            };
            format!("store: {operation} {}", show_xid(&branch.xid))
        }
        Effect::Hand(handler, xid) => format!("handler {handler}: has {}", show_xid(xid)),
        Effect::RefuseJoin(handler, error) => {
            shorten(&format!("handler {handler}: {error} [{:?}]", error.advice()))
        }
        Effect::AnswerFinish(handler, Ok(())) => format!("handler {handler}: finished"),
        Effect::AnswerFinish(handler, Err(error)) => {
            shorten(&format!("handler {handler}: {error} [{:?}]", error.advice()))
        }
        Effect::AskLater(xid, failed) => {
            format!("ask again about {} later, {failed} failed before", show_xid(xid))
        }
        Effect::Bind(..) => "store: bind".to_owned(),
        Effect::Settle(position, epochs) => {
            let epochs: Vec<String> = epochs.iter().map(ToString::to_string).collect();
            format!("store: keep epoch {}, let go of {}", position.epoch, epochs.join(" and "))
        }
        Effect::List { again, .. } => format!("store: {}list", if *again { "attach again and " } else { "" }),
        Effect::FindOldEvidence { limit, .. } => format!("store: find old evidence, at most {limit}"),
        Effect::Forget(_, branches) => {
            let names: Vec<_> = branches.iter().map(|branch| show_xid(&branch.xid)).collect();
            format!("store: forget [{}]", names.join(" "))
        }
        Effect::Attached(cluster, _) => format!("attached to {cluster}"),
        Effect::Sealed(epochs) => format!("tell the other sessions that epochs {epochs:?} are sealed"),
        Effect::Close(why) => format!("close: {why:?}"),
        Effect::FindRoom => "store: ask for room".to_owned(),
        Effect::Warn(_, text) => shorten(&format!("warn: {text}")),
    }
}

impl goldenscript::Runner for Script {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Result_<String> {
        if command.name == "wait" {
            let seconds: u64 = command.consume_args().take_key("seconds").ok_or("how long?")?.parse()?;
            self.now += Duration::from_secs(seconds);
        }
        let mut output = format!("{command}\n");
        for effect in self.session.handle(self.now, self.event(command)?) {
            writeln!(output, "  {}", show_effect(&effect))?;
        }
        Ok(output)
    }

    /// Ends each block with when the machine wants to be woken.
    fn end_block(&mut self, _: &goldenscript::Block) -> Result_<String> {
        Ok(match self.session.next_wake() {
            Some(wake) => format!("= wakes in {:?}\n", wake.saturating_sub(self.now)),
            None => "= waits\n".to_owned(),
        })
    }
}

#[test]
fn every_script_holds() {
    let mut scripts = 0;
    for file in Path::new("src/session/testscripts").read_dir().unwrap() {
        goldenscript::run(&mut Script::new(), file.unwrap().path()).unwrap();
        scripts += 1;
    }
    assert!(scripts >= 20, "only {scripts} scripts were found");
}

#[test]
fn the_evidence_of_an_early_vote_keeps_the_newest_position_that_is_known() {
    let mut script = Script::new();
    let mut handle = |event| script.session.handle(Duration::ZERO, event);
    let (xid, other) = (xid_of("a/1").unwrap(), xid_of("b/2").unwrap());
    let decide = |at| Event::Received(FromCoordinator::Decide(other.clone(), Decision::Rollback, at));
    handle(Event::Dialled(attachment(1, Some(cluster(None)), Positions::new())));
    handle(Event::Received(FromCoordinator::Welcome(welcome(2))));
    let newest = LogPosition { sequence: 9, ..position(2) };
    for at in [newest, LogPosition { sequence: 4, ..newest }, LogPosition { sequence: 30, ..position(1) }] {
        handle(decide(at));
    }
    let (gtrid, deadline) = (xid.gtrid, Duration::from_secs(30));
    handle(Event::Join { handler: 1, cluster: cluster(None), gtrid, deadline, random: 1 });
    handle(Event::Received(FromCoordinator::Enlisted(xid.clone(), deadline)));
    handle(Event::Done(xid.clone(), Done::Begun));
    let effects = handle(Event::Finished { xid, handler: 1, votes: true });
    assert!(
        matches!(effects.as_slice(), [Effect::Run(_, Operation::Prepare(at))] if *at == newest),
        "{effects:?}"
    );
}
