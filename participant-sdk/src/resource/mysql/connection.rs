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

use futures::TryStreamExt as _;
use sqlx::mysql::{
    MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlPoolOptions, MySqlRow,
    MySqlTransactionManager,
};
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Either, MySql, MySqlPool, SqlStr};
use sqlx_core::transaction::TransactionManager as _;

use super::sql;
use crate::resource::newest::Newest;

/// Connections of the resource's own. Each commit waits for the disk, and the disk serves several at once.
const OWN_CONNECTIONS: u32 = 8;
/// How long to wait for one of them.
const OWN_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// They go when nothing happens.
const OWN_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// One that was used a moment ago is not tried before it is used again: a round trip less for every commit.
const TRUSTED_WHEN_IDLE_FOR: Duration = Duration::from_secs(1);
/// How long a fence waits for a branch that has written its evidence: that is committed in a moment, or it has
/// become prepared since it was looked for, and then it has to be looked for again. The servers take no less.
const OWN_LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the server may work for one of the resource's own statements.
const OWN_STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for an answer on them: longer than the server may take.
pub(super) const OWN_ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an orderly goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Errors behind which there is no session any more, so that nobody knows what its last statement did: the server shuts down
/// (1053), killed (1927 MariaDB), idle for too long (4031 MySQL).
const SESSION_ENDED: &[u16] = &[1053, 1927, 4031];

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
pub(super) fn own_pool(options: MySqlConnectOptions, newest: Arc<Newest>) -> MySqlPool {
    MySqlPoolOptions::new()
        .max_connections(OWN_CONNECTIONS)
        .acquire_timeout(OWN_ACQUIRE_TIMEOUT)
        .idle_timeout(OWN_IDLE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(|connection, metadata| {
            Box::pin(async move {
                if metadata.idle_for > TRUSTED_WHEN_IDLE_FOR {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(move |connection, _metadata| {
            newest.connected();
            Box::pin(async move {
                let sql = sql::set_up_own_connection(OWN_LOCK_TIMEOUT, OWN_STATEMENT_TIMEOUT);
                sqlx::raw_sql(sql).execute(connection).await.map(drop)
            })
        })
        .connect_lazy_with(options)
}

/// A connection of a pool, for one purpose. Dropping it returns it to the pool if it is clean, and closes it if
/// not.
#[derive(Debug)]
pub(super) struct Lease {
    /// `None` only while it is being dropped.
    connection: Option<PoolConnection<MySql>>,
    /// Outside of any transaction, with nothing under way, and as it came.
    is_clean: bool,
}

impl Lease {
    /// Waits for one, at most `within` and as long as the pool itself waits.
    pub(super) async fn acquire(pool: &MySqlPool, within: Duration) -> Result<Self, String> {
        match tokio::time::timeout(within, pool.acquire()).await {
            Ok(Ok(connection)) => Ok(Self { connection: Some(connection), is_clean: true }),
            Ok(Err(sqlx::Error::PoolTimedOut)) | Err(_) => Err(format!(
                "no connection to the database in time: {} of the pool's {} are open, {} of them idle",
                pool.size(),
                pool.options().get_max_connections(),
                pool.num_idle()
            )),
            Ok(Err(error)) => Err(format!("no connection to the database: {error}")),
        }
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
        drop(tokio::time::timeout(CLOSE_TIMEOUT, connection.detach().close()).await);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if !self.is_clean {
            // Out of the pool, and closed by being dropped: the server rolls back what is not prepared.
            drop(connection.detach());
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
