//! A participant's store, with the semantics that [`lockstep::resource::Resource`] asks for: local transactions, prepared ones, and a
//! table of evidence with branches and fences (protocol.md, P15 to P19). In memory and at once; when an operation takes
//! effect, and whether its reply arrives, is the world's matter.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep::resource::{Attachment, BranchId, EvidenceRow, Fate, Prepared, Room, Unresolved};
use lockstep_proto::{
    ClusterId, Epoch, Gtrid, LogPosition, Positions, ResourceManagerId, ResourceManagerName, Xid,
};

use super::history::{History, Local, branch_number};
use super::queue::Time;

/// How long a fence stays at least, before retention: longer than any transaction's deadline (P19).
const FENCE_LIFE: Time = 30_000_000;

/// One life of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Which instance.
    pub instance: usize,
    /// Which of its lives.
    pub life: u32,
}

#[derive(Debug)]
struct Open {
    holder: Process,
    deadline: Time,
}

#[derive(Debug)]
struct PreparedBranch {
    xid: Xid,
    position: LogPosition,
    deadline: Time,
    /// Who prepared it, and still has that connection.
    attached: Option<Process>,
    /// It was committed, and a failover has undone that.
    undone: bool,
}

#[derive(Debug)]
struct Row {
    xid: Xid,
    /// A branch's; otherwise a fence, or a hazard.
    committed: bool,
    /// A part of the branch's work is there, by its service's own doing.
    hazard: bool,
    position: LogPosition,
    deadline: Time,
    at: Time,
    two_phase: bool,
    /// Its retention counts from its deadline. That of a prepared branch's row counts from when it is first noticed as old: it may have been
    /// committed long after its deadline.
    noticed: bool,
}

impl Row {
    fn fate(&self) -> Fate {
        match (self.hazard, self.committed) {
            (true, _) => Fate::Hazard,
            (false, true) => Fate::Committed,
            (false, false) => Fate::RolledBack,
        }
    }
}

/// What may be wrong with a PREPARE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preparing {
    /// Nothing.
    Well,
    /// A constraint that is checked at its end fails.
    Refused,
    /// It says OK and has rolled back (participants.md, 1).
    Hollow,
    /// Its service has committed by itself what it had done so far (P16).
    Hazard,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    /// What it is called.
    pub name: ResourceManagerName,
    identity: ResourceManagerId,
    cluster: Option<ClusterId>,
    timeline: u32,
    seen: Positions,
    /// A prepared branch is bound to the connection that prepared it as long as that lives.
    pub is_xa: bool,
    /// Grows with each restart and each failover: what spans one was cut off.
    pub restarts: u32,
    open: BTreeMap<u32, Open>,
    prepared: BTreeMap<u32, PreparedBranch>,
    evidence: BTreeMap<u32, Row>,
    /// Prepared transactions that are not ours.
    foreign: Vec<BranchId>,
}

impl Store {
    /// An empty one, but for prepared transactions of others.
    #[must_use]
    pub const fn new(
        name: ResourceManagerName,
        identity: ResourceManagerId,
        is_xa: bool,
        foreign: Vec<BranchId>,
    ) -> Self {
        Self {
            name,
            identity,
            cluster: None,
            timeline: 1,
            seen: Positions::new(),
            is_xa,
            restarts: 0,
            open: BTreeMap::new(),
            prepared: BTreeMap::new(),
            evidence: BTreeMap::new(),
            foreign,
        }
    }

    /// What it says of itself.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment {
            identity: self.identity,
            cluster: self.cluster,
            seen: self.seen.clone(),
            location: String::new(),
            timeline: self.timeline,
        }
    }

    /// Stores the cluster, if none is stored. The one that is stored then.
    pub fn bind(&mut self, cluster: ClusterId) -> ClusterId {
        *self.cluster.get_or_insert(cluster)
    }

    // ---- branches ----

    /// Opens a local transaction.
    pub fn begin(&mut self, branch: &BranchId, holder: Process, deadline: Time, history: &mut History) {
        history.branch(&branch.xid).local = Local::Open;
        self.open.insert(branch_number(&branch.xid.bqual), Open { holder, deadline });
    }

    /// Ends an open local transaction.
    pub fn discard(&mut self, branch: &BranchId, history: &mut History) {
        if self.open.remove(&branch_number(&branch.xid.bqual)).is_some() {
            history.branch(&branch.xid).local = Local::RolledBack;
        }
    }

    /// A process is gone, or its connections are: what it had open goes, but for what it had just sent (`busy`).
    pub fn disconnect(&mut self, gone: Process, busy: &[u32], history: &mut History) {
        let lost = |number: &u32, open: &mut Open| open.holder == gone && !busy.contains(number);
        for (number, _) in self.open.extract_if(.., lost) {
            history.branches[number as usize].local = Local::RolledBack;
        }
    }

    /// The local transaction, if it is still there; it is over then, one way or the other.
    fn take_open(
        &mut self,
        branch: &BranchId,
        now: Time,
        history: &mut History,
    ) -> Result<Result<Open, String>, Unresolved> {
        let number = branch_number(&branch.xid.bqual);
        let Some(open) = self.open.remove(&number) else {
            return Err(Unresolved("the connection is lost".to_owned()));
        };
        let refused = if self.evidence.contains_key(&number) {
            Some("a fence stands in its way")
        } else {
            (now > open.deadline).then_some("its deadline has passed")
        };
        if let Some(why) = refused {
            history.branch(&branch.xid).local = Local::RolledBack;
            return Ok(Err(why.to_owned()));
        }
        Ok(Ok(open))
    }

    /// Prepares.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn prepare(
        &mut self,
        branch: &BranchId,
        position: LogPosition,
        how: Preparing,
        now: Time,
        history: &mut History,
    ) -> Result<Prepared, Unresolved> {
        let open = match self.take_open(branch, now, history)? {
            Ok(open) => open,
            Err(why) => return Ok(Prepared::No(why)),
        };
        let facts = history.branch(&branch.xid);
        if facts.read_only {
            facts.local = Local::ReadOnly;
            return Ok(Prepared::ReadOnly);
        }
        let number = branch_number(&branch.xid.bqual);
        if how == Preparing::Hazard {
            (facts.local, facts.by_hand) = (Local::Hazard, true);
            let deadline = open.deadline;
            let row = Row {
                xid: branch.xid.clone(),
                committed: false,
                hazard: true,
                position,
                deadline,
                at: now,
                two_phase: false,
                noticed: true,
            };
            self.evidence.insert(number, row);
            return Ok(Prepared::Hazard("its service has committed by itself".to_owned()));
        }
        if how == Preparing::Well {
            (facts.local, facts.was_prepared) = (Local::Prepared, true);
            let (xid, attached) = (branch.xid.clone(), Some(open.holder));
            let prepared = PreparedBranch { xid, position, deadline: open.deadline, attached, undone: false };
            self.prepared.insert(number, prepared);
        } else {
            facts.local = Local::RolledBack;
        }
        // The proof: an OK is not believed.
        match how {
            Preparing::Refused => Ok(Prepared::No("a deferred constraint failed".to_owned())),
            Preparing::Well | Preparing::Hollow if self.prepared.contains_key(&number) => Ok(Prepared::Yes),
            Preparing::Well | Preparing::Hollow | Preparing::Hazard => {
                Ok(Prepared::No("PREPARE said OK and has prepared nothing".to_owned()))
            }
        }
    }

    /// Commits an open local transaction, with its evidence.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn commit_one_phase(
        &mut self,
        branch: &BranchId,
        position: LogPosition,
        now: Time,
        history: &mut History,
    ) -> Result<Fate, Unresolved> {
        let Ok(open) = self.take_open(branch, now, history)? else { return Ok(Fate::RolledBack) };
        history.branch(&branch.xid).local = Local::Committed;
        self.put(branch, true, position, open.deadline, now, false);
        Ok(Fate::Committed)
    }

    /// Whether a command about this branch is refused as being about none, because the connection that prepared it, another
    /// one, is still there. That connection is killed for the next time, if `kill`.
    pub fn is_bound_elsewhere(&mut self, branch: &BranchId, asks: Process, kill: bool) -> bool {
        let number = branch_number(&branch.xid.bqual);
        let Some(prepared) = self.prepared.get_mut(&number).filter(|_| self.is_xa) else { return false };
        let bound = prepared.attached.is_some_and(|holder| holder != asks);
        if kill {
            prepared.attached = None;
        }
        bound
    }

    /// Commits what is prepared; otherwise tells what became of it.
    pub fn commit(
        &mut self,
        branch: &BranchId,
        position: LogPosition,
        now: Time,
        history: &mut History,
    ) -> Fate {
        if history.branch(&branch.xid).local == Local::Hazard {
            return Fate::Hazard;
        }
        let Some(prepared) = self.prepared.remove(&branch_number(&branch.xid.bqual)) else {
            return self.resolve(branch, position, now, history);
        };
        history.branch(&branch.xid).local = Local::Committed;
        self.put(branch, true, prepared.position, prepared.deadline, now, true);
        Fate::Committed
    }

    /// Rolls back what is prepared, and leaves a fence; otherwise tells what became of it.
    pub fn rollback(
        &mut self,
        branch: &BranchId,
        position: LogPosition,
        now: Time,
        history: &mut History,
    ) -> Fate {
        if history.branch(&branch.xid).local == Local::Hazard {
            return Fate::Hazard;
        }
        if self.prepared.remove(&branch_number(&branch.xid.bqual)).is_some() {
            history.branch(&branch.xid).local = Local::RolledBack;
        }
        self.resolve(branch, position, now, history)
    }

    /// What became of a branch that is not prepared: evidence tells, and where there is none a fence makes that final.
    fn resolve(
        &mut self,
        branch: &BranchId,
        position: LogPosition,
        now: Time,
        history: &mut History,
    ) -> Fate {
        if let Some(row) = self.evidence.get(&branch_number(&branch.xid.bqual)) {
            return row.fate();
        }
        self.put(branch, false, position, now + FENCE_LIFE, now, false);
        let facts = history.branch(&branch.xid);
        // An open one is still to find the fence.
        if facts.local == Local::None {
            facts.local = Local::RolledBack;
        }
        Fate::RolledBack
    }

    fn put(
        &mut self,
        branch: &BranchId,
        committed: bool,
        position: LogPosition,
        deadline: Time,
        at: Time,
        two_phase: bool,
    ) {
        self.seen.see(position);
        let xid = branch.xid.clone();
        let row =
            Row { xid, committed, hazard: false, position, deadline, at, two_phase, noticed: !two_phase };
        self.evidence.insert(branch_number(&branch.xid.bqual), row);
    }

    /// How much room it says that it has, of so many slots.
    #[must_use]
    pub fn room(&self, cluster: ClusterId, slots: usize, connections: usize) -> Room {
        let prepared = self.prepared.values().map(|prepared| BranchId { cluster, xid: prepared.xid.clone() });
        Room { slots, prepared: prepared.collect(), prepared_by_others: self.foreign.len(), connections }
    }

    /// Whether this branch is fenced.
    #[must_use]
    pub fn is_fenced(&self, branch: &BranchId) -> bool {
        self.evidence.get(&branch_number(&branch.xid.bqual)).is_some_and(|row| row.fate() == Fate::RolledBack)
    }

    // ---- listings ----

    /// The prepared branches of this cluster that name this resource manager.
    #[must_use]
    pub fn prepared(&self, cluster: ClusterId) -> Vec<Xid> {
        let ours = self.prepared.values().map(|prepared| prepared.xid.clone());
        let foreign = self.foreign.iter().filter(|foreign| {
            foreign.cluster == cluster && foreign.xid.bqual.resource_manager_str() == self.name.as_str()
        });
        ours.chain(foreign.map(|foreign| foreign.xid.clone())).collect()
    }

    /// Whether this branch is prepared.
    #[must_use]
    pub fn is_prepared(&self, xid: &Xid) -> bool {
        self.prepared.contains_key(&branch_number(&xid.bqual))
    }

    /// The oldest transaction with evidence of a commit or a hazard.
    #[must_use]
    pub fn oldest_evidence(&self) -> Option<Gtrid> {
        self.evidence.values().filter(|row| row.fate() != Fate::RolledBack).map(|row| row.xid.gtrid).min()
    }

    /// Evidence whose deadline is `retention` ago, and was noticed as old as long ago, as the SDK's resources have it.
    #[must_use]
    pub fn old_evidence(
        &mut self,
        cluster: ClusterId,
        retention: Duration,
        limit: usize,
        now: Time,
    ) -> Vec<EvidenceRow> {
        let retention = u64::try_from(retention.as_micros()).expect("a retention is short");
        let is_old = |row: &Row| row.deadline + retention <= now;
        for row in self.evidence.values_mut().filter(|row| is_old(row) && !row.noticed) {
            (row.noticed, row.deadline) = (true, now);
        }
        let old = self.evidence.values().filter(|row| is_old(row)).take(limit);
        old.map(|row| EvidenceRow { branch: BranchId { cluster, xid: row.xid.clone() }, fate: row.fate() })
            .collect()
    }

    /// Keeps the position, and lets go of what was seen of these epochs.
    pub fn settle(&mut self, position: LogPosition, epochs: &[Epoch]) {
        self.seen.see(position);
        self.seen.forget(epochs);
    }

    /// Deletes these rows.
    pub fn forget(&mut self, branches: &[BranchId]) {
        for branch in branches {
            self.evidence.remove(&branch_number(&branch.xid.bqual));
        }
    }

    // ---- what befalls it ----

    /// Every connection is lost. The processes of `busy` had just sent something: it is lost too.
    pub fn restart(&mut self, history: &mut History) {
        self.restarts += 1;
        for number in std::mem::take(&mut self.open).into_keys() {
            history.branches[number as usize].local = Local::RolledBack;
        }
        self.prepared.values_mut().for_each(|prepared| prepared.attached = None);
    }

    /// A standby takes over that lacks the commits of prepared branches since then: they are prepared again
    /// (participants.md, 4). How many; nothing happens if there are none.
    pub fn fail_over(&mut self, since: Time, history: &mut History) -> usize {
        let lacking = |number: &u32, row: &mut Row| {
            let once = !history.branches[*number as usize].undone;
            row.committed && row.two_phase && row.at >= since && row.deadline >= since && once
        };
        let lacking: Vec<(u32, Row)> = self.evidence.extract_if(.., lacking).collect();
        if lacking.is_empty() {
            return 0;
        }
        self.restart(history);
        self.timeline += 1;
        for (number, Row { xid, position, deadline, .. }) in lacking.iter().map(|(number, row)| (number, row))
        {
            let facts = &mut history.branches[*number as usize];
            (facts.local, facts.undone) = (Local::Prepared, true);
            let (xid, position, deadline) = (xid.clone(), *position, *deadline);
            let prepared = PreparedBranch { xid, position, deadline, attached: None, undone: true };
            self.prepared.insert(*number, prepared);
        }
        lacking.len()
    }

    /// Prepared branches that an administrator may lay hands on: not those that a failover has undone. Nobody could find out
    /// what became of these.
    #[must_use]
    pub fn in_reach_of_hands(&self, history: &History) -> Vec<Xid> {
        let reachable = |number: &u32, prepared: &PreparedBranch| {
            !prepared.undone && history.branches[*number as usize].local != Local::Hazard
        };
        let prepared = self.prepared.iter().filter(|(number, prepared)| reachable(number, prepared));
        prepared.map(|(_, prepared)| prepared.xid.clone()).collect()
    }

    /// `COMMIT PREPARED` or `ROLLBACK PREPARED` by hand. The evidence of a branch is part of it; a fence is not.
    pub fn end_by_hand(&mut self, xid: &Xid, commit: bool, now: Time, history: &mut History) {
        let number = branch_number(&xid.bqual);
        let Some(prepared) = self.prepared.remove(&number) else { return };
        let facts = history.branch(xid);
        facts.by_hand = true;
        facts.local = if commit { Local::Committed } else { Local::RolledBack };
        if commit {
            let branch =
                BranchId { cluster: self.cluster.expect("it is bound, or has no branch"), xid: xid.clone() };
            self.put(&branch, true, prepared.position, prepared.deadline, now, false);
            self.evidence.get_mut(&number).expect("it was just put").noticed = false;
        }
    }

    // ---- the checker's view ----

    /// The branches that are prepared, and may be ended.
    pub fn in_doubt(&self, history: &History) -> impl Iterator<Item = &Xid> {
        let stuck = |number: &u32| history.branches[*number as usize].local == Local::Hazard;
        let in_doubt = self.prepared.iter().filter(move |(number, _)| !stuck(number));
        in_doubt.map(|(_, prepared)| &prepared.xid)
    }

    /// How many local transactions are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// How many rows of evidence there are.
    #[must_use]
    pub fn evidence_count(&self) -> usize {
        self.evidence.len()
    }

    /// The prepared transactions of others that are still there.
    #[must_use]
    pub fn foreign(&self) -> &[BranchId] {
        &self.foreign
    }
}
