//! What the server's refusals mean for a branch, and in words that a caller can act on.

use sqlx::mysql::MySqlDatabaseError;

use super::sql;

/// No branch of this name is prepared, or the session that prepared it is still there.
pub(super) const UNKNOWN_XID: u16 = 1397;
/// A session that is inside of a transaction can't begin a branch.
pub(super) const WORK_OUTSIDE: u16 = 1400;
/// A key is there already.
pub(super) const DUPLICATE_KEY: u16 = 1062;
/// There is no session to kill.
pub(super) const NO_SUCH_SESSION: u16 = 1094;
/// A table is not there.
pub(super) const NO_SUCH_TABLE: u16 = 1146;
/// What the user may not do: with a database, with a table, with one of its columns, at all.
pub(super) const ACCESS_DENIED: &[u16] = &[1044, 1142, 1143, 1227];
/// XA RECOVER on MySQL without the privilege for it.
pub(super) const RECOVER_DENIED: u16 = 1401;
/// A column that has to have a value has none.
const NULL_VALUE: u16 = 1048;
/// A statement does not fit the state of the branch: it was ended, or rolled back in a deadlock.
const WRONG_STATE: u16 = 1399;
/// A savepoint is gone: so is the branch that it was made in.
const NO_SAVEPOINT: u16 = 1305;
/// Refusals that say nothing about the statement, and all about the branch.
pub(super) const NOT_TRIED: &[u16] = &[WRONG_STATE, NO_SAVEPOINT];

/// A lock that was waited for until `innodb_lock_wait_timeout` or `lock_wait_timeout`.
const WAITED_TOO_LONG: u16 = 1205;

/// The lock that a statement waited for in vain. The server's error does not name it; `found` is what was seen while the wait lasted.
pub(super) fn awaited_lock(found: Option<&str>, error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let error = error.downcast_ref::<sqlx::Error>()?.as_database_error()?;
    let error = error.try_downcast_ref::<MySqlDatabaseError>()?;
    (error.number() == WAITED_TOO_LONG).then(|| {
        found
            .unwrap_or(
                "a lock on a row or a table of the statement that failed (the server does not name it)",
            )
            .to_owned()
    })
}

/// Why the evidence of a branch was refused, and so the branch is neither prepared nor committed. The evidence is the only
/// thing that has our key and our columns, and no other statement of that round trip can be refused so.
pub(super) fn words(error: &MySqlDatabaseError) -> String {
    let (number, message) = (error.number(), error.message());
    match number {
        DUPLICATE_KEY => {
            "the branch was fenced: somebody made sure before that it can't commit any more".to_owned()
        }
        NULL_VALUE if message.contains(sql::DEADLINE) => {
            "the deadline of the transaction has passed".to_owned()
        }
        _ => format!("{message} ({number}){}", advice(number)),
    }
}

/// Why a prepared branch could not be finished now.
pub(super) fn words_for_finishing(error: &MySqlDatabaseError) -> String {
    let advice = match error.number() {
        1205 | 1213 => ": the branch is still being ended by somebody else",
        1290 => ": the server takes no writes; it has to be finished where it does",
        NO_SUCH_TABLE => {
            ": the tables lockstep_evidence and lockstep_identity are gone; attach again to have them made"
        }
        number if ACCESS_DENIED.contains(&number) => {
            ": the user of the service needs the privileges that attaching checks"
        }
        _ => "",
    };
    format!("{} ({}){advice}", error.message(), error.number())
}

fn advice(number: u16) -> &'static str {
    match number {
        1213 | 1613 | 1614 => {
            ": another transaction stood in the way; the same work may succeed when it is tried again"
        }
        WRONG_STATE | NO_SAVEPOINT => ": the branch was rolled back before",
        1178 => {
            ": a table was changed whose engine has no savepoints (Aria); only InnoDB tables can take part in a branch"
        }
        1205 | 1969 | 3024 => ": it took longer than the deadline of the transaction allows",
        1290 | 1792 => {
            ": the server or the session takes no writes, so that the branch's evidence can't be written"
        }
        NO_SUCH_TABLE => {
            ": the tables lockstep_evidence and lockstep_identity are gone; attach again to have them made"
        }
        number if ACCESS_DENIED.contains(&number) => {
            ": the user of the service needs the privileges that attaching checks"
        }
        _ => "",
    }
}
