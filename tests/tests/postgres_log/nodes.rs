//! What `lockstep cluster ls` reads.

use std::time::Duration;

use lockstep_coordinator::decision_log::contract::{commit, gtrid};
use lockstep_coordinator::decision_log::postgres::{Accepted, NodeState, Options, Renewal, nodes};
use lockstep_coordinator::decision_log::{AppendError, DecisionLog};
use lockstep_tests::harness::postgres::fresh_database;

use super::{LONG, decide, leased, open, options, own};

#[tokio::test]
async fn nodes_are_told_with_their_leases_and_who_has_taken_over() {
    let database = fresh_database();
    let gone = open(&options(&database.url(), "gone")).await;
    decide(&gone, &commit(gtrid(own(&gone), 0, 1))).await.unwrap();
    // Takes over, leaves nothing of its own, and is over too.
    let empty = open(&options(&database.url(), "empty")).await;
    let live = open(&leased(&database.url(), "live")).await;
    live.renew(Renewal { floor_ms: 1, live: 17 }).await.unwrap();
    let late = open(&options(&database.url(), "late")).await;

    let list = |all| {
        let url = database.url();
        async move { nodes(&url, Accepted::default(), all).await.unwrap() }
    };
    let shown = list(false).await;
    let told: Vec<_> = shown
        .iter()
        .map(|node| (node.node.as_str(), node.epoch, node.state, node.live, node.unfinished, node.adopted_by))
        .collect();
    assert_eq!(
        told,
        [
            ("late", own(&late), NodeState::Expired, 0, 0, None),
            ("live", own(&live), NodeState::Live, 17, 0, None),
            ("gone", own(&gone), NodeState::Sealed, 0, 1, Some(own(&live))),
        ]
    );
    assert!(Duration::from_millis(shown[1].lease_ms) > LONG);
    assert_eq!(shown[0].lease_ms, 0);
    let all = list(true).await;
    assert_eq!(all.len(), 4);
    assert_eq!((all[2].epoch, all[2].adopted_by), (own(&empty), Some(own(&live))));
    // A lease that was given up is none any more.
    live.close().await;
    assert_eq!(list(false).await[1].state, NodeState::Expired);
}

/// Whoever renews its lease hears who else is to be attached to.
#[tokio::test]
async fn who_renews_its_lease_is_told_where_the_others_are_reached() {
    let database = fresh_database();
    let gone = open(&options(&database.url(), "gone")).await;
    let here = open(&leased(&database.url(), "here")).await; // Seals it.
    let nameless = Options { address: None, ..leased(&database.url(), "nameless") };
    let _nameless = open(&nameless).await;
    let drained = open(&leased(&database.url(), "drained")).await;
    drained.close().await;
    // Its lease has run out, and nobody knows yet whether it is gone.
    let late = open(&options(&database.url(), "late")).await;

    let told = here.renew(Renewal { floor_ms: 1, live: 0 }).await.unwrap();
    let told: Vec<_> = told.iter().map(|node| (node.epoch, node.address.as_str())).collect();
    assert_eq!(told, [(own(&late), "http://late:7420"), (own(&here), "http://here:7420")]);
    assert!(matches!(gone.renew(Renewal { floor_ms: 1, live: 0 }).await, Err(AppendError::Sealed(_))));
}
