//! How records are written into rows, and what is believed when they are read.
//!
//! A record is a frame: one byte of format version, a CRC-32C, the body in protobuf. The checksum also covers the kind of
//! the record and the row's key, so that a record that was copied into another row, or into another column, is as
//! damaged as one with a flipped bit. Numbers (format versions, tags, values of kinds and outcomes) are never reused.
//!
//! Most rows are commits of a few branches, so those are compact: a bqual is its resource manager's name and 8 bytes,
//! and an end says nothing about a branch that did what the decision says. Decoding never panics, whatever the bytes.

use std::collections::BTreeMap;

use lockstep_proto::limits::MAX_BRANCHES;
use lockstep_proto::{
    Bqual, ClusterId, Gtrid, Incarnation, ResourceManagerId, ResourceManagerName, TraceParent,
};
use prost::Message;

use crate::decision_log::KnownResourceManager;
use crate::decision_log::audit::{Effect, Operation};
use crate::protocol::outcome::{BranchEnd, Heuristic, Outcome};
use crate::protocol::record::{About, DecisionKind, DecisionRecord, EndRecord};

/// The frame's version. A change of any body below that an older version would misread takes the next number.
const FORMAT: u8 = 1;
/// Bytes of a frame before its body: the version, and the checksum (big-endian).
const HEADER: usize = 5;

/// Why a record is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RowError {
    /// Too short to be a frame.
    #[error("it is too short to be a record")]
    Short,
    /// Written by a newer version.
    #[error("it has record format {0}, which only a newer version reads")]
    Newer(u8),
    /// The bytes or the key are not those that were written.
    #[error("its checksum does not fit")]
    Checksum,
    /// The checksum fits, the content does not: a fault of the writer.
    #[error("its {0} is malformed")]
    Malformed(&'static str),
}

/// What a record is: part of its checksum.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Of a transaction.
    Decision = 1,
    /// Of a transaction.
    End = 2,
    /// A life of a coordinator.
    Epoch = 3,
    /// One that attached.
    ResourceManager = 4,
    /// A single fact.
    Mark = 5,
    /// What an operator did.
    Operation = 6,
}

fn checksum(kind: Kind, key: &[u8], body: &[u8]) -> u32 {
    // A key is a gtrid, a number or a name: its length fits a byte, and keeps key and body apart.
    let length = u8::try_from(key.len()).expect("a key has at most 255 bytes");
    let crc = crc32c::crc32c(&[FORMAT, kind as u8, length]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, key), body)
}

/// A body in its frame.
pub(super) fn frame(kind: Kind, key: &[u8], body: &[u8]) -> Vec<u8> {
    let crc = checksum(kind, key, body).to_be_bytes();
    [&[FORMAT], crc.as_slice(), body].concat()
}

pub(super) fn unframe<M: Message + Default>(kind: Kind, key: &[u8], bytes: &[u8]) -> Result<M, RowError> {
    let (header, body) = bytes.split_at_checked(HEADER).ok_or(RowError::Short)?;
    if header[0] > FORMAT {
        return Err(RowError::Newer(header[0]));
    }
    if header[0] != FORMAT || header[1..] != checksum(kind, key, body).to_be_bytes() {
        return Err(RowError::Checksum);
    }
    M::decode(body).map_err(|_decode| RowError::Malformed("body"))
}

/// A bqual without its text form.
#[derive(Clone, PartialEq, Message)]
struct BqualBody {
    #[prost(string, tag = "1")]
    resource_manager: String,
    #[prost(fixed64, tag = "2")]
    suffix: u64,
}

impl BqualBody {
    fn new(bqual: &Bqual) -> Self {
        let name = bqual.resource_manager_str();
        let digits = &bqual.as_str()[name.len() + 1..];
        Self {
            resource_manager: name.to_owned(),
            suffix: u64::from_str_radix(digits, 16).expect("a bqual ends in 16 hex digits"),
        }
    }

    fn bqual(&self) -> Result<Bqual, RowError> {
        let name = self.resource_manager.parse::<ResourceManagerName>();
        let name = name.map_err(|_parse| RowError::Malformed("branch"))?;
        Ok(Bqual::new(&name, self.suffix))
    }
}

#[derive(Clone, PartialEq, Message)]
struct AboutBody {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    labels: BTreeMap<String, String>,
    /// The 24 bytes of a recorded span; empty if there is none. A version that does not know this field leaves it out.
    #[prost(bytes = "vec", tag = "3")]
    trace: Vec<u8>,
}

impl AboutBody {
    fn new(about: &About) -> Self {
        let trace = about.trace.map(|trace| trace.to_bytes().to_vec()).unwrap_or_default();
        Self { name: about.name.clone(), labels: about.labels.clone(), trace }
    }

    fn about(self) -> Result<About, RowError> {
        let trace = match self.trace.as_slice() {
            [] => None,
            bytes => Some(TraceParent::from_bytes(bytes).ok_or(RowError::Malformed("trace"))?),
        };
        Ok(About { name: self.name, labels: self.labels, trace })
    }
}

#[derive(Clone, PartialEq, Message)]
struct DecisionBody {
    /// 1 commit, 2 one-phase intent.
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(message, repeated, tag = "2")]
    branches: Vec<BqualBody>,
    #[prost(uint64, tag = "3")]
    decided_ms: u64,
    /// Absent if there is nothing in it.
    #[prost(message, optional, tag = "4")]
    about: Option<AboutBody>,
}

/// The record of a decision, for the row of its gtrid.
pub(super) fn encode_decision(decision: &DecisionRecord) -> Vec<u8> {
    let body = DecisionBody {
        kind: match decision.kind {
            DecisionKind::Commit => 1,
            DecisionKind::OnePhaseIntent => 2,
        },
        branches: decision.branches.iter().map(BqualBody::new).collect(),
        decided_ms: decision.decided_ms,
        about: (decision.about != About::default()).then(|| AboutBody::new(&decision.about)),
    };
    frame(Kind::Decision, &decision.gtrid.to_bytes(), &body.encode_to_vec())
}

/// The reverse of [`encode_decision`].
pub(super) fn decode_decision(gtrid: Gtrid, bytes: &[u8]) -> Result<DecisionRecord, RowError> {
    let body: DecisionBody = unframe(Kind::Decision, &gtrid.to_bytes(), bytes)?;
    let kind = match body.kind {
        1 => DecisionKind::Commit,
        2 => DecisionKind::OnePhaseIntent,
        _unknown => return Err(RowError::Malformed("kind")),
    };
    let branches = body.branches.iter().map(BqualBody::bqual).collect::<Result<Vec<_>, _>>()?;
    let expected = match kind {
        DecisionKind::Commit => 1..=MAX_BRANCHES,
        DecisionKind::OnePhaseIntent => 1..=1,
    };
    if !expected.contains(&branches.len()) {
        return Err(RowError::Malformed("list of branches"));
    }
    Ok(DecisionRecord {
        gtrid,
        kind,
        branches,
        decided_ms: body.decided_ms,
        about: body.about.map(AboutBody::about).transpose()?.unwrap_or_default(),
    })
}

#[derive(Clone, PartialEq, Message)]
struct EndBody {
    /// 1 committed, 2 rolled back, 3 nothing to commit; heuristic: 4 commit, 5 rollback, 6 mixed, 7 hazard.
    #[prost(uint32, tag = "1")]
    outcome: u32,
    #[prost(string, tag = "2")]
    detail: String,
    /// First come the decision's branches, in its order, all of them committed; they are not listed.
    #[prost(bool, tag = "3")]
    decided_branches_committed: bool,
    #[prost(message, repeated, tag = "4")]
    branches: Vec<EndedBranchBody>,
    /// Absent: as in the decision, or nothing if there is none.
    #[prost(message, optional, tag = "5")]
    about: Option<AboutBody>,
}

#[derive(Clone, PartialEq, Message)]
struct EndedBranchBody {
    #[prost(message, required, tag = "1")]
    bqual: BqualBody,
    /// 1 committed, 2 rolled back, 3 read-only, 4 hazard, 5 lost, 6 abandoned.
    #[prost(uint32, tag = "2")]
    end: u32,
}

/// The key that an end's checksum covers: the time that retention goes by is in a column, and belongs to the record.
fn end_key(gtrid: Gtrid, ended_ms: i64) -> Vec<u8> {
    [gtrid.to_bytes().as_slice(), &ended_ms.to_be_bytes()].concat()
}

/// The column's value for a time. Times beyond the next 292 million years are cut.
pub(super) fn column_ms(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// The record of an end, relative to the decision in the same row. `None` for an unknown outcome, which is no end.
pub(super) fn encode_end(end: &EndRecord, decision: Option<&DecisionRecord>) -> Option<Vec<u8>> {
    let decided = decision.map_or(&[][..], |decision| &decision.branches);
    let as_decided = !decided.is_empty()
        && end.branches.len() >= decided.len()
        && decided
            .iter()
            .zip(&end.branches)
            .all(|(bqual, (ended, how))| bqual == ended && *how == BranchEnd::Committed);
    let listed = &end.branches[if as_decided { decided.len() } else { 0 }..];
    let about = decision.map(|decision| &decision.about);
    let body = EndBody {
        outcome: match end.outcome {
            Outcome::Committed => 1,
            Outcome::RolledBack => 2,
            Outcome::NothingToCommit => 3,
            Outcome::Heuristic(Heuristic::Commit) => 4,
            Outcome::Heuristic(Heuristic::Rollback) => 5,
            Outcome::Heuristic(Heuristic::Mixed) => 6,
            Outcome::Heuristic(Heuristic::Hazard) => 7,
            Outcome::Unknown => return None,
        },
        detail: end.detail.clone(),
        decided_branches_committed: as_decided,
        branches: listed.iter().map(EndedBranchBody::new).collect(),
        about: (end.about != *about.unwrap_or(&About::default())).then(|| AboutBody::new(&end.about)),
    };
    Some(frame(Kind::End, &end_key(end.gtrid, column_ms(end.ended_ms)), &body.encode_to_vec()))
}

/// The reverse of [`encode_end`].
pub(super) fn decode_end(
    gtrid: Gtrid,
    ended_ms: i64,
    bytes: &[u8],
    decision: Option<&DecisionRecord>,
) -> Result<EndRecord, RowError> {
    let body: EndBody = unframe(Kind::End, &end_key(gtrid, ended_ms), bytes)?;
    let outcome = match body.outcome {
        1 => Outcome::Committed,
        2 => Outcome::RolledBack,
        3 => Outcome::NothingToCommit,
        4 => Outcome::Heuristic(Heuristic::Commit),
        5 => Outcome::Heuristic(Heuristic::Rollback),
        6 => Outcome::Heuristic(Heuristic::Mixed),
        7 => Outcome::Heuristic(Heuristic::Hazard),
        _unknown => return Err(RowError::Malformed("outcome")),
    };
    let mut branches = Vec::new();
    if body.decided_branches_committed {
        let decision = decision.ok_or(RowError::Malformed("list of branches"))?;
        branches.extend(decision.branches.iter().map(|bqual| (bqual.clone(), BranchEnd::Committed)));
    }
    for branch in &body.branches {
        branches.push(branch.branch()?);
    }
    let decided = || decision.map(|decision| decision.about.clone());
    Ok(EndRecord {
        gtrid,
        outcome,
        detail: body.detail,
        branches,
        ended_ms: u64::try_from(ended_ms).map_err(|_negative| RowError::Malformed("time"))?,
        about: body.about.map(AboutBody::about).transpose()?.or_else(decided).unwrap_or_default(),
    })
}

impl EndedBranchBody {
    fn new((bqual, end): &(Bqual, BranchEnd)) -> Self {
        Self {
            bqual: BqualBody::new(bqual),
            end: match end {
                BranchEnd::Committed => 1,
                BranchEnd::RolledBack => 2,
                BranchEnd::ReadOnly => 3,
                BranchEnd::Hazard => 4,
                BranchEnd::Lost => 5,
                BranchEnd::Abandoned => 6,
            },
        }
    }

    fn branch(&self) -> Result<(Bqual, BranchEnd), RowError> {
        let end = match self.end {
            1 => BranchEnd::Committed,
            2 => BranchEnd::RolledBack,
            3 => BranchEnd::ReadOnly,
            4 => BranchEnd::Hazard,
            5 => BranchEnd::Lost,
            6 => BranchEnd::Abandoned,
            _unknown => return Err(RowError::Malformed("branch's end")),
        };
        Ok((self.bqual.bqual()?, end))
    }
}

/// An epoch as its row tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EpochRow {
    /// Which epoch of its number.
    pub(super) incarnation: Incarnation,
    /// Its newest forced batch; 0 before the first.
    pub(super) sequence: u64,
    /// Nothing more is decided under it.
    pub(super) sealed: bool,
}

#[derive(Clone, PartialEq, Message)]
struct EpochBody {
    #[prost(bytes = "vec", tag = "1")]
    incarnation: Vec<u8>,
    #[prost(uint64, tag = "2")]
    sequence: u64,
    #[prost(bool, tag = "3")]
    sealed: bool,
}

/// The record of the epoch with this number.
pub(super) fn encode_epoch(number: u32, epoch: &EpochRow) -> Vec<u8> {
    let body = EpochBody {
        incarnation: epoch.incarnation.as_bytes().to_vec(),
        sequence: epoch.sequence,
        sealed: epoch.sealed,
    };
    frame(Kind::Epoch, &number.to_be_bytes(), &body.encode_to_vec())
}

/// The reverse of [`encode_epoch`].
pub(super) fn decode_epoch(number: u32, bytes: &[u8]) -> Result<EpochRow, RowError> {
    let body: EpochBody = unframe(Kind::Epoch, &number.to_be_bytes(), bytes)?;
    let incarnation = Incarnation::from_slice(&body.incarnation).ok_or(RowError::Malformed("incarnation"))?;
    Ok(EpochRow { incarnation, sequence: body.sequence, sealed: body.sealed })
}

#[derive(Clone, PartialEq, Message)]
struct ResourceManagerBody {
    #[prost(bytes = "vec", tag = "1")]
    identity: Vec<u8>,
    #[prost(string, tag = "2")]
    location: String,
    #[prost(uint32, tag = "3")]
    timeline: u32,
    /// A gtrid's 20 bytes; empty if there is none.
    #[prost(bytes = "vec", tag = "4")]
    floor: Vec<u8>,
    #[prost(bool, tag = "5")]
    retired: bool,
}

/// The record of a resource manager, for the row of its name.
pub(super) fn encode_resource_manager(known: &KnownResourceManager) -> Vec<u8> {
    let body = ResourceManagerBody {
        identity: known.identity.as_bytes().to_vec(),
        location: known.location.clone(),
        timeline: known.timeline,
        floor: known.floor.map(|gtrid| gtrid.to_bytes().to_vec()).unwrap_or_default(),
        retired: known.retired,
    };
    frame(Kind::ResourceManager, known.name.as_str().as_bytes(), &body.encode_to_vec())
}

/// The reverse of [`encode_resource_manager`].
pub(super) fn decode_resource_manager(name: &str, bytes: &[u8]) -> Result<KnownResourceManager, RowError> {
    let body: ResourceManagerBody = unframe(Kind::ResourceManager, name.as_bytes(), bytes)?;
    let floor = match body.floor.as_slice() {
        [] => None,
        bytes => Some(Gtrid::from_bytes(bytes).ok_or(RowError::Malformed("floor"))?),
    };
    Ok(KnownResourceManager {
        name: name.parse().map_err(|_parse| RowError::Malformed("name"))?,
        identity: ResourceManagerId::from_slice(&body.identity).ok_or(RowError::Malformed("identity"))?,
        location: body.location,
        timeline: body.timeline,
        floor,
        retired: body.retired,
    })
}

#[derive(Clone, PartialEq, Message)]
struct OperationBody {
    #[prost(uint64, tag = "1")]
    at_ms: u64,
    #[prost(string, tag = "2")]
    who: String,
    #[prost(string, tag = "3")]
    action: String,
    #[prost(string, tag = "4")]
    subject: String,
    #[prost(string, tag = "5")]
    reason: String,
    #[prost(string, tag = "6")]
    before: String,
    #[prost(string, tag = "7")]
    after: String,
}

/// The key that an operation's checksum covers: its number, and the transaction that stands in a column beside it.
fn operation_key(id: u64, gtrid: Option<&[u8]>) -> Vec<u8> {
    [id.to_be_bytes().as_slice(), gtrid.unwrap_or_default()].concat()
}

/// The record of an operator's action, for the row of its number. What it changes in the log is in other rows.
pub(super) fn encode_operation(id: u64, operation: &Operation) -> Vec<u8> {
    let body = OperationBody {
        at_ms: operation.at_ms,
        who: operation.who.clone(),
        action: operation.action.clone(),
        subject: operation.subject.clone(),
        reason: operation.reason.clone(),
        before: operation.before.clone(),
        after: operation.after.clone(),
    };
    let gtrid = operation.gtrid.map(|gtrid| gtrid.to_bytes());
    let key = operation_key(id, gtrid.as_ref().map(<[u8; Gtrid::BYTES]>::as_slice));
    frame(Kind::Operation, &key, &body.encode_to_vec())
}

/// The reverse of [`encode_operation`].
pub(super) fn decode_operation(id: u64, gtrid: Option<&[u8]>, bytes: &[u8]) -> Result<Operation, RowError> {
    let body: OperationBody = unframe(Kind::Operation, &operation_key(id, gtrid), bytes)?;
    let gtrid =
        gtrid.map(|bytes| Gtrid::from_bytes(bytes).ok_or(RowError::Malformed("gtrid"))).transpose()?;
    Ok(Operation {
        at_ms: body.at_ms,
        who: body.who,
        action: body.action,
        subject: body.subject,
        gtrid,
        reason: body.reason,
        before: body.before,
        after: body.after,
        effect: Effect::None,
    })
}

/// The name of the mark that keeps the cluster.
pub(super) const CLUSTER: &str = "cluster";
/// The name of the mark that keeps the horizon.
pub(super) const HORIZON: &str = "horizon";

#[derive(Clone, PartialEq, Message)]
struct ClusterBody {
    #[prost(string, tag = "1")]
    cluster: String,
}

/// The record of the mark [`CLUSTER`].
pub(super) fn encode_cluster(cluster: ClusterId) -> Vec<u8> {
    frame(Kind::Mark, CLUSTER.as_bytes(), &ClusterBody { cluster: cluster.to_string() }.encode_to_vec())
}

/// The reverse of [`encode_cluster`].
pub(super) fn decode_cluster(bytes: &[u8]) -> Result<ClusterId, RowError> {
    let body: ClusterBody = unframe(Kind::Mark, CLUSTER.as_bytes(), bytes)?;
    body.cluster.parse().map_err(|_parse| RowError::Malformed("cluster id"))
}

#[derive(Clone, PartialEq, Message)]
struct HorizonBody {
    #[prost(uint64, tag = "1")]
    unix_ms: u64,
}

/// The record of the mark [`HORIZON`].
pub(super) fn encode_horizon(unix_ms: u64) -> Vec<u8> {
    frame(Kind::Mark, HORIZON.as_bytes(), &HorizonBody { unix_ms }.encode_to_vec())
}

/// The reverse of [`encode_horizon`].
pub(super) fn decode_horizon(bytes: &[u8]) -> Result<u64, RowError> {
    let body: HorizonBody = unframe(Kind::Mark, HORIZON.as_bytes(), bytes)?;
    Ok(body.unix_ms)
}

#[cfg(test)]
mod tests;
