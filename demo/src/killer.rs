//! Which process is killed when.
//!
//! Each kill is planned by the number of a transfer, not by time, so that a slow machine has the same plan as a fast
//! one. When a transfer of that number or a later one stands between its two calls (one bank has answered, the other
//! was not asked yet), the killer takes it as its mark: it kills there and then, while the transfer stands still, or
//! a moment later, somewhere in what the transfer still has to go through: the second call, both prepares, the
//! decision, both commits.
//!
//! A kill counts if the process was reaped, signal 9 had ended it, and a transfer that was unfinished before the
//! signal was still unfinished after the reaping. One that does not count is made again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::Options;
use crate::ledger::Ledger;
use crate::process::Processes;
use crate::role::Role;
use crate::scenario::Failure;

/// One part in so many of the transfers comes after all kills, to show that everything goes on.
const LOAD_WITHOUT_KILLS: u32 = 10;
/// Where "later" ends, in the time that a transfer needs from between its calls to its end: after it, so that the
/// last step is hit too.
const LATEST: f64 = 1.2;

/// What was answered before a kill has reached its client by then, so that it is not taken for unfinished.
const ANSWERS_ARRIVE: Duration = Duration::from_millis(1);

/// One kill that will be made.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Planned {
    role: Role,
    /// The mark is this transfer, or the first one after it that gets between its calls.
    from: u32,
    moment: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    /// While the mark stands between its calls.
    BetweenCalls,
    /// After so much of the time that a transfer needs from there to its end.
    Later(f64),
}

/// What the killer waits for, and where it wants to be told.
struct Wanted {
    role: Role,
    from: u32,
    mark: oneshot::Sender<Mark>,
}

/// A transfer that stands still until this is dropped.
struct Mark {
    _held: oneshot::Sender<()>,
}

/// Kills, and counts.
pub(crate) struct Killer<'a> {
    processes: &'a Processes,
    ledger: &'a Ledger,
    plan: Vec<Planned>,
    wanted: RefCell<Option<Wanted>>,
    made: RefCell<BTreeMap<Role, u32>>,
    while_prepared: Cell<u32>,
    done: Cell<bool>,
}

impl<'a> Killer<'a> {
    pub(crate) fn new(options: &Options, processes: &'a Processes, ledger: &'a Ledger) -> Self {
        let made = Role::ALL.into_iter().map(|role| (role, 0)).collect();
        Self {
            processes,
            ledger,
            plan: plan(options.seed, options.transfers, options.kills),
            wanted: RefCell::new(None),
            made: RefCell::new(made),
            while_prepared: Cell::new(0),
            done: Cell::new(options.kills == 0),
        }
    }

    /// Whether all kills were made.
    pub(crate) fn is_done(&self) -> bool {
        self.done.get()
    }

    /// How many were.
    pub(crate) fn made(&self) -> u32 {
        self.made.borrow().values().sum()
    }

    /// How many were, by role.
    pub(crate) fn made_by_role(&self) -> BTreeMap<Role, u32> {
        self.made.borrow().clone()
    }

    /// How many left a branch prepared behind them, in a bank that was killed or in one whose coordinator was.
    pub(crate) fn made_while_prepared(&self) -> u32 {
        self.while_prepared.get()
    }

    /// Makes all kills, each as soon as a transfer is where it was planned, and starts what it killed again.
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        for planned in &self.plan {
            let mut moment = planned.moment;
            while !self.kill(planned, moment).await? {
                // A transfer that stands still is unfinished for certain.
                moment = Moment::BetweenCalls;
            }
        }
        Ok(())
    }

    /// Kills and starts again. Returns whether it counts.
    async fn kill(&self, planned: &Planned, moment: Moment) -> Result<bool, Failure> {
        let mark = self.mark(planned).await;
        let held = match moment {
            Moment::BetweenCalls => Some(mark),
            Moment::Later(share) => {
                drop(mark);
                sleep(self.ledger.rest().mul_f64(share)).await;
                None
            }
        };
        let before = self.ledger.unfinished();
        self.processes.kill(planned.role).await?;
        let left_prepared = self.processes.hold_prepared_branch()?;
        sleep(ANSWERS_ARRIVE).await;
        let counts = !before.is_disjoint(&self.ledger.unfinished());
        drop(held);
        if counts {
            self.while_prepared.update(|kills| kills + u32::from(left_prepared));
            *self.made.borrow_mut().entry(planned.role).or_default() += 1;
            self.done.set(usize::try_from(self.made()).is_ok_and(|made| made >= self.plan.len()));
        }
        self.processes.start(planned.role)?;
        self.processes.until_all_up().await?;
        Ok(counts)
    }

    /// Waits for the transfer that a kill was planned for.
    async fn mark(&self, planned: &Planned) -> Mark {
        let (mark, marked) = oneshot::channel();
        *self.wanted.borrow_mut() = Some(Wanted { role: planned.role, from: planned.from, mark });
        marked.await.expect("what is wanted stays wanted until a mark is there")
    }

    /// Called for each transfer that stands between its two calls and that still needs the processes of `needed`.
    /// Returns when it may go on.
    pub(crate) async fn between_calls(&self, transfer: u32, needed: &[Role]) {
        let fits = |wanted: &mut Wanted| wanted.from <= transfer && needed.contains(&wanted.role);
        let Some(wanted) = self.wanted.borrow_mut().take_if(fits) else { return };
        let (held, released) = oneshot::channel();
        if wanted.mark.send(Mark { _held: held }).is_ok() {
            // Nothing is ever sent: the killer lets go by dropping its end.
            let _dropped = released.await;
        }
    }
}

/// The kills of a run: all roles in turn, in an order that changes from round to round, spread over the load.
fn plan(seed: u64, transfers: u32, kills: u32) -> Vec<Planned> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut roles = Role::ALL;
    let stretch = (transfers - transfers / LOAD_WITHOUT_KILLS) / kills.max(1);
    let mut planned = Vec::new();
    for kill in 0..kills {
        let turn = planned.len() % roles.len();
        if turn == 0 {
            roles.shuffle(&mut random);
        }
        // Each role's first kill comes at the place where two separate commits go wrong; the others come anywhere.
        let moment = match planned.len() < roles.len() {
            true => Moment::BetweenCalls,
            false => Moment::Later(random.random_range(0.0..LATEST)),
        };
        let from = kill * stretch + random.random_range(0..stretch.max(1));
        planned.push(Planned { role: roles[turn], from, moment });
    }
    planned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_its_turn_and_all_kills_come_before_the_load_ends() {
        for (transfers, kills) in [(60, 3), (60, 6), (1000, 9), (1000, 100), (5000, 20), (1_000_000, 7)] {
            for seed in 1..=20 {
                let plan = plan(seed, transfers, kills);
                assert_eq!(plan.len(), kills as usize);
                for role in Role::ALL {
                    let of_role = plan.iter().filter(|planned| planned.role == role).count();
                    assert!(of_role >= kills as usize / 3, "{role}: {plan:?}");
                }
                assert!(plan.is_sorted_by_key(|planned| planned.from), "{plan:?}");
                assert!(plan.iter().all(|planned| planned.from <= transfers - transfers / 10), "{plan:?}");
            }
        }
    }

    #[test]
    fn a_seed_repeats_its_plan_and_another_one_has_another() {
        assert_eq!(plan(1, 1000, 9), plan(1, 1000, 9));
        assert_ne!(plan(1, 1000, 9), plan(2, 1000, 9));
        assert_eq!(plan(1, 1000, 0), []);
    }
}
