//! Each judgement as a row, as for PostgreSQL.

use super::super::Identity;
use super::*;

/// Everything as it should be.
fn well() -> Snapshot {
    Snapshot {
        path: "/var/lib/bank/bank.db".into(),
        version: "3.51.0".into(),
        journal_mode: "wal".into(),
        file_system: FileSystem::Local,
        unwritable: vec![],
        schema: Ok(()),
        identity: Ok(Some(Identity { identity: "0f1e".into(), cluster: Some("7c1f09ae".into()) })),
        hazards: 0,
        journal: JournalFound::Nothing,
        lock: LockFound::Held("4121".into()),
        wal_bytes: 4 << 20,
        disk: Some(Disk { directory: "/var/lib/bank".into(), free_bytes: 1 << 40 }),
    }
}

fn entry(seconds: u64, belongs_here: bool, has_ended: bool) -> JournalFound {
    let gtrid = "12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f".to_owned();
    let branch = format!("7c1f09ae:{gtrid}:bank-db.0f1e2d3c4b5a6978");
    JournalFound::Entry { branch, gtrid, age: Duration::from_secs(seconds), belongs_here, has_ended }
}

fn finding(check: &str, change: impl FnOnce(&mut Snapshot)) -> Finding {
    let mut snapshot = well();
    change(&mut snapshot);
    let found = judge(&snapshot).into_iter().find(|finding| finding.check == check);
    found.unwrap_or_else(|| panic!("no finding of {check}"))
}

#[test]
fn a_file_that_is_well_has_nothing_to_be_done() {
    for finding in judge(&well()) {
        assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
        assert!(finding.mend.is_empty(), "{finding:?}");
    }
}

type Change = fn(&mut Snapshot);

#[test]
fn each_fault_is_found_named_and_mended() {
    let rows: Vec<(&str, Change, Severity, &str)> = vec![
        ("version", |s| s.version = "3.36.9".into(), Severity::Error, "3.36.9 is too old: 3.37"),
        ("version", |s| s.version = "3.37.0".into(), Severity::Ok, "SQLite 3.37.0"),
        ("file-system", |s| s.file_system = FileSystem::Network("NFS"), Severity::Error, "(NFS)"),
        ("file-system", |s| s.file_system = FileSystem::Memory, Severity::Warning, "in memory"),
        ("journal-mode", |s| s.journal_mode = "delete".into(), Severity::Note, "attaching changes it to wal"),
        (
            "privileges",
            |s| s.unwritable = vec!["/a b/bank.db".into()],
            Severity::Error,
            "chmod u+w '/a b/bank.db'",
        ),
        ("schema", |s| s.schema = Err("the virtual table t".into()), Severity::Error, "the virtual table t"),
        ("identity", |s| s.identity = Err("format 2".into()), Severity::Error, "format 2"),
        ("identity", |s| s.identity = Ok(None), Severity::Note, "never attached"),
        ("lock", |s| s.lock = LockFound::Free, Severity::Ok, "no instance"),
        ("lock", |s| s.lock = LockFound::Unreadable("no".into()), Severity::Note, "not to be seen"),
        ("prepared", |s| s.journal = JournalFound::Torn, Severity::Note, "never completed"),
        ("prepared", |s| s.journal = JournalFound::Unreadable("what".into()), Severity::Error, "what"),
        ("prepared", |s| s.journal = entry(1, false, false), Severity::Error, "of another database"),
        ("prepared", |s| s.journal = entry(1, true, true), Severity::Note, "has ended"),
        ("prepared", |s| s.journal = entry(59, true, false), Severity::Note, "for 59s"),
        ("prepared", |s| s.journal = entry(60, true, false), Severity::Warning, "lockstep tx show 12."),
        (
            "prepared",
            |s| {
                s.journal = entry(1, true, false);
                s.lock = LockFound::Free;
            },
            Severity::Warning,
            "start the service",
        ),
        ("hazards", |s| s.hazards = 2, Severity::Warning, "ls /var/lib/bank/bank.db-lockstep-hazard-*"),
        ("wal", |s| s.wal_bytes = 1 << 30, Severity::Warning, "wal_checkpoint(TRUNCATE)"),
        ("disk", |s| s.disk.as_mut().unwrap().free_bytes = 5, Severity::Error, "df -h /var/lib/bank"),
    ];
    for (check, change, severity, words) in rows {
        let finding = finding(check, change);
        assert_eq!(finding.severity, severity, "{finding:?}");
        let said = format!("{}\n{}", finding.what, finding.mend.join("\n"));
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
}

/// What attaching has set, it must find set.
#[test]
fn settings_that_did_not_take_are_errors() {
    assert_eq!(journal_mode_set("wal").severity, Severity::Ok);
    assert_eq!(journal_mode_set("delete").severity, Severity::Error);
    assert_eq!(synchronous(2).severity, Severity::Ok);
    for value in [0, 1, 3] {
        assert_eq!(synchronous(value).severity, Severity::Error, "{value}");
    }
}
