//! The handshake: who attaches, does it fit, may it be served.
//!
//! Each refusal is a status of its own, so that a participant can say what is wrong instead of trying for ever.

use std::time::Duration;

use lockstep_proto::museum::mutated;
use lockstep_proto::wire::{self, WireError};
use lockstep_proto::{
    ClusterId, Epoch, InstanceId, LogPosition, Positions, ResourceManagerId, ResourceManagerName, limits, v1,
};

use crate::decision_log::{AppendError, KnownResourceManager, ReadError};
use crate::engine::clock::unix_ms;
use crate::engine::handle::Engine;

use super::registry::{Refused, Registry};

/// How far a participant's clock may be off. Nothing safe depends on clocks, but evidence is kept by the participant's and
/// records by the coordinator's: further apart, an operator would look at nonsense.
pub const LARGEST_CLOCK_SKEW: Duration = Duration::from_secs(10 * 60);

/// Why a participant is not served.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Its first frame is not a hello, or malformed.
    #[error("the first frame has to be a hello alone: {0}")]
    NotAHello(String),
    /// A field of it means nothing.
    #[error(transparent)]
    Malformed(#[from] WireError),
    /// It speaks another version.
    #[error("the participant speaks protocol version {0}, this coordinator speaks 1: update the older one")]
    ProtocolVersion(u32),
    /// It belongs to another decision log.
    #[error(
        "the resource manager {name} belongs to cluster {theirs}, this is cluster {ours}: \
         attach to the coordinator it belongs to, or give this one its data directory"
    )]
    ForeignCluster {
        /// Its name.
        name: ResourceManagerName,
        /// Its cluster.
        theirs: ClusterId,
        /// This one.
        ours: ClusterId,
    },
    /// Its clock is off.
    #[error(
        "the participant's clock is {off_s} s away from the coordinator's, and 600 s are allowed: set it right"
    )]
    ClockSkew {
        /// By so many seconds.
        off_s: u64,
    },
    /// Two databases under one name.
    #[error(
        "the name {name} belongs to another database (identity {known}, this one has {theirs}): \
         give this resource manager a name of its own"
    )]
    Identity {
        /// The name.
        name: ResourceManagerName,
        /// Whose it is.
        known: ResourceManagerId,
        /// Who came.
        theirs: ResourceManagerId,
    },
    /// The database was moved or copied.
    #[error(
        "{name} was at {known:?} and is now at {theirs:?}: a copy and its original must not both take part. \
         If it was moved, and nothing is left where it was: `lockstep participants rebind {name} --dry-run`; if this is a copy, \
         attach it under a name of its own"
    )]
    Location {
        /// Its name.
        name: ResourceManagerName,
        /// Where it was.
        known: String,
        /// Where it is.
        theirs: String,
    },
    /// An operator has said that it is gone for good (P28).
    #[error(
        "{0} was retired: what was not delivered to it is on record as heuristic. A database takes part under a name that was never \
         retired"
    )]
    Retired(ResourceManagerName),
    /// An old primary that was left behind by a failover.
    #[error(
        "{name} is on timeline {theirs}, and timeline {known} was seen: this is an old primary; use the promoted one"
    )]
    Timeline {
        /// Its name.
        name: ResourceManagerName,
        /// The highest seen.
        known: u32,
        /// Its own.
        theirs: u32,
    },
    /// It could not be remembered.
    #[error("the resource manager could not be written to the decision log: {0}")]
    Log(#[from] AppendError),
    /// The log could not be asked.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A hello whose fields are checked.
#[derive(Debug, Clone)]
pub struct Hello {
    /// What it serves.
    pub resource_manager: ResourceManagerName,
    /// Which database that is.
    pub identity: ResourceManagerId,
    /// Which process it is.
    pub instance: InstanceId,
    /// Which cluster it belongs to, once it has been attached.
    pub cluster: Option<ClusterId>,
    /// The newest places in a decision log that it has seen.
    pub seen: Positions,
    /// Where it lives, if that matters; else empty.
    pub location: String,
    /// PostgreSQL's timeline, 0 elsewhere.
    pub timeline: u32,
    /// Its clock, in milliseconds since 1970.
    pub clock_ms: u64,
}

impl Hello {
    /// From the first frame.
    ///
    /// # Errors
    /// Where it is no hello, of another version, or malformed.
    pub fn from_frame(frame: v1::ParticipantFrame) -> Result<Self, AttachError> {
        let mut messages = frame.messages;
        let (Some(first), true) = (messages.pop(), messages.is_empty()) else {
            return Err(AttachError::NotAHello("it carries no message, or several".into()));
        };
        let Some(v1::participant_message::Kind::Hello(hello)) = first.kind else {
            return Err(AttachError::NotAHello("it carries another message".into()));
        };
        if hello.protocol_version != limits::PROTOCOL_VERSION {
            return Err(AttachError::ProtocolVersion(hello.protocol_version));
        }
        let location_fits = hello.location.len() <= limits::MAX_DETAIL_BYTES;
        if !location_fits {
            return Err(WireError::Limit { field: "location", why: "at most 1,024 bytes" }.into());
        }
        let cluster =
            if hello.cluster.is_empty() { None } else { Some(hello.cluster.parse().map_err(WireError::Id)?) };
        Ok(Self {
            resource_manager: hello.resource_manager.parse().map_err(WireError::Id)?,
            identity: ResourceManagerId::from_bytes(wire::bytes_16(&hello.identity, "identity")?),
            instance: InstanceId::from_bytes(wire::bytes_16(&hello.instance, "instance")?),
            cluster,
            seen: positions(hello.seen, hello.seen_of_epochs)?,
            location: hello.location,
            timeline: hello.timeline,
            clock_ms: hello.clock_ms,
        })
    }
}

/// What was seen of each epoch. Participants from before there were several say what they have seen of the newest one alone.
fn positions(
    newest: Option<v1::LogPosition>,
    of_epochs: Vec<v1::LogPosition>,
) -> Result<Positions, WireError> {
    if of_epochs.len() > limits::MAX_SEEN_EPOCHS {
        return Err(WireError::Limit { field: "seen_of_epochs", why: "at most 1,024" });
    }
    newest.into_iter().chain(of_epochs).map(LogPosition::try_from).collect()
}

/// Whether this participant may be served. Its identity is durable in the log when this returns (P21). The epochs of which it need
/// not keep what it has seen.
///
/// # Errors
/// Why not.
pub async fn admit(hello: &Hello, engine: &Engine, registry: &Registry) -> Result<Vec<Epoch>, AttachError> {
    let name = hello.resource_manager.clone();
    let ours = engine.log().cluster();
    if let Some(theirs) = hello.cluster.filter(|theirs| *theirs != ours) {
        return Err(AttachError::ForeignCluster { name, theirs, ours });
    }
    let off = Duration::from_millis(hello.clock_ms.abs_diff(unix_ms()));
    if off > LARGEST_CLOCK_SKEW {
        return Err(AttachError::ClockSkew { off_s: off.as_secs() });
    }
    // Another node on the log may have met it meanwhile, or retired it.
    registry.learn(engine.log().resource_managers().await?);
    if registry.is_retired(hello.identity) {
        return Err(AttachError::Retired(name));
    }
    let known = registry.known(&name);
    let next = compare(hello, known.as_ref()).inspect_err(|error| {
        let location = match error {
            AttachError::Location { theirs, .. } => Some(theirs.clone()),
            AttachError::NotAHello(_)
            | AttachError::Malformed(_)
            | AttachError::ProtocolVersion(_)
            | AttachError::ForeignCluster { .. }
            | AttachError::ClockSkew { .. }
            | AttachError::Identity { .. }
            | AttachError::Retired(_)
            | AttachError::Timeline { .. }
            | AttachError::Log(_)
            | AttachError::Read(_) => None,
        };
        registry.set_refused(&name, Refused { why: error.to_string(), location });
    })?;
    if known.as_ref() != Some(&next) {
        engine.log().remember(&next).await?;
        registry.remember(next);
    }
    let mut lacking = Vec::new();
    for seen in hello.seen.iter() {
        if !engine.log().reaches(*seen).await? {
            lacking.push(*seen);
        }
    }
    if !lacking.is_empty() {
        let problem = "it has seen decisions that this decision log does not have: the log was restored from a backup. Nothing \
             is presumed and nothing is begun any more: stop every coordinator and run `lockstep restore`";
        tracing::error!(resource_manager = %name, ?lacking, "{problem}");
        engine.presume_nothing();
        engine.log().note_behind().await?;
        registry.set_problem(&name, problem.to_owned());
        // What is behind may be put back once more: all that was seen has to be told then, too.
        return Ok(Vec::new());
    }
    Ok(settled(&hello.seen, |epoch| engine.log().has_all_of(epoch)))
}

/// The epochs that are all in any log that has the own one ([`lockstep_proto::positions`]).
fn settled(seen: &Positions, has_all_of: impl Fn(Epoch) -> bool) -> Vec<Epoch> {
    seen.iter().map(|seen| seen.epoch).filter(|epoch| has_all_of(*epoch)).collect()
}

/// The resource manager as it is to be known from now on, if it is the one that the name belongs to (P21).
///
/// # Errors
/// Why it is not.
pub fn compare(
    hello: &Hello,
    known: Option<&KnownResourceManager>,
) -> Result<KnownResourceManager, AttachError> {
    let name = hello.resource_manager.clone();
    let next = |floor| KnownResourceManager {
        name: name.clone(),
        identity: hello.identity,
        location: hello.location.clone(),
        timeline: hello.timeline,
        floor,
        retired: false,
    };
    let Some(known) = known else { return Ok(next(None)) };
    if known.retired {
        return Err(AttachError::Retired(name));
    }
    if known.identity != hello.identity && !mutated("P21-any-database-of-that-name") {
        return Err(AttachError::Identity { name, known: known.identity, theirs: hello.identity });
    }
    if !known.location.is_empty() && known.location != hello.location {
        let (known, theirs) = (known.location.clone(), hello.location.clone());
        return Err(AttachError::Location { name, known, theirs });
    }
    if hello.timeline < known.timeline && !mutated("P21-an-old-primary-is-served") {
        return Err(AttachError::Timeline { name, known: known.timeline, theirs: hello.timeline });
    }
    Ok(next(known.floor))
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Incarnation;

    use super::*;

    fn position(epoch: u32, sequence: u64) -> LogPosition {
        let incarnation = Incarnation::from_bytes([7; 16]);
        LogPosition { epoch: Epoch::new(epoch).unwrap(), incarnation, sequence }
    }

    fn hello(newest: Option<(u32, u64)>, of_epochs: &[(u32, u64)]) -> Result<Positions, WireError> {
        let wire = |(epoch, sequence): (u32, u64)| v1::LogPosition::from(&position(epoch, sequence));
        positions(newest.map(wire), of_epochs.iter().copied().map(wire).collect())
    }

    #[test]
    fn a_hello_of_the_old_form_tells_of_one_epoch_and_one_of_the_new_form_of_each() {
        assert_eq!(hello(None, &[]), Ok(Positions::new()));
        assert_eq!(hello(Some((2, 7)), &[]), Ok([position(2, 7)].into_iter().collect()));
        let both: Positions = [position(1, 900), position(2, 7)].into_iter().collect();
        assert_eq!(hello(Some((2, 7)), &[(2, 7), (1, 900)]), Ok(both));
        let many: Vec<_> = (1..=1025).map(|epoch| (epoch, 1)).collect();
        assert!(hello(None, &many[1..]).is_ok() && hello(None, &many).is_err());
    }

    #[test]
    fn what_was_open_when_the_own_epoch_began_and_what_came_later_is_not_settled() {
        let seen: Positions = (1..=6).map(|epoch| position(epoch, 1)).collect();
        // The own one is 5, and 2 was open when it began.
        let settled = settled(&seen, |epoch| epoch.get() < 5 && epoch.get() != 2);
        assert_eq!(settled, [1, 3, 4].map(|epoch| Epoch::new(epoch).unwrap()));
    }
}
