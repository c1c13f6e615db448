//! Rules about what is kept of branches that have ended, and for how long.

use std::time::Duration;

use tokio::time::Instant;

use super::site::{Ask, Instance, Site, check, persist, position, position_in};
use super::{Broken, Subject};
use crate::resource::{
    BranchId, ClusterId, EvidenceRow, Fate, Gtrid, LogPosition, Positions, Prepared, Resource as _,
};

/// As many rows as there can be here.
const ALL: usize = 100;
/// How long after a deadline evidence is looked for.
const PATIENCE: Duration = Duration::from_secs(30);

async fn oldest_of<S: Subject>(
    instance: &Instance<'_, S>,
    cluster: ClusterId,
) -> Result<Option<Gtrid>, Broken> {
    persist(async || instance.resource.oldest_evidence(cluster).await).await
}

async fn expect_oldest<S: Subject>(
    instance: &Instance<'_, S>,
    expected: Option<&BranchId>,
    when: &str,
) -> Result<(), Broken> {
    let oldest = oldest_of(instance, instance.site.cluster).await?;
    let expected = expected.map(|branch| branch.xid.gtrid);
    check(oldest == expected, &format!("the oldest evidence is that of {expected:?} {when}"), oldest)
}

async fn forget_all<S: Subject>(instance: &Instance<'_, S>, branches: &[BranchId]) -> Result<(), Broken> {
    persist(async || instance.resource.forget(branches).await).await
}

pub(super) async fn oldest<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    expect_oldest(&instance, None, "when there is none").await?;
    let (older, newer) = (site.branch(), site.branch());
    for (branch, key) in [(&newer, "newer"), (&older, "older")] {
        instance.prepare(branch, key).await?;
        instance.expect(Ask::Commit, branch, Fate::Committed).await?;
        expect_oldest(&instance, Some(branch), "whatever committed first").await?;
    }
    let foreign = oldest_of(&instance, ClusterId::from_random(rand::random())).await?;
    check(foreign.is_none(), "another cluster has no evidence here", foreign)?;
    let instance = instance.restart().await?;
    expect_oldest(&instance, Some(&older), "after a restart").await
}

pub(super) async fn old<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let long = instance.committed("long").await?;
    let mut short = [brief(&instance, "prepared", false).await?, brief(&instance, "atonce", true).await?];
    short.sort();
    let rows = async |cluster, retention, limit| {
        persist(async || instance.resource.old_evidence(cluster, retention, limit).await).await
    };
    let expected: Vec<_> =
        short.iter().map(|branch| EvidenceRow { branch: branch.clone(), fate: Fate::Committed }).collect();
    let give_up = Instant::now() + PATIENCE;
    loop {
        let mut found = rows(site.cluster, Duration::ZERO, ALL).await?;
        found.sort_by(|a, b| a.branch.cmp(&b.branch));
        let early = found.iter().any(|row| row.branch == long);
        check(!early, "evidence is not old before its deadline has passed", &found)?;
        if found == expected {
            break;
        }
        let words = format!("some seconds after their deadlines, exactly these are old: {expected:?}");
        check(Instant::now() < give_up, &words, found)?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let limited = rows(site.cluster, Duration::ZERO, 1).await?;
    check(limited.len() == 1, "one row is listed when one is asked for", limited)?;
    let kept = rows(site.cluster, Duration::from_secs(3600), ALL).await?;
    check(kept.is_empty(), "nothing is old within an hour's retention", kept)?;
    let foreign = rows(ClusterId::from_random(rand::random()), Duration::ZERO, ALL).await?;
    check(foreign.is_empty(), "another cluster has no evidence here", foreign)?;
    forget_all(&instance, &short).await?;
    let left = rows(site.cluster, Duration::ZERO, ALL).await?;
    check(left.is_empty(), "nothing is old when that was forgotten", left)
}

/// The retention that is tried: long enough for a look within it.
const RETENTION: Duration = Duration::from_secs(2);

pub(super) async fn late_commit<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = prepare_briefly(&instance).await?;
    let rows =
        async || persist(async || instance.resource.old_evidence(site.cluster, RETENTION, ALL).await).await;
    // Its deadline is the retention ago, and has been looked for, when it commits.
    tokio::time::sleep(RETENTION + Duration::from_millis(500)).await;
    let early = rows().await?;
    check(early.is_empty(), "a branch that is prepared has no old evidence", early)?;
    let before = Instant::now();
    instance.expect(Ask::Commit, &branch, Fate::Committed).await?;
    for _twice in 0..2 {
        let found = rows().await?;
        if before.elapsed() < RETENTION {
            check(found.is_empty(), "evidence of a late commit is kept for the retention", found)?;
        }
        tokio::time::sleep(RETENTION / 4).await;
    }
    let give_up = Instant::now() + PATIENCE;
    while rows().await?.is_empty() {
        let words = "evidence of a late commit is old when the retention has passed since";
        check(Instant::now() < give_up, words, "nothing is old")?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// A branch that is prepared, and whose deadline has passed.
async fn prepare_briefly<S: Subject>(instance: &Instance<'_, S>) -> Result<BranchId, Broken> {
    let mut refused = None;
    for seconds in [2, 8, 32] {
        let branch = instance.site.branch();
        let within = Duration::from_secs(seconds);
        let deadline = Instant::now() + within;
        let open = instance.work_within(&branch, &format!("brief{seconds}"), within).await?;
        let vote = instance.resource.prepare(&branch, open, &position(1)).await;
        if vote == Ok(Prepared::Yes) {
            tokio::time::sleep_until(deadline).await;
            return Ok(branch);
        }
        refused = Some(vote);
    }
    Err(Broken::new("a branch is prepared within its deadline", format!("{refused:?}")))
}

/// A branch of a transaction with little time, committed within it.
async fn brief<S: Subject>(
    instance: &Instance<'_, S>,
    key: &str,
    in_one_phase: bool,
) -> Result<BranchId, Broken> {
    // On a slow day the first time is too short.
    let mut refused = None;
    for seconds in [2, 8, 32] {
        let branch = instance.site.branch();
        let key = format!("{key}{seconds}");
        let open = instance.work_within(&branch, &key, Duration::from_secs(seconds)).await?;
        let committed = if in_one_phase {
            instance.resource.commit_one_phase(&branch, open, &position(1)).await
        } else {
            match instance.resource.prepare(&branch, open, &position(1)).await {
                Ok(Prepared::Yes) => Ok(instance.resolve(Ask::Commit, &branch).await?),
                other => Err(crate::resource::Unresolved(format!("{other:?}"))),
            }
        };
        if committed == Ok(Fate::Committed) {
            return Ok(branch);
        }
        refused = Some(committed);
    }
    Err(Broken::new("a branch commits within its deadline", format!("{refused:?}")))
}

pub(super) async fn forget<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let first = instance.committed("first").await?;
    let second = instance.committed("second").await?;
    for _twice in 0..2 {
        forget_all(&instance, std::slice::from_ref(&first)).await?;
        expect_oldest(&instance, Some(&second), "when the older one was forgotten").await?;
    }
    instance.expect_there("first", true, "when its evidence was forgotten").await?;
    let instance = instance.restart().await?;
    expect_oldest(&instance, Some(&second), "after a restart").await?;
    instance.expect(Ask::Prove, &second, Fate::Committed).await?;
    forget_all(&instance, &[first, second]).await?;
    expect_oldest(&instance, None, "when all were forgotten").await
}

/// Leaves evidence of three kinds, the newest position in a fence, and another that is older.
async fn leave_evidence<S: Subject>(instance: &Instance<'_, S>) -> Result<Vec<BranchId>, Broken> {
    let site = instance.site;
    let new = instance.attach().await?.seen;
    check(new == Positions::new(), "a new store has seen no position", new)?;

    let prepared = site.branch();
    let open = instance.work(&prepared, "prepared").await?;
    let vote = instance.resource.prepare(&prepared, open, &position(5)).await;
    check(vote == Ok(Prepared::Yes), "a branch that has written votes yes", vote)?;
    persist(async || instance.resource.commit(&prepared, &position(6)).await).await?;
    expect_seen(instance, 6, "after a commit").await?;

    let at_once = site.branch();
    let open = instance.work(&at_once, "atonce").await?;
    let fate = instance.resource.commit_one_phase(&at_once, open, &position(20)).await;
    check(fate == Ok(Fate::Committed), "a commit in one phase is answered with committed", fate)?;
    expect_seen(instance, 20, "after a commit in one phase").await?;

    let fenced = site.branch();
    persist(async || instance.resource.rollback(&fenced, &position(30)).await).await?;
    expect_seen(instance, 30, "after a fence").await?;

    let behind = site.branch();
    persist(async || instance.resource.prove(&behind, &position(10)).await).await?;
    expect_seen(instance, 30, "after one with an older position").await?;
    Ok(vec![prepared, at_once, fenced, behind])
}

async fn expect_seen<S: Subject>(
    instance: &Instance<'_, S>,
    sequence: u64,
    when: &str,
) -> Result<(), Broken> {
    expect_seen_of(instance, &[position(sequence)], when).await
}

async fn expect_seen_of<S: Subject>(
    instance: &Instance<'_, S>,
    expected: &[LogPosition],
    when: &str,
) -> Result<(), Broken> {
    let seen = instance.attach().await?.seen;
    let expected: Positions = expected.iter().copied().collect();
    check(seen == expected, &format!("{expected:?} was seen {when}"), seen)
}

pub(super) async fn seen<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    leave_evidence(&instance).await?;
    expect_seen(&instance.restart().await?, 30, "after a restart").await
}

/// To whoever remembers the prepare alone, a log that has lost the decision looks complete.
pub(super) async fn seen_by_commit<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let mut instance = site.start().await?;
    for (ask, key, sequence) in [(Ask::Commit, "decided", 40), (Ask::Prove, "proved", 50)] {
        let branch = instance.prepared(key).await?;
        let decided = position(sequence);
        let fate = persist(async || match ask {
            Ask::Commit => instance.resource.commit(&branch, &decided).await,
            Ask::Rollback => instance.resource.rollback(&branch, &decided).await,
            Ask::Prove => instance.resource.prove(&branch, &decided).await,
        });
        let fate = fate.await?;
        check(fate == Fate::Committed, "a prepared branch is committed", fate)?;
        instance = instance.restart().await?;
        expect_seen(&instance, sequence, "after a commit and a restart").await?;
    }
    Ok(())
}

pub(super) async fn seen_after_forget<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branches = leave_evidence(&instance).await?;
    forget_all(&instance, &branches).await?;
    expect_seen(&instance, 30, "when all evidence was forgotten").await?;
    expect_seen(&instance.restart().await?, 30, "after a restart").await
}

/// Several epochs are open at once where several coordinators share a log, and each counts its own batches.
pub(super) async fn seen_of_each_epoch<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    // The newer epoch's comes first, and between the older one's; the last branch is decided by another epoch than asked it to prepare.
    let told = [(4, 2, 2), (3, 1, 1), (4, 3, 3), (3, 9, 9)]
        .map(|(epoch, asked, decided)| (position_in(epoch, asked), position_in(epoch, decided)));
    let handed_over = (position_in(4, 5), position_in(5, 1));
    let mut branches = Vec::new();
    for (number, (asked, decided)) in told.into_iter().chain([handed_over]).enumerate() {
        let branch = site.branch();
        let open = instance.work(&branch, &format!("work{number}")).await?;
        let vote = instance.resource.prepare(&branch, open, &asked).await;
        check(vote == Ok(Prepared::Yes), "a branch that has written votes yes", vote)?;
        let fate = persist(async || instance.resource.commit(&branch, &decided).await).await?;
        check(fate == Fate::Committed, "a prepared branch is committed", fate)?;
        branches.push(branch);
    }
    let at_once = site.branch();
    let open = instance.work(&at_once, "atonce").await?;
    let fate = instance.resource.commit_one_phase(&at_once, open, &position_in(2, 70)).await;
    check(fate == Ok(Fate::Committed), "a commit in one phase is answered with committed", fate)?;
    branches.push(at_once);

    let all = [(2, 70), (3, 9), (4, 5), (5, 1)].map(|(epoch, sequence)| position_in(epoch, sequence));
    expect_seen_of(&instance, &all, "after commits that four epochs had decided").await?;
    let instance = instance.restart().await?;
    expect_seen_of(&instance, &all, "after a restart").await?;
    forget_all(&instance, &branches).await?;
    expect_seen_of(&instance, &all, "when all evidence was forgotten").await?;
    let instance = instance.restart().await?;
    expect_seen_of(&instance, &all, "after another restart").await?;
    // A store that lets go of what is settled lets go of that alone, and keeps what settles it.
    let settled = [2, 4].map(|epoch| position_in(epoch, 1).epoch);
    persist(async || instance.resource.settle(&position_in(6, 1), &settled).await).await?;
    let seen = instance.restart().await?.attach().await?.seen;
    let stay = [all[1], all[3]];
    let is_kept = stay.iter().all(|position| seen.covers(position));
    let gone = settled.iter().all(|epoch| seen.iter().all(|seen| seen.epoch != *epoch));
    check(is_kept, &format!("{stay:?} was seen when other epochs were settled"), &seen)?;
    check(!gone || seen.covers(&position_in(6, 1)), "what settles others is kept", seen)
}
