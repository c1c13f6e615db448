//! The application: clients that move money between the banks, each transfer in one transaction.

use std::cell::Cell;
use std::time::Duration;

use futures::future::try_join_all;
use lockstep::{Client, CommitError, Context, Gtrid, InquireError, Outcome, TransactionError};
use reqwest::StatusCode;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::Options;
use crate::killer::Killer;
use crate::ledger::{Ledger, Leg, Told, Transfer};
use crate::naive;
use crate::process::Processes;
use crate::progress::Progress;
use crate::role::Role;
use crate::scenario::Failure;

/// A bank that has not answered by then hangs. A call may wait for its transaction's turn, at most for 30 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a client waits for the answer to its commit: so many times what it takes when nothing breaks, and no less
/// than this. The SDK would go on asking, and learn it in the end; this client has a person waiting in front of it.
/// It gives up, does not know the outcome, and says so: it is asked for later.
const COMMIT_PATIENCE: u32 = 10;
const LEAST_COMMIT_PATIENCE: Duration = Duration::from_millis(50);

/// The clients, and what they share.
pub(crate) struct Application<'a> {
    pub(crate) options: &'a Options,
    pub(crate) processes: &'a Processes,
    pub(crate) killer: &'a Killer<'a>,
    pub(crate) ledger: &'a Ledger,
    pub(crate) progress: &'a Progress,
    http: reqwest::Client,
    lockstep: Client,
    next: Cell<u32>,
}

/// A bank's answer that is no yes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Its own no.
    #[error("{0}")]
    Declined(String),
    /// It could not, or there was no answer.
    #[error("{0}")]
    Failed(String),
}

impl<'a> Application<'a> {
    pub(crate) async fn new(
        options: &'a Options,
        processes: &'a Processes,
        killer: &'a Killer<'a>,
        ledger: &'a Ledger,
        progress: &'a Progress,
    ) -> Result<Self, Failure> {
        // A proxy that is meant for the internet has no business between processes of one machine.
        let http = reqwest::Client::builder().no_proxy().timeout(CALL_TIMEOUT).build()?;
        let lockstep = Client::connect(processes.url(Role::Coordinator)).await?;
        Ok(Self { options, processes, killer, ledger, progress, http, lockstep, next: Cell::new(0) })
    }

    /// Makes all transfers, and more if there are kills left to make.
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        let clients = (0..self.options.clients).map(|_| self.client());
        try_join_all(clients).await?;
        if self.killer.is_done() { Ok(()) } else { Err(Failure::TooFewKills { made: self.killer.made() }) }
    }

    async fn client(&self) -> Result<(), Failure> {
        while let Some(transfer) = self.next_transfer() {
            let told = if self.options.naive {
                naive::two_plain_commits(self, &transfer).await
            } else {
                self.in_one_transaction(&transfer).await
            };
            let broken = matches!(told, Told::RolledBack | Told::Unknown(_));
            self.ledger.tell(transfer.number, told);
            self.progress.transfer(self.killer.made());
            if broken {
                // Whatever it was, trying on at once would fail the same way until the process that was killed is
                // back.
                self.processes.until_all_up().await?;
            }
        }
        Ok(())
    }

    fn next_transfer(&self) -> Option<Transfer> {
        let number = self.next.get();
        let asked = self.options.transfers;
        let wanted = number < asked || (!self.killer.is_done() && number < asked.saturating_mul(2));
        wanted.then(|| {
            self.next.set(number + 1);
            Transfer::generate(self.options.seed, number)
        })
    }

    /// One transfer. If anything goes wrong on the way, it is rolled back in both banks.
    async fn in_one_transaction(&self, transfer: &Transfer) -> Told {
        let (commit_sent, committing) = oneshot::channel();
        let done = self.lockstep.transaction("transfer", async |tx| {
            self.ledger.begun(transfer.number);
            let [first, second] = transfer.legs();
            self.call(&first, Some(tx.context())).await?;
            self.between_calls(transfer, &Role::ALL).await;
            self.call(&second, Some(tx.context())).await?;
            // Heard for as long as this runs: the client waits for both.
            let _heard = commit_sent.send(tx.gtrid());
            Ok(())
        });
        let done = tokio::select! {
            done = done => done,
            gtrid = self.out_of_patience(committing) => return Told::Unknown(gtrid),
        };
        match done {
            Ok(()) => Told::Committed,
            Err(TransactionError::Work(CallError::Declined(_))) => Told::Declined,
            Err(
                TransactionError::Begin(_)
                | TransactionError::Work(CallError::Failed(_))
                | TransactionError::Commit(CommitError::RolledBack { .. }),
            ) => Told::RolledBack,
            Err(TransactionError::Commit(CommitError::Unknown { gtrid, .. })) => Told::Unknown(gtrid),
            Err(TransactionError::Commit(CommitError::Heuristic { detail, .. })) => Told::Heuristic(detail),
        }
    }

    /// Asks a bank for its part of a transfer.
    pub(crate) async fn call(&self, leg: &Leg, context: Option<Context>) -> Result<(), CallError> {
        let failed = |error: reqwest::Error| CallError::Failed(error.to_string());
        let url = format!("{}/{}", self.processes.url(leg.bank), leg.operation.path());
        let mut request = self.http.post(url).json(&leg.movement);
        if let Some(context) = context {
            request = request.headers(context.to_headers());
        }
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let why = response.text().await.map_err(failed)?;
        match status {
            StatusCode::UNPROCESSABLE_ENTITY => Err(CallError::Declined(why)),
            _ => Err(CallError::Failed(why)),
        }
    }

    /// A transfer that was answered by one bank and has not asked the other stands here, for as long as the killer
    /// holds it.
    pub(crate) async fn between_calls(&self, transfer: &Transfer, needed: &[Role]) {
        self.ledger.halfway(transfer.number);
        self.killer.between_calls(transfer.number, needed).await;
    }

    /// Asks for every outcome that its client was not told. Returns how many it has learned.
    pub(crate) async fn ask_for_unknown(&self) -> u32 {
        let mut learned = 0;
        for (number, gtrid) in self.ledger.unknown() {
            let told = match self.lockstep.inquire(gtrid).await {
                Ok(Outcome::Committed | Outcome::NothingToCommit) => Told::Committed,
                Ok(Outcome::RolledBack { .. }) => Told::RolledBack,
                Ok(Outcome::Heuristic { detail }) => Told::Heuristic(detail),
                Ok(Outcome::Undecided | Outcome::Unknown { .. })
                | Err(InquireError::Unavailable { .. } | InquireError::Refused { .. }) => continue,
            };
            self.ledger.tell(number, told);
            learned += 1;
        }
        learned
    }

    /// Returns when the commit was sent and has not been answered for too long.
    async fn out_of_patience(&self, committing: oneshot::Receiver<Gtrid>) -> Gtrid {
        let Ok(gtrid) = committing.await else { return std::future::pending().await };
        sleep((self.ledger.rest() * COMMIT_PATIENCE).max(LEAST_COMMIT_PATIENCE)).await;
        gtrid
    }
}
