//! Opening the log: the schema, a new epoch with a lease, and the epochs that were given up, or that this node left. Whether another node is
//! gone, one that has just started cannot know: after an outage of the log all leases have run out.

use std::str::FromStr;
use std::time::Duration;

use lockstep_proto::{ClusterId, Epoch, LogPosition};
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;

use super::connect::{ConnectFailure, Connector, Failure, answer};
use super::durability::{Accepted, Unfit};
use super::epochs::{self, PATIENCE, Taken};
use super::nodes::Node;
use super::schema::{self, SchemaError};
use super::{PostgresLog, read};
use crate::codes::Code;
use crate::decision_log::{ReadError, rows};

/// Nodes that may take an epoch at the same moment before one of them gives up.
const ATTEMPTS: u32 = 100;

/// How far a node's clock may be off the server's: as far as that of a participant may be.
const LARGEST_CLOCK_SKEW: Duration = Duration::from_secs(10 * 60);

/// How to open the log.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it is: `postgres://role@host:port/database`.
    pub url: String,
    /// This start may make the schema, or bring it up to date.
    pub migrate: bool,
    /// Settings of the server that were told not to matter.
    pub accepted: Accepted,
    /// What this node calls itself: the same at every start of it, and at no other.
    pub node: String,
    /// Where others reach it; `None` if it does not know.
    pub address: Option<String>,
    /// Whether an earlier epoch of the same node is over, as it is when its process has just started.
    pub succeeds: bool,
    /// After how long without a renewal others may take over.
    pub lease: Duration,
    /// How long an answer to a write is waited for, before its result counts as unknown.
    pub patience: Duration,
    /// This node's clock, milliseconds since 1970.
    pub now_ms: u64,
}

/// What opening found and did: for the banner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The server and the database, without secrets.
    pub place: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// The epoch that was taken; no batch is forced under it yet.
    pub position: LogPosition,
    /// Epochs that were sealed and adopted.
    pub adopted: Vec<Epoch>,
    /// How a forced write is made durable, as the server confirmed it.
    pub durability: String,
}

/// Why the log was not opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is none.
    #[error("{0:?} is no address of a decision log: write one such as postgres://role@host:5432/database")]
    Url(String),
    /// There is no connection.
    #[error("the decision log at {place} cannot be reached: {why}")]
    Unreachable {
        /// Where.
        place: String,
        /// Why not.
        why: String,
    },
    /// The server would lose decisions.
    #[error("the decision log at {place} cannot be used: {why}")]
    Unfit {
        /// Where.
        place: String,
        /// Why not.
        why: Unfit,
    },
    /// This node's clock is off.
    #[error(
        "this node's clock is {off_s} s away from that of the decision log at {place}, and {} s are allowed: set it right",
        LARGEST_CLOCK_SKEW.as_secs()
    )]
    Clock {
        /// Where.
        place: String,
        /// By so many seconds.
        off_s: u64,
    },
    /// The schema does not fit.
    #[error("{source} (at {place})")]
    Schema {
        /// Where.
        place: String,
        /// Why not.
        source: SchemaError,
    },
    /// A statement failed.
    #[error("cannot {doing} the decision log at {place}: {why}")]
    Failed {
        /// What was tried.
        doing: &'static str,
        /// Where.
        place: String,
        /// What the server said.
        why: String,
    },
}

impl OpenError {
    /// Its code: docs/errors has a page for it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Url(_) => Code::WrongConfiguration,
            Self::Unreachable { .. } | Self::Failed { .. } => Code::CannotOpenLog,
            Self::Unfit { .. } => Code::NotDurable,
            Self::Clock { .. } => Code::LogClock,
            Self::Schema { source, .. } => match source {
                SchemaError::Missing { .. } => Code::NoSchema,
                SchemaError::Newer { .. } => Code::NewerLog,
                SchemaError::Migrate(_) | SchemaError::Unavailable(_) => Code::CannotOpenLog,
            },
        }
    }

    /// What to do about it, where the sentence does not say so.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => {
                "does its server run, and may this role connect to that database? `--log` names another one"
            }
            Self::Failed { .. } | Self::Schema { source: SchemaError::Unavailable(_), .. } => {
                "look at the log of its server; then try again"
            }
            Self::Schema { source: SchemaError::Migrate(_), .. } => {
                "run `lockstep migrate` as a role that may create the schema lockstep_log"
            }
            Self::Url(_)
            | Self::Unfit { .. }
            | Self::Clock { .. }
            | Self::Schema { source: SchemaError::Missing { .. } | SchemaError::Newer { .. }, .. } => "",
        }
    }
}

/// Says of every failure where it was.
pub(super) struct Opening {
    place: String,
    connector: Connector,
}

impl Opening {
    pub(super) fn new(url: &str, accepted: Accepted) -> Result<Self, OpenError> {
        let wrong = || OpenError::Url(without_password(url));
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(wrong());
        }
        let options = PgConnectOptions::from_str(url).map_err(|_why| wrong())?;
        let database = options.get_database().unwrap_or(options.get_username());
        let place = format!("postgres://{}:{}/{database}", options.get_host(), options.get_port());
        Ok(Self { place, connector: Connector::new(options.application_name("lockstep"), accepted) })
    }

    pub(super) async fn connect(&self) -> Result<PgConnection, OpenError> {
        let place = self.place.clone();
        self.connector.connect().await.map_err(|failure| match failure {
            ConnectFailure::Failed(failure) => OpenError::Unreachable { place, why: failure.to_string() },
            ConnectFailure::Unfit(why) => OpenError::Unfit { place, why },
        })
    }

    async fn migrate(&self) -> Result<(), OpenError> {
        let pool = self.connector.pool(1);
        let migrated = schema::migrate(&pool).await;
        pool.close().await;
        migrated.map_err(|error| self.schema(error))
    }

    pub(super) fn schema(&self, source: SchemaError) -> OpenError {
        OpenError::Schema { place: self.place.clone(), source }
    }

    pub(super) fn failed(&self, doing: &'static str, why: &dyn std::fmt::Display) -> OpenError {
        OpenError::Failed { doing, place: self.place.clone(), why: why.to_string() }
    }

    /// What this node begins is never older than what another one has begun and told of. So one clock that is far ahead would
    /// set the times of all transactions to come, and nothing of them would be pruned for as long.
    async fn check_clock(&self, connection: &mut PgConnection, now_ms: u64) -> Result<(), OpenError> {
        let statement = sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint");
        let server_ms: i64 = answer(PATIENCE, statement.fetch_one(connection))
            .await
            .map_err(|failure| self.failed("ask the time of", &failure))?;
        let off = Duration::from_millis(now_ms.abs_diff(server_ms.cast_unsigned()));
        if off <= LARGEST_CLOCK_SKEW {
            return Ok(());
        }
        Err(OpenError::Clock { place: self.place.clone(), off_s: off.as_secs() })
    }

    async fn take_epoch(&self, connection: &mut PgConnection, options: &Options) -> Result<Taken, OpenError> {
        let floor_ms = rows::column_ms(options.now_ms);
        for _attempt in 0..ATTEMPTS {
            let taken = epochs::take(connection, options, floor_ms).await;
            if let Some(taken) = taken.map_err(|failure| self.failed("take an epoch in", &failure))? {
                return Ok(taken);
            }
        }
        Err(self.failed("take an epoch in", &"too many others took one at the same moment"))
    }
}

/// What may be shown of a URL.
fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _no_password => url.to_owned(),
    }
}

/// Makes the schema, or brings it up to date, and says where.
///
/// # Errors
/// [`OpenError`]; what was applied before stays.
pub async fn migrate(url: &str, accepted: Accepted) -> Result<String, OpenError> {
    let opening = Opening::new(url, accepted)?;
    drop(opening.connect().await?);
    opening.migrate().await?;
    Ok(opening.place)
}

/// Every epoch that is not sealed or has left something unfinished, and with `all` every other one too; the newest first.
///
/// # Errors
/// [`OpenError`].
pub async fn nodes(url: &str, accepted: Accepted, all: bool) -> Result<Vec<Node>, OpenError> {
    let opening = Opening::new(url, accepted)?;
    let mut connection = opening.connect().await?;
    schema::check(&mut connection).await.map_err(|error| opening.schema(error))?;
    super::nodes::nodes(&mut connection, all).await.map_err(|failure| opening.failed("read", &failure))
}

/// The cluster id, made with the log by whichever node came first.
async fn cluster(connection: &mut PgConnection) -> Result<ClusterId, ReadError> {
    let made = ClusterId::from_random(rand::random());
    let insert = sqlx::query(
        "INSERT INTO lockstep_log.marks (name, record) VALUES ($1, $2), ($3, $4) ON CONFLICT (name) DO NOTHING",
    )
    .bind(rows::CLUSTER)
    .bind(rows::encode_cluster(made))
    .bind(rows::HORIZON)
    .bind(rows::encode_horizon(0));
    answer(PATIENCE, insert.execute(&mut *connection)).await.map_err(ReadError::from)?;
    known_cluster(connection).await
}

/// The cluster id of a log that a node has opened.
pub(super) async fn known_cluster(connection: &mut PgConnection) -> Result<ClusterId, ReadError> {
    let select =
        sqlx::query_scalar("SELECT record FROM lockstep_log.marks WHERE name = $1").bind(rows::CLUSTER);
    let records: Vec<Vec<u8>> =
        answer(PATIENCE, select.fetch_all(connection)).await.map_err(ReadError::from)?;
    let record = records.first().ok_or_else(|| ReadError::Damaged("the cluster id is missing".to_owned()))?;
    rows::decode_cluster(record).map_err(|error| read::damaged("the cluster id", error))
}

impl PostgresLog {
    /// Opens the log under a new epoch, and seals and adopts those that were given up, or that an earlier life of this node left.
    ///
    /// # Errors
    /// [`OpenError`]. An epoch that was taken is left to its lease.
    pub async fn open(options: &Options) -> Result<(Self, Opened), OpenError> {
        let opening = Opening::new(&options.url, options.accepted)?;
        let mut connection = opening.connect().await?;
        if options.migrate {
            opening.migrate().await?;
        }
        schema::check(&mut connection).await.map_err(|error| opening.schema(error))?;
        opening.check_clock(&mut connection, options.now_ms).await?;
        let cluster = cluster(&mut connection).await.map_err(|error| opening.failed("read", &error))?;
        fail::fail_point!("log-shared-open-before-epoch");
        let taken = opening.take_epoch(&mut connection, options).await?;
        let position = taken.own.position();
        let log = Self::new(cluster, taken, &opening.connector, options);
        fail::fail_point!("log-shared-open-before-seal");
        let adopted =
            log.take_over_what_was_given_up().await.map_err(|error| opening.failed("adopt in", &error))?;
        fail::fail_point!("log-shared-open-after-seal");
        let accepted = options.accepted.to_string();
        let durability = if accepted.is_empty() {
            "PostgreSQL, synchronous_commit=on".to_owned()
        } else {
            format!("PostgreSQL, INSECURE: {accepted} may be off, and decisions be lost")
        };
        let opened = Opened { place: opening.place, cluster, position, adopted, durability };
        Ok((log, opened))
    }
}

impl From<ConnectFailure> for ReadError {
    fn from(failure: ConnectFailure) -> Self {
        Self::Unavailable(failure.to_string())
    }
}

impl From<ConnectFailure> for Failure {
    fn from(failure: ConnectFailure) -> Self {
        match failure {
            ConnectFailure::Failed(failure) => failure,
            ConnectFailure::Unfit(why) => Self::Lost(why.to_string()),
        }
    }
}
