//! A coordinator that says what a test has it say: a real gRPC server on a loopback socket, whose every call and message goes
//! through the test.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use lockstep_proto::v1::coordinator_message::Kind as FromKind;
use lockstep_proto::v1::coordinator_service_server::{CoordinatorService, CoordinatorServiceServer};
use lockstep_proto::v1::participant_message::Kind;
use lockstep_proto::v1::participant_service_server::{ParticipantService, ParticipantServiceServer};
use lockstep_proto::{ClusterId, Epoch, Gtrid, Incarnation, LogPosition, v1};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::soon;

/// The cluster of all tests.
pub(crate) fn cluster() -> ClusterId {
    ClusterId::from_random(0x7c1f_09ae)
}

/// A transaction of the tests' coordinator.
pub(crate) fn gtrid(number: u8) -> Gtrid {
    Gtrid::new(Epoch::new(3).unwrap(), u64::from(number), [number; 10])
}

pub(crate) fn position() -> Option<v1::LogPosition> {
    let (epoch, incarnation) = (Epoch::new(3).unwrap(), Incarnation::from_bytes([3; 16]));
    Some((&LogPosition { epoch, incarnation, sequence: 17 }).into())
}

/// A call of a client, to be answered by the test.
#[derive(Debug)]
pub(crate) enum Call {
    Begin(v1::BeginRequest, oneshot::Sender<Result<v1::BeginResponse, Status>>),
    Commit(v1::CommitRequest, oneshot::Sender<Result<v1::CommitResponse, Status>>),
    Rollback(v1::RollbackRequest, oneshot::Sender<Result<v1::RollbackResponse, Status>>),
    Inquire(v1::InquireRequest, oneshot::Sender<Result<v1::InquireResponse, Status>>),
}

/// A participant's stream, as the test sees it.
pub(crate) struct Session {
    pub(crate) hello: v1::Hello,
    incoming: Streaming<v1::ParticipantFrame>,
    outgoing: mpsc::Sender<Result<v1::CoordinatorFrame, Status>>,
    waiting: VecDeque<Kind>,
}

/// The server. It has a runtime of its own, so that it can be ended as a crash ends it: at once, with every connection.
pub(crate) struct Coordinator {
    pub(crate) address: SocketAddr,
    calls: Mutex<mpsc::Receiver<Call>>,
    sessions: Mutex<mpsc::Receiver<Session>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Coordinator {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    /// At an address that an earlier one had.
    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let (call_sender, calls) = mpsc::channel(64);
        let (session_sender, sessions) = mpsc::channel(64);
        let service = Service { calls: call_sender, sessions: session_sender };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (listening, listens) = oneshot::channel();
        runtime.spawn(async move {
            let listener = listen(address).await;
            listening.send(listener.local_addr().unwrap()).unwrap();
            let server = tonic::transport::Server::builder()
                .add_service(CoordinatorServiceServer::new(service.clone()))
                .add_service(ParticipantServiceServer::new(service));
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        let address = soon("listening", listens).await.unwrap();
        Self { address, calls: Mutex::new(calls), sessions: Mutex::new(sessions), runtime: Some(runtime) }
    }

    /// Ends it as a crash would, and gives its address back.
    pub(crate) fn crash(self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) async fn call(&self) -> Call {
        soon("a call", async { self.calls.lock().await.recv().await.unwrap() }).await
    }

    /// Answers a begin with this transaction, which lasts so long.
    pub(crate) async fn begin(&self, gtrid: Gtrid, timeout_ms: u64) -> v1::BeginRequest {
        let Call::Begin(request, reply) = self.call().await else { panic!("another call") };
        let response = v1::BeginResponse {
            gtrid: gtrid.to_string(),
            cluster: cluster().to_string(),
            timeout_ms,
            traceparent: String::new(),
        };
        reply.send(Ok(response)).unwrap();
        request
    }

    pub(crate) async fn commit(&self, outcome: v1::Outcome, detail: &str) -> v1::CommitRequest {
        let Call::Commit(request, reply) = self.call().await else { panic!("another call") };
        reply.send(Ok(committed(outcome, detail))).unwrap();
        request
    }

    pub(crate) async fn rollback(&self) -> v1::RollbackRequest {
        let Call::Rollback(request, reply) = self.call().await else { panic!("another call") };
        let outcome = v1::Outcome::RolledBack.into();
        reply.send(Ok(v1::RollbackResponse { outcome, detail: String::new() })).unwrap();
        request
    }

    pub(crate) async fn inquire(&self, outcome: v1::Outcome) -> v1::InquireRequest {
        let Call::Inquire(request, reply) = self.call().await else { panic!("another call") };
        let response = v1::InquireResponse { outcome: outcome.into(), ..v1::InquireResponse::default() };
        reply.send(Ok(response)).unwrap();
        request
    }

    /// The next participant that says hello, not welcomed yet.
    pub(crate) async fn hello(&self) -> Session {
        soon("a hello", async { self.sessions.lock().await.recv().await.unwrap() }).await
    }

    /// The next participant, welcomed, its first report answered.
    pub(crate) async fn attached(&self) -> Session {
        let mut session = self.hello().await;
        session.welcome().await;
        session.report().await;
        session
    }
}

pub(crate) fn committed(outcome: v1::Outcome, detail: &str) -> v1::CommitResponse {
    v1::CommitResponse {
        outcome: outcome.into(),
        detail: detail.to_owned(),
        branches: 2,
        branches_pending: 1,
    }
}

/// An address that a crashed one had may be free only a moment later.
async fn listen(address: SocketAddr) -> TcpListener {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        match socket.bind(address).and_then(|()| socket.listen(64)) {
            Ok(listener) => return listener,
            Err(_in_use) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

pub(crate) fn welcome() -> v1::Welcome {
    v1::Welcome {
        protocol_version: 1,
        cluster: cluster().to_string(),
        position: position(),
        retention_ms: 3_600_000,
        sealed_below: 3,
        newest_epoch: 3,
        report_interval_ms: 60_000,
        settled: Vec::new(),
    }
}

impl Session {
    pub(crate) async fn welcome(&mut self) {
        self.send(FromKind::Welcome(welcome())).await;
    }

    pub(crate) async fn send(&mut self, kind: FromKind) {
        self.send_all(vec![kind]).await;
    }

    pub(crate) async fn send_all(&mut self, kinds: Vec<FromKind>) {
        let messages = kinds
            .into_iter()
            .map(|kind| v1::CoordinatorMessage { kind: Some(kind), traceparent: String::new() })
            .collect();
        self.outgoing.send(Ok(v1::CoordinatorFrame { messages })).await.unwrap();
    }

    pub(crate) async fn fail(&mut self, status: Status) {
        self.outgoing.send(Err(status)).await.unwrap();
    }

    /// The next message, or `None` once the participant has ended its half of the stream.
    pub(crate) async fn next(&mut self) -> Option<Kind> {
        while self.waiting.is_empty() {
            let frame = self.frame().await?;
            self.waiting.extend(frame);
        }
        self.waiting.pop_front()
    }

    /// The messages of the next frame, or `None` once the participant has ended its half of the stream.
    pub(crate) async fn frame(&mut self) -> Option<Vec<Kind>> {
        let frame = soon("a frame", self.incoming.message()).await.ok()??;
        Some(frame.messages.into_iter().map(|message| message.kind.unwrap()).collect())
    }

    pub(crate) async fn enlist(&mut self) -> v1::Xid {
        match self.next().await {
            Some(Kind::Enlist(v1::Enlist { xid: Some(xid) })) => xid,
            other => panic!("{other:?} is no enlist"),
        }
    }

    /// Takes an enlist, and accepts it.
    pub(crate) async fn enlisted(&mut self) -> v1::Xid {
        let xid = self.enlist().await;
        self.accept(&xid).await;
        xid
    }

    pub(crate) async fn accept(&mut self, xid: &v1::Xid) {
        self.send(FromKind::Enlisted(v1::Enlisted { xid: Some(xid.clone()), remaining_ms: 30_000 })).await;
    }

    pub(crate) async fn prepare(&mut self, xid: &v1::Xid) {
        let xid = Some(xid.clone());
        self.send(FromKind::Prepare(v1::Prepare { xid, position: position(), remaining_ms: 30_000 })).await;
    }

    pub(crate) async fn decide(&mut self, xid: &v1::Xid, decision: v1::Decision) {
        let (xid, decision) = (Some(xid.clone()), decision.into());
        self.send(FromKind::Decide(v1::Decide { xid, decision, position: position() })).await;
    }

    pub(crate) async fn commit_one_phase(&mut self, xid: &v1::Xid) {
        let xid = Some(xid.clone());
        let message = v1::CommitOnePhase { xid, position: position(), remaining_ms: 30_000 };
        self.send(FromKind::CommitOnePhase(message)).await;
    }

    /// The next message, a vote on this branch.
    pub(crate) async fn vote(&mut self, xid: &v1::Xid) -> (v1::VoteKind, String) {
        match self.next().await {
            Some(Kind::Vote(vote)) if vote.xid.as_ref() == Some(xid) => (vote.vote(), vote.detail),
            other => panic!("{other:?} is no vote on {xid:?}"),
        }
    }

    /// The next message, an acknowledgement of this branch.
    pub(crate) async fn acknowledgement(&mut self, xid: &v1::Xid) -> (v1::Applied, String) {
        match self.next().await {
            Some(Kind::Acknowledge(ack)) if ack.xid.as_ref() == Some(xid) => (ack.applied(), ack.detail),
            other => panic!("{other:?} is no acknowledgement of {xid:?}"),
        }
    }

    pub(crate) async fn report(&mut self) -> v1::Report {
        match self.next().await {
            Some(Kind::Report(report)) => report,
            other => panic!("{other:?} is no report"),
        }
    }
}

#[derive(Clone)]
struct Service {
    calls: mpsc::Sender<Call>,
    sessions: mpsc::Sender<Session>,
}

impl Service {
    async fn ask<Q, A>(
        &self,
        request: Request<Q>,
        call: impl FnOnce(Q, oneshot::Sender<Result<A, Status>>) -> Call,
    ) -> Result<Response<A>, Status> {
        let (reply, answer) = oneshot::channel();
        let gone = || Status::unavailable("the test has gone on");
        self.calls.send(call(request.into_inner(), reply)).await.map_err(|_gone| gone())?;
        answer.await.map_err(|_dropped| gone())?.map(Response::new)
    }
}

#[tonic::async_trait]
impl CoordinatorService for Service {
    async fn begin(&self, request: Request<v1::BeginRequest>) -> Result<Response<v1::BeginResponse>, Status> {
        self.ask(request, Call::Begin).await
    }

    async fn commit(
        &self,
        request: Request<v1::CommitRequest>,
    ) -> Result<Response<v1::CommitResponse>, Status> {
        self.ask(request, Call::Commit).await
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackRequest>,
    ) -> Result<Response<v1::RollbackResponse>, Status> {
        self.ask(request, Call::Rollback).await
    }

    async fn inquire(
        &self,
        request: Request<v1::InquireRequest>,
    ) -> Result<Response<v1::InquireResponse>, Status> {
        self.ask(request, Call::Inquire).await
    }

    async fn list_nodes(
        &self,
        _request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(v1::ListNodesResponse { epoch: 1, nodes: Vec::new() }))
    }
}

#[tonic::async_trait]
impl ParticipantService for Service {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::CoordinatorFrame, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::ParticipantFrame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.ok_or_else(|| Status::cancelled("no hello"))?;
        let Ok([v1::ParticipantMessage { kind: Some(Kind::Hello(hello)) }]) =
            <[v1::ParticipantMessage; 1]>::try_from(first.messages)
        else {
            return Err(Status::invalid_argument("the first frame is not a hello alone"));
        };
        if let Some(status) = refusal(&hello.resource_manager) {
            return Err(status);
        }
        let (outgoing, frames) = mpsc::channel(64);
        let session = Session { hello, incoming, outgoing, waiting: VecDeque::new() };
        self.sessions.send(session).await.map_err(|_gone| Status::unavailable("the test has gone on"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }
}

/// Names that are refused before they are welcomed.
fn refusal(name: &str) -> Option<Status> {
    let info = ErrorDetails::with_error_info("IDENTITY_MISMATCH", "lockstep", HashMap::new());
    let status =
        Status::with_error_details(Code::FailedPrecondition, "the name belongs to another database", info);
    (name == "refused").then_some(status)
}
