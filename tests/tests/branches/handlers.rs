//! Handlers that do not end as they should, in real axum and tonic services: their work is rolled back at once, and its locks go.

use std::str::FromStr;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use example_tonic::v1::stock_client::StockClient;
use example_tonic::v1::stock_server::{Stock, StockServer};
use example_tonic::v1::{ReserveRequest, ReserveResponse};
use lockstep::{Advice, CommitError, Participant, Postgres};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use super::*;

/// How long a service gives its handlers.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(3);

/// What a handler does when it has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It ends well.
    Finish,
    /// It never ends: its caller goes away, or its server has enough.
    Hang,
    Panic,
    /// It goes on to work in the database for longer than it has.
    Sleep,
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Finish, Self::Hang, Self::Panic, Self::Sleep];
        all.into_iter().find(|way| format!("{way:?}") == text).ok_or_else(|| text.to_owned())
    }
}

/// A service with one row, to which each call adds 1.
#[derive(Debug, Clone)]
struct Service {
    participant: Participant<Postgres>,
    pool: PgPool,
}

impl Service {
    async fn attached(stage: &Stage) -> Self {
        let pool = PgPool::connect(&fresh_database().url()).await.unwrap();
        sqlx::raw_sql("CREATE TABLE row (v INT); INSERT INTO row VALUES (0)").execute(&pool).await.unwrap();
        Self { participant: attach(stage, "row-db", Postgres::new(pool.clone())).await, pool }
    }

    async fn work(&self, context: &Context, way: Way) -> Result<(), String> {
        let mut branch = self.participant.join(context).await.map_err(|error| error.to_string())?;
        let sql = sqlx::query("UPDATE row SET v = v + 1");
        sql.execute(&mut *branch).await.map_err(|error| error.to_string())?;
        match way {
            Way::Finish => {}
            Way::Hang => std::future::pending().await,
            Way::Panic => panic!("on purpose"),
            Way::Sleep => {
                let sleep = sqlx::query("SELECT pg_sleep(300)");
                sleep.execute(&mut *branch).await.map_err(|error| error.to_string())?;
            }
        }
        branch.finish().await.map_err(|error| error.to_string())
    }

    async fn axum(&self) -> String {
        let router = Router::new().route("/{way}", post(handle)).with_state(self.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    async fn tonic(&self) -> StockClient<Channel> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder().timeout(HANDLER_TIMEOUT).add_service(StockServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        StockClient::new(Endpoint::from_shared(url).unwrap().connect().await.unwrap())
    }

    /// After a call that failed: the branch has voted rollback by itself, nobody is to commit it, and its row is free.
    async fn is_rolled_back(&self, stage: &Stage, tx: Transaction, what: &str) {
        let gtrid = tx.gtrid();
        let told = async || stage.branch_states(gtrid).await == ["rolled-back"];
        until(&format!("the vote of {what}"), told).await;
        let error = tx.commit().await.unwrap_err();
        assert!(
            matches!(error, CommitError::RolledBack { .. }) && error.advice() == Advice::Retry,
            "{error:?}"
        );
        assert!(error.to_string().contains("its handler ended without finish()"), "{what}: {error}");
        let v: i32 = sqlx::query_scalar("SELECT v FROM row").fetch_one(&self.pool).await.unwrap();
        assert_eq!(v, 0, "{what}");
        let lock = sqlx::query("SELECT v FROM row FOR UPDATE").execute(&self.pool);
        tokio::time::timeout(PATIENCE, lock)
            .await
            .unwrap_or_else(|_| panic!("{what} keeps its lock"))
            .unwrap();
    }
}

/// As services have it: what takes too long is answered and dropped.
async fn handle(
    State(service): State<Service>,
    Path(way): Path<String>,
    context: Context,
) -> Result<(), (StatusCode, String)> {
    let work = service.work(&context, way.parse().unwrap());
    match tokio::time::timeout(HANDLER_TIMEOUT, work).await {
        Ok(result) => result.map_err(|why| (StatusCode::CONFLICT, why)),
        Err(_elapsed) => Err((StatusCode::GATEWAY_TIMEOUT, "it took too long".to_owned())),
    }
}

#[tonic::async_trait]
impl Stock for Service {
    async fn reserve(&self, request: Request<ReserveRequest>) -> Result<Response<ReserveResponse>, Status> {
        let context = Context::from_request(&request)?;
        let way = request.get_ref().item.parse().unwrap();
        self.work(&context, way).await.map_err(Status::aborted)?;
        Ok(Response::new(ReserveResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_axum_handler_that_does_not_end_well_rolls_back() {
    let stage = Stage::set().await;
    let service = Service::attached(&stage).await;
    let url = service.axum().await;
    let call = async |way: Way, context: Context| {
        let call = stage.http.post(format!("{url}/{way:?}")).headers(context.to_headers());
        call.send().await.map(|answer| answer.status())
    };
    // One by one, and marked as the last call or not: only finish() votes.
    for marked in [false, true] {
        for way in [Way::Hang, Way::Sleep, Way::Panic] {
            let tx = stage.begin(TIMEOUT).await;
            let context = if marked { tx.vote() } else { tx.context() };
            match call(way, context).await {
                Ok(status) => assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{way:?}"),
                Err(error) => assert_eq!(way, Way::Panic, "{error}"),
            }
            service.is_rolled_back(&stage, tx, &format!("{way:?}")).await;
        }
    }
    // The caller goes away before the service has had enough.
    let tx = stage.begin(TIMEOUT).await;
    let gone = tokio::time::timeout(HANDLER_TIMEOUT / 3, call(Way::Hang, tx.context())).await;
    assert!(gone.is_err());
    service.is_rolled_back(&stage, tx, "a caller that is gone").await;

    let tx = stage.begin(TIMEOUT).await;
    assert_eq!(call(Way::Finish, tx.context()).await.unwrap(), StatusCode::OK);
    assert_eq!(tx.commit().await.unwrap().branches, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tonic_handler_that_does_not_end_well_rolls_back() {
    let stage = Stage::set().await;
    let service = Service::attached(&stage).await;
    let stock = service.tonic().await;
    let call = async |way: Way, context: Context| {
        let mut request = Request::new(ReserveRequest { item: format!("{way:?}") });
        context.inject_metadata(request.metadata_mut());
        stock.clone().reserve(request).await
    };
    for way in [Way::Hang, Way::Sleep, Way::Panic] {
        let tx = stage.begin(TIMEOUT).await;
        call(way, tx.context()).await.unwrap_err();
        service.is_rolled_back(&stage, tx, &format!("{way:?}")).await;
    }
    let tx = stage.begin(TIMEOUT).await;
    let gone = tokio::time::timeout(HANDLER_TIMEOUT / 3, call(Way::Hang, tx.context())).await;
    assert!(gone.is_err());
    service.is_rolled_back(&stage, tx, "a caller that is gone").await;

    let tx = stage.begin(TIMEOUT).await;
    call(Way::Finish, tx.context()).await.unwrap();
    assert_eq!(tx.commit().await.unwrap().branches, 1);
}
