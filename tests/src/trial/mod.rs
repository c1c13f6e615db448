//! What all matrices of `prove` have in common: cells in which processes run, faults strike, and somebody looks from outside.
//!
//! - [`world`]: the processes of one cell.
//! - [`checker`]: what was found in the databases against what clients were told, a pure function.
//! - [`verdict`]: what came of a cell. [`run`]: all cells, some of them at a time; [`progress`]: how far they are.

pub mod checker;
pub mod progress;
pub mod run;
pub mod verdict;
pub mod world;
