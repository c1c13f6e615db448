//! A branch and its database alone: what PostgreSQL and the service's process spend on it, with Lockstep's resource and by hand, over the same
//! driver and the same kind of pool. No coordinator, no gRPC: what is left are statements and round trips.

use std::time::Duration;

use futures::StreamExt as _;
use lockstep::Postgres;
use lockstep::resource::{BranchId, Fate, LogPosition, Prepared, Resource};
use lockstep_proto::{Bqual, ClusterId, Epoch, Gtrid, Incarnation, ResourceManagerName, Xid};
use lockstep_tests::harness::postgres::PostgresServer;
use lockstep_tests::harness::{Failed, Result};
use serde::Serialize;
use sqlx::PgPool;

use crate::meter::{self, count, median};
use crate::stage::{DATABASE, OPENING_BALANCE, SETTINGS, schema};
use crate::teller::{change, end, pool};

/// How many branches are under way at the same time: one, and as many as a decision's batch may well commit together.
const AT_ONCE: [usize; 2] = [1, 8];
/// Accounts, and so branches that may be open.
const ACCOUNTS: usize = 1_000;
/// How long each branch may take.
const TIMEOUT: Duration = Duration::from_secs(60);
const NAME: &str = "branch";

/// What one branch cost, in microseconds of processor time.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cost {
    /// The server's.
    pub database: f64,
    /// This process's, which plays the service.
    pub service: f64,
}

/// Medians over the turns, for so many branches at a time.
#[derive(Debug, Clone, Serialize)]
pub struct Compared {
    /// How many branches were under way.
    pub at_once: usize,
    /// BEGIN, update, PREPARE TRANSACTION, COMMIT PREPARED.
    pub by_hand: Cost,
    /// The same with everything that makes it a branch.
    pub lockstep: Cost,
}

/// Who drives it.
#[derive(Clone, Copy)]
enum By {
    Hand,
    Lockstep,
}

/// A server, and a participant that is attached to it.
pub(crate) struct Bank {
    pub(crate) server: PostgresServer,
    pool: PgPool,
    pub(crate) resource: Postgres,
    cluster: ClusterId,
    pub(crate) name: ResourceManagerName,
}

/// Measures it: both in turn.
///
/// # Errors
/// If a branch did not commit.
pub fn run(quick: bool) -> Result<Vec<Compared>> {
    let (turns, branches) = if quick { (2, 200) } else { (9, 2_000) };
    let runtime = tokio::runtime::Runtime::new().map_err(Failed::because("no runtime"))?;
    runtime.block_on(async {
        let bank = Bank::open(&[]).await?;
        let mut compared = Vec::new();
        let mut number = 0;
        for at_once in AT_ONCE {
            let (mut by_hand, mut lockstep) = (Vec::new(), Vec::new());
            for _turn in 0..turns {
                for (by, costs) in [(By::Hand, &mut by_hand), (By::Lockstep, &mut lockstep)] {
                    costs.push(bank.measure(by, at_once, number..number + branches).await?);
                    number += branches;
                }
            }
            compared.push(Compared { at_once, by_hand: middle(&by_hand), lockstep: middle(&lockstep) });
        }
        bank.check(number).await?;
        Ok(compared)
    })
}

impl Bank {
    /// `settings`: beside those of every benchmark.
    pub(crate) async fn open(settings: &[(&str, &str)]) -> Result<Self> {
        let server = PostgresServer::start_with(&[SETTINGS, settings].concat())?;
        server.create_database(DATABASE)?;
        server.psql(DATABASE, &schema(ACCOUNTS))?;
        let most = u32::try_from(AT_ONCE[1]).unwrap_or(u32::MAX);
        let pool = pool(most).connect(&server.url(DATABASE)).await.map_err(Failed::because("no pool"))?;
        let resource = Postgres::new(pool.clone());
        let name: ResourceManagerName = NAME.parse().map_err(Failed::because("a name"))?;
        resource.attach(&name).await.map_err(Failed::because("not attached"))?;
        let cluster = ClusterId::from_random(7);
        resource.bind(cluster).await.map_err(Failed::because("not bound"))?;
        Ok(Self { server, pool, resource, cluster, name })
    }

    async fn measure(&self, by: By, at_once: usize, numbers: std::ops::Range<u64>) -> Result<Cost> {
        let used = |bank: &Self| -> Result<[Duration; 2]> {
            Ok([meter::processor_time_of_server(&bank.server)?, meter::own_processor_time()])
        };
        let before = used(self)?;
        let branches = count(numbers.end - numbers.start);
        let one = |number| self.one(by, number);
        let mut all = futures::stream::iter(numbers.map(one)).buffer_unordered(at_once);
        while let Some(done) = all.next().await {
            done?;
        }
        drop(all);
        let after = used(self)?;
        let each = |n: usize| (after[n] - before[n]).as_secs_f64() * 1e6 / branches;
        Ok(Cost { database: each(0), service: each(1) })
    }

    async fn one(&self, by: By, number: u64) -> Result<()> {
        match by {
            By::Hand => self.by_hand(number).await.map_err(Failed::because("by hand")),
            By::Lockstep => self.by_lockstep(number).await,
        }
    }

    async fn by_hand(&self, number: u64) -> sqlx::Result<()> {
        let name = format!("by-hand-{number}");
        let mut connection = self.pool.acquire().await?;
        sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
        change(&mut connection, account(number), 1).await?;
        end(&mut connection, "PREPARE TRANSACTION", &name).await?;
        drop(connection);
        let mut connection = self.pool.acquire().await?;
        end(&mut connection, "COMMIT PREPARED", &name).await
    }

    pub(crate) async fn by_lockstep(&self, number: u64) -> Result<()> {
        let epoch = Epoch::new(1).expect("not 0");
        // As real ones: the later, the greater, with a random part behind the time.
        let gtrid = Gtrid::new(epoch, 1_700_000_000_000 + number, rand::random());
        let branch = BranchId { cluster: self.cluster, xid: Xid { gtrid, bqual: Bqual::new(&self.name, 1) } };
        // Each is prepared at a place of its own, and decided at the next one: one at a time, every commit has to write it.
        let position =
            |sequence| LogPosition { epoch, incarnation: Incarnation::from_bytes([7; 16]), sequence };
        let mut open = self.resource.begin(&branch, TIMEOUT).await.map_err(Failed::because("not begun"))?;
        let connection = <Postgres as Resource>::connection(&mut open);
        change(connection, account(number), 1).await.map_err(Failed::because("not changed"))?;
        match self.resource.prepare(&branch, open, &position(2 * number)).await {
            Ok(Prepared::Yes) => {}
            not => return Err(Failed::new(format!("not prepared: {not:?}"))),
        }
        match self.resource.commit(&branch, &position(2 * number + 1)).await {
            Ok(Fate::Committed) => Ok(()),
            not => Err(Failed::new(format!("not committed: {not:?}"))),
        }
    }

    /// As much was added as there were branches.
    async fn check(&self, branches: u64) -> Result<()> {
        let sql = format!("SELECT sum(balance - {OPENING_BALANCE}) FROM accounts");
        let shown = self.server.psql(DATABASE, &sql)?;
        if shown == branches.to_string() {
            return Ok(());
        }
        Err(Failed::new(format!("the books show {shown} branches, and {branches} were committed")))
    }
}

fn account(number: u64) -> i64 {
    i64::try_from(number % ACCOUNTS as u64).unwrap_or(0)
}

fn middle(costs: &[Cost]) -> Cost {
    let of = |part: fn(&Cost) -> f64| median(&costs.iter().map(part).collect::<Vec<_>>());
    Cost { database: of(|cost| cost.database), service: of(|cost| cost.service) }
}
