//! `lockstep audit ls`: what operators did.

use comfy_table::Cell;
use lockstep_proto::v1::ListAuditRequest;

use super::exit::{Exit, Failure};
use super::output;
use super::remote::{AnswerTimeout, Remote, ServerArgs, within};
use super::tables::{Look, lines};
use crate::operator::view::acts::{AuditList, AuditView};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List what operators did, newest first
    Ls(Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only about this transaction: its id, or a beginning of it
    #[arg(value_name = "GTRID")]
    gtrid: Option<String>,
    /// At most so many: 1 to 1000
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    answer: AnswerTimeout,
}

pub(super) async fn run(Command::Ls(args): Command) -> Result<Exit, Failure> {
    let remote = Remote::new(&args.server.server, args.answer.timeout);
    let request = ListAuditRequest { gtrid: args.gtrid.unwrap_or_default(), limit: args.limit };
    let answer = within(&remote, args.answer, remote.admin().list_audit(request)).await?;
    let list = AuditList::try_from(answer).map_err(|error| remote.strange(&error))?;
    if args.server.json {
        output::print_json(&list)?;
        return Ok(Exit::Ok);
    }
    output::print(&text(&list.entries, Look::of_stdout()))?;
    if list.entries.is_empty() {
        output::talk("nothing was done by hand");
    }
    if list.truncated {
        output::talk(&format!("there are more than these {}; --limit takes up to 1000", list.entries.len()));
    }
    Ok(Exit::Ok)
}

/// Empty if there is none.
pub(super) fn text(entries: &[AuditView], look: Look) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let mut table = look.table(5);
    table.set_header(["AUDIT", "AT", "WHO", "ACTION", "WHAT AND WHY"]);
    for entry in entries {
        let what = format!("{}: {}", output::printable(&entry.subject), output::printable(&entry.reason));
        // To the second: an id and the reason need the room.
        let at: String = entry.at.to_string().chars().take(19).collect();
        table.add_row(vec![
            Cell::new(entry.id),
            Cell::new(at),
            Cell::new(output::printable(&entry.who)),
            Cell::new(output::printable(&entry.action)),
            Cell::new(what),
        ]);
    }
    lines(&table)
}
