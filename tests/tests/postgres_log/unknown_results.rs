//! P2: a write whose answer never came.

use std::sync::Arc;
use std::time::Duration;

use lockstep_coordinator::decision_log::contract::{commit, decisions, gtrid};
use lockstep_coordinator::decision_log::postgres::{Options, PostgresLog};
use lockstep_coordinator::decision_log::{AppendError, DecisionLog, Recorded};
use lockstep_coordinator::protocol::record::DecisionRecord;
use lockstep_tests::harness::postgres::{Database, PostgresServer, fresh_database};
use lockstep_tests::harness::procfs;
use rustix::process::{Pid, Signal, kill_process};

use super::{AT_GATE, Gate, LONG, decide, leased, look, open, own, until};

/// The server's process of the connection that writes under this log's epoch.
fn writing_process(database: &Database, log: &PostgresLog) -> Pid {
    let query = format!(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ '^lockstep epoch {} [0-9a-f]+$'",
        own(log)
    );
    Pid::from_raw(database.psql(&query).parse().unwrap()).unwrap()
}

/// A log that gives an answer up soon, and has its connection.
async fn impatient(database: &Database) -> PostgresLog {
    let options = Options { patience: Duration::from_millis(500), ..leased(&database.url(), "a") };
    let log = open(&options).await;
    decide(&log, &commit(gtrid(own(&log), 0, 200))).await.unwrap();
    log
}

fn spawn(
    log: &Arc<PostgresLog>,
    decision: &DecisionRecord,
) -> tokio::task::JoinHandle<Result<(), AppendError>> {
    let (log, decision) = (Arc::clone(log), decision.clone());
    tokio::spawn(async move { decide(&log, &decision).await })
}

#[tokio::test]
async fn a_decision_whose_connection_dies_before_it_is_written_is_written_on_the_next() {
    let database = fresh_database();
    let log = Arc::new(open(&leased(&database.url(), "a")).await);
    let gate = Gate::close(&database).await;
    let decision = commit(gtrid(own(&log), 0, 1));
    let write = spawn(&log, &decision);
    until(&database, "the write to begin", AT_GATE).await;
    let pid = writing_process(&database, &log).as_raw_nonzero();
    database.psql(&format!("SELECT pg_terminate_backend({pid})"));
    gate.open().await;
    assert_eq!(tokio::time::timeout(LONG, write).await.unwrap().unwrap(), Ok(()));
    assert_eq!(look(&log, decision.gtrid).await.recorded, Recorded::Decided(decision));
}

/// The statement is done, and only its answer is lost: the batch is found, and counts once.
#[tokio::test]
async fn a_decision_whose_answer_is_lost_is_found() {
    let database = fresh_database();
    let log = Arc::new(impatient(&database).await);
    // Behind the insert, at the COMMIT: the answer comes too late, and the row is there all the same.
    database.psql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON lockstep_log.transactions \
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let before = log.position();
    let decision = commit(gtrid(own(&log), 0, 1));
    let write = spawn(&log, &decision);
    assert_eq!(tokio::time::timeout(LONG, write).await.unwrap().unwrap(), Ok(()));
    assert_eq!(log.position().sequence, before.sequence + 1);
    assert_eq!(look(&log, decision.gtrid).await.recorded, Recorded::Decided(decision));
    let generation = database.psql("SELECT generation > 1 FROM lockstep_log.epochs");
    assert_eq!(generation, "t", "it was looked for behind a fence");
}

/// P2's schedule: the old server process has not even read the statement; the node connects anew, sees no record, and concludes that
/// it was not written; later it appears.
#[tokio::test]
async fn a_statement_that_arrives_late_writes_nothing() {
    let database = fresh_database();
    let log = Arc::new(impatient(&database).await);
    let old = writing_process(&database, &log);
    procfs::stop(old).unwrap();
    let decision = commit(gtrid(own(&log), 0, 1));
    // So that the second attempt is refused, and the engine may conclude that it rolls back.
    database.psql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''not now''; END'; \
         CREATE TRIGGER refuse BEFORE INSERT ON lockstep_log.transactions FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let refused = decide(&log, &decision).await;
    assert!(matches!(&refused, Err(AppendError::Refused(why)) if why.contains("not now")), "{refused:?}");
    assert_eq!(look(&log, decision.gtrid).await.recorded, Recorded::Absent);

    database.psql("DROP TRIGGER refuse ON lockstep_log.transactions");
    kill_process(old, Signal::CONT).unwrap();
    let gone = format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = {}", old.as_raw_nonzero());
    until(&database, "the old process to do what it was told, and end", &gone).await;
    assert_eq!(look(&log, decision.gtrid).await.recorded, Recorded::Absent, "it was refused, and appeared");
}

/// Whoever gives a call up halfway leaves an unknown write behind: it is settled before the next.
#[tokio::test]
async fn a_write_that_was_given_up_is_settled_before_the_next() {
    let database = fresh_database();
    let log = Arc::new(open(&leased(&database.url(), "a")).await);
    let gate = Gate::close(&database).await;
    let (given_up, next) = (commit(gtrid(own(&log), 0, 1)), commit(gtrid(own(&log), 0, 2)));
    let write = spawn(&log, &given_up);
    until(&database, "the write to begin", AT_GATE).await;
    write.abort();
    assert!(write.await.unwrap_err().is_cancelled());
    let write = spawn(&log, &next);
    gate.open().await;
    assert_eq!(tokio::time::timeout(LONG, write).await.unwrap().unwrap(), Ok(()));
    assert_eq!(look(&log, next.gtrid).await.recorded, Recorded::Decided(next));
    assert_eq!(database.psql("SELECT generation > 1 FROM lockstep_log.epochs"), "t");
}

/// A server that is killed and started again: what was acknowledged is there, what waited is written.
#[tokio::test]
async fn a_server_that_crashes_loses_nothing_and_keeps_nobody_waiting_for_ever() {
    let mut server = PostgresServer::start().unwrap();
    let log = Arc::new(open(&leased(&server.url("postgres"), "a")).await);
    let epoch = own(&log);
    let before = commit(gtrid(epoch, 0, 1));
    decide(&log, &before).await.unwrap();
    server.kill().unwrap();
    let meanwhile = commit(gtrid(epoch, 0, 2));
    let write = spawn(&log, &meanwhile);
    tokio::task::spawn_blocking(move || server.restart().map(|()| server)).await.unwrap().map_or_else(
        |error| panic!("{error}"),
        |server| {
            // Kept until the test is over.
            Box::leak(Box::new(server));
        },
    );
    assert_eq!(tokio::time::timeout(LONG, write).await.unwrap().unwrap(), Ok(()));
    for decision in [before, meanwhile] {
        // The first connections of the pool may still be those to the server that died.
        let answer = loop {
            match log.look_up(&[decision.gtrid]).await {
                Ok(mut answers) => break answers.remove(0),
                Err(error) => eprintln!("{error}"),
            }
        };
        assert_eq!(answer.recorded, Recorded::Decided(decision));
    }
}

/// Nothing of it was ever sent: it need not wait for the server to come back.
#[tokio::test]
async fn a_decision_that_finds_no_server_is_refused() {
    let mut server = PostgresServer::start().unwrap();
    let options = Options { patience: Duration::from_millis(300), ..leased(&server.url("postgres"), "a") };
    let log = open(&options).await;
    server.stop().unwrap();
    let refused = log.force(&decisions(&[commit(gtrid(own(&log), 0, 1))])).await;
    assert!(
        matches!(&refused, Err(AppendError::Refused(why)) if why.contains("cannot be reached")),
        "{refused:?}"
    );
}

/// Else one server process after the other waits for the row, until the server takes no more connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_stays_unknown_holds_no_more_connections_than_one_and_the_next() {
    let server = PostgresServer::start().unwrap();
    let options = Options { patience: Duration::from_secs(1), ..leased(&server.url("postgres"), "a") };
    let log = Arc::new(open(&options).await);
    decide(&log, &commit(gtrid(own(&log), 0, 200))).await.unwrap();
    super::wait_for_nobody(&server, true);
    let decision = commit(gtrid(own(&log), 0, 1));
    let write = spawn(&log, &decision);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%lockstep_log.epochs%' \
         AND state <> 'idle' AND pid <> pg_backend_pid()";
    // Long enough for several attempts to settle it.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let mut seen = Vec::new();
    for _look in 0..10 {
        seen.push(server.psql("postgres", waiting).unwrap().parse::<u32>().unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!write.is_finished(), "nobody was told of it");
    // The write itself, and what waits for its row, if an attempt is under way; one that was just given up may not have ended yet.
    assert!(seen.contains(&2) && seen.iter().all(|waiting| (1..=3).contains(waiting)), "{seen:?}");
    super::wait_for_nobody(&server, false);
    assert_eq!(tokio::time::timeout(LONG, write).await.unwrap().unwrap(), Ok(()));
    assert_eq!(look(&log, decision.gtrid).await.recorded, Recorded::Decided(decision));
}
