//! What stands in the journal: one record per line, as JSON behind its checksum and its length, to be read by people too.
//!
//! ```text
//! 5f3c09aa 77 {"record":"ledger","version":1,"identity":"0f…"}
//! 1b00c4d2 46 {"record":"item","item":"chair","stock":10}
//! 90aa31c7 21 {"record":"complete"}
//! 77e0d1f3 241 {"record":"prepared","branch":"7c1f09ae:3.0192…:shop.00…","entries":[…],"deadline_ms":…,"position":"3:17:07…"}
//! c4410b9e 214 {"record":"ended","branch":"7c1f09ae:3.0192…:shop.00…","outcome":"committed",…}
//! ```
//!
//! The names and meanings are those of files on disks: they are never used again for something else.

use std::fmt::Display;
use std::str::FromStr;

use lockstep::resource::{BranchId, ClusterId, Epoch, LogPosition, ResourceManagerId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The version of this format.
pub const VERSION: u32 = 1;
/// Hex digits of a line's checksum.
const CHECKSUM_DIGITS: usize = 8;

/// A line of the ledger: who has taken what, or brought it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What it is for, such as an order's number. There is one entry of a reference, for ever.
    pub reference: String,
    /// The item.
    pub item: String,
    /// How many more there are of it with this: negative for a reservation.
    pub change: i64,
}

/// How a branch has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Its entries are in the ledger.
    Committed,
    /// They are not, and this fence keeps them out.
    RolledBack,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case", deny_unknown_fields)]
pub enum Record {
    /// The first one: whose file this is.
    Ledger {
        /// [`VERSION`].
        version: u32,
        /// Made with the ledger, and never changed.
        #[serde(with = "text")]
        identity: ResourceManagerId,
    },
    /// It belongs to this cluster from here on.
    Bound {
        /// The cluster.
        #[serde(with = "text")]
        cluster: ClusterId,
    },
    /// There is this item, with so many in stock.
    Item {
        /// Its name.
        item: String,
        /// How many.
        stock: u64,
    },
    /// An entry of earlier times: the stock that it led to is in the item's record.
    Entry(Entry),
    /// A branch voted to commit.
    Prepared {
        /// Which.
        #[serde(with = "text")]
        branch: BranchId,
        /// What it will have done.
        entries: Vec<Entry>,
        /// When its transaction's time is over, in milliseconds since 1970.
        deadline_ms: u64,
        /// The newest place in the decision log that was known then.
        #[serde(with = "position")]
        position: LogPosition,
    },
    /// A branch has ended. This is its evidence, or its fence.
    Ended {
        /// Which.
        #[serde(with = "text")]
        branch: BranchId,
        /// How.
        outcome: Ended,
        /// What it did, if it was not prepared before.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        entries: Vec<Entry>,
        /// As when it was prepared, or the time of this record, if that is later; of a branch that nobody knew, the latest that it can be.
        deadline_ms: u64,
        /// As above.
        #[serde(with = "position")]
        position: LogPosition,
    },
    /// The coordinator has judged these branches, and their evidence may go.
    Forgotten {
        /// Which.
        branches: Vec<Text<BranchId>>,
    },
    /// The newest place in the decision log that was seen of its epoch, also of evidence that was forgotten. One for each epoch.
    Seen {
        /// The place.
        #[serde(with = "position")]
        position: LogPosition,
    },
    /// The file was written and synced up to here before it became the journal: nothing before this can be cut off by a crash.
    Complete,
}

/// A line that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadLine {
    /// It can be the beginning of one.
    CutOff,
    /// It cannot.
    Damaged,
}

/// The record as a line, with its end.
#[must_use]
pub fn encode(record: &Record) -> String {
    let json = serde_json::to_string(record).expect("a record has no keys but texts");
    let summed = format!("{} {json}", json.len());
    format!("{:08x} {summed}\n", crc32c::crc32c(summed.as_bytes()))
}

/// The record in a line without its end.
///
/// # Errors
/// [`BadLine`]; inside, why a line that is whole is no record that this program knows.
pub fn decode(line: &[u8]) -> Result<Result<Record, String>, BadLine> {
    let (checksum, summed) = line.split_at_checked(CHECKSUM_DIGITS).ok_or(BadLine::CutOff)?;
    let summed = summed.strip_prefix(b" ").ok_or(BadLine::CutOff)?;
    let space = summed.iter().position(|byte| *byte == b' ').ok_or(BadLine::CutOff)?;
    let json = &summed[space + 1..];
    // Compared as text: each sum has one spelling, so that no other bytes pass for it.
    if checksum == format!("{:08x}", crc32c::crc32c(summed)).as_bytes() {
        return Ok(serde_json::from_slice(json).map_err(|error| error.to_string()));
    }
    // Two records whose end of line was damaged look like one that was cut off, if nobody counts.
    let length = str::from_utf8(&summed[..space]).ok().and_then(|digits| digits.parse::<usize>().ok());
    Err(if length.is_some_and(|length| json.len() > length) { BadLine::Damaged } else { BadLine::CutOff })
}

/// An id in a list, as its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text<T>(pub T);

impl<T: Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        text::serialize(&self.0, serializer)
    }
}

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer).map(Self)
    }
}

/// Ids as their texts.
mod text {
    use super::{Deserialize, Deserializer, Display, FromStr, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(id: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A log position as `epoch:sequence:incarnation`.
mod position {
    use serde::de::Error as _;

    use super::{Deserialize, Deserializer, Epoch, LogPosition, Serializer};

    pub(super) fn serialize<S: Serializer>(position: &LogPosition, serializer: S) -> Result<S::Ok, S::Error> {
        let LogPosition { epoch, incarnation, sequence } = position;
        serializer.collect_str(&format_args!("{epoch}:{sequence}:{incarnation}"))
    }

    pub(super) fn deserialize<'de, De: Deserializer<'de>>(
        deserializer: De,
    ) -> Result<LogPosition, De::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| De::Error::custom(format!("{text:?} is no log position")))
    }

    fn parse(text: &str) -> Option<LogPosition> {
        let mut parts = text.splitn(3, ':');
        let epoch: Epoch = parts.next()?.parse().ok()?;
        let sequence = parts.next()?.parse().ok()?;
        Some(LogPosition { epoch, sequence, incarnation: parts.next()?.parse().ok()? })
    }
}
