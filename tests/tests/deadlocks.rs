//! Two transactions that wait for each other across two databases. Neither database can see that, nor the coordinator: the deadlines
//! end it, and whoever waited is told for which lock and until when.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::net::TcpStream;
use std::time::{Duration, Instant};

use lockstep::{CONTEXT_HEADER, Client, Context, Outcome, Transaction};
use lockstep_tests::harness::bank::{APPLY, Apply};
use lockstep_tests::harness::books::{Books, Database, OPENING_BALANCE};
use lockstep_tests::harness::clock::{now, wait_for};
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::resources::stage::{Server, Stage};
use lockstep_tests::trial::world::{BANKS, World};

/// Of both transactions.
const TIMEOUT: Duration = Duration::from_secs(3);
/// What a loaded machine may add to it.
const SLACK: Duration = Duration::from_secs(5);
const ACCOUNT: i64 = 1;

/// Changes the same account for everyone.
async fn change(bank: &str, context: Context, amount: i64) -> Result<(), String> {
    let apply = Apply { account: ACCOUNT, amount, refuse: false, only_read: false };
    let request = reqwest::Client::new()
        .post(format!("http://{bank}{APPLY}"))
        .header(CONTEXT_HEADER, context.to_string())
        .json(&apply);
    let response = request.send().await.unwrap();
    if response.status().is_success() { Ok(()) } else { Err(response.text().await.unwrap()) }
}

/// How a transaction ends whose last call came back so, and when.
async fn end(transaction: Transaction, last: Result<(), String>) -> (bool, Instant) {
    let commits = match last {
        Ok(()) => transaction.commit().await.is_ok(),
        Err(_) => transaction.rollback("it had to wait for too long").await.is_err(),
    };
    (commits, now())
}

fn deadlock(kinds: [Database; 2]) -> Vec<String> {
    let stage = Stage::set(&Roles::played_by(env!("CARGO_BIN_EXE_prove")));
    let servers: Vec<Server> = kinds.map(|kind| stage.server(kind).unwrap().unwrap()).into();
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::start(&stage.roles, &directory.path().join("cell"), &[], None, None).unwrap();
    for (bank, server) in BANKS.into_iter().zip(&servers) {
        let books: Books = world.block_on(server.books(bank, &stage.fresh_name())).unwrap();
        world.block_on(books.plant_foreign()).unwrap();
        world.start_bank(books, None).unwrap();
    }
    let [a, b] = [world.banks[0].address(), world.banks[1].address()];
    for bank in [&a, &b] {
        wait_for("the bank to listen", SLACK * 4, || Ok(TcpStream::connect(bank).ok())).unwrap();
    }
    let url = world.coordinator.url();
    let errors = world.block_on(async {
        let client = Client::connect(url).await.unwrap();
        let begun = now();
        let first = client.begin("first").timeout(TIMEOUT).start().await.unwrap();
        let second = client.begin("second").timeout(TIMEOUT).start().await.unwrap();
        let gtrids = [first.gtrid(), second.gtrid()];
        // Each has a lock that the other one wants next.
        change(&a, first.context(), -1).await.unwrap();
        change(&b, second.context(), -1).await.unwrap();
        let (to_b, to_a) = tokio::join!(
            async {
                let last = change(&b, first.context(), 1).await;
                (last.clone(), end(first, last).await)
            },
            async {
                let last = change(&a, second.context(), 1).await;
                (last.clone(), end(second, last).await)
            }
        );
        for (gtrid, (_, (committed, ended))) in gtrids.into_iter().zip([&to_b, &to_a]) {
            assert!(ended.duration_since(begun) < TIMEOUT + SLACK, "it ends with its deadline");
            let outcome = client.inquire(gtrid).await.unwrap();
            let is_as_told = matches!(
                (&outcome, committed),
                (Outcome::Committed, true) | (Outcome::RolledBack { .. }, false)
            );
            assert!(is_as_told, "{gtrid}: committed {committed}, {outcome:?}");
        }
        [to_b.0, to_a.0].into_iter().filter_map(Result::err).collect::<Vec<String>>()
    });
    for bank in &world.banks {
        let page = world.block_on(bank.books.read()).unwrap();
        assert_eq!(page.wrong_accounts, Vec::<i64>::new());
        assert!(page.total >= 4 * OPENING_BALANCE - 1);
    }
    world.remove().unwrap();
    println!("{errors:#?}");
    assert!(!errors.is_empty(), "both cannot have got what the other one had");
    errors
}

/// Says of each wait in which bank it was, for which lock, and until when.
fn assert_explained(errors: &[String], locks: [&str; 2]) {
    for error in errors {
        let mut banks = BANKS.into_iter().zip(locks);
        let lock = banks.find(|(bank, _)| error.contains(&format!("waited in {bank} for ")));
        let (_, lock) = lock.unwrap_or_else(|| panic!("it does not say where: {error}"));
        assert!(error.contains(lock), "it does not say for what: {error}");
        assert!(error.contains("before its deadline"), "it does not say until when: {error}");
    }
}

const NAMED_BY_POSTGRESQL: &str = "a lock (while updating tuple (0,2) in relation \"accounts\")";
/// And by whom it is held, which its own error does not say.
const FOUND_IN_MARIADB: &str = "`.`accounts` (index PRIMARY, page ";

#[test]
fn a_deadlock_over_two_postgresql_servers_ends_with_the_deadlines_and_is_explained() {
    let errors = deadlock([Database::Postgres, Database::Postgres]);
    assert_explained(&errors, [NAMED_BY_POSTGRESQL; 2]);
}

#[test]
fn a_deadlock_over_postgresql_and_mariadb_ends_with_the_deadlines_and_is_explained() {
    let errors = deadlock([Database::Postgres, Database::MariaDb]);
    assert_explained(&errors, [NAMED_BY_POSTGRESQL, FOUND_IN_MARIADB]);
}

#[test]
fn a_deadlock_over_two_mariadb_servers_ends_with_the_deadlines_and_is_explained() {
    let errors = deadlock([Database::MariaDb, Database::MariaDb]);
    assert_explained(&errors, [FOUND_IN_MARIADB; 2]);
    assert!(errors.iter().all(|error| error.contains("held by session ")), "{errors:?}");
}
