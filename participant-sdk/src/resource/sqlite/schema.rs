//! The user's tables, as far as their rows have to be captured and written again.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::value::{Query, Value, Values, parameter, selected};
use crate::resource::ResourceError;

/// The beginning of the names that belong to the SDK.
pub(super) const PREFIX: &str = "lockstep_";
/// The tables that the SDK keeps in the database.
pub(super) const OWN_TABLES: [&str; 2] = ["lockstep_evidence", "lockstep_identity"];
/// Keys that are looked up with one statement.
const KEYS_AT_ONCE: usize = 512;

/// What a connection saw of the schema.
#[derive(Debug)]
pub(super) struct Schema {
    /// SQLite's schema cookie. It was read before everything else here.
    pub version: i64,
    /// Every table of the user, in a fixed order.
    pub tables: Vec<Table>,
    /// `sqlite_sequence`, if there is an AUTOINCREMENT column.
    pub sequences: Option<Table>,
    /// Whether a foreign key may be declared as deferred. May be a false alarm.
    pub defers_keys: bool,
}

/// A table whose rows can be read and written by key.
#[derive(Debug)]
pub(super) struct Table {
    pub name: String,
    /// Its `CREATE TABLE` statement.
    pub definition: String,
    pub key: Key,
    /// The stored columns: all but generated ones.
    pub columns: Vec<String>,
}

/// What names a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// The rowid, by that one of its three names that no column has taken.
    Rowid(&'static str),
    /// The primary key of a WITHOUT ROWID table.
    Columns(Vec<String>),
}

/// A name as an SQL identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Schema {
    /// Reads it. [`ResourceError::Unfit`] if there is something that cannot take part.
    pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Self, ResourceError> {
        let failed =
            |error: sqlx::Error| ResourceError::Unavailable(format!("the schema cannot be read: {error}"));
        let version = sqlx::query_scalar("SELECT schema_version FROM pragma_schema_version")
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
        let rows = sqlx::query(
            "SELECT t.name, t.sql, t.rootpage, l.wr FROM main.sqlite_schema t \
             JOIN pragma_table_list l ON l.schema = 'main' AND l.name = t.name \
             WHERE t.type = 'table' ORDER BY t.name",
        )
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
        let mut schema = Self { version, tables: Vec::new(), sequences: None, defers_keys: false };
        for row in rows {
            let found = Found {
                name: row.try_get(0).map_err(failed)?,
                definition: row.try_get::<Option<String>, _>(1).map_err(failed)?.unwrap_or_default(),
                is_virtual: row.try_get::<i64, _>(2).map_err(failed)? == 0,
                without_rowid: row.try_get(3).map_err(failed)?,
            };
            schema.add(connection, found).await?;
        }
        Ok(schema)
    }

    async fn add(&mut self, connection: &mut SqliteConnection, found: Found) -> Result<(), ResourceError> {
        if OWN_TABLES.contains(&found.name.as_str()) {
            return Ok(());
        }
        if found.is_virtual {
            return Err(ResourceError::Unfit(format!(
                "the virtual table {} keeps rows where the SDK cannot see them change: keep it in a database file of its own",
                found.name
            )));
        }
        if found.name.to_ascii_lowercase().starts_with(PREFIX) {
            return Err(ResourceError::Unfit(format!(
                "the table {}: names that begin with {PREFIX} belong to the SDK; rename it",
                found.name
            )));
        }
        if found.name == "sqlite_sequence" {
            self.sequences = Some(found.table(connection).await?);
        } else if !found.name.starts_with("sqlite_") {
            self.defers_keys |= found.definition.to_ascii_lowercase().contains("deferred");
            self.tables.push(found.table(connection).await?);
        }
        Ok(())
    }

    /// The table of that name.
    pub(super) fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }
}

/// A row of the catalogue.
struct Found {
    name: String,
    definition: String,
    is_virtual: bool,
    without_rowid: bool,
}

impl Found {
    async fn table(self, connection: &mut SqliteConnection) -> Result<Table, ResourceError> {
        let failed =
            |error: sqlx::Error| ResourceError::Unavailable(format!("the table {}: {error}", self.name));
        // hidden: 2 and 3 are the two kinds of generated columns.
        let rows: Vec<(String, i64, i64)> =
            sqlx::query_as("SELECT name, pk, hidden FROM pragma_table_xinfo(?1, 'main') ORDER BY cid")
                .bind(&self.name)
                .fetch_all(connection)
                .await
                .map_err(failed)?;
        let mut key: Vec<_> = rows.iter().filter(|(_, pk, _)| *pk > 0).collect();
        key.sort_by_key(|(_, pk, _)| *pk);
        let key = if self.without_rowid {
            Key::Columns(key.into_iter().map(|(name, _, _)| name.clone()).collect())
        } else {
            Key::Rowid(self.rowid_name(rows.iter().map(|(name, _, _)| name.as_str()))?)
        };
        let stored = rows.into_iter().filter(|(_, _, hidden)| *hidden == 0);
        Ok(Table {
            name: self.name,
            definition: self.definition,
            key,
            columns: stored.map(|(name, _, _)| name).collect(),
        })
    }

    fn rowid_name<'a>(
        &self,
        columns: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<&'static str, ResourceError> {
        ["rowid", "_rowid_", "oid"]
            .into_iter()
            .find(|name| !columns.clone().any(|column| column.eq_ignore_ascii_case(name)))
            .ok_or_else(|| {
                ResourceError::Unfit(format!(
                    "the table {} has columns named rowid, _rowid_ and oid, so that its rows cannot be named: rename one of them",
                    self.name
                ))
            })
    }
}

impl Key {
    /// The key's expressions.
    pub(super) fn expressions(&self) -> Vec<String> {
        match self {
            Self::Rowid(name) => vec![(*name).to_owned()],
            Self::Columns(columns) => columns.iter().map(|column| quoted(column)).collect(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Rowid(_) => 1,
            Self::Columns(columns) => columns.len(),
        }
    }
}

/// The rows that were found, by their stored keys.
pub(super) type Images = BTreeMap<Values, Values>;

impl Table {
    fn source(&self) -> String {
        let key = self.key.expressions();
        let columns = self.columns.iter().map(|column| quoted(column));
        let selected: Vec<_> = key.into_iter().chain(columns).map(|name| selected(&name)).collect();
        format!("SELECT {} FROM main.{}", selected.join(", "), quoted(&self.name))
    }

    /// The condition that a row has the key whose first value is bound at `first`.
    fn has_key(&self) -> String {
        let equal = |(at, name): (usize, String)| format!("{name} = {}", parameter(at));
        let conditions: Vec<_> = self.key.expressions().into_iter().enumerate().map(equal).collect();
        conditions.join(" AND ")
    }

    /// The rows with these keys, as the connection sees them.
    ///
    /// They are returned under their keys as stored: where the key's collation calls two keys equal (NOCASE), both find
    /// the one row.
    pub(super) async fn images(
        &self,
        connection: &mut SqliteConnection,
        keys: &[Values],
    ) -> Result<Images, sqlx::Error> {
        let mut images = Images::new();
        match &self.key {
            Key::Rowid(name) => {
                let sql = format!("{} WHERE {name} IN (SELECT value FROM json_each(?1))", self.source());
                for keys in keys.chunks(KEYS_AT_ONCE) {
                    let query = sqlx::query(AssertSqlSafe(sql.clone())).bind(rowids(keys));
                    self.read_into(connection, query, &mut images).await?;
                }
            }
            Key::Columns(_) => {
                let sql = format!("{} WHERE {}", self.source(), self.has_key());
                for key in keys {
                    let query = Value::bind_all(key, sqlx::query(AssertSqlSafe(sql.clone())));
                    self.read_into(connection, query, &mut images).await?;
                }
            }
        }
        Ok(images)
    }

    /// All rows.
    pub(super) async fn all(&self, connection: &mut SqliteConnection) -> Result<Images, sqlx::Error> {
        let mut images = Images::new();
        let query = sqlx::query(AssertSqlSafe(self.source()));
        self.read_into(connection, query, &mut images).await?;
        Ok(images)
    }

    async fn read_into(
        &self,
        connection: &mut SqliteConnection,
        query: Query<'_>,
        images: &mut Images,
    ) -> Result<(), sqlx::Error> {
        let key_columns = self.key.len();
        for row in query.fetch_all(connection).await? {
            let key = Value::read_all(&row, 0, key_columns)?;
            images.insert(key, Value::read_all(&row, 2 * key_columns, self.columns.len())?);
        }
        Ok(())
    }

    /// Deletes the row with this key; how many there were.
    pub(super) async fn delete(
        &self,
        connection: &mut SqliteConnection,
        key: &[Value],
    ) -> Result<u64, sqlx::Error> {
        let sql = format!("DELETE FROM main.{} WHERE {}", quoted(&self.name), self.has_key());
        let query = Value::bind_all(key, sqlx::query(AssertSqlSafe(sql)));
        Ok(query.execute(connection).await?.rows_affected())
    }

    /// Inserts a row. An explicit `OR ABORT`, or a constraint's own conflict clause would delete or skip rows.
    pub(super) async fn insert(
        &self,
        connection: &mut SqliteConnection,
        key: &[Value],
        image: &[Value],
    ) -> Result<(), sqlx::Error> {
        let mut names: Vec<_> = self.columns.iter().map(|column| quoted(column)).collect();
        let mut values = image.to_vec();
        if let Key::Rowid(name) = self.key {
            // Beside an INTEGER PRIMARY KEY column this names the same thing twice, with the same value.
            names.push(name.to_owned());
            values.extend_from_slice(key);
        }
        let parameters: Vec<_> = (0..values.len()).map(parameter).collect();
        let sql = format!(
            "INSERT OR ABORT INTO main.{} ({}) VALUES ({})",
            quoted(&self.name),
            names.join(", "),
            parameters.join(", ")
        );
        Value::bind_all(&values, sqlx::query(AssertSqlSafe(sql))).execute(connection).await?;
        Ok(())
    }
}

/// The keys of a rowid table as a JSON array.
fn rowids(keys: &[Values]) -> String {
    let numbers: Vec<_> = keys.iter().flatten().map(Value::to_string).collect();
    format!("[{}]", numbers.join(","))
}
