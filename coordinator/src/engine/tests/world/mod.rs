//! A tiny world around one shard: databases with evidence, sessions that break, messages that are lost, doubled and overtake
//! each other, a decision log that refuses or does not know, crashes, and an administrator who ends prepared branches by hand.
//!
//! It checks on every step what has to hold on every step; [`World::heal`] then stops all faults and checks that everything ends.

mod checks;
mod happenings;
mod healing;
mod log;
mod participants;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_proto::{Bqual, Epoch, Gtrid, Xid};

use crate::engine::delivery::SessionId;
use crate::engine::input::{Acknowledgement, ToParticipant};
use crate::engine::shard::{Shard, ShardConfig};
use crate::protocol::event::{Applied, Vote};
use crate::protocol::record::{DecisionRecord, EndRecord, LogWrite};

pub(super) const RESOURCE_MANAGERS: [&str; 3] = ["a", "b", "c"];

/// What a database has of a branch: nothing, if it is not in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Local {
    /// An open transaction in the instance that has this session.
    Open(SessionId),
    Prepared,
    /// With its evidence.
    Committed,
    /// With a fence.
    RolledBack,
    ReadOnly,
}

/// On its way between a participant and the shard.
#[derive(Debug, Clone)]
enum Flight {
    ToShard(SessionId, FromParticipant),
    ToParticipant(SessionId, ToParticipant),
}

#[derive(Debug, Clone)]
enum FromParticipant {
    Enlist(Xid),
    Vote(Xid, Vote),
    Acknowledge(Xid, Acknowledgement),
}

/// A forced write that was not answered for good.
#[derive(Debug)]
struct Writing {
    write: LogWrite,
    /// Answered with "unknown"; whether it is there.
    unknown: Option<bool>,
}

/// What a client asked for.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Begin,
    Outcome(Gtrid),
    /// A participant's listing of what is prepared, over its session.
    Prepared(SessionId),
    Summary,
}

/// How a fault is chosen among those there are.
pub(super) type Choice = u8;

pub(super) struct World {
    shard: Shard<u64>,
    now: Duration,
    epoch: u32,
    begun: Vec<Gtrid>,
    branches: BTreeMap<Xid, Local>,
    /// Branches that an administrator ended.
    by_hand: BTreeSet<Xid>,
    /// Branches that the shard said are enlisted.
    enlisted: BTreeMap<Gtrid, BTreeSet<Bqual>>,
    enlisted_over: BTreeMap<Xid, SessionId>,
    sessions: BTreeMap<SessionId, &'static str>,
    flights: Vec<Flight>,
    /// Sent over sessions that have ended since.
    stale: Vec<(SessionId, FromParticipant)>,
    writing: Vec<Writing>,
    lazy: Vec<EndRecord>,
    decisions: BTreeMap<Gtrid, DecisionRecord>,
    ends: BTreeMap<Gtrid, EndRecord>,
    asked: BTreeMap<u64, Asked>,
    told: BTreeMap<Gtrid, BTreeSet<&'static str>>,
    counter: u64,
    /// What has happened, how often.
    seen: BTreeMap<&'static str, usize>,
    /// A participant that is being healed votes commit and does what it is told.
    healing: bool,
}

fn config(epoch: u32) -> ShardConfig {
    let epoch = Epoch::new(epoch).unwrap();
    ShardConfig { epoch, max_live: 6, apply_wait: Duration::from_secs(10), begin_from_ms: 0 }
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            shard: Shard::new(config(1)),
            now: Duration::ZERO,
            epoch: 1,
            begun: Vec::new(),
            branches: BTreeMap::new(),
            by_hand: BTreeSet::new(),
            enlisted: BTreeMap::new(),
            enlisted_over: BTreeMap::new(),
            sessions: BTreeMap::new(),
            flights: Vec::new(),
            stale: Vec::new(),
            writing: Vec::new(),
            lazy: Vec::new(),
            decisions: BTreeMap::new(),
            ends: BTreeMap::new(),
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            counter: 0,
            seen: BTreeMap::new(),
            healing: false,
        }
    }

    fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub(super) fn seen(&self) -> &BTreeMap<&'static str, usize> {
        &self.seen
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn ask(&mut self, asked: Asked) -> u64 {
        let client = self.next();
        self.asked.insert(client, asked);
        client
    }
}

fn pick<T>(from: &[T], choice: Choice) -> Option<&T> {
    if from.is_empty() { None } else { from.get(usize::from(choice) % from.len()) }
}

/// A branch of the same resource manager that never was.
fn nobodys(xid: &Xid) -> Bqual {
    Bqual::new(&xid.bqual.resource_manager(), u64::MAX)
}

fn votes() -> [Vote; 12] {
    std::array::from_fn(|number| match number {
        3 | 7 => Vote::ReadOnly,
        11 => Vote::Rollback("out of stock".into()),
        _ => Vote::Commit,
    })
}

fn applied() -> [Applied; 3] {
    [Applied::Committed, Applied::RolledBack, Applied::Hazard]
}

fn gtrid_of(write: &LogWrite) -> Gtrid {
    match write {
        LogWrite::ForceDecision(decision) => decision.gtrid,
        LogWrite::ForceEnd(end) | LogWrite::LazyEnd(end) => end.gtrid,
    }
}
