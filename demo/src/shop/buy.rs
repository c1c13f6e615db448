//! One customer, who may wait at the till: for the acts, and for whoever wants to see a transaction stand still.
//!
//! With `--hold` everything is done but the last step: the services have prepared, and wait for the decision. What is printed says so,
//! a line for each order, and the commit is sent when a line comes in on stdin, or its end; `leave` leaves everything as it is.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures::future::{join_all, try_join_all};

use super::storefront::{Addresses, Storefront};
use super::told::{Notes, Told};
use super::{Failure, GIFT_CARD, Order};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    addresses: Addresses,
    /// Gift cards, so many, each in an order of its own; a chair unless given
    #[arg(long, value_name = "COUNT")]
    gift_cards: Option<u32>,
    /// Wait before the commit until a line, or the end, comes in on stdin
    #[arg(long)]
    hold: bool,
    /// Seconds after which the transaction is rolled back unless it was decided
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// Seconds to wait for the answer to the commit
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    patience: u64,
    /// The file to write down in what the customer was told
    #[arg(long, env = "SHOP_TOLD")]
    told: Option<PathBuf>,
}

/// Buys, and prints `prepared`, `told` and, if it had to be asked for, `learned` for each order.
pub(super) async fn run(options: &Options) -> Result<ExitCode, Failure> {
    let storefront = Storefront::open(options.addresses.clone())?;
    let notes = Notes::open(options.told.as_deref())?;
    let orders: Vec<_> = match options.gift_cards {
        Some(count) => (1..=count).map(|n| Order::of(&format!("guest-{n}"), GIFT_CARD, 1, 50)).collect(),
        None => vec![Order::of("guest", "chair", 1, 40)],
    };
    let timeout = Duration::from_secs(options.timeout);
    let at_till = try_join_all(orders.iter().map(|order| storefront.to_the_till(order, timeout))).await?;
    for (order, tx) in orders.iter().zip(&at_till) {
        say(format_args!("prepared {} {}", order.id, tx.gtrid()))?;
    }
    if options.hold {
        let word = tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await?;
        if word.transpose()?.is_some_and(|word| word.trim() == "leave") {
            say(format_args!("left"))?;
            // As if killed: nothing is sent, neither commit nor rollback.
            std::process::exit(0);
        }
    }
    let patience = Duration::from_secs(options.patience);
    let paying = orders.iter().zip(at_till).map(async |(order, tx)| {
        let gtrid = tx.gtrid();
        let told = storefront.pay(tx, patience).await;
        notes.write(&order.id, &told)?;
        say(format_args!("told {} {gtrid} {}", order.id, in_a_word(&told)))?;
        if matches!(told, Told::Unknown(_)) {
            let learned = storefront.learn(gtrid).await;
            notes.write(&order.id, &learned)?;
            say(format_args!("learned {} {gtrid} {}", order.id, in_a_word(&learned)))?;
        }
        Ok::<_, Failure>(())
    });
    join_all(paying).await.into_iter().collect::<Result<(), Failure>>()?;
    Ok(ExitCode::SUCCESS)
}

fn say(line: std::fmt::Arguments<'_>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

const fn in_a_word(told: &Told) -> &'static str {
    match told {
        Told::Committed => "committed",
        Told::Declined(_) => "declined",
        Told::RolledBack(_) => "rolled-back",
        Told::Unknown(_) => "unknown",
        Told::Heuristic(_) => "heuristic",
    }
}
