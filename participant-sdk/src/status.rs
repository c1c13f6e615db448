//! What a gRPC status means to the code here: its machine-readable reason, its text, and whether to ask again.

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The domain of the reasons that coordinators of Lockstep give.
const REASON_DOMAIN: &str = "lockstep";

/// The machine-readable reason in a status, if a coordinator of Lockstep gave one.
pub(crate) fn reason(status: &Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    (info.domain == REASON_DOMAIN).then_some(info.reason)
}

/// A status as a person should read it.
pub(crate) fn sentence(status: &Status) -> String {
    match (reason(status), page(status)) {
        (Some(reason), Some(code)) => format!("{} ({reason}, docs/errors/{code}.md)", status.message()),
        (Some(reason), None) => format!("{} ({reason})", status.message()),
        (None, _) => format!("{} ({:?})", status.message(), status.code()),
    }
}

/// The code in a status, such as `LS0504`, which has a page.
fn page(status: &Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    let code = info.metadata.get("code")?;
    let is_code =
        code.len() == 6 && code.starts_with("LS") && code[2..].bytes().all(|byte| byte.is_ascii_digit());
    is_code.then(|| code.clone())
}

/// Whether the same call may be answered otherwise a moment later. Only for calls that may be repeated.
pub(crate) fn is_transient(status: &Status) -> bool {
    match status.code() {
        // Sent by no coordinator as its verdict: a connection broke, a peer went away, a proxy gave up.
        Code::Unavailable
        | Code::Unknown
        | Code::Internal
        | Code::Cancelled
        | Code::Aborted
        | Code::DeadlineExceeded => true,
        // A coordinator's overload is the caller's to slow down for. Without its reason it is not a coordinator's: HTTP/2 has closed a connection on
        // which too much was going on, or a proxy has too much to do.
        Code::ResourceExhausted => reason(status).is_none(),
        // Verdicts on the call.
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_coordinator_that_is_full_has_said_so_and_a_connection_that_was_closed_may_be_opened_again() {
        let of_a_coordinator =
            ErrorDetails::with_error_info("TRANSACTION_LIMIT", REASON_DOMAIN, HashMap::new());
        let full = Status::with_error_details(Code::ResourceExhausted, "too many", of_a_coordinator);
        assert!(!is_transient(&full));
        assert!(is_transient(&Status::resource_exhausted("h2 protocol error: too_many_data_frames")));
    }
}
