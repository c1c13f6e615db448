//! The example of a store of one's own: its reservations and a database's rows are one transaction, over a real coordinator.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::path::Path;
use std::time::Duration;

use axum::http::StatusCode;
use lockstep::{Context, Participant, Transaction};
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::roles::Roles;
use reservations::Ledger;
use reservations::service::{self, Order};
use serde_json::json;
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(30);

/// A shop's service, in this process.
struct Shop {
    ledger: Ledger,
    participant: Participant<Ledger>,
    url: String,
}

impl Shop {
    async fn start(directory: &Path, name: &str, coordinator: &str) -> Self {
        std::fs::create_dir_all(directory.join(name)).unwrap();
        let ledger = Ledger::new(directory.join(name));
        ledger.add_item("chair", 10).await.unwrap();
        let attached = Participant::builder(name, ledger.clone()).coordinator(coordinator).attach();
        let participant = tokio::time::timeout(PATIENCE, attached).await.expect("it attaches").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = service::router(participant.clone(), ledger.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { ledger, participant, url }
    }

    async fn order(&self, what: &str, context: &Context, reference: &str, count: u32) -> StatusCode {
        let order = Order { reference: reference.to_owned(), item: "chair".to_owned(), count };
        let request = reqwest::Client::new().post(format!("{}/{what}", self.url));
        let request = request.header(lockstep::CONTEXT_HEADER, context.to_string()).json(&order);
        request.send().await.unwrap().status()
    }

    async fn chairs(&self) -> serde_json::Value {
        let answer = reqwest::get(format!("{}/items", self.url)).await.unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    }
}

/// Moves chairs from one shop to another, in a transaction that is not ended yet.
async fn moved(tx: &Transaction, from: &Shop, to: &Shop, reference: &str) {
    assert_eq!(from.order("reserve", &tx.context(), reference, 3).await, StatusCode::OK);
    assert_eq!(to.order("restock", &tx.context(), reference, 3).await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn reservations_are_part_of_a_transaction() {
    let directory = tempfile::tempdir().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let mut lockstep = Coordinator::start(&roles, directory.path(), &[], None).unwrap();
    lockstep.expect_it_serves().unwrap();
    let near = Shop::start(directory.path(), "near", &lockstep.url()).await;
    let far = Shop::start(directory.path(), "far", &lockstep.url()).await;
    let client = lockstep::Client::connect(lockstep.url()).await.unwrap();

    let tx = client.begin("move").start().await.unwrap();
    moved(&tx, &near, &far, "move 1").await;
    assert_eq!(near.chairs().await, json!({"chair": 10}), "nothing is to be seen before the commit");
    let committed = tx.commit().await.unwrap();
    assert_eq!((committed.branches, committed.branches_pending), (2, 0));
    assert_eq!((near.chairs().await, far.chairs().await), (json!({"chair": 7}), json!({"chair": 13})));

    let tx = client.begin("move").start().await.unwrap();
    moved(&tx, &near, &far, "move 2").await;
    tx.rollback("changed my mind").await.unwrap();
    assert_eq!((near.chairs().await, far.chairs().await), (json!({"chair": 7}), json!({"chair": 13})));

    // The shop's own no: nothing is left in the other one either.
    let tx = client.begin("move").start().await.unwrap();
    assert_eq!(far.order("restock", &tx.context(), "move 3", 8).await, StatusCode::OK);
    let refused = near.order("reserve", &tx.context(), "move 3", 8).await;
    assert_eq!(refused, StatusCode::UNPROCESSABLE_ENTITY);
    tx.rollback("the near shop has too few").await.unwrap();
    assert_eq!((near.chairs().await, far.chairs().await), (json!({"chair": 7}), json!({"chair": 13})));

    // Alone, it is committed in one phase.
    let tx = client.begin("sale").start().await.unwrap();
    assert_eq!(near.order("reserve", &tx.context(), "sale", 7).await, StatusCode::OK);
    assert_eq!(tx.commit().await.unwrap().branches, 1);
    assert_eq!(near.ledger.entry("sale").await.unwrap(), Some(("chair".to_owned(), -7)));
    for shop in [near, far] {
        shop.participant.detach(PATIENCE).await;
    }
}
