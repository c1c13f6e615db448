//! The participant's side: attach a store under a name, join transactions, work, finish.
//!
//! - [`Participant`]: attached, and attached again whenever the session was lost.
//! - [`Branch`]: what a handler works with. There is no `commit()` on it: the coordinator decides.
//! - `nodes`: the coordinators it is attached to; `driver`: the task behind each of them. [`crate::session`] and [`crate::branch`] have the rules.

mod driver;
mod lanes;
mod link;
mod nodes;
mod operations;
mod stream;
mod wire;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_proto::{Gtrid, ResourceManagerName, Xid};
use opentelemetry::trace::SpanKind;
use tokio::sync::{mpsc, oneshot};

use crate::client::lazy_channel;
use crate::clock;
use crate::context::Context;
use crate::error::{AttachError, ConnectError, FinishError, JoinError, WorkError};
use crate::resource::Resource;
use crate::session::HandlerId;
use crate::traces::{self, Span};
use driver::{Join, Release};
use nodes::Nodes;

/// Where a coordinator listens unless told otherwise.
const DEFAULT_COORDINATOR: &str = "http://127.0.0.1:7420";

/// A store that is attached to a coordinator under a name, in this process. Cheap to clone.
///
/// Several stores in one process are several participants. When the last clone is dropped the participant goes away at
/// once: branches that are not prepared are rolled back. [`Participant::detach`] waits for them.
pub struct Participant<R: Resource> {
    nodes: Arc<Nodes<R>>,
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
        self.nodes.name().as_str()
    }

    /// Whether there is a session with a coordinator now, so that transactions can be joined.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.nodes.is_attached()
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
        let node = self.nodes.of(gtrid).await?;
        let (reply, answer) = oneshot::channel();
        let join = Join { context, reply, releases: node.releases.clone() };
        if node.joins.send(join).await.is_err() {
            return Err(JoinError::Detaching { gtrid });
        }
        answer.await.unwrap_or(Err(JoinError::Detaching { gtrid }))
    }

    /// Goes away: refuses new branches, waits at most `grace` until those that this process holds have ended, and ends the
    /// session. What is still open then is rolled back. Prepared branches stay as they are, in the store, until a
    /// participant of this name attaches again.
    ///
    /// A service calls this when it is told to stop, after its server has stopped taking requests.
    pub async fn detach(&self, grace: Duration) {
        self.nodes.detach(grace).await;
    }
}

impl<R: Resource> Clone for Participant<R> {
    fn clone(&self) -> Self {
        Self { nodes: Arc::clone(&self.nodes) }
    }
}

impl<R: Resource> fmt::Debug for Participant<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attached = self.is_attached();
        f.debug_struct("Participant")
            .field("name", self.nodes.name())
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
    /// any of them finishes what another one has left. The list need not be complete: a coordinator tells of the others, if they
    /// know where they are reached (`advertise`). One of those that are named has to be up when this participant starts.
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
        let with_channel = |address: String| Ok((lazy_channel(&address)?, address));
        let named: Result<Vec<_>, ConnectError> = self.coordinators.into_iter().map(with_channel).collect();
        let named = named?.into_iter().map(|(channel, address)| (address, channel)).collect();
        Ok(Participant { nodes: Nodes::attach(name, self.resource, named).await? })
    }
}

/// One handler's hold on its transaction's branch. Dereferences to the connection to work with.
///
/// There is no way to commit here. [`Branch::finish`] says that the handler has done its work; the branch then stays open
/// until the coordinator prepares it, unless this call was marked as the last one to the service ([`crate::Transaction::vote`])
/// or the handler ends with [`Branch::vote`]. A branch that is dropped without either, because of an error, a panic or because
/// the handler was cancelled, is rolled back, and the whole transaction with it. (The coordinator learns of a branch while its
/// handler works, and `finish` and `vote` wait until it has. A caller who is told of a failure at once and asks to commit all the same
/// may come before that: then the transaction never had this branch.)
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
