//! The one table of what can be set.
//!
//! A key's name is what stands in the file; with `--` before it, it is the flag; in capitals, with `_` for `-` and
//! `LOCKSTEP_` before it, the variable. (The variable is written out all the same, so that a search finds it.) To add a
//! key, add it here and to [`super::Config`]; the table in docs/configuration.md is checked against this one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::place::{Advertised, LogPlace, NodeName};
use super::value::{Form, LogFilter, LogFormat, Value};
use crate::decision_log::postgres::Accepted;

/// What every variable of ours begins with.
pub const VARIABLE_PREFIX: &str = "LOCKSTEP_";

/// One thing that can be set.
#[derive(Debug)]
pub struct Key {
    /// Its name: lower case, with dashes.
    pub name: &'static str,
    /// The environment variable: the name in capitals behind [`VARIABLE_PREFIX`].
    pub variable: &'static str,
    /// What its values look like.
    pub form: Form,
    /// The value that holds if nobody set one.
    pub default: &'static str,
    /// The least and the greatest value, both allowed. Nothing without an order has them.
    pub limits: Option<(&'static str, &'static str)>,
    /// What it does, for people: it stands in the help and in the documentation.
    pub help: &'static str,
}

impl Key {
    const fn new<T: Value>(
        name: &'static str,
        variable: &'static str,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { name, variable, form: T::FORM, default, limits: None, help }
    }

    const fn within(mut self, least: &'static str, greatest: &'static str) -> Self {
        self.limits = Some((least, greatest));
        self
    }

    /// The flag, with its dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.name)
    }

    /// The value in a text.
    ///
    /// # Errors
    /// Why it is none, to be read behind the text: "is no duration: …".
    pub(super) fn parse<T: Value>(&self, text: &str) -> Result<T, String> {
        assert_eq!(T::FORM, self.form, "`{}` is read as what it is", self.name);
        let value = T::parse(text)?;
        let Some((least, greatest)) = self.limits else {
            return Ok(value);
        };
        let limit = |text| T::parse(text).expect("a key's limits have its form");
        if value < limit(least) || value > limit(greatest) {
            return Err(format!("is out of its limits: {least} to {greatest}"));
        }
        Ok(value)
    }
}

/// Everything that can be set, in the order in which it is shown.
pub static KEYS: [Key; 17] = [
    LISTEN,
    INSECURE_LISTEN,
    ADVERTISE,
    DATA_DIR,
    LOG,
    MIGRATE_LOG,
    INSECURE_LOG_SETTINGS,
    NODE,
    LEASE,
    RETENTION,
    DEFAULT_TIMEOUT,
    APPLY_WAIT,
    MAX_IN_FLIGHT,
    REPORT_INTERVAL,
    DRAIN_TIMEOUT,
    LOG_FORMAT,
    LOG_FILTER,
];

pub(super) const LISTEN: Key = Key::new::<SocketAddr>(
    "listen",
    "LOCKSTEP_LISTEN",
    "127.0.0.1:7420",
    "Where applications, participants and operators connect. Port 0 takes a free one, which the banner tells",
);

pub(super) const INSECURE_LISTEN: Key = Key::new::<bool>(
    "insecure-listen",
    "LOCKSTEP_INSECURE_LISTEN",
    "false",
    "Allow an address that is not loopback, without TLS and authentication",
);

pub(super) const ADVERTISE: Key = Key::new::<Advertised>(
    "advertise",
    "LOCKSTEP_ADVERTISE",
    "auto",
    "Where participants and applications reach this node, as the nodes that share its decision log tell them. auto: where \
     it listens, unless that is every address of the host. none: it is not told",
);

pub(super) const DATA_DIR: Key = Key::new::<PathBuf>(
    "data-dir",
    "LOCKSTEP_DATA_DIR",
    "./lockstep-data",
    "Where the decision log lives; made if it is not there. Losing it loses decisions",
);

pub(super) const LOG: Key = Key::new::<LogPlace>(
    "log",
    "LOCKSTEP_LOG",
    "embedded",
    "The decision log: embedded, in the data directory, or a PostgreSQL database that several nodes share",
);

pub(super) const MIGRATE_LOG: Key = Key::new::<bool>(
    "migrate-log",
    "LOCKSTEP_MIGRATE_LOG",
    "false",
    "Let a start make the schema of a shared decision log, or bring it up to date, as `lockstep migrate` does",
);

pub(super) const INSECURE_LOG_SETTINGS: Key = Key::new::<Accepted>(
    "insecure-log-settings",
    "LOCKSTEP_INSECURE_LOG_SETTINGS",
    "none",
    "Settings of a shared decision log's server that may be such that it loses decisions: fsync, synchronous_commit, \
     full_page_writes, with commas between them",
);

pub(super) const NODE: Key = Key::new::<NodeName>(
    "node",
    "LOCKSTEP_NODE",
    "auto",
    "What this node calls itself among those that share a decision log: the same at every start of it, and at no other. \
     auto: the host's name and the port",
);

pub(super) const LEASE: Key = Key::new::<Duration>(
    "lease",
    "LOCKSTEP_LEASE",
    "3s",
    "How long a node that shares its decision log may be silent before the others take over",
)
.within("500ms", "5m");

pub(super) const RETENTION: Key = Key::new::<Duration>(
    "retention",
    "LOCKSTEP_RETENTION",
    "1h",
    "How long ended transactions are kept, for participants that come back from a standby or a backup and ask again",
)
.within("1s", "365d");

pub(super) const DEFAULT_TIMEOUT: Key = Key::new::<Duration>(
    "default-timeout",
    "LOCKSTEP_DEFAULT_TIMEOUT",
    "30s",
    "How long a transaction may take until its decision, if its application does not say",
)
.within("100ms", "24h");

pub(super) const APPLY_WAIT: Key = Key::new::<Duration>(
    "apply-wait",
    "LOCKSTEP_APPLY_WAIT",
    "5s",
    "How long the answer to a commit waits for the branches to apply a decision that is durable already",
)
.within("0s", "5m");

pub(super) const MAX_IN_FLIGHT: Key = Key::new::<usize>(
    "max-in-flight",
    "LOCKSTEP_MAX_IN_FLIGHT",
    "100000",
    "How many transactions may be unfinished at once. One more is refused at its begin",
)
.within("1", "10000000");

pub(super) const REPORT_INTERVAL: Key = Key::new::<Duration>(
    "report-interval",
    "LOCKSTEP_REPORT_INTERVAL",
    "30s",
    "How often a participant lists the branches that its database holds prepared",
)
.within("100ms", "1h");

pub(super) const DRAIN_TIMEOUT: Key = Key::new::<Duration>(
    "drain-timeout",
    "LOCKSTEP_DRAIN_TIMEOUT",
    "10s",
    "How long a coordinator that was told to stop waits for unfinished transactions. The rest is recovered at the next \
     start",
)
.within("0s", "1h");

pub(super) const LOG_FORMAT: Key = Key::new::<LogFormat>(
    "log-format",
    "LOCKSTEP_LOG_FORMAT",
    "text",
    "How log lines and the banner are written: text for people, json for machines",
);

pub(super) const LOG_FILTER: Key = Key::new::<LogFilter>(
    "log-filter",
    "LOCKSTEP_LOG_FILTER",
    "info",
    "What is logged: a level, and levels for modules behind it, such as info,lockstep_coordinator=debug",
);
