//! Why a coordinator did not start, or ended, and what to do about it.

use std::net::SocketAddr;

use crate::codes::Code;
use crate::decision_log::{ReadError, postgres, sqlite};

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
    /// The embedded decision log cannot be opened.
    #[error(transparent)]
    Open(#[from] sqlite::OpenError),
    /// The shared decision log cannot be opened.
    #[error(transparent)]
    OpenShared(#[from] postgres::OpenError),
    /// The decision log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A force failed, or it is unknown whether it did (P6).
    #[error("the decision log failed, and this process must not go on: {0}")]
    LogFailed(String),
    /// A task of ours is gone.
    #[error("a part of the coordinator has ended unexpectedly, and this process must not go on: {0}")]
    Bug(String),
    /// The server failed.
    #[error("the gRPC server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

impl ServeError {
    /// Its code: docs/errors has a page for it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Listen { .. } | Self::Serve(_) => Code::CannotListen,
            Self::Open(error) => error.code(),
            Self::OpenShared(error) => error.code(),
            Self::Read(error) => error.code(),
            Self::LogFailed(_) => Code::LogFailed,
            Self::Bug(_) => Code::Bug,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Listen { .. } => "is another `lockstep serve` running? `lockstep status` tells. \
                 Take another address with --listen; port 0 takes a free one"
                .to_owned(),
            // Its own sentence says what to do.
            Self::Open(_) => String::new(),
            Self::OpenShared(error) => error.remedy().to_owned(),
            Self::Read(_) => "if the log is damaged, keep a copy of it before anything else; \
                 then look at the disk, and restore from a backup"
                .to_owned(),
            Self::LogFailed(_) => {
                "look at the log's disk, then start again: what is really in the log is read then, and \
                 every transaction in doubt is finished from it"
                    .to_owned()
            }
            Self::Bug(_) => {
                "start again: the decision log has everything that is needed. Please report this".to_owned()
            }
            Self::Serve(_) => "start again".to_owned(),
        }
    }
}
