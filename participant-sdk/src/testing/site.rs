//! What a rule is tried with: a store of its own, names for branches, and questions that are asked until there is an answer.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::child::{Child, Launcher};
use super::{Broken, Subject};
use crate::clock;
use crate::resource::{
    Attachment, Bqual, BranchId, ClusterId, Epoch, Fate, Gtrid, Incarnation, LogPosition, Prepared, Resource,
    ResourceError, ResourceManagerName, Unresolved, Xid,
};

/// How long is asked again while the answer is that it cannot be told now.
const PATIENCE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(20);
/// A deadline that no rule reaches.
pub(super) const LONG: Duration = Duration::from_secs(600);

pub(super) type OpenOf<S> = <<S as Subject>::Resource as Resource>::Open;

/// Breaks the rule unless `holds`.
pub(super) fn check(holds: bool, expected: &str, happened: impl Debug) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken::new(expected, format!("{happened:?}"))) }
}

/// The log position with this number.
pub(super) fn position(sequence: u64) -> LogPosition {
    position_in(3, sequence)
}

/// The same of another epoch.
pub(super) fn position_in(epoch: u32, sequence: u64) -> LogPosition {
    let epoch = Epoch::new(epoch).expect("no test has epoch 0");
    LogPosition { epoch, incarnation: Incarnation::from_bytes([7; 16]), sequence }
}

/// A store, and who asks about it.
pub(super) struct Site<'a, S> {
    pub(super) subject: &'a S,
    pub(super) address: String,
    pub(super) cluster: ClusterId,
    pub(super) name: ResourceManagerName,
    launcher: &'a Launcher,
    branches: AtomicU64,
}

/// What is asked of a branch that is not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Commit,
    Rollback,
    Prove,
}

impl<'a, S: Subject> Site<'a, S> {
    /// A new store.
    pub(super) async fn new(subject: &'a S, launcher: &'a Launcher) -> Self {
        Self {
            address: subject.create().await,
            cluster: ClusterId::from_random(rand::random()),
            name: "contract".parse().expect("a name"),
            subject,
            launcher,
            branches: AtomicU64::new(0),
        }
    }

    /// Another store of the same kind.
    pub(super) async fn other(&self) -> Self {
        Site::new(self.subject, self.launcher).await
    }

    /// A new branch: of a transaction of its own, later than those before it.
    pub(super) fn branch(&self) -> BranchId {
        self.branch_of(self.cluster, &self.name)
    }

    /// The same, of a cluster and a resource manager of one's own.
    pub(super) fn branch_of(&self, cluster: ClusterId, name: &ResourceManagerName) -> BranchId {
        let later = self.branches.fetch_add(1, Ordering::Relaxed);
        let epoch = Epoch::new(3).expect("3 is no zero");
        let gtrid = Gtrid::new(epoch, clock::unix_ms() + later, rand::random());
        BranchId { cluster, xid: Xid { gtrid, bqual: Bqual::new(name, clock::random_bits()) } }
    }

    /// A process that will be killed, which works on this store.
    pub(super) fn child(&self) -> Child<'_> {
        self.launcher.child(&self.address)
    }

    /// Opens the store, attaches, and has it belong to this cluster if it belongs to none, as a first session with a coordinator
    /// does.
    pub(super) async fn start(&self) -> Result<Instance<'_, S>, Broken> {
        let instance = Instance { site: self, resource: self.subject.open(&self.address).await };
        if instance.attach().await?.cluster.is_none() {
            persist(async || instance.resource.bind(self.cluster).await).await?;
        }
        Ok(instance)
    }

    /// Opens the store, and attaches.
    pub(super) async fn start_unbound(&self) -> Result<Instance<'_, S>, Broken> {
        let instance = Instance { site: self, resource: self.subject.open(&self.address).await };
        instance.attach().await?;
        Ok(instance)
    }
}

/// The store, opened and attached.
pub(super) struct Instance<'a, S: Subject> {
    pub(super) site: &'a Site<'a, S>,
    pub(super) resource: S::Resource,
}

impl<'a, S: Subject> Instance<'a, S> {
    /// Stops using it, and opens it again, as a process does that ends and is started again.
    pub(super) async fn restart(self) -> Result<Self, Broken> {
        let site = self.site;
        drop(self);
        site.start().await
    }

    /// Attaches. What holds the store from before may need a moment to let go.
    pub(super) async fn attach(&self) -> Result<Attachment, Broken> {
        let attached = persist(async || match self.resource.attach(&self.site.name).await {
            Err(ResourceError::Unavailable(why)) => Err(Unresolved(why)),
            other => Ok(other),
        });
        attached.await?.map_err(|error| Broken::new("it attaches", error.to_string()))
    }

    /// Opens a branch and writes `key` in it.
    pub(super) async fn work(&self, branch: &BranchId, key: &str) -> Result<OpenOf<S>, Broken> {
        self.work_within(branch, key, LONG).await
    }

    /// The same, with so long until the deadline.
    pub(super) async fn work_within(
        &self,
        branch: &BranchId,
        key: &str,
        remaining: Duration,
    ) -> Result<OpenOf<S>, Broken> {
        let mut open = self.begin(branch, remaining).await?;
        let written = self.site.subject.write(S::Resource::connection(&mut open), key).await;
        written.map_err(|error| Broken::new("work in an open branch succeeds", error))?;
        Ok(open)
    }

    pub(super) async fn begin(&self, branch: &BranchId, remaining: Duration) -> Result<OpenOf<S>, Broken> {
        let begun = persist(async || match self.resource.begin(branch, remaining).await {
            Err(ResourceError::Unavailable(why)) => Err(Unresolved(why)),
            other => Ok(other),
        });
        begun.await?.map_err(|error| Broken::new("a branch begins", error.to_string()))
    }

    /// A new branch that has written `key` and voted to commit.
    pub(super) async fn prepared(&self, key: &str) -> Result<BranchId, Broken> {
        let branch = self.site.branch();
        self.prepare(&branch, key).await?;
        Ok(branch)
    }

    /// Has this branch write `key` and vote to commit.
    pub(super) async fn prepare(&self, branch: &BranchId, key: &str) -> Result<(), Broken> {
        let open = self.work(branch, key).await?;
        let vote = self.resource.prepare(branch, open, &position(1)).await;
        check(vote == Ok(Prepared::Yes), "a branch that has written votes yes", vote)
    }

    /// A new branch that has written `key` and is committed.
    pub(super) async fn committed(&self, key: &str) -> Result<BranchId, Broken> {
        let branch = self.prepared(key).await?;
        self.expect(Ask::Commit, &branch, Fate::Committed).await?;
        Ok(branch)
    }

    /// Asks once.
    pub(super) async fn ask(&self, ask: Ask, branch: &BranchId) -> Result<Fate, Unresolved> {
        match ask {
            Ask::Commit => self.resource.commit(branch, &position(2)).await,
            Ask::Rollback => self.resource.rollback(branch, &position(2)).await,
            Ask::Prove => self.resource.prove(branch, &position(2)).await,
        }
    }

    /// Asks until there is an answer.
    pub(super) async fn resolve(&self, ask: Ask, branch: &BranchId) -> Result<Fate, Broken> {
        persist(async || self.ask(ask, branch).await).await
    }

    /// Asks until there is an answer, which has to be this one.
    pub(super) async fn expect(&self, ask: Ask, branch: &BranchId, fate: Fate) -> Result<(), Broken> {
        let answer = self.resolve(ask, branch).await?;
        check(answer == fate, &format!("{ask:?} is answered with {fate:?}"), answer)
    }

    /// The prepared branches of this cluster and name.
    pub(super) async fn listed(&self) -> Result<Vec<Xid>, Broken> {
        self.listed_for(self.site.cluster, &self.site.name).await
    }

    pub(super) async fn listed_for(
        &self,
        cluster: ClusterId,
        name: &ResourceManagerName,
    ) -> Result<Vec<Xid>, Broken> {
        persist(async || self.resource.prepared(cluster, name).await).await
    }

    /// Whether the branch is listed has to be as said.
    pub(super) async fn expect_listed(&self, branch: &BranchId, expected: bool) -> Result<(), Broken> {
        let listed = self.listed_for(branch.cluster, &branch.xid.bqual.resource_manager()).await?;
        let words = if expected { "the branch is listed as prepared" } else { "the branch is not listed" };
        check(listed.contains(&branch.xid) == expected, words, listed)
    }

    /// Whether the key is there has to be as said, and `when` it was.
    pub(super) async fn expect_there(&self, key: &str, expected: bool, when: &str) -> Result<(), Broken> {
        let there = self.site.subject.is_there(&self.resource, &self.site.address, key).await;
        let words = format!("the work is {} {when}", if expected { "there" } else { "not to be seen" });
        check(there == expected, &words, if there { "it is there" } else { "it is not" })
    }
}

/// Asks again as long as it cannot be told.
pub(super) async fn persist<T>(mut ask: impl AsyncFnMut() -> Result<T, Unresolved>) -> Result<T, Broken> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let why = match tokio::time::timeout_at(give_up + PATIENCE, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(Unresolved(why))) => why,
            Err(_elapsed) => "it does not answer".to_owned(),
        };
        if Instant::now() >= give_up {
            let seconds = PATIENCE.as_secs();
            return Err(Broken::new(format!("an answer within {seconds} s"), format!("still: {why}")));
        }
        tokio::time::sleep(AGAIN).await;
    }
}
