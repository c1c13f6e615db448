//! The names of things, checked once where they enter, and safe from there on: in SQL text, in logs, on the wire.
//!
//! Every type here has one text form, a parser that accepts exactly that form and never panics, and a limit that
//! follows from the narrowest place the text has to fit into: 64 bytes for each half of an XA xid, fewer than 200
//! bytes for a prepared transaction's name in PostgreSQL.
//!
//! The texts consist of `[0-9a-z._-]` and, in a whole xid, `:`. None of them needs quoting inside an SQL literal.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Bytes of a bqual: XA allows no more.
pub const MAX_BQUAL_BYTES: usize = 64;
/// Hex digits behind the resource manager's name in a bqual.
const BQUAL_SUFFIX: usize = 16;
/// Bytes of a resource manager's name: what is left in a bqual beside the dot and the suffix.
pub const MAX_RESOURCE_MANAGER_BYTES: usize = MAX_BQUAL_BYTES - BQUAL_SUFFIX - 1;

/// A text that is no identifier of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {kind} {text:?}: {why}")]
pub struct ParseIdError {
    /// What it should have been.
    pub kind: &'static str,
    /// What it was, cut to 80 bytes.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl ParseIdError {
    fn new(kind: &'static str, text: &str, why: &'static str) -> Self {
        Self { kind, text: crate::limits::cut(text, 80).to_owned(), why }
    }
}

/// Digits and lower-case letters a to f only: `Uuid` and `u64` would take more spellings of one value.
fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// One life of one coordinator node: a number that the decision log gives out, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u32);

impl Epoch {
    /// `None` for 0, which names no epoch.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Epoch {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = |why| ParseIdError::new("epoch", text, why);
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error("an epoch is a decimal number"));
        }
        if text.starts_with('0') {
            return Err(error("an epoch starts with a digit from 1 to 9"));
        }
        match text.parse::<u32>() {
            Ok(number) => Self::new(number).ok_or_else(|| error("0 is no epoch")),
            Err(_overflow) => Err(error("an epoch fits into 32 bits")),
        }
    }
}

/// A global transaction's id: the epoch that began it, and a UUID of version 7 as 32 hex digits.
///
/// Text: `12.0192f0c1a2b37c3d8e4f5a6b7c8d9e0f`, at most 43 bytes. Ordered by time first, then by the random part, so
/// that a range of ids is a range of time; the epoch comes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gtrid {
    epoch: Epoch,
    uuid: Uuid,
}

impl Gtrid {
    /// Bytes of [`Gtrid::to_bytes`].
    pub const BYTES: usize = 20;

    /// The id of a transaction begun in `epoch`, at `unix_ms` milliseconds since 1970 (48 bits are kept), told from
    /// others of the same moment by `random`, of which 74 bits are kept.
    #[must_use]
    pub fn new(epoch: Epoch, unix_ms: u64, random: [u8; 10]) -> Self {
        let uuid = uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid();
        Self { epoch, uuid }
    }

    /// The epoch that the transaction belongs to.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// When it began by its coordinator's clock, in milliseconds since 1970.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        let bytes = self.uuid.as_bytes();
        bytes[..6].iter().fold(0, |ms, byte| ms << 8 | u64::from(*byte))
    }

    /// The UUID's random bits, folded: equally spread, the same for the same id.
    #[must_use]
    pub fn spread(&self) -> u64 {
        let (_, random) = self.uuid.as_u64_pair();
        // The two top bits are the UUID's variant.
        random & (u64::MAX >> 2)
    }

    /// 16 bytes of UUID, then 4 of the epoch, big-endian: their order is the order of `Gtrid`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(self.uuid.as_bytes());
        bytes[16..].copy_from_slice(&self.epoch.0.to_be_bytes());
        bytes
    }

    /// The reverse of [`Gtrid::to_bytes`]. `None` if the length, the UUID's version or the epoch does not fit.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let uuid = Uuid::from_slice(&bytes[..16]).ok()?;
        let epoch = Epoch::new(u32::from_be_bytes(bytes[16..].try_into().ok()?))?;
        is_version_7(&uuid).then_some(Self { epoch, uuid })
    }
}

fn is_version_7(uuid: &Uuid) -> bool {
    uuid.get_version_num() == 7 && uuid.get_variant() == uuid::Variant::RFC4122
}

impl PartialOrd for Gtrid {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Gtrid {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.uuid, self.epoch).cmp(&(other.uuid, other.epoch))
    }
}

impl fmt::Display for Gtrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.uuid.as_simple())
    }
}

impl FromStr for Gtrid {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = |why| ParseIdError::new("gtrid", text, why);
        let (epoch, uuid) =
            text.split_once('.').ok_or_else(|| error("it has the form <epoch>.<32 hex digits>"))?;
        let epoch = epoch.parse::<Epoch>().map_err(|cause| error(cause.why))?;
        if uuid.len() != 32 || !is_lower_hex(uuid) {
            return Err(error("behind the dot stand 32 lower-case hex digits"));
        }
        let uuid = Uuid::try_parse(uuid).map_err(|_hex| error("behind the dot stand 32 hex digits"))?;
        if !is_version_7(&uuid) {
            return Err(error("the hex digits are a UUID of version 7"));
        }
        Ok(Self { epoch, uuid })
    }
}

/// The name of a resource manager: what a participant attaches as, such as `orders-db`.
///
/// 1 to 47 bytes of `[a-z0-9_-]`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceManagerName(String);

impl ResourceManagerName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResourceManagerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ResourceManagerName {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = |why| ParseIdError::new("resource manager name", text, why);
        if text.is_empty() || text.len() > MAX_RESOURCE_MANAGER_BYTES {
            return Err(error("it has 1 to 47 bytes"));
        }
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if !text.bytes().all(inner) || text.starts_with(['-', '_']) {
            return Err(error("it consists of a to z, 0 to 9, - and _, and begins with a letter or digit"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A branch qualifier: the resource manager's name, a dot, and 16 hex digits that are never used twice.
///
/// At most 64 bytes. It names its resource manager, so that nobody finishes another's branch by mistake, and it is
/// fresh for each local transaction, so that a branch that was lost is never mistaken for the one that came after it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bqual {
    text: String,
}

impl Bqual {
    /// A new bqual of `resource_manager`; `random` must not have been used for it before.
    #[must_use]
    pub fn new(resource_manager: &ResourceManagerName, random: u64) -> Self {
        Self { text: format!("{resource_manager}.{random:016x}") }
    }

    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The resource manager that the branch belongs to.
    #[must_use]
    pub fn resource_manager(&self) -> ResourceManagerName {
        ResourceManagerName(self.resource_manager_str().to_owned())
    }

    /// The same, borrowed.
    #[must_use]
    pub fn resource_manager_str(&self) -> &str {
        &self.text[..self.text.len() - BQUAL_SUFFIX - 1]
    }
}

impl fmt::Display for Bqual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl FromStr for Bqual {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = |why| ParseIdError::new("bqual", text, why);
        let (name, suffix) = text
            .split_once('.')
            .ok_or_else(|| error("it has the form <resource manager>.<16 hex digits>"))?;
        name.parse::<ResourceManagerName>().map_err(|cause| error(cause.why))?;
        if suffix.len() != BQUAL_SUFFIX || !is_lower_hex(suffix) {
            return Err(error("behind the dot stand 16 lower-case hex digits"));
        }
        Ok(Self { text: text.to_owned() })
    }
}

/// A branch's whole id, as in X/Open XA: the global transaction and the branch inside it.
///
/// Text: `<gtrid>:<bqual>`, at most 108 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid {
    /// The global transaction.
    pub gtrid: Gtrid,
    /// The branch inside it.
    pub bqual: Bqual,
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.gtrid, self.bqual)
    }
}

impl FromStr for Xid {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = |why| ParseIdError::new("xid", text, why);
        let (gtrid, bqual) = text.split_once(':').ok_or_else(|| error("it has the form <gtrid>:<bqual>"))?;
        let gtrid = gtrid.parse().map_err(|cause: ParseIdError| error(cause.why))?;
        let bqual = bqual.parse().map_err(|cause: ParseIdError| error(cause.why))?;
        Ok(Self { gtrid, bqual })
    }
}

/// Which decision log a transaction belongs to: 8 random hex digits, made once with the log.
///
/// Nothing automatic ever touches a prepared transaction of another cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(u32);

impl ClusterId {
    /// A new one, from random bits.
    #[must_use]
    pub const fn from_random(random: u32) -> Self {
        Self(random)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for ClusterId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = |why| ParseIdError::new("cluster id", text, why);
        if text.len() != 8 || !is_lower_hex(text) {
            return Err(error("it has 8 lower-case hex digits"));
        }
        u32::from_str_radix(text, 16).map(Self).map_err(|_hex| error("it has 8 hex digits"))
    }
}

/// Defines an id of 16 random bytes with a text form of 32 hex digits.
macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From 16 random bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// `None` unless there are 16 bytes.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Some(Self(bytes.try_into().ok()?))
            }

            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = || ParseIdError::new($kind, text, "it has 32 lower-case hex digits");
                if text.len() != 32 || !is_lower_hex(text) {
                    return Err(error());
                }
                u128::from_str_radix(text, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_hex| error())
            }
        }
    };
}

random_id! {
    /// Tells an epoch from another one of the same number, of a log that was restored from a backup and began again.
    Incarnation, "incarnation"
}
random_id! {
    /// What a resource manager is, whatever it is called: stored in it at its first attach.
    ResourceManagerId, "resource manager identity"
}
random_id! {
    /// One participant process.
    InstanceId, "instance"
}

/// A place in the decision log: the newest forced batch that someone knows of.
///
/// Participants remember the highest one of each epoch ([`crate::Positions`]). A log that is behind any of them has lost its tail
/// (protocol.md, P8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogPosition {
    /// The epoch that forced the batch.
    pub epoch: Epoch,
    /// Which epoch of that number.
    pub incarnation: Incarnation,
    /// The batch's number within the epoch, from 1; 0 before the first.
    pub sequence: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{config, near};

    fn gtrids() -> impl Strategy<Value = Gtrid> {
        (1u32.., 0u64..1 << 48, any::<[u8; 10]>())
            .prop_map(|(epoch, ms, random)| Gtrid::new(Epoch::new(epoch).unwrap(), ms, random))
    }

    fn names() -> impl Strategy<Value = ResourceManagerName> {
        "[a-z0-9][a-z0-9_-]{0,46}".prop_map(|text| text.parse().unwrap())
    }

    /// Texts near an xid: the parsers must refuse nearly all of them, and panic at none.
    fn near_xids() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[0-9a-fg.:_ -]{0,120}",
            "[0-9]{0,11}\\.[0-9a-f]{30,34}:[a-z.]{1,50}[0-9a-f]{14,18}"
        ]
    }

    proptest! {
        #[test]
        fn every_xid_survives_its_text(gtrid in gtrids(), name in names(), random: u64) {
            let xid = Xid { gtrid, bqual: Bqual::new(&name, random) };
            prop_assert!(xid.bqual.as_str().len() <= MAX_BQUAL_BYTES);
            prop_assert!(gtrid.to_string().len() <= 43);
            prop_assert_eq!(xid.bqual.resource_manager(), name);
            prop_assert_eq!(xid.to_string().parse::<Xid>().unwrap(), xid);
        }

        #[test]
        fn a_gtrid_survives_its_bytes_and_keeps_its_order(a in gtrids(), b in gtrids()) {
            prop_assert_eq!(Gtrid::from_bytes(&a.to_bytes()), Some(a));
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
            if a.unix_ms() < b.unix_ms() { prop_assert!(a < b); }
        }

        #[test]
        fn a_gtrid_tells_its_time(epoch in 1u32.., ms in 0u64..1 << 48, random: [u8; 10]) {
            let gtrid = Gtrid::new(Epoch::new(epoch).unwrap(), ms, random);
            prop_assert_eq!(gtrid.unix_ms(), ms);
            prop_assert_eq!(gtrid.epoch().get(), epoch);
        }

        #[test]
        fn a_parser_accepts_only_what_it_would_print(text in near_xids()) {
            if let Ok(id) = text.parse::<Xid>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<Gtrid>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<Bqual>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<Epoch>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<ClusterId>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<Incarnation>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<ResourceManagerName>() { prop_assert_eq!(id.to_string(), text.clone()); }
        }

        #[test]
        fn bytes_that_are_no_gtrid_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
            if let Some(gtrid) = Gtrid::from_bytes(&bytes) { prop_assert_eq!(gtrid.to_bytes().to_vec(), bytes); }
        }

        #[test]
        fn names_need_no_quoting_in_sql(gtrid in gtrids(), name in names(), random: u64, cluster: u32) {
            let text = format!("{}:{}", ClusterId::from_random(cluster), Xid { gtrid, bqual: Bqual::new(&name, random) });
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".:_-".contains(&b);
            prop_assert!(text.bytes().all(plain));
        }
    }

    proptest! {
        #![proptest_config(config())]

        /// Whatever a text or some bytes are taken for: refused, or printed as they were.
        #[test]
        fn fuzz_ids(bytes in near("ids")) {
            if let Some(gtrid) = Gtrid::from_bytes(&bytes) {
                prop_assert_eq!(gtrid.to_bytes().to_vec(), bytes.clone());
            }
            let text = String::from_utf8_lossy(&bytes);
            for read in [
                text.parse::<Gtrid>().map(|id| id.to_string()),
                text.parse::<Bqual>().map(|id| id.to_string()),
                text.parse::<Xid>().map(|id| id.to_string()),
                text.parse::<ClusterId>().map(|id| id.to_string()),
                text.parse::<ResourceManagerName>().map(|id| id.to_string()),
                text.parse::<ResourceManagerId>().map(|id| id.to_string()),
                text.parse::<InstanceId>().map(|id| id.to_string()),
            ].into_iter().flatten() {
                prop_assert_eq!(&read, &text);
            }
        }
    }

    #[test]
    fn each_malformed_text_is_told_what_is_wrong_with_it() {
        let hex = "0192f0c1a2b37c3d8e4f5a6b7c8d9e0f";
        for (text, why) in [
            (hex.to_owned(), "<epoch>.<32 hex digits>"),
            (format!("0.{hex}"), "1 to 9"),
            (format!("01.{hex}"), "1 to 9"),
            (format!("4294967296.{hex}"), "32 bits"),
            (format!("-1.{hex}"), "decimal"),
            (format!("1.{}", hex.to_uppercase()), "lower-case"),
            (format!("1.{}", &hex[1..]), "32 lower-case"),
            (format!("1.{}", hex.replacen("7c", "4c", 1)), "version 7"),
        ] {
            let error = text.parse::<Gtrid>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn limits_are_exact() {
        assert!("a".repeat(47).parse::<ResourceManagerName>().is_ok());
        for bad in ["", "-a", "_a", "A", "ä", "a.b", "a b", "a'b", &"a".repeat(48)] {
            assert!(bad.parse::<ResourceManagerName>().is_err(), "{bad}");
        }
        let longest = Bqual::new(&"a".repeat(47).parse().unwrap(), u64::MAX);
        assert_eq!(longest.as_str().len(), MAX_BQUAL_BYTES);
    }
}
