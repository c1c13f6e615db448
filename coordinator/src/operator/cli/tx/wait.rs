//! `lockstep tx wait`: asks for a transaction's outcome until there is one.
//!
//! "Undecided" and "unknown" are no outcomes, and a coordinator that does not answer says nothing about one: all three
//! are asked again until the time is over, with growing pauses. What was heard last makes the exit code then.

use std::time::Duration;

use lockstep_proto::v1::{InquireRequest, ShowTransactionRequest};
use lockstep_proto::{ClusterId, Gtrid};
use tonic::{Code, Response, Status};

use super::super::exit::{Exit, Failure};
use super::super::remote::{Reach, Remote, ServerArgs, reach, waiting_time};
use super::super::{output, tables};
use crate::codes::Code as ErrorCode;
use crate::operator::view::{Outcome, OutcomeView, TransactionShown};

/// How long one question may take; the next one may find a coordinator that has started again.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The first pause: most transactions are decided within milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause: what a coordinator hardly notices, and a person hardly waits for.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// The transaction: its id, or a beginning of it that no other one has
    #[arg(value_name = "GTRID")]
    gtrid: String,
    /// The cluster that it belongs to: another one's coordinator refuses to answer, where it would otherwise take the
    /// transaction for one that never committed [default: the coordinator's own]
    #[arg(long, value_name = "ID")]
    cluster: Option<ClusterId>,
    /// How long to wait for the outcome
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = waiting_time)]
    timeout: Duration,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let mut waiting = Waiting {
        remote: Remote::new(&args.server.server, CALL_TIMEOUT),
        pause: FIRST_PAUSE,
        told: false,
        heard: None,
    };
    let answer = tokio::time::timeout(args.timeout, waiting.until_decided(&args)).await;
    let view = match answer {
        Ok(decided) => decided?,
        Err(_elapsed) => waiting.heard.take().ok_or_else(|| {
            let remote = &waiting.remote;
            Failure::coded(
                ErrorCode::NoAnswerInTime,
                Exit::Timeout,
                format!("no answer from {remote} in {}", humantime::format_duration(args.timeout)),
            )
            .remedy("the outcome was not learned: is `lockstep serve` running there?")
        })?,
    };
    if args.server.json {
        output::print_json(&view)?;
    } else {
        output::print(&tables::outcome(&view))?;
    }
    Ok(exit_of(view.outcome))
}

/// The exit code of an outcome, when there is no time left to ask for another.
fn exit_of(outcome: Outcome) -> Exit {
    match outcome {
        Outcome::Committed | Outcome::NothingToCommit => Exit::Ok,
        Outcome::RolledBack => Exit::RolledBack,
        Outcome::Heuristic => Exit::Heuristic,
        Outcome::Undecided => Exit::Timeout,
        Outcome::Unknown => Exit::Unknown,
    }
}

struct Waiting {
    remote: Remote,
    pause: Duration,
    /// Whether the person was told that nobody answers.
    told: bool,
    /// What was answered last, which was no outcome.
    heard: Option<OutcomeView>,
}

impl Waiting {
    async fn until_decided(&mut self, args: &Args) -> Result<OutcomeView, Failure> {
        let gtrid = self.whole(&args.gtrid).await?;
        // An empty cluster: whatever the coordinator is of.
        let cluster = args.cluster.map_or(String::new(), |cluster| cluster.to_string());
        let request = InquireRequest { gtrid: gtrid.clone(), cluster };
        let client = self.remote.coordinator();
        loop {
            let answer = self.persist(async || client.clone().inquire(request.clone()).await).await?;
            let view = OutcomeView::new(&gtrid, answer);
            let view = view.map_err(|error| self.remote.strange(&error))?;
            match view.outcome {
                Outcome::Committed | Outcome::NothingToCommit | Outcome::RolledBack | Outcome::Heuristic => {
                    return Ok(view);
                }
                Outcome::Undecided | Outcome::Unknown => self.heard = Some(view),
            }
            self.rest().await;
        }
    }

    /// The whole gtrid of which this is the beginning.
    async fn whole(&mut self, beginning: &str) -> Result<String, Failure> {
        if let Ok(gtrid) = beginning.parse::<Gtrid>() {
            return Ok(gtrid.to_string());
        }
        let client = self.remote.admin();
        let request = ShowTransactionRequest { gtrid: beginning.to_owned() };
        let answer = self.persist(async || client.clone().show_transaction(request.clone()).await).await?;
        let found = TransactionShown::try_from(answer).map_err(|error| self.remote.strange(&error))?;
        Ok(found.transaction.gtrid)
    }

    /// Asks until there is an answer: a coordinator that is starting again is worth waiting for.
    async fn persist<T>(
        &mut self,
        question: impl AsyncFn() -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        loop {
            let status = match question().await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            let failure = self.remote.failure(&status);
            if !may_pass(&status) {
                return Err(failure);
            }
            if !self.told {
                self.told = true;
                output::talk(&format!("{}; asking again", failure.message));
            }
            self.rest().await;
        }
    }

    async fn rest(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether the next time may go better.
fn may_pass(status: &Status) -> bool {
    match reach(status) {
        Reach::Nobody | Reach::Broken | Reach::Late => true,
        Reach::Answered => matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted
        ),
    }
}
