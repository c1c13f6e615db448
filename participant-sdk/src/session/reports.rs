//! Listing what is prepared, and letting evidence go.
//!
//! Two sets are compared at each listing: what the store holds prepared, and what the coordinator knows. The store is
//! read first, then the coordinator is asked, and only what both name is acted on. A PREPARE that lands after the list was
//! taken is in the next one (P20), which is why there is always a next one.
//!
//! Evidence goes only after the coordinator has judged it, and only what was asked about in this very session (P19).

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_proto::limits::MAX_REPORT_ENTRIES;
use lockstep_proto::museum::mutated;
use lockstep_proto::{Gtrid, Xid};

use super::message::ToCoordinator;
use super::{Closing, Effect, Listing, Phase, Session};
use crate::resource::{Attachment, BranchId, EvidenceRow, Unresolved};

/// The bounds of what a coordinator may ask for: neither a loop nor never.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// How soon the store is listed again after it failed to answer: soon enough for whoever waits on the locks of a branch that
/// a failover has brought back, late enough for a store that restarts.
const AFTER_A_FAILURE: Duration = Duration::from_secs(1);

/// Where the listings are.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// When the next one is due. `None` while one is being taken, and without a session.
    due: Option<Duration>,
    interval: Duration,
    /// The number of the next one.
    next: u64,
    /// What was prepared here when the listing began that is being taken.
    prepared: BTreeSet<Xid>,
    /// Listings that failed, one after the other.
    failed: u32,
    /// The next listing is wanted as soon as the one that is being taken is there.
    hastened: bool,
    /// The store failed to answer since it was last attached to.
    store_doubtful: bool,
    /// The evidence rows that the coordinator was asked about last: nothing else is deleted, whatever an answer names.
    asked: Vec<BranchId>,
}

impl Reports {
    pub(super) fn start(&mut self, now: Duration, interval: Duration) {
        let interval = interval.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
        *self = Self { due: Some(now), interval, next: 1, ..Self::default() };
    }

    pub(super) fn stop(&mut self) {
        *self = Self::default();
    }

    pub(super) const fn next_wake(&self) -> Option<Duration> {
        self.due
    }

    /// The store is to be listed now.
    pub(super) fn hasten(&mut self, now: Duration) {
        match &mut self.due {
            Some(due) => *due = now,
            // A listing that is being taken may have passed by what is meant.
            None => self.hastened = true,
        }
    }

    /// An answer of the store was not to be had: its connections may be gone, and branches may be prepared that were not.
    pub(super) fn store_may_be_lost(&mut self, now: Duration) {
        self.store_doubtful = true;
        self.due = self.due.map(|due| due.min(now + AFTER_A_FAILURE));
    }
}

impl Session {
    pub(super) fn list_if_due(&mut self, now: Duration) {
        let Phase::Attached { welcome, .. } = &self.phase else { return };
        if self.reports.due.is_none_or(|due| due > now) {
            return;
        }
        self.reports.due = None;
        let again = std::mem::take(&mut self.reports.store_doubtful);
        self.reports.prepared = self.prepared_here();
        self.effects.push(Effect::List { session: self.number, cluster: welcome.cluster, again });
    }

    pub(super) fn listed(&mut self, now: Duration, session: u64, result: Result<Listing, Unresolved>) {
        let Phase::Attached { attachment, .. } = &self.phase else { return };
        if session != self.number {
            return;
        }
        match result {
            Ok(Listing { attachment: Some(found), .. }) if !same_store(attachment, &found) => {
                let why = "the store is not the one that was attached: another identity, place or timeline";
                self.close(Closing::Broken(why.to_owned()));
            }
            Ok(listing) => {
                let is_back = listing.attachment.is_some();
                let hastened = std::mem::take(&mut self.reports.hastened).then_some(Duration::ZERO);
                let soon = hastened.or(self.reports.store_doubtful.then_some(AFTER_A_FAILURE));
                self.reports.due = Some(now + soon.unwrap_or(self.reports.interval));
                if mutated("P20-lists-only-when-it-attaches") {
                    self.reports.due = None;
                }
                self.reports.failed = 0;
                self.forget_what_is_not(&listing.prepared, now);
                self.report(listing);
                if is_back {
                    self.ask_again_now(now);
                }
                self.find_old_evidence();
            }
            Err(unresolved) => {
                self.warn(format!("the store could not be listed: {unresolved}"));
                let wait = AFTER_A_FAILURE * (1 << self.reports.failed.min(6));
                self.reports.failed += 1;
                self.reports.store_doubtful = true;
                self.reports.due = Some(now + wait.min(self.reports.interval));
            }
        }
    }

    fn forget_what_is_not(&mut self, listed: &[Xid], now: Duration) {
        let mut gone = std::mem::take(&mut self.reports.prepared);
        for xid in listed {
            gone.remove(xid);
        }
        for xid in gone {
            self.not_listed(now, &xid);
        }
    }

    fn report(&mut self, listing: Listing) {
        let number = self.reports.next;
        self.reports.next += 1;
        let oldest: Option<Gtrid> =
            listing.prepared.iter().map(|xid| xid.gtrid).chain(listing.oldest_evidence).min();
        let mut chunks = listing.prepared.chunks(MAX_REPORT_ENTRIES).peekable();
        loop {
            let prepared = chunks.next().unwrap_or_default().to_vec();
            let complete = chunks.peek().is_none();
            let oldest_held = oldest.filter(|_| complete && !mutated("P7-holds-nothing-old"));
            self.send(ToCoordinator::Report { prepared, oldest_held, complete, listing: number });
            if complete {
                return;
            }
        }
    }

    fn find_old_evidence(&mut self) {
        let Phase::Attached { welcome, .. } = &self.phase else { return };
        self.effects.push(Effect::FindOldEvidence {
            session: self.number,
            cluster: welcome.cluster,
            retention: welcome.retention,
            limit: MAX_REPORT_ENTRIES,
        });
    }

    pub(super) fn old_evidence(&mut self, session: u64, result: Result<Vec<EvidenceRow>, Unresolved>) {
        if session != self.number || !matches!(self.phase, Phase::Attached { .. }) {
            return;
        }
        match result {
            Ok(rows) if rows.is_empty() => {}
            Ok(rows) if mutated("P19-evidence-goes-unasked") => {
                let rows = rows.into_iter().map(|row| row.branch).collect();
                self.effects.push(Effect::Forget(self.number, rows));
            }
            Ok(rows) => {
                self.reports.asked = rows.iter().map(|row| row.branch.clone()).collect();
                let rows = rows.into_iter().map(|row| (row.branch.xid, row.fate)).collect();
                self.send(ToCoordinator::Reconcile(rows));
            }
            Err(unresolved) => self.warn(format!("old evidence could not be read: {unresolved}")),
        }
    }

    pub(super) fn reconciled(&mut self, forget: Vec<Xid>) {
        let Phase::Attached { welcome, .. } = &self.phase else { return };
        let (own, sealed_below) = (welcome.position.epoch.get(), welcome.sealed_below);
        let asked = std::mem::take(&mut self.reports.asked);
        // Of an epoch that is neither the answering coordinator's own nor sealed, someone else may still send a commit that
        // would find no evidence of having been done.
        let may_go = |branch: &BranchId| {
            let epoch = branch.xid.gtrid.epoch().get();
            (epoch == own || epoch < sealed_below) && forget.contains(&branch.xid)
        };
        let branches: Vec<_> = asked.into_iter().filter(may_go).collect();
        if !branches.is_empty() {
            self.effects.push(Effect::Forget(self.number, branches));
        }
    }

    pub(super) fn forgotten(&mut self, session: u64, result: &Result<(), Unresolved>) {
        if session != self.number {
            return;
        }
        match result {
            // There may be more: what is old goes faster than it comes.
            Ok(()) => self.find_old_evidence(),
            Err(unresolved) => self.warn(format!("old evidence could not be deleted: {unresolved}")),
        }
    }
}

/// What the coordinator was told of the store still holds. What the store has seen meanwhile may have changed.
fn same_store(told: &Attachment, found: &Attachment) -> bool {
    told.identity == found.identity && told.location == found.location && told.timeline == found.timeline
}
