//! What PostgreSQL's refusals mean for a branch, and in words that a caller can act on.

use sqlx::postgres::PgDatabaseError;

use super::sql;

/// Why a branch is not prepared or not committed, as far as it matters for what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The evidence was refused: the transaction is not the one that the SDK began (P16).
    EndedByService,
    /// The evidence was refused: there is nothing to commit.
    ReadOnly,
    /// The evidence was refused: the deadline has passed by the server's clock (P19).
    TooLate,
    /// The evidence was refused: there is a fence.
    Fenced,
    /// Anything else, and then it is not known which of the statements was refused.
    Other,
}

impl Refusal {
    pub(super) fn of(error: &PgDatabaseError) -> Self {
        let ours = error.schema() == Some("lockstep") && error.table() == Some("evidence");
        match (ours, error.constraint()) {
            (true, Some(sql::ENDED_BY_SERVICE)) => Self::EndedByService,
            (true, Some(sql::READ_ONLY)) => Self::ReadOnly,
            (true, Some(sql::TOO_LATE)) => Self::TooLate,
            (true, Some(sql::EVIDENCE_KEY)) => Self::Fenced,
            _ => Self::Other,
        }
    }
}

/// The SQLSTATE of a statement in a transaction that has already failed.
pub(super) const IN_FAILED_TRANSACTION: &str = "25P02";
/// The SQLSTATE of a prepared transaction that is not there.
pub(super) const UNDEFINED_OBJECT: &str = "42704";
/// The SQLSTATE of a function that is not there.
pub(super) const UNDEFINED_FUNCTION: &str = "42883";
/// The SQLSTATE of something that the role may not do.
pub(super) const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// The SQLSTATE of a lock that could not be had.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// The function of the server that reports a wait that took too long. A `NOWAIT` that did not wait has the same SQLSTATE.
const WAITED_TOO_LONG: &str = "ProcessInterrupts";

/// The lock that a statement waited for until `lock_timeout`: PostgreSQL names it in the context of its error.
pub(super) fn awaited_lock(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let error = error.downcast_ref::<sqlx::Error>()?.as_database_error()?;
    let error = error.try_downcast_ref::<PgDatabaseError>()?;
    if error.code() != LOCK_NOT_AVAILABLE || error.routine() != Some(WAITED_TOO_LONG) {
        return None;
    }
    Some(match error.r#where() {
        Some(context) => format!("a lock ({})", context.replace('\n', "; ")),
        None => "a lock that PostgreSQL does not name".to_owned(),
    })
}

/// Why a branch could not be prepared, or committed in one phase. The server's detail is left out: it quotes rows.
pub(super) fn words(error: &PgDatabaseError) -> String {
    let message = error.message();
    let code = error.code();
    match Refusal::of(error) {
        Refusal::EndedByService => {
            "the service ended the branch's local transaction itself (a ROLLBACK on the branch's connection)"
                .to_owned()
        }
        Refusal::ReadOnly => "nothing was written".to_owned(),
        Refusal::TooLate => "the deadline of the transaction has passed".to_owned(),
        Refusal::Fenced => {
            "the branch was fenced: somebody made sure before that it can't commit any more".to_owned()
        }
        Refusal::Other => format!("{message} (SQLSTATE {code}){}", advice(code, message)),
    }
}

/// Why a prepared branch could not be finished now.
pub(super) fn words_for_finishing(error: &PgDatabaseError) -> String {
    let advice = match error.code() {
        INSUFFICIENT_PRIVILEGE => {
            ": it has to be finished by the role that prepared it (pg_prepared_xacts.owner); let all instances of this \
             resource manager connect as that role, or finish it as a superuser"
        }
        "0A000" => ": it was prepared in another database of this server, and has to be finished from there",
        "25006" => ": the server is a standby; it has to be finished on the primary",
        "42P01" | "3F000" => ": the tables in the schema lockstep are gone; attach again to have them made",
        _ => "",
    };
    format!("{} (SQLSTATE {}){advice}", error.message(), error.code())
}

fn advice(code: &str, message: &str) -> &'static str {
    match code {
        IN_FAILED_TRANSACTION => {
            ": a statement of this branch had failed before, and the service did not say so; it has to return \
             the error, or to put such a statement into a savepoint"
        }
        "40001" | "40P01" => {
            ": another transaction stood in the way; the same work may succeed when it is tried again"
        }
        "53200" if message.contains("prepared transactions") => {
            ": all slots are taken; look for branches in doubt in pg_prepared_xacts, or raise \
             max_prepared_transactions (a restart of the server is needed)"
        }
        "55000" => {
            ": set max_prepared_transactions to the number of branches that may be prepared at once (a restart of the \
             server is needed)"
        }
        "0A000" => ": PostgreSQL can't prepare what this branch did",
        "25006" => {
            ": the branch's transaction was made READ ONLY, so that its evidence can't be written; leave it as it is"
        }
        INSUFFICIENT_PRIVILEGE => ": the role of the service needs the privileges that attaching checks",
        "42P01" | "3F000" => ": the tables in the schema lockstep are gone; attach again to have them made",
        UNDEFINED_FUNCTION if message.contains("lockstep.") => {
            ": the functions in the schema lockstep are gone; the next branch does without them, and the next attach makes them"
        }
        "55P03" | "57014" => ": it took longer than the deadline of the transaction allows",
        _ if code.starts_with("23") => ": a constraint that is checked at the end does not hold",
        _ => "",
    }
}
