//! Attach: the handshake, then a session of its own task.

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures::{Stream, StreamExt};
use lockstep_proto::{Epoch, limits, v1};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::decision_log::Epochs;
use crate::sessions::attach::{AttachError, Hello, admit, compare};
use crate::sessions::outbox::{Outbox, frames};
use crate::sessions::registry::Attached;
use crate::sessions::session::{Session, Shared};

/// How long a stream may be open without saying hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// What a participant reads: frames, and at last why the session ended, if that was its fault.
pub(super) type Frames = Pin<Box<dyn Stream<Item = Result<v1::CoordinatorFrame, Status>> + Send>>;

pub(super) async fn attach(
    shared: &Shared,
    mut stream: Streaming<v1::ParticipantFrame>,
) -> Result<Frames, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, stream.message()).await;
    let first = first.map_err(|_elapsed| AttachError::NotAHello("none came within 10 s".into()))??;
    let first = first.ok_or_else(|| AttachError::NotAHello("the stream ended".into()))?;
    let hello = Hello::from_frame(first)?;
    // In a task of its own: it writes to the log, and a participant that goes away must not break that off halfway.
    let own = shared.clone();
    let admitting = tokio::spawn(async move {
        admit(&hello, &own.engine, &own.registry).await.map(|settled| (hello, settled))
    });
    let (hello, settled) = admitting.await.map_err(|panic| Status::internal(panic.to_string()))??;
    let epochs = shared.engine.log().epochs().await.map_err(AttachError::from)?;

    let stop = shared.shutdown.child_token();
    let (outbox, receivers) = Outbox::new(stop.clone());
    let (instance, resource_manager) = (hello.instance, hello.resource_manager.clone());
    outbox.answer(v1::coordinator_message::Kind::Welcome(welcome(shared, epochs, &settled)));
    let attached = Attached {
        instance,
        resource_manager: resource_manager.clone(),
        outbox: outbox.clone(),
        stop: stop.clone(),
    };
    let id = shared.registry.enter(attached);
    // An operator may have rebound or retired it since it was admitted. Now that its session can be seen, the next one is told.
    if let Err(refused) = compare(&hello, shared.registry.known(&resource_manager).as_ref()) {
        shared.registry.leave(id);
        return Err(refused.into());
    }
    tracing::info!(%resource_manager, %instance, session = id.0, "participant attached");

    let session = Session {
        id,
        resource_manager: resource_manager.clone(),
        outbox,
        stop: stop.clone(),
        shared: shared.clone(),
    };
    let (fault, faults) = mpsc::channel(1);
    tokio::spawn(async move {
        let end = session.run(stream, receivers.inquiries).await;
        tracing::info!(%resource_manager, %instance, session = id.0, "participant detached: {end}");
        if let Some(status) = end.fault() {
            // The stream to the participant may be gone already.
            let _gone = fault.send(status).await;
        }
        stop.cancel();
    });
    let frames =
        frames(receivers.messages, shared.engine.writer().clone(), shared.engine.metrics().streams.clone())
            .map(Ok);
    Ok(Box::pin(until_the_end(frames, faults)))
}

fn welcome(shared: &Shared, epochs: Epochs, settled: &[Epoch]) -> v1::Welcome {
    let position = shared.engine.writer().position();
    v1::Welcome {
        protocol_version: limits::PROTOCOL_VERSION,
        cluster: shared.engine.log().cluster().to_string(),
        position: Some((&position).into()),
        retention_ms: millis(shared.terms.retention),
        sealed_below: epochs.sealed_below.get(),
        newest_epoch: epochs.newest.get(),
        report_interval_ms: millis(shared.terms.report_interval),
        settled: settled.iter().map(|epoch| epoch.get()).collect(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The frames until the session ends, and then why, if that was the participant's fault: the task that runs the session
/// holds the sending end of `faults` as long as it lives.
fn until_the_end(
    frames: impl Stream<Item = Result<v1::CoordinatorFrame, Status>> + Send + 'static,
    mut faults: mpsc::Receiver<Status>,
) -> impl Stream<Item = Result<v1::CoordinatorFrame, Status>> + Send + 'static {
    let mut frames = Box::pin(frames);
    let mut over = false;
    futures::stream::poll_fn(move |context| {
        if over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(fault) = faults.poll_recv(context) {
            over = true;
            return Poll::Ready(fault.map(Err));
        }
        frames.poll_next_unpin(context)
    })
}
