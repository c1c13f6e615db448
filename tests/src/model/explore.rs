//! All the states of a world, and the ways between them: that from each of them an end can be reached without further faults.
//!
//! The graph is kept with 32 bits for a state and another 64 for each step, so that tens of millions of states fit into memory. States are told
//! apart by 128 bits of hash, which do not collide in the life of this project.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};

use super::bounds::Bounds;
use super::world::World;

/// Already a hash: not hashed again.
#[derive(Debug, Clone, Copy, Default)]
pub struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are numbers")
    }

    fn write_u128(&mut self, number: u128) {
        self.0 = u64::try_from(number & u128::from(u64::MAX)).expect("masked");
    }
}

/// What a graph's exploration found.
#[derive(Debug, Clone, Default)]
pub struct Explored {
    /// Distinct states.
    pub states: u64,
    /// Steps between them, faults and all.
    pub steps: u64,
    /// Those in which everything is over.
    pub ends: u64,
    /// States from which no end can be reached without further faults.
    pub stuck: u64,
    /// The way to the nearest one of these, told.
    pub stuck_trace: Vec<String>,
}

/// The states in the order in which they were found, and how.
#[derive(Default)]
struct Graph {
    ids: HashMap<u128, u32, BuildHasherDefault<AsItIs>>,
    /// By which state each one was found first.
    parents: Vec<u32>,
    /// Steps that are no faults.
    free: Vec<(u32, u32)>,
    over: Vec<u32>,
}

/// Two independent hashes at once.
#[derive(Default)]
struct Both(DefaultHasher, DefaultHasher);

impl Hasher for Both {
    fn finish(&self) -> u64 {
        unreachable!("both are asked for")
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
        self.1.write(bytes);
    }
}

/// Two independent hashes of a state, in one number.
fn hash(world: &World) -> u128 {
    let mut both = Both::default();
    both.1.write_u8(1);
    world.hash(&mut both);
    u128::from(both.0.finish()) << 64 | u128::from(both.1.finish())
}

impl Graph {
    /// The state's number, and whether it is new.
    fn add(&mut self, world: &World, parent: u32) -> (u32, bool) {
        let next = u32::try_from(self.parents.len()).expect("fewer than four thousand million states");
        let id = *self.ids.entry(hash(world)).or_insert(next);
        if id == next {
            self.parents.push(parent);
            if world.is_over() {
                self.over.push(id);
            }
        }
        (id, id == next)
    }

    /// Which states cannot come to an end any more.
    fn stuck(&mut self) -> Vec<u32> {
        let states = self.parents.len();
        // Backwards: where each state's incoming steps begin in one long list.
        self.free.sort_unstable_by_key(|(_, to)| *to);
        let mut first = vec![0_u32; states + 1];
        for (_, to) in &self.free {
            first[*to as usize + 1] += 1;
        }
        for place in 0..states {
            first[place + 1] += first[place];
        }
        let mut ends = vec![false; states];
        let mut left = self.over.clone();
        for id in &left {
            ends[*id as usize] = true;
        }
        while let Some(id) = left.pop() {
            let steps = first[id as usize] as usize..first[id as usize + 1] as usize;
            for (from, _) in &self.free[steps] {
                if !std::mem::replace(&mut ends[*from as usize], true) {
                    left.push(*from);
                }
            }
        }
        let ids = 0..u32::try_from(states).expect("counted with 32 bits");
        ids.filter(|id| !ends[*id as usize]).collect()
    }
}

/// Explores a world to its bounds. `enough`: states after which it is given up, so that bounds that are too wide end too.
///
/// # Panics
/// If the world is larger than `enough`, or if a step that led somewhere once leads elsewhere now.
#[must_use]
pub fn explore(bounds: &Bounds, enough: usize) -> Explored {
    let mut graph = Graph::default();
    let beginning = World::beginning(bounds);
    let (first, _) = graph.add(&beginning, 0);
    // The oldest first: the way to a state is then a shortest one.
    let mut frontier = std::collections::VecDeque::from([(first, beginning)]);
    let mut steps = 0_u64;
    while let Some((from, world)) = frontier.pop_front() {
        for happening in world.possible() {
            let next = world.after(&happening);
            steps += 1;
            let (to, new) = graph.add(&next, from);
            if !happening.is_fault() {
                graph.free.push((from, to));
            }
            if new {
                frontier.push_back((to, next));
            }
        }
        assert!(graph.parents.len() <= enough, "more than {enough} states: its bounds are too wide");
    }
    let stuck = graph.stuck();
    Explored {
        states: graph.parents.len() as u64,
        steps,
        ends: graph.over.len() as u64,
        stuck: stuck.len() as u64,
        stuck_trace: stuck.first().map(|id| way_to(bounds, &graph, *id)).unwrap_or_default(),
    }
}

/// The steps from the beginning to a state, in words.
fn way_to(bounds: &Bounds, graph: &Graph, id: u32) -> Vec<String> {
    let mut ids = vec![id];
    while ids.last() != Some(&0) {
        ids.extend(ids.last().map(|id| graph.parents[*id as usize]));
    }
    let mut world = World::beginning(bounds);
    let mut words = Vec::new();
    for id in ids.into_iter().rev().skip(1) {
        let steps = world.possible().into_iter().map(|happening| (world.after(&happening), happening));
        let mut leads_there = steps.filter(|(next, _)| graph.ids.get(&hash(next)) == Some(&id));
        let (next, happening) = leads_there.next().expect("a state's parent has a step to it");
        words.push(format!("{happening:?}"));
        world = next;
    }
    words.push(format!("and from here there is no way to an end: {world:#?}"));
    words
}
