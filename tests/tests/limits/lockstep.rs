//! A coordinator's process, two healthy databases beside it, and clients of both kinds: the SDK's and bare ones.

use std::path::Path;
use std::time::Duration;

use lockstep::{Participant, Sqlite};
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use lockstep_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use lockstep_proto::v1::{self, Wait};
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::roles::Roles;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Nothing here takes that long; a test that would hang fails instead.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Who plays the coordinator.
pub(crate) fn roles() -> Roles {
    Roles::played_by(env!("CARGO_BIN_EXE_prove"))
}

/// A coordinator and what is healthy beside it.
pub(crate) struct Lockstep {
    pub(crate) coordinator: Coordinator,
    /// Goes last.
    _directory: TempDir,
    pub(crate) rpc: CoordinatorServiceClient<Channel>,
    client: lockstep::Client,
    healthy: [(Participant<Sqlite>, SqlitePool); 2],
}

impl Lockstep {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With these flags of `lockstep serve`.
    pub(crate) async fn start_with(flags: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let mut coordinator = Coordinator::start(&roles(), directory.path(), flags, None).unwrap();
        coordinator.expect_it_serves().unwrap();
        Self::beside(coordinator, directory).await
    }

    /// Around a coordinator that serves already.
    pub(crate) async fn beside(coordinator: Coordinator, directory: TempDir) -> Self {
        let url = coordinator.url();
        let rpc = CoordinatorServiceClient::new(channel(&url).await);
        let client = lockstep::Client::connect(&url).await.unwrap();
        let healthy = [
            participant("healthy-a", directory.path(), &url).await.unwrap(),
            participant("healthy-b", directory.path(), &url).await.unwrap(),
        ];
        Self { coordinator, _directory: directory, rpc, client, healthy }
    }

    /// Kills the coordinator and starts it again.
    pub(crate) async fn restart(&mut self) {
        self.coordinator.process().kill().unwrap();
        self.coordinator.start_again(None).unwrap();
        self.coordinator.expect_it_serves().unwrap();
        self.rpc = CoordinatorServiceClient::new(channel(&self.url()).await);
    }

    pub(crate) fn url(&self) -> String {
        self.coordinator.url()
    }

    pub(crate) async fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(channel(&self.url()).await)
    }

    /// The process runs, and a transaction over two databases commits in both.
    pub(crate) async fn is_well(&mut self) {
        let ended = self.coordinator.process().try_reap().unwrap();
        assert_eq!(ended, None, "the coordinator ended:\n{}", self.coordinator.process().output());
        let healthy = async {
            while !self.healthy.iter().all(|(participant, _)| participant.is_attached()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let tx = self.client.begin("healthy").start().await.unwrap();
            for (participant, _) in &self.healthy {
                let mut branch = participant.join(&tx.context()).await.unwrap();
                let insert = sqlx::query("INSERT INTO kept (gtrid) VALUES (?1)").bind(tx.gtrid().to_string());
                insert.execute(&mut *branch).await.unwrap();
                branch.finish().await.unwrap();
            }
            let gtrid = tx.gtrid().to_string();
            let committed = tx.commit().await.unwrap();
            assert_eq!((committed.branches, committed.branches_pending), (2, 0));
            for (_, pool) in &self.healthy {
                let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM kept WHERE gtrid = ?1");
                assert_eq!(count.bind(&gtrid).fetch_one(pool).await.unwrap(), 1);
            }
        };
        tokio::time::timeout(PATIENCE, healthy).await.expect("a healthy transaction commits");
    }

    /// Begins a transaction of ten seconds: its gtrid.
    pub(crate) async fn begin(&self) -> String {
        self.begin_with(v1::BeginRequest { timeout_ms: 10_000, ..Default::default() }).await.unwrap()
    }

    pub(crate) async fn begin_with(&self, request: v1::BeginRequest) -> Result<String, Status> {
        Ok(self.rpc.clone().begin(request).await?.into_inner().gtrid)
    }

    pub(crate) async fn commit(&self, gtrid: &str) -> Result<v1::CommitResponse, Status> {
        let request =
            v1::CommitRequest { gtrid: gtrid.to_owned(), cluster: String::new(), wait: Wait::Applied.into() };
        Ok(self.rpc.clone().commit(request).await?.into_inner())
    }

    pub(crate) async fn rollback(&self, gtrid: &str) -> Result<v1::RollbackResponse, Status> {
        let request = v1::RollbackRequest { gtrid: gtrid.to_owned(), ..Default::default() };
        Ok(self.rpc.clone().rollback(request).await?.into_inner())
    }

    pub(crate) async fn inquire(&self, gtrid: &str) -> Result<v1::InquireResponse, Status> {
        let request = v1::InquireRequest { gtrid: gtrid.to_owned(), ..Default::default() };
        Ok(self.rpc.clone().inquire(request).await?.into_inner())
    }
}

pub(crate) async fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).unwrap().connect().await.unwrap()
}

/// A database with a table, attached under this name through the SDK.
pub(crate) async fn participant(
    name: &str,
    directory: &Path,
    url: &str,
) -> Result<(Participant<Sqlite>, SqlitePool), lockstep::AttachError> {
    let pool = database(&directory.join(format!("{name}.db"))).await;
    let attaching = Participant::builder(name, Sqlite::new(pool.clone())).coordinator(url).attach();
    let attached = tokio::time::timeout(PATIENCE, attaching).await.expect("attaching ends");
    Ok((attached?, pool))
}

pub(crate) async fn database(file: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("CREATE TABLE IF NOT EXISTS kept (gtrid TEXT PRIMARY KEY)").execute(&pool).await.unwrap();
    pool
}

/// The code and the machine-readable reason of a refusal.
pub(crate) fn refusal(status: &Status) -> (Code, String) {
    let reason = status.get_details_error_info().map(|info| info.reason);
    (status.code(), reason.unwrap_or_default())
}

/// A refusal with this code and reason, whose message says this.
#[track_caller]
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: Code,
    reason: &str,
    says: &str,
) {
    let status = result.expect_err("it is refused");
    assert_eq!(refusal(&status), (code, reason.to_owned()), "{status:?}");
    assert!(status.message().contains(says), "{says:?} is not in {:?}", status.message());
}
