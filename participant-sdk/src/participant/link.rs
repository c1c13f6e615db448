//! The stream to the coordinator: down, being made, up, or ending; and how long to wait before it is made again.

use std::time::{Duration, Instant};

use lockstep_proto::v1;
use tonic::Status;

use super::stream::{Incoming, Outgoing, Overflow, Urgency};
use crate::clock;
use crate::session::Closing;
use crate::session::message::ToCoordinator;
use crate::status::{is_transient, sentence};

/// Waits between attempts to attach. The longest is what a participant may come late after a long outage.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// After a refusal that waiting does not mend: someone has to change something first.
const WAIT_AFTER_REFUSAL: Duration = Duration::from_secs(30);
/// A session that has lasted so long was a good one: the next attempt after it is a first one.
const GOOD_SESSION: Duration = Duration::from_secs(1);
/// How long a coordinator may take to end its half of the stream when we have ended ours.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Where the stream is.
#[derive(Debug)]
pub(super) enum Link {
    /// Down until then.
    Waiting(Instant),
    /// The store is being attached to.
    Store,
    /// The coordinator is being called.
    Dialling(Outgoing),
    /// Up.
    Up(Up),
    /// Our last words are said, and the coordinator has still to hear them.
    Ending(Box<Incoming>),
    /// Never again.
    Closed,
}

/// A stream that is up.
#[derive(Debug)]
pub(super) struct Up {
    outgoing: Outgoing,
    incoming: Box<Incoming>,
    /// By when the greeting has to be over, until it is.
    pub(super) welcome_by: Option<Instant>,
    since: Instant,
}

impl Link {
    /// The coordinator has answered the call, and has to welcome us by then.
    pub(super) fn answered(&mut self, incoming: Incoming, welcome_by: Instant) {
        let Self::Dialling(outgoing) = std::mem::replace(self, Self::Closed) else {
            unreachable!("only a call is answered")
        };
        let (incoming, since) = (Box::new(incoming), clock::now());
        *self = Self::Up(Up { outgoing, incoming, welcome_by: Some(welcome_by), since });
    }

    fn outgoing(&mut self) -> Option<&mut Outgoing> {
        match self {
            Self::Dialling(outgoing) | Self::Up(Up { outgoing, .. }) => Some(outgoing),
            Self::Waiting(_) | Self::Store | Self::Ending(_) | Self::Closed => None,
        }
    }

    /// Puts a message to what waits to be sent. Without a stream it is dropped with the session that it belonged to.
    pub(super) fn push(&mut self, message: ToCoordinator, urgency: Urgency) -> Result<(), Overflow> {
        self.outgoing().map_or(Ok(()), |outgoing| outgoing.push(message, urgency))
    }

    /// Sends what waits and is not held, as far as there is room.
    pub(super) fn write(&mut self) {
        if let Some(outgoing) = self.outgoing() {
            outgoing.flush();
        }
    }

    /// Waits for the next frame, unless `reads` is false, or (`None`) until more can be written.
    pub(super) async fn next(&mut self, reads: bool) -> Option<Result<Option<v1::CoordinatorFrame>, Status>> {
        match self {
            Self::Up(Up { outgoing, incoming, .. }) => tokio::select! {
                frame = incoming.message(), if reads => Some(frame),
                () = outgoing.writable() => None,
            },
            Self::Dialling(outgoing) => {
                outgoing.writable().await;
                None
            }
            Self::Waiting(_) | Self::Store | Self::Ending(_) | Self::Closed => std::future::pending().await,
        }
    }

    /// When something is due here.
    pub(super) fn wake(&self) -> Option<Instant> {
        match self {
            Self::Waiting(until) => Some(*until),
            Self::Up(up) => up.welcome_by.into_iter().chain(up.outgoing.held_until()).min(),
            Self::Store | Self::Dialling(_) | Self::Ending(_) | Self::Closed => None,
        }
    }

    /// Ends our half of the stream, behind everything that is to be said.
    pub(super) fn end(&mut self) {
        if let Some(outgoing) = self.outgoing() {
            outgoing.release();
            outgoing.flush();
        }
        *self = match std::mem::replace(self, Self::Closed) {
            Self::Up(Up { incoming, .. }) | Self::Ending(incoming) => Self::Ending(incoming),
            Self::Waiting(_) | Self::Store | Self::Dialling(_) | Self::Closed => Self::Closed,
        };
    }

    /// Waits until the coordinator has ended its half of the stream too: dropped before, what was sent last might be lost.
    pub(super) async fn hear_out(self) {
        if let Self::Ending(mut incoming) = self {
            let end = async { while let Ok(Some(_)) = incoming.message().await {} };
            // A coordinator that does not end it will notice later.
            let _elapsed = tokio::time::timeout(LAST_WORDS, end).await;
        }
    }
}

/// Attempts that failed, one after the other.
#[derive(Debug, Default)]
pub(super) struct Attempts(u32);

impl Attempts {
    /// Plans the next attempt after this one has failed.
    pub(super) fn wait(&mut self, link: &Link, why: &Closing) -> Duration {
        if let Link::Up(up) = link
            && clock::now().saturating_duration_since(up.since) >= GOOD_SESSION
        {
            self.0 = 0;
        }
        let wait = match why {
            Closing::Refused(_) => WAIT_AFTER_REFUSAL,
            Closing::Broken(_) | Closing::Detached => clock::backoff(self.0, FIRST_WAIT, LONGEST_WAIT),
        };
        self.0 = self.0.saturating_add(1);
        wait
    }
}

/// Whether a new attempt may do better than the one that ended with this status.
pub(super) fn judged(status: &Status) -> Closing {
    if is_transient(status) { Closing::Broken(sentence(status)) } else { Closing::Refused(sentence(status)) }
}
