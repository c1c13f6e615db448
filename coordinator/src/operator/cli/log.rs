//! `lockstep log inspect`: a decision log as it lies there, while no coordinator has it. Nothing of it is changed.

use comfy_table::Cell;
use lockstep_proto::wire::WireError;
use lockstep_proto::{Gtrid, v1};
use serde::Serialize;

use super::audit;
use super::config_show;
use super::exit::{Exit, Failure};
use super::output::{self, printable};
use super::tables::{self, Look, without_header};
use crate::codes::Code;
use crate::config::{LogPlace, Overrides};
use crate::decision_log::sqlite::{FrozenError, FrozenLog, Look as Seen};
use crate::decision_log::{KnownResourceManager, ReadError, Recorded};
use crate::engine::clock::unix_ms;
use crate::operator::view::acts::AuditView;
use crate::operator::view::{Moment, TransactionList, TransactionShown, TransactionView};
use crate::rpc::admin::{audit_entry, recorded_info};

/// How many candidates an ambiguous prefix is answered with.
const CANDIDATES: u32 = 5;
/// Of the newest, so many actions are shown.
const ACTIONS: u32 = 20;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Say what is on record, of all transactions that are not over or of one, and change nothing
    Inspect(Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this transaction: its id, or a beginning of it that no other one has
    #[arg(value_name = "GTRID")]
    gtrid: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
    /// Also transactions that ended as they were decided
    #[arg(long)]
    all: bool,
    /// At most so many: 1 to 1000
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints, as it is documented in docs/cli.md.
#[derive(Debug, Serialize)]
struct View {
    as_of: Moment,
    file: String,
    format: Option<u32>,
    schema: Option<i64>,
    /// A newer version wrote it: this is not all.
    newer: bool,
    cluster: Option<String>,
    newest_epoch: Option<u32>,
    open_epochs: Vec<u32>,
    /// Transactions up to then are pruned.
    horizon: Option<Moment>,
    log_behind: bool,
    /// Nothing is presumed of transactions of epochs below this one.
    restored_below: Option<u32>,
    settled: bool,
    recorded: Option<u64>,
    undelivered: Option<u64>,
    heuristic: Option<u64>,
    heuristic_open: Option<u64>,
    actions: Option<u64>,
    participants: Vec<Known>,
    transactions: Vec<TransactionView>,
    truncated: bool,
    audit: Vec<AuditView>,
    problems: Vec<String>,
}

/// A resource manager, as the log knows it.
#[derive(Debug, Serialize)]
struct Known {
    resource_manager: String,
    identity: String,
    location: String,
    timeline: u32,
    floor: Option<String>,
    retired: bool,
}

pub(super) async fn run(Command::Inspect(args): Command) -> Result<Exit, Failure> {
    let config = config_show::load(&args.overrides)?.config;
    match &config.log {
        LogPlace::Embedded => {}
        LogPlace::Postgres(_) => {
            let why = "a decision log in PostgreSQL is looked at with `lockstep cluster ls`, or with psql: schema lockstep_log";
            let failure = Failure::coded(Code::EmbeddedLogOnly, Exit::Usage, why);
            return Err(failure.remedy("name a data directory with --data-dir, and no --log"));
        }
    }
    let log = FrozenLog::open(&config.data_dir).await.map_err(|error| failure(&error))?;
    let seen = log.look().await;
    let newer = seen.newer;
    match &args.gtrid {
        Some(prefix) => one(&log, prefix, args.json).await?,
        None => whole(&log, seen, &args).await?,
    }
    if newer {
        let why = "a newer version of Lockstep wrote this log: there may be more in it than is shown";
        return Err(
            Failure::coded(Code::NewerLog, Exit::Failed, why).remedy("use that version to see all of it")
        );
    }
    Ok(Exit::Ok)
}

fn failure(error: &FrozenError) -> Failure {
    let (exit, remedy) = match error {
        FrozenError::NoLog(_) => (Exit::Refused, ""),
        FrozenError::DataDir(_) if error.code() == Code::DataDirInUse => (
            Exit::Refused,
            "ask the coordinator that has it: `lockstep status`, `lockstep tx ls`, `lockstep export`",
        ),
        FrozenError::DataDir(_) => (Exit::Failed, ""),
        FrozenError::Unreadable { .. } => {
            (Exit::Failed, "keep a copy of the directory before anything else; then look at the disk")
        }
    };
    Failure::coded(error.code(), exit, error.to_string()).remedy(remedy)
}

fn unreadable(error: &ReadError) -> Failure {
    Failure::coded(error.code(), Exit::Failed, error.to_string())
}

/// A record that says what this version cannot show.
fn strange(error: &WireError) -> Failure {
    Failure::coded(
        Code::LogDamaged,
        Exit::Failed,
        format!("a record of the decision log cannot be shown: {error}"),
    )
}

async fn one(log: &FrozenLog, prefix: &str, json: bool) -> Result<(), Failure> {
    let found = log.find(prefix, CANDIDATES).await.map_err(|error| unreadable(&error))?;
    let gtrid = match found.as_slice() {
        [] => {
            let why = format!("no transaction begins with {prefix:?} in {}", log.file().display());
            let failure = Failure::coded(Code::NotFound, Exit::NotFound, printable(&why));
            return Err(
                failure.remedy("a rollback needs no record, and an ended one is pruned after its retention")
            );
        }
        [one] => *one,
        several => {
            let several: Vec<String> = several.iter().map(Gtrid::to_string).collect();
            let why = format!("{prefix:?} is the beginning of several transactions: {}", several.join(", "));
            return Err(Failure::coded(Code::Ambiguous, Exit::Usage, printable(&why)));
        }
    };
    let recorded = log.transaction(gtrid).await.map_err(|error| unreadable(&error))?;
    let audit = log.audit(Some(gtrid), ACTIONS).await.map_err(|error| unreadable(&error))?;
    let response = v1::ShowTransactionResponse {
        log_unavailable: String::new(),
        transaction: info(log, recorded).await?,
        audit: audit.into_iter().map(audit_entry).collect(),
        advice: Vec::new(),
        now_ms: unix_ms(),
    };
    let shown = TransactionShown::try_from(response).map_err(|error| strange(&error))?;
    if json { output::print_json(&shown) } else { output::print(&tables::show(&shown, Look::of_stdout())) }
}

async fn info(log: &FrozenLog, recorded: Recorded) -> Result<Option<v1::TransactionInfo>, Failure> {
    let acknowledged = match &recorded {
        Recorded::Ended(_, end) => {
            log.is_acknowledged(end.gtrid).await.map_err(|error| unreadable(&error))?
        }
        Recorded::Absent | Recorded::Decided(_) => false,
    };
    Ok(recorded_info(recorded, acknowledged))
}

async fn whole(log: &FrozenLog, seen: Seen, args: &Args) -> Result<(), Failure> {
    let mut problems = seen.problems.clone();
    // One more than wanted tells whether there are more.
    let (mut found, unread) = match log.transactions(args.all, args.limit + 1).await {
        Ok(found) => found,
        Err(error) => (Vec::new(), vec![error.to_string()]),
    };
    problems.extend(unread);
    let wanted = usize::try_from(args.limit).expect("at most 1,000");
    let truncated = found.len() > wanted;
    found.truncate(wanted);
    let mut transactions = Vec::new();
    for recorded in found {
        let Some(info) = info(log, recorded).await? else { continue };
        transactions.push(TransactionView::try_from(info).map_err(|error| strange(&error))?);
    }
    let audit = log.audit(None, ACTIONS).await.unwrap_or_else(|error| {
        problems.push(error.to_string());
        Vec::new()
    });
    let audit = audit.into_iter().map(|record| AuditView::try_from(audit_entry(record)));
    let audit = audit.collect::<Result<Vec<_>, _>>().map_err(|error| strange(&error))?;
    let view = View { transactions, truncated, audit, problems, ..view(log, seen)? };
    if args.json {
        return output::print_json(&view);
    }
    output::print(&text(view, Look::of_stdout()))
}

fn view(log: &FrozenLog, seen: Seen) -> Result<View, Failure> {
    let restored = seen.restored.as_ref();
    let below = restored.and_then(|marks| marks.restored_below());
    Ok(View {
        as_of: Moment::new(unix_ms(), "now").map_err(|error| strange(&error))?,
        file: log.file().display().to_string(),
        format: seen.format,
        schema: seen.schema,
        newer: seen.newer,
        cluster: seen.cluster.map(|cluster| cluster.to_string()),
        newest_epoch: seen.newest_epoch,
        open_epochs: seen.open_epochs,
        horizon: Moment::maybe(seen.horizon_ms.unwrap_or(0), "horizon").map_err(|error| strange(&error))?,
        log_behind: restored.is_some_and(|marks| marks.is_behind()),
        restored_below: below.map(|(below, _)| below),
        settled: below.is_some_and(|(_, settled)| settled),
        recorded: seen.transactions,
        undelivered: seen.unfinished,
        heuristic: seen.heuristic,
        heuristic_open: seen.heuristic_open,
        actions: seen.actions,
        participants: seen.resource_managers.into_iter().map(Known::from).collect(),
        transactions: Vec::new(),
        truncated: false,
        audit: Vec::new(),
        problems: Vec::new(),
    })
}

impl From<KnownResourceManager> for Known {
    fn from(known: KnownResourceManager) -> Self {
        Self {
            resource_manager: known.name.to_string(),
            identity: known.identity.to_string(),
            location: known.location,
            timeline: known.timeline,
            floor: known.floor.map(|floor| floor.to_string()),
            retired: known.retired,
        }
    }
}

fn text(view: View, look: Look) -> String {
    let number = |number: Option<u64>| number.map_or("?".to_owned(), |number| number.to_string());
    let some = |number: Option<i64>| number.map_or("?".to_owned(), |number| number.to_string());
    let mut facts = look.table(2);
    let mut fact = |name: &str, value: String| {
        facts.add_row(vec![Cell::new(name), Cell::new(value)]);
    };
    fact("decision log", printable(&view.file));
    let cluster = view.cluster.as_deref().unwrap_or("?");
    let versions = format!("format {}  schema {}", some(view.format.map(i64::from)), some(view.schema));
    fact("cluster", format!("{cluster}  {versions}"));
    let open: Vec<String> = view.open_epochs.iter().map(ToString::to_string).collect();
    let open =
        if open.is_empty() { "all sealed".to_owned() } else { format!("not sealed: {}", open.join(", ")) };
    fact("epochs", format!("newest {}  {open}", some(view.newest_epoch.map(i64::from))));
    fact("on record", format!("{} transactions", number(view.recorded)));
    let unresolved = format!(
        "undelivered {}   heuristic {} (of {})",
        number(view.undelivered),
        number(view.heuristic_open),
        number(view.heuristic)
    );
    fact("unresolved", unresolved);
    fact("pruned", view.horizon.map_or("nothing".to_owned(), |at| format!("what began up to {at}")));
    if view.log_behind {
        fact(
            "behind",
            "it is a backup, or has lost decisions: run `lockstep restore` before it is served".to_owned(),
        );
    }
    if let Some(below) = view.restored_below {
        let settled = if view.settled { "settled" } else { "not settled" };
        fact("restored", format!("nothing is presumed of epochs below {below} ({settled})"));
    }
    for known in &view.participants {
        let retired = if known.retired { "  (retired)" } else { "" };
        fact("participant", format!("{}{retired}", printable(&known.resource_manager)));
    }
    fact("by hand", format!("{} actions", number(view.actions)));
    for problem in &view.problems {
        fact("problem", printable(problem));
    }
    let mut text = without_header(&facts);
    let more = if view.truncated { "there are more; --limit takes up to 1000\n" } else { "" };
    let list =
        TransactionList { as_of: view.as_of, transactions: view.transactions, truncated: view.truncated };
    for part in [tables::list(&list, look), more.to_owned(), audit::text(&view.audit, look)] {
        if !part.is_empty() {
            text += "\n";
            text += &part;
        }
    }
    text
}
