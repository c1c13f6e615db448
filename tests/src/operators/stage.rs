//! A coordinator, two databases that take part, and the command line.
//!
//! Each participant runs in a runtime of its own, so that it can be stopped between any two steps as a process is: its connections
//! break, and nobody is told.

mod blocked;

use std::fs;
use std::path::Path;
use std::time::Duration;

use lockstep::{Client, Gtrid, MySql, Participant, Postgres, Transaction};
use sqlx::{MySqlPool, PgPool};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::harness::clock::wait_for;
use crate::harness::coordinator::{Coordinator, Ran};
use crate::harness::crash_points::Fuse;
use crate::harness::mariadb::MariaDbServer;
use crate::harness::postgres::PostgresServer;
use crate::harness::roles::Roles;
use crate::harness::{Failed, Result};

/// Nothing here takes that long, on a busy machine either.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The file for as long as which nothing reaches the log.
const HOLD: &str = "hold";
/// A client's time, where a cell has the deadline pass.
pub const SHORT: Duration = Duration::from_secs(8);
/// One that passes at once.
pub const BRIEF: Duration = Duration::from_secs(1);
/// One that does not pass.
pub const LONG: Duration = Duration::from_secs(3600);

const TABLE: &str = "CREATE TABLE account (id int PRIMARY KEY, amount int NOT NULL)";
const ROW: &str = "INSERT INTO account VALUES (1, 100)";
const CHANGE: &str = "UPDATE account SET amount = amount - 1 WHERE id = 1";

/// The two resource managers.
pub const ORDERS: &str = "orders-db";
/// See [`ORDERS`].
pub const LEDGER: &str = "ledger-db";

/// The servers, for as many worlds as there are.
#[derive(Debug)]
pub struct Servers {
    /// Has `orders-db`.
    pub postgres: PostgresServer,
    /// Has `ledger-db`.
    pub mariadb: MariaDbServer,
}

impl Servers {
    /// Starts both.
    ///
    /// # Errors
    /// If one does not start.
    pub fn start() -> Result<Self> {
        Ok(Self { postgres: PostgresServer::start()?, mariadb: MariaDbServer::start()? })
    }
}

/// One coordinator with two databases of its own.
pub struct World<'a> {
    servers: &'a Servers,
    name: String,
    directory: TempDir,
    /// Runs the client, and what looks into databases.
    runtime: Runtime,
    /// The coordinator.
    pub coordinator: Coordinator,
    orders: Option<(Runtime, Participant<Postgres>)>,
    ledger: Option<(Runtime, Participant<MySql>)>,
}

fn runtime() -> Result<Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.map_err(Failed::because("no runtime"))
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Failed {
    Failed::because(what)
}

impl<'a> World<'a> {
    /// A new one, with both participants attached.
    ///
    /// # Errors
    /// If something does not start.
    pub fn start(servers: &'a Servers, roles: &Roles, name: &str) -> Result<Self> {
        let directory = tempfile::tempdir().map_err(failed("no directory"))?;
        Self::start_in(directory, servers, roles, name, &[])
    }

    /// A new one whose log is in PostgreSQL, and a second node on that.
    ///
    /// # Errors
    /// If something does not start.
    pub fn start_shared(servers: &'a Servers, roles: &Roles, name: &str) -> Result<(Self, Coordinator)> {
        let directory = tempfile::tempdir().map_err(failed("no directory"))?;
        let elsewhere = directory.path().join("elsewhere");
        fs::create_dir(&elsewhere).map_err(failed("no directory"))?;
        let log = format!("{name}_log");
        servers.postgres.create_database(&log)?;
        let log = format!("--log={}", servers.postgres.url(&log));
        let flags = |node| [node, log.as_str(), "--migrate-log", "--lease=10s"];
        let world = Self::start_in(directory, servers, roles, name, &flags("--node=a"))?;
        let mut other = Coordinator::start(roles, &elsewhere, &flags("--node=b"), None)?;
        other.expect_it_serves()?;
        Ok((world, other))
    }

    fn start_in(
        directory: TempDir,
        servers: &'a Servers,
        roles: &Roles,
        name: &str,
        flags: &[&str],
    ) -> Result<Self> {
        servers.postgres.create_database(name)?;
        servers.mariadb.create_database(name)?;
        let flags = [&["--report-interval=200ms"], flags].concat();
        let held_at = ("log-before-force", directory.path().join(HOLD));
        let mut coordinator = Coordinator::start_held(roles, directory.path(), &flags, held_at)?;
        coordinator.expect_it_serves()?;
        let (name, runtime) = (name.to_owned(), runtime()?);
        let mut world = Self { servers, name, directory, runtime, coordinator, orders: None, ledger: None };
        for setup in [TABLE, ROW] {
            world.in_orders(setup)?;
            world.in_ledger(setup)?;
        }
        world.attach_orders()?;
        world.attach_ledger()?;
        Ok(world)
    }

    /// Holds up what is on its way to the log from now on.
    ///
    /// # Errors
    /// If the file system will not.
    pub fn hold_the_log(&self) -> Result<()> {
        std::fs::write(self.directory.path().join(HOLD), "").map_err(failed("the log can't be held up"))
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// If the file system will not.
    pub fn release_the_log(&self) -> Result<()> {
        std::fs::remove_file(self.directory.path().join(HOLD)).map_err(failed("the log can't be let go"))
    }

    /// Runs statements in the first database, as an administrator.
    ///
    /// # Errors
    /// If they fail.
    pub fn in_orders(&self, sql: &str) -> Result<String> {
        Ok(self.servers.postgres.psql(&self.name, sql)?)
    }

    /// The same in the second.
    ///
    /// # Errors
    /// If they fail.
    pub fn in_ledger(&self, sql: &str) -> Result<String> {
        Ok(self.servers.mariadb.sql(&self.name, sql)?)
    }

    /// Where the first database is.
    #[must_use]
    pub fn orders_url(&self) -> String {
        self.servers.postgres.url(&self.name)
    }

    /// Where the second one is.
    #[must_use]
    pub fn ledger_url(&self) -> String {
        self.servers.mariadb.url(&self.name)
    }

    /// Starts the service of the first database.
    ///
    /// # Errors
    /// If it does not attach.
    pub fn attach_orders(&mut self) -> Result<()> {
        self.attach_orders_at(&self.orders_url())
    }

    /// Copies the first database, of which no service may be running.
    ///
    /// # Errors
    /// If the server will not.
    pub fn copy_orders(&self) -> Result<()> {
        let name = &self.name;
        let copied = || {
            self.servers.postgres.psql("postgres", &format!("CREATE DATABASE {name}_copy TEMPLATE {name}"))
        };
        // Its connections end a moment after their service.
        wait_for("the copy", PATIENCE, || Ok(copied().ok())).map(drop)
    }

    /// Starts a service of its name at the copy.
    ///
    /// # Errors
    /// If it does not attach.
    pub fn attach_copy_of_orders(&mut self) -> Result<()> {
        self.attach_orders_at(&self.servers.postgres.url(&format!("{}_copy", self.name)))
    }

    fn attach_orders_at(&mut self, database: &str) -> Result<()> {
        let (url, runtime) = (self.coordinator.url(), runtime()?);
        let participant = runtime.block_on(async {
            let pool = PgPool::connect(database).await.map_err(failed("orders-db"))?;
            let attaching = Participant::builder(ORDERS, Postgres::new(pool)).coordinator(url).attach();
            tokio::time::timeout(PATIENCE, attaching)
                .await
                .map_err(failed("orders-db"))?
                .map_err(failed("orders-db"))
        })?;
        self.orders = Some((runtime, participant));
        Ok(())
    }

    /// Starts the service of the second one.
    ///
    /// # Errors
    /// If it does not attach.
    pub fn attach_ledger(&mut self) -> Result<()> {
        let (database, url, runtime) = (self.ledger_url(), self.coordinator.url(), runtime()?);
        let participant = runtime.block_on(async {
            let pool = MySqlPool::connect(&database).await.map_err(failed("ledger-db"))?;
            let attaching = Participant::builder(LEDGER, MySql::new(pool)).coordinator(url).attach();
            tokio::time::timeout(PATIENCE, attaching)
                .await
                .map_err(failed("ledger-db"))?
                .map_err(failed("ledger-db"))
        })?;
        self.ledger = Some((runtime, participant));
        Ok(())
    }

    /// Stops the service of the first database, whatever it is doing.
    pub fn stop_orders(&mut self) {
        if let Some((runtime, participant)) = self.orders.take() {
            runtime.shutdown_background();
            // Its task is gone: nothing is sent by dropping it, but its connections end.
            drop(participant);
        }
    }

    /// Stops that of the second one.
    pub fn stop_ledger(&mut self) {
        if let Some((runtime, participant)) = self.ledger.take() {
            runtime.shutdown_background();
            drop(participant);
        }
    }

    /// Begins a transaction that changes a row in each database, and has its commit asked for in the background.
    ///
    /// # Errors
    /// If it does not come so far.
    pub fn commit_in_the_background(&self, timeout: Duration) -> Result<Gtrid> {
        let tx = self.change_both(timeout)?;
        Ok(self.commit(tx))
    }

    /// The same, and the first database hangs before it is asked to prepare, until it is thawed.
    ///
    /// # Errors
    /// If it does not come so far.
    pub fn commit_while_orders_hangs(&self, timeout: Duration) -> Result<Gtrid> {
        let tx = self.change_both(timeout)?;
        self.servers.postgres.freeze()?;
        Ok(self.commit(tx))
    }

    /// The same in the second database alone.
    ///
    /// # Errors
    /// If it does not come so far.
    pub fn commit_in_ledger_alone(&self, timeout: Duration) -> Result<Gtrid> {
        let (_, ledger) = self.participants()?;
        self.runtime.block_on(async {
            let tx = self.begin(timeout).await?;
            change_ledger(ledger, &tx).await?;
            Ok(self.commit(tx))
        })
    }

    fn commit(&self, tx: Transaction) -> Gtrid {
        let gtrid = tx.gtrid();
        // What it is told is looked up by whoever looks.
        self.runtime.spawn(async move { drop(tx.commit().await) });
        gtrid
    }

    async fn begin(&self, timeout: Duration) -> Result<Transaction> {
        let client = Client::connect(self.coordinator.url()).await.map_err(failed("the client"))?;
        client.begin("transfer").timeout(timeout).start().await.map_err(failed("begin"))
    }

    fn change_both(&self, timeout: Duration) -> Result<Transaction> {
        let (orders, ledger) = self.participants()?;
        self.runtime.block_on(async {
            let tx = self.begin(timeout).await?;
            change_orders(orders, &tx).await?;
            change_ledger(ledger, &tx).await?;
            Ok(tx)
        })
    }

    /// Has a transaction commit whose first service goes away between its vote and the decision: that stays undelivered there.
    ///
    /// # Errors
    /// If it does not come so far.
    pub fn commit_without_orders(&mut self) -> Result<Gtrid> {
        self.hold_the_log()?;
        let gtrid = self.commit_in_the_background(LONG)?;
        self.wait_until_voted(gtrid)?;
        self.stop_orders();
        self.release_the_log()?;
        let undelivered = |shown: &serde_json::Value| shown["transaction"]["situation"] == "undelivered";
        self.until("the decision", &["tx", "show", &gtrid.to_string(), "--offline"], undelivered)?;
        Ok(gtrid)
    }

    /// Begins one that changes a row in the first database, and leaves it open.
    ///
    /// # Errors
    /// If it does not come so far.
    pub fn leave_open(&self, timeout: Duration) -> Result<Gtrid> {
        let (orders, _) = self.participants()?;
        self.runtime.block_on(async {
            let tx = self.begin(timeout).await?;
            let gtrid = tx.gtrid();
            change_orders(orders, &tx).await?;
            // Dropping it would roll it back: its application hangs.
            std::mem::forget(tx);
            Ok(gtrid)
        })
    }

    fn participants(&self) -> Result<(&Participant<Postgres>, &Participant<MySql>)> {
        let orders = self.orders.as_ref().map(|(_, participant)| participant);
        let ledger = self.ledger.as_ref().map(|(_, participant)| participant);
        orders.zip(ledger).ok_or_else(|| Failed::new("both participants have to be attached"))
    }

    /// Waits until every branch has voted, with the log held up.
    ///
    /// # Errors
    /// If that takes too long.
    pub fn wait_until_voted(&self, gtrid: Gtrid) -> Result<()> {
        let voted = |shown: &serde_json::Value| shown["transaction"]["state"] == "deciding";
        self.until("all votes", &["tx", "show", &gtrid.to_string(), "--offline"], voted).map(drop)
    }

    /// Runs `lockstep` with these arguments against the coordinator.
    ///
    /// # Errors
    /// If it does not end.
    pub fn lockstep(&self, arguments: &[&str]) -> Result<Ran> {
        self.coordinator.run(arguments)
    }

    /// What the coordinator's metrics say of this series, as text.
    ///
    /// # Errors
    /// If they can't be had, or do not have it.
    pub fn metric(&self, series: &str) -> Result<String> {
        let url = format!("{}/metrics", self.coordinator.url());
        let page = self.runtime.block_on(async { reqwest::get(url).await?.text().await });
        let page = page.map_err(failed("the metrics"))?;
        let found = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        found.map(str::to_owned).ok_or_else(|| Failed::new(format!("the metrics have no {series}")))
    }

    /// Asks until what is answered is so.
    ///
    /// # Errors
    /// If it never is.
    pub fn until(
        &self,
        what: &str,
        arguments: &[&str],
        so: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<serde_json::Value> {
        let asked = [arguments, &["--json"]].concat();
        let mut last = None;
        let answered = wait_for(what, PATIENCE, || {
            let ran = self.lockstep(&asked)?;
            let json = serde_json::from_str::<serde_json::Value>(&ran.stdout).ok();
            last = Some(ran);
            Ok(json.filter(|json| so(json)))
        });
        answered
            .map(|(json, _)| json)
            .map_err(|error| Failed::new(format!("{error}; the last answer to {arguments:?}: {last:?}")))
    }

    /// Copies the decision log as it is on disk, as a backup does.
    ///
    /// # Errors
    /// If it can't be copied.
    pub fn back_up(&self) -> Result<()> {
        copy(&self.coordinator.data_directory(), &self.directory.path().join("backup"))
    }

    /// Kills the coordinator, and starts it again with the copy in place of its log.
    ///
    /// # Errors
    /// If it does not start.
    pub fn restore(&mut self) -> Result<()> {
        // It may have died of its fuse already.
        let _died = self.coordinator.process().kill();
        let data = self.coordinator.data_directory();
        fs::remove_dir_all(&data).map_err(failed("the log"))?;
        copy(&self.directory.path().join("backup"), &data)?;
        self.coordinator.start_again(None)?;
        self.coordinator.expect_it_serves()
    }

    /// Starts the coordinator again with a fuse.
    ///
    /// # Errors
    /// If it does not start.
    pub fn restart(&mut self, point: Option<&str>) -> Result<()> {
        let _died = self.coordinator.process().kill();
        let marker = self.directory.path().join("crash");
        let fuse = point.map(|point| Fuse { point: point.to_owned(), nth: 1, marker });
        self.coordinator.start_again(fuse.as_ref())?;
        self.coordinator.expect_it_serves()
    }

    /// Waits until the coordinator has died.
    ///
    /// # Errors
    /// If it lives on.
    pub fn wait_until_it_died(&mut self) -> Result<()> {
        self.coordinator.process().wait(PATIENCE).map(|_how| ())
    }

    /// Waits until both participants are attached to it again.
    ///
    /// # Errors
    /// If they are not.
    pub fn wait_until_attached(&self) -> Result<()> {
        let attached = |list: &serde_json::Value| {
            let all = list["participants"].as_array();
            all.is_some_and(|all| all.len() == 2 && all.iter().all(|one| one["down_since"].is_null()))
        };
        self.until("both participants to attach", &["participants", "ls"], attached).map(|_list| ())
    }

    /// Waits until no instance of this resource manager is attached.
    ///
    /// # Errors
    /// If one stays.
    pub fn wait_until_down(&self, name: &str) -> Result<()> {
        let down = |list: &serde_json::Value| !list["participants"][0]["down_since"].is_null();
        self.until("it to be gone", &["participants", "show", name], down).map(|_list| ())
    }
}

async fn change_orders(orders: &Participant<Postgres>, tx: &Transaction) -> Result<()> {
    let mut branch = orders.join(&tx.context()).await.map_err(failed("join"))?;
    sqlx::raw_sql(CHANGE).execute(&mut *branch).await.map_err(failed("orders-db"))?;
    branch.finish().await.map_err(failed("finish"))
}

async fn change_ledger(ledger: &Participant<MySql>, tx: &Transaction) -> Result<()> {
    let mut branch = ledger.join(&tx.context()).await.map_err(failed("join"))?;
    sqlx::raw_sql(CHANGE).execute(&mut *branch).await.map_err(failed("ledger-db"))?;
    branch.finish().await.map_err(failed("finish"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(failed("the backup"))?;
    for entry in fs::read_dir(from).map_err(failed("the backup"))? {
        let entry = entry.map_err(failed("the backup"))?;
        fs::copy(entry.path(), to.join(entry.file_name())).map_err(failed("the backup"))?;
    }
    Ok(())
}
