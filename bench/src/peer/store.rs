//! Where the peer keeps its transactions: where a decision outlives a power failure, as Lockstep's does, and as fast as it can.
//!
//! Its SQLite does not keep one: dtmrs sets `synchronous = NORMAL` on every connection, in WAL mode, which forces nothing at a commit, and
//! offers no way to change it. Redis does with `appendfsync always`, and of what does it is by far the fastest; PostgreSQL is what dtmrs
//! recommends.

use std::convert::Infallible;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;

use lockstep_tests::harness::ports::Port;
use lockstep_tests::harness::process::Process;
use lockstep_tests::harness::{Failed, Result};

use super::{on_path, serving, with_the_parent};

const REDIS: &str = "redis-server";
/// What it is configured with, beside its places. Each command that writes is forced before it is answered, together with those that came in the same
/// moment; and nothing is rewritten in the background, which would hit one contender and not another.
const SETTINGS: &[(&str, &str)] = &[
    ("--bind", "127.0.0.1"),
    ("--appendonly", "yes"),
    ("--appendfsync", "always"),
    ("--save", ""),
    ("--auto-aof-rewrite-percentage", "0"),
];

/// Where it is to keep them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a Redis of its own.
    Redis,
    /// In a database on the first of our servers.
    Postgres,
    /// In a store that runs already. The address may have a password in it.
    At(String),
}

impl Place {
    /// The fastest that can be had here.
    #[must_use]
    pub fn fastest() -> Self {
        on_path(REDIS).map_or(Self::Postgres, |_program| Self::Redis)
    }

    /// In words, behind "in".
    #[must_use]
    pub const fn title(&self) -> &'static str {
        match self {
            Self::Redis => "a Redis of its own, appendfsync always",
            Self::Postgres => "a database on the first server",
            Self::At(_) => "the store that --dtmrs-store names",
        }
    }
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Infallible> {
        Ok(match text {
            "redis" => Self::Redis,
            "postgres" => Self::Postgres,
            address => Self::At(address.to_owned()),
        })
    }
}

/// A Redis of its own, a process.
pub struct Redis {
    port: Port,
    process: Process,
}

impl Redis {
    /// Starts it, empty.
    ///
    /// # Errors
    /// If there is none on PATH, or it does not serve.
    pub fn start(directory: &Path) -> Result<Self> {
        let program = on_path(REDIS).ok_or_else(|| Failed::new(format!("there is no {REDIS} on PATH")))?;
        let (port, data) = (Port::reserve()?, directory.join("redis"));
        fs::create_dir(&data).map_err(Failed::because(data.display().to_string()))?;
        let mut command = with_the_parent(&program);
        command.args(["--port", &port.number().to_string()]).arg("--dir").arg(&data);
        command.args(SETTINGS.iter().flat_map(|(name, value)| [name, value]));
        let process = serving(REDIS, command, &directory.join("redis.log"), port.number())?;
        Ok(Self { port, process })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}:{}/0", Ipv4Addr::LOCALHOST, self.port.number())
    }

    /// Its process' number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_a_word_or_an_address() {
        for (text, place) in [
            ("redis", Place::Redis),
            ("postgres", Place::Postgres),
            ("redis://:secret@127.0.0.1/0", Place::At("redis://:secret@127.0.0.1/0".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(place.clone()));
            assert!(!place.title().contains("secret"));
        }
    }
}
