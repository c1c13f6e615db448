//! Connections: lent for one purpose, closed unless they are known to be clean, and asked with an end to the wait.
//!
//! A [`Lease`] returns to its pool only if it is outside of any transaction, the server's last answer is known, and nothing was
//! set up in its session for a branch. So a branch's connection never returns: MariaDB lets nobody else finish a
//! prepared branch while the session that prepared it is there (P24), and a session that went back inside of a branch would take the
//! next user's writes into it. Opening one takes about half a millisecond (measured on loopback without TLS or a
//! password).
//!
//! An answer that is an error is one of two very different things, [`Failure::Refused`] and [`Failure::Lost`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, TryStreamExt as _};
use sqlx::mysql::{
    MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlRow, MySqlTransactionManager,
};
use sqlx::{Either, MySql, MySqlPool, SqlStr};
use sqlx_core::transaction::TransactionManager as _;

use super::sql;
use crate::resource::newest::Newest;
use crate::resource::own::{self, Held};

/// The resource's own connections.
pub(super) type OwnPool = own::OwnPool<MySqlConnection>;

/// How long a fence waits for a branch that has written its evidence: that is committed in a moment, or it has
/// become prepared since it was looked for, and then it has to be looked for again. The servers take no less.
const OWN_LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the server may work for one of the resource's own statements.
const OWN_STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for an answer on them: longer than the server may take.
pub(super) const OWN_ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Errors behind which there is no session any more, so that nobody knows what its last statement did: the server shuts down
/// (1053), killed (1927 MariaDB), idle for too long (4031 MySQL).
const SESSION_ENDED: &[u16] = &[1053, 1927, 4031];

/// What a server that is full says: `ER_CON_COUNT_ERROR`, `ER_TOO_MANY_USER_CONNECTIONS`, and `ER_USER_LIMIT_REACHED`, which names the limit: there
/// are others for each hour.
const TAKES_NO_MORE: &[(u16, &str)] = &[(1040, ""), (1203, ""), (1226, "'max_user_connections'")];

/// Why there is no answer to a statement.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server said no to this statement, and the session goes on.
    Refused(Box<MySqlDatabaseError>),
    /// The connection broke, the server ended the session, or did not answer: what it did is not known.
    Lost(String),
}

/// What the server answered to one or more statements.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// All rows of all statements.
    pub(super) rows: Vec<MySqlRow>,
}

impl Reply {
    /// What a SHOW statement shows under this name, if it is a number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.shown()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .and_then(|(_, value)| value.parse().ok())
    }

    /// The rows of a SHOW statement as names and values; other rows are left out.
    pub(super) fn shown(&self) -> impl Iterator<Item = (String, String)> {
        self.rows.iter().filter_map(|row| Some((text(row, "Variable_name").ok()?, text(row, "Value").ok()?)))
    }
}

/// A text, of whatever type the server says it is: that differs between products and versions.
pub(super) fn text(row: &MySqlRow, column: &str) -> sqlx::Result<String> {
    use sqlx::Row as _;
    let bytes: &[u8] = row.try_get_unchecked(column)?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// The pool for what must never wait for a branch. `options`: those of the service's own pool. `newest` hears of each connection.
pub(super) fn own_pool(options: MySqlConnectOptions, newest: Arc<Newest>) -> OwnPool {
    OwnPool::new(options, |connection| set_up(connection).boxed(), is_passing, newest)
}

async fn set_up(connection: &mut MySqlConnection) -> sqlx::Result<()> {
    let sql = sql::set_up_own_connection(OWN_LOCK_TIMEOUT, OWN_STATEMENT_TIMEOUT);
    sqlx::raw_sql(sql).execute(connection).await.map(drop)
}

/// It takes no more connections now, at all or from this user, or was not there.
fn is_passing(error: &sqlx::Error) -> bool {
    let refused = error.as_database_error().and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>());
    let takes_no_more = |error: &MySqlDatabaseError| {
        TAKES_NO_MORE
            .iter()
            .any(|(number, limit)| error.number() == *number && error.message().contains(limit))
    };
    refused.map_or(matches!(error, sqlx::Error::Io(_)), takes_no_more)
}

/// A connection of a pool, for one purpose. Dropping it returns it to the pool if it is clean, and closes it if
/// not.
#[derive(Debug)]
pub(super) struct Lease {
    /// `None` only while it is being dropped.
    connection: Option<Held<MySql>>,
    /// Outside of any transaction, with nothing under way, and as it came.
    is_clean: bool,
}

impl Lease {
    /// Waits for one of the service's, at most `within` and as long as its pool itself waits.
    pub(super) async fn of_service(pool: &MySqlPool, within: Duration) -> Result<Self, String> {
        match tokio::time::timeout(within, pool.acquire()).await {
            Ok(Ok(connection)) => Ok(Self::clean(Held::Service(connection))),
            Ok(Err(sqlx::Error::PoolTimedOut)) | Err(_) => Err(format!(
                "no connection to the database in time: {} of the pool's {} are open, {} of them idle",
                pool.size(),
                pool.options().get_max_connections(),
                pool.num_idle()
            )),
            Ok(Err(error)) => Err(format!("no connection to the database: {error}")),
        }
    }

    /// Waits for one of the resource's own.
    pub(super) async fn own(pool: &OwnPool) -> Result<Self, String> {
        let connection = pool.get().await.map_err(|why| format!("no connection to the database: {why}"))?;
        Ok(Self::clean(Held::Own(connection)))
    }

    const fn clean(connection: Held<MySql>) -> Self {
        Self { connection: Some(connection), is_clean: true }
    }

    pub(super) fn connection(&mut self) -> &mut MySqlConnection {
        self.connection.as_mut().expect("a lease has its connection until it ends")
    }

    pub(super) fn connection_ref(&self) -> &MySqlConnection {
        self.connection.as_ref().expect("a lease has its connection until it ends")
    }

    /// Begins a branch's transaction in the way of sqlx, so that a handler's own `begin()` becomes a savepoint
    /// in it, and not a BEGIN that the server refuses. From here on the lease is not clean.
    pub(super) async fn begin(&mut self, sql: SqlStr, within: Duration) -> Result<(), Failure> {
        self.is_clean = false;
        answer(within, MySqlTransactionManager::begin(self.connection(), Some(sql))).await
    }

    /// Sends `sql` and waits for the whole answer. A lease that was clean is so again behind it, also if the
    /// server refused: `sql` must not leave a transaction open, except inside a branch's.
    pub(super) async fn run(&mut self, sql: SqlStr, within: Duration) -> Result<Reply, Failure> {
        let was_clean = std::mem::replace(&mut self.is_clean, false);
        let answer = answer(within, collect(self.connection(), sql)).await;
        self.is_clean = was_clean && !matches!(answer, Err(Failure::Lost(_)));
        answer
    }

    /// The same for several statements that are one transaction: whatever is refused ends the connection, and with it the
    /// transaction.
    pub(super) async fn run_transaction(&mut self, sql: SqlStr, within: Duration) -> Result<Reply, Failure> {
        let reply = self.run(sql, within).await;
        self.is_clean = self.is_clean && reply.is_ok();
        reply
    }

    /// Says goodbye, so that the server ends the session at once.
    pub(super) async fn close(mut self) {
        let Some(connection) = self.connection.take() else { return };
        connection.close().await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if !self.is_clean {
            // Out of the pool, and closed by being dropped: the server rolls back what is not prepared.
            connection.cut();
        }
    }
}

async fn collect(connection: &mut MySqlConnection, sql: SqlStr) -> sqlx::Result<Reply> {
    let mut reply = Reply::default();
    let mut answers = sqlx::raw_sql(sql).fetch_many(connection);
    // To the very end: behind the last row there may be a statement that is refused.
    while let Some(answer) = answers.try_next().await? {
        match answer {
            Either::Left(_rows_changed) => {}
            Either::Right(row) => reply.rows.push(row),
        }
    }
    Ok(reply)
}

async fn answer<T>(within: Duration, answer: impl Future<Output = sqlx::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(within, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failure(error)),
        Err(_elapsed) => Err(Failure::Lost(format!("the database did not answer within {within:?}"))),
    }
}

fn failure(error: sqlx::Error) -> Failure {
    let sqlx::Error::Database(error) = error else {
        return Failure::Lost(format!("the connection to the database was lost: {error}"));
    };
    match error.try_downcast::<MySqlDatabaseError>() {
        Ok(error) if SESSION_ENDED.contains(&error.number()) => {
            Failure::Lost(format!("the database ended the session: {} ({})", error.message(), error.number()))
        }
        Ok(error) => Failure::Refused(error),
        Err(error) => Failure::Lost(format!("the database answered with an unknown error: {error}")),
    }
}
