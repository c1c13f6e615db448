//! `lockstep config show` and `lockstep config check`: what holds, and who said so.
//!
//! The text is a configuration file with the same effect; origins stand in it as comments.

use serde::Serialize;

use super::exit::{Exit, Failure};
use super::output;
use crate::codes::Code;
use crate::config::{self, ConfigError, Form, Loaded, Origin, Overrides, Setting};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    overrides: Overrides,
    /// Say where each value comes from
    #[arg(long)]
    origin: bool,
    /// Print JSON, in a form that later versions keep; it always has the origins
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let loaded = load(&args.overrides)?;
    if args.json {
        output::print_json(&Json::new(&loaded))?;
    } else {
        output::print(&text(&loaded, args.origin))?;
    }
    Ok(Exit::Ok)
}

/// Which configuration to check.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    overrides: Overrides,
}

/// `lockstep config check`.
pub(super) fn check(args: &CheckArgs) -> Result<Exit, Failure> {
    let loaded = load(&args.overrides)?;
    let file = loaded.file.map_or("no file".to_owned(), |path| path.display().to_string());
    output::talk(&format!("the configuration is valid ({})", output::printable(&file)));
    Ok(Exit::Ok)
}

/// The configuration, or a failure that names everything wrong with it.
pub(super) fn load(overrides: &Overrides) -> Result<Loaded, Failure> {
    config::load(overrides).map_err(|error: ConfigError| {
        Failure::coded(Code::WrongConfiguration, Exit::Usage, error.to_string())
            .remedy("`lockstep serve --help` and docs/configuration.md list every key")
    })
}

/// A value as TOML writes it.
fn literal(setting: &Setting) -> toml::Value {
    let text = &setting.given.text;
    match setting.key.form {
        Form::Count => toml::Value::Integer(text.parse().expect("it was read as a count with limits")),
        Form::Switch => toml::Value::Boolean(text.parse().expect("it was read as a switch")),
        Form::Address
        | Form::Path
        | Form::Duration
        | Form::LogPlace
        | Form::Settings
        | Form::NodeName
        | Form::Advertised
        | Form::LogFormat
        | Form::LogFilter => toml::Value::String(text.clone()),
    }
}

fn text(loaded: &Loaded, origin: bool) -> String {
    let lines: Vec<(String, &Origin)> = loaded
        .settings
        .iter()
        .map(|setting| (format!("{} = {}", setting.key.name, literal(setting)), &setting.given.origin))
        .collect();
    if !origin {
        return lines.iter().map(|(line, _)| format!("{line}\n")).collect();
    }
    let width = lines.iter().map(|(line, _)| line.chars().count()).max();
    let width = width.expect("there are keys");
    lines
        .iter()
        .map(|(line, origin)| format!("{line:width$}  # {}\n", output::printable(&origin.to_string())))
        .collect()
}

/// What `--json` prints.
#[derive(Serialize)]
struct Json<'a> {
    file: Option<String>,
    settings: Vec<JsonSetting<'a>>,
}

#[derive(Serialize)]
struct JsonSetting<'a> {
    key: &'a str,
    value: toml::Value,
    origin: JsonOrigin<'a>,
}

#[derive(Serialize)]
#[serde(tag = "layer", rename_all = "kebab-case")]
enum JsonOrigin<'a> {
    Flag { flag: &'a str },
    Variable { variable: &'a str },
    File { path: String, line: usize },
    Default,
}

impl<'a> Json<'a> {
    fn new(loaded: &'a Loaded) -> Self {
        let setting = |setting: &'a Setting| JsonSetting {
            key: setting.key.name,
            value: literal(setting),
            origin: match &setting.given.origin {
                Origin::Flag { flag } => JsonOrigin::Flag { flag },
                Origin::Variable { variable } => JsonOrigin::Variable { variable },
                Origin::File { path, line } => {
                    JsonOrigin::File { path: path.display().to_string(), line: *line }
                }
                Origin::Default => JsonOrigin::Default,
            },
        };
        Self {
            file: loaded.file.as_ref().map(|path| path.display().to_string()),
            settings: loaded.settings.iter().map(setting).collect(),
        }
    }
}
