//! The contract kit: tries whether a store keeps every rule of [`Resource`], and says in words which one it breaks.
//!
//! It needs no coordinator. It plays the SDK's part itself: it begins, prepares, decides, asks again, asks from two tasks at once, goes away
//! in the middle, and lets processes be killed at each step. A store passes if nothing that it has answered turns out untrue.
//!
//! ```no_run
//! # #[cfg(feature = "sqlite")] mod example {
//! use std::sync::atomic::{AtomicUsize, Ordering};
//!
//! use lockstep::Sqlite;
//! use lockstep::testing::{Subject, contract};
//! use sqlx::{SqliteConnection, SqlitePool};
//!
//! /// SQLite files in a directory.
//! struct Files { directory: std::path::PathBuf, made: AtomicUsize }
//!
//! impl Subject for Files {
//!     type Resource = Sqlite;
//!
//!     // A new store for each rule: its address is all that a child process gets.
//!     async fn create(&self) -> String {
//!         let number = self.made.fetch_add(1, Ordering::Relaxed);
//!         let url = format!("sqlite://{}/{number}.db?mode=rwc", self.directory.display());
//!         let pool = SqlitePool::connect(&url).await.expect("it opens");
//!         let sql = sqlx::query("CREATE TABLE work (key TEXT PRIMARY KEY)");
//!         sql.execute(&pool).await.expect("a new file takes a table");
//!         url
//!     }
//!     async fn open(&self, address: &str) -> Sqlite {
//!         Sqlite::new(SqlitePool::connect(address).await.expect("it opens"))
//!     }
//!     async fn write(&self, connection: &mut SqliteConnection, key: &str) -> Result<(), String> {
//!         let sql = sqlx::query("INSERT INTO work (key) VALUES (?1)").bind(key);
//!         sql.execute(connection).await.map(drop).map_err(|error| error.to_string())
//!     }
//!     async fn read(&self, connection: &mut SqliteConnection) -> Result<(), String> {
//!         let sql = sqlx::query("SELECT * FROM work");
//!         sql.fetch_all(connection).await.map(drop).map_err(|error| error.to_string())
//!     }
//!     async fn is_there(&self, _: &Sqlite, address: &str, key: &str) -> bool {
//!         let pool = SqlitePool::connect(address).await.expect("it opens");
//!         let sql = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM work WHERE key = ?1)");
//!         sql.bind(key).fetch_one(&pool).await.expect("it reads")
//!     }
//!     // A file has one writer.
//!     fn branches_at_a_time(&self) -> usize { 1 }
//! }
//!
//! #[tokio::test]
//! async fn keeps_the_contract() {
//!     let files = Files { directory: std::env::temp_dir(), made: AtomicUsize::new(0) };
//!     contract(files).await.assert_kept();
//! }
//! # }
//! ```
//!
//! # Processes that are killed
//!
//! To be killed, the kit starts the program that it is in again, so that it comes to the same call: in such a child [`contract`] plays
//! what it was told to and never returns. What follows:
//!
//! - In a test, call it from the test's own body, not from a task that the body spawns: the test is found by its thread's name.
//!   In a program with a `main` of its own, call it from `main`; it is started with the same arguments.
//! - Come to the call without doing anything that costs or changes much: databases are made in [`Subject::create`], which is not called in
//!   a child.
//!
//! # Reading order
//!
//! `rules` (what is tried, as a list), `site` (what a rule is tried with), `attaching`, `branches`, `interference`, `evidence`,
//! `crashes` (how), `child` (processes that die), `report`.

mod attaching;
mod branches;
mod child;
mod crashes;
mod evidence;
mod interference;
mod report;
mod rules;
mod site;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};

use crate::resource::{BranchId, Resource};
pub use report::{Broken, Finding, Report};
pub use rules::Rule;
use site::Site;

/// A rule that takes longer hangs. The longest takes as long as some hundred processes need to start.
const RULE_TIMEOUT: Duration = Duration::from_secs(300);
/// Rules that are tried at a time: some of them mostly wait. Each has a store of its own.
const RULES_AT_A_TIME: usize = 4;

/// A kind of store, and how to work with it: what the kit cannot know by itself.
pub trait Subject: Send + Sync + 'static {
    /// The implementation that is tried.
    type Resource: Resource;

    /// Makes a new store with nothing in it, which lives as long as the subject does, and returns its address: a path, a URL.
    /// Panics if it can't.
    fn create(&self) -> impl Future<Output = String> + Send;

    /// Opens the store at an address, as a process does at its start; does not attach it. Panics if it can't.
    fn open(&self, address: &str) -> impl Future<Output = Self::Resource> + Send;

    /// Does a bit of work in an open branch: when that is committed, `key` (a few lower-case letters and digits, used once) is
    /// there.
    ///
    /// # Errors
    /// What the store said.
    fn write(
        &self,
        connection: &mut <Self::Resource as Resource>::Connection,
        key: &str,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Reads anything in an open branch, and changes nothing.
    ///
    /// # Errors
    /// What the store said.
    fn read(
        &self,
        connection: &mut <Self::Resource as Resource>::Connection,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Whether `key` is there, as others see it: outside of all branches, and while some are prepared. Panics if it can't tell.
    fn is_there(
        &self,
        resource: &Self::Resource,
        address: &str,
        key: &str,
    ) -> impl Future<Output = bool> + Send;

    /// Commits what an open branch has written so far, past the SDK, as a service may that sends a COMMIT of its own on the branch's
    /// connection. Whether there is a way to do that, which there is not unless this is implemented. Panics if it fails.
    fn commit_by_itself(
        &self,
        connection: &mut <Self::Resource as Resource>::Connection,
        branch: &BranchId,
    ) -> impl Future<Output = bool> + Send {
        let _no_way = (connection, branch);
        async { false }
    }

    /// Does something in an open branch that has written `key`, such as writing it once more, at which the store undoes a part of
    /// the branch, and keeps the error to itself. Whether the store has such errors, which it has not unless this is implemented.
    fn fail_silently(
        &self,
        connection: &mut <Self::Resource as Resource>::Connection,
        key: &str,
    ) -> impl Future<Output = bool> + Send {
        let _no_such_error = (connection, key);
        async { false }
    }

    /// How many branches a store can have open or prepared at a time, at least 1.
    fn branches_at_a_time(&self) -> usize {
        3
    }
}

/// Tries all rules, each on a new store.
pub async fn contract<S: Subject>(subject: S) -> Report {
    Box::pin(contract_of(subject, &Rule::ALL)).await
}

/// Tries these rules, each on a new store: to repeat one that was broken.
pub async fn contract_of<S: Subject>(subject: S, rules: &[Rule]) -> Report {
    if let Some(orders) = child::Orders::from_environment() {
        child::play(&subject, orders).await;
    }
    let launcher = child::Launcher::of_this_program();
    let tried = futures::stream::iter(rules.iter().map(|rule| attempt(&subject, &launcher, *rule)));
    Report::new(tried.buffered(RULES_AT_A_TIME).collect().await)
}

async fn attempt<S: Subject>(subject: &S, launcher: &child::Launcher, rule: Rule) -> Finding {
    let trial = async {
        let site = Site::new(subject, launcher).await;
        rule.attempt(&site).await
    };
    let trial = AssertUnwindSafe(tokio::time::timeout(RULE_TIMEOUT, trial)).catch_unwind();
    let broken = match Box::pin(trial).await {
        Ok(Ok(result)) => result.err(),
        Ok(Err(_elapsed)) => Some(Broken::new("an answer", format!("none in {} s", RULE_TIMEOUT.as_secs()))),
        Err(panic) => Some(Broken::new("no panic", report::words_of(&*panic))),
    };
    Finding { rule, broken }
}
