//! Runs the store's operations, each in a task of its own: none of them waits for another one but for a connection ([`super::lanes`]), the
//! stream's reader waits for none of them, and none is cancelled when a handler is (participants.md, "What breaks atomicity first", 10).

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt as _;
use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition, ResourceManagerName, TraceParent, Xid};
use opentelemetry::trace::SpanKind;
use tokio::sync::mpsc;

use super::driver::Report;
use super::lanes::{Lanes, Slot};
use crate::branch::Operation;
use crate::resource::{Attachment, BranchId, Fate, Prepared, Resource, ResourceError, Unresolved};
use crate::session::{Done, Listing};
use crate::traces::Span;

/// An operation for a branch that has not begun.
#[derive(Debug)]
struct Job {
    branch: BranchId,
    operation: Operation,
    /// The span that it is part of.
    trace: Option<TraceParent>,
}

/// Whether it takes a connection beside the branch's own.
fn needs_slot(operation: &Operation) -> bool {
    match operation {
        Operation::Begin(_) | Operation::Discard | Operation::Prepare(_) | Operation::CommitOnePhase(_) => {
            false
        }
        Operation::Find | Operation::Commit(_) | Operation::Rollback(_) | Operation::Prove(_) => true,
    }
}

/// The store, and the way back to the driver.
#[derive(Debug)]
pub(super) struct Operations<R: Resource> {
    name: ResourceManagerName,
    resource: Arc<R>,
    lanes: Lanes<Job>,
    /// The branches that were found prepared when the store was listed the last time.
    found: HashSet<Xid>,
    reports: mpsc::UnboundedSender<Report<R>>,
    running: usize,
}

impl<R: Resource> Operations<R> {
    pub(super) fn new(
        name: ResourceManagerName,
        resource: Arc<R>,
        reports: mpsc::UnboundedSender<Report<R>>,
    ) -> Self {
        Self { name, resource, lanes: Lanes::new(), found: HashSet::new(), reports, running: 0 }
    }

    /// Operations that were asked for and have not been taken note of by [`Operations::ended`].
    pub(super) fn under_way(&self) -> usize {
        self.running + self.lanes.waiting()
    }

    /// One has ended: another one may begin.
    pub(super) fn ended(&mut self) {
        self.running -= 1;
        self.begin_what_may();
    }

    /// Attaches to the store, and asks how much room it has: no branch is joined before that is known.
    pub(super) fn attach(&mut self) {
        let (resource, name) = (Arc::clone(&self.resource), self.name.clone());
        self.spawn(
            async move {
                match resource.attach(&name).await {
                    Ok(attachment) => Report::StoreAttached(Ok((attachment, resource.room(&name).await))),
                    Err(error) => Report::StoreAttached(Err(error)),
                }
            },
            |why| Report::StoreAttached(Err(ResourceError::Unavailable(why))),
        );
    }

    /// The store was listed, and these were prepared.
    pub(super) fn listed(&mut self, prepared: &[Xid]) {
        self.found = prepared.iter().cloned().collect();
    }

    /// Whether this branch was one of them, and others of them are still being finished.
    pub(super) fn is_one_of_many_found(&self, xid: &Xid) -> bool {
        self.lanes.has_found() && self.found.contains(xid)
    }

    pub(super) fn find_room(&mut self) {
        let (resource, name) = (Arc::clone(&self.resource), self.name.clone());
        self.spawn(async move { Report::Room(resource.room(&name).await) }, |why| {
            Report::Room(Err(Unresolved(why)))
        });
    }

    pub(super) fn bind(&mut self, session: u64, cluster: ClusterId) {
        let (resource, name) = (Arc::clone(&self.resource), self.name.clone());
        self.spawn(
            async move {
                fail::fail_point!("sdk-before-bind");
                let result = bind(&*resource, &name, cluster).await;
                fail::fail_point!("sdk-after-bind");
                Report::Bound(session, result)
            },
            move |why| Report::Bound(session, Err(Unresolved(why))),
        );
    }

    pub(super) fn settle(&mut self, position: LogPosition, epochs: Vec<Epoch>) {
        let resource = Arc::clone(&self.resource);
        self.spawn(async move { Report::Settled(resource.settle(&position, &epochs).await) }, |why| {
            Report::Settled(Err(Unresolved(why)))
        });
    }

    pub(super) fn list(&mut self, session: u64, cluster: ClusterId, again: bool) {
        let (resource, name) = (Arc::clone(&self.resource), self.name.clone());
        self.spawn(
            async move {
                fail::fail_point!("sdk-before-list");
                let result = list(&*resource, &name, cluster, again).await;
                fail::fail_point!("sdk-after-list");
                Report::Listed(session, result)
            },
            move |why| Report::Listed(session, Err(Unresolved(why))),
        );
    }

    pub(super) fn find_old_evidence(
        &mut self,
        session: u64,
        cluster: ClusterId,
        retention: std::time::Duration,
        limit: usize,
    ) {
        let resource = Arc::clone(&self.resource);
        self.spawn(
            async move { Report::OldEvidence(session, resource.old_evidence(cluster, retention, limit).await) },
            move |why| Report::OldEvidence(session, Err(Unresolved(why))),
        );
    }

    pub(super) fn inspect(&mut self, question: u64, cluster: ClusterId, gtrid: Option<Gtrid>) {
        let (resource, name) = (Arc::clone(&self.resource), self.name.clone());
        self.spawn(
            async move { Report::Inspected(question, resource.inspect(&name, cluster, gtrid).await) },
            move |why| Report::Inspected(question, Err(Unresolved(why))),
        );
    }

    pub(super) fn forget(&mut self, session: u64, branches: Vec<BranchId>) {
        let resource = Arc::clone(&self.resource);
        self.spawn(
            async move {
                fail::fail_point!("sdk-before-forget");
                let result = resource.forget(&branches).await;
                fail::fail_point!("sdk-after-forget");
                Report::Forgotten(session, result)
            },
            move |why| Report::Forgotten(session, Err(Unresolved(why))),
        );
    }

    /// Does one operation for a branch, as soon as there is a slot for it if it needs one. `open`: its connection, for the operations that
    /// use it up; `trace`: the span that it is part of.
    pub(super) fn run(
        &mut self,
        branch: BranchId,
        operation: Operation,
        open: Option<R::Open>,
        trace: Option<TraceParent>,
    ) {
        let needs_slot = needs_slot(&operation);
        let job = Job { branch, operation, trace };
        if needs_slot {
            assert!(open.is_none(), "{} would lose its open connection", job.branch);
            let was_found = self.found.contains(&job.branch.xid);
            self.lanes.wait(job, was_found);
            self.begin_what_may();
        } else {
            self.begin(job, open, None);
        }
    }

    fn begin_what_may(&mut self) {
        while let Some((job, slot)) = self.lanes.next() {
            self.begin(job, None, Some(slot));
        }
    }

    fn begin(&mut self, job: Job, open: Option<R::Open>, slot: Option<Slot>) {
        let (resource, name) = (Arc::clone(&self.resource), self.name.clone());
        let xid = job.branch.xid.clone();
        let after_panic = after_panic(&job.operation);
        self.spawn(
            // Boxed: it takes five KiB, which would be copied each time that it is handed on until the runtime has it.
            Box::pin(async move {
                let Job { branch, operation, trace } = job;
                let span = span(&operation, &branch.xid, trace);
                let (done, open) = run(&*resource, &name, &branch, operation, open).await;
                // Before the end is told: what waits for the slot begins when it is.
                drop(slot);
                if let Some(mut span) = span {
                    end(&mut span, &done);
                }
                Report::Done(branch.xid, done, open)
            }),
            move |why| Report::Done(xid, after_panic(why), None),
        );
    }

    /// Runs a task whose end is told in any case: a panic in a store's code must not leave a branch waiting for ever.
    fn spawn(
        &mut self,
        task: impl Future<Output = Report<R>> + Send + 'static,
        panicked: impl FnOnce(String) -> Report<R> + Send + 'static,
    ) {
        self.running += 1;
        let reports = self.reports.clone();
        tokio::spawn(async move {
            let report = match AssertUnwindSafe(task).catch_unwind().await {
                Ok(report) => report,
                Err(_payload) => panicked("the store's code panicked, see the process' stderr".to_owned()),
            };
            // Without a driver there is nobody who waits for it.
            let _gone = reports.send(report);
        });
    }
}

/// Another instance may have bound the same store to another cluster meanwhile: what is stored counts.
async fn bind<R: Resource>(
    resource: &R,
    name: &ResourceManagerName,
    cluster: ClusterId,
) -> Result<(), Unresolved> {
    resource.bind(cluster).await?;
    match attach_again(resource, name).await?.cluster {
        Some(stored) if stored == cluster => Ok(()),
        stored => Err(Unresolved(format!("it was bound to {cluster}, and is bound to {stored:?}"))),
    }
}

/// The store first, then its evidence: a branch that commits in between is in at least one of the two (P7).
async fn list<R: Resource>(
    resource: &R,
    name: &ResourceManagerName,
    cluster: ClusterId,
    again: bool,
) -> Result<Listing, Unresolved> {
    let attachment = if again { Some(attach_again(resource, name).await?) } else { None };
    let prepared = resource.prepared(cluster, name).await?;
    let oldest_evidence = resource.oldest_evidence(cluster).await?;
    Ok(Listing { attachment, prepared, oldest_evidence })
}

async fn attach_again<R: Resource>(
    resource: &R,
    name: &ResourceManagerName,
) -> Result<Attachment, Unresolved> {
    resource.attach(name).await.map_err(|error| Unresolved(error.to_string()))
}

/// What an operation is taken to have led to when its code panicked: to nothing that is known, or, where the connection
/// was dropped with it, to what that leads to.
fn after_panic(operation: &Operation) -> fn(String) -> Done {
    match operation {
        Operation::Begin(_) => |detail| Done::NotBegun { detail, unfit: false },
        Operation::Discard => |_| Done::Discarded,
        Operation::Prepare(_) => |why| Done::Prepared(Err(Unresolved(why))),
        Operation::Find => |why| Done::Found(Err(Unresolved(why))),
        Operation::CommitOnePhase(_)
        | Operation::Commit(_)
        | Operation::Rollback(_)
        | Operation::Prove(_) => |why| Done::Resolved(Err(Unresolved(why))),
    }
}

async fn run<R: Resource>(
    resource: &R,
    name: &ResourceManagerName,
    branch: &BranchId,
    operation: Operation,
    open: Option<R::Open>,
) -> (Done, Option<R::Open>) {
    let connection = || open.expect("the machine ends only what is open");
    let done = match operation {
        Operation::Begin(remaining) => return begin(resource, branch, remaining).await,
        Operation::Discard => {
            resource.discard(connection()).await;
            Done::Discarded
        }
        Operation::Prepare(position) => {
            fail::fail_point!("sdk-before-prepare");
            let result = resource.prepare(branch, connection(), &position).await;
            fail::fail_point!("sdk-after-prepare");
            Done::Prepared(result)
        }
        Operation::Find => {
            let listed = resource.prepared(branch.cluster, name).await;
            Done::Found(listed.map(|prepared| prepared.contains(&branch.xid)))
        }
        Operation::CommitOnePhase(position) => {
            fail::fail_point!("sdk-before-commit-one-phase");
            let result = resource.commit_one_phase(branch, connection(), &position).await;
            fail::fail_point!("sdk-after-commit-one-phase");
            Done::Resolved(result)
        }
        Operation::Commit(position) => {
            fail::fail_point!("sdk-before-commit");
            let result = resource.commit(branch, &position).await;
            fail::fail_point!("sdk-after-commit");
            Done::Resolved(result)
        }
        Operation::Rollback(position) => {
            fail::fail_point!("sdk-before-rollback");
            let result = resource.rollback(branch, &position).await;
            fail::fail_point!("sdk-after-rollback");
            Done::Resolved(result)
        }
        Operation::Prove(position) => {
            fail::fail_point!("sdk-before-prove");
            let result = resource.prove(branch, &position).await;
            fail::fail_point!("sdk-after-prove");
            Done::Resolved(result)
        }
    };
    (done, None)
}

/// The span of what the store is asked for; `None` if it is not recorded.
fn span(operation: &Operation, xid: &Xid, trace: Option<TraceParent>) -> Option<Span> {
    let (name, kind) = match operation {
        Operation::Begin(_) => ("begin", SpanKind::Internal),
        Operation::Discard => ("rollback", SpanKind::Server),
        Operation::Prepare(_) => ("prepare", SpanKind::Server),
        Operation::Find => ("find", SpanKind::Internal),
        Operation::CommitOnePhase(_) | Operation::Commit(_) => ("commit", SpanKind::Server),
        Operation::Rollback(_) => ("rollback", SpanKind::Server),
        Operation::Prove(_) => ("prove", SpanKind::Internal),
    };
    let mut span = Span::start(name, kind, trace)?;
    span.belongs_to(xid);
    Some(span)
}

/// Says in the span what came of it.
fn end(span: &mut Span, done: &Done) {
    match done {
        Done::Begun | Done::Discarded | Done::Prepared(Ok(Prepared::Yes | Prepared::ReadOnly)) => {}
        Done::Found(Ok(_)) | Done::Resolved(Ok(Fate::Committed | Fate::RolledBack)) => {}
        Done::NotBegun { detail, .. } => span.fail("not_begun", detail.clone()),
        Done::Prepared(Ok(Prepared::No(why))) => span.fail("refused", why.clone()),
        Done::Prepared(Ok(Prepared::Hazard(why))) => span.fail("hazard", why.clone()),
        Done::Resolved(Ok(Fate::Hazard)) => {
            span.fail("hazard", "it can be brought to neither end".to_owned())
        }
        Done::Prepared(Err(why)) | Done::Found(Err(why)) | Done::Resolved(Err(why)) => {
            span.fail("unresolved", why.0.clone());
        }
    }
}

async fn begin<R: Resource>(
    resource: &R,
    branch: &BranchId,
    remaining: std::time::Duration,
) -> (Done, Option<R::Open>) {
    fail::fail_point!("sdk-before-begin");
    let result = resource.begin(branch, remaining).await;
    fail::fail_point!("sdk-after-begin");
    match result {
        Ok(open) => (Done::Begun, Some(open)),
        Err(ResourceError::Unfit(detail)) => (Done::NotBegun { detail, unfit: true }, None),
        Err(ResourceError::Unavailable(detail)) => (Done::NotBegun { detail, unfit: false }, None),
    }
}
