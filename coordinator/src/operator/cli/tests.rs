use clap::error::ErrorKind;

use super::*;

mod docs;

fn refused(args: &[&str]) -> ErrorKind {
    let args = std::iter::once(&"lockstep").chain(args);
    command().try_get_matches_from(args).expect_err("this is no command line").kind()
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}

#[test]
fn what_is_no_command_line_is_refused() {
    assert_eq!(refused(&["begin"]), ErrorKind::InvalidSubcommand);
    assert_eq!(refused(&["tx", "fix"]), ErrorKind::InvalidSubcommand);
    // What is done is done with a reason; a plan needs none.
    assert_eq!(refused(&["tx", "rollback", "1"]), ErrorKind::MissingRequiredArgument);
    assert_eq!(refused(&["orphans", "resolve", "1", "--dry-run"]), ErrorKind::MissingRequiredArgument);
    assert_eq!(refused(&["tx", "wait"]), ErrorKind::MissingRequiredArgument);
    assert_eq!(refused(&["serve", "now"]), ErrorKind::UnknownArgument);
    for timeout in ["0s", "25h", "5", "soon"] {
        assert_eq!(refused(&["status", "--timeout", timeout]), ErrorKind::ValueValidation, "{timeout}");
    }
    assert_eq!(refused(&["tx", "ls", "--limit", "1001"]), ErrorKind::ValueValidation);
    // Someone who types no command wants to know which there are; that is not what a script wanted.
    for args in [&[][..], &["tx"], &["config"]] {
        assert_eq!(refused(args), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    }
}

#[test]
fn exit_codes_are_what_they_were() {
    use Exit::{
        Failed, Heuristic, NotFound, Ok, Refused, RolledBack, Timeout, Unfit, Unknown, Unreachable,
        Unresolved, Usage,
    };
    let promised = [
        (Ok, 0),
        (Failed, 1),
        (Usage, 2),
        (NotFound, 3),
        (Refused, 4),
        (RolledBack, 5),
        (Unresolved, 6),
        (Timeout, 7),
        (Unknown, 8),
        (Heuristic, 9),
        (Unfit, 10),
        (Unreachable, 11),
    ];
    assert_eq!(promised.map(|(exit, _)| exit), Exit::ALL);
    for (exit, code) in promised {
        assert_eq!(exit.code(), code);
    }
}

#[test]
fn a_failure_says_what_to_do_on_a_line_of_its_own() {
    let failure = Failure::new(Exit::Failed, "it is so");
    assert_eq!(failure.to_string(), "error: it is so");
    assert_eq!(failure.remedy("do this").to_string(), "error: it is so\n  do this");
}
