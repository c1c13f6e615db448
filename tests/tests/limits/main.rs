//! Bad input and limits, end to end: each against a real `lockstep serve`, over gRPC.
//!
//! Every refusal has a status and a reason of its own. None of them ends the process or touches another transaction: after
//! each, a healthy transaction commits over two databases, at the same coordinator.
//!
//! - `lockstep`: the coordinator, and what is healthy beside it; `raw`: a participant that can say anything.
//! - `requests`: what clients get wrong; `participants`: what participants do; `process`: what whoever starts it does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod lockstep;
mod participants;
mod process;
mod raw;
mod requests;
