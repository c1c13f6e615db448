//! The metrics of a coordinator, its probes and the alerts, end to end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use lockstep::{Participant, Sqlite};
use lockstep_tests::harness::clock::wait_for;
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::postgres::PostgresServer;
use lockstep_tests::harness::process::Reaped;
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::harness::tools::promtool;
use sqlx::SqlitePool;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator that serves, and a participant with a table.
struct Stage {
    coordinator: Coordinator,
    client: lockstep::Client,
    bank: Participant<Sqlite>,
    directory: TempDir,
}

impl Stage {
    async fn set() -> Self {
        let directory = TempDir::new().unwrap();
        let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
        let mut coordinator = Coordinator::start(&roles, directory.path(), &[], None).unwrap();
        coordinator.expect_it_serves().unwrap();
        let client = lockstep::Client::connect(coordinator.url()).await.unwrap();
        let url = format!("sqlite:{}?mode=rwc", directory.path().join("bank.db").display());
        let pool = SqlitePool::connect(&url).await.unwrap();
        sqlx::raw_sql("CREATE TABLE kept (v int)").execute(&pool).await.unwrap();
        let attaching = Participant::builder("bank", Sqlite::new(pool)).coordinator(coordinator.url());
        let bank = tokio::time::timeout(PATIENCE, attaching.attach()).await.unwrap().unwrap();
        Self { coordinator, client, bank, directory }
    }

    async fn write(&self, name: &str) -> lockstep::Transaction {
        let tx = self.client.begin(name).start().await.unwrap();
        let mut branch = self.bank.join(&tx.context()).await.unwrap();
        sqlx::raw_sql("INSERT INTO kept VALUES (1)").execute(&mut *branch).await.unwrap();
        branch.finish().await.unwrap();
        tx
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("{}{path}", self.coordinator.url())).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(self.coordinator.url()).unwrap().connect().await.unwrap()
    }

    async fn metric(&self, series: &str) -> f64 {
        let (status, text) = self.get("/metrics").await;
        assert_eq!(status, 200, "{text}");
        let line =
            text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no {series} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_is_counted_once_and_what_stands_is_told_as_it_is() {
    let stage = Stage::set().await;
    for _ in 0..3 {
        stage.write("pay").await.commit().await.unwrap();
    }
    stage.write("refund").await.rollback("changed my mind").await.unwrap();
    let open = stage.write("pay").await;

    let ended = async |outcome: &str, name: &str| {
        let series =
            format!("lockstep_transactions_completed_total{{name=\"{name}\",outcome=\"{outcome}\"}}");
        stage.metric(&series).await
    };
    assert!((ended("committed", "pay").await - 3.0).abs() < 0.5);
    assert!((ended("rolled_back", "refund").await - 1.0).abs() < 0.5);
    let expected = [
        ("lockstep_transactions_started_total{name=\"pay\"}", 4.0),
        ("lockstep_transactions_active{state=\"undecided\"}", 1.0),
        ("lockstep_transactions_active{state=\"undelivered\"}", 0.0),
        ("lockstep_transaction_duration_seconds_count{outcome=\"committed\"}", 3.0),
        ("lockstep_phase_duration_seconds_count{phase=\"log\"}", 3.0),
        ("lockstep_phase_duration_seconds_count{phase=\"apply\"}", 3.0),
        ("lockstep_branch_operation_seconds_count{operation=\"commit_one_phase\",resource=\"bank\"}", 3.0),
        ("lockstep_branch_operation_seconds_count{operation=\"rollback\",resource=\"bank\"}", 1.0),
        ("lockstep_delivery_attempts_total{resource=\"bank\",result=\"acknowledged\"}", 4.0),
        ("lockstep_delivery_queue_depth{resource=\"bank\"}", 0.0),
        ("lockstep_participants_attached{resource=\"bank\"}", 1.0),
        // Each commit of a single branch forces its intent, and nothing else does (P10).
        ("lockstep_log_force_seconds_count", 3.0),
        ("lockstep_heuristics_total", 0.0),
        ("lockstep_accepting", 1.0),
        ("lockstep_unresolved_transactions{situation=\"undelivered\"}", 0.0),
    ];
    for (series, value) in expected {
        let found = stage.metric(series).await;
        assert!((found - value).abs() < 0.5, "{series} is {found} and should be {value}");
    }
    assert!(stage.metric("lockstep_log_free_bytes").await > 0.0);
    open.commit().await.unwrap();
}

/// That is when somebody looks: what the engine knows is told while the log is frozen, and while it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_does_not_answer_is_told_and_hides_nothing_else() {
    let directory = TempDir::new().unwrap();
    let mut server = PostgresServer::start().unwrap();
    server.create_database("log").unwrap();
    let flags = [&format!("--log={}", server.url("log")), "--migrate-log"];
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let mut coordinator = Coordinator::start(&roles, directory.path(), &flags, None).unwrap();
    coordinator.expect_it_serves().unwrap();
    let scraped = async || {
        let answer = reqwest::get(format!("{}/metrics", coordinator.url())).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.text().await.unwrap()
    };
    let text = scraped().await;
    assert!(text.contains("\nlockstep_log_up 1\n") && text.contains("\nlockstep_log_bytes "), "{text}");
    assert!(!text.contains("\nlockstep_log_free_bytes "), "it is another machine's disk: {text}");
    let probed = async || {
        let answer = reqwest::get(format!("{}/readyz", coordinator.url())).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(probed().await, (200, "ok\n".to_owned()));
    server.freeze().unwrap();
    let frozen = tokio::time::timeout(Duration::from_secs(8), scraped()).await;
    let (status, text) = tokio::time::timeout(Duration::from_secs(4), probed())
        .await
        .expect("before a prober has lost its patience");
    assert!(
        status == 503 && text.starts_with("fails log: the decision log cannot be read: "),
        "{status} {text}"
    );
    server.kill().unwrap();
    for text in [frozen.expect("before a scraper has lost its patience"), scraped().await] {
        assert!(text.contains("\nlockstep_log_up 0\n") && text.contains("\nlockstep_accepting "), "{text}");
        assert!(!text.contains("\nlockstep_log_bytes "), "it is not known any more: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_well_formed_and_documented() {
    let stage = Stage::set().await;
    stage.write("pay").await.commit().await.unwrap();
    // What nobody has done has no series.
    assert_eq!(stage.coordinator.run(&["drain", "--reason", "a test"]).unwrap().code, 0);
    let (_, text) = stage.get("/metrics").await;
    promtool(&["check", "metrics"], stage.directory.path(), &text).unwrap();

    let served: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned))
        .collect();
    let page = std::fs::read_to_string(repository().join("docs/metrics.md")).unwrap();
    let documented: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `lockstep_")?.split('`').next())
        .map(|rest| format!("lockstep_{rest}"))
        .collect();
    assert_eq!(served, documented, "docs/metrics.md has every metric, and no other");
}

#[test]
fn the_alerts_say_what_they_should_and_when() {
    let directory = repository().join("deploy/prometheus");
    promtool(&["check", "rules", "rules.yml"], &directory, "").unwrap();
    promtool(&["test", "rules", "rules_test.yml"], &directory, "").unwrap();
    let rules = std::fs::read_to_string(directory.join("rules.yml")).unwrap();
    let tests = std::fs::read_to_string(directory.join("rules_test.yml")).unwrap();
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    for alert in &alerts {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} is never seen to fire");
    }
    assert_eq!(rules.matches("command: lockstep ").count(), alerts.len(), "each says what to run");
}

#[test]
fn every_alert_has_its_page_and_every_page_its_alert() {
    let rules = std::fs::read_to_string(repository().join("deploy/prometheus/rules.yml")).unwrap();
    let mut alerts = BTreeSet::new();
    // What belongs to an alert stands behind its name, up to the next one.
    for part in rules.split("- alert: ").skip(1) {
        let alert = part.lines().next().unwrap();
        let value =
            |key: &str| part.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_default();
        let path = format!("docs/runbook/alerts/{alert}.md");
        assert_eq!(value("runbook_url: "), path, "{alert} names its page");
        let page = std::fs::read_to_string(repository().join(&path))
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(page.starts_with(&format!("# {alert}\n")), "{path} says which alert it is about");
        let first = page.lines().find(|line| line.starts_with("$ "));
        assert_eq!(
            first,
            Some(format!("$ {}", value("command: ")).as_str()),
            "{path} begins with the alert's command"
        );
        alerts.insert(format!("{alert}.md"));
    }
    let pages = std::fs::read_dir(repository().join("docs/runbook/alerts")).unwrap();
    let pages: BTreeSet<String> =
        pages.map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(pages, alerts);
    let index = std::fs::read_to_string(repository().join("docs/runbook/README.md")).unwrap();
    for page in &pages {
        assert!(index.contains(&format!("(alerts/{page})")), "docs/runbook/README.md lists {page}");
    }
}

/// Its image can't be started everywhere; what it is told can be checked.
#[test]
fn prometheus_accepts_what_the_demo_tells_it() {
    let directory = TempDir::new().unwrap();
    for file in ["demo/compose/prometheus.yml", "deploy/prometheus/rules.yml"] {
        let file = repository().join(file);
        std::fs::copy(&file, directory.path().join(file.file_name().unwrap())).unwrap();
    }
    promtool(&["check", "config", "prometheus.yml"], directory.path(), "").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_is_alive_and_ready_until_it_drains() {
    let mut stage = Stage::set().await;
    assert_eq!(stage.get("/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(stage.get("/readyz").await, (200, "ok\n".to_owned()));
    let (status, text) = stage.get("/readyz?verbose").await;
    assert_eq!((status, text.as_str()), (200, "ok    begins\nok    log\n"));

    // A transaction that is under way keeps it draining.
    let open = stage.write("pay").await;
    let url = stage.coordinator.url();
    stage.coordinator.process().signal(rustix::process::Signal::TERM).unwrap();
    let not_ready = wait_for("a draining coordinator not to be ready", PATIENCE, || {
        let (status, text) = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let response = reqwest::get(format!("{url}/readyz")).await.unwrap();
                (response.status().as_u16(), response.text().await.unwrap())
            })
        });
        Ok((status == 503).then_some(text))
    });
    let (text, _took) = not_ready.unwrap();
    assert!(text.contains("draining"), "{text}");
    assert_eq!(stage.get("/livez").await.0, 200, "it is alive all the same");
    open.commit().await.unwrap();
}

fn checked(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_service_says_what_readyz_says_and_a_drain_is_heard_before_the_address_closes() {
    let mut stage = Stage::set().await;
    let mut health = HealthClient::new(stage.channel().await);
    for service in ["", "CoordinatorService", "ParticipantService", "AdminService"] {
        let name = if service.is_empty() { String::new() } else { format!("lockstep.v1.{service}") };
        let answer = health.check(checked(&name)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name}");
    }
    let stranger = health.check(checked("lockstep.v1.Nothing")).await.unwrap_err();
    assert_eq!(stranger.code(), tonic::Code::NotFound);
    let mut stranger = health.watch(checked("lockstep.v1.Nothing")).await.unwrap().into_inner();
    assert_eq!(stranger.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    let mut watched = health.watch(checked("")).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    // A transaction that is under way keeps it draining.
    let open = stage.write("pay").await;
    stage.coordinator.process().signal(rustix::process::Signal::TERM).unwrap();
    let heard =
        tokio::time::timeout(PATIENCE, watched.message()).await.expect("a watcher hears of the drain");
    assert_eq!(heard.unwrap().unwrap().status(), ServingStatus::NotServing);
    // Who comes now is still answered.
    let mut late = HealthClient::new(stage.channel().await);
    let answer = late.check(checked("")).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);
    assert_eq!(stage.get("/readyz").await.0, 503);
    open.commit().await.unwrap();
    // Nothing more to tell: the watchers do not hold the end up.
    let over = tokio::time::timeout(PATIENCE, watched.message()).await.expect("the stream ends");
    assert!(!matches!(over, Ok(Some(_))), "{over:?}");
    assert_eq!(stage.coordinator.process().wait(PATIENCE).unwrap(), Reaped::Exit(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_hears_of_a_drain_that_has_nothing_to_wait_for() {
    let mut stage = Stage::set().await;
    let mut health = HealthClient::new(stage.channel().await);
    let mut watched = health.watch(checked("")).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    stage.coordinator.process().signal(rustix::process::Signal::TERM).unwrap();
    let heard = tokio::time::timeout(PATIENCE, watched.message()).await.expect("it hears of the drain");
    assert_eq!(heard.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(stage.coordinator.process().wait(PATIENCE).unwrap(), Reaped::Exit(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_called_is_told_by_reflection() {
    let stage = Stage::set().await;
    let MessageResponse::ListServicesResponse(listed) =
        reflected(&stage, MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list")
    };
    let names: BTreeSet<String> = listed.service.into_iter().map(|service| service.name).collect();
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "lockstep.v1.AdminService",
        "lockstep.v1.CoordinatorService",
        "lockstep.v1.ParticipantService",
    ];
    assert_eq!(names, expected.map(str::to_owned).into());
    let symbol = MessageRequest::FileContainingSymbol("lockstep.v1.CoordinatorService".to_owned());
    let MessageResponse::FileDescriptorResponse(file) = reflected(&stage, symbol).await else {
        panic!("no file")
    };
    assert!(!file.file_descriptor_proto.is_empty());
}

async fn reflected(stage: &Stage, question: MessageRequest) -> MessageResponse {
    let mut reflection = ServerReflectionClient::new(stage.channel().await);
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let answers = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    answers.into_inner().message().await.unwrap().unwrap().message_response.unwrap()
}
