//! What is checked before there is a log.

use lockstep_coordinator::decision_log::DecisionLog;
use lockstep_coordinator::decision_log::contract::{commit, gtrid};
use lockstep_coordinator::decision_log::postgres::{
    Accepted, OpenError, Options, PostgresLog, SchemaError, migrate,
};
use lockstep_tests::harness::postgres::fresh_database;

use super::{decide, leased, look, open, own};

#[tokio::test]
async fn a_start_without_permission_makes_no_schema() {
    let database = fresh_database();
    let options = Options { migrate: false, ..leased(&database.url(), "a") };
    let refused = PostgresLog::open(&options).await.map(drop).unwrap_err();
    assert!(
        matches!(&refused, OpenError::Schema { source: SchemaError::Missing { found: 0, needed: 4 }, .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("lockstep migrate"), "{refused}");
    assert_eq!(database.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'lockstep_log'"), "0");

    migrate(&database.url(), Accepted::default()).await.unwrap();
    migrate(&database.url(), Accepted::default()).await.unwrap();
    open(&options).await;
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_the_older_one_that_runs_goes_on() {
    let database = fresh_database();
    let log = open(&leased(&database.url(), "a")).await;
    // What a newer version does while this one is running: it adds to what is there.
    database.psql(
        "ALTER TABLE lockstep_log.transactions ADD COLUMN chain bytea; \
         INSERT INTO lockstep_log.migrations (version, description, success, checksum, execution_time) \
         VALUES (99, 'from the future', true, '', 0)",
    );
    for may_migrate in [false, true] {
        let options = Options { migrate: may_migrate, ..leased(&database.url(), "b") };
        let refused = PostgresLog::open(&options).await.map(drop).unwrap_err();
        assert!(
            matches!(&refused, OpenError::Schema { source: SchemaError::Newer { found: 99 }, .. }),
            "{refused}"
        );
    }
    let decision = commit(gtrid(own(&log), 0, 1));
    decide(&log, &decision).await.unwrap();
    assert_eq!(look(&log, decision.gtrid).await.recorded.decision(), Some(&decision));
}

#[tokio::test]
async fn nodes_that_start_at_once_are_one_cluster_with_epochs_of_their_own() {
    let database = fresh_database();
    let opening = (0..4).map(|n| {
        let options = leased(&database.url(), &format!("node {n}"));
        tokio::spawn(async move { open(&options).await })
    });
    let logs: Vec<PostgresLog> =
        futures::future::join_all(opening).await.into_iter().map(|opened| opened.unwrap()).collect();
    let mut epochs: Vec<u32> = logs.iter().map(|log| own(log).get()).collect();
    epochs.sort_unstable();
    assert_eq!(epochs, [1, 2, 3, 4]);
    assert!(logs.iter().all(|log| log.cluster() == logs[0].cluster()));
}

#[tokio::test]
async fn an_address_that_is_none_is_told_without_its_password() {
    for (url, shown) in [
        ("http://127.0.0.1/x", "http://127.0.0.1/x"),
        ("mysql://lockstep:s3cret@127.0.0.1/x", "mysql://…@127.0.0.1/x"),
    ] {
        let refused = PostgresLog::open(&leased(url, "a")).await.map(drop).unwrap_err();
        assert!(matches!(refused, OpenError::Url(_)), "{refused}");
        assert!(refused.to_string().contains(shown), "{refused}");
        assert!(!refused.to_string().contains("s3cret"), "{refused}");
    }
}
