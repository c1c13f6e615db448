//! How large a world is, and how much goes wrong in it: each fault has a number of times that it may still happen.

/// How often each kind of fault may still happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A coordinator dies, with everything that it had not given to the log.
    pub coordinator_dies: u8,
    /// A second coordinator starts beside the first, or seals the epoch of one that is alive.
    pub takeover: u8,
    /// A participant's process dies and starts again; what it had sent to its store may get there later, or never.
    pub participant_dies: u8,
    /// A session breaks.
    pub session_breaks: u8,
    /// A message is lost.
    pub loss: u8,
    /// A message comes twice.
    pub duplicate: u8,
    /// The log refuses a write.
    pub refused: u8,
    /// Whether a write arrived is not known.
    pub unknown: u8,
    /// A store's reply is lost after the effect, or it is out of reach before it.
    pub unresolved: u8,
    /// A store refuses to prepare.
    pub refuses: u8,
    /// A failover undoes the commit of a prepared branch.
    pub failover: u8,
    /// Somebody ends a prepared branch by hand.
    pub hand: u8,
}

impl Faults {
    /// How many there can be in one history of a world.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let all = [
            self.coordinator_dies,
            self.takeover,
            self.participant_dies,
            self.session_breaks,
            self.loss,
            self.duplicate,
            self.refused,
            self.unknown,
            self.unresolved,
            self.refuses,
            self.failover,
            self.hand,
        ];
        all.into_iter().map(u64::from).sum()
    }
}

/// One world to explore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// What it is called in reports.
    pub name: &'static str,
    /// Branches, each in a store of its own: 1 to 3.
    pub branches: usize,
    /// How many of them write nothing.
    pub read_only: usize,
    /// How many of them are still with their handler when the world begins.
    pub working: usize,
    /// What may go wrong.
    pub faults: Faults,
}

const NONE: Faults = Faults {
    coordinator_dies: 0,
    takeover: 0,
    participant_dies: 0,
    session_breaks: 0,
    loss: 0,
    duplicate: 0,
    refused: 0,
    unknown: 0,
    unresolved: 0,
    refuses: 0,
    failover: 0,
    hand: 0,
};

const fn world(name: &'static str, branches: usize, faults: Faults) -> Bounds {
    Bounds { name, branches, read_only: 0, working: 0, faults }
}

/// Few states each: a share of every test run.
pub const SMALL: &[Bounds] = &[
    world("one branch", 1, Faults { coordinator_dies: 1, participant_dies: 1, unknown: 1, ..NONE }),
    world("takeover", 1, Faults { takeover: 2, ..NONE }),
    world("unknown write", 2, Faults { unknown: 1, ..NONE }),
    world("by hand", 1, Faults { coordinator_dies: 1, refused: 1, unknown: 1, hand: 1, ..NONE }),
    Bounds { working: 1, ..world("handlers", 1, Faults { session_breaks: 1, refuses: 1, ..NONE }) },
    Bounds { read_only: 1, working: 1, ..world("read-only", 2, NONE) },
];

/// Too many for a build without optimisation: for the museum.
pub const FAILOVER: Bounds =
    world("failover", 2, Faults { duplicate: 1, unresolved: 1, failover: 1, ..NONE });

/// Together more than ten million states: by command.
pub const LARGE: &[Bounds] = &[
    FAILOVER,
    world("messages", 2, Faults { loss: 1, duplicate: 1, ..NONE }),
    world("participants", 2, Faults { participant_dies: 1, unresolved: 1, ..NONE }),
    Bounds { working: 1, ..world("handlers of two", 2, Faults { session_breaks: 1, refuses: 1, ..NONE }) },
    world("crash and log", 2, Faults { coordinator_dies: 1, refused: 1, unknown: 1, ..NONE }),
    world("crash and hand", 2, Faults { coordinator_dies: 1, hand: 1, ..NONE }),
    world("takeover of two", 2, Faults { takeover: 1, ..NONE }),
    world("takeover and a loss", 2, Faults { takeover: 1, loss: 1, ..NONE }),
    world("participants and a crash", 2, Faults { participant_dies: 1, coordinator_dies: 1, ..NONE }),
    world("crash, hand and session", 2, Faults { coordinator_dies: 1, hand: 1, session_breaks: 1, ..NONE }),
    world("three branches", 3, NONE),
];
