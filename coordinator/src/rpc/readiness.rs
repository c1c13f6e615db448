//! Whether new work is to be sent here: one answer, for `/readyz` and for gRPC's health service.

use crate::sessions::session::Shared;

/// What was looked at, and what is wrong with it.
pub(super) struct Readiness([(&'static str, Result<(), String>); 2]);

impl Readiness {
    /// As it is now.
    pub(super) async fn of(shared: &Shared) -> Self {
        let begins = shared.engine.may_begin().map_err(|error| error.to_string());
        let reads = shared.engine.log_status().await.map(drop).map_err(|error| error.to_string());
        Self([("begins", begins), ("log", reads)])
    }

    /// Whether everything is as it should be.
    pub(super) fn is_ready(&self) -> bool {
        self.0.iter().all(|(_, check)| check.is_ok())
    }

    /// What is wrong, a line each; with `verbose`, also what is not. Never nothing.
    pub(super) fn text(&self, verbose: bool) -> String {
        let line = |(name, check): &(&str, Result<(), String>)| match check {
            Ok(()) => verbose.then(|| format!("ok    {name}\n")),
            Err(why) => Some(format!("fails {name}: {why}\n")),
        };
        let text: String = self.0.iter().filter_map(line).collect();
        if text.is_empty() { "ok\n".to_owned() } else { text }
    }
}
