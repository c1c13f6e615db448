//! Committing without preparing (P10): what is done, what is not, and how to find out.

use lockstep::resource::{Fate, Resource as _};

use super::*;

impl Site {
    async fn commit_one_phase(&self, branch: &BranchId, open: OpenBranch) -> Fate {
        self.resource.commit_one_phase(branch, open, &position(1)).await.unwrap()
    }

    async fn prove(&self, branch: &BranchId) -> Fate {
        resolved(async || self.resource.prove(branch, &position(1)).await).await
    }
}

#[tokio::test]
async fn the_evidence_of_a_commit_is_there_for_whoever_asks_later() {
    let site = Site::new().await;
    let (branch, open) = site.written(1).await;
    assert_eq!(site.commit_one_phase(&branch, open).await, Fate::Committed);
    assert_eq!(site.amount(1).await, 99);
    assert_eq!(site.evidence(&branch).await.as_deref(), Some("branch"));
    assert_eq!(site.prove(&branch).await, Fate::Committed);
    assert_eq!(site.rollback(&branch).await, Ok(Fate::Committed));
}

#[tokio::test]
async fn what_cannot_be_committed_is_rolled_back_and_stays_so() {
    let site = Site::new().await;
    let (failed, mut open) = site.written(1).await;
    run(&mut open, "INSERT INTO account VALUES (3, 1), (1, 1)").await.unwrap_err();
    assert_eq!(site.commit_one_phase(&failed, open).await, Fate::RolledBack);
    let (fenced, open) = site.written(2).await;
    assert_eq!(site.rollback(&fenced).await, Ok(Fate::RolledBack));
    assert_eq!(site.commit_one_phase(&fenced, open).await, Fate::RolledBack);
    let (ended, mut open) = site.written(3).await;
    let xid = xid_of(&ended);
    run(&mut open, &format!("XA END {xid}; XA ROLLBACK {xid}")).await.unwrap();
    assert_eq!(site.commit_one_phase(&ended, open).await, Fate::RolledBack);
    for branch in [&failed, &fenced, &ended] {
        assert_eq!(site.prove(branch).await, Fate::RolledBack);
    }
    assert_eq!((site.amount(1).await, site.amount(2).await, site.amount(3).await), (100, 100, 100));
}

/// The client is answered from the evidence, so it has to be there.
#[tokio::test]
async fn a_branch_that_wrote_nothing_is_committed_with_evidence() {
    let site = Site::new().await;
    let branch = site.branch();
    let mut open = site.resource.begin(&branch, LONG).await.unwrap();
    run(&mut open, "SELECT * FROM account").await.unwrap();
    assert_eq!(site.commit_one_phase(&branch, open).await, Fate::Committed);
    assert_eq!(site.prove(&branch).await, Fate::Committed);
}

#[tokio::test]
async fn a_branch_that_is_neither_prepared_nor_committed_is_fenced_by_the_proof() {
    let site = Site::new().await;
    let (branch, open) = site.written(1).await;
    assert_eq!(site.prove(&branch).await, Fate::RolledBack);
    assert_eq!(site.commit_one_phase(&branch, open).await, Fate::RolledBack);
    assert_eq!(site.amount(1).await, 100);
}

/// An early vote crossed the intent.
#[tokio::test]
async fn a_branch_that_turns_out_to_be_prepared_is_committed_by_the_proof() {
    let site = Site::new().await;
    let branch = site.prepared(1).await;
    assert_eq!(site.prove(&branch).await, Fate::Committed);
    assert_eq!(site.amount(1).await, 99);
}
