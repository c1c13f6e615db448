//! How a text becomes a value, and what is said if it does not.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::nearest::nearest;

/// What the values of a key look like, for help, documentation and the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An IP address with a port.
    Address,
    /// A path, relative to the working directory.
    Path,
    /// A number with a unit.
    Duration,
    /// A whole number.
    Count,
    /// Yes or no.
    Switch,
    /// [`super::LogPlace`].
    LogPlace,
    /// Names of settings.
    Settings,
    /// [`super::NodeName`].
    NodeName,
    /// [`super::Advertised`].
    Advertised,
    /// [`LogFormat`].
    LogFormat,
    /// [`LogFilter`].
    LogFilter,
}

/// What a TOML file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TomlType {
    String,
    Integer,
    Boolean,
}

impl Form {
    /// What stands for a value in the help.
    #[must_use]
    pub const fn placeholder(self) -> &'static str {
        match self {
            Self::Address => "ADDRESS",
            Self::Path => "PATH",
            Self::Duration => "DURATION",
            Self::Count => "COUNT",
            Self::Switch => "true|false",
            Self::LogPlace => "embedded|URL",
            Self::Settings => "none|NAMES",
            Self::NodeName => "auto|NAME",
            Self::Advertised => "auto|none|URL",
            Self::LogFormat => "text|json",
            Self::LogFilter => "FILTER",
        }
    }

    /// How such a value is written in the file.
    pub(super) const fn toml(self) -> TomlType {
        match self {
            Self::Address
            | Self::Path
            | Self::Duration
            | Self::LogPlace
            | Self::Settings
            | Self::NodeName
            | Self::Advertised
            | Self::LogFormat
            | Self::LogFilter => TomlType::String,
            Self::Count => TomlType::Integer,
            Self::Switch => TomlType::Boolean,
        }
    }

    /// What a value is, and how to write one: behind "is no".
    pub(super) const fn advice(self) -> &'static str {
        match self {
            Self::Address => {
                "IP address with a port: write one such as \"127.0.0.1:7420\" or \"[::1]:7420\" (a host name will not do)"
            }
            Self::Path => "path: write one such as \"./lockstep-data\"",
            Self::Duration => "duration: write a number with its unit, such as \"500ms\", \"30s\" or \"1h\"",
            Self::Count => "whole number: write one without a unit, such as 100000",
            Self::Switch => "switch: write true or false",
            Self::LogPlace => {
                "decision log: write \"embedded\", or the address of a database such as \"postgres://lockstep@db:5432/lockstep\""
            }
            Self::Settings => {
                "list of settings: write \"none\", or some of \"fsync,synchronous_commit,full_page_writes\""
            }
            Self::NodeName => "name of a node: write \"auto\", or 1 to 64 letters, digits and any of . : _ -",
            Self::Advertised => {
                "address for others: write \"auto\", \"none\", or one such as \"http://10.0.0.1:7420\" or \"http://node-a:7420\""
            }
            Self::LogFormat => "log format: write \"text\" or \"json\"",
            Self::LogFilter => {
                "log filter: write one such as \"info\" or \"warn,lockstep_coordinator=debug\" (the levels are off, \
                 error, warn, info, debug, trace)"
            }
        }
    }
}

/// A type that a key's value can have.
pub(super) trait Value: Sized + PartialOrd {
    /// What it looks like.
    const FORM: Form;

    /// The value in a text, or why it is none, to be read behind the text.
    fn parse(text: &str) -> Result<Self, String>;
}

/// "is no …", with how to write it.
pub(super) fn is_no<T: Value>() -> String {
    format!("is no {}", T::FORM.advice())
}

impl Value for SocketAddr {
    const FORM: Form = Form::Address;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_why| is_no::<Self>())
    }
}

impl Value for PathBuf {
    const FORM: Form = Form::Path;

    fn parse(text: &str) -> Result<Self, String> {
        // An empty path is what a script leaves behind whose variable was never set.
        if text.is_empty() || text.contains('\0') {
            return Err(is_no::<Self>());
        }
        Ok(Self::from(text))
    }
}

impl Value for Duration {
    const FORM: Form = Form::Duration;

    fn parse(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map_err(|_why| is_no::<Self>())
    }
}

impl Value for usize {
    const FORM: Form = Form::Count;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_why| is_no::<Self>())
    }
}

impl Value for bool {
    const FORM: Form = Form::Switch;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_why| is_no::<Self>())
    }
}

/// How log lines and the banner are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Value for LogFormat {
    const FORM: Form = Form::LogFormat;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _other => Err(is_no::<Self>()),
        }
    }
}

/// What is logged, as `tracing-subscriber` writes its filters: checked, but kept as text, since a filter has no clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd)]
pub struct LogFilter(String);

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl LogFilter {
    /// The filter itself.
    #[must_use]
    pub fn build(&self) -> EnvFilter {
        EnvFilter::builder().parse(&self.0).expect("it was parsed when it was read")
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Value for LogFilter {
    const FORM: Form = Form::LogFilter;

    fn parse(text: &str) -> Result<Self, String> {
        let directives: Vec<&str> = text.split(',').map(str::trim).collect();
        let filter = directives.join(",");
        if directives.contains(&"") || EnvFilter::builder().parse(&filter).is_err() {
            return Err(is_no::<Self>());
        }
        directives.into_iter().try_for_each(level_or_module)?;
        Ok(Self(filter))
    }
}

/// A word alone that is no level would be taken for a module of which everything is logged: `inof` logs nothing of ours.
fn level_or_module(directive: &str) -> Result<(), String> {
    let is_level = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(directive));
    if is_level || directive.contains(['=', '[']) {
        return Ok(());
    }
    let meant = nearest(directive, LEVELS).map_or(String::new(), |level| format!("`{level}`, or "));
    Err(format!(
        "has the word `{}`, which is no level; write {meant}`{}=trace` for all of that module",
        directive.escape_debug(),
        directive.escape_debug()
    ))
}
