//! Schedules that are written out, for rules about what no simulated world has: another database or another cluster under the same name, an
//! old coordinator that wakes up, and a log that was restored from a backup.

use std::time::Duration;

use lockstep::resource::Attachment;
use lockstep::session::message::{FromCoordinator, Welcome};
use lockstep::session::{Effect, Event, Session};
use lockstep_coordinator::decision_log::KnownResourceManager;
use lockstep_coordinator::engine::delivery::SessionId;
use lockstep_coordinator::engine::input::{Input, Now, Output, Wait};
use lockstep_coordinator::engine::shard::{Shard, ShardConfig};
use lockstep_coordinator::protocol::event::Vote;
use lockstep_coordinator::protocol::presumption::{EpochState, Known, LookUp, Recorded, conclude};
use lockstep_coordinator::protocol::record::About;
use lockstep_coordinator::protocol::situation::{Action, Proof, Standing};
use lockstep_coordinator::sessions::attach::{Hello, compare};
use lockstep_proto::limits::PROTOCOL_VERSION;
use lockstep_proto::{
    Bqual, ClusterId, Epoch, Gtrid, Incarnation, InstanceId, LogPosition, Positions, ResourceManagerId,
    ResourceManagerName, Xid,
};

/// A schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// A coordinator whose epoch is sealed wakes up and welcomes a participant (P19): `one_owner`.
    OldCoordinator,
    /// A coordinator of another cluster welcomes a participant (P21): `nothing_foreign_touched`.
    OtherCluster,
    /// Another database attaches under a name that is taken (P21): `nothing_foreign_touched`.
    OtherDatabase,
    /// The primary that a failover has left behind attaches (P21): `stability`.
    OldPrimary,
    /// The log was restored from a backup, and does not have a commit (P8): `stability`.
    LostTail,
    /// An instance votes for a branch that another one holds (P12): `commit_needs_all_votes`.
    AnotherInstanceVotes,
    /// An orphan is to be rolled back, and a resource manager has not answered (P14): `agreement`.
    SilentResourceManager,
    /// The epoch was never given out by this log (P8): `stability`.
    UnknownEpoch,
}

/// All of them.
pub const SCRIPTS: [Script; 8] = [
    Script::AnotherInstanceVotes,
    Script::OldCoordinator,
    Script::OtherCluster,
    Script::OtherDatabase,
    Script::OldPrimary,
    Script::LostTail,
    Script::SilentResourceManager,
    Script::UnknownEpoch,
];

impl Script {
    /// The invariant that it would break.
    #[must_use]
    pub const fn invariant(self) -> &'static str {
        match self {
            Self::OldCoordinator => "one_owner",
            Self::SilentResourceManager => "agreement",
            Self::AnotherInstanceVotes => "commit_needs_all_votes",
            Self::OtherCluster | Self::OtherDatabase => "nothing_foreign_touched",
            Self::OldPrimary | Self::LostTail | Self::UnknownEpoch => "stability",
        }
    }

    /// Whether it ends as it has to.
    #[must_use]
    pub fn ends_well(self) -> bool {
        match self {
            Self::OldCoordinator => refuses(&[welcome(2, 1), welcome(1, 1)]),
            Self::OtherCluster => refuses(&[welcome(1, 1), welcome(2, 2)]),
            Self::OtherDatabase => compare(&hello(2, 1), Some(&known())).is_err(),
            Self::OldPrimary => compare(&hello(1, 0), Some(&known())).is_err(),
            Self::AnotherInstanceVotes => !counts_a_strangers_vote(),
            Self::LostTail => presumes_nothing(EpochState::Sealed, true),
            Self::SilentResourceManager => {
                Standing::Orphan(Proof::Incomplete).permit(Action::RollbackOrphan).is_err()
            }
            Self::UnknownEpoch => presumes_nothing(EpochState::Unknown, false),
        }
    }
}

/// Two branches, each at its own instance; a third instance votes in the place of the first one, and then the second one does.
fn counts_a_strangers_vote() -> bool {
    let epoch = Epoch::new(1).expect("not 0");
    let apply_wait = Duration::from_secs(1);
    let mut shard: Shard<()> = Shard::new(ShardConfig { epoch, max_live: 10, apply_wait, begin_from_ms: 0 });
    let mut give = |input| shard.step(input, Now { monotonic: Duration::ZERO, unix_ms: 1 });
    let gtrid = Gtrid::new(epoch, 1, [0; 10]);
    let xid = |name: &str| Xid { gtrid, bqual: Bqual::new(&name.parse().expect("a name"), 0) };
    for (session, name) in [(1, "a"), (2, "b"), (3, "a")] {
        let resource_manager = name.parse().expect("a name");
        give(Input::Attached { session: SessionId(session), resource_manager });
    }
    give(Input::Begin { random: [0; 10], timeout: apply_wait, about: About::default(), reply: () });
    for (session, name) in [(1, "a"), (2, "b")] {
        give(Input::Enlist { session: SessionId(session), xid: xid(name) });
    }
    give(Input::Commit { gtrid, wait: Wait::Decided, reply: () });
    give(Input::Vote { session: SessionId(3), xid: xid("a"), vote: Vote::Commit });
    let last = give(Input::Vote { session: SessionId(2), xid: xid("b"), vote: Vote::Commit });
    last.iter().any(|output| matches!(output, Output::Log(_)))
}

fn presumes_nothing(epoch: EpochState, behind: bool) -> bool {
    let look_up = LookUp { recorded: Recorded::Absent, epoch, below_horizon: false };
    matches!(conclude(&look_up, behind), Known::Unknown(_))
}

fn name() -> ResourceManagerName {
    "orders-db".parse().expect("a name")
}

/// What the log knows of it.
fn known() -> KnownResourceManager {
    KnownResourceManager {
        name: name(),
        identity: ResourceManagerId::from_bytes([1; 16]),
        location: String::new(),
        timeline: 2,
        floor: None,
        retired: false,
    }
}

fn hello(identity: u8, timeline: u32) -> Hello {
    Hello {
        resource_manager: name(),
        identity: ResourceManagerId::from_bytes([identity; 16]),
        instance: InstanceId::from_bytes([3; 16]),
        cluster: None,
        seen: Positions::new(),
        location: String::new(),
        // Of another database, it is not the timeline that gives it away.
        timeline: timeline + u32::from(identity),
        clock_ms: 0,
    }
}

fn welcome(epoch: u32, cluster: u32) -> Welcome {
    let epoch = Epoch::new(epoch).expect("not 0");
    let incarnation = Incarnation::from_bytes([0; 16]);
    Welcome {
        protocol_version: PROTOCOL_VERSION,
        cluster: ClusterId::from_random(cluster),
        position: LogPosition { epoch, incarnation, sequence: 0 },
        retention: Duration::from_secs(60),
        newest_epoch: 2,
        sealed_below: epoch.get(),
        report_interval: Duration::from_secs(60),
        settled: Vec::new(),
    }
}

/// A participant is welcomed by each of these in turn; the last one is refused.
fn refuses(welcomes: &[Welcome]) -> bool {
    let mut session = Session::new(name(), InstanceId::from_bytes([3; 16]));
    let attachment = Attachment {
        identity: ResourceManagerId::from_bytes([1; 16]),
        cluster: Some(ClusterId::from_random(1)),
        seen: Positions::new(),
        location: String::new(),
        timeline: 0,
    };
    let mut refused = false;
    for welcome in welcomes {
        session.handle(Duration::ZERO, Event::Dialled(attachment.clone()));
        let message = FromCoordinator::Welcome(welcome.clone());
        let effects = session.handle(Duration::ZERO, Event::Received(message));
        refused = effects.iter().any(|effect| matches!(effect, Effect::Close(_)));
        session.handle(Duration::ZERO, Event::Disconnected);
    }
    refused
}
