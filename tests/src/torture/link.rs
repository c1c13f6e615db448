//! A way between two processes, through a port of its own, that can be cut and slowed.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::harness::Result;
use crate::harness::ports::{Port, listen_apart};

/// What is passed on at a time.
const CHUNK: usize = 16 * 1024;

/// How it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// All passes.
    Open,
    /// Each chunk passes so much later.
    Slow(Duration),
    /// Nothing passes, and nobody hears of it.
    Silent,
    /// What is connected is closed, and whoever dials is closed at once.
    Cut,
}

/// Passes on what comes until it is dropped.
#[derive(Debug)]
pub struct Link {
    port: Port,
    condition: watch::Sender<Condition>,
    /// Ends everything that runs in it when it is dropped.
    _runtime: Runtime,
}

impl Link {
    /// To whoever listens at this port of loopback, now or later.
    ///
    /// # Errors
    /// If it can't listen.
    pub fn to(target: u16) -> Result<Self> {
        let (port, listener, runtime) = listen_apart()?;
        let (condition, watched) = watch::channel(Condition::Open);
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if *watched.borrow() == Condition::Cut {
                    continue;
                }
                tokio::spawn(pass(near, target, watched.clone()));
            }
        });
        Ok(Self { port, condition, _runtime: runtime })
    }

    /// Where it is dialled.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// From now on it is like this.
    pub fn make(&self, condition: Condition) {
        self.condition.send_replace(condition);
    }
}

async fn pass(near: TcpStream, target: u16, condition: watch::Receiver<Condition>) {
    let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    // Small messages go back and forth: none waits for another to fill its packet.
    drop((near.set_nodelay(true), far.set_nodelay(true)));
    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
    let mut until_cut = condition.clone();
    tokio::select! {
        () = one_way(from_near, to_far, condition.clone()) => {}
        () = one_way(from_far, to_near, condition) => {}
        _ = until_cut.wait_for(|now| *now == Condition::Cut) => {}
    }
}

/// Ends when one of the two has gone.
async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut condition: watch::Receiver<Condition>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let Ok(length @ 1..) = from.read(&mut chunk).await else { return };
        // What is silent stays so until that is over.
        let passes = condition.wait_for(|now| *now != Condition::Silent).await.map(|now| *now);
        match passes {
            Ok(Condition::Open) => {}
            Ok(Condition::Slow(by)) => tokio::time::sleep(by).await,
            Ok(Condition::Cut | Condition::Silent) | Err(_) => return,
        }
        if to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
}
