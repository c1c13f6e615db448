//! Rules about several at a time: branches, clusters, resource managers, tasks, and those who go away in the middle.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::site::{Ask, Instance, Site, check, position};
use super::{Broken, Subject};
use crate::resource::{BranchId, ClusterId, Fate, Prepared, Resource as _, ResourceManagerName};

/// Races are run so often.
const RACES: usize = 5;
/// Nobody goes away later than after so many waits: an operation of more is one of more steps than it needs.
const MAX_WAITS: usize = 12;
/// How long a question about a branch of someone else is listened to.
const GLANCE: Duration = Duration::from_secs(2);

pub(super) async fn listing<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let ended = instance.committed("ended").await?;
    let mut branches = Vec::new();
    for number in 0..site.subject.branches_at_a_time() {
        branches.push(instance.prepared(&format!("key{number}")).await?);
    }
    let instance = instance.restart().await?;
    while let Some(branch) = branches.last() {
        let mut listed = instance.listed().await?;
        listed.sort();
        let expected: Vec<_> = branches.iter().map(|branch| branch.xid.clone()).collect();
        check(listed == expected, &format!("listed are exactly {expected:?} (and not {ended})"), &listed)?;
        instance.expect(Ask::Commit, branch, Fate::Committed).await?;
        branches.pop();
    }
    let listed = instance.listed().await?;
    check(listed.is_empty(), "nothing is listed when all have ended", listed)
}

fn others<S: Subject>(site: &Site<'_, S>) -> (ClusterId, ResourceManagerName) {
    let mut cluster = ClusterId::from_random(rand::random());
    while cluster == site.cluster {
        cluster = ClusterId::from_random(rand::random());
    }
    // A name that begins as ours does.
    (cluster, "contract-2".parse().expect("a name"))
}

pub(super) async fn own_listing<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let (cluster, name) = others(site);
    let foreign = [(cluster, &site.name, "cluster"), (site.cluster, &name, "name")];
    for (cluster, name, key) in foreign {
        let branch = site.branch_of(cluster, name);
        instance.prepare(&branch, key).await?;
        let listed = instance.listed().await?;
        check(listed.is_empty(), &format!("{branch} is not listed: it is of another {key}"), listed)?;
        instance.expect_listed(&branch, true).await?;
        instance.expect(Ask::Commit, &branch, Fate::Committed).await?;
    }
    Ok(())
}

pub(super) async fn foreign<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let theirs = site.branch_of(others(site).0, &site.name);
    let ours = BranchId { cluster: site.cluster, xid: theirs.xid.clone() };
    for (asked, key) in [(Ask::Commit, "commit"), (Ask::Rollback, "rollback"), (Ask::Prove, "proof")] {
        let theirs = BranchId { cluster: theirs.cluster, xid: site.branch().xid };
        let ours = BranchId { cluster: ours.cluster, xid: theirs.xid.clone() };
        instance.prepare(&theirs, key).await?;
        // What comes of it is nobody's business here; a store with one branch at a time can't tell at all.
        let _answer = tokio::time::timeout(GLANCE, instance.ask(asked, &ours)).await;
        instance.expect_listed(&theirs, true).await?;
        instance.expect_there(key, false, "before its own cluster has decided").await?;
        instance.expect(Ask::Commit, &theirs, Fate::Committed).await?;
        instance.expect_there(key, true, "after its own cluster has decided").await?;
        let forgotten = instance.resource.forget(&[ours]).await;
        check(forgotten.is_ok(), "forgetting succeeds", forgotten)?;
        instance.expect(Ask::Rollback, &theirs, Fate::Committed).await?;
    }
    Ok(())
}

pub(super) async fn two_tasks<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    for race in 0..RACES {
        let key = format!("same{race}");
        let branch = instance.prepared(&key).await?;
        let fates = asked_at_once(&instance, &branch, [Ask::Commit, Ask::Commit]).await?;
        check(fates == [Fate::Committed; 2], "two commits at once are both answered with committed", fates)?;
        holds(&instance, &branch, &key, Fate::Committed).await?;

        let key = format!("against{race}");
        let branch = instance.prepared(&key).await?;
        // The one that is asked first may always be the first one in the store, too.
        let asks = if race % 2 == 0 { [Ask::Rollback, Ask::Commit] } else { [Ask::Commit, Ask::Rollback] };
        let fates = asked_at_once(&instance, &branch, asks).await?;
        check(fates[0] == fates[1], "a commit and a rollback at once are answered with the same", fates)?;
        holds(&instance, &branch, &key, fates[0]).await?;

        let fates = asked_at_once(&instance, &site.branch(), [Ask::Rollback, Ask::Prove]).await?;
        let expected = "a rollback and a proof at once, of a branch that nobody knows, are both answered with rolled back";
        check(fates == [Fate::RolledBack; 2], expected, fates)?;

        let key = format!("late{race}");
        let branch = site.branch();
        let open = instance.work(&branch, &key).await?;
        let position = position(1);
        let prepare = instance.resource.prepare(&branch, open, &position);
        let (_vote, fate) = tokio::join!(prepare, instance.resolve(Ask::Rollback, &branch));
        let expected = "a rollback that meets a prepare is answered with rolled back";
        check(fate == Ok(Fate::RolledBack), expected, fate)?;
        holds(&instance, &branch, &key, Fate::RolledBack).await?;
    }
    Ok(())
}

async fn asked_at_once<S: Subject>(
    instance: &Instance<'_, S>,
    branch: &BranchId,
    [a, b]: [Ask; 2],
) -> Result<[Fate; 2], Broken> {
    let (a, b) = tokio::join!(instance.resolve(a, branch), instance.resolve(b, branch));
    Ok([a?, b?])
}

/// What was answered is so, and stays so.
async fn holds<S: Subject>(
    instance: &Instance<'_, S>,
    branch: &BranchId,
    key: &str,
    fate: Fate,
) -> Result<(), Broken> {
    for ask in [Ask::Prove, Ask::Commit, Ask::Rollback] {
        instance.expect(ask, branch, fate).await?;
    }
    instance.expect_listed(branch, false).await?;
    instance.expect_there(key, fate == Fate::Committed, &format!("after {fate:?}")).await
}

pub(super) async fn lost_replies<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    for what in ["prepare", "commit", "rollback", "one-phase"] {
        let mut waits = 1;
        while waits <= MAX_WAITS && lost_reply(&instance, what, waits).await? {
            waits += 1;
        }
    }
    Ok(())
}

/// Goes away from one operation after so many waits, and then finds out. Whether there were as many.
async fn lost_reply<S: Subject>(
    instance: &Instance<'_, S>,
    what: &str,
    waits: usize,
) -> Result<bool, Broken> {
    let key = format!("{}{waits}", what.replace('-', ""));
    let branch = instance.site.branch();
    let open = instance.work(&branch, &key).await?;
    let (resource, position) = (&instance.resource, position(1));
    let lost;
    let fate = match what {
        "prepare" => {
            lost = goes_away(resource.prepare(&branch, open, &position), waits).await;
            instance.resolve(Ask::Rollback, &branch).await?
        }
        "one-phase" => {
            lost = goes_away(resource.commit_one_phase(&branch, open, &position), waits).await;
            instance.resolve(Ask::Prove, &branch).await?
        }
        decided => {
            let ask = if decided == "commit" { Ask::Commit } else { Ask::Rollback };
            let vote = resource.prepare(&branch, open, &position).await;
            check(vote == Ok(Prepared::Yes), "a branch that has written votes yes", vote)?;
            lost = goes_away(instance.ask(ask, &branch), waits).await;
            instance.resolve(ask, &branch).await?
        }
    };
    let expected = match what {
        "commit" => Some(Fate::Committed),
        "one-phase" => None,
        _ => Some(Fate::RolledBack),
    };
    let words = format!("a {what} whose caller went away after {waits} waits ends as {expected:?}");
    check(expected.is_none_or(|expected| expected == fate), &words, fate)?;
    holds(instance, &branch, &key, fate).await?;
    Ok(lost)
}

/// Waits so often, and then waits no longer. Whether that was before the end.
async fn goes_away<F: Future>(operation: F, waits: usize) -> bool {
    let mut operation = pin!(operation);
    let mut waited = 0;
    poll_fn(|context| match operation.as_mut().poll(context) {
        Poll::Ready(_answer) => Poll::Ready(false),
        Poll::Pending => {
            waited += 1;
            if waited == waits { Poll::Ready(true) } else { Poll::Pending }
        }
    })
    .await
}
