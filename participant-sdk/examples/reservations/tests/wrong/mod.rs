//! Ledgers that do one thing wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep::resource::{
    Attachment, BranchId, ClusterId, EvidenceRow, Fate, Gtrid, LogPosition, Positions, Prepared, Resource,
    ResourceError, ResourceManagerId, ResourceManagerName, Unresolved, Xid,
};
use lockstep::testing::{Rule, Subject};
use reservations::{Desk, Ledger};
use tempfile::TempDir;

/// Ledgers in temporary directories that all break one rule.
pub(crate) struct WrongLedgers {
    rule: Rule,
    directories: Mutex<Vec<TempDir>>,
    /// Something went past the ledger.
    passed: AtomicBool,
}

impl WrongLedgers {
    pub(crate) fn that_break(rule: Rule) -> Self {
        Self { rule, directories: Mutex::default(), passed: AtomicBool::new(false) }
    }
}

impl Subject for WrongLedgers {
    type Resource = Wrong;

    async fn create(&self) -> String {
        let directory = tempfile::tempdir().unwrap();
        let address = directory.path().to_str().unwrap().to_owned();
        Ledger::new(&address).add_item("seat", 1_000).await.unwrap();
        self.directories.lock().unwrap().push(directory);
        address
    }

    async fn open(&self, address: &str) -> Wrong {
        Wrong {
            rule: self.rule,
            directory: address.into(),
            ledger: Ledger::new(address),
            memory: Mutex::default(),
        }
    }

    async fn write(&self, desk: &mut Desk, key: &str) -> Result<(), String> {
        desk.reserve(key, "seat", 1).await.map_err(|error| error.to_string())
    }

    async fn read(&self, desk: &mut Desk) -> Result<(), String> {
        desk.left("seat").await.map(drop).map_err(|error| error.to_string())
    }

    /// A side door that the ledger knows nothing of: from now on everything is there.
    async fn commit_by_itself(&self, _desk: &mut Desk, _branch: &BranchId) -> bool {
        let has_one = self.rule == Rule::OwnCommitIsHazard;
        self.passed.store(has_one, Ordering::Relaxed);
        has_one
    }

    /// A ledger in which a reservation that fails takes back those before it would have to remember that; this one does not.
    async fn fail_silently(&self, desk: &mut Desk, key: &str) -> bool {
        desk.reserve(key, "seat", 1).await.unwrap_err();
        self.rule == Rule::FailedWorkIsRefused
    }

    async fn is_there(&self, wrong: &Wrong, _address: &str, key: &str) -> bool {
        self.passed.load(Ordering::Relaxed) || wrong.ledger.entry(key).await.unwrap().is_some()
    }
}

/// A ledger behind a wrapper that breaks the rule.
pub(crate) struct Wrong {
    rule: Rule,
    directory: PathBuf,
    ledger: Ledger,
    memory: Mutex<Memory>,
}

/// What this process believes to know, and should not rely on.
#[derive(Default)]
struct Memory {
    bound: Option<ClusterId>,
    prepared: BTreeSet<BranchId>,
    ended: BTreeSet<BranchId>,
    /// Branches that voted and are nowhere but here.
    held: BTreeMap<BranchId, WrongOpen>,
}

/// An open branch; its desk is taken out of it when it ends.
pub(crate) struct WrongOpen {
    rule: Rule,
    branch: BranchId,
    ledger: Ledger,
    desk: Option<Desk>,
}

impl WrongOpen {
    fn into_desk(mut self) -> Desk {
        self.desk.take().unwrap()
    }
}

impl Drop for WrongOpen {
    fn drop(&mut self) {
        if self.rule != Rule::DropLeavesNothing {
            return;
        }
        if let Some(desk) = self.desk.take() {
            let (ledger, branch) = (self.ledger.clone(), self.branch.clone());
            tokio::spawn(async move { ledger.commit_one_phase(&branch, desk, &some_position()).await });
        }
    }
}

fn some_position() -> LogPosition {
    let incarnation = lockstep::resource::Incarnation::from_bytes([7; 16]);
    LogPosition { epoch: lockstep::resource::Epoch::new(1).unwrap(), incarnation, sequence: 1 }
}

impl Wrong {
    fn breaks(&self, rule: Rule) -> bool {
        self.rule == rule
    }

    /// A note beside the ledger, which a crash leaves behind.
    fn note(&self) -> PathBuf {
        self.directory.join("note")
    }

    /// The branch that the note is about; gone with this.
    fn take_note(&self) -> Option<BranchId> {
        let text = fs::read_to_string(self.note()).ok()?;
        fs::remove_file(self.note()).unwrap();
        Some(text.parse().unwrap())
    }

    async fn is_prepared(&self, branch: &BranchId) -> bool {
        let name = branch.xid.bqual.resource_manager();
        self.ledger.prepared(branch.cluster, &name).await.unwrap().contains(&branch.xid)
    }

    async fn prepare_held(&self, branch: &BranchId, position: &LogPosition) {
        let held = self.memory.lock().unwrap().held.remove(branch);
        if let Some(open) = held {
            self.ledger.prepare(branch, open.into_desk(), position).await.unwrap();
        }
    }

    async fn roll_back_prepared(&self) {
        let prepared = std::mem::take(&mut self.memory.lock().unwrap().prepared);
        for branch in prepared {
            self.ledger.rollback(&branch, &some_position()).await.unwrap();
        }
    }

    async fn undo_what_was_begun(&self) {
        if self.breaks(Rule::AttachingDisturbsNothing) {
            self.roll_back_prepared().await;
        }
        if self.breaks(Rule::CrashWhileCommitting)
            && let Some(branch) = self.take_note()
        {
            self.ledger.rollback(&branch, &some_position()).await.unwrap();
        }
        if self.breaks(Rule::CrashWhileRollingBack)
            && let Some(branch) = self.take_note()
        {
            self.ledger.commit(&branch, &some_position()).await.unwrap();
        }
    }

    /// Attaching has a step in the middle at which the identity of the ledger hangs on a file.
    async fn identity(&self, identity: ResourceManagerId) -> ResourceManagerId {
        if self.breaks(Rule::IdentityStays) {
            return ResourceManagerId::from_bytes(rand::random());
        }
        if self.breaks(Rule::CrashWhileAttaching) {
            if self.note().exists() {
                return ResourceManagerId::from_bytes([0; 16]);
            }
            fs::write(self.note(), "attaching").unwrap();
            tokio::task::yield_now().await;
            fs::remove_file(self.note()).unwrap();
        }
        identity
    }
}

impl Resource for Wrong {
    type Connection = Desk;
    type Open = WrongOpen;

    async fn attach(&self, name: &ResourceManagerName) -> Result<Attachment, ResourceError> {
        self.undo_what_was_begun().await;
        let mut attachment = self.ledger.attach(name).await?;
        attachment.identity = self.identity(attachment.identity).await;
        if self.breaks(Rule::BoundOnce) {
            attachment.cluster = self.memory.lock().unwrap().bound;
        }
        let loses_position = [Rule::SeenOutlivesEvidence, Rule::CrashWhileForgetting].contains(&self.rule);
        if self.breaks(Rule::SeenIsKept) || (loses_position && self.note().exists()) {
            attachment.seen = Positions::new();
        }
        if self.breaks(Rule::SeenOfEachEpoch) {
            attachment.seen = attachment.seen.newest().into_iter().collect();
        }
        Ok(attachment)
    }

    async fn bind(&self, cluster: ClusterId) -> Result<(), Unresolved> {
        self.memory.lock().unwrap().bound = Some(cluster);
        if self.breaks(Rule::BindingDisturbsNothing) {
            self.roll_back_prepared().await;
        }
        self.ledger.bind(cluster).await
    }

    async fn begin(&self, branch: &BranchId, remaining: Duration) -> Result<WrongOpen, ResourceError> {
        let remaining = if self.breaks(Rule::DeadlineHolds) { Duration::from_secs(600) } else { remaining };
        let desk = Some(self.ledger.begin(branch, remaining).await?);
        Ok(WrongOpen { rule: self.rule, branch: branch.clone(), ledger: self.ledger.clone(), desk })
    }

    fn connection(open: &mut WrongOpen) -> &mut Desk {
        open.desk.as_mut().unwrap()
    }

    fn connection_ref(open: &WrongOpen) -> &Desk {
        open.desk.as_ref().unwrap()
    }

    async fn prepare(
        &self,
        branch: &BranchId,
        open: WrongOpen,
        position: &LogPosition,
    ) -> Result<Prepared, Unresolved> {
        if self.breaks(Rule::PreparedSurvives) || self.breaks(Rule::CrashWhilePreparing) {
            self.memory.lock().unwrap().held.insert(branch.clone(), open);
            return Ok(Prepared::Yes);
        }
        let vote = self.ledger.prepare(branch, open.into_desk(), position).await?;
        self.memory.lock().unwrap().prepared.insert(branch.clone());
        if self.breaks(Rule::NothingShowsBeforeCommit) {
            self.ledger.commit(branch, position).await?;
        }
        if self.breaks(Rule::ReadOnlyLeavesNothing) {
            return Ok(Prepared::Yes);
        }
        Ok(vote)
    }

    async fn commit_one_phase(
        &self,
        branch: &BranchId,
        open: WrongOpen,
        position: &LogPosition,
    ) -> Result<Fate, Unresolved> {
        if self.breaks(Rule::OnePhaseIsFenced) {
            self.ledger.forget(std::slice::from_ref(branch)).await?;
        }
        if self.breaks(Rule::CrashInOnePhase) {
            let (ledger, branch, position) = (self.ledger.clone(), branch.clone(), *position);
            tokio::spawn(async move { ledger.commit_one_phase(&branch, open.into_desk(), &position).await });
            return Ok(Fate::Committed);
        }
        let fate = self.ledger.commit_one_phase(branch, open.into_desk(), position).await?;
        if self.breaks(Rule::OnePhaseHasEvidence) {
            self.ledger.forget(std::slice::from_ref(branch)).await?;
        }
        Ok(fate)
    }

    async fn discard(&self, open: WrongOpen) {
        if self.breaks(Rule::DiscardLeavesNothing) {
            let branch = open.branch.clone();
            self.ledger.commit_one_phase(&branch, open.into_desk(), &some_position()).await.unwrap();
        }
    }

    async fn commit(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        self.prepare_held(branch, position).await;
        let is_first = self.memory.lock().unwrap().ended.insert(branch.clone());
        if self.breaks(Rule::CommitApplies) || (self.breaks(Rule::LostRepliesAreFound) && !is_first) {
            return Ok(Fate::Committed);
        }
        if self.breaks(Rule::CommitRepeats) && !is_first {
            return Ok(Fate::RolledBack);
        }
        if self.breaks(Rule::LostRepliesAreFound) {
            tokio::task::yield_now().await;
        }
        if self.breaks(Rule::UnknownIsFenced) && !self.is_prepared(branch).await {
            return Ok(Fate::RolledBack);
        }
        if self.breaks(Rule::ForeignIsUntouched) {
            let prepared = self.memory.lock().unwrap().prepared.clone();
            for same in prepared.iter().filter(|prepared| prepared.xid == branch.xid) {
                self.ledger.commit(same, position).await?;
            }
        }
        if self.breaks(Rule::CrashWhileCommitting) {
            fs::write(self.note(), branch.to_string()).unwrap();
            tokio::task::yield_now().await;
            fs::remove_file(self.note()).unwrap();
        }
        if self.breaks(Rule::SeenCoversCommits) {
            return self.ledger.commit(branch, &some_position()).await;
        }
        self.ledger.commit(branch, position).await
    }

    async fn rollback(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        self.prepare_held(branch, position).await;
        let is_first = self.memory.lock().unwrap().ended.insert(branch.clone());
        if self.breaks(Rule::RollbackUndoes) {
            return Ok(Fate::RolledBack);
        }
        if self.breaks(Rule::RollbackRepeats) && !is_first {
            return Ok(Fate::Committed);
        }
        if self.breaks(Rule::LatePrepareIsRefused) && !self.is_prepared(branch).await {
            return Ok(Fate::RolledBack);
        }
        if self.breaks(Rule::TasksAgree) && self.is_prepared(branch).await {
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.ledger.rollback(branch, position).await?;
            return Ok(Fate::RolledBack);
        }
        if self.breaks(Rule::CrashWhileRollingBack) {
            fs::write(self.note(), branch.to_string()).unwrap();
            tokio::task::yield_now().await;
            fs::remove_file(self.note()).unwrap();
        }
        self.ledger.rollback(branch, position).await
    }

    async fn prove(&self, branch: &BranchId, position: &LogPosition) -> Result<Fate, Unresolved> {
        if self.breaks(Rule::ProofCommitsPrepared) {
            return self.ledger.rollback(branch, position).await;
        }
        if self.breaks(Rule::UnknownIsFenced) && !self.is_prepared(branch).await {
            return Ok(Fate::RolledBack);
        }
        self.ledger.prove(branch, position).await
    }

    async fn prepared(&self, cluster: ClusterId, name: &ResourceManagerName) -> Result<Vec<Xid>, Unresolved> {
        let mut listed = self.ledger.prepared(cluster, name).await?;
        let memory = self.memory.lock().unwrap();
        listed.extend(memory.held.keys().map(|branch| branch.xid.clone()));
        if self.breaks(Rule::ListingIsComplete) && listed.len() > 1 {
            listed.pop();
        }
        if self.breaks(Rule::ListingIsOwn) {
            let all = memory.prepared.difference(&memory.ended);
            return Ok(all.map(|branch| branch.xid.clone()).collect());
        }
        Ok(listed)
    }

    async fn oldest_evidence(&self, cluster: ClusterId) -> Result<Option<Gtrid>, Unresolved> {
        if self.breaks(Rule::OldestEvidenceIsOldest) {
            return Ok(None);
        }
        self.ledger.oldest_evidence(cluster).await
    }

    async fn old_evidence(
        &self,
        cluster: ClusterId,
        retention: Duration,
        limit: usize,
    ) -> Result<Vec<EvidenceRow>, Unresolved> {
        let ages_at_once = self.breaks(Rule::OldEvidenceIsListed) || self.breaks(Rule::LateCommitIsKept);
        let retention = if ages_at_once { Duration::ZERO } else { retention };
        self.ledger.old_evidence(cluster, retention, limit).await
    }

    async fn forget(&self, branches: &[BranchId]) -> Result<(), Unresolved> {
        if self.breaks(Rule::ForgetDeletes) {
            return Ok(());
        }
        if self.breaks(Rule::SeenOutlivesEvidence) {
            fs::write(self.note(), "forgotten").unwrap();
        }
        if self.breaks(Rule::CrashWhileForgetting) {
            fs::write(self.note(), "forgetting").unwrap();
            self.ledger.forget(branches).await?;
            fs::remove_file(self.note()).unwrap();
        }
        self.ledger.forget(branches).await
    }
}
