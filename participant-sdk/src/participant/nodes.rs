//! The coordinators of a participant: a driver for each, more of them as they are told of, and the one that a transaction
//! was begun at.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use lockstep_proto::{Epoch, Gtrid, ResourceManagerName};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tonic::transport::Channel;

use super::driver::{Driver, JOINS, Join, Parts, Release};
use crate::client::lazy_channel;
use crate::error::{AttachError, JoinError};
use crate::nodes::{Change, Known, change};
use crate::resource::Resource;
use crate::session::message::NodeAddress;

/// How long a join waits for a session with the coordinator that its transaction was begun at: one that has just started is
/// told of, and found, within that.
const SESSION_PATIENCE: Duration = Duration::from_secs(5);
/// How often what was told is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long branches that are open at a coordinator may last that is left because it is reached another way too. Longer than most
/// transactions.
const LEAVING: Duration = Duration::from_secs(60);
/// Words about sealed epochs that may wait for a driver: it takes them at once.
const SEALS: usize = 64;

/// One coordinator, and the driver that keeps a session with it.
pub(super) struct Node<R: Resource> {
    address: String,
    is_named: bool,
    pub(super) joins: mpsc::Sender<Join<R>>,
    pub(super) releases: mpsc::UnboundedSender<Release<R>>,
    /// The coordinator's epoch, as long as there is a session.
    attached: watch::Receiver<Option<Epoch>>,
    /// Who shares its log.
    told: watch::Receiver<Vec<NodeAddress>>,
}

impl<R: Resource> Node<R> {
    fn epoch(&self) -> Option<Epoch> {
        *self.attached.borrow()
    }

    /// Waits until there is a session with the coordinator of this epoch.
    async fn has_epoch(&self, epoch: Epoch) -> bool {
        let mut attached = self.attached.clone();
        attached.wait_for(|attached| *attached == Some(epoch)).await.is_ok()
    }
}

/// Those that there are now.
struct Members<R: Resource> {
    /// Those that the application named first.
    nodes: Vec<Arc<Node<R>>>,
    /// The participant is going away: nobody joins them any more.
    is_leaving: bool,
}

/// All coordinators of a participant. When it is dropped, their drivers go away.
pub(super) struct Nodes<R: Resource> {
    name: ResourceManagerName,
    /// The drivers have it: when they are gone, it is let go of, with its connections and its locks, whoever still has a handle.
    resource: Weak<R>,
    seals: broadcast::Sender<Vec<u32>>,
    members: watch::Sender<Members<R>>,
}

impl<R: Resource> Nodes<R> {
    /// Attaches to those that the application named. Returns when the first one has.
    pub(super) async fn attach(
        name: ResourceManagerName,
        resource: R,
        named: Vec<(String, Channel)>,
    ) -> Result<Arc<Self>, AttachError> {
        let (seals, _told) = broadcast::channel(SEALS);
        let (members, _looking) = watch::channel(Members { nodes: Vec::new(), is_leaving: false });
        let resource = Arc::new(resource);
        let nodes = Arc::new(Self { name, resource: Arc::downgrade(&resource), seals, members });
        let mut attaching = FuturesUnordered::new();
        for (address, channel) in named {
            let (first, attached_first) = oneshot::channel();
            let node = nodes.drive(Arc::clone(&resource), address, channel, true, first);
            nodes.members.send_modify(|members| members.nodes.push(Arc::new(node)));
            attaching.push(attached_first);
        }
        drop(resource);
        let mut refused = None;
        while let Some(result) = attaching.next().await {
            match result.expect("the driver answers the first attach before it ends") {
                Ok(()) => {
                    tokio::spawn(follow(Arc::downgrade(&nodes)));
                    return Ok(nodes);
                }
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.expect("there is at least one coordinator"))
    }

    pub(super) fn name(&self) -> &ResourceManagerName {
        &self.name
    }

    pub(super) fn is_attached(&self) -> bool {
        self.members.borrow().nodes.iter().any(|node| node.epoch().is_some())
    }

    /// A driver for the coordinator at this address. `first` hears of its first attach.
    fn drive(
        &self,
        resource: Arc<R>,
        address: String,
        channel: Channel,
        is_named: bool,
        first: oneshot::Sender<Result<(), AttachError>>,
    ) -> Node<R> {
        let (joins, join_receiver) = mpsc::channel(JOINS);
        // Bounded by the branches that may be open: each handler gives its connection back once.
        let (releases, release_receiver) = mpsc::unbounded_channel();
        let (attached_sender, attached) = watch::channel(None);
        let (told_sender, told) = watch::channel(Vec::new());
        let driver = Driver::new(Parts {
            name: self.name.clone(),
            resource,
            channel,
            joins: join_receiver,
            releases: release_receiver,
            first,
            attached: attached_sender,
            told: told_sender,
            seals: self.seals.clone(),
        });
        tokio::spawn(driver.run());
        Node { address, is_named, joins, releases, attached, told }
    }

    /// The coordinator that a transaction was begun at: its epoch is in the transaction's name.
    pub(super) async fn of(&self, gtrid: Gtrid) -> Result<Arc<Node<R>>, JoinError> {
        {
            let members = self.members.borrow();
            if let Some(node) = members.nodes.iter().find(|node| node.epoch() == Some(gtrid.epoch())) {
                return Ok(Arc::clone(node));
            }
            // One that shares its log with nobody: its driver knows better why it will not do.
            if let [only] = &*members.nodes
                && only.told.borrow().is_empty()
            {
                return Ok(Arc::clone(only));
            }
        }
        match tokio::time::timeout(SESSION_PATIENCE, self.wait_for(gtrid)).await {
            Ok(found) => found,
            Err(_elapsed) => Err(JoinError::NotAttached { gtrid }),
        }
    }

    /// Waits until the coordinator that a transaction was begun at has attached this participant, be it one that is yet to be told of.
    async fn wait_for(&self, gtrid: Gtrid) -> Result<Arc<Node<R>>, JoinError> {
        let mut looking = self.members.subscribe();
        loop {
            let (nodes, is_leaving) = {
                let members = looking.borrow_and_update();
                (members.nodes.clone(), members.is_leaving)
            };
            if is_leaving {
                return Err(JoinError::Detaching { gtrid });
            }
            let attaching: FuturesUnordered<_> = nodes
                .into_iter()
                .map(async |node| node.has_epoch(gtrid.epoch()).await.then_some(node))
                .collect();
            let mut found = std::pin::pin!(attaching.filter_map(std::future::ready));
            tokio::select! {
                Some(node) = found.next() => return Ok(node),
                changed = looking.changed() => changed.expect("this end is kept by whoever waits"),
            }
        }
    }

    /// Has all of them go away within `grace`, and waits for that.
    pub(super) async fn detach(&self, grace: Duration) {
        self.members.send_modify(|members| members.is_leaving = true);
        let detach = |node: &Arc<Node<R>>| {
            let (done, gone) = oneshot::channel();
            node.releases.send(Release::Detach(grace, done)).ok().map(|()| gone)
        };
        let going: Vec<_> = self.members.borrow().nodes.iter().filter_map(detach).collect();
        for gone in going {
            // The sender is dropped with the driver.
            let _gone = gone.await;
        }
    }

    /// Attaches to who was told of, and leaves who is gone.
    fn look(&self) {
        let Change { add, leave } = {
            let members = self.members.borrow();
            let told: Vec<_> = members.nodes.iter().map(|node| node.told.borrow().clone()).collect();
            let known = members.nodes.iter().zip(&told).map(|(node, told)| Known {
                address: &node.address,
                is_named: node.is_named,
                epoch: node.epoch(),
                told,
            });
            change(&known.collect::<Vec<_>>())
        };
        let added: Vec<_> = add.into_iter().filter_map(|address| self.told_of(address)).collect();
        if added.is_empty() && leave.is_empty() {
            return;
        }
        self.members.send_modify(|members| {
            if members.is_leaving {
                return; // And those that were added go, with their senders.
            }
            for place in leave.into_iter().rev() {
                let left = members.nodes.remove(place);
                tracing::info!(name = %self.name, address = left.address, "a coordinator is left");
                let (done, _nobody_waits) = oneshot::channel();
                // Its driver may be gone.
                let _gone = left.releases.send(Release::Detach(LEAVING, done));
            }
            members.nodes.extend(added);
        });
    }

    fn told_of(&self, address: String) -> Option<Arc<Node<R>>> {
        let channel = lazy_channel(&address)
            .inspect_err(|error| tracing::warn!(name = %self.name, %error, "a coordinator is told of that cannot be reached"));
        tracing::info!(name = %self.name, address, "a coordinator is told of");
        // It is tried for as long as it is told of: nobody waits for the first time.
        let (first, _nobody_waits) = oneshot::channel();
        // Without a driver that has it, the participant is going away.
        let resource = self.resource.upgrade()?;
        Some(Arc::new(self.drive(resource, address, channel.ok()?, false, first)))
    }
}

/// Looks at what was told, until the participant is gone.
async fn follow<R: Resource>(nodes: Weak<Nodes<R>>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Those that were named attach first: they are likely to be those that are told of.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        match nodes.upgrade() {
            Some(nodes) => nodes.look(),
            None => return,
        }
    }
}
