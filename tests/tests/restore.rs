//! A decision log that was put back to an older backup, end to end (P8): it is noticed, nothing is presumed, `lockstep restore` deals with it, and
//! the branch that was in doubt is resolved by what the other database did.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_tests::cluster::world::{Setup, World as Cluster};
use lockstep_tests::harness::books::{Books, Database};
use lockstep_tests::harness::client::{Plan, Told};
use lockstep_tests::harness::clock::{now, wait_for};
use lockstep_tests::harness::crash_points::Fuse;
use lockstep_tests::harness::postgres::PostgresServer;
use lockstep_tests::harness::process::Reaped;
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::trial::world::{BANKS, LogPlace, Who, World};

const PATIENCE: Duration = Duration::from_secs(60);
/// Exit code 4.
const REFUSED: Reaped = Reaped::Exit(4);
/// A participant lists what it has prepared every second: so long, nothing happens to it.
const SOME_LISTINGS: Duration = Duration::from_secs(4);

/// Puts a log aside, and back.
struct Backup<'a> {
    place: LogPlace,
    /// By `lockstep backup`, while everything runs; else with the coordinator stopped.
    online: bool,
    data: PathBuf,
    aside: PathBuf,
    server: &'a PostgresServer,
}

impl Backup<'_> {
    /// The backup is of a log that was used; then comes what it lacks.
    fn take(&self, world: &mut World) {
        if self.online {
            world.start_client(&[Plan::Commit], false, None).unwrap();
            let work = || Ok((world.told()?.len() > 20).then_some(()));
            wait_for("some transactions", PATIENCE, work).unwrap();
            let aside = self.aside.to_str().unwrap();
            let (how, told) = world.coordinator.run_offline(&["backup", aside, "--json"]).unwrap();
            assert_eq!(how, Reaped::Exit(0), "{told}");
            let told: serde_json::Value = serde_json::from_str(&told).unwrap();
            assert_eq!(told["online"], true, "{told}");
            return;
        }
        world.stop_the_coordinator().unwrap();
        self.copy();
        world.restart(Who::Coordinator, None).unwrap();
        world.start_client(&[Plan::Commit], false, None).unwrap();
    }

    fn copy(&self) {
        match self.place {
            LogPlace::Embedded => copy(&self.data, &self.aside),
            LogPlace::Shared(_) => {
                self.server.psql("postgres", "CREATE DATABASE aside TEMPLATE log").map(drop).unwrap();
            }
        }
    }

    fn put_back(&self) {
        match self.place {
            LogPlace::Embedded => {
                fs::remove_dir_all(&self.data).unwrap();
                copy(&self.aside, &self.data);
            }
            LogPlace::Shared(_) => {
                self.server.psql("postgres", "DROP DATABASE log WITH (FORCE)").unwrap();
                self.server.psql("postgres", "CREATE DATABASE log TEMPLATE aside").unwrap();
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn an_embedded_log_is_restored() {
    restored(|_server| LogPlace::Embedded, false);
}

#[test]
fn a_backup_that_was_taken_under_load_is_restored() {
    restored(|_server| LogPlace::Embedded, true);
}

#[test]
fn a_log_in_postgres_is_restored() {
    restored(
        |server| {
            server.create_database("log").unwrap();
            LogPlace::Shared(server.url("log"))
        },
        false,
    );
}

fn restored(place: impl FnOnce(&PostgresServer) -> LogPlace, online: bool) {
    let directory = tempfile::tempdir().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let server = PostgresServer::start().unwrap();
    let place = place(&server);
    let fuse = Fuse {
        point: "sdk-decision-received".into(),
        nth: if online { 300 } else { 30 },
        marker: directory.path().join("fuse"),
    };
    let doomed = Some((Who::Bank(1), &fuse));
    let flags = ["--lease=2s"];
    let mut world = World::start_on(&roles, directory.path(), place.clone(), &flags, None, doomed).unwrap();
    for (index, bank) in BANKS.iter().enumerate() {
        let books = world.block_on(Books::in_postgres(bank, &server, &format!("books_{index}"))).unwrap();
        world.start_bank(books, doomed).unwrap();
    }
    world.coordinator.expect_it_serves().unwrap();
    let backup = Backup {
        place,
        online,
        data: world.coordinator.data_directory(),
        aside: directory.path().join("aside"),
        server: &server,
    };
    backup.take(&mut world);
    let died = world.wait_for_death(Who::Bank(1), &fuse.point, PATIENCE).unwrap();
    assert_eq!(died, Reaped::KILLED);
    // The first bank has committed, by its own evidence; the second one is prepared and down.
    let half = half_done(&world);
    world.process(Who::Coordinator).unwrap().kill().unwrap();
    world.process(Who::Client).unwrap().kill().unwrap();
    backup.put_back();

    is_noticed(&mut world, &half);
    let (how, looked) = world.coordinator.run_offline(&["restore", "--dry-run", "--json"]).unwrap();
    assert_eq!(how, Reaped::Exit(0));
    let looked: serde_json::Value = serde_json::from_str(&looked).unwrap();
    assert_eq!((&looked["was_behind"], &looked["dry_run"]), (&true.into(), &true.into()));
    let cluster = looked["cluster"].as_str().unwrap();
    let (how, _) = world
        .coordinator
        .run_offline(&["restore", "--confirm", "zzzzzzzz", "--reason", "disk lost"])
        .unwrap();
    assert_eq!(how, REFUSED);
    let (how, _) =
        world.coordinator.run_offline(&["restore", "--confirm", cluster, "--reason", "disk lost"]).unwrap();
    assert_eq!(how, Reaped::Exit(0));

    // New transactions begin; of the old one nothing is presumed.
    world.restart(Who::Coordinator, None).unwrap();
    world.coordinator.expect_it_serves().unwrap();
    commits_again(&world);
    let audit = world.coordinator.ask(&["audit", "ls"]).unwrap();
    let newest = &audit["entries"][0];
    assert_eq!((&newest["action"], &newest["reason"]), (&"restore".into(), &"disk lost".into()), "{audit}");
    stays_prepared(&world, &half);
    assert_eq!(told(&world, &half), Told::Unknown);
    // An operator compares, and finds the other database's evidence.
    let resolve = ["orphans", "resolve", &half, "--commit", "--reason", "its evidence", "--confirm", &half];
    // Refused until both participants are attached.
    let resolved = wait_for("the orphan's commit", PATIENCE, || {
        let ran = world.coordinator.run(&resolve)?;
        Ok((ran.code == 0).then_some(()))
    });
    resolved.unwrap();
    world.stop_the_coordinator().unwrap();
    let settled = ["restore", "--settled", "--confirm", cluster, "--reason", "all resolved"];
    assert_eq!(world.coordinator.run_offline(&settled).unwrap().0, Reaped::Exit(0));
    world.restart(Who::Coordinator, None).unwrap();
    world.coordinator.expect_it_serves().unwrap();
    commits_again(&world);
    let mut seen = world.look(&mut Vec::new()).unwrap();
    // What was committed after the backup is unknown for ever; it must not be anything else.
    seen.forgets = true;
    assert_eq!(seen.contradictions(), Vec::<String>::new());
}

/// Two nodes on a log in PostgreSQL, the one with the lower epoch first, and two banks that have seen two commits of the other one.
fn two_nodes(roles: &Roles, directory: &Path) -> (Cluster, [usize; 2]) {
    let setup = Setup { nodes: 2, named: None, lease: Duration::from_secs(3), banks: Database::Postgres };
    let world = Cluster::start_idle(roles, directory, setup).unwrap();
    // Which was first is not said.
    let mut nodes = [0, 1];
    nodes.sort_by_key(|node| world.epoch_of(*node).unwrap());
    world.commit_at(nodes[1], 2, PATIENCE).unwrap();
    (world, nodes)
}

/// Has the second bank die of the next decision, and the first one carry it out. The transaction.
fn decide_by_half(world: &mut Cluster, fuse: &Fuse, begins_at: usize) -> String {
    world.bank(1).process().kill().unwrap();
    world.bank(1).start_again(Some(fuse)).unwrap();
    world.start_client_at(begins_at).unwrap();
    wait_for("the second bank to die", PATIENCE, || world.bank(1).process().try_reap()).unwrap();
    let gtrid_of = |name: &String| name.split(':').nth(2).unwrap_or_default().to_owned();
    let (half, _) = wait_for("a transaction that is done by half", PATIENCE, || {
        let first: Vec<String> = world.prepared_at(0)?.iter().map(gtrid_of).collect();
        Ok(world.prepared_at(1)?.iter().map(gtrid_of).find(|gtrid| !first.contains(gtrid)))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", world.logs()));
    world.kill_the_clients().unwrap();
    half
}

/// Starts this node on the log as it was: the first bank tells what it has seen, and what is prepared at the second one stays so.
fn is_noticed_by(world: &mut Cluster, node: usize, half: &str) {
    assert!(!world.is_behind().unwrap());
    world.coordinators[node].start_again(None).unwrap();
    world.coordinators[node].expect_it_serves().unwrap();
    let noticed = wait_for("the first bank to tell what it has seen", PATIENCE, || {
        Ok(world.is_behind()?.then_some(()))
    });
    noticed.unwrap_or_else(|error| panic!("{error}\n{}", world.logs()));
    world.bank(1).start_again(None).unwrap();
    let from = now();
    while from.elapsed() < SOME_LISTINGS {
        let there = world.prepared_at(1).unwrap();
        assert!(there.iter().any(|name| name.contains(half)), "{half} was ended: {there:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let told = world.block_on(async {
        let client = lockstep::Client::connect(world.coordinators[node].url()).await.unwrap();
        let refused = client.begin("try").start().await.map(drop).unwrap_err().to_string();
        assert!(refused.contains("lockstep restore"), "{refused}");
        Told::from(client.inquire(half.parse().unwrap()).await.unwrap())
    });
    assert_eq!(told, Told::Unknown);
}

fn fuse(point: &str, directory: &Path) -> Fuse {
    Fuse { point: point.into(), nth: 1, marker: directory.join(point) }
}

/// What is lost is the tail of the lower one's epoch. Both banks have seen the newest of the other one, of which nothing is lost.
#[test]
fn a_lost_tail_of_a_lower_epoch_is_noticed_while_a_newer_one_has_all_of_its() {
    let directory = tempfile::tempdir().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let (mut world, [lower, newer]) = two_nodes(&roles, directory.path());
    let dump = world.dump_the_log().unwrap();
    let dies = fuse("sdk-decision-received", directory.path());
    let half = decide_by_half(&mut world, &dies, lower);
    for node in [lower, newer] {
        world.coordinators[node].process().kill().unwrap();
    }
    world.put_the_log_back(&dump).unwrap();
    is_noticed_by(&mut world, lower, &half);
}

/// A node decides and dies before it has told anybody: the banks hear of it from the one that has adopted it, and have seen nothing else of it.
#[test]
fn a_lost_decision_that_only_an_adopter_has_told_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let roles = Roles::played_by(env!("CARGO_BIN_EXE_prove"));
    let (mut world, [decides, adopts]) = two_nodes(&roles, directory.path());
    let ends = fuse("log-before-answer", directory.path());
    world.coordinators[decides].process().kill().unwrap();
    world.coordinators[decides].start_again(Some(&ends)).unwrap();
    world.coordinators[decides].expect_it_serves().unwrap();
    let dump = world.dump_the_log().unwrap();
    // Not where it hears of it: from an adopter it may hear twice, as a decision and as an answer to its listing.
    let dies = fuse("postgres-before-commit-prepared", directory.path());
    let half = decide_by_half(&mut world, &dies, decides);
    assert!(ends.marker.exists(), "the node that has decided did not die there");
    world.coordinators[adopts].process().kill().unwrap();
    world.put_the_log_back(&dump).unwrap();
    is_noticed_by(&mut world, adopts, &half);
}

/// Nobody has said anything to the coordinator: a participant does, and nothing is presumed from then on. Leaves it stopped.
fn is_noticed(world: &mut World, half: &str) {
    world.restart(Who::Coordinator, None).unwrap();
    world.coordinator.expect_it_serves().unwrap();
    let refused = refused_begin(world);
    assert!(refused.contains("lockstep restore"), "{refused}");
    world.restart(Who::Bank(1), None).unwrap();
    stays_prepared(world, half);
    // Not while it runs.
    let (how, _) = world.coordinator.run_offline(&["restore", "--confirm", "x", "--reason", "y"]).unwrap();
    assert_ne!(how, Reaped::Exit(0));
    // It is still known after a restart, before any participant says it again.
    world.process(Who::Coordinator).unwrap().kill().unwrap();
    world.restart(Who::Coordinator, None).unwrap();
    world.coordinator.expect_it_serves().unwrap();
    let log = fs::read_to_string(world.coordinator.log()).unwrap();
    assert!(log.contains("the decision log lacks what participants, or a node, had seen"), "{log}");
    assert_eq!(told(world, half), Told::Unknown);
    world.stop_the_coordinator().unwrap();
}

fn prepared(world: &World) -> Vec<String> {
    world.block_on(world.banks[1].books.prepared()).unwrap()
}

/// The gtrid of the transaction that has committed at the first bank and is prepared at the second.
fn half_done(world: &World) -> String {
    let (gtrid, _) = wait_for("a transaction that is done by half", PATIENCE, || {
        let there: Vec<String> = world.block_on(world.banks[0].books.prepared())?;
        let of = |name: &String| name.split(':').nth(2).unwrap_or_default().to_owned();
        let gtrid = prepared(world).iter().map(of).next();
        Ok(gtrid.filter(|gtrid| !there.iter().any(|name| name.contains(gtrid))))
    })
    .unwrap();
    gtrid
}

fn stays_prepared(world: &World, gtrid: &str) {
    let from = now();
    while from.elapsed() < SOME_LISTINGS {
        assert!(prepared(world).iter().any(|name| name.contains(gtrid)), "{gtrid} was ended");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn told(world: &World, gtrid: &str) -> Told {
    world.block_on(async {
        let client = lockstep::Client::connect(world.coordinator.url()).await.unwrap();
        client.inquire(gtrid.parse().unwrap()).await.unwrap().into()
    })
}

/// What a client is told that begins while the log is behind.
fn refused_begin(world: &World) -> String {
    let (refused, _) = wait_for("a participant to tell what it has seen", PATIENCE, || {
        Ok(world.block_on(async {
            let client = lockstep::Client::connect(world.coordinator.url()).await.unwrap();
            client.begin("try").start().await.err().map(|error| error.to_string())
        }))
    })
    .unwrap();
    refused
}

fn commits_again(world: &World) {
    world.prove_health(Plan::Commit, PATIENCE).unwrap();
}
