//! Servers that would lose what they acknowledge.

use lockstep_coordinator::decision_log::DecisionLog;
use lockstep_coordinator::decision_log::contract::{commit, decisions, gtrid};
use lockstep_coordinator::decision_log::postgres::{
    Accepted, OpenError, Options, PostgresLog, Setting, Unfit,
};
use lockstep_tests::harness::postgres::{PostgresServer, fresh_database};

use super::{leased, own};

async fn refused(options: &Options, setting: Setting) -> String {
    let refused = PostgresLog::open(options).await.map(drop).unwrap_err();
    assert!(
        matches!(&refused, OpenError::Unfit { why: Unfit::NotDurable { setting: found, .. }, .. } if *found == setting),
        "{refused}"
    );
    refused.to_string()
}

#[tokio::test]
async fn a_server_without_fsync_or_full_page_writes_is_refused_by_name() {
    for setting in [Setting::Fsync, Setting::FullPageWrites] {
        let server = PostgresServer::start_with(&[(setting.name(), "off")]).unwrap();
        let options = leased(&server.url("postgres"), "a");
        let told = refused(&options, setting).await;
        assert!(told.contains(&format!("{setting} = off")), "{told}");
        assert!(told.contains(&format!("--insecure-log-settings {setting}")), "{told}");

        let accepted = Options { accepted: Accepted::new(&[setting]), ..options };
        let (log, opened) = PostgresLog::open(&accepted).await.unwrap();
        assert!(opened.durability.contains("INSECURE") && opened.durability.contains(setting.name()));
        log.force(&decisions(&[commit(gtrid(own(&log), 0, 1))])).await.unwrap();
    }
}

#[tokio::test]
async fn a_role_whose_commits_do_not_wait_is_refused() {
    let database = fresh_database();
    for value in ["off", "local", "remote_write"] {
        let role = format!("hasty_{value}_{}", database.name);
        database.psql(&format!(
            "CREATE ROLE {role} LOGIN SUPERUSER; ALTER ROLE {role} SET synchronous_commit = {value}"
        ));
        let told = refused(&leased(&database.url_as(&role), "a"), Setting::SynchronousCommit).await;
        assert!(told.contains(&format!("synchronous_commit = {value}")), "{told}");
        // Another setting's name does not do.
        let other =
            Options { accepted: Accepted::new(&[Setting::Fsync]), ..leased(&database.url_as(&role), "a") };
        refused(&other, Setting::SynchronousCommit).await;
    }
}

/// The fence needs it: in a repeatable read, a statement that has waited for a seal would fail instead of looking again, or not wait.
#[tokio::test]
async fn the_role_s_own_isolation_does_not_count() {
    let database = fresh_database();
    let role = format!("odd_{}", database.name);
    database.psql(&format!(
        "CREATE ROLE {role} LOGIN SUPERUSER; ALTER ROLE {role} SET default_transaction_isolation = 'serializable'; \
         ALTER ROLE {role} SET default_transaction_read_only = on"
    ));
    let (log, _opened) = PostgresLog::open(&leased(&database.url_as(&role), "a")).await.unwrap();
    for n in 0..10 {
        log.force(&decisions(&[commit(gtrid(own(&log), 0, n))])).await.unwrap();
    }
}

#[tokio::test]
async fn a_standby_is_refused() {
    let mut server = PostgresServer::start().unwrap();
    let options = leased(&server.url("postgres"), "a");
    drop(PostgresLog::open(&options).await.unwrap());
    server.restart_as_standby().unwrap();
    let refused = PostgresLog::open(&options).await.map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::Unfit { why: Unfit::Standby, .. }), "{refused}");
}
