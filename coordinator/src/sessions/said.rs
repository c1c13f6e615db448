//! From the wire: what a participant says, once it is attached. A message that does not convert is the sender's fault and ends the session.

use lockstep_proto::wire::{self, WireError};
use lockstep_proto::{Gtrid, ResourceManagerName, Xid, limits, v1};

use super::session::SessionEnd;
use crate::engine::input::Acknowledgement;
use crate::protocol::event::{Applied, Vote};

/// What a participant says.
#[derive(Debug)]
pub(super) enum Said {
    Enlist(Xid),
    Vote(Xid, Vote),
    Acknowledge(Xid, Acknowledgement),
    Report(Report),
    Reconcile(Vec<(Xid, Applied)>),
    Inspection(v1::Inspection),
}

/// A part of a listing of prepared branches.
#[derive(Debug)]
pub(super) struct Report {
    pub listing: u64,
    pub prepared: Vec<Xid>,
    /// For the last part of a listing: the oldest transaction that the resource manager holds anything of, if any.
    pub complete: Option<Option<Gtrid>>,
}

/// What this means in a session of this resource manager.
pub(super) fn from_wire(
    kind: v1::participant_message::Kind,
    own: &ResourceManagerName,
) -> Result<Said, SessionEnd> {
    use v1::participant_message::Kind;
    Ok(match kind {
        Kind::Hello(_) => return Err(SessionEnd::SecondHello),
        Kind::Enlist(enlist) => Said::Enlist(wire::xid(enlist.xid)?),
        Kind::Vote(message) => {
            let vote = vote(&message)?;
            Said::Vote(wire::xid(message.xid)?, vote)
        }
        Kind::Acknowledge(message) => {
            let acknowledgement = acknowledgement(&message)?;
            Said::Acknowledge(wire::xid(message.xid)?, acknowledgement)
        }
        Kind::Report(report) => Said::Report(listing(report, own)?),
        Kind::Reconcile(reconcile) => {
            let rows = reconcile.rows.into_iter().map(evidence_row).collect::<Result<Vec<_>, _>>()?;
            are_own(rows.iter().map(|(xid, _)| xid), own)?;
            Said::Reconcile(rows)
        }
        Kind::Inspection(inspection) => Said::Inspection(inspection),
    })
}

fn vote(message: &v1::Vote) -> Result<Vote, WireError> {
    let why = || limits::cut(&message.detail, limits::MAX_DETAIL_BYTES).to_owned();
    Ok(match wire::known_enum::<v1::VoteKind>(message.vote, "vote")? {
        v1::VoteKind::Commit => Vote::Commit,
        v1::VoteKind::ReadOnly => Vote::ReadOnly,
        v1::VoteKind::Rollback => Vote::Rollback(why()),
        v1::VoteKind::Hazard => Vote::Hazard(why()),
        v1::VoteKind::Unspecified => unreachable!("known_enum refuses it"),
    })
}

fn acknowledgement(message: &v1::Acknowledge) -> Result<Acknowledgement, WireError> {
    Ok(match wire::known_enum::<v1::Applied>(message.applied, "applied")? {
        v1::Applied::Committed => Acknowledgement::Ended(Applied::Committed),
        v1::Applied::RolledBack => Acknowledgement::Ended(Applied::RolledBack),
        v1::Applied::Hazard => Acknowledgement::Ended(Applied::Hazard),
        v1::Applied::NotYet => {
            Acknowledgement::NotYet(limits::cut(&message.detail, limits::MAX_DETAIL_BYTES).to_owned())
        }
        v1::Applied::Unspecified => unreachable!("known_enum refuses it"),
    })
}

fn listing(report: v1::Report, own: &ResourceManagerName) -> Result<Report, WireError> {
    let prepared = report.prepared.into_iter().map(Xid::try_from).collect::<Result<Vec<_>, _>>()?;
    let oldest = if report.oldest_held.is_empty() { None } else { Some(wire::gtrid(&report.oldest_held)?) };
    are_own(prepared.iter(), own)?;
    Ok(Report { listing: report.listing, prepared, complete: report.complete.then_some(oldest) })
}

/// The branch, and how the row says that it ended.
fn evidence_row(row: v1::reconcile::Row) -> Result<(Xid, Applied), WireError> {
    let applied = match wire::known_enum::<v1::EvidenceKind>(row.kind, "kind")? {
        v1::EvidenceKind::Branch => Applied::Committed,
        v1::EvidenceKind::Fence => Applied::RolledBack,
        v1::EvidenceKind::Hazard => Applied::Hazard,
        v1::EvidenceKind::Unspecified => unreachable!("known_enum refuses it"),
    };
    Ok((wire::xid(row.xid)?, applied))
}

/// A participant asks only about its own branches, and about so many at once.
fn are_own<'a>(
    mut xids: impl ExactSizeIterator<Item = &'a Xid>,
    own: &ResourceManagerName,
) -> Result<(), WireError> {
    if xids.len() > limits::MAX_REPORT_ENTRIES {
        return Err(WireError::Limit { field: "xids", why: "at most 1,024" });
    }
    if !xids.all(|xid| xid.bqual.resource_manager_str() == own.as_str()) {
        return Err(WireError::Limit { field: "xid", why: "it names the session's resource manager" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lockstep_proto::v1::ParticipantFrame;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::fuzz::{config, near};
    use crate::sessions::attach::Hello;

    proptest! {
        #![proptest_config(config())]

        /// Whatever bytes come as a frame: they are refused, or each message means something that is within the limits.
        #[test]
        fn fuzz_frames_of_a_participant(bytes in near("frames-of-a-participant")) {
            let Ok(frame) = ParticipantFrame::decode(&*bytes) else { return Ok(()) };
            let own: ResourceManagerName = "orders-db".parse().unwrap();
            if let Ok(hello) = Hello::from_frame(frame.clone()) {
                prop_assert!(hello.location.len() <= limits::MAX_DETAIL_BYTES);
            }
            for kind in frame.messages.into_iter().filter_map(|message| message.kind) {
                match from_wire(kind, &own) {
                    Ok(Said::Vote(_, Vote::Rollback(why) | Vote::Hazard(why))) => {
                        prop_assert!(why.len() <= limits::MAX_DETAIL_BYTES);
                    }
                    Ok(Said::Report(report)) => {
                        let is_own = |xid: &Xid| xid.bqual.resource_manager() == own;
                        prop_assert!(report.prepared.iter().all(is_own));
                    }
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }
}
