//! How commands ask a running coordinator, and what it means when a question fails.

use std::error::Error as _;
use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use clap::Args;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use lockstep_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use lockstep_proto::wire::WireError;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::exit::{Exit, Failure};
use super::output::printable;
use crate::codes::Code as ErrorCode;
use crate::config::environment::SERVER_VARIABLE;
use crate::rpc::status::{CODE_KEY, REMEDY_KEY};

/// Bytes of one answer: a thousand transactions of 256 branches each, with labels and errors, stay below it.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Which coordinator to ask.
#[derive(Debug, Clone, Args)]
pub(super) struct ServerUrl {
    /// The coordinator to ask
    #[arg(
        long,
        value_name = "URL",
        env = SERVER_VARIABLE,
        hide_env_values = true,
        default_value = "http://127.0.0.1:7420",
        value_parser = server_url,
    )]
    pub server: Uri,
}

/// Which coordinator to ask, and how to print its answer.
#[derive(Debug, Clone, Args)]
pub(super) struct ServerArgs {
    #[command(flatten)]
    url: ServerUrl,
    /// Print JSON, in a form that later versions keep
    #[arg(long)]
    pub json: bool,
}

impl std::ops::Deref for ServerArgs {
    type Target = ServerUrl;

    fn deref(&self) -> &ServerUrl {
        &self.url
    }
}

/// How long a command that asks once waits for the answer.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct AnswerTimeout {
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = waiting_time)]
    pub timeout: Duration,
}

/// How long a person or a script waits: no more than a day, since gRPC has no words for much more.
pub(super) fn waiting_time(text: &str) -> Result<Duration, String> {
    const LIMITS: std::ops::RangeInclusive<Duration> =
        Duration::from_millis(1)..=Duration::from_secs(24 * 60 * 60);
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number with its unit, such as \"500ms\" or \"30s\""))?;
    if LIMITS.contains(&duration) {
        Ok(duration)
    } else {
        Err("it is out of its limits: 1ms to 24h".to_owned())
    }
}

/// A coordinator's URL: `http`, a host, and nothing behind the port.
fn server_url(text: &str) -> Result<Uri, String> {
    const FORM: &str = "write one such as http://127.0.0.1:7420, with --server or LOCKSTEP_SERVER";
    let url: Uri = text.parse().map_err(|error| format!("this is no URL ({error}); {FORM}"))?;
    match url.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(format!("this version has no TLS; {FORM}")),
        Some(_) | None => return Err(format!("it does not begin with http://; {FORM}")),
    }
    let host = url.host().unwrap_or_default();
    // `http` takes `host:port` too, and says afterwards that this is no port.
    let whole = url.authority().is_some_and(|both| both.as_str() == host || both.port_u16().is_some());
    if host.is_empty() || !whole || !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err(format!("it is a host and a port, and nothing else; {FORM}"));
    }
    Ok(url)
}

/// A coordinator somewhere. It is dialled by the first call, and again by any later one that needs it.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    url: Uri,
    channel: Channel,
}

impl Remote {
    /// The coordinator at `url`, each call to which is given up after `limit`.
    pub(super) fn new(url: &Uri, limit: Duration) -> Self {
        let endpoint = Endpoint::from(url.clone())
            .connect_timeout(limit)
            .timeout(limit)
            .user_agent(concat!("lockstep-cli/", env!("CARGO_PKG_VERSION")))
            .expect("this is a header's value");
        Self { url: url.clone(), channel: endpoint.connect_lazy() }
    }

    pub(super) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(super) fn coordinator(&self) -> CoordinatorServiceClient<Channel> {
        CoordinatorServiceClient::new(self.channel.clone())
    }

    /// What a call that did not succeed means for the command that made it.
    pub(super) fn failure(&self, status: &Status) -> Failure {
        match reach(status) {
            Reach::Nobody => self.nobody(),
            Reach::Broken => Failure::coded(
                ErrorCode::NoCoordinator,
                Exit::Failed,
                format!("{self} cannot be asked: {}", causes(status)),
            )
            .remedy("is this the address of a coordinator? --server or LOCKSTEP_SERVER names another one"),
            Reach::Late => self.late(),
            Reach::Answered => self.refusal(status),
        }
    }

    /// The coordinator's own words, with its code and what to do.
    fn refusal(&self, status: &Status) -> Failure {
        let message = format!("{self} answers: {}", printable(status.message()));
        let failure = Failure::new(exit_of(status.code()), message);
        let Some(info) = status.get_details_error_info() else { return failure };
        let code = info.metadata.get(CODE_KEY).filter(|code| is_code(code)).cloned();
        let remedy = info.metadata.get(REMEDY_KEY).map_or(String::new(), |remedy| printable(remedy));
        Failure { code, ..failure }.remedy(remedy)
    }

    /// Nobody listens there.
    fn nobody(&self) -> Failure {
        Failure::coded(ErrorCode::NothingAnswers, Exit::Failed, format!("nothing answers at {self}"))
            .remedy("is `lockstep serve` running? --server or LOCKSTEP_SERVER names another address")
    }

    /// Somebody may listen there, but nothing has come back.
    pub(super) fn late(&self) -> Failure {
        Failure::coded(ErrorCode::NoAnswerInTime, Exit::Timeout, format!("no answer from {self} in time"))
            .remedy("ask again, or wait longer with --timeout; if it was to change something: `lockstep audit ls` says whether it did")
    }

    /// An answer that cannot mean anything to this version.
    pub(super) fn strange(&self, error: &WireError) -> Failure {
        Failure::coded(
            ErrorCode::StrangeAnswer,
            Exit::Failed,
            format!("{self} answers what this version does not understand: {error}"),
        )
        .remedy("`lockstep status` tells its version: use a `lockstep` that is not older")
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.to_string().trim_end_matches('/'))
    }
}

/// Waits for a command's one answer.
pub(super) async fn within<T>(
    remote: &Remote,
    limit: AnswerTimeout,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit.timeout, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(remote.failure(&status)),
        Err(_elapsed) => Err(remote.late()),
    }
}

/// How far a call got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Nobody listens at the address.
    Nobody,
    /// The connection could not be made, or broke.
    Broken,
    /// The time was over.
    Late,
    /// The coordinator answered with an error.
    Answered,
}

/// How far the call with this status got. tonic makes a status of everything; what went wrong below is its source.
pub(super) fn reach(status: &Status) -> Reach {
    let mut cause = status.source();
    if cause.is_none() {
        return Reach::Answered;
    }
    while let Some(error) = cause {
        if error.is::<tonic::TimeoutExpired>() {
            return Reach::Late;
        }
        let kind = error.downcast_ref().map(std::io::Error::kind);
        if kind == Some(ErrorKind::ConnectionRefused) {
            return Reach::Nobody;
        }
        if kind == Some(ErrorKind::TimedOut) {
            return Reach::Late;
        }
        cause = error.source();
    }
    Reach::Broken
}

/// It becomes part of a path that people follow.
fn is_code(text: &str) -> bool {
    text.len() == 6 && text.starts_with("LS") && text[2..].bytes().all(|byte| byte.is_ascii_digit())
}

/// What an error of the coordinator's means for a command.
fn exit_of(code: Code) -> Exit {
    match code {
        Code::Ok => Exit::Ok,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::NotFound => Exit::NotFound,
        Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated | Code::AlreadyExists => {
            Exit::Refused
        }
        Code::DeadlineExceeded => Exit::Timeout,
        Code::Cancelled
        | Code::Unknown
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Exit::Failed,
    }
}

/// An error with everything below it, each cause once.
fn causes(status: &Status) -> String {
    let mut told = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = error.source();
    }
    printable(&told)
}

#[cfg(test)]
mod tests {
    use lockstep_proto::v1::StatusRequest;
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// How a question to this address ends when it is given up after so long.
    async fn ask(address: std::net::SocketAddr, limit: Duration) -> Status {
        let remote = Remote::new(&server_url(&format!("http://{address}")).unwrap(), limit);
        remote.admin().status(StatusRequest {}).await.expect_err("nobody answers there")
    }

    #[tokio::test]
    async fn nobody_late_and_broken_are_told_apart() {
        let patient = Duration::from_secs(60);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(reach(&ask(address, Duration::from_millis(100)).await), Reach::Late);

        tokio::spawn(async move {
            // Each connection is closed as soon as it is there.
            while listener.accept().await.is_ok() {}
        });
        assert_eq!(reach(&ask(address, patient).await), Reach::Broken);

        // Bound, so that nobody else gets it, and not listening.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_eq!(reach(&ask(socket.local_addr().unwrap(), patient).await), Reach::Nobody);

        assert_eq!(reach(&Status::unavailable("it is draining")), Reach::Answered);
    }

    #[test]
    fn a_url_is_a_host_and_a_port() {
        for url in ["http://127.0.0.1:7420", "http://[::1]:7420/", "http://coordinator"] {
            server_url(url).expect(url);
        }
        for url in [
            "http://",
            "ftp://host:1",
            "http://host:1/?query",
            "http://host:port",
            "http://u@host",
            "",
            "host:1",
        ] {
            server_url(url).expect_err(url);
        }
    }
}
