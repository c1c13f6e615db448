//! What an operator can do, tried on real databases: each of the four situations is made, every action is tried in it through the
//! command line, and the situation is resolved as the runbook says. What is unsafe has to be refused, with its code.
//!
//! Read in this order: [`stage`] (the databases, the coordinator and the command line), [`expected`] (what is promised of each
//! action in each situation), [`matrix`] (the situations), [`runbook`] (its commands, run as they stand there), [`pages`] (the same
//! of the error pages), [`report`].

pub mod expected;
pub mod matrix;
pub mod pages;
pub mod report;
pub mod runbook;
pub mod stage;
