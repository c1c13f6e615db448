//! Everything that the contenders need, as processes of their own: two PostgreSQL servers, a coordinator, two tellers. And the books,
//! which are checked after every run.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use lockstep_tests::harness::clock::wait_for;
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::ports::Port;
use lockstep_tests::harness::postgres::PostgresServer;
use lockstep_tests::harness::process::Process;
use lockstep_tests::harness::procfs::Memory;
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::harness::{Failed, Result};
use tempfile::TempDir;

use crate::contender::Contender;
use crate::driver::{self, ACCOUNTS, BEGIN, DONE, READY, Seen};
use crate::meter::{self, ProcessorTime};
use crate::peer;
use crate::teller::SERVES;

/// How long anything may take to start or to settle.
const PATIENCE: Duration = Duration::from_mins(5);
/// The most clients: every one of them may have a branch open and another one prepared at each server.
pub const MOST_CLIENTS: usize = 256;
/// What an account begins with.
pub const OPENING_BALANCE: i64 = 1_000_000;
/// The database on each server.
pub const DATABASE: &str = "bank";

/// Beside the harness' settings (`fsync` and `full_page_writes` on): room for the clients, and no checkpoint during a run, which would
/// hit one contender and not another.
pub const SETTINGS: &[(&str, &str)] = &[
    ("max_connections", "700"),
    ("max_prepared_transactions", "600"),
    ("shared_buffers", "256MB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
];

/// The processes, and a directory for what they write.
pub struct Stage {
    roles: Roles,
    servers: [PostgresServer; 2],
    coordinator: Coordinator,
    tellers: Option<[Process; 2]>,
    ports: [Port; 2],
    /// In each database.
    accounts: usize,
    /// Only if it takes part.
    dtmrs: Option<peer::Server>,
    /// Transfers that the books showed last.
    moved: i64,
    directory: TempDir,
}

/// A run of one contender.
pub struct Ran {
    /// What its clients have seen.
    pub seen: Seen,
    /// Before it and after it.
    pub processor_time: (ProcessorTime, ProcessorTime),
}

impl Stage {
    /// Starts everything.
    ///
    /// # Errors
    /// If something does not start.
    pub fn set(roles: &Roles) -> Result<Self> {
        Self::set_with(roles, &[], ACCOUNTS)
    }

    /// The same, with further settings of the servers, and so many accounts.
    ///
    /// # Errors
    /// As [`Stage::set`].
    pub fn set_with(roles: &Roles, more: &[(&str, &str)], accounts: usize) -> Result<Self> {
        let settings = [SETTINGS, more].concat();
        let directory = TempDir::with_prefix("lockstep-bench-").map_err(Failed::because("no directory"))?;
        let servers = [PostgresServer::start_with(&settings)?, PostgresServer::start_with(&settings)?];
        for server in &servers {
            server.create_database(DATABASE)?;
            server.psql(DATABASE, &schema(accounts))?;
            server.psql("postgres", "CHECKPOINT")?;
        }
        let mut coordinator = Coordinator::start(roles, directory.path(), &[], None)?;
        coordinator.expect_it_serves()?;
        let ports = [Port::reserve()?, Port::reserve()?];
        let roles = roles.clone();
        let mut stage = Self {
            roles,
            servers,
            coordinator,
            tellers: None,
            ports,
            accounts,
            dtmrs: None,
            moved: 0,
            directory,
        };
        stage.start_tellers()?;
        Ok(stage)
    }

    /// Where what is measured writes.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where the coordinator is.
    pub fn coordinator(&self) -> String {
        self.coordinator.url()
    }

    /// dtmrs, with its store.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_dtmrs(&mut self, installed: &peer::Installed) -> Result<()> {
        let database = || {
            self.servers[0].create_database(peer::DATABASE)?;
            Ok(self.servers[0].url(peer::DATABASE))
        };
        self.dtmrs = Some(peer::Server::start(installed, database, self.directory.path())?);
        Ok(())
    }

    /// The tellers, again.
    ///
    /// # Errors
    /// If one does not start.
    pub fn start_tellers(&mut self) -> Result<()> {
        let mut tellers = [self.teller(0)?, self.teller(1)?];
        for teller in &mut tellers {
            wait_for_line(teller, SERVES)?;
        }
        self.tellers = Some(tellers);
        Ok(())
    }

    fn teller(&self, side: usize) -> Result<Process> {
        let mut command = self.roles.command("teller");
        command.args(["--name", &format!("bank-{side}"), "--database", &self.servers[side].url(DATABASE)]);
        command.args(["--coordinator", &self.coordinator.url()]);
        command.args(["--port", &self.ports[side].number().to_string()]);
        command.args(["--connections", &(MOST_CLIENTS + 16).to_string()]);
        Process::start("teller", command, &self.directory.path().join(format!("teller-{side}.log")))
    }

    /// One contender, so many clients, so long; and looks at the books.
    ///
    /// # Errors
    /// If it could not be run, if a transfer failed, or if the books are wrong.
    pub fn run(
        &mut self,
        contender: Contender,
        clients: usize,
        warm_up: Duration,
        measure: Duration,
    ) -> Result<Ran> {
        let mut driver = self.driver(contender, clients, 0..ACCOUNTS, (warm_up, measure))?;
        let before = self.processor_time_with(&driver, contender)?;
        driver.tell(BEGIN);
        let line = wait_for_line(&mut driver, DONE)?;
        let after = self.processor_time_with(&driver, contender)?;
        let seen = driver::ended(driver, &line).map_err(Failed::because(contender.title()))?;
        self.check_books(contender, seen.all)?;
        Ok(Ran { seen, processor_time: (before, after) })
    }

    /// The same over these accounts alone, without a look at the books.
    ///
    /// # Errors
    /// If a transfer fails.
    pub fn drive(
        &self,
        contender: Contender,
        clients: usize,
        accounts: Range<usize>,
        phases: (Duration, Duration),
    ) -> Result<Seen> {
        let mut driver = self.driver(contender, clients, accounts, phases)?;
        driver.tell(BEGIN);
        let line = wait_for_line(&mut driver, DONE)?;
        driver::ended(driver, &line).map_err(Failed::because(contender.title()))
    }

    fn driver(
        &self,
        contender: Contender,
        clients: usize,
        accounts: Range<usize>,
        (warm_up, measure): (Duration, Duration),
    ) -> Result<Process> {
        let mut command = self.roles.command("drive");
        command.arg("--databases").args(self.servers.each_ref().map(|server| server.url(DATABASE)));
        let tellers = self.ports.each_ref().map(|port| format!("http://127.0.0.1:{}", port.number()));
        command.arg("--tellers").args(tellers);
        command.args(["--coordinator", &self.coordinator.url(), "--contender", contender.name()]);
        command.args(self.dtmrs.iter().flat_map(|dtmrs| ["--dtmrs".to_owned(), dtmrs.url()]));
        command.args(["--clients", &clients.to_string()]);
        command.args(["--accounts", &accounts.start.to_string(), &accounts.end.to_string()]);
        command.args(["--warm-up", &warm_up.as_millis().to_string()]);
        command.args(["--measure", &measure.as_millis().to_string()]);
        let mut driver = Process::start("driver", command, &self.directory.path().join("driver.log"))?;
        wait_for_line(&mut driver, READY)?;
        Ok(driver)
    }

    /// Clients that ask for longer than anybody waits, and are left alone.
    ///
    /// # Errors
    /// If they can't be started.
    pub fn begin_driving(
        &self,
        contender: Contender,
        clients: usize,
        accounts: Range<usize>,
    ) -> Result<Process> {
        let phases = (Duration::ZERO, Duration::from_hours(1));
        let mut driver = self.driver(contender, clients, accounts, phases)?;
        driver.tell(BEGIN);
        Ok(driver)
    }

    /// Where a bank's database is.
    pub fn database(&self, side: usize) -> String {
        self.servers[side].url(DATABASE)
    }

    /// Transactions that are prepared, on both servers together.
    ///
    /// # Errors
    /// If they can't be asked.
    pub fn prepared(&self) -> Result<usize> {
        let count = |server: &PostgresServer| {
            let text = server.psql(DATABASE, "SELECT count(*) FROM pg_prepared_xacts")?;
            text.parse::<usize>().map_err(Failed::because("a count"))
        };
        Ok(count(&self.servers[0])? + count(&self.servers[1])?)
    }

    /// The most memory that each teller ever had, in bytes.
    ///
    /// # Errors
    /// If one has ended.
    pub fn most_memory_of_tellers(&self) -> Result<Vec<u64>> {
        self.tellers.iter().flatten().map(|teller| Memory::Most.of(teller.id())).collect()
    }

    /// SIGKILL for all of them.
    ///
    /// # Errors
    /// If one does not die.
    pub fn kill_tellers_and_coordinator(&mut self) -> Result<()> {
        self.coordinator.process().kill()?;
        self.tellers = None;
        Ok(())
    }

    /// Starts the coordinator where it was, and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub fn start_coordinator_again(&mut self) -> Result<()> {
        self.coordinator.start_again(None)?;
        self.coordinator.expect_it_serves()
    }

    /// Of the databases, and of the tellers and the coordinator that run now.
    ///
    /// # Errors
    /// If a server does not run.
    pub fn processor_time(&self) -> Result<ProcessorTime> {
        let databases = self.servers.iter().map(meter::processor_time_of_server).sum::<Result<_>>()?;
        let of = |process: &Process| meter::processor_time_of(process.id());
        let parts = [
            ("databases", databases),
            ("tellers", self.tellers.iter().flatten().map(of).sum()),
            ("coordinator", meter::processor_time_of(self.coordinator.id())),
        ];
        Ok(ProcessorTime(parts.into_iter().collect()))
    }

    /// The same in a run of this contender, whose coordinator counts, with its clients.
    fn processor_time_with(&self, driver: &Process, contender: Contender) -> Result<ProcessorTime> {
        let mut time = self.processor_time()?;
        time.0.insert("clients", meter::processor_time_of(driver.id()));
        if let (Some(dtmrs), Contender::Dtmrs) = (&self.dtmrs, contender) {
            time.0.insert("coordinator", dtmrs.ids().map(meter::processor_time_of).sum());
        }
        Ok(time)
    }

    /// How often the servers have forced their logs. Ends tellers and dtmrs, and starts them again: a backend tells it when it ends.
    ///
    /// # Errors
    /// If they can't be asked.
    pub fn forced_writes(&mut self) -> Result<u64> {
        self.tellers = None;
        self.dtmrs.iter_mut().for_each(peer::Server::end);
        self.wait_for_backends_to_end()?;
        let counts = self.servers.each_ref().map(meter::forced_writes);
        self.start_tellers()?;
        self.dtmrs.iter_mut().try_for_each(peer::Server::start_again)?;
        counts.into_iter().sum()
    }

    /// Waits until the servers have ended the sessions of everybody who is gone, and the kernel has cleared their processes away.
    ///
    /// # Errors
    /// If there are still some after a while.
    pub fn wait_for_backends_to_end(&self) -> Result<()> {
        for server in &self.servers {
            let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type <> 'client backend'";
            wait_for("the backends to end", PATIENCE, || {
                // In this order: the question has a backend of its own.
                let processes = server.processes()?;
                let own = server.psql("postgres", sql)?;
                let own: Vec<&str> = own.lines().collect();
                let (_postmaster, others) =
                    processes.split_last().expect("a server that runs has a postmaster");
                Ok(others.iter().all(|pid| own.contains(&pid.to_string().as_str())).then_some(()))
            })?;
        }
        Ok(())
    }

    /// As [`Stage::look_at_books`], and what was given is as much as was acknowledged.
    fn check_books(&mut self, contender: Contender, acknowledged: u64) -> Result<()> {
        let last = self.moved;
        let shown = self.look_at_books()? - last;
        if shown == i64::try_from(acknowledged).unwrap_or(i64::MAX) {
            return Ok(());
        }
        let who = contender.title();
        Err(Failed::new(format!(
            "the books show {shown} transfers of {who}, and {acknowledged} were acknowledged"
        )))
    }

    /// Nothing is prepared any more, and what one bank gave of each account the other one has. How much that is, of all accounts.
    ///
    /// # Errors
    /// If it is not so.
    pub fn look_at_books(&mut self) -> Result<i64> {
        for server in &self.servers {
            wait_for("every prepared transaction to end", PATIENCE, || {
                Ok((server.psql(DATABASE, "SELECT count(*) FROM pg_prepared_xacts")? == "0").then_some(()))
            })?;
        }
        let [given, taken] = self.servers.each_ref().map(balances);
        let (given, taken) = (given?, taken?);
        let wrong = |why: String| Failed::new(format!("the books are wrong: {why}"));
        if given.len() != self.accounts || taken.len() != self.accounts {
            return Err(wrong(format!("{} and {} accounts", given.len(), taken.len())));
        }
        if let Some(account) = (0..self.accounts).find(|n| given[*n] + taken[*n] != 2 * OPENING_BALANCE) {
            return Err(wrong(format!("account {account} has {} and {}", given[account], taken[account])));
        }
        self.moved = given.iter().map(|balance| OPENING_BALANCE - balance).sum();
        Ok(self.moved)
    }
}

/// The accounts of a bank.
pub fn schema(accounts: usize) -> String {
    let last = accounts - 1;
    format!(
        "CREATE TABLE accounts (number bigint PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50); \
         INSERT INTO accounts SELECT number, {OPENING_BALANCE} FROM generate_series(0, {last}) AS number; \
         ANALYZE accounts"
    )
}

fn balances(server: &PostgresServer) -> Result<Vec<i64>> {
    let text = server.psql(DATABASE, "SELECT balance FROM accounts ORDER BY number")?;
    text.lines().map(|line| line.parse().map_err(Failed::because("a balance"))).collect()
}

/// Waits for a line that begins so, to its end: it may have been written in several pieces.
///
/// # Errors
/// If the process ends, or says nothing.
pub fn wait_for_line(process: &mut Process, begins: &str) -> Result<String> {
    let what = format!("{} to say {begins:?}", process.name());
    let (line, _) = wait_for(&what, PATIENCE, || {
        // In this order: what one that has ended has written is all there.
        let ended = process.try_reap()?;
        let line = whole_line(&process.output(), begins);
        if let (None, Some(how)) = (&line, ended) {
            return Err(Failed::new(format!("{} ended: {how:?}\n{}", process.name(), process.output())));
        }
        Ok(line)
    })?;
    Ok(line)
}

fn whole_line(output: &str, begins: &str) -> Option<String> {
    let mut whole = output.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    whole.find(|line| line.starts_with(begins)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of ten minutes once ended because the last line of one of its drivers was read too early.
    #[test]
    fn a_line_without_its_end_is_not_there_yet() {
        for begun in ["", "done ", "begun\ndone {\"all\": 1"] {
            assert_eq!(whole_line(begun, DONE), None, "{begun:?}");
        }
        assert_eq!(whole_line("begun\ndone {}\nmore", DONE).as_deref(), Some("done {}"));
    }
}
