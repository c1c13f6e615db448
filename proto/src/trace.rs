//! The span that a piece of work belongs to, as it travels and as it is kept: W3C's `traceparent`
//! (<https://www.w3.org/TR/trace-context/>).
//!
//! Only what the text form has: a trace, a span in it, and whether it is recorded. `tracestate` is not carried along, and a
//! parent that does not parse is none: nothing about a transaction ever depends on its trace.

use std::fmt;
use std::str::FromStr;

/// The header, and the gRPC metadata entry, that carries a [`TraceParent`].
pub const TRACE_PARENT_HEADER: &str = "traceparent";

/// A span in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

/// It is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a traceparent has the form 00-<32 hex digits>-<16 hex digits>-<2 hex digits>")]
pub struct NotATraceParent;

impl TraceParent {
    /// Bytes of [`TraceParent::to_bytes`].
    pub const BYTES: usize = 24;
    /// Bytes of the text form that this version prints and reads.
    const TEXT_BYTES: usize = 55;

    /// A span; `None` where the trace or the span is all zeros, which stands for none.
    #[must_use]
    pub fn new(trace: [u8; 16], span: [u8; 8], sampled: bool) -> Option<Self> {
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span, sampled })
    }

    /// The trace.
    #[must_use]
    pub const fn trace(&self) -> [u8; 16] {
        self.trace
    }

    /// The span.
    #[must_use]
    pub const fn span(&self) -> [u8; 8] {
        self.span
    }

    /// Whether it is recorded: nothing is made or kept for a trace that is not.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The trace and the span of one that is recorded, in a row.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.trace);
        bytes[16..].copy_from_slice(&self.span);
        bytes
    }

    /// The reverse of [`TraceParent::to_bytes`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (trace, span) = bytes.split_at_checked(16)?;
        Self::new(trace.try_into().ok()?, span.try_into().ok()?, true)
    }
}

/// As in the header.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace), u64::from_be_bytes(self.span));
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", u8::from(self.sampled))
    }
}

/// What W3C asks of a reader: version 00 exactly, of a later one the fields that are known, lower-case digits only.
impl FromStr for TraceParent {
    type Err = NotATraceParent;

    fn from_str(text: &str) -> Result<Self, NotATraceParent> {
        let (known, rest) = text.split_at_checked(Self::TEXT_BYTES).ok_or(NotATraceParent)?;
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let fields: Vec<&str> = known.split('-').collect();
        let [version, trace, span, flags] = fields[..] else { return Err(NotATraceParent) };
        let lengths = [version.len(), trace.len(), span.len(), flags.len()];
        if lengths != [2, 32, 16, 2] || ![version, trace, span, flags].join("").bytes().all(lower_hex) {
            return Err(NotATraceParent);
        }
        let fits = match version {
            "00" => rest.is_empty(),
            "ff" => false,
            _later => rest.is_empty() || rest.starts_with('-'),
        };
        let digits = "these were seen to be hex digits";
        let trace = u128::from_str_radix(trace, 16).expect(digits).to_be_bytes();
        let span = u64::from_str_radix(span, 16).expect(digits).to_be_bytes();
        let sampled = u8::from_str_radix(flags, 16).expect(digits) & 1 == 1;
        Self::new(trace, span, sampled).filter(|_parent| fits).ok_or(NotATraceParent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    proptest! {
        #[test]
        fn every_parent_survives_its_text_and_every_recorded_one_its_bytes(trace: [u8; 16], span: [u8; 8], sampled: bool) {
            if let Some(parent) = TraceParent::new(trace, span, sampled) {
                prop_assert_eq!(parent.to_string().parse(), Ok(parent));
                prop_assert_eq!(TraceParent::from_bytes(&parent.to_bytes()), TraceParent::new(trace, span, true));
            }
        }

        #[test]
        fn no_text_and_no_bytes_panic(text: String, near in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.{0,3}", bytes: Vec<u8>) {
            let _ = text.parse::<TraceParent>();
            if let Ok(parent) = near.parse::<TraceParent>() && near.starts_with("00") {
                prop_assert_eq!(&parent.to_string()[..53], &near[..53]);
            }
            let _ = TraceParent::from_bytes(&bytes);
        }
    }

    #[test]
    fn what_is_read_is_what_w3c_allows() {
        let with = |from: &str, to: &str| VALID.replace(from, to);
        assert_eq!(VALID.parse::<TraceParent>().unwrap().to_string(), VALID);
        assert!(!with("-01", "-00").parse::<TraceParent>().unwrap().is_sampled());
        // Of a later version the known fields are read, and of the flags the known bit.
        assert_eq!(with("00-4", "cc-4").parse::<TraceParent>().unwrap().to_string(), VALID);
        assert!(format!("{}-what-comes", with("00-4", "cc-4")).parse::<TraceParent>().is_ok());
        assert!(with("-01", "-03").parse::<TraceParent>().unwrap().is_sampled());
        for wrong in [
            String::new(),
            with("00-4", "ff-4"),
            with("4bf9", "4BF9"),
            with("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            with("00f067aa0ba902b7", &"0".repeat(16)),
            format!("{VALID}-what-comes"),
            format!("{}x", with("00-4", "cc-4")),
            with("-01", ""),
            with("-01", "-0g"),
            with("00-4bf", "004-bf"),
            "ä".repeat(30),
        ] {
            assert!(wrong.parse::<TraceParent>().is_err(), "{wrong}");
        }
    }
}
