//! `no_orphan_left`: no prepared branch stays that nobody will end.
//!
//! It would hold its locks for ever, and no one would know. Looked at when a world does not come to rest.

use crate::simulation::history::number_of;
use crate::simulation::world::World;

const NAME: &str = "no_orphan_left";

impl World {
    pub(super) fn is_anything_in_doubt(&self) -> bool {
        self.stores.iter().any(|store| store.in_doubt(&self.history).next().is_some())
    }

    pub(super) fn no_orphan_left(&mut self) {
        let orphan = self.stores.iter().find_map(|store| store.in_doubt(&self.history).next().cloned());
        if let Some(xid) = orphan {
            self.violate(NAME, Some(number_of(&xid.gtrid)), format!("{xid} is still prepared"));
        }
    }
}
