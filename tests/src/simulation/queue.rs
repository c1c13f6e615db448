//! What is to happen, in the order of time; at the same time, in the order in which it was planned.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Microseconds since the world began.
pub type Time = u64;

/// The plans. The heap holds numbers only: a plan is moved twice, however long it waits.
#[derive(Debug)]
pub struct Queue<T> {
    order: BinaryHeap<Reverse<(Time, u64, u32)>>,
    plans: Vec<Option<T>>,
    free: Vec<u32>,
    planned: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { order: BinaryHeap::new(), plans: Vec::new(), free: Vec::new(), planned: 0 }
    }
}

impl<T> Queue<T> {
    /// Plans something.
    ///
    /// # Panics
    /// With more than four thousand million plans.
    pub fn plan(&mut self, at: Time, what: T) {
        let place = if let Some(place) = self.free.pop() {
            self.plans[place as usize] = Some(what);
            place
        } else {
            self.plans.push(Some(what));
            u32::try_from(self.plans.len() - 1).expect("a world has fewer plans at a time")
        };
        self.planned += 1;
        self.order.push(Reverse((at, self.planned, place)));
    }

    /// When the next one is due.
    #[must_use]
    pub fn next_at(&self) -> Option<Time> {
        self.order.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next one.
    pub fn pop(&mut self) -> Option<(Time, T)> {
        let Reverse((at, _, place)) = self.order.pop()?;
        self.free.push(place);
        let what = self.plans[place as usize].take().expect("what is planned is there");
        Some((at, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_come_by_time_and_then_in_their_order() {
        let mut queue = Queue::default();
        for (at, what) in [(5, 'c'), (1, 'a'), (5, 'd'), (3, 'b')] {
            queue.plan(at, what);
        }
        assert_eq!(queue.next_at(), Some(1));
        assert_eq!(queue.pop(), Some((1, 'a')));
        queue.plan(5, 'e');
        let rest: String = std::iter::from_fn(|| queue.pop()).map(|(_, what)| what).collect();
        assert_eq!(rest, "bcde");
    }
}
