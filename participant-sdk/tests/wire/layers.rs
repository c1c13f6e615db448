//! The context over real HTTP and real gRPC, in and out.

use std::convert::Infallible;
use std::net::SocketAddr;

use crate::support::coordinator::{cluster, gtrid};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::get;
use http::StatusCode;
use lockstep::{CONTEXT_HEADER, Context, ContextLayer};
use lockstep_proto::v1;
use lockstep_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use lockstep_proto::v1::coordinator_service_server::{CoordinatorService, CoordinatorServiceServer};
use tonic::transport::{Channel, Server};
use tonic::{Code, Response, Status};
use tower::{Layer as _, ServiceExt as _};

fn valid() -> String {
    format!("01-{}-{}-5000", cluster(), gtrid(1))
}

fn router() -> Router {
    async fn required(context: Context) -> String {
        context.gtrid().to_string()
    }
    async fn optional(context: Option<Context>) -> String {
        context.map_or("none".to_owned(), |context| context.gtrid().to_string())
    }
    async fn unaware() -> &'static str {
        "reached"
    }
    Router::new()
        .route("/required", get(required))
        .route("/optional", get(optional))
        .route("/unaware", get(unaware))
}

async fn call(router: Router, path: &str, contexts: &[&str]) -> (StatusCode, String) {
    let mut request = Request::builder().uri(path);
    for context in contexts {
        request = request.header(CONTEXT_HEADER, *context);
    }
    let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
    (status, String::from_utf8(body.into()).unwrap())
}

#[tokio::test]
async fn an_axum_handler_takes_a_context_with_and_without_the_layer() {
    let valid = valid();
    for router in [router(), router().layer(ContextLayer)] {
        let ok = (StatusCode::OK, gtrid(1).to_string());
        assert_eq!(call(router.clone(), "/required", &[&valid]).await, ok);
        assert_eq!(call(router.clone(), "/optional", &[&valid]).await, ok);
        assert_eq!(call(router.clone(), "/optional", &[]).await, (StatusCode::OK, "none".to_owned()));
        let (status, text) = call(router.clone(), "/required", &[]).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(text.contains("lockstep-context is missing"), "{text}");
        for path in ["/required", "/optional"] {
            let (status, text) = call(router.clone(), path, &["01-nonsense"]).await;
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(text.contains("malformed") && text.contains("01-nonsense"), "{text}");
            let (status, text) = call(router.clone(), path, &[&valid, &valid]).await;
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(text.contains("more than once"), "{text}");
        }
    }
}

#[tokio::test]
async fn the_layer_refuses_a_malformed_header_before_any_handler() {
    assert_eq!(call(router(), "/unaware", &["01-nonsense"]).await, (StatusCode::OK, "reached".to_owned()));
    let layered = router().layer(ContextLayer);
    let (status, text) = call(layered.clone(), "/unaware", &["01-nonsense"]).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("malformed"), "{text}");
    assert_eq!(call(layered, "/unaware", &[]).await, (StatusCode::OK, "reached".to_owned()));
}

#[tokio::test]
async fn what_goes_through_a_service_counts_down() {
    let context: Context = valid().parse().unwrap();
    let echo = tower::service_fn(async |request: Request| {
        let value = request.headers()[CONTEXT_HEADER].to_str().unwrap().to_owned();
        Ok::<_, Infallible>(value)
    });
    let sent = context.layer().layer(echo).oneshot(Request::new(Body::empty())).await.unwrap();
    let sent: Context = sent.parse().unwrap();
    assert_eq!((sent.gtrid(), sent.cluster()), (context.gtrid(), context.cluster()));
    assert!(sent.remaining() <= context.remaining());
}

/// Any gRPC service: answers an inquiry with the context it came in.
struct Echo;

#[tonic::async_trait]
impl CoordinatorService for Echo {
    async fn begin(
        &self,
        _: tonic::Request<v1::BeginRequest>,
    ) -> Result<Response<v1::BeginResponse>, Status> {
        Ok(Response::new(v1::BeginResponse::default()))
    }

    async fn commit(
        &self,
        _: tonic::Request<v1::CommitRequest>,
    ) -> Result<Response<v1::CommitResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn rollback(
        &self,
        _: tonic::Request<v1::RollbackRequest>,
    ) -> Result<Response<v1::RollbackResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn inquire(
        &self,
        request: tonic::Request<v1::InquireRequest>,
    ) -> Result<Response<v1::InquireResponse>, Status> {
        let context = Context::from_request(&request)?;
        Ok(Response::new(v1::InquireResponse { detail: context.gtrid().to_string(), ..Default::default() }))
    }

    async fn list_nodes(
        &self,
        _request: tonic::Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(v1::ListNodesResponse { epoch: 1, nodes: Vec::new() }))
    }
}

async fn serve(layered: bool) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let echo = CoordinatorServiceServer::new(Echo);
    tokio::spawn(async move {
        if layered {
            Server::builder().layer(ContextLayer).add_service(echo).serve_with_incoming(incoming).await
        } else {
            Server::builder().add_service(echo).serve_with_incoming(incoming).await
        }
    });
    address
}

async fn channel(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn a_context_travels_in_grpc_metadata() {
    let context: Context = valid().parse().unwrap();
    for layered in [false, true] {
        let channel = channel(serve(layered).await).await;
        let mut client = CoordinatorServiceClient::new(channel.clone());

        let mut request = tonic::Request::new(v1::InquireRequest::default());
        context.inject_metadata(request.metadata_mut());
        assert_eq!(client.inquire(request).await.unwrap().into_inner().detail, gtrid(1).to_string());

        let mut injecting = CoordinatorServiceClient::new(context.layer().layer(channel));
        let answer = injecting.inquire(v1::InquireRequest::default()).await.unwrap();
        assert_eq!(answer.into_inner().detail, gtrid(1).to_string());

        let status = client.inquire(v1::InquireRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("lockstep-context is missing"), "{status}");
    }
}

#[tokio::test]
async fn the_layer_refuses_malformed_grpc_metadata_before_any_handler() {
    let mut client = CoordinatorServiceClient::new(channel(serve(true).await).await);
    let mut request = tonic::Request::new(v1::BeginRequest::default());
    request.metadata_mut().insert(CONTEXT_HEADER, "01-nonsense".parse().unwrap());
    let status = client.begin(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("malformed"), "{status}");
    assert!(client.begin(v1::BeginRequest::default()).await.is_ok());
}
