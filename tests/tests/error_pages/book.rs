//! What was met, and the commands of its page.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use lockstep_coordinator::codes::Code;
use lockstep_tests::harness::coordinator::Ran;
use lockstep_tests::harness::roles::Roles;
use lockstep_tests::operators::pages::{Names, commands};

/// Nothing here takes that long; what would hang fails instead.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Who plays `lockstep`.
pub(crate) fn roles() -> Roles {
    Roles::played_by(env!("CARGO_BIN_EXE_prove"))
}

/// `lockstep` with these arguments, asking this coordinator unless they say otherwise.
pub(crate) fn command(roles: &Roles, server: &str, arguments: &[&str]) -> Command {
    let mut command = roles.command("coordinator");
    command.arg("--").args(arguments).env("LOCKSTEP_SERVER", server).env("USER", "kim");
    command
}

/// Runs it to its end, whatever it comes to.
pub(crate) fn run(mut command: Command) -> Ran {
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A role ends when its standard input does.
    let held = child.stdin.take();
    let id = rustix::process::Pid::from_child(&child);
    let (ended, watch) = std::sync::mpsc::channel::<()>();
    let watcher = std::thread::spawn(move || {
        if watch.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // It does not end by itself: the test says so below.
            let _gone = rustix::process::kill_process(id, rustix::process::Signal::KILL);
        }
    });
    let ran = child.wait_with_output().unwrap();
    drop((ended, held));
    watcher.join().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = ran.status.code();
    let (stdout, stderr) = (text(&ran.stdout), text(&ran.stderr));
    Ran { code: code.unwrap_or_else(|| panic!("it was killed: {stdout}{stderr}")), stdout, stderr }
}

/// What is met in one test.
pub(crate) struct Book {
    roles: Roles,
    met: BTreeSet<Code>,
}

impl Book {
    pub(crate) fn new() -> Self {
        Self { roles: roles(), met: BTreeSet::new() }
    }

    /// Runs a command that has to fail with this code, and follows its page.
    pub(crate) fn fails(&mut self, code: Code, names: &Names<'_>, arguments: &[&str]) -> Ran {
        let ran = self.ran(names, arguments);
        assert_ne!(ran.code, 0, "{arguments:?}: {ran:?}");
        self.meets(code, names, &ran.stderr);
        ran
    }

    /// Runs a command, whatever it comes to.
    pub(crate) fn ran(&self, names: &Names<'_>, arguments: &[&str]) -> Ran {
        let mut command = command(&self.roles, names.server, arguments);
        command.stdout(Stdio::piped());
        run(command)
    }

    /// A user was told this.
    pub(crate) fn meets(&mut self, code: Code, names: &Names<'_>, told: &str) {
        assert!(told.contains(&code.to_string()), "it does not name {code}: {told}");
        for arguments in commands(&code.to_string(), names) {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let ran = self.ran(names, &arguments);
            // Refused, not ready, not to be reached: all of it may be so in this situation. A wrong command line is the page's fault.
            let usage = ran.stderr.contains(&Code::WrongCommandLine.to_string());
            assert!(!usage, "{code}: its page says {arguments:?}: {ran:?}");
        }
        self.met.insert(code);
    }

    pub(crate) fn has_met(&self, expected: &[Code]) {
        assert_eq!(self.met, expected.iter().copied().collect());
    }
}
