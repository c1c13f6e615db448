//! Servers that would lose what they acknowledge.

use lockstep_coordinator::decision_log::contract::{commit, decisions, gtrid};
use lockstep_coordinator::decision_log::postgres::{
    Accepted, OpenError, Options, PostgresLog, Renewal, Setting, Unfit,
};
use lockstep_coordinator::decision_log::{AppendError, DecisionLog};
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

/// What was asked when a connection was made holds as long as there is that connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_wait_for_the_standby_also_after_the_server_was_told_that_they_need_not() {
    let server = PostgresServer::start().unwrap();
    let log = std::sync::Arc::new(super::open(&leased(&server.url("postgres"), "a")).await);
    log.force(&decisions(&[commit(gtrid(own(&log), 0, 1))])).await.unwrap();
    server.psql("postgres", "ALTER SYSTEM SET synchronous_commit = off").unwrap();
    super::wait_for_nobody(&server, true);
    super::until_at(&server, "the setting", "SELECT current_setting('synchronous_commit') = 'off'").await;
    let (writer, decision) = (std::sync::Arc::clone(&log), commit(gtrid(own(&log), 0, 2)));
    let mut write = tokio::spawn(async move { writer.force(&decisions(&[decision])).await });
    let early = tokio::time::timeout(std::time::Duration::from_secs(2), &mut write).await;
    assert!(early.is_err(), "it was acknowledged, and no standby has it: {early:?}");
    super::wait_for_nobody(&server, false);
    tokio::time::timeout(super::LONG, write).await.unwrap().unwrap().unwrap();
}

/// A node that runs is not asked again by a new connection; its lease asks.
#[tokio::test]
async fn a_server_that_is_told_to_lose_decisions_ends_the_nodes_that_run_on_it() {
    for setting in [Setting::Fsync, Setting::FullPageWrites] {
        let server = PostgresServer::start().unwrap();
        let options = leased(&server.url("postgres"), "a");
        let log = super::open(&options).await;
        let accepted =
            Options { accepted: Accepted::new(&[setting]), ..leased(&server.url("postgres"), "b") };
        let careless = super::open(&accepted).await;
        let renewal = Renewal { floor_ms: 1, live: 0 };
        log.renew(renewal).await.unwrap();
        server.psql("postgres", &format!("ALTER SYSTEM SET {setting} = off")).unwrap();
        server.psql("postgres", "SELECT pg_reload_conf()").unwrap();
        let over = renew_until_over(&log, renewal);
        let told = tokio::time::timeout(std::time::Duration::from_secs(10), over).await.unwrap();
        assert!(
            matches!(&told, AppendError::Unknown(why) if why.contains(&format!("{setting} = off"))),
            "{told}"
        );
        let late = log.force(&decisions(&[commit(gtrid(own(&log), 0, 1))])).await;
        assert!(matches!(late, Err(AppendError::Unknown(_))), "{late:?}");
        careless.renew(renewal).await.unwrap();
    }
}

async fn renew_until_over(log: &PostgresLog, renewal: Renewal) -> AppendError {
    loop {
        if let Err(over) = log.renew(renewal).await {
            return over;
        }
    }
}
