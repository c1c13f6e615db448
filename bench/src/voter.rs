//! Participants that vote at once, and the clients that ask for transactions over them, in one process: what is left is the coordinator.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use lockstep::resource::{
    Attachment, BranchId, EvidenceRow, Fate, Prepared, Resource, ResourceError, Unresolved,
};
use lockstep::{Client, Participant};
use lockstep_proto::{ClusterId, Gtrid, LogPosition, Positions, ResourceManagerId, ResourceManagerName, Xid};
use lockstep_tests::harness::{Failed, Result};

use crate::driver::{self, BEGIN, DONE, END, Phases, READY, Seen};

/// The command line of their process.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where the coordinator is
    #[arg(long)]
    coordinator: String,
    /// How many ask at the same time
    #[arg(long)]
    clients: usize,
    /// Branches of each transaction
    #[arg(long)]
    branches: usize,
    /// Milliseconds that a branch takes to prepare, and to commit
    #[arg(long, default_value_t = 0)]
    takes: u64,
    /// Milliseconds that are not measured
    #[arg(long)]
    warm_up: u64,
    /// Milliseconds that are
    #[arg(long)]
    measure: u64,
    /// What the participants are called: this and a number. Names of their own, if not given
    #[arg(long)]
    names: Option<String>,
    /// How many times as many participants: a transaction takes those of one group, the next one those of the next
    #[arg(long, default_value_t = 1)]
    groups: usize,
    /// Instead: transactions to have open at the same time, with all their branches, until told to end
    #[arg(long)]
    hold: Option<usize>,
}

/// A store with nothing in it: it remembers what became of its branches while its process lives.
struct Voter {
    identity: ResourceManagerId,
    cluster: Mutex<Option<ClusterId>>,
    prepared: Mutex<HashMap<Xid, ()>>,
    takes: Duration,
}

impl Voter {
    fn new(identity: [u8; 16], takes: Duration) -> Self {
        Self {
            identity: ResourceManagerId::from_bytes(identity),
            cluster: Mutex::default(),
            prepared: Mutex::default(),
            takes,
        }
    }

    fn prepared(&self) -> MutexGuard<'_, HashMap<Xid, ()>> {
        self.prepared.lock().expect("nobody panics with it")
    }

    async fn take_time(&self) {
        if !self.takes.is_zero() {
            tokio::time::sleep(self.takes).await;
        }
    }
}

impl Resource for Voter {
    type Connection = ();
    type Open = ();

    async fn attach(&self, _name: &ResourceManagerName) -> Result<Attachment, ResourceError> {
        let cluster = *self.cluster.lock().expect("nobody panics with it");
        Ok(Attachment {
            identity: self.identity,
            cluster,
            seen: Positions::new(),
            location: String::new(),
            timeline: 0,
        })
    }

    async fn bind(&self, cluster: ClusterId) -> Result<(), Unresolved> {
        *self.cluster.lock().expect("nobody panics with it") = Some(cluster);
        Ok(())
    }

    async fn begin(&self, _branch: &BranchId, _remaining: Duration) -> Result<(), ResourceError> {
        Ok(())
    }

    fn connection(open: &mut ()) -> &mut () {
        open
    }

    fn connection_ref(open: &()) -> &() {
        open
    }

    async fn prepare(
        &self,
        branch: &BranchId,
        (): (),
        _position: &LogPosition,
    ) -> Result<Prepared, Unresolved> {
        self.take_time().await;
        self.prepared().insert(branch.xid.clone(), ());
        Ok(Prepared::Yes)
    }

    async fn commit_one_phase(&self, _: &BranchId, (): (), _: &LogPosition) -> Result<Fate, Unresolved> {
        self.take_time().await;
        Ok(Fate::Committed)
    }

    async fn discard(&self, (): ()) {}

    async fn commit(&self, branch: &BranchId, _position: &LogPosition) -> Result<Fate, Unresolved> {
        self.take_time().await;
        self.prepared().remove(&branch.xid);
        Ok(Fate::Committed)
    }

    async fn rollback(&self, branch: &BranchId, _position: &LogPosition) -> Result<Fate, Unresolved> {
        self.prepared().remove(&branch.xid);
        Ok(Fate::RolledBack)
    }

    async fn prove(&self, _branch: &BranchId, _position: &LogPosition) -> Result<Fate, Unresolved> {
        Ok(Fate::Committed)
    }

    async fn prepared(&self, _: ClusterId, _: &ResourceManagerName) -> Result<Vec<Xid>, Unresolved> {
        Ok(self.prepared().keys().cloned().collect())
    }

    async fn oldest_evidence(&self, _cluster: ClusterId) -> Result<Option<Gtrid>, Unresolved> {
        Ok(None)
    }

    async fn old_evidence(
        &self,
        _: ClusterId,
        _: Duration,
        _: usize,
    ) -> Result<Vec<EvidenceRow>, Unresolved> {
        Ok(Vec::new())
    }

    async fn forget(&self, _branches: &[BranchId]) -> Result<(), Unresolved> {
        Ok(())
    }
}

#[derive(Clone)]
struct Asking {
    client: Client,
    /// By groups.
    voters: Arc<[Participant<Voter>]>,
    branches: usize,
}

impl Asking {
    async fn attached(arguments: &Arguments) -> Result<Self> {
        let takes = Duration::from_millis(arguments.takes);
        let (branches, all) = (arguments.branches, arguments.branches * arguments.groups);
        let attach = async |number: usize| {
            // Each process brings resource managers of its own: what it remembers goes with it.
            let mut identity = [0; 16];
            identity[..4].copy_from_slice(&std::process::id().to_be_bytes());
            identity[8..].copy_from_slice(&(number as u64).to_be_bytes());
            let own = || format!("voter-{}", std::process::id());
            let name = format!("{}-{number}", arguments.names.clone().unwrap_or_else(own));
            let attaching = Participant::builder(name, Voter::new(identity, takes));
            attaching.coordinator(&arguments.coordinator).attach().await
        };
        let voters = futures::future::try_join_all((0..all).map(attach)).await;
        let voters: Vec<_> = voters.map_err(Failed::because("not attached"))?;
        let client = Client::connect(&arguments.coordinator).await.map_err(Failed::because("no client"))?;
        Ok(Self { client, voters: voters.into(), branches })
    }

    /// With a branch at each participant of the group whose turn it is.
    async fn begin(&self, number: usize) -> Result<lockstep::Transaction> {
        let begin = self.client.begin("alone").timeout(Duration::from_mins(10));
        let transaction = begin.start().await.map_err(Failed::because("not begun"))?;
        let context = transaction.context();
        let groups = self.voters.len() / self.branches;
        let group = self.voters.chunks(self.branches).nth(number % groups).unwrap_or_default();
        futures::future::try_join_all(group.iter().map(async |voter| {
            let branch = voter.join(&context).await.map_err(Failed::because("not joined"))?;
            branch.finish().await.map_err(Failed::because("not finished"))
        }))
        .await?;
        Ok(transaction)
    }

    async fn transaction(&self, number: u64) -> Result<bool> {
        let number = usize::try_from(number).unwrap_or(0);
        let committed = self.begin(number).await?.commit().await.map_err(Failed::because("not committed"))?;
        let all = usize::try_from(committed.branches).ok() == Some(self.branches);
        if all { Ok(true) } else { Err(Failed::new(format!("{committed:?}"))) }
    }
}

/// Their process.
///
/// # Errors
/// If the coordinator can't be reached.
pub fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().map_err(Failed::because("no runtime"))?;
    runtime.block_on(async {
        let asking = Asking::attached(arguments).await?;
        println!("{READY}");
        driver::wait_for(BEGIN)?;
        if let Some(transactions) = arguments.hold {
            return hold(&asking, transactions).await;
        }
        let phases = Phases::default();
        let ask = |_client| {
            let asking = asking.clone();
            driver::ask(phases.clone(), async move |number| asking.transaction(number).await)
        };
        let tasks: Vec<_> = (0..arguments.clients).map(ask).map(tokio::spawn).collect();
        let seen: Seen = phases.run(tasks, arguments.warm_up, arguments.measure).await?;
        println!("{DONE}{}", serde_json::to_string(&seen).expect("numbers are JSON"));
        driver::wait_for(END)
    })
}

/// Opens so many, says so, and rolls them back when it is told to.
async fn hold(asking: &Asking, transactions: usize) -> Result<()> {
    let mut held = Vec::with_capacity(transactions);
    while held.len() < transactions {
        let next = held.len()..transactions.min(held.len() + AT_ONCE);
        let some = next.map(|number| asking.begin(number));
        held.extend(futures::future::try_join_all(some).await?);
    }
    println!("{DONE}");
    driver::wait_for(END)?;
    let rollbacks = held.into_iter().map(|transaction| transaction.rollback("held"));
    futures::stream::iter(rollbacks)
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await
        .map_err(Failed::because("not rolled back"))?;
    println!("{GONE}");
    driver::wait_for(END)
}

/// Transactions that are begun, or rolled back, at the same time.
const AT_ONCE: usize = 64;
/// What it says when all that it held is gone.
pub const GONE: &str = "gone";
