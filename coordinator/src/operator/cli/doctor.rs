//! `lockstep doctor`: whether a database can take part. It asks no coordinator; the checks are the SDK's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use comfy_table::{Cell, Color, ColumnConstraint, Width};
use lockstep::doctor::{self, DoctorError, Finding, Report, Severity};
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::output::{self, printable};
use super::remote::AnswerTimeout;
use super::tables::{self, Look};
use crate::codes::Code;

/// Columns in front of what was found: the severity, and the check.
const SEVERITY_WIDTH: u16 = 9;
const CHECK_WIDTH: u16 = 20;
/// Blanks in front of what mends it.
const MEND_INDENT: &str = "    ";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    limit: AnswerTimeout,
    /// Print JSON, in a form that later versions keep
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Database {
    /// A PostgreSQL database, as the role that the service uses; a password is better left to PGPASSWORD or ~/.pgpass
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// A MariaDB or MySQL database, as the user that the service uses
    #[arg(long, value_name = "URL")]
    mysql: Option<String>,
    /// A SQLite file, as the user that the service runs as
    #[arg(long, value_name = "PATH")]
    sqlite: Option<PathBuf>,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let looking = look(&args.database);
    let report = match tokio::time::timeout(args.limit.timeout, looking).await {
        Ok(report) => report.map_err(failure)?,
        Err(_elapsed) => {
            let limit = humantime::format_duration(args.limit.timeout);
            let why = format!("the database did not answer within {limit}");
            return Err(Failure::coded(Code::NoAnswerInTime, Exit::Timeout, why)
                .remedy("a longer --timeout waits longer"));
        }
    };
    if args.json {
        output::print_json(&Json::from(&report))?;
    } else {
        output::print(&text(&report, Look::of_stdout()))?;
    }
    Ok(match report.worst() {
        Severity::Ok | Severity::Note | Severity::Warning => Exit::Ok,
        Severity::Error => Exit::Unfit,
    })
}

async fn look(database: &Database) -> Result<Report, DoctorError> {
    match (&database.postgres, &database.mysql, &database.sqlite) {
        (Some(url), _, _) => doctor::postgres(url).await,
        (None, Some(url), _) => doctor::mysql(url).await,
        (None, None, Some(path)) => doctor::sqlite(path).await,
        (None, None, None) => unreachable!("clap asks for one of them"),
    }
}

fn failure(error: DoctorError) -> Failure {
    match error {
        DoctorError::Url(why) => Failure::coded(Code::WrongCommandLine, Exit::Usage, why),
        DoctorError::Unreachable(why) => {
            Failure::coded(Code::DatabaseUnreachable, Exit::Unreachable, printable(&why)).remedy("nothing was checked; is it the database that the service connects to, and may this user reach it?")
        }
    }
}

/// The report for people.
fn text(report: &Report, look: Look) -> String {
    let mut text = format!("{}\n", printable(&report.database));
    for finding in &report.findings {
        text.push_str(&paragraph(finding, look));
    }
    let of = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
    text.push_str(&match errors {
        0 => format!("it can take part (warnings: {warnings})\n"),
        _ => format!("it cannot take part as it is (errors: {errors}, warnings: {warnings})\n"),
    });
    text
}

fn paragraph(finding: &Finding, look: Look) -> String {
    let mut table = look.table(3);
    for (column, width) in table.column_iter_mut().zip([SEVERITY_WIDTH, CHECK_WIDTH]) {
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
    }
    let colour = match finding.severity {
        Severity::Error => Some(Color::Red),
        Severity::Warning => Some(Color::Yellow),
        Severity::Ok => Some(Color::Green),
        Severity::Note => None,
    };
    let severity = Cell::new(finding.severity);
    let severity = colour.map_or(severity.clone(), |colour| severity.fg(colour));
    table.set_header([severity, Cell::new(finding.check), Cell::new(printable(&finding.what))]);
    let mut text = tables::lines(&table);
    for command in &finding.mend {
        for line in wrapped(&printable(command), usize::from(look.width) - MEND_INDENT.len()) {
            text.push_str(&format!("{MEND_INDENT}{line}\n"));
        }
    }
    text
}

/// Breaks a text at its blanks, but never inside of quotes: a command has to work as it is copied, and a line break in a name
/// would change it.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in words(text) {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// What stands between blanks that are not quoted.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut quote) = (0, None);
    for (at, c) in text.char_indices() {
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (' ', None) => {
                words.push(&text[start..at]);
                start = at + 1;
            }
            (_, None | Some(_)) => {}
        }
    }
    words.push(&text[start..]);
    words
}

/// What `--json` prints.
#[derive(Serialize)]
struct Json<'a> {
    database: &'a str,
    worst: String,
    findings: Vec<JsonFinding<'a>>,
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    check: &'a str,
    severity: String,
    what: &'a str,
    mend: &'a [String],
    figures: &'a BTreeMap<&'static str, i64>,
}

impl<'a> From<&'a Report> for Json<'a> {
    fn from(report: &'a Report) -> Self {
        let finding = |finding: &'a Finding| JsonFinding {
            check: finding.check,
            severity: finding.severity.to_string(),
            what: &finding.what,
            mend: &finding.mend,
            figures: &finding.figures,
        };
        Self {
            database: &report.database,
            worst: report.worst().to_string(),
            findings: report.findings.iter().map(finding).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tables::tests::golden;
    use super::*;

    const PLAIN: Look = Look { width: 80, colour: false };

    fn report() -> Report {
        let finding = |check, severity, what: &str, mend: &[&str]| Finding {
            check,
            severity,
            what: what.to_owned(),
            mend: mend.iter().map(|command| (*command).to_owned()).collect(),
            figures: BTreeMap::new(),
            passing: false,
        };
        let slots =
            finding("slots", Severity::Ok, "97 of 100 slots of max_prepared_transactions are left", &[]);
        Report {
            database: "postgres://app@db:5432/bank".to_owned(),
            findings: vec![
                finding("version", Severity::Ok, "PostgreSQL 15.18", &[]),
                Finding { figures: BTreeMap::from([("left", 97), ("set", 100), ("used", 3)]), ..slots },
                finding(
                    "fsync",
                    Severity::Error,
                    "fsync is off: a crash of the machine could lose prepared and committed branches",
                    &["ALTER SYSTEM SET fsync = on;", "SELECT pg_reload_conf();"],
                ),
                finding(
                    "foreign-prepared",
                    Severity::Warning,
                    "1 prepared transactions are not Lockstep's, the oldest for 3d4h: they take slots",
                    &[
                        "ROLLBACK PREPARED 'a  name \u{1b}[31m with blanks, and so long that it does not fit into one line of 80';",
                    ],
                ),
            ],
        }
    }

    #[test]
    fn the_text_fits_80_columns_and_breaks_no_name() {
        golden("doctor.txt", &text(&report(), PLAIN));
    }

    #[test]
    fn colours_are_for_terminals() {
        let shown = text(&report(), Look { colour: true, ..PLAIN });
        assert!(shown.contains("\u{1b}[38;5;9merror"), "{shown}");
        assert!(!text(&report(), PLAIN).contains('\u{1b}'));
    }

    #[test]
    fn the_json_is_stable() {
        golden("doctor.json", &output::json(&Json::from(&report())));
    }
}
