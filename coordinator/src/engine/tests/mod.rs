//! Tests of the pure part of the engine: golden scripts for its behaviour.

mod golden;
