//! The coordinators that a client knows: those that it was given, and those that they tell of.

use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use futures::future::join_all;
use lockstep_proto::limits::MAX_FRAME_BYTES;
use lockstep_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use lockstep_proto::{Epoch, v1};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::Channel;

use super::{TURN, lazy_channel};
use crate::error::ConnectError;
use crate::nodes::{Change, Known, change, from_wire};
use crate::session::message::NodeAddress;

/// How often each of them is asked who there is.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// One coordinator.
#[derive(Debug)]
pub(super) struct Coordinator {
    address: String,
    is_named: bool,
    rpc: CoordinatorServiceClient<Channel>,
}

impl Coordinator {
    fn new(address: String, is_named: bool) -> Result<Self, ConnectError> {
        let rpc = CoordinatorServiceClient::new(lazy_channel(&address)?)
            .max_decoding_message_size(MAX_FRAME_BYTES)
            .max_encoding_message_size(MAX_FRAME_BYTES);
        Ok(Self { address, is_named, rpc })
    }

    /// What it is called by.
    pub(super) fn rpc(&self) -> CoordinatorServiceClient<Channel> {
        self.rpc.clone()
    }

    /// Its epoch, and who shares its log; `None` if it does not answer.
    async fn ask(&self) -> Option<(Epoch, Vec<NodeAddress>)> {
        let mut rpc = self.rpc();
        let answer = timeout(TURN, rpc.list_nodes(v1::ListNodesRequest {})).await.ok()?.ok()?.into_inner();
        Some((Epoch::new(answer.epoch)?, from_wire(answer.nodes).ok()?))
    }
}

/// All of them: at least one. Those that the application named stand first.
#[derive(Debug)]
pub(super) struct Coordinators(RwLock<Arc<[Arc<Coordinator>]>>);

impl Coordinators {
    pub(super) fn new(named: Vec<String>) -> Result<Self, ConnectError> {
        let coordinator = |address| Coordinator::new(address, true).map(Arc::new);
        let all: Vec<_> = named.into_iter().map(coordinator).collect::<Result<_, _>>()?;
        if all.is_empty() {
            return Err(ConnectError::none());
        }
        Ok(Self(RwLock::new(all.into())))
    }

    /// Those that there are now.
    pub(super) fn now(&self) -> Arc<[Arc<Coordinator>]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks each who there is, and takes over what has changed.
    async fn look(&self) {
        let all = self.now();
        let answers = join_all(all.iter().map(|coordinator| coordinator.ask())).await;
        let known = all.iter().zip(&answers).map(|(coordinator, answer)| Known {
            address: &coordinator.address,
            is_named: coordinator.is_named,
            epoch: answer.as_ref().map(|(epoch, _)| *epoch),
            told: answer.as_ref().map_or(&[], |(_, told)| told),
        });
        let Change { add, leave } = change(&known.collect::<Vec<_>>());
        if add.is_empty() && leave.is_empty() {
            return;
        }
        let stay = all.iter().enumerate().filter(|(place, _)| !leave.contains(place));
        let told_of = |address: String| {
            tracing::info!(address, "a coordinator is told of");
            let coordinator = Coordinator::new(address, false);
            let coordinator = coordinator.inspect_err(
                |error| tracing::warn!(%error, "a coordinator is told of that cannot be reached"),
            );
            coordinator.ok().map(Arc::new)
        };
        let next =
            stay.map(|(_, coordinator)| Arc::clone(coordinator)).chain(add.into_iter().filter_map(told_of));
        // Nobody else changes it.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next.collect();
    }
}

/// Keeps them up to date, until the last client is gone.
pub(super) async fn follow(coordinators: Weak<Coordinators>) {
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match coordinators.upgrade() {
            Some(coordinators) => coordinators.look().await,
            None => return,
        }
    }
}
