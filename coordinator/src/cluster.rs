//! A node among others on one decision log: it keeps its lease, and takes over from those that no longer keep theirs.
//!
//! Nothing safe depends on any of this: the log's fence decides who may write (P1). A lease says only when it is worth trying to
//! take over, so that a node that is slow keeps its transactions, and one that is dead leaves nobody waiting for long.
//!
//! **After an outage of the log** every lease has run out, and nobody is dead. So a node seals nobody before it has reached the log
//! without a break for as long as a lease lasts: whoever is alive has renewed by then. A lease that was given up, by a node that was told to
//! stop, is taken over from at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::{Epoch, Gtrid, ResourceManagerName, v1};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::decision_log::postgres::{NodeAddress, PostgresLog, Renewal};
use crate::decision_log::{AppendError, DecisionLog as _, ReadError};
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

/// Keeps the lease of one life of a node.
pub struct Keeper {
    log: Arc<PostgresLog>,
    engine: Engine,
    registry: Registry,
    lease: Duration,
    /// Epochs whose decisions are with the shards.
    adopted: BTreeSet<Epoch>,
    /// Resource managers that the shards were told to be gone for good (P28).
    retired: BTreeSet<ResourceManagerName>,
    last: Renewal,
    /// Since when the log has answered without a break.
    reached_since: Option<Instant>,
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
        let last = Renewal { floor_ms: 0, live: 0 };
        let (adopted, reached_since) = (adopted.iter().copied().collect(), Some(Instant::now()));
        Self { log, engine, registry, lease, adopted, retired: BTreeSet::new(), last, reached_since }
    }

    /// Runs until another node has taken over, and says so.
    pub async fn run(mut self) -> AppendError {
        let mut ticks = interval(self.every());
        // After a pause, one renewal is as good as several.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let renewal = self.measure().await;
            match self.log.renew(renewal).await {
                Ok(nodes) => self.registry.set_nodes(nodes.into_iter().map(told).collect()),
                Err(over @ (AppendError::Sealed(_) | AppendError::Unknown(_))) => return over,
                Err(error @ AppendError::Refused(_)) => {
                    tracing::warn!(%error, "the lease was not renewed; it is tried again");
                    self.reached_since = None;
                    continue;
                }
            }
            let since = *self.reached_since.get_or_insert_with(Instant::now);
            let run_out = since.elapsed() >= self.lease;
            if let Err(error) = self.take_over(run_out).await {
                tracing::warn!(%error, "nothing was taken over; it is tried again");
                self.reached_since = None;
            }
            if let Err(error) = self.retire().await {
                tracing::warn!(%error, "whether another node has retired anybody is not known; it is asked again");
            }
        }
    }

    /// Whom an operator has retired at another node is retired here too: nothing waits for it, and its identity is refused (P28).
    async fn retire(&mut self) -> Result<(), AdoptError> {
        let known = self.log.resource_managers().await?;
        for gone in known.into_iter().filter(|known| known.retired) {
            if self.retired.contains(&gone.name) {
                continue;
            }
            self.registry.learn_retired(&gone);
            self.registry.disconnect(&gone.name);
            let retired = || Mail::Input(Input::Retire { resource_manager: gone.name.clone() });
            self.engine.broadcast(retired).await?;
            self.retired.insert(gone.name.clone());
        }
        Ok(())
    }

    fn every(&self) -> Duration {
        (self.lease / RENEWALS).min(LONGEST_LOOK)
    }

    /// What this node says of itself. Shards that wait for the log tell nothing now: then it is what it was.
    async fn measure(&mut self) -> Renewal {
        let measured = timeout(self.every(), async {
            let floor_ms = self.engine.live_floor().await?.unix_ms();
            let live = self.engine.summarize().await?.live;
            Ok::<_, Stopped>(Renewal { floor_ms, live: live as u64 })
        });
        if let Ok(Ok(renewal)) = measured.await {
            self.last = renewal;
        }
        self.last
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
