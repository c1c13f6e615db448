//! Branches as services use them, against a real `lockstep serve` and real databases: early votes, several databases in one
//! service, a service that is called twice, handlers that do not end as they should, and the examples.

#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it should be")]

mod early_votes;
mod examples;
mod handlers;
mod second_calls;
mod several_databases;

use std::time::{Duration, Instant};

use lockstep::resource::Resource;
use lockstep::{Client, Context, Gtrid, Participant, Transaction};
use lockstep_proto::v1;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use lockstep_tests::harness::bank::{APPLY, Apply, Bank};
use lockstep_tests::harness::books::{Books, Database, Page};
use lockstep_tests::harness::clock;
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::crash_points::Fuse;
use lockstep_tests::harness::postgres::{fresh_database, shared};
use lockstep_tests::harness::process::Reaped;
use lockstep_tests::harness::roles::Roles;
use tempfile::TempDir;
use tonic::transport::Endpoint;

/// For anything that takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// A transaction's timeout where nobody waits for its end.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A coordinator of one's own, and a client of it.
struct Stage {
    coordinator: Coordinator,
    client: Client,
    http: reqwest::Client,
    roles: Roles,
    directory: TempDir,
}

impl Stage {
    async fn set() -> Self {
        let directory = TempDir::new().unwrap();
        let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
        let mut coordinator = Coordinator::start(&roles, directory.path(), &[], None).unwrap();
        coordinator.expect_it_serves().unwrap();
        let client = Client::connect(coordinator.url()).await.unwrap();
        Self { coordinator, client, http: reqwest::Client::new(), roles, directory }
    }

    async fn begin(&self, timeout: Duration) -> Transaction {
        self.client.begin("test").timeout(timeout).start().await.unwrap()
    }

    /// SIGKILL, and it serves again.
    async fn crash_the_coordinator(&mut self) {
        self.coordinator.process().kill().unwrap();
        self.coordinator.start_again(None).unwrap();
        self.coordinator.expect_it_serves().unwrap();
    }

    async fn books(&self, bank: &str, database: Database) -> Books {
        match database {
            Database::Sqlite => {
                Books::in_sqlite(bank, self.directory.path().join(format!("{bank}.db"))).await.unwrap()
            }
            Database::Postgres => {
                // Only its name: no other test has it.
                let name = format!("bank_{}", fresh_database().name);
                Books::in_postgres(bank, shared(), &name).await.unwrap()
            }
            Database::MariaDb | Database::Own => panic!("no test here has its books in {database:?}"),
        }
    }

    fn fuse(&self, bank: &str, point: &str) -> Fuse {
        let marker = self.directory.path().join(format!("{bank}-{point}"));
        Fuse { point: point.to_owned(), nth: 1, marker }
    }

    /// A bank that can be called.
    async fn bank(&self, books: &Books, second: Option<&Books>, fuse: Option<&Fuse>) -> Bank {
        let url = self.coordinator.url();
        let (roles, directory) = (&self.roles, self.directory.path());
        let bank = Bank::start_with(roles, directory, books.clone(), second.cloned(), &url, fuse).unwrap();
        can_be_called(&bank).await;
        bank
    }

    /// Has a bank add `amount` to its first account in the transaction of `context`; the answer's words if it refuses.
    async fn apply(&self, bank: &Bank, context: Context, amount: i64) -> Result<(), String> {
        self.apply_at(&format!("{}{APPLY}", bank.address()), context, amount).await
    }

    async fn apply_at(&self, place: &str, context: Context, amount: i64) -> Result<(), String> {
        let call = self.http.post(format!("http://{place}")).headers(context.to_headers());
        let apply = Apply { account: 0, amount, refuse: false, only_read: false };
        let answer = call.json(&apply).send().await.map_err(|error| error.to_string())?;
        if answer.status().is_success() { Ok(()) } else { Err(answer.text().await.unwrap()) }
    }

    /// The states of a transaction's branches, as the coordinator shows them to people.
    async fn branch_states(&self, gtrid: Gtrid) -> Vec<String> {
        let endpoint = Endpoint::from_shared(self.coordinator.url()).unwrap();
        let mut admin = AdminServiceClient::new(endpoint.connect().await.unwrap());
        let request = v1::ShowTransactionRequest { gtrid: gtrid.to_string() };
        let shown = admin.show_transaction(request).await.unwrap().into_inner();
        shown.transaction.unwrap().branches.into_iter().map(|branch| branch.state).collect()
    }
}

/// A participant in this process.
async fn attach<R: Resource>(stage: &Stage, name: &str, resource: R) -> Participant<R> {
    let attaching = Participant::builder(name, resource).coordinator(stage.coordinator.url()).attach();
    tokio::time::timeout(PATIENCE, attaching).await.unwrap().unwrap()
}

async fn can_be_called(bank: &Bank) {
    until("the bank to listen", async || tokio::net::TcpStream::connect(bank.address()).await.is_ok()).await;
}

/// A bank whose fuse has fired.
fn was_killed(bank: &mut Bank, fuse: &Fuse) {
    assert_eq!(bank.process().wait(PATIENCE).unwrap(), Reaped::KILLED);
    assert!(fuse.fired_at().is_some(), "it died of something else than {}", fuse.point);
}

/// Waits until it is so.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let start: Instant = clock::now();
    while !so().await {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What has been added to the accounts of these books, once nothing is prepared in them any more.
async fn added(books: &Books) -> i64 {
    until("nothing to be prepared any more", async || books.prepared().await.unwrap().is_empty()).await;
    let Page { total, wrong_accounts, .. } = books.read().await.unwrap();
    assert!(wrong_accounts.is_empty(), "{wrong_accounts:?}");
    total - 4000
}
