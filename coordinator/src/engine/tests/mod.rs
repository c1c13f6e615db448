//! Tests of the pure part of the engine: golden scripts for its behaviour, random histories for its safety.

mod golden;
mod many;
mod properties;
mod world;
