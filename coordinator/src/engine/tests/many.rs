//! Size: work that grows with what happens, not with what there is. Anything that looks at every live transaction, delivery or
//! branch for each input would take minutes here instead of seconds.

use std::time::Duration;

use lockstep_proto::{Bqual, Epoch, Gtrid, Xid, limits};

use crate::engine::delivery::{SessionId, WINDOW};
use crate::engine::input::{Acknowledgement, Answer, Input, LogAnswer, Now, Output, ToParticipant, Wait};
use crate::engine::shard::{Shard, ShardConfig};
use crate::protocol::event::{Applied, Vote};
use crate::protocol::record::{About, LogWrite};
use crate::protocol::tests::names::resource_manager;

const LIVE: u32 = 20_000;

fn shard() -> Shard<()> {
    let epoch = Epoch::new(1).unwrap();
    let max_live = usize::try_from(LIVE).unwrap();
    Shard::new(ShardConfig { epoch, max_live, apply_wait: Duration::from_secs(10), begin_from_ms: 0 })
}

fn at(millis: u64) -> Now {
    Now { monotonic: Duration::from_millis(millis), unix_ms: 1_000 + millis }
}

fn begin(shard: &mut Shard<()>, number: u32) -> Gtrid {
    let mut random = [0; 10];
    random[6..].copy_from_slice(&number.to_be_bytes());
    let timeout = Duration::from_secs(30);
    let input = Input::Begin { random, timeout, about: About::default(), reply: () };
    match shard.step(input, at(0)).as_slice() {
        [Output::Reply((), Answer::Begun(gtrid))] => *gtrid,
        other => panic!("{other:?}"),
    }
}

/// All of them live at once, through both phases, while sessions of another resource manager come and go.
#[test]
fn twenty_thousand_live_transactions() {
    let mut shard = shard();
    let session = SessionId(1);
    let attached = Input::Attached { session, resource_manager: resource_manager("a") };
    assert!(shard.step(attached, at(0)).is_empty());
    let begun: Vec<Gtrid> = (0..LIVE).map(|number| begin(&mut shard, number)).collect();
    let xids: Vec<Xid> = begun
        .iter()
        .zip(1..)
        .map(|(gtrid, number)| Xid { gtrid: *gtrid, bqual: Bqual::new(&resource_manager("a"), number) })
        .collect();
    for xid in &xids {
        let enlisted = shard.step(Input::Enlist { session, xid: xid.clone() }, at(1));
        assert_eq!(enlisted.len(), 1, "{enlisted:?}");
        let vote = Vote::Commit;
        assert!(shard.step(Input::Vote { session, xid: xid.clone(), vote }, at(1)).is_empty());
    }
    for gtrid in &begun {
        let commit = Input::Commit { gtrid: *gtrid, wait: Wait::Decided, reply: () };
        let decided = shard.step(commit, at(2));
        assert!(matches!(decided.as_slice(), [Output::Log(LogWrite::ForceDecision(_))]), "{decided:?}");
    }
    let mut sent = 0;
    for (gtrid, number) in begun.iter().zip(2..) {
        let outputs = shard.step(Input::Log { gtrid: *gtrid, answer: LogAnswer::Forced }, at(3));
        sent += outputs.iter().filter(|output| matches!(output, Output::Send(..))).count();
        let (session, resource_manager) = (SessionId(number), resource_manager("b"));
        assert!(shard.step(Input::Attached { session, resource_manager }, at(3)).is_empty());
        assert!(shard.step(Input::Detached { session }, at(3)).is_empty());
    }
    assert_eq!(sent, WINDOW, "a window of decisions goes out, the rest waits");
    for xid in xids {
        let acknowledgement = Acknowledgement::Ended(Applied::Committed);
        let outputs = shard.step(Input::Acknowledge { session, xid, acknowledgement }, at(4));
        sent += outputs.iter().filter(|output| matches!(output, Output::Send(..))).count();
    }
    assert_eq!(sent, begun.len(), "each decision was sent once");
    assert!(shard.is_idle());
}

/// As many branches as a transaction may have, each in a resource manager of its own.
#[test]
fn as_many_branches_as_there_may_be() {
    let mut shard = shard();
    let gtrid = begin(&mut shard, 1);
    let names: Vec<_> =
        (0..limits::MAX_BRANCHES).map(|number| resource_manager(&format!("r{number}"))).collect();
    let mut branches = Vec::new();
    for (name, number) in names.iter().zip(1..) {
        let (session, resource_manager) = (SessionId(number), name.clone());
        assert!(shard.step(Input::Attached { session, resource_manager }, at(0)).is_empty());
        let xid = Xid { gtrid, bqual: Bqual::new(name, number) };
        let outputs = shard.step(Input::Enlist { session, xid: xid.clone() }, at(0));
        assert!(matches!(outputs.as_slice(), [Output::Send(_, ToParticipant::Enlisted(..))]), "{outputs:?}");
        branches.push((session, xid));
    }
    let commit = Input::Commit { gtrid, wait: Wait::Applied, reply: () };
    assert_eq!(shard.step(commit, at(1)).len(), branches.len(), "all are asked at once");
    let last = branches.len() - 1;
    for (index, (session, xid)) in branches.iter().enumerate() {
        let vote = Input::Vote { session: *session, xid: xid.clone(), vote: Vote::Commit };
        assert_eq!(shard.step(vote, at(2)).len(), usize::from(index == last), "the last vote decides");
    }
    let forced = Input::Log { gtrid, answer: LogAnswer::Forced };
    assert_eq!(shard.step(forced, at(3)).len(), branches.len(), "all are told at once");
    for (session, xid) in branches {
        let acknowledgement = Acknowledgement::Ended(Applied::Committed);
        let _outputs = shard.step(Input::Acknowledge { session, xid, acknowledgement }, at(4));
    }
    assert!(shard.is_idle());
}
