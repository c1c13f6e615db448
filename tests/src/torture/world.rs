//! Two coordinators on one log, two banks over two kinds of servers, clients, and the ways between them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep::{Gtrid, Outcome};
use rustix::process::Pid;
use sqlx::{Connection as _, PgConnection};

use super::link::{Condition, Link};
use crate::harness::bank::Bank;
use crate::harness::books::Books;
use crate::harness::client::{Entry, Told, read_ledger};
use crate::harness::clock::{self, wait_for};
use crate::harness::coordinator::Coordinator;
use crate::harness::mariadb::MariaDbServer;
use crate::harness::postgres::PostgresServer;
use crate::harness::process::{Process, end_of_log};
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};
use crate::trial::checker::Seen;

/// Coordinators.
pub const NODES: usize = 2;
/// Banks.
pub const BANKS: [&str; 2] = ["bank-a", "bank-b"];
/// Clients, one transfer at a time each.
pub const CLIENTS: usize = 8;
/// How long an outcome may be asked for when all is well again.
const TO_ANSWER: Duration = Duration::from_secs(60);
/// Of the log server's disk. Its write-ahead log keeps to a fourth of that.
const LOG_DISK_MEBIBYTES: u32 = 512;
const LOG_SETTINGS: &[(&str, &str)] = &[("max_wal_size", "128MB"), ("min_wal_size", "64MB")];
const LOG: &str = "log";
const LEASE: &str = "--lease=3s";

/// A database server.
#[derive(Debug, Clone, Copy)]
pub enum Server {
    /// The log's.
    Log,
    /// The first bank's.
    Postgres,
    /// The second bank's.
    MariaDb,
}

/// Everything.
#[derive(Debug)]
pub struct World {
    directory: PathBuf,
    roles: Roles,
    /// In this order they are dropped: nobody misses a server that went first.
    pub clients: Vec<Process>,
    /// The banks.
    pub banks: Vec<Bank>,
    /// The nodes.
    pub coordinators: Vec<Coordinator>,
    /// To the coordinators, to the banks' servers, to the log's server from each node: in this order.
    pub links: Vec<Link>,
    /// The log's server.
    pub log_server: PostgresServer,
    /// The first bank's.
    pub postgres: PostgresServer,
    /// The second bank's.
    pub mariadb: MariaDbServer,
    runtime: tokio::runtime::Runtime,
}

impl World {
    /// With clients that are at work.
    ///
    /// # Errors
    /// If something can't be made or started.
    pub fn start(roles: &Roles, directory: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failed::because("no runtime"))?;
        let log_server = PostgresServer::start_on_small_disk(LOG_DISK_MEBIBYTES, LOG_SETTINGS)?;
        let postgres = PostgresServer::start()?;
        let mariadb = MariaDbServer::start()?;
        log_server.create_database(LOG)?;
        let mut links = Vec::new();
        let mut coordinators = Vec::new();
        for node in 0..NODES {
            let to_log = Link::to(log_server.port())?;
            let url = at_port(&log_server.url(LOG), log_server.port(), to_log.port());
            let directory = directory.join(format!("node-{node}"));
            std::fs::create_dir_all(&directory).map_err(Failed::because("no directory"))?;
            let (log, name) = (format!("--log={url}"), format!("--node=node-{node}"));
            let flags = [&log, &name, LEASE, "--migrate-log", "--report-interval=2s", "--drain-timeout=2s"];
            coordinators.push(Coordinator::start(roles, &directory, &flags, None)?);
            links.push(to_log);
        }
        let mut urls = Vec::new();
        for coordinator in &mut coordinators {
            coordinator.expect_it_serves()?;
            let link = Link::to(coordinator.port())?;
            urls.push(format!("http://127.0.0.1:{}", link.port()));
            links.push(link);
        }
        let to_postgres = Link::to(postgres.port())?;
        let to_mariadb = Link::to(mariadb.port())?;
        let books = runtime.block_on(async {
            let first = Books::in_postgres(BANKS[0], &postgres, "bank_0").await?;
            let second = Books::in_mariadb(BANKS[1], &mariadb, "bank_1").await?;
            first.plant_foreign().await?;
            second.plant_foreign().await?;
            Ok::<_, Failed>([first.through(to_postgres.port()), second.through(to_mariadb.port())])
        })?;
        links.extend([to_postgres, to_mariadb]);
        let banks =
            books.into_iter().map(|books| Bank::start(roles, directory, books, &urls.join(","), None));
        let banks = banks.collect::<Result<Vec<_>>>()?;
        let (directory, roles) = (directory.to_owned(), roles.clone());
        let mut world = Self {
            directory,
            roles,
            clients: Vec::new(),
            banks,
            coordinators,
            links,
            log_server,
            postgres,
            mariadb,
            runtime,
        };
        for number in 0..CLIENTS {
            let client = world.start_client(number)?;
            world.clients.push(client);
        }
        Ok(world)
    }

    /// Starts a client over its ledger.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_client(&self, number: usize) -> Result<Process> {
        let urls: Vec<String> = self.coordinators.iter().map(Coordinator::url).collect();
        let mut command = self.roles.command("client");
        command.args(["--coordinator", &urls.join(",")]).arg("--ledger").arg(self.ledger(number));
        for bank in &self.banks {
            command.args(["--bank", &bank.address()]);
        }
        for plan in ["commit", "commit", "commit", "rollback", "refused-by-second"] {
            command.args(["--plan", plan]);
        }
        Process::start("client", command, &self.directory.join(format!("client-{number}.log")))
    }

    fn ledger(&self, number: usize) -> PathBuf {
        self.directory.join(format!("ledger-{number}"))
    }

    /// Starts again whoever has ended: it was killed, or has found no server when it started.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_whoever_is_down(&mut self) -> Result<()> {
        self.start_services()?;
        for number in 0..CLIENTS {
            if self.clients[number].try_reap()?.is_some() {
                self.clients[number] = self.start_client(number)?;
            }
        }
        Ok(())
    }

    /// The processes of a server.
    ///
    /// # Errors
    /// If it does not run.
    pub fn processes_of(&self, server: Server) -> Result<Vec<Pid>> {
        Ok(match server {
            Server::Log => self.log_server.processes()?,
            Server::Postgres => self.postgres.processes()?,
            Server::MariaDb => vec![self.mariadb.process()?],
        })
    }

    /// SIGKILL to a server.
    ///
    /// # Errors
    /// If it does not die.
    pub fn kill_server(&mut self, server: Server) -> Result<()> {
        match server {
            Server::Log => self.log_server.kill()?,
            Server::Postgres => self.postgres.kill()?,
            Server::MariaDb => self.mariadb.kill()?,
        }
        Ok(())
    }

    /// Starts a server that has ended.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_server_again(&mut self, server: Server) -> Result<()> {
        match server {
            Server::Log => self.log_server.restart()?,
            Server::Postgres => self.postgres.restart()?,
            Server::MariaDb => self.mariadb.restart()?,
        }
        Ok(())
    }

    /// Waits until a server answers, and starts it again if it ends instead: PostgreSQL takes some seconds to end of what has happened.
    ///
    /// # Errors
    /// If it does not come back.
    pub fn mend(&mut self, server: Server) -> Result<()> {
        let answers = || {
            let running = match server {
                Server::Log => self.log_server.is_running()?,
                Server::Postgres => self.postgres.is_running()?,
                Server::MariaDb => self.mariadb.is_running()?,
            };
            if !running {
                self.start_server_again(server)?;
            }
            let answered = match server {
                Server::Log => self.log_server.psql("postgres", "SELECT 1").is_ok(),
                Server::Postgres => self.postgres.psql("postgres", "SELECT 1").is_ok(),
                Server::MariaDb => self.mariadb.sql("", "SELECT 1").is_ok(),
            };
            Ok(answered.then_some(()))
        };
        wait_for("a server to come back", TO_ANSWER, answers).map(drop)
    }

    /// How often a server has come back from a crash, by its own log: also where PostgreSQL has started its processes again by itself.
    pub fn recoveries_of(&self, server: Server) -> u32 {
        let (log, recovers) = match server {
            Server::Log => (self.log_server.log(), "database system was interrupted"),
            Server::Postgres => (self.postgres.log(), "database system was interrupted"),
            Server::MariaDb => (self.mariadb.log(), "Starting crash recovery"),
        };
        u32::try_from(log.matches(recovers).count()).unwrap_or(u32::MAX)
    }

    /// All ways are open.
    pub fn open_all_links(&self) {
        self.links.iter().for_each(|link| link.make(Condition::Open));
    }

    /// What clients were told so far.
    ///
    /// # Errors
    /// If a ledger can't be read.
    pub fn ledgers(&self) -> Result<Vec<Entry>> {
        let ledgers = (0..CLIENTS).map(|number| read_ledger(&self.ledger(number)));
        Ok(ledgers.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Lets the clients finish, and waits until nothing is in doubt anywhere. How long that took, and how many branches were in doubt when
    /// nobody began anything any more.
    ///
    /// # Errors
    /// If that takes longer: what is left.
    pub fn settle(&mut self, patience: Duration) -> Result<(Duration, usize)> {
        for client in &mut self.clients {
            client.tell("stop");
        }
        wait_for("the clients to finish", patience, || {
            self.start_services()?;
            let mut all = true;
            for client in &mut self.clients {
                all &= client.try_reap()?.is_some();
            }
            Ok(all.then_some(()))
        })?;
        let at_first = self.prepared()?.len();
        let settled = wait_for("nothing to be in doubt any more", patience, || {
            self.start_services()?;
            let unfinished =
                self.ask_log("SELECT count(*) FROM lockstep_log.transactions WHERE ended_ms IS NULL")?;
            Ok((unfinished == 0 && self.prepared()?.is_empty()).then_some(()))
        });
        let (_, took) = settled.map_err(|error| {
            Failed::new(format!("{error}: {:?}\n{}", self.prepared().unwrap_or_default(), self.logs()))
        })?;
        Ok((took, at_first))
    }

    fn start_services(&mut self) -> Result<()> {
        for coordinator in &mut self.coordinators {
            if coordinator.process().try_reap()?.is_some() {
                coordinator.start_again(None)?;
            }
        }
        for bank in &mut self.banks {
            if bank.process().try_reap()?.is_some() {
                bank.start_again(None)?;
            }
        }
        Ok(())
    }

    /// The branches that are prepared in the banks' databases.
    ///
    /// # Errors
    /// If they can't be asked.
    pub fn prepared(&self) -> Result<Vec<String>> {
        self.runtime.block_on(async {
            let mut all = Vec::new();
            for bank in &self.banks {
                all.extend(bank.books.prepared().await?);
            }
            Ok(all)
        })
    }

    /// A number from the log.
    ///
    /// # Errors
    /// If it can't be asked.
    pub fn ask_log(&self, sql: &'static str) -> Result<i64> {
        let cannot = || Failed::because("the log cannot be asked");
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&self.log_server.url(LOG)).await.map_err(cannot())?;
            sqlx::query_scalar(sql).fetch_one(&mut connection).await.map_err(cannot())
        })
    }

    /// Runs something that waits.
    pub fn block_on<T>(&self, look: impl Future<Output = T>) -> T {
        self.runtime.block_on(look)
    }

    /// What is wrong, looked at from outside, once it has settled.
    ///
    /// # Errors
    /// If it can't be looked at.
    pub fn violations(&self) -> Result<Vec<String>> {
        let mut violations = self.look()?.contradictions();
        for bank in &self.banks {
            let books = &bank.books;
            let left = self.block_on(books.prepared())?;
            violations.extend(left.iter().map(|name| format!("{} has still prepared: {name}", books.bank)));
            let gone = self.block_on(books.foreign_missing())?;
            violations.extend(
                gone.iter().map(|name| format!("{} touched what is not ours: {name} is gone", books.bank)),
            );
        }
        let heuristic = self.ask_log("SELECT count(*) FROM lockstep_log.transactions WHERE heuristic")?;
        if heuristic != 0 {
            violations.push(format!("{heuristic} transactions have a heuristic outcome on record"));
        }
        Ok(violations)
    }

    fn look(&self) -> Result<Seen> {
        let ledger = self.ledgers()?;
        self.block_on(async {
            let mut pages = Vec::new();
            for bank in &self.banks {
                pages.push(bank.books.read().await?);
            }
            let urls = self.coordinators.iter().map(Coordinator::url);
            let client =
                lockstep::Client::builder_of(urls).connect().map_err(Failed::because("no client"))?;
            let mut asked = BTreeMap::new();
            for entry in &ledger {
                if !asked.contains_key(&entry.gtrid) {
                    let gtrid = entry.gtrid.parse().map_err(Failed::because("a ledger's gtrid"))?;
                    let outcome = answered(&client, gtrid).await?;
                    asked.insert(entry.gtrid.clone(), Told::from(outcome));
                }
            }
            Ok(Seen { pages, ledger, asked, forgets: false, torn_by_hand: None })
        })
    }

    /// The ends of all logs, for people.
    #[must_use]
    pub fn logs(&self) -> String {
        let coordinators = self.coordinators.iter().map(|coordinator| end_of_log(&coordinator.log()));
        let banks = self.banks.iter().map(|bank| end_of_log(bank.log()));
        coordinators.chain(banks).collect::<Vec<_>>().join("\n")
    }
}

/// The outcome. A busy machine may take more than one question.
async fn answered(client: &lockstep::Client, gtrid: Gtrid) -> Result<Outcome> {
    let begun = clock::now();
    loop {
        match client.inquire(gtrid).await {
            Ok(outcome) => return Ok(outcome),
            Err(error) if begun.elapsed() > TO_ANSWER => return Err(Failed::because("asked again")(error)),
            Err(_unavailable) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn at_port(url: &str, own: u16, other: u16) -> String {
    url.replacen(&format!(":{own}"), &format!(":{other}"), 1)
}
