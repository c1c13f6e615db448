//! Whether this coordinator is to be restarted, and whether it is to be called.
//!
//! On a drain not-ready comes first: whoever routes by it has heard before the first begin is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_proto::v1;

use crate::sessions::session::Shared;

/// How a drain is begun: once, in its order, by a signal or by an operator. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    not_ready: Arc<AtomicBool>,
}

impl Drain {
    /// Whether this coordinator was told to go away.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.not_ready.load(Ordering::SeqCst)
    }

    /// Says not ready, then begins nothing new, then tells the participants.
    pub fn start(&self, shared: &Shared) {
        self.not_ready.store(true, Ordering::SeqCst);
        shared.engine.start_draining();
        shared.registry.each_outbox(|outbox| {
            outbox.answer(v1::coordinator_message::Kind::Drain(v1::Drain {}));
        });
    }
}
