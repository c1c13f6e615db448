//! `lockstep serve`: configuration, log lines, signals and the banner around [`server::serve`].

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::config_show;
use super::exit::{Exit, Failure};
use super::output;
use crate::codes::Code;
use crate::config::{Config, LogFormat, Overrides};
use crate::operator::banner::{Ready, banner};
use crate::server::{self, ServeError};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let config = config_show::load(&args.overrides)?.config;
    start_log(&config);
    // Before anything is opened: a signal that comes during recovery is not lost.
    let mut signals = Signals::listen()?;
    let shutdown = CancellationToken::new();
    let format = config.log_format;
    let serving = Box::pin(server::serve(&config, move |ready| announce(&ready, format), shutdown.clone()));
    until_ended(serving, async || signals.next().await, &shutdown).await
}

/// Prints the banner. A coordinator whose stdout nobody reads serves all the same.
fn announce(ready: &Ready, format: LogFormat) {
    if let Err(failure) = output::print(&banner(ready, format))
        && !failure.is_silent()
    {
        tracing::warn!("the banner was not printed: {}", failure.message);
    }
}

/// Log lines go to stderr. Where a program that embeds this one has set a subscriber of its own, that one stays.
fn start_log(config: &Config) {
    use std::io::IsTerminal as _;

    let log =
        tracing_subscriber::fmt().with_env_filter(config.log_filter.build()).with_writer(std::io::stderr);
    let _already_set = match config.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

/// The signals that ask a coordinator to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::of_system("listen to signals", &error));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Serves until it ends by itself, or until a signal asks it to drain and it has, or until a second one comes.
async fn until_ended<S>(
    mut serving: std::pin::Pin<Box<impl Future<Output = Result<(), ServeError>>>>,
    mut signal: S,
    shutdown: &CancellationToken,
) -> Result<Exit, Failure>
where
    S: AsyncFnMut() -> &'static str,
{
    let first = tokio::select! {
        result = &mut serving => return ended(result),
        first = signal() => first,
    };
    tracing::info!("{first}: draining; a second signal ends the process at once");
    shutdown.cancel();
    tokio::select! {
        result = &mut serving => ended(result),
        second = signal() => Err(Failure::coded(
            Code::EndedAtOnce,
            Exit::Failed,
            format!("{second} while draining: ended at once"),
        )
        .remedy("nothing that was decided is lost: the next start recovers it")),
    }
}

fn ended(result: Result<(), ServeError>) -> Result<Exit, Failure> {
    match result {
        Ok(()) => Ok(Exit::Ok),
        Err(error) => {
            Err(Failure::coded(error.code(), Exit::Failed, error.to_string()).remedy(error.remedy()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::Mutex;
    use tokio::sync::mpsc;

    use super::*;

    /// Nothing here takes that long; what would hang fails instead.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Signals that a test sends.
    fn signals() -> (mpsc::UnboundedSender<&'static str>, impl AsyncFnMut() -> &'static str) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let receiver = Mutex::new(receiver);
        let next = async move || match receiver.lock().await.recv().await {
            Some(name) => name,
            None => std::future::pending().await,
        };
        (sender, next)
    }

    #[tokio::test]
    async fn the_first_signal_drains_and_the_end_of_the_drain_is_the_end() {
        let (send, next) = signals();
        let shutdown = CancellationToken::new();
        let drained = shutdown.clone();
        let serving = Box::pin(async move {
            drained.cancelled().await;
            Ok(())
        });
        send.send("SIGTERM").unwrap();
        let ended = tokio::time::timeout(PATIENCE, until_ended(serving, next, &shutdown));
        assert_eq!(ended.await.expect("it drains").unwrap(), Exit::Ok);
    }

    #[tokio::test]
    async fn a_second_signal_does_not_wait_for_the_drain() {
        let (send, next) = signals();
        let shutdown = CancellationToken::new();
        let serving = Box::pin(std::future::pending());
        send.send("SIGTERM").unwrap();
        send.send("SIGINT").unwrap();
        let failure = tokio::time::timeout(PATIENCE, until_ended(serving, next, &shutdown))
            .await
            .expect("it ends though the drain never does")
            .unwrap_err();
        assert!(shutdown.is_cancelled());
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.contains("SIGINT"), "{failure}");
    }
}
