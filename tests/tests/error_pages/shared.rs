//! Logs in PostgreSQL.

use std::path::Path;
use std::time::Duration;

use lockstep::Client;
use lockstep_coordinator::codes::Code;
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::postgres::PostgresServer;
use lockstep_tests::operators::pages::Names;
use tempfile::TempDir;

use super::book::{Book, roles};

pub(crate) const MEETS: &[Code] = &[
    Code::CannotOpenLog,
    Code::NewerLog,
    Code::NotDurable,
    Code::NoSchema,
    Code::LogClock,
    Code::LogUnavailable,
    Code::OtherCoordinator,
    Code::NodesRunning,
    Code::EpochsUsedUp,
];

fn node(dir: &Path, name: &str, log: &str) -> Coordinator {
    let directory = dir.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let (node, log) = (format!("--node={name}"), format!("--log={log}"));
    let flags = [node.as_str(), &log, "--migrate-log", "--lease=10s"];
    let mut coordinator = Coordinator::start(&roles(), &directory, &flags, None).unwrap();
    coordinator.expect_it_serves().unwrap();
    coordinator
}

#[tokio::main]
async fn begin(url: &str) -> String {
    let client = Client::connect(url).await.unwrap();
    let tx = client.begin("try").timeout(Duration::from_secs(3600)).start().await.unwrap();
    let gtrid = tx.gtrid();
    // Dropping it would roll it back.
    std::mem::forget(tx);
    gtrid.to_string()
}

#[test]
fn a_log_in_postgres_that_cannot_be_used_says_why() {
    let dir = TempDir::new().unwrap();
    let mut server = PostgresServer::start().unwrap();
    server.create_database("log").unwrap();
    let (log, flag) = (server.url("log"), format!("--log={}", server.url("log")));
    let names = Names { log: &log, ..Names::default() };
    let mut book = Book::new();
    let serve = ["serve", "--listen=127.0.0.1:0", &flag];
    let nowhere = "--log=postgres://nobody@127.0.0.1:9/none";
    for command in
        [&["cluster", "ls"][..], &["migrate"], &["restore", "--dry-run"], &["serve", "--listen=127.0.0.1:0"]]
    {
        book.fails(Code::CannotOpenLog, &names, &[command, &[nowhere]].concat());
    }
    // Its page has it migrated.
    book.fails(Code::NoSchema, &names, &serve);

    server.configure(&[("fsync", "off")]).unwrap();
    server.restart().unwrap();
    book.fails(Code::NotDurable, &names, &serve);
    server.configure(&[("fsync", "on")]).unwrap();
    server.restart().unwrap();

    // A server whose clock is an hour ahead.
    server
        .psql(
            "log",
            "CREATE SCHEMA ahead; CREATE FUNCTION ahead.clock_timestamp() RETURNS timestamptz LANGUAGE sql \
               AS 'SELECT pg_catalog.clock_timestamp() + interval ''1 h'''; \
               ALTER DATABASE log SET search_path = ahead, pg_catalog",
        )
        .unwrap();
    book.fails(Code::LogClock, &names, &serve);
    server.psql("log", "ALTER DATABASE log RESET search_path").unwrap();

    two_nodes(&mut book, &names, dir.path(), &mut server);
    server.psql("log", "UPDATE lockstep_log.epochs SET sealed = true, owner = number").unwrap();
    server.psql("log", "UPDATE lockstep_log.leases SET expires_at = '-infinity'").unwrap();
    server.psql("log", "INSERT INTO lockstep_log.epochs (number, incarnation) VALUES (4294967295, decode(repeat('00', 16), 'hex'))").unwrap();
    book.fails(Code::EpochsUsedUp, &names, &["restore", "--dry-run", &flag]);
    server
        .psql(
            "log",
            "INSERT INTO lockstep_log.migrations (version, description, success, checksum, execution_time) \
                        VALUES (99991231000000, 'of a newer version', true, '', 0)",
        )
        .unwrap();
    for command in [&["cluster", "ls"][..], &["migrate"], &["restore", "--dry-run"]] {
        book.fails(Code::NewerLog, &names, &[command, &[&flag]].concat());
    }
    book.has_met(MEETS);
}

fn two_nodes(book: &mut Book, names: &Names<'_>, dir: &Path, server: &mut PostgresServer) {
    let (a, b) = (node(dir, "a", names.log), node(dir, "b", names.log));
    let gtrid = begin(&a.url());
    let url = b.url();
    let names = Names { server: &url, id: &gtrid, ..*names };
    book.fails(Code::OtherCoordinator, &names, &["orphans", "resolve", &gtrid, "--rollback", "--dry-run"]);
    let flag = format!("--log={}", names.log);
    book.fails(Code::NodesRunning, &names, &["restore", "--dry-run", &flag]);
    server.freeze().unwrap();
    book.fails(Code::LogUnavailable, &names, &["tx", "ls", "--all", "--timeout=60s"]);
    server.kill().unwrap();
    server.restart().unwrap();
}
