//! Commands that fail by themselves.

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::process::Stdio;

use lockstep::{Client, Participant, Sqlite};
use lockstep_coordinator::codes::Code;
use lockstep_tests::operators::pages::Names;
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use tempfile::TempDir;

use super::book::{Book, command, roles, run};

pub(crate) const MEETS: &[Code] = &[
    Code::WrongCommandLine,
    Code::WrongConfiguration,
    Code::WrongAddress,
    Code::SharedLogOnly,
    Code::EmbeddedLogOnly,
    Code::NothingAnswers,
    Code::NoAnswerInTime,
    Code::NoCoordinator,
    Code::Unfit,
    Code::OutputFailed,
    Code::SystemRefuses,
    Code::NoLogThere,
    Code::BackupFailed,
    Code::DatabaseUnreachable,
];

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:9";

#[test]
fn a_command_that_fails_by_itself_says_why() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data").display().to_string();
    let names = Names { server: NOBODY, data_dir: &data, ..Names::default() };
    let mut book = Book::new();
    book.fails(Code::WrongCommandLine, &names, &["tx", "mend"]);
    book.fails(Code::WrongConfiguration, &names, &["config", "check", "--retention", "yesterday"]);
    book.fails(Code::SharedLogOnly, &names, &["cluster", "ls", "--data-dir", &data]);
    book.fails(Code::SharedLogOnly, &names, &["migrate", "--data-dir", &data]);
    let shared = "--log=postgres://nobody@127.0.0.1:9/none";
    book.fails(Code::EmbeddedLogOnly, &names, &["log", "inspect", shared]);
    book.fails(Code::EmbeddedLogOnly, &names, &["backup", &data, shared]);
    book.fails(Code::NothingAnswers, &names, &["status"]);
    for arguments in [&["restore", "--dry-run"][..], &["log", "inspect"], &["backup", "elsewhere"]] {
        book.fails(Code::NoLogThere, &names, &[arguments, &["--data-dir", &data]].concat());
    }
    assert!(!dir.path().join("data").exists(), "nothing was made");
    let nowhere = "postgres://nobody@127.0.0.1:9/none";
    book.fails(Code::DatabaseUnreachable, &names, &["doctor", "--postgres", nowhere]);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", listener.local_addr().unwrap());
    book.fails(Code::NoAnswerInTime, &names, &["status", "--server", &silent, "--timeout=300ms"]);
    std::thread::spawn(move || {
        // Each connection is closed as soon as it is there.
        while listener.accept().is_ok() {}
    });
    book.fails(Code::NoCoordinator, &names, &["status", "--server", &silent]);

    // What goes to a disk that is full.
    let mut full = command(&roles(), NOBODY, &["config", "show"]);
    full.stdout(Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap()));
    book.meets(Code::OutputFailed, &names, &run(full).stderr);
    // A process that may open no more files than it was started with.
    let few = roles().under(["prlimit", "--nofile=4"].map(str::to_owned));
    let mut few = command(&few, NOBODY, &["status"]);
    few.stdout(Stdio::piped());
    book.meets(Code::SystemRefuses, &names, &run(few).stderr);

    no_backup(&mut book, &names, &dir);
    of_the_sdk(&mut book, &names, &dir);
    book.has_met(MEETS);
}

fn no_backup(book: &mut Book, names: &Names<'_>, dir: &TempDir) {
    let (log, into) = (dir.path().join("log"), dir.path().join("full"));
    fs::create_dir_all(&into).unwrap();
    fs::write(into.join("something"), "").unwrap();
    // Enough of a log to be looked for.
    fs::create_dir_all(&log).unwrap();
    fs::write(log.join("decisions.db"), "").unwrap();
    let into = into.display().to_string();
    book.fails(Code::BackupFailed, names, &["backup", &into, "--data-dir", &log.display().to_string()]);
}

#[tokio::main]
async fn of_the_sdk(book: &mut Book, names: &Names<'_>, dir: &TempDir) {
    let error = Client::connect("nonsense").await.unwrap_err();
    book.meets(Code::WrongAddress, names, &error.to_string());
    // A table of a kind that cannot be captured.
    let file = SqliteConnectOptions::new().filename(dir.path().join("unfit.db")).create_if_missing(true);
    let pool = SqlitePool::connect_with(file).await.unwrap();
    sqlx::raw_sql("CREATE VIRTUAL TABLE texts USING fts5(body)").execute(&pool).await.unwrap();
    let attaching = Participant::builder("unfit-db", Sqlite::new(pool)).coordinator(NOBODY).attach();
    let error = attaching.await.map(drop).unwrap_err();
    book.meets(Code::Unfit, names, &error.to_string());
}
