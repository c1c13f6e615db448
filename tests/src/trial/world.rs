//! The processes of one cell: a coordinator, banks, a client.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_proto::v1::StatusRequest;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Row as _};
use tonic::transport::Endpoint;

use super::checker::Seen;
use crate::harness::bank::Bank;
use crate::harness::books::Books;
use crate::harness::client::{Entry, Mover, Plan, Told, read_ledger};
use crate::harness::clock::wait_for;
use crate::harness::coordinator::Coordinator;
use crate::harness::crash_points::Fuse;
use crate::harness::process::{Process, Reaped, end_of_log};
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};

/// Flags of the coordinator. Banks list their prepared branches every second instead of every 30: a cell must not wait for a
/// clock where it wants to see whether the listing works at all.
pub const FLAGS: &[&str] = &["--report-interval=1s", "--log-filter=info"];

/// The names of the resource managers, from the first to the second.
pub const BANKS: [&str; 2] = ["bank-a", "bank-b"];

/// How long anything may be in doubt once nothing is broken any more: a deadline, a listing, and a database that recovers.
pub const TO_SETTLE: Duration = Duration::from_secs(30);
/// How long a healthy transaction may take to be committed again.
pub const TO_HEAL: Duration = Duration::from_secs(15);

/// One of the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The coordinator.
    Coordinator,
    /// The bank of this number.
    Bank(usize),
    /// The client.
    Client,
}

/// A process, and the crash that it starts with.
pub type Doomed<'a> = Option<(Who, &'a Fuse)>;

/// Where the coordinator keeps its decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPlace {
    /// In its own directory.
    Embedded,
    /// In the PostgreSQL database at this URL.
    Shared(String),
}

/// Everything in one cell.
#[derive(Debug)]
pub struct World {
    roles: Roles,
    directory: PathBuf,
    log_place: LogPlace,
    /// The coordinator.
    pub coordinator: Coordinator,
    /// The banks that take part.
    pub banks: Vec<Bank>,
    client: Option<Process>,
    runtime: tokio::runtime::Runtime,
}

impl World {
    /// Starts a coordinator in `directory`, which is made, with these flags beside [`FLAGS`], or in place of one. `slow_at`: the crash point at
    /// which it waits each time, and how long.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(
        roles: &Roles,
        directory: &Path,
        flags: &[&str],
        slow_at: Option<(&'static str, Duration)>,
        doomed: Doomed<'_>,
    ) -> Result<Self> {
        Self::start_on(roles, directory, LogPlace::Embedded, flags, slow_at, doomed)
    }

    /// The same with the coordinator's log in this place.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_on(
        roles: &Roles,
        directory: &Path,
        log_place: LogPlace,
        flags: &[&str],
        slow_at: Option<(&'static str, Duration)>,
        doomed: Doomed<'_>,
    ) -> Result<Self> {
        let cannot = || Failed::because(format!("{}", directory.display()));
        fs::create_dir_all(directory).map_err(cannot())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot())?;
        let log = match &log_place {
            LogPlace::Embedded => Vec::new(),
            LogPlace::Shared(url) => vec![format!("--log={url}"), "--migrate-log".to_owned()],
        };
        let log: Vec<&str> = log.iter().map(String::as_str).collect();
        let name = |flag: &str| flag.split('=').next().map(str::to_owned);
        let usual = FLAGS.iter().filter(|usual| flags.iter().all(|own| name(own) != name(usual)));
        let flags: Vec<&str> = usual.chain(flags).chain(&log).copied().collect();
        let fuse = fuse_of(doomed, Who::Coordinator);
        let coordinator = Coordinator::start_slow(roles, directory, &flags, fuse, slow_at)?;
        let (roles, directory) = (roles.clone(), directory.to_owned());
        Ok(Self { roles, directory, log_place, coordinator, banks: Vec::new(), client: None, runtime })
    }

    /// Starts the next bank over these books.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_bank(&mut self, books: Books, doomed: Doomed<'_>) -> Result<()> {
        let fuse = fuse_of(doomed, Who::Bank(self.banks.len()));
        let bank = Bank::start(&self.roles, &self.directory, books, &self.coordinator.url(), fuse)?;
        self.banks.push(bank);
        Ok(())
    }

    /// Starts a client, whose transfers are meant to end like `plans` over and over. `ballast`: it makes the decision log grow
    /// between them.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_client(&mut self, plans: &[Plan], ballast: bool, doomed: Doomed<'_>) -> Result<()> {
        let mut command = self.roles.command("client");
        command.args(["--coordinator", &self.coordinator.url()]).arg("--ledger").arg(self.ledger());
        for bank in &self.banks {
            command.args(["--bank", &bank.address()]);
        }
        for plan in plans {
            let name = clap::ValueEnum::to_possible_value(plan).expect("no plan is hidden");
            command.args(["--plan", name.get_name()]);
        }
        if ballast {
            command.arg("--ballast");
        }
        if let Some(fuse) = fuse_of(doomed, Who::Client) {
            fuse.arm(&mut command);
        }
        self.client = Some(Process::start("client", command, &self.directory.join("client.log"))?);
        Ok(())
    }

    /// Waits until `victim` has died at `point`. How.
    ///
    /// # Errors
    /// If it doesn't, or if somebody else does.
    pub fn wait_for_death(&mut self, victim: Who, point: &str, patience: Duration) -> Result<Reaped> {
        let what = format!("{point} to be reached");
        let (how, _) = wait_for(&what, patience, || {
            let others = self.expect_all_alive();
            // Asked for last: it may have died while the others were looked at, and is not one of them.
            match self.process(victim)?.try_reap()? {
                Some(how) => Ok(Some(how)),
                None => others.map(|()| None),
            }
        })?;
        Ok(how)
    }

    /// # Errors
    /// If a process has ended. Nobody ends by itself before it is told to.
    pub fn expect_all_alive(&mut self) -> Result<()> {
        for process in self.processes() {
            if let Some(how) = process.try_reap()? {
                let name = process.name();
                return Err(Failed::new(format!("{name} ended, which was not to die: {how:?}")));
            }
        }
        Ok(())
    }

    /// A process.
    ///
    /// # Errors
    /// If it was never started.
    pub fn process(&mut self, who: Who) -> Result<&mut Process> {
        match who {
            Who::Coordinator => Ok(self.coordinator.process()),
            Who::Bank(index) => Ok(self.banks[index].process()),
            Who::Client => self.client.as_mut().ok_or_else(|| Failed::new("there is no client")),
        }
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        let banks = self.banks.iter_mut().map(Bank::process);
        std::iter::once(self.coordinator.process()).chain(banks).chain(self.client.as_mut())
    }

    /// Starts somebody again. Of a client nothing is left to start: others ask for what it had begun.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn restart(&mut self, who: Who, fuse: Option<&Fuse>) -> Result<()> {
        match who {
            Who::Coordinator => self.coordinator.start_again(fuse),
            Who::Bank(index) => self.banks[index].start_again(fuse),
            Who::Client => Ok(()),
        }
    }

    /// SIGKILL for the coordinator and all banks, as a machine does that loses its power; then starts them again. Except `who`.
    ///
    /// # Errors
    /// If one can't be killed or started.
    pub fn kill_and_restart_all_but(&mut self, who: Who) -> Result<()> {
        let banks = (0..self.banks.len()).map(Who::Bank);
        for other in std::iter::once(Who::Coordinator).chain(banks).filter(|other| *other != who) {
            self.process(other)?.kill()?;
            self.restart(other, None)?;
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
    fn settle(&mut self, patience: Duration) -> Result<Duration> {
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
    pub fn prove_health(&self, plan: Plan, patience: Duration) -> Result<()> {
        let addresses: Vec<String> = self.banks.iter().map(Bank::address).collect();
        let (url, ledger) = (self.coordinator.url(), self.ledger());
        let mut mover = self.runtime.block_on(Mover::new(&url, &addresses, &ledger))?;
        wait_for("a healthy transaction to commit", patience, || {
            let told = self.runtime.block_on(mover.transfer(plan))?;
            Ok((told == Some(Told::Committed)).then_some(()))
        })?;
        Ok(())
    }

    /// Waits until the decision log has no unfinished decision: ends are written about a second after everybody has forgotten
    /// the transaction.
    ///
    /// # Errors
    /// If it has one, or can't be read.
    fn wait_for_ends(&mut self, patience: Duration) -> Result<()> {
        let file = self.coordinator.data_directory().join("decisions.db");
        wait_for("the decision log to have no unfinished decision", patience, || {
            let unfinished = match &self.log_place {
                LogPlace::Embedded => self.runtime.block_on(unfinished(&file))?,
                LogPlace::Shared(url) => self.runtime.block_on(unfinished_in_postgres(url))?,
            };
            Ok((unfinished == 0).then_some(()))
        })?;
        Ok(())
    }

    /// Asks the coordinator for one transaction.
    ///
    /// # Errors
    /// If it does not answer.
    fn ask(&self, gtrid: &str) -> Result<Told> {
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

    /// Waits until nothing is in doubt and nothing is left to write, and shows with one more transfer, planned like
    /// `healthy`, that all is well. How long something was in doubt.
    ///
    /// # Errors
    /// What does not come to rest.
    pub fn come_to_rest(&mut self, healthy: Plan) -> Result<Duration> {
        self.coordinator.expect_it_serves()?;
        let in_doubt = self.settle(TO_SETTLE)?;
        self.prove_health(healthy, TO_HEAL)?;
        self.settle(TO_SETTLE)?;
        self.wait_for_ends(TO_SETTLE)?;
        Ok(in_doubt)
    }

    /// # Errors
    /// If the coordinator, told to stop, does not end in order.
    pub fn stop_the_coordinator(&mut self) -> Result<()> {
        match self.coordinator.stop()? {
            Reaped::Exit(0) => Ok(()),
            how @ (Reaped::Exit(_) | Reaped::Signal(_)) => {
                Err(Failed::new(format!("told to stop, the coordinator ended with {how:?}")))
            }
        }
    }

    /// Looks at everything from outside: what clients were told, what the coordinator says now, what the databases have. What is
    /// still prepared, and what was touched that is nobody's business here, goes to `violations`.
    ///
    /// # Errors
    /// If something can't be looked at.
    pub fn look(&self, violations: &mut Vec<String>) -> Result<Seen> {
        let ledger = self.told()?;
        let mut asked = BTreeMap::new();
        for entry in &ledger {
            if !asked.contains_key(&entry.gtrid) {
                asked.insert(entry.gtrid.clone(), self.ask(&entry.gtrid)?);
            }
        }
        let mut pages = Vec::new();
        for bank in &self.banks {
            let books = &bank.books;
            pages.push(self.block_on(books.read())?);
            for name in self.block_on(books.prepared())? {
                violations.push(format!("{} has still prepared: {name}", books.bank));
            }
            for name in self.block_on(books.foreign_missing())? {
                violations.push(format!("{} touched what is not ours: {name} is gone", books.bank));
            }
        }
        Ok(Seen { pages, ledger, asked, forgets: false, torn_by_hand: None })
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
        for bank in &self.banks {
            self.runtime.block_on(bank.books.remove())?;
        }
        Ok(())
    }
}

fn fuse_of(doomed: Doomed<'_>, who: Who) -> Option<&Fuse> {
    doomed.filter(|(victim, _)| *victim == who).map(|(_, fuse)| fuse)
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

/// The same of a log in PostgreSQL.
async fn unfinished_in_postgres(url: &str) -> Result<i64> {
    let cannot = || Failed::because("the log cannot be asked");
    let mut connection = PgConnection::connect(url).await.map_err(cannot())?;
    sqlx::query_scalar("SELECT count(*) FROM lockstep_log.transactions WHERE ended_ms IS NULL")
        .fetch_one(&mut connection)
        .await
        .map_err(cannot())
}
