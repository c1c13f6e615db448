//! What is found in a PostgreSQL server, and what it means.
//!
//! [`version`] to [`format`] are also what attaching goes by. The rest is for people.

use std::time::Duration;

use lockstep_proto::ClusterId;

use super::snapshot::{Blocked, Identity, PreparedTransaction, Server, Snapshot, TableState, Tables};
use crate::doctor::{Finding, Severity, judge_clock, lasting};
use crate::resource::BranchId;
use crate::resource::postgres::{schema, sql};

/// PostgreSQL 14: older ones get no corrections any more, and can't watch for clients that are gone.
const OLDEST_VERSION: i64 = 140_000;
/// A branch is prepared for milliseconds; one that is so for longer than this waits for somebody.
const LONG_PREPARED: Duration = Duration::from_secs(60);
/// Others may have their reasons to leave something prepared for minutes. For hours it holds back VACUUM.
const LONG_PREPARED_BY_OTHERS: Duration = Duration::from_secs(60 * 60);
/// Prepared transactions and sessions that one finding names.
const MAX_NAMED: usize = 5;

/// All of it.
pub(crate) fn judge(snapshot: &Snapshot) -> Vec<Finding> {
    let server = &snapshot.server;
    let mut findings = vec![version(server), standby(server)];
    let slots = slots_set(server, &snapshot.surroundings.data_directory);
    findings.push(slots.unwrap_or_else(|| slots_left(server, false)));
    findings.extend([fsync(server), full_page_writes(server), synchronous_commit(snapshot)]);
    findings.extend(tables_found(snapshot));
    findings.push(search_path(snapshot));
    findings.extend(identities(&snapshot.identities));
    findings.extend(prepared(snapshot));
    findings.push(blocked(&snapshot.blocked));
    findings.push(judge_clock(snapshot.clock));
    findings.extend(disk(snapshot));
    findings
}

pub(crate) fn version(server: &Server) -> Finding {
    let (major, minor) = (server.version / 10_000, server.version % 10_000);
    if server.version < OLDEST_VERSION {
        let what = format!("PostgreSQL {major}.{minor} is too old: 14 or newer is needed");
        return Finding::new("version", Severity::Error, what);
    }
    Finding::new("version", Severity::Ok, format!("PostgreSQL {major}.{minor}"))
}

pub(crate) fn standby(server: &Server) -> Finding {
    if server.in_recovery {
        let what = "the server is a standby in recovery: it takes no writes, and can't tell what is prepared; connect to \
                    the primary";
        return Finding::new("standby", Severity::Error, what).passing();
    }
    Finding::new("standby", Severity::Ok, "it is a primary")
}

/// `None`: there are some. `data_directory` is empty where it is not known.
pub(crate) fn slots_set(server: &Server, data_directory: &str) -> Option<Finding> {
    let what = "max_prepared_transactions is 0: no branch can be prepared";
    (server.slots == 0).then(|| {
        let wanted = "ALTER SYSTEM SET max_prepared_transactions = 100;".to_owned();
        slot_figures(Finding::new("slots", Severity::Error, what), server)
            .mend([wanted, restart(data_directory)])
    })
}

/// `freed_by_attaching`: some are held by branches of the resource manager that attaches.
pub(crate) fn slots_left(server: &Server, freed_by_attaching: bool) -> Finding {
    let left = server.slots - server.slots_taken;
    let finding = |severity, what: String| slot_figures(Finding::new("slots", severity, what), server);
    if left <= 0 {
        let what = format!(
            "all {} slots of max_prepared_transactions are taken: no further branch can be prepared; look for branches in \
             doubt, or raise it",
            server.slots
        );
        if freed_by_attaching {
            return finding(Severity::Warning, what);
        }
        return finding(Severity::Error, what)
            .mend(["SELECT * FROM pg_prepared_xacts ORDER BY prepared;"])
            .passing();
    }
    let what = format!("{left} of {} slots of max_prepared_transactions are left", server.slots);
    // A fifth: what is left is gone with the next burst.
    if left * 5 < server.slots {
        return finding(Severity::Warning, what).mend(["SELECT * FROM pg_prepared_xacts ORDER BY prepared;"]);
    }
    finding(Severity::Ok, what)
}

fn slot_figures(finding: Finding, server: &Server) -> Finding {
    let left = (server.slots - server.slots_taken).max(0);
    finding.figure("set", server.slots).figure("used", server.slots_taken).figure("left", left)
}

pub(crate) fn fsync(server: &Server) -> Finding {
    durability("fsync", "fsync", &server.fsync)
}

pub(crate) fn full_page_writes(server: &Server) -> Finding {
    durability("full-page-writes", "full_page_writes", &server.full_page_writes)
}

fn durability(check: &'static str, setting: &str, value: &str) -> Finding {
    if value == "on" {
        return Finding::new(check, Severity::Ok, format!("{setting} is on"));
    }
    let what =
        format!("{setting} is {value}: a crash of the machine could lose prepared and committed branches");
    let on = format!("ALTER SYSTEM SET {setting} = on;");
    Finding::new(check, Severity::Error, what).mend([on.as_str(), "SELECT pg_reload_conf();"])
}

/// The tables are missing or closed to the role, and what somebody who may has to run.
pub(crate) fn tables_closed(server: &Server, why: &str) -> Finding {
    let what = format!("{why}; a role that may has to mend it, in database {}", server.database_name);
    Finding::new("tables", Severity::Error, what)
        .mend(one_transaction(schema::CREATE_TABLES.iter().copied()))
        .mend(schema::GRANTS.iter().map(|grant| granted(grant, server)))
        .mend(functions_made(&schema::all_functions(), server))
}

/// Statements that begin with a lock for all of them.
fn one_transaction<'a>(statements: impl Iterator<Item = &'a str>) -> impl Iterator<Item = String> {
    let all = std::iter::once("BEGIN").chain(statements).chain(["COMMIT"]);
    all.map(|statement| format!("{statement};"))
}

fn granted(grant: &str, server: &Server) -> String {
    format!("{};", grant.replace("{role}", &server.role))
}

/// What makes the functions of these names.
fn functions_made(names: &str, server: &Server) -> Vec<String> {
    let create = schema::functions_to_create(names);
    let grants = schema::function_grants(names);
    let create = one_transaction(create.iter().map(String::as_str));
    create.chain(grants.iter().map(|grant| granted(grant, server))).collect()
}

/// The role may not use tables that are there.
pub(crate) fn tables_forbidden(server: &Server) -> Finding {
    tables_closed(server, &format!("{} may not use the tables in the schema lockstep", server.role))
}

/// Whether tables that are there are ours, and keep what is written to them.
pub(crate) fn tables_form(tables: &Tables) -> Finding {
    let error = |what: String| Finding::new("tables", Severity::Error, what);
    if !tables.missing.is_empty() {
        return error(format!(
            "the constraints {} of lockstep.evidence are missing: branches that must be turned down would commit. Put \
             them back, or move a table away that is not Lockstep's, and attach again",
            tables.missing
        ));
    }
    if !tables.unlogged.is_empty() {
        let logged = tables.unlogged.split(", ").map(|table| format!("ALTER TABLE {table} SET LOGGED;"));
        return error(format!(
            "{} is unlogged: a crash of the server empties it, and committed branches would look as if they had not been",
            tables.unlogged
        ))
        .mend(logged);
    }
    if !tables.filtered.is_empty() {
        let open = tables
            .filtered
            .split(", ")
            .map(|table| format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY;"));
        return error(format!(
            "row level security hides rows of {} from the role: committed branches would look as if they had not been",
            tables.filtered
        ))
        .mend(open);
    }
    Finding::new(
        "tables",
        Severity::Ok,
        "the tables evidence, identity and positions are there, and the role may use them",
    )
}

/// Our functions. A branch costs less with them, and that is all.
fn functions(snapshot: &Snapshot) -> Finding {
    let found = |severity, what: String| Finding::new("functions", severity, what);
    let (functions, server) = (&snapshot.functions, &snapshot.server);
    let meanwhile = "every branch costs the server more without it";
    if functions.are_ready() {
        let what = "the functions write_evidence and keep_position are there, and the role may call them";
        return found(Severity::Ok, what.to_owned());
    }
    if functions.are_missing() && functions.may_create {
        let what = format!("missing: {}; {meanwhile}, and the next attach makes it", functions.missing);
        return found(Severity::Note, what);
    }
    if functions.are_missing() {
        let what = format!(
            "missing: {}; {meanwhile}, and {} may not make it; a role that may can do so, in database {}",
            functions.missing, server.role, server.database_name
        );
        return found(Severity::Note, what).mend(functions_made(&functions.missing, server));
    }
    let what = format!(
        "not as this version of Lockstep makes it, or there twice, or closed to the role: {}; it is not called, and {meanwhile}",
        functions.other
    );
    let names = [functions.other.as_str(), &functions.missing].join(", ");
    let drops = functions.drops.split("; ").filter(|drop| !drop.is_empty()).map(|drop| format!("{drop};"));
    found(Severity::Warning, what).mend(drops).mend(functions_made(&names, server))
}

/// The format of our tables.
pub(crate) fn format(format: i64) -> Finding {
    let known = i64::from(sql::FORMAT);
    if format == known {
        return Finding::new("format", Severity::Ok, format!("the tables have format {format}"));
    }
    let what = format!(
        "the tables in the schema lockstep have format {format}, and this version of Lockstep knows {known}: use a newer one"
    );
    Finding::new("format", Severity::Error, what)
}

fn synchronous_commit(snapshot: &Snapshot) -> Finding {
    let value = &snapshot.surroundings.synchronous_commit;
    let (severity, what) = match value.as_str() {
        "on" | "remote_apply" => (Severity::Ok, format!("synchronous_commit is {value}")),
        _ => (
            Severity::Note,
            format!(
                "synchronous_commit is {value} for this role: every branch raises it to on for itself; what the service \
                 commits outside of branches may be lost in a crash"
            ),
        ),
    };
    Finding::new("synchronous-commit", severity, what)
}

fn tables_found(snapshot: &Snapshot) -> Vec<Finding> {
    let (server, around) = (&snapshot.server, &snapshot.surroundings);
    match snapshot.tables.state {
        TableState::Forbidden => vec![tables_forbidden(server)],
        TableState::Absent if around.may_create => {
            let what = "the tables evidence, identity and positions are not all in the schema lockstep yet: the next attach makes those \
                        that are missing";
            vec![Finding::new("tables", Severity::Note, what)]
        }
        TableState::Absent => {
            let why = format!("{} may not create the tables in the schema lockstep", server.role);
            vec![tables_closed(server, &why)]
        }
        TableState::Ready => {
            let formats = snapshot.identities.iter().map(|identity| identity.format);
            let worst = formats.clone().find(|found| *found != i64::from(sql::FORMAT)).or(formats.min());
            let found = [tables_form(&snapshot.tables), functions(snapshot)];
            found.into_iter().chain(worst.map(format)).collect()
        }
    }
}

/// A role that is called `lockstep` makes its own tables in our schema, since `"$user"` comes first in the usual
/// `search_path`: they then belong to what a person who removes Lockstep drops, and may have our tables' names.
fn search_path(snapshot: &Snapshot) -> Finding {
    let around = &snapshot.surroundings;
    let found = |severity, what: String| Finding::new("search-path", severity, what);
    let first = around.search_path.split(',').next().unwrap_or_default().trim();
    let is_caught =
        matches!(first, "lockstep" | "\"lockstep\"") || (around.role == "lockstep" && first == "\"$user\"");
    let strangers = match around.strangers.as_str() {
        "" => String::new(),
        names => format!("; these relations in it are not Lockstep's: {names}"),
    };
    if is_caught {
        let what = format!(
            "search_path is {} for the role {}: its own new tables go into the schema lockstep, which is Lockstep's{strangers}",
            around.search_path, around.role
        );
        let role = &snapshot.server.role;
        return found(Severity::Warning, what).mend([format!(
            "ALTER ROLE {role} IN DATABASE {} SET search_path = public;",
            identifier(&snapshot.server.database_name)
        )]);
    }
    if !around.strangers.is_empty() {
        let what = format!("the schema lockstep is Lockstep's{strangers}");
        let moves = around
            .strangers
            .split(", ")
            .map(|name| format!("ALTER TABLE lockstep.{name} SET SCHEMA public;"));
        return found(Severity::Warning, what).mend(moves);
    }
    found(Severity::Ok, "the role's own tables do not go into the schema lockstep".to_owned())
}

fn identities(identities: &[Identity]) -> Vec<Finding> {
    let found = |identity: &Identity| {
        let cluster = match identity.cluster.as_str() {
            "" => "not bound to a cluster yet".to_owned(),
            cluster => format!("cluster {cluster}"),
        };
        let what = format!("{}: {cluster}, identity {}", identity.name, identity.identity);
        let readable = identity.cluster.is_empty() || identity.cluster.parse::<ClusterId>().is_ok();
        if readable {
            return Finding::new("identity", Severity::Ok, what);
        }
        let what = format!("lockstep.identity holds an unreadable cluster; {what}");
        Finding::new("identity", Severity::Error, what)
    };
    if identities.is_empty() {
        let what = "no resource manager has been attached to this database";
        return vec![Finding::new("identity", Severity::Note, what)];
    }
    identities.iter().map(found).collect()
}

/// Whose a prepared transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// A resource manager's that is attached to this database, of its cluster.
    Ours,
    /// Made by Lockstep, and no resource manager that was ever attached here knows it.
    Orphan,
    /// In another database of this server.
    Elsewhere,
    /// Not Lockstep's.
    Foreign,
}

fn branch_of(transaction: &PreparedTransaction) -> Option<BranchId> {
    sql::branch_of(&transaction.gid)?.parse().ok()
}

fn whose(snapshot: &Snapshot, transaction: &PreparedTransaction) -> Whose {
    let Some(branch) = branch_of(transaction) else { return Whose::Foreign };
    if transaction.database != snapshot.server.database_name {
        return Whose::Elsewhere;
    }
    let name = branch.xid.bqual.resource_manager_str();
    let cluster = branch.cluster.to_string();
    let known = |identity: &Identity| identity.name == name && identity.cluster == cluster;
    // Without the table it is not known whose it is; the table's finding says so.
    let known = snapshot.tables.state != TableState::Ready || snapshot.identities.iter().any(known);
    if known { Whose::Ours } else { Whose::Orphan }
}

fn prepared(snapshot: &Snapshot) -> Vec<Finding> {
    let of = |which: Whose| -> Vec<&PreparedTransaction> {
        snapshot.prepared.iter().filter(|transaction| whose(snapshot, transaction) == which).collect()
    };
    let mut findings = vec![ours(&of(Whose::Ours))];
    findings.extend(not_owned(snapshot, &of(Whose::Ours)));
    findings.push(orphans(&of(Whose::Orphan)));
    findings.extend(elsewhere(&of(Whose::Elsewhere)));
    findings.push(foreign(&of(Whose::Foreign)));
    findings
}

/// How many, and how old the oldest is.
fn counted(finding: Finding, transactions: &[&PreparedTransaction]) -> Finding {
    let oldest = oldest(transactions).as_secs();
    finding.figure("count", transactions.len()).figure("oldest_seconds", oldest)
}

fn oldest(transactions: &[&PreparedTransaction]) -> Duration {
    transactions.iter().map(|transaction| transaction.age).max().unwrap_or_default()
}

fn ours(transactions: &[&PreparedTransaction]) -> Finding {
    let age = oldest(transactions);
    let found = |severity, what| counted(Finding::new("prepared", severity, what), transactions);
    let many = transactions.len();
    if many == 0 {
        return found(Severity::Ok, "no branch is prepared".to_owned());
    }
    let what = format!("branches prepared: {many}, the oldest for {}", lasting(age));
    if age < LONG_PREPARED {
        return found(Severity::Note, what);
    }
    let what = format!(
        "{what}: they wait for their coordinator, or for an instance of their service that is attached"
    );
    found(Severity::Warning, what).mend(questions(transactions, "lockstep tx show"))
}

/// The oldest ones, to be asked for.
fn questions(transactions: &[&PreparedTransaction], command: &str) -> Vec<String> {
    let old = transactions.iter().filter(|transaction| transaction.age >= LONG_PREPARED);
    let branches = old.filter_map(|transaction| branch_of(transaction)).take(MAX_NAMED);
    branches.map(|branch| format!("{command} {}", branch.xid.gtrid)).collect()
}

/// Only its owner, or a superuser, can finish a prepared transaction.
fn not_owned(snapshot: &Snapshot, transactions: &[&PreparedTransaction]) -> Option<Finding> {
    let role = &snapshot.surroundings.role;
    let foreign = transactions.iter().copied().filter(|transaction| transaction.owner != *role);
    let foreign: Vec<_> = foreign.collect();
    let first = foreign.first()?;
    if snapshot.surroundings.is_superuser {
        let what = format!(
            "prepared branches that belong to another role, not to {role}: {}, such as {}; {role} may finish them as a superuser",
            foreign.len(),
            first.owner
        );
        return Some(counted(Finding::new("owner", Severity::Note, what), &foreign));
    }
    let what = format!(
        "prepared branches that {role} may not finish: {}, they belong to {}; let all instances of a resource manager connect \
         as the role that prepares, or have a superuser attach once",
        foreign.len(),
        first.owner
    );
    Some(counted(Finding::new("owner", Severity::Error, what), &foreign))
}

fn orphans(transactions: &[&PreparedTransaction]) -> Finding {
    let found = |severity, what| counted(Finding::new("orphans", severity, what), transactions);
    if transactions.is_empty() {
        return found(Severity::Ok, "no branch of another cluster is prepared here".to_owned());
    }
    let what = format!(
        "prepared branches whose cluster or resource manager was never attached to this database: {}, the oldest for {}; \
         nothing finishes them by itself. Ask the coordinator of their cluster",
        transactions.len(),
        lasting(oldest(transactions))
    );
    let ask = transactions.iter().filter_map(|transaction| branch_of(transaction)).take(MAX_NAMED);
    let ask = ask.map(|branch| format!("lockstep tx wait --cluster {} {}", branch.cluster, branch.xid.gtrid));
    found(Severity::Warning, what).mend(ask)
}

fn elsewhere(transactions: &[&PreparedTransaction]) -> Option<Finding> {
    let mut databases: Vec<&str> =
        transactions.iter().map(|transaction| transaction.database.as_str()).collect();
    databases.dedup();
    databases.sort_unstable();
    databases.dedup();
    databases.truncate(MAX_NAMED);
    let what = format!(
        "branches prepared in other databases of this server, of which they take slots: {}, the oldest for {}, in {}",
        transactions.len(),
        lasting(oldest(transactions)),
        databases.join(", ")
    );
    let finding = || counted(Finding::new("other-databases", Severity::Note, what), transactions);
    (!transactions.is_empty()).then(finding)
}

fn foreign(transactions: &[&PreparedTransaction]) -> Finding {
    let age = oldest(transactions);
    let found = |severity, what| counted(Finding::new("foreign-prepared", severity, what), transactions);
    if transactions.is_empty() {
        return found(Severity::Ok, "nobody else has prepared transactions".to_owned());
    }
    let what = format!(
        "prepared transactions that are not Lockstep's: {}, the oldest for {}; they take slots, and Lockstep never touches them",
        transactions.len(),
        lasting(age)
    );
    if age < LONG_PREPARED_BY_OTHERS {
        return found(Severity::Note, what);
    }
    let what = format!(
        "{what}. They hold their locks and hold back VACUUM; ask their owners, and then roll back or commit"
    );
    let old = transactions.iter().filter(|transaction| transaction.age >= LONG_PREPARED_BY_OTHERS);
    let end = |transaction: &&&PreparedTransaction| {
        format!(
            "ROLLBACK PREPARED {}; -- in database {}, as {}",
            literal(&transaction.gid),
            identifier(&transaction.database),
            identifier(&transaction.owner)
        )
    };
    found(Severity::Warning, what).mend(old.take(MAX_NAMED).map(|transaction| end(&transaction)))
}

fn blocked(blocked: &[Blocked]) -> Finding {
    let found = |severity, what| Finding::new("blocked", severity, what).figure("count", blocked.len());
    if blocked.is_empty() {
        return found(Severity::Ok, "nobody waits for a prepared transaction".to_owned());
    }
    let named = blocked.iter().take(MAX_NAMED).map(|blocked| {
        format!(
            "pid {} for {} ({}, held by {})",
            blocked.pid,
            lasting(blocked.since),
            blocked.object,
            blocked.gid
        )
    });
    let what = format!(
        "sessions that wait for locks of prepared transactions: {}: {}; plain reads are not blocked",
        blocked.len(),
        named.collect::<Vec<_>>().join(", ")
    );
    let mut holders: Vec<_> = blocked.iter().filter_map(|blocked| sql::branch_of(&blocked.gid)).collect();
    holders.sort_unstable();
    holders.dedup();
    let holders = holders.into_iter().filter_map(|branch| branch.parse::<BranchId>().ok());
    let show = holders.take(MAX_NAMED).map(|branch| format!("lockstep tx show {}", branch.xid.gtrid));
    found(Severity::Warning, what).mend(show)
}

fn disk(snapshot: &Snapshot) -> Vec<Finding> {
    if snapshot.disks.is_empty() {
        let what = "free disk is not to be seen from here: the server is on another machine, or the role may not know its \
                    data directory";
        return vec![Finding::new("disk", Severity::Note, what)];
    }
    let mut disks = snapshot.disks.clone();
    // The write-ahead log is usually on the same disk: said once.
    disks.dedup_by_key(|disk| disk.free_bytes);
    disks.iter().map(super::super::Disk::judge).collect()
}

/// How the server is restarted; `data_directory` is empty where it is not known.
fn restart(data_directory: &str) -> String {
    match data_directory {
        "" => "pg_ctl restart -D DATA_DIRECTORY".to_owned(),
        directory => format!("pg_ctl restart -D {}", literal(directory)),
    }
}

fn identifier(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
    if name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') && name.chars().all(plain) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests;
