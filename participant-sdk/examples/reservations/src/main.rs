//! `reservations`: a shop whose stock is in a file, and whose reservations are part of other people's transactions.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser as _;
use lockstep::Participant;
use reservations::{Ledger, service};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How long branches may take to end when the service is told to stop.
const GRACE: Duration = Duration::from_secs(30);

/// Serves a ledger of reservations.
#[derive(Debug, clap::Parser)]
struct Args {
    /// The ledger's directory; made if there is none.
    #[arg(long)]
    directory: PathBuf,
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:7430")]
    listen: SocketAddr,
    /// The coordinator's URL.
    #[arg(long, default_value = "http://127.0.0.1:7420")]
    coordinator: String,
    /// What the ledger is called at the coordinator: the same at every start.
    #[arg(long, default_value = "reservations")]
    name: String,
    /// Items that the ledger is to have, with their stock at first: `chair=10`.
    #[arg(long = "item", value_parser = item)]
    items: Vec<(String, u32)>,
}

fn item(text: &str) -> Result<(String, u32), String> {
    let (item, stock) = text.split_once('=').ok_or("it has the form <item>=<stock>")?;
    let stock = stock.parse().map_err(|error| format!("the stock {stock:?}: {error}"))?;
    Ok((item.to_owned(), stock))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args = Args::parse();
    std::fs::create_dir_all(&args.directory)?;
    let ledger = Ledger::new(&args.directory);
    for (item, stock) in &args.items {
        ledger.add_item(item, *stock).await?;
    }
    let participant =
        Participant::builder(&args.name, ledger.clone()).coordinator(&args.coordinator).attach().await?;

    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        terminate.recv().await;
    };
    let listener = TcpListener::bind(args.listen).await?;
    axum::serve(listener, service::router(participant.clone(), ledger)).with_graceful_shutdown(stop).await?;
    participant.detach(GRACE).await;
    Ok(())
}
