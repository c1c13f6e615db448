//! The spans of this side: a handler's work, and what the store is asked for.
//!
//! They are made by whatever tracer the process has set for OpenTelemetry as a whole; a process that has set none makes no spans, and
//! the caller's goes on to whom it calls all the same. Nothing is made where the transaction is not recorded.

use std::collections::{BTreeSet, HashMap};

use lockstep_proto::{Gtrid, TraceParent, Xid};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
    TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue, global};

/// Transactions whose spans are remembered before it is looked which of them are over.
const REMEMBERED: usize = 1024;

/// The span that this task works in, by OpenTelemetry's own reckoning.
pub(crate) fn current() -> Option<TraceParent> {
    Context::map_current(|context| from(context.span().span_context()))
}

fn from(context: &SpanContext) -> Option<TraceParent> {
    TraceParent::new(context.trace_id().to_bytes(), context.span_id().to_bytes(), context.is_sampled())
}

fn remote(parent: TraceParent) -> SpanContext {
    let (trace, span) = (TraceId::from_bytes(parent.trace()), SpanId::from_bytes(parent.span()));
    let flags = if parent.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() };
    SpanContext::new(trace, span, flags, true, TraceState::NONE)
}

/// A span that is recorded, until it is dropped.
#[derive(Debug)]
pub(crate) struct Span(global::BoxedSpan);

impl Span {
    /// A child of `parent`; `None` if nobody records it.
    pub(crate) fn start(name: &'static str, kind: SpanKind, parent: Option<TraceParent>) -> Option<Self> {
        let parent = Context::new().with_remote_span_context(remote(parent.filter(TraceParent::is_sampled)?));
        let tracer = global::tracer("lockstep-sdk");
        let span = tracer.build_with_context(SpanBuilder::from_name(name).with_kind(kind), &parent);
        span.is_recording().then_some(Self(span))
    }

    /// What its children are told.
    pub(crate) fn parent(&self) -> Option<TraceParent> {
        from(self.0.span_context())
    }

    /// Whose work it is.
    pub(crate) fn belongs_to(&mut self, xid: &Xid) {
        self.0.set_attributes([
            KeyValue::new("lockstep.gtrid", xid.gtrid.to_string()),
            KeyValue::new("lockstep.resource", xid.bqual.resource_manager_str().to_owned()),
            KeyValue::new("lockstep.bqual", xid.bqual.to_string()),
        ]);
    }

    /// It did not lead to what it was for. `kind`: one of a few words; `why`: for people.
    pub(crate) fn fail(&mut self, kind: &'static str, why: String) {
        self.0.set_attribute(KeyValue::new("error.type", kind));
        self.0.set_status(Status::error(why));
    }
}

/// The span that each transaction is in here, as last heard.
#[derive(Debug)]
pub(crate) struct Parents {
    of: HashMap<Gtrid, TraceParent>,
    /// How many are remembered before those that are over are forgotten.
    limit: usize,
}

impl Default for Parents {
    fn default() -> Self {
        Self { of: HashMap::new(), limit: REMEMBERED }
    }
}

impl Parents {
    /// From now on it is in this one. `live`: the transactions that are not over, asked for now and then.
    pub(crate) fn note(&mut self, gtrid: Gtrid, parent: TraceParent, live: impl FnOnce() -> BTreeSet<Gtrid>) {
        if !parent.is_sampled() {
            return;
        }
        if self.of.len() >= self.limit {
            let live = live();
            self.of.retain(|gtrid, _parent| live.contains(gtrid));
            self.limit = REMEMBERED.max(2 * self.of.len());
        }
        self.of.insert(gtrid, parent);
    }

    /// Where its spans belong.
    pub(crate) fn of(&self, gtrid: &Gtrid) -> Option<TraceParent> {
        self.of.get(gtrid).copied()
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Epoch;

    use super::*;

    fn gtrid(number: u64) -> Gtrid {
        Gtrid::new(Epoch::new(1).unwrap(), number, [0; 10])
    }

    #[test]
    fn what_is_over_does_not_fill_the_memory() {
        let parent = TraceParent::new([1; 16], [2; 8], true).unwrap();
        let mut parents = Parents::default();
        for number in 0..100_000 {
            parents.note(gtrid(number), parent, || [gtrid(0), gtrid(number - 1)].into());
        }
        assert!(parents.of.len() <= REMEMBERED, "{}", parents.of.len());
        assert_eq!(parents.of(&gtrid(0)), Some(parent), "it is not over");
    }

    #[test]
    fn of_many_that_are_not_over_none_is_forgotten() {
        let parent = TraceParent::new([1; 16], [2; 8], true).unwrap();
        let mut parents = Parents::default();
        for number in 0..10_000 {
            parents.note(gtrid(number), parent, || (0..number).map(gtrid).collect());
        }
        assert_eq!(parents.of.len(), 10_000);
    }

    #[test]
    fn without_a_tracer_there_is_no_span() {
        let sampled = TraceParent::new([1; 16], [2; 8], true);
        assert!(Span::start("work", SpanKind::Internal, sampled).is_none());
        assert!(Span::start("work", SpanKind::Internal, None).is_none());
    }
}
