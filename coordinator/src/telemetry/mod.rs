//! What can be measured of a running coordinator, for Prometheus, and what can be followed of one transaction, for a collector
//! of traces.
//!
//! - [`metrics`]: the table of all metrics, and how they are written out. docs/metrics.md is checked against it.
//! - [`stopwatch`]: looks at what goes into a shard and comes out of it, and measures. Changes nothing, so that the shards stay pure.
//! - [`scrape`]: what is looked up only when somebody asks: who is attached, what is unresolved.
//! - [`traces`]: spans, by the same looking on. None are made unless [`exporter`] finds a collector in the environment.
//!
//! Names follow Prometheus' conventions: `lockstep_` in front, base units, `_total` behind what only grows. No label carries an
//! id, and the number of values of each is bounded: what applications name freely is cut off after [`metrics::MAX_NAMES`].

pub mod exporter;
pub mod metrics;
pub mod scrape;
pub mod stopwatch;
pub mod traces;

use lockstep_proto::TraceParent;

use crate::engine::delivery::Monotonic;
use crate::engine::input::{Input, Output};
use stopwatch::Stopwatch;
use traces::ShardTraces;

/// Whatever looks at what goes into one shard and comes out of it.
#[derive(Debug)]
pub struct Onlookers {
    /// Measures.
    pub stopwatch: Stopwatch,
    /// Makes spans, if somebody wants them.
    pub traces: Option<ShardTraces>,
}

impl Onlookers {
    /// The shard is about to take this.
    pub fn goes_in<R>(&mut self, input: &Input<R>, now: Monotonic) {
        self.stopwatch.goes_in(input, now);
        if let Some(traces) = &mut self.traces {
            traces.goes_in(input);
        }
    }

    /// The shell is about to carry this out. The span that a message is part of goes along with it.
    pub fn comes_out<R>(&mut self, output: &Output<R>, now: Monotonic) -> Option<TraceParent> {
        self.stopwatch.comes_out(output, now);
        self.traces.as_mut()?.comes_out(output)
    }
}
