//! What disks do: fill up, and fail to force what was written.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::clock::wait_for;
use super::tools::need_strace;
use super::{Failed, Result};

/// How long `strace` may take to seize every process, and to let go of them.
const TO_SEIZE: Duration = Duration::from_secs(20);

/// A file system of its own that is soon full. It goes when this is dropped; the janitor of a server that is on it knows of it too.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one at this directory, which has to be empty.
    ///
    /// # Errors
    /// If it can't be mounted: that takes root, where mounting is permitted.
    pub fn mount(at: &Path, mebibytes: u32) -> Result<Self> {
        let size = format!("size={mebibytes}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "lockstep-small-disk"]).arg(at))?;
        Ok(Self(at.to_owned()))
    }

    /// Writes to it until nothing more fits.
    ///
    /// # Errors
    /// If something else goes wrong.
    pub fn fill(&self) -> Result<()> {
        let cannot = || Failed::because(format!("{} cannot be filled", self.0.display()));
        let mut ballast = File::create(self.ballast()).map_err(cannot())?;
        // In large portions as long as they fit, which is quick; then by pages, so that less than one is left.
        for portion in [1 << 20, 1 << 12] {
            let bytes = vec![0; portion];
            loop {
                match ballast.write(&bytes) {
                    Ok(_some) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(cannot()(error)),
                }
            }
        }
        Ok(())
    }

    /// Makes room again.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn make_room(&self) -> Result<()> {
        fs::remove_file(self.ballast()).map_err(Failed::because("the ballast stays"))
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there keeps it, and nobody else sees it.
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(&self.0)) {
            eprintln!("{error}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(Failed::because(format!("{command:?} does not run")))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    Err(Failed::new(format!("{command:?}: {words}")))
}

/// Processes whose forced writes fail, until this is dropped.
#[derive(Debug)]
pub struct FailingForces(Child);

impl FailingForces {
    /// Has every `fsync` and `fdatasync` of these processes, and of those that they start from now on, fail with EIO, without being done.
    ///
    /// # Errors
    /// If they can't be traced.
    pub fn of(processes: &[Pid]) -> Result<Self> {
        need_strace()?;
        let mut strace = Command::new("strace");
        strace.args(["-f", "-q", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"]);
        strace.args(["-e", "inject=fsync,fdatasync:error=EIO"]);
        for process in processes {
            strace.args(["-p", &process.as_raw_nonzero().to_string()]);
        }
        strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let tracer = Self(strace.spawn().map_err(Failed::because("strace does not run"))?);
        let seized = || Ok(processes.iter().all(|process| is_traced(*process)).then_some(()));
        wait_for("strace to seize every process", TO_SEIZE, seized)?;
        Ok(tracer)
    }
}

/// Whether somebody traces it. One that is gone needs nobody.
fn is_traced(process: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero()));
    let tracer =
        |status: String| status.lines().find_map(|line| line.strip_prefix("TracerPid:").map(str::to_owned));
    status.ok().and_then(tracer).is_none_or(|tracer| tracer.trim() != "0")
}

impl Drop for FailingForces {
    fn drop(&mut self) {
        // It lets go of whom it traces. Killed, it would leave the kernel to do so, which is as good.
        let told = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let ended = wait_for("strace to end", TO_SEIZE, || {
            self.0.try_wait().map_err(Failed::because("strace cannot be waited for"))
        });
        if told.is_err() || ended.is_err() {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }
}
