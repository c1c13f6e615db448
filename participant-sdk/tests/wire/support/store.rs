//! A key-value store of files that takes part in global transactions: small, slow, and durable.
//!
//! ```text
//! identity, cluster      who it is, and to whom it belongs
//! values/<key>           what is committed
//! prepared/<branch>      the writes of a prepared branch, one `key=value` per line
//! evidence/<branch>      `branch` or `fence`
//! ```
//! One lock makes each operation atomic among this process' tasks; a file is written aside, synced and renamed. To apply a
//! prepared branch the values are written first, then the evidence, then the prepared file goes: a crash in between repeats it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockstep::resource::{
    Attachment, BranchId, EvidenceRow, Fate, Prepared, Resource, ResourceError, Unresolved,
};
use lockstep_proto::{ClusterId, Gtrid, LogPosition, Positions, ResourceManagerId, ResourceManagerName, Xid};
use tokio::sync::{Mutex, Semaphore};

/// Operations that may pass the gate at a time: more than any test has.
const GATE: u32 = 1000;

/// The store. Clones are the same store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: PathBuf,
    lock: Arc<Mutex<()>>,
    /// Local transactions that are open.
    open: Arc<AtomicUsize>,
    /// Prepares and the binding wait here as long as a test holds it.
    gate: Arc<Semaphore>,
    /// How many commits may still begin.
    commits: Arc<Semaphore>,
    /// The questions that were asked about the whole store, in their order.
    questions: Arc<std::sync::Mutex<Vec<&'static str>>>,
}

/// What a handler works with: reads what is committed, and its own writes.
#[derive(Debug)]
pub(crate) struct Connection {
    dir: PathBuf,
    writes: BTreeMap<String, String>,
}

impl Connection {
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.writes.insert(key.to_owned(), value.to_owned());
    }

    pub(crate) fn get(&self, key: &str) -> Option<String> {
        let committed = || fs::read_to_string(self.dir.join("values").join(key)).ok();
        self.writes.get(key).cloned().or_else(committed)
    }
}

/// An open local transaction.
#[derive(Debug)]
pub(crate) struct Open {
    connection: Connection,
    open: Arc<AtomicUsize>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Store {
    /// The store in this directory, made if there is none.
    pub(crate) fn at(dir: &Path) -> Self {
        for part in ["values", "prepared", "evidence"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        Self {
            dir: dir.to_owned(),
            lock: Arc::default(),
            open: Arc::default(),
            gate: Arc::new(Semaphore::new(GATE as usize)),
            commits: Arc::new(Semaphore::new(GATE as usize)),
            questions: Arc::default(),
        }
    }

    pub(crate) fn committed(&self, key: &str) -> Option<String> {
        fs::read_to_string(self.dir.join("values").join(key)).ok()
    }

    pub(crate) fn questions(&self) -> Vec<&'static str> {
        self.questions.lock().unwrap().clone()
    }

    fn asked(&self, question: &'static str) {
        self.questions.lock().unwrap().push(question);
    }

    pub(crate) fn open_branches(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub(crate) fn prepared_branches(&self) -> usize {
        fs::read_dir(self.dir.join("prepared")).unwrap().count()
    }

    pub(crate) fn evidence(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.join("evidence")).unwrap();
        names.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
    }

    /// Takes the store away, so that no operation succeeds, until [`Store::bring_back`].
    pub(crate) fn take_away(&self) {
        fs::rename(&self.dir, self.dir.with_extension("away")).unwrap();
    }

    pub(crate) fn bring_back(&self) {
        fs::rename(self.dir.with_extension("away"), &self.dir).unwrap();
    }

    /// No prepare and no binding gets past the beginning until the guard is dropped.
    pub(crate) async fn hold(&self) -> tokio::sync::OwnedSemaphorePermit {
        Arc::clone(&self.gate).acquire_many_owned(GATE).await.unwrap()
    }

    /// No further commit gets past the beginning, unless [`Store::let_pass`] says so.
    pub(crate) fn hold_commits(&self) {
        self.commits.forget_permits(GATE as usize);
    }

    pub(crate) fn let_pass(&self, commits: usize) {
        self.commits.add_permits(commits);
    }

    fn path(&self, part: &str, branch: &BranchId) -> PathBuf {
        self.dir.join(part).join(branch.to_string())
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let aside = self.dir.join("aside");
        let mut file = fs::File::create(&aside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, path)
    }

    fn apply(&self, branch: &BranchId, writes: &str) -> io::Result<()> {
        for (key, value) in writes.lines().filter_map(|line| line.split_once('=')) {
            self.write(&self.dir.join("values").join(key), value)?;
        }
        self.write(&self.path("evidence", branch), "branch")?;
        match fs::remove_file(self.path("prepared", branch)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What became of a branch that is not prepared; puts a fence in if there is no trace of it.
    fn judge(&self, branch: &BranchId) -> io::Result<Fate> {
        let path = self.path("evidence", branch);
        match read(&path)?.as_deref() {
            Some("branch") => Ok(Fate::Committed),
            Some(_) => Ok(Fate::RolledBack),
            None => self.write(&path, "fence").map(|()| Fate::RolledBack),
        }
    }

    fn finish(&self, branch: &BranchId) -> io::Result<Fate> {
        if let Some(writes) = read(&self.path("prepared", branch))? {
            self.apply(branch, &writes)?;
        }
        self.judge(branch)
    }

    fn undo(&self, branch: &BranchId) -> io::Result<Fate> {
        if read(&self.path("prepared", branch))?.is_some() {
            fs::remove_file(self.path("prepared", branch))?;
        }
        self.judge(branch)
    }

    fn branches(&self, part: &str, cluster: ClusterId) -> io::Result<Vec<BranchId>> {
        let mut branches = Vec::new();
        for entry in fs::read_dir(self.dir.join(part))? {
            let name = entry?.file_name().into_string().map_err(|_name| io::ErrorKind::InvalidData)?;
            let branch: BranchId = name.parse().map_err(io::Error::other)?;
            branches.extend((branch.cluster == cluster).then_some(branch));
        }
        Ok(branches)
    }

    fn attachment(&self) -> io::Result<Attachment> {
        let path = self.dir.join("identity");
        if read(&path)?.is_none() {
            let identity = ResourceManagerId::from_bytes(*uuid::Uuid::new_v4().as_bytes());
            self.write(&path, &identity.to_string())?;
        }
        let identity = read(&path)?.unwrap_or_default().parse().map_err(io::Error::other)?;
        let cluster = read(&self.dir.join("cluster"))?.map(|text| text.parse().map_err(io::Error::other));
        let cluster = cluster.transpose()?;
        Ok(Attachment { identity, cluster, seen: Positions::new(), location: String::new(), timeline: 0 })
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::exists) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn unresolved(error: io::Error) -> Unresolved {
    Unresolved(format!("the store failed: {error}"))
}

impl Resource for Store {
    type Connection = Connection;
    type Open = Open;

    async fn attach(&self, _name: &ResourceManagerName) -> Result<Attachment, ResourceError> {
        self.asked("attach");
        let _one = self.lock.lock().await;
        if self.dir.join("unfit").exists() {
            return Err(ResourceError::Unfit("the file `unfit` is there: remove it".to_owned()));
        }
        self.attachment().map_err(|error| ResourceError::Unavailable(error.to_string()))
    }

    async fn bind(&self, cluster: ClusterId) -> Result<(), Unresolved> {
        let _passed = self.gate.acquire().await;
        self.asked("bind");
        let _one = self.lock.lock().await;
        self.write(&self.dir.join("cluster"), &cluster.to_string()).map_err(unresolved)
    }

    async fn begin(&self, _branch: &BranchId, _remaining: Duration) -> Result<Open, ResourceError> {
        if !self.dir.exists() {
            return Err(ResourceError::Unavailable("the store is away".to_owned()));
        }
        self.open.fetch_add(1, Ordering::SeqCst);
        let connection = Connection { dir: self.dir.clone(), writes: BTreeMap::new() };
        Ok(Open { connection, open: Arc::clone(&self.open) })
    }

    fn connection(open: &mut Open) -> &mut Connection {
        &mut open.connection
    }

    fn connection_ref(open: &Open) -> &Connection {
        &open.connection
    }

    async fn has_written(open: &mut Open) -> bool {
        !open.connection.writes.is_empty()
    }

    async fn prepare(
        &self,
        branch: &BranchId,
        open: Open,
        _position: &LogPosition,
    ) -> Result<Prepared, Unresolved> {
        let _passed = self.gate.acquire().await;
        let _one = self.lock.lock().await;
        let writes = &open.connection.writes;
        if writes.is_empty() {
            return Ok(Prepared::ReadOnly);
        }
        assert!(!writes.contains_key("panic"), "on purpose");
        if writes.contains_key("forbidden") {
            return Ok(Prepared::No("the key `forbidden` may not be written".to_owned()));
        }
        if read(&self.path("evidence", branch)).map_err(unresolved)?.is_some() {
            return Ok(Prepared::No("fenced".to_owned()));
        }
        self.write(&self.path("prepared", branch), &lines(writes)).map_err(unresolved)?;
        Ok(Prepared::Yes)
    }

    async fn commit_one_phase(
        &self,
        branch: &BranchId,
        open: Open,
        _position: &LogPosition,
    ) -> Result<Fate, Unresolved> {
        let _one = self.lock.lock().await;
        if read(&self.path("evidence", branch)).map_err(unresolved)?.is_some() {
            return Ok(Fate::RolledBack);
        }
        // As a database would: all or nothing, so by way of being prepared.
        self.write(&self.path("prepared", branch), &lines(&open.connection.writes)).map_err(unresolved)?;
        self.finish(branch).map_err(unresolved)
    }

    async fn discard(&self, open: Open) {
        drop(open);
    }

    async fn commit(&self, branch: &BranchId, _position: &LogPosition) -> Result<Fate, Unresolved> {
        self.commits.acquire().await.unwrap().forget();
        let _one = self.lock.lock().await;
        self.finish(branch).map_err(unresolved)
    }

    async fn rollback(&self, branch: &BranchId, _position: &LogPosition) -> Result<Fate, Unresolved> {
        let _one = self.lock.lock().await;
        self.undo(branch).map_err(unresolved)
    }

    async fn prove(&self, branch: &BranchId, _position: &LogPosition) -> Result<Fate, Unresolved> {
        let _one = self.lock.lock().await;
        self.finish(branch).map_err(unresolved)
    }

    async fn prepared(&self, cluster: ClusterId, name: &ResourceManagerName) -> Result<Vec<Xid>, Unresolved> {
        self.asked("prepared");
        let _one = self.lock.lock().await;
        let ours = |branch: &BranchId| branch.xid.bqual.resource_manager() == *name;
        let branches = self.branches("prepared", cluster).map_err(unresolved)?;
        Ok(branches.into_iter().filter(ours).map(|branch| branch.xid).collect())
    }

    async fn oldest_evidence(&self, cluster: ClusterId) -> Result<Option<Gtrid>, Unresolved> {
        self.asked("oldest evidence");
        let _one = self.lock.lock().await;
        let branches = self.branches("evidence", cluster).map_err(unresolved)?;
        Ok(branches.into_iter().map(|branch| branch.xid.gtrid).min())
    }

    async fn old_evidence(
        &self,
        cluster: ClusterId,
        retention: Duration,
        limit: usize,
    ) -> Result<Vec<EvidenceRow>, Unresolved> {
        let _one = self.lock.lock().await;
        // Branches here have no deadline of their own: a coordinator that keeps nothing has them all reconciled.
        if !retention.is_zero() {
            return Ok(Vec::new());
        }
        let mut rows = Vec::new();
        for branch in self.branches("evidence", cluster).map_err(unresolved)?.into_iter().take(limit) {
            let kind = read(&self.path("evidence", &branch)).map_err(unresolved)?;
            let fate = if kind.as_deref() == Some("branch") { Fate::Committed } else { Fate::RolledBack };
            rows.push(EvidenceRow { branch, fate });
        }
        Ok(rows)
    }

    async fn forget(&self, branches: &[BranchId]) -> Result<(), Unresolved> {
        let _one = self.lock.lock().await;
        branches
            .iter()
            .try_for_each(|branch| fs::remove_file(self.path("evidence", branch)))
            .map_err(unresolved)
    }
}

fn lines(writes: &BTreeMap<String, String>) -> String {
    writes.iter().map(|(key, value)| format!("{key}={value}\n")).collect()
}
