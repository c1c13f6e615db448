//! Between the session's messages and the wire. A message that does not convert is the sender's fault and ends the session.

use std::time::Duration;

use lockstep_proto::limits::{MAX_DETAIL_BYTES, MAX_SEEN_EPOCHS, PROTOCOL_VERSION, cut};
use lockstep_proto::v1;
use lockstep_proto::v1::coordinator_message::Kind;
use lockstep_proto::v1::participant_message::Kind as ToKind;
use lockstep_proto::wire::{WireError, known_enum, required, xid};
use lockstep_proto::{Epoch, LogPosition, Xid};

use crate::branch::{Applied, Decision, Refusal, Vote};
use crate::clock;
use crate::nodes;
use crate::resource::{Blocked, Fate, Found, Inspected, Inspection};
use crate::session::message::{BranchAnswer, FromCoordinator, Hello, ToCoordinator, Welcome};

pub(super) fn to_wire(message: ToCoordinator) -> v1::ParticipantMessage {
    let kind = match message {
        ToCoordinator::Hello(hello) => ToKind::Hello(hello_to_wire(hello)),
        ToCoordinator::Enlist(xid) => ToKind::Enlist(v1::Enlist { xid: Some((&xid).into()) }),
        ToCoordinator::Vote(xid, vote) => {
            let (vote, detail) = match vote {
                Vote::Commit => (v1::VoteKind::Commit, String::new()),
                Vote::Rollback(why) => (v1::VoteKind::Rollback, why),
                Vote::ReadOnly => (v1::VoteKind::ReadOnly, String::new()),
                Vote::Hazard(why) => (v1::VoteKind::Hazard, why),
            };
            ToKind::Vote(v1::Vote { xid: Some((&xid).into()), vote: vote.into(), detail: shortened(&detail) })
        }
        ToCoordinator::Acknowledge(xid, applied) => {
            let (applied, detail) = match applied {
                Applied::Committed => (v1::Applied::Committed, String::new()),
                Applied::RolledBack => (v1::Applied::RolledBack, String::new()),
                Applied::Hazard => {
                    (v1::Applied::Hazard, "its journal does not fit its store any more".to_owned())
                }
                Applied::NotYet(why) => (v1::Applied::NotYet, why),
            };
            let (xid, applied) = (Some((&xid).into()), applied.into());
            ToKind::Acknowledge(v1::Acknowledge { xid, applied, detail: shortened(&detail) })
        }
        ToCoordinator::Report { prepared, oldest_held, complete, listing } => ToKind::Report(v1::Report {
            prepared: prepared.iter().map(Into::into).collect(),
            oldest_held: oldest_held.map(|gtrid| gtrid.to_string()).unwrap_or_default(),
            complete,
            listing,
        }),
        ToCoordinator::Reconcile(rows) => ToKind::Reconcile(v1::Reconcile {
            rows: rows.iter().map(|(xid, fate)| evidence(xid, *fate)).collect(),
        }),
        ToCoordinator::Inspection(question, answer) => ToKind::Inspection(inspection(question, answer)),
    };
    v1::ParticipantMessage { kind: Some(kind) }
}

fn inspection(question: u64, answer: Result<Inspection, String>) -> v1::Inspection {
    let inspection = match answer {
        Ok(inspection) => inspection,
        Err(why) => {
            return v1::Inspection { question, error: shortened(&why), ..v1::Inspection::default() };
        }
    };
    let branch = |inspected: Inspected| {
        let found = match inspected.found {
            Found::Prepared => v1::BranchFound::Prepared,
            Found::Ended(Fate::Committed) => v1::BranchFound::Committed,
            Found::Ended(Fate::RolledBack) => v1::BranchFound::Fenced,
            Found::Ended(Fate::Hazard) => v1::BranchFound::Hazard,
        };
        v1::inspection::Branch {
            cluster: inspected.branch.cluster.to_string(),
            xid: Some((&inspected.branch.xid).into()),
            found: found.into(),
            at_ms: inspected.at_ms,
        }
    };
    let waits = |blocked: Blocked| v1::inspection::Blocked {
        session: blocked.session,
        waiting_ms: blocked.waiting_ms,
        statement_ms: blocked.statement_ms,
        object: shortened(&blocked.object),
        held_by: blocked.held_by.map(|branch| (&branch.xid).into()),
    };
    let (blocked, blocked_unknown) = match inspection.blocked {
        Ok(blocked) => (blocked, String::new()),
        Err(why) => (Vec::new(), shortened(&why)),
    };
    v1::Inspection {
        question,
        error: String::new(),
        branches: inspection.branches.into_iter().map(branch).collect(),
        blocked: blocked.into_iter().map(waits).collect(),
        blocked_unknown,
    }
}

fn evidence(xid: &Xid, fate: Fate) -> v1::reconcile::Row {
    let kind = match fate {
        Fate::Committed => v1::EvidenceKind::Branch,
        Fate::RolledBack => v1::EvidenceKind::Fence,
        Fate::Hazard => v1::EvidenceKind::Hazard,
    };
    v1::reconcile::Row { xid: Some(xid.into()), kind: kind.into() }
}

fn hello_to_wire(hello: Hello) -> v1::Hello {
    v1::Hello {
        protocol_version: PROTOCOL_VERSION,
        resource_manager: hello.name.to_string(),
        identity: hello.identity.as_bytes().to_vec(),
        instance: hello.instance.as_bytes().to_vec(),
        cluster: hello.cluster.map(|cluster| cluster.to_string()).unwrap_or_default(),
        seen: hello.seen.newest().as_ref().map(Into::into),
        location: hello.location,
        timeline: hello.timeline,
        clock_ms: clock::unix_ms(),
        sdk_version: env!("CARGO_PKG_VERSION").to_owned(),
        seen_of_epochs: hello.seen.iter().rev().take(MAX_SEEN_EPOCHS).map(Into::into).collect(),
    }
}

fn shortened(text: &str) -> String {
    cut(text, MAX_DETAIL_BYTES).to_owned()
}

pub(super) fn from_wire(message: v1::CoordinatorMessage) -> Result<FromCoordinator, WireError> {
    Ok(match required(message.kind, "kind")? {
        Kind::Welcome(wire) => FromCoordinator::Welcome(welcome(wire)?),
        Kind::Enlisted(wire) => {
            FromCoordinator::Enlisted(xid(wire.xid)?, Duration::from_millis(wire.remaining_ms))
        }
        Kind::EnlistRefused(wire) => FromCoordinator::EnlistRefused(xid(wire.xid.clone())?, refusal(wire)?),
        Kind::Prepare(wire) => FromCoordinator::Prepare(xid(wire.xid)?, position(wire.position)?),
        Kind::Decide(wire) => {
            let decision = match known_enum::<v1::Decision>(wire.decision, "decision")? {
                v1::Decision::Commit => Decision::Commit,
                v1::Decision::Rollback => Decision::Rollback,
                v1::Decision::Unspecified => unreachable!("not among the known ones"),
            };
            FromCoordinator::Decide(xid(wire.xid)?, decision, position(wire.position)?)
        }
        Kind::CommitOnePhase(wire) => {
            FromCoordinator::CommitOnePhase(xid(wire.xid)?, position(wire.position)?)
        }
        Kind::ReportAnswer(wire) => {
            let answers = wire.answers.into_iter().map(branch_answer).collect::<Result<_, _>>()?;
            FromCoordinator::ReportAnswer(answers, position(wire.position)?)
        }
        Kind::ReconcileAnswer(wire) => {
            let forget = wire.forget.into_iter().map(Xid::try_from).collect::<Result<_, _>>()?;
            FromCoordinator::ReconcileAnswer(forget)
        }
        Kind::Refused(wire) => FromCoordinator::Refused(xid(wire.xid)?, wire.detail),
        Kind::Sealed(wire) => FromCoordinator::Sealed(wire.epochs),
        Kind::Nodes(wire) => FromCoordinator::Nodes(nodes::from_wire(wire.nodes)?),
        Kind::Drain(v1::Drain {}) => FromCoordinator::Drain,
        Kind::Inspect(wire) => {
            let gtrid = if wire.gtrid.is_empty() { None } else { Some(wire.gtrid.parse()?) };
            FromCoordinator::Inspect(wire.question, wire.cluster.parse()?, gtrid)
        }
    })
}

fn welcome(wire: v1::Welcome) -> Result<Welcome, WireError> {
    Ok(Welcome {
        protocol_version: wire.protocol_version,
        cluster: wire.cluster.parse()?,
        position: position(wire.position)?,
        retention: Duration::from_millis(wire.retention_ms),
        sealed_below: wire.sealed_below,
        newest_epoch: wire.newest_epoch,
        report_interval: Duration::from_millis(wire.report_interval_ms),
        settled: wire.settled.into_iter().filter_map(Epoch::new).collect(),
    })
}

fn refusal(wire: v1::EnlistRefused) -> Result<Refusal, WireError> {
    let rollback_only = match known_enum::<v1::EnlistRefusal>(wire.reason, "reason")? {
        v1::EnlistRefusal::RollbackOnly => true,
        v1::EnlistRefusal::NotActive
        | v1::EnlistRefusal::CommitRequested
        | v1::EnlistRefusal::TooManyBranches
        | v1::EnlistRefusal::BadBranch => false,
        v1::EnlistRefusal::Unspecified => unreachable!("not among the known ones"),
    };
    Ok(Refusal { rollback_only, detail: wire.detail })
}

fn branch_answer(wire: v1::report_answer::Answer) -> Result<(Xid, BranchAnswer), WireError> {
    let answer = match known_enum::<v1::BranchAnswer>(wire.answer, "answer")? {
        v1::BranchAnswer::Commit => BranchAnswer::Commit,
        v1::BranchAnswer::Rollback => BranchAnswer::Rollback,
        v1::BranchAnswer::StillRunning => BranchAnswer::StillRunning,
        v1::BranchAnswer::Unknown => BranchAnswer::Unknown(wire.detail),
        v1::BranchAnswer::Unspecified => unreachable!("not among the known ones"),
    };
    Ok((xid(wire.xid)?, answer))
}

fn position(wire: Option<v1::LogPosition>) -> Result<LogPosition, WireError> {
    required(wire, "position")?.try_into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::fuzz::{config, near};

    proptest! {
        #![proptest_config(config())]

        /// Whatever bytes come as a frame: they are refused, or each message means something.
        #[test]
        fn fuzz_frames_of_a_coordinator(bytes in near("frames-of-a-coordinator")) {
            let Ok(frame) = v1::CoordinatorFrame::decode(&*bytes) else { return Ok(()) };
            for message in frame.messages {
                if let Ok(FromCoordinator::Welcome(welcome)) = from_wire(message) {
                    let text = welcome.cluster.to_string();
                    prop_assert_eq!(text.parse(), Ok(welcome.cluster));
                }
            }
        }
    }
}
