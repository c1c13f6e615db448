//! One attached stream: frames out, messages in.

use std::time::{Duration, Instant};

use lockstep_proto::limits::{MAX_FRAME_BYTES, MAX_FRAME_MESSAGES};
use lockstep_proto::v1::participant_service_client::ParticipantServiceClient;
use lockstep_proto::wire::WireError;
use lockstep_proto::{TraceParent, v1};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::wire::{from_wire, to_wire};
use crate::clock;
use crate::session::message::{FromCoordinator, ToCoordinator};

/// Frames between us and the network. Whatever waits behind them goes into one frame together.
const FRAMES: usize = 4;
/// Messages that may wait for a coordinator that does not read. Beyond that the session is ended rather than memory filled.
const MAX_WAITING: usize = 65_536;
/// Bytes of a frame's messages. Under half of what a peer accepts: the message that passes the mark still fits.
const FRAME_BYTES: usize = MAX_FRAME_BYTES / 4;
/// How long a message may wait for others, and how many wait at most. A coordinator tells a participant of 32 decisions that were left over, from each of
/// its shards, ahead of their acknowledgements: with more in one frame it would have to wait for us.
const TOGETHER: Duration = Duration::from_millis(5);
const MOST_TOGETHER: usize = 16;
/// How long the connection, the call and the welcome may take, each.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// The stream's other end, once the coordinator has answered the call.
pub(super) type Incoming = Streaming<v1::CoordinatorFrame>;

/// When a message is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    Now,
    /// Soon, with others in one frame: a frame costs both ends more than what is in it. For the ends of branches that were found
    /// prepared, as long as there are more of them. There may be thousands, and a commit that was under way when the store was listed is
    /// answered a few milliseconds later.
    Together,
}

/// The outgoing half.
#[derive(Debug)]
pub(super) struct Outgoing {
    frames: mpsc::Sender<v1::ParticipantFrame>,
    waiting: Vec<v1::ParticipantMessage>,
    /// Until then all of them wait for others.
    held_until: Option<Instant>,
}

/// The coordinator does not read.
#[derive(Debug)]
pub(super) struct Overflow;

impl Outgoing {
    /// The two ends of a new stream's outgoing half.
    pub(super) fn new() -> (Self, mpsc::Receiver<v1::ParticipantFrame>) {
        let (frames, receiver) = mpsc::channel(FRAMES);
        (Self { frames, waiting: Vec::new(), held_until: None }, receiver)
    }

    /// None overtakes another one: what is urgent takes with it what is not.
    pub(super) fn push(&mut self, message: ToCoordinator, urgency: Urgency) -> Result<(), Overflow> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(Overflow);
        }
        match urgency {
            Urgency::Together if self.waiting.is_empty() => self.held_until = Some(clock::now() + TOGETHER),
            Urgency::Together if self.waiting.len() + 1 < MOST_TOGETHER => {}
            Urgency::Together | Urgency::Now => self.release(),
        }
        self.waiting.push(to_wire(message));
        Ok(())
    }

    /// When what waits has to be sent, if it is held until then.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// Nothing waits for others any more.
    pub(super) fn release(&mut self) {
        self.held_until = None;
    }

    /// Everything that waits and is not held, as far as there is room.
    pub(super) fn flush(&mut self) {
        if self.held_until.is_some_and(|until| clock::now() < until) {
            return;
        }
        self.release();
        while !self.waiting.is_empty() {
            let frame = match self.frames.try_reserve() {
                Ok(place) => place,
                // A closed one is seen by whoever reads.
                Err(TrySendError::Full(()) | TrySendError::Closed(())) => return,
            };
            let messages = self.waiting.drain(..fitting(&self.waiting)).collect();
            frame.send(v1::ParticipantFrame { messages });
        }
    }

    /// Waits until [`Outgoing::flush`] can do something.
    pub(super) async fn writable(&self) {
        if self.waiting.is_empty() || self.held_until.is_some() || self.frames.reserve().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// How many messages go into the next frame: at least one.
fn fitting(messages: &[v1::ParticipantMessage]) -> usize {
    let mut bytes = 0;
    let more = messages.iter().take(MAX_FRAME_MESSAGES).take_while(|message| {
        let fits = bytes < FRAME_BYTES;
        bytes += message.encoded_len();
        fits
    });
    more.count()
}

/// Calls the coordinator. The hello is in `frames` already.
pub(super) async fn dial(
    channel: Channel,
    frames: mpsc::Receiver<v1::ParticipantFrame>,
) -> Result<Incoming, Status> {
    let mut client = ParticipantServiceClient::new(channel)
        .max_decoding_message_size(MAX_FRAME_BYTES)
        .max_encoding_message_size(MAX_FRAME_BYTES);
    match tokio::time::timeout(GREETING_TIMEOUT, client.attach(ReceiverStream::new(frames))).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_elapsed) => Err(Status::deadline_exceeded("the coordinator did not answer the call")),
    }
}

/// The messages of a frame, and the spans that they are part of.
pub(super) fn messages(
    frame: v1::CoordinatorFrame,
) -> Result<Vec<(FromCoordinator, Option<TraceParent>)>, String> {
    if frame.messages.len() > MAX_FRAME_MESSAGES {
        return Err(format!("the coordinator sent a frame of {} messages", frame.messages.len()));
    }
    let convert = |message: v1::CoordinatorMessage| {
        // One that means nothing is none: no message is refused for its trace.
        let trace = message.traceparent.parse().ok();
        Ok((from_wire(message)?, trace))
    };
    let converted: Result<_, WireError> = frame.messages.into_iter().map(convert).collect();
    converted.map_err(|error| format!("the coordinator sent a message that is not understood: {error}"))
}

#[cfg(test)]
mod tests {
    use lockstep_proto::{Bqual, Epoch, Gtrid, Xid};

    use super::*;

    fn report(branches: usize) -> ToCoordinator {
        let gtrid = Gtrid::new(Epoch::new(1).unwrap(), 1, [1; 10]);
        let xid = Xid { gtrid, bqual: Bqual::new(&"a".repeat(47).parse().unwrap(), 1) };
        ToCoordinator::Report { prepared: vec![xid; branches], oldest_held: None, complete: true, listing: 1 }
    }

    fn frames(mut receiver: mpsc::Receiver<v1::ParticipantFrame>) -> Vec<v1::ParticipantFrame> {
        std::iter::from_fn(|| receiver.try_recv().ok()).collect()
    }

    #[test]
    fn whatever_waits_goes_into_one_frame_of_at_most_1024_messages() {
        let (mut outgoing, receiver) = Outgoing::new();
        (0..1025).for_each(|_| outgoing.push(report(0), Urgency::Now).unwrap());
        outgoing.flush();
        let sizes: Vec<_> = frames(receiver).iter().map(|frame| frame.messages.len()).collect();
        assert_eq!(sizes, [1024, 1]);
    }

    #[test]
    fn a_frame_fits_into_what_a_peer_accepts() {
        let (mut outgoing, receiver) = Outgoing::new();
        (0..20).for_each(|_| outgoing.push(report(1024), Urgency::Now).unwrap());
        outgoing.flush();
        let frames = frames(receiver);
        assert!(frames.len() > 1 && frames.iter().all(|frame| frame.encoded_len() < MAX_FRAME_BYTES / 2));
        assert_eq!(frames.iter().map(|frame| frame.messages.len()).sum::<usize>(), 20);
    }

    #[test]
    fn a_coordinator_that_does_not_read_fills_no_memory() {
        let (mut outgoing, _unread) = Outgoing::new();
        for _ in 0..MAX_WAITING {
            outgoing.push(report(0), Urgency::Now).unwrap();
        }
        assert!(outgoing.push(report(0), Urgency::Now).is_err());
        // What the network has taken makes room.
        outgoing.flush();
        assert!(outgoing.push(report(0), Urgency::Now).is_ok());
    }

    #[test]
    fn what_nobody_waits_for_goes_with_others_or_after_a_while() {
        let (mut outgoing, mut receiver) = Outgoing::new();
        let mut sent = |outgoing: &mut Outgoing| {
            outgoing.flush();
            receiver.try_recv().map_or(0, |frame| frame.messages.len())
        };
        for _ in 1..MOST_TOGETHER {
            outgoing.push(report(0), Urgency::Together).unwrap();
            assert_eq!(sent(&mut outgoing), 0);
        }
        outgoing.push(report(0), Urgency::Together).unwrap();
        assert_eq!(sent(&mut outgoing), MOST_TOGETHER);

        for urgency in [Urgency::Together, Urgency::Now] {
            assert_eq!(sent(&mut outgoing), 0);
            outgoing.push(report(0), urgency).unwrap();
        }
        assert_eq!(sent(&mut outgoing), 2);

        outgoing.push(report(0), Urgency::Together).unwrap();
        let until = outgoing.held_until().expect("it is held");
        std::thread::sleep(until.saturating_duration_since(clock::now()));
        assert_eq!((sent(&mut outgoing), outgoing.held_until()), (1, None));
    }

    #[tokio::test]
    async fn what_is_held_is_not_writable() {
        let (mut outgoing, _frames) = Outgoing::new();
        outgoing.push(report(0), Urgency::Together).unwrap();
        assert!(futures::poll!(Box::pin(outgoing.writable())).is_pending());
        outgoing.release();
        outgoing.writable().await;
    }

    #[tokio::test]
    async fn a_full_stream_is_writable_again_when_a_frame_was_taken() {
        let (mut outgoing, mut receiver) = Outgoing::new();
        for _ in 0..=FRAMES {
            outgoing.push(report(0), Urgency::Now).unwrap();
            outgoing.flush();
        }
        assert!(futures::poll!(Box::pin(outgoing.writable())).is_pending());
        receiver.recv().await.unwrap();
        outgoing.writable().await;
        outgoing.flush();
        assert!(outgoing.waiting.is_empty());
    }
}
