//! Random histories of a shard: any inputs in any order, faults of every kind, then healing. What has to hold is in [`super::world`].

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::world::{Choice, World};
use crate::engine::input::Wait;

/// One thing that happens. What a choice is among follows from the world at that moment, so that any list of these makes sense, and
/// a failing one can be shortened.
#[derive(Debug, Clone, Copy)]
enum Happening {
    Begin {
        seconds: u8,
    },
    /// What mostly happens: begin, enlist once or more, have all of it arrive, ask to commit.
    Work {
        branches: u8,
        session: Choice,
    },
    Enlist(Choice, Choice),
    Commit(Choice, bool),
    Rollback(Choice),
    Inquire(Choice),
    VoteEarly(Choice, Choice),
    Deliver(Choice, Choice),
    DeliverTwice(Choice, Choice),
    DeliverInOrder(u8, Choice),
    Lose(Choice),
    DeliverStale(Choice),
    Confuse(Choice, Choice, Choice),
    Attach(Choice),
    Break(Choice),
    List(Choice),
    Log(Choice, Choice),
    WriteLazily,
    Wait {
        tenths: u8,
    },
    Stall {
        seconds: u8,
    },
    Crash(Choice),
    ByHand(Choice, bool),
}

fn happenings() -> impl Strategy<Value = Happening> {
    use Happening as H;
    let any = any::<Choice>;
    prop_oneof![
        3 => (5..60u8).prop_map(|seconds| H::Begin { seconds }),
        8 => (1..4u8, any()).prop_map(|(branches, session)| H::Work { branches, session }),
        4 => (any(), any()).prop_map(|(a, b)| H::Enlist(a, b)),
        3 => (any(), proptest::bool::ANY).prop_map(|(a, b)| H::Commit(a, b)),
        1 => any().prop_map(H::Rollback),
        1 => any().prop_map(H::Inquire),
        2 => (any(), any()).prop_map(|(a, b)| H::VoteEarly(a, b)),
        10 => (any(), any()).prop_map(|(a, b)| H::Deliver(a, b)),
        3 => (any(), any()).prop_map(|(a, b)| H::DeliverTwice(a, b)),
        12 => (1..12u8, any()).prop_map(|(count, how)| H::DeliverInOrder(count, how)),
        1 => any().prop_map(H::Lose),
        1 => any().prop_map(H::DeliverStale),
        2 => (any(), any(), any()).prop_map(|(a, b, c)| H::Confuse(a, b, c)),
        3 => any().prop_map(H::Attach),
        1 => any().prop_map(H::Break),
        2 => any().prop_map(H::List),
        12 => (any(), any()).prop_map(|(a, b)| H::Log(a, b)),
        2 => Just(H::WriteLazily),
        2 => (1..50u8).prop_map(|tenths| H::Wait { tenths }),
        1 => (1..30u8).prop_map(|seconds| H::Stall { seconds }),
        1 => any().prop_map(H::Crash),
        2 => (any(), proptest::bool::ANY).prop_map(|(a, b)| H::ByHand(a, b)),
    ]
}

fn happen(world: &mut World, happening: Happening) {
    match happening {
        Happening::Begin { seconds } => world.begin(Duration::from_secs(seconds.into())),
        Happening::Work { branches, session } => {
            world.begin(Duration::from_secs(30));
            for number in 0..branches {
                world.enlist(Choice::MAX, session.wrapping_add(number));
                world.deliver_last();
            }
            world.commit(Choice::MAX, Wait::Applied);
        }
        Happening::Enlist(transaction, session) => world.enlist(transaction, session),
        Happening::Commit(transaction, applied) => {
            world.commit(transaction, if applied { Wait::Applied } else { Wait::Decided });
        }
        Happening::Rollback(transaction) => world.rollback(transaction),
        Happening::Inquire(transaction) => world.inquire(transaction),
        Happening::VoteEarly(branch, how) => world.vote_early(branch, how),
        Happening::Deliver(flight, how) => world.deliver(flight, false, how),
        Happening::DeliverTwice(flight, how) => world.deliver(flight, true, how),
        Happening::DeliverInOrder(count, how) => {
            (0..count).for_each(|step| world.deliver(0, false, how.wrapping_add(step)));
        }
        Happening::Lose(flight) => world.lose(flight),
        Happening::DeliverStale(choice) => world.deliver_stale(choice),
        Happening::Confuse(session, branch, how) => world.confuse(session, branch, how),
        Happening::Attach(resource_manager) => world.attach(resource_manager),
        Happening::Break(session) => world.break_session(session),
        Happening::List(session) => world.list_again(session),
        Happening::Log(choice, how) => world.answer_write(choice, how),
        Happening::WriteLazily => world.write_lazily(),
        Happening::Wait { tenths } => world.wait(Duration::from_millis(100 * u64::from(tenths))),
        Happening::Stall { seconds } => world.stall(Duration::from_secs(seconds.into())),
        Happening::Crash(luck) => world.crash(luck),
        Happening::ByHand(branch, commit) => world.by_hand(branch, commit),
    }
}

fn histories() -> impl Strategy<Value = Vec<Happening>> {
    proptest::collection::vec(happenings(), 0..200)
}

fn run(happenings: Vec<Happening>) -> World {
    let mut world = World::new();
    for session in 0..4 {
        world.attach(session);
    }
    for happening in happenings {
        happen(&mut world, happening);
    }
    world.heal();
    world
}

proptest! {
    // `PROPTEST_CASES=20000 cargo test whatever_happens` for a long walk.
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_all_ends_well(history in histories()) {
        run(history);
    }
}

/// The histories are not so tame that nothing can go wrong in them.
#[test]
fn histories_reach_what_they_are_meant_to_try() {
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeMap::<&str, usize>::new();
    for _ in 0..40 {
        let history = histories().new_tree(&mut runner).unwrap().current();
        for (what, count) in run(history).seen() {
            *seen.entry(what).or_default() += count;
        }
    }
    for what in [
        "force commit",
        "force intent",
        "force heuristic end",
        "log refused",
        "log found",
        "log absent",
        "recover commit",
        "recover intent",
        "send enlisted",
        "send enlist refused",
        "send prepare",
        "send commit",
        "send rollback",
        "send commit one phase",
        "send refused",
        "committed",
        "rolled back",
        "nothing to commit",
        "heuristic",
        "late heuristic",
    ] {
        assert!(seen.contains_key(what), "{what} does not happen: {seen:?}");
    }
}
