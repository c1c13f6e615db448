//! The participant's side: attach, join, work, finish, prepare, commit; and everything that goes wrong on the way.

mod early_votes;
mod faults;
mod handlers;
mod sessions;

use lockstep::{Branch, Context, Participant};
use lockstep_proto::v1;
use tempfile::TempDir;

use crate::support::coordinator::{Coordinator, Session, cluster, gtrid};
use crate::support::soon;
use crate::support::store::Store;

/// A participant `bank`, attached, and everything around it.
struct Bank {
    coordinator: Coordinator,
    session: Session,
    participant: Participant<Store>,
    store: Store,
    _dir: TempDir,
}

impl Bank {
    async fn attached() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(&dir.path().join("store"));
        let coordinator = Coordinator::start().await;
        let url = coordinator.url();
        let (participant, session) = tokio::join!(attach("bank", &store, &url), coordinator.attached());
        Self { coordinator, session, participant, store, _dir: dir }
    }

    /// A branch whose handler works in it, and that is enlisted.
    async fn joined(&mut self, number: u8) -> (Branch<Store>, v1::Xid) {
        let context = context(number);
        let (branch, xid) = tokio::join!(self.participant.join(&context), self.session.enlisted());
        (branch.unwrap(), xid)
    }

    /// A branch that has written `key=value` and is idle.
    async fn finished(&mut self, number: u8, key: &str, value: &str) -> v1::Xid {
        let (mut branch, xid) = self.joined(number).await;
        branch.set(key, value);
        soon("finishing", branch.finish()).await.unwrap();
        xid
    }

    /// As before, and prepared.
    async fn prepared(&mut self, number: u8, key: &str, value: &str) -> v1::Xid {
        let xid = self.finished(number, key, value).await;
        self.session.prepare(&xid).await;
        assert_eq!(self.session.vote(&xid).await, (v1::VoteKind::Commit, String::new()));
        xid
    }
}

async fn attach(name: &str, store: &Store, url: &str) -> Participant<Store> {
    let attach = Participant::builder(name, store.clone()).coordinator(url).attach();
    soon("attaching", attach).await.unwrap()
}

fn context(number: u8) -> Context {
    format!("01-{}-{}-30000", cluster(), gtrid(number)).parse().unwrap()
}

fn applied(applied: v1::Applied) -> (v1::Applied, String) {
    (applied, String::new())
}
