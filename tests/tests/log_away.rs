//! What the command line tells while the decision log does not answer, which is when somebody looks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::time::Duration;

use lockstep::{Client, Gtrid, Participant, Sqlite};
use lockstep_tests::harness::coordinator::{Coordinator, Ran};
use lockstep_tests::harness::postgres::PostgresServer;
use lockstep_tests::harness::roles::Roles;
use serde_json::Value;
use sqlx::SqlitePool;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
/// Less than what the coordinator itself waits for its log.
const SOON: &str = "--timeout=4s";

/// A transaction with a branch that is not decided.
async fn begin(bank: &Participant<Sqlite>, url: &str) -> Gtrid {
    let client = Client::connect(url).await.unwrap();
    let tx = client.begin("transfer").timeout(Duration::from_secs(3600)).start().await.unwrap();
    let mut branch = bank.join(&tx.context()).await.unwrap();
    sqlx::raw_sql("INSERT INTO kept VALUES (1)").execute(&mut *branch).await.unwrap();
    branch.finish().await.unwrap();
    let gtrid = tx.gtrid();
    // Dropping it would roll it back.
    std::mem::forget(tx);
    gtrid
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn run(coordinator: &Coordinator, arguments: &[&str]) -> Ran {
    coordinator.run(&[arguments, &[SOON]].concat()).unwrap()
}

/// What every command tells of it then. All are asked at once: each of them waits for the log first.
fn expect_it_is_told(coordinator: &Coordinator, gtrid: &str) {
    let (beginning, _) = gtrid.split_at(20);
    // What is not live cannot be told, and nothing can be done that is not put on record.
    let never = ["tx", "show", "1.0192f0c19f447a018e4f5a6b7c8d9e0f"];
    let rollback = ["tx", "rollback", gtrid, "--dry-run"];
    std::thread::scope(|scope| {
        scope.spawn(|| expect_status(coordinator));
        scope.spawn(|| expect_health(coordinator));
        for id in [gtrid, beginning] {
            scope.spawn(move || expect_show(coordinator, gtrid, id));
        }
        scope.spawn(|| {
            let text = run(coordinator, &["tx", "show", gtrid]);
            assert!(text.stdout.contains("from the coordinator's memory"), "{text:?}");
        });
        for command in [&never[..], &rollback] {
            scope.spawn(move || {
                let ran = run(coordinator, command);
                assert!(ran.code == 1 && ran.stderr.contains("LS0307"), "{command:?}: {ran:?}");
            });
        }
    });
}

fn expect_status(coordinator: &Coordinator) {
    let status = run(coordinator, &["status", "--exit-code", "--json"]);
    assert_eq!(status.code, 6, "{status:?}");
    let status = json(&status);
    assert!(
        status["log_unavailable"].as_str().unwrap().contains("the decision log cannot be read"),
        "{status}"
    );
    for unknown in ["heuristic", "heuristic_open", "log_bytes"] {
        assert!(status[unknown].is_null(), "{unknown}: {status}");
    }
    assert_eq!(status["transactions_in_flight"], 1, "{status}");
    let text = run(coordinator, &["status"]);
    assert_eq!(text.code, 0, "{text:?}");
    assert!(text.stdout.contains("heuristic ?") && text.stdout.contains("cannot be read"), "{text:?}");
}

fn expect_health(coordinator: &Coordinator) {
    let health = run(coordinator, &["health"]);
    assert_eq!(health.code, 6, "{health:?}");
    assert!(health.stdout.contains("fails log the decision log cannot be read"), "{health:?}");
}

fn expect_show(coordinator: &Coordinator, gtrid: &str, id: &str) {
    let shown = run(coordinator, &["tx", "show", id, "--json"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    let shown = json(&shown);
    assert!(shown["log_unavailable"].as_str().unwrap().contains("cannot be read"), "{shown}");
    assert_eq!(
        (&shown["transaction"]["gtrid"], &shown["transaction"]["state"]),
        (&gtrid.into(), &"active".into())
    );
    assert_eq!(shown["databases"][0]["error"], "", "its database is asked all the same: {shown}");
}

#[test]
fn what_is_live_is_told_while_the_log_is_frozen_and_while_it_is_gone() {
    let directory = TempDir::new().unwrap();
    let mut server = PostgresServer::start().unwrap();
    server.create_database("log").unwrap();
    let flags = [&format!("--log={}", server.url("log")), "--migrate-log", "--lease=120s"];
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let mut coordinator = Coordinator::start(&roles, directory.path(), &flags, None).unwrap();
    coordinator.expect_it_serves().unwrap();
    let url = coordinator.url();
    let service = tokio::runtime::Runtime::new().unwrap();
    let (_bank, gtrid) = service.block_on(async {
        let file = format!("sqlite:{}?mode=rwc", directory.path().join("bank.db").display());
        let pool = SqlitePool::connect(&file).await.unwrap();
        sqlx::raw_sql("CREATE TABLE kept (v int)").execute(&pool).await.unwrap();
        let attaching = Participant::builder("bank", Sqlite::new(pool)).coordinator(&url).attach();
        let bank = tokio::time::timeout(PATIENCE, attaching).await.unwrap().unwrap();
        let gtrid = begin(&bank, &url).await;
        (bank, gtrid.to_string())
    });
    let shown = json(&coordinator.run(&["tx", "show", &gtrid, "--json"]).unwrap());
    assert_eq!(shown["log_unavailable"], "", "{shown}");

    server.freeze().unwrap();
    expect_it_is_told(&coordinator, &gtrid);
    server.kill().unwrap();
    expect_it_is_told(&coordinator, &gtrid);

    server.restart().unwrap();
    let again = lockstep_tests::harness::clock::wait_for("the log to be read again", PATIENCE, || {
        let status = coordinator.run(&["status", "--json"])?;
        Ok(serde_json::from_str::<Value>(&status.stdout)
            .ok()
            .filter(|status| status["log_unavailable"] == ""))
    });
    let (status, _) = again.unwrap();
    assert_eq!(status["heuristic_open"], 0, "{status}");
}
