//! What a transaction costs the engine in memory, counted and not timed: allocations on its way, and bytes while it is there. A change that makes it
//! dearer is seen here, on any machine, and has to say so. (Forced writes, messages and statements are counted over real servers.)
//!
//! One test, because what is counted is the whole process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::time::Duration;

use lockstep_coordinator::engine::delivery::SessionId;
use lockstep_coordinator::engine::input::{Acknowledgement, Answer, Input, LogAnswer, Now, Output, Wait};
use lockstep_coordinator::engine::shard::{Shard, ShardConfig};
use lockstep_coordinator::protocol::event::{Applied, Vote};
use lockstep_coordinator::protocol::record::About;
use lockstep_proto::{Bqual, Epoch, Gtrid, ResourceManagerName, Xid};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const TRANSACTIONS: u32 = 5_000;
/// Two branches, one in each.
const SESSIONS: [SessionId; 2] = [SessionId(1), SessionId(2)];
/// Allocations of a commit of two branches, what comes in and what goes out included. There is no theory of this number: it is what it was.
const MOST_ALLOCATIONS: u64 = 80;
/// Bytes of a transaction with two branches that is begun and not ended.
const MOST_BYTES: usize = 2048;

/// The engine's pure part, which is all that keeps something for a transaction.
struct Engine {
    shard: Shard<()>,
    names: [ResourceManagerName; 2],
}

impl Engine {
    fn new() -> Self {
        let epoch = Epoch::new(1).unwrap();
        let config = ShardConfig {
            epoch,
            max_live: usize::try_from(TRANSACTIONS).unwrap(),
            apply_wait: Duration::from_secs(10),
            begin_from_ms: 0,
        };
        let names = ["a", "b"].map(|name| name.parse::<ResourceManagerName>().unwrap());
        let mut engine = Self { shard: Shard::new(config), names };
        for (session, name) in SESSIONS.into_iter().zip(engine.names.clone()) {
            engine.step(Input::Attached { session, resource_manager: name });
        }
        engine
    }

    fn step(&mut self, input: Input<()>) -> Vec<Output<()>> {
        let now = Now { monotonic: Duration::from_millis(1), unix_ms: 1_001 };
        self.shard.step(input, now)
    }

    fn begin(&mut self, number: u32) -> [Xid; 2] {
        let mut random = [0; 10];
        random[6..].copy_from_slice(&number.to_be_bytes());
        let timeout = Duration::from_secs(30);
        let begun = self.step(Input::Begin { random, timeout, about: About::default(), reply: () });
        let [Output::Reply((), Answer::Begun(gtrid))] = begun.as_slice() else { panic!("{begun:?}") };
        let gtrid: Gtrid = *gtrid;
        let xids = self.names.each_ref().map(|name| Xid { gtrid, bqual: Bqual::new(name, number.into()) });
        for (session, xid) in SESSIONS.into_iter().zip(xids.clone()) {
            assert_eq!(self.step(Input::Enlist { session, xid }).len(), 1);
        }
        xids
    }

    fn commit(&mut self, xids: [Xid; 2]) {
        let gtrid = xids[0].gtrid;
        assert_eq!(self.step(Input::Commit { gtrid, wait: Wait::Applied, reply: () }).len(), 2, "prepare");
        for (session, xid) in SESSIONS.into_iter().zip(xids.clone()) {
            self.step(Input::Vote { session, xid, vote: Vote::Commit });
        }
        let sent = self.step(Input::Log { gtrid, answer: LogAnswer::Forced });
        assert_eq!(sent.len(), 2, "decide: {sent:?}");
        let mut last = Vec::new();
        for (session, xid) in SESSIONS.into_iter().zip(xids) {
            let acknowledgement = Acknowledgement::Ended(Applied::Committed);
            last = self.step(Input::Acknowledge { session, xid, acknowledgement });
        }
        assert!(
            last.iter().any(|output| matches!(output, Output::Reply((), Answer::Outcome(_)))),
            "{last:?}"
        );
    }
}

#[test]
fn a_transaction_costs_little_memory_and_leaves_none() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let mut engine = Engine::new();
    // Tables have grown to what they need.
    let all: Vec<_> = (0..TRANSACTIONS).map(|number| engine.begin(number)).collect();
    all.into_iter().for_each(|xids| engine.commit(xids));
    let empty = dhat::HeapStats::get();

    for number in 0..TRANSACTIONS {
        let xids = engine.begin(TRANSACTIONS + number);
        engine.commit(xids);
    }
    let after = dhat::HeapStats::get();
    let allocations = (after.total_blocks - empty.total_blocks) / u64::from(TRANSACTIONS);
    assert!(allocations <= MOST_ALLOCATIONS, "{allocations} allocations for each transaction");
    assert!(after.curr_bytes <= empty.curr_bytes + 1024, "{empty:?} {after:?}");

    let mut second = Engine::new();
    let before = dhat::HeapStats::get();
    for number in 0..TRANSACTIONS {
        second.begin(number);
    }
    let held = dhat::HeapStats::get();
    let bytes = (held.curr_bytes - before.curr_bytes) / usize::try_from(TRANSACTIONS).unwrap();
    assert!(bytes <= MOST_BYTES, "{bytes} bytes for each transaction");
    println!("{allocations} allocations, {bytes} bytes");
}
