//! What runs beside the transactions: pruning the log, and looking whether there is room for more.

use std::time::Duration;

use super::clock::unix_ms;
use super::handle::Engine;
use crate::decision_log::PruneLimits;
use crate::sessions::registry::Registry;

/// Rows that one pruning write removes: small enough that a force never waits long behind it.
const ROWS_AT_ONCE: u32 = 1000;
/// Free space below which nothing new is begun: what is running can still be decided and ended.
pub const MIN_FREE_BYTES: u64 = 64 << 20;
const LOOK_AT_DISK_EVERY: Duration = Duration::from_secs(1);

/// Prunes now and then, for ever. `retention`: how long records stay after their end.
pub async fn prune_now_and_then(engine: Engine, registry: Registry, retention: Duration) {
    let every = (retention / 10).clamp(Duration::from_millis(100), Duration::from_secs(60));
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = prune(&engine, &registry, retention).await {
            tracing::warn!(%error, "the decision log was not pruned; it is tried again in {every:?}");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum PruneError {
    #[error(transparent)]
    Append(#[from] crate::decision_log::AppendError),
    #[error(transparent)]
    Read(#[from] crate::decision_log::ReadError),
    #[error(transparent)]
    Stopped(#[from] super::shell::Stopped),
}

async fn prune(engine: &Engine, registry: &Registry, retention: Duration) -> Result<(), PruneError> {
    // Floors alone: where a database is, and whether it is retired, an operator may change meanwhile.
    for (name, floor) in registry.new_floors() {
        engine.log().remember_floor(&name, floor).await?;
        registry.floor_is_remembered(&name, floor);
    }
    let retention_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
    let limits = PruneLimits {
        ended_before_ms: unix_ms().saturating_sub(retention_ms),
        below: engine.live_floor().await?,
        limit: ROWS_AT_ONCE,
    };
    let mut pruned = 0;
    loop {
        let rows = engine.log().prune(limits).await?;
        pruned += rows;
        if rows < u64::from(ROWS_AT_ONCE) {
            break;
        }
    }
    if pruned > 0 {
        tracing::debug!(pruned, "ended transactions were pruned from the decision log");
        let horizon = engine.log().status().await?.horizon_ms;
        engine.admission().raise_horizon(horizon);
    }
    Ok(())
}

/// Looks at the free space now and then, for ever.
pub async fn watch_disk(engine: Engine, free_bytes: impl Fn() -> std::io::Result<u64> + Send) {
    let mut short = false;
    loop {
        match free_bytes() {
            Ok(free) => {
                engine.admission().set_free_bytes(free);
                if (free < MIN_FREE_BYTES) != short {
                    short = !short;
                    tracing::warn!(
                        free_mib = free >> 20,
                        short,
                        "free space in the data directory; short: nothing is begun"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "the free space in the data directory cannot be told"),
        }
        tokio::time::sleep(LOOK_AT_DISK_EVERY).await;
    }
}
