//! A bank's database as the harness sees it: made before the bank starts, and looked at from outside, always over a fresh
//! connection, never through the SDK.

pub(crate) mod ledger;
mod mariadb;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::mariadb::MariaDbServer;
use super::postgres::PostgresServer;
use super::{Failed, Result};

/// What a bank keeps its accounts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Database {
    /// A file.
    Sqlite,
    /// A database of a PostgreSQL server.
    Postgres,
    /// A database of a MariaDB server.
    #[value(name = "mariadb")]
    MariaDb,
    /// A ledger of reservations: a store of one's own.
    Own,
}

impl Database {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::MariaDb => "mariadb",
            Self::Own => "own",
        }
    }
}

/// Accounts of a bank: more than one, so that a balance in the wrong place shows.
pub const ACCOUNTS: i64 = 4;
/// What each holds at first.
pub const OPENING_BALANCE: i64 = 1000;

/// SQLite and PostgreSQL take it as it stands. The constraint of `refusals` is looked at when the work is to be made durable and
/// not before: a row without its `reasons` makes a branch vote rollback at its prepare.
const SCHEMA: &[&str] = &[
    "CREATE TABLE accounts (number BIGINT PRIMARY KEY, balance BIGINT NOT NULL)",
    "CREATE TABLE transfers (transfer TEXT PRIMARY KEY, account BIGINT NOT NULL, amount BIGINT NOT NULL)",
    "CREATE TABLE reasons (number BIGINT PRIMARY KEY)",
    "CREATE TABLE refusals (reason BIGINT NOT NULL REFERENCES reasons (number) DEFERRABLE INITIALLY DEFERRED)",
    "INSERT INTO accounts (number, balance) VALUES (0, 1000), (1, 1000), (2, 1000), (3, 1000)",
];

/// What the SDK calls a prepared branch in PostgreSQL begins so.
const PREFIX: &str = "lockstep:";

/// One bank's database.
#[derive(Debug, Clone)]
pub struct Books {
    /// The resource manager's name.
    pub bank: String,
    place: Place,
    /// The port at which the bank reaches its server, where it is not the server's own.
    through: Option<u16>,
}

#[derive(Debug, Clone)]
enum Place {
    Sqlite(PathBuf),
    Postgres(String),
    MariaDb(String),
    /// Its directory.
    Own(PathBuf),
}

/// What a look at the books found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The amount of each transfer, by its transaction's gtrid.
    pub transfers: BTreeMap<String, i64>,
    /// What all accounts hold together.
    pub total: i64,
    /// Accounts whose balance is not what their transfers make it.
    pub wrong_accounts: Vec<i64>,
}

impl Books {
    /// New books in a SQLite file.
    ///
    /// # Errors
    /// If they can't be made.
    pub async fn in_sqlite(bank: &str, file: PathBuf) -> Result<Self> {
        let cannot = || Failed::because(format!("{} cannot be made", file.display()));
        let options = sqlite_options(&file).create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(cannot())?;
        for statement in SCHEMA {
            sqlx::query(*statement).execute(&mut connection).await.map_err(cannot())?;
        }
        connection.close().await.map_err(cannot())?;
        Ok(Self { bank: bank.to_owned(), place: Place::Sqlite(file), through: None })
    }

    /// New books in a new database of this server.
    ///
    /// # Errors
    /// If they can't be made.
    pub async fn in_postgres(bank: &str, server: &PostgresServer, database: &str) -> Result<Self> {
        server.create_database(database)?;
        let place = Place::Postgres(server.url(database));
        let books = Self { bank: bank.to_owned(), place, through: None };
        let mut connection = books.connect_postgres().await?;
        for statement in SCHEMA {
            sqlx::query(*statement)
                .execute(&mut connection)
                .await
                .map_err(Failed::because(format!("{database} cannot be set up")))?;
        }
        Ok(books)
    }

    /// New books in a new database of this server.
    ///
    /// # Errors
    /// If they can't be made.
    pub async fn in_mariadb(bank: &str, server: &MariaDbServer, database: &str) -> Result<Self> {
        server.create_database(database)?;
        let url = server.url(database);
        mariadb::set_up(&url).await?;
        Ok(Self { bank: bank.to_owned(), place: Place::MariaDb(url), through: None })
    }

    /// New books in a ledger in this directory, which is made.
    ///
    /// # Errors
    /// If they can't be made.
    pub async fn in_ledger(bank: &str, directory: PathBuf) -> Result<Self> {
        ledger::make(&directory).await?;
        Ok(Self { bank: bank.to_owned(), place: Place::Own(directory), through: None })
    }

    /// The same, where the bank reaches its server only through whoever listens at this port, without TLS. The harness itself looks
    /// at the server directly.
    #[must_use]
    pub fn through(self, port: u16) -> Self {
        Self { through: Some(port), ..self }
    }

    /// What the bank connects to.
    #[must_use]
    pub fn url(&self) -> String {
        match (&self.place, self.through) {
            (Place::Sqlite(file), _) => format!("sqlite:{}", file.display()),
            (Place::Own(directory), _) => format!("ledger:{}", directory.display()),
            (Place::Postgres(url) | Place::MariaDb(url), None) => url.clone(),
            (Place::Postgres(url), Some(port)) => format!("{}?sslmode=disable", at_port(url, port)),
            (Place::MariaDb(url), Some(port)) => format!("{}?ssl-mode=DISABLED", at_port(url, port)),
        }
    }

    /// What they are in.
    #[must_use]
    pub const fn database(&self) -> Database {
        match self.place {
            Place::Sqlite(_) => Database::Sqlite,
            Place::Postgres(_) => Database::Postgres,
            Place::MariaDb(_) => Database::MariaDb,
            Place::Own(_) => Database::Own,
        }
    }

    /// What is committed in them now.
    ///
    /// # Errors
    /// If they can't be read.
    pub async fn read(&self) -> Result<Page> {
        if let Place::Own(directory) = &self.place {
            return ledger::read(directory);
        }
        let transfers = self.pairs("SELECT transfer, amount FROM transfers").await?.into_iter().collect();
        let balances = self
            .pairs(
                "SELECT CAST(a.number AS TEXT), \
                 a.balance - COALESCE((SELECT CAST(sum(t.amount) AS BIGINT) FROM transfers t WHERE t.account = a.number), 0) \
                 FROM accounts a",
            )
            .await?;
        let wrong = balances.iter().filter(|(_, opening)| *opening != OPENING_BALANCE);
        let wrong_accounts = wrong.map(|(number, _)| number.parse().unwrap_or(-1)).collect();
        let total = self.pairs("SELECT 'total', CAST(sum(balance) AS BIGINT) FROM accounts").await?;
        Ok(Page { transfers, total: total.iter().map(|(_, sum)| sum).sum(), wrong_accounts })
    }

    /// The branches of ours that are prepared in it; for SQLite that its journal has an entry.
    ///
    /// # Errors
    /// If it can't be looked at.
    pub async fn prepared(&self) -> Result<Vec<String>> {
        let foreign = self.foreign_names();
        let all = match &self.place {
            Place::Sqlite(file) => return Ok(journal_entry(file)?.into_iter().collect()),
            Place::Own(directory) => return ledger::prepared(directory),
            Place::MariaDb(url) => return mariadb::prepared(url, &self.bank).await,
            Place::Postgres(_) => self.all_prepared().await?,
        };
        Ok(all.into_iter().filter(|name| !foreign.contains(name)).collect())
    }

    /// What somebody does to a SQLite file who does not use the SDK, while nobody holds it: changes a table.
    ///
    /// # Errors
    /// If that is refused.
    pub async fn meddle(&self) -> Result<()> {
        self.execute("ALTER TABLE transfers ADD COLUMN meddled TEXT").await
    }

    /// A statement by somebody who does not use the SDK.
    ///
    /// # Errors
    /// If that is refused.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        let cannot = || Failed::because(format!("{}: {sql}", self.url()));
        match &self.place {
            Place::Sqlite(file) => {
                let options = sqlite_options(file);
                let mut connection = SqliteConnection::connect_with(&options).await.map_err(cannot())?;
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.map_err(cannot())?;
                connection.close().await.map_err(cannot())
            }
            Place::Postgres(_) => {
                let mut connection = self.connect_postgres().await?;
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.map_err(cannot())?;
                connection.close().await.map_err(cannot())
            }
            Place::MariaDb(url) => mariadb::run(url, sql).await,
            Place::Own(_) => Err(Failed::new("a ledger takes no statements")),
        }
    }

    /// Prepares what is nobody's business here: a transaction of another product, and one of another cluster of Lockstep for a
    /// resource manager of this name. SQLite prepares nothing by itself, so there is nothing to plant.
    ///
    /// # Errors
    /// If it can't.
    pub async fn plant_foreign(&self) -> Result<()> {
        match &self.place {
            Place::Sqlite(_) | Place::Own(_) => return Ok(()),
            Place::MariaDb(url) => {
                return mariadb::plant(url, &self.foreign_names()).await;
            }
            Place::Postgres(_) => {}
        }
        self.execute("CREATE TABLE foreign_work (name TEXT)").await?;
        for name in self.foreign_names() {
            let work =
                format!("BEGIN; INSERT INTO foreign_work VALUES ('{name}'); PREPARE TRANSACTION '{name}'");
            self.execute(&work).await?;
        }
        Ok(())
    }

    /// Those of [`Books::plant_foreign`] that are not there any more.
    ///
    /// # Errors
    /// If it can't be looked at.
    pub async fn foreign_missing(&self) -> Result<Vec<String>> {
        let foreign = self.foreign_names();
        match &self.place {
            Place::Sqlite(_) | Place::Own(_) => return Ok(Vec::new()),
            Place::MariaDb(url) => return mariadb::missing(url, foreign).await,
            Place::Postgres(_) => {}
        }
        let all = self.all_prepared().await?;
        Ok(foreign.into_iter().filter(|name| !all.contains(name)).collect())
    }

    /// Removes a server's database, with what is prepared in it. A file goes with its directory.
    ///
    /// # Errors
    /// If it can't be removed.
    pub async fn remove(&self) -> Result<()> {
        let url = match &self.place {
            Place::Sqlite(_) | Place::Own(_) => return Ok(()),
            Place::MariaDb(url) => return mariadb::remove(url, &self.bank).await,
            Place::Postgres(url) => url,
        };
        let cannot = || Failed::because(format!("{url} cannot be removed"));
        for name in self.all_prepared().await? {
            self.execute(&format!("ROLLBACK PREPARED '{name}'")).await?;
        }
        let (server, name) = url.rsplit_once('/').expect("a URL names its database");
        let mut connection = PgConnection::connect(&format!("{server}/postgres")).await.map_err(cannot())?;
        let sql = format!("DROP DATABASE \"{name}\" WITH (FORCE)");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.map_err(cannot())?;
        connection.close().await.map_err(cannot())
    }

    /// Names are of the whole server, so each database has its own.
    fn foreign_names(&self) -> Vec<String> {
        let url = match &self.place {
            Place::Sqlite(_) | Place::Own(_) => return Vec::new(),
            Place::MariaDb(url) => return mariadb::foreign_names(url, &self.bank),
            Place::Postgres(url) => url,
        };
        let database = name_in(url);
        // The number of a database, behind its last `_`, tells the two of a cell and all of a run apart.
        let number: u64 =
            database.rsplit('_').next().and_then(|digits| digits.parse().ok()).unwrap_or_default();
        vec![
            format!("somebody-elses:{database}"),
            format!("{PREFIX}00000000:1.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f:{}.{number:016x}", self.bank),
        ]
    }

    async fn all_prepared(&self) -> Result<Vec<String>> {
        let sql = "SELECT gid, 0::BIGINT FROM pg_prepared_xacts WHERE database = current_database()";
        Ok(self.pairs(sql).await?.into_iter().map(|(name, _)| name).collect())
    }

    async fn connect_postgres(&self) -> Result<PgConnection> {
        let Place::Postgres(url) = &self.place else {
            return Err(Failed::new("it is in no PostgreSQL server"));
        };
        PgConnection::connect(url).await.map_err(Failed::because(format!("no connection to {url}")))
    }

    /// Rows of a text and a number.
    async fn pairs(&self, sql: &'static str) -> Result<Vec<(String, i64)>> {
        let cannot = || Failed::because(format!("{}: {sql}", self.url()));
        match &self.place {
            Place::Sqlite(file) => {
                let options = sqlite_options(file).read_only(true);
                let mut connection = SqliteConnection::connect_with(&options).await.map_err(cannot())?;
                let rows = sqlx::query(sql).fetch_all(&mut connection).await.map_err(cannot())?;
                rows.iter()
                    .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
                    .collect::<sqlx::Result<_>>()
                    .map_err(cannot())
            }
            Place::MariaDb(url) => mariadb::pairs(url, sql).await,
            Place::Own(_) => Err(Failed::new("a ledger takes no statements")),
            Place::Postgres(_) => {
                let mut connection = self.connect_postgres().await?;
                let rows = sqlx::query(sql).fetch_all(&mut connection).await.map_err(cannot())?;
                rows.iter()
                    .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
                    .collect::<sqlx::Result<_>>()
                    .map_err(cannot())
            }
        }
    }
}

fn sqlite_options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
}

/// The database that a URL names.
fn name_in(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}

/// The same server's URL at another port.
fn at_port(url: &str, port: u16) -> String {
    let parts = url.rsplit_once(':').and_then(|(host, rest)| Some((host, rest.split_once('/')?.1)));
    let (host, database) = parts.expect("the harness's URLs have a port and a database");
    format!("{host}:{port}/{database}")
}

/// What the journal beside a SQLite file holds, if it holds anything. Bytes 12 to 16 of its header say so: 0 is nothing.
fn journal_entry(file: &Path) -> Result<Option<String>> {
    let mut path = file.as_os_str().to_owned();
    path.push("-lockstep");
    let path = PathBuf::from(path);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        // No branch was ever prepared here.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failed::new(format!("{}: {error}", path.display()))),
    };
    let kind = bytes.get(12..16).and_then(|kind| kind.try_into().ok()).map_or(0, u32::from_le_bytes);
    Ok((kind != 0).then(|| format!("an entry of kind {kind} in {}", path.display())))
}
