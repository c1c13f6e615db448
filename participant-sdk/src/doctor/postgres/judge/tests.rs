//! Each judgement as a row: what was found, which check speaks of it, how bad it is, and a word of what it says or of what
//! mends it.

use super::super::snapshot::{Functions, Surroundings};
use super::*;
use crate::doctor::Disk;

const GTRID: &str = "12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f";
const OURS: &str = "lockstep:7c1f09ae:12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f:orders-db.0f1e2d3c4b5a6978";

/// Everything as it should be.
fn well() -> Snapshot {
    Snapshot {
        server: Server {
            version: 150_018,
            in_recovery: false,
            slots: 100,
            slots_taken: 0,
            fsync: "on".into(),
            full_page_writes: "on".into(),
            system: "7123456789".into(),
            database: 16_384,
            database_name: "bank".into(),
            role: "app".into(),
            wal_file: "000000010000000000000001".into(),
        },
        tables: Tables {
            state: TableState::Ready,
            missing: String::new(),
            unlogged: String::new(),
            filtered: String::new(),
        },
        functions: Functions::default(),
        surroundings: surroundings("app", "\"$user\", public"),
        identities: vec![identity("orders-db", 1, "7c1f09ae")],
        prepared: vec![],
        blocked: vec![],
        clock: (3, 1),
        disks: vec![Disk { directory: "/data".into(), free_bytes: 1 << 40 }],
    }
}

fn surroundings(role: &str, search_path: &str) -> Surroundings {
    Surroundings {
        role: role.into(),
        is_superuser: false,
        may_create: false,
        synchronous_commit: "on".into(),
        search_path: search_path.into(),
        strangers: String::new(),
        data_directory: "/data".into(),
        address: None,
        unix_ms: 0,
    }
}

fn identity(name: &str, format: i64, cluster: &str) -> Identity {
    let identity = "0f1e2d3c4b5a69780f1e2d3c4b5a6978".into();
    Identity { name: name.into(), format, identity, cluster: cluster.into() }
}

fn prepared(gid: &str, database: &str, owner: &str, seconds: u64) -> PreparedTransaction {
    let age = Duration::from_secs(seconds);
    PreparedTransaction { gid: gid.into(), database: database.into(), owner: owner.into(), age }
}

/// The one finding of `check`, after `change`.
fn finding(check: &str, change: impl FnOnce(&mut Snapshot)) -> Finding {
    let mut snapshot = well();
    change(&mut snapshot);
    let mut found = judge(&snapshot).into_iter().filter(|finding| finding.check == check);
    let one = found.next().unwrap_or_else(|| panic!("no finding of {check}"));
    assert!(found.next().is_none(), "several findings of {check}");
    one
}

#[test]
fn a_server_that_is_well_has_nothing_to_be_done() {
    for finding in judge(&well()) {
        assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
        assert!(finding.mend.is_empty(), "{finding:?}");
    }
}

type Change = fn(&mut Snapshot);

/// A check, what is changed for it, how bad it is then, and a word of what it says or of what mends it.
type Row = (&'static str, Change, Severity, &'static str);

fn hold(rows: &[Row]) {
    for (check, change, severity, words) in rows {
        let finding = finding(check, change);
        assert_eq!(finding.severity, *severity, "{finding:?}");
        let said = format!("{}\n{}", finding.what, finding.mend.join("\n"));
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
}

#[test]
fn settings_and_slots() {
    hold(&[
        ("version", |s| s.server.version = 139_999, Severity::Error, "13.9999 is too old"),
        ("version", |s| s.server.version = 140_000, Severity::Ok, "PostgreSQL 14.0"),
        ("standby", |s| s.server.in_recovery = true, Severity::Error, "primary"),
        (
            "slots",
            |s| s.server.slots = 0,
            Severity::Error,
            "ALTER SYSTEM SET max_prepared_transactions = 100;",
        ),
        ("slots", |s| s.server.slots = 0, Severity::Error, "pg_ctl restart -D '/data'"),
        ("slots", |s| s.server.slots_taken = 100, Severity::Error, "all 100 slots"),
        ("slots", |s| s.server.slots_taken = 81, Severity::Warning, "19 of 100 slots"),
        ("slots", |s| s.server.slots_taken = 80, Severity::Ok, "20 of 100 slots"),
        ("fsync", |s| s.server.fsync = "off".into(), Severity::Error, "ALTER SYSTEM SET fsync = on;"),
        (
            "full-page-writes",
            |s| s.server.full_page_writes = "off".into(),
            Severity::Error,
            "ALTER SYSTEM SET full_page_writes = on;",
        ),
        (
            "synchronous-commit",
            |s| s.surroundings.synchronous_commit = "off".into(),
            Severity::Note,
            "every branch raises it",
        ),
    ]);
}

#[test]
fn our_tables() {
    hold(&[
        (
            "tables",
            |s| s.tables.state = TableState::Forbidden,
            Severity::Error,
            "GRANT USAGE ON SCHEMA lockstep TO app;",
        ),
        (
            "tables",
            |s| s.tables.state = TableState::Absent,
            Severity::Error,
            "CREATE SCHEMA IF NOT EXISTS lockstep;",
        ),
        (
            "tables",
            |s| {
                s.tables.state = TableState::Absent;
                s.surroundings.may_create = true;
            },
            Severity::Note,
            "the next attach makes those that are missing",
        ),
        ("tables", |s| s.tables.missing = "evidence_pkey".into(), Severity::Error, "evidence_pkey"),
        (
            "tables",
            |s| s.tables.unlogged = "lockstep.evidence".into(),
            Severity::Error,
            "ALTER TABLE lockstep.evidence SET LOGGED;",
        ),
        (
            "tables",
            |s| s.tables.filtered = "lockstep.evidence".into(),
            Severity::Error,
            "ALTER TABLE lockstep.evidence DISABLE ROW LEVEL SECURITY;",
        ),
        ("format", |s| s.identities[0].format = 2, Severity::Error, "format 2"),
        ("identity", |s| s.identities[0].cluster = "nonsense".into(), Severity::Error, "unreadable cluster"),
        ("identity", |s| s.identities.clear(), Severity::Note, "no resource manager"),
        (
            "search-path",
            |s| {
                s.surroundings.role = "lockstep".into();
                s.server.role = "lockstep".into();
            },
            Severity::Warning,
            "ALTER ROLE lockstep IN DATABASE bank SET search_path = public;",
        ),
        (
            "search-path",
            |s| s.surroundings.search_path = "lockstep, public".into(),
            Severity::Warning,
            "ALTER ROLE app",
        ),
        (
            "search-path",
            |s| s.surroundings.strangers = "items".into(),
            Severity::Warning,
            "ALTER TABLE lockstep.items SET SCHEMA public;",
        ),
    ]);
}

#[test]
fn our_functions() {
    hold(&[
        (
            "functions",
            |s| s.functions.missing = "lockstep.keep_position".into(),
            Severity::Note,
            "CREATE OR REPLACE FUNCTION lockstep.keep_position",
        ),
        (
            "functions",
            |s| {
                s.functions.missing = "lockstep.keep_position".into();
                s.functions.may_create = true;
            },
            Severity::Note,
            "the next attach makes it",
        ),
        (
            "functions",
            |s| {
                s.functions.other = "lockstep.keep_position".into();
                s.functions.drops = "DROP ROUTINE lockstep.keep_position(integer)".into();
            },
            Severity::Warning,
            "DROP ROUTINE lockstep.keep_position(integer);",
        ),
    ]);
}

#[test]
fn what_is_prepared_and_what_it_blocks() {
    hold(&[
        ("prepared", |s| s.prepared = vec![prepared(OURS, "bank", "app", 59)], Severity::Note, "for 59s"),
        (
            "prepared",
            |s| s.prepared = vec![prepared(OURS, "bank", "app", 60)],
            Severity::Warning,
            "lockstep tx show 12.",
        ),
        (
            "owner",
            |s| s.prepared = vec![prepared(OURS, "bank", "other", 0)],
            Severity::Error,
            "they belong to other",
        ),
        (
            "owner",
            |s| {
                s.prepared = vec![prepared(OURS, "bank", "other", 0)];
                s.surroundings.is_superuser = true;
            },
            Severity::Note,
            "as a superuser",
        ),
        (
            "other-databases",
            |s| s.prepared = vec![prepared(OURS, "shop", "app", 9)],
            Severity::Note,
            "of which they take slots: 1, the oldest for 9s, in shop",
        ),
        (
            "foreign-prepared",
            |s| s.prepared = vec![prepared("their's", "shop", "Them", 3599)],
            Severity::Note,
            "not Lockstep's",
        ),
        (
            "foreign-prepared",
            |s| s.prepared = vec![prepared("their's", "shop", "Them", 3600)],
            Severity::Warning,
            "ROLLBACK PREPARED 'their''s'; -- in database shop, as \"Them\"",
        ),
        // It begins as ours do, and we did not make it.
        (
            "foreign-prepared",
            |s| s.prepared = vec![prepared("lockstep:x", "bank", "app", 1)],
            Severity::Note,
            "Lockstep's: 1,",
        ),
        (
            "blocked",
            |s| {
                let since = Duration::from_secs(38);
                let object = "account".into();
                s.blocked = vec![Blocked { pid: 4121, gid: OURS.into(), object, since }];
            },
            Severity::Warning,
            "pid 4121 for 38s (account, held by lockstep:7c1f09ae:",
        ),
    ]);
}

#[test]
fn clock_and_disk() {
    hold(&[
        ("clock", |s| s.clock = (-2_001, 1), Severity::Warning, "2s behind"),
        ("clock", |s| s.clock = (60_000, 30), Severity::Warning, "1m ahead of"),
        // A slow answer proves nothing.
        ("clock", |s| s.clock = (4_000, 3_000), Severity::Ok, "within"),
        ("disk", |s| s.disks.clear(), Severity::Note, "not to be seen"),
        ("disk", |s| s.disks[0].free_bytes = 1, Severity::Error, "df -h /data"),
    ]);
}

#[test]
fn branches_of_another_cluster_are_asked_for_there() {
    let gid = OURS.replace("7c1f09ae", "11111111");
    let orphan = finding("orphans", |s| s.prepared = vec![prepared(&gid, "bank", "app", 1)]);
    assert_eq!(orphan.severity, Severity::Warning);
    assert_eq!(orphan.mend, [format!("lockstep tx wait --cluster 11111111 {GTRID}")]);
}

/// The right cluster does not make a branch of somebody else's resource manager ours, nor the other way round.
#[test]
fn a_branch_is_ours_by_cluster_and_name() {
    let mut snapshot = well();
    let other_name = OURS.replace("orders-db", "stock-db");
    let other_cluster = OURS.replace("7c1f09ae", "11111111");
    for (gid, database, expected) in [
        (OURS, "bank", Whose::Ours),
        (&other_name, "bank", Whose::Orphan),
        (&other_cluster, "bank", Whose::Orphan),
        (OURS, "shop", Whose::Elsewhere),
        ("lockstepx:y", "bank", Whose::Foreign),
        ("lockstep:7c1f09ae", "bank", Whose::Foreign),
    ] {
        assert_eq!(whose(&snapshot, &prepared(gid, database, "app", 1)), expected, "{gid}");
    }
    // Nobody can tell without the table.
    snapshot.tables.state = TableState::Absent;
    snapshot.identities.clear();
    assert_eq!(whose(&snapshot, &prepared(OURS, "bank", "app", 1)), Whose::Ours);
}

#[test]
fn the_newest_bad_format_is_the_one_that_is_told() {
    let found = finding("format", |s| s.identities.push(identity("stock-db", 3, "7c1f09ae")));
    assert_eq!(found.severity, Severity::Error);
}

#[test]
fn many_prepared_transactions_are_counted_and_a_few_are_named() {
    let found = finding("prepared", |s| {
        let gid = |n: u32| OURS.replace("0f1e2d3c4b5a6978", &format!("{n:016x}"));
        s.prepared = (0..40).map(|n| prepared(&gid(n), "bank", "app", 100 + u64::from(n))).collect();
    });
    assert_eq!((found.figures["count"], found.figures["oldest_seconds"]), (40, 139));
    assert_eq!(found.mend.len(), MAX_NAMED);
}

#[test]
fn full_slots_are_no_reason_to_refuse_whoever_frees_them() {
    let mut server = well().server;
    server.slots_taken = server.slots;
    assert_eq!(slots_left(&server, true).severity, Severity::Warning);
    let refused = slots_left(&server, false);
    assert!(refused.severity == Severity::Error && refused.passing);
}
