//! `lockstep tx ls`.

use std::collections::HashMap;
use std::time::Duration;

use clap::ValueEnum;
use lockstep_proto::v1::{ListTransactionsRequest, Situation, TransactionState};

use super::super::exit::{Exit, Failure};
use super::super::remote::{AnswerTimeout, Remote, ServerArgs, waiting_time, within};
use super::super::{output, tables};
use crate::codes::Code;
use crate::operator::view::TransactionList;

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// Also those that have ended and are still kept
    #[arg(long)]
    all: bool,
    /// Only what is in this situation
    #[arg(long, value_enum)]
    situation: Option<WhichSituation>,
    /// Only what is in this state; may be given several times
    #[arg(long, value_enum)]
    state: Vec<WhichState>,
    /// Only transactions of this name
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Only transactions with this label; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Only transactions with a branch of this resource manager
    #[arg(long, value_name = "NAME")]
    participant: Option<String>,
    /// Only transactions that began so long ago, or longer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// At most so many: 1 to 1000
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Print the list again, so often, until it is stopped
    #[arg(long, value_name = "DURATION", value_parser = waiting_time, num_args = 0..=1, default_missing_value = "2s")]
    watch: Option<Duration>,
    /// End with 6 if something is listed
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    answer: AnswerTimeout,
}

/// A situation, as it is typed. An orphan is no transaction of a list: `orphans scan` finds it, and whoever types it here is told.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in super::super) enum WhichSituation {
    Undelivered,
    Undecided,
    Heuristic,
    #[value(hide = true)]
    Orphan,
}

/// A state, as it is typed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in super::super) enum WhichState {
    Active,
    Preparing,
    Deciding,
    Committing,
    RollingBack,
    CommittingOnePhase,
    Ended,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Args {
    fn request(&self) -> Result<ListTransactionsRequest, Failure> {
        let situation = match self.situation {
            None => Situation::Unspecified,
            Some(WhichSituation::Orphan) => {
                let why = "an orphan is a prepared branch that no transaction of this list answers for";
                let failure = Failure::coded(Code::WrongCommandLine, Exit::Usage, why);
                return Err(failure.remedy("`lockstep orphans scan` finds orphans"));
            }
            Some(WhichSituation::Undelivered) => Situation::Undelivered,
            Some(WhichSituation::Undecided) => Situation::Undecided,
            Some(WhichSituation::Heuristic) => Situation::Heuristic,
        };
        let state = |state: &WhichState| {
            let state = match state {
                WhichState::Active => TransactionState::Active,
                WhichState::Preparing => TransactionState::Preparing,
                WhichState::Deciding => TransactionState::Deciding,
                WhichState::Committing => TransactionState::Committing,
                WhichState::RollingBack => TransactionState::RollingBack,
                WhichState::CommittingOnePhase => TransactionState::CommittingOnePhase,
                WhichState::Ended => TransactionState::Ended,
            };
            i32::from(state)
        };
        let min_age = self.older_than.unwrap_or_default();
        Ok(ListTransactionsRequest {
            limit: self.limit,
            include_ended: self.all || self.state.iter().any(|state| matches!(state, WhichState::Ended)),
            situation: situation.into(),
            states: self.state.iter().map(state).collect(),
            name: self.name.clone().unwrap_or_default(),
            labels: self.label.iter().cloned().collect::<HashMap<_, _>>(),
            resource_manager: self.participant.clone().unwrap_or_default(),
            min_age_ms: u64::try_from(min_age.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let request = args.request()?;
    let remote = Remote::new(&args.server.server, args.answer.timeout);
    let list = list(&args, &remote, &request).await?;
    print(&args, &list)?;
    if let Some(pause) = args.watch {
        return watch(&args, &remote, &request, pause).await;
    }
    let found = args.exit_code && !list.transactions.is_empty();
    Ok(if found { Exit::Unresolved } else { Exit::Ok })
}

async fn list(
    args: &Args,
    remote: &Remote,
    request: &ListTransactionsRequest,
) -> Result<TransactionList, Failure> {
    let answer = within(remote, args.answer, remote.admin().list_transactions(request.clone())).await?;
    TransactionList::try_from(answer).map_err(|error| remote.strange(&error))
}

/// Until it is stopped: a coordinator that answered once and is away now may be starting again.
async fn watch(
    args: &Args,
    remote: &Remote,
    request: &ListTransactionsRequest,
    pause: Duration,
) -> Result<Exit, Failure> {
    loop {
        tokio::time::sleep(pause).await;
        match list(args, remote, request).await {
            Ok(list) => print(args, &list)?,
            Err(failure) => output::talk(&failure.to_string()),
        }
    }
}

fn print(args: &Args, list: &TransactionList) -> Result<(), Failure> {
    if args.server.json {
        return output::print_json(list);
    }
    let look = tables::Look::of_stdout();
    if args.watch.is_some() && look.colour {
        // A terminal: each list replaces the one before.
        output::print("\u{1b}[H\u{1b}[2J")?;
    }
    output::print(&tables::list(list, look))?;
    if list.transactions.is_empty() {
        output::talk(if args.all {
            "no transactions"
        } else if args.situation.is_some() {
            "none is in this situation"
        } else {
            "no unfinished transactions; --all lists ended ones too"
        });
    }
    if list.truncated {
        output::talk(&format!(
            "there are more than these {}; --limit takes up to 1000",
            list.transactions.len()
        ));
    }
    Ok(())
}
