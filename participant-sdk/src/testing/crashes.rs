//! Rules about processes that are killed: at each wait of each step, and at some times in between.
//!
//! What the killed process had said counts: a vote that was heard is a promise. What it had not said may have happened or not.

use std::time::Duration;

use super::child::{Cut, Heard, Step};
use super::site::{Ask, Site, check, position};
use super::{Broken, Subject};
use crate::resource::{Fate, Prepared, Resource as _};

/// No step is cut at more waits than this.
const MAX_WAITS: usize = 16;
/// A step is cut after so many eighths of the time that it took.
const EIGHTHS: [u32; 4] = [1, 3, 5, 7];

/// Has the store belong to its cluster. A session sees to that before the first branch: with one prepared, a store may not be able to.
async fn bound<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    site.start().await.map(drop)
}

/// Has a process die at each wait of a step, then when it had the answer, then at some times in between.
async fn at_each_cut(mut attempt: impl AsyncFnMut(Cut) -> Result<Heard, Broken>) -> Result<(), Broken> {
    let mut took = None;
    for number in 1..=MAX_WAITS {
        took = attempt(Cut::Wait(number)).await?.answer;
        if took.is_some() {
            break;
        }
    }
    let took = match took {
        Some((_answer, took)) => took,
        None => attempt(Cut::Answer).await?.answer.map_or(Duration::ZERO, |(_answer, took)| took),
    };
    for eighths in EIGHTHS {
        attempt(Cut::Time(took * eighths / 8)).await?;
    }
    Ok(())
}

pub(super) async fn attaching<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    at_each_cut(async |cut| {
        let new = site.other().await;
        let heard = new.child().run(Step::Attach, &new.branch(), None, cut).await?;
        let identity = new.start().await?.attach().await?.identity;
        if heard.answer.is_some() {
            check(
                heard.is(identity),
                "the identity that the killed process attached with",
                (&heard, identity),
            )?;
        }
        Ok(heard)
    })
    .await?;

    let instance = site.start().await?;
    let identity = instance.attach().await?.identity;
    let branch = instance.prepared("work").await?;
    drop(instance);
    at_each_cut(async |cut| {
        let heard = site.child().run(Step::Attach, &branch, None, cut).await?;
        let instance = site.start().await?;
        let found = instance.attach().await?.identity;
        check(found == identity, "the identity from before", (identity, found))?;
        instance.expect_listed(&branch, true).await?;
        Ok(heard)
    })
    .await?;
    let instance = site.start().await?;
    instance.expect(Ask::Commit, &branch, Fate::Committed).await?;
    instance.expect_there("work", true, "after its commit").await
}

pub(super) async fn preparing<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    bound(site).await?;
    at_each_cut(async |cut| {
        let branch = site.branch();
        let key = key_of(&branch);
        let heard = site.child().run(Step::Prepare, &branch, Some(&key), cut).await?;
        let instance = site.start().await?;
        if heard.is(Prepared::Yes) {
            instance.expect_listed(&branch, true).await?;
            instance.expect(Ask::Commit, &branch, Fate::Committed).await?;
            instance.expect_there(&key, true, "when the branch of a killed process is committed").await?;
        } else {
            check(heard.answer.is_none(), "a branch that has written votes yes", &heard)?;
            instance.expect(Ask::Rollback, &branch, Fate::RolledBack).await?;
            instance.expect_there(&key, false, "when the branch of a killed process is rolled back").await?;
        }
        instance.expect_listed(&branch, false).await?;
        Ok(heard)
    })
    .await
}

pub(super) async fn committing<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    deciding(site, Step::Commit, Ask::Commit, Fate::Committed).await
}

pub(super) async fn rolling_back<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    deciding(site, Step::Rollback, Ask::Rollback, Fate::RolledBack).await
}

/// A decision that a killed process had begun to apply: its own branch's, and one's that another process had prepared.
async fn deciding<S: Subject>(
    site: &Site<'_, S>,
    step: Step,
    ask: Ask,
    expected: Fate,
) -> Result<(), Broken> {
    bound(site).await?;
    for own in [true, false] {
        at_each_cut(async |cut| {
            let branch = site.branch();
            let key = key_of(&branch);
            if !own {
                site.start().await?.prepare(&branch, &key).await?;
            }
            let heard = site.child().run(step, &branch, own.then_some(key.as_str()), cut).await?;
            let instance = site.start().await?;
            check(heard.answer.is_none() || heard.is(expected), &format!("{expected:?}"), &heard)?;
            for _twice in 0..2 {
                instance.expect(ask, &branch, expected).await?;
            }
            instance.expect_there(&key, expected == Fate::Committed, "after the decision").await?;
            instance.expect_listed(&branch, false).await?;
            Ok(heard)
        })
        .await?;
    }
    Ok(())
}

pub(super) async fn one_phase<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    bound(site).await?;
    at_each_cut(async |cut| {
        let branch = site.branch();
        let key = key_of(&branch);
        let heard = site.child().run(Step::OnePhase, &branch, Some(&key), cut).await?;
        let instance = site.start().await?;
        let fate = instance.resolve(Ask::Prove, &branch).await?;
        if heard.answer.is_some() {
            let words = "a branch that was answered with committed is proved to be";
            check(heard.is(Fate::Committed) && fate == Fate::Committed, words, (&heard, fate))?;
        }
        for ask in [Ask::Rollback, Ask::Commit] {
            instance.expect(ask, &branch, fate).await?;
        }
        instance.expect_there(&key, fate == Fate::Committed, &format!("when {fate:?} was proved")).await?;
        Ok(heard)
    })
    .await
}

pub(super) async fn forgetting<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    at_each_cut(async |cut| {
        let instance = site.start().await?;
        let branch = site.branch();
        instance.prepare(&branch, &key_of(&branch)).await?;
        instance.expect(Ask::Commit, &branch, Fate::Committed).await?;
        drop(instance);
        let heard = site.child().run(Step::Forget, &branch, None, cut).await?;
        let instance = site.start().await?;
        let seen = instance.attach().await?.seen;
        // It was prepared with the first; the decision's need not be kept.
        let is_kept = [1, 2].iter().any(|kept| seen == [position(*kept)].into_iter().collect());
        check(is_kept, "the position of the forgotten evidence, or the next, was seen", seen)?;
        let forgotten = instance.resource.forget(&[branch]).await;
        check(forgotten.is_ok(), "forgetting again succeeds", forgotten)?;
        Ok(heard)
    })
    .await
}

/// What a branch writes: of its own for each, since all are in one store.
fn key_of(branch: &crate::resource::BranchId) -> String {
    let bqual = branch.xid.bqual.as_str();
    bqual.rsplit('.').next().unwrap_or(bqual).to_owned()
}
