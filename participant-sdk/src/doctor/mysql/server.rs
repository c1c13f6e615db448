//! What a server has to be: which product, from which version on, and set up so that a crash loses nothing.

use std::collections::BTreeMap;
use std::fmt;

use crate::doctor::{Finding, Severity};

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
#[derive(Debug, Clone)]
pub(crate) struct Server(BTreeMap<String, String>);

impl Server {
    pub(crate) fn of(settings: BTreeMap<String, String>) -> Self {
        Self(settings)
    }

    pub(super) fn setting(&self, name: &str) -> &str {
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
    pub(crate) fn identity(&self) -> String {
        let name = match self.product() {
            Product::MariaDb => "server_uid",
            Product::MySql => "server_uuid",
        };
        format!("{} {}", self.product(), self.setting(name))
    }

    /// What attaching goes by: one finding for the version, one for each setting that matters, one for its role.
    pub(crate) fn judge(&self) -> Vec<Finding> {
        let mut findings = vec![self.version(), self.galera()];
        let has_log = self.is_on("log_bin");
        // What is missing is no setting of this product, and those of the binary log matter where there is one.
        let matter = |name: &str| !self.setting(name).is_empty() && (has_log || !name.contains("binlog"));
        let settings = SETTINGS.iter().filter(|setting| matter(setting.name));
        findings.extend(settings.map(|setting| setting.judge(self.setting(setting.name))));
        findings.push(self.standby());
        findings
    }

    fn version(&self) -> Finding {
        let product = self.product();
        let oldest = match product {
            Product::MariaDb => OLDEST_MARIADB,
            Product::MySql => OLDEST_MYSQL,
        };
        let version = Version::of(self.setting("version"));
        if version >= oldest {
            return Finding::new("version", Severity::Ok, format!("{product} {version}"));
        }
        let what = format!(
            "{product} {version} is too old: {oldest} or newer is needed, because older ones lose prepared branches"
        );
        Finding::new("version", Severity::Error, what)
    }

    fn galera(&self) -> Finding {
        if self.is_on("wsrep_on") {
            let what = "the server is a node of a Galera cluster (wsrep_on), which does not replicate XA: a branch could be \
                        committed on one node and be missing on the others. Take part with a server outside of it";
            return Finding::new("galera", Severity::Error, what);
        }
        Finding::new("galera", Severity::Ok, "it is no node of a Galera cluster")
    }

    fn standby(&self) -> Finding {
        if self.is_on("read_only") || self.is_on("innodb_read_only") {
            let what = "the server is read-only, as a replica is: it takes no writes, and can't tell what is prepared";
            return Finding::new("standby", Severity::Error, what).passing();
        }
        Finding::new("standby", Severity::Ok, "it takes writes")
    }
}

const CRASH: &str = "a crash of the machine could lose prepared and committed branches";

/// What has to be set to what, and what happens otherwise.
struct Setting {
    check: &'static str,
    name: &'static str,
    /// The first one is the usual one.
    fit: &'static [&'static str],
    danger: &'static str,
    /// Read when the server starts.
    at_start: bool,
}

const SETTINGS: &[Setting] = &[
    Setting {
        check: "flush-log",
        name: "innodb_flush_log_at_trx_commit",
        fit: &["1"],
        danger: CRASH,
        at_start: false,
    },
    Setting {
        check: "doublewrite",
        name: "innodb_doublewrite",
        fit: &["ON", "DETECT_AND_RECOVER"],
        danger: CRASH,
        at_start: true,
    },
    Setting {
        check: "flush-method",
        name: "innodb_flush_method",
        fit: &["O_DIRECT", "O_DSYNC", "fsync", "O_DIRECT_NO_FSYNC"],
        danger: CRASH,
        at_start: true,
    },
    Setting { check: "sync-binlog", name: "sync_binlog", fit: &["1"], danger: CRASH, at_start: false },
    Setting {
        check: "binlog-format",
        name: "binlog_format",
        fit: &["MIXED", "ROW"],
        danger: "InnoDB refuses to write the evidence under READ COMMITTED",
        at_start: false,
    },
    Setting {
        check: "storage-engine",
        name: "default_storage_engine",
        fit: &["InnoDB"],
        danger: "a table made without naming an engine can't be rolled back",
        at_start: false,
    },
];

impl Setting {
    fn judge(&self, value: &str) -> Finding {
        let Self { check, name, fit, danger, at_start } = self;
        if fit.iter().any(|fit| value.eq_ignore_ascii_case(fit)) {
            return Finding::new(check, Severity::Ok, format!("{name} is {value}"));
        }
        let file = format!("{name} = {} in the section [mysqld] of the server's configuration", fit[0]);
        if *at_start {
            let what = format!("{name} is {value}: {danger}. Set {file}, and restart the server");
            return Finding::new(check, Severity::Error, what);
        }
        let what = format!("{name} is {value}: {danger}. So that a restart keeps it, also set {file}");
        Finding::new(check, Severity::Error, what).mend([format!("SET GLOBAL {name} = {};", fit[0])])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(changed: &[(&str, &str)]) -> Server {
        let well = [
            ("version", "10.11.6-MariaDB-log"),
            ("innodb_flush_log_at_trx_commit", "1"),
            ("innodb_doublewrite", "ON"),
            ("innodb_flush_method", "O_DIRECT"),
            ("sync_binlog", "1"),
            ("binlog_format", "MIXED"),
            ("log_bin", "ON"),
            ("default_storage_engine", "InnoDB"),
            ("read_only", "OFF"),
        ];
        let settings =
            well.iter().chain(changed).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Server::of(settings.collect())
    }

    #[test]
    fn a_server_that_is_well_has_nothing_to_be_done() {
        assert!(server(&[]).judge().iter().all(|finding| finding.severity == Severity::Ok));
    }

    #[test]
    fn each_fault_is_found_named_and_mended() {
        for (check, changed, words) in [
            ("version", &[("version", "10.5.1-MariaDB")][..], "MariaDB 10.5.1 is too old: 10.5.2"),
            ("version", &[("version", "8.0.29")], "MySQL 8.0.29 is too old: 8.0.30"),
            ("galera", &[("wsrep_on", "ON")], "does not replicate XA"),
            (
                "flush-log",
                &[("innodb_flush_log_at_trx_commit", "2")],
                "SET GLOBAL innodb_flush_log_at_trx_commit = 1;",
            ),
            (
                "doublewrite",
                &[("innodb_doublewrite", "OFF")],
                "innodb_doublewrite = ON in the section [mysqld]",
            ),
            ("flush-method", &[("innodb_flush_method", "nosync")], "restart the server"),
            ("sync-binlog", &[("sync_binlog", "0")], "SET GLOBAL sync_binlog = 1;"),
            ("binlog-format", &[("binlog_format", "STATEMENT")], "SET GLOBAL binlog_format = MIXED;"),
            (
                "storage-engine",
                &[("default_storage_engine", "Aria")],
                "SET GLOBAL default_storage_engine = InnoDB;",
            ),
            ("standby", &[("read_only", "ON")], "read-only"),
        ] {
            let bad: Vec<Finding> = server(changed)
                .judge()
                .into_iter()
                .filter(|finding| finding.severity != Severity::Ok)
                .collect();
            assert!(bad.len() == 1 && bad[0].check == check && bad[0].severity == Severity::Error, "{bad:?}");
            let said = format!("{}\n{}", bad[0].what, bad[0].mend.join("\n"));
            assert!(said.contains(words), "{words:?} is not in:\n{said}");
        }
    }

    #[test]
    fn settings_of_a_binary_log_that_is_not_written_do_not_matter() {
        let server = server(&[("log_bin", "OFF"), ("sync_binlog", "0"), ("binlog_format", "STATEMENT")]);
        assert!(server.judge().iter().all(|finding| finding.severity == Severity::Ok));
    }
}
