//! `lockstep orphans …`: prepared branches that no coordinator answers for.

use comfy_table::Cell;
use lockstep_proto::v1::{InspectRequest, OperatorAction};

use super::act::{ActArgs, act};
use super::exit::{Exit, Failure};
use super::output::{self, printable};
use super::remote::{AnswerTimeout, Remote, ServerArgs, within};
use super::tables::{Look, lines};
use crate::operator::view::participants::{Inspected, InspectedBranch};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Ask every attached database for prepared branches that nobody answers for
    #[command(visible_alias = "ls")]
    Scan(ScanArgs),
    /// Commit or roll back the branches of an orphaned transaction, if its evidence proves which
    Resolve(ResolveArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ScanArgs {
    /// End with 6 if there is one, or a database did not answer
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    answer: AnswerTimeout,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("end").required(true))]
pub(super) struct ResolveArgs {
    /// The transaction: its id, or a beginning of it that no other one has
    #[arg(value_name = "GTRID")]
    gtrid: String,
    /// Commit them: another branch of the transaction has committed
    #[arg(long, group = "end")]
    commit: bool,
    /// Roll them back: no branch of the transaction has committed, or can
    #[arg(long, group = "end")]
    rollback: bool,
    /// For a rollback: every resource manager that may have taken part, with commas between them
    #[arg(long, value_name = "NAMES", requires = "rollback")]
    all: Option<String>,
    #[command(flatten)]
    act: ActArgs,
}

pub(super) async fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Scan(args) => scan(args).await,
        Command::Resolve(args) => {
            let action =
                if args.commit { OperatorAction::CommitOrphan } else { OperatorAction::RollbackOrphan };
            act(args.act, action, args.gtrid, args.all.unwrap_or_default()).await
        }
    }
}

async fn scan(args: ScanArgs) -> Result<Exit, Failure> {
    let remote = Remote::new(&args.server.server, args.answer.timeout);
    let answer = within(&remote, args.answer, remote.admin().inspect(InspectRequest::default())).await?;
    let mut inspected = Inspected::try_from(answer).map_err(|error| remote.strange(&error))?;
    for answer in &mut inspected.answers {
        answer.branches.retain(|branch| !branch.orphan.is_empty());
        answer.blocked.retain(|blocked| {
            answer.branches.iter().any(|branch| Some(&branch.gtrid) == blocked.gtrid.as_ref())
        });
    }
    let found: Vec<&InspectedBranch> = inspected.answers.iter().flat_map(|answer| &answer.branches).collect();
    let silent: Vec<_> = inspected.answers.iter().filter(|answer| !answer.error.is_empty()).collect();
    if args.server.json {
        output::print_json(&inspected)?;
    } else {
        output::print(&table(&found, Look::of_stdout()))?;
        for answer in &silent {
            let name = printable(&answer.resource_manager);
            output::talk(&format!("{name} was not asked: {}", printable(&answer.error)));
        }
        if found.is_empty() {
            output::talk("no orphan in the databases that answered");
        }
    }
    let unresolved = !found.is_empty() || !silent.is_empty();
    Ok(if args.exit_code && unresolved { Exit::Unresolved } else { Exit::Ok })
}

/// Empty if there is none.
fn table(found: &[&InspectedBranch], look: Look) -> String {
    if found.is_empty() {
        return String::new();
    }
    let mut table = look.table(3);
    table.set_header(["TRANSACTION", "CLUSTER", "BRANCH, AND WHY NOBODY ANSWERS FOR IT"]);
    for branch in found {
        table.add_row(vec![
            Cell::new(printable(&branch.gtrid)),
            Cell::new(printable(&branch.cluster)),
            Cell::new(format!("{}: {}", printable(&branch.bqual), printable(&branch.orphan))),
        ]);
    }
    lines(&table)
}
