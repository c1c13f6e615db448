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
        output::print(&text(&found, Look::of_stdout()))?;
        for answer in &silent {
            let name = printable(&answer.resource_manager);
            output::talk(&format!("{name} was not asked: {}", printable(&answer.error)));
        }
        if found.iter().all(|branch| branch.foreign) {
            output::talk("no orphan of this cluster in the databases that answered");
        }
    }
    let unresolved = !found.is_empty() || !silent.is_empty();
    Ok(if args.exit_code && unresolved { Exit::Unresolved } else { Exit::Ok })
}

/// Those of this cluster, which a person may resolve, and apart from them those of other clusters, with which nothing is done here. Empty if there
/// is none.
fn text(found: &[&InspectedBranch], look: Look) -> String {
    let (foreign, own): (Vec<&InspectedBranch>, Vec<_>) = found.iter().partition(|branch| branch.foreign);
    let parts = [own_text(&own, look), foreign_text(&foreign, look)];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn own_text(own: &[&InspectedBranch], look: Look) -> String {
    if own.is_empty() {
        return String::new();
    }
    let mut table = look.table(2);
    table.set_header(["TRANSACTION", "BRANCH, AND WHY NOBODY ANSWERS FOR IT"]);
    for branch in own {
        table.add_row(vec![
            Cell::new(printable(&branch.gtrid)),
            Cell::new(format!("{}: {}", printable(&branch.bqual), printable(&branch.orphan))),
        ]);
    }
    lines(&table)
}

fn foreign_text(foreign: &[&InspectedBranch], look: Look) -> String {
    if foreign.is_empty() {
        return String::new();
    }
    let mut table = look.table(3);
    table.set_header(["OF ANOTHER CLUSTER", "CLUSTER", "BRANCH"]);
    for branch in foreign {
        table.add_row(vec![
            Cell::new(printable(&branch.gtrid)),
            Cell::new(printable(&branch.cluster)),
            Cell::new(printable(&branch.bqual)),
        ]);
    }
    format!("{}nothing is done with these here: ask the coordinator of their cluster\n", lines(&table))
}

#[cfg(test)]
mod tests {
    use super::super::tables::tests::golden_text;
    use super::{InspectedBranch, Look, text};

    /// What a person may resolve stands apart from what is another cluster's.
    #[test]
    fn what_was_found() {
        let own = InspectedBranch {
            cluster: "7c1f09ae".to_owned(),
            gtrid: "11.0192f0c19f447a018e4f5a6b7c8d9e0f".to_owned(),
            bqual: "orders-db.0f1e2d3c4b5a6978".to_owned(),
            state: "prepared".to_owned(),
            at: None,
            orphan: "its epoch was never given out by this decision log".to_owned(),
            foreign: false,
        };
        let foreign = InspectedBranch {
            cluster: "9d0a11ff".to_owned(),
            gtrid: "4294967295.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f".to_owned(),
            bqual: format!("{}.0f1e2d3c4b5a6978", "r".repeat(47)),
            state: "prepared".to_owned(),
            at: None,
            orphan: "it belongs to another cluster".to_owned(),
            foreign: true,
        };
        let look = Look { width: 80, colour: false };
        golden_text("orphans-scan.txt", &text(&[&foreign, &own], look));
        golden_text("orphans-scan-foreign.txt", &text(&[&foreign], look));
        assert_eq!(text(&[], look), "");
    }
}
