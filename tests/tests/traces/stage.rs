//! An application, two services with a database each, and a coordinator that sends its spans to the collector.

use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use lockstep::{Client, Participant, Postgres, Sqlite};
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::postgres::{Database, fresh_database};
use lockstep_tests::harness::roles::Roles;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use sqlx::{PgPool, SqlitePool};
use tempfile::TempDir;

use super::collector::shared;

const PATIENCE: Duration = Duration::from_secs(30);

type Ledger = Participant<Sqlite>;
type Stock = Participant<Postgres>;

/// Two services, until they go away.
struct Services {
    ledger: Ledger,
    stock: Stock,
    addresses: Vec<String>,
}

pub(crate) struct Stage {
    pub(crate) coordinator: Coordinator,
    pub(crate) client: Client,
    services: Option<Services>,
    ledger: SqlitePool,
    stock: Database,
    directory: TempDir,
}

impl Stage {
    /// The coordinator has these flags, and exports soon.
    pub(crate) async fn set(flags: &[&str]) -> Self {
        let endpoint = format!("OTEL_EXPORTER_OTLP_ENDPOINT=http://{}", shared().address);
        Self::with(&["env", &endpoint, "OTEL_BSP_SCHEDULE_DELAY=50"], flags).await
    }

    /// The coordinator exports nothing.
    pub(crate) async fn untraced() -> Self {
        Self::with(&[], &[]).await
    }

    async fn with(environment: &[&str], flags: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let words = environment.iter().map(ToString::to_string);
        let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove")).under(words);
        let mut coordinator = Coordinator::start(&roles, directory.path(), flags, None).unwrap();
        coordinator.expect_it_serves().unwrap();
        let client = Client::connect(coordinator.url()).await.unwrap();
        let url = format!("sqlite:{}?mode=rwc", directory.path().join("ledger.db").display());
        let ledger = SqlitePool::connect(&url).await.unwrap();
        sqlx::raw_sql("CREATE TABLE entries (v int)").execute(&ledger).await.unwrap();
        let stock = fresh_database();
        stock.psql("CREATE TABLE moves (v int)");
        let mut stage = Self { coordinator, client, services: None, ledger, stock, directory };
        stage.attach().await;
        stage
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts both services, and waits until they are attached.
    pub(crate) async fn attach(&mut self) {
        let url = self.coordinator.url();
        let ledger =
            Participant::builder("ledger-db", Sqlite::new(self.ledger.clone())).coordinator(&url).attach();
        let pool = PgPool::connect(&self.stock.url()).await.unwrap();
        let stock = Participant::builder("stock-db", Postgres::new(pool)).coordinator(&url).attach();
        let ledger = tokio::time::timeout(PATIENCE, ledger).await.unwrap().unwrap();
        let stock = tokio::time::timeout(PATIENCE, stock).await.unwrap().unwrap();
        let addresses = vec![
            serve(Router::new().route("/", post(book)).with_state(ledger.clone())).await,
            serve(Router::new().route("/", post(take)).with_state(stock.clone())).await,
        ];
        self.services = Some(Services { ledger, stock, addresses });
    }

    /// Waits until both services have a session with the coordinator, after it was away.
    pub(crate) async fn attached(&self) {
        let services = self.services.as_ref().unwrap();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !(services.ledger.is_attached() && services.stock.is_attached()) {
            assert!(tokio::time::Instant::now() < deadline, "they do not attach again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Both services go away, and leave what is prepared to their databases.
    pub(crate) async fn detach(&mut self) {
        let Services { ledger, stock, .. } = self.services.take().unwrap();
        ledger.detach(Duration::ZERO).await;
        stock.detach(Duration::ZERO).await;
    }

    /// Calls each service over HTTP, as a service that knows nothing of tracing does: with the context's headers alone.
    pub(crate) async fn call_each(&self, context: &lockstep::Context) {
        for address in &self.services.as_ref().unwrap().addresses {
            let request = reqwest::Client::new().post(address).headers(context.to_headers());
            let answer = request.send().await.unwrap();
            assert!(answer.status().is_success(), "{answer:?}");
        }
    }

    /// Ends every transaction that is open in the database of the stock.
    pub(crate) fn kill_the_sessions_of_stock(&self) {
        self.stock.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        );
    }
}

/// Answers over HTTP, as long as the runtime lives. Where.
async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/")
}

async fn book(State(ledger): State<Ledger>, context: lockstep::Context) -> StatusCode {
    let mut branch = ledger.join(&context).await.unwrap();
    sqlx::raw_sql("INSERT INTO entries VALUES (1)").execute(&mut *branch).await.unwrap();
    branch.finish().await.unwrap();
    StatusCode::OK
}

async fn take(State(stock): State<Stock>, context: lockstep::Context) -> StatusCode {
    let mut branch = stock.join(&context).await.unwrap();
    sqlx::raw_sql("INSERT INTO moves VALUES (1)").execute(&mut *branch).await.unwrap();
    branch.finish().await.unwrap();
    StatusCode::OK
}

/// The span that a `traceparent` names.
pub(crate) fn span_context(traceparent: &str) -> SpanContext {
    let fields: Vec<&str> = traceparent.split('-').collect();
    let (trace, span) = (TraceId::from_hex(fields[1]).unwrap(), SpanId::from_hex(fields[2]).unwrap());
    let flags = if fields[3] == "01" { TraceFlags::SAMPLED } else { TraceFlags::default() };
    SpanContext::new(trace, span, flags, true, TraceState::NONE)
}
