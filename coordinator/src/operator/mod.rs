//! What a person sees of a coordinator: the commands of `lockstep`, and what it says of itself when it starts.
//!
//! - `banner`: the lines at the start.
//! - `cli`: the commands, their exit codes, and how they ask a running coordinator.
//! - `view`: what is shown of a transaction: the wire's answers, checked, in the form that `--json` promises to keep.
//!
//! Nothing here decides anything about a transaction.

mod banner;
mod cli;
mod view;

pub use banner::{Ready, Recovered, Where};
pub use cli::run;
