//! What has to hold of a shard between two steps, for tests.

use super::{Shard, Timer};

impl<R> Shard<R> {
    /// Asserts that deadlines, deliveries, sessions and waiting clients fit the transactions that are live.
    pub(in crate::engine) fn assert_whole(&self) {
        self.deliveries.assert_whole();
        for (at, timer) in &self.timers {
            let (gtrid, set) = match timer {
                Timer::Deadline(gtrid) => (gtrid, self.live.get(gtrid).map(|live| live.deadline)),
                Timer::Waiters(gtrid) => (gtrid, self.live.get(gtrid).map(|live| live.wait_until)),
                Timer::RecordAgain(gtrid) => (gtrid, self.live.get(gtrid).map(|live| live.record_again)),
            };
            assert_eq!(set, Some(Some(*at)), "a timer is of a live transaction, which knows it: {gtrid}");
        }
        for (gtrid, live) in &self.live {
            assert_eq!(live.waiters.next(), live.wait_until, "who waits has a timer: {gtrid}");
            let awaited =
                live.wait_until.is_none_or(|at| self.timers.contains(&(at, Timer::Waiters(*gtrid))));
            assert!(awaited, "who waits has a timer: {gtrid}");
        }
        for xid in self.deliveries.xids() {
            let branches = self.live[&xid.gtrid].transaction.branches();
            let pending = branches.iter().any(|branch| branch.bqual == xid.bqual && branch.ended().is_none());
            assert!(pending, "only what has not ended is delivered: {xid}");
        }
        for (id, session) in &self.sessions {
            for xid in &session.open {
                let holder = self.live[&xid.gtrid].held_by.get(&xid.bqual);
                assert_eq!(holder, Some(id), "a session loses only what it holds: {xid}");
            }
        }
    }

    /// Whether nothing is left of any transaction.
    pub(in crate::engine) fn is_idle(&self) -> bool {
        self.live.is_empty()
            && self.timers.is_empty()
            && self.deliveries.is_empty()
            && self.sessions.values().all(|session| session.open.is_empty())
    }
}
