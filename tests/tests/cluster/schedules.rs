//! Nodes as processes, and one thing that goes wrong: a node is stopped, or its log does not answer, in a certain way, at the worst moment.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lockstep::{Client, Outcome};
use lockstep_tests::cluster::run::LEASE;
use lockstep_tests::cluster::world::World;
use lockstep_tests::harness::clock::{now, wait_for};
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::postgres::PostgresServer;
use lockstep_tests::harness::process::{Reaped, end_of_log};
use lockstep_tests::harness::procfs;
use lockstep_tests::harness::roles::Roles;
use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything takes here on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn roles() -> Roles {
    Roles::played_by(env!("CARGO_BIN_EXE_prove"))
}

/// A log, and the directories of the nodes on it.
struct Bench {
    directory: tempfile::TempDir,
    server: PostgresServer,
}

impl Bench {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), server: PostgresServer::start().unwrap() }
    }

    fn place(&self, name: &str) -> std::path::PathBuf {
        let place = self.directory.path().join(name);
        fs::create_dir_all(&place).unwrap();
        place
    }

    fn flags(&self, name: &str, more: &[&str]) -> Vec<String> {
        let log = format!("--log={}", self.server.url("postgres"));
        let lease = format!("--lease={}ms", LEASE.as_millis());
        let usual = [log, format!("--node={name}"), lease, "--migrate-log".to_owned()];
        usual.into_iter().chain(more.iter().map(ToString::to_string)).collect()
    }

    /// A node that serves.
    fn node(&self, name: &str, more: &[&str]) -> Coordinator {
        let flags = self.flags(name, more);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let mut node = Coordinator::start(&roles(), &self.place(name), &flags, None).unwrap();
        node.expect_it_serves().unwrap();
        node
    }

    /// One that waits at a crash point as long as there is a file at `held`.
    fn held_node(&self, name: &str, point: &'static str, held: &Path) -> Coordinator {
        let flags = self.flags(name, &[]);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let held_at = (point, held.to_owned());
        let mut node = Coordinator::start_held(&roles(), &self.place(name), &flags, held_at).unwrap();
        node.expect_it_serves().unwrap();
        node
    }

    fn psql(&self, sql: &str) -> String {
        self.server.psql("postgres", sql).unwrap()
    }

    fn is_true(&self, sql: &str) -> bool {
        self.psql(sql) == "t"
    }

    /// Waits until this query says yes.
    fn until(&self, what: &str, sql: &str) {
        wait_for(what, PATIENCE, || Ok(self.is_true(sql).then_some(()))).unwrap();
    }
}

const IS_SEALED: &str = "SELECT sealed FROM lockstep_log.epochs WHERE number = 1";
const ALL_LEASES_LAST: &str = "SELECT bool_and(expires_at > clock_timestamp()) FROM lockstep_log.leases";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

/// It has nothing to wait for any more: what it waits for is the other node's.
#[test]
fn a_node_that_is_sealed_while_it_drains_ends() {
    let bench = Bench::new();
    let mut draining = bench.node("a", &["--drain-timeout=60s", "--advertise=none"]);
    let _peer = bench.node("b", &["--advertise=none"]);
    let runtime = runtime();
    let open = runtime.block_on(async {
        let client = Client::connect(draining.url()).await.unwrap();
        let mut open = Vec::new();
        // One after the other these end, and that is written, under an epoch that is over.
        for seconds in [8, 10, 12, 60] {
            open.push(client.begin("held").timeout(Duration::from_secs(seconds)).start().await.unwrap());
        }
        open
    });
    draining.process().signal(Signal::TERM).unwrap();
    let refused = || {
        let client = Client::builder(draining.url()).patience(Duration::ZERO);
        Ok(runtime.block_on(async { client.connect().unwrap().begin("late").start().await }).err())
    };
    wait_for("the drain", PATIENCE, refused).unwrap();
    draining.process().stop().unwrap();
    bench.until("the other one to take over", IS_SEALED);
    draining.process().signal(Signal::CONT).unwrap();
    let going_on = now();
    let ended = draining.process().wait(PATIENCE);
    assert_eq!(
        ended.unwrap_or_else(|error| panic!("{error}\n{}", end_of_log(&draining.log()))),
        Reaped::Exit(0)
    );
    assert!(going_on.elapsed() < Duration::from_secs(6), "{:?}", going_on.elapsed());
    let told = fs::read_to_string(draining.log()).unwrap();
    assert!(told.contains("was sealed by another node"), "{told}");
    drop(open);
}

/// The write is the log's matter: nobody hears of it here any more, and the next node looks for it.
#[test]
fn a_node_that_is_told_to_stop_while_a_write_is_unknown_ends() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::start(&roles(), directory.path(), super::setup(1, LEASE)).unwrap();
    wait_for("the first transfers", PATIENCE, || Ok((world.ledgers()?.len() > 20).then_some(()))).unwrap();
    world.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").unwrap();
    world.psql("SELECT pg_reload_conf()").unwrap();
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    wait_for("a write to wait", PATIENCE, || Ok((world.psql(waits)? == "t").then_some(()))).unwrap();
    let told = now();
    world.drain(0).unwrap_or_else(|error| panic!("{error}\n{}", world.logs()));
    eprintln!("it ended after {:?}", told.elapsed());
    let given_up = world.psql("SELECT expires_at = '-infinity' FROM lockstep_log.leases").unwrap();
    assert_eq!(given_up, "t", "the lease was not given up\n{}", world.logs());
}

/// Else nodes that are well seal each other as soon as something of the log is slow.
#[test]
fn a_lease_is_kept_while_reads_of_the_log_wait() {
    let bench = Bench::new();
    let nodes = [bench.node("a", &[]), bench.node("b", &[])];
    let reading = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    std::thread::scope(|scope| {
        let holder = scope
            .spawn(|| bench.psql("BEGIN; LOCK lockstep_log.resource_managers; SELECT pg_sleep(7); COMMIT"));
        bench.until("a look at the resource managers to wait", reading);
        while !holder.is_finished() {
            assert!(
                bench.is_true(ALL_LEASES_LAST),
                "{}",
                nodes.each_ref().map(|node| end_of_log(&node.log())).concat()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    assert_eq!(bench.psql("SELECT count(*), count(*) FILTER (WHERE sealed) FROM lockstep_log.epochs"), "2|0");
}

/// A connection on which nothing comes back any more, and another one would do.
#[test]
fn a_renewal_without_an_answer_is_tried_on_another_connection() {
    let bench = Bench::new();
    let node = bench.node("a", &[]);
    let renewing = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%renewed AS (%' AND state = 'idle' AND pid <> pg_backend_pid()";
    let (pid, _) = wait_for("a renewal", PATIENCE, || Ok(bench.psql(renewing).parse::<i32>().ok())).unwrap();
    let pid = Pid::from_raw(pid).unwrap();
    procfs::stop(pid).unwrap();
    let stopped = now();
    while stopped.elapsed() < 2 * LEASE {
        assert!(bench.is_true(ALL_LEASES_LAST), "{:?}\n{}", stopped.elapsed(), end_of_log(&node.log()));
        std::thread::sleep(Duration::from_millis(200));
    }
    kill_process(pid, Signal::CONT).unwrap();
}

/// The log is gone again as soon as it was opened anew: that is no reason to end.
#[test]
fn a_node_whose_log_breaks_off_as_it_begins_again_goes_on_trying() {
    let mut bench = Bench::new();
    let held = bench.directory.path().join("held");
    let mut node = bench.held_node("a", "log-shared-open-after-seal", &held);
    fs::write(&held, "").unwrap();
    bench.psql("UPDATE lockstep_log.epochs SET sealed = true, owner = 1 WHERE number = 1");
    let opened = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name LIKE 'lockstep epoch 2 % seal' \
         AND state = 'idle' AND query LIKE 'SELECT number FROM lockstep_log.epochs WHERE owner%'";
    bench.until("the log to be open again", opened);
    bench.server.kill().unwrap();
    fs::remove_file(&held).unwrap();
    // Longer than it tries to connect for one read.
    let ended = node.process().wait(Duration::from_secs(8));
    assert!(ended.is_err(), "{ended:?}\n{}", end_of_log(&node.log()));
    bench.server.restart().unwrap();
    let client = runtime();
    let begun = || {
        let builder = Client::builder(node.url()).patience(Duration::from_secs(1));
        Ok(client.block_on(async { builder.connect().unwrap().begin("again").start().await.ok().map(drop) }))
    };
    wait_for("it to serve again", PATIENCE, begun)
        .unwrap_or_else(|error| panic!("{error}\n{}", end_of_log(&node.log())));
}

/// Who has taken over says that it is rolled back, well before the client gives up.
#[test]
fn a_rollback_whose_node_is_stopped_is_answered_by_another() {
    let bench = Bench::new();
    let mut nodes = [bench.node("a", &[]), bench.node("b", &[])];
    let runtime = runtime();
    runtime.block_on(async {
        let client = Client::builder_of(nodes.each_ref().map(Coordinator::url)).connect().unwrap();
        let transaction = client.begin("stopped").start().await.unwrap();
        let gtrid = transaction.gtrid();
        let home = usize::try_from(gtrid.epoch().get()).unwrap() - 1;
        nodes[home].process().stop().unwrap();
        let answered = transaction.rollback("enough").await;
        answered.unwrap_or_else(|error| panic!("{error}\n{}", end_of_log(&nodes[1 - home].log())));
        let outcome = client.inquire(gtrid).await.unwrap();
        assert!(matches!(outcome, Outcome::RolledBack { .. }), "{outcome:?}");
        nodes[home].process().signal(Signal::CONT).unwrap();
    });
}
