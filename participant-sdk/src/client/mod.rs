//! The application's side: begins transactions, ends them, and asks how they ended.
//!
//! Every call here may be repeated without harm, and is, for as long as the client is patient: a second begin leaves a
//! transaction behind that times out, and commit, rollback and inquiry answer the same again. What must never be
//! repeated is the work in between; that is the caller's, and every error says whether it may (see [`crate::Advice`]).

mod nodes;
mod transaction;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lockstep_proto::limits::CONNECTION_WINDOW;
use lockstep_proto::v1;
use lockstep_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use lockstep_proto::{ClusterId, Gtrid, TRACE_PARENT_HEADER, TraceParent};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

pub use transaction::{Committed, Transaction};

use crate::context::Context;
use crate::error::{BeginError, ConnectError, InquireError, TransactionError};
use crate::status::{is_transient, sentence};
use crate::{clock, traces};
use nodes::{Coordinator, Coordinators};

/// How long a call is repeated unless configured otherwise.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);

/// The wait after the first failed attempt, and the longest one: a coordinator that restarts is back within seconds,
/// and one that is overloaded must not be asked in a loop.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long one of several coordinators may take to answer what it can answer at once, before another one is asked. Far shorter than
/// it takes to find out that a peer is gone without a word.
const TURN: Duration = Duration::from_secs(1);
/// The same of a commit, which takes as long as the branches do: after that another one is asked in between, which knows the outcome if
/// the first is gone and it has taken over.
const COMMIT_TURN: Duration = Duration::from_secs(6);
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection on which nothing is heard for this long is asked, and given up if there is no answer: a peer that lost
/// its power sends no goodbye.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How a transaction ended, as far as the coordinator that was asked knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every branch has committed or will.
    Committed,
    /// No branch has committed or can.
    RolledBack {
        /// Why.
        detail: String,
    },
    /// No branch had written anything.
    NothingToCommit,
    /// At least one branch ended differently from the others.
    Heuristic {
        /// Which one.
        detail: String,
    },
    /// Still running: no decision yet.
    Undecided,
    /// The coordinator cannot tell. Ask again, or ask an operator.
    Unknown {
        /// What stands in the way.
        detail: String,
    },
}

/// A client of a coordinator, or of several that share their decision log. Cheap to clone; all clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    coordinators: Arc<Coordinators>,
    patience: Duration,
    /// Known since the first begin. An inquiry sends it along, so that another cluster's coordinator refuses it.
    cluster: OnceLock<ClusterId>,
}

impl Client {
    /// A client of the coordinator at `address`, such as `http://127.0.0.1:7420`.
    ///
    /// The connection is made in the background, and made again whenever it is lost: a coordinator that is not up yet is
    /// no error here.
    ///
    /// # Errors
    /// If `address` is no address.
    #[expect(clippy::unused_async, reason = "needs a runtime, and may look names up one day")]
    pub async fn connect(address: impl AsRef<str>) -> Result<Self, ConnectError> {
        Self::builder(address).connect()
    }

    /// As [`Client::connect`], with options.
    pub fn builder(address: impl AsRef<str>) -> ClientBuilder {
        Self::builder_of([address])
    }

    /// A client of several coordinators that share their decision log: begins are spread over them, and whatever one of them
    /// does not answer is asked of the next. The list need not be complete: each is asked every 10 s who else there is, so that
    /// one address is enough, or a name that stands for all of them.
    pub fn builder_of<A: AsRef<str>>(addresses: impl IntoIterator<Item = A>) -> ClientBuilder {
        let addresses = addresses.into_iter().map(|address| address.as_ref().to_owned()).collect();
        ClientBuilder { addresses, patience: DEFAULT_PATIENCE }
    }

    /// A transaction that is about to be begun. `name` says what it is, for people: at most 64 bytes, not unique.
    pub fn begin(&self, name: impl Into<String>) -> Begin<'_> {
        Begin { client: self, name: name.into(), timeout: None, labels: HashMap::new() }
    }

    /// Runs `work` inside a transaction with the default timeout: commits if it succeeds, rolls back if it fails, panics or
    /// is cancelled. [`Begin::run`] is the same with options.
    ///
    /// # Errors
    /// See [`TransactionError`].
    pub async fn transaction<T, E, F>(
        &self,
        name: impl Into<String>,
        work: F,
    ) -> Result<T, TransactionError<E>>
    where
        F: AsyncFnOnce(&Transaction) -> Result<T, E>,
    {
        self.begin(name).run(work).await
    }

    /// Asks how a transaction ended, without changing it.
    ///
    /// # Errors
    /// If no coordinator answered, or it cannot answer for this transaction.
    pub async fn inquire(&self, gtrid: Gtrid) -> Result<Outcome, InquireError> {
        let request = v1::InquireRequest {
            gtrid: gtrid.to_string(),
            cluster: self.shared.cluster.get().map(ToString::to_string).unwrap_or_default(),
        };
        let until = clock::now() + self.shared.patience;
        let answer = self.repeat(None, until, |mut rpc| {
            let request = request.clone();
            self.in_turn(TURN, async move { rpc.inquire(request).await })
        });
        let (response, _who) = answer.await.map_err(|status| {
            let detail = sentence(&status);
            if is_transient(&status) {
                InquireError::Unavailable { gtrid, detail }
            } else {
                InquireError::Refused { gtrid, detail }
            }
        })?;
        outcome(response.outcome, response.detail).ok_or(InquireError::Refused {
            gtrid,
            detail: format!("outcome {} is not understood", response.outcome),
        })
    }

    /// All coordinators, in the order in which they are asked: this one first, or any. Not one after the other: of an application that begins and
    /// asks for the outcome by turns, one of two would get all begins, and the other all questions.
    fn round(&self, first: Option<&Arc<Coordinator>>) -> Vec<Arc<Coordinator>> {
        let all = self.shared.coordinators.now();
        let mut round = all.to_vec();
        match first {
            Some(first) => {
                let place = round.iter().position(|coordinator| Arc::ptr_eq(coordinator, first));
                match place {
                    Some(place) => round.rotate_left(place),
                    // Nobody tells of it any more, and yet only it can end what was begun there.
                    None => round.insert(0, Arc::clone(first)),
                }
            }
            None => round.rotate_left(clock::random_below(all.len())),
        }
        round
    }

    /// Waits so long for an answer, if somebody else could give it.
    async fn in_turn<T>(
        &self,
        turn: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Response<T>, Status> {
        if self.shared.coordinators.now().len() == 1 {
            return call.await;
        }
        let elapsed = |_elapsed| Status::unavailable("the coordinator did not answer in time");
        tokio::time::timeout(turn, call).await.unwrap_or_else(|error| Err(elapsed(error)))
    }

    /// Calls until there is an answer that repeating would not change, or `until` has passed: `first`, and then the other coordinators
    /// in turn. The answer, and whose it is.
    async fn repeat<T, F, A>(
        &self,
        first: Option<&Arc<Coordinator>>,
        until: Instant,
        call: F,
    ) -> Result<(T, Arc<Coordinator>), Status>
    where
        F: Fn(CoordinatorServiceClient<Channel>) -> A,
        A: Future<Output = Result<Response<T>, Status>>,
    {
        let until: tokio::time::Instant = until.into();
        let mut last = None;
        let round = self.round(first);
        for (failed, coordinator) in (0..).zip(round.iter().cycle()) {
            let status = match tokio::time::timeout_at(until, call(coordinator.rpc())).await {
                Ok(Ok(response)) => return Ok((response.into_inner(), Arc::clone(coordinator))),
                Ok(Err(status)) if is_transient(&status) => status,
                Ok(Err(verdict)) => return Err(verdict),
                // What was wrong before is more to the point than that time is up.
                Err(_elapsed) => {
                    return Err(last.unwrap_or_else(|| Status::deadline_exceeded("no answer came in time")));
                }
            };
            let wait = clock::backoff(failed, FIRST_WAIT, LONGEST_WAIT);
            if tokio::time::Instant::from(clock::now()) + wait >= until {
                return Err(status);
            }
            tracing::debug!(%status, ?wait, "the coordinator did not answer, asking again");
            last = Some(status);
            tokio::time::sleep(wait).await;
        }
        unreachable!("there is at least one coordinator, and it is asked again and again")
    }
}

/// A channel to a coordinator that is connected when it is first used, and again whenever it was lost.
pub(crate) fn lazy_channel(address: &str) -> Result<Channel, ConnectError> {
    let error =
        |why: &dyn std::fmt::Display| ConnectError { address: address.to_owned(), why: why.to_string() };
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|cause| error(&cause))?;
    if endpoint.uri().scheme_str() != Some("http") || endpoint.uri().authority().is_none() {
        return Err(error(&"it does not begin with http:// and a host"));
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Answers to calls that were given up meanwhile: each is an error of the stream, of which a connection otherwise bears 1,024 in all its life.
        .http2_max_local_error_reset_streams(None)
        .tcp_nodelay(true)
        .connect_lazy())
}

/// `None` for a number that this version does not know: it must not be taken for any of those it does.
fn outcome(wire: i32, detail: String) -> Option<Outcome> {
    match v1::Outcome::try_from(wire).ok()? {
        v1::Outcome::Unspecified => None,
        v1::Outcome::Committed => Some(Outcome::Committed),
        v1::Outcome::RolledBack => Some(Outcome::RolledBack { detail }),
        v1::Outcome::NothingToCommit => Some(Outcome::NothingToCommit),
        v1::Outcome::Heuristic => Some(Outcome::Heuristic { detail }),
        v1::Outcome::Undecided => Some(Outcome::Undecided),
        v1::Outcome::Unknown => Some(Outcome::Unknown { detail }),
    }
}

/// The options of a [`Client`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    addresses: Vec<String>,
    patience: Duration,
}

impl ClientBuilder {
    /// How long a call is repeated while no coordinator answers: 10 s unless set. For a commit it counts from the
    /// transaction's deadline, until which the coordinator may be deciding.
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The client. Has to be called inside a tokio runtime.
    ///
    /// # Errors
    /// If an address is none, or there is none.
    pub fn connect(self) -> Result<Client, ConnectError> {
        let coordinators = Arc::new(Coordinators::new(self.addresses)?);
        tokio::spawn(nodes::follow(Arc::downgrade(&coordinators)));
        let shared = Shared { coordinators, patience: self.patience, cluster: OnceLock::new() };
        Ok(Client { shared: Arc::new(shared) })
    }
}

/// A transaction that is about to be begun.
#[derive(Debug, Clone)]
#[must_use = "nothing is begun before start or run"]
pub struct Begin<'a> {
    client: &'a Client,
    name: String,
    timeout: Option<Duration>,
    labels: HashMap<String, String>,
}

impl Begin<'_> {
    /// After how long the transaction is rolled back unless its commit was decided: 100 ms to 24 h, in whole
    /// milliseconds; 30 s unless set.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// A label, to find the transaction by: at most 16, each key and each value at most 256 bytes.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Begins it.
    ///
    /// # Errors
    /// If there is no transaction then. See [`BeginError`].
    pub async fn start(self) -> Result<Transaction, BeginError> {
        let request = v1::BeginRequest {
            // 0 on the wire takes the default; a timeout of less than 1 ms is too short, not the default.
            timeout_ms: self.timeout.map_or(0, |timeout| millis(timeout).max(1)),
            name: self.name,
            labels: self.labels,
        };
        let until = clock::now() + self.client.shared.patience;
        let caller = traces::current();
        let answer = self.client.repeat(None, until, |mut rpc| {
            let request = in_span(request.clone(), caller);
            self.client.in_turn(TURN, async move { rpc.begin(request).await })
        });
        let (response, home) = answer.await.map_err(|status| begin_error(&status))?;
        let context = begun(&response, caller)?;
        let _known = self.client.shared.cluster.set(context.cluster());
        Ok(Transaction::new(self.client.clone(), context, home))
    }

    /// Begins it, runs `work` inside it, and commits if that succeeds; rolls back if it fails, panics or is cancelled.
    ///
    /// ```no_run
    /// # async fn pay(_: &lockstep::Context) -> Result<u32, std::io::Error> { Ok(1) }
    /// # async fn example(client: &lockstep::Client) -> Result<(), lockstep::TransactionError<std::io::Error>> {
    /// let receipt = client.begin("transfer").label("order", "o-91").run(async |tx| pay(&tx.context()).await).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`TransactionError`].
    pub async fn run<T, E, F>(self, work: F) -> Result<T, TransactionError<E>>
    where
        F: AsyncFnOnce(&Transaction) -> Result<T, E>,
    {
        let transaction = self.start().await?;
        let gtrid = transaction.gtrid();
        match work(&transaction).await {
            Ok(value) => {
                transaction.commit().await?;
                Ok(value)
            }
            Err(error) => {
                if let Err(unconfirmed) = transaction.rollback("the application's work failed").await {
                    tracing::warn!(%gtrid, %unconfirmed, "after the work failed");
                }
                Err(TransactionError::Work(error))
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The request, as one of this span.
fn in_span<T>(message: T, caller: Option<TraceParent>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(caller) = caller {
        let value = caller.to_string().parse().expect("it is printed in visible ASCII");
        request.metadata_mut().insert(TRACE_PARENT_HEADER, value);
    }
    request
}

/// What the coordinator has begun. A transaction that the coordinator records no span of is worked in in its caller's.
fn begun(response: &v1::BeginResponse, caller: Option<TraceParent>) -> Result<Context, BeginError> {
    let error = |cause: lockstep_proto::ParseIdError| BeginError::Protocol(cause.to_string());
    let gtrid = response.gtrid.parse().map_err(error)?;
    let cluster = response.cluster.parse().map_err(error)?;
    // Counted from when the answer is here: later than the coordinator's deadline by the way of the answer.
    let trace = response.traceparent.parse().ok().or(caller);
    let deadline = clock::now() + Duration::from_millis(response.timeout_ms);
    Ok(Context::new(cluster, gtrid, deadline).traced(trace))
}

fn begin_error(status: &Status) -> BeginError {
    let detail = sentence(status);
    if is_transient(status) {
        BeginError::Unavailable(detail)
    } else if status.code() == Code::ResourceExhausted {
        BeginError::Busy(detail)
    } else if matches!(status.code(), Code::InvalidArgument | Code::OutOfRange) {
        BeginError::Invalid(detail)
    } else {
        BeginError::Refused(detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn begins_are_spread_whatever_else_is_asked_in_between() {
        let client = Client::builder_of(["http://127.0.0.1:1", "http://127.0.0.1:2"]).connect().unwrap();
        let first = Arc::clone(&client.shared.coordinators.now()[0]);
        let mut begun_at_the_first = 0;
        for _ in 0..200 {
            begun_at_the_first += usize::from(Arc::ptr_eq(&client.round(None)[0], &first));
            let _question = client.round(None);
        }
        assert!((50..150).contains(&begun_at_the_first), "{begun_at_the_first} of 200");
    }
}
