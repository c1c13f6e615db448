//! SIGKILL in the middle of forces: what was acknowledged is there, and no batch is there by half.

use std::time::Duration;

use lockstep_proto::{Epoch, Gtrid, LogPosition};
use tempfile::TempDir;

use super::{SqliteLog, TempSqlite, open};
use crate::decision_log::contract::{commit, committed, gtrid, rolled_back};
use crate::decision_log::rerun::{self, Child};
use crate::decision_log::sqlite::Options;
use crate::decision_log::{Batch, DecisionLog, Recorded};

/// The decisions of a round: a few more or less each time.
fn gtrids(epoch: Epoch, round: u64) -> Vec<Gtrid> {
    let count = u8::try_from(round * 7 % 20 + 1).unwrap();
    (0..count).map(|n| gtrid(epoch, round, n)).collect()
}

/// What is forced in a round: new decisions, and the ends of the round before.
pub(super) fn batch(epoch: Epoch, round: u64) -> Batch {
    let before = if round > 1 { gtrids(epoch, round - 1) } else { Vec::new() };
    Batch {
        decisions: gtrids(epoch, round).into_iter().map(commit).collect(),
        ends: before.into_iter().map(|gtrid| committed(&commit(gtrid))).collect(),
    }
}

/// Forces round after round, and says which ones are done.
pub(super) async fn force_for_ever(log: &SqliteLog) -> crate::decision_log::AppendError {
    let epoch = log.position().epoch;
    for round in 1.. {
        if let Err(error) = log.force(&batch(epoch, round)).await {
            return error;
        }
        rerun::say(round);
        if round % 3 == 0 {
            log.write_lazily(&[rolled_back(gtrid(epoch, round, 255))]).await.unwrap();
        }
    }
    unreachable!("there are always more numbers")
}

/// How far a log got under `epoch`, when `acknowledged` rounds were done for sure; panics where anything of them is missing,
/// or anything beyond the next one is there, or that one by half.
pub(super) async fn rounds(log: &SqliteLog, epoch: Epoch, acknowledged: u64) -> u64 {
    let mut newest = 0;
    for round in 1..=acknowledged + 2 {
        let gtrids = gtrids(epoch, round);
        let answers = log.look_up(&gtrids).await.unwrap();
        let present = answers.iter().filter(|answer| answer.recorded != Recorded::Absent).count();
        assert!(present == 0 || present == gtrids.len(), "round {round}: {present} of {}", gtrids.len());
        if present > 0 {
            assert_eq!(newest, round - 1, "a round is missing before round {round}");
            newest = round;
        }
    }
    assert!(newest >= acknowledged, "round {acknowledged} was acknowledged, and is gone");
    assert!(newest <= acknowledged + 1, "round {newest} was never begun");
    for round in 1..=newest {
        let answers = log.look_up(&gtrids(epoch, round)).await.unwrap();
        let ended =
            answers.iter().filter(|answer| matches!(answer.recorded, Recorded::Ended(Some(_), _))).count();
        let expected = if round < newest { answers.len() } else { 0 };
        assert_eq!(ended, expected, "ends of round {round} of {newest}");
    }
    newest
}

#[tokio::test]
#[ignore = "a child of the test below"]
async fn child_forces_until_it_is_killed() {
    let Some(dir) = rerun::dir() else { return };
    let (log, opened) = SqliteLog::open(&dir, Options { min_free_bytes: 0 }).await.unwrap();
    rerun::say(opened.position.epoch);
    rerun::say(opened.position.incarnation);
    force_for_ever(&log).await;
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_it_acknowledged() {
    let store = TempSqlite(TempDir::new().unwrap());
    let child = "decision_log::sqlite::tests::crash::child_forces_until_it_is_killed";
    let mut cut_short = 0;
    for run in 0..8u64 {
        let mut child = Child::start(child, store.0.path(), &[]);
        let epoch: Epoch = child.hear().unwrap().parse().unwrap();
        let incarnation = child.hear().unwrap().parse().unwrap();
        let enough = run * run * 5;
        let mut heard = 0;
        while heard < enough {
            heard = child.hear().unwrap().parse().unwrap();
        }
        // Each kill falls into another part of a force.
        std::thread::sleep(Duration::from_micros(run * 150));
        let acknowledged = child.kill().last().map_or(heard, |round| round.parse().unwrap());

        let (log, opened) = open(&store).await.unwrap();
        assert_eq!((opened.sealed_epochs, opened.position.epoch.get()), (1, epoch.get() + 1));
        let newest = rounds(&log, epoch, acknowledged).await;
        cut_short += newest - acknowledged;
        let position = LogPosition { epoch, incarnation, sequence: newest };
        assert!(log.reaches(position).await.unwrap());
        let next = LogPosition { sequence: newest + 1, ..position };
        assert!(!log.reaches(next).await.unwrap());
    }
    // How often the kill fell between a commit and its acknowledgement: for whoever reads the output.
    println!("{cut_short} of 8 kills left a batch that nobody was told of");
}

/// A kill at each named point, the first and a later time that it is reached. Needs the feature.
#[cfg(feature = "crash-points")]
mod points {
    use super::*;
    use crate::decision_log::PruneLimits;
    use crate::decision_log::contract::manager;

    const POINTS: [&str; 12] = [
        "log-open-before-seal",
        "log-open-after-seal",
        "log-open-after-checkpoint",
        "log-after-insert-before-commit",
        "log-after-commit-before-checkpoint",
        "log-before-checkpoint",
        "log-between-checkpoint-passes",
        "log-after-checkpoint",
        "log-prune-before-commit",
        "log-prune-after-commit",
        "log-remember-before-commit",
        "log-remember-after-commit",
    ];
    const POINT: &str = "LOCKSTEP_TEST_POINT";

    fn kill_this_process() {
        let this = rustix::process::getpid();
        rustix::process::kill_process(this, rustix::process::Signal::KILL).unwrap();
        // The signal may take a moment; nothing may happen in it.
        loop {
            std::thread::park();
        }
    }

    /// More than enough for every point to be reached again and again.
    const ROUNDS: u64 = 20_000;

    /// Forces, prunes and remembers until it is killed.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "a child of the test below"]
    async fn child_is_killed_at_a_point() {
        let Some(dir) = rerun::dir() else { return };
        let point = std::env::var(POINT).unwrap();
        let (point, skip) = point.split_once('*').unwrap();
        let left = std::sync::atomic::AtomicU32::new(skip.parse().unwrap());
        fail::cfg_callback(point, move || {
            if left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) == 0 {
                kill_this_process();
            }
        })
        .unwrap();
        let (log, opened) = SqliteLog::open(&dir, Options { min_free_bytes: 0 }).await.unwrap();
        let epoch = opened.position.epoch;
        rerun::say(epoch);
        for round in 1..=ROUNDS {
            log.force(&batch(epoch, round)).await.unwrap();
            rerun::say(round);
            let below = gtrid(epoch, 0, 0);
            log.remember(&manager("orders-db", Some(below))).await.unwrap();
            log.prune(PruneLimits { ended_before_ms: below.unix_ms(), below, limit: 3 }).await.unwrap();
            // Something for pruning, which `rounds` does not look for.
            let old = gtrid(epoch, 0, 0).unix_ms() - 1000 - round;
            let old = Gtrid::new(epoch, old, [1; 10]);
            log.write_lazily(&[rolled_back(old)]).await.unwrap();
        }
    }

    /// Kills a process when it reaches this point for the time after `skip`, and looks at what it left.
    async fn kill_at(point: &str, skip: u32) {
        let store = TempSqlite(TempDir::new().unwrap());
        drop(open(&store).await.unwrap());
        let setting = format!("{POINT}={point}*{skip}");
        let child = "decision_log::sqlite::tests::crash::points::child_is_killed_at_a_point";
        let (status, said) = Child::start(child, store.0.path(), &["env", &setting]).finish();
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(signal, Some(9), "{setting}: {said:?}");
        let acknowledged = said.iter().skip(1).next_back().map_or(0, |round| round.parse().unwrap());

        let (log, opened) = open(&store).await.unwrap();
        let killed = Epoch::new(2).unwrap();
        let taken = u32::from(point != "log-open-before-seal");
        assert_eq!(opened.position.epoch.get(), killed.get() + taken, "{setting}");
        let newest = rounds(&log, killed, acknowledged).await;
        // On either side of the commit it is certain what is there.
        if point == "log-after-commit-before-checkpoint" {
            assert_eq!(newest, acknowledged + 1, "{setting}");
        } else if point == "log-after-insert-before-commit" {
            assert_eq!(newest, acknowledged, "{setting}");
        }
    }

    #[tokio::test]
    async fn a_kill_at_any_point_leaves_a_log_that_opens_and_lost_nothing() {
        for point in POINTS {
            kill_at(point, 0).await;
            // A log is opened once in a process.
            if !point.starts_with("log-open") {
                kill_at(point, 2).await;
            }
        }
    }
}
