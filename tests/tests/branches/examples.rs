//! The examples of the SDK, as they stand there: run against a real `lockstep serve`, and short.

use super::*;

const AXUM: &str = include_str!("../../../participant-sdk/examples/axum/src/lib.rs");
const TONIC: &str = include_str!("../../../participant-sdk/examples/tonic/src/lib.rs");

/// What a line has to have to be about Lockstep.
const OURS: [&str; 8] =
    ["lockstep::", "Participant", "Context", "branch.", "join(", "tx.", "attach", "transaction("];

#[test]
fn an_example_takes_at_most_twenty_lines_of_lockstep() {
    for (name, text) in [("axum", AXUM), ("tonic", TONIC)] {
        let code = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
        let ours = code.filter(|line| OURS.iter().any(|word| line.contains(word))).collect::<Vec<_>>();
        assert!((8..=20).contains(&ours.len()), "{name} has {}: {ours:#?}", ours.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_axum_example_orders_in_both_databases_or_in_neither() {
    let stage = Stage::set().await;
    let url = stage.coordinator.url();
    let result = tokio::time::timeout(PATIENCE, example_axum::run(&url)).await.unwrap();
    let ([first, second], ordered, free) = result.map_err(|refused| format!("{refused:?}")).unwrap();
    assert_eq!(first, "200 ");
    assert_eq!(second, "409 no chair is left");
    assert_eq!((ordered, free), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tonic_example_reserves_both_or_nothing() {
    let stage = Stage::set().await;
    let url = stage.coordinator.url();
    let (second, free) = tokio::time::timeout(PATIENCE, example_tonic::run(&url)).await.unwrap().unwrap();
    assert!(second.contains("none is left"), "{second}");
    assert_eq!(free, [("chair".to_owned(), 1), ("table".to_owned(), 0)]);
}
