//! What a server has to be: which product, from which version on, and set up so that a crash loses nothing.

use std::collections::BTreeMap;
use std::fmt;

use crate::resource::ResourceError;

/// MariaDB keeps a prepared branch when the session that prepared it ends since then.
const OLDEST_MARIADB: Version = Version(10, 5, 2);
/// MySQL keeps a prepared branch over a crash with a binary log since then.
const OLDEST_MYSQL: Version = Version(8, 0, 30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl Version {
    /// Of a text such as `10.11.6-MariaDB-log`.
    fn of(text: &str) -> Self {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Self(next(), next(), next())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Product {
    MariaDb,
    MySql,
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MariaDb => "MariaDB",
            Self::MySql => "MySQL",
        })
    }
}

/// The server's settings, by their names. One that the product does not know is missing.
#[derive(Debug)]
pub(super) struct Server(BTreeMap<String, String>);

impl Server {
    pub(super) fn of(settings: BTreeMap<String, String>) -> Self {
        Self(settings)
    }

    fn setting(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn is_on(&self, name: &str) -> bool {
        self.setting(name).eq_ignore_ascii_case("ON")
    }

    fn product(&self) -> Product {
        let says = |name: &str| self.setting(name).to_ascii_lowercase().contains("mariadb");
        if says("version") || says("version_comment") { Product::MariaDb } else { Product::MySql }
    }

    /// The product, and what it calls itself: MySQL's UUID was made with the data, MariaDB's id follows from the machine's
    /// network card and the port.
    pub(super) fn identity(&self) -> String {
        let name = match self.product() {
            Product::MariaDb => "server_uid",
            Product::MySql => "server_uuid",
        };
        format!("{} {}", self.product(), self.setting(name))
    }

    pub(super) fn check(&self) -> Result<(), ResourceError> {
        self.check_version()?;
        self.check_settings()?;
        if self.is_on("read_only") || self.is_on("innodb_read_only") {
            return Err(ResourceError::Unavailable(
                "the server is read-only, as a replica is: it takes no writes, and can't tell what is prepared"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn check_version(&self) -> Result<(), ResourceError> {
        let product = self.product();
        let oldest = match product {
            Product::MariaDb => OLDEST_MARIADB,
            Product::MySql => OLDEST_MYSQL,
        };
        let version = Version::of(self.setting("version"));
        if version >= oldest {
            return Ok(());
        }
        Err(ResourceError::Unfit(format!(
            "{product} {version} is too old: {oldest} or newer is needed, because older ones lose prepared branches"
        )))
    }

    fn check_settings(&self) -> Result<(), ResourceError> {
        if self.is_on("wsrep_on") {
            return Err(ResourceError::Unfit(
                "the server is a node of a Galera cluster (wsrep_on), which does not replicate XA: a branch could be \
                 committed on one node and be missing on the others. Take part with a server outside of it"
                    .to_owned(),
            ));
        }
        let has_log = self.is_on("log_bin");
        for (name, fit, danger) in SETTINGS {
            let matters = has_log || !name.contains("binlog");
            let value = self.setting(name);
            // What is missing is no setting of this product.
            if matters && !value.is_empty() && !fit.iter().any(|fit| value.eq_ignore_ascii_case(fit)) {
                return Err(ResourceError::Unfit(format!(
                    "{name} is {value}: {danger}. Mend it with: {}",
                    mend(name, fit[0])
                )));
            }
        }
        Ok(())
    }
}

const CRASH: &str = "a crash of the machine could lose prepared and committed branches";

/// What has to be set to what (the first value is the usual one), and what happens otherwise. Those of the binary log matter
/// where there is one.
const SETTINGS: &[(&str, &[&str], &str)] = &[
    ("innodb_flush_log_at_trx_commit", &["1"], CRASH),
    ("innodb_doublewrite", &["ON", "DETECT_AND_RECOVER"], CRASH),
    ("innodb_flush_method", &["O_DIRECT", "O_DSYNC", "fsync", "O_DIRECT_NO_FSYNC"], CRASH),
    ("sync_binlog", &["1"], CRASH),
    ("binlog_format", &["MIXED", "ROW"], "InnoDB refuses to write the evidence under READ COMMITTED"),
    ("default_storage_engine", &["InnoDB"], "a table made without naming an engine can't be rolled back"),
];

fn mend(name: &str, value: &str) -> String {
    match name {
        // Read when the server starts.
        "innodb_doublewrite" | "innodb_flush_method" => {
            format!("{name} = {value} in the server's configuration, and a restart of the server")
        }
        _ => format!("SET GLOBAL {name} = {value}, and the same in the server's configuration"),
    }
}
