//! What a server and a role have to be, and what is kept in the database (P21, P22).

use futures::future::join_all;
use lockstep::resource::{Resource as _, ResourceError};

use super::*;

async fn attach(url: &str) -> Result<Attachment, ResourceError> {
    Postgres::new(pool(url, 2)).attach(&name(NAME)).await
}

fn unfit(result: Result<Attachment, ResourceError>) -> String {
    match result {
        Err(ResourceError::Unfit(why)) => why,
        other => panic!("{other:?}, and it should have been unfit"),
    }
}

#[tokio::test]
async fn settings_that_could_lose_a_branch_are_refused_by_name() {
    let mut server = server(&[("max_prepared_transactions", "0")]);
    let url = server.url("postgres");
    for (setting, good) in [("max_prepared_transactions", "2"), ("fsync", "on"), ("full_page_writes", "on")] {
        if good == "on" {
            server.configure(&[(setting, "off")]).unwrap();
            server.restart().unwrap();
        }
        let why = unfit(attach(&url).await);
        assert!(why.contains(setting) && why.contains(&format!("ALTER SYSTEM SET {setting} = ")), "{why}");
        server.configure(&[(setting, good)]).unwrap();
        server.restart().unwrap();
    }
    slots_run_out(&url).await;
}

/// On a server with two slots.
async fn slots_run_out(url: &str) {
    let site = Site::at(url, 5).await;
    site.resource.bind(site.cluster).await.unwrap();
    let first = site.prepared(1).await;
    let second = site.prepared(2).await;
    let (third, open) = site.written(3).await;
    let reason = reason(site.prepare(&third, open).await);
    assert!(reason.contains("all slots are taken"), "{reason}");
    assert_eq!(site.rollback(&third).await, Ok(Fate::RolledBack));
    // A new process has to attach to free the slots that its own branches hold.
    attach(url).await.unwrap();
    // Nobody else can do anything about it.
    let neighbour = Postgres::new(pool(url, 1)).attach(&name("billing-db")).await;
    assert!(
        matches!(&neighbour, Err(ResourceError::Unavailable(why)) if why.contains("all 2 slots")),
        "{neighbour:?}"
    );
    assert_eq!(site.commit(&first).await, Ok(Fate::Committed));
    assert_eq!(site.commit(&second).await, Ok(Fate::Committed));
    Postgres::new(pool(url, 1)).attach(&name("billing-db")).await.unwrap();
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
    assert_eq!((found[0].cluster, &found[0].seen, found[0].timeline), (None, &seen([]), 1));
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
    let neighbour = Postgres::new(one.pool.clone());
    let attachment = neighbour.attach(&name("billing-db")).await.unwrap();
    assert_ne!(attachment.identity, one.attachment.identity);
    assert_eq!(attachment.location, one.attachment.location);
    // A copy carries the identity along, and is elsewhere.
    let copied = format!("UPDATE lockstep.identity SET identity = '{}'", one.attachment.identity);
    sqlx::raw_sql(AssertSqlSafe(copied)).execute(&other.pool).await.unwrap();
    let copy = attach(&other.url()).await.unwrap();
    assert_eq!(copy.identity, one.attachment.identity);
    assert_ne!(copy.location, one.attachment.location);
    unfit(neighbour.attach(&name(NAME)).await);
}

#[tokio::test]
async fn a_role_that_may_not_create_the_tables_is_told_what_to_run() {
    let database = fresh_database();
    database.psql(
        "CREATE ROLE may_not_create LOGIN; CREATE TABLE work (n int); GRANT ALL ON work TO may_not_create",
    );
    let url = database.url_as("may_not_create");
    let why = unfit(attach(&url).await);
    let (_, statements) = why.split_once(":\n").unwrap();
    let (create, grants) = statements.split_once("GRANT").unwrap();
    database.psql(create);
    let why = unfit(attach(&url).await);
    assert!(why.contains("may not use") && why.contains(grants), "{why}");
    database.psql(&format!("GRANT{grants}"));
    // What was named is all that is needed.
    let resource = Postgres::new(pool(&url, 2));
    resource.attach(&name(NAME)).await.unwrap();
    let cluster = ClusterId::from_random(3);
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
async fn tables_of_a_newer_format_are_refused() {
    let site = Site::new().await;
    sqlx::raw_sql("UPDATE lockstep.identity SET format = 2").execute(&site.pool).await.unwrap();
    let why = unfit(attach(&site.url()).await);
    assert!(why.contains("format 2"), "{why}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_unavailable() {
    let url = format!("{}_missing", fresh_database().url());
    let result = attach(&url).await;
    assert!(
        matches!(&result, Err(ResourceError::Unavailable(why)) if why.contains("does not exist")),
        "{result:?}"
    );
}
