//! Cleans up after a test process that could not.
//!
//! A test process may die of SIGKILL, a Ctrl-C or an abort, and no `Drop` runs then. So each server has a
//! janitor: a shell that waits for the end of a pipe whose other end only this process holds. The kernel closes
//! it, whatever the process died of; the janitor then kills the server and removes its directory. (A
//! parent-death signal would be simpler, but it is sent when the *thread* ends that started the child, and
//! tests are threads.)

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// `$1` is the server's directory, `$2` the file with its process id. That counts only while it is that of a process
/// that was started for this directory: after a crash it may be somebody else's.
const SCRIPT: &str = r#"
read -r _
pid=$(head -n 1 "$2" 2>/dev/null)
if [ -n "$pid" ] && tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null | grep -q -F "$1/data"; then
    kill -KILL "$pid"
fi
# Other processes of the server end when they miss this one; until then they may still make files.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    # Its data may be on a disk of their own.
    umount --lazy "$1/data" 2>/dev/null
    rm -rf "$1" 2>/dev/null
    [ -e "$1" ] || exit 0
    sleep 0.2
done
"#;

#[derive(Debug)]
pub(super) struct Janitor(Child);

impl Janitor {
    /// Watches over a server that keeps everything in `directory`, and its process id in the first line of `pid_file`.
    pub(super) fn watch(directory: &Path, pid_file: &Path) -> io::Result<Self> {
        Command::new("/bin/sh")
            .args(["-c", SCRIPT, "lockstep-janitor"])
            .args([directory, pid_file])
            .stdin(Stdio::piped())
            // It outlives the tests by a moment; whoever waits for the end of their output must not wait for it.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C is not for it.
            .process_group(0)
            .spawn()
            .map(Self)
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}
