//! The floor that a shard gives out holds, whatever the clock does (P7).

use std::time::Duration;

use lockstep_proto::{Epoch, Gtrid};

use crate::engine::input::{Answer, Input, Now, Output, Summary};
use crate::engine::shard::{Shard, ShardConfig};
use crate::protocol::record::About;

fn shard(begin_from_ms: u64) -> Shard<()> {
    let epoch = Epoch::new(1).unwrap();
    Shard::new(ShardConfig { epoch, max_live: 10, apply_wait: Duration::from_secs(10), begin_from_ms })
}

fn ask(shard: &mut Shard<()>, input: Input<()>, unix_ms: u64) -> Answer {
    let now = Now { monotonic: Duration::ZERO, unix_ms };
    let [Output::Reply((), answer)] = <[_; 1]>::try_from(shard.step(input, now)).unwrap() else {
        panic!("it is answered, and nothing else")
    };
    answer
}

fn begin(shard: &mut Shard<()>, number: u8, unix_ms: u64) -> Gtrid {
    let (timeout, about) = (Duration::from_secs(30), About::default());
    let Answer::Begun(gtrid) =
        ask(shard, Input::Begin { random: [number; 10], timeout, about, reply: () }, unix_ms)
    else {
        panic!("there is room")
    };
    gtrid
}

fn summary(shard: &mut Shard<()>, unix_ms: u64) -> Summary {
    let Answer::Summary(summary) = ask(shard, Input::Summarize { reply: () }, unix_ms) else {
        panic!("a summary is answered with one")
    };
    summary
}

#[test]
fn a_clock_that_is_set_back_begins_nothing_below_a_floor_that_was_given_out() {
    let mut shard = shard(0);
    let floor = summary(&mut shard, 9_000).floor(Epoch::new(1).unwrap());
    assert_eq!(floor.unix_ms(), 9_000);
    assert!(begin(&mut shard, 1, 2_000) >= floor);
    assert!(begin(&mut shard, 2, 9_500).unix_ms() == 9_500);
}

#[test]
fn a_live_transaction_holds_the_floor_down() {
    let mut shard = shard(0);
    let oldest = begin(&mut shard, 1, 2_000);
    assert_eq!(summary(&mut shard, 9_000).floor(Epoch::new(1).unwrap()), oldest);
}

#[test]
fn a_restart_under_a_clock_that_is_behind_begins_nothing_below_what_the_log_believes() {
    assert_eq!(begin(&mut shard(7_000), 1, 3_000).unix_ms(), 7_000);
}
