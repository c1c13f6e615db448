//! What a branch changed: recorded as keys while it works, turned into row images when it is prepared.
//!
//! TEMP triggers on the writer's connection note the key of every row that is inserted, updated or deleted, and nothing
//! else. The images are read at the end: before-images through a second connection, which sees the last committed state
//! (nobody else can commit while the branch holds the write lock), after-images through the branch's own. So the order in
//! which the user's triggers and these fire does not matter, and a row that was changed ten times is one change.
//!
//! That every changed row is noted rests on five things, each with a test: TEMP triggers fire before the schema's own
//! of the same time, so that a `RAISE(IGNORE)` of the user's comes too late to skip them; `recursive_triggers` makes
//! REPLACE fire delete triggers for the rows that it displaces; foreign-key actions fire triggers; a table with a delete
//! trigger is never emptied by SQLite's shortcut; and the statement in a trigger that notes a key has no conflict to resolve,
//! because an `OR …` clause of the user's statement would decide it.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::entry::{Change, Sequences, TableChanges};
use super::journal::MAX_ENTRY_BYTES;
use super::schema::{Key, Schema, Table, quoted};
use super::value::{Value, Values, selected};

/// Keys whose images are read at a time. Small: their rows are all in memory before their size is known.
const PAGE: i64 = 64;

/// Everything that a branch changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub tables: Vec<TableChanges>,
    pub sequences: Option<Sequences>,
    /// The tables with rows that were touched, whether or not they are changed in the end.
    pub touched: Vec<String>,
}

/// The changes cannot be told, or are too many.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureError {
    #[error("what the branch changed cannot be read: {0}")]
    Database(#[from] sqlx::Error),
    #[error(
        "the branch changes more than {} MiB of rows: use smaller transactions",
        MAX_ENTRY_BYTES / (1024 * 1024)
    )]
    TooLarge,
}

impl Changes {
    /// Whether nothing is different in the end.
    pub(super) fn is_empty(&self) -> bool {
        let same_sequences = self.sequences.as_ref().is_none_or(|all| all.before == all.after);
        self.tables.is_empty() && same_sequences
    }
}

/// How many triggers [`install`] makes.
pub(super) fn trigger_count(schema: &Schema) -> i64 {
    i64::try_from(3 * schema.tables.len()).expect("fewer tables than memory")
}

/// Makes the TEMP tables and triggers, outside of a transaction.
pub(super) async fn install(connection: &mut SqliteConnection, schema: &Schema) -> Result<(), sqlx::Error> {
    let mut sql = String::from(
        "BEGIN; CREATE TEMP TABLE lockstep_touched \
         (number INTEGER NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (number, id)) WITHOUT ROWID;",
    );
    for (number, table) in schema.tables.iter().enumerate() {
        if let Key::Columns(columns) = &table.key {
            let names = key_names(columns.len()).join(", ");
            // No types: a column's affinity would change what is put into it.
            sql.push_str(&format!(
                "CREATE TEMP TABLE lockstep_touched_{number} ({names}); \
                 CREATE INDEX temp.lockstep_touched_{number}_key ON lockstep_touched_{number} ({names});"
            ));
        }
        let source = quoted(&table.name);
        for (event, rows) in
            [("INSERT", &["NEW"][..]), ("UPDATE", &["OLD", "NEW"][..]), ("DELETE", &["OLD"][..])]
        {
            let notes: String = rows.iter().map(|row| note(number, &table.key, row)).collect();
            sql.push_str(&format!(
                "CREATE TEMP TRIGGER lockstep_{number}_{event} AFTER {event} ON main.{source} BEGIN {notes} END;"
            ));
        }
    }
    sql.push_str("COMMIT;");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// The statement that notes the key of `row` (OLD or NEW), unless it was noted before.
fn note(number: usize, key: &Key, row: &str) -> String {
    match key {
        Key::Rowid(name) => format!(
            "INSERT INTO lockstep_touched SELECT {number}, {row}.{name} WHERE NOT EXISTS \
             (SELECT 1 FROM lockstep_touched WHERE number = {number} AND id = {row}.{name});"
        ),
        Key::Columns(columns) => {
            let values: Vec<_> = columns.iter().map(|column| format!("{row}.{}", quoted(column))).collect();
            let names = key_names(columns.len());
            let equal: Vec<_> =
                names.iter().zip(&values).map(|(name, value)| format!("{name} IS {value}")).collect();
            format!(
                "INSERT INTO lockstep_touched_{number} SELECT {} WHERE NOT EXISTS \
                 (SELECT 1 FROM lockstep_touched_{number} WHERE {});",
                values.join(", "),
                equal.join(" AND ")
            )
        }
    }
}

fn key_names(count: usize) -> Vec<String> {
    (1..=count).map(|at| format!("k{at}")).collect()
}

/// Compares what the branch's connection sees with what `reader` sees, for every row that was touched.
pub(super) async fn changes(
    branch: &mut SqliteConnection,
    reader: &mut SqliteConnection,
    schema: &Schema,
) -> Result<Changes, CaptureError> {
    let mut found = Changes::default();
    let mut room = MAX_ENTRY_BYTES;
    for number in touched_tables(branch, schema).await? {
        let table = &schema.tables[number];
        let changes = table_changes(branch, reader, number, table, &mut room).await?;
        found.touched.push(table.name.clone());
        if !changes.is_empty() {
            found.tables.push(TableChanges {
                name: table.name.clone(),
                definition: table.definition.clone(),
                columns: table.columns.clone(),
                changes,
            });
        }
    }
    if let Some(table) = &schema.sequences {
        found.sequences = Some(Sequences {
            before: sequence_rows(reader, table).await?,
            after: sequence_rows(branch, table).await?,
        });
    }
    Ok(found)
}

/// The rows (rowid, name, seq) of `sqlite_sequence`.
pub(super) async fn sequence_rows(
    connection: &mut SqliteConnection,
    table: &Table,
) -> Result<Vec<Values>, sqlx::Error> {
    let rows = table.all(connection).await?;
    Ok(rows.into_iter().map(|(key, image)| [key, image].concat()).collect())
}

/// Whether the branch has touched any row, changed in the end or not.
pub(super) async fn has_touched(
    branch: &mut SqliteConnection,
    schema: &Schema,
) -> Result<bool, CaptureError> {
    Ok(!touched_tables(branch, schema).await?.is_empty())
}

async fn touched_tables(
    branch: &mut SqliteConnection,
    schema: &Schema,
) -> Result<BTreeSet<usize>, CaptureError> {
    let mut sql = String::from("SELECT DISTINCT number FROM temp.lockstep_touched");
    for number in with_own_table(schema) {
        sql.push_str(&format!(
            " UNION ALL SELECT {number} WHERE EXISTS (SELECT 1 FROM temp.lockstep_touched_{number})"
        ));
    }
    let numbers: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(branch).await?;
    let numbers =
        numbers.into_iter().map(|number| usize::try_from(number).expect("it is the number of a table"));
    Ok(numbers.collect())
}

/// The numbers of the tables whose keys do not fit into the common TEMP table.
fn with_own_table(schema: &Schema) -> impl Iterator<Item = usize> {
    let tables = schema.tables.iter().enumerate();
    tables.filter_map(|(number, table)| match table.key {
        Key::Rowid(_) => None,
        Key::Columns(_) => Some(number),
    })
}

async fn table_changes(
    branch: &mut SqliteConnection,
    reader: &mut SqliteConnection,
    number: usize,
    table: &Table,
    room: &mut usize,
) -> Result<Vec<Change>, CaptureError> {
    let mut changes: BTreeMap<Values, Change> = BTreeMap::new();
    let mut pages = Pages::new(number, &table.key);
    loop {
        let keys = pages.next(branch).await?;
        if keys.is_empty() {
            return Ok(changes.into_values().collect());
        }
        let mut before = table.images(reader, &keys).await?;
        let mut after = table.images(branch, &keys).await?;
        let keys: BTreeSet<_> = before.keys().chain(after.keys()).cloned().collect();
        for key in keys {
            let change = Change { before: before.remove(&key), after: after.remove(&key), key };
            if change.before != change.after && !changes.contains_key(&change.key) {
                *room = room.checked_sub(change.size()).ok_or(CaptureError::TooLarge)?;
                changes.insert(change.key.clone(), change);
            }
        }
    }
}

impl Change {
    fn size(&self) -> usize {
        let images = self.before.iter().chain(&self.after).flatten();
        16 + self.key.iter().chain(images).map(Value::size).sum::<usize>()
    }
}

/// The keys that were noted for one table, page by page.
struct Pages {
    sql: String,
    columns: usize,
    /// Where the next page begins; `None` behind the last possible place.
    from: Option<i64>,
}

impl Pages {
    fn new(number: usize, key: &Key) -> Self {
        let (sql, columns) = match key {
            Key::Rowid(_) => (
                format!(
                    "SELECT id, {} FROM temp.lockstep_touched WHERE number = {number} AND id >= ?1 ORDER BY id LIMIT {PAGE}",
                    selected("id")
                ),
                1,
            ),
            Key::Columns(columns) => {
                let names: Vec<_> = key_names(columns.len()).iter().map(|name| selected(name)).collect();
                (
                    format!(
                        "SELECT rowid, {} FROM temp.lockstep_touched_{number} WHERE rowid >= ?1 ORDER BY rowid LIMIT {PAGE}",
                        names.join(", ")
                    ),
                    columns.len(),
                )
            }
        };
        Self { sql, columns, from: Some(i64::MIN) }
    }

    /// Empty behind the last one.
    async fn next(&mut self, branch: &mut SqliteConnection) -> Result<Vec<Values>, sqlx::Error> {
        let Some(from) = self.from else { return Ok(Vec::new()) };
        let query = sqlx::query(AssertSqlSafe(self.sql.clone())).bind(from);
        let rows = query.fetch_all(branch).await?;
        if let Some(row) = rows.last() {
            self.from = row.try_get::<i64, _>(0)?.checked_add(1);
        }
        rows.iter().map(|row| Value::read_all(row, 1, self.columns)).collect()
    }
}

/// Forgets what was noted. Inside the branch's transaction: a rollback forgets it too.
pub(super) async fn clear(branch: &mut SqliteConnection, schema: &Schema) -> Result<(), sqlx::Error> {
    let mut sql = String::from("DELETE FROM temp.lockstep_touched;");
    for number in with_own_table(schema) {
        sql.push_str(&format!("DELETE FROM temp.lockstep_touched_{number};"));
    }
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(branch).await?;
    Ok(())
}
