//! `termination_after_healing`: once faults have stopped, every transaction and every branch ends, within a bound.
//!
//! AC5 in Bernstein, Hadzilacos, Goodman, 1987, chapter 7. At rest, nothing is live in the coordinator, nothing is open or in doubt in any
//! store, every client has its answer, and all evidence is compared and pruned.

use crate::simulation::world::World;

const NAME: &str = "termination_after_healing";

impl World {
    /// Whether nothing is left to be done.
    pub(in crate::simulation) fn is_at_rest(&mut self) -> bool {
        let stores = self.stores.iter();
        let mut stores = stores.map(|store| store.open_count() + store.evidence_count());
        if self.busy_clients > 0 || stores.any(|left| left > 0) || self.is_anything_in_doubt() {
            return false;
        }
        let links = &self.links;
        let is_up = |link: usize| links[link].up_at_node && links[link].up_at_participant;
        let attached =
            self.instances.iter().all(|instance| instance.attached && instance.link().is_some_and(is_up));
        let written = self.node.as_ref().is_some_and(|node| node.writer.is_idle());
        attached && written && self.summary().is_some_and(|summary| summary.live == 0)
    }

    /// The bound has passed.
    pub(in crate::simulation) fn does_not_rest(&mut self) {
        self.no_orphan_left();
        let live = self.summary().map_or(0, |summary| summary.live);
        let (open, evidence): (Vec<_>, Vec<_>) =
            self.stores.iter().map(|store| (store.open_count(), store.evidence_count())).unzip();
        let away = self.instances.iter().filter(|instance| !instance.attached).count();
        let oldest = self.summary().and_then(|summary| summary.oldest);
        let busy = self.busy_clients;
        let what = format!(
            "{live} transactions are live, open in the stores are {open:?}, rows of evidence {evidence:?}, {away} instances are not \
             attached, {busy} clients wait"
        );
        self.violate(NAME, oldest.as_ref().map(crate::simulation::history::number_of), what);
    }

    /// Every decision that the log still has, has its end.
    pub(super) fn every_decision_has_ended(&mut self) {
        if let Some(decision) = self.log.unfinished().first() {
            let number = crate::simulation::history::number_of(&decision.gtrid);
            self.violate(NAME, Some(number), format!("{decision:?} has no end"));
        }
    }
}
