//! Whether a database is fit to take part, and what stands in the way: what `lockstep doctor` shows, and what attaching
//! refuses.
//!
//! Each database has two files. `snapshot` asks and judges nothing; `judge` is a pure function of what was found, so that
//! every judgement is in a table of tests, and one place decides for both: attaching refuses exactly those [`Finding`]s
//! about settings and tables that are errors here. It does not look at the rest (other people's prepared transactions,
//! free disk, clocks): those need a person, and starting late would help nobody.
//!
//! Looking changes nothing: no table is made, no setting is changed, no branch is touched.

#[cfg(feature = "mysql")]
pub(crate) mod mysql;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::resource::ResourceError;

/// How bad it is. In order: a later one is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing, and nothing to be done now.
    Note,
    /// Works, and somebody should look at it.
    Warning,
    /// Would break atomicity, or keeps the database from taking part.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// What came of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The check's name, lower-case with dashes: the same in every version.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found and what it means, for a person.
    pub what: String,
    /// What mends it, one statement or command each, in this order. Empty where nothing has to be mended, or where
    /// [`Finding::what`] says what a person has to find out first.
    pub mend: Vec<String>,
    /// What was counted or measured, by name; the names end in their unit, where there is one.
    pub figures: BTreeMap<&'static str, i64>,
    /// An error that may be gone without anybody changing a setting: attaching waits for that, and does not give up.
    pub passing: bool,
}

impl Finding {
    pub(crate) fn new(check: &'static str, severity: Severity, what: impl Into<String>) -> Self {
        Self {
            check,
            severity,
            what: what.into(),
            mend: Vec::new(),
            figures: BTreeMap::new(),
            passing: false,
        }
    }

    pub(crate) fn mend(mut self, commands: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.mend.extend(commands.into_iter().map(Into::into));
        self
    }

    pub(crate) fn figure(mut self, name: &'static str, value: impl TryInto<i64>) -> Self {
        self.figures.insert(name, value.try_into().unwrap_or(i64::MAX));
        self
    }

    pub(crate) fn passing(self) -> Self {
        Self { passing: true, ..self }
    }

    /// What attaching says when it refuses.
    fn refusal(&self) -> String {
        if self.mend.is_empty() {
            return self.what.clone();
        }
        format!("{}. Mend it with:\n{}", self.what, self.mend.join("\n"))
    }
}

/// Refuses to take part if one of these is an error; one that waiting does not mend comes first.
pub(crate) fn refuse_errors(findings: &[Finding]) -> Result<(), ResourceError> {
    let errors = || findings.iter().filter(|finding| finding.severity == Severity::Error);
    if let Some(lasting) = errors().find(|finding| !finding.passing) {
        return Err(ResourceError::Unfit(lasting.refusal()));
    }
    match errors().next() {
        Some(passing) => Err(ResourceError::Unavailable(passing.refusal())),
        None => Ok(()),
    }
}

/// Everything that was found in one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which database, without a password.
    pub database: String,
    /// One for each check, and more than one where a check finds several things. In the order of the checks.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst of the findings.
    #[must_use]
    pub fn worst(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }
}

/// Why a database was not looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DoctorError {
    /// The URL is none, or none of this database. It is not repeated here: it may hold a password.
    #[error("{0}")]
    Url(String),
    /// It could not be reached, or did not answer what it was asked.
    #[error("{0}")]
    Unreachable(String),
}

/// Looks at a PostgreSQL database, as the role that the URL names: that should be the one that the service uses, since
/// its privileges are checked. A password may also come from `PGPASSWORD` or `~/.pgpass`.
///
/// # Errors
/// If the URL is malformed, or the server cannot be reached or asked.
#[cfg(feature = "postgres")]
pub async fn postgres(url: &str) -> Result<Report, DoctorError> {
    postgres::examine(url).await
}

/// Looks at a MariaDB or MySQL database, as the user that the URL names: that should be the one that the service uses, since
/// its privileges are checked.
///
/// # Errors
/// If the URL is malformed, or the server cannot be reached or asked.
#[cfg(feature = "mysql")]
pub async fn mysql(url: &str) -> Result<Report, DoctorError> {
    mysql::examine(url).await
}

/// Looks at a SQLite file, as the user that runs this: that should be the one that the service runs as. An instance may be
/// serving the file meanwhile.
///
/// # Errors
/// If there is no such file, or it cannot be read as a database.
#[cfg(feature = "sqlite")]
pub async fn sqlite(path: &std::path::Path) -> Result<Report, DoctorError> {
    sqlite::examine(path).await
}

/// Clocks that differ by less disturb nobody: what is compared are deadlines of seconds and retention times of hours.
#[cfg(any(feature = "postgres", feature = "mysql"))]
const CLOCK_DIFFERENCE_MS: i64 = 2_000;

/// The server's clock minus this machine's, and how wrong that may be, both in milliseconds.
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) fn judge_clock((difference_ms, uncertainty_ms): (i64, i64)) -> Finding {
    let finding =
        |severity, what| Finding::new("clock", severity, what).figure("server_ahead_ms", difference_ms);
    if difference_ms.abs() - uncertainty_ms < CLOCK_DIFFERENCE_MS {
        let what = format!("the server's clock is within {CLOCK_DIFFERENCE_MS} ms of this machine's");
        return finding(Severity::Ok, what);
    }
    let difference = lasting(Duration::from_millis(difference_ms.unsigned_abs()));
    let direction = if difference_ms < 0 { "behind" } else { "ahead of" };
    let what = format!(
        "the server's clock is {difference} {direction} this machine's: nothing breaks, and what people read is misleading"
    );
    finding(Severity::Warning, what).mend(["timedatectl status"])
}

/// A duration as people say it: `412ms`, `38s`, `4m12s`, `3d4h`.
pub(crate) fn lasting(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |great: u64, unit: char, small: u64, small_unit: char| match small {
        0 => format!("{great}{unit}"),
        _ => format!("{great}{unit}{small}{small_unit}"),
    };
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => two(seconds / 60, 'm', seconds % 60, 's'),
        3600..86_400 => two(seconds / 3600, 'h', seconds % 3600 / 60, 'm'),
        _ => two(seconds / 86_400, 'd', seconds % 86_400 / 3600, 'h'),
    }
}

/// Free space where a database writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) directory: String,
    pub(crate) free_bytes: u64,
}

/// Below this, somebody should look.
const LITTLE_DISK: u64 = 1 << 30;
/// Below this, the next branches may not be prepared: a SQLite branch's journal entry alone may take that much, and so may
/// the next segments of a write-ahead log.
const HARDLY_ANY_DISK: u64 = 64 << 20;

impl Disk {
    /// Asks the operating system. `None`: it does not tell.
    pub(crate) fn of(directory: &std::path::Path) -> Option<Self> {
        let about = rustix::fs::statvfs(directory).ok()?;
        let free_bytes = about.f_bavail.saturating_mul(about.f_frsize);
        Some(Self { directory: directory.display().to_string(), free_bytes })
    }

    pub(crate) fn judge(&self) -> Finding {
        let free_mib = self.free_bytes >> 20;
        let severity = match self.free_bytes {
            0..HARDLY_ANY_DISK => Severity::Error,
            HARDLY_ANY_DISK..LITTLE_DISK => Severity::Warning,
            LITTLE_DISK.. => Severity::Ok,
        };
        let what = format!("{free_mib} MiB are free in {}", self.directory);
        let finding = Finding::new("disk", severity, what).figure("free_mib", free_mib);
        match severity {
            Severity::Ok | Severity::Note => finding,
            Severity::Warning | Severity::Error => {
                finding.mend([format!("df -h {}", self.directory)]).passing()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Finding {
        Finding::new("some-check", severity, "it is so")
    }

    #[test]
    fn only_errors_are_refused_and_lasting_ones_first() {
        let harmless = [finding(Severity::Ok), finding(Severity::Note), finding(Severity::Warning)];
        assert!(refuse_errors(&harmless).is_ok());
        let passing = finding(Severity::Error).passing();
        assert!(matches!(refuse_errors(std::slice::from_ref(&passing)), Err(ResourceError::Unavailable(_))));
        let lasting = finding(Severity::Error).mend(["DO THIS;", "DO THAT;"]);
        let both = refuse_errors(&[passing, lasting]);
        assert!(
            matches!(&both, Err(ResourceError::Unfit(why)) if why == "it is so. Mend it with:\nDO THIS;\nDO THAT;"),
            "{both:?}"
        );
    }

    #[test]
    fn a_report_is_as_bad_as_its_worst_finding() {
        let report = |findings| Report { database: String::new(), findings };
        assert_eq!(report(vec![]).worst(), Severity::Ok);
        let findings = vec![finding(Severity::Note), finding(Severity::Error), finding(Severity::Warning)];
        assert_eq!(report(findings).worst(), Severity::Error);
    }

    #[test]
    fn durations_are_said_as_people_say_them() {
        for (seconds, text) in
            [(0.412, "412ms"), (38.9, "38s"), (252.0, "4m12s"), (3600.0, "1h"), (273_600.0, "3d4h")]
        {
            assert_eq!(lasting(Duration::from_secs_f64(seconds)), text);
        }
    }

    #[test]
    fn little_disk_is_a_warning_and_hardly_any_an_error() {
        let severity = |free_bytes| Disk { directory: "/data".into(), free_bytes }.judge().severity;
        assert_eq!(severity(0), Severity::Error);
        assert_eq!(severity((64 << 20) - 1), Severity::Error);
        assert_eq!(severity(64 << 20), Severity::Warning);
        assert_eq!(severity((1 << 30) - 1), Severity::Warning);
        assert_eq!(severity(1 << 30), Severity::Ok);
    }
}
