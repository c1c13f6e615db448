//! The context: what a caller sends along so that the called service works in the caller's transaction.
//!
//! One header or metadata entry, `lockstep-context`, versioned as W3C's `traceparent` is:
//!
//! ```text
//! 01-7c1f09ae-12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f-4870
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
//! **Versions.** Of version 01, exactly what is printed here is accepted. Versions 02 to fe may only append fields
//! (`-` and visible ASCII); of those the four known fields are read, the rest is ignored, and what is sent on is
//! version 01. 00 and ff do not exist. Nothing longer than 128 bytes is looked at.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use lockstep_proto::limits::{MAX_TIMEOUT, cut};
use lockstep_proto::{ClusterId, Gtrid};

use crate::clock;
use crate::error::ContextError;

/// The header, and the gRPC metadata entry, that carries a [`Context`].
pub const CONTEXT_HEADER: &str = "lockstep-context";
/// Bytes of the header's value.
pub const MAX_CONTEXT_BYTES: usize = 128;

const VERSION: &str = "01";

/// Which transaction a piece of work belongs to, and how long that may still take.
///
/// An application gets it from [`crate::Transaction::context`], a called service from its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Context {
    cluster: ClusterId,
    gtrid: Gtrid,
    deadline: Instant,
}

impl Context {
    pub(crate) const fn new(cluster: ClusterId, gtrid: Gtrid, deadline: Instant) -> Self {
        Self { cluster, gtrid, deadline }
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

    /// Puts the context into the headers of a request, in place of one that is there.
    pub fn inject(&self, headers: &mut HeaderMap) {
        let value = HeaderValue::try_from(self.to_string()).expect("a context is printed in visible ASCII");
        headers.insert(HeaderName::from_static(CONTEXT_HEADER), value);
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
        text.parse().map(Some)
    }

    fn parse_at(text: &str, now: Instant) -> Result<Self, ContextError> {
        let error = |why| malformed(text, why);
        if text.len() > MAX_CONTEXT_BYTES {
            return Err(error("it has at most 128 bytes"));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(error("it consists of visible ASCII characters"));
        }
        let mut fields = text.splitn(5, '-');
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
        if version == VERSION && fields.next().is_some() {
            return Err(error("version 01 has four fields"));
        }
        Ok(Self::new(cluster, gtrid, now + remaining))
    }

    fn print_at(&self, now: Instant, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remaining = self.deadline.saturating_duration_since(now).min(MAX_TIMEOUT);
        write!(f, "{VERSION}-{}-{}-{}", self.cluster, self.gtrid, remaining.as_millis())
    }
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

    const VALID: &str = "01-7c1f09ae-12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f-4870";

    fn contexts(now: Instant) -> impl Strategy<Value = Context> {
        (any::<u32>(), 1u32.., 0u64..1 << 48, any::<[u8; 10]>(), 0u64..=86_400_000).prop_map(
            move |(cluster, epoch, ms, random, remaining)| {
                let gtrid = Gtrid::new(Epoch::new(epoch).unwrap(), ms, random);
                Context::new(ClusterId::from_random(cluster), gtrid, now + Duration::from_millis(remaining))
            },
        )
    }

    /// Texts that are nearly one: most are refused, none may panic.
    fn near_contexts() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[0-9a-f]{1,3}-[0-9a-f]{7,9}-[0-9]{0,3}\\.[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}-[0-9]{0,10}(-[!-~]{0,9})?",
            "01-[0-9a-f]{8}-[1-9]\\.[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}-[0-9]{1,8}",
        ]
    }

    struct At(Context, Instant);

    impl fmt::Display for At {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.print_at(self.1, f)
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
            prop_assert_eq!(At(read, now).to_string(), text);
        }

        #[test]
        fn of_version_01_exactly_what_is_printed_is_accepted(text in near_contexts()) {
            let now = clock::now();
            if let Ok(context) = Context::parse_at(&text, now)
                && text.starts_with("01")
            {
                prop_assert_eq!(At(context, now).to_string(), text);
            }
        }

        #[test]
        fn a_later_version_may_append_fields(context in contexts(clock::now()), version in 2u8..0xff, more in "(-[!-~]{0,20})?") {
            let now = clock::now();
            let text = At(context, now).to_string();
            let later = format!("{version:02x}{}{more}", &text[2..]);
            let read = Context::parse_at(&later, now).unwrap();
            prop_assert_eq!(At(read, now).to_string(), text);
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
