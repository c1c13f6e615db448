//! What a transaction costs, counted and not timed: forced writes, messages, statements. A change that makes one dearer is seen here, on
//! any machine, and has to say so.
//!
//! docs/performance.md has the table with the theory beside it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep::{Client, Participant, Postgres, Transaction};
use lockstep_tests::harness::clock::wait_for;
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::postgres::PostgresServer;
use lockstep_tests::harness::roles::Roles;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
/// Transactions of each kind, one after the other: what a server does for itself meanwhile does not pass for one of them.
const TRANSACTIONS: u64 = 40;
/// Forced writes of a server for itself while they run: its log's writer may wake.
const FOR_ITSELF: u64 = 4;

/// Next to nothing forces a server's log but commits and prepares, and every statement is in what it logs.
const SETTINGS: &[(&str, &str)] = &[
    ("log_statement", "all"),
    ("autovacuum", "off"),
    ("wal_writer_delay", "10s"),
    ("wal_writer_flush_after", "1GB"),
    ("checkpoint_timeout", "1h"),
];

/// Two servers: on one, the branches of a transaction would be forced together.
struct Stage {
    coordinator: Coordinator,
    client: Client,
    servers: [PostgresServer; 2],
    /// Forced writes of each server when everybody attaches and goes.
    attaching: [u64; 2],
    _directory: TempDir,
}

/// Both banks, attached.
type Banks = Vec<(Participant<Postgres>, PgPool)>;

/// What was counted for [`TRANSACTIONS`].
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counts {
    /// Forced batches of the decision log.
    forces: u64,
    /// Messages from participants, and to them.
    messages: (u64, u64),
    /// Forced writes of each server.
    forced: [u64; 2],
    /// What the first server was asked, in round trips, by how it begins.
    asked: BTreeMap<&'static str, u64>,
}

/// Everything that a branch may ask, by how the round trip begins.
const ROUND_TRIPS: &[&str] = &[
    "BEGIN READ WRITE NOT DEFERRABLE",
    "UPDATE accounts",
    "SELECT balance",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "SELECT lockstep.keep_position(",
    "COMMIT PREPARED",
    "ROLLBACK",
    "SELECT pg_current_xact_id_if_assigned()",
];

impl Stage {
    async fn set() -> Self {
        let directory = TempDir::new().unwrap();
        let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
        let mut coordinator =
            Coordinator::start(&roles, directory.path(), &["--report-interval=1h"], None).unwrap();
        let servers = [(); 2].map(|()| PostgresServer::start_with(SETTINGS).unwrap());
        let accounts =
            "CREATE TABLE accounts (number int PRIMARY KEY, balance int); INSERT INTO accounts VALUES (1, 0)";
        for server in &servers {
            server.create_database("bank").unwrap();
            server.psql("bank", accounts).unwrap();
        }
        coordinator.expect_it_serves().unwrap();
        let client = Client::connect(coordinator.url()).await.unwrap();
        let mut stage = Self { coordinator, client, servers, attaching: [0; 2], _directory: directory };
        // Tables, identities and plans are made once.
        let commit = async |banks: &Banks, tx: Transaction| {
            work(banks, &tx, WRITE, false).await;
            tx.commit().await.unwrap();
        };
        stage.count(3, commit).await;
        stage.attaching = stage.count(0, commit).await.forced;
        stage
    }

    async fn attach(&self) -> Banks {
        let mut banks = Vec::new();
        for (n, server) in self.servers.iter().enumerate() {
            let pool = PgPoolOptions::new().max_connections(4).test_before_acquire(false);
            let pool = pool.connect(&server.url("bank")).await.unwrap();
            let attaching = Participant::builder(format!("bank-{n}"), Postgres::new(pool.clone()));
            let attaching = attaching.coordinator(self.coordinator.url()).attach();
            banks.push((tokio::time::timeout(PATIENCE, attaching).await.unwrap().unwrap(), pool));
        }
        banks
    }

    /// Has everybody go: a server's backend says what it has done when it ends.
    async fn leave(&self, banks: Banks) {
        for (bank, pool) in banks {
            bank.detach(PATIENCE).await;
            drop(bank);
            pool.close().await;
        }
        for server in &self.servers {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
            let alone = || Ok((server.psql("postgres", sql)? == "1").then_some(()));
            wait_for("the backends to end", PATIENCE, alone).unwrap();
        }
    }

    /// Counts so many transactions of this kind, with all that attaching costs.
    async fn count(&self, transactions: u64, kind: impl AsyncFn(&Banks, Transaction)) -> Counts {
        let (forced, logged) = (self.forced(), self.servers[0].log().len());
        let banks = self.attach().await;
        let before = self.settled_counts().await;
        for _ in 0..transactions {
            kind(&banks, self.client.begin("counted").start().await.unwrap()).await;
        }
        let after = self.coordinator_counts().await;
        self.leave(banks).await;
        let now = self.forced();
        let log = self.servers[0].log();
        let asked = |begin: &&'static str| (*begin, asked(&log[logged..], begin));
        Counts {
            forces: after[0] - before[0],
            messages: (after[1] - before[1], after[2] - before[2]),
            forced: [now[0] - forced[0], now[1] - forced[1]],
            asked: ROUND_TRIPS.iter().map(asked).filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// Without what attaching costs.
    async fn cost(&self, kind: impl AsyncFn(&Banks, Transaction)) -> Counts {
        let counts = self.count(TRANSACTIONS, kind).await;
        Counts { forced: [0, 1].map(|n| counts.forced[n].saturating_sub(self.attaching[n])), ..counts }
    }

    fn forced(&self) -> [u64; 2] {
        self.servers.each_ref().map(|server| {
            let version: u32 = server.psql("postgres", "SHOW server_version_num").unwrap().parse().unwrap();
            let sql = if version >= 180_000 {
                "SELECT coalesce(sum(fsyncs), 0)::bigint FROM pg_stat_io WHERE object = 'wal'"
            } else {
                "SELECT wal_sync FROM pg_stat_wal"
            };
            server.psql("postgres", sql).unwrap().parse().unwrap()
        })
    }

    /// The same, when those who have attached have said what they hold, and were answered.
    async fn settled_counts(&self) -> [u64; 3] {
        let mut counts = self.coordinator_counts().await;
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = self.coordinator_counts().await;
            if std::mem::replace(&mut counts, now) == now {
                return now;
            }
        }
    }

    /// Forces, messages received, messages sent.
    async fn coordinator_counts(&self) -> [u64; 3] {
        let url = format!("{}/metrics", self.coordinator.url());
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        let series = [
            "lockstep_log_force_seconds_count ",
            "lockstep_stream_messages_total{direction=\"received\"} ",
            "lockstep_stream_messages_total{direction=\"sent\"} ",
        ];
        series.map(|series| {
            let value = text.lines().find_map(|line| line.strip_prefix(series));
            value.unwrap_or_else(|| panic!("no {series}in {text}")).parse().unwrap()
        })
    }
}

/// The statement in a line of a server's log, if it has one. What has parameters is logged under the name that the driver has given it.
fn text_of(line: &str) -> Option<&str> {
    if let Some((_, text)) = line.split_once("LOG:  statement: ") {
        return Some(text);
    }
    Some(line.split_once("LOG:  execute ")?.1.split_once(": ")?.1)
}

/// Round trips that begin so, in what a server has logged.
fn asked(log: &str, begin: &str) -> u64 {
    let is = |line: &&str| text_of(line).is_some_and(|text| text.starts_with(begin));
    log.lines().filter(is).count() as u64
}

async fn work(
    banks: &[(Participant<Postgres>, PgPool)],
    transaction: &Transaction,
    sql: &'static str,
    votes: bool,
) {
    let context = if votes { transaction.vote() } else { transaction.context() };
    for (bank, _) in banks {
        let mut branch = bank.join(&context).await.unwrap();
        sqlx::query(sql).execute(&mut *branch).await.unwrap();
        branch.finish().await.unwrap();
    }
}

const WRITE: &str = "UPDATE accounts SET balance = balance + 1 WHERE number = 1";
const READ: &str = "SELECT balance FROM accounts WHERE number = 1";

/// At most what a server forces for itself beyond this.
fn assert_forced(what: &str, counts: &Counts, each: [u64; 2]) {
    for (forced, each) in counts.forced.iter().zip(each) {
        let least = TRANSACTIONS * each;
        let allowed = least.saturating_sub(FOR_ITSELF)..=least + FOR_ITSELF;
        assert!(allowed.contains(forced), "{what}: {forced} forced writes, and {least} are due: {counts:?}");
    }
}

fn each(asked: &[(&'static str, u64)]) -> BTreeMap<&'static str, u64> {
    asked.iter().map(|(begin, each)| (*begin, each * TRANSACTIONS)).collect()
}

/// A commit of n branches: one forced write of the coordinator and two of each database, three messages each way and branch, and six
/// round trips of a branch to its database, of which one is the service's own. An early vote saves the prepare's message, unless the
/// commit overtakes it, and asks once whether there is anything to prepare.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_transaction_costs_what_it_must() {
    let stage = Stage::set().await;
    let commit = stage
        .cost(async |banks: &Banks, tx: Transaction| {
            work(banks, &tx, WRITE, false).await;
            assert_eq!(tx.commit().await.unwrap().branches_pending, 0);
        })
        .await;
    assert_eq!(
        (commit.forces, commit.messages),
        (TRANSACTIONS, (6 * TRANSACTIONS, 6 * TRANSACTIONS)),
        "{commit:?}"
    );
    assert_forced("a commit", &commit, [2, 2]);
    assert_eq!(
        commit.asked,
        each(&[
            ("BEGIN READ WRITE NOT DEFERRABLE", 1),
            ("UPDATE accounts", 1),
            ("SET CONSTRAINTS ALL IMMEDIATE", 1),
            ("ROLLBACK", 1),
            ("SELECT lockstep.keep_position(", 1),
            ("COMMIT PREPARED", 1),
        ])
    );

    let early = stage
        .cost(async |banks: &Banks, tx: Transaction| {
            work(banks, &tx, WRITE, true).await;
            tx.commit().await.unwrap();
        })
        .await;
    assert_eq!(early.forces, TRANSACTIONS, "{early:?}");
    // A commit may overtake a vote that is on its way: then the branch is asked, and votes again.
    let (received, sent) = early.messages;
    assert!((4 * TRANSACTIONS..=6 * TRANSACTIONS).contains(&sent), "{early:?}");
    assert_eq!(received - 6 * TRANSACTIONS, sent - 4 * TRANSACTIONS, "{early:?}");
    assert_forced("an early vote", &early, [2, 2]);
    assert_eq!(early.asked.get("SELECT pg_current_xact_id_if_assigned()"), Some(&TRANSACTIONS));

    let one = stage
        .cost(async |banks: &Banks, tx: Transaction| {
            work(&banks[..1], &tx, WRITE, false).await;
            tx.commit().await.unwrap();
        })
        .await;
    assert_eq!((one.forces, one.messages), (TRANSACTIONS, (2 * TRANSACTIONS, 2 * TRANSACTIONS)), "{one:?}");
    assert_forced("one branch", &one, [1, 0]);

    let rollback = stage
        .cost(async |banks: &Banks, tx: Transaction| {
            work(banks, &tx, WRITE, false).await;
            tx.rollback("counted").await.unwrap();
        })
        .await;
    assert_eq!(rollback.forces, 0, "{rollback:?}");
    assert_forced("a rollback", &rollback, [0, 0]);

    let read = stage
        .cost(async |banks: &Banks, tx: Transaction| {
            work(banks, &tx, READ, false).await;
            assert!(tx.commit().await.unwrap().nothing_to_commit);
        })
        .await;
    assert_eq!((read.forces, read.messages), (0, (4 * TRANSACTIONS, 4 * TRANSACTIONS)), "{read:?}");
    assert_forced("only reading", &read, [0, 0]);
}
