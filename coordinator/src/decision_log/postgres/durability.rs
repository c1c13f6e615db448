//! Whether a server keeps what it has acknowledged. Asked of every new connection: after a failover it is another server. And asked again
//! with each renewal of the lease, for a server can be told otherwise while it runs.

use std::fmt;
use std::time::Duration;

use sqlx::PgConnection;

use super::connect::{ConnectFailure, answer};

/// A setting without which an acknowledged decision may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// Off: a crash of the machine loses what was acknowledged, or the whole database.
    Fsync,
    /// Anything but `on` or `remote_apply`: the acknowledgement comes before the disk, or before the standby's.
    SynchronousCommit,
    /// Off: a power failure in the middle of a page's write damages the page.
    FullPageWrites,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fsync, Self::SynchronousCommit, Self::FullPageWrites];

    /// PostgreSQL's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::SynchronousCommit => "synchronous_commit",
            Self::FullPageWrites => "full_page_writes",
        }
    }

    fn keeps(self, value: &str) -> bool {
        match self {
            Self::Fsync | Self::FullPageWrites => value == "on",
            Self::SynchronousCommit => matches!(value, "on" | "remote_apply"),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Settings that someone said, by their names, not to care about: decisions may be lost then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd)]
pub struct Accepted([bool; 3]);

impl Accepted {
    /// With these.
    #[must_use]
    pub fn new(settings: &[Setting]) -> Self {
        Self(Setting::ALL.map(|setting| settings.contains(&setting)))
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn has(self, setting: Setting) -> bool {
        Setting::ALL.iter().zip(self.0).any(|(known, accepted)| *known == setting && accepted)
    }
}

impl fmt::Display for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Setting::ALL.into_iter().filter(|s| self.has(*s)).map(Setting::name).collect();
        f.write_str(&names.join(","))
    }
}

/// A server that must not have the decision log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It loses decisions.
    #[error(
        "PostgreSQL runs with {setting} = {found}, and would lose decisions that it has acknowledged: set it to on (for \
         the role, if that is where it comes from), or accept the loss with --insecure-log-settings {setting}"
    )]
    NotDurable {
        /// By this setting.
        setting: Setting,
        /// As it is.
        found: String,
    },
    /// It only follows another server.
    #[error("this PostgreSQL server is a standby: the decision log needs the primary")]
    Standby,
}

/// Asks the server, and has this session keep to what it said of its own commits, whatever the server is told later.
pub(super) async fn check(
    connection: &mut PgConnection,
    within: Duration,
    accepted: Accepted,
) -> Result<(), ConnectFailure> {
    let rows: Vec<(String, String, String, bool)> = answer(
        within,
        sqlx::query_as(
            "SELECT current_setting('fsync'), \
                 set_config('synchronous_commit', current_setting('synchronous_commit'), false), \
                 current_setting('full_page_writes'), pg_is_in_recovery()",
        )
        .persistent(false)
        .fetch_all(connection),
    )
    .await?;
    for (fsync, synchronous_commit, full_page_writes, in_recovery) in rows {
        if in_recovery {
            return Err(Unfit::Standby.into());
        }
        let found = [
            (Setting::Fsync, fsync),
            (Setting::SynchronousCommit, synchronous_commit),
            (Setting::FullPageWrites, full_page_writes),
        ];
        judge(found, accepted)?;
    }
    Ok(())
}

/// Whether nothing is lost with these settings as they were found.
pub(super) fn judge(
    found: impl IntoIterator<Item = (Setting, String)>,
    accepted: Accepted,
) -> Result<(), Unfit> {
    for (setting, found) in found {
        if !setting.keeps(&found) && !accepted.has(setting) {
            return Err(Unfit::NotDurable { setting, found });
        }
    }
    Ok(())
}
