//! The evidence table as a whole: what holds the horizon back, what may be pruned, and what pruning must keep
//! (P7, P8, P19).

use lockstep::resource::{EvidenceRow, Resource as _};

use super::*;

const HOUR: Duration = Duration::from_secs(60 * 60);

impl Site {
    /// A branch that is committed, of a gtrid of this epoch and time, prepared when `position` was the newest.
    async fn committed(&self, epoch: u32, unix_ms: u64, position: LogPosition) -> BranchId {
        let branch = branch_begun(self.cluster, &name(NAME), epoch, unix_ms);
        let mut open = self.resource.begin(&branch, LONG).await.unwrap();
        run(&mut open, &take_from(1)).await.unwrap();
        assert_eq!(self.resource.prepare(&branch, open, &position).await, Ok(Prepared::Yes));
        assert_eq!(self.resource.commit(&branch, &position).await, Ok(Fate::Committed));
        branch
    }

    /// As if their deadline had been this long ago.
    async fn age(&self, branches: &[&BranchId], interval: &str) {
        for branch in branches {
            sqlx::query("UPDATE lockstep.evidence SET deadline = now() - $2::interval WHERE xid = $1")
                .bind(branch.to_string())
                .bind(interval)
                .execute(&self.pool)
                .await
                .unwrap();
        }
    }

    async fn old(&self) -> Vec<EvidenceRow> {
        self.resource.old_evidence(self.cluster, HOUR, 100).await.unwrap()
    }

    /// What a new process would say of the newest positions.
    async fn seen(&self) -> Positions {
        self.other_instance().await.attachment.seen
    }
}

#[tokio::test]
async fn the_oldest_evidence_is_that_of_the_oldest_transaction_that_committed() {
    let site = Site::new().await;
    assert_eq!(site.resource.oldest_evidence(site.cluster).await, Ok(None));
    // In text, epoch 9 comes behind epoch 10; in time, the one of epoch 10 is older.
    let young = site.committed(9, 3_000, position(1)).await;
    assert_eq!(site.resource.oldest_evidence(site.cluster).await, Ok(Some(young.xid.gtrid)));
    let old = site.committed(10, 2_000, position(1)).await;
    site.committed(1, 4_000, position(1)).await;
    // Fences, other clusters and other resource managers hold nothing back.
    site.rollback(&branch_begun(site.cluster, &name(NAME), 1, 1_000)).await.unwrap();
    assert_eq!(site.resource.oldest_evidence(site.cluster).await, Ok(Some(old.xid.gtrid)));
    assert_eq!(site.resource.oldest_evidence(ClusterId::from_random(1)).await, Ok(None));
    let neighbour = Postgres::new(site.pool.clone());
    neighbour.attach(&name("billing-db")).await.unwrap();
    assert_eq!(neighbour.oldest_evidence(site.cluster).await, Ok(None));
    // Not committed yet: it is in the listing, and not here.
    let prepared = branch_begun(site.cluster, &name(NAME), 1, 500);
    let mut open = site.resource.begin(&prepared, LONG).await.unwrap();
    run(&mut open, &take_from(2)).await.unwrap();
    assert_eq!(site.prepare(&prepared, open).await, Prepared::Yes);
    assert_eq!(site.resource.oldest_evidence(site.cluster).await, Ok(Some(old.xid.gtrid)));
    assert_eq!(site.commit(&prepared).await, Ok(Fate::Committed));
    assert_eq!(site.resource.oldest_evidence(site.cluster).await, Ok(Some(prepared.xid.gtrid)));
}

#[tokio::test]
async fn evidence_is_old_when_the_deadline_of_its_branch_is_long_past() {
    let site = Site::new().await;
    let branch = site.committed(1, 1_000, position(1)).await;
    let fence = site.branch();
    assert_eq!(site.rollback(&fence).await, Ok(Fate::RolledBack));
    let deadlines: Vec<f64> = sqlx::query_scalar(
        "SELECT extract(epoch FROM deadline - now())::float8 FROM lockstep.evidence ORDER BY kind",
    )
    .fetch_all(&site.pool)
    .await
    .unwrap();
    assert!((50.0..=61.0).contains(&deadlines[0]), "the branch's own deadline: {deadlines:?}");
    // A fence doesn't know the deadline of its branch: it outlives the latest one.
    assert!(deadlines[1] > 24.0 * 3_600.0, "{deadlines:?}");

    assert_eq!(site.old().await, []);
    site.age(&[&branch, &fence], "59 minutes").await;
    assert_eq!(site.old().await, []);
    site.age(&[&fence], "61 minutes").await;
    site.age(&[&branch], "62 minutes").await;
    // It may have been committed just now: its retention counts from here.
    assert_eq!(site.old().await, [EvidenceRow { branch: fence.clone(), fate: Fate::RolledBack }]);
    site.age(&[&branch], "59 minutes").await;
    assert_eq!(site.old().await.len(), 1);
    site.age(&[&branch], "62 minutes").await;
    let rows = [
        EvidenceRow { branch: branch.clone(), fate: Fate::Committed },
        EvidenceRow { branch: fence.clone(), fate: Fate::RolledBack },
    ];
    assert_eq!(site.old().await, rows);
    assert_eq!(site.resource.old_evidence(site.cluster, HOUR, 1).await.unwrap(), rows[..1]);
    assert_eq!(site.resource.old_evidence(ClusterId::from_random(1), HOUR, 9).await.unwrap(), []);
    let neighbour = Postgres::new(site.pool.clone());
    neighbour.attach(&name("billing-db")).await.unwrap();
    assert_eq!(neighbour.old_evidence(site.cluster, HOUR, 9).await.unwrap(), []);
}

/// Whoever was told to commit a branch must find its evidence, be the commit hours late, or done again after a failover, or by hand.
#[tokio::test]
async fn evidence_of_a_late_commit_is_kept_as_long_as_any_other() {
    let site = Site::new().await;
    let branches = [site.committed(1, 1_000, position(1)).await, site.committed(1, 1_000, position(1)).await];
    site.age(&[&branches[0], &branches[1]], "10 hours").await;
    let old = async |retention, limit| {
        site.resource.old_evidence(site.cluster, retention, limit).await.unwrap().len()
    };
    for _again in 0..2 {
        assert_eq!(old(HOUR, 100).await, 0, "they were seen just now");
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(old(Duration::from_secs(1), 100).await, 2, "seen a second ago");
    // What is committed in one phase was never in doubt, and a list that is full of new rows hides no old ones.
    let late = site.committed(1, 1_000, position(1)).await;
    site.age(&[&late], "11 hours").await;
    assert_eq!(old(Duration::from_secs(1), 1).await, 1);
    let at_once = site.branch();
    let mut open = site.resource.begin(&at_once, LONG).await.unwrap();
    run(&mut open, &take_from(1)).await.unwrap();
    let fate = site.resource.commit_one_phase(&at_once, open, &position(1)).await;
    assert_eq!(fate, Ok(Fate::Committed));
    site.age(&[&at_once], "2 hours").await;
    let rows = site.old().await;
    assert_eq!(rows, [EvidenceRow { branch: at_once, fate: Fate::Committed }]);
}

#[tokio::test]
async fn forgetting_removes_rows_by_key_and_keeps_the_newest_position_of_each_epoch() {
    let site = Site::new().await;
    site.resource.bind(site.cluster).await.unwrap();
    assert_eq!(site.seen().await, seen([]));
    let newest = site.committed(1, 1_000, position_in(2, 7)).await;
    let other = site.committed(1, 2_000, position_in(1, 900)).await;
    let stays = site.committed(1, 3_000, position_in(2, 6)).await;
    let both = seen([position_in(1, 900), position_in(2, 7)]);
    assert_eq!(site.seen().await, both);

    site.resource.forget(&[newest.clone(), other.clone()]).await.unwrap();
    site.resource.forget(&[newest, other]).await.unwrap();
    site.resource.forget(&[]).await.unwrap();
    assert_eq!(site.scalar::<String>("SELECT xid FROM lockstep.evidence").await, stays.to_string());
    assert_eq!(site.seen().await, both, "P8: what was pruned is still known to have been");
    site.resource.forget(&[stays]).await.unwrap();
    assert_eq!(site.seen().await, both);
    site.committed(1, 4_000, position_in(2, 8)).await;
    assert_eq!(site.seen().await, seen([position_in(1, 900), position_in(2, 8)]));
}

/// As an SDK has left it that knew one position only: the table is made, and what was kept counts with the rest.
#[tokio::test]
async fn the_one_position_that_an_older_sdk_has_kept_is_still_reported() {
    let site = Site::new().await;
    site.resource.bind(site.cluster).await.unwrap();
    let other = site.committed(1, 1_000, position_in(1, 900)).await;
    let as_it_was = "DROP TABLE lockstep.positions; UPDATE lockstep.identity \
         SET seen_epoch = 2, seen_incarnation = '07070707-0707-0707-0707-070707070707', seen_sequence = 7";
    sqlx::raw_sql(as_it_was).execute(&site.pool).await.unwrap();
    let both = seen([position_in(1, 900), position_in(2, 7)]);
    assert_eq!(site.seen().await, both);
    site.resource.forget(&[other]).await.unwrap();
    assert_eq!(site.seen().await, both);
}

/// An epoch that was sealed when a newer one began.
#[tokio::test]
async fn what_is_settled_goes_with_the_position_that_settles_it() {
    let site = Site::new().await;
    site.resource.bind(site.cluster).await.unwrap();
    for (id, epoch) in [(1, 1), (2, 2)] {
        let branch = site.prepared(id).await;
        assert_eq!(site.resource.commit(&branch, &position_in(epoch, 5)).await, Ok(Fate::Committed));
        site.resource.forget(&[branch]).await.unwrap();
    }
    let first = position_in(1, 0).epoch;
    site.resource.settle(&position_in(3, 1), &[first]).await.unwrap();
    let left = seen([position_in(2, 5), position_in(3, 1)]);
    assert_eq!(site.seen().await, left);
    assert_eq!(site.resource.attach(&name(NAME)).await.unwrap().seen, left, "nor has the process kept it");
}

/// The decision about a branch is newer than what its evidence knows.
#[tokio::test]
async fn a_process_remembers_the_newest_position_that_it_was_told() {
    let site = Site::new().await;
    let branch = site.prepared(1).await;
    assert_eq!(site.resource.commit(&branch, &position(50)).await, Ok(Fate::Committed));
    assert_eq!(site.resource.commit(&branch, &position(40)).await, Ok(Fate::Committed));
    let attachment = site.resource.attach(&name(NAME)).await.unwrap();
    assert_eq!(attachment.seen, seen([position(50)]));
}

/// A row that is prepared is nobody's to delete.
#[tokio::test]
async fn the_evidence_of_a_prepared_branch_is_not_forgotten() {
    let site = Site::new().await;
    let branch = site.prepared(1).await;
    site.resource.forget(std::slice::from_ref(&branch)).await.unwrap();
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    assert_eq!(site.evidence(&branch).await.as_deref(), Some("branch"));
}

/// Neither committed nor rolled back: somebody has to look.
#[tokio::test]
async fn evidence_of_a_kind_that_there_is_not_is_no_outcome() {
    let site = Site::new().await;
    let branch = site.prepared(1).await;
    assert_eq!(site.commit(&branch).await, Ok(Fate::Committed));
    sqlx::query("UPDATE lockstep.evidence SET kind = 'commit' WHERE xid = $1")
        .bind(branch.to_string())
        .execute(&site.pool)
        .await
        .unwrap();
    for asked in [site.commit(&branch).await, site.rollback(&branch).await] {
        let why = asked.unwrap_err().to_string();
        assert!(why.contains(r#""commit", which Lockstep did not write"#), "{why}");
    }
    // It is never pruned, and keeps nothing else from it.
    let other = site.committed(1, 1_000, position(1)).await;
    for expected in [Vec::new(), vec![EvidenceRow { branch: other.clone(), fate: Fate::Committed }]] {
        site.age(&[&branch, &other], "2 hours").await;
        assert_eq!(site.resource.old_evidence(site.cluster, HOUR, 1).await, Ok(expected));
    }
}
