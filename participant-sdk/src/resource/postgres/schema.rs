//! Our schema in a PostgreSQL database: how its tables and functions are made, granted, and looked at.
//!
//! The tables hold what must not be lost. The functions do nothing that a statement could not do: PostgreSQL parses and plans a statement that
//! comes as a text each time, and one in a function of PL/pgSQL seldom. What every branch sends costs the server less that
//! way (docs/performance.md, `bench statements`). So a database without the functions is as safe, and its branches cost more.
//!
//! Another body gets another name, so that SDKs of several versions can share a database. A function whose body is not ours is not called.

use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::SqlStr;
use sqlx::postgres::PgDatabaseError;

use super::refusal::{INSUFFICIENT_PRIVILEGE, UNDEFINED_FUNCTION};
use super::sql::{self, Form, RAISED, Subject};

/// Makes our tables: statements of one transaction, of which one runs at a time, which the first of them is for. Instances of
/// one service start together, and `IF NOT EXISTS` alone fails when two of them create the same thing at once.
pub(crate) const CREATE_TABLES: &[&str] = &[
    ONE_AT_A_TIME,
    "CREATE SCHEMA IF NOT EXISTS lockstep",
    // Which kinds there are is checked where they are read, and not here: the server reads the expression of a CHECK anew for each statement, which for a
    // list of three was 34 thousand instructions of a branch, of 867 in all.
    // COLLATE "C": a new version of the operating system's collations can't break the key.
    "CREATE TABLE IF NOT EXISTS lockstep.evidence (\
     xid text COLLATE \"C\" CONSTRAINT evidence_pkey PRIMARY KEY, \
     kind text CONSTRAINT branch_ended_by_its_service CHECK (kind IS NOT NULL), \
     local_xid xid8 CONSTRAINT branch_read_only_and_not_prepared CHECK (local_xid IS NOT NULL), \
     deadline timestamptz CONSTRAINT branch_too_late_to_prepare CHECK (deadline IS NOT NULL), \
     resource_manager text COLLATE \"C\" NOT NULL, \
     gtrid_uuid uuid NOT NULL, gtrid_epoch bigint NOT NULL, \
     epoch bigint NOT NULL, incarnation uuid NOT NULL, sequence bigint NOT NULL, \
     written_at timestamptz NOT NULL DEFAULT clock_timestamp(), \
     noticed boolean NOT NULL)",
    "CREATE INDEX IF NOT EXISTS evidence_by_deadline ON lockstep.evidence (resource_manager, deadline)",
    "CREATE INDEX IF NOT EXISTS evidence_by_gtrid ON lockstep.evidence \
     (resource_manager, gtrid_uuid, gtrid_epoch) WHERE kind <> 'fence'",
    "CREATE INDEX IF NOT EXISTS evidence_by_position ON lockstep.evidence (resource_manager, epoch, sequence)",
    "CREATE TABLE IF NOT EXISTS lockstep.identity (\
     resource_manager text COLLATE \"C\" PRIMARY KEY, \
     format smallint NOT NULL, identity uuid NOT NULL DEFAULT gen_random_uuid(), cluster text COLLATE \"C\", \
     seen_epoch bigint, seen_incarnation uuid, seen_sequence bigint, \
     made_at timestamptz NOT NULL DEFAULT clock_timestamp())",
    // In the identity's `seen_…`, SDKs from before this table kept one position for all epochs: it is read, and no longer written.
    "CREATE TABLE IF NOT EXISTS lockstep.positions (\
     resource_manager text COLLATE \"C\" NOT NULL, epoch bigint NOT NULL, \
     incarnation uuid NOT NULL, sequence bigint NOT NULL, \
     CONSTRAINT positions_pkey PRIMARY KEY (resource_manager, epoch))",
];

const ONE_AT_A_TIME: &str = "SELECT pg_advisory_xact_lock(x'6c6f636b73746570'::bigint)";

/// What the role needs in our tables, for a person to grant. `{role}` is the role.
pub(crate) const GRANTS: &[&str] = &[
    "GRANT USAGE ON SCHEMA lockstep TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON lockstep.evidence TO {role}",
    "GRANT SELECT, INSERT, UPDATE ON lockstep.identity TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON lockstep.positions TO {role}",
];

/// Whether our tables are there, and the role may use them: `absent`, `forbidden` or `ready`. If they are ready, what of them
/// is not as we have made it, and would make them lose what they prove. (Below, the tables are found without `to_regclass`,
/// which is refused to a role that may not use the schema.) Where only `positions` is not there, an SDK from before it has made the others: it is
/// made beside them. Beside tables that are not ours nothing is made: they count as ready, and lack what ours have.
pub(crate) const TABLES: &str = "SELECT CASE \
     WHEN to_regnamespace('lockstep') IS NULL THEN 'absent' \
     WHEN NOT has_schema_privilege('lockstep', 'USAGE') THEN 'forbidden' \
     WHEN to_regclass('lockstep.evidence') IS NULL OR to_regclass('lockstep.identity') IS NULL THEN 'absent' \
     WHEN to_regclass('lockstep.positions') IS NULL THEN CASE WHEN EXISTS (SELECT FROM pg_constraint AS c \
     JOIN pg_class AS t ON t.oid = c.conrelid WHERE t.relnamespace = to_regnamespace('lockstep') \
     AND t.relname = 'evidence' AND c.conname = 'evidence_pkey') THEN 'absent' ELSE 'ready' END \
     WHEN has_table_privilege('lockstep.evidence', 'SELECT') \
     AND has_table_privilege('lockstep.evidence', 'INSERT') \
     AND has_table_privilege('lockstep.evidence', 'UPDATE') \
     AND has_table_privilege('lockstep.evidence', 'DELETE') \
     AND has_table_privilege('lockstep.identity', 'SELECT') \
     AND has_table_privilege('lockstep.identity', 'INSERT') \
     AND has_table_privilege('lockstep.identity', 'UPDATE') \
     AND has_table_privilege('lockstep.positions', 'SELECT') \
     AND has_table_privilege('lockstep.positions', 'INSERT') \
     AND has_table_privilege('lockstep.positions', 'UPDATE') \
     AND has_table_privilege('lockstep.positions', 'DELETE') THEN 'ready' \
     ELSE 'forbidden' END AS tables, \
     coalesce((SELECT string_agg(needed, ', ') FROM unnest(ARRAY['branch_ended_by_its_service', \
     'branch_read_only_and_not_prepared', 'branch_too_late_to_prepare', 'evidence_pkey']) AS needed \
     WHERE NOT EXISTS (SELECT FROM pg_constraint AS c JOIN pg_class AS t ON t.oid = c.conrelid \
     WHERE t.relnamespace = to_regnamespace('lockstep') AND t.relname = 'evidence' \
     AND c.conname = needed AND c.convalidated)), '') AS missing, \
     coalesce((SELECT string_agg('lockstep.' || c.relname, ', ') FROM pg_class AS c \
     WHERE c.relnamespace = to_regnamespace('lockstep') AND c.relname IN ('evidence', 'identity', 'positions') \
     AND c.relpersistence <> 'p'), '') AS unlogged, \
     coalesce((SELECT string_agg('lockstep.' || c.relname, ', ') FROM pg_class AS c \
     WHERE c.relnamespace = to_regnamespace('lockstep') AND c.relname IN ('evidence', 'identity', 'positions') \
     AND row_security_active(c.oid)), '') AS filtered";

/// A function of ours.
struct Function {
    name: &'static str,
    parameters: &'static str,
    /// With single blanks.
    body: String,
}

/// Writes the evidence of a branch ([`sql::prepare`], [`sql::commit_one_phase`]). Qualified down to operators: the branch's handler may have changed
/// `search_path`.
pub(super) const WRITE_EVIDENCE: &str = "lockstep.write_evidence";
/// Keeps a position ([`sql::keep_position`]), on a connection of the resource's own.
pub(super) const KEEP_POSITION: &str = "lockstep.keep_position";

// The names of the parameters are not those of columns, which PL/pgSQL would take for each other.
fn functions() -> [Function; 2] {
    [
        Function {
            name: WRITE_EVIDENCE,
            parameters: "of_branch text, of_resource_manager text, of_gtrid_uuid uuid, of_gtrid_epoch bigint, \
                         at_epoch bigint, at_incarnation uuid, at_sequence bigint, lifetime interval, in_one_phase boolean",
            body: format!("BEGIN {}; END", sql::insert_evidence(&Subject::of_function())),
        },
        Function {
            name: KEEP_POSITION,
            parameters: "of_resource_manager text, at_epoch bigint, at_incarnation uuid, at_sequence bigint",
            // An assignment is evaluated without a statement's plan. The row of an epoch is there but for the first time, and to change it
            // costs less than an INSERT that finds it.
            body: format!(
                "DECLARE does_not_wait text; BEGIN \
                 does_not_wait := pg_catalog.set_config('synchronous_commit', 'off', true); \
                 UPDATE lockstep.positions AS p SET incarnation = at_incarnation, sequence = at_sequence \
                 WHERE p.resource_manager OPERATOR(pg_catalog.=) of_resource_manager \
                 AND p.epoch OPERATOR(pg_catalog.=) at_epoch AND p.sequence OPERATOR(pg_catalog.<) at_sequence; \
                 IF NOT FOUND THEN INSERT INTO lockstep.positions AS p (resource_manager, epoch, incarnation, sequence) \
                 VALUES (of_resource_manager, at_epoch, at_incarnation, at_sequence) {RAISED}; END IF; END"
            ),
        },
    ]
}

/// Which of our functions are not there, which are in another form than ours or may not be called by the role (names, or nothing), what would clear
/// those out of the way, and whether the role may make any. There must be no second one of a name: which of them a call means would
/// depend on both. Blanks don't count: somebody may have pasted what the doctor has printed.
pub(crate) fn look_at_functions() -> SqlStr {
    let ours = functions().map(|Function { name, parameters, body }| {
        let name = name.trim_start_matches("lockstep.");
        format!("('{name}', '{parameters}', $lockstep${body}$lockstep$)")
    });
    sql::text(format!(
        "SELECT coalesce(string_agg('lockstep.' || name, ', ' ORDER BY name) FILTER (WHERE found = 0), '') AS missing, \
         coalesce(string_agg('lockstep.' || name, ', ' ORDER BY name) FILTER (WHERE is_other), '') AS other, \
         coalesce(string_agg(drops, '; ' ORDER BY name) FILTER (WHERE is_other), '') AS drops, \
         coalesce(has_schema_privilege(to_regnamespace('lockstep'), 'CREATE'), false) AS may_create \
         FROM (SELECT *, found > 0 AND (found > 1 OR ours = 0) AS is_other FROM (SELECT f.name, count(p.oid) AS found, \
         string_agg('DROP ROUTINE ' || p.oid::regprocedure, '; ' ORDER BY p.oid) AS drops, \
         count(*) FILTER (WHERE btrim(regexp_replace(p.prosrc, '[[:space:]]+', ' ', 'g')) = f.body \
         AND pg_get_function_arguments(p.oid) = f.parameters AND l.lanname = 'plpgsql' AND p.prokind = 'f' \
         AND p.provolatile = 'v' AND p.prorettype = 'void'::regtype AND NOT p.proretset AND NOT p.prosecdef \
         AND p.proconfig IS NULL AND has_function_privilege(p.oid, 'EXECUTE')) AS ours \
         FROM (VALUES {ours}) AS f (name, parameters, body) \
         LEFT JOIN pg_proc AS p ON p.pronamespace = to_regnamespace('lockstep') AND p.proname = f.name \
         LEFT JOIN pg_language AS l ON l.oid = p.prolang GROUP BY f.name) AS counted) AS seen",
        ours = ours.join(", ")
    ))
}

/// Makes our tables where they are not.
pub(super) fn create_tables() -> SqlStr {
    sql::text(CREATE_TABLES.join("; "))
}

/// Makes those of our functions that are named.
pub(super) fn create_functions(names: &str) -> SqlStr {
    sql::text(functions_to_create(names).join("; "))
}

/// Makes those of our functions that are named, in the way of [`CREATE_TABLES`]. (`OR REPLACE`: another instance may just have made them.)
pub(crate) fn functions_to_create(names: &str) -> Vec<String> {
    let create = |Function { name, parameters, body }| {
        format!(
            "CREATE OR REPLACE FUNCTION {name}({parameters}) RETURNS void LANGUAGE plpgsql AS $lockstep${body}$lockstep$"
        )
    };
    std::iter::once(ONE_AT_A_TIME.to_owned()).chain(named(names).map(create)).collect()
}

/// What the role needs in those that are named, as [`GRANTS`].
pub(crate) fn function_grants(names: &str) -> Vec<String> {
    let grant = |Function { name, parameters, .. }| {
        format!("GRANT EXECUTE ON FUNCTION {name}({parameters}) TO {{role}}")
    };
    named(names).map(grant).collect()
}

/// The names of all of them.
pub(crate) fn all_functions() -> String {
    functions().map(|function| function.name).join(", ")
}

fn named(names: &str) -> impl Iterator<Item = Function> {
    functions().into_iter().filter(move |function| names.split(", ").any(|name| name == function.name))
}

/// Whether our functions are called: as attaching has found, until one turns out to be gone.
#[derive(Debug, Default)]
pub(super) struct Callable(AtomicBool);

impl Callable {
    pub(super) fn found(&self, are_callable: bool) {
        self.0.store(are_callable, Ordering::Relaxed);
    }

    pub(super) fn form(&self) -> Form {
        if self.0.load(Ordering::Relaxed) { Form::Functions } else { Form::Statements }
    }

    /// Something was refused that was sent in this form. If that may be because a function was dropped, or closed to the role, since it was
    /// found, they are done without from now on, until the next attach. Whether that is so: what was refused can be sent as statements.
    pub(super) fn give_up_if_gone(&self, form: Form, error: &PgDatabaseError) -> bool {
        let is_gone =
            form == Form::Functions && matches!(error.code(), UNDEFINED_FUNCTION | INSUFFICIENT_PRIVILEGE);
        if is_gone {
            self.found(false);
            tracing::warn!(
                "the functions of the schema lockstep are done without from now on: {}",
                error.message()
            );
        }
        is_gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database may have them from another version of the SDK: what is under a name stays as it is. A changed body needs another
    /// name.
    #[test]
    fn what_is_under_a_name_stays_as_it_is() {
        let kept = include_str!("functions.sql");
        assert_eq!(functions_to_create(&all_functions())[1..].join(";\n") + ";\n", kept);
    }
}
