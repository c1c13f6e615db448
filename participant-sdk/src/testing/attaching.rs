//! Rules about attaching: who the store is, and to whom it belongs.

use std::time::Duration;

use super::site::{Ask, Site, check, persist, position};
use super::{Broken, Subject};
use crate::resource::{ClusterId, Fate, Prepared, Resource as _};

pub(super) async fn identity<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let first = instance.attach().await?.identity;
    let again = instance.attach().await?.identity;
    check(again == first, "the same identity at a second attach", (first, again))?;
    let instance = instance.restart().await?;
    let restarted = instance.attach().await?.identity;
    check(restarted == first, "the same identity after a restart", (first, restarted))?;
    drop(instance);
    let other = site.other().await;
    let different = other.start().await?.attach().await?.identity;
    check(different != first, "another store has another identity", (first, different))
}

pub(super) async fn binding<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let other = ClusterId::from_random(rand::random());
    let instance = site.start_unbound().await?;
    let unbound = instance.attach().await?.cluster;
    check(unbound.is_none(), "a new store belongs to no cluster", unbound)?;
    let is_bound = format!("it belongs to {}", site.cluster);
    for (cluster, when) in [(site.cluster, "when it was bound"), (other, "when another cluster wants it")] {
        persist(async || instance.resource.bind(cluster).await).await?;
        let bound = instance.attach().await?.cluster;
        check(bound == Some(site.cluster), &format!("{is_bound} {when}"), bound)?;
    }
    let bound = instance.restart().await?.attach().await?.cluster;
    check(bound == Some(site.cluster), &format!("{is_bound} after a restart"), bound)
}

/// How long a bind is listened to beside a branch: a store with one branch at a time may have to wait for its end.
const GLANCE: Duration = Duration::from_secs(2);

pub(super) async fn binding_beside<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start_unbound().await?;
    let bind = async |cluster| {
        // Whether it succeeds is not the question here.
        drop(tokio::time::timeout(GLANCE, instance.resource.bind(cluster)).await);
    };
    for (key, when) in [("first", "bound for the first time"), ("again", "bound again")] {
        let branch = site.branch();
        let open = instance.work(&branch, key).await?;
        bind(site.cluster).await;
        let vote = instance.resource.prepare(&branch, open, &position(1)).await;
        let expected = format!("a branch that was open while the store was {when} votes yes");
        check(vote == Ok(Prepared::Yes), &expected, vote)?;
        for cluster in [site.cluster, ClusterId::from_random(rand::random())] {
            bind(cluster).await;
            instance.expect_listed(&branch, true).await?;
            instance
                .expect_there(key, false, &format!("while it is prepared and the store was {when}"))
                .await?;
        }
        instance.expect(Ask::Commit, &branch, Fate::Committed).await?;
        instance.expect_there(key, true, "after its commit").await?;
        persist(async || instance.resource.bind(site.cluster).await).await?;
    }
    Ok(())
}

pub(super) async fn again<S: Subject>(site: &Site<'_, S>) -> Result<(), Broken> {
    let instance = site.start().await?;
    let branch = site.branch();
    let open = instance.work(&branch, "open").await?;
    instance.attach().await?;
    let vote = instance.resource.prepare(&branch, open, &position(1)).await;
    let expected = "a branch that was open while the store was attached again votes yes";
    check(vote == Ok(Prepared::Yes), expected, vote)?;
    instance.attach().await?;
    instance.expect_listed(&branch, true).await?;
    instance.expect(Ask::Commit, &branch, Fate::Committed).await?;
    instance.expect_there("open", true, "after its commit").await
}
