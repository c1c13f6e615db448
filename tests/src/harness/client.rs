//! A client: moves money between banks, one transfer after the other, and writes down what it was told.
//!
//! Its ledger is a file to which it appends a line before it goes on: what it says was said before whatever came next,
//! whenever the process dies.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use futures::future::OptionFuture;
use lockstep::{Advice, CommitError, Gtrid, Outcome, Transaction};
use lockstep_proto::limits::{MAX_LABEL_BYTES, MAX_LABELS};
use lockstep_proto::v1;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use serde::{Deserialize, Serialize};
use tonic::transport::{Channel, Endpoint};

use super::bank::{APPLY, Apply};
use super::books::ACCOUNTS;
use super::process::kill_this_process;
use super::{Failed, Result, clock};

/// A transfer's timeout: what a client that dies leaves open is over after so long, and nothing healthy takes a tenth of it.
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// Transactions between two transfers where the log is to grow: each is about 8 KiB in it.
const BALLAST: usize = 64;
/// What the coordinator calls a branch that has voted to commit.
pub const PREPARED: &str = "prepared";
/// How long votes may be on their way that were sent.
const TO_VOTE: Duration = Duration::from_secs(1);
/// Between two attempts while something does not answer.
const PAUSE: Duration = Duration::from_millis(10);

/// How a transfer is meant to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Plan {
    /// It commits.
    Commit,
    /// It commits, and each bank votes when its handler ends.
    EarlyVote,
    /// The client rolls it back when all the work is done.
    Rollback,
    /// It commits, and the first bank has only read.
    OnlyReadByFirst,
    /// The client commits, and the first bank votes rollback.
    RefusedByFirst,
    /// The client commits, and the second bank votes rollback when the first may be prepared.
    RefusedBySecond,
}

impl Plan {
    /// Whether it is meant to commit.
    #[must_use]
    pub const fn commits(self) -> bool {
        match self {
            Self::Commit | Self::EarlyVote | Self::OnlyReadByFirst => true,
            Self::Rollback | Self::RefusedByFirst | Self::RefusedBySecond => false,
        }
    }

    const fn refused_by(self) -> Option<usize> {
        match self {
            Self::Commit | Self::EarlyVote | Self::OnlyReadByFirst | Self::Rollback => None,
            Self::RefusedByFirst => Some(0),
            Self::RefusedBySecond => Some(1),
        }
    }
}

/// What a client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// Committed.
    Committed,
    /// Rolled back.
    RolledBack,
    /// A branch ended differently from the others.
    Heuristic,
    /// It is not known.
    Unknown,
}

impl From<Outcome> for Told {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Committed => Self::Committed,
            // Nobody commits anything here without having written something.
            Outcome::RolledBack { .. } | Outcome::NothingToCommit => Self::RolledBack,
            Outcome::Heuristic { .. } => Self::Heuristic,
            Outcome::Undecided | Outcome::Unknown { .. } => Self::Unknown,
        }
    }
}

/// A line of the ledger.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// When it was written, in microseconds since 1970.
    pub at: u64,
    /// The transaction.
    pub gtrid: String,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What a line of the ledger says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum What {
    /// It was begun.
    Begun {
        /// How it is meant to end.
        plan: Plan,
    },
    /// All the work is done that votes by itself, and the client is about to ask for the commit.
    Ready {
        /// The states of the branches, as the coordinator shows them.
        branches: Vec<String>,
    },
    /// Somebody asked while it was under way, and this was the answer.
    Heard {
        /// What was heard: `Unknown` also stands for undecided.
        told: Told,
    },
    /// The client heard how it ended.
    Told {
        /// What it heard.
        told: Told,
        /// In which words.
        detail: String,
    },
}

/// The command line of a client's process.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where the coordinators are, with commas between them
    #[arg(long)]
    coordinator: String,
    /// Where each bank is called; a transfer goes from the first to the second
    #[arg(long = "bank", required = true)]
    banks: Vec<String>,
    /// Where to write what it was told
    #[arg(long)]
    ledger: PathBuf,
    /// How transfers are meant to end, over and over
    #[arg(long = "plan", required = true, value_enum)]
    plans: Vec<Plan>,
    /// Make the decision log grow between transfers
    #[arg(long)]
    ballast: bool,
}

/// Moves money and keeps a ledger.
#[derive(Debug)]
pub struct Mover {
    client: lockstep::Client,
    admin: AdminServiceClient<Channel>,
    http: reqwest::Client,
    banks: Vec<String>,
    ledger: File,
    moved: i64,
    /// Whether each transfer is asked about while it is under way.
    asks: bool,
}

impl Mover {
    /// Of this coordinator, or of these, with commas between them. To be made inside a runtime.
    ///
    /// # Errors
    /// If the ledger can't be written, or the coordinator's address is none.
    pub async fn new(coordinator: &str, banks: &[String], ledger: &Path) -> Result<Self> {
        let client = lockstep::Client::builder_of(coordinator.split(','));
        let client = client.connect().map_err(Failed::because("no client"))?;
        // Only one node knows the branches of a transaction. Whoever looks at them has one node.
        let first = coordinator.split(',').next().unwrap_or_default().to_owned();
        let endpoint = Endpoint::from_shared(first).map_err(Failed::because("no client"))?;
        let admin = AdminServiceClient::new(endpoint.connect_lazy());
        let http =
            reqwest::Client::builder().timeout(2 * TIMEOUT).build().map_err(Failed::because("no client"))?;
        let ledger = File::options()
            .create(true)
            .append(true)
            .open(ledger)
            .map_err(Failed::because(format!("no ledger {}", ledger.display())))?;
        Ok(Self { client, admin, http, banks: banks.to_vec(), ledger, moved: 0, asks: true })
    }

    /// Transfers and nothing else, to be measured: a question to a node that does not have the transaction is answered from the log.
    #[must_use]
    pub fn without_asking(self) -> Self {
        Self { asks: false, ..self }
    }

    /// One transfer, from its begin to what was told. `None`: there was no transaction.
    ///
    /// # Errors
    /// If the ledger can't be written.
    pub async fn transfer(&mut self, plan: Plan) -> Result<Option<Told>> {
        let begun =
            self.client.begin("transfer").timeout(TIMEOUT).label("plan", format!("{plan:?}")).start().await;
        let transaction = match begun {
            Ok(transaction) => transaction,
            Err(error) => {
                eprintln!("{error}");
                return Ok(None);
            }
        };
        let gtrid = transaction.gtrid();
        self.write(gtrid, What::Begun { plan })?;
        self.moved += 1;
        let worked = self.work(&transaction, plan).await;
        if plan == Plan::EarlyVote && worked.is_ok() {
            let branches = self.voted(gtrid).await;
            self.write(gtrid, What::Ready { branches })?;
        }
        let client = self.client.clone();
        let ending = async {
            match worked {
                Ok(()) if plan == Plan::Rollback => rolled_back(transaction, "as planned").await,
                Ok(()) => committed(transaction).await,
                Err(why) => rolled_back(transaction, &why).await,
            }
        };
        let asking = OptionFuture::from(self.asks.then(|| heard(&client, gtrid)));
        let ((told, detail), heard) = tokio::join!(ending, asking);
        if let Some(told) = heard {
            self.write(gtrid, What::Heard { told })?;
        }
        self.write(gtrid, What::Told { told, detail })?;
        Ok(Some(told))
    }

    /// Transactions without branches and with as many labels as there may be, rolled back at once: nothing but entries in the
    /// decision log.
    async fn make_the_log_grow(&self) {
        for _ in 0..BALLAST {
            let mut begin = self.client.begin("ballast").timeout(TIMEOUT);
            for number in 0..MAX_LABELS {
                begin = begin.label(format!("{number:0MAX_LABEL_BYTES$}"), "x".repeat(MAX_LABEL_BYTES));
            }
            if let Ok(transaction) = begin.start().await {
                // Whether it was heard makes no difference: the deadline ends it too.
                drop(transaction.rollback("ballast").await);
            }
        }
    }

    /// The banks' part, one after the other: SQLite locks a whole file, so all transfers take them in one order.
    async fn work(&self, transaction: &Transaction, plan: Plan) -> Result<(), String> {
        let account = self.moved % ACCOUNTS;
        let context = if plan == Plan::EarlyVote { transaction.vote() } else { transaction.context() };
        for (number, bank) in self.banks.iter().enumerate() {
            let amount = if number == 0 { -self.moved } else { self.moved };
            let refuse = plan.refused_by() == Some(number);
            let only_read = plan == Plan::OnlyReadByFirst && number == 0;
            let apply = Apply { account, amount, refuse, only_read };
            let request = self
                .http
                .post(format!("http://{bank}{APPLY}"))
                .header(lockstep::CONTEXT_HEADER, context.to_string())
                .json(&apply);
            let response = request.send().await.map_err(|error| format!("{bank}: {error}"))?;
            if !response.status().is_success() {
                return Err(format!("{bank}: {}", response.text().await.unwrap_or_default()));
            }
        }
        Ok(())
    }

    /// The states of the branches when all have voted; otherwise as they are after a while. A call is answered when the vote is
    /// on its way, and it may arrive a little later.
    async fn voted(&mut self, gtrid: Gtrid) -> Vec<String> {
        let begun = clock::now();
        loop {
            let request = v1::ShowTransactionRequest { gtrid: gtrid.to_string() };
            let shown = self.admin.show_transaction(request).await.ok();
            let branches =
                shown.and_then(|shown| shown.into_inner().transaction).unwrap_or_default().branches;
            let states: Vec<String> = branches.into_iter().map(|branch| branch.state).collect();
            if states.iter().all(|state| state == PREPARED) || begun.elapsed() > TO_VOTE {
                return states;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn write(&mut self, gtrid: Gtrid, what: What) -> Result<()> {
        let entry = Entry { at: clock::unix_micros(), gtrid: gtrid.to_string(), what };
        let mut line = serde_json::to_string(&entry).map_err(Failed::because("the ledger"))?;
        line.push('\n');
        // One write: a line is there or not, but never half of it.
        self.ledger.write_all(line.as_bytes()).map_err(Failed::because("the ledger"))
    }
}

/// What somebody hears who asks while the transaction is under way. A definite answer has to hold.
async fn heard(client: &lockstep::Client, gtrid: Gtrid) -> Told {
    match client.inquire(gtrid).await {
        Ok(outcome) => outcome.into(),
        // It was not answered.
        Err(_unavailable) => Told::Unknown,
    }
}

async fn committed(transaction: Transaction) -> (Told, String) {
    match transaction.commit().await {
        Ok(committed) => (Told::Committed, format!("{} branches", committed.branches)),
        Err(error) => {
            let told = match (&error, error.advice()) {
                (CommitError::RolledBack { .. }, Advice::Retry) => Told::RolledBack,
                (CommitError::Heuristic { .. }, Advice::GiveUp) => Told::Heuristic,
                (CommitError::Unknown { .. }, Advice::AskLater(_)) => Told::Unknown,
                (_, advice) => return (Told::Heuristic, format!("{error}, with the advice {advice:?}")),
            };
            (told, error.to_string())
        }
    }
}

async fn rolled_back(transaction: Transaction, why: &str) -> (Told, String) {
    match transaction.rollback(why).await {
        Ok(()) => (Told::RolledBack, why.to_owned()),
        Err(error) => match error.advice() {
            Advice::AskLater(_) => (Told::Unknown, format!("{error} ({why})")),
            Advice::Retry | Advice::GiveUp => (Told::Heuristic, format!("{error} ({why})")),
        },
    }
}

/// The lines of a ledger.
///
/// # Errors
/// If it can't be read.
pub fn read_ledger(path: &Path) -> Result<Vec<Entry>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        // The client has not begun anything.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failed::new(format!("{}: {error}", path.display()))),
    };
    let entry =
        |line| serde_json::from_str(line).map_err(Failed::because(format!("the ledger's line {line}")));
    // A line that is being written now may be seen in part: it is read the next time.
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete.lines().map(entry).collect()
}

/// A client's process: transfers until it is told to stop.
///
/// # Errors
/// If it can't be a client.
pub fn run(arguments: Arguments) -> Result<()> {
    super::roles::log_to_stderr();
    let stop = listen_for_stop();
    let runtime = tokio::runtime::Runtime::new().map_err(Failed::because("no runtime"))?;
    runtime.block_on(async {
        let mut mover = Mover::new(&arguments.coordinator, &arguments.banks, &arguments.ledger).await?;
        for plan in arguments.plans.iter().cycle() {
            // A transfer that a bank cannot be called for would be rolled back, and that is not what it is for.
            while !stop.load(Ordering::Relaxed)
                && !mover.banks.iter().all(|bank| TcpStream::connect(bank).is_ok())
            {
                tokio::time::sleep(PAUSE).await;
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
            if arguments.ballast {
                mover.make_the_log_grow().await;
            }
            if mover.transfer(*plan).await? != Some(Told::Committed) {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    })
}

/// Set when the parent says `stop`; without a parent this process goes.
fn listen_for_stop() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    thread::spawn(move || {
        for line in std::io::stdin().lines() {
            match line {
                Ok(line) if line == "stop" => told.store(true, Ordering::Relaxed),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        kill_this_process();
    });
    stop
}
