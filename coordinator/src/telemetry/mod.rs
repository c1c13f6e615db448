//! What can be measured of a running coordinator, for Prometheus.
//!
//! - [`metrics`]: the table of all metrics, and how they are written out. docs/metrics.md is checked against it.
//! - [`stopwatch`]: looks at what goes into a shard and comes out of it, and measures. Changes nothing, so that the shards stay pure.
//! - [`scrape`]: what is looked up only when somebody asks: who is attached, what is unresolved.
//!
//! Names follow Prometheus' conventions: `lockstep_` in front, base units, `_total` behind what only grows. No label carries an
//! id, and the number of values of each is bounded: what applications name freely is cut off after [`metrics::MAX_NAMES`].

pub mod metrics;
pub mod scrape;
pub mod stopwatch;
