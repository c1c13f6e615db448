//! `prove resources`: every kind of database, every way that a transaction takes through it, every fault that can strike there.
//!
//! A *cell* is one kind of database, one way, one fault at one place. The bank under test keeps its accounts in that database; where
//! the way needs another branch, a bank over SQLite takes part that nothing happens to. Money is moved until the fault has struck.
//! What died is started again, and within a bound nothing may be in doubt any more: then the databases are looked at over fresh
//! connections and compared with what the client was told, and what somebody else had prepared beside it must still be there.
//!
//! - [`promise`]: what is promised, in words: which ways there are, which statements each of them sends, what the server answers, what
//!   must become of a transaction that is struck there, and what cannot be, with the reason. It knows nothing of the code under test.
//! - [`matrix`]: the cells that follow from it. [`cell`]: one cell, from an empty directory to its verdict.
//! - [`stage`]: the servers in which cells run. [`report`]: what is printed.
//! - [`crate::trial`]: what this has in common with other matrices.
//!
//! A cell passes only if its fault struck where it says: the proxy has seen the statement and the server's answers to it, each of
//! them as promised, and who was to die was reaped with signal 9.

pub mod cell;
pub mod matrix;
pub mod promise;
pub mod report;
pub mod stage;
