//! What a collector of traces gets to see: one tree per transaction, from the application to the SQL of each participant, and a
//! link from whatever is done about it later.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod collector;
mod silent;
mod stage;

use std::collections::BTreeSet;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::{FutureExt as _, TraceContextExt as _, Tracer as _};

use collector::{Exported, SERVICE, shared, tree};
use lockstep_tests::harness::crash_points::Fuse;
use lockstep_tests::harness::postgres::fresh_database;
use lockstep_tests::harness::process::Reaped;
use stage::Stage;

const PATIENCE: Duration = Duration::from_secs(30);

/// What was exported of a trace, once `enough` of it has come.
async fn spans(trace: &[u8], enough: impl Fn(&[Exported]) -> bool) -> Vec<Exported> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let spans = tokio::task::block_in_place(|| shared().spans(trace));
        if enough(&spans) || tokio::time::Instant::now() > deadline {
            return spans;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn named<'a>(spans: &'a [Exported], name: &str) -> Vec<&'a Exported> {
    spans.iter().filter(|exported| exported.span.name == name).collect()
}

/// A span of the application that its work is in.
fn application() -> (Context, Vec<u8>) {
    let span = shared().tracer().start("order");
    let context = Context::new().with_span(span);
    let trace = context.span().span_context().trace_id().to_bytes().to_vec();
    (context, trace)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_transaction_over_two_participants_is_one_tree() {
    let stage = Stage::set(&[]).await;
    let (context, trace) = application();
    let gtrid = async {
        let tx = stage.client.begin("transfer").start().await.unwrap();
        stage.call_each(&tx.context()).await;
        tx.commit().await.unwrap().gtrid
    }
    .with_context(context.clone())
    .await;
    context.span().end();
    drop(context);

    let all =
        spans(&trace, |spans| named(spans, "transaction transfer").len() == 1 && spans.len() >= 15).await;
    let expected = "\
shop: order
  lockstep: transaction transfer
    lockstep: commit [ledger-db]
      shop: commit [ledger-db]
    lockstep: commit [stock-db]
      shop: commit [stock-db]
    lockstep: decide
    lockstep: prepare [ledger-db]
      shop: prepare [ledger-db]
    lockstep: prepare [stock-db]
      shop: prepare [stock-db]
  shop: work [ledger-db]
    shop: begin [ledger-db]
  shop: work [stock-db]
    shop: begin [stock-db]";
    assert_eq!(tree(&all).as_deref(), Ok(expected));

    let transaction = named(&all, "transaction transfer")[0];
    let expected = [
        ("lockstep.gtrid", gtrid.to_string()),
        ("lockstep.name", "transfer".to_owned()),
        ("lockstep.outcome", "committed".to_owned()),
        ("lockstep.branches", "2".to_owned()),
        ("lockstep.timeout_ms", "30000".to_owned()),
    ];
    for (name, value) in expected {
        assert_eq!(transaction.attribute(name), Some(value), "{name}");
    }
    let of_lockstep =
        |name: &'static str| named(&all, name).into_iter().filter(|span| span.service == "lockstep");
    for prepare in of_lockstep("prepare") {
        assert_eq!(prepare.attribute("lockstep.vote").as_deref(), Some("commit"));
        assert_eq!(prepare.attribute("lockstep.attempt").as_deref(), Some("1"));
        assert!(prepare.attribute("lockstep.bqual").is_some_and(|bqual| bqual.contains("-db")));
    }
    let decide = named(&all, "decide")[0];
    assert_eq!(decide.attribute("lockstep.batch_size").as_deref(), Some("1"));
    assert!(decide.attribute("lockstep.force_seconds").unwrap().parse::<f64>().unwrap() > 0.0);
    // Where two spans of one name meet, one calls and the other serves.
    assert!(of_lockstep("commit").all(|span| span.span.kind == 3));
    let served = named(&all, "commit").into_iter().filter(|span| span.service == SERVICE);
    assert!(served.map(|span| span.span.kind).eq([2, 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_does_not_prepare_says_why_in_its_trace() {
    let stage = Stage::set(&[]).await;
    let (context, trace) = application();
    let failed = async {
        let tx = stage.client.begin("transfer").start().await.unwrap();
        stage.call_each(&tx.context()).await;
        // The branch's transaction is gone, and its session with it.
        stage.kill_the_sessions_of_stock();
        tx.commit().await.unwrap_err()
    }
    .with_context(context.clone())
    .await;
    context.span().end();
    drop(context);
    assert!(failed.to_string().contains("rolled back"), "{failed}");

    let all = spans(&trace, |spans| {
        named(spans, "transaction transfer").len() == 1 && named(spans, "rollback").len() >= 2
    })
    .await;
    let text = tree(&all).unwrap();
    assert!(
        text.contains("lockstep: prepare [stock-db] failed\n      shop: prepare [stock-db] failed"),
        "{text}"
    );
    assert!(text.contains("lockstep: rollback [ledger-db]\n      shop: rollback [ledger-db]"), "{text}");
    let transaction = named(&all, "transaction transfer")[0];
    assert_eq!(transaction.attribute("lockstep.outcome").as_deref(), Some("rolled_back"));
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_after_sigkill_is_linked_to_the_original_trace() {
    recovered_with_its_link(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_from_a_shared_log_is_linked_too() {
    let log = fresh_database();
    recovered_with_its_link(&[&format!("--log={}", log.url()), "--migrate-log"]).await;
}

/// The coordinator dies with its decision durable and untold. The next one finishes the transaction, and an operator helps.
async fn recovered_with_its_link(flags: &[&str]) {
    let mut stage = Stage::set(flags).await;
    let marker = stage.directory().join("marker");
    // Nothing has been begun: the next life is as good as this one, and dies at the right moment.
    assert_eq!(stage.coordinator.stop().unwrap(), Reaped::Exit(0));
    let fuse = Fuse { point: "coordinator-before-decide".to_owned(), nth: 1, marker };
    stage.coordinator.start_again(Some(&fuse)).unwrap();
    stage.coordinator.expect_it_serves().unwrap();
    stage.attached().await;

    let (context, trace) = application();
    let tx = stage.client.begin("transfer").start().with_context(context.clone()).await.unwrap();
    let gtrid = tx.gtrid().to_string();
    stage.call_each(&tx.context()).with_context(context.clone()).await;
    let committing = tokio::spawn(tx.commit());
    assert_eq!(stage.coordinator.process().wait(PATIENCE).unwrap(), Reaped::KILLED);
    assert!(fuse.fired_at().is_some(), "it died somewhere else");
    context.span().end();
    drop(context);

    stage.detach().await;
    stage.coordinator.start_again(None).unwrap();
    stage.coordinator.expect_it_serves().unwrap();
    let shown = stage.coordinator.ask(&["tx", "show", &gtrid]).unwrap();
    let original =
        shown["transaction"]["traceparent"].as_str().unwrap_or_else(|| panic!("{shown}")).to_owned();
    let (of, span) = (&original[3..35], &original[36..52]);
    assert_eq!(of, hex(&trace), "the record has the application's trace");
    let retried = stage.coordinator.run(&["tx", "retry", &gtrid, "--reason", "back again"]).unwrap();
    assert_eq!(retried.code, 0, "{}", retried.stderr);
    stage.attach().await;
    committing.await.unwrap().unwrap();

    let both: &[&str] = &["ledger-db", "stock-db"];
    for (name, resources) in [("recover", both), ("operator retry", &[])] {
        let about = |exported: &&Exported| {
            exported.span.name == name && exported.attribute("lockstep.gtrid").as_deref() == Some(&gtrid)
        };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let root = loop {
            if let Some(root) = shared().collector.spans().iter().find(about) {
                break root.clone();
            }
            assert!(tokio::time::Instant::now() < deadline, "there is no span {name}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_ne!(root.span.trace_id, trace, "{name} is a trace of its own");
        assert_eq!(root.attribute("lockstep.situation").as_deref(), Some("undelivered"));
        let [link] = &root.span.links[..] else { panic!("{name} has {} links", root.span.links.len()) };
        assert_eq!((hex(&link.trace_id), hex(&link.span_id)), (of.to_owned(), span.to_owned()));
        // Both the delivery and the listing tell a branch what is decided: one of them finds it done.
        let own = spans(&root.span.trace_id, |spans| served(spans).len() >= resources.len()).await;
        let expected: BTreeSet<String> = resources.iter().map(ToString::to_string).collect();
        assert_eq!(served(&own), expected, "{name}: {}", tree(&own).unwrap());
    }
    // What the first life had not sent died with it; what the participants did then is there, in the trace that it was part of.
    let prepared = spans(&trace, |spans| named(spans, "prepare").len() >= 2).await;
    assert_eq!(named(&prepared, "prepare").iter().filter(|span| span.service == SERVICE).count(), 2);
}

/// The resource managers whose participants have committed in this trace.
fn served(spans: &[Exported]) -> BTreeSet<String> {
    let commits = named(spans, "commit").into_iter().filter(|exported| exported.service == SERVICE);
    commits.map(|exported| exported.attribute("lockstep.resource").unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_application_does_not_record_is_recorded_nowhere() {
    let stage = Stage::set(&[]).await;
    let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let context = Context::new().with_remote_span_context(stage::span_context(unsampled));
    let gtrid = async {
        let tx = stage.client.begin("transfer").start().await.unwrap();
        stage.call_each(&tx.context()).await;
        tx.commit().await.unwrap().gtrid
    }
    .with_context(context)
    .await;
    let shown = stage.coordinator.ask(&["tx", "show", &gtrid.to_string()]).unwrap();
    assert_eq!(shown["transaction"]["traceparent"], "", "nothing is kept: {shown}");
    // A transaction after it, so that whatever was sent of the first one would be there.
    let (context, trace) = application();
    let tx = stage.client.begin("transfer").start().with_context(context.clone()).await.unwrap();
    tx.rollback("a test").await.unwrap();
    drop(context);
    assert!(!spans(&trace, |spans| named(spans, "transaction transfer").len() == 1).await.is_empty());
    let unsampled =
        [0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36];
    assert!(shared().spans(&unsampled).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_without_a_collector_leaves_the_application_s_trace_whole() {
    let stage = Stage::untraced().await;
    let (context, trace) = application();
    async {
        let tx = stage.client.begin("transfer").start().await.unwrap();
        stage.call_each(&tx.context()).await;
        tx.commit().await.unwrap();
    }
    .with_context(context.clone())
    .await;
    context.span().end();
    drop(context);
    let all = spans(&trace, |spans| spans.len() >= 9).await;
    let text = tree(&all).unwrap();
    assert_eq!(all.len(), 9, "{text}");
    assert!(all.iter().all(|exported| exported.service == SERVICE), "{text}");
    assert!(
        text.contains("  shop: work [stock-db]\n    shop: begin [stock-db]\n    shop: commit [stock-db]\n"),
        "{text}"
    );
}
