//! One world: a coordinator, its log, participants with their stores, applications, and time. A seed is all that it depends on.

use lockstep::resource::BranchId;
use lockstep::session::Event;
use lockstep_coordinator::engine::input::Input;
use lockstep_proto::{Bqual, ClusterId, Epoch, Gtrid, ResourceManagerId, Xid};

use super::client::Client;
use super::faults::{Faults, Kind};
use super::happening::Happening;
use super::history::{History, bits_of};
use super::log::Log;
use super::network::Link;
use super::node::Node;
use super::participant::Instance;
use super::queue::{Queue, Time};
use super::rng::Rng;
use super::sometimes::Reached;
use super::store::Store;
use super::trace::{Trace, say};

/// One second.
pub const SECOND: Time = 1_000_000;
/// One millisecond.
pub const MILLI: Time = 1_000;
/// The wall clock at the beginning of every world, in milliseconds since 1970.
const BEGINNING_MS: u64 = 1_700_000_000_000;
/// How long everything may take to end once faults have stopped: the longest deadline, the longest wait for an acknowledgement,
/// and the longest clock jump, each more than once.
const HEALING_BOUND: Time = 600 * SECOND;
/// Longer than it takes to notice that a session broke, and to attach again.
const SETTLING: Time = 20 * SECOND;
/// Transactions that are begun after the healing, and have to commit.
const AFTERWARDS: usize = 3;
/// What happens in one world at most: a world that does not come to rest is a violation, not a test that never ends.
const MOST_HAPPENINGS: u64 = 20_000_000;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant: the name of its file.
    pub invariant: &'static str,
    /// Of which transaction, if of one.
    pub transaction: Option<u32>,
    /// What was seen.
    pub what: String,
}

/// What a world is like, faults apart.
#[derive(Debug, Clone)]
pub struct Style {
    /// Shards of the coordinator.
    pub shards: usize,
    /// Whether a log error ends the process, as with the embedded log, or is followed by reading behind the fence.
    pub embedded_log: bool,
    /// A message takes at least so long.
    pub latency: Time,
    /// A forced write takes at least so long.
    pub disk: Time,
    /// Between two transactions, on average.
    pub between: Time,
    /// The transactions' timeouts.
    pub timeouts: [Time; 3],
    /// How long records and evidence are kept.
    pub retention: Time,
    /// Between two listings.
    pub report_interval: Time,
    /// How long a commit waits for its branches.
    pub apply_wait: Time,
    /// Transactions that may be live in one shard.
    pub max_live: usize,
    /// Half of the services vote when their handlers end.
    pub early_votes: bool,
    /// Slots for prepared branches, and connections of each instance, if the stores say that they have limits.
    pub room: Option<(usize, usize)>,
}

impl Style {
    fn drawn(rng: &mut Rng) -> Self {
        Self {
            shards: rng.index(3) + 1,
            embedded_log: rng.below(4) == 0,
            latency: rng.pick(&[100, 300, MILLI]),
            disk: rng.pick(&[200, MILLI, 8 * MILLI]),
            between: rng.pick(&[200 * MILLI, 600 * MILLI, SECOND]),
            timeouts: [2 * SECOND, 5 * SECOND, rng.pick(&[10 * SECOND, 30 * SECOND])],
            retention: rng.pick(&[20 * SECOND, 60 * SECOND]),
            report_interval: rng.pick(&[2 * SECOND, 6 * SECOND]),
            apply_wait: rng.pick(&[SECOND, 10 * SECOND]),
            max_live: rng.pick(&[40, 1000, 1000, 1000]),
            early_votes: rng.below(4) == 0,
            room: rng.pick(&[None, None, None, None, None, Some((200, 10)), Some((12, 4)), Some((6, 2))]),
        }
    }
}

/// See the module.
pub struct World {
    pub(super) rng: Rng,
    pub(super) now: Time,
    pub(super) queue: Queue<Happening>,
    pub(super) faults: Faults,
    pub(super) style: Style,
    pub(super) log: Log,
    pub(super) node: Option<Node>,
    /// How often the coordinator was started.
    pub(super) lives: u32,
    /// How far the coordinator's wall clock is off, in milliseconds.
    pub(super) skew_ms: i64,
    pub(super) links: Vec<Link>,
    pub(super) stores: Vec<Store>,
    pub(super) instances: Vec<Instance>,
    pub(super) clients: Vec<Client>,
    /// Clients that are not at their end yet.
    pub(super) busy_clients: usize,
    /// Administrators who wait for a prepared branch.
    pub(super) hands: u32,
    pub(super) history: History,
    pub(super) reached: Reached,
    pub(super) trace: Trace,
    pub(super) violation: Option<Violation>,
    wanted: usize,
    happened: u64,
}

/// What a world was like, at its end.
pub struct Ended {
    /// The first violation.
    pub violation: Option<Violation>,
    /// How many faults of each kind came.
    pub faults: Faults,
    /// What was reached.
    pub reached: Reached,
    /// The trace.
    pub trace: Trace,
    /// Transactions that applications began, or tried to.
    pub transactions: u64,
    /// Those that were committed.
    pub committed: u64,
}

impl World {
    /// A world in which `wanted` transactions are begun while there are faults.
    #[must_use]
    pub fn new(seed: u64, wanted: usize, told: bool) -> Self {
        let mut rng = Rng::new(seed);
        let faults = Faults::drawn(&mut rng);
        let mut style = Style::drawn(&mut rng);
        style.room = style.room.filter(|_| !faults.are_none());
        let cluster = ClusterId::from_random(0x5eed);
        let stores: Vec<Store> =
            (0..rng.index(3) + 2).map(|number| store(number, cluster, &mut rng)).collect();
        let instances = (0..stores.len()).flat_map(|store| vec![store; rng.index(3) + 1]).collect::<Vec<_>>();
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            faults,
            style,
            log: Log::new(cluster),
            node: None,
            lives: 0,
            skew_ms: 0,
            links: Vec::new(),
            instances: Vec::new(),
            stores,
            clients: Vec::new(),
            busy_clients: 0,
            hands: 0,
            history: History::default(),
            reached: Reached::default(),
            trace: Trace::new(told),
            violation: None,
            wanted,
            happened: 0,
            rng,
        };
        for store in instances {
            let instance = Instance::new(world.instances.len(), store, &world.stores[store].name);
            world.queue.plan(0, Happening::InstanceStarts(world.instances.len()));
            world.instances.push(instance);
        }
        world.queue.plan(0, Happening::NodeStarts);
        world.queue.plan(50 * MILLI, Happening::ClientArrives);
        world
    }

    /// Runs it to its end: faults, healing, and a few transactions that have to go well.
    #[must_use]
    pub fn run(mut self) -> Ended {
        self.go();
        self.note_seen();
        let committed = self.history.transactions.iter().filter(|facts| facts.told_committed).count() as u64;
        Ended {
            violation: self.violation,
            faults: self.faults,
            reached: self.reached,
            trace: self.trace,
            transactions: self.clients.len() as u64,
            committed,
        }
    }

    fn go(&mut self) {
        while self.violation.is_none() && (self.clients.len() < self.wanted || self.busy_clients > 0) {
            self.next();
        }
        self.heal();
        let by = self.now + HEALING_BOUND;
        while self.violation.is_none() && !self.is_at_rest() {
            if self.now > by {
                return self.does_not_rest();
            }
            self.next();
        }
        // What a side is still to notice of a session that broke, it notices now.
        let until = self.now + SETTLING;
        while self.violation.is_none() && (self.now < until || !self.is_at_rest()) {
            self.next();
        }
        // Nothing is begun before the clock has passed whatever was pruned while it was wrong (P7).
        while self.unix_ms() <= self.log.horizon_ms {
            self.next();
        }
        for _ in 0..AFTERWARDS {
            self.client_arrives(true);
        }
        let by = self.now + HEALING_BOUND;
        while self.violation.is_none() && (self.busy_clients > 0 || !self.is_at_rest()) {
            if self.now > by {
                return self.does_not_rest();
            }
            self.next();
        }
        if self.violation.is_none() {
            self.all_has_ended();
        }
    }

    /// The next thing that happens: a plan, or a machine that wants to be woken.
    fn next(&mut self) {
        self.happened += 1;
        if self.happened > MOST_HAPPENINGS {
            return self.does_not_rest();
        }
        let planned = self.queue.next_at().unwrap_or(Time::MAX);
        let node = self.node.as_ref().map_or(Time::MAX, |node| node.wake);
        let (instance, wake) = self.next_instance();
        if node <= planned && node <= wake {
            self.now = self.now.max(node);
            self.tick_node();
        } else if wake <= planned {
            self.now = self.now.max(wake);
            self.tell(instance, Event::Tick);
        } else {
            let Some((at, what)) = self.queue.pop() else {
                return self.violate("termination_after_healing", None, "nothing is planned any more");
            };
            self.now = self.now.max(at);
            self.happen(what);
        }
        self.trace.mix(self.now ^ self.rng.state().rotate_left(17));
    }

    fn next_instance(&self) -> (usize, Time) {
        let wakes = self.instances.iter().enumerate().map(|(number, instance)| (instance.wake, number));
        wakes.min().map_or((0, Time::MAX), |(wake, number)| (number, wake))
    }

    fn tick_node(&mut self) {
        for shard in 0..self.style.shards {
            if self.node.as_ref().is_some_and(|node| node.wakes[shard] <= self.now) {
                self.give(shard, Input::Tick);
            }
        }
    }

    /// How many transactions are begun while there are faults.
    pub(super) const fn wanted(&self) -> usize {
        self.wanted
    }

    /// A fault of this kind, perhaps.
    pub(super) fn strikes(&mut self, kind: Kind) -> bool {
        self.faults.strikes(kind, &mut self.rng)
    }

    /// The same between any two effects of a process: there are hundreds of these in a transaction.
    pub(super) fn strikes_rarely(&mut self, kind: Kind) -> bool {
        self.faults.strikes_rarely(kind, 200, &mut self.rng)
    }

    /// Plans something for later.
    pub(super) fn plan(&mut self, after: Time, what: Happening) {
        self.queue.plan(self.now + after, what);
    }

    /// From now on nothing goes wrong.
    fn heal(&mut self) {
        self.faults.stop();
        self.skew_ms = 0;
        say!(self, None, "--- all faults stop ---");
        // Sessions stay as they are: what was lost in them is found out by timers, not by a new session.
        self.instances.iter_mut().for_each(|instance| instance.cut_until = 0);
        // What is begun after this has to commit: there is room for it.
        self.style.room = None;
        for instance in 0..self.instances.len() {
            if self.instances[instance].session().is_some() {
                self.tell(instance, Event::Room(Ok(None)));
            }
        }
    }

    /// Notes that an invariant does not hold. The first one counts.
    pub(super) fn violate(
        &mut self,
        invariant: &'static str,
        transaction: Option<u32>,
        what: impl Into<String>,
    ) {
        if self.violation.is_none() {
            let what = what.into();
            say!(self, transaction, "VIOLATION of {invariant}: {what}");
            self.violation = Some(Violation { invariant, transaction, what });
        }
    }

    /// The coordinator's wall clock.
    pub(super) fn unix_ms(&self) -> u64 {
        (BEGINNING_MS + self.now / MILLI).saturating_add_signed(self.skew_ms)
    }
}

/// A store, with prepared transactions of others in it: of another cluster, and of another resource manager on the same server.
fn store(number: usize, cluster: ClusterId, rng: &mut Rng) -> Store {
    let name = ["a", "b", "c", "d"][number].parse().expect("a letter is a name");
    let other = "other".parse().expect("a word is a name");
    let epoch = Epoch::new(1).expect("1 is an epoch");
    let gtrid = Gtrid::new(epoch, 1_000, bits_of(0));
    let xid = |name| Xid { gtrid, bqual: Bqual::new(name, 0) };
    let foreign = vec![
        BranchId { cluster: ClusterId::from_random(0xf0e), xid: xid(&name) },
        BranchId { cluster, xid: xid(&other) },
    ];
    let identity = u8::try_from(number + 1).expect("a few stores");
    Store::new(name, ResourceManagerId::from_bytes([identity; 16]), rng.below(8) > 0, foreign)
}
