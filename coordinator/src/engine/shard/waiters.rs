//! Clients that wait for an outcome of one transaction.

use crate::engine::delivery::Monotonic;
use crate::engine::input::Wait;

/// Clients that may wait for one transaction: more than would ever ask by right, and no way to fill the memory for one that asks
/// again and again without waiting for its answers.
const MOST: usize = 64;

#[derive(Debug)]
struct Waiter<R> {
    wait: Wait,
    until: Monotonic,
    reply: R,
}

/// Who waits, each until its own time.
#[derive(Debug)]
pub(super) struct Waiters<R>(Vec<Waiter<R>>);

impl<R> Default for Waiters<R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<R> Waiters<R> {
    pub(super) fn add(&mut self, wait: Wait, until: Monotonic, reply: R) {
        self.0.push(Waiter { wait, until, reply });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the first of them has waited long enough.
    pub(super) fn next(&self) -> Option<Monotonic> {
        self.0.iter().map(|waiter| waiter.until).min()
    }

    /// Nobody waits longer than this.
    pub(super) fn wait_at_most_until(&mut self, longest: Monotonic) {
        for waiter in &mut self.0 {
            waiter.until = waiter.until.min(longest);
        }
    }

    /// Who waits for nothing but the decision, or everyone.
    pub(super) fn take_satisfied(&mut self, everyone: bool) -> Vec<R> {
        self.take(|waiter| everyone || waiter.wait == Wait::Decided)
    }

    /// Who has waited long enough.
    pub(super) fn take_late(&mut self, now: Monotonic) -> Vec<R> {
        self.take(|waiter| waiter.until <= now)
    }

    /// Who came last, if more wait than may.
    pub(super) fn take_excess(&mut self) -> Option<R> {
        if self.0.len() <= MOST {
            return None;
        }
        self.0.pop().map(|waiter| waiter.reply)
    }

    fn take(&mut self, chosen: impl Fn(&Waiter<R>) -> bool) -> Vec<R> {
        self.0.extract_if(.., |waiter| chosen(waiter)).map(|waiter| waiter.reply).collect()
    }
}
