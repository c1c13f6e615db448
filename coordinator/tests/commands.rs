//! The operator's commands, as a person runs them, against a coordinator that answers what the test wants: over real
//! sockets, and with answers that a real one gives only when something is wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Ran, lockstep, run};
use lockstep_proto::v1::admin_service_server::{AdminService, AdminServiceServer};
use lockstep_proto::v1::coordinator_service_server::{CoordinatorService, CoordinatorServiceServer};
use lockstep_proto::v1::{self, Outcome, TransactionState};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

const GTRID: &str = "12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f";
const OTHER: &str = "12.0192f0c1a2b37c3d8e4f5a6b7c8d9e10";
/// How both of them begin.
const AMBIGUOUS: &str = "12.0192f0c1";
const CLUSTER: &str = "7c1f09ae";
/// 2026-01-02T03:04:05.678Z.
const NOW_MS: u64 = 1_767_323_045_678;

/// What a coordinator answers, and what it was asked.
#[derive(Default)]
struct Script {
    list: v1::ListTransactionsResponse,
    show: Option<v1::ShowTransactionResponse>,
    /// One after the other; the last one again and again.
    outcomes: Vec<Result<v1::InquireResponse, Status>>,
    /// Never answers.
    silent: bool,
    asked: Vec<String>,
}

#[derive(Clone)]
struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    async fn asked<T>(&self, question: String, answer: impl FnOnce(&mut Script) -> T) -> T {
        let silent = self.0.lock().unwrap().silent;
        if silent {
            std::future::pending::<()>().await;
        }
        let mut script = self.0.lock().unwrap();
        script.asked.push(question);
        answer(&mut script)
    }
}

#[tonic::async_trait]
impl AdminService for Scripted {
    type ExportStream = tokio_stream::Empty<Result<v1::ExportResponse, Status>>;

    async fn act(&self, request: Request<v1::ActRequest>) -> Result<Response<v1::ActResponse>, Status> {
        let request = request.into_inner();
        let question = format!("act {} {} {}", request.action, request.target, request.dry_run);
        Ok(Response::new(self.asked(question, |_| v1::ActResponse::default()).await))
    }

    async fn list_audit(
        &self,
        _request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        Ok(Response::new(v1::ListAuditResponse::default()))
    }

    async fn list_participants(
        &self,
        _request: Request<v1::ListParticipantsRequest>,
    ) -> Result<Response<v1::ListParticipantsResponse>, Status> {
        Ok(Response::new(v1::ListParticipantsResponse { now_ms: NOW_MS, ..Default::default() }))
    }

    async fn inspect(
        &self,
        _request: Request<v1::InspectRequest>,
    ) -> Result<Response<v1::InspectResponse>, Status> {
        Ok(Response::new(v1::InspectResponse { now_ms: NOW_MS, ..Default::default() }))
    }

    async fn export(
        &self,
        _request: Request<v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn list_transactions(
        &self,
        request: Request<v1::ListTransactionsRequest>,
    ) -> Result<Response<v1::ListTransactionsResponse>, Status> {
        let request = request.into_inner();
        let question = format!("list {} {}", request.limit, request.include_ended);
        Ok(Response::new(self.asked(question, |script| script.list.clone()).await))
    }

    async fn show_transaction(
        &self,
        request: Request<v1::ShowTransactionRequest>,
    ) -> Result<Response<v1::ShowTransactionResponse>, Status> {
        let gtrid = request.into_inner().gtrid;
        if gtrid == AMBIGUOUS {
            let message = format!("\"{gtrid}\" is the beginning of several transactions: {GTRID}, {OTHER}");
            return Err(Status::invalid_argument(message));
        }
        let answer = self.asked(format!("show {gtrid}"), |script| script.show.clone()).await;
        let none = || Status::not_found(format!("no transaction begins with {gtrid}"));
        answer.map(Response::new).ok_or_else(none)
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let status = v1::StatusResponse {
            version: "0.1.0".into(),
            cluster: CLUSTER.into(),
            epoch: 12,
            uptime_ms: 1000,
            now_ms: NOW_MS,
            ..Default::default()
        };
        Ok(Response::new(self.asked("status".into(), |_| status).await))
    }
}

#[tonic::async_trait]
impl CoordinatorService for Scripted {
    async fn begin(
        &self,
        _request: Request<v1::BeginRequest>,
    ) -> Result<Response<v1::BeginResponse>, Status> {
        Err(Status::unimplemented("an operator's command begins nothing"))
    }

    async fn commit(
        &self,
        _request: Request<v1::CommitRequest>,
    ) -> Result<Response<v1::CommitResponse>, Status> {
        Err(Status::unimplemented("an operator's command commits nothing"))
    }

    async fn rollback(
        &self,
        _request: Request<v1::RollbackRequest>,
    ) -> Result<Response<v1::RollbackResponse>, Status> {
        Err(Status::unimplemented("an operator's command rolls nothing back"))
    }

    async fn inquire(
        &self,
        request: Request<v1::InquireRequest>,
    ) -> Result<Response<v1::InquireResponse>, Status> {
        let request = request.into_inner();
        let question = format!("inquire {}:{}", request.cluster, request.gtrid);
        let next = |script: &mut Script| match script.outcomes.len() {
            0 => Err(Status::unimplemented("this test waits for nothing")),
            1 => script.outcomes[0].clone(),
            _ => script.outcomes.remove(0),
        };
        self.asked(question, next).await.map(Response::new)
    }

    async fn list_nodes(
        &self,
        _request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(v1::ListNodesResponse { epoch: 1, nodes: Vec::new() }))
    }
}

/// A coordinator on a loopback port.
struct Coordinator {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    dir: TempDir,
}

impl Coordinator {
    fn with(script: Script) -> Self {
        Self::at(nobody().0, script)
    }

    fn at(socket: TcpSocket, script: Script) -> Self {
        let listener = socket.listen(128).unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(script));
        let scripted = Scripted(Arc::clone(&script));
        let serving = tonic::transport::Server::builder()
            .add_service(AdminServiceServer::new(scripted.clone()))
            .add_service(CoordinatorServiceServer::new(scripted))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        Self { address, script, dir: TempDir::new().unwrap() }
    }

    async fn ask(&self, args: &[&str]) -> Ran {
        ask(self.address, self.dir.path(), args).await
    }

    fn asked(&self) -> Vec<String> {
        self.script.lock().unwrap().asked.clone()
    }
}

async fn ask(address: SocketAddr, dir: &std::path::Path, args: &[&str]) -> Ran {
    let mut command = lockstep(dir, args);
    command.env("LOCKSTEP_SERVER", format!("http://{address}"));
    run(command).await
}

fn transaction(gtrid: &str) -> v1::TransactionInfo {
    v1::TransactionInfo {
        gtrid: gtrid.into(),
        name: "transfer".into(),
        state: TransactionState::Active.into(),
        outcome: Outcome::Undecided.into(),
        began_ms: NOW_MS - 1000,
        can_change: true,
        ..Default::default()
    }
}

fn inquired(outcome: Outcome) -> Result<v1::InquireResponse, Status> {
    Ok(v1::InquireResponse {
        outcome: outcome.into(),
        detail: String::new(),
        branches: 2,
        branches_pending: 0,
    })
}

fn waiting(outcomes: Vec<Result<v1::InquireResponse, Status>>) -> Script {
    Script { outcomes, ..Script::default() }
}

/// A port where nobody listens, and that nobody else gets as long as this is held.
fn nobody() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn where_nobody_listens_each_command_says_so_and_asks_whether_a_coordinator_runs() {
    let dir = TempDir::new().unwrap();
    let (_held, address) = nobody();
    for args in [&["status"][..], &["tx", "ls"], &["tx", "show", GTRID]] {
        let ran = ask(address, dir.path(), args).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
        assert_eq!(
            ran.stderr,
            format!(
                "error[LS0301]: nothing answers at http://{address}\n  is `lockstep serve` running? --server or \
                 LOCKSTEP_SERVER names another address\n  docs/errors/LS0301.md\n"
            )
        );
    }
    let ran = ask(address, dir.path(), &["tx", "wait", GTRID, "--timeout=1s"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (7, ""), "{ran:?}");
    assert!(ran.stderr.starts_with(&format!("nothing answers at http://{address}; asking again\n")));
    assert!(ran.stderr.contains(&format!("error[LS0302]: no answer from http://{address} in 1s")), "{ran:?}");
}

#[tokio::test]
async fn a_coordinator_that_does_not_answer_is_given_up_in_time() {
    let silent = Script { silent: true, ..Script::default() };
    let coordinator = Coordinator::with(silent);
    let ran = coordinator.ask(&["status", "--timeout=200ms"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (7, ""), "{ran:?}");
    assert!(ran.stderr.contains("in time"), "{ran:?}");
    let ran = coordinator.ask(&["tx", "wait", GTRID, "--timeout=200ms"]).await;
    assert_eq!(ran.code, 7, "{ran:?}");
}

#[tokio::test]
async fn something_that_is_no_coordinator_is_not_taken_for_nobody() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let dir = TempDir::new().unwrap();
    let ran = ask(address, dir.path(), &["status", "--timeout=20s"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("cannot be asked: ") && ran.stderr.contains("a coordinator?"), "{ran:?}");
}

#[tokio::test]
async fn a_server_that_is_no_url_is_wrong_usage() {
    let dir = TempDir::new().unwrap();
    for (url, expected) in [
        ("127.0.0.1:7420", "http://"),
        ("https://localhost:7420", "no TLS"),
        ("http://localhost:7420/path", "nothing else"),
        ("not a url", "no URL"),
    ] {
        let ran = run(lockstep(dir.path(), &["status", "--server", url])).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:?}");
        assert!(ran.stderr.contains(expected), "{ran:?}");
    }
}

#[tokio::test]
async fn status_is_data_on_stdout_and_nothing_on_stderr() {
    let coordinator = Coordinator::with(Script::default());
    let ran = coordinator.ask(&["status"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    assert!(ran.stdout.contains("cluster 7c1f09ae") && !ran.stdout.contains('\u{1b}'), "{ran:?}");
    let ran = coordinator.ask(&["status", "--json"]).await;
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["epoch"], 12);
}

#[tokio::test]
async fn a_flag_for_the_server_goes_over_the_variable() {
    let coordinator = Coordinator::with(Script::default());
    let mut command = lockstep(coordinator.dir.path(), &["status"]);
    let (_held, address) = nobody();
    command.env("LOCKSTEP_SERVER", format!("http://{address}"));
    command.args(["--server", &format!("http://{}", coordinator.address)]);
    assert_eq!(run(command).await.code, 0);
}

#[tokio::test]
async fn ls_asks_for_what_it_is_told_to_and_says_when_there_is_more() {
    let script = Script {
        list: v1::ListTransactionsResponse {
            transactions: vec![transaction(GTRID), transaction(OTHER)],
            truncated: true,
            now_ms: NOW_MS,
        },
        ..Script::default()
    };
    let coordinator = Coordinator::with(script);
    let ran = coordinator.ask(&["tx", "ls"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stderr, "there are more than these 2; --limit takes up to 1000\n");
    assert_eq!(ran.stdout.lines().count(), 3, "{ran:?}");

    let ran = coordinator.ask(&["tx", "ls", "--all", "--limit=7", "--json"]).await;
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["transactions"][0]["gtrid"], GTRID);
    assert_eq!(json["truncated"], true);
    assert_eq!(ran.stderr, "", "JSON says it itself");
    assert_eq!(coordinator.asked(), ["list 100 false", "list 7 true"]);
    assert_eq!(coordinator.ask(&["tx", "ls", "--limit=0"]).await.code, 2);
    assert_eq!(coordinator.ask(&["tx", "ls", "--limit=1001"]).await.code, 2);
}

#[tokio::test]
async fn an_empty_list_is_no_data_and_some_talk() {
    let list = v1::ListTransactionsResponse { now_ms: NOW_MS, ..Default::default() };
    let coordinator = Coordinator::with(Script { list, ..Script::default() });
    let ran = coordinator.ask(&["tx", "ls"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{ran:?}");
    assert_eq!(ran.stderr, "no unfinished transactions; --all lists ended ones too\n");
    let ran = coordinator.ask(&["tx", "ls", "--all"]).await;
    assert_eq!(ran.stderr, "no transactions\n");
}

#[tokio::test]
async fn a_reader_that_had_enough_is_no_error() {
    let transactions = (0..1000).map(|_| transaction(GTRID)).collect();
    let list = v1::ListTransactionsResponse { transactions, now_ms: NOW_MS, truncated: false };
    let coordinator = Coordinator::with(Script { list, ..Script::default() });
    let mut command = lockstep(coordinator.dir.path(), &["tx", "ls"]);
    command.env("LOCKSTEP_SERVER", format!("http://{}", coordinator.address));
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let ran = Ran::from(child.wait_with_output().await.unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
}

#[tokio::test]
async fn show_finds_by_prefix_and_says_when_nothing_begins_so() {
    let one = v1::ShowTransactionResponse {
        transaction: Some(transaction(GTRID)),
        now_ms: NOW_MS,
        ..Default::default()
    };
    let coordinator = Coordinator::with(Script { show: Some(one), ..Script::default() });
    let ran = coordinator.ask(&["tx", "show", "0192f0c1"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    assert!(ran.stdout.contains(GTRID), "{ran:?}");
    let ran = coordinator.ask(&["tx", "show", "0192f0c1", "--json"]).await;
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["transaction"]["gtrid"], GTRID);

    coordinator.script.lock().unwrap().show = None;
    let ran = coordinator.ask(&["tx", "show", "ffff"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{ran:?}");
    assert!(ran.stderr.contains("no transaction begins with ffff"), "{ran:?}");
    assert_eq!(coordinator.asked().last().map(String::as_str), Some("show ffff"));
}

#[tokio::test]
async fn an_answer_of_a_newer_coordinator_is_not_guessed_at() {
    let mut newer = transaction(GTRID);
    newer.state = 99;
    let show = v1::ShowTransactionResponse { transaction: Some(newer), now_ms: NOW_MS, ..Default::default() };
    let coordinator = Coordinator::with(Script { show: Some(show), ..Script::default() });
    let ran = coordinator.ask(&["tx", "show", GTRID]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(ran.stderr.contains("the field state has the value 99"), "{ran:?}");
}

#[tokio::test]
async fn wait_ends_with_the_outcome_as_its_exit_code() {
    let cases = [
        (Outcome::Committed, "60s", 0, "committed\n"),
        (Outcome::NothingToCommit, "60s", 0, "nothing-to-commit\n"),
        (Outcome::RolledBack, "60s", 5, "rolled-back\n"),
        (Outcome::Heuristic, "60s", 9, "heuristic\n"),
        // These two are asked for again until the time is over.
        (Outcome::Undecided, "2s", 7, "undecided\n"),
        (Outcome::Unknown, "2s", 8, "unknown\n"),
    ];
    for (outcome, timeout, code, text) in cases {
        let coordinator = Coordinator::with(waiting(vec![inquired(outcome)]));
        let ran = coordinator.ask(&["tx", "wait", GTRID, "--timeout", timeout]).await;
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (code, text, ""), "{outcome:?}");
    }
}

#[tokio::test]
async fn wait_asks_until_there_is_an_outcome() {
    let outcomes = vec![
        inquired(Outcome::Undecided),
        Err(Status::new(Code::Unavailable, "it is draining")),
        inquired(Outcome::Unknown),
        inquired(Outcome::RolledBack),
    ];
    let coordinator = Coordinator::with(waiting(outcomes));
    let ran = coordinator.ask(&["tx", "wait", GTRID, "--json"]).await;
    assert_eq!(ran.code, 5, "{ran:?}");
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["outcome"], "rolled-back");
    assert!(ran.stderr.contains("it is draining; asking again"), "{ran:?}");
    let inquiry = format!("inquire :{GTRID}");
    assert_eq!(coordinator.asked(), vec![inquiry; 4]);
}

#[tokio::test]
async fn wait_finds_the_transaction_by_prefix_and_asks_for_the_cluster_that_it_is_told() {
    let show = v1::ShowTransactionResponse {
        transaction: Some(transaction(GTRID)),
        now_ms: NOW_MS,
        ..Default::default()
    };
    let script =
        Script { show: Some(show), outcomes: vec![inquired(Outcome::Committed)], ..Script::default() };
    let coordinator = Coordinator::with(script);
    let ran = coordinator.ask(&["tx", "wait", "12.0192f0", "--cluster=00c0ffee"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(coordinator.asked(), ["show 12.0192f0", &format!("inquire 00c0ffee:{GTRID}")]);
    coordinator.script.lock().unwrap().show = None;
    assert_eq!(coordinator.ask(&["tx", "wait", "12.0192f0"]).await.code, 3);
}

#[tokio::test]
async fn a_refusal_ends_the_wait_at_once() {
    let cases = [
        (Code::FailedPrecondition, 4),
        (Code::PermissionDenied, 4),
        (Code::InvalidArgument, 2),
        (Code::NotFound, 3),
        (Code::Internal, 1),
    ];
    for (code, exit) in cases {
        let refused = Err(Status::new(code, "no, since \u{1b}[31mred"));
        let coordinator = Coordinator::with(waiting(vec![refused]));
        let ran = coordinator.ask(&["tx", "wait", GTRID, "--timeout=60s"]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (exit, ""), "{ran:?}");
        let address = coordinator.address;
        assert_eq!(ran.stderr, format!("error: http://{address} answers: no, since \\u{{1b}}[31mred\n"));
    }
}

#[tokio::test]
async fn wait_outlives_a_coordinator_that_is_starting_again() {
    let (socket, address) = nobody();
    let dir = TempDir::new().unwrap();
    let mut command = lockstep(dir.path(), &["tx", "wait", GTRID, "--timeout=60s"]);
    command.env("LOCKSTEP_SERVER", format!("http://{address}"));
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It has met nobody before there is somebody.
    let mut stderr = tokio::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    let told = tokio::io::AsyncBufReadExt::read_line(&mut stderr, &mut line);
    tokio::time::timeout(Duration::from_secs(60), told).await.unwrap().unwrap();
    assert!(line.ends_with("; asking again\n"), "{line}");
    let _coordinator = Coordinator::at(socket, waiting(vec![inquired(Outcome::Committed)]));
    let ran = Ran::from(child.wait_with_output().await.unwrap());
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "committed\n"), "{ran:?}");
}

#[tokio::test]
async fn an_id_that_cannot_be_one_is_asked_for_all_the_same_and_a_cluster_is_not() {
    let coordinator = Coordinator::with(Script::default());
    // A prefix has no form of its own: whether something begins so is for the coordinator to say.
    assert_eq!(coordinator.ask(&["tx", "show", "zzz"]).await.code, 3);
    let ran = coordinator.ask(&["tx", "wait", GTRID, "--cluster=zzz"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("8 lower-case hex digits"), "{ran:?}");
}

#[tokio::test]
async fn a_prefix_of_several_transactions_is_wrong_usage_with_what_it_might_have_been() {
    let coordinator = Coordinator::with(Script::default());
    for command in ["show", "wait"] {
        let ran = coordinator.ask(&["tx", command, AMBIGUOUS]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:?}");
        assert!(ran.stderr.contains(GTRID) && ran.stderr.contains(OTHER), "{ran:?}");
    }
}
