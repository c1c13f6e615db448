//! Every statement that is sent to PostgreSQL, built from checked types only.
//!
//! Names of prepared transactions can't be bound as parameters, and several statements go out in one round
//! trip, so these are texts. Nothing is put into them but [`BranchId`], [`ClusterId`], [`ResourceManagerName`]
//! and [`LogPosition`] (their texts consist of `[0-9a-z._:-]`) and numbers. No other file makes SQL text, except that our tables and functions
//! stand in `schema.rs`, and what only `lockstep doctor` asks in `doctor/postgres/snapshot.rs`: nothing is put into those.
//!
//! What runs on a branch's connection names every schema, down to operators: a handler may have changed
//! `search_path`. The resource's own connections have one that is known.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use lockstep_proto::museum::mutated;
use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition, ResourceManagerName};
use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use super::schema::{KEEP_POSITION, WRITE_EVIDENCE};
use crate::resource::BranchId;
use crate::resource::inspection::MOST;

/// What the names of our prepared transactions begin with. Nothing else is ever touched.
const PREFIX: &str = "lockstep";

/// The format of our tables. A newer one is refused.
pub(crate) const FORMAT: i16 = 1;

/// Constraints of the evidence table that turn a branch down in the round trip that would have prepared it.
/// PostgreSQL checks them in the order of their names, so what the service did comes before what follows from
/// it. The names are words, because the server's log shows them.
pub(super) const ENDED_BY_SERVICE: &str = "branch_ended_by_its_service";
/// The same: nothing was written, so there is nothing to prepare.
pub(super) const READ_ONLY: &str = "branch_read_only_and_not_prepared";
/// The same: the deadline has passed by the server's clock.
pub(super) const TOO_LATE: &str = "branch_too_late_to_prepare";
/// The key of the evidence table: refuses a branch that was fenced.
pub(super) const EVIDENCE_KEY: &str = "evidence_pkey";

/// How what every branch sends is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As calls of our functions, which PostgreSQL keeps the plans of.
    Functions,
    /// Where there are none: as statements that do the same.
    Statements,
}

/// The setting that outlives a branch's transaction unless that is rolled back ([`begin`]); what [`prepare`] shows.
pub(super) const PREPARED: &str = "lockstep.committed";

/// How a connection of the resource's own is set up, whatever is configured for its role or database: who it is
/// (a role that prepared branches can be finished by), that what it reads is the newest, that what it writes is
/// durable, and that no wait is without an end.
pub(crate) fn set_up_own_connection(lock_wait: Duration, statement: Duration) -> SqlStr {
    text(format!(
        "SET ROLE NONE; \
         SET application_name = 'lockstep'; \
         SET search_path = pg_catalog; \
         SET quote_all_identifiers = off; \
         SET default_transaction_isolation = 'read committed'; \
         SET default_transaction_read_only = off; \
         SET lock_timeout = {lock}; \
         SET statement_timeout = {statement}; \
         SET idle_in_transaction_session_timeout = {statement}; \
         SELECT {durable}",
        lock = millis(lock_wait),
        statement = millis(statement),
        durable = durable(false),
    ))
}

/// Fails where the server's platform can't notice that a client is gone.
pub(super) const WATCH_CLIENT: &str = "SET client_connection_check_interval = 1000";

/// What the server is and how it is set up: one row.
pub(crate) const SERVER: &str = "SELECT \
     current_setting('server_version_num')::bigint AS version, \
     pg_is_in_recovery() AS in_recovery, \
     current_setting('max_prepared_transactions')::bigint AS slots, \
     (SELECT count(*) FROM pg_prepared_xacts) AS slots_taken, \
     current_setting('fsync') AS fsync, \
     current_setting('full_page_writes') AS full_page_writes, \
     (SELECT system_identifier FROM pg_control_system())::text AS system, \
     (SELECT oid FROM pg_database WHERE datname = current_database())::bigint AS database, \
     current_database()::text AS database_name, \
     quote_ident(session_user) AS role, \
     CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_lsn()) END AS wal_file";

/// Makes the identity unless there is one.
pub(super) fn make_identity(name: &ResourceManagerName) -> SqlStr {
    text(format!(
        "INSERT INTO lockstep.identity (resource_manager, format) VALUES ('{name}', {FORMAT}) \
         ON CONFLICT (resource_manager) DO NOTHING"
    ))
}

/// The identity: one row.
pub(super) fn identity(name: &ResourceManagerName) -> SqlStr {
    text(format!(
        "SELECT format::bigint AS format, replace(identity::text, '-', '') AS identity, \
         coalesce(cluster, '') AS cluster FROM lockstep.identity WHERE resource_manager = '{name}'"
    ))
}

/// The newest position of each epoch: what was kept of them, and the evidence rows of the identity's cluster, of which the index has
/// each epoch's newest one beside the next lower epoch's. Several rows for some epochs.
pub(super) fn positions(name: &ResourceManagerName) -> SqlStr {
    let newest = |below: &str| {
        format!(
            "SELECT e.epoch, e.incarnation, e.sequence FROM lockstep.evidence AS e \
             WHERE e.resource_manager = '{name}' AND starts_with(e.xid, \
             (SELECT cluster FROM lockstep.identity WHERE resource_manager = '{name}') || ':'){below} \
             ORDER BY e.epoch DESC, e.sequence DESC LIMIT 1"
        )
    };
    text(format!(
        "WITH RECURSIVE newest AS (({first}) UNION ALL \
         SELECT next.* FROM newest, LATERAL ({below}) AS next) \
         SELECT epoch, replace(incarnation::text, '-', '') AS incarnation, sequence FROM (\
         SELECT epoch, incarnation, sequence FROM newest \
         UNION ALL SELECT epoch, incarnation, sequence FROM lockstep.positions WHERE resource_manager = '{name}' \
         UNION ALL SELECT seen_epoch, seen_incarnation, seen_sequence FROM lockstep.identity \
         WHERE resource_manager = '{name}' AND seen_epoch IS NOT NULL) AS p",
        first = newest(""),
        below = newest(" AND e.epoch < newest.epoch"),
    ))
}

/// Stores the cluster unless one is stored.
pub(super) fn bind(name: &ResourceManagerName, cluster: ClusterId) -> SqlStr {
    text(format!(
        "UPDATE lockstep.identity SET cluster = '{cluster}' WHERE resource_manager = '{name}' AND cluster IS NULL"
    ))
}

/// How long what happens in a branch's connection may last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// One wait for a lock.
    pub(super) lock_wait: Duration,
    /// One statement, and one pause between two.
    pub(super) activity: Duration,
    /// The server is asked to notice that its client is gone while a statement runs.
    pub(super) watch_client: bool,
}

/// Begins a branch's local transaction.
///
/// `NOT DEFERRABLE` is refused in a transaction that has already run something: one that was left open on a
/// connection of the pool. Only utility statements: a query would take the snapshot, and the handler could not
/// choose its isolation level.
///
/// The setting that is not LOCAL stays in the session only if this very transaction commits: after the service has ended it
/// by itself, it tells a COMMIT from a ROLLBACK ([`was_committed`]).
pub(super) fn begin(branch: &BranchId, limits: Limits) -> SqlStr {
    let mut sql = format!(
        "BEGIN READ WRITE NOT DEFERRABLE; \
         SET LOCAL lockstep.branch = '{branch}'; \
         SET {PREPARED} = '{branch}'; \
         SET LOCAL lock_timeout = {lock}; \
         SET LOCAL statement_timeout = {activity}; \
         SET LOCAL idle_in_transaction_session_timeout = {activity}",
        lock = millis(limits.lock_wait),
        activity = millis(limits.activity),
    );
    if limits.watch_client {
        sql.push_str("; SET LOCAL client_connection_check_interval = 1000");
    }
    text(sql)
}

/// Whether the transaction has an xid: it has written something, or locked a row.
pub(super) fn has_written() -> SqlStr {
    text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL AS written".to_owned())
}

/// Writes the evidence, prepares, and asks what became of the transaction: the last row is the name of this branch if it was
/// prepared.
///
/// What it shows was set by [`begin`], and outlives a transaction that was prepared or committed, not one that was rolled back (PREPARE
/// TRANSACTION succeeds then too). The evidence is refused unless this is still that transaction. `pg_prepared_xacts` would say the
/// same, and takes longer the more branches are prepared.
///
/// `BEGIN` because sqlx counts this connection as inside a transaction, and will end one.
pub(super) fn prepare(branch: &BranchId, position: &LogPosition, lifetime: Duration, form: Form) -> SqlStr {
    text(format!(
        "{evidence}; PREPARE TRANSACTION '{PREFIX}:{branch}'; BEGIN; SHOW {PREPARED}",
        evidence = evidence(branch, position, lifetime, false, form),
    ))
}

/// After a refusal that PREPARE itself may have made: whether the branch is prepared. Refused in a failed
/// transaction.
pub(super) fn prepared_after_all(branch: &BranchId) -> SqlStr {
    text(format!("{listed}; BEGIN", listed = listed(branch)))
}

/// Writes the evidence and commits: the last row is the evidence.
pub(super) fn commit_one_phase(
    branch: &BranchId,
    position: &LogPosition,
    lifetime: Duration,
    form: Form,
) -> SqlStr {
    text(format!(
        "{evidence}; COMMIT; BEGIN; {written}",
        evidence = evidence(branch, position, lifetime, true, form),
        written = written(branch),
    ))
}

/// After a refusal that COMMIT itself may have made: the evidence, if there is any. Refused in a failed
/// transaction.
pub(super) fn committed_after_all(branch: &BranchId) -> SqlStr {
    text(format!("{written}; BEGIN", written = written(branch)))
}

/// Ends whatever transaction the session is in, and asks whether the one that [`begin`] began was committed.
pub(super) fn was_committed(branch: &BranchId) -> SqlStr {
    text(format!(
        "ROLLBACK; SELECT pg_catalog.current_setting('{PREPARED}', true) OPERATOR(pg_catalog.=) '{branch}' \
         AS was_committed"
    ))
}

/// Keeps the position unless a newer one of its epoch is kept. It does not wait for the disk: the COMMIT PREPARED that follows does,
/// whatever is set, and flushes all that was written before it (participants.md). (The two can't go out together:
/// COMMIT PREPARED is refused beside other statements.)
pub(super) fn keep_position(name: &ResourceManagerName, position: &LogPosition, form: Form) -> SqlStr {
    text(match form {
        Form::Functions => format!("SELECT {KEEP_POSITION}({})", place(name, position)),
        Form::Statements => {
            format!("SET LOCAL synchronous_commit = off; {}", raise_position(name, position))
        }
    })
}

fn raise_position(name: &ResourceManagerName, position: &LogPosition) -> String {
    format!(
        "INSERT INTO lockstep.positions AS p (resource_manager, epoch, incarnation, sequence) \
         VALUES ({}) {RAISED}",
        place(name, position)
    )
}

/// A row of `lockstep.positions`, and the arguments of the function that keeps one.
fn place(name: &ResourceManagerName, position: &LogPosition) -> String {
    let LogPosition { epoch, incarnation, sequence } = position;
    format!("'{name}', {}, '{incarnation}', {}", bigint(epoch), bigint(sequence))
}

/// Of two positions of an epoch the newer one stays.
pub(super) const RAISED: &str = "ON CONFLICT (resource_manager, epoch) DO UPDATE \
     SET incarnation = excluded.incarnation, sequence = excluded.sequence WHERE p.sequence < excluded.sequence";

/// Keeps the position, and lets go of those of these epochs. One transaction.
pub(super) fn settle(name: &ResourceManagerName, position: &LogPosition, epochs: &[Epoch]) -> SqlStr {
    let numbers: Vec<String> = epochs.iter().map(Epoch::to_string).collect();
    text(format!(
        "{raise}; DELETE FROM lockstep.positions WHERE resource_manager = '{name}' AND epoch IN ({numbers})",
        raise = raise_position(name, position),
        numbers = numbers.join(", "),
    ))
}

/// Commits a prepared branch.
pub(super) fn commit_prepared(branch: &BranchId) -> SqlStr {
    text(format!("COMMIT PREPARED '{PREFIX}:{branch}'"))
}

/// Rolls a prepared branch back.
pub(super) fn rollback_prepared(branch: &BranchId) -> SqlStr {
    text(format!("ROLLBACK PREPARED '{PREFIX}:{branch}'"))
}

/// Puts a fence in where there is no evidence, and reads what is there then. One transaction; the read has a
/// snapshot of its own under READ COMMITTED, so it sees the row that kept the fence out.
pub(super) fn fence(branch: &BranchId, position: &LogPosition, lifetime: Duration) -> SqlStr {
    end_without_branch("fence", branch, position, lifetime)
}

/// The same for a branch that can be brought to neither end.
pub(super) fn hazard(branch: &BranchId, position: &LogPosition, lifetime: Duration) -> SqlStr {
    end_without_branch("hazard", branch, position, lifetime)
}

fn end_without_branch(kind: &str, branch: &BranchId, position: &LogPosition, lifetime: Duration) -> SqlStr {
    let subject = Subject::of_branch(branch, position, lifetime, false);
    text(format!(
        "INSERT INTO lockstep.evidence ({EVIDENCE_COLUMNS}) \
         VALUES ('{branch}', '{kind}', pg_current_xact_id(), clock_timestamp() + {lifetime}, true, {fixed}) \
         ON CONFLICT (xid) DO NOTHING; {written}",
        lifetime = subject.lifetime,
        fixed = subject.fixed_columns(),
        written = written(branch),
    ))
}

/// Whether the server is a standby, then the names of all prepared transactions of `cluster` in this database.
pub(super) fn prepared(cluster: ClusterId) -> SqlStr {
    text(format!(
        "SELECT pg_is_in_recovery() AS in_recovery; \
         SELECT gid FROM pg_prepared_xacts \
         WHERE database = current_database() AND starts_with(gid, '{PREFIX}:{cluster}:')"
    ))
}

/// Whether the server is a standby, then the prepared branches of any of our clusters in this database, all or of one transaction.
pub(super) fn inspect_prepared(gtrid: Option<Gtrid>) -> SqlStr {
    let of = gtrid.map_or(String::new(), |gtrid| format!(" AND strpos(gid, ':{gtrid}:') > 0"));
    text(format!(
        "SELECT pg_is_in_recovery() AS in_recovery; \
         SELECT gid, (extract(epoch FROM prepared) * 1000)::bigint AS at_ms FROM pg_prepared_xacts \
         WHERE database = current_database() AND starts_with(gid, '{PREFIX}:'){of} ORDER BY prepared LIMIT {MOST}"
    ))
}

/// The evidence of one transaction. Its branches lie side by side in the table's key.
pub(super) fn inspect_evidence(name: &ResourceManagerName, cluster: ClusterId, gtrid: Gtrid) -> SqlStr {
    text(format!(
        "SELECT xid, kind, (extract(epoch FROM written_at) * 1000)::bigint AS at_ms FROM lockstep.evidence \
         WHERE xid >= '{cluster}:{gtrid}:' AND xid < '{cluster}:{gtrid};' AND resource_manager = '{name}' \
         ORDER BY xid LIMIT {MOST}"
    ))
}

/// How many transactions can be prepared, then all that are, with whether they are in this database.
pub(super) const ROOM: &str = "SELECT current_setting('max_prepared_transactions')::bigint AS slots; \
     SELECT gid, database = current_database() AS here FROM pg_prepared_xacts";

/// The branch that a prepared transaction's name names, in text.
pub(crate) fn branch_of(gid: &str) -> Option<&str> {
    gid.strip_prefix(PREFIX)?.strip_prefix(':')
}

/// Whether the server is a standby, then the oldest branch of `cluster` that has evidence.
pub(super) fn oldest_evidence(name: &ResourceManagerName, cluster: ClusterId) -> SqlStr {
    text(format!(
        "SELECT pg_is_in_recovery() AS in_recovery; \
         SELECT xid FROM lockstep.evidence \
         WHERE resource_manager = '{name}' AND kind <> 'fence' AND starts_with(xid, '{cluster}:') \
         ORDER BY gtrid_uuid, gtrid_epoch LIMIT 1"
    ))
}

/// Rows whose deadline is `retention` ago, longest ago first, and whether they were noticed before. One of a kind that there is not stays, and
/// keeps no other one.
pub(super) fn old_evidence(
    name: &ResourceManagerName,
    cluster: ClusterId,
    retention: Duration,
    limit: usize,
) -> SqlStr {
    text(format!(
        "SELECT xid, kind, noticed FROM lockstep.evidence \
         WHERE resource_manager = '{name}' AND starts_with(xid, '{cluster}:') \
         AND kind IN ('branch', 'fence', 'hazard') \
         AND deadline < clock_timestamp() - interval '{} milliseconds' ORDER BY deadline LIMIT {limit}",
        millis(retention),
    ))
}

/// Has the retention of these rows count from now: a prepared branch's row can't be changed before its commit, says when it
/// was prepared, and is seen when it is committed, be it days later or, after a failover, for the second time.
pub(super) fn notice(branches: &[BranchId]) -> SqlStr {
    text(format!(
        "UPDATE lockstep.evidence SET noticed = true, deadline = clock_timestamp() \
         WHERE xid IN ({keys}) AND NOT noticed",
        keys = keys(branches),
    ))
}

/// Deletes rows by key, and keeps the newest position of each epoch among them. One statement: both or neither.
pub(super) fn forget(name: &ResourceManagerName, branches: &[BranchId]) -> SqlStr {
    let keys = keys(branches);
    text(format!(
        "WITH gone AS (DELETE FROM lockstep.evidence WHERE xid IN ({keys}) \
         RETURNING epoch, incarnation, sequence), \
         newest AS (SELECT DISTINCT ON (epoch) * FROM gone ORDER BY epoch, sequence DESC) \
         INSERT INTO lockstep.positions AS p (resource_manager, epoch, incarnation, sequence) \
         SELECT '{name}', epoch, incarnation, sequence FROM newest ORDER BY epoch {RAISED}"
    ))
}

fn keys(branches: &[BranchId]) -> String {
    let mut keys = String::new();
    for (number, branch) in branches.iter().enumerate() {
        let comma = if number == 0 { "" } else { ", " };
        write!(keys, "{comma}'{branch}'").expect("writing to a string does not fail");
    }
    keys
}

const EVIDENCE_COLUMNS: &str = "xid, kind, local_xid, deadline, noticed, resource_manager, gtrid_uuid, gtrid_epoch, epoch, \
     incarnation, sequence";

/// Writes the evidence of the branch whose transaction this connection is in, if all holds that must hold for it to be written.
///
/// Before it, deferred constraints are checked under the role that the handler left, and then that role is put
/// down: whoever owns a prepared transaction is the only one who can finish it, and must not be somebody that
/// only this connection can become.
fn evidence(
    branch: &BranchId,
    position: &LogPosition,
    lifetime: Duration,
    in_one_phase: bool,
    form: Form,
) -> String {
    let subject = Subject::of_branch(branch, position, lifetime, in_one_phase);
    let written = match form {
        // The function has no such switch.
        Form::Functions if !is_anybodys() => {
            format!("SELECT {WRITE_EVIDENCE}({})", subject.arguments())
        }
        Form::Functions | Form::Statements => insert_evidence(&subject),
    };
    format!("SET CONSTRAINTS ALL IMMEDIATE; SET LOCAL ROLE NONE; {written}")
}

/// Whether the transaction may be anybody's.
fn is_anybodys() -> bool {
    mutated("P16-prepares-what-the-service-began")
}

/// What evidence is written of, each as an SQL expression of the type that the comment says.
pub(super) struct Subject {
    /// text
    branch: String,
    /// text
    resource_manager: String,
    /// uuid
    gtrid_uuid: String,
    /// bigint
    gtrid_epoch: String,
    /// bigint
    epoch: String,
    /// uuid
    incarnation: String,
    /// bigint
    sequence: String,
    /// interval
    lifetime: String,
    /// boolean
    in_one_phase: String,
    /// boolean: the transaction is the one that the SDK began
    is_ours: String,
}

impl Subject {
    fn of_branch(branch: &BranchId, position: &LogPosition, lifetime: Duration, in_one_phase: bool) -> Self {
        let gtrid = branch.xid.gtrid.to_string();
        let (gtrid_epoch, gtrid_uuid) = gtrid.split_once('.').expect("a gtrid's text is <epoch>.<uuid>");
        Self {
            branch: format!("'{branch}'"),
            resource_manager: format!("'{}'", branch.xid.bqual.resource_manager_str()),
            gtrid_uuid: format!("'{gtrid_uuid}'"),
            gtrid_epoch: bigint(gtrid_epoch),
            epoch: bigint(position.epoch),
            incarnation: format!("'{}'", position.incarnation),
            sequence: bigint(position.sequence),
            lifetime: format!("interval '{} milliseconds'", millis(lifetime)),
            in_one_phase: in_one_phase.to_string(),
            is_ours: if is_anybodys() { "true".to_owned() } else { is_ours(&format!("'{branch}'")) },
        }
    }

    /// The parameters of [`WRITE_EVIDENCE`], as `schema.rs` declares them.
    pub(super) fn of_function() -> Self {
        Self {
            branch: "of_branch".to_owned(),
            resource_manager: "of_resource_manager".to_owned(),
            gtrid_uuid: "of_gtrid_uuid".to_owned(),
            gtrid_epoch: "of_gtrid_epoch".to_owned(),
            epoch: "at_epoch".to_owned(),
            incarnation: "at_incarnation".to_owned(),
            sequence: "at_sequence".to_owned(),
            lifetime: "lifetime".to_owned(),
            in_one_phase: "in_one_phase".to_owned(),
            is_ours: is_ours("of_branch"),
        }
    }

    /// In the order of [`WRITE_EVIDENCE`]'s parameters.
    fn arguments(&self) -> String {
        let Self { branch, resource_manager, gtrid_uuid, gtrid_epoch, .. } = self;
        let Self { epoch, incarnation, sequence, lifetime, in_one_phase, .. } = self;
        format!(
            "{branch}, {resource_manager}, {gtrid_uuid}, {gtrid_epoch}, {epoch}, {incarnation}, {sequence}, {lifetime}, \
             {in_one_phase}"
        )
    }

    /// In the order of the last six of [`EVIDENCE_COLUMNS`].
    fn fixed_columns(&self) -> String {
        let Self { resource_manager, gtrid_uuid, gtrid_epoch, epoch, incarnation, sequence, .. } = self;
        format!("{resource_manager}, {gtrid_uuid}, {gtrid_epoch}, {epoch}, {incarnation}, {sequence}")
    }
}

/// In quotes it is read as what it has to be. A bare one is an integer, whose cast the server plans and computes for each statement: the five of a
/// branch were 28 thousand instructions, of 867 in all.
fn bigint(number: impl Display) -> String {
    format!("'{number}'")
}

fn is_ours(branch: &str) -> String {
    format!("pg_catalog.current_setting('lockstep.branch', true) OPERATOR(pg_catalog.=) {branch}")
}

/// The statement that writes evidence, and is refused unless the transaction is the one that the SDK began (P16), has written (except
/// to be committed in one phase), is in time (P19), and was not fenced: each by a constraint of its own.
///
/// Commits of one phase must be durable even if the handler asked for less, and a prepare must be where a synchronous standby will look for
/// it: asked for in the same statement, because each one costs the server as much as the row.
///
/// The row of a commit in one phase is seen as soon as it is written, so its retention counts from its deadline. That of a prepared
/// branch may be seen days later ([`notice`]).
pub(super) fn insert_evidence(of: &Subject) -> String {
    let Subject { branch, lifetime, in_one_phase, is_ours, .. } = of;
    let deadline = format!("(pg_catalog.now() OPERATOR(pg_catalog.+) {lifetime})");
    format!(
        "INSERT INTO lockstep.evidence ({EVIDENCE_COLUMNS}) VALUES ({branch}, \
         CASE WHEN {is_ours} AND {durable} IS NOT NULL THEN 'branch' END, \
         CASE WHEN {in_one_phase} THEN pg_catalog.pg_current_xact_id() \
         ELSE pg_catalog.pg_current_xact_id_if_assigned() END, \
         CASE WHEN pg_catalog.clock_timestamp() OPERATOR(pg_catalog.<) {deadline} THEN {deadline} END, \
         {in_one_phase}, {fixed})",
        durable = durable(true),
        fixed = of.fixed_columns(),
    )
}

/// Raises `synchronous_commit` to `on`, and leaves `remote_apply`, which is more, alone.
fn durable(only_this_transaction: bool) -> String {
    format!(
        "pg_catalog.set_config('synchronous_commit', \
         CASE WHEN pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'remote_apply' \
         THEN 'remote_apply' ELSE 'on' END, \
         {only_this_transaction})"
    )
}

fn listed(branch: &BranchId) -> String {
    format!(
        "SELECT pg_catalog.count(*) AS listed FROM pg_catalog.pg_prepared_xact() AS p \
         WHERE p.gid OPERATOR(pg_catalog.=) '{PREFIX}:{branch}'"
    )
}

fn written(branch: &BranchId) -> String {
    format!("SELECT kind FROM lockstep.evidence WHERE xid OPERATOR(pg_catalog.=) '{branch}'")
}

/// At least 1: PostgreSQL takes 0 for "no limit".
fn millis(duration: Duration) -> u128 {
    duration.as_millis().max(1)
}

pub(super) fn text(sql: String) -> SqlStr {
    AssertSqlSafe(sql).into_sql_str()
}

#[cfg(test)]
mod tests {
    use lockstep_proto::{Bqual, Gtrid, Xid};

    use super::*;

    #[test]
    fn the_longest_name_of_a_prepared_transaction_fits() {
        let name: ResourceManagerName = "n".repeat(47).parse().unwrap();
        let gtrid = Gtrid::new(Epoch::new(u32::MAX).unwrap(), (1 << 48) - 1, [255; 10]);
        let branch = BranchId {
            cluster: ClusterId::from_random(u32::MAX),
            xid: Xid { gtrid, bqual: Bqual::new(&name, u64::MAX) },
        };
        let sql = commit_prepared(&branch);
        let gid = sql.as_str().split('\'').nth(1).unwrap();
        assert!(gid.len() < 200, "PostgreSQL refuses names of 200 bytes: {gid}");
        assert_eq!(branch_of(gid).unwrap().parse(), Ok(branch));
    }

    #[test]
    fn only_names_with_our_prefix_name_a_branch() {
        assert_eq!(branch_of("lockstep:x"), Some("x"));
        for foreign in ["lockstepx:y", "lockstep", "x:lockstep:y", "", "Lockstep:x"] {
            assert_eq!(branch_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn no_timeout_becomes_none() {
        assert_eq!(millis(Duration::ZERO), 1);
        assert_eq!(millis(Duration::from_micros(2_500)), 2);
    }
}
