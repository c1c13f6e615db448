//! Runs one test of this binary once more, in a process of its own: to be killed, to be denied a disk, to be watched.
//!
//! Such a test is ignored in an ordinary run, works in [`dir`], and talks with [`say`]; its parent reads that with
//! [`Child::hear`].

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};

const DIR: &str = "LOCKSTEP_TEST_DIR";
const MARK: &str = "child: ";

/// In a child: the directory that its parent gave it. `None` in a test that someone runs by hand.
pub(crate) fn dir() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

/// In a child: tells the parent.
pub(crate) fn say(text: impl std::fmt::Display) {
    println!("{MARK}{text}");
}

/// A test that runs as a process.
pub(crate) struct Child {
    process: std::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts the test of this name, behind the words of `wrapper`, such as those of `strace`.
    pub(crate) fn start(test: &str, dir: &Path, wrapper: &[&str]) -> Self {
        let this = std::env::current_exe().unwrap();
        let mut words = wrapper.iter().map(std::ffi::OsStr::new).chain([this.as_os_str()]);
        let mut process = Command::new(words.next().unwrap())
            .args(words)
            .args([test, "--exact", "--ignored", "--nocapture"])
            .env(DIR, dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// The next thing that it says; `None` once it has ended.
    pub(crate) fn hear(&mut self) -> Option<String> {
        let line = self.lines.by_ref().map(Result::unwrap).find(|line| line.contains(MARK))?;
        line.split_once(MARK).map(|(_, said)| said.to_owned())
    }

    /// Kills it with SIGKILL, unless it has ended before. What it had said by then, not heard yet.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        let status = self.process.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        std::iter::from_fn(|| self.hear()).collect()
    }

    /// Waits for its end. What it said, not heard yet.
    pub(crate) fn finish(mut self) -> (ExitStatus, Vec<String>) {
        let said = std::iter::from_fn(|| self.hear()).collect();
        (self.process.wait().unwrap(), said)
    }
}

/// Fails unless this command works here: a test that is passed over proves nothing. A missing `strace` is installed from
/// Debian's packages.
pub(crate) fn need(command: &[&str]) {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let works = |command: &[&str]| {
        Command::new(command[0]).args(&command[1..]).output().is_ok_and(|output| output.status.success())
    };
    if works(command) {
        return;
    }
    let _one = ONE_AT_A_TIME.lock().unwrap();
    if command[0] == "strace" && !works(command) {
        works(&["apt-get", "update", "-qq"]);
        works(&["apt-get", "install", "-y", "-qq", "--no-install-recommends", "strace"]);
    }
    assert!(
        works(command),
        "this test needs {command:?} to work here: run it as root, where namespaces are allowed"
    );
}

/// The words that start a process where [`DIR`] is the top of a file system of its own, mounted with these options. It goes
/// with the process.
pub(crate) fn with_own_disk(options: &str) -> Vec<String> {
    let unshare = ["unshare", "--map-root-user", "--mount"];
    need(&[&unshare[..], &["true"]].concat());
    let mount = format!("mount -t tmpfs -o {options} tmpfs \"${DIR}\" && exec \"$@\"");
    let words = unshare.iter().copied().chain(["sh", "-c", &mount, "sh"]);
    words.map(str::to_owned).collect()
}
