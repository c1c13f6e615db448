//! A server that crashes, and one that takes no writes.

use std::cmp::Ordering;

use lockstep::resource::{Fate, Resource as _, ResourceError};
use lockstep_tests::harness::clock::now;
use sqlx::Connection as _;
use tokio::time::timeout;

use super::*;

/// With and without a binary log: it decides which prepared branches come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_server_loses_no_prepared_branch_and_no_evidence() {
    for settings in [&[][..], &[("log-bin", "log"), ("sync-binlog", "1")]] {
        let mut server = server(settings);
        server.create_database("ours").unwrap();
        let url = server.url("ours");
        let site = Site::at(&url, 5).await;
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
        // The evidence was not taken, so nothing is prepared.
        assert!(matches!(down.0, Ok(Prepared::No(_))), "{:?}", down.0);
        assert!(down.1.is_err() && down.2.is_err() && down.3.is_err(), "{down:?}");
        assert!(matches!(down.4, Err(ResourceError::Unavailable(_))), "{:?}", down.4);
        server.restart().unwrap();

        assert_eq!(site.resource.attach(&name(NAME)).await.unwrap().identity, site.attachment.identity);
        let again = Site::attached(&url, 5, site.cluster).await;
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
}

/// A prepare and a commit in one phase that a crash interrupts somewhere: whatever is said afterwards is so.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_middle_leaves_nothing_half_done() {
    let mut server = server(&[]);
    server.create_database("ours").unwrap();
    let url = server.url("ours");
    let mut rolled_back = Vec::new();
    for round in 0..4 {
        let site = Site::at(&url, 5).await;
        let (prepares, open_prepares) = site.written(1).await;
        let (commits, open_commits) = site.written(2).await;
        let before = (site.amount(1).await, site.amount(2).await);
        let pause = Duration::from_micros(500 * round);
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
        // The server does not wait for the disk when it rolls back: a crash may bring back what was.
        for branch in &rolled_back {
            assert_eq!(
                resolved(async || site.rollback(branch).await).await,
                Fate::RolledBack,
                "round {round}"
            );
        }
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
        rolled_back.push(prepares);
    }
}

/// By the server's uptime, which is in whole seconds, the branch could be older than the server.
#[tokio::test]
async fn a_branch_that_is_dropped_on_a_server_that_has_just_started_frees_its_locks_soon() {
    let server = server(&[]);
    server.create_database("ours").unwrap();
    let site = Site::at(&server.url("ours"), 8).await;
    let blocker = site.prepared(10).await;
    let mut waiting = Vec::new();
    for id in 1..=4 {
        let (branch, mut open) = site.written(id).await;
        let session = session_of(&mut open).await;
        assert_eq!(holder(&site.pool, &open_lock(&branch)).await, Some(session));
        timeout(Duration::from_millis(50), run(&mut open, &take_from(10))).await.unwrap_err();
        waiting.push((session, open));
    }
    for (session, open) in waiting {
        tokio::time::sleep(Duration::from_millis(250)).await;
        drop(open);
        eventually("the session ends", async || !is_running(&site.pool, session).await).await;
    }
    assert_eq!(site.rollback(&blocker).await, Ok(Fate::RolledBack));
}

/// P18. A server that was restarted numbers its sessions anew.
#[tokio::test]
async fn a_branch_that_the_server_lost_ends_nobody_elses_session() {
    let mut server = server(&[]);
    server.create_database("ours").unwrap();
    let url = server.url("ours");
    let site = Site::at(&url, 5).await;
    let mut open = site.resource.begin(&site.branch(), LONG * 10).await.unwrap();
    let lost = session_of(&mut open).await;
    server.kill().unwrap();
    server.restart().unwrap();
    let strangers = pool(&url, 50);
    let mut others = Vec::new();
    let mut theirs = loop {
        let mut connection = strangers.acquire().await.unwrap();
        match own_session(&mut connection).await.cmp(&lost) {
            Ordering::Less => others.push(connection),
            Ordering::Equal => break connection,
            Ordering::Greater => panic!("nobody has number {lost}"),
        }
    };
    let own_name = name(NAME);
    eventually("the resource is connected again", async || {
        site.resource.prepared(site.cluster, &own_name).await.is_ok()
    })
    .await;
    drop(open);
    eventually("it was tried to kill", async || {
        let kills = "SELECT CAST(variable_value AS SIGNED) FROM information_schema.global_status \
                     WHERE variable_name = 'Com_kill'";
        sqlx::query_scalar::<_, i64>(kills).fetch_one(&strangers).await.unwrap() > 0
    })
    .await;
    // It is counted before it is done.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(own_session(&mut theirs).await, lost);
}

/// A replica knows nothing for certain: nothing may follow from what it lacks. (Our user may write in spite of read_only.)
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_concluded_on_a_server_that_takes_no_writes() {
    let server = server(&[]);
    server.create_database("ours").unwrap();
    let url = server.url("ours");
    let site = Site::at(&url, 5).await;
    let (prepared, committed) = (site.prepared(1).await, site.prepared(2).await);
    assert_eq!(site.commit(&committed).await, Ok(Fate::Committed));
    server.sql("", "SET GLOBAL read_only = 1").unwrap();
    let replica = MySql::new(pool(&url, 2));
    let refused = replica.attach(&name(NAME)).await;
    assert!(
        matches!(&refused, Err(ResourceError::Unavailable(why)) if why.contains("read-only")),
        "{refused:?}"
    );
    let missing = site.branch();
    for asked in [site.commit(&missing).await, site.rollback(&missing).await, site.commit(&committed).await] {
        assert!(asked.as_ref().is_err_and(|why| why.0.contains("read-only")), "{asked:?}");
    }
    for why in [
        site.resource.prepared(site.cluster, &name(NAME)).await.map(drop).unwrap_err(),
        site.resource.oldest_evidence(site.cluster).await.map(drop).unwrap_err(),
    ] {
        assert!(why.0.contains("read-only"), "{why}");
    }
    server.sql("", "SET GLOBAL read_only = 0").unwrap();
    assert_eq!(replica.attach(&name(NAME)).await.unwrap().identity, site.attachment.identity);
    assert_eq!(site.resource.prepared(site.cluster, &name(NAME)).await.unwrap(), vec![prepared.xid.clone()]);
    assert_eq!(site.commit(&prepared).await, Ok(Fate::Committed));
    assert_eq!(site.rollback(&committed).await, Ok(Fate::Committed));
}

/// The same over the server's socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_can_be_reached_over_its_socket() {
    let server = server(&[]);
    server.create_database("ours").unwrap();
    let site = Site::at(&server.socket_url("ours"), 3).await;
    let branch = site.prepared(1).await;
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    assert_eq!(site.amount(1).await, 99);
}

/// P8: whoever attaches after a crash tells the coordinator of the decision, and not only of the prepare.
#[tokio::test(flavor = "multi_thread")]
async fn the_position_of_a_commit_is_as_durable_as_the_commit() {
    let mut server = server(&[]);
    server.create_database("ours").unwrap();
    let url = server.url("ours");
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
    server.create_database("ours").unwrap();
    let url = server.url("ours");
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

/// What is decided has to get through as soon as one of those leaves who have filled the server, or used up what their account may have.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_is_asked_again_until_somebody_leaves() {
    let server = server(&[("max-connections", "12")]);
    server.create_database("ours").unwrap();
    let everybody = server.url("ours");
    let mut admin = MySqlConnection::connect(&everybody).await.unwrap();
    let limited = "CREATE USER limited WITH MAX_USER_CONNECTIONS 3; GRANT ALL ON *.* TO limited";
    sqlx::raw_sql(limited).execute(&mut admin).await.unwrap();
    admin.close().await.unwrap();
    let as_user = |user| everybody.parse::<MySqlConnectOptions>().unwrap().username(user);
    let unlimited = everybody.parse::<MySqlConnectOptions>().unwrap();
    for (options, says) in [(as_user("limited"), "max_user_connections"), (unlimited, "Too many connections")]
    {
        let mut crowd = Vec::new();
        let full = loop {
            match MySqlConnection::connect_with(&options).await {
                Ok(one) => crowd.push(one),
                Err(full) => break full.to_string(),
            }
        };
        assert!(full.contains(says), "{full}");
        let resource = MySql::new(MySqlPoolOptions::new().connect_lazy_with(options.clone()));
        let (cluster, name) = (ClusterId::from_random(rand::random()), name(NAME));
        let (prepared, ()) = tokio::join!(resource.prepared(cluster, &name), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            crowd.pop().unwrap().close().await.unwrap();
        });
        assert_eq!(prepared, Ok(Vec::new()));

        // That one has taken the place.
        let other = MySql::new(MySqlPoolOptions::new().connect_lazy_with(options));
        let told = other.prepared(cluster, &name).await.unwrap_err();
        assert!(told.0.contains(says), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_may_not_come_in_is_told_at_once() {
    let server = server(&[]);
    let options =
        server.url("mysql").parse::<MySqlConnectOptions>().unwrap().username("nobody").password("x");
    let resource = MySql::new(MySqlPoolOptions::new().connect_lazy_with(options));
    let cluster = ClusterId::from_random(rand::random());
    let started = now();
    let told = resource.prepared(cluster, &name(NAME)).await.unwrap_err();
    assert!(told.0.contains("Access denied"), "{told}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}
