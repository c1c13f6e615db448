//! MariaDB: settings, tables, privileges, and what is prepared.

use std::time::Duration;

use lockstep::MySql;
use lockstep::resource::{Prepared, Resource as _, ResourceError};
use lockstep_tests::harness::mariadb::{MariaDbServer, fresh_database};
use sqlx::MySqlPool;

use super::*;

async fn attach(url: &str) -> Result<(), ResourceError> {
    let pool = MySqlPool::connect(url).await.unwrap();
    MySql::new(pool).attach(&name("orders-db")).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_mends_a_setting_mends_it() {
    let server = MariaDbServer::start_with(&[("log-bin", "log"), ("sync-binlog", "0")]).unwrap();
    server.create_database("ours").unwrap();
    let url = server.url("ours");
    server.sql("", "SET GLOBAL innodb_flush_log_at_trx_commit = 2").unwrap();
    let found = of_mysql(&url);
    assert_eq!(found.code, UNFIT);
    found.says("flush-log", "error", "innodb_flush_log_at_trx_commit is 2");
    found.says("sync-binlog", "error", "sync_binlog is 0");
    for check in ["flush-log", "sync-binlog"] {
        assert!(matches!(attach(&url).await, Err(ResourceError::Unfit(_))));
        for statement in found.statements(check) {
            server.sql("", &statement).unwrap();
        }
    }
    attach(&url).await.unwrap();
    let found = of_mysql(&url);
    assert_eq!(found.code, OK, "{:#}", found.json);
    found.says("clock", "ok", "within");
    server.sql("", "SET GLOBAL read_only = 1").unwrap();
    of_mysql(&url).says("standby", "error", "read-only");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_mends_missing_privileges_mends_them() {
    let database = fresh_database();
    let user = format!("{}_doctor", database.name);
    database.sql(&format!("CREATE TABLE work (n int); CREATE USER {user}@'127.0.0.1'"));
    database.sql(&format!("GRANT ALL ON work TO {user}@'127.0.0.1'"));
    let url = database.url_as(&user);
    let before = of_mysql(&url);
    assert_eq!(before.code, UNFIT);
    before.says("tables", "error", "may not use");
    before.says("blocked", "note", "not to be seen");
    of_mysql(&database.url()).says("tables", "note", "the next attach makes those that are missing");
    for statement in [before.statements("tables"), before.statements("blocked")].concat() {
        database.sql(&statement);
    }
    let after = of_mysql(&url);
    assert_eq!(after.code, OK, "{:#}", after.json);
    after.says("blocked", "ok", "nobody waits");
    attach(&url).await.unwrap();
    of_mysql(&url).says("identity", "ok", "orders-db: not bound");

    // As an SDK from before the third table has left it, and a user that may not make one.
    database.sql("DROP TABLE lockstep_positions");
    database.sql(&format!("REVOKE ALL ON lockstep_positions FROM {user}@'127.0.0.1'"));
    let older = of_mysql(&url);
    older.says("tables", "error", "may not use");
    for statement in older.statements("tables") {
        database.sql(&statement);
    }
    of_mysql(&url).says("tables", "ok", "lockstep_positions");
    attach(&url).await.unwrap();

    database.sql("ALTER TABLE lockstep_evidence ENGINE = Aria; ALTER TABLE work ENGINE = Aria");
    let found = of_mysql(&url);
    assert_eq!(found.code, UNFIT);
    found.says("tables", "error", "engine Aria");
    found.says("engines", "warning", "work");
    assert!(matches!(attach(&url).await, Err(ResourceError::Unfit(why)) if why.contains("engine Aria")));
    for statement in [found.statements("tables"), found.statements("engines")].concat() {
        database.sql(&statement);
    }
    let mended = of_mysql(&url);
    mended.says("tables", "ok", "may be used");
    mended.says("engines", "ok", "all tables");
    database.sql("UPDATE lockstep_identity SET format = 2");
    of_mysql(&url).says("format", "error", "format 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_prepared_is_told_apart_with_what_it_blocks() {
    let server = MariaDbServer::start().unwrap();
    server.create_database("ours").unwrap();
    let url = server.url("ours");
    server
        .sql(
            "ours",
            "CREATE TABLE account (id int PRIMARY KEY, amount int); INSERT INTO account VALUES (1, 1)",
        )
        .unwrap();
    let resource = MySql::new(MySqlPool::connect(&url).await.unwrap());
    resource.attach(&name("orders-db")).await.unwrap();
    let cluster = ClusterId::from_random(1);
    resource.bind(cluster).await.unwrap();
    let ours = branch(cluster);
    let mut open = resource.begin(&ours, Duration::from_secs(600)).await.unwrap();
    sqlx::raw_sql("UPDATE account SET amount = 2").execute(MySql::connection(&mut open)).await.unwrap();
    assert_eq!(resource.prepare(&ours, open, &position()).await, Ok(Prepared::Yes));
    let stranger = branch(ClusterId::from_random(2));
    for (xid, n) in [
        (format!("'{}:{}','{}',1819239275", stranger.cluster, stranger.xid.gtrid, stranger.xid.bqual), 7),
        ("'theirs'".to_owned(), 8),
    ] {
        let work =
            format!("XA START {xid}; INSERT INTO account VALUES ({n}, 1); XA END {xid}; XA PREPARE {xid}");
        server.sql("ours", &work).unwrap();
    }
    let found = of_mysql(&url);
    assert_eq!(found.code, OK, "{:#}", found.json);
    // Its gtrid says that it began long ago.
    let prepared = found.says("prepared", "warning", "branches prepared: 1,");
    assert_eq!(prepared["mend"], serde_json::json!([format!("lockstep tx show {}", ours.xid.gtrid)]));
    let ask = format!("lockstep tx wait --cluster {} {}", stranger.cluster, stranger.xid.gtrid);
    assert_eq!(found.finding("orphans")["mend"], serde_json::json!([ask]));
    found.says("foreign-prepared", "note", "not Lockstep's: 1");
    found.says("blocked", "ok", "nobody waits");

    let waiting = MySqlPool::connect(&url).await.unwrap();
    let task = tokio::spawn(async move {
        sqlx::raw_sql("UPDATE account SET amount = 3 WHERE id = 1").execute(&waiting).await.map(drop)
    });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let found = of_mysql(&url);
        if found.finding("blocked")["figures"]["count"] == 1 {
            found.says("blocked", "warning", "account");
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "nobody is seen to wait: {:#}", found.json);
        // MariaDB answers from a copy that it renews only when nobody has asked for 0.1 s.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    resource.rollback(&ours, &position()).await.unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_not_shown() {
    let refused = "mysql://app:s3cret@127.0.0.1:1/bank";
    let ran = lockstep(&["doctor", "--mysql", refused]);
    assert_eq!(ran.code, UNREACHABLE, "{ran:?}");
    assert!(ran.stderr.contains("mysql://app@127.0.0.1:1/bank") && !ran.stderr.contains("s3cret"), "{ran:?}");
    for url in ["postgres://app:s3cret@db/bank", "mysql://app:s3cret@db:port/bank", "mysql://app:s3cret@db"] {
        let ran = lockstep(&["doctor", "--mysql", url]);
        assert_eq!(ran.code, USAGE, "{ran:?}");
        assert!(!ran.stderr.contains("s3cret"), "{ran:?}");
    }
}
