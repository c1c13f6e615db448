//! What an operator does, as a person does it: the real program against a real coordinator, with a participant that the test plays
//! over the wire, so that a branch can be left in any state.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

#[path = "../common/mod.rs"]
mod common;
mod offline;

use std::process::Stdio;
use std::time::Duration;

use common::{Ran, lockstep, run};
use lockstep_proto::v1::coordinator_message::Kind;
use lockstep_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use lockstep_proto::v1::participant_message::Kind as ToKind;
use lockstep_proto::v1::participant_service_client::ParticipantServiceClient;
use lockstep_proto::{limits, v1};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Nothing here takes that long; what would hang fails instead.
const PATIENCE: Duration = Duration::from_secs(120);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it does not take that long")
}

/// So that the pipe stays open and empty.
async fn read_on(mut lines: Lines<BufReader<ChildStdout>>) {
    while let Ok(Some(_)) = lines.next_line().await {}
}

struct Coordinator {
    child: Child,
    url: String,
    dir: TempDir,
}

impl Coordinator {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let (child, url) = Self::launch(&dir).await;
        Self { child, url, dir }
    }

    async fn launch(dir: &TempDir) -> (Child, String) {
        let flags = ["serve", "--listen=127.0.0.1:0", "--drain-timeout=0s", "--report-interval=100ms"];
        let mut command = lockstep(dir.path(), &flags);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut banner = BufReader::new(child.stdout.take().unwrap()).lines();
        loop {
            let line = soon(banner.next_line()).await.unwrap().expect("it goes on until it serves");
            if let Some(url) = line.strip_prefix("lockstep listening on ") {
                let url = url.to_owned();
                tokio::spawn(read_on(banner));
                return (child, url);
            }
        }
    }

    /// SIGKILL, and a new one on the same log.
    async fn restart(&mut self) {
        self.child.kill().await.unwrap();
        (self.child, self.url) = Self::launch(&self.dir).await;
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(self.url.clone()).unwrap().connect().await.unwrap()
    }

    async fn client(&self) -> CoordinatorServiceClient<Channel> {
        CoordinatorServiceClient::new(self.channel().await)
    }

    async fn begin(&self) -> String {
        let request =
            v1::BeginRequest { name: "transfer".into(), timeout_ms: 3_600_000, ..Default::default() };
        self.client().await.begin(request).await.unwrap().into_inner().gtrid
    }

    async fn ask(&self, args: &[&str]) -> Ran {
        let mut command = lockstep(self.dir.path(), args);
        command.env("LOCKSTEP_SERVER", &self.url).env("USER", "kim");
        soon(run(command)).await
    }

    async fn json(&self, args: &[&str]) -> Value {
        let ran = self.ask(&[args, &["--json"]].concat()).await;
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// A command that is refused as unsafe, with this code and these words.
    async fn refused(&self, args: &[&str], code: &str, words: &str) {
        let ran = self.ask(args).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (4, ""), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(&format!("error[{code}]")) && ran.stderr.contains(words), "{ran:?}");
    }
}

/// A participant that does what the test says. It answers inspections with `inspection`.
struct Participant {
    name: &'static str,
    out: mpsc::Sender<v1::ParticipantFrame>,
    decisions: mpsc::UnboundedReceiver<Kind>,
}

impl Participant {
    async fn attach(coordinator: &Coordinator, name: &'static str, inspection: v1::Inspection) -> Self {
        let (out, frames) = mpsc::channel(16);
        let identity: Vec<u8> = name.bytes().cycle().take(16).collect();
        let clock_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis().try_into().unwrap();
        let hello = v1::Hello {
            protocol_version: limits::PROTOCOL_VERSION,
            resource_manager: name.into(),
            identity: identity.clone(),
            instance: identity,
            clock_ms,
            ..Default::default()
        };
        send(&out, ToKind::Hello(hello)).await;
        let mut client = ParticipantServiceClient::new(coordinator.channel().await);
        let stream = client.attach(ReceiverStream::new(frames)).await.unwrap().into_inner();
        let (heard, decisions) = mpsc::unbounded_channel();
        // Weak: when the participant is dropped, its stream ends.
        tokio::spawn(listen(stream, inspection, out.downgrade(), heard));
        let mut participant = Self { name, out, decisions };
        participant.hear(|kind| matches!(kind, Kind::Welcome(_))).await;
        participant
    }

    fn xid(&self, gtrid: &str) -> v1::Xid {
        v1::Xid { gtrid: gtrid.into(), bqual: format!("{}.{:016x}", self.name, 1) }
    }

    async fn hear(&mut self, wanted: impl Fn(&Kind) -> bool) -> Kind {
        loop {
            let kind = soon(self.decisions.recv()).await.expect("it is attached");
            if wanted(&kind) {
                return kind;
            }
        }
    }

    async fn enlist(&mut self, gtrid: &str) {
        send(&self.out, ToKind::Enlist(v1::Enlist { xid: Some(self.xid(gtrid)) })).await;
        self.hear(|kind| matches!(kind, Kind::Enlisted(_))).await;
    }

    async fn prepare(&mut self, gtrid: &str) {
        self.hear(|kind| matches!(kind, Kind::Prepare(_))).await;
        let (xid, vote) = (Some(self.xid(gtrid)), v1::VoteKind::Commit.into());
        send(&self.out, ToKind::Vote(v1::Vote { xid, vote, detail: String::new() })).await;
    }

    async fn decide(&mut self) {
        self.hear(|kind| matches!(kind, Kind::Decide(_))).await;
    }

    async fn acknowledge(&self, gtrid: &str, applied: v1::Applied) {
        let (xid, applied) = (Some(self.xid(gtrid)), applied.into());
        let detail = String::new();
        send(&self.out, ToKind::Acknowledge(v1::Acknowledge { xid, applied, detail })).await;
    }
}

/// Answers inspections, and passes on what else the coordinator says.
async fn listen(
    mut stream: Streaming<v1::CoordinatorFrame>,
    inspection: v1::Inspection,
    out: mpsc::WeakSender<v1::ParticipantFrame>,
    heard: mpsc::UnboundedSender<Kind>,
) {
    while let Ok(Some(frame)) = stream.message().await {
        for kind in frame.messages.into_iter().filter_map(|message| message.kind) {
            let Kind::Inspect(asked) = kind else {
                drop(heard.send(kind));
                continue;
            };
            let Some(out) = out.upgrade() else { return };
            let answer = v1::Inspection { question: asked.question, ..inspection.clone() };
            send(&out, ToKind::Inspection(answer)).await;
        }
    }
}

async fn send(out: &mpsc::Sender<v1::ParticipantFrame>, kind: ToKind) {
    let message = v1::ParticipantMessage { kind: Some(kind) };
    // Whoever is gone does not hear it.
    drop(out.send(v1::ParticipantFrame { messages: vec![message] }).await);
}

/// A transaction that has committed in `orders` and is not acknowledged by `ledger`.
async fn undelivered(coordinator: &Coordinator) -> (String, Participant, Participant) {
    let mut orders = Participant::attach(coordinator, "orders", v1::Inspection::default()).await;
    let mut ledger = Participant::attach(coordinator, "ledger", v1::Inspection::default()).await;
    let gtrid = coordinator.begin().await;
    orders.enlist(&gtrid).await;
    ledger.enlist(&gtrid).await;
    let mut client = coordinator.client().await;
    let wait = v1::Wait::Decided.into();
    let request = v1::CommitRequest { gtrid: gtrid.clone(), wait, ..Default::default() };
    let committing = tokio::spawn(async move { client.commit(request).await });
    orders.prepare(&gtrid).await;
    ledger.prepare(&gtrid).await;
    soon(committing).await.unwrap().unwrap();
    orders.decide().await;
    ledger.decide().await;
    orders.acknowledge(&gtrid, v1::Applied::Committed).await;
    (gtrid, orders, ledger)
}

/// Asks until it is so.
async fn until(coordinator: &Coordinator, args: &[&str], so: impl Fn(&Value) -> bool) -> Value {
    soon(async {
        loop {
            let json = coordinator.json(args).await;
            if so(&json) {
                return json;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
}

#[tokio::test]
async fn an_undelivered_decision_is_retried_paused_and_given_up_and_never_reversed() {
    let mut coordinator = Coordinator::start().await;
    let (gtrid, _orders, mut ledger) = undelivered(&coordinator).await;
    let id = gtrid.as_str();
    let listed =
        coordinator.json(&["tx", "ls", "--situation", "undelivered", "--participant", "ledger"]).await;
    assert_eq!(listed["transactions"][0]["gtrid"], id, "{listed}");
    let none = coordinator.json(&["tx", "ls", "--situation", "undelivered", "--label", "no=such"]).await;
    assert_eq!(none["transactions"], Value::Array(vec![]), "{none}");
    let ran = coordinator.ask(&["status", "--exit-code"]).await;
    assert_eq!(ran.code, 6, "{ran:?}");
    assert!(ran.stdout.contains("undelivered 1 (oldest"), "{ran:?}");

    // Neither the opposite nor a commit by hand; and a refusal says what to do instead.
    let rollback = ["tx", "rollback", id, "--reason", "test", "--confirm", id];
    coordinator.refused(&rollback, "LS0412", "lockstep tx abandon").await;
    coordinator.refused(&["tx", "commit", id, "--reason", "test"], "LS0412", "COMMIT is durable").await;
    coordinator.refused(&["tx", "ack", id, "--dry-run"], "LS0419", "no heuristic outcome").await;
    coordinator.refused(&["orphans", "resolve", id, "--rollback", "--dry-run"], "LS0422", "no orphan").await;

    // A dry run does nothing, and leaves no record.
    let plan = coordinator.json(&["tx", "retry", id, "--dry-run"]).await;
    assert_eq!(
        (&plan["audit_id"], &plan["situation"]),
        (&Value::Null, &Value::from("undelivered")),
        "{plan}"
    );
    assert_eq!(coordinator.json(&["audit", "ls"]).await["entries"], Value::Array(vec![]));

    // The next attempt is 15 s away: a retry does not wait for it.
    let retried = coordinator.json(&["tx", "retry", &id[..20], "--reason", "it is back"]).await;
    assert_eq!(retried["audit_id"], 1, "{retried}");
    ledger.decide().await;

    coordinator.json(&["tx", "pause", id, "--reason", "repair"]).await;
    let shown = coordinator.json(&["tx", "show", id]).await;
    assert_eq!(shown["transaction"]["paused"], true, "{shown}");
    coordinator.json(&["tx", "resume", id, "--reason", "repaired"]).await;
    ledger.decide().await;

    let abandon = ["tx", "abandon", id, "--resource", "ledger", "--reason", "its disk is lost"];
    coordinator.refused(&abandon, "LS0411", &format!("--confirm {id}")).await;
    let other = ["tx", "abandon", id, "--resource", "orders", "--dry-run"];
    coordinator.refused(&other, "LS0429", "orders").await;
    coordinator.json(&[&abandon[..], &["--confirm", id]].concat()).await;

    let shown =
        until(&coordinator, &["tx", "show", id], |shown| shown["transaction"]["outcome"] == "heuristic")
            .await;
    assert_eq!(shown["transaction"]["situation"], "heuristic", "{shown}");
    let states: Vec<_> = shown["transaction"]["branches"]
        .as_array()
        .unwrap()
        .iter()
        .map(|branch| branch["state"].clone())
        .collect();
    assert_eq!(states, ["committed", "abandoned"], "{shown}");
    coordinator.refused(&["tx", "retry", id, "--dry-run"], "LS0421", "lockstep tx ack").await;

    // It is on record, over a crash too, with who, when, why, before and after.
    coordinator.restart().await;
    let audit = coordinator.json(&["audit", "ls", id]).await;
    let actions: Vec<_> =
        audit["entries"].as_array().unwrap().iter().map(|entry| entry["action"].clone()).collect();
    assert_eq!(actions, ["abandon", "resume", "pause", "retry"], "{audit}");
    let entry = &audit["entries"][0];
    assert_eq!((&entry["who"], &entry["reason"]), (&Value::from("kim"), &Value::from("its disk is lost")));
    assert!(entry["before"].as_str().unwrap().contains("ledger delivering"), "{entry}");
    assert!(entry["after"].as_str().unwrap().contains("stop delivering"), "{entry}");

    let listed = coordinator.json(&["tx", "ls", "--situation", "heuristic"]).await;
    assert_eq!(listed["transactions"][0]["gtrid"], id, "{listed}");
    coordinator.json(&["tx", "ack", id, "--reason", "ledger corrected"]).await;
    coordinator.refused(&["tx", "ack", id, "--dry-run"], "LS0420", "audit ls").await;
    let ran = coordinator.ask(&["status", "--exit-code"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");

    let exported = coordinator.ask(&["export"]).await;
    let lines: Vec<Value> = exported.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let records = |kind: &str| lines.iter().filter(|line| line["record"] == kind).count();
    assert_eq!((records("transaction"), records("audit"), records("participant")), (1, 5, 2), "{exported:?}");
}

#[tokio::test]
async fn an_undecided_transaction_is_rolled_back_and_never_committed() {
    let coordinator = Coordinator::start().await;
    let gtrid = coordinator.begin().await;
    let id = gtrid.as_str();
    coordinator.refused(&["tx", "commit", id, "--reason", "test"], "LS0415", "votes").await;
    coordinator.refused(&["tx", "retry", id, "--dry-run"], "LS0417", "nothing is decided").await;
    coordinator.refused(&["tx", "rollback", id, "--reason", "test"], "LS0411", "--dry-run").await;
    let ran = coordinator.ask(&["tx", "rollback", id]).await;
    assert_eq!(ran.code, 2, "a reason is needed: {ran:?}");
    assert!(ran.stderr.contains("docs/errors/LS0201.md"), "{ran:?}");
    coordinator.json(&["tx", "rollback", id, "--reason", "it hangs", "--confirm", id]).await;
    let ran = coordinator.ask(&["tx", "wait", id, "--timeout=60s"]).await;
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(ran.stdout.contains("it hangs"), "{ran:?}");
}

#[tokio::test]
async fn a_resource_manager_is_retired_once_it_is_gone_and_for_ever() {
    let mut coordinator = Coordinator::start().await;
    let (gtrid, _orders, ledger) = undelivered(&coordinator).await;
    let ran = coordinator.ask(&["participants", "show", "nobody"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    coordinator.refused(&["participants", "retire", "ledger", "--dry-run"], "LS0430", "1 instances").await;
    coordinator.refused(&["participants", "rebind", "ledger", "--dry-run"], "LS0431", "rebind").await;
    drop(ledger);
    let down = |list: &Value| list["participants"][0]["down_since"] != Value::Null;
    until(&coordinator, &["participants", "show", "ledger"], down).await;
    coordinator.json(&["participants", "retire", "ledger", "--reason", "gone", "--confirm", "ledger"]).await;
    let heuristic = |shown: &Value| shown["transaction"]["outcome"] == "heuristic";
    until(&coordinator, &["tx", "show", &gtrid], heuristic).await;
    coordinator.restart().await;
    let list = coordinator.json(&["participants", "show", "ledger"]).await;
    assert_eq!(list["participants"][0]["retired"], true, "{list}");
    coordinator.refused(&["participants", "retire", "ledger", "--dry-run"], "LS0507", "before").await;
}

#[tokio::test]
async fn what_databases_say_is_shown_and_what_does_not_answer_too() {
    let coordinator = Coordinator::start().await;
    let blocked = v1::inspection::Blocked {
        session: 4121,
        waiting_ms: 38_000,
        statement_ms: 38_500,
        object: "accounts".into(),
        held_by: None,
    };
    let says = v1::Inspection { blocked: vec![blocked], ..Default::default() };
    let mut orders = Participant::attach(&coordinator, "orders", says).await;
    let cannot = v1::Inspection { error: "the database is down".into(), ..Default::default() };
    let _ledger = Participant::attach(&coordinator, "ledger", cannot).await;
    let gtrid = coordinator.begin().await;
    orders.enlist(&gtrid).await;
    let shown = coordinator.json(&["tx", "show", &gtrid]).await;
    assert_eq!(shown["databases"][0]["blocked"][0]["session"], 4121, "{shown}");
    let ran = coordinator.ask(&["participants", "ping", "--exit-code"]).await;
    assert_eq!(ran.code, 6, "{ran:?}");
    assert!(ran.stdout.contains("the database is down"), "{ran:?}");
    let ran = coordinator.ask(&["orphans", "scan", "--exit-code"]).await;
    assert_eq!(ran.code, 6, "who did not answer may hold one: {ran:?}");
}

#[tokio::test]
async fn a_drained_coordinator_begins_nothing() {
    let coordinator = Coordinator::start().await;
    assert_eq!(coordinator.json(&["health"]).await["ready"], true);
    coordinator.json(&["drain", "--reason", "maintenance"]).await;
    let ran = coordinator.ask(&["health"]).await;
    assert_eq!(ran.code, 6, "{ran:?}");
    assert!(ran.stdout.contains("fails begins") && ran.stdout.contains("draining"), "{ran:?}");
    let refused = coordinator.client().await.begin(v1::BeginRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    let status = coordinator.json(&["status"]).await;
    assert_eq!(status["draining"], true, "{status}");
}
