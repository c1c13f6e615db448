//! Attached participants: one stream per instance of a resource manager.
//!
//! - [`attach`]: the handshake: who is it, does it fit, may it be served.
//! - [`session`]: one stream's life: frames in, mail to the shards out.
//! - `said`: what a participant's messages mean.
//! - [`outbox`]: what waits to be written to it.
//! - [`registry`]: who is attached now, and what is known of each resource manager.
//! - [`inspections`]: questions to their databases, for people.
//!
//! A session decides nothing about a transaction. It must never wait for its participant: one that does not read loses its
//! session, and with it the branches that are not prepared; nobody else notices.

pub mod attach;
pub mod inspections;
pub mod outbox;
pub mod registry;
mod said;
pub mod session;
