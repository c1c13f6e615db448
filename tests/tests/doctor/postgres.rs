//! PostgreSQL: settings, tables, privileges, and what is prepared.

use std::time::Duration;

use lockstep::Postgres;
use lockstep::resource::{Prepared, Resource as _, ResourceError};
use lockstep_tests::harness::postgres::{Database, PostgresServer, fresh_database};
use sqlx::PgPool;

use super::*;

const LONG: Duration = Duration::from_secs(600);

async fn attach(url: &str) -> Result<(), ResourceError> {
    let pool = PgPool::connect(url).await.unwrap();
    Postgres::new(pool).attach(&name("orders-db")).await.map(drop)
}

/// The same faults keep a participant from attaching.
async fn is_refused(url: &str, words: &str) {
    match attach(url).await {
        Err(ResourceError::Unfit(why)) => assert!(why.contains(words), "{why}"),
        other => panic!("{other:?}, and it should have been unfit"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_mends_a_setting_mends_it() {
    let bad = [("max_prepared_transactions", "0"), ("fsync", "off"), ("full_page_writes", "off")];
    let mut server = PostgresServer::start_with(&bad).unwrap();
    let url = server.url("postgres");
    let found = of_postgres(&url);
    assert_eq!(found.code, UNFIT);
    found.says("slots", "error", "max_prepared_transactions is 0");
    found.says("fsync", "error", "fsync is off");
    found.says("full-page-writes", "error", "full_page_writes is off");
    let restart = found.finding("slots")["mend"][1].as_str().unwrap();
    assert!(restart.starts_with("pg_ctl restart -D '/"), "{restart}");
    for (check, setting) in [("slots", "max_prepared"), ("fsync", "fsync"), ("full-page-writes", "full_page")]
    {
        is_refused(&url, setting).await;
        for statement in found.statements(check) {
            server.psql("postgres", &statement).unwrap();
        }
        server.restart().unwrap();
    }
    let found = of_postgres(&url);
    assert_eq!(found.code, OK, "{:#}", found.json);
    let slots = found.says("slots", "ok", "100 of 100");
    assert_eq!((&slots["figures"]["set"], &slots["figures"]["left"]), (&100.into(), &100.into()));
    found.says("fsync", "ok", "on");
    found.says("full-page-writes", "ok", "on");
    found.says("clock", "ok", "within");
    // The server runs on this machine, and the superuser may know where.
    assert!(found.finding("disk")["figures"]["free_mib"].as_i64().unwrap() >= 0);
    attach(&url).await.unwrap();

    server.restart_as_standby().unwrap();
    let found = of_postgres(&url);
    assert_eq!(found.code, UNFIT);
    found.says("standby", "error", "standby in recovery");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_mends_missing_privileges_mends_them() {
    let database = fresh_database();
    database.psql("CREATE ROLE doctor_app LOGIN");
    let url = database.url_as("doctor_app");
    let before = of_postgres(&url);
    assert_eq!(before.code, UNFIT);
    before.says("tables", "error", "may not create");
    assert_eq!(
        of_postgres(&database.url()).says("tables", "note", "next attach")["mend"],
        Value::Array(vec![])
    );
    database.psql(&before.statements("tables").join("\n"));
    let after = of_postgres(&url);
    assert_eq!(after.code, OK, "{:#}", after.json);
    after.says("tables", "ok", "evidence, identity and positions are there, and the role may use them");
    after.says("identity", "note", "no resource manager");
    attach(&url).await.unwrap();
    let attached = of_postgres(&url);
    attached.says("identity", "ok", "orders-db: not bound");
    attached.says("functions", "ok", "are there");
    attached.says("search-path", "ok", "do not go into");

    for right in ["DELETE ON lockstep.evidence", "USAGE ON SCHEMA lockstep"] {
        database.psql(&format!("REVOKE {right} FROM doctor_app"));
        let closed = of_postgres(&url);
        closed.says("tables", "error", "may not use");
        is_refused(&url, "may not use").await;
        database.psql(&closed.statements("tables").join("\n"));
        attach(&url).await.unwrap();
    }

    // As an SDK from before the third table has left it: a role that may not make one is told what to have made.
    database.psql("DROP TABLE lockstep.positions");
    let older = of_postgres(&url);
    older.says("tables", "error", "may not create");
    is_refused(&url, "may not create").await;
    database.psql(&older.statements("tables").join("\n"));
    of_postgres(&url).says("tables", "ok", "positions");
    attach(&url).await.unwrap();
}

/// Functions that are not there cost something, and stop nothing.
#[tokio::test(flavor = "multi_thread")]
async fn missing_functions_are_noted_with_what_makes_them() {
    let database = fresh_database();
    database.psql("CREATE ROLE doctor_caller LOGIN");
    let url = database.url_as("doctor_caller");
    database.psql(&of_postgres(&url).statements("tables").join("\n"));
    of_postgres(&url).says("functions", "ok", "are there");

    database.psql("DROP FUNCTION lockstep.write_evidence");
    of_postgres(&database.url()).says("functions", "note", "the next attach makes it");
    let twice =
        "CREATE FUNCTION lockstep.keep_position(\"a Name\" int) RETURNS int LANGUAGE sql AS 'SELECT 1'";
    let harms = [
        ("DROP FUNCTION IF EXISTS lockstep.write_evidence", "note", "lockstep.write_evidence"),
        (
            "REVOKE EXECUTE ON FUNCTION lockstep.keep_position FROM public, doctor_caller",
            "warning",
            "closed to the role",
        ),
        ("ALTER FUNCTION lockstep.keep_position SECURITY DEFINER", "warning", "lockstep.keep_position"),
        (twice, "warning", "there twice"),
        ("ALTER ROLE doctor_caller SET quote_all_identifiers = on", "ok", "are there"),
    ];
    for (harm, severity, words) in harms {
        database.psql(harm);
        let found = of_postgres(&url);
        found.says("functions", severity, words);
        attach(&url).await.unwrap();
        found.says("tables", "ok", "are there");
        database.psql(&found.statements("functions").join("\n"));
        of_postgres(&url).says("functions", "ok", "are there");
    }
}

/// Tables that are there, and would not keep what they prove.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_prove_nothing_are_refused() {
    let database = fresh_database();
    database.psql("CREATE ROLE doctor_reader LOGIN");
    database.psql(&format!("GRANT CREATE ON DATABASE {} TO doctor_reader", database.name));
    attach(&database.url()).await.unwrap();
    database.psql(
        "GRANT USAGE ON SCHEMA lockstep TO doctor_reader; GRANT ALL ON ALL TABLES IN SCHEMA lockstep TO doctor_reader",
    );
    let url = database.url_as("doctor_reader");
    for (harm, words) in [
        ("ALTER TABLE lockstep.evidence SET UNLOGGED", "unlogged"),
        ("ALTER TABLE lockstep.identity SET UNLOGGED", "unlogged"),
        ("ALTER TABLE lockstep.evidence ENABLE ROW LEVEL SECURITY", "row level security"),
    ] {
        database.psql(harm);
        let found = of_postgres(&url);
        assert_eq!(found.code, UNFIT);
        found.says("tables", "error", words);
        is_refused(&url, words).await;
        database.psql(&found.statements("tables").join("\n"));
        attach(&url).await.unwrap();
    }
    database.psql("UPDATE lockstep.identity SET format = 2");
    of_postgres(&url).says("format", "error", "format 2");
    is_refused(&url, "format 2").await;
    database.psql("UPDATE lockstep.identity SET format = 1");
    database.psql("ALTER TABLE lockstep.evidence DROP CONSTRAINT branch_too_late_to_prepare");
    of_postgres(&url).says("tables", "error", "branch_too_late_to_prepare");
    is_refused(&url, "branch_too_late_to_prepare").await;
}

/// A table of somebody else's that has our name.
#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_a_role_that_is_called_lockstep_do_not_pass_for_ours() {
    let database = fresh_database();
    database.psql("CREATE ROLE lockstep LOGIN");
    database.psql(&format!("GRANT CREATE ON DATABASE {} TO lockstep", database.name));
    let url = database.url_as("lockstep");
    attach(&url).await.unwrap();
    let found = of_postgres(&url);
    found.says("search-path", "warning", "\"$user\"");
    // What it warns of does happen.
    database.psql("SET SESSION AUTHORIZATION lockstep; CREATE TABLE items (n int)");
    of_postgres(&url).says("search-path", "warning", "not Lockstep's: items");
    database.psql(&found.statements("search-path").join("\n"));
    let moved = of_postgres(&url);
    moved.says("search-path", "warning", "not Lockstep's: items");
    assert_eq!(moved.statements("search-path"), ["ALTER TABLE lockstep.items SET SCHEMA public;"]);
    database.psql(&moved.statements("search-path").join("\n"));
    of_postgres(&url).says("search-path", "ok", "do not go into");

    let other = fresh_database();
    other.psql("CREATE SCHEMA lockstep; CREATE TABLE lockstep.evidence (n int); CREATE TABLE lockstep.identity (n int)");
    is_refused(&other.url(), "evidence_pkey").await;
}

/// A participant that has prepared one branch, which holds the row 1 of `account`.
async fn with_a_prepared_branch(database: &Database, cluster: ClusterId) -> (Postgres, BranchId) {
    database.psql("CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, amount int); INSERT INTO account VALUES (1, 1)");
    let resource = Postgres::new(PgPool::connect(&database.url()).await.unwrap());
    resource.attach(&name("orders-db")).await.unwrap();
    resource.bind(cluster).await.unwrap();
    let branch = branch(cluster);
    let mut open = resource.begin(&branch, LONG).await.unwrap();
    sqlx::raw_sql("UPDATE account SET amount = 2").execute(Postgres::connection(&mut open)).await.unwrap();
    assert_eq!(resource.prepare(&branch, open, &position()).await, Ok(Prepared::Yes));
    (resource, branch)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_prepared_is_told_apart_with_what_it_blocks() {
    let database = fresh_database();
    let (resource, ours) = with_a_prepared_branch(&database, ClusterId::from_random(1)).await;
    let url = database.url();
    let found = of_postgres(&url);
    let prepared = found.says("prepared", "note", "branches prepared: 1,");
    assert_eq!(prepared["figures"]["count"], 1);
    found.says("orphans", "ok", "no branch of another cluster");
    found.says("blocked", "ok", "nobody waits");

    let stranger = branch(ClusterId::from_random(2));
    let prepare = |gid: &str| format!("BEGIN; CREATE TABLE t{} (); PREPARE TRANSACTION '{gid}'", gid.len());
    database.psql(&prepare(&format!("lockstep:{stranger}")));
    database.psql(&prepare("it''s theirs"));
    let found = of_postgres(&url);
    assert_eq!(found.code, OK, "{:#}", found.json);
    let orphans = found.says("orphans", "warning", "never attached to this database: 1,");
    let ask = format!("lockstep tx wait --cluster {} {}", stranger.cluster, stranger.xid.gtrid);
    assert_eq!(orphans["mend"], serde_json::json!([ask]));
    let foreign = found.says("foreign-prepared", "note", "Lockstep never touches them");
    assert_eq!(foreign["figures"]["count"], 1);

    blocks_a_session(&database, &ours).await;
    // From another database of the server they are counted, and are nobody's orphans.
    let elsewhere = of_postgres(&fresh_database().url());
    elsewhere.says("other-databases", "note", &database.name);
    elsewhere.says("orphans", "ok", "no branch");

    // Another role may not finish what this one has prepared.
    database.psql("CREATE ROLE doctor_other LOGIN; GRANT USAGE ON SCHEMA lockstep TO doctor_other");
    database.psql("GRANT ALL ON ALL TABLES IN SCHEMA lockstep TO doctor_other");
    let other = of_postgres(&database.url_as("doctor_other"));
    assert_eq!(other.code, UNFIT);
    other.says("owner", "error", "doctor_other may not finish: 1, they belong to harness");
    let theirs = Postgres::new(PgPool::connect(&database.url_as("doctor_other")).await.unwrap());
    theirs.attach(&name("orders-db")).await.unwrap();
    let refused = theirs.commit(&ours, &position()).await.unwrap_err();
    assert!(refused.0.contains("42501"), "{refused}");

    resource.rollback(&ours, &position()).await.unwrap();
    database.psql(&format!("ROLLBACK PREPARED 'lockstep:{stranger}'"));
    database.psql("ROLLBACK PREPARED 'it''s theirs'");
    of_postgres(&url).says("prepared", "ok", "no branch");
}

/// Somebody waits for the row, and then somebody for the table.
async fn blocks_a_session(database: &Database, holder: &BranchId) {
    let pool = PgPool::connect(&database.url()).await.unwrap();
    let mut waiting = Vec::new();
    let row = ("UPDATE account SET amount = 3 WHERE id = 1", "a row that it changed");
    let table = ("LOCK TABLE account IN ACCESS EXCLUSIVE MODE", "public.account");
    for (sql, object) in [row, table] {
        let mut connection = pool.acquire().await.unwrap();
        let pid: i32 =
            sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *connection).await.unwrap();
        let task = tokio::spawn(async move {
            // Ended by the test, with its connection.
            drop(sqlx::raw_sql(sqlx::AssertSqlSafe(format!("BEGIN; {sql}"))).execute(&mut *connection).await);
        });
        waiting.push((pid, task));
        let found = until_it_is_seen(database, waiting.len()).await;
        let what = found["what"].as_str().unwrap();
        let (_, said) = what.split_once(&format!("pid {pid} for ")).unwrap();
        let (_, said) = said.split_once(" (").unwrap();
        assert!(said.starts_with(&format!("{object}, held by lockstep:{holder})")), "{what}");
        assert_eq!(found["severity"], "warning");
        assert_eq!(found["mend"], serde_json::json!([format!("lockstep tx show {}", holder.xid.gtrid)]));
    }
    for (pid, task) in waiting {
        database.psql(&format!("SELECT pg_terminate_backend({pid})"));
        task.await.unwrap();
    }
}

/// The finding, once so many sessions wait.
async fn until_it_is_seen(database: &Database, waiting: usize) -> Value {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let found = of_postgres(&database.url()).finding("blocked").clone();
        if found["figures"]["count"] == waiting {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{waiting} sessions are not seen to wait: {found:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_reached_and_a_url_that_is_none_have_codes_of_their_own() {
    let database = fresh_database();
    let missing = format!("{}_missing", database.url());
    let ran = lockstep(&["doctor", "--postgres", &missing]);
    assert_eq!((ran.code, ran.stdout.as_str()), (UNREACHABLE, ""), "{ran:?}");
    assert!(ran.stderr.contains("does not exist"), "{ran:?}");
    let refused = "postgres://app:s3cret@127.0.0.1:1/bank";
    let ran = lockstep(&["doctor", "--postgres", refused]);
    assert_eq!(ran.code, UNREACHABLE, "{ran:?}");
    assert!(
        ran.stderr.contains("postgres://app@127.0.0.1:1/bank") && !ran.stderr.contains("s3cret"),
        "{ran:?}"
    );
    let ran = lockstep(&["doctor", "--postgres", "app:s3cret@db"]);
    assert_eq!(ran.code, USAGE, "{ran:?}");
    assert!(!ran.stderr.contains("s3cret"), "{ran:?}");
    assert_eq!(lockstep(&["doctor"]).code, USAGE);
    assert_eq!(lockstep(&["doctor", "--postgres", refused, "--sqlite", "x"]).code, USAGE);

    let with_password = database.url().replace("@", ":s3cret@");
    for format in [&["doctor", "--postgres"][..], &["doctor", "--json", "--postgres"]] {
        let ran = lockstep(&[format, &[&with_password]].concat());
        assert_eq!(ran.code, OK, "{ran:?}");
        assert!(!format!("{ran:?}").contains("s3cret"), "{ran:?}");
    }
}
