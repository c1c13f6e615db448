//! Customers who buy without end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use futures::future::join_all;
use serde::Serialize;
use tokio::time::{Instant, interval, sleep};

use super::http::listen;
use super::storefront::{Addresses, Storefront};
use super::told::{Notes, Told};
use super::{Failure, Order};

/// How often the log says how it goes.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// A customer who was turned away because something is broken comes back after so long.
const COME_BACK: Duration = Duration::from_millis(500);

/// One order of so many is turned down.
const TOO_EXPENSIVE: u32 = 20;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) addresses: Addresses,
    /// Where it can be asked for its health
    #[arg(long, env = "SHOP_LISTEN")]
    pub(super) listen: SocketAddr,
    /// Customers at the same time
    #[arg(long, env = "SHOP_CUSTOMERS", default_value_t = 4)]
    pub(super) customers: u32,
    /// Orders in a second, of all customers together
    #[arg(long, env = "SHOP_RATE", default_value_t = 10)]
    pub(super) rate: u32,
    /// The file to write down in what customers were told
    #[arg(long, env = "SHOP_TOLD")]
    pub(super) told: Option<PathBuf>,
    /// Without Lockstep: each service commits for itself
    #[arg(long)]
    pub(super) naive: bool,
}

/// How many were told what.
#[derive(Debug, Default)]
pub(super) struct Counts {
    committed: AtomicU64,
    declined: AtomicU64,
    rolled_back: AtomicU64,
    learned_later: AtomicU64,
    heuristic: AtomicU64,
}

/// [`Counts`], for people and programs.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Counted {
    pub(super) committed: u64,
    pub(super) declined: u64,
    pub(super) rolled_back: u64,
    pub(super) learned_later: u64,
    pub(super) heuristic: u64,
}

impl Counts {
    fn count(&self, told: &Told) {
        let counter = match told {
            Told::Committed => &self.committed,
            Told::Declined(_) => &self.declined,
            Told::RolledBack(_) => &self.rolled_back,
            Told::Unknown(_) => &self.learned_later,
            Told::Heuristic(_) => &self.heuristic,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> Counted {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counted {
            committed: read(&self.committed),
            declined: read(&self.declined),
            rolled_back: read(&self.rolled_back),
            learned_later: read(&self.learned_later),
            heuristic: read(&self.heuristic),
        }
    }
}

/// Everything that customers share.
pub(super) struct Load {
    pub(super) storefront: Storefront,
    pub(super) notes: Notes,
    pub(super) counts: Counts,
    pub(super) naive: bool,
    /// Set when no more is to be bought.
    pub(super) closed: AtomicBool,
}

impl Load {
    /// One customer, until the shop is closed.
    pub(super) async fn customer(&self, pause: Duration) -> Result<(), Failure> {
        while !self.closed.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let told = self.buy().await?;
            let pause = if matches!(told, Told::RolledBack(_)) { pause.max(COME_BACK) } else { pause };
            sleep(pause.saturating_sub(begun.elapsed())).await;
        }
        Ok(())
    }

    async fn buy(&self) -> Result<Told, Failure> {
        // Without Lockstep a service's own no leaves half an order too. What is shown there is what a kill does.
        let order = Order::at_random(if self.naive { 0 } else { TOO_EXPENSIVE });
        let told = match self.naive {
            true => self.storefront.sell_naively(&order).await,
            false => self.storefront.sell(&order).await,
        };
        self.notes.write(&order.id, &told)?;
        self.counts.count(&told);
        let Told::Unknown(gtrid) = &told else { return Ok(told) };
        let learned = self.storefront.learn(gtrid.parse()?).await;
        tracing::info!(order = order.id, %gtrid, "asked again, and learned: {learned:?}");
        self.notes.write(&order.id, &learned)?;
        self.counts.count(&learned);
        Ok(learned)
    }

    async fn tell(&self) {
        let mut turns = interval(TELL_EVERY);
        loop {
            turns.tick().await;
            let Counted { committed, declined, rolled_back, learned_later, heuristic } = self.counts.now();
            tracing::info!(committed, declined, rolled_back, learned_later, heuristic, "so far");
        }
    }
}

pub(super) async fn run(options: Options) -> Result<(), Failure> {
    let load = Arc::new(Load {
        storefront: Storefront::open(options.addresses)?,
        notes: Notes::open(options.told.as_deref())?,
        counts: Counts::default(),
        naive: options.naive,
        closed: AtomicBool::new(false),
    });
    let pause = Duration::from_secs(1) * options.customers / options.rate.max(1);
    let telling = tokio::spawn({
        let load = Arc::clone(&load);
        async move { load.tell().await }
    });
    let customers = tokio::spawn({
        let load = Arc::clone(&load);
        async move {
            let customers = join_all((0..options.customers).map(|_| load.customer(pause))).await;
            customers.into_iter().collect::<Result<(), Failure>>()
        }
    });
    // Customers go on until the shop closes: if they have ended before, something is wrong with them.
    let shopping = customers.abort_handle();
    listen(options.listen, axum::Router::new(), move || !shopping.is_finished()).await?;
    load.closed.store(true, Ordering::Relaxed);
    telling.abort();
    customers.await??;
    println!("{}", serde_json::to_string(&load.counts.now())?);
    Ok(())
}
