//! `nothing_foreign_touched`: prepared transactions of another cluster, or of another resource manager on the same server, are left alone.
//!
//! Each store begins with one of each. A message about a branch that is none of this world's ends the run by itself, since it carries no number
//! of it. Looked at at the end.

use crate::simulation::world::World;

const NAME: &str = "nothing_foreign_touched";

impl World {
    pub(super) fn nothing_foreign_touched(&mut self) {
        let left: Vec<usize> = self.stores.iter().map(|store| store.foreign().len()).collect();
        if left.iter().any(|left| *left != 2) {
            self.violate(NAME, None, format!("of two foreign transactions in each store, {left:?} are left"));
        }
    }
}
