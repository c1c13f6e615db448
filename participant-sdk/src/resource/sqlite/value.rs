//! One SQLite value, exactly as it is stored.
//!
//! Text is kept as the bytes in the database's own encoding: it may hold NUL and bytes that are no valid text, which
//! SQL literals and Rust strings cannot carry. Reals are kept as their bits, so that equality is equality of storage.

use sqlx::Row;
use sqlx::sqlite::{SqliteArguments, SqliteRow};

/// A value with its storage class.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Null,
    Integer(i64),
    /// The bits of a double. SQLite stores NaN as NULL.
    Real(u64),
    /// In the database's encoding.
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

/// A row's or a key's values, in the order of their columns.
pub(super) type Values = Vec<Value>;

/// A query with its parameters.
pub(super) type Query<'q> = sqlx::query::Query<'q, sqlx::Sqlite, SqliteArguments>;

/// The two result columns that [`Value::read`] takes one value from.
pub(super) fn selected(expression: &str) -> String {
    format!(
        "typeof({expression}), CASE typeof({expression}) WHEN 'text' THEN CAST({expression} AS BLOB) ELSE {expression} END"
    )
}

/// The SQL expression for the value that is bound `position`-th (from 0) with [`Value::bind`].
///
/// The value has no affinity, as a literal has none: the column alone decides how it compares and what it stores.
pub(super) fn parameter(position: usize) -> String {
    let (value, is_text) = (2 * position + 1, 2 * position + 2);
    format!("iif(?{is_text}, CAST(?{value} AS TEXT), ?{value})")
}

impl Value {
    /// Reads the value whose two columns ([`selected`]) begin at `column`.
    pub(super) fn read(row: &SqliteRow, column: usize) -> Result<Self, sqlx::Error> {
        let class: String = row.try_get(column)?;
        let content = column + 1;
        match class.as_str() {
            "null" => Ok(Self::Null),
            "integer" => Ok(Self::Integer(row.try_get_unchecked(content)?)),
            "real" => Ok(Self::Real(row.try_get_unchecked::<f64, _>(content)?.to_bits())),
            "text" => Ok(Self::Text(row.try_get_unchecked(content)?)),
            "blob" => Ok(Self::Blob(row.try_get_unchecked(content)?)),
            unknown => Err(sqlx::Error::Decode(format!("SQLite has no storage class {unknown:?}").into())),
        }
    }

    /// Reads `count` values whose columns begin at `column`.
    pub(super) fn read_all(row: &SqliteRow, column: usize, count: usize) -> Result<Values, sqlx::Error> {
        (0..count).map(|at| Self::read(row, column + 2 * at)).collect()
    }

    /// Binds the value: two parameters.
    pub(super) fn bind<'q>(&self, query: Query<'q>) -> Query<'q> {
        match self {
            Self::Null => query.bind(None::<i64>).bind(false),
            Self::Integer(integer) => query.bind(*integer).bind(false),
            Self::Real(bits) => query.bind(f64::from_bits(*bits)).bind(false),
            Self::Text(bytes) => query.bind(bytes.clone()).bind(true),
            Self::Blob(bytes) => query.bind(bytes.clone()).bind(false),
        }
    }

    /// Binds all of them, in order.
    pub(super) fn bind_all<'q>(values: &[Self], query: Query<'q>) -> Query<'q> {
        values.iter().fold(query, |query, value| value.bind(query))
    }

    /// Bytes it takes in memory and in the journal, roughly.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Null => 1,
            Self::Integer(_) | Self::Real(_) => 9,
            Self::Text(bytes) | Self::Blob(bytes) => 5 + bytes.len(),
        }
    }
}

/// As an SQL literal, for people. Text that is no plain UTF-8 is shown as its bytes.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Integer(integer) => write!(f, "{integer}"),
            Self::Real(bits) => write!(f, "{:?}", f64::from_bits(*bits)),
            Self::Text(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) if !text.contains('\0') => write!(f, "'{}'", text.replace('\'', "''")),
                Ok(_) | Err(_) => write!(f, "CAST({} AS TEXT)", Hex(bytes)),
            },
            Self::Blob(bytes) => Hex(bytes).fmt(f),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("X'")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("'")
    }
}
