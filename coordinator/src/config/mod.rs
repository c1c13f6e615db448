//! What a coordinator is told before it starts: flags over environment over file over defaults.
//!
//! Read in this order:
//! - `keys`: the one table of everything that can be set. Flags, variables, help, `config show` and the tables in
//!   `docs/` follow from it.
//! - `value`: how a text becomes an address, a duration, a count, and what is said if it does not; `place`: the same of
//!   where a decision log is, and of a node's name.
//! - `overrides`: the flags and variables, which clap parses and tells apart.
//! - `file`: the TOML file, whose keys and values keep their lines.
//! - `environment`: variables that look like ours and are not.
//!
//! Why not a layering crate: figment merges such layers, but forgets the line of a value and knows no nearest key,
//! and these two are what a person needs who mistyped one. clap knows already which of flag, variable and default a
//! value came from, and `toml` keeps spans, so that the file slots in with the few lines of [`load`].
//!
//! Nothing here reads the environment itself, opens anything but the file, or acts on a value.

pub mod environment;
mod file;
pub mod keys;
mod nearest;
mod overrides;
mod place;
mod value;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use keys::{KEYS, Key};
pub use overrides::Overrides;
pub use place::{Advertised, LogPlace, NodeName};
pub use value::{Form, LogFilter, LogFormat};

use value::Value;

use crate::decision_log::postgres::Accepted;

/// The file that is read if none is named and it exists.
pub const DEFAULT_FILE: &str = "./lockstep.toml";

/// A coordinator's configuration: every value within its limits. Their keys, in `keys`, say what each one means.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is documented by its key, once, in `keys`")]
pub struct Config {
    pub listen: SocketAddr,
    pub insecure_listen: bool,
    pub advertise: Advertised,
    pub data_dir: PathBuf,
    pub log: LogPlace,
    pub migrate_log: bool,
    pub insecure_log_settings: Accepted,
    pub node: NodeName,
    pub lease: Duration,
    pub retention: Duration,
    pub default_timeout: Duration,
    pub apply_wait: Duration,
    pub max_in_flight: usize,
    pub report_interval: Duration,
    pub drain_timeout: Duration,
    pub log_format: LogFormat,
    pub log_filter: LogFilter,
}

impl Default for Config {
    /// What runs without a flag, a variable and a file.
    fn default() -> Self {
        Reader::new(&defaults()).config()
    }
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// On the command line.
    Flag {
        /// With its dashes.
        flag: String,
    },
    /// In the environment.
    Variable {
        /// Its name.
        variable: String,
    },
    /// In the file.
    File {
        /// As it was named.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// Nowhere.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag { flag } => f.write_str(flag),
            Self::Variable { variable } => f.write_str(variable),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value as it was written, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// What was written; a TOML string without its quotes.
    pub text: String,
    /// Where.
    pub origin: Origin,
}

/// One key with the value that holds.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The key.
    pub key: &'static Key,
    /// Its value.
    pub given: Given,
}

/// A configuration, and where each of its values came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The same, as they were written: one for each of [`KEYS`], in their order.
    pub settings: Vec<Setting>,
    /// The file that was read, if one was.
    pub file: Option<PathBuf>,
}

/// One thing that is wrong with a configuration: where, what, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The place: a flag, a variable, or a line of the file.
    pub place: String,
    /// A sentence.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Everything that is wrong with a configuration: all of it at once, so that it is mended at once. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0.as_slice() {
            return only.fmt(f);
        }
        write!(f, "the configuration has {} problems", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

/// Lays the four layers over each other and checks what comes out.
///
/// A value that another layer overrides is not checked against its limits: it does not hold. A wrong key is always an
/// error: whoever wrote it believes that it holds.
///
/// # Errors
/// Every wrong key and value, each with its place. A file that was named and cannot be read.
pub fn load(overrides: &Overrides) -> Result<Loaded, ConfigError> {
    let path = match overrides.file() {
        Some(named) => Some(named.to_owned()),
        None => Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()),
    };
    let mut problems = overrides.problems().to_vec();
    let from_file = match path.as_deref().map(file::read) {
        Some(Ok(values)) => values,
        Some(Err(wrong)) => {
            problems.extend(wrong);
            file::Values::new()
        }
        None => file::Values::new(),
    };

    let settings = layer(overrides, &from_file);
    let mut reader = Reader::new(&settings);
    let config = reader.config();
    problems.append(&mut reader.problems);
    problems.extend(open_to_everyone(&config, &settings));
    if problems.is_empty() { Ok(Loaded { config, settings, file: path }) } else { Err(ConfigError(problems)) }
}

/// For each key the value of the highest layer that has one.
fn layer(overrides: &Overrides, from_file: &file::Values) -> Vec<Setting> {
    let mut settings = defaults();
    for setting in &mut settings {
        let name = setting.key.name;
        if let Some(given) = overrides.get(name).or_else(|| from_file.get(name)) {
            setting.given = given.clone();
        }
    }
    settings
}

/// The lowest layer: it has a value for every key.
fn defaults() -> Vec<Setting> {
    let default = |key: &'static Key| Setting {
        key,
        given: Given { text: key.default.to_owned(), origin: Origin::Default },
    };
    KEYS.iter().map(default).collect()
}

/// Nothing listens beyond loopback without TLS and authentication, unless someone said that it is insecure.
fn open_to_everyone(config: &Config, settings: &[Setting]) -> Option<Problem> {
    // `[::ffff:127.0.0.1]` is loopback too, but only the canonical form says so.
    if config.insecure_listen || config.listen.ip().to_canonical().is_loopback() {
        return None;
    }
    let origin = &find(settings, &keys::LISTEN).given.origin;
    Some(Problem {
        place: origin.to_string(),
        what: format!(
            "{} is not a loopback address, and whoever reaches it can decide every transaction, since there is no TLS \
             and no authentication yet; listen on 127.0.0.1 or [::1], or accept that with `insecure-listen = true` \
             or `--insecure-listen`",
            config.listen
        ),
    })
}

fn find<'a>(settings: &'a [Setting], key: &Key) -> &'a Setting {
    let found = settings.iter().find(|setting| setting.key.name == key.name);
    found.expect("there is a setting for every key")
}

/// Turns texts into a [`Config`], and keeps what is wrong with them.
struct Reader<'a> {
    settings: &'a [Setting],
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    fn new(settings: &'a [Setting]) -> Self {
        Self { settings, problems: Vec::new() }
    }

    /// The configuration. It holds only if there are no problems then.
    fn config(&mut self) -> Config {
        Config {
            listen: self.read(&keys::LISTEN),
            insecure_listen: self.read(&keys::INSECURE_LISTEN),
            advertise: self.read(&keys::ADVERTISE),
            data_dir: self.read(&keys::DATA_DIR),
            log: self.read(&keys::LOG),
            migrate_log: self.read(&keys::MIGRATE_LOG),
            insecure_log_settings: self.read(&keys::INSECURE_LOG_SETTINGS),
            node: self.read(&keys::NODE),
            lease: self.read(&keys::LEASE),
            retention: self.read(&keys::RETENTION),
            default_timeout: self.read(&keys::DEFAULT_TIMEOUT),
            apply_wait: self.read(&keys::APPLY_WAIT),
            max_in_flight: self.read(&keys::MAX_IN_FLIGHT),
            report_interval: self.read(&keys::REPORT_INTERVAL),
            drain_timeout: self.read(&keys::DRAIN_TIMEOUT),
            log_format: self.read(&keys::LOG_FORMAT),
            log_filter: self.read(&keys::LOG_FILTER),
        }
    }

    /// The key's value; its default in place of one that is wrong, so that the rest is read too.
    fn read<T: Value>(&mut self, key: &'static Key) -> T {
        let given = &find(self.settings, key).given;
        match key.parse(&given.text) {
            Ok(value) => value,
            Err(why) => {
                self.problems.push(Problem {
                    place: given.origin.to_string(),
                    what: format!("{} = `{}` {why}", key.name, cut_for_people(&given.text)),
                });
                key.parse(key.default).expect("a key's default is within its limits")
            }
        }
    }
}

/// A value that someone wrote, short and without control characters: it goes to a terminal.
fn cut_for_people(text: &str) -> String {
    lockstep_proto::limits::cut(text, 80).escape_debug().to_string()
}

/// A problem of the file as a whole.
fn unreadable(path: &Path, why: impl fmt::Display) -> Problem {
    Problem {
        place: path.display().to_string(),
        what: format!("the configuration file cannot be read: {why}"),
    }
}

#[cfg(test)]
pub(crate) mod tests;
