//! `commit_when_no_failure`: if nothing fails and every branch votes commit, the transaction commits.
//!
//! AC4 in Bernstein, Hadzilacos, Goodman, 1987, chapter 7; without it, a coordinator that rolls everything back would be correct. Looked at
//! at the end, for the transactions that are begun after the healing, and for all of a world without faults.

use crate::simulation::history::number_of;
use crate::simulation::world::World;

const NAME: &str = "commit_when_no_failure";

impl World {
    pub(super) fn commit_when_no_failure(&mut self) {
        let first = if self.faults.are_none() { 0 } else { self.wanted() };
        for client in first..self.clients.len() {
            let Some(gtrid) = self.meant_to_commit(client) else {
                if client >= self.wanted() {
                    let what = format!("client {client} could not work though all is well");
                    self.violate(NAME, self.clients[client].gtrid().as_ref().map(number_of), what);
                }
                continue;
            };
            let facts = self.history.of(&gtrid);
            let wrote = facts.enlisted.clone();
            let committed = facts.told_committed;
            let read_only = wrote.iter().all(|branch| self.history.branches[*branch as usize].read_only);
            if !committed && !read_only {
                self.violate(NAME, Some(number_of(&gtrid)), "nothing failed, and it was not committed");
            }
        }
    }
}
