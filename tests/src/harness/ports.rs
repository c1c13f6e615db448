//! Ports on loopback that stay ours over a restart.

use std::net::{Ipv4Addr, TcpListener};

use super::{Failed, Result};

/// Below the range that Linux gives to outgoing connections: a connection of somebody else could otherwise sit on a
/// process' port at the moment it is started again.
const RANGE: std::ops::Range<u16> = 10_000..15_000;
const ATTEMPTS: u32 = 200;

/// A port that nobody listens on now.
///
/// # Errors
/// If none was found.
pub fn free_port() -> Result<u16> {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    std::iter::repeat_with(|| rand::random_range(RANGE))
        .take(ATTEMPTS as usize)
        .find(free)
        .ok_or_else(|| Failed::new(format!("no free port in {RANGE:?}")))
}
