//! Writing a prepared branch again after a crash, from its journal entry (P26).
//!
//! In one transaction, which stays open as the prepared branch: compare every before-image, take the triggers of the
//! changed tables away, delete the rows that the branch deleted or changed, insert those that it inserted or changed, put the
//! triggers back. All deletes come first, so that rows which swapped a unique value do not meet. SQLite can switch its
//! triggers off only through its C interface; a schema change inside the transaction does the same, is seen by nobody
//! before the commit, and is gone with a rollback.
//!
//! A difference from the before-images is never repaired: somebody has written in between, and only a person can tell what
//! the two together mean.

use std::collections::BTreeMap;

use lockstep_proto::museum::mutated;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::capture;
use super::connection::is_constraint;
use super::entry::{Entry, Sequences, TableChanges};
use super::schema::{Schema, Table, quoted};
use crate::resource::ResourceError;

/// The branch could not be written again.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplayError {
    /// The entry does not fit the database any more, and never will.
    #[error("{0}")]
    Misfit(String),
    /// It may work next time.
    #[error("{0}")]
    Failed(String),
}

impl From<sqlx::Error> for ReplayError {
    fn from(error: sqlx::Error) -> Self {
        if is_constraint(&error) {
            Self::Misfit(format!("a row of the branch is refused: {error}"))
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl From<ResourceError> for ReplayError {
    fn from(error: ResourceError) -> Self {
        match error {
            ResourceError::Unfit(why) => Self::Misfit(why),
            ResourceError::Unavailable(why) => Self::Failed(why),
        }
    }
}

/// Does the branch's work again, in a transaction that the caller has begun with
/// [`for_replay`](super::connection::for_replay) and ends.
pub(super) async fn replay(connection: &mut SqliteConnection, entry: &Entry) -> Result<(), ReplayError> {
    let schema = Schema::read(connection).await?;
    let mut tables = Vec::with_capacity(entry.tables.len());
    for changes in &entry.tables {
        let table = same_table(&schema, changes)?;
        compare(connection, table, changes).await?;
        tables.push((table, changes));
    }
    compare_sequences(connection, &schema, entry.sequences.as_ref()).await?;

    let triggers = take_triggers(connection, &tables).await?;
    for (table, changes) in &tables {
        delete_rows(connection, table, changes).await?;
    }
    for (table, changes) in &tables {
        insert_rows(connection, table, changes).await?;
    }
    if let (Some(table), Some(sequences)) = (&schema.sequences, &entry.sequences) {
        restore_sequences(connection, table, sequences).await?;
    }
    for definition in triggers {
        sqlx::raw_sql(AssertSqlSafe(definition)).execute(&mut *connection).await?;
    }
    Ok(())
}

fn same_table<'s>(schema: &'s Schema, changes: &TableChanges) -> Result<&'s Table, ReplayError> {
    match schema.table(&changes.name) {
        Some(table) if table.definition == changes.definition => Ok(table),
        Some(_) => Err(ReplayError::Misfit(format!("the table {} has another definition now", changes.name))),
        None => Err(ReplayError::Misfit(format!("the table {} is gone", changes.name))),
    }
}

async fn compare(
    connection: &mut SqliteConnection,
    table: &Table,
    changes: &TableChanges,
) -> Result<(), ReplayError> {
    let keys: Vec<_> = changes.changes.iter().map(|change| change.key.clone()).collect();
    let now = table.images(connection, &keys).await?;
    let before: BTreeMap<_, _> = changes
        .changes
        .iter()
        .filter_map(|change| Some((change.key.clone(), change.before.clone()?)))
        .collect();
    if now == before || mutated("P26-before-images-are-not-compared") {
        return Ok(());
    }
    let different = now.keys().chain(before.keys()).find(|key| now.get(*key) != before.get(*key));
    let key: Vec<_> = different.into_iter().flatten().map(ToString::to_string).collect();
    Err(ReplayError::Misfit(format!(
        "the row {} of the table {} is not as the branch found it",
        key.join(", "),
        changes.name
    )))
}

async fn compare_sequences(
    connection: &mut SqliteConnection,
    schema: &Schema,
    sequences: Option<&Sequences>,
) -> Result<(), ReplayError> {
    // An AUTOINCREMENT table that was made in between is no reason to refuse: nothing of the branch is in it.
    let (Some(table), Some(sequences)) = (&schema.sequences, sequences) else { return Ok(()) };
    let now = capture::sequence_rows(connection, table).await?;
    if now == sequences.before {
        return Ok(());
    }
    Err(ReplayError::Misfit("the table sqlite_sequence is not as the branch found it".into()))
}

/// Drops the triggers of these tables and returns their definitions, in the order in which they have to be made again
/// to fire in the order in which they did.
async fn take_triggers(
    connection: &mut SqliteConnection,
    tables: &[(&Table, &TableChanges)],
) -> Result<Vec<String>, ReplayError> {
    let all: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT name, tbl_name, sql FROM main.sqlite_schema WHERE type = 'trigger' ORDER BY rowid",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut definitions = Vec::new();
    for (name, table_name, definition) in all {
        if tables.iter().any(|(table, _)| table.name.eq_ignore_ascii_case(&table_name)) {
            let drop = format!("DROP TRIGGER main.{}", quoted(&name));
            sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *connection).await?;
            definitions.push(definition);
        }
    }
    Ok(definitions)
}

async fn delete_rows(
    connection: &mut SqliteConnection,
    table: &Table,
    changes: &TableChanges,
) -> Result<(), ReplayError> {
    for change in changes.changes.iter().filter(|change| change.before.is_some()) {
        let deleted = table.delete(connection, &change.key).await?;
        assert_eq!(deleted, 1, "the row was read in this transaction, by this key");
    }
    Ok(())
}

async fn insert_rows(
    connection: &mut SqliteConnection,
    table: &Table,
    changes: &TableChanges,
) -> Result<(), ReplayError> {
    for change in &changes.changes {
        if let Some(after) = &change.after {
            table.insert(connection, &change.key, after).await?;
        }
    }
    Ok(())
}

/// `sqlite_sequence` as the branch left it, whatever inserting rows into AUTOINCREMENT tables has made of it.
async fn restore_sequences(
    connection: &mut SqliteConnection,
    table: &Table,
    sequences: &Sequences,
) -> Result<(), ReplayError> {
    sqlx::query("DELETE FROM main.sqlite_sequence").execute(&mut *connection).await?;
    for row in &sequences.after {
        let (key, image) = row.split_at(1);
        table.insert(connection, key, image).await?;
    }
    Ok(())
}
