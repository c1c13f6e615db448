//! Every statement that is sent to MariaDB or MySQL, built from checked types only.
//!
//! XA statements take no parameters, and several statements go out in one round trip, so these are texts. Nothing is put
//! into them but [`BranchId`], [`ClusterId`], [`ResourceManagerName`] and [`LogPosition`] (their texts consist of
//! `[0-9a-z._:-]`), a quoted [`Schema`], and numbers. No other file makes SQL text.
//!
//! What runs on a branch's connection names the database of our tables: a handler may have chosen another one with USE.
//! What only one of the two products knows is in a comment that only it executes: `/*M!100502 … */` is MariaDB from
//! 10.5.2, `/*!80000 … */` is MySQL from 8.0.

use std::time::Duration;

use lockstep_proto::{ClusterId, Epoch, Gtrid, LogPosition, Positions, ResourceManagerName};
use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};
use uuid::Uuid;

use crate::resource::BranchId;
use crate::resource::inspection::MOST;

/// Tells our XA branches from those of other products: "lock" in ASCII. Nothing else is ever touched.
pub(super) const FORMAT_ID: i64 = 0x6c6f_636b;

/// The format of our tables. A newer one is refused.
pub(crate) const FORMAT: i64 = 1;

/// The column of the evidence that has no value for a branch whose deadline has passed by the server's clock.
pub(super) const DEADLINE: &str = "deadline";

/// What the server is and how it is set up: a row for each setting that the product knows.
pub(super) const SETTINGS: &str = "SHOW GLOBAL VARIABLES WHERE Variable_name IN (\
     'version', 'version_comment', 'server_uid', 'server_uuid', 'read_only', 'innodb_read_only', \
     'innodb_flush_log_at_trx_commit', 'innodb_doublewrite', 'innodb_flush_method', 'default_storage_engine', \
     'log_bin', 'sync_binlog', 'binlog_format', 'wsrep_on', 'datadir')";

/// Who we are and where: one row.
pub(super) const PLACE: &str = "SELECT CURRENT_USER() AS user, DATABASE() AS place";

/// A row for each table of this database that a branch can't roll back, at most ten.
pub(super) const OTHER_ENGINES: &str = "SELECT TABLE_NAME AS name FROM information_schema.TABLES \
     WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE = 'BASE TABLE' AND ENGINE <> 'InnoDB' \
     ORDER BY TABLE_NAME LIMIT 10";

/// All prepared branches of the server, of whomever. MySQL asks for a privilege.
pub(super) const RECOVER: &str = "XA RECOVER";

/// What nobody else may have set for a connection of the resource's own: that what it reads is the newest, that what
/// it writes is committed by itself, and that no wait is without an end.
pub(super) fn set_up_own_connection(lock_wait: Duration, statement: Duration) -> SqlStr {
    text(format!(
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
         SET SESSION TRANSACTION READ WRITE; \
         SET SESSION autocommit = 1, innodb_lock_wait_timeout = {lock}, lock_wait_timeout = {lock} \
         /*M!100502 , max_statement_time = {statement} */",
        lock = seconds(lock_wait),
        statement = statement.as_secs_f64(),
    ))
}

/// A database, that is a schema, quoted: the one that holds our tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schema(String);

impl Schema {
    pub(super) fn new(name: &str) -> Self {
        Self(format!("`{}`", name.replace('`', "``")))
    }

    /// Its name in a statement.
    pub(super) fn quoted(&self) -> &str {
        &self.0
    }

    fn evidence_table(&self) -> String {
        format!("{}.lockstep_evidence", self.0)
    }

    fn identity_table(&self) -> String {
        format!("{}.lockstep_identity", self.0)
    }

    fn positions_table(&self) -> String {
        format!("{}.lockstep_positions", self.0)
    }

    /// Makes our tables where they are missing, one statement each. Times are in UTC.
    pub(super) fn create_tables(&self) -> [SqlStr; 3] {
        // Always compared byte by byte, whatever the database's collation is.
        let options = "ENGINE = InnoDB CHARACTER SET ascii COLLATE ascii_bin";
        [
            text(format!(
                "CREATE TABLE IF NOT EXISTS {} (\
                 xid VARCHAR(160) NOT NULL PRIMARY KEY, \
                 kind ENUM('branch', 'fence', 'hazard') NOT NULL, \
                 {DEADLINE} DATETIME(6) NOT NULL, \
                 resource_manager VARCHAR(64) NOT NULL, \
                 gtrid_uuid CHAR(32) NOT NULL, gtrid_epoch BIGINT NOT NULL, \
                 epoch BIGINT NOT NULL, incarnation CHAR(32) NOT NULL, sequence BIGINT NOT NULL, \
                 written_at DATETIME(6) NOT NULL, noticed BOOLEAN NOT NULL, \
                 KEY by_deadline (resource_manager, {DEADLINE}), \
                 KEY by_gtrid (resource_manager, kind, gtrid_uuid, gtrid_epoch), \
                 KEY by_position (resource_manager, epoch, sequence)) {options}",
                self.evidence_table()
            )),
            text(format!(
                "CREATE TABLE IF NOT EXISTS {} (\
                 resource_manager VARCHAR(64) NOT NULL PRIMARY KEY, \
                 format SMALLINT NOT NULL, identity CHAR(32) NOT NULL, cluster VARCHAR(32), \
                 seen_epoch BIGINT, seen_incarnation CHAR(32), seen_sequence BIGINT, \
                 made_at DATETIME(6) NOT NULL) {options}",
                self.identity_table()
            )),
            // In the identity's `seen_…`, SDKs from before this table kept one position for all epochs: it is read, and no longer
            // written.
            text(format!(
                "CREATE TABLE IF NOT EXISTS {} (\
                 resource_manager VARCHAR(64) NOT NULL, epoch BIGINT NOT NULL, \
                 incarnation CHAR(32) NOT NULL, sequence BIGINT NOT NULL, \
                 PRIMARY KEY (resource_manager, epoch)) {options}",
                self.positions_table()
            )),
        ]
    }

    /// What the user needs in our tables, for a person to grant.
    pub(super) fn grants(&self, user: &str) -> String {
        format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {user};\nGRANT SELECT, INSERT, UPDATE ON {} TO {user};\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {user};",
            self.evidence_table(),
            self.identity_table(),
            self.positions_table()
        )
    }

    /// Refused where a table is missing or the user may not use it; changes nothing.
    pub(super) fn try_tables(&self) -> SqlStr {
        let (evidence, identity) = (self.evidence_table(), self.identity_table());
        let positions = self.positions_table();
        text(format!(
            "SELECT 1 FROM {evidence} LIMIT 0; SELECT 1 FROM {identity} LIMIT 0; SELECT 1 FROM {positions} LIMIT 0; \
             INSERT INTO {evidence} SELECT * FROM {evidence} WHERE false; \
             UPDATE {evidence} SET noticed = noticed WHERE false; \
             DELETE FROM {evidence} WHERE false; \
             INSERT INTO {identity} SELECT * FROM {identity} WHERE false; \
             UPDATE {identity} SET format = format WHERE false; \
             INSERT INTO {positions} SELECT * FROM {positions} WHERE false; \
             UPDATE {positions} SET sequence = sequence WHERE false; \
             DELETE FROM {positions} WHERE false"
        ))
    }

    /// Which engines our tables have: a row each.
    pub(super) fn engines() -> &'static str {
        "SELECT ENGINE AS engine FROM information_schema.TABLES \
         WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME IN ('lockstep_evidence', 'lockstep_identity', 'lockstep_positions')"
    }

    /// Makes the identity unless there is one.
    pub(super) fn make_identity(&self, name: &ResourceManagerName, identity: uuid::Uuid) -> SqlStr {
        text(format!(
            "INSERT IGNORE INTO {} (resource_manager, format, identity, made_at) \
             VALUES ('{name}', {FORMAT}, '{}', UTC_TIMESTAMP(6))",
            self.identity_table(),
            identity.as_simple()
        ))
    }

    /// The identity: one row.
    pub(super) fn identity_of(&self, name: &ResourceManagerName) -> SqlStr {
        text(format!(
            "SELECT CAST(format AS SIGNED) AS format, identity, COALESCE(cluster, '') AS cluster \
             FROM {} WHERE resource_manager = '{name}'",
            self.identity_table()
        ))
    }

    /// The positions that were kept beside the evidence. Two rows for some epochs.
    pub(super) fn kept_positions(&self, name: &ResourceManagerName) -> SqlStr {
        text(format!(
            "SELECT epoch, incarnation, sequence FROM {} WHERE resource_manager = '{name}' UNION ALL \
             SELECT seen_epoch, seen_incarnation, seen_sequence FROM {} \
             WHERE resource_manager = '{name}' AND seen_epoch IS NOT NULL",
            self.positions_table(),
            self.identity_table(),
        ))
    }

    /// What is stored about all resource managers of this database.
    pub(super) fn identities(&self) -> SqlStr {
        text(format!(
            "SELECT resource_manager, CAST(format AS SIGNED) AS format, identity, COALESCE(cluster, '') AS cluster \
             FROM {} ORDER BY resource_manager LIMIT 1000",
            self.identity_table()
        ))
    }

    /// The newest position of the newest epoch, below this one if one is given, in any evidence row of `cluster`.
    pub(super) fn newest_position(
        &self,
        name: &ResourceManagerName,
        cluster: ClusterId,
        below: Option<Epoch>,
    ) -> SqlStr {
        let below = below.map_or(String::new(), |below| format!(" AND epoch < {below}"));
        text(format!(
            "SELECT epoch, incarnation, sequence FROM {} \
             WHERE resource_manager = '{name}' AND xid LIKE '{cluster}:%'{below} \
             ORDER BY epoch DESC, sequence DESC LIMIT 1",
            self.evidence_table()
        ))
    }

    /// Stores the cluster unless one is stored.
    pub(super) fn bind(&self, name: &ResourceManagerName, cluster: ClusterId) -> SqlStr {
        text(format!(
            "UPDATE {} SET cluster = '{cluster}' WHERE resource_manager = '{name}' AND cluster IS NULL",
            self.identity_table()
        ))
    }

    /// Asks what happened in the branch so far, and writes its evidence. Answers with warnings, [`COUNTERS`], and the evidence's
    /// OK.
    ///
    /// - `noticed`: whether the row is seen as soon as it is written, so that its retention counts from its deadline. That of a prepared
    ///   branch may be seen days later ([`Schema::notice`]).
    /// - The server's clock is the real one, even if the handler has set another.
    /// - What follows has to come within `pause`; otherwise the server ends the session. Whoever is stopped before XA PREPARE
    ///   can't send it much later (P19), and whoever is stopped behind it does not keep others from finishing the branch (P24).
    /// - The user lock is the session's until it ends, and tells others that it is there ([`session_is_there`]).
    /// - Rolling back to a savepoint that was just made does nothing but warn if something was done that can't be rolled back.
    ///   And it fails, and the evidence is not reached, in a session that is outside of any transaction, because the service has
    ///   ended the branch: there the row would be committed by itself, and lie.
    pub(super) fn write_evidence(
        &self,
        branch: &BranchId,
        position: &LogPosition,
        deadline_micros: i64,
        pause: Duration,
        noticed: bool,
    ) -> SqlStr {
        let deadline = format!("TIMESTAMPADD(MICROSECOND, {deadline_micros}, '1970-01-01')");
        text(format!(
            "SET SESSION timestamp = DEFAULT, wait_timeout = {pause} \
             /*M!100502 , idle_transaction_timeout = {pause} */; \
             DO GET_LOCK('{lock}', 0); \
             SAVEPOINT lockstep; ROLLBACK TO SAVEPOINT lockstep; SHOW WARNINGS; \
             {COUNTERS}; \
             INSERT INTO {evidence} ({EVIDENCE_COLUMNS}) VALUES ('{branch}', 'branch', \
             IF(UTC_TIMESTAMP(6) < {deadline}, {deadline}, NULL), {noticed}, {fixed})",
            pause = seconds(pause),
            lock = user_lock(branch),
            evidence = self.evidence_table(),
            fixed = fixed_columns(branch, position),
        ))
    }

    /// Puts a fence in. Refused if there is evidence.
    pub(super) fn fence(&self, branch: &BranchId, position: &LogPosition, lifetime: Duration) -> SqlStr {
        self.end_without_branch("fence", branch, position, lifetime)
    }

    /// Puts in that a branch can be brought to neither end. Refused if there is evidence.
    pub(super) fn hazard(&self, branch: &BranchId, position: &LogPosition, lifetime: Duration) -> SqlStr {
        self.end_without_branch("hazard", branch, position, lifetime)
    }

    fn end_without_branch(
        &self,
        kind: &str,
        branch: &BranchId,
        position: &LogPosition,
        lifetime: Duration,
    ) -> SqlStr {
        text(format!(
            "INSERT INTO {evidence} ({EVIDENCE_COLUMNS}) VALUES ('{branch}', '{kind}', \
             TIMESTAMPADD(MICROSECOND, {lifetime}, UTC_TIMESTAMP(6)), true, {fixed})",
            evidence = self.evidence_table(),
            lifetime = lifetime.as_micros(),
            fixed = fixed_columns(branch, position),
        ))
    }

    /// Keeps the position unless a newer one of its epoch is kept.
    pub(super) fn keep_position(&self, name: &ResourceManagerName, position: &LogPosition) -> SqlStr {
        text(self.raise_position(name, position))
    }

    fn raise_position(&self, name: &ResourceManagerName, position: &LogPosition) -> String {
        let LogPosition { epoch, incarnation, sequence } = position;
        // From left to right: the incarnation is compared by the sequence that was there.
        format!(
            "INSERT INTO {positions} (resource_manager, epoch, incarnation, sequence) \
             VALUES ('{name}', {epoch}, '{incarnation}', {sequence}) ON DUPLICATE KEY UPDATE \
             incarnation = IF(sequence < {sequence}, '{incarnation}', incarnation), \
             sequence = GREATEST(sequence, {sequence})",
            positions = self.positions_table(),
        )
    }

    /// Keeps the position, and lets go of those of these epochs. One transaction.
    pub(super) fn settle(
        &self,
        name: &ResourceManagerName,
        position: &LogPosition,
        epochs: &[Epoch],
    ) -> SqlStr {
        let mut sql = format!("START TRANSACTION; {}; ", self.raise_position(name, position));
        for epoch in epochs {
            sql.push_str(&format!(
                "DELETE FROM {} WHERE resource_manager = '{name}' AND epoch = {epoch}; ",
                self.positions_table()
            ));
        }
        sql.push_str("COMMIT");
        text(sql)
    }

    /// Of which kind the evidence is.
    pub(super) fn kind(&self, branch: &BranchId) -> SqlStr {
        text(format!("SELECT kind FROM {} WHERE xid = '{branch}'", self.evidence_table()))
    }

    /// The same as [`Schema::kind`], of a transaction that was not committed as well.
    pub(super) fn kind_even_if_uncommitted(&self, branch: &BranchId) -> SqlStr {
        text(format!(
            "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED; SELECT kind FROM {} WHERE xid = '{branch}'",
            self.evidence_table()
        ))
    }

    /// Whether the server is a replica, then the oldest branch of `cluster` that has evidence.
    pub(super) fn oldest_evidence(&self, name: &ResourceManagerName, cluster: ClusterId) -> SqlStr {
        text(format!(
            "{READ_ONLY}; SELECT xid FROM {} \
             WHERE resource_manager = '{name}' AND kind <> 'fence' AND xid LIKE '{cluster}:%' \
             ORDER BY gtrid_uuid, gtrid_epoch LIMIT 1",
            self.evidence_table()
        ))
    }

    /// The evidence of one transaction. Its branches lie side by side in the table's key.
    pub(super) fn inspect_evidence(
        &self,
        name: &ResourceManagerName,
        cluster: ClusterId,
        gtrid: Gtrid,
    ) -> SqlStr {
        text(format!(
            "SELECT xid, kind, CAST(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', written_at) DIV 1000 AS SIGNED) AS at_ms \
             FROM {} WHERE xid LIKE '{cluster}:{gtrid}:%' AND resource_manager = '{name}' ORDER BY xid LIMIT {MOST}",
            self.evidence_table(),
        ))
    }

    /// Rows whose deadline is `retention` ago, longest ago first, and whether they were noticed before.
    pub(super) fn old_evidence(
        &self,
        name: &ResourceManagerName,
        cluster: ClusterId,
        retention: Duration,
        limit: usize,
    ) -> SqlStr {
        text(format!(
            "SELECT xid, kind, CAST(noticed AS SIGNED) AS noticed FROM {} WHERE resource_manager = '{name}' AND xid LIKE '{cluster}:%' \
             AND {DEADLINE} < TIMESTAMPADD(MICROSECOND, -{}, UTC_TIMESTAMP(6)) ORDER BY {DEADLINE} LIMIT {limit}",
            self.evidence_table(),
            retention.as_micros(),
        ))
    }

    /// Has the retention of these rows count from now: a prepared branch's row can't be changed before its commit, says when it was
    /// prepared, and is seen when it is committed, be it days later or, after a failover, for the second time.
    ///
    /// One statement for each row, as in [`Schema::forget`].
    pub(super) fn notice(&self, branches: &[BranchId]) -> SqlStr {
        let mut sql = "START TRANSACTION; ".to_owned();
        for branch in branches {
            sql.push_str(&format!(
                "UPDATE {} SET noticed = true, {DEADLINE} = UTC_TIMESTAMP(6) WHERE xid = '{branch}' AND NOT noticed; ",
                self.evidence_table()
            ));
        }
        sql.push_str("COMMIT");
        text(sql)
    }

    /// The positions of these rows.
    pub(super) fn positions_of(&self, branches: &[BranchId]) -> SqlStr {
        let keys: Vec<String> = branches.iter().map(|branch| format!("'{branch}'")).collect();
        text(format!(
            "SELECT epoch, incarnation, sequence FROM {} WHERE xid IN ({})",
            self.evidence_table(),
            keys.join(", "),
        ))
    }

    /// Deletes rows, and keeps the newest positions among them: both or neither.
    ///
    /// One statement for each row, by its key: a list of keys may be carried out as a scan of the table, which blocks new
    /// rows and waits for prepared ones (P19).
    pub(super) fn forget(
        &self,
        name: &ResourceManagerName,
        branches: &[BranchId],
        newest: &Positions,
    ) -> SqlStr {
        let mut sql = String::from("START TRANSACTION; ");
        for position in newest.iter() {
            sql.push_str(&format!("{}; ", self.raise_position(name, position)));
        }
        for branch in branches {
            sql.push_str(&format!("DELETE FROM {} WHERE xid = '{branch}'; ", self.evidence_table()));
        }
        sql.push_str("COMMIT");
        text(sql)
    }
}

/// Whether the server takes writes: a replica that waits for its promotion does not.
const READ_ONLY: &str = "SELECT CAST(@@GLOBAL.read_only AS SIGNED) AS read_only";

/// Whether the server is a replica, then every prepared branch of the whole server.
pub(super) fn prepared() -> SqlStr {
    text(format!("{READ_ONLY}; {RECOVER}"))
}

/// Which server it is.
pub(super) const VERSION: &str = "SELECT VERSION() AS version";

/// The server's time in milliseconds since 1970.
pub(super) const CLOCK: &str =
    "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000 AS now";

/// The sessions that wait for a transaction that no session has, which is a prepared one. Needs PROCESS; MySQL keeps the
/// waits elsewhere.
pub(super) const BLOCKED_IN_MARIADB: &str = "SELECT CAST(r.trx_mysql_thread_id AS SIGNED) AS session, \
     CAST(TIMESTAMPDIFF(SECOND, r.trx_wait_started, NOW()) AS SIGNED) AS seconds, l.lock_table AS object, \
     (SELECT CAST(p.TIME_MS AS SIGNED) FROM information_schema.PROCESSLIST AS p WHERE p.ID = r.trx_mysql_thread_id) \
     AS statement_ms \
     FROM information_schema.INNODB_LOCK_WAITS AS w \
     JOIN information_schema.INNODB_TRX AS b ON b.trx_id = w.blocking_trx_id AND b.trx_mysql_thread_id = 0 \
     JOIN information_schema.INNODB_TRX AS r ON r.trx_id = w.requesting_trx_id \
     JOIN information_schema.INNODB_LOCKS AS l ON l.lock_id = w.requested_lock_id \
     ORDER BY seconds DESC LIMIT 1000";

/// The same.
pub(super) const BLOCKED_IN_MYSQL: &str = "SELECT CAST(r.trx_mysql_thread_id AS SIGNED) AS session, \
     CAST(TIMESTAMPDIFF(SECOND, r.trx_wait_started, NOW()) AS SIGNED) AS seconds, l.OBJECT_NAME AS object, \
     (SELECT CAST(p.TIME * 1000 AS SIGNED) FROM information_schema.PROCESSLIST AS p WHERE p.ID = r.trx_mysql_thread_id) \
     AS statement_ms \
     FROM performance_schema.data_lock_waits AS w \
     JOIN information_schema.INNODB_TRX AS b ON b.trx_id = w.BLOCKING_ENGINE_TRANSACTION_ID \
     AND b.trx_mysql_thread_id = 0 \
     JOIN information_schema.INNODB_TRX AS r ON r.trx_id = w.REQUESTING_ENGINE_TRANSACTION_ID \
     JOIN performance_schema.data_locks AS l ON l.ENGINE_LOCK_ID = w.REQUESTING_ENGINE_LOCK_ID \
     ORDER BY seconds DESC LIMIT 1000";

/// How long what happens in a branch's connection may last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// One wait for a lock.
    pub(super) lock_wait: Duration,
    /// One statement, and one pause between two.
    pub(super) activity: Duration,
}

/// Begins a branch's local transaction. Refused in a session that is inside of one already: one that was left open on a
/// connection of the pool.
///
/// Waits for locks and pauses are limited in whole seconds.
pub(super) fn begin(branch: &BranchId, limits: Limits) -> SqlStr {
    text(format!(
        "SET SESSION innodb_lock_wait_timeout = {lock}, lock_wait_timeout = {lock}, wait_timeout = {pause} \
         /*M!100502 , idle_transaction_timeout = {pause}, max_statement_time = {statement} */ \
         /*!80000 , max_execution_time = {millis} */; \
         XA START {xid}",
        // Rounded down: the wait ends before the deadline, and whoever waited hears of it. 0 would be no wait at all.
        lock = limits.lock_wait.as_secs().max(1),
        pause = seconds(limits.activity),
        statement = limits.activity.as_secs_f64(),
        millis = limits.activity.as_millis(),
        xid = xid(branch),
    ))
}

/// What a session waits for, and who has it: no row if it waits for nothing. Others that wait for the same, and came before, are
/// in the way too, and are named only if nobody else is. Needs PROCESS; MySQL keeps the waits elsewhere.
pub(super) fn awaited(session: u64) -> SqlStr {
    text(format!(
        "SELECT l.lock_table AS object, COALESCE(l.lock_index, '') AS part, \
         COALESCE(CONCAT('page ', l.lock_page, ', record ', l.lock_rec), '') AS place, \
         CAST(b.trx_mysql_thread_id AS SIGNED) AS holder \
         FROM information_schema.INNODB_TRX AS r \
         JOIN information_schema.INNODB_LOCK_WAITS AS w ON w.requesting_trx_id = r.trx_id \
         JOIN information_schema.INNODB_TRX AS b ON b.trx_id = w.blocking_trx_id \
         JOIN information_schema.INNODB_LOCKS AS l ON l.lock_id = w.requested_lock_id \
         WHERE r.trx_mysql_thread_id = {session} ORDER BY b.trx_wait_started IS NOT NULL LIMIT 1"
    ))
}

/// How many rows were written in this session so far: a row for each way to do that.
pub(super) fn rows_written() -> SqlStr {
    text(
        "SHOW SESSION STATUS WHERE Variable_name IN ('Handler_write', 'Handler_update', 'Handler_delete')"
            .to_owned(),
    )
}

/// [`COUNTERS`] alone.
pub(super) fn counters() -> SqlStr {
    text(COUNTERS.to_owned())
}

/// Which session this is, the server's time in microseconds since 1970, whether [`kill`] finds it from here on, and [`COUNTERS`].
pub(super) fn session(branch: &BranchId) -> SqlStr {
    let lock = open_lock(branch);
    text(format!(
        "SELECT CONNECTION_ID() AS session, {NOW} AS now, CAST(GET_LOCK('{lock}', 0) AS SIGNED) AS is_marked; {COUNTERS}"
    ))
}

const NOW: &str = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))";

/// What happened in this session so far: a row for each counter.
const COUNTERS: &str = "SHOW SESSION STATUS WHERE Variable_name IN ('Com_xa_start', 'Com_xa_end', 'Com_xa_commit', \
     'Handler_rollback', 'Handler_write', 'Handler_update', 'Handler_delete')";

/// The end of the work in the branch.
pub(super) fn end(branch: &BranchId) -> SqlStr {
    text(format!("XA END {}", xid(branch)))
}

/// Prepares. XA PREPARE is not reached if XA END is refused.
pub(super) fn prepare(branch: &BranchId) -> SqlStr {
    let xid = xid(branch);
    text(format!("XA END {xid}; XA PREPARE {xid}"))
}

/// Commits without preparing.
pub(super) fn commit_one_phase(branch: &BranchId) -> SqlStr {
    let xid = xid(branch);
    text(format!("XA END {xid}; XA COMMIT {xid} ONE PHASE"))
}

/// Commits a prepared branch.
pub(super) fn commit(branch: &BranchId) -> SqlStr {
    text(format!("XA COMMIT {}", xid(branch)))
}

/// Rolls a branch back: a prepared one, or this session's own behind XA END.
pub(super) fn rollback(branch: &BranchId) -> SqlStr {
    text(format!("XA ROLLBACK {}", xid(branch)))
}

/// Whether the session that prepared this branch, or tried to, is still there, as far as its user lock tells.
pub(super) fn session_is_there(branch: &BranchId) -> SqlStr {
    text(format!("SELECT CAST(IS_USED_LOCK('{}') IS NOT NULL AS SIGNED) AS is_there", user_lock(branch)))
}

/// The name of the user lock that a branch's session holds from its evidence on. Names of at most 64 characters are taken: it is made of the
/// branch's.
fn user_lock(branch: &BranchId) -> String {
    format!("lockstep-{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, branch.to_string().as_bytes()).simple())
}

/// The name of the user lock that a branch's session holds from its begin on. Another one than [`user_lock`]: a branch that is open is
/// none to wait for when it is to be finished.
fn open_lock(branch: &BranchId) -> String {
    format!("{}-open", user_lock(branch))
}

/// Ends the session that the branch is open in. Refused if there is none: another one is never hit, not even if the server was restarted
/// and has given the number to somebody else.
///
/// MariaDB's and MySQL's grammars take an expression there, without subqueries.
pub(super) fn kill(branch: &BranchId) -> SqlStr {
    text(format!("KILL IS_USED_LOCK('{}')", open_lock(branch)))
}

/// The branch that an entry of XA RECOVER is, in text: `None` if it is another product's. `gtrid_length`: the bytes of
/// `data` that are the gtrid, behind which the bqual follows.
pub(super) fn branch_of(format_id: i64, gtrid_length: i64, data: &[u8]) -> Option<String> {
    if format_id != FORMAT_ID {
        return None;
    }
    let (gtrid, bqual) = data.split_at_checked(usize::try_from(gtrid_length).ok()?)?;
    Some(format!("{}:{}", std::str::from_utf8(gtrid).ok()?, std::str::from_utf8(bqual).ok()?))
}

/// A branch as XA names it: the cluster and the gtrid are the global id.
fn xid(branch: &BranchId) -> String {
    let BranchId { cluster, xid } = branch;
    format!("'{cluster}:{}','{}',{FORMAT_ID}", xid.gtrid, xid.bqual)
}

const EVIDENCE_COLUMNS: &str = "xid, kind, deadline, noticed, resource_manager, gtrid_uuid, gtrid_epoch, epoch, \
     incarnation, sequence, written_at";

/// The last seven columns.
fn fixed_columns(branch: &BranchId, position: &LogPosition) -> String {
    let gtrid = branch.xid.gtrid;
    let text = gtrid.to_string();
    let (epoch, uuid) = text.split_once('.').expect("a gtrid's text is <epoch>.<uuid>");
    format!(
        "'{name}', '{uuid}', {epoch}, {log_epoch}, '{incarnation}', {sequence}, UTC_TIMESTAMP(6)",
        name = branch.xid.bqual.resource_manager_str(),
        log_epoch = position.epoch,
        incarnation = position.incarnation,
        sequence = position.sequence,
    )
}

/// Whole seconds, rounded up: the servers take no less, and 0 means something else to each of their settings.
fn seconds(duration: Duration) -> u64 {
    let more = u64::from(duration.subsec_nanos() > 0);
    (duration.as_secs() + more).max(1)
}

fn text(sql: String) -> SqlStr {
    AssertSqlSafe(sql).into_sql_str()
}

#[cfg(test)]
mod tests {
    use lockstep_proto::{Bqual, Gtrid, Xid};

    use super::*;

    fn longest() -> BranchId {
        let name: ResourceManagerName = "n".repeat(47).parse().unwrap();
        let gtrid = Gtrid::new(Epoch::new(u32::MAX).unwrap(), (1 << 48) - 1, [255; 10]);
        BranchId {
            cluster: ClusterId::from_random(u32::MAX),
            xid: Xid { gtrid, bqual: Bqual::new(&name, u64::MAX) },
        }
    }

    #[test]
    fn the_longest_xid_fits() {
        let sql = commit(&longest());
        let halves: Vec<&str> = sql.as_str().split('\'').collect();
        let (gtrid, bqual) = (halves[1], halves[3]);
        assert!(gtrid.len() <= 64 && bqual.len() <= 64, "XA takes 64 bytes each: {gtrid} {bqual}");
        assert!(longest().to_string().len() <= 160, "the key of the evidence");
        let data = format!("{gtrid}{bqual}");
        let length = i64::try_from(gtrid.len()).unwrap();
        assert_eq!(branch_of(FORMAT_ID, length, data.as_bytes()).unwrap().parse(), Ok(longest()));
    }

    #[test]
    fn only_our_format_names_a_branch() {
        assert_eq!(branch_of(FORMAT_ID, 1, b"ab"), Some("a:b".to_owned()));
        assert_eq!(branch_of(1, 1, b"ab"), None, "another product's");
        assert_eq!(branch_of(FORMAT_ID, 3, b"ab"), None, "shorter than it says");
        assert_eq!(branch_of(FORMAT_ID, -1, b"ab"), None);
        assert_eq!(branch_of(FORMAT_ID, 1, b"\xffb"), None);
    }

    #[test]
    fn a_database_can_have_any_name() {
        assert_eq!(Schema::new("a`b").evidence_table(), "`a``b`.lockstep_evidence");
    }

    #[test]
    fn no_timeout_becomes_none_or_shorter() {
        assert_eq!(seconds(Duration::ZERO), 1);
        assert_eq!(seconds(Duration::from_millis(1_001)), 2);
        assert_eq!(seconds(Duration::from_secs(2)), 2);
    }
}
