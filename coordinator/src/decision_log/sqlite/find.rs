//! Finding transactions by what a person has typed of them: the beginning of a gtrid, or of its hex digits.

use lockstep_proto::{Epoch, Gtrid};
use sqlx::SqlitePool;

use super::read;
use crate::decision_log::ReadError;
use crate::decision_log::prefix::{Prefix, parse, range};

/// Transactions with a record that begin so, oldest first. Those of an epoch whose digits are not given are found by walking
/// over the whole table; a text that cannot be an epoch's (the digits of our century begin with 0) spares that.
pub(super) async fn find(readers: &SqlitePool, prefix: &str, limit: u32) -> Result<Vec<Gtrid>, ReadError> {
    let (digits, epoch) = match parse(prefix) {
        None => return Ok(Vec::new()),
        Some(Prefix::Epoch(epoch, digits)) => (digits, Some(epoch)),
        Some(Prefix::Either(text)) => (text, None),
    };
    let (low, high) = range(digits);
    let found: Vec<Vec<u8>> = match epoch {
        Some(epoch) => {
            sqlx::query_scalar(
                "SELECT gtrid FROM transactions \
                 WHERE gtrid >= unhex(?1) AND gtrid <= unhex(?2 || 'ffffffff') \
                 AND substr(gtrid, 17) = unhex(printf('%08x', ?3)) ORDER BY gtrid LIMIT ?4",
            )
            .bind(low)
            .bind(high)
            .bind(epoch)
            .bind(limit)
            .fetch_all(readers)
            .await
        }
        None => {
            sqlx::query_scalar(
                "SELECT gtrid FROM transactions \
                 WHERE gtrid >= unhex(?1) AND gtrid <= unhex(?2 || 'ffffffff') \
                 UNION \
                 SELECT gtrid FROM transactions WHERE ?3 AND substr(gtrid, 17) IN \
                     (SELECT unhex(printf('%08x', number)) FROM epochs WHERE number GLOB ?4 || '*') \
                 ORDER BY 1 LIMIT ?5",
            )
            .bind(low)
            .bind(high)
            .bind(digits.is_empty() || digits.parse::<Epoch>().is_ok())
            .bind(digits)
            .bind(limit)
            .fetch_all(readers)
            .await
        }
    }
    .map_err(read::error)?;
    let gtrid = |key: Vec<u8>| {
        Gtrid::from_bytes(&key)
            .ok_or_else(|| ReadError::Damaged("a transaction has a key that is no gtrid".to_owned()))
    };
    found.into_iter().map(gtrid).collect()
}
