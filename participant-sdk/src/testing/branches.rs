//! Rules about one branch, from its begin to its end, and long after.

use std::time::Duration;

use super::site::{Ask, Instance, LONG, Site, check, position};
use super::{Broken, Subject};
use crate::resource::{BranchId, Fate, Prepared, Resource as _};

/// How soon after the deadline a store has ended a branch: seconds, since some count no finer.
const SOON: Duration = Duration::from_secs(5);
/// How long an answer about a branch that is open elsewhere is waited for: not to know is an answer too.
const GLANCE: Duration = Duration::from_secs(5);

pub(super) async fn isolation<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = site.branch();
    let open = instance.work(&branch, "work").await?;
    instance.expect_there("work", false, "while the branch is open").await?;
    let vote = instance.resource.prepare(&branch, open, &position(1)).await;
    check(vote == Ok(Prepared::Yes), "a branch that has written votes yes", vote)?;
    instance.expect_there("work", false, "while the branch is prepared").await?;
    let instance = instance.restart().await?;
    instance.expect_there("work", false, "while the branch is prepared, after a restart").await
}

pub(super) async fn commit<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = instance.committed("work").await?;
    instance.expect_there("work", true, "after the commit").await?;
    instance.expect_listed(&branch, false).await?;
    let instance = instance.restart().await?;
    instance.expect_there("work", true, "after a restart").await?;
    instance.expect_listed(&branch, false).await
}

pub(super) async fn rollback<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = instance.prepared("work").await?;
    instance.expect(Ask::Rollback, &branch, Fate::RolledBack).await?;
    instance.expect_listed(&branch, false).await?;
    instance.expect_there("work", false, "after the rollback").await?;
    leaves_nothing(instance, &branch, "work").await
}

/// The branch's end left no work and no lock: another one does the same work, after which a restart shows nothing of the first.
async fn leaves_nothing<S: Subject>(
    instance: Instance<'_, S>,
    branch: &BranchId,
    key: &str,
) -> Result<(), Broken> {
    instance.expect_listed(branch, false).await?;
    instance.expect_there(key, false, "when the branch has ended").await?;
    let instance = instance.restart().await?;
    instance.expect_listed(branch, false).await?;
    instance.expect_there(key, false, "after a restart").await?;
    instance.committed(key).await?;
    instance.expect_there(key, true, "when another branch has done the same").await
}

pub(super) async fn survival<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let mut instance = site.start().await?;
    for (key, ask, fate) in
        [("kept", Ask::Commit, Fate::Committed), ("undone", Ask::Rollback, Fate::RolledBack)]
    {
        let branch = instance.prepared(key).await?;
        instance = instance.restart().await?;
        instance.expect_listed(&branch, true).await?;
        instance.expect(ask, &branch, fate).await?;
        instance.expect_there(key, fate == Fate::Committed, "after the decision").await?;
    }
    Ok(())
}

pub(super) async fn commit_repeats<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = instance.committed("work").await?;
    repeats(instance, &branch, Fate::Committed).await
}

pub(super) async fn rollback_repeats<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = instance.prepared("work").await?;
    instance.expect(Ask::Rollback, &branch, Fate::RolledBack).await?;
    repeats(instance, &branch, Fate::RolledBack).await
}

/// The branch, which has written `work`, keeps answering this.
async fn repeats<S: Subject>(
    mut instance: Instance<'_, S>,
    branch: &BranchId,
    fate: Fate,
) -> Result<(), Broken> {
    for _life in 0..2 {
        for ask in [Ask::Commit, Ask::Rollback, Ask::Prove, Ask::Commit] {
            instance.expect(ask, branch, fate).await?;
            instance.expect_there("work", fate == Fate::Committed, "after it was asked again").await?;
        }
        instance = instance.restart().await?;
    }
    Ok(())
}

pub(super) async fn late_prepare<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let open_then = site.branch();
    let open = instance.work(&open_then, "early").await?;
    let answer = glance(&instance, &open_then).await?;
    let vote = instance.resource.prepare(&open_then, open, &position(1)).await;
    if answer == Some(Fate::RolledBack) {
        refused(&vote)?;
    }
    stays_rolled_back(&instance, &open_then, "early").await?;

    let not_begun = site.branch();
    instance.expect(Ask::Rollback, &not_begun, Fate::RolledBack).await?;
    // A store may refuse to begin it, too.
    if let Ok(open) = instance.work(&not_begun, "late").await {
        refused(&instance.resource.prepare(&not_begun, open, &position(1)).await)?;
    }
    stays_rolled_back(&instance, &not_begun, "late").await
}

/// Has a branch rolled back that somebody holds open; `None` if the store cannot tell as long as that is so.
async fn glance<S: Subject>(instance: &Instance<'_, S>, branch: &BranchId) -> Result<Option<Fate>, Broken> {
    match tokio::time::timeout(GLANCE, instance.ask(Ask::Rollback, branch)).await {
        Ok(Ok(fate)) => {
            let expected = "a branch that is open is rolled back, or not known";
            check(fate == Fate::RolledBack, expected, fate).map(|()| Some(fate))
        }
        Ok(Err(_unresolved)) => Ok(None),
        Err(_elapsed) => Ok(None),
    }
}

fn refused(vote: &Result<Prepared, crate::resource::Unresolved>) -> Result<(), Broken> {
    check(*vote != Ok(Prepared::Yes), "a prepare that comes after the rollback is refused", vote)
}

async fn stays_rolled_back<S: Subject>(
    instance: &Instance<'_, S>,
    branch: &BranchId,
    key: &str,
) -> Result<(), Broken> {
    for ask in [Ask::Rollback, Ask::Commit, Ask::Prove] {
        instance.expect(ask, branch, Fate::RolledBack).await?;
    }
    instance.expect_listed(branch, false).await?;
    instance.expect_there(key, false, "after the rollback").await
}

pub(super) async fn unknown<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let mut instance = site.start().await?;
    for (ask, key) in [(Ask::Commit, "first"), (Ask::Prove, "second")] {
        let branch = site.branch();
        instance.expect(ask, &branch, Fate::RolledBack).await?;
        instance = instance.restart().await?;
        if let Ok(open) = instance.work(&branch, key).await {
            let vote = instance.resource.prepare(&branch, open, &position(1)).await;
            check(vote != Ok(Prepared::Yes), "what was answered with rolled back is not prepared", vote)?;
        }
        stays_rolled_back(&instance, &branch, key).await?;
    }
    Ok(())
}

pub(super) async fn proof<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = instance.prepared("work").await?;
    instance.expect(Ask::Prove, &branch, Fate::Committed).await?;
    instance.expect_there("work", true, "after the proof").await?;
    instance.expect_listed(&branch, false).await
}

pub(super) async fn read_only<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = site.branch();
    let mut open = instance.begin(&branch, LONG).await?;
    let read = site.subject.read(S::Resource::connection(&mut open)).await;
    read.map_err(|error| Broken::new("a branch reads", error))?;
    let vote = instance.resource.prepare(&branch, open, &position(1)).await;
    check(vote == Ok(Prepared::ReadOnly), "a branch that only read votes read-only", vote)?;
    leaves_nothing(instance, &branch, "work").await
}

pub(super) async fn one_phase<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = site.branch();
    let open = instance.work(&branch, "work").await?;
    let fate = instance.resource.commit_one_phase(&branch, open, &position(1)).await;
    check(fate == Ok(Fate::Committed), "a commit in one phase is answered with committed", fate)?;
    instance.expect_there("work", true, "after a commit in one phase").await?;
    instance.expect_listed(&branch, false).await?;
    repeats(instance, &branch, Fate::Committed).await
}

pub(super) async fn late_one_phase<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = site.branch();
    instance.expect(Ask::Rollback, &branch, Fate::RolledBack).await?;
    if let Ok(open) = instance.work(&branch, "late").await {
        let fate = instance.resource.commit_one_phase(&branch, open, &position(1)).await;
        let expected = "a commit in one phase that comes after the rollback is refused";
        check(fate != Ok(Fate::Committed), expected, fate)?;
    }
    stays_rolled_back(&instance, &branch, "late").await
}

pub(super) async fn discard<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = site.branch();
    let open = instance.work(&branch, "work").await?;
    instance.resource.discard(open).await;
    // In the same life too: a restart would let go of a lock that was forgotten.
    instance.committed("another").await?;
    leaves_nothing(instance, &branch, "work").await
}

pub(super) async fn dropped<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = site.branch();
    drop(instance.work(&branch, "work").await?);
    instance.committed("another").await?;
    instance.expect(Ask::Rollback, &branch, Fate::RolledBack).await?;
    leaves_nothing(instance, &branch, "work").await
}

pub(super) async fn committed_by_itself<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let mut instance = site.start().await?;
    for (key, in_one_phase) in [("prepared", false), ("atonce", true)] {
        let branch = site.branch();
        let mut open = instance.work(&branch, key).await?;
        if !site.subject.commit_by_itself(S::Resource::connection(&mut open), &branch).await {
            instance.resource.discard(open).await;
            return Ok(());
        }
        instance.expect_there(key, true, "when its service has committed it").await?;
        if in_one_phase {
            let fate = instance.resource.commit_one_phase(&branch, open, &position(1)).await;
            let expected = "a commit in one phase of what its service has committed is answered with hazard";
            check(fate == Ok(Fate::Hazard), expected, fate)?;
        } else {
            let vote = instance.resource.prepare(&branch, open, &position(1)).await;
            let expected = "a branch that its service has committed votes hazard";
            check(matches!(vote, Ok(Prepared::Hazard(_))), expected, vote)?;
        }
        instance = instance.restart().await?;
        for ask in [Ask::Rollback, Ask::Commit, Ask::Prove] {
            instance.expect(ask, &branch, Fate::Hazard).await?;
        }
        instance.expect_listed(&branch, false).await?;
    }
    Ok(())
}

pub(super) async fn failed_silently<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    for (key, in_one_phase) in [("prepared", false), ("atonce", true)] {
        let branch = site.branch();
        let mut open = instance.work(&branch, key).await?;
        if !site.subject.fail_silently(S::Resource::connection(&mut open), key).await {
            instance.resource.discard(open).await;
            return Ok(());
        }
        if in_one_phase {
            let fate = instance.resource.commit_one_phase(&branch, open, &position(1)).await;
            let expected = "a commit in one phase of work that was undone is answered with rolled back";
            check(fate == Ok(Fate::RolledBack), expected, fate)?;
        } else {
            let vote = instance.resource.prepare(&branch, open, &position(1)).await;
            let expected = "a branch of which a part was undone votes no";
            check(matches!(vote, Ok(Prepared::No(_))), expected, vote)?;
        }
        stays_rolled_back(&instance, &branch, key).await?;
    }
    Ok(())
}

pub(super) async fn deadline<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let late = site.branch();
    let open = begun_in_vain(&instance, &late, "prepared").await?;
    let vote = instance.resource.prepare(&late, open, &position(1)).await;
    check(vote != Ok(Prepared::Yes), "a prepare long after the deadline is refused", vote)?;
    stays_rolled_back(&instance, &late, "prepared").await?;

    let late = site.branch();
    let open = begun_in_vain(&instance, &late, "committed").await?;
    let fate = instance.resource.commit_one_phase(&late, open, &position(1)).await;
    let expected = "a commit in one phase long after the deadline is refused";
    check(fate != Ok(Fate::Committed), expected, fate)?;
    stays_rolled_back(&instance, &late, "committed").await
}

/// An open branch that has worked and whose deadline has passed for long.
async fn begun_in_vain<S: Subject>(
    instance: &Instance<'_, S>,
    branch: &BranchId,
    key: &str,
) -> Result<super::site::OpenOf<S>, Broken> {
    // Enough to begin and to write once, on a machine that does much else.
    let remaining = Duration::from_secs(3);
    let open = instance.work_within(branch, key, remaining).await?;
    tokio::time::sleep(remaining + SOON).await;
    Ok(open)
}
