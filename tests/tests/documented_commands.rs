//! Every command that README.md and the pages of docs/ show is run by a shell, as it stands there (a coordinator with `exec env` before it): against
//! a running coordinator, a log that nobody has, and real databases. Only names are other ones. (The runbook's are followed in their
//! situations: `operators.rs`; those of the error pages too: `error_pages`. demo.md shows what the demo's acts run: its own tests compare
//! them.)

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lockstep::Client;
use lockstep_tests::harness::clock::wait_for;
use lockstep_tests::harness::coordinator::{Coordinator, LAST_OF_BANNER};
use lockstep_tests::harness::mariadb::MariaDbServer;
use lockstep_tests::harness::postgres::PostgresServer;
use lockstep_tests::harness::process::{Process, Reaped};
use lockstep_tests::harness::roles::Roles;
use rustix::process::Signal;
use tempfile::TempDir;

/// How long a coordinator may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
const PROVE: &str = env!("CARGO_BIN_EXE_prove");
/// The transaction that the pages show.
const SHOWN: &str = "12.0192f0c19f447a018e4f5a6b7c8d9e0f";
/// What some of them shorten it to.
const SHORTENED: &str = "12.0192f0c19f";

/// The lines that a page shows to be typed, and in the README also what it names on the way.
fn shown(page: &str, text: &str) -> Vec<String> {
    let typed = text.lines().filter_map(|line| line.trim_start().strip_prefix("$ "));
    let mut all: Vec<String> = typed.filter(|line| line.contains("lockstep ")).map(str::to_owned).collect();
    if page == "README.md" {
        let named = text.split('`').filter(|quoted| quoted.starts_with("lockstep "));
        all.extend(named.map(str::to_owned));
    }
    all
}

fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut pages = vec![root.join("README.md")];
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    pages.extend(docs.filter(|path| is_page(path) && !path.ends_with("demo.md")));
    pages.sort();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    pages.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// Where everything is that the commands name.
struct Place {
    dir: TempDir,
    server: String,
    gtrid: String,
    cluster: String,
    names: Vec<(&'static str, String)>,
}

impl Place {
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// A shell with a line of ours.
    fn shell(&self, line: &str) -> Command {
        let path = format!("{}:{}", self.path("bin"), std::env::var("PATH").unwrap());
        let mut shell = Command::new("bash");
        shell.args(["-c", line]).env("PATH", path).env("LOCKSTEP_SERVER", &self.server).env("USER", "kim");
        shell.env("LOCKSTEP_DATA_DIR", self.path("offline")).env("LOCKSTEP_LISTEN", "127.0.0.1:0");
        shell.current_dir(self.dir.path());
        shell
    }

    /// A shell runs it. The exit code, and everything that it said.
    fn run(&self, line: &str) -> (i32, String) {
        let mut shell = self.shell(line);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        // A role ends when its standard input does.
        let held = child.stdin.take();
        let ran = child.wait_with_output().unwrap();
        drop(held);
        let said = [ran.stdout, ran.stderr].concat();
        (ran.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
    }

    /// The same for a coordinator, which serves until it is told to stop: here, as soon as it serves.
    fn serve(&self, line: &str) -> (i32, String) {
        let log = self.dir.path().join("serving.log");
        // The shell becomes the program: the signal is for that.
        let mut serving = Process::start("bash", self.shell(&format!("exec env {line}")), &log).unwrap();
        let (serves, _) = wait_for("the coordinator's banner", PATIENCE, || {
            let serves = serving.output().lines().any(|line| line.starts_with(LAST_OF_BANNER));
            Ok((serves || serving.try_reap()?.is_some()).then_some(serves))
        })
        .unwrap();
        serving.signal(Signal::TERM).unwrap();
        match serving.wait(PATIENCE).unwrap() {
            Reaped::Exit(code) if serves => (code, serving.output()),
            Reaped::Exit(_) | Reaped::Signal(_) => (-1, serving.output()),
        }
    }

    /// The same command with the names of this place.
    fn here(&self, line: &str) -> String {
        let mut line = line.replace(SHOWN, &self.gtrid).replace(SHORTENED, &self.gtrid);
        line = line.replace("7c1f09ae", &self.cluster).replace(" …", "");
        for (name, here) in &self.names {
            line = line.replace(name, here);
        }
        line
    }
}

/// What a page shows to be refused.
const REFUSED: i32 = 4;

#[test]
fn every_command_that_a_page_shows_works_as_it_stands_there() {
    let dir = TempDir::new().unwrap();
    let (postgres, mariadb) = (PostgresServer::start().unwrap(), MariaDbServer::start().unwrap());
    for name in ["log", "orders"] {
        postgres.create_database(name).unwrap();
    }
    mariadb.create_database("stock").unwrap();
    let mut running = Coordinator::start(&Roles::played_by(PROVE), dir.path(), &[], None).unwrap();
    running.expect_it_serves().unwrap();
    let place = set(dir, &running, &postgres, &mariadb);
    let mut commands = 0;
    for (page, text) in pages() {
        for line in shown(&page, &text) {
            let here = place.here(&line);
            let serves = line.contains("lockstep serve");
            let (code, said) = if serves { place.serve(&here) } else { place.run(&here) };
            commands += 1;
            let unfit = line.contains("lockstep doctor") && code == 10;
            let refused = line.contains("tx rollback") && code == REFUSED;
            assert!(code == 0 || unfit || refused, "{page}: {here}: {code}\n{said}");
        }
    }
    assert!(commands >= 25, "only {commands} commands were found");
}

fn set(dir: TempDir, running: &Coordinator, postgres: &PostgresServer, mariadb: &MariaDbServer) -> Place {
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let program = bin.join("lockstep");
    fs::write(&program, format!("#!/bin/sh\nexec '{PROVE}' role coordinator -- \"$@\"\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let gtrid = begin(&running.url());
    let cluster = running.ask(&["status"]).unwrap()["cluster"].as_str().unwrap().to_owned();
    let mut place = Place { dir, server: running.url(), gtrid, cluster, names: Vec::new() };
    let offline = place.path("offline");
    let made =
        place.run(&format!("lockstep backup {offline} --data-dir {}", running.data_directory().display()));
    assert_eq!(made.0, 0, "{made:?}");
    let log = postgres.url("log");
    let made = place.run(&format!("lockstep migrate --log {log}"));
    assert_eq!(made.0, 0, "{made:?}");
    make_file(&place.path("bank.db"));
    place.names = vec![
        ("postgres://lockstep@db:5432/lockstep", log),
        ("postgres://app@db/orders", postgres.url("orders")),
        ("--postgres URL", format!("--postgres {}", postgres.url("orders"))),
        ("mysql://app@db/stock", mariadb.url("stock")),
        ("/var/lib/bank/bank.db", place.path("bank.db")),
        ("/var/lib/lockstep", offline),
        ("/mnt/backup/", format!("{}/", place.dir.path().display())),
        ("/etc/bash_completion.d/lockstep", place.path("completions")),
        ("10.0.0.1:7420", "127.0.0.1:0".to_owned()),
        ("10.0.0.2:7420", "127.0.0.1:0".to_owned()),
        ("show ID", format!("show {}", place.gtrid)),
    ];
    place
}

/// A transaction that is there to be looked at, and lives as long as the test.
#[tokio::main]
async fn begin(url: &str) -> String {
    let client = Client::connect(url).await.unwrap();
    let tx = client.begin("transfer").timeout(Duration::from_secs(3600)).start().await.unwrap();
    let gtrid = tx.gtrid();
    // Dropping it would roll it back.
    std::mem::forget(tx);
    gtrid.to_string()
}

/// A file of SQLite.
#[tokio::main]
async fn make_file(file: &str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::raw_sql("CREATE TABLE account (id INTEGER PRIMARY KEY)").execute(&pool).await.unwrap();
    pool.close().await;
}
