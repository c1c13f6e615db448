//! The participant's side: attach a store under a name, join transactions, work, finish.
//!
//! - [`Participant`]: attached, and attached again whenever the session was lost.
//! - [`Branch`]: what a handler works with. There is no `commit()` on it: the coordinator decides.
//! - `driver`: the task behind it. [`crate::session`] and [`crate::branch`] have the rules.

mod driver;
mod link;
mod operations;
mod stream;
mod wire;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use lockstep_proto::{Epoch, Gtrid, ResourceManagerName, Xid};
use opentelemetry::trace::SpanKind;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::client::lazy_channel;
use crate::clock;
use crate::context::Context;
use crate::error::{AttachError, ConnectError, FinishError, JoinError, WorkError};
use crate::resource::Resource;
use crate::session::HandlerId;
use crate::traces::{self, Span};
use driver::{Driver, JOINS, Join, Parts, Release};

/// Where a coordinator listens unless told otherwise.
const DEFAULT_COORDINATOR: &str = "http://127.0.0.1:7420";
/// How long a join waits for a session with the coordinator that its transaction was begun at: one that has just started is
/// found within the longest wait between two attempts to attach.
const SESSION_PATIENCE: Duration = Duration::from_secs(5);
/// Words about sealed epochs that may wait for a driver: it takes them at once.
const SEALS: usize = 64;

/// A store that is attached to a coordinator under a name, in this process. Cheap to clone.
///
/// Several stores in one process are several participants. When the last clone is dropped the participant goes away at
/// once: branches that are not prepared are rolled back. [`Participant::detach`] waits for them.
pub struct Participant<R: Resource> {
    name: ResourceManagerName,
    nodes: Arc<[Node<R>]>,
}

/// One coordinator, and the driver that keeps a session with it.
struct Node<R: Resource> {
    joins: mpsc::Sender<Join<R>>,
    releases: mpsc::UnboundedSender<Release<R>>,
    /// The coordinator's epoch, as long as there is a session.
    attached: watch::Receiver<Option<Epoch>>,
}

impl<R: Resource> Participant<R> {
    /// A participant that is about to attach: `name` is what the resource manager is called, the same at every start and
    /// in every instance: 1 to 47 of `a` to `z`, `0` to `9`, `-` and `_`.
    pub fn builder(name: impl Into<String>, resource: R) -> ParticipantBuilder<R> {
        ParticipantBuilder { name: name.into(), resource, coordinators: vec![DEFAULT_COORDINATOR.to_owned()] }
    }

    /// The resource manager's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Whether there is a session with a coordinator now, so that transactions can be joined.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.nodes.iter().any(|node| node.attached.borrow().is_some())
    }

    /// Opens a branch of the transaction in `context`, or continues the one that this process has open for it: a handler
    /// that is called twice in one transaction sees its own writes. Waits for a handler that still works in that branch. Another
    /// instance of the service opens a branch of its own, and sees nothing of this one.
    ///
    /// Cancelling this call rolls the branch back, if one was opened.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn join(&self, context: &Context) -> Result<Branch<R>, JoinError> {
        let parent = traces::current().or(context.trace());
        let mut span = Span::start("work", SpanKind::Internal, parent);
        let inside = span.as_ref().and_then(Span::parent).or(parent);
        match self.join_in(context.traced(inside)).await {
            Ok(mut branch) => {
                if let Some(span) = &mut span {
                    span.belongs_to(&branch.xid);
                }
                branch.span = span;
                Ok(branch)
            }
            Err(error) => {
                if let Some(span) = &mut span {
                    span.fail("not_joined", error.to_string());
                }
                Err(error)
            }
        }
    }

    async fn join_in(&self, context: Context) -> Result<Branch<R>, JoinError> {
        let gtrid = context.gtrid();
        let node = self.node_of(&context).await?;
        let (reply, answer) = oneshot::channel();
        let join = Join { context, reply, releases: node.releases.clone() };
        if node.joins.send(join).await.is_err() {
            return Err(JoinError::Detaching { gtrid });
        }
        answer.await.unwrap_or(Err(JoinError::Detaching { gtrid }))
    }

    /// The coordinator that a transaction was begun at: its epoch is in the transaction's name.
    async fn node_of(&self, context: &Context) -> Result<&Node<R>, JoinError> {
        let gtrid = context.gtrid();
        if let [only] = &*self.nodes {
            // Its driver knows better why it will not do.
            return Ok(only);
        }
        let mut attaching: FuturesUnordered<_> = self
            .nodes
            .iter()
            .map(async |node| {
                let mut attached = node.attached.clone();
                let found = attached.wait_for(|epoch| *epoch == Some(gtrid.epoch())).await;
                found.is_ok().then_some(node)
            })
            .collect();
        let found = async {
            loop {
                match attaching.next().await {
                    Some(Some(node)) => return Ok(node),
                    // This driver has ended.
                    Some(None) => {}
                    None => return Err(JoinError::Detaching { gtrid }),
                }
            }
        };
        match tokio::time::timeout(SESSION_PATIENCE, found).await {
            Ok(found) => found,
            Err(_elapsed) => Err(JoinError::NotAttached { gtrid }),
        }
    }

    /// Goes away: refuses new branches, waits at most `grace` until those that this process holds have ended, and ends the
    /// session. What is still open then is rolled back. Prepared branches stay as they are, in the store, until a
    /// participant of this name attaches again.
    ///
    /// A service calls this when it is told to stop, after its server has stopped taking requests.
    pub async fn detach(&self, grace: Duration) {
        let detach = |node: &Node<R>| {
            let (done, gone) = oneshot::channel();
            node.releases.send(Release::Detach(grace, done)).ok().map(|()| gone)
        };
        let going: Vec<_> = self.nodes.iter().filter_map(detach).collect();
        for gone in going {
            // The sender is dropped with the driver.
            let _gone = gone.await;
        }
    }
}

impl<R: Resource> Clone for Participant<R> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), nodes: Arc::clone(&self.nodes) }
    }
}

impl<R: Resource> fmt::Debug for Participant<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attached = self.is_attached();
        f.debug_struct("Participant")
            .field("name", &self.name)
            .field("attached", &attached)
            .finish_non_exhaustive()
    }
}

/// A participant that is about to attach.
#[derive(Debug)]
#[must_use = "nothing happens before attach"]
pub struct ParticipantBuilder<R: Resource> {
    name: String,
    resource: R,
    coordinators: Vec<String>,
}

impl<R: Resource> ParticipantBuilder<R> {
    /// The coordinator's address: `http://127.0.0.1:7420` unless set.
    pub fn coordinator(mut self, address: impl Into<String>) -> Self {
        self.coordinators = vec![address.into()];
        self
    }

    /// The addresses of several coordinators that share their decision log: this participant attaches to each of them, and
    /// any of them finishes what another one has left. The list must be complete: a coordinator that is not on it cannot
    /// prepare or commit anything here.
    pub fn coordinators<A: Into<String>>(mut self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.coordinators = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// Attaches. Waits for a coordinator (of several, for the first one) and a store that are not up yet, for as long as it takes,
    /// and says so in the log.
    ///
    /// # Errors
    /// If waiting does not mend it: a malformed name or address, a store that is not fit, or two sides that do not fit
    /// together. After the first attach such a refusal is logged as an error and tried again every 30 s.
    pub async fn attach(self) -> Result<Participant<R>, AttachError> {
        let name: ResourceManagerName = self.name.parse()?;
        if self.coordinators.is_empty() {
            return Err(ConnectError::none().into());
        }
        let channels =
            self.coordinators.iter().map(|address| lazy_channel(address)).collect::<Result<Vec<_>, _>>()?;
        let resource = Arc::new(self.resource);
        let (seals, _told) = broadcast::channel(SEALS);
        let mut nodes = Vec::new();
        let mut attaching = FuturesUnordered::new();
        for channel in channels {
            let (joins, join_receiver) = mpsc::channel(JOINS);
            // Bounded by the branches that may be open: each handler gives its connection back once.
            let (releases, release_receiver) = mpsc::unbounded_channel();
            let (first, attached_first) = oneshot::channel();
            let (attached_sender, attached) = watch::channel(None);
            let driver = Driver::new(Parts {
                name: name.clone(),
                resource: Arc::clone(&resource),
                channel,
                joins: join_receiver,
                releases: release_receiver,
                first,
                attached: attached_sender,
                seals: seals.clone(),
            });
            tokio::spawn(driver.run());
            nodes.push(Node { joins, releases, attached });
            attaching.push(attached_first);
        }
        let mut refused = None;
        while let Some(result) = attaching.next().await {
            match result.expect("the driver answers the first attach before it ends") {
                Ok(()) => return Ok(Participant { name, nodes: nodes.into() }),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.expect("there is at least one coordinator"))
    }
}

/// One handler's hold on its transaction's branch. Dereferences to the connection to work with.
///
/// There is no way to commit here. [`Branch::finish`] says that the handler has done its work; the branch then stays open
/// until the coordinator prepares it, unless this call was marked as the last one to the service ([`crate::Transaction::vote`])
/// or the handler ends with [`Branch::vote`]. A branch that is dropped without either, because of an error, a panic or because
/// the handler was cancelled, is rolled back, and the whole transaction with it.
#[must_use = "a branch that is dropped is rolled back"]
pub struct Branch<R: Resource> {
    xid: Xid,
    handler: HandlerId,
    /// `None` once it was given back.
    open: Option<R::Open>,
    /// The caller has marked this call as its last one to the service.
    is_last_call: bool,
    /// The transaction's.
    deadline: Instant,
    /// How long that was away when the handler got its connection.
    within: Duration,
    /// The coordinator is known to have the branch, and the handler to know it.
    finished: bool,
    releases: mpsc::UnboundedSender<Release<R>>,
    /// Of the handler's work, from its join until it has given the connection back.
    span: Option<Span>,
}

impl<R: Resource> Branch<R> {
    fn new(
        xid: Xid,
        handler: HandlerId,
        open: R::Open,
        context: &Context,
        releases: mpsc::UnboundedSender<Release<R>>,
    ) -> Self {
        let (is_last_call, deadline, within) =
            (context.is_last_call(), context.deadline(), context.remaining());
        Self {
            xid,
            handler,
            open: Some(open),
            is_last_call,
            deadline,
            within,
            finished: false,
            releases,
            span: None,
        }
    }

    /// The transaction.
    #[must_use]
    pub const fn gtrid(&self) -> Gtrid {
        self.xid.gtrid
    }

    /// What the error of a statement on this branch's connection means, in words for the handler's caller.
    ///
    /// The store ends every wait for a lock shortly before the transaction's deadline, which also ends a deadlock over two databases that neither
    /// of them can see. Its error alone says neither for which lock nor until when; this does, as far as the store tells.
    ///
    /// ```
    /// # #[cfg(feature = "postgres")]
    /// async fn reserve(branch: &mut lockstep::Branch<lockstep::Postgres>) -> Result<(), lockstep::WorkError> {
    ///     let sql = sqlx::query("UPDATE items SET free = free - 1 WHERE name = 'chair'");
    ///     sql.execute(&mut **branch).await.map_err(|error| branch.explain(&error))?;
    ///     Ok(())
    /// }
    /// ```
    #[must_use]
    pub fn explain(&self, error: &(dyn std::error::Error + 'static)) -> WorkError {
        let (gtrid, resource_manager) = (self.gtrid(), self.xid.bqual.resource_manager_str().to_owned());
        match self.open.as_ref().and_then(|open| R::awaited_lock(open, error)) {
            Some(lock) => {
                let left = self.deadline.saturating_duration_since(clock::now());
                WorkError::LockWait { gtrid, resource_manager, lock, within: self.within, left }
            }
            None => WorkError::Failed { gtrid, resource_manager, detail: error.to_string() },
        }
    }

    /// The work is done: gives the connection back, and waits until the coordinator is known to count this branch. Answer
    /// the caller only after that: it may ask to commit at once. In a call that its caller has marked as the last one, the branch
    /// votes, as by [`Branch::vote`].
    ///
    /// Cancelling this call rolls the branch back, unless it has voted by then.
    ///
    /// # Errors
    /// If the branch was rolled back meanwhile. Answer the caller with an error then.
    pub async fn finish(self) -> Result<(), FinishError> {
        let votes = self.is_last_call;
        self.end(votes).await
    }

    /// The work is done, and no further call of this transaction comes to this service: the branch votes now and saves the round
    /// in which the coordinator asks for it. For a service that is called once in a transaction by its nature; otherwise the
    /// caller knows better, and marks its last call with [`crate::Transaction::vote`].
    ///
    /// From the vote on only the coordinator ends the branch: its locks stay until the transaction's decision, also while the
    /// coordinator is away. A further [`Participant::join`] of the transaction is refused ([`JoinError::Voted`]). A branch that
    /// has written nothing has nothing to prepare: it stays open until the coordinator asks, as after [`Branch::finish`],
    /// so that what it has read stays locked while others work (P23).
    ///
    /// Cancelling this call rolls the branch back, unless it has voted by then.
    ///
    /// # Errors
    /// If the branch is rolled back, because the store refuses to prepare it or as for [`Branch::finish`].
    pub async fn vote(self) -> Result<(), FinishError> {
        self.end(true).await
    }

    async fn end(mut self, votes: bool) -> Result<(), FinishError> {
        let gtrid = self.gtrid();
        let open = self.open.as_mut().expect("a branch has its connection until it is finished");
        let votes = votes && R::has_written(open).await;
        let open = self.open.take().expect("looked at just before");
        let (reply, answer) = oneshot::channel();
        let (xid, handler) = (self.xid.clone(), self.handler);
        let _gone = self.releases.send(Release::Finished { xid, handler, open, votes, reply });
        let gone = || FinishError::RolledBack { gtrid, detail: "this participant is gone".to_owned() };
        let result = answer.await.unwrap_or_else(|_closed| Err(gone()));
        self.finished = true;
        if let (Some(span), Err(error)) = (&mut self.span, &result) {
            span.fail("rolled_back", error.to_string());
        }
        result
    }
}

impl<R: Resource> Deref for Branch<R> {
    type Target = R::Connection;

    fn deref(&self) -> &R::Connection {
        R::connection_ref(self.open.as_ref().expect("a branch has its connection until it is finished"))
    }
}

impl<R: Resource> DerefMut for Branch<R> {
    fn deref_mut(&mut self) -> &mut R::Connection {
        R::connection(self.open.as_mut().expect("a branch has its connection until it is finished"))
    }
}

impl<R: Resource> Drop for Branch<R> {
    fn drop(&mut self) {
        if !self.finished {
            if let Some(span) = &mut self.span {
                span.fail("dropped", "the handler has not finished its work: it is rolled back".to_owned());
            }
            // Without a driver the connection is dropped here, which ends the local transaction.
            let _gone = self.releases.send(Release::Gone(self.xid.clone(), self.handler, self.open.take()));
        }
    }
}

impl<R: Resource> fmt::Debug for Branch<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Branch").field("xid", &self.xid).finish_non_exhaustive()
    }
}
