//! Connections to the log's server, and what an answer on them means.
//!
//! Every connection is set up the same, whatever the role's own settings are: the fence (P1) needs READ COMMITTED, in which
//! a statement that has waited for a row looks at it again; and nothing but the server's own end may break off a write.

use std::future::Future;
use std::time::Duration;

use futures::FutureExt;
use sqlx::postgres::{
    PgConnectOptions, PgConnection, PgDatabaseError, PgPoolOptions, PgQueryResult, PgSeverity,
};
use sqlx::{ConnectOptions, PgPool};

use super::durability::{self, Accepted};
use crate::decision_log::ReadError;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What every session is set to. A node whose host is gone is noticed by the server within some ten seconds, and its locks with it
/// given free. (Not by `client_connection_check_interval`: a write whose answer nobody waits for any more is to be carried through,
/// or it would be begun again and again on a slow server.)
const SET_UP: &str = "SET default_transaction_isolation = 'read committed'; \
     SET default_transaction_read_only = off; SET statement_timeout = 0; SET lock_timeout = 0; \
     SET idle_in_transaction_session_timeout = '10s'; \
     SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3";

/// What the sessions that write are set to besides: rows are found by their keys, whatever the server believes about the size of a table. It
/// keeps the plan of a statement; one that was made when the log was small would read all of it for each batch.
const BY_KEY: &str = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";

/// Why there is no answer to a statement.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server said no, and the session goes on: the statement, and the transaction that it was, had no effect.
    Refused {
        /// PostgreSQL's code for the error.
        code: String,
        /// What it said.
        message: String,
    },
    /// The connection broke, the server ended the session, or did not answer: what it did, or will do, is not known.
    Lost(String),
}

impl Failure {
    /// PostgreSQL's code for a second row under one key.
    pub(super) const DUPLICATE_KEY: &str = "23505";
    /// PostgreSQL's code for a lock that was not free in time.
    pub(super) const LOCK_NOT_AVAILABLE: &str = "55P03";

    /// Whether the server said no with this code.
    pub(super) fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { code, message } => write!(f, "PostgreSQL says: {message} ({code})"),
            Self::Lost(why) => f.write_str(why),
        }
    }
}

impl From<Failure> for ReadError {
    fn from(failure: Failure) -> Self {
        Self::Unavailable(failure.to_string())
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(error) = error else {
            return Self::Lost(format!("the connection to PostgreSQL was lost: {error}"));
        };
        match error.try_downcast::<PgDatabaseError>() {
            // FATAL and PANIC end the session; the statement before may have taken effect.
            Ok(error) if matches!(error.severity(), PgSeverity::Error) => {
                Self::Refused { code: error.code().to_owned(), message: error.message().to_owned() }
            }
            Ok(error) => {
                Self::Lost(format!("PostgreSQL ended the session: {} ({})", error.message(), error.code()))
            }
            Err(error) => Self::Lost(format!("PostgreSQL answered with an unknown error: {error}")),
        }
    }
}

/// Waits for an answer, at most `within`. The future has to go on to the very end of the answer (`fetch_all`, never
/// `fetch_one`): a statement outside of a transaction commits behind its last row.
pub(super) async fn answer<T>(
    within: Duration,
    answer: impl Future<Output = sqlx::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(within, answer).await {
        Ok(answered) => answered.map_err(Failure::from),
        Err(_elapsed) => Err(Failure::Lost(format!("PostgreSQL did not answer within {within:?}"))),
    }
}

/// A statement whose rows nobody wants.
pub(super) async fn run(
    connection: &mut PgConnection,
    within: Duration,
    statement: &'static str,
) -> Result<PgQueryResult, Failure> {
    answer(within, sqlx::raw_sql(statement).execute(connection)).await
}

/// Makes connections of one epoch's node.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    options: PgConnectOptions,
    accepted: Accepted,
    /// How long a statement waits for a lock; zero: for ever. Less than its answer is waited for: a server's process that nobody listens
    /// to any more would wait on, and with each attempt there would be one more of them.
    lock_timeout: Duration,
    /// Its sessions find rows by their keys ([`BY_KEY`]).
    by_key: bool,
}

impl Connector {
    /// To the database that these options name. `accepted`: settings that were told not to matter.
    pub(super) fn new(options: PgConnectOptions, accepted: Accepted) -> Self {
        Self {
            options: options.disable_statement_logging(),
            accepted,
            lock_timeout: Duration::ZERO,
            by_key: false,
        }
    }

    /// The same under this name, by which the server's list of sessions shows whose they are.
    pub(super) fn named(&self, application: &str) -> Self {
        Self { options: self.options.clone().application_name(application), ..self.clone() }
    }

    /// The same for statements whose answer is waited for so long.
    pub(super) fn answering_within(&self, patience: Duration) -> Self {
        Self { lock_timeout: patience / 2, ..self.clone() }
    }

    /// The same for statements that find rows by their keys.
    pub(super) fn by_key(&self) -> Self {
        Self { by_key: true, ..self.clone() }
    }

    /// Settings that were told not to matter.
    pub(super) fn accepted(&self) -> Accepted {
        self.accepted
    }

    /// A connection whose server writes durably and is no standby.
    pub(super) async fn connect(&self) -> Result<PgConnection, ConnectFailure> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.options.connect()).await;
        let mut connection = match connected {
            Ok(connected) => connected.map_err(Failure::from)?,
            Err(_elapsed) => {
                return Err(Failure::Lost(format!("no connection within {CONNECT_TIMEOUT:?}")).into());
            }
        };
        self.set_up(&mut connection).await?;
        Ok(connection)
    }

    async fn set_up(&self, connection: &mut PgConnection) -> Result<(), ConnectFailure> {
        run(connection, CONNECT_TIMEOUT, SET_UP).await?;
        if self.by_key {
            run(connection, CONNECT_TIMEOUT, BY_KEY).await?;
        }
        durability::check(connection, CONNECT_TIMEOUT, self.accepted).await?;
        let timeout = sqlx::query("SELECT set_config('lock_timeout', $1, false)")
            .persistent(false)
            .bind(self.lock_timeout.as_millis().to_string());
        answer(CONNECT_TIMEOUT, timeout.execute(connection)).await?;
        Ok(())
    }

    /// A pool of such connections, for what may wait for one another.
    pub(super) fn pool(&self, connections: u32) -> PgPool {
        let connector = self.clone();
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(CONNECT_TIMEOUT)
            .idle_timeout(Duration::from_secs(60))
            .after_connect(move |connection, _metadata| {
                let connector = connector.clone();
                async move { connector.set_up(connection).await.map_err(|error| protocol(&error)) }.boxed()
            })
            .connect_lazy_with(self.options.clone())
    }
}

/// What a pool can say of a connection that is not good enough.
fn protocol(error: &dyn std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Protocol(error.to_string())
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectFailure {
    /// None could be made, or it did not answer.
    #[error("{0}")]
    Failed(Failure),
    /// The server loses decisions, or is none to write to.
    #[error(transparent)]
    Unfit(#[from] durability::Unfit),
}

impl From<Failure> for ConnectFailure {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}
