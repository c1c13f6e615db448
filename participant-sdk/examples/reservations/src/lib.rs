//! A store of one's own as a resource manager: an example to copy from.
//!
//! A shop keeps what it has in stock, and what of it is reserved for whom, in one append-only file. No database is involved.
//! With Lockstep, a reservation here and a payment in somebody's PostgreSQL are one transaction: both happen, or neither.
//!
//! | the business says | the protocol says | the journal gets |
//! |---|---|---|
//! | try: put it aside for me | work in an open branch, [`Desk::reserve`] | nothing: it is in memory, and gone with the process |
//! | | prepare | `prepared`, synced |
//! | confirm | commit | `ended`, `committed`, synced |
//! | cancel | rollback | `ended`, `rolled_back`, synced: the branch's *fence* |
//!
//! What is put aside is nobody else's until the decision, but nobody waits for it: who asks for more than is left is told so.
//! That is what one's own store can do better than row locks, because it knows what its numbers mean.
//!
//! # Reading order
//!
//! - [`record`]: what stands in the journal, line by line.
//! - [`state`]: what follows from the lines. The same function applies them live and after a restart.
//! - [`journal`]: the file: checksums, the torn tail, compaction, what is believed after a crash.
//! - [`ledger`]: the shop's side: items, entries, and the desk at which an open branch works.
//! - [`resource`]: the protocol's side: `impl Resource for Ledger`, and why each answer is true.
//! - [`service`]: the HTTP service around it, and the binary `reservations`.
//!
//! # What it promises, and what not
//!
//! - One process at a time has a directory (`lock`, locked by the kernel: a killed process leaves nothing to clean up).
//! - A crash at any moment loses nothing that was answered. A record that was cut off by a crash was never answered, and is
//!   dropped. A record that is damaged *before* the end is reported, and the ledger is not opened: nothing is guessed.
//! - Damage to the very last record cannot be told from a record cut off by a crash. If that was a vote, the branch is gone, and its
//!   commit is answered *rolled back*, which the coordinator records as a heuristic outcome.
//! - Every change is one synced write. They are not grouped: a few hundred a second on an ordinary disk.
//! - The journal is written anew when it has grown to four times what is in it, and at each start.
//!
//! # Crash points
//!
//! With the feature `crash-points`, a test can kill the process between any two durable effects: `reservations-prepare-written`
//! and `reservations-prepare-durable`, the same two of `end` (a decision, a fence, a one-phase commit), `forget`, `bind` and `item`, and
//! `reservations-compaction-written` and `reservations-compaction-renamed`. *Written*: not synced yet; *durable*: synced,
//! and not answered. A restart passes the points of the compaction too.

pub mod journal;
pub mod ledger;
pub mod record;
pub mod resource;
pub mod service;
pub mod state;

pub use ledger::{BookError, Desk, Ledger};
pub use record::Entry;
