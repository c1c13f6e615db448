//! Coordinators on one log, banks that are attached to all of them, and clients that begin at any.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};

use crate::harness::bank::Bank;
use crate::harness::books::{Books, Database, Page};
use crate::harness::client::{Entry, Mover, Plan, Told, read_ledger};
use crate::harness::clock::wait_for;
use crate::harness::coordinator::Coordinator;
use crate::harness::postgres::PostgresServer;
use crate::harness::process::{Process, end_of_log};
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};
use crate::trial::checker::Seen;

/// The names of the resource managers.
const BANKS: [&str; 2] = ["bank-a", "bank-b"];
/// How the transfers of a client are meant to end, over and over.
const PLANS: [&str; 5] = ["commit", "commit", "commit", "rollback", "refused-by-second"];
/// Clients, one transfer at a time each.
const CLIENTS: usize = 3;
/// The database of the log.
const LOG: &str = "log";

/// Everything.
#[derive(Debug)]
pub struct World {
    directory: PathBuf,
    roles: Roles,
    setup: Setup,
    /// In this order they are dropped: nobody misses a server that went first.
    clients: Vec<Process>,
    banks: Vec<Bank>,
    /// The nodes.
    pub coordinators: Vec<Coordinator>,
    log_server: PostgresServer,
    /// What takes its place when it fails over.
    standby: Option<PostgresServer>,
    _bank_server: PostgresServer,
    runtime: tokio::runtime::Runtime,
}

/// What it is made of.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Coordinators.
    pub nodes: usize,
    /// So many of them the banks and the clients are given; of the others they are told. `None`: all are given, and nobody is told of any.
    pub named: Option<usize>,
    /// The lease of each.
    pub lease: Duration,
    /// What the banks keep their accounts in: in files, or on one PostgreSQL server.
    pub banks: Database,
}

/// What an epoch has left that others may have to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// It is sealed.
    pub sealed: bool,
    /// Prepared branches of it in all banks. SQLite does not tell whose an entry of its journal is.
    pub prepared: usize,
}

/// Starts a node on the log. Does not wait for it.
fn start_node(
    roles: &Roles,
    directory: &Path,
    log_server: &PostgresServer,
    setup: Setup,
    node: usize,
) -> Result<Coordinator> {
    let directory = directory.join(format!("node-{node}"));
    std::fs::create_dir_all(&directory).map_err(Failed::because("no directory"))?;
    let (log, name) = (format!("--log={}", log_server.url(LOG)), format!("--node={}", node_name(node)));
    let lease = format!("--lease={}ms", setup.lease.as_millis());
    let advertise = format!("--advertise={}", if setup.named.is_some() { "auto" } else { "none" });
    let flags =
        [&log, &lease, &advertise, &name, "--migrate-log", "--report-interval=2s", "--drain-timeout=2s"];
    Coordinator::start(roles, &directory, &flags, None)
}

/// The addresses of those that are given, as banks and clients take them.
fn named(coordinators: &[Coordinator], setup: Setup) -> String {
    coordinators
        .iter()
        .take(setup.named.unwrap_or(setup.nodes))
        .map(Coordinator::url)
        .collect::<Vec<_>>()
        .join(",")
}

impl World {
    /// With so many coordinators, and clients that are at work.
    ///
    /// # Errors
    /// If something can't be made or started.
    pub fn start(roles: &Roles, directory: &Path, setup: Setup) -> Result<Self> {
        let mut world = Self::start_idle(roles, directory, setup)?;
        let named = named(&world.coordinators, setup);
        for number in 0..CLIENTS {
            let client = world.start_client(number, &named, &PLANS)?;
            world.clients.push(client);
        }
        Ok(world)
    }

    /// With so many coordinators, all of which serve when this returns, and no client.
    ///
    /// # Errors
    /// If something can't be made or started.
    pub fn start_idle(roles: &Roles, directory: &Path, setup: Setup) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failed::because("no runtime"))?;
        let (log_server, bank_server) = (PostgresServer::start()?, PostgresServer::start()?);
        log_server.create_database(LOG)?;
        let start = |node| start_node(roles, directory, &log_server, setup, node);
        let mut coordinators = (0..setup.nodes).map(start).collect::<Result<Vec<_>>>()?;
        for coordinator in &mut coordinators {
            coordinator.expect_it_serves()?;
        }
        let named = named(&coordinators, setup);
        let mut banks = Vec::new();
        for bank in BANKS {
            let books = runtime.block_on(async {
                match setup.banks {
                    Database::Sqlite => Books::in_sqlite(bank, directory.join(format!("{bank}.db"))).await,
                    Database::Postgres => {
                        Books::in_postgres(bank, &bank_server, &bank.replace('-', "_")).await
                    }
                    other @ (Database::MariaDb | Database::Own) => {
                        Err(Failed::new(format!("there are no banks over {} here", other.name())))
                    }
                }
            })?;
            banks.push(Bank::start(roles, directory, books, &named, None)?);
        }
        let (directory, roles) = (directory.to_owned(), roles.clone());
        Ok(Self {
            directory,
            roles,
            setup,
            clients: Vec::new(),
            banks,
            coordinators,
            log_server,
            standby: None,
            _bank_server: bank_server,
            runtime,
        })
    }

    /// Starts one more node, which nobody was given.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn add_node(&mut self) -> Result<()> {
        let number = self.coordinators.len();
        let mut node = start_node(&self.roles, &self.directory, &self.log_server, self.setup, number)?;
        node.expect_it_serves()?;
        self.coordinators.push(node);
        Ok(())
    }

    fn start_client(&self, number: usize, coordinators: &str, plans: &[&str]) -> Result<Process> {
        let mut command = self.roles.command("client");
        command.args(["--coordinator", coordinators]).arg("--ledger").arg(self.ledger(number));
        for bank in &self.banks {
            command.args(["--bank", &bank.address()]);
        }
        for plan in plans {
            command.args(["--plan", plan]);
        }
        Process::start("client", command, &self.log_of_client(number))
    }

    /// Where each bank is called.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.banks.iter().map(Bank::address).collect()
    }

    /// Moves money over this node alone, until that many transfers have committed.
    ///
    /// # Errors
    /// If they don't in time.
    pub fn commit_at(&self, node: usize, transfers: usize, patience: Duration) -> Result<()> {
        let (url, ledger) = (self.coordinators[node].url(), self.directory.join(format!("moved-at-{node}")));
        let mut mover = self.block_on(Mover::new(&url, &self.addresses(), &ledger))?;
        for _transfer in 0..transfers {
            wait_for("a transfer to commit", patience, || {
                let told = self.block_on(mover.transfer(Plan::Commit))?;
                Ok((told == Some(Told::Committed)).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Starts a client that begins at this node alone, and wants nothing but to commit.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_client_at(&mut self, node: usize) -> Result<()> {
        let client = self.start_client(self.clients.len(), &self.coordinators[node].url(), &["commit"])?;
        self.clients.push(client);
        Ok(())
    }

    /// SIGKILL to all clients.
    ///
    /// # Errors
    /// If one can't be killed.
    pub fn kill_the_clients(&mut self) -> Result<()> {
        self.clients.drain(..).try_for_each(|mut client| client.kill().map(drop))
    }

    /// A bank.
    pub fn bank(&mut self, number: usize) -> &mut Bank {
        &mut self.banks[number]
    }

    /// The names of what is prepared at a bank.
    ///
    /// # Errors
    /// If it can't be asked.
    pub fn prepared_at(&self, bank: usize) -> Result<Vec<String>> {
        self.block_on(self.banks[bank].books.prepared())
    }

    /// Writes the log as it is now to a file.
    ///
    /// # Errors
    /// What `pg_dump` says.
    pub fn dump_the_log(&self) -> Result<PathBuf> {
        let dump = self.directory.join("log.dump");
        self.log_server.dump(LOG, &dump)?;
        Ok(dump)
    }

    /// Puts the log back to what was written.
    ///
    /// # Errors
    /// What `pg_restore` says.
    pub fn put_the_log_back(&self, dump: &Path) -> Result<()> {
        Ok(self.log_server.put_back(LOG, dump)?)
    }

    /// Whether it is noted in the log that it is behind.
    ///
    /// # Errors
    /// If the log can't be asked.
    pub fn is_behind(&self) -> Result<bool> {
        let noted = "SELECT EXISTS (SELECT FROM lockstep_log.marks WHERE name = 'behind')";
        self.block_on(self.ask_log(noted.to_owned()))
    }

    fn ledger(&self, number: usize) -> PathBuf {
        self.directory.join(format!("ledger-{number}"))
    }

    /// Runs something that waits.
    pub fn block_on<T>(&self, look: impl Future<Output = T>) -> T {
        self.runtime.block_on(look)
    }

    async fn ask_log<T>(&self, sql: String) -> Result<T>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let cannot = || Failed::because("the log cannot be asked");
        let mut connection = PgConnection::connect(&self.log_server.url(LOG)).await.map_err(cannot())?;
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut connection).await.map_err(cannot())
    }

    /// Runs SQL on the log, from outside. What comes back, as psql prints it.
    ///
    /// # Errors
    /// If it fails.
    pub fn psql(&self, sql: &str) -> Result<String> {
        Ok(self.log_server.psql(LOG, sql)?)
    }

    /// SIGTERM to a node, and waits until it has ended.
    ///
    /// # Errors
    /// If it doesn't.
    pub fn drain(&mut self, node: usize) -> Result<()> {
        self.coordinators[node].stop().map(drop)
    }

    /// Crashes the log's server, and starts it again after so long.
    ///
    /// # Errors
    /// If it doesn't start.
    pub fn crash_the_log(&mut self, down: Duration) -> Result<()> {
        self.log_server.kill()?;
        std::thread::sleep(down);
        Ok(self.log_server.restart()?)
    }

    /// Gives the log's server a standby that each of its commits waits for.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn start_standby(&mut self) -> Result<()> {
        let standby = self.log_server.start_standby()?;
        self.log_server.wait_for_standby()?;
        self.standby = Some(standby);
        Ok(())
    }

    /// Kills the log's server, for ever, and has its standby take its place.
    ///
    /// # Errors
    /// If it has none, or that does not start.
    pub fn fail_over(&mut self) -> Result<()> {
        let standby = self.standby.take().ok_or_else(|| Failed::new("the log's server has no standby"))?;
        let mut lost = std::mem::replace(&mut self.log_server, standby);
        lost.kill()?;
        Ok(self.log_server.promote_in_place_of(&lost)?)
    }

    /// Epochs that were ever taken.
    ///
    /// # Errors
    /// If the log can't be asked.
    pub fn epochs(&self) -> Result<i64> {
        self.block_on(self.ask_log("SELECT count(*) FROM lockstep_log.epochs".to_owned()))
    }

    /// The newest epoch of a node.
    ///
    /// # Errors
    /// If the log can't be asked.
    pub fn epoch_of(&self, node: usize) -> Result<i64> {
        let name = node_name(node);
        self.block_on(
            self.ask_log(format!("SELECT max(epoch) FROM lockstep_log.leases WHERE node = '{name}'")),
        )
    }

    /// Commits that were decided under an epoch.
    ///
    /// # Errors
    /// If the log can't be asked.
    pub fn commits_of(&self, epoch: i64) -> Result<i64> {
        let count = "SELECT count(*) FROM lockstep_log.transactions WHERE decision IS NOT NULL";
        self.block_on(self.ask_log(format!("{count} AND epoch = {epoch}")))
    }

    /// What an epoch has left.
    ///
    /// # Errors
    /// If it can't be looked at.
    pub fn left_by(&self, epoch: i64) -> Result<Left> {
        self.block_on(async {
            let sealed = self
                .ask_log(format!("SELECT sealed FROM lockstep_log.epochs WHERE number = {epoch}"))
                .await?;
            let mut prepared = 0;
            for bank in &self.banks {
                prepared += bank.books.prepared().await?.iter().filter(|name| is_of(name, epoch)).count();
            }
            Ok(Left { sealed, prepared })
        })
    }

    /// Commits that a client was told of so far.
    ///
    /// # Errors
    /// If a ledger can't be read.
    pub fn ledgers(&self) -> Result<Vec<Entry>> {
        let ledgers = (0..CLIENTS).map(|number| read_ledger(&self.ledger(number)));
        Ok(ledgers.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Lets the clients finish, and waits until nothing is in doubt anywhere.
    ///
    /// # Errors
    /// If that takes longer: what is left.
    pub fn settle(&mut self, patience: Duration) -> Result<()> {
        for client in &mut self.clients {
            client.tell("stop");
            client.wait(patience)?;
        }
        let settled = wait_for("nothing to be in doubt any more", patience, || {
            let unfinished: i64 = self.block_on(self.ask_log(
                "SELECT count(*) FROM lockstep_log.transactions WHERE ended_ms IS NULL".to_owned(),
            ))?;
            let prepared = self.prepared()?;
            Ok((unfinished == 0 && prepared.is_empty()).then_some(()))
        });
        settled.map(drop).map_err(|error| {
            Failed::new(format!("{error}: {:?}\n{}", self.prepared().unwrap_or_default(), self.logs()))
        })
    }

    fn prepared(&self) -> Result<Vec<String>> {
        self.block_on(async {
            let mut all = Vec::new();
            for bank in &self.banks {
                all.extend(bank.books.prepared().await?);
            }
            Ok(all)
        })
    }

    /// Each bank's books.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn pages(&self) -> Result<Vec<Page>> {
        self.block_on(async {
            let mut pages = Vec::new();
            for bank in &self.banks {
                pages.push(bank.books.read().await?);
            }
            Ok(pages)
        })
    }

    /// What is seen from outside, once it has settled: also what any of these nodes answers for each transaction.
    ///
    /// # Errors
    /// If it can't be looked at.
    pub fn look(&self, nodes: &[usize]) -> Result<Seen> {
        let (ledger, pages) = (self.ledgers()?, self.pages()?);
        self.block_on(async {
            let urls = nodes.iter().map(|node| self.coordinators[*node].url());
            let client =
                lockstep::Client::builder_of(urls).connect().map_err(Failed::because("no client"))?;
            let mut asked = BTreeMap::new();
            for entry in &ledger {
                if asked.contains_key(&entry.gtrid) {
                    continue;
                }
                let gtrid = entry.gtrid.parse().map_err(Failed::because("a ledger's gtrid"))?;
                let outcome = client.inquire(gtrid).await.map_err(Failed::because("asked again"))?;
                asked.insert(entry.gtrid.clone(), Told::from(outcome));
            }
            Ok(Seen { pages, ledger, asked, forgets: false, torn_by_hand: None })
        })
    }

    /// Transactions with a heuristic outcome on record.
    ///
    /// # Errors
    /// If the log can't be asked.
    pub fn heuristic(&self) -> Result<i64> {
        self.block_on(
            self.ask_log("SELECT count(*) FROM lockstep_log.transactions WHERE heuristic".to_owned()),
        )
    }

    /// Whether every bank has logged something of this.
    ///
    /// # Errors
    /// If a log can't be read.
    pub fn every_bank_logs(&self, texts: &[String]) -> Result<bool> {
        let logs = self.banks.iter().map(|bank| std::fs::read_to_string(bank.log()));
        let logs = logs.collect::<std::io::Result<Vec<_>>>().map_err(Failed::because("no log"))?;
        Ok(logs.iter().all(|log| texts.iter().any(|text| log.contains(text))))
    }

    /// The ends of all logs, for people.
    #[must_use]
    pub fn logs(&self) -> String {
        let coordinators = self.coordinators.iter().map(|coordinator| end_of_log(&coordinator.log()));
        let banks = self.banks.iter().map(|bank| end_of_log(bank.log()));
        let clients = (0..self.clients.len()).map(|number| end_of_log(&self.log_of_client(number)));
        coordinators.chain(banks).chain(clients).collect::<Vec<_>>().join("\n")
    }

    fn log_of_client(&self, number: usize) -> PathBuf {
        self.directory.join(format!("client-{number}.log"))
    }
}

fn node_name(node: usize) -> String {
    format!("node-{node}")
}

/// Whether a prepared branch of this name, `lockstep:<cluster>:<epoch>.<uuid>:<bqual>`, is of a transaction of this epoch.
fn is_of(name: &str, epoch: i64) -> bool {
    let gtrid = name.split(':').nth(2).unwrap_or_default();
    gtrid.split('.').next() == Some(epoch.to_string().as_str())
}
