//! Finding transactions by what a person has typed of them.

use lockstep_proto::{Epoch, Gtrid};
use sqlx::PgPool;

use super::connect::answer;
use super::read::{self, PATIENCE};
use crate::decision_log::ReadError;
use crate::decision_log::prefix::{Prefix, parse, range};

/// Transactions with a record that begin so, oldest first. Those of an epoch whose digits are not given are found by walking
/// over the whole table; a text that cannot be an epoch's (the digits of our century begin with 0) spares that.
pub(super) async fn find(pool: &PgPool, prefix: &str, limit: u32) -> Result<Vec<Gtrid>, ReadError> {
    let (digits, epoch) = match parse(prefix) {
        None => return Ok(Vec::new()),
        Some(Prefix::Epoch(epoch, digits)) => (digits, Some(epoch)),
        Some(Prefix::Either(text)) => (text, None),
    };
    let (low, high) = range(digits);
    let statement = match epoch {
        Some(epoch) => sqlx::query_scalar(
            "SELECT gtrid FROM lockstep_log.transactions \
             WHERE gtrid >= decode($1, 'hex') AND gtrid <= decode($2 || 'ffffffff', 'hex') AND epoch = $3 \
             ORDER BY gtrid LIMIT $4",
        )
        .bind(low)
        .bind(high)
        .bind(i64::from(epoch)),
        None => sqlx::query_scalar(
            "SELECT gtrid FROM lockstep_log.transactions \
             WHERE gtrid >= decode($1, 'hex') AND gtrid <= decode($2 || 'ffffffff', 'hex') \
             UNION \
             SELECT gtrid FROM lockstep_log.transactions WHERE $3 <> '' AND epoch IN \
                 (SELECT number FROM lockstep_log.epochs WHERE starts_with(number::text, $3)) \
             ORDER BY 1 LIMIT $4",
        )
        .bind(low)
        .bind(high)
        .bind(digits.parse::<Epoch>().map_or(String::new(), |_epoch| digits.to_owned())),
    };
    let statement = statement.bind(i64::from(limit));
    let found: Vec<Vec<u8>> = answer(PATIENCE, statement.fetch_all(pool)).await?;
    found.iter().map(|key| read::gtrid(key)).collect()
}
