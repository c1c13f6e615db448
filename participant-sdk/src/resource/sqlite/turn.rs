//! Who may write next: a SQLite file has one writer at a time.
//!
//! The turn is passed on in the order in which it was asked for, except that *urgent* waiters go first: a fence takes a
//! few milliseconds and ends a transaction that others wait for, whereas a new branch only adds to what is waiting.
//! SQLite's own lock still decides between this process and writers that do not use the SDK; it is neither fair nor
//! able to say who holds it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

/// Waiters at a time. More would only wait for longer than their transactions live.
const MAX_WAITERS: usize = 4096;

/// How soon one's turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Before everyone who is not urgent.
    Urgent,
    /// After all who asked before.
    Ordinary,
}

/// Nobody gets a turn now; the text says who has it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Occupied(String);

#[derive(Debug)]
struct Holder {
    who: String,
    since: Instant,
}

#[derive(Debug)]
struct Waiter {
    who: String,
    ticket: oneshot::Sender<Turn>,
}

#[derive(Debug, Default)]
struct Queue {
    holder: Option<Holder>,
    urgent: VecDeque<Waiter>,
    ordinary: VecDeque<Waiter>,
}

/// Where turns are asked for.
#[derive(Debug, Default)]
pub(super) struct Turnstile {
    queue: Mutex<Queue>,
}

/// The right to write, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    /// `None` once it was passed on.
    turnstile: Option<Arc<Turnstile>>,
}

impl Turnstile {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it holds the lock, and a queue is consistent between any two statements.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn, at most until `deadline`. `who` is what others are told meanwhile.
    pub(super) async fn take(
        self: &Arc<Self>,
        who: String,
        order: Order,
        deadline: Instant,
    ) -> Result<Turn, Occupied> {
        let ticket = {
            let mut queue = self.queue();
            if queue.holder.is_none() {
                queue.holder = Some(Holder { who, since: Instant::now() });
                return Ok(self.turn());
            }
            queue.join(who, order)?
        };
        match tokio::time::timeout_at(deadline, ticket).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_closed)) => unreachable!("a waiter's ticket lives in the queue until it is its turn"),
            Err(_elapsed) => Err(self.queue().occupied()),
        }
    }

    fn turn(self: &Arc<Self>) -> Turn {
        Turn { turnstile: Some(Arc::clone(self)) }
    }

    /// Gives the turn to the next one who still waits.
    fn pass_on(self: &Arc<Self>) {
        loop {
            let waiter = {
                let mut queue = self.queue();
                let Some(waiter) = queue.next() else {
                    queue.holder = None;
                    return;
                };
                queue.holder = Some(Holder { who: waiter.who, since: Instant::now() });
                waiter.ticket
            };
            match waiter.send(self.turn()) {
                Ok(()) => return,
                // Nobody waits for it any more. Dropping it would pass it on from in here, once for each such waiter.
                Err(mut turn) => turn.turnstile = None,
            }
        }
    }
}

impl Queue {
    fn join(&mut self, who: String, order: Order) -> Result<oneshot::Receiver<Turn>, Occupied> {
        let line = match order {
            Order::Urgent => &mut self.urgent,
            Order::Ordinary => &mut self.ordinary,
        };
        line.retain(|waiter| !waiter.ticket.is_closed());
        if line.len() >= MAX_WAITERS {
            return Err(Occupied(format!("{MAX_WAITERS} others wait to write already")));
        }
        let (ticket, called) = oneshot::channel();
        line.push_back(Waiter { who, ticket });
        Ok(called)
    }

    fn next(&mut self) -> Option<Waiter> {
        self.urgent.pop_front().or_else(|| self.ordinary.pop_front())
    }

    fn occupied(&self) -> Occupied {
        Occupied(match &self.holder {
            Some(holder) => {
                let seconds = holder.since.elapsed().as_secs_f32();
                format!("{} has it since {seconds:.1} s", holder.who)
            }
            None => "it became free this moment: try again".to_owned(),
        })
    }
}

impl Turn {
    /// Tells others that it is now `who` that has the turn.
    pub(super) fn rename(&self, who: String) {
        let turnstile = self.turnstile.as_ref().expect("a turn that is held was not passed on");
        turnstile.queue().holder = Some(Holder { who, since: Instant::now() });
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turnstile) = self.turnstile.take() {
            turnstile.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Lets every other task run until it waits.
    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_turn_goes_to_the_urgent_first_and_then_in_order() {
        let turnstile = Arc::new(Turnstile::default());
        let first = turnstile.take("first".into(), Order::Ordinary, later()).await.unwrap();
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        for (name, order) in
            [("second", Order::Ordinary), ("third", Order::Ordinary), ("fence", Order::Urgent)]
        {
            let (turnstile, said) = (Arc::clone(&turnstile), said.clone());
            tokio::spawn(async move {
                let turn = turnstile.take(name.into(), order, later()).await.unwrap();
                said.send(name).unwrap();
                drop(turn);
            });
            settle().await;
        }
        drop(first);
        for name in ["fence", "second", "third"] {
            assert_eq!(heard.recv().await, Some(name));
        }
        settle().await;
        assert!(turnstile.queue().holder.is_none());
    }

    #[tokio::test]
    async fn who_waits_in_vain_is_told_who_has_it() {
        let turnstile = Arc::new(Turnstile::default());
        let turn = turnstile.take("branch 1".into(), Order::Ordinary, later()).await.unwrap();
        turn.rename("prepared branch 1".into());
        let refused = turnstile.take("branch 2".into(), Order::Ordinary, soon()).await.unwrap_err();
        assert!(refused.to_string().starts_with("prepared branch 1 has it since 0."), "{refused}");
    }

    #[tokio::test]
    async fn who_gave_up_waiting_neither_gets_the_turn_nor_keeps_it() {
        let turnstile = Arc::new(Turnstile::default());
        let turn = turnstile.take("first".into(), Order::Ordinary, later()).await.unwrap();
        for _ in 0..1000 {
            let turnstile = Arc::clone(&turnstile);
            let waiting =
                async move { turnstile.take("gone".into(), Order::Ordinary, later()).await.map(drop) };
            let gone = tokio::spawn(waiting);
            settle().await;
            gone.abort();
            assert!(gone.await.unwrap_err().is_cancelled());
        }
        assert!(turnstile.queue().ordinary.len() <= 1);
        drop(turn);
        turnstile.take("second".into(), Order::Ordinary, soon()).await.unwrap();
    }

    #[tokio::test]
    async fn the_queue_has_a_limit() {
        let turnstile = Arc::new(Turnstile::default());
        let turn = turnstile.take("first".into(), Order::Ordinary, later()).await.unwrap();
        let tickets: Vec<_> = (0..MAX_WAITERS)
            .map(|_| turnstile.queue().join("waiter".into(), Order::Ordinary).unwrap())
            .collect();
        assert!(turnstile.take("one more".into(), Order::Ordinary, later()).await.is_err());
        drop(tickets);
        drop(turn);
    }
}
