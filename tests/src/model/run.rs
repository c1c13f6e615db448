//! The worlds that are tried, one after the other, each twice: by stateright for safety, by [`super::explore`] for liveness.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde::Serialize;
use stateright::{Checker, HasDiscoveries, Model, Property};

use super::bounds::Bounds;
use super::explore::explore;
use super::happening::Happening;
use super::properties::PROPERTIES;
use super::world::World;
use crate::harness::clock;
use crate::harness::procfs::Memory;

/// A world as stateright sees it.
#[derive(Debug, Clone)]
pub struct Explorable(pub Bounds);

impl Model for Explorable {
    type State = World;
    type Action = Happening;

    fn init_states(&self) -> Vec<World> {
        vec![World::beginning(&self.0)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Happening>) {
        actions.extend(world.possible());
    }

    fn next_state(&self, world: &World, happening: Happening) -> Option<World> {
        Some(world.after(&happening))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        // stateright takes functions, not closures: one for each place in the table.
        fn holds<const PLACE: usize>(_: &Explorable, world: &World) -> bool {
            (PROPERTIES[PLACE].1)(world)
        }
        let functions: [fn(&Self, &World) -> bool; PROPERTIES.len()] =
            [holds::<0>, holds::<1>, holds::<2>, holds::<3>, holds::<4>, holds::<5>, holds::<6>, holds::<7>];
        let both = PROPERTIES.iter().zip(functions);
        both.map(|((name, _), function)| Property::always(name, function)).collect()
    }
}

/// What came of one world.
#[derive(Debug, Clone, Serialize)]
pub struct Tried {
    /// Which.
    pub world: &'static str,
    /// Distinct states.
    pub states: u64,
    /// Steps between them.
    steps: u64,
    /// Faults among its bounds.
    faults: u64,
    /// States in which everything is over.
    pub ends: u64,
    /// Violated properties, each with the steps that lead there; and states from which no end can be reached.
    pub violations: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Everything that was tried.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Distinct states of all worlds together.
    states: u64,
    /// How many there have to be: a bound that has become narrow by mistake is noticed.
    promised: u64,
    /// Steps between them.
    steps: u64,
    /// Worlds.
    cells: usize,
    /// Faults that the worlds had in their bounds.
    faults: u64,
    /// Violations.
    violations: usize,
    /// Each world.
    worlds: Vec<Tried>,
    /// How long all of it took.
    seconds: f64,
    /// The most memory that this process had, in MB.
    peak_mb: u64,
}

/// Explores these worlds, so many at a time. `told` hears of each as it ends. In the order of the bounds.
///
/// # Panics
/// If one of them has more states than `enough`.
#[must_use]
pub fn explore_worlds(
    bounds: &[Bounds],
    enough: usize,
    at_a_time: usize,
    told: impl Fn(&Tried) + Sync,
) -> Vec<Tried> {
    let next = AtomicUsize::new(0);
    let tried = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while let Some((place, bounds)) = {
                    let place = next.fetch_add(1, Ordering::SeqCst);
                    bounds.get(place).map(|bounds| (place, bounds))
                } {
                    let one = explore_world(bounds, enough);
                    told(&one);
                    tried.lock().expect("no thread panics with it").push((place, one));
                }
            });
        }
    });
    let mut tried = tried.into_inner().expect("no thread panics with it");
    tried.sort_by_key(|(place, _)| *place);
    tried.into_iter().map(|(_, one)| one).collect()
}

/// Explores one world, for liveness and then for safety. In this order: the first one gives up a world that is too large.
///
/// # Panics
/// If it has more states than `enough`.
#[must_use]
pub fn explore_world(bounds: &Bounds, enough: usize) -> Tried {
    let started = clock::now();
    let explored = explore(bounds, enough);
    let mut violations: Vec<String> = unsafe_states(bounds, 1).into_iter().map(|(_, words)| words).collect();
    if explored.stuck > 0 {
        let way = explored.stuck_trace.join("\n  ");
        violations
            .push(format!("termination: {} states have no way to an end, such as\n  {way}", explored.stuck));
    }
    Tried {
        world: bounds.name,
        states: explored.states,
        steps: explored.steps,
        faults: bounds.faults.sum(),
        ends: explored.ends,
        violations,
        seconds: tenths(started.elapsed()),
    }
}

/// The properties that do not hold in some state, and the shortest ways there.
#[must_use]
pub fn unsafe_states(bounds: &Bounds, threads: usize) -> Vec<(&'static str, String)> {
    let checker = Explorable(*bounds).checker().threads(threads).finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.spawn_bfs().join();
    let mut found: Vec<_> = checker.discoveries().into_iter().collect();
    found.sort_by_key(|(name, _)| *name);
    let told = found.into_iter().map(|(name, path)| {
        let last = path.last_state().clone();
        let steps: Vec<String> = path.into_actions().iter().map(|step| format!("{step:?}")).collect();
        let why = last.broken.unwrap_or("does not hold");
        (name, format!("{name}: {why}, after\n  {}\n{last:#?}", steps.join("\n  ")))
    });
    told.collect()
}

fn tenths(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

impl Report {
    /// Of these worlds, which together have at least as many states as promised.
    #[must_use]
    pub fn new(worlds: Vec<Tried>, promised: u64, took: Duration) -> Self {
        Self {
            states: worlds.iter().map(|tried| tried.states).sum(),
            promised,
            steps: worlds.iter().map(|tried| tried.steps).sum(),
            cells: worlds.len(),
            faults: worlds.iter().map(|tried| tried.faults).sum(),
            violations: worlds.iter().map(|tried| tried.violations.len()).sum(),
            worlds,
            seconds: tenths(took),
            peak_mb: Memory::Most.of(std::process::id()).expect("this process runs") / (1024 * 1024),
        }
    }

    /// Whether nothing was violated, every world has an end, and all were as large as promised.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.states >= self.promised && self.violations == 0 && self.worlds.iter().all(|tried| tried.ends > 0)
    }

    /// One line of JSON.
    ///
    /// # Panics
    /// Never: numbers and texts make JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts make JSON")
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["world", "states", "steps", "over", "seconds"]);
        for tried in &self.worlds {
            table.add_row([
                tried.world.to_owned(),
                tried.states.to_string(),
                tried.steps.to_string(),
                tried.ends.to_string(),
                tried.seconds.to_string(),
            ]);
        }
        let violations = self.worlds.iter().flat_map(|tried| {
            tried.violations.iter().map(|violation| format!("VIOLATION in {}: {violation}", tried.world))
        });
        let sum = format!(
            "{} distinct states, {} steps, {} violations; {} s, {} MB",
            self.states, self.steps, self.violations, self.seconds, self.peak_mb
        );
        [table.to_string()].into_iter().chain(violations).chain([sum]).collect::<Vec<_>>().join("\n")
    }
}
