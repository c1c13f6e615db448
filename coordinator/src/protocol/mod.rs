//! Two-phase commit.
pub mod outcome;
pub mod record;
