//! What a coordinator refuses where a participant behaves in a certain way: the test plays it, over the wire.

use std::time::Duration;

use lockstep_coordinator::codes::Code;
use lockstep_proto::v1::coordinator_message::Kind;
use lockstep_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use lockstep_proto::v1::participant_message::Kind as Said;
use lockstep_proto::v1::participant_service_client::ParticipantServiceClient;
use lockstep_proto::{limits, v1};
use lockstep_tests::harness::coordinator::{Coordinator, Ran};
use lockstep_tests::operators::pages::Names;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt as _;

use super::book::{Book, PATIENCE, roles};

pub(crate) const MEETS: &[Code] = &[
    Code::OnePhaseUnderWay,
    Code::RollbackIsDecided,
    Code::NotConfirmed,
    Code::NotEveryoneAnswered,
    Code::OtherCluster,
    Code::NoBranchToAbandon,
    Code::StillAttached,
    Code::NothingToRebind,
    Code::OrphanNotEnded,
    Code::NotAParticipant,
    Code::ProtocolVersion,
    Code::ClockSkew,
    Code::LocationChanged,
    Code::StaleTimeline,
    Code::Retired,
];

/// Of an epoch that no coordinator here has given out.
const LOST: &str = "4000000000.0192f0c19f447a018e4f5a6b7c8d9e0f";

async fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).unwrap().connect().await.unwrap()
}

fn hello(name: &str) -> v1::Hello {
    let identity: Vec<u8> = name.bytes().cycle().take(16).collect();
    let clock_ms = lockstep_tests::harness::clock::unix_micros() / 1000;
    v1::Hello {
        protocol_version: limits::PROTOCOL_VERSION,
        resource_manager: name.into(),
        identity: identity.clone(),
        instance: identity,
        clock_ms,
        ..Default::default()
    }
}

fn xid(name: &str, gtrid: &str) -> v1::Xid {
    v1::Xid { gtrid: gtrid.into(), bqual: format!("{name}.{:016x}", 1) }
}

/// An attached participant. Its stream ends with it.
struct Played {
    name: &'static str,
    out: mpsc::Sender<v1::ParticipantFrame>,
    heard: mpsc::UnboundedReceiver<Kind>,
}

async fn send(out: &mpsc::Sender<v1::ParticipantFrame>, said: Said) {
    let message = v1::ParticipantMessage { kind: Some(said) };
    drop(out.send(v1::ParticipantFrame { messages: vec![message] }).await);
}

impl Played {
    /// Attaches; inspected, it says that it holds this.
    async fn attach(
        url: &str,
        name: &'static str,
        hello: v1::Hello,
        holds: v1::Inspection,
    ) -> Result<Self, tonic::Status> {
        let (out, frames) = mpsc::channel(16);
        send(&out, Said::Hello(hello)).await;
        let mut client = ParticipantServiceClient::new(channel(url).await);
        let mut stream = client.attach(ReceiverStream::new(frames)).await?.into_inner();
        let first = stream.message().await?;
        assert!(first.is_some(), "it is welcomed or refused");
        let (tell, heard) = mpsc::unbounded_channel();
        // Weak: when the participant is dropped, its stream ends.
        tokio::spawn(listen(stream, holds, out.downgrade(), tell));
        Ok(Self { name, out, heard })
    }

    async fn hear(&mut self, wanted: impl Fn(&Kind) -> bool) {
        let heard = async {
            while let Some(kind) = self.heard.recv().await {
                if wanted(&kind) {
                    return;
                }
            }
            panic!("{} hears nothing more", self.name);
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("it is told");
    }

    async fn enlist(&mut self, gtrid: &str) {
        send(&self.out, Said::Enlist(v1::Enlist { xid: Some(xid(self.name, gtrid)) })).await;
        self.hear(|kind| matches!(kind, Kind::Enlisted(_))).await;
    }
}

/// Answers inspections, and passes on what else the coordinator says.
async fn listen(
    mut stream: Streaming<v1::CoordinatorFrame>,
    holds: v1::Inspection,
    out: mpsc::WeakSender<v1::ParticipantFrame>,
    tell: mpsc::UnboundedSender<Kind>,
) {
    while let Ok(Some(frame)) = stream.message().await {
        for kind in frame.messages.into_iter().filter_map(|message| message.kind) {
            let Kind::Inspect(asked) = kind else {
                drop(tell.send(kind));
                continue;
            };
            let Some(out) = out.upgrade() else { return };
            let answer = v1::Inspection { question: asked.question, ..holds.clone() };
            send(&out, Said::Inspection(answer)).await;
        }
    }
}

async fn begin(url: &str) -> String {
    let request = v1::BeginRequest { name: "try".into(), timeout_ms: 3_600_000, ..Default::default() };
    CoordinatorServiceClient::new(channel(url).await).begin(request).await.unwrap().into_inner().gtrid
}

fn lockstep(coordinator: &Coordinator, arguments: &[&str]) -> Ran {
    let ran = coordinator.run(arguments).unwrap();
    assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
    ran
}

/// What whoever was refused is told of it: the code is in the metadata, as docs/errors says.
fn told(status: &tonic::Status) -> String {
    let info = status.get_details_error_info().expect("a refusal has its reason");
    format!("{} {:?}", status.message(), info.metadata)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_coordinator_says_why_it_refuses_where_a_participant_is_in_the_way() {
    let dir = TempDir::new().unwrap();
    let flags = ["--report-interval=200ms"];
    let mut coordinator = Coordinator::start(&roles(), dir.path(), &flags, None).unwrap();
    coordinator.expect_it_serves().unwrap();
    let url = coordinator.url();
    let names = Names { server: &url, name: "orders", ..Names::default() };
    let mut book = Book::new();
    attaching(&mut book, &names).await;

    let known = v1::Hello { location: "host:/a#1:2".into(), timeline: 3, ..hello("orders") };
    let mut orders = Played::attach(&url, "orders", known.clone(), v1::Inspection::default()).await.unwrap();
    book.fails(Code::StillAttached, &names, &["participants", "retire", "orders", "--dry-run"]);
    book.fails(Code::NothingToRebind, &names, &["participants", "rebind", "orders", "--dry-run"]);
    undelivered(&mut book, &names, &mut orders).await;
    given_up(&names, &book).await;
    orphans(&mut book, &names).await;
    moved(&mut book, &names, known).await;

    drop(orders);
    let gone = async {
        while coordinator.run(&["participants", "retire", "orders", "--dry-run"]).unwrap().code != 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("its session ends");
    lockstep(&coordinator, &["participants", "retire", "orders", "--reason", "gone", "--confirm", "orders"]);
    book.fails(Code::Retired, &names, &["participants", "retire", "orders", "--dry-run"]);
    let refused = Played::attach(&url, "orders", hello("orders"), v1::Inspection::default()).await;
    book.meets(Code::Retired, &names, &told(&refused.err().unwrap()));
    book.has_met(MEETS);
}

async fn attaching(book: &mut Book, names: &Names<'_>) {
    let fits = hello("strange");
    let hour = 3_600_000;
    for (code, wrong) in [
        (Code::NotAParticipant, v1::Hello { instance: vec![], ..fits.clone() }),
        (Code::ProtocolVersion, v1::Hello { protocol_version: 99, ..fits.clone() }),
        (Code::ClockSkew, v1::Hello { clock_ms: fits.clock_ms - hour, ..fits.clone() }),
    ] {
        let refused = Played::attach(names.server, "strange", wrong, v1::Inspection::default()).await;
        book.meets(code, names, &told(&refused.err().unwrap()));
    }
}

/// A branch that is told what is decided, and does not say what it did.
async fn undelivered(book: &mut Book, names: &Names<'_>, orders: &mut Played) {
    let gtrid = begin(names.server).await;
    orders.enlist(&gtrid).await;
    let mut client = CoordinatorServiceClient::new(channel(names.server).await);
    let wait = v1::Wait::Decided.into();
    let request = v1::CommitRequest { gtrid: gtrid.clone(), wait, ..Default::default() };
    let committing = tokio::spawn(async move { client.commit(request).await });
    orders.hear(|kind| matches!(kind, Kind::CommitOnePhase(_))).await;
    let of_it = Names { id: &gtrid, ..*names };
    book.fails(Code::OnePhaseUnderWay, &of_it, &["tx", "rollback", &gtrid, "--dry-run"]);
    book.fails(
        Code::NoBranchToAbandon,
        &of_it,
        &["tx", "abandon", &gtrid, "--resource", "ledger", "--dry-run"],
    );
    committing.abort();

    let gtrid = begin(names.server).await;
    orders.enlist(&gtrid).await;
    let mut client = CoordinatorServiceClient::new(channel(names.server).await);
    let request = v1::RollbackRequest { gtrid: gtrid.clone(), ..Default::default() };
    let rolling_back = tokio::spawn(async move { client.rollback(request).await });
    orders.hear(|kind| matches!(kind, Kind::Decide(_))).await;
    let of_it = Names { id: &gtrid, ..*names };
    book.fails(Code::RollbackIsDecided, &of_it, &["tx", "rollback", &gtrid, "--dry-run"]);
    rolling_back.abort();
}

/// Retires one whose stream has ended, or is about to.
async fn retire(book: &Book, names: &Names<'_>, name: &str) {
    let retire = ["participants", "retire", name, "--reason", "test", "--confirm", name];
    let gone = async {
        while book.ran(names, &retire).code != 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("its session ends");
}

/// A one-phase commit that was given up, and whose branch turns out to be prepared: its record is acknowledged as any other, and the branch is
/// ended as an orphan (P10).
async fn given_up(names: &Names<'_>, book: &Book) {
    const NAME: &str = "early";
    let status: serde_json::Value =
        serde_json::from_str(&book.ran(names, &["status", "--json"]).stdout).unwrap();
    let gtrid = begin(names.server).await;
    let id = gtrid.as_str();
    let branch = v1::inspection::Branch {
        cluster: status["cluster"].as_str().unwrap().to_owned(),
        xid: Some(xid(NAME, id)),
        found: v1::BranchFound::Prepared.into(),
        ..Default::default()
    };
    let holds = v1::Inspection { branches: vec![branch], ..Default::default() };
    let mut early = Played::attach(names.server, NAME, hello(NAME), holds).await.unwrap();
    early.enlist(id).await;
    let mut client = CoordinatorServiceClient::new(channel(names.server).await);
    let wait = v1::Wait::Decided.into();
    let request = v1::CommitRequest { gtrid: gtrid.clone(), wait, ..Default::default() };
    let committing = tokio::spawn(async move { client.commit(request).await });
    early.hear(|kind| matches!(kind, Kind::CommitOnePhase(_))).await;
    let done = |arguments: &[&str]| {
        let ran = book.ran(names, arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
        ran.stdout
    };
    done(&["tx", "abandon", id, "--resource", NAME, "--reason", "lost", "--confirm", id]);
    committing.abort();
    let prepared = vec![xid(NAME, id)];
    let listed = v1::Report { prepared, complete: true, ..Default::default() };
    send(&early.out, Said::Report(listed)).await;
    early.hear(|kind| matches!(kind, Kind::ReportAnswer(_))).await;

    let plan: serde_json::Value =
        serde_json::from_str(&done(&["tx", "ack", id, "--dry-run", "--json"])).unwrap();
    assert_eq!((&plan["confirm"], &plan["situation"]), (&"".into(), &"heuristic".into()), "{plan}");
    let plan = done(&["orphans", "resolve", id, "--commit", "--dry-run"]);
    assert!(plan.contains("commit the prepared branches early."), "{plan}");
    done(&["orphans", "resolve", id, "--rollback", "--dry-run"]);
    done(&["tx", "ack", id, "--reason", "seen"]);
    let shown = done(&["tx", "show", id, "--offline"]);
    assert!(shown.contains("acknowledged"), "{shown}");
    drop(early);
    retire(book, names, NAME).await;
}

/// Branches that nobody answers for: one of another cluster, and one that stays prepared whatever it is told.
async fn orphans(book: &mut Book, names: &Names<'_>) {
    let status: serde_json::Value =
        serde_json::from_str(&book.ran(names, &["status", "--json"]).stdout).unwrap();
    let ours = status["cluster"].as_str().unwrap().to_owned();
    for (code, cluster, name) in
        [(Code::OtherCluster, "zzzzzzzz".to_owned(), "foreign"), (Code::OrphanNotEnded, ours, "stubborn")]
    {
        let branch = v1::inspection::Branch {
            cluster,
            xid: Some(xid(name, LOST)),
            found: v1::BranchFound::Prepared.into(),
            ..Default::default()
        };
        let holds = v1::Inspection { branches: vec![branch], ..Default::default() };
        let played = Played::attach(names.server, name, hello(name), holds).await.unwrap();
        let of_it = Names { id: LOST, name, ..*names };
        // It has listed nothing yet: the database says so when it is asked.
        let scan = book.ran(names, &["orphans", "scan", "--exit-code", "--json"]);
        assert!(scan.code == 6 && scan.stdout.contains(LOST), "{scan:?}");
        let resolve = ["orphans", "resolve", LOST, "--rollback", "--timeout=60s"];
        let really = ["--reason", "test", "--confirm", LOST, "--all", "orders,stubborn"];
        if code == Code::OrphanNotEnded {
            book.fails(Code::NotConfirmed, &of_it, &[&resolve[..], &really[..4]].concat());
            let more = ["--reason", "test", "--confirm", LOST, "--all", "orders,stubborn,never-met"];
            let ran = book.fails(Code::NotEveryoneAnswered, &of_it, &[&resolve[..], &more].concat());
            assert!(ran.stderr.contains("never-met was not asked"), "{ran:?}");
        }
        let how = if code == Code::OtherCluster { &["--dry-run"][..] } else { &really };
        book.fails(code, &of_it, &[&resolve, how].concat());
        if code == Code::OrphanNotEnded {
            let audit = book.ran(names, &["audit", "ls", LOST, "--json"]).stdout;
            assert!(audit.contains("failed: "), "that it failed is on record: {audit}");
        }
        drop(played);
        retire(book, names, name).await;
    }
}

/// The database is another one than it was.
async fn moved(book: &mut Book, names: &Names<'_>, known: v1::Hello) {
    let elsewhere = v1::Hello { location: "host:/b#1:3".into(), ..known.clone() };
    let old = v1::Hello { timeline: 2, ..known };
    for (code, hello) in [(Code::StaleTimeline, old), (Code::LocationChanged, elsewhere)] {
        let refused = Played::attach(names.server, "orders", hello, v1::Inspection::default()).await;
        book.meets(code, names, &told(&refused.err().unwrap()));
    }
}
