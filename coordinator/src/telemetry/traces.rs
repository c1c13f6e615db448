//! Spans: what one transaction did, for a collector of traces. docs/tracing.md has the table.
//!
//! Like the stopwatch, [`ShardTraces`] looks at what goes into a shard and comes out of it, so that the shards stay pure; it
//! exists only where an [exporter](super::exporter) does. A transaction's span is made before its shard hears of it, as a child
//! of the caller's, and what is not recorded is not even remembered: a shard's table holds the recorded ones.
//!
//! The span's identity stays with the transaction's record. What is done about it after the coordinator has died, or by hand, is a
//! trace of its own, with a link to that span; the collector may never have got it, since a span is sent when it ends.

use std::collections::HashMap;
use std::time::Duration;

use lockstep_proto::{Bqual, Gtrid, TraceParent, Xid};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags,
    TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;

use super::metrics::{Operation, outcome_label};
use crate::decision_log::group_commit::{Forced, LogDone};
use crate::engine::delivery::SessionId;
use crate::engine::input::{Acknowledgement, Answer, Input, Output, ToParticipant};
use crate::protocol::event::{Applied, Vote};
use crate::protocol::outcome::Outcome;
use crate::protocol::record::{DecisionRecord, EndRecord, LogWrite};

/// A span that is recorded, until it is dropped.
#[derive(Debug)]
pub struct OpenSpan(Context);

impl OpenSpan {
    /// What its children, and those who link to it, are told.
    #[must_use]
    pub fn parent(&self) -> TraceParent {
        let span = self.0.span();
        let context = span.span_context();
        let (trace, span) = (context.trace_id().to_bytes(), context.span_id().to_bytes());
        TraceParent::new(trace, span, true).expect("a recorded span has a trace and an id")
    }

    /// Adds what was found out.
    pub fn set(&self, attribute: KeyValue) {
        self.0.span().set_attribute(attribute);
    }

    /// It did not lead to what it was for. `kind`: one of a few words; `why`: for people.
    pub fn fail(&self, kind: &'static str, why: &str) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("error.type", kind));
        span.set_status(Status::error(why.to_owned()));
    }
}

/// Makes spans. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Traces(SdkTracer);

impl Traces {
    /// Made by this tracer.
    #[must_use]
    pub fn new(tracer: SdkTracer) -> Self {
        Self(tracer)
    }

    /// The span of a transaction that is about to begin; `None` if its trace, or this one, is not recorded.
    #[must_use]
    pub fn begin(&self, name: &str, timeout: Duration, caller: Option<TraceParent>) -> Option<OpenSpan> {
        let parent = caller
            .map_or_else(Context::new, |caller| Context::new().with_remote_span_context(remote(caller)));
        let timeout_ms = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
        let attributes = [
            KeyValue::new("lockstep.name", name.to_owned()),
            KeyValue::new("lockstep.timeout_ms", timeout_ms),
        ];
        let builder = SpanBuilder::from_name(format!("transaction {name}").trim_end().to_owned());
        self.open(builder.with_attributes(attributes), &parent)
    }

    /// A trace of its own, for what an operator does.
    #[must_use]
    pub fn operator(&self, action: &str, reason: &str, about: Option<TraceParent>) -> Option<OpenSpan> {
        let attributes = [KeyValue::new("lockstep.reason", reason.to_owned())];
        let builder = SpanBuilder::from_name(format!("operator {action}")).with_attributes(attributes);
        self.open(linked(builder, about), &Context::new())
    }

    /// A trace of its own, for a decision that was found in the log. `None` if the transaction's was not recorded.
    fn recover(&self, decision: &DecisionRecord) -> Option<OpenSpan> {
        let original = decision.about.trace?;
        let attributes = [
            KeyValue::new("lockstep.gtrid", decision.gtrid.to_string()),
            KeyValue::new("lockstep.name", decision.about.name.clone()),
            KeyValue::new("lockstep.situation", "undelivered"),
            KeyValue::new(
                "lockstep.reason",
                "its decision was in the log, and its coordinator's epoch is over",
            ),
        ];
        let builder = SpanBuilder::from_name("recover").with_attributes(attributes);
        self.open(linked(builder, Some(original)), &Context::new())
    }

    fn child(&self, builder: SpanBuilder, parent: &OpenSpan) -> Option<OpenSpan> {
        self.open(builder, &parent.0)
    }

    fn open(&self, builder: SpanBuilder, parent: &Context) -> Option<OpenSpan> {
        let span = self.0.build_with_context(builder, parent);
        span.is_recording().then(|| OpenSpan(Context::new().with_span(span)))
    }
}

fn linked(builder: SpanBuilder, to: Option<TraceParent>) -> SpanBuilder {
    match to {
        Some(to) => builder.with_links(vec![Link::with_context(remote(to))]),
        None => builder,
    }
}

/// A span of another process.
fn remote(parent: TraceParent) -> SpanContext {
    let (trace, span) = (TraceId::from_bytes(parent.trace()), SpanId::from_bytes(parent.span()));
    let flags = if parent.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() };
    SpanContext::new(trace, span, flags, true, TraceState::NONE)
}

/// What a branch was asked for.
#[derive(Debug)]
struct Asked {
    bqual: Bqual,
    operation: Operation,
    session: SessionId,
    /// How often.
    attempt: i64,
    /// `None`: it was answered, or nobody is left to answer it.
    span: Option<OpenSpan>,
}

/// A live transaction that is recorded.
#[derive(Debug)]
struct Live {
    span: OpenSpan,
    decide: Option<OpenSpan>,
    asked: Vec<Asked>,
}

impl Live {
    const fn new(span: OpenSpan) -> Self {
        Self { span, decide: None, asked: Vec::new() }
    }
}

/// The spans of one shard's transactions.
#[derive(Debug)]
pub struct ShardTraces {
    traces: Traces,
    /// Of the transaction that the shard is being asked to begin.
    begins: Option<OpenSpan>,
    live: HashMap<Gtrid, Live>,
}

impl ShardTraces {
    /// It has none yet.
    #[must_use]
    pub fn new(traces: Traces) -> Self {
        Self { traces, begins: None, live: HashMap::new() }
    }

    /// The next input begins the transaction that this is the span of.
    pub fn begins(&mut self, span: OpenSpan) {
        self.begins = Some(span);
    }

    /// The log has answered.
    pub fn log_done(&mut self, done: &LogDone) {
        let Some(span) = self.live.get_mut(&done.gtrid).and_then(|live| live.decide.take()) else { return };
        if done.forced == Forced::Decision {
            let records = i64::try_from(done.force.records).unwrap_or(i64::MAX);
            span.set(KeyValue::new("lockstep.batch_size", records));
            span.set(KeyValue::new("lockstep.force_seconds", done.force.took.as_secs_f64()));
        }
        if let Err(error) = &done.result {
            span.fail("log", &error.to_string());
        }
    }

    /// The shard is about to take this.
    pub fn goes_in<R>(&mut self, input: &Input<R>) {
        match input {
            Input::Vote { xid, vote, .. } => self.voted(xid, vote),
            Input::Acknowledge { xid, acknowledgement, .. } => self.acknowledged(xid, acknowledgement),
            Input::Recover(record) => {
                if let Some(span) = self.traces.recover(record) {
                    self.live.insert(record.gtrid, Live::new(span));
                }
            }
            Input::Detached { session } => self.detached(*session),
            Input::Begin { .. }
            | Input::Commit { .. }
            | Input::Rollback { .. }
            | Input::Inquire { .. }
            | Input::AskPrepared { .. }
            | Input::List { .. }
            | Input::Find { .. }
            | Input::Summarize { .. }
            | Input::Act { .. }
            | Input::Retire { .. }
            | Input::Attached { .. }
            | Input::Enlist { .. }
            | Input::Log { .. }
            | Input::Tick => {}
        }
    }

    /// The shell is about to carry this out. The span that a message is part of goes along with it.
    pub fn comes_out<R>(&mut self, output: &Output<R>) -> Option<TraceParent> {
        match output {
            Output::Reply(_, Answer::Begun(gtrid)) => {
                if let Some(span) = self.begins.take() {
                    span.set(KeyValue::new("lockstep.gtrid", gtrid.to_string()));
                    self.live.insert(*gtrid, Live::new(span));
                }
            }
            Output::Reply(_, Answer::Full) => {
                if let Some(span) = self.begins.take() {
                    span.fail("full", "as many transactions are in flight as may be");
                }
            }
            Output::Log(LogWrite::ForceDecision(record)) => {
                if let Some(live) = self.live.get_mut(&record.gtrid) {
                    live.decide = self.traces.child(SpanBuilder::from_name("decide"), &live.span);
                }
            }
            Output::Log(LogWrite::ForceEnd(end) | LogWrite::LazyEnd(end)) => self.ended(end),
            Output::Send(session, message) => return self.sent(*session, message),
            Output::Reply(..) | Output::StrayVote(..) | Output::StrayAcknowledgement(..) => {}
        }
        None
    }

    fn sent(&mut self, session: SessionId, message: &ToParticipant) -> Option<TraceParent> {
        let (xid, operation, name) = match message {
            ToParticipant::Prepare(xid, _) => (xid, Operation::Prepare, "prepare"),
            ToParticipant::Commit(xid) => (xid, Operation::Commit, "commit"),
            ToParticipant::Rollback(xid) => (xid, Operation::Rollback, "rollback"),
            ToParticipant::CommitOnePhase(xid, _) => (xid, Operation::CommitOnePhase, "commit"),
            ToParticipant::Enlisted(..) | ToParticipant::EnlistRefused(..) | ToParticipant::Refused(..) => {
                return None;
            }
        };
        let live = self.live.get_mut(&xid.gtrid)?;
        let earlier =
            live.asked.iter().position(|asked| asked.bqual == xid.bqual && asked.operation == operation);
        let attempt = match earlier.map(|index| live.asked.swap_remove(index)) {
            Some(Asked { attempt, span, .. }) => {
                if let Some(span) = span {
                    span.fail("no_answer", "nothing was heard, and it is sent again");
                }
                attempt + 1
            }
            None => 1,
        };
        let attributes = [
            KeyValue::new("lockstep.gtrid", xid.gtrid.to_string()),
            KeyValue::new("lockstep.resource", xid.bqual.resource_manager_str().to_owned()),
            KeyValue::new("lockstep.bqual", xid.bqual.to_string()),
            KeyValue::new("lockstep.attempt", attempt),
            KeyValue::new("lockstep.one_phase", operation == Operation::CommitOnePhase),
        ];
        let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Client).with_attributes(attributes);
        let span = self.traces.child(builder, &live.span);
        let parent = span.as_ref().map(OpenSpan::parent);
        live.asked.push(Asked { bqual: xid.bqual.clone(), operation, session, attempt, span });
        parent
    }

    /// The span of what this branch was asked for, which it has answered now.
    fn answered(&mut self, xid: &Xid, which: impl Fn(Operation) -> bool) -> Option<OpenSpan> {
        let asked = &mut self.live.get_mut(&xid.gtrid)?.asked;
        asked.iter_mut().find(|asked| asked.bqual == xid.bqual && which(asked.operation))?.span.take()
    }

    fn voted(&mut self, xid: &Xid, vote: &Vote) {
        let Some(span) = self.answered(xid, |operation| operation == Operation::Prepare) else { return };
        let (name, failed) = match vote {
            Vote::Commit => ("commit", None),
            Vote::ReadOnly => ("read-only", None),
            Vote::Rollback(why) => ("rollback", Some(("voted_rollback", why))),
            Vote::Hazard(why) => ("hazard", Some(("hazard", why))),
        };
        span.set(KeyValue::new("lockstep.vote", name));
        if let Some((kind, why)) = failed {
            span.fail(kind, why);
        }
    }

    fn acknowledged(&mut self, xid: &Xid, acknowledgement: &Acknowledgement) {
        let Some(span) = self.answered(xid, |operation| operation != Operation::Prepare) else { return };
        match acknowledgement {
            Acknowledgement::Ended(Applied::Committed | Applied::RolledBack) => {}
            Acknowledgement::Ended(Applied::Hazard) => {
                span.fail("hazard", "the branch can be brought to neither end")
            }
            Acknowledgement::NotYet(why) => span.fail("not_yet", why),
        }
    }

    /// What was asked over this session is not answered any more.
    fn detached(&mut self, session: SessionId) {
        let asked = self.live.values_mut().flat_map(|live| &mut live.asked);
        for asked in asked.filter(|asked| asked.session == session) {
            if let Some(span) = asked.span.take() {
                span.fail("session_lost", "the session ended before the answer");
            }
        }
    }

    /// A record that the log refuses is asked for again: the span has ended with the first.
    fn ended(&mut self, end: &EndRecord) {
        let Some(Live { span, .. }) = self.live.remove(&end.gtrid) else { return };
        let branches = i64::try_from(end.branches.len()).unwrap_or(i64::MAX);
        span.set(KeyValue::new("lockstep.outcome", outcome_label(end.outcome)));
        span.set(KeyValue::new("lockstep.branches", branches));
        match end.outcome {
            Outcome::Heuristic(_) => span.fail("heuristic", &end.detail),
            Outcome::Committed | Outcome::RolledBack | Outcome::NothingToCommit | Outcome::Unknown => {}
        }
    }
}
