//! A peer: dtmrs 0.13 in XA mode, which drives the same two branches on the same two servers. It is no dependency: it runs where it is
//! installed, as a process of its own, and is called by gRPC, as tellers and coordinator are.
//!
//! What it does for a transfer, from its sources (crates dtmrs-server: `api.rs`, `driver.rs`; dtmrs-store: `lib.rs`; dtmrs-xa):
//!
//! - The application begins (`Prepare`), registers each branch with what has to be called for commit and for rollback, has them prepared by
//!   their services, and submits. Each of these calls but the services' is a commit of its store, and a registration
//!   two writes where that is Redis, one after the other. `Submit` is answered when the decision is stored.
//! - Then it calls one branch after the other, and stores after each that it has ended; then that the transaction has. Three more commits.
//! - Nobody is told that it has: the application asks, with `Query`. So a transfer counts here when `Query` says that it succeeded, and
//!   `Pace` sees to it that asking costs little.
//!
//! [`store`]: where it keeps its transactions.

pub mod store;

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_tests::harness::clock::{now, wait_for};
use lockstep_tests::harness::ports::Port;
use lockstep_tests::harness::process::Process;
use lockstep_tests::harness::{Failed, Result};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use self::store::{Place, Redis};
use crate::generated::dtmrs::tc_client::TcClient;
use crate::generated::dtmrs::{
    NewGidRequest, PrepareRequest, QueryRequest, RegisterBranchRequest, SubmitRequest,
};

/// What is said where it is missing.
pub const NOT_INSTALLED: &str = "dtmrs does not take part: there is no such program on PATH, and --dtmrs names none. It is installed by \
                                 `cargo install dtmrs --version 0.13.0 --locked --features grpc,redis`";
/// What is said where it does not start.
const STORES: &str =
    "Redis as its store needs its feature `redis`; `--dtmrs-store postgres` names another one";
/// Its database, if it stores in one of ours.
pub const DATABASE: &str = "dtmrs";
/// How it wants branches numbered.
pub const BRANCHES: [&str; 2] = ["01", "02"];
/// The mode.
const XA: &str = "xa";
/// How long it may take to start, or to end a transaction: longer than its lease, after which it tries again what went wrong.
const PATIENCE: Duration = Duration::from_secs(60);
/// What it is configured with, beside its places.
///
/// What was submitted is driven at once, whatever the number of workers; they look for what was left behind, and sixteen of them would ask
/// the store sixteen times a second. Twice its 32 connections, so that 128 clients seldom wait for one. Each call of a branch is a line of its
/// log otherwise.
const SETTINGS: &[(&str, &str)] =
    &[("DTMRS_WORKERS", "2"), ("DTMRS_DB_POOL", "64"), ("DTMRS_RETRY_INTERVAL", "1"), ("RUST_LOG", "warn")];

/// A `dtmrs` that can be run.
#[derive(Debug, Clone)]
pub struct Installed {
    program: PathBuf,
    /// Where it is to keep its transactions.
    pub place: Place,
}

impl Installed {
    /// At this path, or on PATH.
    ///
    /// # Errors
    /// If there is nothing at the path.
    pub fn find(program: Option<&Path>, place: Option<Place>) -> Result<Option<Self>> {
        if let Some(program) = program.filter(|program| !program.is_file()) {
            return Err(Failed::new(format!("there is no program at {}", program.display())));
        }
        let found = program.map(Path::to_owned).or_else(|| on_path("dtmrs"));
        let place = place.unwrap_or_else(Place::fastest);
        Ok(found.map(|program| Self { program, place }))
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// What does not end with its parent by itself, as our own processes do.
fn with_the_parent(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Starts a process, and waits until it takes connections at this port.
fn serving(name: &str, command: Command, log: &Path, port: u16) -> Result<Process> {
    let mut process = Process::start(name, command, log)?;
    wait_for(&format!("{name} to serve"), PATIENCE, || {
        if process.try_reap()?.is_some() {
            return Err(Failed::new(format!("{name} ended:\n{}", process.output())));
        }
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())
    })?;
    Ok(process)
}

/// Its server, a process.
pub struct Server {
    program: PathBuf,
    /// Where its store is.
    store: String,
    /// Its store, if it has one of its own.
    redis: Option<Redis>,
    /// For gRPC, and for HTTP, which it serves too.
    ports: [Port; 2],
    log: PathBuf,
    process: Option<Process>,
}

impl Server {
    /// Starts it, and the Redis that it has for itself. `database` makes one of ours, if its transactions are to be there, and says where it is.
    ///
    /// # Errors
    /// If one of them does not serve, or can't be made.
    pub fn start(
        installed: &Installed,
        database: impl FnOnce() -> Result<String>,
        directory: &Path,
    ) -> Result<Self> {
        let Installed { program, place } = installed.clone();
        let (store, redis) = match place {
            Place::Redis => {
                let redis = Redis::start(directory)?;
                (redis.url(), Some(redis))
            }
            Place::Postgres => (database()?, None),
            Place::At(store) => (store, None),
        };
        let (ports, log) = ([Port::reserve()?, Port::reserve()?], directory.join("dtmrs.log"));
        let mut server = Self { program, store, redis, ports, log, process: None };
        server.start_again()?;
        Ok(server)
    }

    /// Where it was.
    ///
    /// # Errors
    /// If it does not serve.
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = with_the_parent(&self.program);
        let [grpc, http] = self.ports.each_ref().map(Port::number);
        command.env("DTMRS_GRPC_ADDR", address(grpc)).env("DTMRS_ADDR", address(http));
        command.env("DTMRS_DB", &self.store).envs(SETTINGS.iter().copied());
        let started = serving("dtmrs", command, &self.log, grpc);
        self.process = Some(started.map_err(|why| Failed::new(format!("{why}\n{STORES}")))?);
        Ok(())
    }

    /// Ends it.
    pub fn end(&mut self) {
        self.process = None;
    }

    /// Where it is called.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", address(self.ports[0].number()))
    }

    /// Its process' number, and that of its Redis.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.process.iter().map(Process::id).chain(self.redis.iter().map(Redis::id))
    }
}

fn address(port: u16) -> String {
    format!("{}:{port}", Ipv4Addr::LOCALHOST)
}

/// Who calls it. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    coordinator: TcClient<Channel>,
    /// What it calls for commit and for rollback, on both sides.
    branches: Arc<[(String, String)]>,
    /// Given by dtmrs: its store keeps all names that there ever were.
    run: String,
    pace: Arc<Pace>,
}

impl Client {
    /// Connected, for branches at these two tellers.
    ///
    /// # Errors
    /// If it can't be reached.
    pub async fn connect(url: &str, tellers: &[String]) -> Result<Self> {
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(Failed::because(url))?;
        let channel = endpoint.tcp_nodelay(true).connect().await.map_err(Failed::because(url))?;
        let mut coordinator = TcClient::new(channel);
        let run = coordinator.new_gid(NewGidRequest {}).await.map_err(Failed::because("no name"))?;
        let run = run.into_inner().gid;
        let branches = tellers.iter().map(|url| (phase_two(url, "XaCommit"), phase_two(url, "XaRollback")));
        Ok(Self { coordinator, branches: branches.collect(), run, pace: Arc::default() })
    }

    /// A new transaction: its name.
    ///
    /// # Errors
    /// If it was not begun.
    pub async fn begin(&self, client: usize, number: u64) -> Result<String> {
        let gid = format!("{}-{client}-{number}", self.run);
        let request = PrepareRequest { gid: gid.clone(), trans_type: XA.to_owned() };
        self.coordinator.clone().prepare(request).await.map_err(Failed::because("not begun"))?;
        Ok(gid)
    }

    /// The branch of a side, which may be prepared then.
    ///
    /// # Errors
    /// If it was not registered.
    pub async fn register(&self, gid: &str, side: usize) -> Result<()> {
        let (commit, rollback) = self.branches[side].clone();
        let (gid, branch_id) = (gid.to_owned(), BRANCHES[side].to_owned());
        let request = RegisterBranchRequest { gid, branch_id, commit, rollback };
        let registered = self.coordinator.clone().register_branch(request).await;
        registered.map(drop).map_err(Failed::because("not registered"))
    }

    /// Decides, and waits until all branches have committed.
    ///
    /// # Errors
    /// If that can't be said.
    pub async fn commit(&self, gid: &str) -> Result<()> {
        let request = SubmitRequest { gid: gid.to_owned(), trans_type: XA.to_owned() };
        self.coordinator.clone().submit(request).await.map_err(Failed::because("not submitted"))?;
        let submitted = now();
        tokio::time::sleep(self.pace.first()).await;
        loop {
            let request = QueryRequest { gid: gid.to_owned() };
            let seen = self.coordinator.clone().query(request).await.map_err(Failed::because("not told"))?;
            let seen = seen.into_inner();
            match Progress::of(&seen.status) {
                Progress::Committed => {
                    self.pace.learn(submitted.elapsed());
                    return Ok(());
                }
                Progress::UnderWay if submitted.elapsed() < PATIENCE => {}
                Progress::UnderWay | Progress::Other => {
                    return Err(Failed::new(format!("{gid} is {}: {}", seen.status, seen.rollback_reason)));
                }
            }
            tokio::time::sleep(self.pace.next()).await;
        }
    }
}

/// How it names a gRPC method of a branch.
fn phase_two(teller: &str, method: &str) -> String {
    format!("{}/bench.v1.Teller/{method}", teller.replacen("http://", "grpc://", 1))
}

/// What its word for a transaction that was submitted means.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Committed,
    UnderWay,
    /// It was submitted, so this may not be.
    Other,
}

impl Progress {
    fn of(status: &str) -> Self {
        match status {
            "succeed" => Self::Committed,
            "submitted" => Self::UnderWay,
            _ => Self::Other,
        }
    }
}

/// When to ask: shortly before it is usually done, and then a few times more. A client that asks without a pause takes processor time from
/// those who do the work; one that asks too seldom is late.
#[derive(Debug, Default)]
struct Pace {
    /// Microseconds from `Submit` to the answer, a mean that forgets.
    usual: AtomicU64,
}

impl Pace {
    /// The timer knows nothing shorter.
    const LEAST: Duration = Duration::from_millis(1);

    fn first(&self) -> Duration {
        (self.usual() * 3 / 4).max(Self::LEAST)
    }

    fn next(&self) -> Duration {
        (self.usual() / 8).max(Self::LEAST)
    }

    fn learn(&self, took: Duration) {
        let (usual, took) =
            (self.usual.load(Ordering::Relaxed), u64::try_from(took.as_micros()).unwrap_or(0));
        let mean = if usual == 0 { took } else { (7 * usual + took) / 8 };
        self.usual.store(mean, Ordering::Relaxed);
    }

    fn usual(&self) -> Duration {
        Duration::from_micros(self.usual.load(Ordering::Relaxed))
    }
}

/// A branch's name at its database, as the peer's own helper for services makes it (dtmrs-xa, `xid_for`).
#[must_use]
pub fn name(gid: &str, branch: &str) -> String {
    format!("dtmrs_{gid}_{branch}")
}

/// The same, of the branch that dtmrs calls.
#[must_use]
pub fn name_of_branch(metadata: &MetadataMap) -> Option<String> {
    let named = |key| metadata.get(key)?.to_str().ok();
    let (gid, branch) = (named("dtm-gid")?, named("dtm-branch_id")?);
    // It goes into a statement.
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (plain(gid) && plain(branch)).then(|| name(gid, branch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_has_the_name_that_it_was_prepared_under() {
        let mut metadata = MetadataMap::new();
        assert_eq!(name_of_branch(&metadata), None);
        metadata.insert("dtm-gid", "1790000000-0-7-12".parse().unwrap());
        metadata.insert("dtm-branch_id", "02".parse().unwrap());
        assert_eq!(name_of_branch(&metadata), Some(name("1790000000-0-7-12", BRANCHES[1])));
        metadata.insert("dtm-gid", "'; DROP TABLE accounts".parse().unwrap());
        assert_eq!(name_of_branch(&metadata), None);
    }

    #[test]
    fn what_is_called_in_phase_two_is_a_grpc_method() {
        let method = phase_two("http://127.0.0.1:10001", "XaCommit");
        assert_eq!(method, "grpc://127.0.0.1:10001/bench.v1.Teller/XaCommit");
    }

    #[test]
    fn only_success_is_a_commit() {
        assert_eq!(Progress::of("succeed"), Progress::Committed);
        assert_eq!(Progress::of("submitted"), Progress::UnderWay);
        for other in ["prepared", "aborting", "failed", ""] {
            assert_eq!(Progress::of(other), Progress::Other);
        }
    }

    #[test]
    fn the_first_question_comes_when_it_is_nearly_done() {
        let pace = Pace::default();
        assert_eq!((pace.first(), pace.next()), (Pace::LEAST, Pace::LEAST));
        pace.learn(Duration::from_millis(80));
        assert_eq!((pace.first(), pace.next()), (Duration::from_millis(60), Duration::from_millis(10)));
        pace.learn(Duration::from_millis(8));
        assert_eq!(pace.usual(), Duration::from_millis(71));
    }
}
