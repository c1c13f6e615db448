//! What an operator asks for at the wrong moment, or at the wrong node: it is refused, and nothing comes of it.
//!
//! Several nodes on one log, services with databases of their own, and the command line.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::path::Path;
use std::time::Duration;

use lockstep::{Client, Gtrid, Participant, Postgres, Sqlite};
use lockstep_tests::harness::clock::wait_for;
use lockstep_tests::harness::coordinator::{Coordinator, Ran};
use lockstep_tests::harness::postgres::{Database, PostgresServer, fresh_database};
use lockstep_tests::harness::roles::Roles;
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{PgPool, SqlitePool};
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(60);
const CHANGE: &str = "UPDATE account SET amount = amount - 1 WHERE id = 1";
/// Nothing that is on its way to the log of the node `b` goes on as long as this file is there.
const HOLD: &str = "hold";

fn roles() -> Roles {
    Roles::played_by(env!("CARGO_BIN_EXE_prove"))
}

fn node(dir: &Path, name: &str, log: &str) -> Coordinator {
    let directory = dir.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let (node, log) = (format!("--node={name}"), format!("--log={log}"));
    let flags = [node.as_str(), &log, "--migrate-log", "--lease=120s", "--report-interval=200ms"];
    let mut coordinator = if name == "b" {
        let held_at = ("log-before-force", dir.join(HOLD));
        Coordinator::start_held(&roles(), &directory, &flags, held_at).unwrap()
    } else {
        Coordinator::start(&roles(), &directory, &flags, None).unwrap()
    };
    coordinator.expect_it_serves().unwrap();
    coordinator
}

/// A service that can be stopped between any two steps, as a process is.
struct Service {
    runtime: Runtime,
    participant: Participant<Postgres>,
    database: Database,
}

impl Service {
    fn start(name: &str, url: &str) -> Self {
        let database = fresh_database();
        database.psql("CREATE TABLE account (id int PRIMARY KEY, amount int NOT NULL)");
        database.psql("INSERT INTO account VALUES (1, 100)");
        let runtime = runtime();
        let participant = runtime.block_on(async {
            let pool = PgPool::connect(&database.url()).await.unwrap();
            let attaching = Participant::builder(name, Postgres::new(pool)).coordinator(url).attach();
            tokio::time::timeout(PATIENCE, attaching).await.unwrap().unwrap()
        });
        Self { runtime, participant, database }
    }

    async fn change(&self, tx: &lockstep::Transaction) {
        let mut branch = self.participant.join(&tx.context()).await.unwrap();
        sqlx::raw_sql(CHANGE).execute(&mut *branch).await.unwrap();
        branch.finish().await.unwrap();
    }

    /// Whatever it is doing.
    fn stop(self) -> Database {
        self.runtime.shutdown_background();
        self.database
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Begins a transaction in both services, and has its commit asked for in the background.
fn commit(client: &Runtime, url: &str, services: [&Service; 2]) -> Gtrid {
    client.block_on(async {
        let client = Client::connect(url).await.unwrap();
        let tx = client.begin("transfer").timeout(PATIENCE).start().await.unwrap();
        let gtrid = tx.gtrid();
        for service in services {
            service.change(&tx).await;
        }
        tokio::spawn(async move { drop(tx.commit().await) });
        gtrid
    })
}

/// Asks until what is answered is so.
fn until(node: &Coordinator, what: &str, arguments: &[&str], so: impl Fn(&Value) -> bool) -> Value {
    let asked = [arguments, &["--json"]].concat();
    let mut last = None;
    let answered = wait_for(what, PATIENCE, || {
        let ran = node.run(&asked)?;
        let json = serde_json::from_str::<Value>(&ran.stdout).ok();
        last = Some(ran);
        Ok(json.filter(|json| so(json)))
    });
    answered.unwrap_or_else(|error| panic!("{error}: {last:?}")).0
}

fn show(node: &Coordinator, id: &str, what: &str, so: impl Fn(&Value) -> bool) -> Value {
    until(node, what, &["tx", "show", id, "--offline"], |shown| so(&shown["transaction"]))
}

fn refused(ran: &Ran, code: &str) {
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains(code), "{ran:?}");
}

fn expect_nothing_on_record(node: &Coordinator) {
    let audit = node.ask(&["audit", "ls"]).unwrap();
    assert_eq!(audit["entries"].as_array().unwrap().len(), 0, "{audit}");
}

/// P14, P21: also a node whose log lacks something leaves another node's transaction to that node.
#[test]
fn a_live_transaction_of_another_node_is_no_orphan_though_the_log_is_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = PostgresServer::start().unwrap();
    server.create_database("log").unwrap();
    let log = server.url("log");
    let [mut a, b, mut c] = ["a", "b", "c"].map(|name| node(dir.path(), name, &log));
    let services = ["orders-db", "ledger-db"].map(|name| Service::start(name, &c.url()));
    let [orders, ledger] = &services;
    let client = runtime();
    // What they have seen of the newest epoch is what the log then loses.
    let seen = commit(&client, &c.url(), [orders, ledger]).to_string();
    show(&c, &seen, "its end", |transaction| transaction["state"] == "ended");

    std::fs::write(dir.path().join(HOLD), "").unwrap();
    let gtrid = commit(&client, &b.url(), [orders, ledger]).to_string();
    show(&b, &gtrid, "its votes", |transaction| transaction["state"] == "deciding");
    c.process().kill().unwrap();
    server
        .psql("log", "UPDATE lockstep_log.positions SET sequence = 0 WHERE epoch = (SELECT max(number) FROM lockstep_log.epochs)")
        .unwrap();
    a.process().kill().unwrap();
    a.start_again(None).unwrap();
    a.expect_it_serves().unwrap();
    until(&a, "both to attach", &["participants", "ls"], |list| {
        list["participants"].as_array().unwrap().iter().all(|one| one["down_since"].is_null())
    });
    until(&a, "the loss to be noticed", &["status"], |status| status["log_behind"] == true);

    refused(&a.run(&["orphans", "resolve", &gtrid, "--rollback", "--dry-run"]).unwrap(), "LS0428");
    let shown = a.run(&["tx", "show", &gtrid]).unwrap();
    refused(&shown, "LS0428");
    assert!(shown.stderr.contains(&b.url()), "it says where it is: {shown:?}");
    std::fs::remove_file(dir.path().join(HOLD)).unwrap();
    let shown = show(&b, &gtrid, "its end", |transaction| transaction["state"] == "ended");
    assert_eq!(shown["transaction"]["outcome"], "committed", "{shown}");
    let listed = b.ask(&["tx", "ls", "--all"]).unwrap();
    assert!(
        listed["transactions"].as_array().unwrap().iter().all(|one| !one["decided"].is_null()),
        "{listed}"
    );
    for service in services {
        let amount = service.stop().psql("SELECT amount FROM account");
        assert_eq!(amount.trim(), "98");
    }
    server.stop().unwrap();
}

/// What is delivered by one node is not held back, or given up, at another one: that says so, and where to ask.
#[test]
fn an_action_at_a_node_that_does_not_have_the_transaction_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = fresh_database();
    let [a, b] = ["a", "b"].map(|name| node(dir.path(), name, &log.url()));
    let [orders, ledger] = ["orders-db", "ledger-db"].map(|name| Service::start(name, &b.url()));
    std::fs::write(dir.path().join(HOLD), "").unwrap();
    let client = runtime();
    let gtrid = commit(&client, &b.url(), [&orders, &ledger]).to_string();
    show(&b, &gtrid, "its votes", |transaction| transaction["state"] == "deciding");
    let _database = orders.stop();
    std::fs::remove_file(dir.path().join(HOLD)).unwrap();
    let shown = show(&b, &gtrid, "the decision", |transaction| transaction["situation"] == "undelivered");
    for branch in shown["transaction"]["branches"].as_array().unwrap() {
        assert_eq!(branch["vote"], "commit", "{shown}");
    }

    let reason = ["--reason", "its disk is lost"];
    let pause = [&["tx", "pause", &gtrid], &reason[..]].concat();
    let abandon = [&["tx", "abandon", &gtrid, "--resource", "orders-db", "--confirm", &gtrid], &reason[..]];
    for action in [&pause, &abandon.concat()] {
        // A node is told of the others once a second.
        wait_for("it to say where to ask", PATIENCE, || {
            let ran = a.run(action)?;
            refused(&ran, "LS0428");
            Ok(ran.stderr.contains(&b.url()).then_some(()))
        })
        .unwrap();
    }
    expect_nothing_on_record(&a);
    let shown = show(&b, &gtrid, "it", |_shown| true);
    assert_eq!(shown["transaction"]["paused"], false, "{shown}");
    assert_eq!(shown["transaction"]["situation"], "undelivered", "{shown}");

    let retire = ["participants", "retire", "orders-db", "--dry-run"];
    until(&a, "who else is to be asked", &retire, |plan| plan["plan"].to_string().contains(&b.url()));
    what_fails_is_on_record(&b, &gtrid);
    let ran = b.run(&abandon.concat()).unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    show(&b, &gtrid, "its branch to be given up", |transaction| transaction["outcome"] == "heuristic");
    drop(ledger.stop());
}

/// A retry of what is held back sends nothing, which shows behind its record.
fn what_fails_is_on_record(node: &Coordinator, gtrid: &str) {
    assert_eq!(node.run(&["tx", "pause", gtrid, "--reason", "repair"]).unwrap().code, 0);
    let ran = node.run(&["tx", "retry", gtrid, "--reason", "in a hurry"]).unwrap();
    refused(&ran, "LS0429");
    let audit = node.ask(&["audit", "ls", gtrid]).unwrap();
    let [failure, retry, _pause] = audit["entries"].as_array().unwrap().as_slice() else {
        panic!("three records: {audit}")
    };
    assert!(ran.stderr.contains(&format!("audit {}", retry["id"])), "{ran:?}");
    assert_eq!((&failure["action"], &failure["reason"]), (&retry["action"], &retry["reason"]), "{audit}");
    let names_it = failure["before"].as_str().unwrap().starts_with(&format!("audit {}:", retry["id"]));
    assert!(names_it && failure["after"].as_str().unwrap().starts_with("failed: "), "{audit}");
}

async fn serve(file: &Path, url: &str) -> Result<Participant<Sqlite>, String> {
    let file = SqliteConnectOptions::new().filename(file).journal_mode(SqliteJournalMode::Wal);
    let pool = SqlitePool::connect_with(file).await.unwrap();
    let attaching = Participant::builder("bank-a", Sqlite::new(pool)).coordinator(url).attach();
    tokio::time::timeout(PATIENCE, attaching).await.unwrap().map_err(|error| error.to_string())
}

/// P21: a copy of a database that still takes part does not take part as well.
#[test]
fn a_database_that_is_attached_has_not_moved() {
    let dir = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(&roles(), dir.path(), &[], None).unwrap();
    coordinator.expect_it_serves().unwrap();
    let url = coordinator.url();
    let [original, copy] = ["bank.db", "copy.db"].map(|name| dir.path().join(name));
    let service = runtime();
    let served = service.block_on(async {
        let created = SqliteConnectOptions::new().filename(&original).create_if_missing(true);
        let pool = SqlitePool::connect_with(created.journal_mode(SqliteJournalMode::Wal)).await.unwrap();
        sqlx::raw_sql("CREATE TABLE kept (n INTEGER PRIMARY KEY)").execute(&pool).await.unwrap();
        let served = serve(&original, &url).await.unwrap();
        sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&pool).await.unwrap();
        pool.close().await;
        served
    });
    std::fs::copy(&original, &copy).unwrap();
    let other = runtime();
    let told = other.block_on(serve(&copy, &url)).map(drop).unwrap_err();
    assert!(told.contains("LS0505"), "{told}");

    let rebind = ["participants", "rebind", "bank-a"];
    refused(&coordinator.run(&[&rebind[..], &["--dry-run"]].concat()).unwrap(), "LS0430");
    let meant = ["--reason", "it has moved", "--confirm", "bank-a"];
    refused(&coordinator.run(&[&rebind[..], &meant].concat()).unwrap(), "LS0430");
    expect_nothing_on_record(&coordinator);

    service.shutdown_background();
    drop(served);
    // Its session ends when its connection does.
    let plan =
        until(&coordinator, "its session's end", &[&rebind[..], &["--dry-run"]].concat(), |_plan| true);
    let confirm = plan["confirm"].as_str().unwrap();
    let meant = ["--reason", "it has moved", "--confirm", confirm];
    let ran = coordinator.run(&[&rebind[..], &meant].concat()).unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    let moved = other.block_on(serve(&copy, &url)).unwrap();
    let told = other.block_on(serve(&original, &url)).map(drop).unwrap_err();
    assert!(told.contains("LS0505"), "{told}");
    drop(moved);
}
