//! Resource managers, and what their databases say, as `--json` prints it.

use lockstep_proto::v1;
use lockstep_proto::wire::WireError;
use serde::Serialize;

use super::Moment;

/// What `participants ls` and `participants show` show.
#[derive(Debug, Serialize)]
pub(in crate::operator) struct ParticipantList {
    pub as_of: Moment,
    pub participants: Vec<ParticipantDetail>,
}

/// A resource manager with everything that is known of it.
#[derive(Debug, Serialize)]
pub(in crate::operator) struct ParticipantDetail {
    pub resource_manager: String,
    /// Attached instances.
    pub instances: Vec<String>,
    pub identity: String,
    pub location: String,
    pub timeline: u32,
    /// Null before its first complete listing.
    pub floor: Option<String>,
    pub retired: bool,
    /// Null while an instance is attached.
    pub down_since: Option<Moment>,
    pub problem: String,
    /// Why its newest attach was refused; empty if it was not.
    pub refused: String,
    /// Where it is now, if that is why.
    pub refused_location: String,
    pub undelivered: u64,
    pub orphans: u64,
}

impl TryFrom<v1::ListParticipantsResponse> for ParticipantList {
    type Error = WireError;

    fn try_from(wire: v1::ListParticipantsResponse) -> Result<Self, WireError> {
        let participants = wire.participants.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Self { as_of: Moment::new(wire.now_ms, "now_ms")?, participants })
    }
}

impl TryFrom<v1::ParticipantDetail> for ParticipantDetail {
    type Error = WireError;

    fn try_from(wire: v1::ParticipantDetail) -> Result<Self, WireError> {
        Ok(Self {
            resource_manager: wire.resource_manager,
            instances: wire.instances,
            identity: wire.identity,
            location: wire.location,
            timeline: wire.timeline,
            floor: Some(wire.floor).filter(|floor| !floor.is_empty()),
            retired: wire.retired,
            down_since: Moment::maybe(wire.down_since_ms, "down_since_ms")?,
            problem: wire.problem,
            refused: wire.refused,
            refused_location: wire.refused_location,
            undelivered: wire.undelivered,
            orphans: wire.orphans,
        })
    }
}

/// What databases said.
#[derive(Debug, Serialize)]
pub(in crate::operator) struct Inspected {
    pub as_of: Moment,
    pub answers: Vec<DatabaseAnswer>,
}

/// What one resource manager's database said.
#[derive(Debug, Serialize)]
pub(in crate::operator) struct DatabaseAnswer {
    pub resource_manager: String,
    /// Why there is no answer; empty if there is one.
    pub error: String,
    pub took_ms: u64,
    pub branches: Vec<InspectedBranch>,
    pub blocked: Vec<BlockedSession>,
    /// Why nothing is known of blocked sessions; empty if it is.
    pub blocked_unknown: String,
}

/// A branch, as its database says.
#[derive(Debug, Serialize)]
pub(in crate::operator) struct InspectedBranch {
    pub cluster: String,
    pub gtrid: String,
    pub bqual: String,
    /// prepared, committed, fenced, hazard.
    pub state: String,
    /// Null if the database does not say.
    pub at: Option<Moment>,
    /// Why nobody answers for it; empty if somebody does.
    pub orphan: String,
    /// Another cluster's: nothing is ever done with it here.
    pub foreign: bool,
}

/// A session that waits for a prepared branch.
#[derive(Debug, Serialize)]
pub(in crate::operator) struct BlockedSession {
    pub session: u64,
    pub waiting_ms: u64,
    /// Null if the database does not say.
    pub statement_ms: Option<u64>,
    pub object: String,
    /// Null if the database does not say which.
    pub gtrid: Option<String>,
}

impl TryFrom<v1::InspectResponse> for Inspected {
    type Error = WireError;

    fn try_from(wire: v1::InspectResponse) -> Result<Self, WireError> {
        let answers = wire.answers.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Self { as_of: Moment::new(wire.now_ms, "now_ms")?, answers })
    }
}

impl TryFrom<v1::DatabaseAnswer> for DatabaseAnswer {
    type Error = WireError;

    fn try_from(wire: v1::DatabaseAnswer) -> Result<Self, WireError> {
        let branch = |wire: v1::InspectedBranch| {
            Ok(InspectedBranch {
                cluster: wire.cluster,
                gtrid: wire.gtrid,
                bqual: wire.bqual,
                state: wire.state,
                at: Moment::maybe(wire.at_ms, "at_ms")?,
                orphan: wire.orphan,
                foreign: wire.foreign,
            })
        };
        let blocked = |wire: v1::BlockedSession| BlockedSession {
            session: wire.session,
            waiting_ms: wire.waiting_ms,
            statement_ms: Some(wire.statement_ms).filter(|ms| *ms != 0),
            object: wire.object,
            gtrid: Some(wire.gtrid).filter(|gtrid| !gtrid.is_empty()),
        };
        Ok(Self {
            resource_manager: wire.resource_manager,
            error: wire.error,
            took_ms: wire.took_ms,
            branches: wire.branches.into_iter().map(branch).collect::<Result<_, WireError>>()?,
            blocked: wire.blocked.into_iter().map(blocked).collect(),
            blocked_unknown: wire.blocked_unknown,
        })
    }
}
