//! Databases in temporary directories, branches on them, and processes that die at a named point.

use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::str::FromStr;
use std::time::Duration;

use lockstep::resource::sqlite::{OpenBranch, Sqlite};
use lockstep::resource::{Attachment, BranchId, Prepared, Resource, ResourceError};
use lockstep_proto::{Bqual, ClusterId, Epoch, Gtrid, Incarnation, LogPosition, ResourceManagerName, Xid};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection, SqlitePool};

/// Longer than any step takes, even on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn name() -> ResourceManagerName {
    "bank-a".parse().unwrap()
}

pub(crate) fn cluster() -> ClusterId {
    "7c1f09ae".parse().unwrap()
}

pub(crate) fn gtrid(number: u8) -> Gtrid {
    Gtrid::new(Epoch::new(3).unwrap(), 1_700_000_000_000 + u64::from(number), [number; 10])
}

/// The branch with this number: of a transaction of its own, later than that of a smaller number.
pub(crate) fn branch(number: u8) -> BranchId {
    BranchId {
        cluster: cluster(),
        xid: Xid { gtrid: gtrid(number), bqual: Bqual::new(&name(), u64::from(number)) },
    }
}

pub(crate) fn position(sequence: u64) -> LogPosition {
    LogPosition { epoch: Epoch::new(3).unwrap(), incarnation: Incarnation::from_bytes([7; 16]), sequence }
}

/// A database file in a directory of its own.
pub(crate) struct Database {
    directory: tempfile::TempDir,
}

/// Attaches, once whoever had the file before has let it go: a child that another test is just starting holds all files of this
/// process, until it runs its own program.
pub(crate) async fn attach(resource: &Sqlite) -> Result<Attachment, ResourceError> {
    let patience = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        match resource.attach(&name()).await {
            Err(ResourceError::Unavailable(why))
                if why.contains("another instance") && tokio::time::Instant::now() < patience =>
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            attached => return attached,
        }
    }
}

impl Database {
    /// With what these statements make.
    pub(crate) async fn new(setup: &str) -> Self {
        let database = Self { directory: tempfile::tempdir().unwrap() };
        let options = SqliteConnectOptions::new().filename(database.path()).create_if_missing(true);
        let mut connection = options.connect().await.unwrap();
        run(&mut connection, setup).await.unwrap();
        connection.close().await.unwrap();
        database
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("bank.db")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.directory.path().join("bank.db-lockstep")
    }

    pub(crate) fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new().filename(self.path())
    }

    pub(crate) async fn pool(&self) -> SqlitePool {
        SqlitePoolOptions::new().max_connections(4).connect_with(self.options()).await.unwrap()
    }

    /// The resource on it, not attached.
    pub(crate) async fn resource(&self) -> Sqlite {
        Sqlite::new(self.pool().await)
    }

    /// The resource on it, attached.
    pub(crate) async fn attached(&self) -> Sqlite {
        let resource = self.resource().await;
        attach(&resource).await.unwrap();
        resource
    }

    /// A connection that has nothing to do with the SDK.
    pub(crate) async fn stranger(&self) -> SqliteConnection {
        self.options().busy_timeout(Duration::from_millis(100)).connect().await.unwrap()
    }

    /// Everything of the user's in it, as text: rows with their rowids and storage classes, and the schema.
    pub(crate) async fn dump(&self) -> String {
        let mut connection = self.stranger().await;
        let dump = dump(&mut connection).await;
        connection.close().await.unwrap();
        dump
    }

    /// Names of the files beside the database.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs `scenario` of [`crate::crashes`] or [`crate::faults`] on it in a process of its own.
    pub(crate) fn child(&self, scenario: &str) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "crashes::child", "--ignored", "--nocapture", "--test-threads=1"])
            .env("LOCKSTEP_TEST_SCENARIO", scenario)
            .env("LOCKSTEP_TEST_DATABASE", self.path());
        Child { command }
    }
}

/// This test binary, started once more.
pub(crate) struct Child {
    command: Command,
}

impl Child {
    /// Lets it be killed when it comes to this crash point.
    pub(crate) fn killed_at(mut self, point: &str) -> Self {
        self.command.env("LOCKSTEP_TEST_POINT", point);
        self
    }

    pub(crate) fn argument(mut self, value: &str) -> Self {
        self.command.env("LOCKSTEP_TEST_ARGUMENT", value);
        self
    }

    pub(crate) fn command(mut self) -> Command {
        self.command.stdout(std::process::Stdio::piped());
        self.command
    }

    /// Lets it run to its end; what it said.
    pub(crate) fn run(mut self) -> Said {
        Said::new(self.command.output().unwrap())
    }
}

/// What a child said before it ended.
pub(crate) struct Said {
    pub(crate) lines: Vec<String>,
    pub(crate) killed: bool,
}

impl Said {
    fn new(output: Output) -> Self {
        let text = String::from_utf8(output.stdout).unwrap();
        let killed = output.status.signal() == Some(9);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(killed || output.status.success(), "the child failed: {text}\n{complaints}");
        // The test runner writes in front of the first one.
        let said = text.lines().filter_map(|line| Some(line.split_once("child: ")?.1.to_owned()));
        let lines = said.collect();
        Self { lines, killed }
    }

    pub(crate) fn heard(&self, line: &str) -> bool {
        self.lines.iter().any(|said| said == line)
    }
}

/// In a child: the scenario, the database and the argument.
pub(crate) fn orders() -> (String, PathBuf, String) {
    let variable = |name| std::env::var(name).unwrap_or_default();
    if let Ok(point) = std::env::var("LOCKSTEP_TEST_POINT") {
        fail::cfg_callback(point, die).unwrap();
    }
    let path = PathBuf::from(variable("LOCKSTEP_TEST_DATABASE"));
    (variable("LOCKSTEP_TEST_SCENARIO"), path, variable("LOCKSTEP_TEST_ARGUMENT"))
}

/// As nothing else ends a process: nothing is flushed, unlocked or dropped.
pub(crate) fn die() {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    std::thread::park();
}

/// In a child: the resource on the file, not attached.
pub(crate) async fn resource_at(path: &Path) -> Sqlite {
    let options = SqliteConnectOptions::new().filename(path);
    Sqlite::new(SqlitePoolOptions::new().max_connections(4).connect_with(options).await.unwrap())
}

/// In a child: what the parent reads.
pub(crate) fn say(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    writeln!(out, "child: {text}").unwrap();
    out.flush().unwrap();
}

/// Begins the branch and does this work on it.
pub(crate) async fn work(resource: &Sqlite, number: u8, statements: &str) -> OpenBranch {
    let mut open = resource.begin(&branch(number), LONG).await.unwrap();
    run(Sqlite::connection(&mut open), statements).await.unwrap();
    open
}

/// Begins, works, prepares.
pub(crate) async fn prepare(resource: &Sqlite, number: u8, statements: &str) -> Prepared {
    let open = work(resource, number, statements).await;
    resource.prepare(&branch(number), open, &position(1)).await.unwrap()
}

/// Why it is not prepared.
pub(crate) async fn refusal(resource: &Sqlite, number: u8, statements: &str) -> String {
    match prepare(resource, number, statements).await {
        Prepared::No(why) => why,
        prepared @ (Prepared::Yes | Prepared::ReadOnly | Prepared::Hazard(_)) => panic!("{prepared:?}"),
    }
}

/// Why it does not attach.
pub(crate) async fn unfit(resource: &Sqlite) -> String {
    match resource.attach(&name()).await {
        Err(ResourceError::Unfit(why)) => why,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn run(connection: &mut SqliteConnection, statements: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(connection).await.map(drop)
}

async fn texts(connection: &mut SqliteConnection, sql: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(connection).await.unwrap()
}

async fn dump(connection: &mut SqliteConnection) -> String {
    let tables = texts(
        connection,
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'lockstep\\_%' ESCAPE '\\' \
         AND name NOT LIKE 'sqlite\\_stat%' ESCAPE '\\' ORDER BY name",
    )
    .await;
    let mut dump = String::new();
    for table in tables {
        let list: Vec<(String, i64)> = sqlx::query_as("SELECT name, wr FROM pragma_table_list(?1)")
            .bind(&table)
            .fetch_all(&mut *connection)
            .await
            .unwrap();
        let without_rowid = list.iter().any(|(name, wr)| *name == table && *wr == 1);
        let columns = columns(connection, &table, without_rowid).await;
        writeln!(dump, "{table}").unwrap();
        dump.push_str(&rows(connection, &table, &columns).await);
    }
    for sql in texts(
        connection,
        "SELECT coalesce(sql, name) FROM sqlite_schema WHERE name NOT LIKE '%lockstep\\_%' ESCAPE '\\' ORDER BY name",
    )
    .await
    {
        writeln!(dump, "{sql}").unwrap();
    }
    assert_eq!(texts(connection, "PRAGMA integrity_check").await, ["ok"]);
    dump
}

async fn columns(connection: &mut SqliteConnection, table: &str, without_rowid: bool) -> Vec<String> {
    let mut names: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_xinfo(?1)")
        .bind(table)
        .fetch_all(connection)
        .await
        .unwrap();
    // sqlite_sequence is a matter of names and numbers: which rowid they have is nobody's business.
    if !without_rowid && table != "sqlite_sequence" {
        let name = ["rowid", "_rowid_", "oid"].into_iter().find(|name| !names.iter().any(|n| n == name));
        names.push(name.unwrap().to_owned());
    }
    names
}

async fn rows(connection: &mut SqliteConnection, table: &str, columns: &[String]) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let shown: Vec<_> = columns
        .iter()
        .map(|name| {
            let name = if name == "rowid" { name.clone() } else { quoted(name) };
            format!("typeof({name}) || ' ' || hex(CAST({name} AS BLOB)) || ' ' || ifnull({name}, '')")
        })
        .collect();
    let sql = format!("SELECT {} FROM {}", shown.join(", "), quoted(table));
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(connection).await.unwrap();
    let mut lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let values: Vec<_> = (0..columns.len())
                .map(|at| String::from_utf8_lossy(&row.get_unchecked::<Vec<u8>, _>(at)).into_owned())
                .collect();
            format!("  {}\n", values.join(" | "))
        })
        .collect();
    lines.sort();
    lines.concat()
}

impl FromStr for Decision {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "commit" => Ok(Self::Commit),
            "rollback" => Ok(Self::Rollback),
            _ => Err(()),
        }
    }
}

/// What the coordinator has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Commit,
    Rollback,
}

impl Decision {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Rollback => "rollback",
        }
    }
}
