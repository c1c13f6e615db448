//! What flags and variables say: the two layers over the file.
//!
//! clap parses both and knows which one a value came from. The values stay texts here: clap does not name the variable
//! that a wrong one came from, and [`super::load`] does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, value_parser};

use super::environment::CONFIG_VARIABLE;
use super::value::Form;
use super::{DEFAULT_FILE, Given, KEYS, Key, Origin, Problem};

const FILE_FLAG: &str = "config";
const HEADING: &str = "Configuration";

/// What was given by flags and variables.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    given: BTreeMap<&'static str, Given>,
    file: Option<PathBuf>,
    problems: Vec<Problem>,
}

impl Overrides {
    pub(super) fn get(&self, name: &str) -> Option<&Given> {
        self.given.get(name)
    }

    /// The file that was named.
    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Values that are no text at all.
    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    fn take(&mut self, key: &'static Key, matches: &ArgMatches) {
        let origin = match matches.value_source(key.name) {
            Some(ValueSource::CommandLine) => Origin::Flag { flag: key.flag() },
            Some(ValueSource::EnvVariable) => Origin::Variable { variable: key.variable.to_owned() },
            // clap has no default of ours: see `argument`.
            Some(_) | None => return,
        };
        let value = matches.get_one::<OsString>(key.name);
        match value.map(|value| value.to_str()) {
            Some(Some(text)) => {
                let text = text.to_owned();
                self.given.insert(key.name, Given { text, origin });
            }
            Some(None) => self
                .problems
                .push(Problem { place: origin.to_string(), what: format!("{} is no UTF-8 text", key.name) }),
            None => {}
        }
    }
}

impl FromArgMatches for Overrides {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut overrides = Self { file: matches.get_one::<PathBuf>(FILE_FLAG).cloned(), ..Self::default() };
        KEYS.iter().for_each(|key| overrides.take(key, matches));
        Ok(overrides)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Overrides {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE_FLAG)
            .long(FILE_FLAG)
            .env(CONFIG_VARIABLE)
            .hide_env_values(true)
            .value_name("PATH")
            .value_parser(value_parser!(PathBuf))
            .help(format!("The configuration file [default: {DEFAULT_FILE} if it exists]"))
            .help_heading(HEADING);
        command.arg(file).args(KEYS.iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// The flag and variable of a key. The default stands in the help only: as clap's it would hide the file's value.
fn argument(key: &'static Key) -> Arg {
    let limits = key.limits.map_or(String::new(), |(least, greatest)| format!(" ({least} to {greatest})"));
    let argument = Arg::new(key.name)
        .long(key.name)
        .env(key.variable)
        .hide_env_values(true)
        .action(ArgAction::Set)
        .value_name(key.form.placeholder())
        .value_parser(value_parser!(OsString))
        .help(format!("{}{limits} [default: {}]", key.help, key.default))
        .help_heading(HEADING);
    if key.form == Form::Switch {
        // `--insecure-listen` alone means true; `=false` takes back what a file says.
        return argument.num_args(0..=1).require_equals(true).default_missing_value("true");
    }
    argument
}
