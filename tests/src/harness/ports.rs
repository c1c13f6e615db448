//! Ports on loopback that stay ours over a restart.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;

use tokio::runtime::Runtime;

use super::{Failed, Result};

/// Below the range that Linux gives to outgoing connections: a connection of somebody else could otherwise sit on a
/// process' port at the moment it is started again.
const RANGE: std::ops::Range<u16> = 10_000..15_000;
const ATTEMPTS: u32 = 200;

/// A port, reserved against every other test process of this user until the last clone is dropped: while a killed process is
/// down, nobody listens on its port, and it would look free.
#[derive(Debug, Clone)]
pub struct Port {
    number: u16,
    /// Its lock goes with it, whatever this process dies of.
    _reservation: Arc<File>,
}

impl Port {
    /// A port that nobody listens on now.
    ///
    /// # Errors
    /// If none was found.
    pub fn reserve() -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let number = rand::random_range(RANGE);
            if let Some(reservation) = lock(number)?
                && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok()
            {
                return Ok(Self { number, _reservation: Arc::new(reservation) });
            }
        }
        Err(Failed::new(format!("no free port in {RANGE:?}")))
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// A port that this process listens on, and a runtime for who answers there: everything in it ends when it is dropped, whatever the runtime
/// does that asked for it.
///
/// # Errors
/// If it can't listen.
pub(crate) fn listen_apart() -> Result<(Port, tokio::net::TcpListener, Runtime)> {
    let cannot = || Failed::because("nobody can listen on a port of its own");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(cannot())?;
    let port = Port::reserve()?;
    let listening = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port.number()));
    let listener = runtime.block_on(listening).map_err(cannot())?;
    Ok((port, listener, runtime))
}

/// `None` if somebody else has it.
fn lock(number: u16) -> Result<Option<File>> {
    let user = rustix::process::geteuid().as_raw();
    let directory = std::env::temp_dir().join(format!("lockstep-tests-ports-{user}"));
    let path = directory.join(number.to_string());
    let failed = |error| Failed::new(format!("the port's reservation {}: {error}", path.display()));
    std::fs::create_dir_all(&directory).map_err(failed)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The process that has it may be dead at this moment, and is going to be started again.
    #[test]
    fn a_port_on_which_nobody_listens_yet_is_taken_all_the_same() {
        let port = Port::reserve().unwrap();
        let clone = port.clone();
        drop(port);
        assert!(lock(clone.number()).unwrap().is_none());
        let number = clone.number();
        drop(clone);
        assert!(lock(number).unwrap().is_some());
    }
}
