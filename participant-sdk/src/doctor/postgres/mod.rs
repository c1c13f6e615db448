//! PostgreSQL: what is found in a server ([`snapshot`]), and what that means ([`judge`]).

pub(crate) mod judge;
pub(crate) mod snapshot;

use std::str::FromStr as _;

use sqlx::postgres::PgConnectOptions;

use super::{DoctorError, Report};
use snapshot::Snapshot;

/// Looks, and judges.
pub(super) async fn examine(url: &str) -> Result<Report, DoctorError> {
    let options = options(url)?;
    let database = format!(
        "postgres://{}@{}:{}/{}",
        options.get_username(),
        options.get_host(),
        options.get_port(),
        // As libpq has it: the role's name, unless said otherwise.
        options.get_database().unwrap_or(options.get_username())
    );
    let snapshot = Snapshot::take(options)
        .await
        .map_err(|why| DoctorError::Unreachable(format!("{database}: {why}")))?;
    Ok(Report { database, findings: judge::judge(&snapshot) })
}

fn options(url: &str) -> Result<PgConnectOptions, DoctorError> {
    let form = "write one such as postgres://ROLE@HOST:5432/DATABASE";
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(DoctorError::Url(format!("it does not begin with postgres://; {form}")));
    }
    // The parser's own words may repeat parts of the URL.
    PgConnectOptions::from_str(url).map_err(|_may_hold_a_password| {
        DoctorError::Url(format!("this is no URL of a PostgreSQL database; {form}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_url_is_not_repeated() {
        for url in [
            "mysql://app:s3cret@db/bank",
            "s3cret",
            "postgres://app:s3cret@db:port/bank",
            "postgres://app:s3cret@db/bank?sslmode=s3cret",
            "postgres://app:s3cret@[db/bank",
        ] {
            let DoctorError::Url(why) = options(url).unwrap_err() else { panic!("{url} is malformed") };
            assert!(!why.contains("s3cret") && why.contains("postgres://ROLE@HOST:5432/DATABASE"), "{why}");
        }
        assert!(options("postgresql://app@db/bank").is_ok());
    }
}
