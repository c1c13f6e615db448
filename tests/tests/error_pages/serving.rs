//! Coordinators that do not start, or cannot go on.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use lockstep::Client;
use lockstep_coordinator::codes::Code;
use lockstep_tests::harness::clock::wait_for;
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::operators::pages::Names;
use rustix::process::Signal;
use tempfile::TempDir;

use super::book::{Book, PATIENCE, command, roles, run};

pub(crate) const MEETS: &[Code] = &[
    Code::CannotListen,
    Code::DataDirInUse,
    Code::NewerLog,
    Code::NoRoom,
    Code::LogDamaged,
    Code::CannotOpenLog,
    Code::LogFailed,
    Code::Bug,
    Code::EndedAtOnce,
    Code::DiskFull,
    Code::NotRestored,
    Code::ForeignCluster,
    Code::LogBehind,
];

/// A file system of its own for the process, of so many bytes, at `place`.
fn own_disk(place: &Path, size: &str) -> Roles {
    let mount = format!("mount -t tmpfs -o size={size} tmpfs '{}' && exec \"$@\"", place.display());
    let words = ["unshare", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"];
    roles().under(words.map(str::to_owned))
}

fn start(roles: &Roles, dir: &Path, flags: &[&str]) -> Coordinator {
    let mut coordinator = Coordinator::start(roles, dir, flags, None).unwrap();
    coordinator.expect_it_serves().unwrap();
    coordinator
}

/// What it has said on stderr.
fn said(coordinator: &Coordinator) -> String {
    fs::read_to_string(coordinator.log()).unwrap()
}

/// Begins a transaction, or what it was told.
fn begin(url: &str) -> Result<lockstep::Gtrid, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(url).await.unwrap();
        let tx = client.begin("try").timeout(Duration::from_secs(3600)).start().await;
        let tx = tx.map_err(|error| error.to_string())?;
        let gtrid = tx.gtrid();
        // Dropping it would roll it back.
        std::mem::forget(tx);
        Ok(gtrid)
    })
}

#[test]
fn a_coordinator_that_cannot_start_or_go_on_says_why() {
    let dir = TempDir::new().unwrap();
    let mut book = Book::new();
    let coordinator = start(&roles(), dir.path(), &[]);
    let data = coordinator.data_directory().display().to_string();
    let (url, data_dir) = (coordinator.url(), format!("--data-dir={data}"));
    let names = Names { server: &url, data_dir: &data, ..Names::default() };
    let address = url.strip_prefix("http://").unwrap();
    let other = format!("--data-dir={}", dir.path().join("other").display());
    book.fails(Code::CannotListen, &names, &["serve", "--listen", address, &other]);
    book.fails(Code::DataDirInUse, &names, &["serve", "--listen=127.0.0.1:0", &data_dir]);
    book.fails(Code::DataDirInUse, &names, &["log", "inspect", &data_dir]);
    book.fails(Code::DataDirInUse, &names, &["restore", "--dry-run", &data_dir]);
    ended_at_once(&mut book, &names, coordinator);
    book.fails(Code::NotRestored, &names, &["restore", "--settled", "--dry-run", &data_dir]);
    book.fails(Code::ForeignCluster, &names, &["restore", "--confirm=zzzzzzzz", "--reason=test", &data_dir]);
    a_file_of_it(&mut book, &names, &data_dir, Path::new(&data));
    a_backup(&mut book, &names, &data_dir, dir.path());

    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let no_directory = format!("--data-dir={}", file.display());
    book.fails(Code::CannotOpenLog, &names, &["serve", "--listen=127.0.0.1:0", &no_directory]);
    full(&mut book, &names);
    failing(&mut book, &names);
    broken(&mut book, &names);
    book.has_met(MEETS);
}

fn ended_at_once(book: &mut Book, names: &Names<'_>, mut coordinator: Coordinator) {
    begin(&coordinator.url()).unwrap();
    coordinator.process().signal(Signal::TERM).unwrap();
    wait_for("the drain", PATIENCE, || Ok(said(&coordinator).contains("draining").then_some(()))).unwrap();
    coordinator.process().signal(Signal::TERM).unwrap();
    coordinator.process().wait(PATIENCE).unwrap();
    book.meets(Code::EndedAtOnce, names, &said(&coordinator));
}

/// A log of a newer version, and one that is not what was written.
fn a_file_of_it(book: &mut Book, names: &Names<'_>, data_dir: &str, data: &Path) {
    let version = data.join("lockstep.version");
    fs::write(&version, "2\n").unwrap();
    for arguments in [
        &["serve", "--listen=127.0.0.1:0"][..],
        &["log", "inspect"],
        &["restore", "--dry-run"],
        &["backup", "elsewhere"],
    ] {
        let ran = book.fails(Code::NewerLog, names, &[arguments, &[data_dir]].concat());
        // What can be read of it is shown all the same.
        assert_eq!(ran.stdout.contains("on record"), arguments[0] == "log", "{ran:?}");
    }
    fs::remove_file(&version).unwrap();
    book.fails(Code::LogDamaged, names, &["serve", "--listen=127.0.0.1:0", data_dir]);
    fs::write(&version, "1\n").unwrap();
}

/// A coordinator that is started on a backup begins nothing.
fn a_backup(book: &mut Book, names: &Names<'_>, data_dir: &str, dir: &Path) {
    let restored = dir.join("restored");
    let into = restored.join("coordinator").display().to_string();
    let mut backup = command(&roles(), names.server, &["backup", &into, data_dir]);
    backup.stdout(Stdio::piped());
    let ran = run(backup);
    assert_eq!(ran.code, 0, "{ran:?}");
    let coordinator = start(&roles(), &restored, &[]);
    let url = coordinator.url();
    let names = Names { server: &url, data_dir: &into, ..*names };
    book.meets(Code::LogBehind, &names, &begin(&url).unwrap_err());
}

/// Too little room at the start, and later.
fn full(book: &mut Book, names: &Names<'_>) {
    let dir = TempDir::new().unwrap();
    let small = own_disk(dir.path(), "1m");
    let flag = format!("--data-dir={}", dir.path().join("data").display());
    let mut serve = command(&small, names.server, &["serve", "--listen=127.0.0.1:0", &flag]);
    serve.stdout(Stdio::piped());
    book.meets(Code::NoRoom, names, &run(serve).stderr);

    // Where its directory is there is a disk of its own, which is filled behind its back.
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("coordinator")).unwrap();
    let roles = own_disk(&dir.path().join("coordinator"), "70m");
    let mut coordinator = start(&roles, dir.path(), &[]);
    let seen = format!("/proc/{}/root{}", coordinator.process().id(), coordinator.data_directory().display());
    fs::write(Path::new(&seen).join("fill"), vec![0; 66 << 20]).unwrap();
    let url = coordinator.url();
    let names = Names { server: &url, ..*names };
    let (told, _) = wait_for("the disk to be found full", PATIENCE, || Ok(begin(&url).err())).unwrap();
    book.meets(Code::DiskFull, &names, &told);
}

/// A file that may not grow any more: every write behind that fails.
fn failing(book: &mut Book, names: &Names<'_>) {
    let dir = TempDir::new().unwrap();
    // The log's files are below that; what goes beyond is refused, and nobody is killed for it.
    let limited = "trap '' XFSZ; ulimit -f 400; exec \"$@\"";
    let roles = roles().under(["sh", "-c", limited, "sh"].map(str::to_owned));
    let mut coordinator = start(&roles, dir.path(), &["--report-interval=1s"]);
    let url = coordinator.url();
    let ended = wait_for("the log to fail", PATIENCE, || {
        // Each drain is forced to the log, and so goes on writing.
        for _ in 0..20 {
            let mut drain = command(&roles, &url, &["drain", "--reason", &"x".repeat(1000)]);
            drain.stdout(Stdio::null());
            drop(run(drain));
        }
        coordinator.process().try_reap()
    });
    ended.unwrap();
    book.meets(Code::LogFailed, names, &said(&coordinator));
}

/// A part of the coordinator panics.
fn broken(book: &mut Book, names: &Names<'_>) {
    let dir = TempDir::new().unwrap();
    let panics = ["env", "LOCKSTEP_TEST_PANIC_POINT=log-before-force"].map(str::to_owned);
    // What is in the environment is removed by the harness, and put there again behind it.
    let roles = roles().under(panics);
    let mut coordinator = start(&roles, dir.path(), &[]);
    let url = coordinator.url();
    coordinator_commits(&url, dir.path());
    coordinator.process().wait(PATIENCE).unwrap();
    book.meets(Code::Bug, names, &said(&coordinator));
}

/// Has a participant commit something, which goes to the log.
fn coordinator_commits(url: &str, dir: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let file =
            sqlx::sqlite::SqliteConnectOptions::new().filename(dir.join("a.db")).create_if_missing(true);
        let file = file.journal_mode(sqlx::sqlite::SqliteJournalMode::Wal);
        let pool = sqlx::SqlitePool::connect_with(file).await.unwrap();
        sqlx::raw_sql("CREATE TABLE kept (n INTEGER PRIMARY KEY)").execute(&pool).await.unwrap();
        let attaching = lockstep::Participant::builder("a", lockstep::Sqlite::new(pool)).coordinator(url);
        let participant = tokio::time::timeout(PATIENCE, attaching.attach()).await.unwrap().unwrap();
        let client = Client::connect(url).await.unwrap();
        let tx = client.begin("try").start().await.unwrap();
        let mut branch = participant.join(&tx.context()).await.unwrap();
        sqlx::raw_sql("INSERT INTO kept VALUES (1)").execute(&mut *branch).await.unwrap();
        branch.finish().await.unwrap();
        // It is not told: the coordinator ends meanwhile.
        let _told = tokio::time::timeout(PATIENCE, tx.commit()).await;
    });
    runtime.shutdown_background();
}
