//! What a server and a user have to be, and what is kept in the database (P21, P22).

use futures::future::join_all;
use lockstep::resource::{Resource as _, ResourceError};

use super::*;

async fn attach(url: &str) -> Result<Attachment, ResourceError> {
    MySql::new(pool(url, 2)).attach(&name(NAME)).await
}

fn unfit(result: Result<Attachment, ResourceError>) -> String {
    match result {
        Err(ResourceError::Unfit(why)) => why,
        other => panic!("{other:?}, and it should have been unfit"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_could_lose_a_branch_are_refused_by_name() {
    let mut server = server(&[("log-bin", "log"), ("sync-binlog", "1"), ("innodb-doublewrite", "0")]);
    server.create_database("ours").unwrap();
    let url = server.url("ours");
    let why = unfit(attach(&url).await);
    assert!(why.contains("innodb_doublewrite is OFF") && why.contains("restart"), "{why}");
    server.configure(&[("innodb-doublewrite", "1")]);
    server.restart().unwrap();
    attach(&url).await.unwrap();
    for (setting, bad) in [
        ("innodb_flush_log_at_trx_commit", "0"),
        ("innodb_flush_log_at_trx_commit", "2"),
        ("sync_binlog", "0"),
        ("sync_binlog", "100"),
        ("binlog_format", "STATEMENT"),
        ("default_storage_engine", "Aria"),
    ] {
        let good = server.sql("", &format!("SELECT @@GLOBAL.{setting}")).unwrap();
        server.sql("", &format!("SET GLOBAL {setting} = {bad}")).unwrap();
        let why = unfit(attach(&url).await);
        let (_, mend) = why.split_once("Mend it with:\n").unwrap();
        assert!(why.contains(setting) && mend.contains(&format!("SET GLOBAL {setting} = ")), "{why}");
        // What is named mends it.
        server.sql("", mend).unwrap();
        assert_eq!(server.sql("", &format!("SELECT @@GLOBAL.{setting}")).unwrap(), good, "{why}");
        attach(&url).await.unwrap();
    }
    // And with a binary log everything works.
    let site = Site::at(&url, 3).await;
    let branch = site.prepared(1).await;
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    assert_eq!(site.rollback(&site.branch()).await, Ok(Fate::RolledBack));
}

/// Instances of a service start together.
#[tokio::test]
async fn instances_that_attach_at_once_find_one_identity() {
    let database = fresh_database();
    let urls: Vec<String> = (0..8).map(|_| database.url()).collect();
    let found = join_all(urls.iter().map(|url| attach(url))).await;
    let found: Vec<Attachment> = found.into_iter().map(Result::unwrap).collect();
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:?}");
    assert_eq!(attach(&database.url()).await.unwrap(), found[0]);
    assert_eq!((found[0].cluster, &found[0].seen, found[0].timeline), (None, &seen([]), 0));
}

#[tokio::test]
async fn the_first_cluster_stays() {
    let site = Site::new().await;
    let (first, second) = (ClusterId::from_random(1), ClusterId::from_random(2));
    site.resource.bind(first).await.unwrap();
    site.resource.bind(second).await.unwrap();
    assert_eq!(attach(&site.url()).await.unwrap().cluster, Some(first));
}

#[tokio::test]
async fn identities_differ_by_name_and_by_database() {
    let (one, other) = (Site::new().await, Site::new().await);
    assert_ne!(one.attachment.identity, other.attachment.identity);
    assert_ne!(one.attachment.location, other.attachment.location);
    let neighbour = MySql::new(one.pool.clone());
    let attachment = neighbour.attach(&name("billing-db")).await.unwrap();
    assert_ne!(attachment.identity, one.attachment.identity);
    assert_eq!(attachment.location, one.attachment.location);
    // A copy carries the identity along, and is elsewhere.
    let copied = format!("UPDATE lockstep_identity SET identity = '{}'", one.attachment.identity);
    sqlx::raw_sql(AssertSqlSafe(copied)).execute(&other.pool).await.unwrap();
    let copy = attach(&other.url()).await.unwrap();
    assert_eq!(copy.identity, one.attachment.identity);
    assert_ne!(copy.location, one.attachment.location);
    unfit(neighbour.attach(&name(NAME)).await);
}

#[tokio::test]
async fn a_user_who_may_not_create_the_tables_is_told_what_to_run() {
    let database = fresh_database();
    let user = format!("{}_user", database.name);
    database.sql(&format!(
        "CREATE USER {user}@'127.0.0.1'; CREATE TABLE work (n int); GRANT ALL ON work TO {user}@'127.0.0.1'"
    ));
    let url = database.url_as(&user);
    let why = unfit(attach(&url).await);
    let (_, statements) = why.split_once(":\n").unwrap();
    let (create, grants) = statements.split_once("GRANT").unwrap();
    database.sql(create);
    let why = unfit(attach(&url).await);
    assert!(why.contains("may not") && why.contains(grants), "{why}");
    database.sql(&format!("GRANT{grants}"));
    // What was named is all that is needed.
    let resource = MySql::new(pool(&url, 2));
    resource.attach(&name(NAME)).await.unwrap();
    let cluster = ClusterId::from_random(rand::random());
    resource.bind(cluster).await.unwrap();
    let branch = branch_of(cluster, &name(NAME));
    let mut open = resource.begin(&branch, LONG).await.unwrap();
    run(&mut open, "INSERT INTO work VALUES (1)").await.unwrap();
    assert_eq!(resource.prepare(&branch, open, &position(1)).await, Ok(Prepared::Yes));
    assert_eq!(resource.commit(&branch, &position(1)).await, Ok(Fate::Committed));
    resource.oldest_evidence(cluster).await.unwrap();
    resource.old_evidence(cluster, Duration::ZERO, 1).await.unwrap();
    resource.forget(&[branch]).await.unwrap();
}

#[tokio::test]
async fn tables_of_a_newer_format_or_of_another_engine_are_refused() {
    let site = Site::new().await;
    sqlx::raw_sql("UPDATE lockstep_identity SET format = 2").execute(&site.pool).await.unwrap();
    let why = unfit(attach(&site.url()).await);
    assert!(why.contains("format 2"), "{why}");
    let other = Site::new().await;
    sqlx::raw_sql("ALTER TABLE lockstep_evidence ENGINE = MyISAM").execute(&other.pool).await.unwrap();
    let why = unfit(attach(&other.url()).await);
    assert!(why.contains("MyISAM"), "{why}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_unavailable_and_none_at_all_is_unfit() {
    let database = fresh_database();
    let result = attach(&format!("{}_missing", database.url())).await;
    assert!(
        matches!(&result, Err(ResourceError::Unavailable(why)) if why.contains("Unknown database")),
        "{result:?}"
    );
    let url = database.url();
    let (server, _) = url.rsplit_once('/').unwrap();
    let why = unfit(attach(server).await);
    assert!(why.contains("no database"), "{why}");
}
