//! The context: what a caller sends along so that the called service works in the caller's transaction.
//!
//! One header or metadata entry, `lockstep-context`, versioned as W3C's `traceparent` is:
//!
//! ```text
//! 01-7c1f09ae-12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f-4870
//! 02-7c1f09ae-12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f-4870-vote
//! │  │        │                                   │    └ this call is the last one to the service: it votes when it has ended
//! │  │        │                                   └ milliseconds until the deadline, decimal, at most 24 h
//! │  │        └ the transaction's gtrid
//! │  └ the cluster that decides about it
//! └ the version, two lower-case hex digits
//! ```
//!
//! The remaining time travels instead of the deadline, so that no two clocks are compared; it is read against this
//! machine's monotonic clock when it arrives and counts down when it is sent on. What the network takes on the way
//! makes a participant's deadline a little later than the coordinator's, never earlier: the coordinator's is the one
//! that counts.
//!
//! **The mark** is about one call. It goes no further: what the called service sends on is version 01, unless it marks a
//! call of its own. An SDK that knows version 01 only reads a marked context as any other, and the branch stays open until
//! the coordinator asks for its vote.
//!
//! **Traces.** Beside it goes W3C's `traceparent`: the span that the calling task works in, or else the transaction's. A request that has
//! one keeps it, since whoever put it there knows better. It is no part of the text form, and one that is malformed is none.
//!
//! **Versions.** Of versions 01 and 02, exactly what is printed here is accepted. Versions 03 to fe may only append fields
//! (`-` and visible ASCII); of those the known fields are read (a fifth one other than `vote` marks nothing), and the rest
//! is ignored. 00 and ff do not exist. Nothing longer than 128 bytes is looked at.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use lockstep_proto::limits::{MAX_TIMEOUT, cut};
use lockstep_proto::{ClusterId, Gtrid, TRACE_PARENT_HEADER, TraceParent};

use crate::error::ContextError;
use crate::{clock, traces};

/// The header, and the gRPC metadata entry, that carries a [`Context`].
pub const CONTEXT_HEADER: &str = "lockstep-context";
/// Bytes of the header's value.
pub const MAX_CONTEXT_BYTES: usize = 128;

const VERSION: &str = "01";
/// The version of a context that marks its call, and the mark.
const MARKED_VERSION: &str = "02";
const MARK: &str = "vote";

/// Whether the call that a context is for is the last one to its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Mark {
    /// There may be more.
    None,
    /// The caller says so.
    LastCall,
    /// Said by the caller of this service, whose own calls are not meant.
    CalledLast,
}

/// Which transaction a piece of work belongs to, and how long that may still take.
///
/// An application gets it from [`crate::Transaction::context`], a called service from its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Context {
    cluster: ClusterId,
    gtrid: Gtrid,
    deadline: Instant,
    mark: Mark,
    /// The span that whoever works in the transaction works in, unless they know of another one.
    trace: Option<TraceParent>,
}

impl Context {
    pub(crate) const fn new(cluster: ClusterId, gtrid: Gtrid, deadline: Instant) -> Self {
        Self { cluster, gtrid, deadline, mark: Mark::None, trace: None }
    }

    /// The same, for work in this span.
    pub(crate) const fn traced(self, trace: Option<TraceParent>) -> Self {
        Self { trace, ..self }
    }

    /// The span that work in this transaction belongs to.
    pub(crate) const fn trace(&self) -> Option<TraceParent> {
        self.trace
    }

    /// The same, for the last call to a service: [`crate::Transaction::vote`], for a service that calls others.
    #[must_use]
    pub const fn vote(self) -> Self {
        Self { mark: Mark::LastCall, ..self }
    }

    /// Whether the call with this context is the last one to its service, so that the branch votes when the handler ends.
    pub(crate) const fn is_last_call(&self) -> bool {
        match self.mark {
            Mark::None => false,
            Mark::LastCall | Mark::CalledLast => true,
        }
    }

    /// The cluster that decides about the transaction.
    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The transaction.
    #[must_use]
    pub const fn gtrid(&self) -> Gtrid {
        self.gtrid
    }

    /// When the transaction is rolled back unless commit was decided, by this process' clock.
    #[must_use]
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How long it is until then; zero once it has passed.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(clock::now())
    }

    /// Puts the context into the headers of a request, in place of one that is there; and the span that this task works in, unless
    /// the request has one.
    pub fn inject(&self, headers: &mut HeaderMap) {
        let value = HeaderValue::try_from(self.to_string()).expect("a context is printed in visible ASCII");
        headers.insert(HeaderName::from_static(CONTEXT_HEADER), value);
        if let Some(trace) = traces::current().or(self.trace) {
            let value = HeaderValue::try_from(trace.to_string()).expect("it is printed in visible ASCII");
            headers.entry(HeaderName::from_static(TRACE_PARENT_HEADER)).or_insert(value);
        }
    }

    /// Headers with the context alone, for a client that takes a set of them.
    #[must_use]
    pub fn to_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        self.inject(&mut headers);
        headers
    }

    /// The context in the headers of a request; `None` if there is none.
    ///
    /// # Errors
    /// [`ContextError::Malformed`], and [`ContextError::Repeated`] if there are two: which one is meant is not guessed.
    pub fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, ContextError> {
        let mut values = headers.get_all(CONTEXT_HEADER).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(ContextError::Repeated);
        }
        let text =
            value.to_str().map_err(|_bytes| malformed("", "it consists of visible ASCII characters"))?;
        let context: Self = text.parse()?;
        Ok(Some(context.traced(trace_parent(headers))))
    }

    fn parse_at(text: &str, now: Instant) -> Result<Self, ContextError> {
        let error = |why| malformed(text, why);
        if text.len() > MAX_CONTEXT_BYTES {
            return Err(error("it has at most 128 bytes"));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(error("it consists of visible ASCII characters"));
        }
        let mut fields = text.splitn(6, '-');
        let mut field =
            || fields.next().ok_or_else(|| error("it has the form 01-<cluster>-<gtrid>-<milliseconds>"));
        let version = field()?;
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if version.len() != 2 || !version.bytes().all(lower_hex) || version == "00" || version == "ff" {
            return Err(error("it begins with a version from 01 to fe, two lower-case hex digits"));
        }
        let cluster =
            field()?.parse().map_err(|_id| error("the second field is a cluster id of 8 hex digits"))?;
        let gtrid =
            field()?.parse().map_err(|_id| error("the third field is a gtrid, <epoch>.<32 hex digits>"))?;
        let remaining = milliseconds(field()?).ok_or_else(|| {
            error("the fourth field is a decimal number of milliseconds from 0 to 86400000")
        })?;
        let rest = (fields.next(), fields.next());
        if version == VERSION && rest != (None, None) {
            return Err(error("version 01 has four fields"));
        }
        if version == MARKED_VERSION && rest != (Some(MARK), None) {
            return Err(error("version 02 has five fields, the last of which is `vote`"));
        }
        let mark = if rest.0 == Some(MARK) { Mark::CalledLast } else { Mark::None };
        Ok(Self { mark, ..Self::new(cluster, gtrid, now + remaining) })
    }

    fn print_at(&self, now: Instant, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remaining = self.deadline.saturating_duration_since(now).min(MAX_TIMEOUT);
        let (version, mark) = match self.mark {
            Mark::LastCall => (MARKED_VERSION, "-vote"),
            Mark::None | Mark::CalledLast => (VERSION, ""),
        };
        write!(f, "{version}-{}-{}-{}{mark}", self.cluster, self.gtrid, remaining.as_millis())
    }
}

/// The one that is there, if it is one.
fn trace_parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut values = headers.get_all(TRACE_PARENT_HEADER).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    value.to_str().ok()?.parse().ok()
}

fn malformed(text: &str, why: &'static str) -> ContextError {
    ContextError::Malformed { text: cut(text, MAX_CONTEXT_BYTES).to_owned(), why }
}

/// As it is printed: no sign, no leading zero, not past the longest timeout there is.
fn milliseconds(text: &str) -> Option<Duration> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let duration = Duration::from_millis(plain.then(|| text.parse().ok())??);
    (duration <= MAX_TIMEOUT).then_some(duration)
}

/// The header's value, with the time that is left now.
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.print_at(clock::now(), f)
    }
}

impl FromStr for Context {
    type Err = ContextError;

    fn from_str(text: &str) -> Result<Self, ContextError> {
        Self::parse_at(text, clock::now())
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Epoch;
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{config, near};

    const VALID: &str = "01-7c1f09ae-12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f-4870";

    fn contexts(now: Instant) -> impl Strategy<Value = Context> {
        (any::<u32>(), 1u32.., 0u64..1 << 48, any::<[u8; 10]>(), 0u64..=86_400_000, any::<bool>()).prop_map(
            move |(cluster, epoch, ms, random, remaining, marked)| {
                let gtrid = Gtrid::new(Epoch::new(epoch).unwrap(), ms, random);
                let deadline = now + Duration::from_millis(remaining);
                let context = Context::new(ClusterId::from_random(cluster), gtrid, deadline);
                if marked { context.vote() } else { context }
            },
        )
    }

    /// Texts that are nearly one: most are refused, none may panic.
    fn near_contexts() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[0-9a-f]{1,3}-[0-9a-f]{7,9}-[0-9]{0,3}\\.[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}-[0-9]{0,10}(-[!-~]{0,9})?",
            "0[12]-[0-9a-f]{8}-[1-9]\\.[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}-[0-9]{1,8}(-vote)?",
        ]
    }

    struct At(Context, Instant);

    impl fmt::Display for At {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.print_at(self.1, f)
        }
    }

    proptest! {
        #![proptest_config(config())]

        /// Whatever bytes come in the headers of a request.
        #[test]
        fn fuzz_headers(context in near("headers"), parent in near("headers")) {
            let mut headers = HeaderMap::new();
            for (name, bytes) in [(CONTEXT_HEADER, context), (TRACE_PARENT_HEADER, parent)] {
                // What no header can hold does not come.
                if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
                    headers.insert(name, value);
                }
            }
            if let Ok(Some(context)) = Context::from_headers(&headers) {
                prop_assert!(context.remaining() <= MAX_TIMEOUT);
                let again = Context::from_headers(&context.to_headers()).unwrap().unwrap();
                prop_assert_eq!((again.cluster, again.gtrid), (context.cluster, context.gtrid));
            }
        }
    }

    proptest! {
        #[test]
        fn every_context_survives_its_text(context in contexts(clock::now())) {
            let now = clock::now();
            let text = At(context, now).to_string();
            prop_assert!(text.len() <= MAX_CONTEXT_BYTES);
            let read = Context::parse_at(&text, now).unwrap();
            prop_assert_eq!((read.cluster, read.gtrid), (context.cluster, context.gtrid));
            prop_assert!(read.deadline <= context.deadline.max(now));
            prop_assert_eq!(read.is_last_call(), context.is_last_call());
            prop_assert_eq!(sent_again(read, now), text);
        }

        #[test]
        fn of_the_known_versions_exactly_what_is_printed_is_accepted(text in near_contexts()) {
            let now = clock::now();
            if let Ok(context) = Context::parse_at(&text, now)
                && (text.starts_with("01") || text.starts_with("02"))
            {
                prop_assert_eq!(sent_again(context, now), text);
            }
        }

        #[test]
        fn a_later_version_may_append_fields(context in contexts(clock::now()), version in 3u8..0xff, more in "(-[!-~]{0,20})?") {
            let now = clock::now();
            let text = At(context, now).to_string();
            let later = format!("{version:02x}{}{more}", &text[2..]);
            let read = Context::parse_at(&later, now).unwrap();
            prop_assert_eq!(sent_again(read, now), text);
        }
    }

    /// A context that arrived, as its sender has printed it.
    fn sent_again(context: Context, now: Instant) -> String {
        At(if context.is_last_call() { context.vote() } else { context }, now).to_string()
    }

    #[test]
    fn a_mark_is_about_one_call() {
        let now = clock::now();
        let marked = Context::parse_at(VALID, now).unwrap().vote();
        let text = At(marked, now).to_string();
        assert_eq!(text, format!("02-{}-vote", &VALID[3..]));
        let received = Context::parse_at(&text, now).unwrap();
        assert!(marked.is_last_call() && received.is_last_call());
        assert_eq!(At(received, now).to_string(), VALID, "what the called service sends on is not marked");
        assert_eq!(At(received.vote(), now).to_string(), text, "unless it says so");
    }

    #[test]
    fn a_field_that_is_not_known_marks_nothing() {
        for (text, marks) in
            [("-open", false), ("-open-vote", false), ("-vote", true), ("-vote-x", true), ("", false)]
        {
            let context: Context = format!("03-{}{text}", &VALID[3..]).parse().unwrap();
            assert_eq!(context.is_last_call(), marks, "{text}");
        }
    }

    #[test]
    fn what_is_sent_on_counts_down() {
        let now = clock::now();
        let context = Context::parse_at(VALID, now).unwrap();
        let at = |ms| At(context, now + Duration::from_millis(ms)).to_string();
        assert_eq!(at(0), VALID);
        assert!(at(1000).ends_with("-3870"));
        assert!(at(10_000).ends_with("-0"));
    }

    #[test]
    fn each_malformed_text_is_told_what_is_wrong_with_it() {
        let with = |from: &str, to: &str| VALID.replace(from, to);
        for (text, why) in [
            (String::new(), "version"),
            (with("01-", "00-"), "version"),
            (with("01-", "ff-"), "version"),
            (with("01-", "0A-"), "version"),
            (with("01-", "1-"), "version"),
            (with("7c1f09ae", "7c1f09a"), "cluster"),
            (with("7c1f09ae", "7C1F09AE"), "cluster"),
            (with("12.", "0."), "gtrid"),
            (with("12.", ""), "gtrid"),
            (with("-4870", ""), "form"),
            (with("4870", ""), "milliseconds"),
            (with("4870", "04870"), "milliseconds"),
            (with("4870", "+4870"), "milliseconds"),
            (with("4870", "86400001"), "milliseconds"),
            (with("4870", "99999999999999999999999"), "milliseconds"),
            (format!("{VALID}-00"), "four fields"),
            (format!("{VALID}-vote"), "four fields"),
            (with("01-", "02-"), "five fields"),
            (format!("{}-open", with("01-", "02-")), "five fields"),
            (format!("{}-vote-x", with("01-", "02-")), "five fields"),
            (format!("{VALID} "), "visible ASCII"),
            (format!("02{}-{}", &VALID[2..], "x".repeat(128)), "128 bytes"),
        ] {
            let error = text.parse::<Context>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn headers_carry_it_once_or_not_at_all() {
        let context: Context = VALID.parse().unwrap();
        assert_eq!(Context::from_headers(&HeaderMap::new()), Ok(None));
        let mut headers = context.to_headers();
        context.inject(&mut headers);
        assert_eq!(Context::from_headers(&headers).unwrap().unwrap().gtrid(), context.gtrid());
        headers.append(CONTEXT_HEADER, HeaderValue::from_static(VALID));
        assert_eq!(Context::from_headers(&headers), Err(ContextError::Repeated));
        headers.insert(CONTEXT_HEADER, HeaderValue::from_bytes(b"\xff").unwrap());
        assert!(matches!(Context::from_headers(&headers), Err(ContextError::Malformed { .. })));
    }
}
