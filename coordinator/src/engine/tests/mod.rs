//! Tests of the pure part of the engine: golden scripts for its behaviour, random histories for its safety, and its size.

mod delivery;
mod floors;
mod golden;
mod many;
mod properties;
mod world;
