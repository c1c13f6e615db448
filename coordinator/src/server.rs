//! Puts the coordinator together and runs it. A stand-in: it binds the address and waits to be told to stop.

use std::net::SocketAddr;

use lockstep_proto::{ClusterId, Epoch};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::operator::{Ready, Recovered};

/// Why a coordinator did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// What the operating system says.
        source: std::io::Error,
    },
}

impl ServeError {
    /// What to do about it: a sentence or more.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Listen { .. } => "is another `lockstep serve` running? `lockstep status` tells. \
                 Take another address with --listen; port 0 takes a free one"
                .to_owned(),
        }
    }
}

/// Runs a coordinator until `shutdown` is cancelled and it has drained.
///
/// # Errors
/// Why it did not start, or could not go on.
pub async fn serve(
    config: &Config,
    on_ready: impl FnOnce(Ready) + Send,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let address = config.listen;
    let failed = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    on_ready(Ready {
        listening: vec![listener.local_addr().map_err(failed)?],
        durability: "none yet".to_owned(),
        data_dir: std::path::absolute(&config.data_dir).map_err(failed)?,
        cluster: ClusterId::from_random(0),
        epoch: Epoch::new(1).expect("1 is an epoch"),
        recovered: Recovered::default(),
    });
    shutdown.cancelled().await;
    Ok(())
}
