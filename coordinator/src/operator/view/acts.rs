//! What operators do and did, as `--json` prints it.

use lockstep_proto::v1;
use lockstep_proto::wire::WireError;
use serde::Serialize;

use super::{Moment, Situation, action_name};

/// What an action did, or would do.
#[derive(Debug, Serialize)]
pub(in crate::operator) struct ActView {
    pub target: String,
    pub situation: Option<Situation>,
    pub before: String,
    /// A sentence for each step.
    pub plan: Vec<String>,
    /// What `--confirm` has to name; empty if nothing.
    pub confirm: String,
    /// The number of its record; null in a dry run.
    pub audit_id: Option<u64>,
}

impl TryFrom<v1::ActResponse> for ActView {
    type Error = WireError;

    fn try_from(wire: v1::ActResponse) -> Result<Self, WireError> {
        Ok(Self {
            situation: Situation::maybe(wire.situation)?,
            target: wire.target,
            before: wire.before,
            plan: wire.plan,
            confirm: wire.confirm,
            audit_id: Some(wire.audit_id).filter(|id| *id != 0),
        })
    }
}

/// What `audit ls` shows.
#[derive(Debug, Serialize)]
pub(in crate::operator) struct AuditList {
    pub entries: Vec<AuditView>,
    /// There are more.
    pub truncated: bool,
}

/// One action on record.
#[derive(Debug, Serialize)]
pub(in crate::operator) struct AuditView {
    pub id: u64,
    pub at: Moment,
    /// As they said.
    pub who: String,
    pub action: String,
    pub subject: String,
    /// Null if it was not about a transaction.
    pub gtrid: Option<String>,
    pub reason: String,
    pub before: String,
    pub after: String,
}

impl TryFrom<v1::ListAuditResponse> for AuditList {
    type Error = WireError;

    fn try_from(wire: v1::ListAuditResponse) -> Result<Self, WireError> {
        let entries = wire.entries.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Self { entries, truncated: wire.truncated })
    }
}

impl TryFrom<v1::AuditEntry> for AuditView {
    type Error = WireError;

    fn try_from(wire: v1::AuditEntry) -> Result<Self, WireError> {
        Ok(Self {
            id: wire.id,
            at: Moment::new(wire.at_ms, "at_ms")?,
            who: wire.who,
            action: wire.action,
            subject: wire.subject,
            gtrid: Some(wire.gtrid).filter(|gtrid| !gtrid.is_empty()),
            reason: wire.reason,
            before: wire.before,
            after: wire.after,
        })
    }
}

/// One action, and whether it may be taken now.
#[derive(Debug, Serialize)]
pub(in crate::operator) struct AdviceView {
    pub action: &'static str,
    pub permitted: bool,
    /// Why not.
    pub why: String,
    pub instead: String,
}

impl TryFrom<v1::Advice> for AdviceView {
    type Error = WireError;

    fn try_from(wire: v1::Advice) -> Result<Self, WireError> {
        Ok(Self {
            action: action_name(wire.action)?,
            permitted: wire.permitted,
            why: wire.why,
            instead: wire.instead,
        })
    }
}
