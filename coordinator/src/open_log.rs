//! The decision log that the configuration names: the embedded one, or one that several nodes share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::Epoch;

use crate::config::{Config, LogPlace};
use crate::decision_log::DecisionLog;
use crate::decision_log::postgres::{self, PostgresLog};
use crate::decision_log::sqlite::{self, SqliteLog};
use crate::engine::clock::unix_ms;
use crate::operator::{Ready, Recovered, Where};
use crate::server::ServeError;

/// How long an answer to a forced write is waited for, before its connection is given up and its result looked for on another. Far longer
/// than any healthy force takes, a synchronous standby's included.
const PATIENCE: Duration = Duration::from_secs(10);

/// An open log, and what opening it found.
pub(crate) struct OpenLog {
    shared: Arc<dyn DecisionLog>,
    kind: Kind,
}

enum Kind {
    Sqlite(Arc<SqliteLog>, sqlite::Opened),
    Postgres(Arc<PostgresLog>, postgres::Opened),
}

impl OpenLog {
    /// Opens it under a new epoch. `first`: the process has just started, so that an earlier life of this node is over.
    pub(crate) async fn open(config: &Config, bound: SocketAddr, first: bool) -> Result<Self, ServeError> {
        let url = match &config.log {
            LogPlace::Embedded => {
                let (log, opened) = SqliteLog::open(&config.data_dir, sqlite::Options::default()).await?;
                let log = Arc::new(log);
                return Ok(Self { shared: Arc::clone(&log) as _, kind: Kind::Sqlite(log, opened) });
            }
            LogPlace::Postgres(url) => url,
        };
        let options = postgres::Options {
            url: url.clone(),
            migrate: config.migrate_log,
            accepted: config.insecure_log_settings,
            node: config.node.resolve(bound),
            address: config.advertise.resolve(bound),
            succeeds: first,
            lease: config.lease,
            patience: PATIENCE,
            now_ms: unix_ms(),
        };
        let (log, opened) = PostgresLog::open(&options).await?;
        let log = Arc::new(log);
        Ok(Self { shared: Arc::clone(&log) as _, kind: Kind::Postgres(log, opened) })
    }

    /// The log, as the engine knows it.
    pub(crate) fn shared(&self) -> &Arc<dyn DecisionLog> {
        &self.shared
    }

    /// The log, if it is the embedded one.
    pub(crate) fn embedded(&self) -> Option<Arc<SqliteLog>> {
        match &self.kind {
            Kind::Sqlite(log, _) => Some(Arc::clone(log)),
            Kind::Postgres(..) => None,
        }
    }

    /// The log, if several nodes may share it, and the epochs that were adopted when it was opened.
    pub(crate) fn on_postgres(&self) -> Option<(Arc<PostgresLog>, &[Epoch])> {
        match &self.kind {
            Kind::Sqlite(..) => None,
            Kind::Postgres(log, opened) => Some((Arc::clone(log), &opened.adopted)),
        }
    }

    /// What the banner tells.
    pub(crate) fn ready(&self, bound: SocketAddr, recovered: Recovered) -> Ready {
        let listening = vec![bound];
        match &self.kind {
            Kind::Sqlite(_, opened) => Ready {
                listening,
                durability: opened.durability.to_owned(),
                log: Where::DataDirectory(opened.dir.clone()),
                cluster: opened.cluster,
                epoch: opened.position.epoch,
                recovered: Recovered { sealed_epochs: opened.sealed_epochs, ..recovered },
            },
            Kind::Postgres(_, opened) => Ready {
                listening,
                durability: opened.durability.clone(),
                log: Where::Server(opened.place.clone()),
                cluster: opened.cluster,
                epoch: opened.position.epoch,
                recovered: Recovered { sealed_epochs: opened.adopted.len(), ..recovered },
            },
        }
    }
}
