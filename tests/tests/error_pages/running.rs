//! What a running coordinator refuses.

use std::path::Path;
use std::time::Duration;

use lockstep::{Client, Gtrid, Participant, Sqlite};
use lockstep_coordinator::codes::Code;
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::operators::pages::Names;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use tempfile::TempDir;

use super::book::{Book, PATIENCE, roles};

pub(crate) const MEETS: &[Code] = &[
    Code::Ambiguous,
    Code::MalformedId,
    Code::OutOfLimits,
    Code::NotFound,
    Code::NoSuchParticipant,
    Code::ForeignCluster,
    Code::TransactionLimit,
    Code::Draining,
    Code::NoReason,
    Code::NotConfirmed,
    Code::IdentityMismatch,
];

async fn begin(client: &Client) -> Result<Gtrid, String> {
    let tx = client.begin("try").timeout(Duration::from_secs(3600)).start().await;
    let tx = tx.map_err(|error| error.to_string())?;
    let gtrid = tx.gtrid();
    // Dropping it would roll it back.
    std::mem::forget(tx);
    Ok(gtrid)
}

async fn attach(dir: &Path, name: &str, url: &str) -> Result<Participant<Sqlite>, String> {
    std::fs::create_dir_all(dir).unwrap();
    let file = SqliteConnectOptions::new().filename(dir.join("kept.db")).create_if_missing(true);
    let pool = SqlitePool::connect_with(file.journal_mode(SqliteJournalMode::Wal)).await.unwrap();
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS kept (n INTEGER PRIMARY KEY)").execute(&pool).await.unwrap();
    let attaching = Participant::builder(name, Sqlite::new(pool)).coordinator(url).attach();
    tokio::time::timeout(PATIENCE, attaching).await.unwrap().map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_running_coordinator_says_why_it_refuses() {
    let dir = TempDir::new().unwrap();
    let mut coordinator = Coordinator::start(&roles(), dir.path(), &["--max-in-flight=2"], None).unwrap();
    coordinator.expect_it_serves().unwrap();
    let url = coordinator.url();
    let client = Client::connect(&url).await.unwrap();
    let first = begin(&client).await.unwrap().to_string();
    let second = begin(&client).await.unwrap().to_string();
    let names = Names { server: &url, id: &first, ..Names::default() };
    let mut book = Book::new();

    book.meets(Code::TransactionLimit, &names, &begin(&client).await.unwrap_err());
    let short = client.begin("try").timeout(Duration::from_millis(1)).start().await.unwrap_err();
    book.meets(Code::OutOfLimits, &names, &short.to_string());
    let alike = first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count();
    book.fails(Code::Ambiguous, &names, &["tx", "show", &first[..alike]]);
    book.fails(Code::NotFound, &names, &["tx", "show", "ffff"]);
    book.fails(Code::NoSuchParticipant, &names, &["participants", "show", "nobody"]);
    book.fails(Code::MalformedId, &names, &["participants", "retire", "No Name", "--dry-run"]);
    book.fails(Code::ForeignCluster, &names, &["tx", "wait", &first, "--cluster=00000000"]);
    book.fails(Code::NoReason, &names, &["tx", "rollback", &first, "--reason", " ", "--confirm", &first]);
    book.fails(Code::NotConfirmed, &names, &["tx", "rollback", &first, "--reason", "test"]);

    let _attached = attach(&dir.path().join("one"), "twice-db", &url).await.unwrap();
    let names = Names { name: "twice-db", ..names };
    let refused = attach(&dir.path().join("two"), "twice-db", &url).await.map(drop).unwrap_err();
    book.meets(Code::IdentityMismatch, &names, &refused);

    let drained = coordinator.run(&["drain", "--reason", "test"]).unwrap();
    assert_eq!(drained.code, 0, "{drained:?}");
    let told = begin(&client).await.unwrap_err();
    book.meets(Code::Draining, &names, &told);
    book.has_met(MEETS);
}
