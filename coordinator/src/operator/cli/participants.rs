//! `lockstep participants …`: who takes part.

use comfy_table::Cell;
use lockstep_proto::v1::{InspectRequest, ListParticipantsRequest, OperatorAction};

use super::act::{ActArgs, act};
use super::exit::{Exit, Failure};
use super::output::{self, printable};
use super::remote::{AnswerTimeout, Remote, ServerArgs, within};
use super::tables::{Look, lines, when, without_header};
use crate::operator::view::participants::{Inspected, ParticipantDetail, ParticipantList};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List every resource manager that ever attached
    Ls(ListArgs),
    /// Show one with its instances, its identity, and what waits for it
    Show(ShowArgs),
    /// Ask the databases of attached ones, and say how long their answers took
    Ping(PingArgs),
    /// Accept that a SQLite file has moved, after its attach was refused for that
    Rebind(NamedArgs),
    /// Say that one is gone for good: what was not delivered to it is given up
    Retire(NamedArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    answer: AnswerTimeout,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// The resource manager
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    answer: AnswerTimeout,
}

#[derive(Debug, clap::Args)]
pub(super) struct PingArgs {
    /// Only this resource manager
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// End with 6 if one did not answer
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    answer: AnswerTimeout,
}

#[derive(Debug, clap::Args)]
pub(super) struct NamedArgs {
    /// The resource manager
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    act: ActArgs,
}

pub(super) async fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Ls(args) => list(&args.server, args.answer, String::new()).await,
        Command::Show(args) => list(&args.server, args.answer, args.name).await,
        Command::Ping(args) => ping(args).await,
        Command::Rebind(args) => act(args.act, OperatorAction::Rebind, args.name, String::new()).await,
        Command::Retire(args) => act(args.act, OperatorAction::Retire, args.name, String::new()).await,
    }
}

/// All of them, or the one of this name.
async fn list(server: &ServerArgs, answer: AnswerTimeout, name: String) -> Result<Exit, Failure> {
    let remote = Remote::new(&server.server, answer.timeout);
    let one = !name.is_empty();
    let request = ListParticipantsRequest { resource_manager: name };
    let found = within(&remote, answer, remote.admin().list_participants(request)).await?;
    let list = ParticipantList::try_from(found).map_err(|error| remote.strange(&error))?;
    if server.json {
        output::print_json(&list)?;
        return Ok(Exit::Ok);
    }
    let look = Look::of_stdout();
    if one {
        output::print(
            &list.participants.iter().map(|detail| detail_text(detail, &list, look)).collect::<String>(),
        )?;
    } else {
        output::print(&table(&list, look))?;
    }
    if list.participants.is_empty() {
        output::talk("none was ever attached");
    }
    Ok(Exit::Ok)
}

fn table(list: &ParticipantList, look: Look) -> String {
    if list.participants.is_empty() {
        return String::new();
    }
    let mut table = look.table(5);
    table.set_header(["PARTICIPANT", "STATE", "UNDELIVERED", "ORPHANS", "PROBLEM"]);
    for detail in &list.participants {
        let problem = if detail.problem.is_empty() { &detail.refused } else { &detail.problem };
        table.add_row(vec![
            Cell::new(printable(&detail.resource_manager)),
            Cell::new(state(detail, list)),
            Cell::new(detail.undelivered),
            Cell::new(detail.orphans),
            Cell::new(printable(problem)),
        ]);
    }
    lines(&table)
}

fn state(detail: &ParticipantDetail, list: &ParticipantList) -> String {
    match (detail.retired, detail.down_since) {
        (true, _) => "retired".to_owned(),
        (false, None) => format!("up ({})", detail.instances.len()),
        (false, Some(since)) => format!("DOWN since {}", when(since, list.as_of)),
    }
}

fn detail_text(detail: &ParticipantDetail, list: &ParticipantList, look: Look) -> String {
    let mut facts = look.table(2);
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            facts.add_row(vec![Cell::new(name), Cell::new(value)]);
        }
    };
    fact("Participant", printable(&detail.resource_manager));
    fact("State", state(detail, list));
    for instance in &detail.instances {
        fact("Instance", printable(instance));
    }
    fact("Identity", printable(&detail.identity));
    fact("Location", printable(&detail.location));
    fact("Timeline", if detail.timeline == 0 { String::new() } else { detail.timeline.to_string() });
    fact("Holds from", detail.floor.as_deref().map_or("not listed yet".to_owned(), printable));
    fact("Undelivered", detail.undelivered.to_string());
    fact("Orphans", detail.orphans.to_string());
    fact("Problem", printable(&detail.problem));
    fact("Refused", printable(&detail.refused));
    fact("Is now at", printable(&detail.refused_location));
    without_header(&facts)
}

async fn ping(args: PingArgs) -> Result<Exit, Failure> {
    let remote = Remote::new(&args.server.server, args.answer.timeout);
    let request = InspectRequest { gtrid: String::new(), resource_manager: args.name.unwrap_or_default() };
    let answer = within(&remote, args.answer, remote.admin().inspect(request)).await?;
    let inspected = Inspected::try_from(answer).map_err(|error| remote.strange(&error))?;
    if args.server.json {
        output::print_json(&inspected)?;
    } else {
        let mut table = Look::of_stdout().table(3);
        table.set_header(["PARTICIPANT", "TOOK", "ANSWER"]);
        for answer in &inspected.answers {
            let said = if answer.error.is_empty() {
                format!("{} branches prepared", answer.branches.len())
            } else {
                printable(&answer.error)
            };
            table.add_row(vec![
                Cell::new(printable(&answer.resource_manager)),
                Cell::new(format!("{} ms", answer.took_ms)),
                Cell::new(said),
            ]);
        }
        output::print(&lines(&table))?;
    }
    let silent = inspected.answers.iter().any(|answer| !answer.error.is_empty());
    Ok(if args.exit_code && silent { Exit::Unresolved } else { Exit::Ok })
}
