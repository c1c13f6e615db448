//! What is found in a MariaDB or MySQL server beside its settings, and what it means.
//!
//! [`recover_denied`] to [`format`] are also what attaching goes by. The rest is for people.

use std::time::Duration;

use super::{Blocked, Identity, Prepared, Snapshot};
use crate::doctor::{Disk, Finding, Severity, judge_clock, lasting};
use crate::resource::BranchId;
use crate::resource::mysql::sql;

/// A transaction that began longer ago than this, and has a prepared branch, waits for somebody: it is the longest that a
/// deadline usually is, twice.
const LONG_AGO: Duration = Duration::from_secs(60);
/// Branches and sessions that one finding names.
const MAX_NAMED: usize = 5;

/// All of it.
pub(crate) fn judge(snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = snapshot.server.judge();
    findings.extend(snapshot.tables.iter().cloned());
    findings.extend(identities(snapshot.identities.as_deref()));
    findings.push(other_engines(&snapshot.other_engines));
    match &snapshot.prepared {
        Ok(prepared) => findings.extend(branches(prepared, snapshot.identities.as_deref())),
        Err(denied) => findings.push(denied.clone()),
    }
    findings.push(blocked(snapshot.blocked.as_deref(), &snapshot.user));
    findings.push(judge_clock(snapshot.clock));
    findings.push(snapshot.disk.as_ref().map_or_else(
        || {
            let what = "free disk is not to be seen from here: the server is on another machine, or its data directory is closed";
            Finding::new("disk", Severity::Note, what)
        },
        Disk::judge,
    ));
    findings
}

/// Branches that can't be listed can't be recovered.
pub(crate) fn recover_denied(user: &str, why: &str) -> Finding {
    Finding::new("recover", Severity::Error, format!("{user} may not list prepared branches ({why})"))
        .mend([format!("GRANT XA_RECOVER_ADMIN ON *.* TO {user};")])
}

/// The tables are missing or closed to the user, and what somebody who may has to run.
pub(crate) fn tables_closed(user: &str, why: &str, create: [String; 3], grants: &str) -> Finding {
    Finding::new("tables", Severity::Error, format!("{user} {why}; a user that may has to mend it"))
        .mend(create.map(|statement| format!("{statement};")))
        .mend(grants.lines())
}

/// Evidence in a table that is not rolled back with its branch would be a lie.
pub(crate) fn engines(engines: &[String]) -> Finding {
    match engines.iter().find(|engine| *engine != "InnoDB") {
        None => Finding::new(
            "tables",
            Severity::Ok,
            "the tables lockstep_evidence, lockstep_identity and lockstep_positions are there, and may be used",
        ),
        Some(engine) => {
            let what = format!("the tables of Lockstep have the engine {engine}, which rolls nothing back");
            Finding::new("tables", Severity::Error, what).mend([
                "ALTER TABLE lockstep_evidence ENGINE = InnoDB;",
                "ALTER TABLE lockstep_identity ENGINE = InnoDB;",
                "ALTER TABLE lockstep_positions ENGINE = InnoDB;",
            ])
        }
    }
}

/// The format of our tables.
pub(crate) fn format(format: i64) -> Finding {
    if format == sql::FORMAT {
        return Finding::new("format", Severity::Ok, format!("the tables have format {format}"));
    }
    let what = format!(
        "the tables of Lockstep in this database have format {format}, and this version of Lockstep knows {}: use a newer one",
        sql::FORMAT
    );
    Finding::new("format", Severity::Error, what)
}

fn identities(identities: Option<&[Identity]>) -> Vec<Finding> {
    let Some(identities) = identities else { return Vec::new() };
    if identities.is_empty() {
        let what = "no resource manager has been attached to this database";
        return vec![Finding::new("identity", Severity::Note, what)];
    }
    let found = |identity: &Identity| {
        let cluster = match identity.cluster.as_str() {
            "" => "not bound to a cluster yet".to_owned(),
            cluster => format!("cluster {cluster}"),
        };
        let what = format!("{}: {cluster}, identity {}", identity.name, identity.identity);
        Finding::new("identity", Severity::Ok, what)
    };
    let formats = identities.iter().map(|identity| identity.format);
    let worst = formats.clone().find(|found| *found != sql::FORMAT).or(formats.min());
    worst.map(format).into_iter().chain(identities.iter().map(found)).collect()
}

fn other_engines(tables: &[String]) -> Finding {
    if tables.is_empty() {
        return Finding::new("engines", Severity::Ok, "all tables of this database can take part");
    }
    let what = format!(
        "these tables are not InnoDB, and a branch that changes one is rolled back without it: {}",
        tables.join(", ")
    );
    let change =
        tables.iter().map(|table| format!("ALTER TABLE `{}` ENGINE = InnoDB;", table.replace('`', "``")));
    Finding::new("engines", Severity::Warning, what).mend(change)
}

fn branches(prepared: &Prepared, identities: Option<&[Identity]>) -> [Finding; 3] {
    let is_ours = |branch: &BranchId| {
        let cluster = branch.cluster.to_string();
        let name = branch.xid.bqual.resource_manager_str();
        identities.is_none_or(|known| known.iter().any(|one| one.name == name && one.cluster == cluster))
    };
    let (ours, others): (Vec<_>, Vec<_>) = prepared.branches.iter().partition(|(branch, _)| is_ours(branch));
    [of_this_database(&ours), of_others(&others), foreign(prepared.foreign)]
}

/// How many, and how long ago the transaction of the oldest began.
fn counted(finding: Finding, branches: &[&(BranchId, Duration)]) -> Finding {
    finding.figure("count", branches.len()).figure("oldest_seconds", oldest(branches).as_secs())
}

fn oldest(branches: &[&(BranchId, Duration)]) -> Duration {
    branches.iter().map(|(_, age)| *age).max().unwrap_or_default()
}

fn of_this_database(branches: &[&(BranchId, Duration)]) -> Finding {
    let age = oldest(branches);
    let found = |severity, what| counted(Finding::new("prepared", severity, what), branches);
    if branches.is_empty() {
        return found(Severity::Ok, "no branch is prepared".to_owned());
    }
    let what =
        format!("branches prepared: {}, the oldest transaction began {} ago", branches.len(), lasting(age));
    if age < LONG_AGO {
        return found(Severity::Note, what);
    }
    let what = format!(
        "{what}: they wait for their coordinator, or for an instance of their service that is attached"
    );
    let old = branches.iter().filter(|(_, age)| *age >= LONG_AGO).take(MAX_NAMED);
    found(Severity::Warning, what)
        .mend(old.map(|(branch, _)| format!("lockstep tx show {}", branch.xid.gtrid)))
}

/// XA lists the whole server, and does not say which database a branch is in.
fn of_others(branches: &[&(BranchId, Duration)]) -> Finding {
    let found = |severity, what| counted(Finding::new("orphans", severity, what), branches);
    if branches.is_empty() {
        return found(Severity::Ok, "no branch of another database or cluster is prepared".to_owned());
    }
    let what = format!(
        "prepared branches whose cluster or resource manager was never attached to this database: {}, the oldest transaction \
         began {} ago. Those of another database of this server are its matter; of the others, ask the coordinator of their \
         cluster",
        branches.len(),
        lasting(oldest(branches))
    );
    if oldest(branches) < LONG_AGO {
        return found(Severity::Note, what);
    }
    let ask = branches.iter().take(MAX_NAMED);
    let ask =
        ask.map(|(branch, _)| format!("lockstep tx wait --cluster {} {}", branch.cluster, branch.xid.gtrid));
    found(Severity::Warning, what).mend(ask)
}

fn foreign(count: usize) -> Finding {
    let found = |severity, what| Finding::new("foreign-prepared", severity, what).figure("count", count);
    if count == 0 {
        return found(Severity::Ok, "nobody else has prepared branches".to_owned());
    }
    let what = format!("prepared branches that are not Lockstep's: {count}; Lockstep never touches them");
    found(Severity::Note, what).mend(["XA RECOVER;"])
}

fn blocked(blocked: Option<&[Blocked]>, user: &str) -> Finding {
    let Some(blocked) = blocked else {
        let what = format!("who waits for prepared branches is not to be seen by {user}");
        let grant = format!("GRANT PROCESS ON *.* TO {user};");
        return Finding::new("blocked", Severity::Note, what).mend([grant]);
    };
    let found = |severity, what| Finding::new("blocked", severity, what).figure("count", blocked.len());
    if blocked.is_empty() {
        return found(Severity::Ok, "nobody waits for a prepared branch".to_owned());
    }
    let named = blocked.iter().take(MAX_NAMED).map(|blocked| {
        format!("session {} for {} ({})", blocked.session, lasting(blocked.since), blocked.object)
    });
    let what = format!(
        "sessions that wait for locks of prepared branches: {}: {}; plain reads are not blocked",
        blocked.len(),
        named.collect::<Vec<_>>().join(", ")
    );
    found(Severity::Warning, what).mend(["lockstep tx ls"])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::server::Server;
    use super::*;

    fn well() -> Snapshot {
        Snapshot {
            server: Server::of(BTreeMap::from([("version".to_owned(), "10.11.6-MariaDB".to_owned())])),
            tables: vec![engines(&["InnoDB".to_owned(), "InnoDB".to_owned()])],
            identities: Some(vec![identity(1)]),
            other_engines: vec![],
            prepared: Ok(Prepared::default()),
            blocked: Some(vec![]),
            user: "'app'@'%'".into(),
            clock: (0, 1),
            disk: Some(Disk { directory: "/var/lib/mysql".into(), free_bytes: 1 << 40 }),
        }
    }

    fn identity(format: i64) -> Identity {
        Identity { name: "orders-db".into(), format, identity: "0f1e".into(), cluster: "7c1f09ae".into() }
    }

    fn prepared(branch: &str, seconds: u64) -> Result<Prepared, Finding> {
        let branch = branch.parse().unwrap();
        Ok(Prepared { branches: vec![(branch, Duration::from_secs(seconds))], foreign: 0 })
    }

    const OURS: &str = "7c1f09ae:12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f:orders-db.0f1e2d3c4b5a6978";
    const THEIRS: &str = "11111111:12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f:orders-db.0f1e2d3c4b5a6978";

    fn finding(check: &str, change: impl FnOnce(&mut Snapshot)) -> Finding {
        let mut snapshot = well();
        change(&mut snapshot);
        let found = judge(&snapshot).into_iter().find(|finding| finding.check == check);
        found.unwrap_or_else(|| panic!("no finding of {check}"))
    }

    #[test]
    fn a_server_that_is_well_has_nothing_to_be_done() {
        for finding in judge(&well()) {
            assert!(finding.severity == Severity::Ok && finding.mend.is_empty(), "{finding:?}");
        }
    }

    type Change = fn(&mut Snapshot);

    #[test]
    fn each_fault_is_found_named_and_mended() {
        let rows: Vec<(&str, Change, Severity, &str)> = vec![
            ("tables", |s| s.tables = vec![engines(&["Aria".into()])], Severity::Error, "ENGINE = InnoDB;"),
            (
                "tables",
                |s| {
                    let create = ["CREATE A".into(), "CREATE B".into(), "CREATE C".into()];
                    s.tables = vec![tables_closed("u", "may not", create, "GRANT X;\nGRANT Y;")];
                },
                Severity::Error,
                "CREATE A;\nCREATE B;\nCREATE C;\nGRANT X;\nGRANT Y;",
            ),
            ("format", |s| s.identities = Some(vec![identity(2)]), Severity::Error, "format 2"),
            ("identity", |s| s.identities = Some(vec![]), Severity::Note, "no resource manager"),
            (
                "engines",
                |s| s.other_engines = vec!["a`b".into()],
                Severity::Warning,
                "ALTER TABLE `a``b` ENGINE = InnoDB;",
            ),
            (
                "recover",
                |s| s.prepared = Err(recover_denied("u", "no")),
                Severity::Error,
                "GRANT XA_RECOVER_ADMIN",
            ),
            ("prepared", |s| s.prepared = prepared(OURS, 59), Severity::Note, "began 59s ago"),
            ("prepared", |s| s.prepared = prepared(OURS, 60), Severity::Warning, "lockstep tx show 12."),
            ("orphans", |s| s.prepared = prepared(THEIRS, 59), Severity::Note, "never attached"),
            (
                "orphans",
                |s| s.prepared = prepared(THEIRS, 60),
                Severity::Warning,
                "tx wait --cluster 11111111 12.",
            ),
            (
                "foreign-prepared",
                |s| s.prepared = Ok(Prepared { branches: vec![], foreign: 3 }),
                Severity::Note,
                "not Lockstep's: 3",
            ),
            ("blocked", |s| s.blocked = None, Severity::Note, "GRANT PROCESS ON *.* TO 'app'@'%';"),
            (
                "blocked",
                |s| {
                    let since = Duration::from_secs(38);
                    s.blocked = Some(vec![Blocked { session: 9, object: "account".into(), since }]);
                },
                Severity::Warning,
                "session 9 for 38s (account)",
            ),
            ("disk", |s| s.disk = None, Severity::Note, "not to be seen"),
        ];
        for (check, change, severity, words) in rows {
            let finding = finding(check, change);
            assert_eq!(finding.severity, severity, "{finding:?}");
            let said = format!("{}\n{}", finding.what, finding.mend.join("\n"));
            assert!(said.contains(words), "{words:?} is not in:\n{said}");
        }
    }
}
