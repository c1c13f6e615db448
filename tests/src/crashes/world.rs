//! The processes of one cell: a coordinator, one bank or two, a client.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_proto::v1::StatusRequest;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tonic::transport::Endpoint;

use super::matrix::Cell;
use super::points::{Needs, Victim};
use crate::harness::bank::Bank;
use crate::harness::books::{Books, Database};
use crate::harness::client::{Entry, Mover, Plan, Told, read_ledger};
use crate::harness::clock::wait_for;
use crate::harness::coordinator::Coordinator;
use crate::harness::crash_points::Fuse;
use crate::harness::mariadb::MariaDbServer;
use crate::harness::postgres::PostgresServer;
use crate::harness::process::{Process, Reaped, end_of_log};
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};

/// What every cell shares.
#[derive(Debug)]
pub struct Stage {
    roles: Roles,
    /// A server for each of two banks: two resource managers are two servers.
    servers: [PostgresServer; 2],
    mariadb_servers: [MariaDbServer; 2],
    /// Databases that were made, so that none has another's name.
    databases: AtomicU64,
}

impl Stage {
    /// With two new servers of each kind.
    ///
    /// # Errors
    /// If they don't start.
    pub fn set(roles: &Roles) -> Result<Self> {
        let servers = [PostgresServer::start()?, PostgresServer::start()?];
        let mariadb_servers = [MariaDbServer::start()?, MariaDbServer::start()?];
        Ok(Self { roles: roles.clone(), servers, mariadb_servers, databases: AtomicU64::new(0) })
    }

    async fn books(&self, kind: Database, bank: usize, directory: &Path) -> Result<Books> {
        let name = BANKS[bank];
        let books = match kind {
            Database::Sqlite => Books::in_sqlite(name, directory.join(format!("{name}.db"))).await?,
            Database::Postgres => {
                let database = format!("bank_{}", self.databases.fetch_add(1, Ordering::Relaxed));
                Books::in_postgres(name, &self.servers[bank], &database).await?
            }
            Database::MariaDb => {
                let database = format!("bank_{}", self.databases.fetch_add(1, Ordering::Relaxed));
                Books::in_mariadb(name, &self.mariadb_servers[bank], &database).await?
            }
        };
        books.plant_foreign().await?;
        Ok(books)
    }
}

/// Flags of the coordinator. Banks list their prepared branches every second instead of every 30: a cell must not wait for a
/// clock where it wants to see whether the listing works at all.
const FLAGS: &[&str] = &["--report-interval=1s", "--log-filter=info"];
const SHORT_RETENTION: &str = "--retention=1s";

/// The names of the resource managers, from the first to the second.
const BANKS: [&str; 2] = ["bank-a", "bank-b"];

/// What a cell chooses for itself.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Which bank dies, where one does.
    pub victim_bank: usize,
    /// The crash point at which the coordinator waits each time, and how long.
    pub slow_at: Option<(&'static str, Duration)>,
}

/// Everything in one cell.
#[derive(Debug)]
pub struct World<'a> {
    stage: &'a Stage,
    cell: Cell,
    directory: PathBuf,
    /// The coordinator.
    pub coordinator: Coordinator,
    /// The banks that take part.
    pub banks: Vec<Bank>,
    client: Option<Process>,
    /// Which bank dies, where one does.
    victim_bank: usize,
    runtime: tokio::runtime::Runtime,
}

impl<'a> World<'a> {
    /// Makes databases and starts the coordinator and the banks in `directory`, whichever of them dies with this fuse.
    ///
    /// # Errors
    /// If something can't be made or started.
    pub fn start(
        stage: &'a Stage,
        cell: Cell,
        directory: &Path,
        options: Options,
        fuse: &Fuse,
    ) -> Result<Self> {
        let Options { victim_bank, slow_at } = options;
        let cannot = || Failed::because(format!("{}", directory.display()));
        fs::create_dir_all(directory).map_err(cannot())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot())?;
        let mut flags = FLAGS.to_vec();
        if cell.point.needs == Needs::ShortRetention {
            flags.push(SHORT_RETENTION);
        }
        let dies = |victim| (cell.point.victim == victim).then_some(fuse);
        let coordinator =
            Coordinator::start_slow(&stage.roles, directory, &flags, dies(Victim::Coordinator), slow_at)?;
        let mut banks = Vec::new();
        for index in 0..cell.way.banks() {
            let books = runtime.block_on(stage.books(cell.database, index, directory))?;
            let fuse = dies(Victim::Participant).filter(|_| index == victim_bank);
            banks.push(Bank::start(&stage.roles, directory, books, &coordinator.url(), fuse)?);
        }
        let directory = directory.to_owned();
        Ok(Self { stage, cell, directory, coordinator, banks, client: None, victim_bank, runtime })
    }

    /// Starts the client.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_client(&mut self, plans: &[Plan], fuse: &Fuse) -> Result<()> {
        let mut command = self.stage.roles.command("client");
        command.args(["--coordinator", &self.coordinator.url()]).arg("--ledger").arg(self.ledger());
        for bank in self.banks.iter() {
            command.args(["--bank", &bank.address()]);
        }
        for plan in plans {
            let name = clap::ValueEnum::to_possible_value(plan).expect("no plan is hidden");
            command.args(["--plan", name.get_name()]);
        }
        if self.cell.point.needs == Needs::Growth {
            command.arg("--ballast");
        }
        if self.cell.point.victim == Victim::Client {
            fuse.arm(&mut command);
        }
        self.client = Some(Process::start("client", command, &self.directory.join("client.log"))?);
        Ok(())
    }

    /// Waits until the victim has died. How.
    ///
    /// # Errors
    /// If it doesn't, or if somebody else does.
    pub fn wait_for_the_victim(&mut self, patience: Duration) -> Result<Reaped> {
        let what = format!("{} to be reached", self.cell.point.name);
        let (how, _) = wait_for(&what, patience, || {
            let mut dead = None;
            for process in self.processes() {
                if let Some(how) = process.try_reap()? {
                    dead = Some((process.name().to_owned(), how));
                }
            }
            let Some((name, how)) = dead else { return Ok(None) };
            match self.victim()?.try_reap()? {
                Some(how) => Ok(Some(how)),
                None => Err(Failed::new(format!("{name} ended, which was not to die: {how:?}"))),
            }
        })?;
        Ok(how)
    }

    fn victim(&mut self) -> Result<&mut Process> {
        match self.cell.point.victim {
            Victim::Coordinator => Ok(self.coordinator.process()),
            Victim::Participant => Ok(self.banks[self.victim_bank].process()),
            Victim::Client => self.client.as_mut().ok_or_else(|| Failed::new("there is no client")),
        }
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        let banks = self.banks.iter_mut().map(Bank::process);
        std::iter::once(self.coordinator.process()).chain(banks).chain(self.client.as_mut())
    }

    /// Starts the victim again. Of a client nothing is left to start: others ask for what it had begun.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn restart_the_victim(&mut self, fuse: Option<&Fuse>) -> Result<()> {
        match self.cell.point.victim {
            Victim::Coordinator => self.coordinator.start_again(fuse),
            Victim::Participant => self.banks[self.victim_bank].start_again(fuse),
            Victim::Client => Ok(()),
        }
    }

    /// Changes the schema of the victim's database while it is down.
    ///
    /// # Errors
    /// If that is refused.
    pub fn meddle(&self) -> Result<()> {
        self.runtime.block_on(self.banks[self.victim_bank].books.meddle())
    }

    /// SIGKILL for the coordinator and all banks, as a machine does that loses its power; then starts them again.
    ///
    /// # Errors
    /// If one can't be killed or started.
    pub fn kill_and_restart_the_others(&mut self) -> Result<()> {
        if self.cell.point.victim != Victim::Coordinator {
            self.coordinator.process().kill()?;
            self.coordinator.start_again(None)?;
        }
        for index in 0..self.banks.len() {
            if self.cell.point.victim != Victim::Participant || index != self.victim_bank {
                self.banks[index].process().kill()?;
                self.banks[index].start_again(None)?;
            }
        }
        Ok(())
    }

    /// Tells the client to end what it is at, and then to end.
    pub fn stop_the_client(&mut self) {
        if let Some(client) = &mut self.client {
            client.tell("stop");
        }
    }

    /// Waits until nothing is in doubt: the client knows what it wanted to know, nothing is prepared in any database, and the coordinator has
    /// nothing under way. How long that took.
    ///
    /// # Errors
    /// What is in doubt still.
    pub fn settle(&mut self, patience: Duration) -> Result<Duration> {
        let mut left = String::new();
        let settled = wait_for("nothing to be in doubt any more", patience, || {
            left = self.in_doubt()?;
            Ok(left.is_empty().then_some(()))
        });
        match settled {
            Ok(((), took)) => Ok(took),
            Err(error) => Err(Failed::new(format!("{error}; still in doubt: {left}"))),
        }
    }

    fn in_doubt(&mut self) -> Result<String> {
        if let Some(client) = &mut self.client
            && client.try_reap()?.is_none()
        {
            return Ok("the client waits for an answer".to_owned());
        }
        for bank in &self.banks {
            if let Some(name) = self.runtime.block_on(bank.books.prepared())?.first() {
                return Ok(format!("{}: {name}", bank.books.bank));
            }
        }
        let status = self.runtime.block_on(status(&self.coordinator.url()));
        match status {
            Ok(0) => Ok(String::new()),
            Ok(under_way) => Ok(format!("the coordinator has {under_way} transactions under way")),
            Err(error) => Ok(error.to_string()),
        }
    }

    /// Moves money once more and must be told that it was committed.
    ///
    /// # Errors
    /// If it is told nothing of the kind.
    pub fn prove_health(&mut self, patience: Duration) -> Result<()> {
        let addresses: Vec<String> = self.banks.iter().map(Bank::address).collect();
        let (url, ledger) = (self.coordinator.url(), self.ledger());
        let mut mover = self.runtime.block_on(Mover::new(&url, &addresses, &ledger))?;
        wait_for("a healthy transaction to commit", patience, || {
            let told = self.runtime.block_on(mover.transfer(Plan::Commit))?;
            Ok((told == Some(Told::Committed)).then_some(()))
        })?;
        Ok(())
    }

    /// Waits until the decision log has no unfinished decision: ends are written about a second after everybody has forgotten
    /// the transaction.
    ///
    /// # Errors
    /// If it has one, or can't be read.
    pub fn wait_for_ends(&mut self, patience: Duration) -> Result<()> {
        let file = self.coordinator.data_directory().join("decisions.db");
        wait_for("the decision log to have no unfinished decision", patience, || {
            let unfinished = self.runtime.block_on(unfinished(&file))?;
            Ok((unfinished == 0).then_some(()))
        })?;
        Ok(())
    }

    /// Asks the coordinator for one transaction.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn ask(&self, gtrid: &str) -> Result<Told> {
        let gtrid = gtrid.parse().map_err(Failed::because("a gtrid of the ledger"))?;
        self.runtime.block_on(async {
            let client = lockstep::Client::connect(self.coordinator.url())
                .await
                .map_err(Failed::because("no client"))?;
            let outcome = client.inquire(gtrid).await.map_err(Failed::because("asked again"))?;
            Ok(outcome.into())
        })
    }

    /// Runs something that waits, such as a look at the books.
    pub fn block_on<T>(&self, look: impl Future<Output = T>) -> T {
        self.runtime.block_on(look)
    }

    /// What clients were told so far.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn told(&self) -> Result<Vec<Entry>> {
        read_ledger(&self.ledger())
    }

    fn ledger(&self) -> PathBuf {
        self.directory.join("ledger.jsonl")
    }

    /// The ends of all logs.
    #[must_use]
    pub fn logs(&self) -> String {
        let banks = self.banks.iter().map(|bank| bank.log().to_owned());
        let logs =
            std::iter::once(self.coordinator.log()).chain(banks).chain([self.directory.join("client.log")]);
        logs.map(|log| end_of_log(&log)).collect::<Vec<_>>().join("\n")
    }

    /// Ends everything and removes what the servers would keep.
    ///
    /// # Errors
    /// If something can't be removed.
    pub fn remove(mut self) -> Result<()> {
        for process in self.processes() {
            process.kill()?;
        }
        for (bank, server) in self.banks.iter().zip(&self.stage.servers) {
            self.runtime.block_on(bank.books.remove(server))?;
        }
        Ok(())
    }
}

/// How many transactions the coordinator has under way.
async fn status(url: &str) -> Result<u64> {
    let failed = || Failed::because("the coordinator does not answer");
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(failed())?;
    let mut client = AdminServiceClient::new(endpoint.connect().await.map_err(failed())?);
    let status = client.status(StatusRequest {}).await.map_err(Failed::because("no status"))?;
    Ok(status.into_inner().transactions_in_flight)
}

/// Decisions without an end in this log, read behind the coordinator's back.
async fn unfinished(file: &Path) -> Result<i64> {
    let cannot = || Failed::because(format!("{}", file.display()));
    let options = SqliteConnectOptions::new().filename(file).read_only(true).disable_statement_logging();
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(cannot())?;
    let row = sqlx::query("SELECT count(*) FROM transactions WHERE ended_ms IS NULL")
        .fetch_one(&mut connection)
        .await
        .map_err(cannot())?;
    row.try_get(0).map_err(cannot())
}
