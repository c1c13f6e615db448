//! A server that crashes, and one that is a standby.

use lockstep::resource::{Fate, Resource as _, ResourceError};
use lockstep_tests::harness::clock::now;
use sqlx::Connection as _;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_server_loses_no_prepared_branch_and_no_evidence() {
    let mut server = server(&[]);
    let site = Site::at(&server.url("postgres"), 5).await;
    let (commits, rolls_back) = (site.prepared(1).await, site.prepared(2).await);
    let committed = site.prepared(3).await;
    assert_eq!(site.commit(&committed).await, Ok(Fate::Committed));
    let (open_branch, open) = site.written(4).await;
    let fenced = site.branch();
    assert_eq!(site.rollback(&fenced).await, Ok(Fate::RolledBack));
    server.kill().unwrap();
    let (branch, position, own_name) = (site.branch(), position(1), name(NAME));
    let down = tokio::join!(
        site.resource.prepare(&open_branch, open, &position),
        site.commit(&commits),
        site.rollback(&rolls_back),
        site.resource.prepared(site.cluster, &own_name),
        site.resource.begin(&branch, Duration::from_millis(500)),
    );
    assert!(down.0.is_err() && down.1.is_err() && down.2.is_err() && down.3.is_err(), "{down:?}");
    assert!(matches!(down.4, Err(ResourceError::Unavailable(_))), "{:?}", down.4);
    server.restart().unwrap();

    assert_eq!(site.resource.attach(&name(NAME)).await.unwrap().identity, site.attachment.identity);
    let again = Site::attached(&server.url("postgres"), 5, site.cluster).await;
    assert_eq!(again.attachment.timeline, site.attachment.timeline);
    assert_eq!(again.attachment.location, site.attachment.location);
    assert_eq!(again.resource.prepared(site.cluster, &name(NAME)).await.unwrap().len(), 2);
    assert_eq!(resolved(async || site.commit(&commits).await).await, Fate::Committed);
    assert_eq!(resolved(async || site.rollback(&rolls_back).await).await, Fate::RolledBack);
    assert_eq!(resolved(async || site.rollback(&open_branch).await).await, Fate::RolledBack);
    assert_eq!(again.commit(&committed).await, Ok(Fate::Committed));
    assert_eq!(again.commit(&fenced).await, Ok(Fate::RolledBack));
    let amounts =
        [again.amount(1).await, again.amount(2).await, again.amount(3).await, again.amount(4).await];
    assert_eq!(amounts, [99, 100, 99, 100]);
}

/// A prepare and a commit in one phase that a crash interrupts somewhere: whatever is said afterwards is so.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_middle_leaves_nothing_half_done() {
    let mut server = server(&[]);
    let url = server.url("postgres");
    for round in 0..3 {
        let site = Site::at(&url, 5).await;
        let (prepares, open_prepares) = site.written(1).await;
        let (commits, open_commits) = site.written(2).await;
        let before = (site.amount(1).await, site.amount(2).await);
        let pause = Duration::from_micros(150 * round);
        let one = position(1);
        let (prepared, committed, killed) = tokio::join!(
            site.resource.prepare(&prepares, open_prepares, &one),
            site.resource.commit_one_phase(&commits, open_commits, &one),
            async {
                tokio::time::sleep(pause).await;
                server.kill()
            }
        );
        killed.unwrap();
        server.restart().unwrap();
        let site = Site::attached(&url, 5, site.cluster).await;
        let listed = site.resource.prepared(site.cluster, &name(NAME)).await.unwrap();
        if let Ok(answer) = prepared {
            let expected = if answer == Prepared::Yes { vec![prepares.xid.clone()] } else { vec![] };
            assert_eq!(listed, expected, "round {round}");
        }
        assert_eq!(
            resolved(async || site.rollback(&prepares).await).await,
            Fate::RolledBack,
            "round {round}"
        );
        let fate = resolved(async || site.resource.prove(&commits, &one).await).await;
        if let Ok(answer) = committed {
            assert_eq!(answer, fate, "round {round}");
        }
        let took = i32::from(fate == Fate::Committed);
        assert_eq!(
            (site.amount(1).await, site.amount(2).await),
            (before.0, before.1 - took),
            "round {round}"
        );
    }
}

/// `pg_prepared_xacts` is empty on a standby, and nothing can be written: nothing may follow from either.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_concluded_on_a_standby_and_a_promotion_is_a_new_timeline() {
    let mut server = server(&[]);
    let url = server.url("postgres");
    let site = Site::at(&url, 5).await;
    let (prepared, committed) = (site.prepared(1).await, site.prepared(2).await);
    assert_eq!(site.commit(&committed).await, Ok(Fate::Committed));
    assert_eq!(site.attachment.timeline, 1);
    server.restart_as_standby().unwrap();

    let standby = Postgres::new(pool(&url, 2));
    let refused = standby.attach(&name(NAME)).await;
    assert!(
        matches!(&refused, Err(ResourceError::Unavailable(why)) if why.contains("standby")),
        "{refused:?}"
    );
    // The first question only finds that the old connections are gone.
    drop(site.commit(&prepared).await);
    for branch in [&prepared, &committed, &site.branch()] {
        assert!(standby.commit(branch, &position(1)).await.is_err());
        assert!(standby.rollback(branch, &position(1)).await.is_err());
        assert!(standby.prove(branch, &position(1)).await.is_err());
    }
    for why in [
        standby.prepared(site.cluster, &name(NAME)).await.unwrap_err(),
        resolved_to_an_error(async || site.resource.oldest_evidence(site.cluster).await).await,
    ] {
        assert!(why.0.contains("standby"), "{why}");
    }
    let begun = standby.begin(&site.branch(), LONG).await;
    assert!(matches!(begun, Err(ResourceError::Unavailable(_))), "{begun:?}");

    assert_eq!(server.psql("postgres", "SELECT pg_promote()").unwrap(), "t");
    let attachment = standby.attach(&name(NAME)).await.unwrap();
    assert_eq!((attachment.timeline, attachment.identity), (2, site.attachment.identity));
    assert_eq!(standby.prepared(site.cluster, &name(NAME)).await.unwrap(), vec![prepared.xid.clone()]);
    assert_eq!(standby.commit(&prepared, &position(1)).await, Ok(Fate::Committed));
    assert_eq!(standby.rollback(&committed, &position(1)).await, Ok(Fate::Committed));
}

/// The error that a question settles on.
async fn resolved_to_an_error<T: std::fmt::Debug, F: Future<Output = Result<T, Unresolved>>>(
    mut ask: impl FnMut() -> F,
) -> Unresolved {
    let asking = async {
        loop {
            let why = ask().await.expect_err("an answer where there should be none");
            if why.0.contains("standby") {
                return why;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asking).await.expect("it does not say why")
}

/// P8: whoever attaches after a crash tells the coordinator of the decision, and not only of the prepare.
#[tokio::test(flavor = "multi_thread")]
async fn the_position_of_a_commit_is_as_durable_as_the_commit() {
    let mut server = server(&[]);
    let url = server.url("postgres");
    let mut site = Site::at(&url, 5).await;
    site.resource.bind(site.cluster).await.unwrap();
    for (number, id) in (10..).zip(1..=5) {
        let branch = site.prepared(id).await;
        let fate = match number % 2 {
            0 => site.resource.commit(&branch, &position(number)).await,
            _ => site.resource.prove(&branch, &position(number)).await,
        };
        // At once: nothing is written out meanwhile that the commit itself has not forced.
        server.kill().unwrap();
        assert_eq!(fate, Ok(Fate::Committed));
        server.restart().unwrap();
        site = Site::attached(&url, 5, site.cluster).await;
        assert_eq!(site.amount(id).await, 99);
        assert_eq!(site.attachment.seen, seen([position(number)]));
    }
}

/// A standby that got neither: the acknowledged commit is undone there, and the acknowledged prepare is gone.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_a_branch_that_is_back_is_committed_again_and_a_lost_one_is_known_to_be_lost() {
    let mut server = server(&[]);
    let url = server.url("postgres");
    let site = Site::at(&url, 5).await;
    site.resource.bind(site.cluster).await.unwrap();
    let is_back = site.prepared(1).await;
    server.keep_files().unwrap();
    // The service's pool finds out that its connections are gone.
    let site = Site::attached(&url, 5, site.cluster).await;
    assert_eq!(site.commit(&is_back).await, Ok(Fate::Committed));
    let is_lost = site.prepared(2).await;
    server.fail_over().unwrap();

    let after = Site::attached(&url, 5, site.cluster).await;
    assert_eq!(after.resource.prepared(site.cluster, &name(NAME)).await, Ok(vec![is_back.xid.clone()]));
    assert_eq!(after.amount(1).await, 100, "its commit is undone");
    assert_eq!(after.attachment.seen, seen([]));
    // The process that lived on knows more than its database, and does not take it for kept.
    let found = async || site.resource.attach(&name(NAME)).await.ok().map(|attachment| attachment.seen);
    eventually("it has found that its connections are gone", async || {
        found().await == Some(seen([position(2)]))
    })
    .await;
    assert_eq!(site.commit(&is_back).await, Ok(Fate::Committed));
    assert_eq!(after.amount(1).await, 99);
    assert_eq!(Site::attached(&url, 5, site.cluster).await.attachment.seen, seen([position(2)]));
    assert_eq!(after.commit(&is_lost).await, Ok(Fate::RolledBack));
    assert_eq!(after.amount(2).await, 100);
}

/// A commit that waits for a standby is done when the standby has it, and not before: whoever goes away, and whatever is asked
/// meanwhile. Cancelling that wait would only warn, and the branch would be committed here alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_a_standby_is_neither_answered_nor_cancelled() {
    let server = server(&[]);
    let site = Site::at(&server.url("postgres"), 5).await;
    let branch = site.prepared(1).await;
    let set = |standbys: &str| {
        server
            .psql("postgres", &format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'"))
            .unwrap();
        server.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    };
    set("nobody");
    // The server takes a while to notice the setting: until somebody's write waits.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let is_noticed = async || {
        let mut probe = sqlx::PgConnection::connect(&server.url("postgres")).await.unwrap();
        let write = sqlx::raw_sql("UPDATE account SET amount = amount WHERE id = 10").execute(&mut probe);
        let has_waited = tokio::time::timeout(Duration::from_secs(1), write).await.is_err();
        has_waited && site.scalar::<i64>(waiting).await == 1
    };
    eventually("the server waits for a standby", is_noticed).await;
    // Whoever asked goes away in the middle.
    let commit = tokio::time::timeout(Duration::from_secs(1), site.commit(&branch)).await;
    assert!(commit.is_err(), "{commit:?}");
    assert_eq!(site.scalar::<i64>(waiting).await, 2, "the server waits on");
    for asked in [site.commit(&branch).await, site.rollback(&branch).await] {
        assert!(asked.as_ref().is_err_and(|why| why.0.contains("busy")), "{asked:?}");
    }
    assert_eq!(site.amount(1).await, 100, "nobody sees it yet");
    set("");
    assert_eq!(resolved(async || site.rollback(&branch).await).await, Fate::Committed);
    assert_eq!(site.amount(1).await, 99);
}

/// What is decided has to get through as soon as one of those leaves who have filled the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_is_asked_again_until_somebody_leaves() {
    let server = server(&[("max_connections", "12")]);
    let url = server.url("postgres");
    let mut crowd = Vec::new();
    let full = loop {
        match PgConnection::connect(&url).await {
            Ok(one) => crowd.push(one),
            Err(full) => break full.to_string(),
        }
    };
    assert!(full.contains("too many clients"), "{full}");
    let resource = Postgres::new(pool(&url, 5));
    let (cluster, name) = (ClusterId::from_random(rand::random()), name(NAME));
    let (prepared, ()) = tokio::join!(resource.prepared(cluster, &name), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        crowd.pop().unwrap().close().await.unwrap();
    });
    assert_eq!(prepared, Ok(Vec::new()));

    // That one has taken the place.
    let other = Postgres::new(pool(&url, 5));
    let told = other.prepared(cluster, &name).await.unwrap_err();
    assert!(told.0.contains("too many clients"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_does_not_exist_is_told_at_once() {
    let server = server(&[]);
    let resource = Postgres::new(pool(&server.url_as("nobody", "postgres"), 5));
    let cluster = ClusterId::from_random(rand::random());
    let started = now();
    let told = resource.prepared(cluster, &name(NAME)).await.unwrap_err();
    assert!(told.0.contains("nobody"), "{told}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}
