//! The kinds of faults, and how often each comes in a world.
//!
//! Swarm testing (Groce, Zhang, Eide, Chen, Regehr, "Swarm Testing", 2012): each world draws which kinds it has at all, and how strong. A
//! world with everything at once rarely gets far enough for a second fault to matter.

use super::rng::Rng;

/// What a fault does to a transaction, as a rule. Some worlds have benign faults only: there, very much goes wrong, and most commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Strength {
    /// It commits all the same.
    Benign,
    /// It is rolled back.
    Mild,
    /// So are all others that are under way.
    Harsh,
}

/// Defines the kinds with their names and how often each comes, in millionths of its occasions, in a world of middling strength.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident, $name:literal, $rate:literal, $strength:ident;)*) => {
        /// A kind of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        /// All of them.
        pub const KINDS: &[Kind] = &[$(Kind::$kind),*];
        const NAMES: &[&str] = &[$($name),*];
        const RATES: &[(u32, Strength)] = &[$(($rate, Strength::$strength)),*];
    };
}

kinds! {
    // ---- the network: for each message ----
    /// A message is lost.
    Loss, "message lost", 20_500, Mild;
    /// It comes twice.
    Duplicate, "message doubled", 167_000, Benign;
    /// Later ones overtake it.
    Reorder, "message overtaken", 160_000, Benign;
    /// It comes late.
    Delay, "message late", 142_000, Benign;
    /// A client's request or its answer, or a call of a service, is lost.
    CallLost, "call lost", 60_000, Harsh;

    // ---- the network: for each transaction ----
    /// A participant is cut off for a while.
    Partition, "partition", 364_000, Harsh;
    /// A session breaks; each side learns it at its own time.
    SessionBreak, "session broken", 845_000, Harsh;

    // ---- processes: for each transaction, or between any two effects ----
    /// The coordinator is killed; what it wrote stays in the page cache.
    CoordinatorCrash, "coordinator killed", 422_000, Harsh;
    /// Its machine loses power; what was not synced is gone.
    PowerLoss, "power lost", 448_000, Harsh;
    /// A participant's process is killed.
    ParticipantCrash, "participant killed", 338_000, Harsh;
    /// An application is gone, in the middle of its transaction.
    ClientGone, "client gone", 112_000, Harsh;
    /// A handler fails or is cancelled.
    HandlerFails, "handler failed", 150_000, Mild;
    /// A handler stands for a while.
    HandlerSlow, "handler slow", 147_000, Mild;
    /// A clock jumps.
    ClockJump, "clock jumped", 100_000, Benign;

    // ---- the decision log: for each force ----
    /// Refused: nothing is written.
    LogRefused, "log write refused", 170_000, Benign;
    /// An error though it is written.
    LogErrorThere, "log error, written", 340_000, Benign;
    /// An error, and it is not written.
    LogErrorAbsent, "log error, not written", 262_000, Benign;
    /// Power fails in the middle of the write: it is torn.
    LogTorn, "log write torn", 220_000, Benign;

    // ---- databases: for each operation ----
    /// The reply is lost after the effect.
    ReplyLost, "store reply lost", 67_000, Mild;
    /// It is out of reach, and nothing was done.
    Unavailable, "store out of reach", 17_000, Mild;
    /// It refuses to prepare.
    Refuses, "store refused prepare", 352_000, Mild;
    /// PREPARE says OK and did nothing.
    HollowPrepare, "hollow prepare", 530_000, Mild;
    /// A service has committed in the middle of its branch.
    ServiceCommits, "service committed by itself", 1_500_000, Mild;
    /// "Unknown xid", because the session that prepared it is still attached.
    UnknownXid, "unknown xid", 3_600_000, Benign;

    // ---- databases: for each transaction ----
    /// It restarts: every connection is lost.
    StoreRestart, "store restarted", 357_000, Harsh;
    /// A standby takes over that lacks the newest commits of prepared branches.
    Failover, "failover undid commits", 450_000, Benign;

    // ---- people: for each transaction ----
    /// An administrator ends a prepared branch by hand.
    Hand, "branch ended by hand", 175_000, Benign;
    /// An operator rolls a transaction back.
    OperatorRollback, "operator rollback", 484_000, Harsh;
}

/// No occasion is a fault for certain: what never goes well never ends.
const MOST: u32 = 950_000;

/// How many kinds there are.
pub const COUNT: usize = KINDS.len();

impl Kind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

/// The faults of one world.
#[derive(Debug, Clone)]
pub struct Faults {
    rates: [u32; COUNT],
    /// How many of each kind came.
    pub counts: [u64; COUNT],
    on: bool,
}

impl Faults {
    /// Draws which kinds a world has, and how strong. One world in sixteen has none.
    #[must_use]
    pub fn drawn(rng: &mut Rng) -> Self {
        let mut rates = [0; COUNT];
        if rng.below(16) > 0 {
            let strongest = match rng.below(15) {
                0..7 => Strength::Benign,
                7..11 => Strength::Mild,
                _ => Strength::Harsh,
            };
            for (rate, (middling, strength)) in rates.iter_mut().zip(RATES) {
                let quarters = rng.pick(&[0, 0, 1, 2, 4, 8]);
                if *strength <= strongest {
                    *rate = (middling / 4 * quarters).min(MOST);
                }
            }
        }
        Self { rates, counts: [0; COUNT], on: true }
    }

    /// An occasion for a fault: whether it comes.
    pub const fn strikes(&mut self, kind: Kind, rng: &mut Rng) -> bool {
        let comes = self.on && rng.chance(self.rates[kind as usize]);
        if comes {
            self.count(kind);
        }
        comes
    }

    /// The same for an occasion of which there are many: `part` times rarer.
    pub const fn strikes_rarely(&mut self, kind: Kind, part: u32, rng: &mut Rng) -> bool {
        let comes = self.on && rng.chance(self.rates[kind as usize] / part);
        if comes {
            self.count(kind);
        }
        comes
    }

    /// Whether a fault of this kind is to befall the world; it is counted when it does.
    pub const fn draws(&mut self, kind: Kind, rng: &mut Rng) -> bool {
        self.on && rng.chance(self.rates[kind as usize])
    }

    /// Whether a world has no faults at all.
    #[must_use]
    pub fn are_none(&self) -> bool {
        self.rates.iter().all(|rate| *rate == 0)
    }

    /// One more.
    pub const fn count(&mut self, kind: Kind) {
        self.counts[kind as usize] += 1;
    }

    /// From now on nothing goes wrong any more.
    pub const fn stop(&mut self) {
        self.on = false;
    }

    /// Whether everything has stopped.
    #[must_use]
    pub const fn are_over(&self) -> bool {
        !self.on
    }
}
