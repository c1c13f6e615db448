//! The decision log in PostgreSQL, against real servers: the contract of every log, and each rule of protocol.md that holds it
//! together when several nodes share it.
//!
//! Every log here is opened with a lease that has run out already unless the test says otherwise, and seals at once all whose lease has run
//! out, which a node does only when it has waited for them.

#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it should be")]

mod costs;
mod fencing;
mod floors;
mod nodes;
mod opening;
mod replication;
mod settings;
mod takeover;
mod tls;
mod unknown_results;

use std::time::Duration;

use lockstep_coordinator::decision_log::contract::{Store, decisions};
use lockstep_coordinator::decision_log::postgres::{self, Accepted, Options, PostgresLog};
use lockstep_coordinator::decision_log::restore::{Order, Restoration, RestoreError};
use lockstep_coordinator::decision_log::{DecisionLog, LookUp};
use lockstep_coordinator::engine::clock::unix_ms;
use lockstep_coordinator::protocol::record::DecisionRecord;
use lockstep_proto::{Epoch, Gtrid};
use lockstep_tests::harness::postgres::{Database, PostgresServer, fresh_database};

/// Longer than anything takes here on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// An empty database.
struct TempPostgres(Database);

impl Store for TempPostgres {
    type Log = PostgresLog;

    async fn create() -> Self {
        Self(fresh_database())
    }

    async fn open(&self) -> PostgresLog {
        open(&options(&self.0.url(), "node")).await
    }

    async fn restore(&self, order: &Order) -> Result<Restoration, RestoreError> {
        postgres::restore(&self.0.url(), Accepted::default(), order).await
    }
}

lockstep_coordinator::decision_log_contract!(TempPostgres);

/// Of a node whose lease is over as soon as it is given.
fn options(url: &str, node: &str) -> Options {
    Options {
        url: url.to_owned(),
        migrate: true,
        accepted: Accepted::default(),
        node: node.to_owned(),
        address: Some(format!("http://{node}:7420")),
        succeeds: false,
        lease: Duration::ZERO,
        patience: LONG,
        now_ms: unix_ms(),
    }
}

/// Of a node that nobody takes over from while a test runs.
fn leased(url: &str, node: &str) -> Options {
    Options { lease: 10 * LONG, ..options(url, node) }
}

async fn open(options: &Options) -> PostgresLog {
    let (log, _opened) = PostgresLog::open(options).await.unwrap();
    log.take_over().await.unwrap();
    log
}

fn own(log: &PostgresLog) -> Epoch {
    log.position().epoch
}

async fn look(log: &PostgresLog, gtrid: Gtrid) -> LookUp {
    log.look_up(&[gtrid]).await.unwrap().remove(0)
}

/// Forces one decision.
async fn decide(
    log: &PostgresLog,
    decision: &DecisionRecord,
) -> Result<(), lockstep_coordinator::decision_log::AppendError> {
    log.force(&decisions(std::slice::from_ref(decision))).await.map(drop)
}

/// Waits until this query of the database, which answers yes or no, says yes.
async fn until(database: &Database, what: &str, query: &str) {
    let deadline = tokio::time::Instant::now() + LONG;
    while database.psql(query) != "t" {
        assert!(tokio::time::Instant::now() < deadline, "waited {LONG:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes every insert of a transaction wait, inside of its statement, as long as [`Gate`] is held.
struct Gate(sqlx::PgConnection);

const GATE: &str = "CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS \
     'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NEW; END'; \
     CREATE TRIGGER gate BEFORE INSERT ON lockstep_log.transactions FOR EACH ROW EXECUTE FUNCTION wait_at_gate()";

/// Whether a write stands at the gate.
const AT_GATE: &str =
    "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted";

impl Gate {
    /// Closes it.
    async fn close(database: &Database) -> Self {
        use sqlx::Connection as _;
        database.psql(GATE);
        let mut connection = sqlx::PgConnection::connect(&database.url()).await.unwrap();
        sqlx::raw_sql("SELECT pg_advisory_lock(42)").execute(&mut connection).await.unwrap();
        Self(connection)
    }

    /// Lets everything through.
    async fn open(mut self) {
        sqlx::raw_sql("SELECT pg_advisory_unlock(42)").execute(&mut self.0).await.unwrap();
    }
}

/// Has the server's commits wait for a standby that there is none of, or not.
fn wait_for_nobody(server: &PostgresServer, wait: bool) {
    let names = if wait { "= 'nobody'" } else { "= ''" };
    server.psql("postgres", &format!("ALTER SYSTEM SET synchronous_standby_names {names}")).unwrap();
    server.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    let now = "SELECT current_setting('synchronous_standby_names') <> ''";
    let deadline = tokio::time::Instant::now() + LONG;
    while (server.psql("postgres", now).unwrap() == "t") != wait {
        assert!(tokio::time::Instant::now() < deadline, "the setting does not count");
    }
}

/// Waits until this query of a server's own database says yes.
async fn until_at(server: &PostgresServer, what: &str, query: &str) {
    let deadline = tokio::time::Instant::now() + LONG;
    while server.psql("postgres", query).unwrap() != "t" {
        assert!(tokio::time::Instant::now() < deadline, "waited {LONG:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
