//! A node among others on one decision log: it keeps its lease, and takes over from those that no longer keep theirs.
//!
//! Nothing safe depends on any of this: the log's fence decides who may write (P1). A lease says only when it is worth trying to
//! take over, so that a node that is slow keeps its transactions, and one that is dead leaves nobody waiting for long.
//!
//! **After an outage of the log** every lease has run out, and nobody is dead. So a node seals nobody before it has reached the log
//! without a break for as long as a lease lasts: whoever is alive has renewed by then. A lease that was given up, by a node that was told to
//! stop, is taken over from at once.
//!
//! **Two loops**, so that nothing keeps a renewal waiting: one renews the lease, on a connection of its own, and does nothing else; the other
//! looks after those that have gone, which takes as long as it takes.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_proto::{Epoch, Gtrid, ResourceManagerName, v1};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use crate::decision_log::postgres::{NodeAddress, PostgresLog, Renewal};
use crate::decision_log::{AppendError, DecisionLog as _, KnownResourceManager, ReadError};
use crate::engine::handle::Engine;
use crate::engine::input::Input;
use crate::engine::shell::{Mail, Stopped};
use crate::protocol::record::DecisionRecord;
use crate::sessions::registry::Registry;

/// Decisions that are read at once.
const ADOPT_AT_ONCE: u32 = 1000;
/// Renewals in the time of a lease, at least: two may fail before it runs out.
const RENEWALS: u32 = 3;
/// The longest time between two looks at who has gone.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// Keeps the lease of one life of a node, and takes over from others.
pub struct Keeper {
    own: OwnLease,
    others: Others,
}

/// The own lease.
struct OwnLease {
    log: Arc<PostgresLog>,
    engine: Engine,
    registry: Registry,
    lease: Duration,
    last: Renewal,
    reached: Reached,
}

/// The other nodes.
struct Others {
    log: Arc<PostgresLog>,
    engine: Engine,
    registry: Registry,
    lease: Duration,
    /// Epochs whose decisions are with the shards.
    adopted: BTreeSet<Epoch>,
    /// Resource managers that the shards were told to be gone for good (P28).
    retired: BTreeSet<ResourceManagerName>,
    reached: Reached,
}

/// Since when the log has answered without a break.
#[derive(Debug, Clone)]
struct Reached(Arc<Mutex<Option<Instant>>>);

impl Reached {
    fn now() -> Self {
        Self(Arc::new(Mutex::new(Some(Instant::now()))))
    }

    fn again(&self) {
        self.0.lock().expect("nobody panics with this lock").get_or_insert_with(Instant::now);
    }

    fn broke_off(&self) {
        *self.0.lock().expect("nobody panics with this lock") = None;
    }

    fn has_for(&self, time: Duration) -> bool {
        self.0.lock().expect("nobody panics with this lock").is_some_and(|since| since.elapsed() >= time)
    }
}

#[derive(Debug, thiserror::Error)]
enum AdoptError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    NotCovered(#[from] AppendError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Between two renewals, or looks.
fn every(lease: Duration) -> Duration {
    (lease / RENEWALS).min(LONGEST_LOOK)
}

/// After a pause, one renewal, or look, is as good as several.
fn ticks(lease: Duration) -> Interval {
    let mut ticks = interval(every(lease));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

impl Keeper {
    /// Of a log that was just opened. `adopted`: what was recovered with it.
    #[must_use]
    pub fn new(
        log: Arc<PostgresLog>,
        engine: Engine,
        registry: Registry,
        lease: Duration,
        adopted: &[Epoch],
    ) -> Self {
        let reached = Reached::now();
        let own = OwnLease {
            log: Arc::clone(&log),
            engine: engine.clone(),
            registry: registry.clone(),
            lease,
            last: Renewal { floor_ms: 0, live: 0 },
            reached: reached.clone(),
        };
        let (adopted, retired) = (adopted.iter().copied().collect(), BTreeSet::new());
        Self { own, others: Others { log, engine, registry, lease, adopted, retired, reached } }
    }

    /// Runs until another node has taken over, and says so.
    pub async fn run(self) -> AppendError {
        let Self { own, others } = self;
        tokio::select! {
            over = own.keep() => over,
            never = others.look_after() => match never {},
        }
    }
}

impl OwnLease {
    async fn keep(mut self) -> AppendError {
        let mut ticks = ticks(self.lease);
        loop {
            ticks.tick().await;
            let renewal = self.measure().await;
            match self.log.renew(renewal).await {
                Ok(nodes) => {
                    self.registry.set_nodes(nodes.into_iter().map(told).collect());
                    self.reached.again();
                }
                Err(over @ (AppendError::Sealed(_) | AppendError::Unknown(_))) => return over,
                Err(error @ AppendError::Refused(_)) => {
                    tracing::warn!(%error, "the lease was not renewed; it is tried again");
                    self.reached.broke_off();
                }
            }
        }
    }

    /// What this node says of itself. Shards that wait for the log tell nothing now: then it is what it was.
    async fn measure(&mut self) -> Renewal {
        let measured = timeout(every(self.lease) / 2, async {
            let floor_ms = self.engine.live_floor().await?.unix_ms();
            let live = self.engine.summarize().await?.live;
            Ok::<_, Stopped>(Renewal { floor_ms, live: live as u64 })
        });
        if let Ok(Ok(renewal)) = measured.await {
            self.last = renewal;
        }
        self.last
    }
}

impl Others {
    async fn look_after(mut self) -> Infallible {
        let mut ticks = ticks(self.lease);
        loop {
            ticks.tick().await;
            let run_out = self.reached.has_for(self.lease);
            if let Err(error) = self.take_over(run_out).await {
                tracing::warn!(%error, "nothing was taken over; it is tried again");
                self.reached.broke_off();
            }
            if let Err(error) = self.learn().await {
                tracing::warn!(%error, "whether another node has retired or rebound anybody is not known; it is asked again");
            }
        }
    }

    /// What an operator has had another node do with a resource manager.
    async fn learn(&mut self) -> Result<(), AdoptError> {
        for known in self.log.resource_managers().await? {
            if known.retired {
                self.retire(&known).await?;
            } else if self.registry.learn_location(&known) {
                // What is attached is where it was (P21).
                self.registry.disconnect(&known.name);
            }
        }
        Ok(())
    }

    /// Whom an operator has retired at another node is retired here too: nothing waits for it, and its identity is refused (P28).
    async fn retire(&mut self, gone: &KnownResourceManager) -> Result<(), Stopped> {
        if self.retired.contains(&gone.name) {
            return Ok(());
        }
        self.registry.learn_retired(gone);
        self.registry.disconnect(&gone.name);
        let retired = || Mail::Input(Input::Retire { resource_manager: gone.name.clone() });
        self.engine.broadcast(retired).await?;
        self.retired.insert(gone.name.clone());
        Ok(())
    }

    /// Seals what was given up, and with `run_out` also what has run out, and hands what is unfinished there to the shards.
    async fn take_over(&mut self, run_out: bool) -> Result<(), AdoptError> {
        let owned = if run_out {
            self.log.take_over().await?
        } else {
            self.log.take_over_what_was_given_up().await?
        };
        for epoch in owned {
            if !self.adopted.contains(&epoch) {
                let decisions = self.unfinished_of(epoch).await?;
                tracing::warn!(%epoch, decisions = decisions.len(), "adopted: its decisions are delivered from here");
                self.engine.cover([epoch]).await?;
                self.hand_out(decisions).await?;
                self.adopted.insert(epoch);
                // Behind the seal: what they list as prepared from now on can be answered.
                self.registry.each_outbox(|outbox| {
                    let sealed = v1::Sealed { epochs: vec![epoch.get()] };
                    outbox.answer(v1::coordinator_message::Kind::Sealed(sealed));
                });
            }
        }
        Ok(())
    }

    /// All of it before any of it is handed out: a decision is recovered once.
    async fn unfinished_of(&self, epoch: Epoch) -> Result<Vec<DecisionRecord>, ReadError> {
        let mut all: Vec<DecisionRecord> = Vec::new();
        loop {
            let after: Option<Gtrid> = all.last().map(|decision| decision.gtrid);
            let page = self.log.unfinished_of(&[epoch], after, ADOPT_AT_ONCE).await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    async fn hand_out(&self, decisions: Vec<DecisionRecord>) -> Result<(), Stopped> {
        for record in decisions {
            let shard = self.engine.shards().of(&record.gtrid);
            shard.send(Mail::Input(Input::Recover(record))).await?;
        }
        Ok(())
    }
}

/// As participants and applications are told of it.
fn told(node: NodeAddress) -> v1::Node {
    v1::Node { epoch: node.epoch.get(), address: node.address }
}
