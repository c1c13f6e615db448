//! What each exit code means, and how a failure is told.

use std::fmt;
use std::process::ExitCode;

use crate::codes::Code;
use crate::decision_log::postgres;

/// How a command ended. The numbers are a promise to scripts: none is ever reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    RolledBack = 5,
    Unresolved = 6,
    Timeout = 7,
    Unknown = 8,
    Heuristic = 9,
    Unfit = 10,
    Unreachable = 11,
}

impl Exit {
    /// All of them, by number.
    pub(super) const ALL: [Self; 12] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::NotFound,
        Self::Refused,
        Self::RolledBack,
        Self::Unresolved,
        Self::Timeout,
        Self::Unknown,
        Self::Heuristic,
        Self::Unfit,
        Self::Unreachable,
    ];

    /// The number.
    pub(super) const fn code(self) -> u8 {
        self as u8
    }

    /// What it means, for help and documentation.
    pub(super) const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => {
                "done; `tx wait`: committed, or there was nothing to commit; `doctor`: nothing worse than a warning"
            }
            Self::Failed => "failed, for the reason on stderr; nothing answered",
            Self::Usage => {
                "wrong usage: a flag, a variable, the configuration file, or an id that is not unique"
            }
            Self::NotFound => "no such transaction, or no such resource manager",
            Self::Refused => "refused by the coordinator, as unsafe or as not its own",
            Self::RolledBack => "`tx wait`: rolled back",
            Self::Unresolved => {
                "`--exit-code`: something is unresolved, or an attached database or the decision log did not answer; `health`: not ready"
            }
            Self::Timeout => "no answer in time; `tx wait`: still undecided",
            Self::Unknown => "`tx wait`: the coordinator cannot tell the outcome",
            Self::Heuristic => "`tx wait`: a branch ended differently from the decision",
            Self::Unfit => "`doctor`: an error was found",
            Self::Unreachable => "`doctor`: the database could not be reached or asked",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The exit codes as the help shows them.
pub(super) fn table() -> String {
    Exit::ALL.iter().fold("Exit codes:\n".to_owned(), |table, exit| {
        format!("{table}  {}  {}\n", exit.code(), exit.meaning())
    })
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(super) struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// The error's code, if it has one: its page says more.
    pub code: Option<String>,
    /// What happened: a sentence, or one for each line.
    pub message: String,
    /// What to do about it; empty if the message says it.
    pub remedy: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, code: None, message: message.into(), remedy: String::new() }
    }

    /// Nobody reads on, as in `lockstep tx ls | head -1`: they had enough of it, which is no error, and the command ends here.
    pub(super) fn reader_gone() -> Self {
        Self::new(Exit::Ok, String::new())
    }

    /// Whether there is nothing to say.
    pub(super) fn is_silent(&self) -> bool {
        self.message.is_empty()
    }

    /// One that has a page.
    pub(super) fn coded(code: Code, exit: Exit, message: impl Into<String>) -> Self {
        Self { code: Some(code.to_string()), ..Self::new(exit, message) }
    }

    /// Something that every process may do, and that the operating system denied this one.
    pub(super) fn of_system(what: &str, error: &std::io::Error) -> Self {
        Self::coded(Code::SystemRefuses, Exit::Failed, format!("the operating system does not let this process {what}: {error}"))
            .remedy("raise its limits: open files (`ulimit -n`), processes (`ulimit -u`); a service has LimitNOFILE and TasksMax")
    }

    /// A command for logs that are shared, and one that is not: why it makes no sense.
    pub(super) fn not_shared(why: &str) -> Self {
        Self::coded(Code::SharedLogOnly, Exit::Usage, why)
            .remedy("name a shared one with --log postgres://role@host/database")
    }

    /// A shared decision log that could not be worked on.
    pub(super) fn of_shared_log(error: postgres::OpenError) -> Self {
        let exit = match error {
            postgres::OpenError::Url(_) => Exit::Usage,
            postgres::OpenError::Unreachable { .. }
            | postgres::OpenError::Unfit { .. }
            | postgres::OpenError::Clock { .. }
            | postgres::OpenError::Schema { .. }
            | postgres::OpenError::Failed { .. } => Exit::Failed,
        };
        Self::coded(error.code(), exit, error.to_string()).remedy(error.remedy())
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, "error[{code}]: {}", self.message)?,
            None => write!(f, "error: {}", self.message)?,
        }
        if !self.remedy.is_empty() {
            write!(f, "\n  {}", self.remedy)?;
        }
        self.code.iter().try_for_each(|code| write!(f, "\n  docs/errors/{code}.md"))
    }
}
