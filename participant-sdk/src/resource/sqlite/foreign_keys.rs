//! Foreign keys that SQLite would check at COMMIT: after the vote, when it is too late to refuse (P26).

use std::collections::{BTreeMap, BTreeSet};

use sqlx::SqliteConnection;

/// A violation: the row (none in a WITHOUT ROWID table), the table it refers to, and which of its keys.
type Violation = (Option<i64>, String, i64);

/// Looks for rows that refer to nothing, in the tables that the branch touched and in those that refer to them, and says
/// which table has one that it had not before the branch. Afterwards SQLite has nothing left to check at COMMIT.
///
/// It reads each of those tables whole, so it is done only where a check can have been put off: a key is declared as deferred
/// (`may_defer`), or the service has set `defer_foreign_keys`.
pub(super) async fn violated(
    branch: &mut SqliteConnection,
    reader: &mut SqliteConnection,
    touched: &[String],
    may_defer: bool,
) -> Result<Option<String>, sqlx::Error> {
    let (enforced, set_to_defer): (bool, bool) = sqlx::query_as(
        "SELECT foreign_keys, defer_foreign_keys FROM pragma_foreign_keys, pragma_defer_foreign_keys",
    )
    .fetch_one(&mut *branch)
    .await?;
    if !enforced || !(may_defer || set_to_defer) {
        return Ok(None);
    }
    for table in affected(branch, touched).await? {
        let after = violations(branch, &table).await?;
        if after.is_empty() {
            continue;
        }
        let before = violations(reader, &table).await?;
        let added = after.iter().find(|(violation, count)| before.get(*violation).unwrap_or(&0) < *count);
        if let Some(((_, parent, _), _)) = added {
            return Ok(Some(format!("a row of {table} refers to a row of {parent} that is not there")));
        }
    }
    // Its counter says the same as what was looked at here, except where rows that were orphans before come and go.
    sqlx::raw_sql("PRAGMA defer_foreign_keys = OFF").execute(branch).await?;
    Ok(None)
}

/// The touched tables and those that refer to them.
async fn affected(
    branch: &mut SqliteConnection,
    touched: &[String],
) -> Result<BTreeSet<String>, sqlx::Error> {
    let mut tables: BTreeSet<_> = touched.iter().cloned().collect();
    for table in touched {
        let children: Vec<String> = sqlx::query_scalar(
            "SELECT t.name FROM main.sqlite_schema t JOIN pragma_foreign_key_list(t.name, 'main') f \
             WHERE t.type = 'table' AND f.\"table\" = ?1 COLLATE NOCASE",
        )
        .bind(table)
        .fetch_all(&mut *branch)
        .await?;
        tables.extend(children);
    }
    Ok(tables)
}

async fn violations(
    connection: &mut SqliteConnection,
    table: &str,
) -> Result<BTreeMap<Violation, usize>, sqlx::Error> {
    let rows: Vec<Violation> =
        sqlx::query_as("SELECT \"rowid\", parent, fkid FROM pragma_foreign_key_check(?1, 'main')")
            .bind(table)
            .fetch_all(connection)
            .await?;
    let mut counted = BTreeMap::new();
    for violation in rows {
        *counted.entry(violation).or_default() += 1;
    }
    Ok(counted)
}
