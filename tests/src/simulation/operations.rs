//! Operations of a participant's store, as `participant/operations.rs` runs them live: they take time, take effect, and are answered, or not.

use std::time::Duration;

use lockstep::branch::Operation;
use lockstep::resource::{BranchId, Fate, Prepared, Unresolved};
use lockstep::session::{Done, Event, Listing};
use lockstep_proto::ClusterId;

use super::faults::Kind;
use super::happening::Happening;
use super::history::{branch_number, number_of};
use super::queue::Time;
use super::store::{Preparing, Process};
use super::trace::say;
use super::world::{MILLI, SECOND, World};

fn out_of_reach() -> Unresolved {
    Unresolved("the store is out of reach".to_owned())
}

impl World {
    /// How long a store takes for half of an operation.
    pub(super) fn store_takes(&mut self) -> Time {
        self.rng.between(50, 2 * MILLI)
    }

    pub(super) fn begin_operation(&mut self, process: Process, branch: BranchId, operation: Operation) {
        let takes = self.store_takes();
        self.plan(takes, Happening::TakesEffect(process, branch, operation));
    }

    /// The moment in which an operation takes effect, whether or not the process that asked for it is still there.
    pub(super) fn takes_effect(&mut self, process: Process, branch: BranchId, operation: Operation) {
        let alive = self.instances[process.instance].is(process);
        let number = branch_number(&branch.xid.bqual);
        if !alive && !self.arrives_late(process, &branch, &operation) {
            return;
        }
        if alive {
            self.is_free(process.instance, number);
        }
        let unreachable = alive && self.strikes(Kind::Unavailable);
        let done = if unreachable {
            self.not_done(&branch, &operation)
        } else {
            self.do_it(process, &branch, &operation)
        };
        let done = if alive && !unreachable && self.strikes(Kind::ReplyLost) {
            self.reply_lost(&branch, &operation, done)
        } else {
            done
        };
        say!(
            self,
            Some(number_of(&branch.xid.gtrid)),
            "store: {operation:?} of {} → {done:?}",
            branch.xid.bqual
        );
        self.branch_holds(number);
        if matches!(done, Done::Prepared(Ok(Prepared::Yes))) {
            self.hand_may_come();
        }
        if alive {
            if done == Done::Begun {
                self.has_connection(process.instance, number);
            }
            let takes = self.store_takes();
            self.plan(takes, Happening::Replied(process, branch.xid, done));
        }
    }

    /// What a process had sent before it died may take effect all the same, and late. The store ends a branch's connection at its
    /// deadline (P19), which is why nothing comes later than that.
    fn arrives_late(&mut self, process: Process, branch: &BranchId, operation: &Operation) -> bool {
        let number = branch_number(&branch.xid.bqual);
        let store = &mut self.stores[self.instances[process.instance].store];
        match operation {
            Operation::Prepare(_) | Operation::CommitOnePhase(_) => match self.rng.below(3) {
                0 => {
                    store.discard(branch, &mut self.history);
                    false
                }
                1 => true,
                _ => {
                    let later = self.rng.below(3 * SECOND);
                    let happening = Happening::TakesEffect(process, branch.clone(), operation.clone());
                    self.plan(later, happening);
                    false
                }
            },
            Operation::Commit(_) | Operation::Rollback(_) | Operation::Prove(_) => self.rng.coin(),
            Operation::Discard => {
                store.discard(branch, &mut self.history);
                self.branch_holds(number);
                false
            }
            Operation::Begin(_) | Operation::Find => false,
        }
    }

    fn do_it(&mut self, process: Process, branch: &BranchId, operation: &Operation) -> Done {
        let elsewhere = match operation {
            Operation::Commit(_) | Operation::Rollback(_) | Operation::Prove(_) => {
                self.is_bound(process, branch)
            }
            Operation::Begin(_)
            | Operation::Discard
            | Operation::Prepare(_)
            | Operation::Find
            | Operation::CommitOnePhase(_) => false,
        };
        if elsewhere {
            return Done::Resolved(Err(Unresolved("unknown xid".to_owned())));
        }
        let how = self.how_it_prepares(operation);
        let late = !self.instances[process.instance].is(process);
        let (now, history) = (self.now, &mut self.history);
        let store = &mut self.stores[self.instances[process.instance].store];
        if late && store.is_fenced(branch) {
            self.reached.note("late prepare after rollback");
        }
        match operation {
            Operation::Begin(remaining) => {
                let remaining = u64::try_from(remaining.as_micros()).expect("a deadline is near");
                store.begin(branch, process, now + remaining, history);
                Done::Begun
            }
            Operation::Discard => {
                store.discard(branch, history);
                Done::Discarded
            }
            Operation::Prepare(position) => {
                if store.is_fenced(branch) {
                    self.reached.note("fence hit");
                }
                Done::Prepared(store.prepare(branch, *position, how, now, history))
            }
            Operation::Find => Done::Found(Ok(store.is_prepared(&branch.xid))),
            Operation::CommitOnePhase(position) => {
                Done::Resolved(store.commit_one_phase(branch, *position, now, history))
            }
            Operation::Commit(position) | Operation::Prove(position) => {
                Done::Resolved(Ok(store.commit(branch, *position, now, history)))
            }
            Operation::Rollback(position) => {
                Done::Resolved(Ok(store.rollback(branch, *position, now, history)))
            }
        }
    }

    fn how_it_prepares(&mut self, operation: &Operation) -> Preparing {
        if !matches!(operation, Operation::Prepare(_)) {
            Preparing::Well
        } else if self.strikes(Kind::Refuses) {
            Preparing::Refused
        } else if self.strikes(Kind::HollowPrepare) {
            Preparing::Hollow
        } else if self.strikes(Kind::ServiceCommits) {
            Preparing::Hazard
        } else {
            Preparing::Well
        }
    }

    /// "Unknown xid", while the connection that prepared it lives elsewhere.
    fn is_bound(&mut self, process: Process, branch: &BranchId) -> bool {
        let stays = self.faults.draws(Kind::UnknownXid, &mut self.rng);
        let store = &mut self.stores[self.instances[process.instance].store];
        let bound = store.is_bound_elsewhere(branch, process, !stays);
        if bound && stays {
            self.faults.count(Kind::UnknownXid);
        }
        bound && stays
    }

    /// The store could not be reached.
    fn not_done(&mut self, branch: &BranchId, operation: &Operation) -> Done {
        let why = out_of_reach();
        let store = self.store_of(branch);
        match operation {
            Operation::Begin(_) => Done::NotBegun { detail: why.0, unfit: false },
            Operation::Discard => {
                self.stores[store].discard(branch, &mut self.history);
                Done::Discarded
            }
            // The connection is lost, and what was open on it.
            Operation::Prepare(_) => {
                self.stores[store].discard(branch, &mut self.history);
                Done::Prepared(Err(why))
            }
            Operation::CommitOnePhase(_) => {
                self.stores[store].discard(branch, &mut self.history);
                Done::Resolved(Err(why))
            }
            Operation::Find => Done::Found(Err(why)),
            Operation::Commit(_) | Operation::Rollback(_) | Operation::Prove(_) => Done::Resolved(Err(why)),
        }
    }

    /// It was done, and nobody hears it.
    fn reply_lost(&mut self, branch: &BranchId, operation: &Operation, done: Done) -> Done {
        match operation {
            Operation::Begin(_) => {
                let store = self.store_of(branch);
                self.stores[store].discard(branch, &mut self.history);
                Done::NotBegun { detail: out_of_reach().0, unfit: false }
            }
            Operation::Discard => done,
            Operation::Prepare(_) => Done::Prepared(Err(out_of_reach())),
            Operation::Find => Done::Found(Err(out_of_reach())),
            Operation::CommitOnePhase(_)
            | Operation::Commit(_)
            | Operation::Rollback(_)
            | Operation::Prove(_) => {
                if let Done::Resolved(Ok(Fate::Hazard)) = done {
                    return done;
                }
                Done::Resolved(Err(out_of_reach()))
            }
        }
    }

    fn store_of(&self, branch: &BranchId) -> usize {
        let name = branch.xid.bqual.resource_manager_str();
        let place = self.stores.iter().position(|store| store.name.as_str() == name);
        place.expect("a branch names a resource manager of this world")
    }

    // ---- listings ----

    pub(super) fn binds(&mut self, instance: usize, session: u64, cluster: ClusterId) {
        let result = if self.strikes(Kind::Unavailable) {
            Err(out_of_reach())
        } else {
            let stored = self.stores[self.instances[instance].store].bind(cluster);
            if stored == cluster { Ok(()) } else { Err(Unresolved(format!("it is bound to {stored}"))) }
        };
        self.tell(instance, Event::Bound(session, result));
        self.reads_on(instance);
    }

    pub(super) fn lists(&mut self, process: Process, session: u64, cluster: ClusterId, again: bool) {
        if self.strikes(Kind::Unavailable) {
            return self.tell(process.instance, Event::Listed(session, Err(out_of_reach())));
        }
        let store = &self.stores[self.instances[process.instance].store];
        let attachment = again.then(|| store.attachment());
        let listing = Listing { attachment, prepared: store.prepared(cluster), oldest_evidence: None };
        let restarts = store.restarts;
        let takes = self.store_takes();
        self.plan(takes, Happening::ListsOn(process, session, restarts, listing));
    }

    /// The store first, then its evidence: a branch that commits in between is in at least one of the two (P7).
    pub(super) fn lists_on(&mut self, instance: usize, session: u64, restarts: u32, mut listing: Listing) {
        let store = &self.stores[self.instances[instance].store];
        let result = if store.restarts == restarts {
            listing.oldest_evidence = store.oldest_evidence();
            Ok(listing)
        } else {
            Err(Unresolved("the connection is lost".to_owned()))
        };
        self.tell(instance, Event::Listed(session, result));
    }

    /// The store says how much room it has, if it has a limit.
    pub(super) fn finds_room(&mut self, instance: usize) {
        let result = if self.strikes(Kind::Unavailable) {
            Err(out_of_reach())
        } else {
            let store = &self.stores[self.instances[instance].store];
            let room = |(slots, connections)| store.room(self.log.cluster, slots, connections);
            Ok(self.style.room.map(room))
        };
        self.tell(instance, Event::Room(result));
    }

    pub(super) fn looks_for_evidence(
        &mut self,
        process: Process,
        session: u64,
        cluster: ClusterId,
        retention: Duration,
        limit: usize,
    ) {
        let store = &mut self.stores[self.instances[process.instance].store];
        let rows = store.old_evidence(cluster, retention, limit, self.now);
        let takes = self.store_takes();
        self.plan(takes, Happening::FoundEvidence(process, session, Ok(rows)));
    }

    pub(super) fn forgets(&mut self, instance: usize, session: u64, branches: &[BranchId]) {
        let result = if self.strikes(Kind::Unavailable) {
            Err(out_of_reach())
        } else {
            self.stores[self.instances[instance].store].forget(branches);
            self.reached.note("evidence pruned");
            Ok(())
        };
        self.tell(instance, Event::Forgotten(session, result));
    }
}
