//! What a PostgreSQL server says of itself, as it is: nothing here is a judgement, and nothing is changed.
//!
//! The first two parts ([`Server`], [`Tables`]) are read at every attach too.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{ConnectOptions as _, PgConnection, Row as _, SqlSafeStr as _, SqlStr};

use crate::doctor::Disk;
use crate::resource::postgres::{schema, sql};
use crate::resource::wall_clock;

/// How long the server may work for one question, and wait for a lock: none of them needs one that others hold for long.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The server and how it is set up: all that decides whether it can be attached to, beside our tables.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// As in `server_version_num`: 150018 for 15.18.
    pub(crate) version: i64,
    pub(crate) in_recovery: bool,
    pub(crate) slots: i64,
    pub(crate) slots_taken: i64,
    pub(crate) fsync: String,
    pub(crate) full_page_writes: String,
    /// Made by initdb; the same on all standbys.
    pub(crate) system: String,
    /// The database's oid: another one after a restore from a dump, the same after a renaming.
    pub(crate) database: i64,
    pub(crate) database_name: String,
    /// Quoted.
    pub(crate) role: String,
    /// The first 8 of its hex digits are the timeline.
    pub(crate) wal_file: String,
}

impl Server {
    /// The row of [`sql::SERVER`].
    pub(crate) fn of(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            version: row.try_get("version")?,
            in_recovery: row.try_get("in_recovery")?,
            slots: row.try_get("slots")?,
            slots_taken: row.try_get("slots_taken")?,
            fsync: row.try_get("fsync")?,
            full_page_writes: row.try_get("full_page_writes")?,
            system: row.try_get("system")?,
            database: row.try_get("database")?,
            database_name: row.try_get("database_name")?,
            role: row.try_get("role")?,
            wal_file: row.try_get("wal_file")?,
        })
    }
}

/// Our tables, as far as the role can use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableState {
    Absent,
    Forbidden,
    Ready,
}

/// Our tables.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    pub(crate) state: TableState,
    /// Constraints of the evidence table that are not there: they are what turns a branch down.
    pub(crate) missing: String,
    /// Tables that a crash of the server empties.
    pub(crate) unlogged: String,
    /// Tables of which the role may not see all rows.
    pub(crate) filtered: String,
}

impl Tables {
    /// The row of [`schema::TABLES`].
    pub(crate) fn of(row: &PgRow) -> sqlx::Result<Self> {
        let state = match row.try_get("tables")? {
            "ready" => TableState::Ready,
            "absent" => TableState::Absent,
            _ => TableState::Forbidden,
        };
        Ok(Self {
            state,
            missing: row.try_get("missing")?,
            unlogged: row.try_get("unlogged")?,
            filtered: row.try_get("filtered")?,
        })
    }
}

/// Our functions, as far as the role can use them. Names, or nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Functions {
    /// Those that are not there.
    pub(crate) missing: String,
    /// Those that are not as we make them, or that the role may not call.
    pub(crate) other: String,
    /// The statements that would drop these.
    pub(crate) drops: String,
    /// Whether the role may make any.
    pub(crate) may_create: bool,
}

impl Functions {
    /// The row of [`schema::look_at_functions`].
    pub(crate) fn of(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            missing: row.try_get("missing")?,
            other: row.try_get("other")?,
            drops: row.try_get("drops")?,
            may_create: row.try_get("may_create")?,
        })
    }

    /// Of a role that may not look for them.
    pub(crate) fn hidden() -> Self {
        Self { other: schema::all_functions(), ..Self::default() }
    }

    pub(crate) const fn are_ready(&self) -> bool {
        self.missing.is_empty() && self.other.is_empty()
    }

    /// And nothing is in the way of making them.
    pub(crate) const fn are_missing(&self) -> bool {
        !self.missing.is_empty() && self.other.is_empty()
    }
}

/// What is stored about a resource manager.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) format: i64,
    pub(crate) identity: String,
    /// Empty before it was first bound to one.
    pub(crate) cluster: String,
}

/// A prepared transaction of anybody.
#[derive(Debug, Clone)]
pub(crate) struct PreparedTransaction {
    pub(crate) gid: String,
    pub(crate) database: String,
    pub(crate) owner: String,
    pub(crate) age: Duration,
}

/// A session that waits for a lock which a prepared transaction holds.
#[derive(Debug, Clone)]
pub(crate) struct Blocked {
    pub(crate) pid: i32,
    pub(crate) gid: String,
    /// What is waited for.
    pub(crate) object: String,
    pub(crate) since: Duration,
}

/// What matters to a person only.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// Not quoted.
    pub(crate) role: String,
    pub(crate) is_superuser: bool,
    /// Whether the role may make our tables.
    pub(crate) may_create: bool,
    /// As it is configured for this role and database.
    pub(crate) synchronous_commit: String,
    /// As it is configured for this role and database.
    pub(crate) search_path: String,
    /// Relations in the schema `lockstep` that are not ours.
    pub(crate) strangers: String,
    /// Empty where the role may not know it.
    pub(crate) data_directory: String,
    /// The server's address in this connection; `None` for a socket of this machine.
    pub(super) address: Option<String>,
    pub(super) unix_ms: i64,
}

/// Everything that `lockstep doctor` looks at.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) server: Server,
    pub(crate) tables: Tables,
    pub(crate) functions: Functions,
    pub(crate) surroundings: Surroundings,
    /// None where the table cannot be read.
    pub(crate) identities: Vec<Identity>,
    pub(crate) prepared: Vec<PreparedTransaction>,
    pub(crate) blocked: Vec<Blocked>,
    /// The server's clock minus this machine's, in milliseconds, and how wrong that may be.
    pub(crate) clock: (i64, i64),
    /// Where the server writes, if that is a directory of this machine.
    pub(crate) disks: Vec<Disk>,
}

impl Snapshot {
    /// # Errors
    /// What stood in the way, without the URL.
    pub(crate) async fn take(options: PgConnectOptions) -> Result<Self, String> {
        let mut connection = options.connect().await.map_err(|error| error.to_string())?;
        let unanswered = |error: sqlx::Error| format!("a question was not answered: {error}");
        let snapshot = Self::read(&mut connection).await.map_err(unanswered)?;
        // Nothing depends on an orderly end.
        drop(sqlx::Connection::close(connection).await);
        Ok(snapshot)
    }

    async fn read(connection: &mut PgConnection) -> sqlx::Result<Self> {
        let ask = sqlx::raw_sql(sql::set_up_own_connection(QUESTION_TIMEOUT, QUESTION_TIMEOUT));
        ask.execute(&mut *connection).await?;
        let server = Server::of(&row(connection, sql::SERVER).await?)?;
        let tables = Tables::of(&row(connection, schema::TABLES).await?)?;
        let functions = match sqlx::raw_sql(schema::look_at_functions()).fetch_one(&mut *connection).await {
            Ok(row) => Functions::of(&row)?,
            Err(sqlx::Error::Database(_)) => Functions::hidden(),
            Err(error) => return Err(error),
        };
        let asked = unix_ms();
        let surroundings = Surroundings::of(&row(connection, SURROUNDINGS).await?)?;
        let answered = unix_ms();
        let identities = match tables.state {
            TableState::Ready => rows(connection, IDENTITIES, Identity::of).await?,
            TableState::Absent | TableState::Forbidden => Vec::new(),
        };
        Ok(Self {
            identities,
            prepared: rows(connection, PREPARED, PreparedTransaction::of).await?,
            blocked: rows(connection, BLOCKED, Blocked::of).await?,
            clock: (surroundings.unix_ms - asked.midpoint(answered), (answered - asked) / 2),
            disks: disks(&surroundings),
            server,
            tables,
            functions,
            surroundings,
        })
    }
}

/// Beside what [`sql::SERVER`] asks. What is configured for the role is the value that RESET would give: this connection
/// has set its own.
const SURROUNDINGS: &str = "SELECT \
     session_user::text AS role, \
     (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AS is_superuser, \
     has_database_privilege(current_database(), 'CREATE') AND (to_regnamespace('lockstep') IS NULL \
     OR has_schema_privilege(to_regnamespace('lockstep'), 'CREATE')) AS may_create, \
     (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit') AS synchronous_commit, \
     (SELECT reset_val FROM pg_settings WHERE name = 'search_path') AS search_path, \
     coalesce((SELECT string_agg(quote_ident(relname), ', ' ORDER BY relname) FROM pg_class \
     WHERE relnamespace = to_regnamespace('lockstep') AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S') \
     AND relname NOT IN ('evidence', 'identity', 'positions')), '') AS strangers, \
     CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') ELSE '' END \
     AS data_directory, \
     host(inet_server_addr()) AS address, \
     (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS unix_ms";

const IDENTITIES: &str = "SELECT resource_manager, format::bigint AS format, replace(identity::text, '-', '') AS identity, \
     coalesce(cluster, '') AS cluster FROM lockstep.identity ORDER BY resource_manager LIMIT 1000";

const PREPARED: &str = "SELECT gid, database::text AS database, owner::text AS owner, \
     (extract(epoch FROM clock_timestamp() - prepared) * 1000)::bigint AS age_ms \
     FROM pg_prepared_xacts ORDER BY prepared, gid LIMIT 1000";

/// The sessions of which PostgreSQL says that process 0 blocks them, and the prepared transaction that holds the lock they
/// wait for, for the doctor and for operators. Its locks have no process; that on its own transaction id tells which of them are its.
pub(crate) const BLOCKED: &str = "SELECT DISTINCT w.pid, p.gid, \
     CASE WHEN w.relation IS NOT NULL THEN w.relation::regclass::text WHEN w.locktype = 'transactionid' \
     THEN 'a row that it changed' ELSE w.locktype END AS object, \
     (extract(epoch FROM clock_timestamp() - w.waitstart) * 1000)::bigint AS since_ms, \
     (SELECT (extract(epoch FROM clock_timestamp() - a.query_start) * 1000)::bigint FROM pg_stat_activity AS a \
     WHERE a.pid = w.pid) AS statement_ms \
     FROM pg_locks AS w \
     JOIN pg_locks AS h ON h.granted AND h.pid IS NULL AND (h.locktype, h.database, h.relation, h.page, h.tuple, \
     h.virtualxid, h.transactionid, h.classid, h.objid, h.objsubid) IS NOT DISTINCT FROM (w.locktype, w.database, \
     w.relation, w.page, w.tuple, w.virtualxid, w.transactionid, w.classid, w.objid, w.objsubid) \
     JOIN pg_locks AS x ON x.locktype = 'transactionid' AND x.pid IS NULL AND x.virtualtransaction = h.virtualtransaction \
     JOIN pg_prepared_xacts AS p ON p.transaction = x.transactionid \
     WHERE NOT w.granted AND 0 = ANY (pg_blocking_pids(w.pid)) ORDER BY since_ms DESC NULLS LAST, w.pid LIMIT 1000";

impl Surroundings {
    fn of(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            role: row.try_get("role")?,
            is_superuser: row.try_get("is_superuser")?,
            may_create: row.try_get("may_create")?,
            synchronous_commit: row.try_get("synchronous_commit")?,
            search_path: row.try_get("search_path")?,
            strangers: row.try_get("strangers")?,
            data_directory: row.try_get("data_directory")?,
            address: row.try_get("address")?,
            unix_ms: row.try_get("unix_ms")?,
        })
    }

    fn is_here(&self) -> bool {
        let address = self.address.as_deref().map(str::parse::<IpAddr>);
        address.is_none_or(|address| address.is_ok_and(|address| address.is_loopback()))
    }
}

impl Identity {
    fn of(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            name: row.try_get("resource_manager")?,
            format: row.try_get("format")?,
            identity: row.try_get("identity")?,
            cluster: row.try_get("cluster")?,
        })
    }
}

impl PreparedTransaction {
    fn of(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            gid: row.try_get("gid")?,
            database: row.try_get("database")?,
            owner: row.try_get("owner")?,
            age: millis(Some(row.try_get("age_ms")?)),
        })
    }
}

impl Blocked {
    fn of(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            pid: row.try_get("pid")?,
            gid: row.try_get("gid")?,
            object: row.try_get("object")?,
            // Not set in the first moment of a wait.
            since: millis(row.try_get("since_ms")?),
        })
    }
}

/// The data directory and its write-ahead log, which is often a link to another disk. A port of this machine may be
/// forwarded to another one: what is no data directory here is not looked at.
fn disks(surroundings: &Surroundings) -> Vec<Disk> {
    let data = Path::new(&surroundings.data_directory);
    if !surroundings.is_here() || surroundings.data_directory.is_empty() || !data.join("PG_VERSION").exists()
    {
        return Vec::new();
    }
    let directories: [PathBuf; 2] = [data.to_owned(), data.join("pg_wal")];
    directories.iter().filter_map(|directory| Disk::of(directory)).collect()
}

async fn row(connection: &mut PgConnection, sql: &'static str) -> sqlx::Result<PgRow> {
    sqlx::raw_sql(statement(sql)).fetch_one(connection).await
}

async fn rows<T>(
    connection: &mut PgConnection,
    sql: &'static str,
    read: fn(&PgRow) -> sqlx::Result<T>,
) -> sqlx::Result<Vec<T>> {
    let rows = sqlx::raw_sql(statement(sql)).fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

fn statement(sql: &'static str) -> SqlStr {
    sql.into_sql_str()
}

fn millis(ms: Option<i64>) -> Duration {
    Duration::from_millis(ms.unwrap_or_default().try_into().unwrap_or_default())
}

fn unix_ms() -> i64 {
    let since = wall_clock().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
